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
                    // PCR 10 stands further in the lease than in the reading, for all that is known.
                    Some(_) if newest.started_at < holdings.leased_at => {
                        let found = format!("it began at {:?}", newest.started_at);
                        let expected = format!("not before the lease's values were read, {:?}", holdings.leased_at);
                        let refusal = Refusal::new(codes::GATE_READING_OLD, found).expected(expected);
                        return Err(Reason::new(Standing::Stale, refusal));
                    }
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

#[cfg(test)]
pub(super) mod tests {
    use std::path::PathBuf;
    use std::time::Duration;

    use super::*;
    use crate::agent::journal::Journal;
    use crate::agent::sources::Sources;
    use crate::clock::{BootId, WallTime};
    use crate::config::AgentLogs;
    use crate::identity::{NodeId, TrustDomain};
    use crate::measurements::Watcher;
    use crate::protocol::ListPosition;
    use crate::shutdown::CancellationToken;
    use crate::tpm::{Bank, PcrSelection, PcrValues, ResetCounts, Tpm, TpmAddress};
    use crate::verify::{Lease, LeaseClaims, TrustVector};

    const COUNTS: ResetCounts = ResetCounts { reset: 1, restart: 0 };

    /// A keeper that never reads: its TPM is nowhere.
    pub(in crate::agent::keeper) fn keeper() -> Keeper {
        let domain = TrustDomain::new("example.org").unwrap();
        let address = TpmAddress::parse("swtpm:host=127.0.0.1,port=1").unwrap();
        let (tpm, _) = Tpm::spawn(address, Duration::from_secs(1), &domain).unwrap();
        let selection = "sha256:10".parse().unwrap();
        let (watcher, _) = Watcher::new(tpm, selection, Duration::from_secs(1), CancellationToken::new());
        let none = PathBuf::new;
        let logs = AgentLogs { boot: none(), userspace: none(), ima: none() };
        let directory = tempfile::tempdir().unwrap();
        let (journal, _) = Journal::start(directory.path(), 1 << 20).unwrap();
        Keeper::new(domain, watcher, Arc::new(Sources::open(&logs).unwrap()), journal)
    }

    fn values(pcr_10: u8) -> PcrValues {
        let selection = PcrSelection::new(Bank::Sha256, [10]).unwrap();
        PcrValues::new(selection, [(10, vec![pcr_10; 32])].into()).unwrap()
    }

    pub(in crate::agent::keeper) fn reading(
        started_at: BootInstant,
        finished_at: BootInstant,
        pcr_10: u8,
    ) -> Arc<PcrReading> {
        let values = values(pcr_10);
        Arc::new(PcrReading { started_at, finished_at, values, update_counter: 0, counts: COUNTS })
    }

    pub(in crate::agent::keeper) fn lease(requested_at: BootInstant, pcr_10: u8) -> Lease {
        Lease::for_test(LeaseClaims {
            node: NodeId::from_bytes([1; 32]),
            ak_name: Vec::new(),
            node_key_name: Vec::new(),
            boot_id: BootId::from_bytes([2; 16]),
            counts: COUNTS,
            profile: "test".to_owned(),
            reference_version: 1,
            sequence: 1,
            requested_at,
            term: Duration::from_secs(60),
            pcrs: values(pcr_10),
            vector: TrustVector::default(),
            issued_at: WallTime(0),
            epoch: [0; 16],
            rules: Some([3; 32]),
        })
    }

    /// While evidence is gathered, the watcher reads between the agent's reading and its quote: what it found is
    /// older than the lease, and may be judged only after that opened the gate.
    #[tokio::test]
    async fn a_reading_from_before_the_quote_of_the_lease_is_no_drift() {
        let keeper = keeper();
        let start = BootInstant::now();
        let at = |ms| start.after(Duration::from_millis(ms));
        // Read from 0 ms on, with the value that was quoted 20 ms later.
        let gathered = reading(at(0), at(20), 7);
        let position = Some(ListPosition { entries: 9, offset: 900, padded: false });
        keeper.open(lease(at(0), 7), &gathered, position, 0).await.unwrap();
        let between = reading(at(10), at(11), 6);
        let refused = keeper.judged(&between, at(10)).await.unwrap_err();
        assert_eq!((refused.standing, refused.refusal.code), (Standing::Stale, codes::GATE_READING_OLD));
        assert!(keeper.sequence().is_some(), "the gate closed on what was before its lease");
        // The same value later is one that no list leads to.
        let later = reading(at(21), at(22), 6);
        let refused = keeper.judged(&later, at(21)).await.unwrap_err();
        assert_eq!(refused.refusal.code, codes::GATE_DRIFT);
        assert!(keeper.sequence().is_none());
    }
}
