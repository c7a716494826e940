//! The control plane's side of leases: one row for each node, which the issuer asks.

use std::time::Duration;

use super::replay;
use super::store::{OptionalExtension, Transaction, next_sequence, params, signed, unsigned};
use crate::clock::WallTime;
use crate::codes::{self, Code, Refusal};
use crate::identity::NodeId;

/// A node's last lease.
#[derive(Clone, Debug)]
pub struct LeaseRow {
    /// Its sequence number.
    pub sequence: u64,
    /// When it was granted.
    pub issued_at: WallTime,
    /// The end of its term.
    pub ends_at: WallTime,
    /// Why it ended before, if it did.
    pub ended: Option<String>,
}

impl LeaseRow {
    /// Whether it is in force.
    pub fn is_live(&self, now: WallTime) -> bool {
        self.ended.is_none() && now < self.ends_at
    }
}

/// Begins a lease of `term` and gives it the next sequence number.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn grant(tx: &Transaction<'_>, node: NodeId, now: WallTime, term: Duration) -> Result<u64, Refusal> {
    let last = find(tx, node)?.map_or(0, |lease| lease.sequence);
    let sequence = next_sequence(last, now);
    tx.prepare_cached(
        "INSERT INTO leases(node, sequence, issued_at, ends_at) VALUES (?1, ?2, ?3, ?4)
         ON CONFLICT(node) DO UPDATE SET sequence = ?2, issued_at = ?3, ends_at = ?4, ended_code = NULL",
    )?
    .execute(params![node.as_bytes(), signed(sequence), signed(now.0), signed(now.after(term).0)])?;
    Ok(sequence)
}

/// Ends the node's lease, if it has one; answers that hold it are no longer repeated.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn end(tx: &Transaction<'_>, node: NodeId, why: Code) -> Result<(), Refusal> {
    tx.prepare_cached("UPDATE leases SET ended_code = ?1 WHERE node = ?2 AND ended_code IS NULL")?
        .execute(params![why.as_str(), node.as_bytes()])?;
    replay::forget(tx, Some(node))
}

/// The node's last lease.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn find(tx: &Transaction<'_>, node: NodeId) -> Result<Option<LeaseRow>, Refusal> {
    Ok(tx
        .prepare_cached("SELECT sequence, issued_at, ends_at, ended_code FROM leases WHERE node = ?1")?
        .query_row([node.as_bytes()], |row| {
            Ok(LeaseRow {
                sequence: unsigned(row.get(0)?),
                issued_at: WallTime(unsigned(row.get(1)?)),
                ends_at: WallTime(unsigned(row.get(2)?)),
                ended: row.get(3)?,
            })
        })
        .optional()?)
}

/// The time left of the live lease with this sequence number.
///
/// # Errors
/// [`codes::ISSUER_NO_LEASE`], or [`codes::PROTOCOL_EPOCH`] when a restore ended the lease.
pub fn live(tx: &Transaction<'_>, node: NodeId, sequence: u64, now: WallTime) -> Result<Duration, Refusal> {
    let refuse = |what: String| Refusal::new(codes::ISSUER_NO_LEASE, what).expected("an attestation");
    let lease = find(tx, node)?.ok_or_else(|| refuse("the node has attested to nothing yet".to_owned()))?;
    if let Some(ended) = &lease.ended {
        if ended == codes::PROTOCOL_EPOCH.as_str() {
            return Err(Refusal::new(codes::PROTOCOL_EPOCH, "the lease is of an earlier epoch"));
        }
        return Err(refuse(format!("the lease was ended: {ended}")));
    }
    if lease.sequence != sequence {
        return Err(refuse(format!("it is asked for under lease {sequence}, the last one is {}", lease.sequence)));
    }
    match lease.ends_at.0.checked_sub(now.0) {
        Some(left) if left > 0 => Ok(Duration::from_secs(left)),
        _ => Err(refuse(format!("the lease's term was over at {}", lease.ends_at))),
    }
}
