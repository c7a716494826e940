//! First question: did this node's keys make it?

use p256::ecdsa::signature::Verifier;

use super::keys::{AkPublic, EnrolledKeys};
use crate::codes::{self, Refusal};
use crate::evidence::{NodeClaims, UnverifiedEvidence, certification_binding};
use crate::tpm::structures::{Attest, AttestBody, Signature};
use crate::tpm::{PcrValues, Signed};

/// Evidence made by the enrolled keys: the node key signed it, the AK signed its quote, and its
/// PCR values are the quoted ones. Not yet known: whether it is fresh, and whether it is good.
#[derive(Clone, Debug)]
pub struct Authentic {
    pub(super) claims: NodeClaims,
    pub(super) quote: Attest,
    pub(super) keys: EnrolledKeys,
}

/// Checks who made `evidence`. `channel_spki` is the SubjectPublicKeyInfo (DER) of the client
/// certificate it came with; `None` only while the node enrols and has none yet.
///
/// # Errors
/// In this order: [`codes::VERIFY_NODE`], [`codes::VERIFY_CHANNEL`],
/// [`codes::VERIFY_EVIDENCE_SIGNATURE`], [`codes::VERIFY_NODE_KEY`], for the quote
/// [`codes::VERIFY_QUOTE_HASH`], [`codes::VERIFY_QUOTE_SIGNATURE`], those of [`Attest::parse`],
/// [`codes::VERIFY_QUOTE_TYPE`], [`codes::VERIFY_QUOTE_SIGNER`], [`codes::VERIFY_SELECTION`] and
/// [`codes::VERIFY_PCR_DIGEST`].
pub fn authenticate(
    evidence: UnverifiedEvidence,
    keys: &EnrolledKeys,
    channel_spki: Option<&[u8]>,
) -> Result<Authentic, Refusal> {
    let claimed = evidence.unverified_node();
    if claimed != keys.node {
        return Err(Refusal::new(codes::VERIFY_NODE, name_or_none(claimed.map(|node| node.to_string())))
            .expected(name_or_none(keys.node.map(|node| node.to_string()))));
    }
    match channel_spki {
        Some(spki) if spki == keys.node_key.spki_der() => {}
        None if keys.node.is_none() => {}
        Some(_) => return Err(Refusal::new(codes::VERIFY_CHANNEL, "a client certificate over another key")),
        None => return Err(Refusal::new(codes::VERIFY_CHANNEL, "no client certificate")),
    }
    let claims = evidence.signed_by(keys.node_key.key())?;
    certified(&claims, keys)?;
    let quote = quoted(&claims, &keys.ak)?;
    Ok(Authentic { claims, quote, keys: keys.clone() })
}

impl Authentic {
    /// The quoted PCRs.
    pub const fn pcrs(&self) -> &PcrValues {
        &self.claims.pcrs
    }

    /// The TPM's firmware version.
    pub const fn firmware_version(&self) -> u64 {
        self.quote.firmware_version
    }
}

/// The node key is the one that the AK certified, over the enrolment's nonce.
fn certified(claims: &NodeClaims, keys: &EnrolledKeys) -> Result<(), Refusal> {
    let refuse = |what: String| Refusal::new(codes::VERIFY_NODE_KEY, what).at("node key certification");
    if claims.certification_nonce != keys.certification_nonce {
        return Err(refuse("over another nonce than the enrolment's".to_owned()));
    }
    let attest = signed(&claims.node_key_certification, &keys.ak).map_err(|refusal| refuse(refusal.to_string()))?;
    let AttestBody::Certify { name, qualified_name } = &attest.body else {
        return Err(refuse("a quote".to_owned()).expected("a certification"));
    };
    if *name != keys.node_key.name() || *qualified_name != keys.node_key.qualified_name() {
        return Err(refuse(format!("of the key {}", hex::encode(name))).expected(hex::encode(keys.node_key.name())));
    }
    if attest.extra_data != certification_binding(&claims.certification_nonce, name) {
        return Err(refuse("bound to another nonce or key".to_owned()));
    }
    Ok(())
}

/// The quote is the AK's and covers exactly the PCR values of the evidence.
fn quoted(claims: &NodeClaims, ak: &AkPublic) -> Result<Attest, Refusal> {
    let quote = signed(&claims.quote, ak)?;
    let (selection, digest) = quote.quoted()?;
    if selection != claims.pcrs.selection() {
        return Err(Refusal::new(codes::VERIFY_SELECTION, format!("values of {}", claims.pcrs.selection()))
            .at("quote")
            .expected(format!("those quoted, {selection}")));
    }
    let found = claims.pcrs.digest();
    if digest != found {
        return Err(Refusal::new(codes::VERIFY_PCR_DIGEST, hex::encode(found))
            .at("PCR values")
            .expected(hex::encode(digest)));
    }
    Ok(quote)
}

/// An attestation whose signature is the AK's and which names the AK as its signer.
fn signed(signed: &Signed, ak: &AkPublic) -> Result<Attest, Refusal> {
    let signature = Signature::parse(&signed.signature)?.ecdsa_p256_sha256()?;
    // Over the bytes as received; only then are they parsed.
    ak.key()
        .verify(&signed.attest, &signature)
        .map_err(|_| Refusal::new(codes::VERIFY_QUOTE_SIGNATURE, "a signature by another key"))?;
    let attest = Attest::parse(&signed.attest)?;
    // The qualified name has the hierarchy in it: only a primary of the endorsement hierarchy,
    // whose reset counts and firmware version come clear, has this one.
    if attest.qualified_signer != ak.qualified_name() {
        return Err(Refusal::new(codes::VERIFY_QUOTE_SIGNER, hex::encode(&attest.qualified_signer))
            .expected(hex::encode(ak.qualified_name())));
    }
    Ok(attest)
}

fn name_or_none(name: Option<String>) -> String {
    name.unwrap_or_else(|| "no node".to_owned())
}
