//! The kernel's list of what it measured: IMA's `binary_runtime_measurements`.
//!
//! The list only grows while a system runs, so it is read by increments: a [`Fold`] stands behind
//! the last entry it took in, and goes on from there. [`Entries`] reads one after the other.
//!
//! An entry is believed only as far as a PCR vouches for it. That is the template data of an
//! ordinary entry, whose hash was extended. The printed digest and the template's name are not vouched
//! for, and of a violation nothing is: 0xFF… was extended, whatever the list says beside it.

mod entry;
mod fold;
mod name;

pub use entry::{Entries, entry};
pub use fold::{Fold, extended};
pub use name::{escaped, unescaped};

/// The largest entry, in bytes: its fields are a path, a digest, a signature, a buffer.
pub const ENTRY_LIMIT: usize = 1 << 20;
/// The path of the entry that binds the list to the boot: the first, and one after each kexec.
pub const BOOT_AGGREGATE: &[u8] = b"boot_aggregate";

/// One entry of the list, borrowed from it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ImaEntry<'a> {
    /// Its number, from 0: `boot_aggregate` is the first.
    pub number: u64,
    /// The PCR it says it extended.
    pub pcr: u8,
    /// The SHA-1 template digest as printed; zeros for a violation. Nothing vouches for it.
    pub printed: [u8; 20],
    /// The template's name: `ima`, `ima-ng`, `ima-sig`, `ima-buf`, …
    pub template: &'a str,
    /// The template data, whose hash was extended. In the template `ima`: as it stands in the list,
    /// which isn't what is hashed ([`extended`] knows).
    pub data: &'a [u8],
    /// What the template data says; empty for a template that isn't known here.
    pub fields: ImaFields<'a>,
    /// The kernel could not measure the file reliably: it extended 0xFF….
    pub violation: bool,
}

/// The fields of the known templates.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ImaFields<'a> {
    /// The file's hash algorithm as the kernel names it (`sha256`); `verity:sha256` where it is the
    /// digest of fs-verity's tree and not of the file. In the template `ima` always `sha1`, though
    /// the kernel may have written MD5 there.
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
