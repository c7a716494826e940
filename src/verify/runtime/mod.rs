//! What may run: the rules for entries of IMA's list, and the judge that applies them to new ones.
//! The same judge works in the control plane, over the whole list, and on the node, over what came
//! since the lease was granted.
//!
//! [`RuntimeRules`] are what people and reference sets write; [`CompiledRules`] are the same,
//! checked, for looking up; a [`Judge`] goes by them from one [`Checkpoint`] to the next.

mod judge;
mod rules;
mod search;
mod signature;

pub use judge::{Advanced, Judge};
pub use rules::CompiledRules;
pub use search::Search;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::references::hex_list;
use crate::codes::{Code, Refusal};
use crate::measurements::LogHash;
use crate::tpm::Bank;

/// The most findings of a kind that a checkpoint names; what is beyond is only counted.
pub const FINDINGS_LIMIT: usize = 64;

/// Rules for the kernel's measurements. What no rule allows is refused. Paths are absolute, and
/// written as [`crate::measurements::ima::escaped`] shows them: names need not be UTF-8.
///
/// A digest counts only if it is SHA-256 or longer: entries with SHA-1 or MD5 digests, as all of
/// the template `ima`, are allowed by no rule.
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
    /// Violations that are waived, each with an argument. The kernel extends the same for every
    /// violation, so the TPM vouches for their number only, not for their paths: who can alter the
    /// list can say any path. Waive what an accident may do, not what an attacker might.
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
    /// The kernel couldn't hash for this bank, and extended SHA-1 digests with zeros behind them:
    /// the list is vouched for by no more than SHA-1.
    pub padded: bool,
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
    /// How many violations were waived.
    pub waived_count: u64,
    /// The `boot_aggregate`s: the first entry, and one more after each kexec; at most 64. They are
    /// not judged here: each must be the hash of this boot's PCRs ([`boot_aggregate`]).
    pub boot_aggregates: Vec<Finding>,
}

/// An entry that matters.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Finding {
    /// Its number.
    pub entry: u64,
    /// Where it begins, in bytes from the start of the list.
    pub offset: u64,
    /// Its path, what isn't printable escaped; at most 1,024 characters of it.
    pub path: String,
    /// The file's digest as found, `sha256:…`.
    pub digest: String,
    /// Why no rule allows it, in words.
    pub why: String,
    /// The nearest that a rule would have accepted; empty if there is none.
    pub nearest: String,
}

impl Finding {
    /// The refusal of this entry: [`crate::codes::VERIFY_IMA_UNLISTED`], [`crate::codes::VERIFY_IMA_VIOLATION`]
    /// or [`crate::codes::VERIFY_BOOT_AGGREGATE`].
    pub fn refusal(&self, code: Code) -> Refusal {
        let expected = match self.nearest.as_str() {
            "" => "a digest, file, signer, buffer or exclusion of the reference values that allows it",
            nearest => nearest,
        };
        Refusal::new(code, format!("{} with {}: {}", self.path, self.digest, self.why))
            .at(format!("IMA entry {}, PCR 10, byte {} of the list", self.entry, self.offset))
            .expected(expected)
    }
}

impl Checkpoint {
    /// Before the first entry.
    pub fn start(bank: Bank) -> Self {
        Self {
            bank: bank.to_string(),
            padded: false,
            entries: 0,
            offset: 0,
            value: vec![0; bank.size()],
            unlisted: Vec::new(),
            unlisted_count: 0,
            violations: Vec::new(),
            violations_count: 0,
            waived_count: 0,
            boot_aggregates: Vec::new(),
        }
    }

    /// Before the first entry, for a bank that is extended with padded SHA-1 digests.
    pub fn start_padded(bank: Bank) -> Self {
        Self { padded: true, ..Self::start(bank) }
    }
}

/// The `boot_aggregate` that a kernel computes from these values of PCRs, 0 first (Linux
/// `ima_calc_boot_aggregate`): from 5.8 on PCRs 0 to 9, before and for SHA-1 PCRs 0 to 7. Backports differ,
/// so either is right. The values are those of the bank of `hash`, and those that the firmware
/// left: PCR 9 may have moved since.
pub fn boot_aggregate<'a>(values: impl IntoIterator<Item = &'a [u8]>, hash: LogHash) -> Vec<u8> {
    let values: Vec<&[u8]> = values.into_iter().collect();
    hash.digest(&values)
}
