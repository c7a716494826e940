//! The kernel's list of what it measured: IMA's `binary_runtime_measurements`.
//!
//! The list only grows while a system runs, so it is read by increments: a [`Fold`] stands behind
//! the last entry it took in, and goes on from there.

use super::LogHash;
use crate::codes::Refusal;

/// The largest entry, in bytes: its fields are a path, a digest, a signature, a buffer.
pub const ENTRY_LIMIT: usize = 1 << 20;

/// One entry of the list, borrowed from it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ImaEntry<'a> {
    /// Its number, from 0: `boot_aggregate` is the first.
    pub number: u64,
    /// The PCR it says it extended.
    pub pcr: u8,
    /// The SHA-1 template digest as printed; zeros for a violation.
    pub printed: [u8; 20],
    /// The template's name: `ima`, `ima-ng`, `ima-sig`, `ima-buf`, …
    pub template: &'a str,
    /// The template data, whose hash was extended.
    pub data: &'a [u8],
    /// What the template data says.
    pub fields: ImaFields<'a>,
    /// The kernel could not measure the file reliably: it extended 0xFF….
    pub violation: bool,
}

/// The fields of the known templates.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ImaFields<'a> {
    /// The file's hash algorithm as the kernel names it (`sha256`), lower case.
    pub algorithm: &'a str,
    /// The file's digest.
    pub digest: &'a [u8],
    /// The path, without its NUL. Bytes: a name need not be UTF-8.
    pub path: &'a [u8],
    /// The signature of `ima-sig`, if there is one.
    pub signature: &'a [u8],
    /// The buffer of `ima-buf`.
    pub buffer: &'a [u8],
}

/// Reads the entry at the start of `bytes`, which is the list from entry `number` on. Returns it
/// with its length; `None` when `bytes` ends within the entry (the rest isn't there yet).
///
/// # Errors
/// [`crate::codes::MEASUREMENTS_IMA_LIST`] naming the entry: no further bytes would mend it.
pub fn entry(_bytes: &[u8], _number: u64) -> Result<Option<(ImaEntry<'_>, usize)>, Refusal> {
    todo!("B")
}

/// What the kernel extended into one bank for an entry.
pub fn extended(_entry: &ImaEntry<'_>, _bank: LogHash, _padded: bool) -> Vec<u8> {
    todo!("B")
}
