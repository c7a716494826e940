//! The kernel's own digest of a file with fs-verity: the root of a tree over its blocks, which the kernel holds every
//! page against that it reads from then on. Asking for it reads nothing of the file.
//!
//! Only file systems whose measurement is the kernel's are believed. FUSE hands the question on to whoever serves
//! it (Linux 6.10), so there the answer would be a user's own.

use std::fmt;
use std::fs::File;
use std::io;

use composefs_ioctls::fsverity::{MeasureVerityError, fs_ioc_measure_verity};
use rustix::fs::fstatfs;

use super::selector::hexadecimal;

/// What can have fs-verity by the kernel alone, by `f_type` (statfs(2), linux/magic.h).
const MEASURED: [(u64, &str); 3] = [(0xEF53, "ext4"), (0xF2F5_2010, "f2fs"), (0x9123_683E, "btrfs")];

/// FS_VERITY_HASH_ALG_SHA256 and FS_VERITY_HASH_ALG_SHA512 (linux/fsverity.h).
const SHA256: u8 = 1;
const SHA512: u8 = 2;

/// A digest with its algorithm, `sha256:HEX` or `sha512:HEX`, as `fsverity measure` prints it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Verity {
    /// By SHA-256.
    Sha256([u8; 32]),
    /// By SHA-512.
    Sha512([u8; 64]),
}

impl Verity {
    /// Reads the text form, in its only spelling.
    pub(super) fn parse(text: &str) -> Option<Self> {
        match text.split_once(':')? {
            ("sha256", digest) => hexadecimal(digest).map(Self::Sha256),
            ("sha512", digest) => hexadecimal(digest).map(Self::Sha512),
            _ => None,
        }
    }

    /// Asks the kernel for the digest of `file`, which is open for reading.
    ///
    /// # Errors
    /// Where there is none, saying why; otherwise that of the ioctl.
    pub(super) fn of(file: &File) -> io::Result<Self> {
        let kind = fstatfs(file)?.f_type;
        let name = MEASURED.iter().find(|(magic, _)| u64::try_from(kind) == Ok(*magic)).map(|(_, name)| name);
        let Some(name) = name else {
            let found = format!("it lies on a file system (type {kind:#x}) that has no fs-verity of the kernel's");
            return Err(io::Error::other(found));
        };
        let digest = match fs_ioc_measure_verity(file, SHA256).map(Self::Sha256) {
            // It has one by another algorithm, or a longer one.
            Err(MeasureVerityError::InvalidDigestAlgorithm { .. } | MeasureVerityError::InvalidDigestSize { .. }) => {
                fs_ioc_measure_verity(file, SHA512).map(Self::Sha512)
            }
            digest => digest,
        };
        digest.map_err(|error| match error {
            MeasureVerityError::Io(error) => error,
            MeasureVerityError::VerityMissing => io::Error::other("fs-verity isn't enabled on it"),
            MeasureVerityError::FilesystemNotSupported => {
                io::Error::other(format!("its file system ({name}) or the kernel has no fs-verity"))
            }
            error => io::Error::other(error),
        })
    }
}

impl fmt::Display for Verity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sha256(digest) => write!(f, "sha256:{}", hex::encode(digest)),
            Self::Sha512(digest) => write!(f, "sha512:{}", hex::encode(digest)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Which of the two it is depends on the kernel that runs the tests; neither is a digest. One that has a digest is
    /// measured in the machine of `tests/run boot`.
    #[test]
    fn a_file_without_fs_verity_has_no_digest_and_says_why() {
        let why = Verity::of(&File::open("/proc/self/exe").unwrap()).unwrap_err().to_string();
        assert!(why.contains("fs-verity"), "{why}");
        let why = Verity::of(&File::open("/proc/self/status").unwrap()).unwrap_err().to_string();
        assert!(why.contains("0x9fa0"), "procfs: {why}");
    }
}
