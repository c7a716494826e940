//! Keeps a log readable while a client asks again and again: the first refusal of a user with a
//! code is logged at once, its repeats once in ten seconds, with their number.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::clock::BootInstant;
use crate::codes::{Code, Refusal};

/// Repeats within this time are one line.
const WINDOW: Duration = Duration::from_secs(10);

/// As many (user, code) pairs are remembered; beyond that everything is forgotten and begins anew.
const MOST: usize = 1024;

/// When a user was last told of a code in the log, and how often not since.
type Logged = BTreeMap<(u32, &'static str), (BootInstant, u64)>;

/// What was logged lately.
#[derive(Debug, Default)]
pub(super) struct Repeats {
    logged: Mutex<Logged>,
}

impl Repeats {
    /// Logs `what` happened to a caller of `uid`, unless the same was said just now.
    pub(super) fn say(&self, uid: u32, refusal: &Refusal, what: &str) {
        if let Some(before) = self.due(uid, refusal.code, BootInstant::now()) {
            tracing::info!(uid, code = %refusal.code, %refusal, held_back = before, "{what}");
        }
    }

    /// Whether this refusal is to be logged now, and how many were not since the last that was.
    pub(super) fn due(&self, uid: u32, code: Code, now: BootInstant) -> Option<u64> {
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        if logged.len() >= MOST {
            logged.clear();
        }
        match logged.get_mut(&(uid, code.as_str())) {
            Some((since, held_back)) if now.since(*since) < WINDOW => {
                *held_back += 1;
                None
            }
            Some(entry) => Some(std::mem::replace(entry, (now, 0)).1),
            None => {
                logged.insert((uid, code.as_str()), (now, 0));
                Some(0)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codes;

    #[test]
    fn repeats_are_counted_and_said_once_in_a_while() {
        let repeats = Repeats::default();
        let at = |seconds: u64| BootInstant::from_nanos(seconds * 1_000_000_000);
        assert_eq!(repeats.due(1, codes::GATE_DRIFT, at(1)), Some(0));
        assert_eq!(repeats.due(1, codes::GATE_DRIFT, at(2)), None);
        assert_eq!(repeats.due(1, codes::GATE_DRIFT, at(3)), None);
        assert_eq!(repeats.due(2, codes::GATE_DRIFT, at(3)), Some(0), "another user");
        assert_eq!(repeats.due(1, codes::GATE_STALE, at(3)), Some(0), "another code");
        assert_eq!(repeats.due(1, codes::GATE_DRIFT, at(11)), Some(2));
        assert_eq!(repeats.due(1, codes::GATE_DRIFT, at(12)), None);
    }
}
