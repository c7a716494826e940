//! What may run: the rules for entries of IMA's list, and the judge that applies them to new ones.
//! The same judge works in the control plane, over the whole list, and on the node, over what came
//! since the lease was granted.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::references::hex_list;
use crate::codes::Refusal;
use crate::tpm::Bank;

/// Rules for the kernel's measurements. What no rule allows is refused.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RuntimeRules {
    /// `enforce`, or `warn`: what enforcing would refuse is listed, and nothing refused.
    pub mode: Mode,
    /// Digests that are allowed wherever they are found: hexadecimal, by the kernel's name of the
    /// algorithm (`sha256`).
    pub digests: BTreeMap<String, BTreeSet<HexBytes>>,
    /// Digests that are allowed under one path: `path = ["sha256:…"]`.
    pub files: BTreeMap<String, Vec<String>>,
    /// Certificates (DER) whose signature in `ima-sig` allows a file.
    #[serde(with = "hex_list")]
    pub signers: Vec<Vec<u8>>,
    /// Paths that are not judged, each with an argument.
    pub exclusions: Vec<Exclusion>,
    /// Violations that are waived, each with an argument.
    pub waivers: Vec<Exclusion>,
    /// Names of `ima-buf` entries and digests of their buffers, as in `files`.
    pub buffers: BTreeMap<String, Vec<String>>,
}

/// Whether rules refuse.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// They do.
    #[default]
    Enforce,
    /// They only say what they would refuse.
    Warn,
}

/// Something that isn't judged.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exclusion {
    /// A path, or with a `/` at its end all below it.
    pub path: String,
    /// Why: without an argument there is no exclusion.
    pub reason: String,
}

/// Bytes that are hexadecimal in text.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct HexBytes(#[serde(with = "hex::serde")] pub Vec<u8>);

/// How far a list was taken in, and what was found on the way. It is resumed from, on the node and
/// in the control plane, so an increment costs what is new.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Checkpoint {
    /// The bank whose PCR 10 is folded.
    pub bank: String,
    /// Entries taken in.
    pub entries: u64,
    /// Bytes of the list taken in.
    pub offset: u64,
    /// PCR 10 after them.
    #[serde(with = "serde_bytes")]
    pub value: Vec<u8>,
    /// The first of the entries that no rule allows, at most 64.
    pub unlisted: Vec<Finding>,
    /// How many there are.
    pub unlisted_count: u64,
    /// The first violations that nothing waives, at most 64.
    pub violations: Vec<Finding>,
    /// How many there are.
    pub violations_count: u64,
    /// The `boot_aggregate`s: the first entry, and one more after each kexec.
    pub boot_aggregates: Vec<Finding>,
}

/// An entry that matters.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Finding {
    /// Its number.
    pub entry: u64,
    /// Its path, what isn't printable escaped.
    pub path: String,
    /// The file's digest as found, `sha256:…`.
    pub digest: String,
    /// The nearest that a rule would have accepted; empty if there is none.
    pub nearest: String,
}

/// Takes a list in, entry by entry, under rules.
#[derive(Clone, Debug)]
pub struct Judge<'a> {
    /// `None`: everything is only counted.
    pub rules: Option<&'a RuntimeRules>,
    /// Where it stands.
    pub at: Checkpoint,
}

/// Proof that PCR 10 went from one value to another by entries that the rules allow, and no other.
/// Only [`Judge::advance`] makes it; the gate takes it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Advanced {
    bank: Bank,
    from: Vec<u8>,
    to: Vec<u8>,
    entries: u64,
}

impl Advanced {
    /// The bank.
    pub const fn bank(&self) -> Bank {
        self.bank
    }

    /// The value it began at.
    pub fn from(&self) -> &[u8] {
        &self.from
    }

    /// The value it leads to.
    pub fn to(&self) -> &[u8] {
        &self.to
    }

    /// How many entries lie between.
    pub const fn entries(&self) -> u64 {
        self.entries
    }
}

impl Checkpoint {
    /// Before the first entry.
    pub fn start(bank: Bank) -> Self {
        Self {
            bank: bank.to_string(),
            entries: 0,
            offset: 0,
            value: vec![0; bank.size()],
            unlisted: Vec::new(),
            unlisted_count: 0,
            violations: Vec::new(),
            violations_count: 0,
            boot_aggregates: Vec::new(),
        }
    }
}

impl Judge<'_> {
    /// Takes in `rest`, the list from the checkpoint on, until PCR 10 has `target`; all whole entries
    /// if there is no target. `Ok(false)`: the entries that are there don't lead to it (yet); the
    /// checkpoint then stands behind the last whole one.
    ///
    /// # Errors
    /// [`crate::codes::MEASUREMENTS_IMA_LIST`]: the list can't be read on.
    pub fn take(&mut self, _rest: &[u8], _target: Option<&[u8]>) -> Result<bool, Refusal> {
        todo!("B")
    }

    /// The same on a node, under a lease: every entry from `self.at` to `target` must be allowed.
    /// `Ok(None)`: the list hasn't got so far yet.
    ///
    /// # Errors
    /// [`crate::codes::VERIFY_IMA_UNLISTED`] or [`crate::codes::VERIFY_IMA_VIOLATION`] naming the first entry that
    /// no rule allows, with the nearest that one does.
    pub fn advance(&mut self, _rest: &[u8], _target: &[u8]) -> Result<Option<Advanced>, Refusal> {
        todo!("B")
    }
}
