//! Sessions salted to the pinned EK, and the anchor that ties the standing one to reset counts.
//!
//! The standing session proves that a PCR reading comes from the TPM that holds the pinned EK:
//! only it could decrypt the salt. A TPM Reset kills the session. What the session doesn't know is
//! how often the TPM was reset before it began; the attestation key says that in a quote right
//! after its start, so that reset counts and readings are of one life of the TPM.

use p256::ecdsa::signature::Verifier;
use p256::ecdsa::{Signature as EcdsaSignature, VerifyingKey};
use tss_esapi::attributes::SessionAttributesBuilder;
use tss_esapi::constants::SessionType;
use tss_esapi::handles::KeyHandle;
use tss_esapi::interface_types::algorithm::HashingAlgorithm;
use tss_esapi::interface_types::session_handles::AuthSession;
use tss_esapi::structures::{
    Attest, AttestInfo, Data, HashScheme, PcrSelectionList, PcrSlot, Public, Signature, SignatureScheme,
    SymmetricDefinition,
};
use tss_esapi::traits::Marshall;

use super::connection::{Connection, NONE, PASSWORD};
use super::words::Fault;
use super::{Bank, PcrSelection, ResetCounts, Signed, templates};
use crate::secret;

/// ECDSA with SHA-256: the only scheme of our keys.
pub(super) const SCHEME: SignatureScheme =
    SignatureScheme::EcDsa { hash_scheme: HashScheme::new(HashingAlgorithm::Sha256) };

/// The purpose of a session decides its attributes (Part 2, 8.4).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Purpose {
    /// The standing session: its HMAC covers the answers of commands that need no authorisation.
    Audit,
    /// A policy session that also encrypts the first parameter both ways.
    Secret,
    /// Authorises with the empty value and encrypts the command's first parameter.
    SecretIn,
    /// Authorises with the empty value and encrypts the answer's first parameter.
    SecretOut,
}

/// Starts a session salted to `key`, whose name the caller has compared with the pinned one.
pub(super) fn start(
    connection: &mut Connection,
    key: KeyHandle,
    purpose: Purpose,
    hash: HashingAlgorithm,
) -> Result<AuthSession, Fault> {
    let kind = match purpose {
        Purpose::Audit | Purpose::SecretIn | Purpose::SecretOut => SessionType::Hmac,
        Purpose::Secret => SessionType::Policy,
    };
    let session = connection
        .call("TPM2_StartAuthSession", NONE, |context| {
            context.start_auth_session(Some(key), None, None, kind, SymmetricDefinition::AES_128_CFB, hash)
        })?
        .ok_or_else(|| Fault::lost("TPM2_StartAuthSession answered without a session"))?;
    let (attributes, mask) = match purpose {
        Purpose::Audit => SessionAttributesBuilder::new().with_continue_session(true).with_audit(true),
        Purpose::Secret => {
            SessionAttributesBuilder::new().with_continue_session(true).with_decrypt(true).with_encrypt(true)
        }
        Purpose::SecretIn => SessionAttributesBuilder::new().with_continue_session(true).with_decrypt(true),
        Purpose::SecretOut => SessionAttributesBuilder::new().with_continue_session(true).with_encrypt(true),
    }
    .build();
    connection
        .call("Esys_TRSess_SetAttributes", NONE, |context| context.tr_sess_set_attributes(session, attributes, mask))?;
    Ok(session)
}

/// Has the attestation key sign the reset counts over a fresh nonce, and checks the signature.
pub(super) fn anchor(connection: &mut Connection, ak: KeyHandle, ak_key: &VerifyingKey) -> Result<ResetCounts, Fault> {
    let nonce = secret::random::<32>().map_err(|e| Fault::lost(e.to_string()))?;
    // Any selection would do: only the clock is wanted. A TPM without this bank quotes nothing of it.
    let selection = selection_list(Bank::Sha256, [0])?;
    let Quoted { attest, signature, signed } = quote(connection, ak, selection, nonce)?;
    let forged = || Fault::lost("the reset counts are not signed by the attestation key");
    let signature = ecdsa_bytes(&signature).ok_or_else(forged)?;
    ak_key.verify(&signed.attest, &signature).map_err(|_| forged())?;
    if !matches!(attest.attested(), AttestInfo::Quote { .. }) || attest.extra_data().value() != nonce {
        return Err(forged());
    }
    let clock = attest.clock_info();
    Ok(ResetCounts { reset: clock.reset_count(), restart: clock.restart_count() })
}

