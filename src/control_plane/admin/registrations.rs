//! Commands about what an operator registers: EKs, owners, workloads.

use der::{Decode, Encode};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest, Sha256};
use x509_cert::certificate::{CertificateInner, Raw};
use x509_cert::spki::{AlgorithmIdentifierOwned, SubjectPublicKeyInfoOwned};

use super::commands::{Effects, Outcome, only};
use crate::clock::WallTime;
use crate::codes::{self, Refusal};
use crate::control_plane::credentials::ledger::{self, Of};
use crate::control_plane::events::Audience;
use crate::control_plane::registry::eks::{self, Kind};
use crate::control_plane::registry::workloads::{self, Stated, Target, Workload};
use crate::control_plane::registry::{nodes, owners};
use crate::control_plane::store::Transaction;
use crate::control_plane::{audit, replay};
use crate::identity::TrustDomain;
use crate::protocol::Event;
use crate::tpm::structures::Public;

/// An EK as an operator names it: in one of three ways.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StatedEk {
    /// Its TPM name, hexadecimal.
    pub name: Option<String>,
    /// Its certificate, DER in hexadecimal.
    pub certificate: Option<String>,
    /// Its TPMT_PUBLIC or TPM2B_PUBLIC, hexadecimal.
    pub public: Option<String>,
    /// An operator's words for it.
    pub label: String,
    /// The group a node with it is put in.
    pub group: Option<String>,
}

/// Names an EK: a node with it is listed, and admitted when it enrols.
///
/// # Errors
/// [`codes::ADMIN_INVALID`], [`codes::ADMIN_CONFLICT`].
pub fn ek_add(tx: &Transaction<'_>, stated: StatedEk, now: WallTime) -> Result<Outcome, Refusal> {
    let (kind, value) = match (&stated.name, &stated.certificate, &stated.public) {
        (Some(name), None, None) => (Kind::Name, ek_name(name)?),
        (None, Some(certificate), None) => (Kind::Key, certified_key(&unhex("--cert", certificate)?)?),
        (None, None, Some(public)) => (Kind::Name, public_name(&unhex("--public", public)?)?),
        _ => {
            return Err(
                Refusal::new(codes::ADMIN_INVALID, "no EK, or several").expected("one of --name, --cert, --public")
            );
        }
    };
    workloads::check_text("--label", &stated.label)?;
    if let Some(group) = &stated.group {
        workloads::check_group(group)?;
    }
    let changed = eks::add(tx, kind, &value, &stated.label, stated.group.as_deref(), now)?;
    if changed {
        let detail = json!({ "ek": hex::encode(&value), "label": stated.label, "group": stated.group });
        audit::done(tx, now, "ek.added", None, detail)?;
    }
    let ek = eks::all(tx)?.into_iter().find(|ek| ek.value == hex::encode(&value));
    Ok(only(json!({ "schema": 1, "changed": changed, "ek": ek })))
}

/// All named EKs.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn ek_list(tx: &Transaction<'_>) -> Result<Outcome, Refusal> {
    Ok(only(json!({ "schema": 1, "eks": eks::all(tx)? })))
}

/// Removes a named EK; nodes that it admitted stay.
///
/// # Errors
/// [`codes::ADMIN_UNKNOWN`].
pub fn ek_remove(tx: &Transaction<'_>, value: &str, now: WallTime) -> Result<Outcome, Refusal> {
    eks::remove(tx, &unhex("EK", value)?)?;
    audit::done(tx, now, "ek.removed", None, json!({ "ek": value }))?;
    let facts = json!({ "schema": 1, "changed": true, "ek": null });
    Ok((facts, Effects { taken: true, ..Effects::default() }))
}

/// Adds an owner.
///
/// # Errors
/// [`codes::ADMIN_INVALID`], [`codes::ADMIN_CONFLICT`].
pub fn owner_add(tx: &Transaction<'_>, name: &str, contact: &str, now: WallTime) -> Result<Outcome, Refusal> {
    workloads::check_text("the owner's name", name)?;
    if !contact.is_empty() {
        workloads::check_text("--contact", contact)?;
    }
    let changed = owners::add(tx, name, contact, now)?;
    if changed {
        audit::done(tx, now, "owner.added", None, json!({ "owner": name, "contact": contact }))?;
    }
    let owner = owners::all(tx)?.into_iter().find(|owner| owner.name == name);
    Ok(only(json!({ "schema": 1, "changed": changed, "owner": owner })))
}

/// All owners.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn owner_list(tx: &Transaction<'_>) -> Result<Outcome, Refusal> {
    Ok(only(json!({ "schema": 1, "owners": owners::all(tx)? })))
}

