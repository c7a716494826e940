//! Counts what one process does again and again, so that it becomes one record: the first time is written, its
//! repeats are counted for [`WINDOW`] and written as a number.

use std::collections::HashMap;
use std::time::Duration;

use super::{Note, What};
use crate::clock::BootInstant;
use crate::codes::Code;

/// Repeats are counted for so long before their number is written: a kill -9 loses at most these counts, never
/// a first release.
pub const WINDOW: Duration = Duration::from_secs(5);

/// So many notes are counted at a time; what is new beyond that is written each time.
const MOST: usize = 4096;

/// So many pairs of user and code are told apart among denials; those beyond are counted by their code alone, so
/// that nobody who asks and asks fills the disk.
const DENIALS: usize = 256;

/// What is counted now.
#[derive(Debug, Default)]
pub struct Repeats {
    counted: HashMap<Note, Counted>,
    /// The first denial of each user and code that is counted, and since when.
    denied: HashMap<(String, Option<Code>), (BootInstant, Note)>,
}

#[derive(Debug)]
struct Counted {
    since: BootInstant,
    pending: u64,
}

impl Repeats {
    /// Counts `note`, if it was written before and is counted since.
    pub fn again(&mut self, note: &Note) -> bool {
        match self.counted.get_mut(note) {
            Some(counted) => {
                counted.pending = counted.pending.saturating_add(1);
                true
            }
            None => false,
        }
    }

    /// The note was written: from now on it is counted.
    pub fn written(&mut self, note: &Note, now: BootInstant) {
        if note.what != What::End && self.counted.len() < MOST {
            self.counted.entry(note.clone()).or_insert(Counted { since: now, pending: 0 });
        }
    }

    /// The form in which a denial is written: as the first of the same user and code, whatever further words this
    /// one has, or with many others of its code.
    pub fn bounded(&mut self, note: Note, nearly_full: bool, now: BootInstant) -> Note {
        let key = (note.process.clone(), note.code);
        if let Some((_, first)) = self.denied.get(&key) {
            return first.clone();
        }
        if self.denied.len() < DENIALS && self.counted.len() < MOST / 2 && !nearly_full {
            self.denied.insert(key, (now, note.clone()));
            return note;
        }
        Note {
            workload: None,
            credential: None,
            decision: None,
            task: None,
            lease: None,
            process: "many".to_owned(),
            reason: "denials of which there were too many to record each".to_owned(),
            ..note
        }
    }

    /// What is to be written by now: notes with their numbers. With `all`, whatever is counted. What isn't
    /// repeated any more is forgotten.
    pub fn due(&mut self, now: BootInstant, all: bool) -> Vec<(Note, u64)> {
        let mut due = Vec::new();
        self.counted.retain(|note, counted| {
            if !all && now.since(counted.since) < WINDOW {
                return true;
            }
            if counted.pending == 0 {
                return false;
            }
            due.push((note.clone(), std::mem::take(&mut counted.pending)));
            counted.since = now;
            true
        });
        // One that is on its way to the disk isn't counted yet, and the next of its user and code comes before it is.
        self.denied.retain(|_, (since, note)| now.since(*since) < WINDOW || self.counted.contains_key(note));
        due
    }

    /// What was due couldn't be written: it is counted on.
    pub fn undo(&mut self, due: Vec<(Note, u64)>, now: BootInstant) {
        for (note, count) in due {
            let counted = self.counted.entry(note).or_insert(Counted { since: now, pending: 0 });
            counted.pending = counted.pending.saturating_add(count);
        }
    }
}