/// A quote, parsed and as bytes.
pub(super) struct Quoted {
    pub attest: Attest,
    pub signature: Signature,
    pub signed: Signed,
}

/// One TPM2_Quote.
pub(super) fn quote(
    connection: &mut Connection,
    ak: KeyHandle,
    selection: PcrSelectionList,
    qualifying_data: [u8; 32],
) -> Result<Quoted, Fault> {
    let data = Data::try_from(qualifying_data.as_slice()).map_err(|e| Fault::refused("TPM2_Quote", e.to_string()))?;
    let (attest, signature) = connection
        .call("TPM2_Quote", PASSWORD, |context| context.quote(ak, data.clone(), SCHEME, selection.clone()))?;
    let signed = encode("TPM2_Quote", &attest, &signature)?;
    Ok(Quoted { attest, signature, signed })
}

/// The bytes of an attestation and its signature. The Rust layer hands them out parsed only; the
/// encoding is canonical, and a difference would fail every signature check.
pub(super) fn encode(command: &str, attest: &Attest, signature: &Signature) -> Result<Signed, Fault> {
    let unreadable = |e: tss_esapi::Error| Fault::lost(format!("the answer to {command} can't be encoded: {e}"));
    Ok(Signed { attest: attest.marshall().map_err(unreadable)?, signature: signature.marshall().map_err(unreadable)? })
}

/// One bank and its PCRs as libtss2 wants them.
pub(super) fn selection_list(bank: Bank, pcrs: impl IntoIterator<Item = u8>) -> Result<PcrSelectionList, Fault> {
    let refuse = |e: tss_esapi::Error| Fault::refused("TPM2_PCR_Read", e.to_string());
    let slots = pcrs
        .into_iter()
        .map(|pcr| PcrSlot::try_from(1u32.checked_shl(u32::from(pcr)).unwrap_or(0)))
        .collect::<Result<Vec<_>, _>>()
        .map_err(refuse)?;
    PcrSelectionList::builder().with_selection(hash_of(bank), &slots).build().map_err(refuse)
}

/// A selection as libtss2 wants it.
pub(super) fn selected(selection: PcrSelection) -> Result<PcrSelectionList, Fault> {
    selection_list(selection.bank(), selection.pcrs())
}

/// A bank's hash in libtss2's words.
pub(super) const fn hash_of(bank: Bank) -> HashingAlgorithm {
    match bank {
        Bank::Sha256 => HashingAlgorithm::Sha256,
        Bank::Sha384 => HashingAlgorithm::Sha384,
        Bank::Sha512 => HashingAlgorithm::Sha512,
    }
}

/// An ECDSA P-256 signature of a TPM, its scalars padded to 32 bytes: some TPMs drop leading zeros.
pub(super) fn ecdsa_bytes(signature: &Signature) -> Option<EcdsaSignature> {
    let Signature::EcDsa(ecdsa) = signature else { return None };
    if ecdsa.hashing_algorithm() != HashingAlgorithm::Sha256 {
        return None;
    }
    let mut bytes = Vec::with_capacity(64);
    for scalar in [ecdsa.signature_r().value(), ecdsa.signature_s().value()] {
        bytes.resize(bytes.len() + 32usize.checked_sub(scalar.len())?, 0);
        bytes.extend_from_slice(scalar);
    }
    EcdsaSignature::from_slice(&bytes).ok()
}

/// The P-256 key of a public area.
pub(super) fn verifying_key(public: &Public) -> Option<VerifyingKey> {
    VerifyingKey::from_sec1_bytes(&templates::key_bytes(public)?).ok()
}
