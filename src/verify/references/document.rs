//! A reference set as it travels: deterministic CBOR, by itself or signed by policy keys.
//!
//! Signed it is a COSE_Sign over the set, with a signature for each key: why not several COSE_Sign1
//! is argued in `references.cddl`.

use p256::ecdsa::{SigningKey, VerifyingKey};
use p256::pkcs8::{DecodePublicKey, EncodePublicKey};
use sha2::{Digest, Sha256};

use super::ReferenceSet;
use super::check::refuse;
use super::envelope::{Envelope, enough};
use crate::codes::{self, Refusal};

/// The largest document, in bytes: 16 MiB (a distribution's files are about 5 MB of digests).
pub const LIMIT: usize = 16 << 20;
/// The set's media type, in the tree of unregistered ones: no lease or evidence says that.
const MEDIA_TYPE: &str = "application/x.leasehold-references+cbor";

/// The public half of the key that approves reference sets: P-256.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PolicyKey {
    /// SubjectPublicKeyInfo, DER.
    pub spki: Vec<u8>,
}

/// A set with the exact bytes it was read from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Document {
    /// What it says.
    pub set: ReferenceSet,
    /// The bytes: `tagged COSE_Sign` over the CBOR of the set; or that CBOR itself, unsigned.
    pub bytes: Vec<u8>,
    /// SHA-256 of the bytes: what leases name.
    pub digest: [u8; 32],
    /// The `kid` (SHA-256 of the key's SubjectPublicKeyInfo) of each signature that was verified.
    pub signers: Vec<[u8; 32]>,
    /// The `kid` of each signature as the document states it, the author's first; empty if it has none.
    /// Without the keys to verify them, these are claims.
    pub claimed: Vec<[u8; 32]>,
}

impl PolicyKey {
    /// A key from its SubjectPublicKeyInfo in DER.
    ///
    /// # Errors
    /// [`codes::VERIFY_REFERENCE_SIGNATURE`] for anything but a P-256 key.
    pub fn from_spki(spki: &[u8]) -> Result<Self, Refusal> {
        let key = Self { spki: spki.to_vec() };
        key.verifying().map(|_| key)
    }

    /// A key from its SubjectPublicKeyInfo in PEM.
    ///
    /// # Errors
    /// As [`Self::from_spki`].
    pub fn from_pem(pem: &str) -> Result<Self, Refusal> {
        let key = VerifyingKey::from_public_key_pem(pem).map_err(|e| unusable(e.to_string()))?;
        Self::of_public(&key)
    }

    /// The public half of a signing key.
    ///
    /// # Errors
    /// As [`Self::from_spki`].
    pub fn of(key: &SigningKey) -> Result<Self, Refusal> {
        Self::of_public(key.verifying_key())
    }

    fn of_public(key: &VerifyingKey) -> Result<Self, Refusal> {
        let spki = key.to_public_key_der().map_err(|e| unusable(e.to_string()))?;
        Ok(Self { spki: spki.as_bytes().to_vec() })
    }

    /// Its `kid`: SHA-256 of the SubjectPublicKeyInfo.
    pub fn id(&self) -> [u8; 32] {
        Sha256::digest(&self.spki).into()
    }

    pub(super) fn verifying(&self) -> Result<VerifyingKey, Refusal> {
        VerifyingKey::from_public_key_der(&self.spki).map_err(|e| unusable(e.to_string()))
    }
}

impl Document {
    /// Reads a document. With `keys`, it must be signed by at least `threshold` different ones of
    /// them, the author among them: an author's approval of its own set counts once.
    ///
    /// A signature by another key neither counts nor hurts (keys come and go); one that a known key
    /// did not make refuses the whole document. Without `keys` nothing is said of signatures.
    ///
    /// # Errors
    /// [`codes::VERIFY_REFERENCE_SIGNATURE`], [`codes::VERIFY_REFERENCE_MALFORMED`].
    pub fn read(bytes: &[u8], keys: &[PolicyKey], threshold: usize) -> Result<Self, Refusal> {
        if bytes.len() > LIMIT {
            return Err(refuse("the document", format!("{} bytes", bytes.len())).expected(format!("at most {LIMIT}")));
        }
        let envelope = if Envelope::is_one(bytes) { Some(Envelope::decode(MEDIA_TYPE, bytes)?) } else { None };
        let signers = match &envelope {
            Some(envelope) => envelope.verified(keys)?,
            None => Vec::new(),
        };
        let claimed = envelope.as_ref().map(Envelope::claimed).unwrap_or_default();
        if !keys.is_empty() {
            enough(&signers, claimed.first(), threshold.max(1))?;
        }
        // Only what the keys approved is decoded.
        let set = ReferenceSet::from_cbor(envelope.as_ref().map_or(bytes, |envelope| &envelope.payload))?;
        Ok(Self { set, bytes: bytes.to_vec(), digest: Sha256::digest(bytes).into(), signers, claimed })
    }

    /// An unsigned document of `set`.
    ///
    /// # Errors
    /// [`codes::VERIFY_REFERENCE_MALFORMED`]: the set doesn't keep to its bounds.
    pub fn unsigned(set: ReferenceSet) -> Result<Self, Refusal> {
        let set = set.checked()?;
        let bytes = set.to_cbor();
        if bytes.len() > LIMIT {
            return Err(refuse("the set", format!("{} bytes", bytes.len())).expected(format!("at most {LIMIT}")));
        }
        let digest = Sha256::digest(&bytes).into();
        Ok(Self { set, bytes, digest, signers: Vec::new(), claimed: Vec::new() })
    }

    /// The document with a further signature, by `key`: the author's if it has none yet.
    ///
    /// # Errors
    /// [`codes::VERIFY_REFERENCE_SIGNATURE`] when it has one of this key, or as many as it may have.
    pub fn signed_by(&self, key: &SigningKey) -> Result<Self, Refusal> {
        let mut envelope = match Envelope::is_one(&self.bytes) {
            true => Envelope::decode(MEDIA_TYPE, &self.bytes)?,
            false => Envelope::unsigned(MEDIA_TYPE, self.bytes.clone()),
        };
        let id = envelope.sign(key)?;
        let bytes = envelope.encode();
        let digest = Sha256::digest(&bytes).into();
        let claimed = envelope.claimed();
        let signers = self.signers.iter().copied().chain([id]).collect();
        Ok(Self { set: self.set.clone(), bytes, digest, signers, claimed })
    }
}

fn unusable(what: String) -> Refusal {
    Refusal::new(codes::VERIFY_REFERENCE_SIGNATURE, what).at("policy key").expected("a P-256 key")
}
