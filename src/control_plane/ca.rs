//! The trust domain's CAs, with each its key for tokens, and their rotation: prepared → active → retired.
//!
//! A prepared CA is in the bundle before it signs anything; a retired one stays in it until the
//! last certificate it signed has expired (SPIFFE Federation, 4.1). The bundle's sequence number
//! grows with every change.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use sha2::{Digest, Sha256};

use super::issuer::{Ca, Leaf};
use super::keys::{self, WrappingKey};
use super::store::{OptionalExtension, Transaction, meta, next_sequence, params, signed, unsigned};
use super::tokens::keys::{self as token_keys, Signer};
use crate::clock::WallTime;
use crate::codes::{self, Refusal};
use crate::identity::{SpiffeId, TrustDomain};
use crate::protocol::Bundle;

/// How many retired CAs the listener's chain leads to besides the active one, the newest first.
/// Rotations are weeks apart; the bound keeps the chain small whatever an operator does.
const LINKS: usize = 8;

/// Where the store keeps the bundle's sequence number.
const BUNDLE_SEQUENCE: &str = "bundle_sequence";

/// What the CA keys are wrapped for.
const PURPOSE: &str = "ca key";

/// All CAs of the trust domain; the active one's key is in memory.
#[derive(Debug)]
pub struct Authority {
    wrapping: Arc<WrappingKey>,
    trust_domain: TrustDomain,
    terms: CaTerms,
    published: Option<String>,
    current: RwLock<Arc<Issuing>>,
}

/// How long a CA lasts and how long it is published before it signs.
#[derive(Clone, Copy, Debug)]
pub struct CaTerms {
    /// The lifetime of a CA certificate.
    pub lifetime: Duration,
    /// The longest that a node goes without hearing of a new bundle while it holds a lease.
    pub published: Duration,
}

/// The active CA and the bundle at one moment.
#[derive(Debug)]
pub struct Issuing {
    /// The active CA's row.
    pub id: i64,
    /// The active CA.
    pub ca: Ca,
    /// Every CA certificate and every key for tokens; the active ones first.
    pub bundle: Bundle,
    /// The active key for tokens.
    pub signer: Signer,
    /// For each retired CA its certificate for the active key, and its own.
    links: Vec<ByteBuf>,
    /// Where relying parties find the active CA's CRL.
    crl: Option<String>,
}

/// A CA as shown to an operator.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CaFacts {
    /// `prepared`, `active`, `retired` or `removed`.
    pub state: String,
    /// SHA-256 of the certificate, hexadecimal: what an agent pins as `ca_hash`.
    pub hash: String,
    /// SHA-256 of its key (SubjectPublicKeyInfo), hexadecimal: names its CRL.
    pub key_id: String,
    /// RFC 3339.
    pub created: String,
    /// RFC 3339.
    pub expires: String,
    /// When the last certificate it signed expires; RFC 3339, absent if it signed none.
    pub in_use_until: Option<String>,
    /// The certificate, PEM.
    pub pem: String,
}

impl Authority {
    /// Loads the CAs; makes the first one in an empty store and whatever is overdue.
    ///
    /// # Errors
    /// [`codes::STORE_FAILED`], also when the wrapping key is another than the one in use.
    pub fn open(
        tx: &Transaction<'_>,
        wrapping: Arc<WrappingKey>,
        trust_domain: TrustDomain,
        terms: CaTerms,
        published: Option<String>,
        now: WallTime,
    ) -> Result<Self, Refusal> {
        turn(tx, &wrapping, &trust_domain, terms, now)?;
        let current = RwLock::new(Arc::new(load(tx, &wrapping, &trust_domain, published.as_deref())?));
        Ok(Self { wrapping, trust_domain, terms, published, current })
    }

    /// The active CA and the bundle now.
    pub fn current(&self) -> Arc<Issuing> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes over what the store says; to be called after a change was committed.
    ///
    /// # Errors
    /// [`codes::STORE_FAILED`].
    pub fn reload(&self, tx: &Transaction<'_>) -> Result<(), Refusal> {
        let loaded = Arc::new(load(tx, &self.wrapping, &self.trust_domain, self.published.as_deref())?);
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = loaded;
        Ok(())
    }

