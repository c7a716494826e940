//! The inputs of a decision: all that it is made of, as one value that is kept with it.
//!
//! A decision is a pure function of these and of the bundle: made again from what was kept it comes
//! to the same.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{Action, Question};
use crate::clock::WallTime;
use crate::codes::{self, Refusal};
use crate::control_plane::governance;
use crate::control_plane::references::{self, Quote};
use crate::control_plane::registry::nodes::Node;
use crate::control_plane::registry::workloads::Workload;
use crate::control_plane::registry::{destinations, owners};
use crate::control_plane::server::Shared;
use crate::control_plane::store::Transaction;
use crate::protocol::{AuthorizationDetail, CallerClaims, TaskStatement};
use crate::verify::TrustVector;

/// The longest that a caller's details may be, in bytes.
const DETAILS: usize = 16 << 10;
/// Selectors that name an executable by its contents.
const PINS: [&str; 2] = ["unix:sha256:", "unix:fsverity:"];

/// All that a decision is made of.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Inputs {
    /// What is asked for.
    pub action: Action,
    /// When, in seconds since 1970.
    pub now: u64,
    /// The longest lifetime the server gives to anything, in seconds.
    pub limit_seconds: u64,
    /// Who asks.
    pub workload: WorkloadFacts,
    /// Who answers for it.
    pub owner: OwnerFacts,
    /// From which node.
    pub node: NodeFacts,
    /// In which measured state.
    pub evidence: EvidenceFacts,
    /// Towards what.
    pub destination: Option<DestinationFacts>,
    /// Whom a token is for.
    pub audience: BTreeSet<String>,
    /// The process that waits for it.
    pub caller: Option<CallerFacts>,
    /// The task it is for.
    pub task: Option<TaskFacts>,
    /// What the caller means to do.
    pub details: Vec<AuthorizationDetail>,
    /// Until when somebody approved it, in seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approved_until: Option<u64>,
    /// Until when an exception holds, in seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exception_until: Option<u64>,
}

/// The workload as registered.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkloadFacts {
    /// Its SPIFFE ID.
    pub id: String,
    /// What it is for.
    pub purpose: String,
    /// 1 to 4.
    pub tier: u8,
    /// E.g. `prod`; may be empty.
    pub environment: String,
    /// Groups it is in.
    pub roles: BTreeSet<String>,
    /// The audiences its tokens may name; any, if none is listed.
    pub audiences: BTreeSet<String>,
    /// The destinations it may name.
    pub destinations: BTreeSet<String>,
    /// Whether somebody else's program runs as it.
    pub third_party: bool,
    /// Whether people's sessions may use it.
    pub interactive: bool,
    /// Whether its selectors name its executable's digest.
    pub pinned: bool,
    /// Whether it is registered for the node that asks.
    pub registered: bool,
    /// Why nothing is issued for it, if so.
    pub suspended: Option<String>,
    /// The longest lifetime of its credentials, in seconds.
    pub ttl_seconds: Option<u64>,
}

/// Who answers for it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OwnerFacts {
    /// Its name.
    pub name: String,
    /// `person` or `team`.
    pub kind: String,
    /// Whether it is known and didn't leave.
    pub active: bool,
}

/// The node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeFacts {
    /// Its id, in hexadecimal.
    pub id: String,
    /// Its group; empty if it is in none.
    pub group: String,
    /// Where it belongs.
    pub environment: String,
    /// `certified`, `listed` or `unknown`.
    pub grade: String,
    /// The TPM's firmware version: 16 hexadecimal digits; empty while unknown.
    pub firmware: String,
}

/// What its last verified evidence said.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvidenceFacts {
    /// SHA-256 of it; empty where it was received by a version that didn't keep that.
    pub digest: String,
    /// `affirming`, or the refusal's code.
    pub verdict: String,
    /// Seconds since it was received.
    pub age_seconds: u64,
    /// A lease's term, in seconds.
    pub term_seconds: u64,
    /// The firmware profile.
    pub profile: String,
    /// The reference set.
    pub references: String,
    /// The AR4SI claims.
    pub vector: TrustVector,
}

/// Towards what.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DestinationFacts {
    /// Its name.
    pub name: String,
    /// Its environment; `None` if nobody registered it.
    pub environment: Option<String>,
}

/// The process that waits, as its node's kernel saw it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CallerFacts {
    /// Effective user id.
    pub uid: u32,
    /// Whether it belongs to somebody's login session.
    pub login_session: bool,
    /// What was found true of it.
    pub selectors: BTreeSet<String>,
}

/// The task, in the caller's words.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskFacts {
    /// Its id.
    pub id: String,
    /// What it means to do.
    pub intent: String,
    /// What for; may be empty.
    pub purpose: String,
    /// The longest lifetime it asks for, in seconds; 0 for what policy allows.
    pub term_seconds: u64,
}

impl CallerFacts {
    fn of(claims: &CallerClaims) -> Self {
        Self {
            uid: claims.uid,
            login_session: claims.login_session,
            selectors: claims.selectors.iter().cloned().collect(),
        }
    }
}

