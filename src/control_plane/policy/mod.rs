//! The decision: whether this workload, on this node, as it stands now, may have this credential.
//!
//! Every credential is the answer to one [`Question`], asked in the transaction that issues it.

use std::time::Duration;

use super::leases::LeaseRow;
use super::registry::nodes::Node;
use super::registry::owners;
use super::registry::workloads::Workload;
use super::server::Shared;
use super::store::Transaction;
use crate::clock::WallTime;
use crate::codes::{self, Refusal};
use crate::protocol::{AuthorizationDetail, CallerClaims, TaskStatement};
use crate::secret;

/// What is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// An X.509-SVID.
    X509,
    /// A JWT-SVID.
    Jwt,
}

/// Everything that a decision is made of, beside the store and the time.
#[derive(Clone, Debug)]
pub struct Question<'a> {
    /// What is asked for.
    pub action: Action,
    /// The node that asks.
    pub node: &'a Node,
    /// The lease it asks under, which is live.
    pub lease: &'a LeaseRow,
    /// For which workload.
    pub workload: &'a Workload,
    /// The process behind it as the agent saw it; none where the agent asks ahead of any process.
    pub caller: Option<&'a CallerClaims>,
    /// The task it is for.
    pub task: Option<&'a TaskStatement>,
    /// Whom a token is for.
    pub audience: &'a [String],
    /// Towards what.
    pub destination: Option<&'a str>,
    /// What the caller means to do (RFC 9396).
    pub details: &'a [AuthorizationDetail],
}

/// A decision. It stands in the store under its id, whatever it says.
#[derive(Clone, Debug)]
pub struct Decision {
    /// 32 hexadecimal digits.
    pub id: String,
    /// What may be issued, or why nothing.
    pub outcome: Result<Grant, Refusal>,
}

/// What a decision permits.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Grant {
    /// The longest lifetime: the least of what the determining policies, the workload and the evidence's
    /// age allow. The lease's end comes on top.
    pub ttl: Duration,
    /// Of what was asked for, what is granted.
    pub details: Vec<AuthorizationDetail>,
}

/// Decides, and keeps the decision with all its inputs.
///
/// # Errors
/// [`codes::STORE_FAILED`]. A denial is no error but an outcome.
pub fn decide(
    tx: &Transaction<'_>,
    shared: &Shared,
    question: &Question<'_>,
    _now: WallTime,
) -> Result<Decision, Refusal> {
    let id = fresh_id()?;
    let workload = question.workload;
    let outcome = match registered(tx, question)? {
        Some(refusal) => Err(refusal),
        None => Ok(Grant {
            ttl: workload.ttl_seconds.map_or(Duration::MAX, Duration::from_secs).min(shared.settings.svid),
            details: question.details.to_vec(),
        }),
    };
    Ok(Decision { id, outcome })
}

/// The id of a decision yet to be made.
///
/// # Errors
/// [`codes::STORE_FAILED`] when there is no randomness.
pub fn fresh_id() -> Result<String, Refusal> {
    Ok(hex::encode(secret::random::<16>().map_err(|e| Refusal::new(codes::STORE_FAILED, e.to_string()))?))
}

/// What no policy can permit.
fn registered(tx: &Transaction<'_>, question: &Question<'_>) -> Result<Option<Refusal>, Refusal> {
    let Question { workload, node, .. } = question;
    let at = workload.id.to_string();
    // A node's claims play no part: what it may hold is what an operator registered for it.
    if !workload.is_for(node) {
        return Ok(Some(Refusal::new(codes::ISSUER_NOT_THIS_NODE, at).at(format!("node {}", node.id))));
    }
    if let Some(suspended) = &workload.suspended {
        return Ok(Some(Refusal::new(codes::POLICY_SUSPENDED, suspended.reason.clone()).at(at)));
    }
    let owner = owners::all(tx)?.into_iter().find(|owner| owner.name == workload.owner);
    if owner.is_none_or(|owner| owner.retired.is_some()) {
        let found = format!("its owner `{}` left", workload.owner);
        return Ok(Some(Refusal::new(codes::POLICY_SUSPENDED, found).at(at).expected("another owner")));
    }
    Ok(None)
}
