//! Keys at rest: every private key in the store lies under one wrapping key (AES-256-GCM).
//!
//! The wrapping key is a file of 32 bytes, mode 0600, best kept on other storage than the backups
//! of the state directory: a stolen store alone then holds no key.

use std::path::{Path, PathBuf};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use p256::ecdsa::SigningKey;
use p256::pkcs8::{DecodePrivateKey, EncodePrivateKey};

use crate::codes::{self, Refusal};
use crate::config::ServerConfig;
use crate::secret::{self, ExposeSecret, Zeroizing};

/// The key that wraps the others.
pub struct WrappingKey(LessSafeKey);

impl WrappingKey {
    /// Where this configuration keeps the wrapping key.
    pub fn path(config: &ServerConfig) -> PathBuf {
        config.keys.wrapping_key.clone().unwrap_or_else(|| config.state_dir.join("wrapping.key"))
    }

    /// Reads the wrapping key. Makes it if it is missing and `may_create`, which is only right
    /// while the store holds nothing that another wrapping key has wrapped.
    ///
    /// # Errors
    /// [`codes::CONFIG_MODE`] for a file open to others, [`codes::CONFIG_INVALID`] for one that is
    /// missing or of another length.
    pub fn open(path: &Path, may_create: bool) -> Result<Self, Refusal> {
        let at = |found: String| Refusal::new(codes::CONFIG_INVALID, found).at(path.display().to_string());
        if !path.exists() {
            if !may_create {
                return Err(at("the wrapping key is missing, and the store holds keys under it".to_owned())
                    .expected("the file that the first start made here, from its backup"));
            }
            let key = Zeroizing::new(secret::random::<32>().map_err(|e| at(e.to_string()))?);
            secret::write_atomically(path, key.as_slice()).map_err(|e| at(e.to_string()))?;
        }
        let bytes = secret::read_private(path)?;
        let bytes = bytes.expose_secret();
        let key = UnboundKey::new(&AES_256_GCM, bytes)
            .map_err(|_| at(format!("{} bytes", bytes.len())).expected("exactly 32 bytes"))?;
        Ok(Self(LessSafeKey::new(key)))
    }

    /// `nonce ‖ ciphertext ‖ tag`; `purpose` is authenticated with it, so that one wrapped thing
    /// can't be put in the place of another.
    ///
    /// # Errors
    /// When the kernel has no randomness.
    pub fn wrap(&self, purpose: &str, plain: &[u8]) -> Result<Vec<u8>, Refusal> {
        // 96 random bits: safe for far more than the few keys ever wrapped here.
        let nonce: [u8; NONCE_LEN] = secret::random().map_err(|e| failed(purpose, &e.to_string()))?;
        let mut sealed = Zeroizing::new(plain.to_vec());
        let tag = self
            .0
            .seal_in_place_separate_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(purpose.as_bytes()),
                sealed.as_mut_slice(),
            )
            .map_err(|_| failed(purpose, "it can't be encrypted"))?;
        Ok([nonce.as_slice(), sealed.as_slice(), tag.as_ref()].concat())
    }

    /// The inverse of [`WrappingKey::wrap`].
    ///
    /// # Errors
    /// [`codes::STORE_FAILED`] when it was wrapped by another key or for another purpose, or changed.
    pub fn unwrap(&self, purpose: &str, wrapped: &[u8]) -> Result<Zeroizing<Vec<u8>>, Refusal> {
        let refused = || failed(purpose, "it doesn't open with this wrapping key");
        let (nonce, sealed) = wrapped.split_first_chunk::<NONCE_LEN>().ok_or_else(refused)?;
        let mut plain = Zeroizing::new(sealed.to_vec());
        let length = self
            .0
            .open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::from(purpose.as_bytes()), plain.as_mut_slice())
            .map_err(|_| refused())?
            .len();
        plain.truncate(length);
        Ok(plain)
    }
}

impl std::fmt::Debug for WrappingKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("WrappingKey(..)")
    }
}

/// A fresh P-256 key.
///
/// # Errors
/// When the kernel has no randomness.
pub fn generate() -> Result<SigningKey, Refusal> {
    loop {
        let bytes = Zeroizing::new(secret::random::<32>().map_err(|e| failed("a new key", &e.to_string()))?);
        // All but 2⁻³² of all values are valid scalars.
        if let Ok(key) = SigningKey::from_slice(bytes.as_slice()) {
            return Ok(key);
        }
    }
}

/// PKCS#8 of a key.
///
/// # Errors
/// Never for a valid key; the encoder's signature has one.
pub fn to_pkcs8(key: &SigningKey) -> Result<Zeroizing<Vec<u8>>, Refusal> {
    let document = key.to_pkcs8_der().map_err(|e| failed("a key", &e.to_string()))?;
    Ok(Zeroizing::new(document.as_bytes().to_vec()))
}

/// A key from its PKCS#8.
///
/// # Errors
/// [`codes::STORE_FAILED`] when it is none.
pub fn from_pkcs8(der: &[u8]) -> Result<SigningKey, Refusal> {
    SigningKey::from_pkcs8_der(der).map_err(|e| failed("a key", &e.to_string()))
}

fn failed(what: &str, why: &str) -> Refusal {
    Refusal::new(codes::STORE_FAILED, why).at(what)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn what_is_wrapped_opens_for_its_purpose_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("wrapping.key");
        let key = WrappingKey::open(&path, true).unwrap();
        let wrapped = key.wrap("ca key", b"secret").unwrap();
        assert!(!wrapped.windows(6).any(|window| window == b"secret"));
        assert_eq!(key.unwrap("ca key", &wrapped).unwrap().as_slice(), b"secret");
        assert!(key.unwrap("enrolment", &wrapped).is_err());
        assert!(key.unwrap("ca key", &wrapped[..20]).is_err());
        let again = WrappingKey::open(&path, false).unwrap();
        assert_eq!(again.unwrap("ca key", &wrapped).unwrap().as_slice(), b"secret");
        let other = WrappingKey::open(&dir.path().join("other.key"), true).unwrap();
        assert!(other.unwrap("ca key", &wrapped).is_err());
    }

    #[test]
    fn an_open_missing_or_short_wrapping_key_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("wrapping.key");
        assert_eq!(WrappingKey::open(&path, false).unwrap_err().code, codes::CONFIG_INVALID);
        assert!(!path.exists());
        WrappingKey::open(&path, true).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(WrappingKey::open(&path, false).unwrap_err().code, codes::CONFIG_MODE);
        secret::write_atomically(&path, b"short").unwrap();
        assert_eq!(WrappingKey::open(&path, false).unwrap_err().code, codes::CONFIG_INVALID);
    }
}
