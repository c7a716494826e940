//! The decision: whether this workload, on this node, as it stands now, may have this credential.
//!
//! Every credential is the answer to one [`Question`], asked in the transaction that issues it.
//!
//! ```text
//!  Question ─▶ Inputs ─▶ engine ◀─ guardrails, in_force ◀─ bundle ◀─ rules, trials
//!                          │
//!                          ▼
//!                        Answer ─▶ decisions (kept, made again) ─▶ why_not, standing
//! ```

mod bundle;
mod decisions;
mod engine;
mod entities;
mod floor;
mod in_force;
mod inputs;
mod rules;
mod schema;
pub mod standing;
mod trials;
mod why_not;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::leases::LeaseRow;
use super::registry::nodes::Node;
use super::registry::workloads::Workload;
use super::server::Shared;
use super::store::Transaction;
use crate::clock::WallTime;
use crate::codes::{self, Refusal};
use crate::protocol::{AuthorizationDetail, CallerClaims, TaskStatement};
use crate::secret;

pub use bundle::{Bundle, Content, LIMIT as BUNDLE_LIMIT, is_name};
pub use decisions::{Filter, Replayed, forget, kept_since, list, replay};
pub use floor::Floor;
pub use in_force::{Bundles, Facts, all as all_bundles, apply, document, highest};
pub use schema::{GUARDRAILS, TEXT as SCHEMA};
pub use trials::Passed;
pub use why_not::{Asked, explain};

use decisions::Kept;
use engine::Answer;
use inputs::Inputs;

/// What is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
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
    now: WallTime,
) -> Result<Decision, Refusal> {
    let inputs = Inputs::gather(tx, shared, question, now)?;
    let (policy, answer) = answered(tx, shared, &inputs)?;
    let id = fresh_id()?;
    let kept = Kept { id: id.clone(), at: now, policy, inputs, answer };
    decisions::keep(tx, &kept)?;
    let Answer { refusal, ttl_seconds, details, .. } = kept.answer;
    let outcome = match refusal {
        Some(refusal) => Err(refusal),
        None => Ok(Grant { ttl: Duration::from_secs(ttl_seconds), details }),
    };
    Ok(Decision { id, outcome })
}

/// What the bundle in force says, and its digest; without a valid one nothing is permitted, and it is zeros.
fn answered(tx: &Transaction<'_>, shared: &Shared, inputs: &Inputs) -> Result<([u8; 32], Answer), Refusal> {
    match shared.bundles.in_force(tx, &shared.settings.policy) {
        Ok(bundle) => Ok((bundle.digest, engine::decide(inputs, Ok(&bundle.rules)))),
        Err(refusal) if refusal.code == codes::STORE_FAILED => Err(refusal),
        Err(refusal) => Ok(([0; 32], engine::decide(inputs, Err(&refusal)))),
    }
}

/// A kept decision as shown to an operator, beside what making it again comes to.
///
/// # Errors
/// [`codes::ADMIN_UNKNOWN`].
pub fn shown(tx: &Transaction<'_>, shared: &Shared, id: &str) -> Result<serde_json::Value, Refusal> {
    let kept = decisions::find(tx, id)?;
    let version = shared.bundles.of_digest(tx, &kept.policy).ok().map(|bundle| bundle.content.version);
    let again = decisions::again(tx, &shared.bundles, &kept);
    Ok(kept.facts(version, again))
}

/// The id of a decision yet to be made.
///
/// # Errors
/// [`codes::STORE_FAILED`] when there is no randomness.
pub fn fresh_id() -> Result<String, Refusal> {
    Ok(hex::encode(secret::random::<16>().map_err(|e| Refusal::new(codes::STORE_FAILED, e.to_string()))?))
}

#[cfg(test)]
mod tests;
