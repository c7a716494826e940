//! Keys at rest: every private key in the store lies under one wrapping key (AES-256-GCM).
//!
//! The wrapping key is a file of 32 bytes, mode 0600, best kept on other storage than the backups
//! of the state directory: a stolen store alone then holds no key. With `keys.tpm` the file holds it
//! sealed to this machine's TPM: a stolen machine image then holds no key either.

#[cfg(feature = "tpm-device")]
mod sealed;

use std::path::{Path, PathBuf};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use p256::ecdsa::SigningKey;
use p256::pkcs8::{DecodePrivateKey, EncodePrivateKey};

use crate::codes::{self, Refusal};
use crate::config::ServerConfig;
use crate::secret::{self, ExposeSecret, Zeroizing};
use crate::tpm::Sealed;

/// The key that wraps the others.
pub struct WrappingKey(LessSafeKey);

impl WrappingKey {
    /// Where this configuration keeps the wrapping key.
    pub fn path(config: &ServerConfig) -> PathBuf {
        config.keys.wrapping_key.clone().unwrap_or_else(|| config.state_dir.join("wrapping.key"))
    }

    /// Opens the wrapping key as this configuration keeps it. Makes it if it is missing and
    /// `may_create`, which is only right while the store holds nothing that another wrapping key
    /// has wrapped. With `keys.tpm`, a key that lies in the clear is sealed first.
    ///
    /// # Errors
    /// [`codes::CONFIG_MODE`] for a file open to others; [`codes::CONFIG_INVALID`] for one that is
    /// missing, of another length, or sealed while there is no `keys.tpm`;
    /// [`codes::TPM_SEALED_ELSEWHERE`] and the TPM's other refusals. The file then is as it was.
    pub fn of(config: &ServerConfig, may_create: bool) -> Result<Self, Refusal> {
        let path = Self::path(config);
        match &config.keys.tpm {
            None => Self::open(&path, may_create),
            Some(address) => Self::open_sealed(&path, address, may_create),
        }
    }

    /// As [`Self::of`], without a TPM.
    ///
    /// # Errors
    /// As [`Self::of`].
    pub fn open(path: &Path, may_create: bool) -> Result<Self, Refusal> {
        if !path.exists() {
            let key = fresh(path, may_create)?;
            secret::write_atomically(path, key.as_slice()).map_err(|e| invalid(path, e.to_string()))?;
        }
        let bytes = secret::read_private(path)?;
        if Sealed::looks_like(bytes.expose_secret()) {
            return Err(invalid(path, "the wrapping key is sealed to a TPM, and the configuration names none")
                .expected("`keys.tpm` as it was when the key was sealed, e.g. `tpm = \"device:/dev/tpmrm0\"`"));
        }
        Self::new(path, bytes.expose_secret())
    }

    #[cfg(feature = "tpm-device")]
    fn open_sealed(path: &Path, address: &str, may_create: bool) -> Result<Self, Refusal> {
        Self::new(path, &sealed::open(path, address, may_create)?)
    }

    #[cfg(not(feature = "tpm-device"))]
    fn open_sealed(_: &Path, address: &str, _: bool) -> Result<Self, Refusal> {
        check_address(address).and(Err(failed("keys.tpm", "BUG: passed without a TPM")))
    }

    fn new(path: &Path, bytes: &[u8]) -> Result<Self, Refusal> {
        let key = UnboundKey::new(&AES_256_GCM, bytes)
            .map_err(|_| invalid(path, format!("{} bytes", bytes.len())).expected("exactly 32 bytes"))?;
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

/// Checks `keys.tpm` without asking the TPM.
///
/// # Errors
/// [`codes::CONFIG_INVALID`].
#[cfg(feature = "tpm-device")]
pub fn check_address(address: &str) -> Result<(), Refusal> {
    crate::tpm::TpmAddress::parse(address).map(|_| ()).map_err(|refusal| refusal.at("keys.tpm"))
}

/// Refuses `keys.tpm`: else a key thought sealed would lie in a file.
///
/// # Errors
/// [`codes::CONFIG_INVALID`], always.
#[cfg(not(feature = "tpm-device"))]
pub fn check_address(address: &str) -> Result<(), Refusal> {
    Err(Refusal::new(codes::CONFIG_INVALID, format!("`{address}`, and this build can't use a TPM"))
        .at("keys.tpm")
        .expected("a build with the feature `tpm-device`, or no `keys.tpm`"))
}

/// A new wrapping key, where one may be made.
fn fresh(path: &Path, may_create: bool) -> Result<Zeroizing<[u8; 32]>, Refusal> {
    if !may_create {
        return Err(invalid(path, "the wrapping key is missing, and the store holds keys under it")
            .expected("the file that the first start made here, from its backup"));
    }
    secret::random().map(Zeroizing::new).map_err(|e| invalid(path, e.to_string()))
}

fn invalid(path: &Path, found: impl Into<String>) -> Refusal {
    Refusal::new(codes::CONFIG_INVALID, found).at(path.display().to_string())
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
