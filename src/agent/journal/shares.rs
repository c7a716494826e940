//! What one user may still write once more than half of what may wait for the control plane does.
//!
//! A journal that is full stops every release on the node. While the control plane is away, a user with ever new processes
//! could fill it; so beyond the half each has a share, and who has used it up gets nothing more, alone.

use std::collections::HashMap;

use crate::codes::{self, Refusal};

/// A user's share is this part of what may wait.
const PART: u64 = 16;

/// What was written for each user since the journal was less than half full, in bytes.
#[derive(Debug, Default)]
pub struct Shares {
    limit: u64,
    taken: HashMap<u32, u64>,
}

impl Shares {
    /// Whether there is room for another record of this user.
    ///
    /// # Errors
    /// [`codes::AUDIT_UNWRITABLE`].
    pub fn room(&self, uid: u32) -> Result<(), Refusal> {
        let share = self.limit / PART;
        match self.taken.get(&uid) {
            Some(taken) if *taken >= share => {
                let found =
                    format!("the journal is more than half full, and uid {uid} has had its {share} bytes of the rest");
                Err(Refusal::new(codes::AUDIT_UNWRITABLE, found)
                    .expected("a control plane that can be reached, or fewer processes of this user that ask"))
            }
            _ => Ok(()),
        }
    }

    /// Counts what was written while more than half of `limit` waits.
    pub fn take(&mut self, limit: u64, uid: u32, bytes: usize) {
        self.limit = limit;
        let taken = self.taken.entry(uid).or_default();
        *taken = taken.saturating_add(bytes as u64);
    }

    /// Less than half waits again: everybody begins anew.
    pub fn clear(&mut self) {
        self.taken.clear();
    }
}
