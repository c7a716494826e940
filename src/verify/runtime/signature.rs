//! Signatures of files, as IMA keeps them in `security.ima` and lists them in `ima-sig`.
//!
//! ```text
//! type u8 = 3 │ version u8 = 2 │ hash algorithm u8 │ key id [4] │ length u16, big endian │ signature
//! ```
//!
//! (Linux `security/integrity/integrity.h`, `struct signature_v2_hdr`; made by `evmctl ima_sign`.) It is
//! over the file's digest: RSA PKCS #1 v1.5, or ECDSA in DER. The key id is the end of the key's
//! identifier: it says which key to try, and nothing else.

use std::fmt;

use aws_lc_rs::digest::{self, Digest};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA384_ASN1, ECDSA_P256_SHA512_ASN1, ECDSA_P384_SHA256_ASN1,
    ECDSA_P384_SHA384_ASN1, ECDSA_P384_SHA512_ASN1, ECDSA_P521_SHA256_ASN1, ECDSA_P521_SHA384_ASN1,
    ECDSA_P521_SHA512_ASN1, ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA384,
    RSA_PKCS1_2048_8192_SHA512, VerificationAlgorithm,
};
use der::{Decode, Encode};
use x509_cert::Certificate;
use x509_cert::ext::pkix::SubjectKeyIdentifier;

use super::rules::Why;
use crate::measurements::LogHash;

/// EVM_IMA_XATTR_DIGSIG.
const DIGITAL_SIGNATURE: u8 = 0x03;
/// EVM_XATTR_PORTABLE_DIGSIG: over a file's attributes.
const PORTABLE_SIGNATURE: u8 = 0x05;
/// IMA_VERITY_DIGSIG: over the digest of fs-verity's tree.
const VERITY_SIGNATURE: u8 = 0x06;
/// The size of the header.
const HEADER: usize = 9;

/// Whose signature allows a file: a public key out of a certificate. Whether the certificate is
/// valid now is not asked, as the kernel doesn't: who configured it believes it.
#[derive(Clone)]
pub(super) struct Signer {
    /// The ends of the key's identifiers: the certificate's own, and the SHA-1 of the key.
    ids: Vec<[u8; 4]>,
    /// The key, for each hash that is believed.
    keys: Vec<(LogHash, ParsedPublicKey)>,
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signer").field("ids", &self.ids).finish_non_exhaustive()
    }
}

impl Signer {
    /// Reads the key of a certificate (DER).
    ///
    /// # Errors
    /// What can't be used about it, in words.
    pub(super) fn parse(certificate: &[u8]) -> Result<Self, String> {
        let certificate = Certificate::from_der(certificate).map_err(|e| format!("no certificate: {e}"))?;
        let tbs = certificate.tbs_certificate();
        let spki = tbs.subject_public_key_info();
        let encoded = spki.to_der().map_err(|e| format!("its key can't be read: {e}"))?;
        let mut ids = Vec::new();
        if let Ok(Some((_, identifier))) = tbs.get_extension::<SubjectKeyIdentifier>() {
            ids.extend(end(identifier.0.as_bytes()));
        }
        ids.extend(end(&LogHash::Sha1.digest(&[spki.subject_public_key.raw_bytes()])));
        let keys: Vec<_> = [LogHash::Sha256, LogHash::Sha384, LogHash::Sha512]
            .into_iter()
            .filter_map(|hash| {
                let mut of_kind = algorithms(hash).iter().filter_map(|kind| ParsedPublicKey::new(*kind, &encoded).ok());
                Some((hash, of_kind.next()?))
            })
            .collect();
        match keys.is_empty() {
            true => Err("its key is of no kind that is supported".to_owned()),
            false => Ok(Self { ids, keys }),
        }
    }

    fn verifies(&self, hash: LogHash, digest: &Digest, signature: &[u8]) -> bool {
        let mut keys = self.keys.iter().filter(|(of, _)| *of == hash);
        keys.any(|(_, key)| key.verify_digest_sig(digest, signature).is_ok())
    }
}

