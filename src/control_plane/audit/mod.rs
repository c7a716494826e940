//! The record of what was decided: every refusal, admission, lease and certificate, in the same
//! transaction as the thing itself; and what nodes released, as they deliver it.
//!
//! ```text
//! done, about, refused ─▶ chain ─▶ log            ◀─ listing ◀─ audit tail, export
//!                           └─ heads ─▶ signed,     ◀─ verify  ◀─ audit verify
//!                                       and outside ◀─ joins   ◀─ audit check
//! POST /v1/records ─▶ journals ─▶ node_records
//! ```

mod chain;
pub mod heads;
pub mod joins;
pub mod journals;
pub mod listing;
#[cfg(test)]
mod tests;
pub mod verify;

use std::cell::RefCell;
use std::path::Path;

use super::registry::nodes::Node;
use super::registry::ownership::Claim;
use super::store::{Transaction, unsigned};
use crate::clock::WallTime;
use crate::codes::{self, Refusal};
use crate::identity::NodeId;
use crate::protocol::records::printable;

/// The longest text a record keeps of what a peer sent, in bytes.
const LIMIT: usize = 2048;

thread_local! {
    /// Whoever gives the command that is carried out on this thread: a command is one closure on one
    /// thread, and records are written in dozens of places, none of which may forget to say who it was.
    static ACTING: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Does `work`; the records that it writes say that it was done by `actor`.
pub fn acting<T>(actor: &str, work: impl FnOnce() -> T) -> T {
    struct Until;
    impl Drop for Until {
        fn drop(&mut self) {
            ACTING.take();
        }
    }
    ACTING.set(Some(actor.to_owned()));
    let _until = Until;
    work()
}

/// Records that something was done.
///
/// # Errors
/// [`crate::codes::STORE_FAILED`]: then what was done must not stand either.
pub fn done(
    tx: &Transaction<'_>,
    now: WallTime,
    what: &str,
    node: Option<NodeId>,
    detail: serde_json::Value,
) -> Result<(), Refusal> {
    write(tx, now, what, &Subject { node, ..Subject::default() }, detail)
}

/// Whom a record is about, so that what happened to one of them can be found again.
#[derive(Clone, Copy, Debug, Default)]
pub struct Subject<'a> {
    /// The node.
    pub node: Option<NodeId>,
    /// The workload's SPIFFE ID.
    pub workload: Option<&'a str>,
    /// The lease's sequence number.
    pub lease: Option<u64>,
    /// The decision's id.
    pub decision: Option<&'a str>,
    /// The credential's id: serial number or `jti`.
    pub credential: Option<&'a str>,
    /// The task's id.
    pub task: Option<&'a str>,
}

/// Records what happened, and to whom.
///
/// # Errors
/// As [`done`].
pub fn about(
    tx: &Transaction<'_>,
    now: WallTime,
    what: &str,
    subject: &Subject<'_>,
    detail: serde_json::Value,
) -> Result<(), Refusal> {
    write(tx, now, what, subject, detail)
}

/// Records a refusal.
///
/// # Errors
/// As [`done`].
pub fn refused(
    tx: &Transaction<'_>,
    now: WallTime,
    refusal: &Refusal,
    node: Option<NodeId>,
    context: &str,
) -> Result<(), Refusal> {
    let detail = serde_json::json!({
        "during": context,
        "found": clipped(&refusal.found),
        "at": clipped(&refusal.at),
        "expected": clipped(&refusal.expected),
    });
    write(tx, now, refusal.code.as_str(), &Subject { node, ..Subject::default() }, detail)
}

/// Records the refusal of somebody who is no admitted node, and how many records of the same
/// code were suppressed since the last one.
///
/// # Errors
/// As [`done`].
pub fn stranger_refused(
    tx: &Transaction<'_>,
    now: WallTime,
    suppressed: u64,
    refusal: &Refusal,
    node: Option<NodeId>,
    context: &str,
) -> Result<(), Refusal> {
    if suppressed > 0 {
        let detail = serde_json::json!({ "what": refusal.code, "records": suppressed });
        done(tx, now, "audit.suppressed", None, detail)?;
    }
    refused(tx, now, refusal, node, context)
}

/// Records that another node had named EKs of this one as its own: one of the two says what isn't so.
///
/// # Errors
/// As [`done`].
pub fn claimed_eks(tx: &Transaction<'_>, now: WallTime, node: &Node, claims: &[Claim]) -> Result<(), Refusal> {
    for claim in claims {
        let detail = serde_json::json!({
            "ek": hex::encode(&claim.ek_name), "claimed_by": claim.by.to_string(), "revoked": claim.revoked,
            "proven": claim.ek_name == node.ek_name,
        });
        done(tx, now, "node.ek_conflict", Some(node.id), detail)?;
    }
    Ok(())
}

/// When each workload's credentials were last released, as its nodes recorded it.
///
/// # Errors
/// [`crate::codes::STORE_FAILED`].
pub fn released(tx: &Transaction<'_>) -> Result<Vec<(String, WallTime)>, Refusal> {
    let mut statement = tx.prepare(
        "SELECT json_extract(record, '$.workload'), max(json_extract(record, '$.time')) FROM node_records
         WHERE json_valid(record) AND json_extract(record, '$.what') = 'credential.released'
         AND json_extract(record, '$.workload') IS NOT NULL GROUP BY 1",
    )?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, WallTime(unsigned(row.get(1)?)))))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// What is only read, on a connection of its own.
#[derive(Clone, Debug)]
pub enum Reading {
    /// Lists records.
    List { of: listing::Of, after: u64, limit: u64, newest: bool, filter: listing::Filter },
    /// Verifies them; of nodes, this one's or all.
    Verify { node: Option<String> },
    /// Joins them.
    Join,
}

impl Reading {
    /// Reads one state of the store, whatever is written meanwhile; gives back the facts.
    ///
    /// # Errors
    /// [`codes::STORE_FAILED`].
    pub fn read(
        &self,
        tx: &Transaction<'_>,
        witness: Option<&Path>,
        now: WallTime,
    ) -> Result<serde_json::Value, Refusal> {
        let facts = match self {
            Self::List { of, after, limit, newest, filter } => {
                let records = listing::list(tx, *of, *after, *limit, *newest, filter)?;
                Ok(serde_json::json!({ "schema": 1, "records": records }))
            }
            Self::Verify { node } => serde_json::to_value(verify::verify(tx, witness, node.as_deref())?),
            Self::Join => serde_json::to_value(joins::join(tx, now)?),
        };
        facts.map_err(|e| Refusal::new(codes::STORE_FAILED, e.to_string()))
    }
}

/// `text`, cut at a character boundary to what a record keeps.
pub fn clipped(text: &str) -> &str {
    text.get(..text.floor_char_boundary(LIMIT)).unwrap_or_default()
}

fn write(
    tx: &Transaction<'_>,
    now: WallTime,
    what: &str,
    subject: &Subject<'_>,
    mut detail: serde_json::Value,
) -> Result<(), Refusal> {
    if let (Some(actor), Some(detail)) = (ACTING.with_borrow(Clone::clone), detail.as_object_mut()) {
        detail.insert("by".to_owned(), actor.into());
    }
    chain::append(tx, now, what, subject, detail.clone())?;
    let Subject { node, decision, .. } = *subject;
    // The same facts for whoever reads the server's own log; the JSON is already escaped.
    tracing::info!(what, node = node.map(tracing::field::display), decision, detail = printable(&detail),);
    Ok(())
}
