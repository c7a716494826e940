//! The rules for what may run: taken from the document that a lease names, if those may change them who
//! hold the policy keys.

use p256::ecdsa::VerifyingKey;
use p256::pkcs8::{DecodePublicKey, EncodePublicKey};
use sha2::{Digest, Sha256};

use super::state::Remembered;
use crate::codes::{self, Refusal};
use crate::config::ControlPlaneConfig;
use crate::verify::references::{Document, PolicyKey};
use crate::verify::runtime::CompiledRules;

/// The policy keys of the configuration.
#[derive(Clone, Debug, Default)]
pub struct PolicyKeys {
    keys: Vec<PolicyKey>,
    threshold: usize,
}

impl PolicyKeys {
    /// Reads them.
    ///
    /// # Errors
    /// [`codes::CONFIG_INVALID`], naming the file.
    pub fn of(config: &ControlPlaneConfig) -> Result<Self, Refusal> {
        let invalid = |at: String, found: String| Refusal::new(codes::CONFIG_INVALID, found).at(at);
        let mut keys = Vec::new();
        for path in &config.policy_keys {
            let at = || format!("control_plane.policy_keys {}", path.display());
            let pem = std::fs::read_to_string(path).map_err(|e| invalid(at(), e.to_string()))?;
            let key = VerifyingKey::from_public_key_pem(&pem)
                .map_err(|e| invalid(at(), e.to_string()).expected("a P-256 public key, PEM"))?;
            let spki = key.to_public_key_der().map_err(|e| invalid(at(), e.to_string()))?;
            keys.push(PolicyKey { spki: spki.as_bytes().to_vec() });
        }
        let threshold = config.policy_threshold;
        if threshold == 0 || (!keys.is_empty() && threshold > keys.len()) {
            return Err(invalid("control_plane.policy_threshold".to_owned(), threshold.to_string())
                .expected(format!("1 to {}, as many as there are policy keys", keys.len().max(1))));
        }
        Ok(Self { keys, threshold })
    }

    /// The rules of the document `bytes`, which must be the one with `digest`; its version is remembered.
    ///
    /// # Errors
    /// [`codes::VERIFY_REFERENCE_MALFORMED`] for another document or one without rules,
    /// [`codes::VERIFY_REFERENCE_SIGNATURE`], [`codes::VERIFY_REFERENCE_ORDER`].
    pub fn rules(
        &self,
        bytes: &[u8],
        digest: &[u8; 32],
        remembered: &mut Remembered,
    ) -> Result<CompiledRules, Refusal> {
        let malformed = |found: String| Refusal::new(codes::VERIFY_REFERENCE_MALFORMED, found);
        let found: [u8; 32] = Sha256::digest(bytes).into();
        if found != *digest {
            return Err(malformed(format!("document {}", hex::encode(found)))
                .expected(format!("{}, which the lease names", hex::encode(digest))));
        }
        let document = Document::read(bytes, &self.keys, self.threshold)?;
        let set = &document.set;
        let last = remembered.versions.get(&set.name).copied().unwrap_or(0);
        if set.version < last {
            return Err(Refusal::new(codes::VERIFY_REFERENCE_ORDER, format!("version {}", set.version))
                .at(format!("references `{}`", set.name))
                .expected(format!("at least {last}, which this node has had")));
        }
        let rules = set.runtime.as_ref().ok_or_else(|| malformed("it has no rules for what may run".to_owned()))?;
        let compiled = rules.compile()?;
        remembered.versions.insert(set.name.clone(), set.version);
        Ok(compiled)
    }
}
