//! Retries and replays: the same request gets the same answer for a minute, then never again.

use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use sha2::{Digest, Sha256};

use super::store::{OptionalExtension, Transaction, fixed, params, signed, unsigned};
use crate::clock::WallTime;
use crate::codes::{self, Refusal};
use crate::identity::NodeId;
use crate::secret::{self, Zeroizing};

/// How long the latest answer is kept for a retry, in seconds.
const KEPT: u64 = 60;
/// How many request ids of a kind are remembered for a node.
const REMEMBERED: i64 = 64;

/// Seals answers that hold a secret: a credential that anybody may use who has it must not lie in the
/// store, nor in a copy of it. The key is of this run of the server alone, which is longer than a retry
/// is waited for; a retry across a restart is refused, and asked anew.
pub struct Sealing(LessSafeKey);

impl Sealing {
    /// With a fresh key.
    ///
    /// # Errors
    /// When the kernel has no randomness.
    pub fn new() -> Result<Self, Refusal> {
        let key = Zeroizing::new(secret::random::<32>().map_err(|e| unsealed(&e.to_string()))?);
        // Nonces are random, and answers many: the SIV mode doesn't break where two have the same.
        let key = UnboundKey::new(&AES_256_GCM_SIV, key.as_slice()).map_err(|_| unsealed("no key"))?;
        Ok(Self(LessSafeKey::new(key)))
    }

    /// `nonce ‖ ciphertext ‖ tag`, for the request of this id.
    ///
    /// # Errors
    /// When the kernel has no randomness.
    pub fn seal(&self, id: &[u8; 16], answer: &[u8]) -> Result<Vec<u8>, Refusal> {
        let nonce: [u8; NONCE_LEN] = secret::random().map_err(|e| unsealed(&e.to_string()))?;
        let mut sealed = answer.to_vec();
        self.0
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(id), &mut sealed)
            .map_err(|_| unsealed("it can't be encrypted"))?;
        Ok([nonce.as_slice(), &sealed].concat())
    }

    /// The inverse of [`Self::seal`].
    ///
    /// # Errors
    /// [`codes::PROTOCOL_REPLAYED`] when an earlier run sealed it.
    pub fn open(&self, id: &[u8; 16], sealed: &[u8]) -> Result<Vec<u8>, Refusal> {
        let refused = || {
            Refusal::new(codes::PROTOCOL_REPLAYED, "it was answered before the server was restarted")
                .expected("a new request id")
        };
        let (nonce, sealed) = sealed.split_first_chunk::<NONCE_LEN>().ok_or_else(refused)?;
        let mut answer = sealed.to_vec();
        let length = self
            .0
            .open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::from(id), &mut answer)
            .map_err(|_| refused())?
            .len();
        answer.truncate(length);
        Ok(answer)
    }
}

impl std::fmt::Debug for Sealing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sealing(..)")
    }
}

fn unsealed(what: &str) -> Refusal {
    Refusal::new(codes::STORE_FAILED, what).at("an answer that is kept")
}

/// A request as it is recognised again.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// Whose.
    pub node: NodeId,
    /// Which call.
    pub kind: &'static str,
    /// Chosen by the agent.
    pub id: [u8; 16],
    /// SHA-256 of the body.
    pub digest: [u8; 32],
}

impl Request {
    /// A request with this body.
    pub fn new(node: NodeId, kind: &'static str, id: [u8; 16], body: &[u8]) -> Self {
        Self { node, kind, id, digest: Sha256::digest(body).into() }
    }

