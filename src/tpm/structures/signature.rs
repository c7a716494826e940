//! TPMT_SIGNATURE (Part 2, 11.3.4).

use super::public::HashAlgorithm;
use super::reader::Reader;
use crate::codes::{self, Refusal};

const RSASSA: u16 = 0x0014;
const RSAPSS: u16 = 0x0016;
const ECDSA: u16 = 0x0018;
/// The largest scalar: P-521's.
const SCALAR_LIMIT: usize = 66;

/// A TPM's signature; says nothing about what was signed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Signature {
    /// ECDSA.
    Ecdsa {
        /// The TPM_ALG_ID of the hash.
        hash: u16,
        /// Big-endian.
        r: Vec<u8>,
        /// Big-endian.
        s: Vec<u8>,
    },
    /// RSASSA-PKCS1-v1_5 or RSA-PSS: read, so that a refusal can say so; not accepted from our keys.
    Rsa {
        /// The TPM_ALG_ID of the scheme.
        scheme: u16,
        /// The TPM_ALG_ID of the hash.
        hash: u16,
        /// The signature.
        signature: Vec<u8>,
    },
}

impl Signature {
    /// Parses a TPMT_SIGNATURE.
    ///
    /// # Errors
    /// [`codes::TPM_STRUCTURE`] when it is malformed, of an unknown scheme, or bytes follow.
    pub fn parse(bytes: &[u8]) -> Result<Self, Refusal> {
        let mut reader = Reader::new(bytes, codes::TPM_STRUCTURE);
        let scheme = reader.u16("sigAlg")?;
        let hash = reader.u16("hash").and_then(|hash| match scheme {
            RSASSA | RSAPSS | ECDSA => Ok(hash),
            other => Err(Refusal::new(codes::TPM_STRUCTURE, format!("signature scheme {other:#06x}"))
                .at("byte 0")
                .expected("ECDSA, RSASSA or RSAPSS")),
        })?;
        let signature = if scheme == ECDSA {
            let r = reader.sized(SCALAR_LIMIT, "signatureR")?.to_vec();
            let s = reader.sized(SCALAR_LIMIT, "signatureS")?.to_vec();
            Self::Ecdsa { hash, r, s }
        } else {
            Self::Rsa { scheme, hash, signature: reader.sized(512, "sig")?.to_vec() }
        };
        if reader.left() > 0 {
            return Err(reader.refuse(format!("{} bytes follow the signature", reader.left())));
        }
        Ok(signature)
    }

    /// The signature, if it is ECDSA over SHA-256 with scalars of P-256.
    ///
    /// # Errors
    /// [`codes::VERIFY_QUOTE_HASH`] for another hash or scheme, [`codes::VERIFY_QUOTE_SIGNATURE`]
    /// for scalars no P-256 signature has.
    pub fn ecdsa_p256_sha256(&self) -> Result<p256::ecdsa::Signature, Refusal> {
        let (hash, r, s) = match self {
            Self::Ecdsa { hash, r, s } => (*hash, r, s),
            Self::Rsa { scheme, .. } => {
                return Err(Refusal::new(codes::VERIFY_QUOTE_HASH, format!("scheme {scheme:#06x}"))
                    .expected("ECDSA with SHA-256"));
            }
        };
        if hash != HashAlgorithm::Sha256.id() {
            return Err(
                Refusal::new(codes::VERIFY_QUOTE_HASH, format!("hash {hash:#06x}")).expected("ECDSA with SHA-256")
            );
        }
        let none = || Refusal::new(codes::VERIFY_QUOTE_SIGNATURE, "scalars outside P-256").at("TPMT_SIGNATURE");
        let (r, s) = (scalar(r).ok_or_else(none)?, scalar(s).ok_or_else(none)?);
        p256::ecdsa::Signature::from_scalars(r, s).map_err(|_| none())
    }

    /// The TPMT_SIGNATURE of an ECDSA-SHA256 signature on P-256: 72 bytes.
    pub fn ecdsa_sha256_bytes(signature: &p256::ecdsa::Signature) -> Vec<u8> {
        let (r, s) = signature.split_bytes();
        let mut bytes = Vec::with_capacity(72);
        bytes.extend_from_slice(&ECDSA.to_be_bytes());
        bytes.extend_from_slice(&HashAlgorithm::Sha256.id().to_be_bytes());
        for scalar in [r, s] {
            bytes.extend_from_slice(&32u16.to_be_bytes());
            bytes.extend_from_slice(&scalar);
        }
        bytes
    }
}

/// A scalar of at most 32 bytes, zeros put before it: TPMs may leave leading zeros out.
fn scalar(bytes: &[u8]) -> Option<[u8; 32]> {
    let mut scalar = [0; 32];
    let start = scalar.len().checked_sub(bytes.len())?;
    scalar.get_mut(start..)?.copy_from_slice(bytes);
    Some(scalar)
}
