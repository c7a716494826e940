//! One key, one workload: a key that a certificate was issued over serves no second name.

use sha2::{Digest, Sha256};

use super::nodes;
use crate::clock::WallTime;
use crate::codes::{self, Refusal};
use crate::control_plane::store::{OptionalExtension, Transaction, params, signed};

/// Takes the key (SubjectPublicKeyInfo, DER) for `workload` until `not_after`: to be called in the
/// transaction that issues over it.
///
/// # Errors
/// [`codes::ISSUER_REQUEST`] when it is a node's own key, or another workload has a certificate over it that
/// hasn't run out; revoked ones count, since the key may still be where it was.
pub fn claim(
    tx: &Transaction<'_>,
    spki: &[u8],
    workload: &str,
    now: WallTime,
    not_after: WallTime,
) -> Result<(), Refusal> {
    let refuse = |what: &str| Refusal::new(codes::ISSUER_REQUEST, what).at(workload).expected("a key of its own");
    if nodes::find_by_key(tx, spki)?.is_some() {
        return Err(refuse("its key is a node's own"));
    }
    tx.prepare_cached("DELETE FROM credential_keys WHERE not_after < ?1")?.execute([signed(now.0)])?;
    let digest: [u8; 32] = Sha256::digest(spki).into();
    let holder: Option<String> = tx
        .prepare_cached("SELECT workload FROM credential_keys WHERE digest = ?1")?
        .query_row([digest], |row| row.get(0))
        .optional()?;
    if holder.is_some_and(|holder| holder != workload) {
        return Err(refuse("its key was presented for another workload"));
    }
    tx.prepare_cached(
        "INSERT INTO credential_keys(digest, workload, not_after) VALUES (?1, ?2, ?3)
         ON CONFLICT(digest) DO UPDATE SET not_after = max(not_after, ?3)",
    )?
    .execute(params![digest, workload, signed(not_after.0)])?;
    Ok(())
}
