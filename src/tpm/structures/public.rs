//! TPMT_PUBLIC (Part 2, 12.2.4) of RSA and elliptic-curve keys, and names.

use sha2::{Digest, Sha256, Sha384, Sha512};

use super::reader::Reader;
use crate::codes::{self, Refusal};

const ALG_RSA: u16 = 0x0001;
const ALG_NULL: u16 = 0x0010;
const ALG_ECC: u16 = 0x0023;
const ALG_AES: u16 = 0x0006;
const ALG_CFB: u16 = 0x0043;
const ALG_ECDAA: u16 = 0x001A;
const ALG_RSAES: u16 = 0x0015;
const CURVE_P256: u16 = 0x0003;
const CURVE_P384: u16 = 0x0004;
/// TPM_RH_ENDORSEMENT (Part 2, 7.4): a hierarchy's name is its handle.
const ENDORSEMENT: [u8; 4] = 0x4000_000B_u32.to_be_bytes();

/// TPMA_OBJECT (Part 2, 8.3).
pub mod attributes {
    /// The key can't be duplicated.
    pub const FIXED_TPM: u32 = 1 << 1;
    /// Its parent can't change.
    pub const FIXED_PARENT: u32 = 1 << 4;
    /// The TPM made its secret part.
    pub const SENSITIVE_DATA_ORIGIN: u32 = 1 << 5;
    /// Its authorization value (for ours: empty) suffices to use it.
    pub const USER_WITH_AUTH: u32 = 1 << 6;
    /// Administrative commands need its policy.
    pub const ADMIN_WITH_POLICY: u32 = 1 << 7;
    /// Failures don't count towards lockout: a power cut counts as one.
    pub const NO_DA: u32 = 1 << 10;
    /// Signs only what the TPM made, or decrypts only structures it knows.
    pub const RESTRICTED: u32 = 1 << 16;
    /// May decrypt.
    pub const DECRYPT: u32 = 1 << 17;
    /// May sign.
    pub const SIGN: u32 = 1 << 18;
}

/// A hash algorithm of names and schemes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HashAlgorithm {
    /// TPM_ALG_SHA256.
    Sha256,
    /// TPM_ALG_SHA384.
    Sha384,
    /// TPM_ALG_SHA512.
    Sha512,
}

impl HashAlgorithm {
    /// The TPM_ALG_ID (Part 2, 6.3).
    pub const fn id(self) -> u16 {
        match self {
            Self::Sha256 => 0x000B,
            Self::Sha384 => 0x000C,
            Self::Sha512 => 0x000D,
        }
    }

    /// The algorithm of this TPM_ALG_ID; SHA-1 isn't one that is accepted.
    pub const fn from_id(id: u16) -> Option<Self> {
        match id {
            0x000B => Some(Self::Sha256),
            0x000C => Some(Self::Sha384),
            0x000D => Some(Self::Sha512),
            _ => None,
        }
    }

    /// The digest of the concatenated parts.
    pub fn digest(self, parts: &[&[u8]]) -> Vec<u8> {
        fn all<H: Digest>(parts: &[&[u8]]) -> Vec<u8> {
            let mut hash = H::new();
            for part in parts {
                hash.update(part);
            }
            hash.finalize().to_vec()
        }
        match self {
            Self::Sha256 => all::<Sha256>(parts),
            Self::Sha384 => all::<Sha384>(parts),
            Self::Sha512 => all::<Sha512>(parts),
        }
    }
}

/// A public area, with the bytes it was read from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Public {
    bytes: Vec<u8>,
    /// The hash of the name.
    pub name_alg: HashAlgorithm,
    /// TPMA_OBJECT, see [`attributes`].
    pub attributes: u32,
    /// The policy that may use the key; empty for none.
    pub auth_policy: Vec<u8>,
    /// The symmetric cipher of a restricted decryption key.
    pub symmetric: Option<SymmetricKey>,
    /// The scheme and its hash; `None` when the key leaves them to the caller.
    pub scheme: Option<(u16, u16)>,
    /// The asymmetric key.
    pub kind: Kind,
}

/// AES-CFB of a restricted decryption key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SymmetricKey {
    /// 128 or 256.
    pub bits: u16,
}

/// The public key itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Kind {
    /// An RSA key.
    Rsa {
        /// The modulus' size in bits.
        bits: u16,
        /// The exponent; 65537 where the structure says 0.
        exponent: u32,
        /// Big-endian.
        modulus: Vec<u8>,
    },
    /// A point on P-256.
    P256 {
        /// Affine coordinates, 32 bytes each.
        x: [u8; 32],
        /// As `x`.
        y: [u8; 32],
    },
    /// A point on P-384.
    P384 {
        /// Affine coordinates, 48 bytes each.
        x: [u8; 48],
        /// As `x`.
        y: [u8; 48],
    },
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Rsa { bits, .. } => write!(f, "RSA-{bits}"),
            Self::P256 { .. } => f.write_str("P-256"),
            Self::P384 { .. } => f.write_str("P-384"),
        }
    }
}

