//! Logs on their way: how both sides name what was sent so far, so that a quote can be bound to it
//! and an increment goes on where the last one ended.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The largest part of a log in one message, in bytes: with its frame it stays within 4 MiB.
pub const SEGMENT_LIMIT: usize = (4 << 20) - (64 << 10);

/// Which log. The order is that of the digests in evidence.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogKind {
    /// The firmware's boot event log.
    Boot,
    /// systemd's userspace log.
    Userspace,
    /// IMA's list.
    Ima,
}

impl LogKind {
    /// All of them, in their order.
    pub const ALL: [Self; 3] = [Self::Boot, Self::Userspace, Self::Ima];

    /// `boot`, `userspace` or `ima`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Boot => "boot",
            Self::Userspace => "userspace",
            Self::Ima => "ima",
        }
    }

    /// The kind of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }
}

impl std::fmt::Display for LogKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What was sent of a log so far: its length, and a hash over its parts that another part is added
/// to without the ones before it. Two sides with equal chains have the same bytes in the same parts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogChain {
    /// Bytes so far.
    pub length: u64,
    /// The hash; zeros before the first part.
    #[serde(with = "serde_bytes")]
    pub head: [u8; 32],
}

impl LogChain {
    /// The chain after one more part: SHA-256 over `leasehold-log-part-v1` and a NUL, the head before
    /// it, the length before it (u64, big-endian) and the part's SHA-256.
    #[must_use]
    pub fn append(self, part: &[u8]) -> Self {
        let mut hash = Sha256::new();
        hash.update(b"leasehold-log-part-v1\0");
        hash.update(self.head);
        hash.update(self.length.to_be_bytes());
        hash.update(Sha256::digest(part));
        let added = u64::try_from(part.len()).unwrap_or(u64::MAX);
        Self { length: self.length.saturating_add(added), head: hash.finalize().into() }
    }

    /// What evidence names it by: SHA-256 over `leasehold-log-v1` and a NUL, the kind's name and a NUL,
    /// the length (u64, big-endian) and the head.
    pub fn digest(&self, kind: LogKind) -> [u8; 32] {
        let mut hash = Sha256::new();
        hash.update(b"leasehold-log-v1\0");
        hash.update(kind.as_str());
        hash.update([0]);
        hash.update(self.length.to_be_bytes());
        hash.update(self.head);
        hash.finalize().into()
    }
}

/// The digests that evidence is bound to: one for each log of which there is anything, in order.
pub fn log_digests(chain: impl Fn(LogKind) -> LogChain) -> Vec<[u8; 32]> {
    LogKind::ALL
        .into_iter()
        .map(|kind| (kind, chain(kind)))
        .filter(|(_, chain)| chain.length > 0)
        .map(|(kind, chain)| chain.digest(kind))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_tells_bytes_parts_and_kinds_apart() {
        let one = LogChain::default().append(b"ab").append(b"cd");
        assert_eq!(one.length, 4);
        assert_eq!(one, LogChain::default().append(b"ab").append(b"cd"));
        for other in [
            LogChain::default().append(b"abcd"),
            LogChain::default().append(b"abc").append(b"d"),
            LogChain::default().append(b"cd").append(b"ab"),
            LogChain::default().append(b"ab").append(b"ce"),
        ] {
            assert_ne!(one.digest(LogKind::Ima), other.digest(LogKind::Ima));
        }
        assert_ne!(one.digest(LogKind::Ima), one.digest(LogKind::Boot));
    }

    #[test]
    fn an_empty_log_has_no_digest() {
        let chain = LogChain::default().append(b"x");
        let digests = log_digests(|kind| if kind == LogKind::Userspace { LogChain::default() } else { chain });
        assert_eq!(digests, [chain.digest(LogKind::Boot), chain.digest(LogKind::Ima)]);
    }
}
