//! Who must have signed a reference set: the same on a node and in a control plane.

use super::{Document, PolicyKey};
use crate::codes::{self, Refusal};

/// So many different ones of these keys must have signed. Without keys nobody must.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Policy {
    keys: Vec<PolicyKey>,
    threshold: usize,
}

impl Default for Policy {
    fn default() -> Self {
        Self { keys: Vec::new(), threshold: 1 }
    }
}

impl Policy {
    /// A policy as a configuration states it: `keys` by the name of their file and its text in PEM; `at` are the
    /// configuration's names of the keys and of the threshold.
    ///
    /// # Errors
    /// [`codes::CONFIG_INVALID`] for what is no P-256 key, a key that stands twice, and a threshold that is 0 or
    /// that the keys can't reach: who asks for two must not get none.
    pub fn new(keys: &[(String, String)], threshold: usize, at: [&str; 2]) -> Result<Self, Refusal> {
        let [at_keys, at_threshold] = at;
        let mut known: Vec<PolicyKey> = Vec::new();
        for (file, pem) in keys {
            let invalid = |found: String| Refusal::new(codes::CONFIG_INVALID, found).at(format!("{at_keys} {file}"));
            let key = PolicyKey::from_pem(pem).map_err(|refusal| {
                invalid(refusal.found).expected("a P-256 public key, PEM; `reference keygen` makes one")
            })?;
            if known.contains(&key) {
                return Err(invalid("a key that stands there already".to_owned()));
            }
            known.push(key);
        }
        let most = known.len().max(1);
        if !(1..=most).contains(&threshold) {
            return Err(Refusal::new(codes::CONFIG_INVALID, threshold.to_string())
                .at(at_threshold)
                .expected(format!("1 to {most}: there are {} keys", known.len())));
        }
        Ok(Self { keys: known, threshold })
    }

    /// Whether nobody must have signed.
    pub const fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Reads a document, which must be signed so.
    ///
    /// # Errors
    /// As [`Document::read`].
    pub fn read(&self, bytes: &[u8]) -> Result<Document, Refusal> {
        Document::read(bytes, &self.keys, self.threshold)
    }

    /// Holds a document that was read under another policy to this one.
    ///
    /// # Errors
    /// [`codes::VERIFY_REFERENCE_SIGNATURE`].
    pub fn approves(&self, document: &Document) -> Result<(), Refusal> {
        if self.is_empty() {
            return Ok(());
        }
        let at = || format!("references `{}`", document.set.name);
        self.read(&document.bytes).map(drop).map_err(|refusal| refusal.at(at()))
    }

    /// Those of these keys that signed: enough of them, the author's among them.
    ///
    /// # Errors
    /// [`codes::VERIFY_REFERENCE_SIGNATURE`].
    #[cfg(feature = "control-plane")]
    pub(crate) fn approved(&self, envelope: &super::Envelope) -> Result<Vec<[u8; 32]>, Refusal> {
        envelope.approved(&self.keys, self.threshold)
    }
}
