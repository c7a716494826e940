//! Signed heads of the log: what keeps it from being changed and its chain computed anew.
//!
//! They are signed by a key of their own, which lies in the store under the wrapping key: a CA key is used for
//! certificates alone and is rotated, while a head must be verifiable for as long as its log is kept. The last
//! head also stands in a file beside the wrapping key (where the generation's witness is), and each node is
//! given it with every delivery of its records and shows it again with the next. So a log from which the end
//! was cut is found even by somebody who has the store alone.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use p256::ecdsa::signature::hazmat::PrehashSigner;
use p256::ecdsa::{Signature, SigningKey};
use p256::pkcs8::EncodePrivateKey;
use serde::{Deserialize, Serialize};

use super::super::keys::{self, WrappingKey};
use super::super::server::Shared;
use super::super::store::{OptionalExtension, Transaction, damaged, fixed, params, signed, unsigned};
use super::{Subject, chain};
use crate::clock::WallTime;
use crate::codes::{self, Code, Refusal};
use crate::protocol::{Chain, Head, SignedHead, Writer};
use crate::secret;
use crate::shutdown::Shutdown;

/// Between two signatures, while there is something new: what was written since the last isn't signed yet.
pub const BETWEEN: Duration = Duration::from_secs(5);
/// What the key is wrapped for.
const PURPOSE: &str = "audit key";
/// Of heads older than this, in seconds, one an hour is kept.
const HOUR: u64 = 3600;

/// Signs heads and keeps the last one outside the store.
pub struct Heads {
    key: SigningKey,
    /// SubjectPublicKeyInfo of the key, DER.
    pub spki: Vec<u8>,
    /// The file outside the store.
    pub witness: PathBuf,
    /// The last head that was signed, as far as this process knows: what a running server holds its log against,
    /// for who has the store can change its own record of heads.
    last: Mutex<Option<Head>>,
}

/// The head outside the store, as JSON: who has it can tell whether a log goes on from there.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Witness {
    schema: u32,
    writer: String,
    number: u64,
    chain: String,
    signature: String,
    key: String,
}

impl Witness {
    /// The file's contents, if there is one.
    ///
    /// # Errors
    /// [`codes::AUDIT_TAMPERED`] for a file that this server hasn't written so.
    pub fn read(path: &Path) -> Result<Option<Self>, Refusal> {
        let refuse = |why: String| Refusal::new(codes::AUDIT_TAMPERED, why).at(path.display().to_string());
        match std::fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|e| refuse(e.to_string())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(refuse(error.to_string())),
        }
    }

    /// The head and the key that signed it.
    ///
    /// # Errors
    /// [`codes::AUDIT_TAMPERED`] unless that key did.
    pub fn signed(&self) -> Result<(SignedHead, Vec<u8>), Refusal> {
        let refuse = |what: &str| Refusal::new(codes::AUDIT_TAMPERED, format!("the witness's {what}"));
        let writer = Writer::from_text(&self.writer).ok_or_else(|| refuse("writer can't be read"))?;
        let chain = Chain::from_text(&self.chain).ok_or_else(|| refuse("chain can't be read"))?;
        let signature = hex::decode(&self.signature).map_err(|_| refuse("signature can't be read"))?;
        let key = hex::decode(&self.key).map_err(|_| refuse("key can't be read"))?;
        let head = SignedHead { head: Head { writer, number: self.number, chain }, signature };
        match self.schema == 1 && head.signed_by(&key) {
            true => Ok((head, key)),
            false => Err(refuse("signature doesn't hold")),
        }
    }

    fn of(signed: &SignedHead, key: &[u8]) -> Self {
        let SignedHead { head: Head { writer, number, chain }, signature } = signed;
        let (writer, chain) = (writer.to_string(), chain.to_string());
        Self { schema: 1, writer, number: *number, chain, signature: hex::encode(signature), key: hex::encode(key) }
    }
}

/// The witness's file, beside the wrapping key.
pub fn witness_path(wrapping_key: &Path) -> PathBuf {
    wrapping_key.with_added_extension("audit")
}

