//! Nonces: 32 random bytes, each for one node and one purpose, each good for one use.

use std::time::Duration;

use super::store::{OptionalExtension, Transaction, params, signed, unsigned};
use crate::clock::WallTime;
use crate::codes::{self, Refusal};
use crate::identity::NodeId;
use crate::protocol::FreshNonce;
use crate::secret;
use crate::tpm::PcrSelection;

/// How many unused nonces a node may have at once; asking for more drops the oldest.
const UNUSED: i64 = 16;

/// How long a spent or expired nonce is remembered, in seconds, so that its reuse can be named a
/// replay. Later it is unknown, and refused as that.
const REMEMBERED: u64 = 86_400;

/// What a nonce may be used for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Purpose {
    /// An attestation of an admitted node.
    Attest,
}

impl Purpose {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Attest => "attest",
        }
    }
}

/// A new nonce for `node`, good for `term` seconds, to quote `selection` over.
///
/// # Errors
/// [`codes::STORE_FAILED`], also when the kernel has no randomness.
pub fn issue(
    tx: &Transaction<'_>,
    node: NodeId,
    purpose: Purpose,
    now: WallTime,
    term: u64,
    selection: PcrSelection,
) -> Result<FreshNonce, Refusal> {
    let nonce: [u8; 32] = secret::random().map_err(|e| Refusal::new(codes::STORE_FAILED, e.to_string()))?;
    tx.prepare_cached("INSERT INTO nonces(nonce, node, purpose, issued_at, expires_at) VALUES (?1, ?2, ?3, ?4, ?5)")?
        .execute(params![nonce, node.as_bytes(), purpose.as_str(), signed(now.0), signed(now.0.saturating_add(term))])?;
    tx.prepare_cached(
        "DELETE FROM nonces WHERE node = ?1 AND used_at IS NULL AND rowid NOT IN
         (SELECT rowid FROM nonces WHERE node = ?1 AND used_at IS NULL ORDER BY issued_at DESC, rowid DESC LIMIT ?2)",
    )?
    .execute(params![node.as_bytes(), UNUSED])?;
    Ok(FreshNonce { nonce, term_seconds: term, selection })
}

/// Spends a nonce and returns its age. The transaction it is spent in is the one that does what it
/// authorises.
///
/// # Errors
/// [`codes::VERIFY_NONCE`] for one that was never given out (or too long ago) or for another
/// purpose, [`codes::VERIFY_NONCE_OTHER_NODE`], [`codes::VERIFY_NONCE_SPENT`],
/// [`codes::VERIFY_NONCE_EXPIRED`].
pub fn spend(
    tx: &Transaction<'_>,
    nonce: &[u8; 32],
    node: NodeId,
    purpose: Purpose,
    now: WallTime,
) -> Result<Duration, Refusal> {
    let found = tx
        .prepare_cached("SELECT node, purpose, expires_at, used_at, issued_at FROM nonces WHERE nonce = ?1")?
        .query_row([nonce], |row| {
            Ok((
                row.get::<_, Vec<u8>>(0)?,
                row.get::<_, String>(1)?,
                unsigned(row.get(2)?),
                row.get::<_, Option<i64>>(3)?,
                unsigned(row.get(4)?),
            ))
        })
        .optional()?;
    let shown = hex::encode(nonce.get(..8).unwrap_or_default());
    let Some((owner, given_for, expires_at, used_at, issued_at)) = found else {
        return Err(Refusal::new(codes::VERIFY_NONCE, format!("{shown}… was not given out")));
    };
    // Another node's nonce is left as it is: else a node could spend its neighbours'.
    if owner != node.as_bytes() {
        return Err(Refusal::new(codes::VERIFY_NONCE_OTHER_NODE, format!("{shown}… was given to another node")));
    }
    if let Some(used_at) = used_at {
        let used_at = WallTime(unsigned(used_at));
        return Err(Refusal::new(codes::VERIFY_NONCE_SPENT, format!("{shown}… was used at {used_at}")));
    }
    if given_for != purpose.as_str() {
        return Err(Refusal::new(codes::VERIFY_NONCE, format!("{shown}… was given out for `{given_for}`")));
    }
    if expires_at < now.0 {
        let expired = WallTime(expires_at);
        return Err(Refusal::new(codes::VERIFY_NONCE_EXPIRED, format!("{shown}… could be used until {expired}")));
    }
    tx.prepare_cached("UPDATE nonces SET used_at = ?1 WHERE nonce = ?2")?.execute(params![signed(now.0), nonce])?;
    Ok(Duration::from_secs(now.0.saturating_sub(issued_at)))
}

/// Forgets nonces that are long spent or expired.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn tidy(tx: &Transaction<'_>, now: WallTime) -> Result<(), Refusal> {
    tx.execute("DELETE FROM nonces WHERE expires_at < ?1", [signed(now.0.saturating_sub(REMEMBERED))])?;
    Ok(())
}
