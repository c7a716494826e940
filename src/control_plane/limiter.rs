//! A bound on the records that callers without a certificate can make the server write.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use crate::clock::WallTime;
use crate::codes::Code;

/// Records of strangers' refusals a minute, of each code; the rest is counted.
const A_MINUTE: u32 = 60;

/// Lets a number of records a minute through and counts the others. Each code has its own number:
/// nobody hides an attack of one kind behind plenty of another.
#[derive(Debug, Default)]
pub struct Limiter(Mutex<BTreeMap<&'static str, State>>);

#[derive(Debug, Default)]
struct State {
    minute: u64,
    passed: u32,
    suppressed: u64,
}

impl Limiter {
    /// `Some` if a record with this code may be written, with the number of those that weren't since
    /// the last.
    pub fn pass(&self, now: WallTime, code: Code) -> Option<u64> {
        let mut states = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let state = states.entry(code.as_str()).or_default();
        let minute = now.0 / 60;
        if state.minute != minute {
            state.minute = minute;
            state.passed = 0;
        }
        if state.passed >= A_MINUTE {
            state.suppressed = state.suppressed.saturating_add(1);
            return None;
        }
        state.passed += 1;
        Some(std::mem::take(&mut state.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_write_so_much_a_minute_and_the_rest_is_counted() {
        use crate::codes::{ENROL_ACTIVATION, PROTOCOL_MALFORMED};
        let limiter = Limiter::default();
        let passed = (0..100).filter(|_| limiter.pass(WallTime(0), PROTOCOL_MALFORMED).is_some()).count();
        assert_eq!(passed, 60);
        assert_eq!(limiter.pass(WallTime(0), ENROL_ACTIVATION), Some(0));
        assert_eq!(limiter.pass(WallTime(60), PROTOCOL_MALFORMED), Some(40));
        assert_eq!(limiter.pass(WallTime(61), PROTOCOL_MALFORMED), Some(0));
    }
}
