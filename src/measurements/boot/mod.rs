//! The firmware's boot event log (TCG PC Client Platform Firmware Profile 1.06, section 10).
//!
//! Nothing in a log is believed here: an event is what somebody wrote beside a PCR. `verify`
//! decides what follows, after replay.

mod header;
mod parse;
mod replay;

use super::{EventType, LogHash};
use crate::codes::Refusal;

pub use replay::{PcrBank, Step};

/// The largest boot log that is read, in bytes: 4 MiB. Real ones have less than 200 KiB.
pub const LIMIT: usize = 4 << 20;
/// The most events of one log.
pub const EVENTS_LIMIT: usize = 100_000;
/// The most data of one event, in bytes: 1 MiB. A large dbx has 24 KiB.
pub const DATA_LIMIT: usize = 1 << 20;

/// A boot event log, read whole.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct BootLog {
    /// The banks that every extending event has a digest for, in the order of the log's header.
    pub banks: Vec<LogHash>,
    /// The events in the log's order, EV_NO_ACTION ones included; the header is number 0.
    pub events: Vec<BootEvent>,
    /// The locality of TPM2_Startup that the log states: the last byte of PCR 0's initial value.
    pub startup_locality: Option<u8>,
    /// A log in the format of TPM 1.2: SHA-1 only. Readable, refused by default.
    pub sha1_only: bool,
    /// What a reader should know: padding that was cut, banks that were not read.
    pub notes: Vec<String>,
}

/// One event.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BootEvent {
    /// Its number in the log, from 0.
    pub number: u32,
    /// Where its record begins, in bytes from the log's start.
    pub offset: usize,
    /// The PCR it says it extended, 0 to 23.
    pub pcr: u8,
    /// Its type, which nothing vouches for.
    pub kind: EventType,
    /// The digests that were extended, in the order of [`BootLog::banks`]; further ones, of banks
    /// that other events lack, after them. None for EV_NO_ACTION, which extends nothing.
    pub digests: Vec<(LogHash, Vec<u8>)>,
    /// Its data, which only a recomputed digest vouches for.
    pub data: Vec<u8>,
}

impl BootEvent {
    /// The digest in this bank.
    pub fn digest(&self, bank: LogHash) -> Option<&[u8]> {
        self.digests.iter().find(|(hash, _)| *hash == bank).map(|(_, digest)| digest.as_slice())
    }

    /// Whether it extended its PCR. EV_NO_ACTION never does.
    pub fn extends(&self) -> bool {
        self.kind != EventType::NO_ACTION
    }
}

impl BootLog {
    /// Reads a log.
    ///
    /// # Errors
    /// [`crate::codes::MEASUREMENTS_BOOT_LOG`] naming the event and the byte, and
    /// [`crate::codes::MEASUREMENTS_TOO_LARGE`].
    pub fn parse(bytes: &[u8]) -> Result<Self, Refusal> {
        parse::parse(bytes)
    }
}
