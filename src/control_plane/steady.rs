//! The server's clock: the wall clock, but never earlier than it already was.
//!
//! Leases, certificates and nonces end by it. A clock that is set back would give ended ones their
//! time again; then this one goes on from where it was, at the pace of the time since boot, until
//! the wall clock has caught up.

use std::sync::{Arc, Mutex, PoisonError};

use super::audit;
use super::server::Now;
use super::store::{Transaction, meta};
use crate::clock::{BootInstant, WallTime};
use crate::codes::Refusal;

/// Where the store keeps the highest time.
const NAME: &str = "wall_clock";
/// Seconds between two writes of it: so much is forgotten at a restart.
const KEPT_EVERY: u64 = 60;
/// A smaller step back, in seconds, is what time synchronisation does.
const REMARKABLE: u64 = 60;

/// A clock that doesn't go back.
pub struct Steady {
    wall: Now,
    state: Mutex<State>,
}

struct State {
    /// The highest time the wall clock showed …
    highest: WallTime,
    /// … and when it did.
    at: BootInstant,
    /// Whether the wall clock shows less than that.
    behind: bool,
    /// By how many seconds it was behind when that was last remarked on.
    remarked: u64,
    /// A step back to be recorded: from, to.
    step: Option<(WallTime, WallTime)>,
    /// What the store keeps.
    kept: WallTime,
}

impl Steady {
    /// The clock over `wall`; `accept` takes it as it is, whatever an earlier run had seen.
    ///
    /// # Errors
    /// [`crate::codes::STORE_FAILED`].
    pub fn open(tx: &Transaction<'_>, wall: Now, accept: bool) -> Result<Arc<Self>, Refusal> {
        let kept = if accept { WallTime(0) } else { WallTime(meta::number(tx, NAME)?) };
        let state = State { highest: kept, at: BootInstant::now(), behind: false, remarked: 0, step: None, kept };
        Ok(Arc::new(Self { wall, state: Mutex::new(state) }))
    }

    /// This clock where the wall clock is asked for.
    pub fn as_now(self: &Arc<Self>) -> Now {
        let clock = self.clone();
        Arc::new(move || clock.now())
    }

    /// The present time: never less than a time it gave before.
    pub fn now(&self) -> WallTime {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.read((self.wall)(), BootInstant::now())
    }

    /// Records a step back, and keeps the time across restarts, once a minute.
    ///
    /// # Errors
    /// [`crate::codes::STORE_FAILED`].
    pub fn keep(&self, tx: &Transaction<'_>) -> Result<(), Refusal> {
        let now = self.now();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((from, to)) = state.step.take() {
            tracing::error!(%from, %to, "the wall clock went back; the server's time goes on from where it was. \
                If it had been wrong before, restart with `run --accept-clock`");
            let detail = serde_json::json!({ "from": from.to_string(), "to": to.to_string() });
            audit::done(tx, now, "clock.went_back", None, detail)?;
        }
        if now.0 >= state.kept.0.saturating_add(KEPT_EVERY) {
            meta::set_number(tx, NAME, now.0)?;
            state.kept = now;
        }
        Ok(())
    }
}

impl State {
    fn read(&mut self, wall: WallTime, boot: BootInstant) -> WallTime {
        let gone_on = self.highest.after(boot.since(self.at));
        let reached = if self.behind { gone_on } else { self.highest };
        if wall >= reached {
            (self.highest, self.at, self.behind, self.remarked) = (wall, boot, false, 0);
            return wall;
        }
        self.behind = true;
        let by = gone_on.0.saturating_sub(wall.0);
        if by > self.remarked.saturating_add(REMARKABLE) {
            self.remarked = by;
            self.step = Some((gone_on, wall));
        }
        gone_on
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn it_goes_on_while_the_wall_clock_is_behind() {
        let at = |seconds: u64| BootInstant::from_nanos(0).after(Duration::from_secs(seconds));
        let mut state =
            State { highest: WallTime(0), at: at(0), behind: false, remarked: 0, step: None, kept: WallTime(0) };
        for (wall, boot, shown, steps) in [
            (1000, 0, 1000, false),
            (1000, 5, 1000, false),
            // A small correction.
            (990, 10, 1005, false),
            (995, 15, 1010, false),
            (1020, 20, 1020, false),
            // Set back by an hour, then further, then forward.
            (0, 30, 1030, true),
            (10, 40, 1040, false),
            (1050, 50, 1050, false),
            (900, 51, 1051, true),
            (2000, 60, 2000, false),
        ] {
            assert_eq!(state.read(WallTime(wall), at(boot)), WallTime(shown), "wall {wall} at {boot}");
            assert_eq!(state.step.take().is_some(), steps, "wall {wall} at {boot}");
        }
    }
}
