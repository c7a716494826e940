//! The policy key: made and used anywhere, so it need not live on the control plane.

use std::path::Path;

use p256::SecretKey;
use p256::ecdsa::SigningKey;
use p256::pkcs8::{DecodePrivateKey, EncodePrivateKey, EncodePublicKey, LineEnding};

use super::unusable;
use crate::codes::Refusal;
use crate::secret::{random, read_private, write_atomically};
use crate::verify::references::PolicyKey;

/// Makes a P-256 key in `file` (PKCS #8, PEM, mode 0600), which must not exist. Returns the public half, PEM.
///
/// # Errors
/// [`crate::codes::ADMIN_INVALID`] when the file exists or can't be written.
pub fn generate(file: &Path) -> Result<String, Refusal> {
    let failed = |what: String| unusable(file.display().to_string(), what);
    // A key that is overwritten is lost with all that it signed.
    if file.symlink_metadata().is_ok() {
        return Err(failed("it exists already".to_owned()).expected("a new file"));
    }
    let key = loop {
        let bytes = zeroize::Zeroizing::new(random::<32>().map_err(|e| failed(e.to_string()))?);
        // All but one in 2^32 are keys.
        if let Ok(key) = SecretKey::from_slice(bytes.as_slice()) {
            break key;
        }
    };
    let pem = key.to_pkcs8_pem(LineEnding::LF).map_err(|e| failed(e.to_string()))?;
    write_atomically(file, pem.as_bytes()).map_err(|e| failed(e.to_string()))?;
    public_pem(&SigningKey::from(key))
}

/// Reads a private key: PKCS #8 in PEM, open to its owner alone.
///
/// # Errors
/// [`crate::codes::CONFIG_MODE`], [`crate::codes::ADMIN_INVALID`].
pub fn load(file: &Path) -> Result<SigningKey, Refusal> {
    use secrecy::ExposeSecret;
    let pem = read_private(file)?;
    let text = std::str::from_utf8(pem.expose_secret())
        .map_err(|_| unusable(file.display().to_string(), "it isn't text").expected("PKCS #8 in PEM"))?;
    SigningKey::from_pkcs8_pem(text)
        .map_err(|e| unusable(file.display().to_string(), e.to_string()).expected("a P-256 key, PKCS #8 in PEM"))
}

/// The public half, as `policy.keys` names it.
///
/// # Errors
/// None that can happen to a key.
pub fn public_pem(key: &SigningKey) -> Result<String, Refusal> {
    key.verifying_key().to_public_key_pem(LineEnding::LF).map_err(|e| unusable("policy key", e.to_string()))
}

/// Its id, as documents and the record of decisions have it: hexadecimal.
///
/// # Errors
/// As [`PolicyKey::of`].
pub fn id(key: &SigningKey) -> Result<String, Refusal> {
    Ok(hex::encode(PolicyKey::of(key)?.id()))
}
