//! What relying parties may have without a certificate: CRLs, the denied tokens, the bundle.
//!
//! Each is computed from the store at most once a second and signed anew only when it changed or grows old, so
//! that whoever asks often costs little.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::credentials::ledger::{self, Kind};
use super::issuer::{Ca, RevokedLeaf};
use super::server::Shared;
use super::store::{Transaction, damaged, meta, next_sequence};
use super::tokens;
use crate::clock::{BootInstant, WallTime};
use crate::codes::{self, Refusal};

/// How long a CRL holds, in seconds. Certificates of workloads live for minutes; this is for relying parties
/// that refuse everything once a CRL is over.
const NEXT_UPDATE: u64 = 3_600;
/// How long an answer may be used without asking again, in seconds: what a revocation is late by at a relying
/// party that heeds it.
const MAX_AGE: u64 = 5;
/// How long a computed answer is given out without a look at the store.
const FRESH: Duration = Duration::from_secs(1);
/// The most entries of a list: 4 MiB of CRL.
const ENTRIES: usize = 100_000;

/// A CRL.
#[derive(Clone, Debug)]
pub struct Crl {
    /// SHA-256 of its CA's SubjectPublicKeyInfo, hexadecimal.
    pub key_id: String,
    /// DER.
    pub der: Arc<Vec<u8>>,
    /// Grows with every CRL of this control plane.
    pub number: u64,
    /// When it was made.
    pub this_update: WallTime,
    /// When it is over.
    pub next_update: WallTime,
    /// The certificates on it.
    pub revoked: Vec<String>,
}

impl Crl {
    /// Whether it still says what is so.
    fn holds(&self, revoked: &[String], now: WallTime) -> bool {
        let renewed_at = self.this_update.0.midpoint(self.next_update.0);
        self.this_update <= now && now.0 < renewed_at && self.revoked == revoked
    }
}

/// An answer ready to be sent.
#[derive(Clone, Debug)]
pub struct Document {
    /// Its media type.
    pub media_type: &'static str,
    /// Its bytes.
    pub body: Arc<Vec<u8>>,
    /// Another one for each content.
    pub tag: String,
}

impl Document {
    /// The answer to somebody who has the document with the tag `known`, or none.
    pub fn answer(self, known: Option<&HeaderValue>) -> Response {
        let same = known.is_some_and(|known| known.as_bytes() == self.tag.as_bytes());
        let headers = [
            (header::CONTENT_TYPE, self.media_type.to_owned()),
            (header::CACHE_CONTROL, format!("public, max-age={MAX_AGE}")),
            (header::ETAG, self.tag),
        ];
        match same {
            true => (StatusCode::NOT_MODIFIED, headers).into_response(),
            false => (headers, Body::from(self.body.as_slice().to_vec())).into_response(),
        }
    }
}

/// What was computed last.
#[derive(Debug, Default)]
pub struct Published {
    crls: Mutex<BTreeMap<String, Crl>>,
    documents: Mutex<BTreeMap<String, (BootInstant, Document)>>,
}

/// What can be asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Topic {
    /// The CRL of a CA.
    Crl,
    /// Tokens that are revoked and not over.
    Denied,
    /// The SPIFFE bundle.
    Bundle,
}

/// An answer; `key` names a CA by its key's id, where one is asked for.
///
/// # Errors
/// [`codes::ADMIN_UNKNOWN`] for a CA that isn't there, [`codes::PROTOCOL_TOO_LARGE`] for a list beyond its bound.
pub async fn document(shared: &Arc<Shared>, topic: Topic, key: Option<&str>) -> Result<Document, Refusal> {
    // Whole: each list has few names, however it is asked for.
    if key.is_some_and(|key| key.len() != 64) {
        return Err(Refusal::new(codes::ADMIN_UNKNOWN, "no CA's key").expected("the 64 digits of its `key_id`"));
    }
    // In memory, and a key that was taken out of it is gone from the next answer on.
    if topic == Topic::Bundle {
        return Ok(of_bytes(tokens::bundle::document(&shared.authority.current().bundle)?));
    }
    let name = format!("{topic:?} {}", key.unwrap_or_default());
    let kept = |name: &str| {
        let documents = shared.published.documents.lock().unwrap_or_else(PoisonError::into_inner);
        documents
            .get(name)
            .filter(|(at, _)| BootInstant::now().since(*at) < FRESH)
            .map(|(_, document)| document.clone())
    };
    if let Some(document) = kept(&name) {
        return Ok(document);
    }
    let began = BootInstant::now();
    let (of_work, now, key) = (shared.clone(), shared.now(), key.map(str::to_owned));
    let document = shared
        .store
        .transaction(move |tx| match topic {
            Topic::Crl => crl(tx, &of_work, key.as_deref(), now).map(|crl| Document {
                media_type: "application/pkix-crl",
                tag: format!("\"{}\"", crl.number),
                body: crl.der,
            }),
            // A bundle was given out above.
            Topic::Denied | Topic::Bundle => Ok(of_bytes(denied(tx, &of_work, now)?)),
        })
        .await?;
    let mut documents = shared.published.documents.lock().unwrap_or_else(PoisonError::into_inner);
    // Only what exists gets here, under two names at most: a CA's certificate has a hash as well.
    documents.retain(|_, (at, _)| began.since(*at) < FRESH);
    documents.insert(name, (began, document.clone()));
    Ok(document)
}