    /// Whether a change was committed that [`Self::reload`] hasn't taken over.
    ///
    /// # Errors
    /// [`codes::STORE_FAILED`].
    pub fn is_behind(&self, tx: &Transaction<'_>) -> Result<bool, Refusal> {
        Ok(meta::number(tx, BUNDLE_SEQUENCE)? != self.current().bundle.sequence)
    }

    /// Prepares the next CA, if none is prepared. Returns whether it did.
    ///
    /// # Errors
    /// [`codes::STORE_FAILED`].
    pub fn prepare(&self, tx: &Transaction<'_>, now: WallTime) -> Result<bool, Refusal> {
        prepare(tx, &self.wrapping, &self.trust_domain, self.terms, now)
    }

    /// Makes the prepared CA the active one. `early` permits it before every node has had the time
    /// to learn of it.
    ///
    /// # Errors
    /// [`codes::ADMIN_CONFLICT`] when none is prepared, or not for long enough.
    pub fn rotate(&self, tx: &Transaction<'_>, now: WallTime, early: bool) -> Result<(), Refusal> {
        let prepared = created_at(tx, "prepared")?.ok_or_else(|| {
            Refusal::new(codes::ADMIN_CONFLICT, "no CA is prepared").expected("`leasehold-server ca prepare` first")
        })?;
        let ready = prepared.after(self.terms.published);
        if !early && now < ready {
            return Err(Refusal::new(codes::ADMIN_CONFLICT, format!("the prepared CA is published since {prepared}"))
                .expected(format!("rotation from {ready} on, when every node has it; or `ca rotate --early`")));
        }
        activate(tx, now)
    }

    /// Takes a CA out of the bundle before its time: from now on nothing under it counts. For the active one
    /// a successor takes over at once, with another key for tokens, and the keys before it go too. Nodes that
    /// know no other CA are still led to the new one by this one's signature: whoever holds its key could lead
    /// them anyway, and without it each would need a hand.
    ///
    /// # Errors
    /// [`codes::ADMIN_UNKNOWN`] for a `named` that isn't the start of one CA's hash or key id.
    pub fn remove(&self, tx: &Transaction<'_>, named: &str, reason: &str, now: WallTime) -> Result<RemovedCa, Refusal> {
        let (id, state, certificate) = named_ca(tx, Some(named), true)?;
        let mut signers = Vec::new();
        if state == "active" {
            self.prepare(tx, now)?;
            activate(tx, now)?;
            let mut dropped = tx.prepare("DELETE FROM jwt_keys WHERE state = 'retired' RETURNING id")?;
            signers = dropped.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
        }
        match state.as_str() {
            // It signed nothing.
            "prepared" => tx.execute("DELETE FROM ca_keys WHERE id = ?1", [id])?,
            _ => tx.execute(
                "UPDATE ca_keys SET removed_at = ?2, removed_reason = ?3 WHERE id = ?1",
                params![id, signed(now.0), reason],
            )?,
        };
        advance_bundle(tx, now)?;
        Ok(RemovedCa { id, hash: hash(&certificate), signers })
    }

    /// A CA that may still sign lists of what it signed: the active one, or the one that `named` is the start
    /// of the hash or the key id of.
    ///
    /// # Errors
    /// [`codes::ADMIN_UNKNOWN`].
    pub fn signer(&self, tx: &Transaction<'_>, named: Option<&str>) -> Result<(i64, Ca), Refusal> {
        let (id, _, _) = named_ca(tx, named, false)?;
        let (certificate, wrapped, not_after): (Vec<u8>, Vec<u8>, i64) =
            tx.query_row("SELECT certificate, key, not_after FROM ca_keys WHERE id = ?1", [id], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?))
            })?;
        let key = keys::from_pkcs8(&self.wrapping.unwrap(PURPOSE, &wrapped)?)?;
        Ok((id, Ca::from_parts(key, certificate, WallTime(unsigned(not_after)))?))
    }

    /// Does what is due by age: prepares, rotates, drops. Returns whether the bundle or the active
    /// CA changed.
    ///
    /// # Errors
    /// [`codes::STORE_FAILED`].
    pub fn turn(&self, tx: &Transaction<'_>, now: WallTime) -> Result<bool, Refusal> {
        turn(tx, &self.wrapping, &self.trust_domain, self.terms, now)
    }
}