impl Heads {
    /// Opens the key, or makes it, and holds the log against the witness: one that was cut or changed since, or
    /// restored from a backup, is recorded as that. To be called before anything is written to the log. Also says
    /// whether its end is missing.
    ///
    /// # Errors
    /// [`codes::STORE_FAILED`].
    pub fn open(
        tx: &Transaction<'_>,
        wrapping: &WrappingKey,
        witness: PathBuf,
        restored: bool,
        now: WallTime,
    ) -> Result<(Self, bool), Refusal> {
        if chain::head(tx)?.is_none() {
            chain::start(tx, now)?;
        }
        let stored: Option<Vec<u8>> = tx.query_row("SELECT key FROM log_chain", [], |row| row.get(0))?;
        let key = match stored {
            Some(wrapped) => keys::from_pkcs8(&wrapping.unwrap(PURPOSE, &wrapped)?)?,
            None => {
                let key = keys::generate()?;
                let der = key.to_pkcs8_der().map_err(|_| damaged("the audit key"))?;
                let spki = super::super::issuer::spki_of_key(&key)?;
                tx.execute(
                    "UPDATE log_chain SET key = ?1, key_spki = ?2",
                    params![wrapping.wrap(PURPOSE, der.as_bytes())?, spki],
                )?;
                key
            }
        };
        let spki = super::super::issuer::spki_of_key(&key)?;
        let heads = Self { key, spki, witness, last: Mutex::default() };
        let cut = heads.hold_against_witness(tx, restored, now)?;
        // Whatever was found is recorded now: from here on the log is held against what it was here.
        *heads.last.lock().unwrap_or_else(PoisonError::into_inner) = chain::head(tx)?.filter(|head| head.number > 0);
        Ok((heads, cut))
    }

    /// Holds the log against the file outside; says whether the log ends before it.
    fn hold_against_witness(&self, tx: &Transaction<'_>, restored: bool, now: WallTime) -> Result<bool, Refusal> {
        let tampered = codes::AUDIT_TAMPERED;
        let witnessed = match Witness::read(&self.witness).and_then(|found| found.map(|w| w.signed()).transpose()) {
            Ok(None) => return Ok(false),
            Ok(Some((witnessed, key))) if key == self.spki => witnessed.head,
            Ok(Some((witnessed, _))) => {
                let found = format!("it is of another key, for record {}", witnessed.head.number);
                return self.found(tx, tampered, witnessed.head.number, &found, now).map(|()| false);
            }
            Err(refusal) => return self.found(tx, tampered, 0, &refusal.to_string(), now).map(|()| false),
        };
        self.hold_against(tx, &witnessed, if restored { "audit.restored" } else { codes::AUDIT_GAP.as_str() }, now)
    }

    /// Holds the log against a head that it had; says whether it ends before it.
    fn hold_against(
        &self,
        tx: &Transaction<'_>,
        had: &Head,
        lacks: &'static str,
        now: WallTime,
    ) -> Result<bool, Refusal> {
        let Some(head) = chain::head(tx)? else { return Ok(false) };
        let (last, number) = (last_number(tx)?, had.number);
        if number > last {
            chain::skip_to(tx, number.max(head.number))?;
            let (from, to) = (last.saturating_add(1), number.max(head.number));
            tracing::error!(from, to, lacks, "records are missing from the log");
            self.put_aside("missing", number);
            let detail = serde_json::json!({ "from": from, "to": to, "chain": had.chain.to_string() });
            chain::append(tx, now, lacks, &Subject::default(), detail)?;
            return Ok(true);
        }
        match chain::chain_at(tx, number)? {
            Some(chain) if chain == had.chain => {}
            // Said at the last start, which didn't live to sign a newer head.
            None if was_found_missing(&self.witness, had) && said_missing(tx, had)? => {}
            _ => {
                let found = format!("record {number} or one before it was changed");
                self.found(tx, codes::AUDIT_TAMPERED, number, &found, now)?;
            }
        }
        Ok(false)
    }

    /// Records, and keeps beside itself, what the witness says otherwise than the log.
    fn found(&self, tx: &Transaction<'_>, code: Code, number: u64, found: &str, now: WallTime) -> Result<(), Refusal> {
        tracing::error!(%code, number, found, "the log isn't what the witness outside says");
        let kept = self.put_aside("found", number);
        let detail =
            serde_json::json!({ "record": number, "found": super::clipped(found), "kept": kept.display().to_string() });
        chain::append(tx, now, code.as_str(), &Subject::default(), detail).map(drop)
    }

    /// Keeps the witness as it is now beside itself; gives back where.
    fn put_aside(&self, why: &str, number: u64) -> PathBuf {
        let kept = aside(&self.witness, why, number);
        if let Err(error) = std::fs::copy(&self.witness, &kept) {
            tracing::warn!(%error, "the witness of then can't be kept");
        }
        kept
    }

