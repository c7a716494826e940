//! Judging readings: the gate decides; where PCR 10 moved, IMA's list is followed first.

use std::sync::Arc;

use super::{Keeper, tpm_reset};
use crate::agent::follower::{Followed, unexplained};
use crate::clock::BootInstant;
use crate::codes::{self, Refusal};
use crate::gate::{Permit, Reason, Standing};
use crate::measurements::Observation;
use crate::tpm::{IMA_PCR, PcrDifference, PcrReading, TpmError};

impl Keeper {
    /// Judges what the watcher found.
    pub(super) async fn judge(&self, observation: &Observation) {
        let reason = match observation {
            Ok(reading) => {
                let changed = {
                    let mut holdings = self.holdings();
                    holdings.tpm_trouble = None;
                    let last = holdings.last_reading.replace(Arc::clone(reading));
                    last.is_some_and(|last| last.values != reading.values || last.counts != reading.counts)
                };
                // Its own start as the request's arrival: the reading itself is what is judged.
                drop(self.judged(reading, reading.started_at).await);
                // A node that stands badly and then changed may stand well again: that isn't left to a pause.
                if changed && self.holdings().gate.standing() == Standing::Contraindicated {
                    self.drifted.notify_one();
                }
                return;
            }
            Err(TpmError::Reset) => tpm_reset(),
            Err(error @ TpmError::Swapped { .. }) => Reason::new(Standing::Contraindicated, error.clone().into()),
            // Unavailable is not untrusted: noted, and nothing concluded.
            Err(error) => {
                self.holdings().tpm_trouble = Some(error.clone());
                return;
            }
        };
        let ((), ended) = self.holdings().step(|gate, _| gate.close(reason));
        self.ended(ended);
    }

    /// Judges a reading for a request of `arrived`, or the newest there is. Where PCR 10 moved under a lease
    /// with rules, IMA's list is followed first: it is read after the reading, so what was extended by then is
    /// in it.
    pub(super) async fn judged(&self, reading: &Arc<PcrReading>, arrived: BootInstant) -> Result<Permit, Reason> {
        /// So often another lease may come between.
        const ROUNDS: usize = 8;
        let mut place = None;
        for _ in 0..ROUNDS {
            let (newest, moved) = {
                let mut holdings = self.holdings();
                let newest = holdings.newest(reading);
                match holdings.gate.moved(&newest) {
                    Some(moved) => (newest, moved),
                    None => {
                        let (judged, ended) = holdings.step(|gate, now| gate.judge(&newest, None, arrived, now));
                        drop(holdings);
                        self.ended(ended);
                        return judged;
                    }
                }
            };
            // One at a time; and what the one before found may be enough for this one.
            let Some(place) = &mut place else {
                place = Some(self.follower.lock().await);
                continue;
            };
            let followed = self.follower.follow(place, &moved).await;
            let mut holdings = self.holdings();
            if holdings.gate.moved(&newest).as_ref() != Some(&moved) {
                continue;
            }
            let bank = newest.values.selection().bank();
            let against = |refusal| {
                let (found, expected) = (hex::encode(&moved.to), hex::encode(&moved.from));
                let difference = PcrDifference { bank: bank.to_string(), pcr: IMA_PCR, found, expected };
                Reason { differences: vec![difference], ..Reason::new(Standing::Contraindicated, refusal) }
            };
            let reason = match followed {
                Followed::Allowed(advanced, at) => {
                    let (judged, ended) = holdings.step(|gate, now| gate.judge(&newest, Some(&advanced), arrived, now));
                    let went_on = holdings.gate.lease().is_some() && holdings.gate.moved(&newest).is_none();
                    if went_on {
                        holdings.new_entries = holdings.new_entries.saturating_add(advanced.entries());
                        place.advance(at);
                    }
                    drop(holdings);
                    self.ended(ended);
                    if went_on {
                        self.grown.notify_one();
                    }
                    return judged;
                }
                Followed::Refused(refusal) => against(refusal),
                Followed::Unexplained(why) => against(unexplained(&moved, bank.as_str(), &why)),
            };
            let ((), ended) = holdings.step(|gate, _| gate.close(reason.clone()));
            drop(holdings);
            self.ended(ended);
            return Err(reason);
        }
        let refusal = Refusal::new(codes::GATE_READING_OLD, "one lease after another came in between");
        Err(Reason::new(Standing::Stale, refusal))
    }
}