/// Registers a workload; the nodes it is for hear of it at once.
///
/// # Errors
/// As [`Workload::check`] and [`workloads::add`].
pub fn workload_add(
    tx: &Transaction<'_>,
    stated: Stated,
    trust_domain: &TrustDomain,
    now: WallTime,
) -> Result<Outcome, Refusal> {
    let workload = Workload::check(tx, stated, trust_domain)?;
    let changed = workloads::add(tx, &workload, now)?;
    let entry = workloads::all(tx)?.into_iter().find(|known| known.stated.id == workload.id.to_string());
    let mut effects = Effects::default();
    if changed {
        audit::done(tx, now, "workload.added", None, json!({ "workload": &entry }))?;
        effects.push = told(tx, &workload)?;
    }
    Ok((json!({ "schema": 1, "changed": changed, "workload": entry }), effects))
}

/// All workloads.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn workload_list(tx: &Transaction<'_>) -> Result<Outcome, Refusal> {
    Ok(only(json!({ "schema": 1, "workloads": workloads::all(tx)? })))
}

/// Removes a workload (a revocation if a reason is given): no SVID is issued for it any more, and
/// its nodes withdraw what they hold.
///
/// # Errors
/// [`codes::ADMIN_UNKNOWN`].
pub fn workload_remove(
    tx: &Transaction<'_>,
    id: &str,
    reason: Option<&str>,
    now: WallTime,
) -> Result<Outcome, Refusal> {
    if let Some(reason) = reason {
        workloads::check_text("--reason", reason)?;
    }
    let workload = workloads::remove(tx, id)?;
    ledger::end(tx, Of::Workload(id), codes::GATE_REVOKED, reason.unwrap_or("its registration was removed"), now)?;
    let what = if reason.is_some() { "workload.revoked" } else { "workload.removed" };
    audit::done(tx, now, what, None, json!({ "workload": id, "reason": reason }))?;
    let effects = Effects { push: told(tx, &workload)?, taken: true, ..Effects::default() };
    Ok((json!({ "schema": 1, "changed": true, "workload": null }), effects))
}

/// The nodes that must attest anew, since what they may hold has changed.
pub fn told(tx: &Transaction<'_>, workload: &Workload) -> Result<Vec<(Audience, Event)>, Refusal> {
    let nodes = match &workload.target {
        Target::Node(id) => vec![*id],
        Target::Group(group) => nodes::of_group(tx, group)?,
    };
    for node in &nodes {
        replay::forget(tx, Some(*node))?;
    }
    Ok(nodes.into_iter().map(|node| (Audience::Node(node), Event::Attest)).collect())
}

fn unhex(at: &str, text: &str) -> Result<Vec<u8>, Refusal> {
    hex::decode(text).map_err(|_| Refusal::new(codes::ADMIN_INVALID, "it is not hexadecimal").at(at))
}

/// A TPM name: nameAlg and a hash of its size.
fn ek_name(text: &str) -> Result<Vec<u8>, Refusal> {
    let name = unhex("--name", text)?;
    match name.as_slice() {
        [0x00, 0x0B, hash @ ..] if hash.len() == 32 => Ok(name),
        [0x00, 0x0C, hash @ ..] if hash.len() == 48 => Ok(name),
        _ => Err(Refusal::new(codes::ADMIN_INVALID, "it is no TPM name of an EK")
            .at("--name")
            .expected("000b and 64 hexadecimal digits (SHA-256), or 000c and 96 (SHA-384)")),
    }
}

fn public_name(bytes: &[u8]) -> Result<Vec<u8>, Refusal> {
    let public = Public::parse(bytes).or_else(|_| Public::parse_sized(bytes)).map_err(|refusal| {
        Refusal::new(codes::ADMIN_INVALID, refusal.to_string())
            .at("--public")
            .expected("a TPMT_PUBLIC or TPM2B_PUBLIC, as `tpm2_createek` writes it")
    })?;
    crate::verify::endorsement::check_template(&public)?;
    Ok(public.name())
}

/// SHA-256 of the certificate's key, in the encoding that the verifier computes from a TPMT_PUBLIC.
fn certified_key(der: &[u8]) -> Result<Vec<u8>, Refusal> {
    /// rsaEncryption, and the id-RSAES-OAEP that some EK certificates have in its place.
    const RSA: der::asn1::ObjectIdentifier = der::asn1::ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
    const RSA_OAEP: der::asn1::ObjectIdentifier = der::asn1::ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.7");
    let refuse =
        |e: der::Error| Refusal::new(codes::ADMIN_INVALID, e.to_string()).at("--cert").expected("a certificate");
    // The lenient profile: manufacturers' serial numbers are not always RFC 5280's.
    let certificate = CertificateInner::<Raw>::from_der(der).map_err(refuse)?;
    let found = certificate.tbs_certificate().subject_public_key_info();
    let algorithm = match found.algorithm.oid {
        RSA | RSA_OAEP => AlgorithmIdentifierOwned { oid: RSA, parameters: Some(der::Any::null()) },
        _ => found.algorithm.clone(),
    };
    let key = SubjectPublicKeyInfoOwned { algorithm, subject_public_key: found.subject_public_key.clone() };
    Ok(Sha256::digest(key.to_der().map_err(refuse)?).to_vec())
}
