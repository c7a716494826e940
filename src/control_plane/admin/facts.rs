//! What the command line prints of a node; the names stay, since scripts read them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::clock::WallTime;
use crate::codes::{self, Refusal};
use crate::control_plane::leases;
use crate::control_plane::references::{self, Quote, documents};
use crate::control_plane::registry::nodes::Node;
use crate::control_plane::store::Transaction;
use crate::tpm::PcrDifference;

/// A node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeFacts {
    /// Its id.
    pub id: String,
    /// `waiting`, `admitted` or `revoked`.
    pub state: String,
    /// `certified`, `listed` or `unknown`.
    pub grade: String,
    /// Its group.
    pub group: Option<String>,
    /// Its environment; empty for none.
    pub environment: String,
    /// Who or what admitted it.
    pub admitted_by: Option<String>,
    /// RFC 3339, as all times here.
    pub enrolled: String,
    /// When it was admitted.
    pub admitted: Option<String>,
    /// When it was revoked.
    pub revoked: Option<String>,
    /// Why it was revoked.
    pub revoked_reason: Option<String>,
    /// When it last attested or enrolled.
    pub last_seen: String,
    /// What it was last refused for, unless it was served since.
    pub last_refusal: Option<String>,
    /// The agent's version, as it said when it enrolled.
    pub agent_version: String,
    /// TPM name of its EK, hexadecimal.
    pub ek_name: String,
    /// TPM names of its other EKs.
    pub ek_aliases: Vec<String>,
    /// Its last lease.
    pub lease: Option<LeaseFacts>,
    /// Whether a quote of it was verified, so that reference values can be learnt.
    pub quoted: bool,
    /// Its latest verified quote.
    pub quote: Option<QuoteFacts>,
    /// The version of its reference values.
    pub reference_version: Option<u64>,
    /// The set it is held against, before values learnt from itself.
    pub reference_set: Option<String>,
}

/// A lease.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LeaseFacts {
    /// Its sequence number.
    pub sequence: u64,
    /// Whether it is in force.
    pub live: bool,
    /// When it was granted.
    pub issued: String,
    /// The end of its term.
    pub ends: String,
    /// Why it ended before.
    pub ended: Option<String>,
}

/// A verified quote.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct QuoteFacts {
    /// When it was received.
    pub received: String,
    /// The PCRs.
    pub selection: String,
    /// Their values, hexadecimal.
    pub pcrs: BTreeMap<u8, String>,
    /// TPM resets.
    pub reset_count: u32,
    /// TPM restarts since.
    pub restart_count: u32,
    /// `affirming`, or the refusal's code.
    pub verdict: String,
    /// How it differed from the reference values then.
    pub differences: Vec<PcrDifference>,
}

impl NodeFacts {
    /// The facts about `node`.
    ///
    /// # Errors
    /// [`crate::codes::STORE_FAILED`].
    pub fn of(tx: &Transaction<'_>, node: &Node, now: WallTime) -> Result<Self, Refusal> {
        let lease = leases::find(tx, node.id)?.map(|lease| LeaseFacts {
            sequence: lease.sequence,
            live: lease.is_live(now),
            issued: lease.issued_at.to_string(),
            ends: lease.ends_at.to_string(),
            ended: lease.ended,
        });
        let quote = references::latest_quote(tx, node.id)?;
        Ok(Self {
            id: node.id.to_string(),
            state: node.state.as_str().to_owned(),
            grade: node.grade.clone(),
            group: node.group.clone(),
            environment: node.environment.clone(),
            admitted_by: node.admitted_by.clone(),
            enrolled: node.enrolled_at.to_string(),
            admitted: node.admitted_at.map(|at| at.to_string()),
            revoked: node.revoked_at.map(|at| at.to_string()),
            revoked_reason: node.revoked_reason.clone(),
            last_seen: node.last_seen_at.to_string(),
            last_refusal: node.last_refusal.clone(),
            agent_version: node.agent_version.clone(),
            ek_name: hex::encode(&node.ek_name),
            ek_aliases: node.aliases.iter().map(hex::encode).collect(),
            lease,
            quoted: quote.is_some(),
            quote: quote.as_ref().map(QuoteFacts::of),
            reference_version: references::active(tx, node.id)?.map(|reference| reference.version),
            reference_set: match documents::of_node(tx, node) {
                Ok(document) => {
                    document.map(|document| format!("{} version {}", document.set.name, document.set.version))
                }
                Err(refusal) if refusal.code == codes::VERIFY_NO_REFERENCE => Some(refusal.found),
                Err(refusal) => return Err(refusal),
            },
        })
    }
}

impl QuoteFacts {
    /// The facts about a quote.
    pub fn of(quote: &Quote) -> Self {
        Self {
            received: quote.received_at.to_string(),
            selection: quote.pcrs.selection().to_string(),
            pcrs: quote.pcrs.to_hex(),
            reset_count: quote.counts.reset,
            restart_count: quote.counts.restart,
            verdict: quote.verdict.clone(),
            differences: quote.differences.clone(),
        }
    }
}
