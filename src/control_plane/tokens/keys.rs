//! The keys that sign JWT-SVIDs, and their rotation: with each CA's term goes one of these, published
//! as long before it signs, and kept in the bundle until the last token it signed is over.

use p256::ecdsa::SigningKey;

use crate::clock::WallTime;
use crate::codes::{self, Refusal};
use crate::control_plane::keys::{self, WrappingKey};
use crate::control_plane::store::{OptionalExtension, Transaction, params, signed};
use crate::credentials::token;
use crate::protocol::JwtKey;

/// What they are wrapped for.
const PURPOSE: &str = "jwt key";

/// The active key.
pub struct Signer {
    /// Its row.
    pub id: i64,
    /// Its name in tokens.
    pub kid: String,
    pub(super) key: SigningKey,
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signer").field("kid", &self.kid).finish_non_exhaustive()
    }
}

/// Makes the next key, if none is prepared. Returns whether it did.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn prepare(tx: &Transaction<'_>, wrapping: &WrappingKey, now: WallTime) -> Result<bool, Refusal> {
    if exists(tx, "prepared")? {
        return Ok(false);
    }
    insert(tx, wrapping, "prepared", now)?;
    Ok(true)
}

/// Makes the prepared key the active one; without one the active key stays.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn activate(tx: &Transaction<'_>, now: WallTime) -> Result<(), Refusal> {
    if exists(tx, "prepared")? {
        let now = signed(now.0);
        tx.execute("UPDATE jwt_keys SET state = 'retired', retired_at = ?1 WHERE state = 'active'", [now])?;
        tx.execute("UPDATE jwt_keys SET state = 'active', activated_at = ?1 WHERE state = 'prepared'", [now])?;
    }
    Ok(())
}

/// Makes the first key where there is none, and drops retired ones whose tokens are all over, but not
/// before every node has had the time to learn of their successor. Returns whether the bundle changed.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn turn(tx: &Transaction<'_>, wrapping: &WrappingKey, published: u64, now: WallTime) -> Result<bool, Refusal> {
    let first = !exists(tx, "active")?;
    if first && !exists(tx, "prepared")? {
        insert(tx, wrapping, "prepared", now)?;
    }
    if first {
        activate(tx, now)?;
    }
    let dropped = tx.execute(
        "DELETE FROM jwt_keys WHERE state = 'retired' AND last_token_not_after < ?1 AND retired_at + ?2 < ?1",
        params![signed(now.0), signed(published)],
    )?;
    Ok(first || dropped > 0)
}

/// The active key.
///
/// # Errors
/// [`codes::STORE_FAILED`], also when the wrapping key is another than the one in use.
pub fn active(tx: &Transaction<'_>, wrapping: &WrappingKey) -> Result<Signer, Refusal> {
    let row: Option<(i64, String, Vec<u8>)> = tx
        .query_row("SELECT id, kid, key FROM jwt_keys WHERE state = 'active'", [], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?))
        })
        .optional()?;
    let (id, kid, wrapped) =
        row.ok_or_else(|| Refusal::new(codes::STORE_FAILED, "BUG: there is no active key for tokens"))?;
    Ok(Signer { id, kid, key: keys::from_pkcs8(&wrapping.unwrap(PURPOSE, &wrapped)?)? })
}

/// Every key of the bundle, the active one first.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn published(tx: &Transaction<'_>) -> Result<Vec<JwtKey>, Refusal> {
    let mut statement = tx.prepare("SELECT kid, public FROM jwt_keys ORDER BY state = 'active' DESC, id DESC")?;
    let keys = statement.query_map([], |row| Ok(JwtKey { kid: row.get(0)?, public: row.get(1)? }))?;
    Ok(keys.collect::<Result<_, _>>()?)
}

/// Notes how long the key must stay in the bundle for a token.
///
/// # Errors
/// [`codes::STORE_FAILED`], also when the key was dropped meanwhile.
pub fn used(tx: &Transaction<'_>, signer: &Signer, until: WallTime) -> Result<(), Refusal> {
    let kept = tx
        .prepare_cached("UPDATE jwt_keys SET last_token_not_after = max(last_token_not_after, ?1) WHERE id = ?2")?
        .execute(params![signed(until.0), signer.id])?;
    if kept != 1 {
        return Err(Refusal::new(codes::STORE_FAILED, "the key was dropped while it was used; try again"));
    }
    Ok(())
}

fn insert(tx: &Transaction<'_>, wrapping: &WrappingKey, state: &str, now: WallTime) -> Result<(), Refusal> {
    let key = keys::generate()?;
    let public = key.verifying_key().to_sec1_point(false).as_bytes().to_vec();
    let kid = token::thumbprint(&public)
        .ok_or_else(|| Refusal::new(codes::STORE_FAILED, "BUG: a new key isn't an uncompressed point"))?;
    tx.execute(
        "INSERT INTO jwt_keys(state, kid, public, key, created_at) VALUES (?1, ?2, ?3, ?4, ?5)",
        params![state, kid, public, wrapping.wrap(PURPOSE, &keys::to_pkcs8(&key)?)?, signed(now.0)],
    )?;
    Ok(())
}

fn exists(tx: &Transaction<'_>, state: &str) -> Result<bool, Refusal> {
    Ok(tx.query_row("SELECT EXISTS (SELECT 1 FROM jwt_keys WHERE state = ?1)", [state], |row| row.get(0))?)
}