impl Public {
    /// Parses a TPMT_PUBLIC of an RSA, P-256 or P-384 key.
    ///
    /// # Errors
    /// [`codes::TPM_STRUCTURE`], at the byte.
    pub fn parse(bytes: &[u8]) -> Result<Self, Refusal> {
        let mut reader = Reader::new(bytes, codes::TPM_STRUCTURE);
        let kind = reader.u16("type")?;
        if kind != ALG_RSA && kind != ALG_ECC {
            return Err(Refusal::new(codes::TPM_STRUCTURE, format!("key type {kind:#06x}"))
                .at("byte 0")
                .expected("RSA or ECC"));
        }
        let at = reader.clone();
        let name_alg = reader.u16("nameAlg")?;
        let name_alg = HashAlgorithm::from_id(name_alg)
            .ok_or_else(|| at.refuse(format!("nameAlg {name_alg:#06x}")).expected("SHA-256, SHA-384 or SHA-512"))?;
        let attributes = reader.u32("objectAttributes")?;
        let auth_policy = reader.sized(64, "authPolicy")?.to_vec();
        let symmetric = symmetric(&mut reader)?;
        let scheme = scheme(&mut reader)?;
        let kind = if kind == ALG_RSA { rsa(&mut reader)? } else { ecc(&mut reader)? };
        if reader.left() > 0 {
            return Err(reader.refuse(format!("{} bytes follow the public area", reader.left())));
        }
        Ok(Self { bytes: bytes.to_vec(), name_alg, attributes, auth_policy, symmetric, scheme, kind })
    }

    /// Parses a TPM2B_PUBLIC: a UINT16 size and the TPMT_PUBLIC.
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub fn parse_sized(bytes: &[u8]) -> Result<Self, Refusal> {
        let mut reader = Reader::new(bytes, codes::TPM_STRUCTURE);
        let public = reader.sized(usize::from(u16::MAX), "TPM2B_PUBLIC")?;
        if reader.left() > 0 {
            return Err(reader.refuse(format!("{} bytes follow the TPM2B_PUBLIC", reader.left())));
        }
        Self::parse(public)
    }

    /// The TPMT_PUBLIC, as received.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The name: nameAlg and the digest of the TPMT_PUBLIC (Part 1, 16 "Names").
    pub fn name(&self) -> Vec<u8> {
        let mut name = self.name_alg.id().to_be_bytes().to_vec();
        name.extend(self.name_alg.digest(&[&self.bytes]));
        name
    }

    /// The qualified name of this key as a primary of the endorsement hierarchy, where a key's
    /// ancestors are the hierarchy alone.
    pub fn endorsement_qualified_name(&self) -> Vec<u8> {
        qualified_name(self.name_alg, &self.name())
    }

    /// DER of the SubjectPublicKeyInfo.
    ///
    /// # Errors
    /// [`codes::TPM_STRUCTURE`] when the key is none: a point off its curve, an empty modulus.
    pub fn spki_der(&self) -> Result<Vec<u8>, Refusal> {
        spki::encode(&self.kind)
    }

    /// The key as a P-256 verifying key.
    ///
    /// # Errors
    /// [`codes::TPM_STRUCTURE`] when it is another kind of key or its point isn't on the curve.
    pub fn p256_key(&self) -> Result<p256::ecdsa::VerifyingKey, Refusal> {
        let Kind::P256 { x, y } = &self.kind else {
            return Err(Refusal::new(codes::TPM_STRUCTURE, "another kind of key").expected("ECC P-256"));
        };
        p256::ecdsa::VerifyingKey::from_sec1_bytes(&spki::uncompressed(x, y))
            .map_err(|_| Refusal::new(codes::TPM_STRUCTURE, "a point that is not on P-256").at("unique"))
    }
}

/// The qualified name of a primary of the endorsement hierarchy with this name
/// (Part 1, 16: `nameAlg ‖ H(QN of the parent ‖ name)`, a hierarchy's QN being its handle).
pub fn qualified_name(name_alg: HashAlgorithm, name: &[u8]) -> Vec<u8> {
    let mut qualified = name_alg.id().to_be_bytes().to_vec();
    qualified.extend(name_alg.digest(&[&ENDORSEMENT, name]));
    qualified
}

/// TPMT_SYM_DEF_OBJECT+ (Part 2, 11.1.7).
fn symmetric(reader: &mut Reader<'_>) -> Result<Option<SymmetricKey>, Refusal> {
    let at = reader.clone();
    match reader.u16("symmetric")? {
        ALG_NULL => Ok(None),
        ALG_AES => {
            let (bits, mode) = (reader.u16("keyBits")?, reader.u16("mode")?);
            if (bits != 128 && bits != 256) || mode != ALG_CFB {
                return Err(at.refuse(format!("AES-{bits}, mode {mode:#06x}")).expected("AES-128 or AES-256 in CFB"));
            }
            Ok(Some(SymmetricKey { bits }))
        }
        other => Err(at.refuse(format!("symmetric algorithm {other:#06x}")).expected("AES or none")),
    }
}

