//! systemd's log of what userspace measured, `/run/log/systemd/tpm2-measure.log`: JSON text
//! sequences (RFC 7464), one record for each extension.

use super::LogHash;
use crate::codes::Refusal;

/// The largest userspace log that is read, in bytes: 1 MiB.
pub const LIMIT: usize = 1 << 20;

/// The log, read whole.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct UserspaceLog {
    /// The records in the log's order.
    pub records: Vec<UserspaceRecord>,
}

/// One record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UserspaceRecord {
    /// Its number, from 0.
    pub number: u32,
    /// What was extended.
    pub target: Target,
    /// The digests, one for each bank.
    pub digests: Vec<(LogHash, Vec<u8>)>,
    /// `phase`, `filesystem`, `machine-id`, `os-separator`, …; nothing vouches for it.
    pub kind: String,
    /// What was measured. Only a recomputed digest vouches for it; for `volume-key` none can.
    pub string: Option<String>,
    /// The boot it says it is of, 32 hexadecimal digits.
    pub boot_id: Option<String>,
}

/// What a record says was extended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Target {
    /// A PCR.
    Pcr(u8),
    /// An NV index used as a PCR, by name.
    NvPcr(String),
}

impl UserspaceRecord {
    /// The digest in this bank.
    pub fn digest(&self, bank: LogHash) -> Option<&[u8]> {
        self.digests.iter().find(|(hash, _)| *hash == bank).map(|(_, digest)| digest.as_slice())
    }
}

impl UserspaceLog {
    /// Reads a log. Whether it was complete is not in its bytes but in the file's sticky bit: the
    /// source looks there.
    ///
    /// # Errors
    /// [`crate::codes::MEASUREMENTS_USERSPACE_LOG`] naming the record, and
    /// [`crate::codes::MEASUREMENTS_TOO_LARGE`].
    pub fn parse(_bytes: &[u8]) -> Result<Self, Refusal> {
        todo!("A")
    }
}