    /// Signs the head if it is a new one, keeps it in the store, and gives it back for the witness.
    pub(super) fn sign(&self, tx: &Transaction<'_>, now: WallTime) -> Result<Option<SignedHead>, Refusal> {
        // Before its word is replaced by a newer one: does the log still go through the last head?
        let had = *self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(had) = &had {
            self.hold_against(tx, had, codes::AUDIT_GAP.as_str(), now)?;
        }
        let Some(head) = chain::head(tx)? else { return Ok(None) };
        let kept = last(tx)?.is_some_and(|last| last.head == head);
        if head.number == 0 || kept {
            return Ok(None);
        }
        let failed = |_| Refusal::new(codes::STORE_FAILED, "the log's head can't be signed");
        let signature: Signature = self.key.sign_prehash(&head.digest()).map_err(failed)?;
        let fresh = SignedHead::new(head, &signature);
        let hour = now.0 - now.0 % HOUR;
        tx.execute("DELETE FROM log_heads WHERE at >= ?1 AND at < ?2", params![signed(hour), signed(now.0)])?;
        // Of records that there never were, or that are gone: what they were is in the log by now.
        tx.execute("DELETE FROM log_heads WHERE number >= ?1", [signed(head.number)])?;
        tx.execute(
            "INSERT INTO log_heads(number, chain, signature, at) VALUES (?1, ?2, ?3, ?4)",
            params![signed(head.number), head.chain.as_bytes(), fresh.signature, signed(now.0)],
        )?;
        Ok(Some(fresh))
    }

    pub(super) fn write_witness(&self, head: &SignedHead) -> std::io::Result<()> {
        let mut text = serde_json::to_vec(&Witness::of(head, &self.spki)).map_err(std::io::Error::other)?;
        text.push(b'\n');
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(head.head);
        secret::write_atomically(&self.witness, &text)
    }
}

impl std::fmt::Debug for Heads {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Heads").field("witness", &self.witness).finish_non_exhaustive()
    }
}

fn aside(witness: &Path, why: &str, number: u64) -> PathBuf {
    witness.with_added_extension(format!("{why}-{number}"))
}

/// Whether the log was found to end before this head, and the witness put aside then. Who has the store alone can
/// write that a backup was restored; that file they can't.
pub fn was_found_missing(witness: &Path, had: &Head) -> bool {
    let kept =
        Witness::read(&aside(witness, "missing", had.number)).and_then(|found| found.map(|w| w.signed()).transpose());
    matches!(kept, Ok(Some((signed, _))) if signed.head == *had)
}

/// Whether the log says that it ended before this head.
fn said_missing(tx: &rusqlite::Connection, had: &Head) -> Result<bool, Refusal> {
    Ok(tx.query_row(
        "SELECT EXISTS (SELECT 1 FROM log WHERE id = ?1 + 1 AND what IN ('audit.restored', 'audit.gap')
         AND json_extract(detail, '$.to') = ?1 AND json_extract(detail, '$.chain') = ?2)",
        params![signed(had.number), had.chain.to_string()],
        |row| row.get(0),
    )?)
}

/// The last head that was signed.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn last(tx: &rusqlite::Connection) -> Result<Option<SignedHead>, Refusal> {
    let Some(present) = chain::head(tx)? else { return Ok(None) };
    let found: Option<(i64, Vec<u8>, Vec<u8>)> = tx
        .prepare_cached("SELECT number, chain, signature FROM log_heads ORDER BY number DESC LIMIT 1")?
        .query_row([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        .optional()?;
    let Some((number, chain, signature)) = found else { return Ok(None) };
    let chain = Chain::from_bytes(fixed(&chain, "a head of the log")?);
    Ok(Some(SignedHead { head: Head { writer: present.writer, number: unsigned(number), chain }, signature }))
}

/// The number of the last record that is in the log.
fn last_number(tx: &rusqlite::Connection) -> Result<u64, Refusal> {
    Ok(unsigned(tx.query_row("SELECT coalesce(max(id), 0) FROM log", [], |row| row.get(0))?))
}

/// Signs what is new, again and again, and a last time at the end.
pub async fn keep(shared: Arc<Shared>, shutdown: Shutdown) {
    let mut ends = false;
    while !ends {
        ends = tokio::select! {
            () = shutdown.token.cancelled() => true,
            () = tokio::time::sleep(BETWEEN) => false,
        };
        if let Err(refusal) = sign(&shared).await {
            tracing::error!(%refusal, "the log's head can't be signed; it will be tried again");
        }
    }
}

/// Signs the head, if there is anything new, and puts it into the witness.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub async fn sign(shared: &Arc<Shared>) -> Result<(), Refusal> {
    let (of_work, now) = (shared.clone(), shared.now());
    let Some(fresh) = shared.store.transaction(move |tx| of_work.heads.sign(tx, now)).await? else { return Ok(()) };
    let shared = shared.clone();
    // After the commit: a crash between the two leaves the store ahead, which is harmless.
    let written = tokio::task::spawn_blocking(move || shared.heads.write_witness(&fresh)).await;
    let failed = |error: String| Refusal::new(codes::STORE_FAILED, error).at("the log's witness");
    written.map_err(|e| failed(e.to_string()))?.map_err(|e| failed(e.to_string()))
}
