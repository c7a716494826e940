//! COSE_Sign1 (RFC 9052, 4.2) with ES256, in the one form that evidence and leases have.

use coset::{CborSerializable, CoseSign1, HeaderBuilder, SignatureContext, TaggedCborSerializable};
use coset::{cbor, iana};
use p256::ecdsa::signature::Verifier;
use p256::ecdsa::{Signature, VerifyingKey};
use sha2::{Digest, Sha256};

use super::cbor::{Fault, FaultKind, scan};

/// The tag of COSE_Sign1.
const TAG: u64 = 18;
/// Header parameter `typ` (RFC 9596).
const TYP: i64 = 16;
/// The media type of an EAT in CWT form (RFC 9782).
const MEDIA_TYPE: &str = "application/eat+cwt";

/// A payload that waits for its signature.
#[derive(Clone, PartialEq, Debug)]
pub struct Unsigned {
    protected: coset::ProtectedHeader,
    payload: Vec<u8>,
}

impl Unsigned {
    /// `payload` under a protected header of `alg`, `typ` and, if given, `kid`.
    pub fn new(payload: Vec<u8>, key_id: Option<&[u8; 32]>) -> Self {
        Self { protected: protected(key_id), payload }
    }

    /// SHA-256 of the Sig_structure (RFC 9052, 4.4): what the key signs.
    pub fn digest(&self) -> [u8; 32] {
        Sha256::digest(signed_bytes(&self.protected, &self.payload)).into()
    }

    /// The tagged COSE_Sign1.
    pub fn finish(self, signature: Signature) -> Vec<u8> {
        let sign1 = CoseSign1 {
            protected: self.protected,
            unprotected: coset::Header::default(),
            payload: Some(self.payload),
            signature: signature.to_bytes().to_vec(),
        };
        match sign1.to_tagged_vec() {
            Ok(bytes) => bytes,
            // Three byte strings and an empty map into a Vec have no way to fail.
            Err(error) => unreachable!("BUG: a COSE_Sign1 can't be encoded: {error}"),
        }
    }
}

/// A COSE_Sign1 of our form, its signature not verified yet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Unverified {
    signed: Vec<u8>,
    payload: Vec<u8>,
    signature: Signature,
    key_id: Option<[u8; 32]>,
}

impl Unverified {
    /// Decodes a tagged COSE_Sign1 whose protected header has exactly `alg` ES256, `typ` and, when
    /// `with_key_id`, a `kid` of 32 bytes; whose unprotected header is empty; whose payload is
    /// deterministic CBOR.
    ///
    /// # Errors
    /// The first fault; offsets in the payload count from the payload's start.
    pub fn decode(bytes: &[u8], with_key_id: bool) -> Result<Self, Fault> {
        let malformed = |what: String| Fault { kind: FaultKind::Malformed, offset: 0, what };
        scan(bytes, Some(TAG))?;
        let sign1 = CoseSign1::from_tagged_slice(bytes).map_err(|e| malformed(e.to_string()))?;
        if sign1.unprotected != coset::Header::default() {
            return Err(malformed("unprotected header parameters".to_owned()));
        }
        let key_id = if with_key_id {
            let id = <[u8; 32]>::try_from(sign1.protected.header.key_id.as_slice());
            Some(id.map_err(|_| malformed("a key id that hasn't 32 bytes".to_owned()))?)
        } else {
            None
        };
        // The bytes as received are compared, not their meaning: there is one right encoding.
        let header = sign1.protected.original_data.as_deref().unwrap_or_default();
        if header != header_bytes(key_id.as_ref()) {
            return Err(malformed("a protected header other than alg ES256 and typ".to_owned()));
        }
        let payload = sign1.payload.ok_or_else(|| malformed("no payload".to_owned()))?;
        scan(&payload, None).map_err(|fault| Fault { what: format!("payload: {}", fault.what), ..fault })?;
        let signature = Signature::from_slice(&sign1.signature)
            .map_err(|_| malformed("a signature that isn't ES256's 64 bytes".to_owned()))?;
        Ok(Self { signed: signed_bytes(&sign1.protected, &payload), payload, signature, key_id })
    }

    /// The payload. Whoever made it: the signature isn't verified.
    pub fn payload(&self) -> &[u8] {
        &self.payload
    }

    /// The `kid` of the protected header.
    pub const fn key_id(&self) -> Option<&[u8; 32]> {
        self.key_id.as_ref()
    }

    /// Whether `key` signed the bytes as they were received.
    #[must_use]
    pub fn signed_by(&self, key: &VerifyingKey) -> bool {
        key.verify(&self.signed, &self.signature).is_ok()
    }
}

fn protected(key_id: Option<&[u8; 32]>) -> coset::ProtectedHeader {
    let builder = HeaderBuilder::new()
        .algorithm(iana::Algorithm::ES256)
        .value(TYP, cbor::value::Value::Text(MEDIA_TYPE.to_owned()));
    let header = match key_id {
        Some(id) => builder.key_id(id.to_vec()),
        None => builder,
    };
    coset::ProtectedHeader { original_data: None, header: header.build() }
}

fn header_bytes(key_id: Option<&[u8; 32]>) -> Vec<u8> {
    match protected(key_id).header.to_vec() {
        Ok(bytes) => bytes,
        // Integers, text and bytes into a Vec have no way to fail.
        Err(error) => unreachable!("BUG: a COSE header can't be encoded: {error}"),
    }
}

fn signed_bytes(protected: &coset::ProtectedHeader, payload: &[u8]) -> Vec<u8> {
    coset::sig_structure_data(SignatureContext::CoseSign1, protected.clone(), None, &[], payload)
}