    /// The answer it was given before, if it was and may have it again; `None` for a new request.
    ///
    /// # Errors
    /// [`codes::PROTOCOL_REPLAYED`].
    pub fn answer(&self, tx: &Transaction<'_>, now: WallTime) -> Result<Option<Vec<u8>>, Refusal> {
        let found = tx
            .prepare_cached(
                "SELECT digest, answered_at, answer FROM requests WHERE node = ?1 AND kind = ?2 AND request_id = ?3",
            )?
            .query_row(params![self.node.as_bytes(), self.kind, self.id], |row| {
                Ok((row.get::<_, Vec<u8>>(0)?, unsigned(row.get(1)?), row.get::<_, Option<Vec<u8>>>(2)?))
            })
            .optional()?;
        let Some((digest, answered_at, answer)) = found else { return Ok(None) };
        let refuse = |what: String| Refusal::new(codes::PROTOCOL_REPLAYED, what).expected("a new request id");
        if fixed::<32>(&digest, "a request's digest")? != self.digest {
            return Err(refuse(format!("another request had the id {}", hex::encode(self.id))));
        }
        match answer.filter(|_| now.0 <= answered_at.saturating_add(KEPT)) {
            Some(answer) => Ok(Some(answer)),
            None => Err(refuse(format!("it was answered at {}", WallTime(answered_at)))),
        }
    }

    /// Keeps `answer`; the answers before it are forgotten, their ids are not.
    ///
    /// # Errors
    /// [`codes::STORE_FAILED`].
    pub fn answered(&self, tx: &Transaction<'_>, answer: &[u8], now: WallTime) -> Result<(), Refusal> {
        let node = self.node.as_bytes();
        let number: i64 = tx
            .prepare_cached("SELECT coalesce(max(number), 0) + 1 FROM requests WHERE node = ?1 AND kind = ?2")?
            .query_row(params![node, self.kind], |row| row.get(0))?;
        tx.prepare_cached("UPDATE requests SET answer = NULL WHERE node = ?1 AND kind = ?2 AND answer IS NOT NULL")?
            .execute(params![node, self.kind])?;
        tx.prepare_cached("DELETE FROM requests WHERE node = ?1 AND kind = ?2 AND number <= ?3")?.execute(params![
            node,
            self.kind,
            number - REMEMBERED
        ])?;
        tx.prepare_cached(
            "INSERT INTO requests(node, kind, request_id, number, digest, answered_at, answer)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        )?
        .execute(params![node, self.kind, self.id, number, self.digest, signed(now.0), answer])?;
        Ok(())
    }
}

impl Request {
    /// The same request again gets the same answer; a new one is worked on and its answer kept.
    ///
    /// # Errors
    /// As [`Self::answer`] and [`Self::answered`], and those of `work`.
    pub fn once(
        &self,
        tx: &Transaction<'_>,
        now: WallTime,
        work: impl FnOnce() -> Result<Vec<u8>, Refusal>,
    ) -> Result<Vec<u8>, Refusal> {
        if let Some(answer) = self.answer(tx, now)? {
            return Ok(answer);
        }
        let answer = work()?;
        self.answered(tx, &answer, now)?;
        Ok(answer)
    }

    /// As [`Self::once`], for answers that hold a secret: they rest in the store sealed.
    ///
    /// # Errors
    /// As [`Self::once`].
    pub fn once_sealed(
        &self,
        tx: &Transaction<'_>,
        sealing: &Sealing,
        now: WallTime,
        work: impl FnOnce() -> Result<Vec<u8>, Refusal>,
    ) -> Result<Vec<u8>, Refusal> {
        let mut fresh = None;
        let kept = self.once(tx, now, || {
            let answer = work()?;
            let sealed = sealing.seal(&self.id, &answer)?;
            fresh = Some(answer);
            Ok(sealed)
        })?;
        match fresh {
            Some(answer) => Ok(answer),
            None => sealing.open(&self.id, &kept),
        }
    }
}

/// Forgets kept answers of one node, or of all: what they say is no longer so.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn forget(tx: &Transaction<'_>, node: Option<NodeId>) -> Result<(), Refusal> {
    match node {
        Some(node) => {
            tx.execute("UPDATE requests SET answer = NULL WHERE node = ?1 AND answer IS NOT NULL", [node.as_bytes()])?
        }
        None => tx.execute("UPDATE requests SET answer = NULL", [])?,
    };
    Ok(())
}
