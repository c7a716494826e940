//! Bundles: policies and their tests as one document, signed as a whole.
//!
//! ```text
//! DIR/*.cedar, DIR/tests/*.toml ─▶ Content ─▶ CBOR ─▶ COSE_Sign (by policy keys) ─▶ Bundle
//! ```
//! It carries the texts that people wrote, so that who signs can read what is signed, and who applies
//! runs the tests that came with it.

use std::collections::BTreeMap;

use p256::ecdsa::SigningKey;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::rules::Rules;
use super::schema;
use super::trials::{self, Trials};
use crate::codes::{self, Refusal};
use crate::protocol;
use crate::verify::references::{Envelope, Policy};

/// The largest bundle, in bytes: its digest is checked at each decision.
pub const LIMIT: usize = 256 << 10;
/// The most files of a kind.
const FILES: usize = 128;
/// The payload's media type: a signature over reference values is none over policies.
const MEDIA_TYPE: &str = "application/x.leasehold-policies+cbor";
/// The name of the built-in one's file.
const BUILT_IN: &str = "default.cedar";

/// What a bundle says.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Content {
    /// Of this format: 1.
    pub schema: u64,
    /// Grows with every change; 0 is the built-in one.
    pub version: u64,
    /// Cedar texts by file name.
    pub policies: BTreeMap<String, String>,
    /// Their tests (TOML) by file name.
    pub tests: BTreeMap<String, String>,
}

/// A bundle whose policies are valid.
#[derive(Clone, Debug)]
pub struct Bundle {
    /// What it says.
    pub content: Content,
    /// As it was signed, or its CBOR where nobody signed.
    pub bytes: Vec<u8>,
    /// SHA-256 of those: what decisions name.
    pub digest: [u8; 32],
    /// The key ids as stated, the author's first.
    pub claimed: Vec<[u8; 32]>,
    /// The policies, validated.
    pub rules: Rules,
    trials: Trials,
}

impl Bundle {
    /// Reads a bundle, which must be signed as `policy` asks.
    ///
    /// # Errors
    /// [`codes::POLICY_BUNDLE`], [`codes::POLICY_BUNDLE_SIGNATURE`].
    pub fn read(bytes: &[u8], policy: &Policy) -> Result<Self, Refusal> {
        if bytes.len() > LIMIT {
            return Err(refuse(format!("{} bytes", bytes.len())).expected(format!("at most {LIMIT}")));
        }
        let envelope = match Envelope::is_one(bytes) {
            true => Some(Envelope::decode(MEDIA_TYPE, bytes).map_err(as_bundle)?),
            false => None,
        };
        if !policy.is_empty() {
            let Some(envelope) = &envelope else {
                return Err(Refusal::new(codes::POLICY_BUNDLE_SIGNATURE, "no signature")
                    .expected("those of the keys in `policy.keys`; see `policy sign`"));
            };
            policy.approved(envelope).map_err(as_signature)?;
        }
        // Only what the keys approved is decoded.
        let payload = envelope.as_ref().map_or(bytes, |envelope| &envelope.payload);
        let content: Content = protocol::decode(payload).map_err(|refusal| refuse(refusal.found))?;
        if protocol::encode(&content)? != payload {
            return Err(refuse("it isn't in its one encoding".to_owned()));
        }
        content.check()?;
        Self::of(content, bytes.to_vec(), envelope.as_ref().map(Envelope::claimed).unwrap_or_default())
    }

    /// A bundle that nobody signed.
    ///
    /// # Errors
    /// [`codes::POLICY_BUNDLE`].
    pub fn unsigned(content: Content) -> Result<Self, Refusal> {
        content.check()?;
        let bytes = protocol::encode(&content)?;
        if bytes.len() > LIMIT {
            return Err(refuse(format!("{} bytes", bytes.len())).expected(format!("at most {LIMIT}")));
        }
        Self::of(content, bytes, Vec::new())
    }