/// A CA that was taken out of the bundle.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RemovedCa {
    /// Its row: the signer of certificates.
    pub id: i64,
    /// SHA-256 of its certificate, hexadecimal.
    pub hash: String,
    /// The keys for tokens that went with it.
    pub signers: Vec<i64>,
}

/// The one CA that `named` means, or the active one; removed ones only if not `present`.
fn named_ca(tx: &Transaction<'_>, named: Option<&str>, present: bool) -> Result<(i64, String, Vec<u8>), Refusal> {
    /// The shortest start that names one.
    const SHORTEST: usize = 8;
    let mut statement = tx.prepare("SELECT id, state, certificate, removed_at IS NOT NULL FROM ca_keys ORDER BY id")?;
    let rows = statement.query_map([], |row| {
        Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?, row.get::<_, Vec<u8>>(2)?, row.get::<_, bool>(3)?))
    })?;
    let mut found = Vec::new();
    for row in rows {
        let (id, state, certificate, removed) = row?;
        let meant = match named {
            None => state == "active",
            Some(start) => {
                start.len() >= SHORTEST
                    && (hash(&certificate).starts_with(start) || key_id(&certificate)?.starts_with(start))
            }
        };
        if meant && !(present && removed) {
            found.push((id, state, certificate));
        }
    }
    match found.pop() {
        Some(one) if found.is_empty() => Ok(one),
        _ => Err(Refusal::new(codes::ADMIN_UNKNOWN, "no CA of the bundle, or several")
            .at(named.unwrap_or_default().chars().take(64).collect::<String>())
            .expected(format!(
                "at least {SHORTEST} digits of a `hash` or `key_id` that `leasehold-server ca show` prints"
            ))),
    }
}

/// SHA-256 of a certificate's SubjectPublicKeyInfo, hexadecimal.
fn key_id(certificate: &[u8]) -> Result<String, Refusal> {
    Ok(hex::encode(Sha256::digest(super::issuer::spki_of(certificate)?)))
}

impl Issuing {
    /// Issues a leaf and notes how long its CA must stay in the bundle for it.
    ///
    /// # Errors
    /// As [`Ca::issue`].
    pub fn issue(
        &self,
        tx: &Transaction<'_>,
        id: &SpiffeId,
        spki: &[u8],
        now: WallTime,
        term: Duration,
    ) -> Result<Leaf, Refusal> {
        let leaf = self.ca.issue(id, spki, now, term, self.crl.as_deref())?;
        let kept = tx.execute(
            "UPDATE ca_keys SET last_leaf_not_after = max(last_leaf_not_after, ?1) WHERE id = ?2 AND removed_at IS NULL",
            params![signed(leaf.not_after.0), self.id],
        )?;
        // Dropped or removed by a transaction whose change isn't taken over yet.
        if kept != 1 {
            return Err(Refusal::new(codes::STORE_FAILED, "the CA was dropped while it was used; try again"));
        }
        Ok(leaf)
    }

    /// The leaf and its CA, DER: a chain in which a peer that pins the CA's hash finds it.
    pub fn chain(&self, leaf: &Leaf) -> Vec<ByteBuf> {
        vec![ByteBuf::from(leaf.certificate.clone()), ByteBuf::from(self.ca.certificate().to_vec())]
    }

    /// The chain for the listener: it also leads to each retired CA, so that a node that was away
    /// while its CA was retired, or one that pins it, still knows this server.
    pub fn server_chain(&self, leaf: &Leaf) -> Vec<ByteBuf> {
        let mut chain = self.chain(leaf);
        chain.extend_from_slice(&self.links);
        chain
    }
}

