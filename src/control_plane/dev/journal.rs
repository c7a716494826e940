//! What passed the relay, in the order the TPM saw it.

use std::collections::BTreeMap;

use super::wire;
use crate::clock::BootInstant;

/// What the journal keeps.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord)]
pub enum Recording {
    /// Counts only.
    Counts,
    /// The order of commands and answers, without their bytes.
    Order,
    /// Everything.
    Frames,
}

/// Which way a journal entry went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// A command, as the TPM got it.
    ToTpm,
    /// An answer, as the TPM gave it.
    FromTpm,
    /// A command as a user sent it, where a tap kept or changed it.
    FromUser,
    /// An answer as a user got it, where a tap made or changed it.
    ToUser,
}

/// A line of the journal. Entries to and from the TPM stand in the order the TPM saw them.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The user's connection; 0 for the relay's own commands.
    pub user: u64,
    /// When it was sent or had been received whole.
    pub at: BootInstant,
    /// Which way it went.
    pub direction: Direction,
    /// The command code, also for an answer.
    pub command: u32,
    /// The response code, for an answer.
    pub response: Option<u32>,
    /// The bytes, with [`Recording::Frames`].
    pub bytes: Vec<u8>,
}

/// The relay's memory.
pub(super) struct Journal {
    pub(super) recording: Recording,
    /// Commands that users sent, by code.
    pub(super) counts: BTreeMap<u32, u64>,
    pub(super) entries: Vec<Entry>,
}

impl Journal {
    pub(super) const fn new() -> Self {
        Self { recording: Recording::Counts, counts: BTreeMap::new(), entries: Vec::new() }
    }

    /// Writes an entry if entries are kept, and returns its moment: taken here, under the journal's
    /// lock, so that entries stand in the order of their moments.
    pub(super) fn note(&mut self, user: u64, direction: Direction, command: u32, bytes: &[u8]) -> BootInstant {
        let at = BootInstant::now();
        if self.recording >= Recording::Order {
            let answer = matches!(direction, Direction::FromTpm | Direction::ToUser);
            self.entries.push(Entry {
                user,
                at,
                direction,
                command,
                response: answer.then(|| wire::header_code(bytes)),
                bytes: if self.recording == Recording::Frames { bytes.to_vec() } else { Vec::new() },
            });
        }
        at
    }
}
