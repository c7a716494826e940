//! The COSE_Sign around what policy keys approve: a payload of a named kind, a signature for each key.

use coset::{CborSerializable, cbor, iana};
use coset::{CoseSign, CoseSignature, HeaderBuilder, ProtectedHeader, SignatureContext, TaggedCborSerializable};
use p256::ecdsa::signature::{Signer, Verifier};
use p256::ecdsa::{Signature, SigningKey};

use super::PolicyKey;
use super::check::refuse;
use crate::codes::{self, Refusal};
use crate::evidence::cbor::scan_items;

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

/// A COSE_Sign of our form, nothing verified.
#[derive(Clone, Debug)]
pub(crate) struct Envelope {
    /// What the payload is, as its media type: a signature over one kind is none over another.
    media_type: &'static str,
    body: ProtectedHeader,
    /// What was signed.
    pub(crate) payload: Vec<u8>,
    /// In the order they were made: the author's first.
    signatures: Vec<([u8; 32], Signature)>,
}

impl Envelope {
    /// Whether bytes begin as one does.
    pub(crate) fn is_one(bytes: &[u8]) -> bool {
        bytes.starts_with(&SIGNED)
    }

    /// Without signatures yet: the first to sign is its author.
    pub(crate) fn unsigned(media_type: &'static str, payload: Vec<u8>) -> Self {
        Self { media_type, body: body_header(media_type, &[0; 32]), payload, signatures: Vec::new() }
    }

    /// Reads one over a payload of this media type.
    ///
    /// # Errors
    /// [`codes::VERIFY_REFERENCE_MALFORMED`].
    pub(crate) fn decode(media_type: &'static str, bytes: &[u8]) -> Result<Self, Refusal> {
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
        let envelope = Self { media_type, body: body_header(media_type, &author), payload, signatures };
        // There is one right encoding of all this: other headers, or another author, show here.
        match envelope.encode() == bytes {
            true => Ok(envelope),
            false => Err(malformed(
                "headers other than kid, typ and ES256, or an author who isn't the first signer".to_owned(),
            )),
        }
    }

    /// The key ids as stated, the author's first.
    pub(crate) fn claimed(&self) -> Vec<[u8; 32]> {
        self.signatures.iter().map(|(kid, _)| *kid).collect()
    }

    /// Adds a signature by `key`: the author's if there is none yet.
    ///
    /// # Errors
    /// [`codes::VERIFY_REFERENCE_SIGNATURE`] when it has one of this key, or as many as it may have.
    pub(crate) fn sign(&mut self, key: &SigningKey) -> Result<[u8; 32], Refusal> {
        let id = PolicyKey::of(key)?.id();
        if self.signatures.is_empty() {
            self.body = body_header(self.media_type, &id);
        }
        if self.signatures.iter().any(|(kid, _)| *kid == id) {
            return Err(Refusal::new(codes::VERIFY_REFERENCE_SIGNATURE, "it has a signature by this key already")
                .at(format!("key {}", hex::encode(id)))
                .expected("another key"));
        }
        if self.signatures.len() >= SIGNATURES_LIMIT {
            return Err(Refusal::new(codes::VERIFY_REFERENCE_SIGNATURE, "it has as many signatures as it may have")
                .expected(format!("at most {SIGNATURES_LIMIT}")));
        }
        let signature: Signature = key.sign(&self.signed_bytes(&id));
        self.signatures.push((id, signature));
        Ok(id)
    }

    /// The keys that signed, among `keys`; at least `threshold` different ones, the author's among them.
    ///
    /// # Errors
    /// [`codes::VERIFY_REFERENCE_SIGNATURE`].
    #[cfg(feature = "control-plane")]
    pub(crate) fn approved(&self, keys: &[PolicyKey], threshold: usize) -> Result<Vec<[u8; 32]>, Refusal> {
        let signers = self.verified(keys)?;
        enough(&signers, self.signatures.first().map(|(kid, _)| kid), threshold.max(1))?;
        Ok(signers)
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
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
    pub(crate) fn verified(&self, keys: &[PolicyKey]) -> Result<Vec<[u8; 32]>, Refusal> {
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

pub(crate) fn enough(signers: &[[u8; 32]], author: Option<&[u8; 32]>, threshold: usize) -> Result<(), Refusal> {
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

fn body_header(media_type: &str, author: &[u8; 32]) -> ProtectedHeader {
    let header = HeaderBuilder::new()
        .key_id(author.to_vec())
        .value(TYP, cbor::value::Value::Text(media_type.to_owned()))
        .build();
    protected(header)
}

fn signer_header(kid: &[u8; 32]) -> ProtectedHeader {
    protected(HeaderBuilder::new().algorithm(iana::Algorithm::ES256).key_id(kid.to_vec()).build())
}

fn protected(header: coset::Header) -> ProtectedHeader {
    ProtectedHeader { original_data: header.clone().to_vec().ok(), header }
}