/// TPMT_RSA_SCHEME+ and TPMT_ECC_SCHEME+ (Part 2, 11.2.4.2 and 11.2.5.6).
fn scheme(reader: &mut Reader<'_>) -> Result<Option<(u16, u16)>, Refusal> {
    match reader.u16("scheme")? {
        ALG_NULL => Ok(None),
        ALG_RSAES => Ok(Some((ALG_RSAES, 0))),
        scheme => {
            let hash = reader.u16("scheme's hash")?;
            if scheme == ALG_ECDAA {
                reader.u16("scheme's count")?;
            }
            Ok(Some((scheme, hash)))
        }
    }
}

fn rsa(reader: &mut Reader<'_>) -> Result<Kind, Refusal> {
    let at = reader.clone();
    let bits = reader.u16("keyBits")?;
    if ![2048, 3072, 4096].contains(&bits) {
        return Err(at.refuse(format!("RSA of {bits} bits")).expected("2048, 3072 or 4096"));
    }
    let exponent = match reader.u32("exponent")? {
        0 => 65_537,
        other => other,
    };
    let at = reader.clone();
    let modulus = reader.sized(usize::from(bits / 8), "modulus")?.to_vec();
    if modulus.len() != usize::from(bits / 8) {
        return Err(at.refuse(format!("a modulus of {} bytes", modulus.len())).expected(format!("{}", bits / 8)));
    }
    Ok(Kind::Rsa { bits, exponent, modulus })
}

fn ecc(reader: &mut Reader<'_>) -> Result<Kind, Refusal> {
    let at = reader.clone();
    let curve = reader.u16("curveID")?;
    let kdf_at = reader.clone();
    let kdf = reader.u16("kdf")?;
    if kdf != ALG_NULL {
        return Err(kdf_at.refuse(format!("key derivation {kdf:#06x}")).expected("none"));
    }
    match curve {
        CURVE_P256 => Ok(Kind::P256 { x: coordinate(reader, "x")?, y: coordinate(reader, "y")? }),
        CURVE_P384 => Ok(Kind::P384 { x: coordinate(reader, "x")?, y: coordinate(reader, "y")? }),
        other => Err(at.refuse(format!("curve {other:#06x}")).expected("P-256 or P-384")),
    }
}

/// A TPM2B_ECC_PARAMETER of at most `N` bytes, zeros put before it.
fn coordinate<const N: usize>(reader: &mut Reader<'_>, what: &str) -> Result<[u8; N], Refusal> {
    let bytes = reader.sized(N, what)?;
    let mut padded = [0; N];
    if let Some(end) = N.checked_sub(bytes.len()).and_then(|start| padded.get_mut(start..)) {
        end.copy_from_slice(bytes);
    }
    Ok(padded)
}

/// SubjectPublicKeyInfo (RFC 5280, 4.1.2.7).
mod spki {
    use der::asn1::{AnyRef, BitStringRef, ObjectIdentifier, UintRef};
    use der::{Encode, Sequence};
    use x509_cert::spki::{AlgorithmIdentifierRef, SubjectPublicKeyInfoRef};

    use super::Kind;
    use crate::codes::{self, Refusal};

    const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
    const EC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
    const P256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
    const P384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.34");

    /// RSAPublicKey (RFC 8017, A.1.1).
    #[derive(Sequence)]
    struct RsaPublicKey<'a> {
        modulus: UintRef<'a>,
        exponent: UintRef<'a>,
    }

    pub(super) fn encode(kind: &Kind) -> Result<Vec<u8>, Refusal> {
        let refuse = |e: der::Error| Refusal::new(codes::TPM_STRUCTURE, format!("no public key: {e}")).at("unique");
        let (oid, parameters, key) = match kind {
            Kind::Rsa { exponent, modulus, .. } => (RSA, AnyRef::NULL, rsa(*exponent, modulus).map_err(refuse)?),
            Kind::P256 { x, y } => (EC, AnyRef::from(&P256), uncompressed(x, y)),
            Kind::P384 { x, y } => (EC, AnyRef::from(&P384), uncompressed(x, y)),
        };
        SubjectPublicKeyInfoRef {
            algorithm: AlgorithmIdentifierRef { oid, parameters: Some(parameters) },
            subject_public_key: BitStringRef::from_bytes(&key).map_err(refuse)?,
        }
        .to_der()
        .map_err(refuse)
    }

    /// The uncompressed point (SEC 1, 2.3.3).
    pub(super) fn uncompressed(x: &[u8], y: &[u8]) -> Vec<u8> {
        [&[4][..], x, y].concat()
    }

    fn rsa(exponent: u32, modulus: &[u8]) -> Result<Vec<u8>, der::Error> {
        RsaPublicKey { modulus: UintRef::new(modulus)?, exponent: UintRef::new(&exponent.to_be_bytes())? }.to_der()
    }
}