impl TaskFacts {
    fn of(task: &TaskStatement) -> Self {
        Self {
            id: task.id.clone(),
            intent: task.intent.clone(),
            purpose: task.purpose.clone(),
            term_seconds: task.term_seconds,
        }
    }
}

impl Inputs {
    /// What is known now of a question.
    ///
    /// # Errors
    /// [`codes::PROTOCOL_MALFORMED`] for details that are too long; [`codes::STORE_FAILED`].
    pub fn gather(
        tx: &Transaction<'_>,
        shared: &Shared,
        question: &Question<'_>,
        now: WallTime,
    ) -> Result<Self, Refusal> {
        let Question { workload, node, .. } = *question;
        let bytes = |detail: &AuthorizationDetail| {
            let texts = detail.actions.iter().chain(&detail.locations).map(String::len);
            detail.kind.len() + texts.sum::<usize>()
        };
        let size: usize = question.details.iter().map(bytes).sum();
        if size > DETAILS {
            // It would be kept: a node mustn't fill the store.
            return Err(Refusal::new(codes::PROTOCOL_MALFORMED, format!("{size} bytes"))
                .at("details")
                .expected(format!("at most {DETAILS}")));
        }
        let term_seconds = shared.settings.lease.as_secs();
        let quote = references::latest_quote(tx, node.id)?;
        let standing =
            governance::standing(tx, &workload.id.to_string(), question.destination.unwrap_or_default(), now)?;
        let destination = question.destination.map(|name| destination(tx, name)).transpose()?;
        Ok(Self {
            action: question.action,
            now: now.0,
            limit_seconds: shared.settings.svid.as_secs(),
            workload: WorkloadFacts::of(workload, node),
            owner: owner(tx, &workload.owner)?,
            node: NodeFacts {
                id: node.id.to_string(),
                group: node.group.clone().unwrap_or_default(),
                environment: node.environment.clone(),
                grade: node.grade.clone(),
                firmware: quote.as_ref().map(|quote| quote.firmware.clone()).unwrap_or_default(),
            },
            evidence: EvidenceFacts::of(quote.as_ref(), term_seconds, now),
            destination,
            audience: question.audience.iter().cloned().collect(),
            caller: question.caller.map(CallerFacts::of),
            task: question.task.map(TaskFacts::of),
            details: question.details.to_vec(),
            approved_until: standing.approved_until.map(|until| until.0),
            exception_until: standing.exception_until.map(|until| until.0),
        })
    }

    /// Whom the question is about, for records.
    pub fn destination_name(&self) -> &str {
        self.destination.as_ref().map_or("", |destination| &destination.name)
    }

    /// One text for one value: what is kept, and what a digest would be taken over.
    ///
    /// # Errors
    /// [`codes::POLICY_FAILED`]; not reached for values of these types.
    pub fn canonical(&self) -> Result<String, Refusal> {
        serde_json::to_string(self).map_err(|e| Refusal::new(codes::POLICY_FAILED, format!("BUG: inputs: {e}")))
    }
}

impl WorkloadFacts {
    fn of(workload: &Workload, node: &Node) -> Self {
        Self {
            id: workload.id.to_string(),
            purpose: workload.purpose.clone(),
            tier: workload.tier.unwrap_or(1),
            environment: workload.environment.clone(),
            roles: workload.roles.clone(),
            audiences: workload.audiences.clone(),
            destinations: workload.destinations.clone(),
            third_party: workload.third_party,
            interactive: workload.interactive,
            pinned: workload.selectors.iter().any(|selector| PINS.iter().any(|pin| selector.starts_with(pin))),
            registered: workload.is_for(node),
            suspended: workload.suspended.as_ref().map(|suspended| suspended.reason.clone()),
            ttl_seconds: workload.ttl_seconds,
        }
    }
}

impl EvidenceFacts {
    fn of(quote: Option<&Quote>, term_seconds: u64, now: WallTime) -> Self {
        let Some(quote) = quote else {
            return Self {
                digest: String::new(),
                verdict: codes::ISSUER_NO_LEASE.to_string(),
                age_seconds: u64::MAX,
                term_seconds,
                profile: String::new(),
                references: String::new(),
                vector: TrustVector::default(),
            };
        };
        Self {
            digest: quote.evidence.map(hex::encode).unwrap_or_default(),
            verdict: quote.verdict.clone(),
            age_seconds: now.0.saturating_sub(quote.received_at.0),
            term_seconds,
            profile: quote.profile.clone(),
            references: quote.references.clone(),
            vector: quote.vector,
        }
    }
}

fn owner(tx: &Transaction<'_>, name: &str) -> Result<OwnerFacts, Refusal> {
    let known = owners::find(tx, name)?;
    Ok(OwnerFacts {
        name: name.to_owned(),
        kind: known.as_ref().map(|owner| owner.kind.as_str().to_owned()).unwrap_or_default(),
        active: known.is_some_and(|owner| owner.retired.is_none()),
    })
}

fn destination(tx: &Transaction<'_>, name: &str) -> Result<DestinationFacts, Refusal> {
    let environment = destinations::find(tx, name)?.map(|known| known.environment);
    Ok(DestinationFacts { name: name.to_owned(), environment })
}
