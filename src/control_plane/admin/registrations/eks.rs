//! Commands about EKs that an operator names.

use der::{Decode, Encode};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest, Sha256};
use x509_cert::certificate::{CertificateInner, Raw};
use x509_cert::spki::{AlgorithmIdentifierOwned, SubjectPublicKeyInfoOwned};

use crate::clock::WallTime;
use crate::codes::{self, Refusal};
use crate::control_plane::admin::commands::{Outcome, only};
use crate::control_plane::audit;
use crate::control_plane::effects::Effects;
use crate::control_plane::registry::eks::{self, Kind, Words};
use crate::control_plane::registry::rules::Rules;
use crate::control_plane::store::Transaction;
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
    /// The environment a node with it belongs to.
    #[serde(default)]
    pub environment: String,
}

/// Names an EK: a node with it is listed, and admitted when it enrols.
///
/// # Errors
/// [`codes::ADMIN_INVALID`], [`codes::ADMIN_CONFLICT`].
pub fn add(tx: &Transaction<'_>, stated: StatedEk, rules: &Rules, now: WallTime) -> Result<Outcome, Refusal> {
    let (kind, value) = match (&stated.name, &stated.certificate, &stated.public) {
        (Some(name), None, None) => (Kind::Name, eks::tpm_name("--name", name)?),
        (None, Some(certificate), None) => (Kind::Key, certified_key(&unhex("--cert", certificate)?)?),
        (None, None, Some(public)) => (Kind::Name, public_name(&unhex("--public", public)?)?),
        _ => {
            return Err(
                Refusal::new(codes::ADMIN_INVALID, "no EK, or several").expected("one of --name, --cert, --public")
            );
        }
    };
    let words = Words { label: stated.label, group: stated.group, environment: stated.environment }.checked(rules)?;
    let changed = eks::add(tx, kind, &value, &words, now)?;
    if changed {
        let detail = json!({
            "ek": hex::encode(&value), "label": words.label, "group": words.group, "environment": words.environment,
        });
        audit::done(tx, now, "ek.added", None, detail)?;
    }
    let ek = eks::all(tx)?.into_iter().find(|ek| ek.value == hex::encode(&value));
    Ok(only(json!({ "schema": 1, "changed": changed, "ek": ek })))
}

/// All named EKs.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn list(tx: &Transaction<'_>) -> Result<Outcome, Refusal> {
    Ok(only(json!({ "schema": 1, "eks": eks::all(tx)? })))
}

/// Removes a named EK; nodes that it admitted stay.
///
/// # Errors
/// [`codes::ADMIN_UNKNOWN`].
pub fn remove(tx: &Transaction<'_>, value: &str, now: WallTime) -> Result<Outcome, Refusal> {
    eks::remove(tx, &unhex("EK", value)?)?;
    audit::done(tx, now, "ek.removed", None, json!({ "ek": value }))?;
    let facts = json!({ "schema": 1, "changed": true, "ek": null });
    Ok((facts, Effects { taken: true, ..Effects::default() }))
}

fn unhex(at: &str, text: &str) -> Result<Vec<u8>, Refusal> {
    hex::decode(text).map_err(|_| Refusal::new(codes::ADMIN_INVALID, "it is not hexadecimal").at(at))
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