    /// What is in force where no bundle was ever applied: what is registered is permitted, or nothing is.
    ///
    /// # Errors
    /// [`codes::POLICY_BUNDLE`]; not reached for what this program ships.
    pub fn built_in(permits: bool) -> Result<Self, Refusal> {
        let policies = match permits {
            true => BTreeMap::from([(BUILT_IN.to_owned(), schema::DEFAULT.to_owned())]),
            false => BTreeMap::new(),
        };
        let content = Content { schema: 1, version: 0, policies, tests: BTreeMap::new() };
        let bytes = protocol::encode(&content)?;
        Self::of(content, bytes, Vec::new())
    }

    fn of(content: Content, bytes: Vec<u8>, claimed: Vec<[u8; 32]>) -> Result<Self, Refusal> {
        let rules = Rules::of_bundle(&content.policies)?;
        let trials = Trials::read(&content.tests)?;
        let digest = Sha256::digest(&bytes).into();
        Ok(Self { content, bytes, digest, claimed, rules, trials })
    }

    /// The bundle with a further signature by `key`.
    ///
    /// # Errors
    /// [`codes::POLICY_BUNDLE_SIGNATURE`].
    pub fn signed_by(&self, key: &SigningKey) -> Result<Self, Refusal> {
        let mut envelope = match Envelope::is_one(&self.bytes) {
            true => Envelope::decode(MEDIA_TYPE, &self.bytes).map_err(as_bundle)?,
            false => Envelope::unsigned(MEDIA_TYPE, self.bytes.clone()),
        };
        envelope.sign(key).map_err(as_signature)?;
        let bytes = envelope.encode();
        let digest = Sha256::digest(&bytes).into();
        Ok(Self { bytes, digest, claimed: envelope.claimed(), ..self.clone() })
    }

    /// How many tests and properties came with it.
    pub fn tests(&self) -> usize {
        self.trials.len()
    }

    /// Runs the tests that came with it.
    ///
    /// # Errors
    /// [`codes::POLICY_BUNDLE`], naming the first test that fails and how many do.
    pub fn test(&self) -> Result<trials::Passed, Refusal> {
        self.trials.run(&self.rules)
    }
}

impl Content {
    fn check(&self) -> Result<(), Refusal> {
        if self.schema != 1 {
            return Err(refuse(format!("schema {}", self.schema)).expected("1"));
        }
        if self.version == 0 || i64::try_from(self.version).is_err() {
            return Err(refuse(format!("version {}", self.version)).expected("1 or more"));
        }
        if self.policies.is_empty() {
            return Err(refuse("no policies".to_owned()).expected("a file that ends in `.cedar`"));
        }
        for (files, ending) in [(&self.policies, ".cedar"), (&self.tests, ".toml")] {
            if files.len() > FILES {
                return Err(refuse(format!("{} files", files.len())).expected(format!("at most {FILES}")));
            }
            if let Some(name) = files.keys().find(|name| !is_name(name, ending)) {
                return Err(refuse(format!("a file named `{}`", name.escape_debug()))
                    .expected(format!("letters, digits, `.`, `-`, `_` and the ending `{ending}`")));
            }
        }
        Ok(())
    }
}

/// Whether a file of a bundle may be named so.
pub fn is_name(name: &str, ending: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    name.len() <= 64 && name.strip_suffix(ending).is_some_and(|stem| !stem.is_empty()) && name.bytes().all(plain)
}

fn refuse(found: String) -> Refusal {
    Refusal::new(codes::POLICY_BUNDLE, found).at("the bundle")
}

fn as_bundle(refusal: Refusal) -> Refusal {
    Refusal { code: codes::POLICY_BUNDLE, ..refusal }
}

fn as_signature(refusal: Refusal) -> Refusal {
    Refusal { code: codes::POLICY_BUNDLE_SIGNATURE, ..refusal }
}
