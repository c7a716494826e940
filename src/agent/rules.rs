//! The rules for what may run: taken from the document that a lease names, if those may change them who
//! hold the policy keys.

use sha2::{Digest, Sha256};

use super::state::Remembered;
use crate::codes::{self, Refusal};
use crate::config::{ControlPlaneConfig, texts};
use crate::verify::references::Policy;
use crate::verify::runtime::CompiledRules;

/// Where an agent's configuration states its policy.
const AT: [&str; 2] = ["control_plane.policy_keys", "control_plane.policy_threshold"];

/// The policy of an agent's configuration.
///
/// # Errors
/// [`codes::CONFIG_INVALID`], naming the file.
pub fn policy(config: &ControlPlaneConfig) -> Result<Policy, Refusal> {
    Policy::new(&texts(&config.policy_keys, AT[0])?, config.policy_threshold, AT)
}

/// The rules of the document `bytes`, which must be the one with `digest`; its version is remembered.
///
/// # Errors
/// [`codes::VERIFY_REFERENCE_MALFORMED`] for another document or one without rules,
/// [`codes::VERIFY_REFERENCE_SIGNATURE`], [`codes::VERIFY_REFERENCE_ORDER`].
pub fn rules(
    policy: &Policy,
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
    let document = policy.read(bytes)?;
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use p256::ecdsa::SigningKey;
    use p256::pkcs8::{EncodePublicKey, LineEnding};

    use super::*;
    use crate::agent::attester::Certification;
    use crate::agent::reporter::Sent;
    use crate::identity::TrustDomain;
    use crate::protocol::{Bundle, Membership};
    use crate::tpm::Bank;
    use crate::verify::references::{BootState, Document, ReferenceSet};
    use crate::verify::runtime::RuntimeRules;

    fn document(version: u64, runtime: Option<RuntimeRules>) -> Document {
        let values = BTreeMap::from([(0, vec![1; 32])]);
        let state = BootState { name: "one".to_owned(), values, ..BootState::default() };
        let set = ReferenceSet {
            name: "fleet".to_owned(),
            version,
            profile: "swtpm-dev".to_owned(),
            bank: Bank::Sha256,
            states: vec![state],
            runtime,
        };
        Document::unsigned(set).unwrap()
    }

    fn keys(directory: &std::path::Path, keys: &[&SigningKey], threshold: usize) -> Result<Policy, Refusal> {
        let mut config: ControlPlaneConfig = toml::from_str("address = \"localhost:1\"").unwrap();
        config.policy_threshold = threshold;
        for (number, key) in keys.iter().enumerate() {
            let path = directory.join(format!("{number}.pem"));
            std::fs::write(&path, key.verifying_key().to_public_key_pem(LineEnding::LF).unwrap()).unwrap();
            config.policy_keys.push(path);
        }
        policy(&config)
    }

    #[test]
    fn rules_are_those_of_the_lease_signed_and_never_older() {
        let directory = tempfile::tempdir().unwrap();
        let mut remembered = Remembered::for_test();
        let [one, two] = [1, 2].map(|fill| SigningKey::from_slice(&[fill; 32]).unwrap());
        let anybody = keys(directory.path(), &[], 1).unwrap();
        let second = document(2, Some(RuntimeRules::default()));
        let mut code = |policy: &Policy, document: &Document, digest: &[u8; 32]| {
            rules(policy, &document.bytes, digest, &mut remembered).err().map(|refusal| refusal.code)
        };
        assert_eq!(code(&anybody, &second, &[0; 32]), Some(codes::VERIFY_REFERENCE_MALFORMED));
        let bare = document(1, None);
        assert_eq!(code(&anybody, &bare, &bare.digest), Some(codes::VERIFY_REFERENCE_MALFORMED));
        // Without keys the control plane is believed; with keys their holders are asked.
        assert_eq!(code(&anybody, &second, &second.digest), None);
        let strict = keys(directory.path(), &[&one, &two], 2).unwrap();
        let third = document(3, Some(RuntimeRules::default()));
        assert_eq!(code(&strict, &third, &third.digest), Some(codes::VERIFY_REFERENCE_SIGNATURE));
        let once = third.signed_by(&one).unwrap();
        assert_eq!(code(&strict, &once, &once.digest), Some(codes::VERIFY_REFERENCE_SIGNATURE));
        let twice = once.signed_by(&two).unwrap();
        assert_eq!(code(&strict, &twice, &twice.digest), None);
        // What it has had, it may have again; what was before that, not.
        assert_eq!(code(&strict, &twice, &twice.digest), None);
        assert_eq!(code(&anybody, &second, &second.digest), Some(codes::VERIFY_REFERENCE_ORDER));
        // Also without any key: whoever asks for two must not get none.
        for (signers, threshold) in [(&[&one][..], 0), (&[&one], 3), (&[], 2)] {
            assert_eq!(keys(directory.path(), signers, threshold).unwrap_err().code, codes::CONFIG_INVALID);
        }
    }

    impl Remembered {
        fn for_test() -> Self {
            let certification = Certification { nonce: [0; 32], attest: Vec::new(), signature: Vec::new() };
            let bundle = Bundle { certificates: Vec::new(), sequence: 0, jwt_keys: Vec::new() };
            let membership = Membership { node: [0; 32], certificate: Vec::new(), bundle };
            let domain = TrustDomain::new("example.org").unwrap();
            Self::of(&domain, Vec::new(), Vec::new(), membership, certification)
        }
    }

    #[test]
    fn a_memory_of_the_version_before_is_read() {
        let mut fields: BTreeMap<String, serde_cbor::Value> =
            serde_cbor::from_slice(&serde_cbor::to_vec(&Remembered::for_test()).unwrap()).unwrap();
        assert!(fields.remove("sent").is_some() && fields.remove("versions").is_some());
        let read: Remembered = serde_cbor::from_slice(&serde_cbor::to_vec(&fields).unwrap()).unwrap();
        assert_eq!((read.sent, read.versions), (Sent::default(), BTreeMap::new()));
    }
}