fn of_bytes(body: Vec<u8>) -> Document {
    use sha2::{Digest, Sha256};
    let tag = format!("\"{}\"", hex::encode(Sha256::digest(&body).get(..16).unwrap_or_default()));
    Document { media_type: "application/json", body: Arc::new(body), tag }
}

/// The CRL of the CA with this key id (or the start of one), or of the active CA: made anew if it isn't so any more.
///
/// # Errors
/// As [`document`].
pub fn crl(tx: &Transaction<'_>, shared: &Shared, key: Option<&str>, now: WallTime) -> Result<Crl, Refusal> {
    let (id, ca): (i64, Ca) = shared.authority.signer(tx, key)?;
    let key_id = hex::encode(ca.key_id());
    let rows = ledger::withdrawn(tx, Kind::X509, Some(id), now)?;
    within(rows.len())?;
    let revoked: Vec<String> = rows.iter().map(|row| row.id.clone()).collect();
    let kept = {
        let crls = shared.published.crls.lock().unwrap_or_else(PoisonError::into_inner);
        crls.get(&key_id).filter(|crl| crl.holds(&revoked, now)).cloned()
    };
    if let Some(kept) = kept {
        return Ok(kept);
    }
    let leaves: Vec<RevokedLeaf> = rows
        .into_iter()
        .map(|row| {
            let serial = hex::decode(row.id).map_err(|_| damaged("a serial number"))?;
            Ok(RevokedLeaf { serial, at: row.ended_at })
        })
        .collect::<Result<_, Refusal>>()?;
    // Never lower than one that was given out, not even after a restore.
    let number = next_sequence(meta::number(tx, "crl_number")?, now);
    meta::set_number(tx, "crl_number", number)?;
    let next_update = now.after(Duration::from_secs(NEXT_UPDATE));
    let der = Arc::new(ca.crl(&leaves, number, now, next_update)?);
    let crl = Crl { key_id: key_id.clone(), der, number, this_update: now, next_update, revoked };
    // Should the transaction fail after all, the number is only skipped.
    let mut crls = shared.published.crls.lock().unwrap_or_else(PoisonError::into_inner);
    crls.retain(|_, crl| now <= crl.next_update);
    crls.insert(key_id, crl.clone());
    drop(crls);
    Ok(crl)
}

/// The tokens that were revoked and whose time isn't over, as JSON. Not signed: it is worth what the connection
/// that it came over is worth.
///
/// # Errors
/// As [`document`].
pub fn denied(tx: &Transaction<'_>, shared: &Shared, now: WallTime) -> Result<Vec<u8>, Refusal> {
    let rows = ledger::withdrawn(tx, Kind::Jwt, None, now)?;
    within(rows.len())?;
    let denied: Vec<_> = rows
        .into_iter()
        .map(|row| json!({ "jti": row.id, "revoked": row.ended_at.0, "exp": row.not_after.0 }))
        .collect();
    let document = json!({
        "schema": 1, "trust_domain": shared.settings.trust_domain.as_str(), "refresh_hint": MAX_AGE, "denied": denied,
    });
    Ok(document.to_string().into_bytes())
}

/// A list that can't be given whole isn't given: a part of it would let the rest through.
fn within(entries: usize) -> Result<(), Refusal> {
    match entries <= ENTRIES {
        true => Ok(()),
        false => Err(Refusal::new(codes::PROTOCOL_TOO_LARGE, format!("{entries} revoked credentials aren't over yet"))
            .expected(format!("at most {ENTRIES}; break glass instead: `leasehold-server ca remove`"))),
    }
}
