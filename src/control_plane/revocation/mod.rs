//! Taking back: what a revocation is, whom it concerns, and what came back from there.
//!
//! ```text
//!  revoke ─▶ plan: whom, until when ─▶ take_back: number, ends, withdrawals ─▶ commit ─▶ push
//!              │ --explain ends here                                                      │
//!              ▼                        told ◀── the node's stream, or its attestation's answer
//!           the bound           acknowledged ◀── POST /v1/withdrawals: the node's claim
//!                                     proven ◀── its next affirmed evidence, which names the number
//! ```
//!
//! All of it up to the push is one transaction. A withdrawal that a node hasn't acknowledged is repeated
//! whenever it opens its stream or attests, so nothing depends on the push itself.

pub mod bounds;
pub mod counts;
mod node;
pub mod plan;
pub mod words;

use super::audit::{self, Subject};
use super::credentials::ledger::{self, Credential, Of};
use super::effects::Effects;
use super::events::Audience;
use super::store::{Transaction, params, signed, unsigned};
use super::{replay, tasks};
use crate::clock::WallTime;
use crate::codes::{Code, Refusal};
use crate::identity::NodeId;
use crate::protocol::{self, Event, Withdrawal, Withdrawn};

/// What is taken back.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum What {
    /// Everything a node holds.
    Node(NodeId),
    /// Everything of these workloads, wherever.
    Workloads(Vec<String>),
    /// One credential.
    Credential(Credential),
    /// A node's task.
    Task(NodeId, String),
}

/// Why, and in whose name: as the record says it and as callers are told.
#[derive(Clone, Copy, Debug)]
pub struct Cause<'a> {
    /// `node`, `workload`, `owner`, `credential` or `task`: what was named.
    pub kind: &'static str,
    /// The one that was named.
    pub target: &'a str,
    /// In somebody's words.
    pub reason: &'a str,
    /// The code that its callers meet from now on.
    pub code: Code,
}

/// What was taken back.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Taken {
    /// The revocation's number.
    pub number: u64,
    /// How many credentials it ended.
    pub credentials: usize,
    /// What each node is told.
    pub withdrawals: Vec<(NodeId, Withdrawal)>,
}

impl Taken {
    /// What it still has to do: the nodes are told, and an older store would give it back.
    pub fn effects(&self) -> Effects {
        let event =
            |(node, withdrawal): &(NodeId, Withdrawal)| (Audience::Node(*node), Event::Withdraw(withdrawal.clone()));
        Effects { push: self.withdrawals.iter().map(event).collect(), taken: true, ..Effects::default() }
    }
}

/// Takes something back, in the transaction that also sees to it that it isn't issued again: ends the
/// credentials, numbers the revocation, and notes for each node what it must be told and until when it
/// could go on without hearing it. Kept answers that hold what was taken are forgotten.
///
/// # Errors
/// [`crate::codes::STORE_FAILED`].
pub fn take_back(tx: &Transaction<'_>, what: &What, cause: &Cause<'_>, now: WallTime) -> Result<Taken, Refusal> {
    // Before anything ends: who holds what decides whom it concerns.
    let concerned = bounds::concerned(tx, what, now)?;
    let mut credentials = 0;
    let mut end = |of: Of<'_>| -> Result<(), Refusal> {
        credentials += ledger::end(tx, of, cause.code, cause.reason, now)?.len();
        Ok(())
    };
    match what {
        What::Node(node) => end(Of::Node(*node))?,
        What::Workloads(ids) => ids.iter().try_for_each(|id| end(Of::Workload(id)))?,
        What::Credential(credential) => end(Of::Credential(&credential.id))?,
        What::Task(node, task) => end(Of::Task(*node, task))?,
    }
    // And what they were issued for: tasks that are begun anew begin by another decision.
    let over = |of: tasks::Of<'_>| tasks::end(tx, of, cause.code, cause.reason, now).map(drop);
    match what {
        What::Node(node) => over(tasks::Of::Node(*node))?,
        What::Workloads(ids) => ids.iter().try_for_each(|id| over(tasks::Of::Workload(id)))?,
        What::Credential(_) => {}
        What::Task(node, task) => over(tasks::Of::Task(*node, task))?,
    }
    let number = numbered(tx, cause, credentials, now)?;
    let refusal = Refusal::new(cause.code, format!("revoked at {now}: {}", audit::clipped(cause.reason))).at(format!(
        "{} {}",
        cause.kind,
        audit::clipped(cause.target)
    ));
    let mut withdrawals = Vec::with_capacity(concerned.len());
    for whom in concerned {
        let withdrawal = Withdrawal { number, of: whom.of, refusal: refusal.clone() };
        tx.prepare_cached("INSERT INTO withdrawals(revocation, node, message, bound) VALUES (?1, ?2, ?3, ?4)")?
            .execute(params![
                signed(number),
                whom.node.as_bytes(),
                protocol::encode(&withdrawal)?,
                signed(whom.bound.0)
            ])?;
        replay::forget(tx, Some(whom.node))?;
        withdrawals.push((whom.node, withdrawal));
    }
    let detail = serde_json::json!({
        "revocation": number, "kind": cause.kind, "target": audit::clipped(cause.target),
        "reason": audit::clipped(cause.reason), "credentials": credentials, "nodes": withdrawals.len(),
    });
    audit::about(tx, now, "revocation.made", &subject(what), detail)?;
    Ok(Taken { number, credentials, withdrawals })
}

/// The next number, with the revocation's row. A number is never given twice, not even after a restore.
///
/// # Errors
/// [`crate::codes::STORE_FAILED`].
pub fn numbered(tx: &Transaction<'_>, cause: &Cause<'_>, credentials: usize, now: WallTime) -> Result<u64, Refusal> {
    let number: i64 = tx
        .prepare_cached(
            "INSERT INTO revocations(at, kind, target, reason, credentials) VALUES (?1, ?2, ?3, ?4, ?5)
             RETURNING number",
        )?
        .query_row(
            params![signed(now.0), cause.kind, cause.target, cause.reason, signed(credentials as u64)],
            |row| row.get(0),
        )?;
    Ok(unsigned(number))
}

fn subject(what: &What) -> Subject<'_> {
    match what {
        What::Node(node) => Subject { node: Some(*node), ..Subject::default() },
        What::Workloads(ids) => {
            let one = if let [one] = ids.as_slice() { Some(one.as_str()) } else { None };
            Subject { workload: one, ..Subject::default() }
        }
        What::Credential(credential) => ledger::subject(credential),
        What::Task(node, task) => Subject { node: Some(*node), task: Some(task), ..Subject::default() },
    }
}

/// What a node is told of `what`; of several workloads those that concern it.
fn told(what: &What, workloads: Vec<String>) -> Withdrawn {
    match what {
        What::Node(_) => Withdrawn::Node,
        What::Workloads(_) => Withdrawn::Workloads(workloads),
        What::Credential(credential) => Withdrawn::Credential(credential.id.clone()),
        What::Task(_, task) => Withdrawn::Task(task.clone()),
    }
}