/// Every CA, for an operator.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn facts(tx: &Transaction<'_>) -> Result<Vec<CaFacts>, Refusal> {
    let mut statement = tx.prepare(
        "SELECT iif(removed_at IS NULL, state, 'removed'), certificate, created_at, not_after, last_leaf_not_after
         FROM ca_keys ORDER BY id DESC",
    )?;
    let rows = statement.query_map([], |row| {
        let certificate: Vec<u8> = row.get(1)?;
        let time = |column| row.get(column).map(|at| WallTime(unsigned(at)));
        let in_use_until: WallTime = time(4)?;
        Ok(CaFacts {
            state: row.get(0)?,
            hash: hash(&certificate),
            key_id: key_id(&certificate).unwrap_or_default(),
            created: time(2)?.to_string(),
            expires: time(3)?.to_string(),
            in_use_until: (in_use_until.0 > 0).then(|| in_use_until.to_string()),
            pem: pem(&certificate),
        })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// SHA-256 of a certificate, hexadecimal.
pub fn hash(certificate: &[u8]) -> String {
    hex::encode(Sha256::digest(certificate))
}

/// PEM of a certificate.
fn pem(certificate: &[u8]) -> String {
    use der::{Decode, EncodePem};
    x509_cert::Certificate::from_der(certificate)
        .and_then(|parsed| parsed.to_pem(der::pem::LineEnding::LF))
        .unwrap_or_default()
}

fn turn(
    tx: &Transaction<'_>,
    wrapping: &WrappingKey,
    trust_domain: &TrustDomain,
    terms: CaTerms,
    now: WallTime,
) -> Result<bool, Refusal> {
    // A prepared CA that was never used and has expired makes room for a new one.
    let stale = tx.execute("DELETE FROM ca_keys WHERE state = 'prepared' AND not_after <= ?1", [signed(now.0)])?;
    let mut changed = false;
    let life = terms.lifetime.as_secs();
    let spent = match active_life(tx)? {
        // The fraction of its life that is over, in quarters: half and it gets a successor, three
        // quarters and the successor takes over; the rest is for what it signed last.
        Some((created, not_after)) if now < not_after => {
            now.0.saturating_sub(created.0).saturating_mul(4) / life.max(1)
        }
        // None yet, or none that is still valid (the server was off for long): replace it now.
        _ => u64::MAX,
    };
    if spent >= 2 {
        changed |= prepare(tx, wrapping, trust_domain, terms, now)?;
    }
    let published = created_at(tx, "prepared")?.is_some_and(|created| now >= created.after(terms.published));
    if spent == u64::MAX || (spent >= 3 && published) {
        activate(tx, now)?;
        changed = true;
    }
    // A retired CA's leases may be held against the bundle for a term as well.
    let dropped = tx.execute(
        "DELETE FROM ca_keys WHERE state = 'retired' AND last_leaf_not_after < ?1 AND retired_at + ?2 < ?1",
        params![signed(now.0), signed(terms.published.as_secs())],
    )?;
    let tokens = token_keys::turn(tx, wrapping, terms.published.as_secs(), now)?;
    if dropped + stale > 0 || tokens {
        advance_bundle(tx, now)?;
        changed = true;
    }
    Ok(changed)
}

fn prepare(
    tx: &Transaction<'_>,
    wrapping: &WrappingKey,
    trust_domain: &TrustDomain,
    terms: CaTerms,
    now: WallTime,
) -> Result<bool, Refusal> {
    if created_at(tx, "prepared")?.is_some() {
        return Ok(false);
    }
    let key = keys::generate()?;
    let wrapped = wrapping.wrap(PURPOSE, &keys::to_pkcs8(&key)?)?;
    let ca = Ca::new(key, trust_domain, now, terms.lifetime)?;
    tx.execute(
        "INSERT INTO ca_keys(state, certificate, key, created_at, not_after) VALUES ('prepared', ?1, ?2, ?3, ?4)",
        params![ca.certificate(), wrapped, signed(now.0), signed(ca.not_after().0)],
    )?;
    token_keys::prepare(tx, wrapping, now)?;
    advance_bundle(tx, now)?;
    Ok(true)
}

fn activate(tx: &Transaction<'_>, now: WallTime) -> Result<(), Refusal> {
    let now_signed = signed(now.0);
    tx.execute("UPDATE ca_keys SET state = 'retired', retired_at = ?1 WHERE state = 'active'", [now_signed])?;
    let activated =
        tx.execute("UPDATE ca_keys SET state = 'active', activated_at = ?1 WHERE state = 'prepared'", [now_signed])?;
    if activated != 1 {
        return Err(Refusal::new(codes::STORE_FAILED, "BUG: no prepared CA to activate"));
    }
    token_keys::activate(tx, now)
}

fn active_life(tx: &Transaction<'_>) -> Result<Option<(WallTime, WallTime)>, Refusal> {
    Ok(tx
        .query_row("SELECT created_at, not_after FROM ca_keys WHERE state = 'active'", [], |row| {
            Ok((WallTime(unsigned(row.get(0)?)), WallTime(unsigned(row.get(1)?))))
        })
        .optional()?)
}

fn created_at(tx: &Transaction<'_>, state: &str) -> Result<Option<WallTime>, Refusal> {
    Ok(tx
        .query_row("SELECT created_at FROM ca_keys WHERE state = ?1", [state], |row| {
            Ok(WallTime(unsigned(row.get(0)?)))
        })
        .optional()?)
}

fn advance_bundle(tx: &Transaction<'_>, now: WallTime) -> Result<(), Refusal> {
    let last = meta::number(tx, BUNDLE_SEQUENCE)?;
    meta::set_number(tx, BUNDLE_SEQUENCE, next_sequence(last, now))
}

fn load(
    tx: &Transaction<'_>,
    wrapping: &WrappingKey,
    trust_domain: &TrustDomain,
    published: Option<&str>,
) -> Result<Issuing, Refusal> {
    let row = |row: &rusqlite::Row<'_>| {
        let time = |column| row.get(column).map(|at| WallTime(unsigned(at)));
        Ok((row.get::<_, i64>(0)?, row.get::<_, Vec<u8>>(1)?, row.get::<_, Vec<u8>>(2)?, time(3)?, time(4)?))
    };
    let open = |certificate, wrapped: &[u8], not_after| {
        Ca::from_parts(keys::from_pkcs8(&wrapping.unwrap(PURPOSE, wrapped)?)?, certificate, not_after)
    };
    const COLUMNS: &str = "SELECT id, certificate, key, not_after, created_at FROM ca_keys";
    let (id, certificate, wrapped, not_after, created) =
        tx.query_row(&format!("{COLUMNS} WHERE state = 'active'"), [], row)?;
    let ca = open(certificate, &wrapped, not_after)?;
    let mut links = Vec::new();
    let mut statement = tx.prepare(&format!("{COLUMNS} WHERE state = 'retired' ORDER BY id DESC LIMIT {LINKS}"))?;
    for retired in statement.query_map([], row)? {
        let (_, certificate, wrapped, not_after, _) = retired?;
        let retired = open(certificate, &wrapped, not_after)?;
        if let Some(link) = retired.link(&ca, trust_domain, created)? {
            links.extend([ByteBuf::from(link), ByteBuf::from(retired.certificate().to_vec())]);
        }
    }
    let mut statement =
        tx.prepare("SELECT certificate FROM ca_keys WHERE removed_at IS NULL ORDER BY state = 'active' DESC, id DESC")?;
    let certificates =
        statement.query_map([], |row| Ok(ByteBuf::from(row.get::<_, Vec<u8>>(0)?)))?.collect::<Result<_, _>>()?;
    let (sequence, jwt_keys) = (meta::number(tx, BUNDLE_SEQUENCE)?, token_keys::published(tx)?);
    let signer = token_keys::active(tx, wrapping)?;
    let crl = published.map(|url| format!("{url}/v1/crl/{}", hex::encode(ca.key_id())));
    Ok(Issuing { id, ca, bundle: Bundle { certificates, sequence, jwt_keys }, signer, links, crl })
}

#[cfg(test)]
mod tests;
