//! A reference set as it travels: deterministic CBOR, by itself or signed by policy keys.
//!
//! Signed it is a COSE_Sign over the set, with a signature for each key: why not several COSE_Sign1
//! is argued in `references.cddl`.

use coset::{CborSerializable, cbor, iana};
use coset::{CoseSign, CoseSignature, HeaderBuilder, ProtectedHeader, SignatureContext, TaggedCborSerializable};
use p256::ecdsa::signature::{Signer, Verifier};
use p256::ecdsa::{Signature, SigningKey, VerifyingKey};
use p256::pkcs8::{DecodePublicKey, EncodePublicKey};
use sha2::{Digest, Sha256};

use super::ReferenceSet;
use super::check::refuse;
use crate::codes::{self, Refusal};
use crate::evidence::cbor::scan_items;

/// The largest document, in bytes: 16 MiB (a distribution's files are about 5 MB of digests).
pub const LIMIT: usize = 16 << 20;
/// The most signatures of a document.
const SIGNATURES_LIMIT: usize = 8;
/// The tag of COSE_Sign.
const TAG: u64 = 98;
/// How it begins: tag 98 in two bytes, then the array of four.
const SIGNED: [u8; 3] = [0xD8, 0x62, 0x84];
/// The items of the frame around the payload, which is one of them.
const FRAME_ITEMS: u32 = 64;
/// Header parameter `typ` (RFC 9596).
const TYP: i64 = 16;
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

    fn verifying(&self) -> Result<VerifyingKey, Refusal> {
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
        let envelope = if bytes.starts_with(&SIGNED) { Some(Envelope::decode(bytes)?) } else { None };
        let signers = match &envelope {
            Some(envelope) => envelope.verified(keys)?,
            None => Vec::new(),
        };
        let claimed: Vec<_> = envelope.iter().flat_map(|e| e.signatures.iter().map(|(kid, _)| *kid)).collect();
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
        let id = PolicyKey::of(key)?.id();
        let mut envelope = if self.bytes.starts_with(&SIGNED) {
            Envelope::decode(&self.bytes)?
        } else {
            Envelope { body: body_header(&id), payload: self.bytes.clone(), signatures: Vec::new() }
        };
        if envelope.signatures.iter().any(|(kid, _)| *kid == id) {
            return Err(Refusal::new(codes::VERIFY_REFERENCE_SIGNATURE, "it has a signature by this key already")
                .at(format!("key {}", hex::encode(id)))
                .expected("another key"));
        }
        if envelope.signatures.len() >= SIGNATURES_LIMIT {
            return Err(Refusal::new(codes::VERIFY_REFERENCE_SIGNATURE, "it has as many signatures as it may have")
                .expected(format!("at most {SIGNATURES_LIMIT}")));
        }
        let signature: Signature = key.sign(&envelope.signed_bytes(&id));
        envelope.signatures.push((id, signature));
        let bytes = envelope.encode();
        let digest = Sha256::digest(&bytes).into();
        let claimed = envelope.signatures.iter().map(|(kid, _)| *kid).collect();
        let signers = self.signers.iter().copied().chain([id]).collect();
        Ok(Self { set: self.set.clone(), bytes, digest, signers, claimed })
    }
}

/// A COSE_Sign of our form, nothing verified.
struct Envelope {
    body: ProtectedHeader,
    payload: Vec<u8>,
    /// In the order they were made: the author's first.
    signatures: Vec<([u8; 32], Signature)>,
}

