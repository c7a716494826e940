//! A reference set as it travels: deterministic CBOR, signed by the policy key or not; and as people
//! write it: TOML.

use super::ReferenceSet;
use crate::codes::Refusal;

/// The largest document, in bytes: 16 MiB (a distribution's files are about 5 MB of digests).
pub const LIMIT: usize = 16 << 20;

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
    /// The bytes: `tagged COSE_Sign1` over the CBOR of the set; or that CBOR itself, unsigned.
    pub bytes: Vec<u8>,
    /// SHA-256 of the bytes: what leases name.
    pub digest: [u8; 32],
    /// The `kid` of each signature: SHA-256 of the key's SubjectPublicKeyInfo.
    pub signers: Vec<[u8; 32]>,
}

impl Document {
    /// Reads a document. With `keys`, it must be signed by at least `threshold` different ones of them.
    ///
    /// # Errors
    /// [`crate::codes::VERIFY_REFERENCE_SIGNATURE`], [`crate::codes::VERIFY_REFERENCE_MALFORMED`].
    pub fn read(_bytes: &[u8], _keys: &[PolicyKey], _threshold: usize) -> Result<Self, Refusal> {
        todo!("D")
    }

    /// An unsigned document of `set`.
    pub fn unsigned(_set: ReferenceSet) -> Self {
        todo!("D")
    }
}