/// Holds the signature of a file against the signers. `field` is that of `ima-sig`.
///
/// # Errors
/// Why it allows nothing.
pub(super) fn signed_by(signers: &[Signer], hash: LogHash, digest: &[u8], field: &[u8]) -> Result<(), Why> {
    if field.is_empty() {
        return Err("no rule allows it".into());
    }
    if signers.is_empty() {
        return Err("no rule allows it, and its signature counts for nothing: there is no signer".into());
    }
    let (id, signature) = parse(field, hash)?;
    let digest = match hash {
        LogHash::Sha256 => Digest::import_less_safe(digest, &digest::SHA256),
        LogHash::Sha384 => Digest::import_less_safe(digest, &digest::SHA384),
        LogHash::Sha512 => Digest::import_less_safe(digest, &digest::SHA512),
        LogHash::Sha1 => return Err("a sha1 digest is not believed".into()),
    };
    let digest = digest.map_err(|_| "its digest is not of its algorithm's size")?;
    let mut known = signers.iter().filter(|signer| signer.ids.contains(&id)).peekable();
    if known.peek().is_none() {
        return Err(format!("its signature is by key {}, which is no signer's", hex::encode(id)).into());
    }
    match known.any(|signer| signer.verifies(hash, &digest, signature)) {
        true => Ok(()),
        false => Err("its signature is not valid".into()),
    }
}

/// The key's id and the signature itself.
fn parse(field: &[u8], hash: LogHash) -> Result<([u8; 4], &[u8]), Why> {
    match field {
        [VERITY_SIGNATURE, ..] => {
            return Err("its signature is over fs-verity's digest (version 3), which isn't supported".into());
        }
        [PORTABLE_SIGNATURE, ..] => return Err("its signature is EVM's portable one, which isn't supported".into()),
        [DIGITAL_SIGNATURE, 2, ..] => {}
        [DIGITAL_SIGNATURE, version, ..] => {
            return Err(format!("its signature is of version {version}, which isn't supported").into());
        }
        _ => return Err("its signature is of no known type".into()),
    }
    let Some((&[_, _, algorithm, id0, id1, id2, id3, high, low], signature)) = field.split_first_chunk::<HEADER>()
    else {
        return Err("its signature is cut short".into());
    };
    if usize::from(u16::from_be_bytes([high, low])) != signature.len() {
        return Err("its signature has another length than its header says".into());
    }
    if hash_of(algorithm) != Some(hash) {
        return Err(format!("its signature is for hash algorithm {algorithm}, its digest is {hash}").into());
    }
    Ok(([id0, id1, id2, id3], signature))
}

/// The kernel's number of a hash algorithm (`include/uapi/linux/hash_info.h`).
const fn hash_of(number: u8) -> Option<LogHash> {
    match number {
        4 => Some(LogHash::Sha256),
        5 => Some(LogHash::Sha384),
        6 => Some(LogHash::Sha512),
        _ => None,
    }
}

/// The kinds of keys, with a hash.
fn algorithms(hash: LogHash) -> &'static [&'static dyn VerificationAlgorithm] {
    match hash {
        LogHash::Sha1 => &[],
        LogHash::Sha256 => {
            &[&RSA_PKCS1_2048_8192_SHA256, &ECDSA_P256_SHA256_ASN1, &ECDSA_P384_SHA256_ASN1, &ECDSA_P521_SHA256_ASN1]
        }
        LogHash::Sha384 => {
            &[&RSA_PKCS1_2048_8192_SHA384, &ECDSA_P256_SHA384_ASN1, &ECDSA_P384_SHA384_ASN1, &ECDSA_P521_SHA384_ASN1]
        }
        LogHash::Sha512 => {
            &[&RSA_PKCS1_2048_8192_SHA512, &ECDSA_P256_SHA512_ASN1, &ECDSA_P384_SHA512_ASN1, &ECDSA_P521_SHA512_ASN1]
        }
    }
}

fn end(identifier: &[u8]) -> Option<[u8; 4]> {
    identifier.last_chunk().copied()
}