impl Envelope {
    fn decode(bytes: &[u8]) -> Result<Self, Refusal> {
        let malformed = |what: String| refuse("the document", what);
        scan_items(bytes, Some(TAG), FRAME_ITEMS)
            .map_err(|fault| refuse(&format!("byte {}", fault.offset), fault.what))?;
        let sign = CoseSign::from_tagged_slice(bytes).map_err(|e| malformed(e.to_string()))?;
        let mut signatures = Vec::new();
        for signature in &sign.signatures {
            let kid = <[u8; 32]>::try_from(signature.protected.header.key_id.as_slice())
                .map_err(|_| malformed("a key id that hasn't 32 bytes".to_owned()))?;
            if signatures.iter().any(|(known, _)| *known == kid) {
                return Err(malformed("two signatures by one key".to_owned()).at(hex::encode(kid)));
            }
            let signature = Signature::from_slice(&signature.signature)
                .map_err(|_| malformed("a signature that isn't ES256's 64 bytes".to_owned()))?;
            signatures.push((kid, signature));
        }
        if !(1..=SIGNATURES_LIMIT).contains(&signatures.len()) {
            return Err(
                malformed(format!("{} signatures", signatures.len())).expected(format!("1 to {SIGNATURES_LIMIT}"))
            );
        }
        let author = signatures.first().map(|(kid, _)| *kid).unwrap_or_default();
        let payload = sign.payload.ok_or_else(|| malformed("no payload".to_owned()))?;
        let envelope = Self { body: body_header(&author), payload, signatures };
        // There is one right encoding of all this: other headers, or another author, show here.
        match envelope.encode() == bytes {
            true => Ok(envelope),
            false => Err(malformed(
                "headers other than kid, typ and ES256, or an author who isn't the first signer".to_owned(),
            )),
        }
    }

    fn encode(&self) -> Vec<u8> {
        let signature = |(kid, signature): &([u8; 32], Signature)| CoseSignature {
            protected: signer_header(kid),
            unprotected: coset::Header::default(),
            signature: signature.to_bytes().to_vec(),
        };
        let sign = CoseSign {
            protected: self.body.clone(),
            unprotected: coset::Header::default(),
            payload: Some(self.payload.clone()),
            signatures: self.signatures.iter().map(signature).collect(),
        };
        match sign.to_tagged_vec() {
            Ok(bytes) => bytes,
            // Byte strings, integers and text into a Vec have no way to fail.
            Err(error) => unreachable!("BUG: a COSE_Sign can't be encoded: {error}"),
        }
    }

    /// The Sig_structure of a signer (RFC 9052, 4.4).
    fn signed_bytes(&self, kid: &[u8; 32]) -> Vec<u8> {
        coset::sig_structure_data(
            SignatureContext::CoseSignature,
            self.body.clone(),
            Some(signer_header(kid)),
            &[],
            &self.payload,
        )
    }

    /// The keys among `keys` that signed.
    fn verified(&self, keys: &[PolicyKey]) -> Result<Vec<[u8; 32]>, Refusal> {
        let mut verified = Vec::new();
        for (kid, signature) in &self.signatures {
            let Some(key) = keys.iter().find(|key| key.id() == *kid) else { continue };
            key.verifying()?.verify(&self.signed_bytes(kid), signature).map_err(|_| {
                Refusal::new(codes::VERIFY_REFERENCE_SIGNATURE, "a signature that this key didn't make")
                    .at(format!("key {}", hex::encode(kid)))
            })?;
            verified.push(*kid);
        }
        Ok(verified)
    }
}

fn enough(signers: &[[u8; 32]], author: Option<&[u8; 32]>, threshold: usize) -> Result<(), Refusal> {
    let few = |found: String| {
        Refusal::new(codes::VERIFY_REFERENCE_SIGNATURE, found)
            .at("signatures")
            .expected(format!("those of {threshold} different policy keys, the author's first"))
    };
    match author {
        None => Err(few("none".to_owned())),
        Some(author) if !signers.contains(author) => Err(few(format!("the author {} is unknown", hex::encode(author)))),
        Some(_) if signers.len() < threshold => Err(few(format!("{} of known keys", signers.len()))),
        Some(_) => Ok(()),
    }
}

fn body_header(author: &[u8; 32]) -> ProtectedHeader {
    let header = HeaderBuilder::new()
        .key_id(author.to_vec())
        .value(TYP, cbor::value::Value::Text(MEDIA_TYPE.to_owned()))
        .build();
    protected(header)
}

fn signer_header(kid: &[u8; 32]) -> ProtectedHeader {
    protected(HeaderBuilder::new().algorithm(iana::Algorithm::ES256).key_id(kid.to_vec()).build())
}

fn protected(header: coset::Header) -> ProtectedHeader {
    ProtectedHeader { original_data: header.clone().to_vec().ok(), header }
}

fn unusable(what: String) -> Refusal {
    Refusal::new(codes::VERIFY_REFERENCE_SIGNATURE, what).at("policy key").expected("a P-256 key")
}
