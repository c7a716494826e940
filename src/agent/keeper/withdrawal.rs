//! Withdrawals: what was taken back is dropped at once, and what is still on its way of it isn't taken up.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use tokio::sync::broadcast;

use super::{Holdings, Keeper};
use crate::codes::Refusal;
use crate::gate::{Reason, Standing};
use crate::protocol::{Withdrawal, Withdrawn};

/// Credentials whose withdrawal is remembered.
const REMEMBERED: usize = 1024;

/// Told of each withdrawal before it is acknowledged.
pub type Observer = Box<dyn Fn(&Withdrawal) + Send + Sync>;

/// What was withdrawn, and when in the order of withdrawals.
#[derive(Debug, Default)]
pub(super) struct Taken {
    /// How many there were.
    mark: u64,
    /// Of each registered workload the last one, and why.
    workloads: BTreeMap<String, (u64, Refusal)>,
    /// Of everything.
    node: Option<(u64, Refusal)>,
    /// Credentials, by serial number or `jti`: these aren't given again. One may still be on its way.
    ended: VecDeque<(String, Refusal)>,
}

impl Taken {
    /// Notes a withdrawal; of workloads those that are `registered`, for only those are asked for.
    fn note(&mut self, withdrawal: &Withdrawal, registered: impl Fn(&str) -> bool) {
        self.mark = self.mark.saturating_add(1);
        let why = (self.mark, withdrawal.refusal.clone());
        match &withdrawal.of {
            Withdrawn::Node => self.node = Some(why),
            Withdrawn::Workloads(ids) => {
                let ids = ids.iter().filter(|id| registered(id));
                self.workloads.extend(ids.map(|id| (id.clone(), why.clone())));
            }
            Withdrawn::Credential(id) => {
                self.ended.retain(|(known, _)| known != id);
                self.ended.push_back((id.clone(), why.1));
                if self.ended.len() > REMEMBERED {
                    self.ended.pop_front();
                }
            }
            // What is on its way of it isn't taken up by whoever began it, who observes.
            Withdrawn::Task(_) => {}
        }
    }

    /// How many withdrawals there were so far.
    pub(super) const fn mark(&self) -> u64 {
        self.mark
    }

    /// Why what was asked for at `mark` must not be held, if so.
    pub(super) fn crossed(&self, mark: u64, workload: &str, credentials: &[&str]) -> Option<Refusal> {
        let later = |why: &(u64, Refusal)| (why.0 > mark).then(|| why.1.clone());
        self.node
            .as_ref()
            .and_then(later)
            .or_else(|| self.workloads.get(workload).and_then(later))
            .or_else(|| credentials.iter().find_map(|id| self.ended(id)))
    }

    /// Why this credential ended, if it was withdrawn by name.
    pub(super) fn ended(&self, id: &str) -> Option<Refusal> {
        self.ended.iter().find(|(known, _)| known == id).map(|(_, why)| why.clone())
    }

    /// Forgets workloads that are no longer this node's: of them nothing is held anyway.
    pub(super) fn retain(&mut self, registered: impl Fn(&str) -> bool) {
        self.workloads.retain(|id, _| registered(id));
    }
}

impl Holdings {
    /// Drops, and so wipes, what is held of it. Returns the workloads that lost a credential, with its serial number.
    fn take_back(&mut self, withdrawal: &Withdrawal) -> Vec<(String, String)> {
        let ids: BTreeSet<String> = self.store.entries().iter().map(|entry| entry.id.clone()).collect();
        self.taken.note(withdrawal, |id| ids.contains(id));
        self.issued.take(&withdrawal.of, &withdrawal.refusal);
        let mut dropped = Vec::new();
        match &withdrawal.of {
            // The gate is closed by the caller, which drops everything.
            Withdrawn::Node => dropped.extend(self.store.serials()),
            Withdrawn::Workloads(withdrawn) => {
                for id in withdrawn.iter().filter(|id| ids.contains(*id)) {
                    dropped.extend(self.store.drop_svid(id).map(|serial| (id.clone(), serial)));
                    self.store.drop_tokens(id);
                    // Until another lease, or a registration without this: then it is asked for anew.
                    self.refused.insert(id.clone(), withdrawal.refusal.clone());
                }
            }
            Withdrawn::Credential(credential) => {
                self.store.drop_token(credential);
                let holder = self.store.serials().into_iter().find(|(_, serial)| serial == credential);
                dropped.extend(holder.inspect(|(id, _)| drop(self.store.drop_svid(id))));
            }
            // Its credentials are with whoever began it, who observes.
            Withdrawn::Task(_) => {}
        }
        dropped
    }
}

/// What came of a withdrawal here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Applied {
    /// The change that open streams must have noticed before it is acknowledged.
    pub change: u64,
    /// The workloads that lost a credential, with its serial number.
    pub dropped: Vec<(String, String)>,
}

impl Keeper {
    /// Stops releasing what is withdrawn: when this returns, nothing of it is released any more. Open streams
    /// end as soon as they are polled ([`Self::noticed`]).
    pub fn withdraw(&self, withdrawal: &Withdrawal) -> Applied {
        let dropped = self.holdings().take_back(withdrawal);
        if withdrawal.of == Withdrawn::Node {
            self.close(Reason::new(Standing::Contraindicated, withdrawal.refusal.clone()));
        }
        for observer in self.observers().iter() {
            observer(withdrawal);
        }
        // Nobody listening is no error.
        let _ = self.withdrawn.send(withdrawal.clone());
        let change = self.changes.changed();
        tracing::warn!(
            number = withdrawal.number,
            of = named(&withdrawal.of),
            dropped = dropped.len(),
            "withdrawn: {}",
            withdrawal.refusal
        );
        // A credential that ended alone is asked for anew.
        self.drifted.notify_one();
        Applied { change, dropped }
    }

    /// Returns once every open stream has dealt with this change or has ended.
    pub async fn noticed(&self, change: u64) {
        self.changes.noticed(change).await;
    }

    /// Adds somebody who drops what he holds himself: called for each withdrawal before it is acknowledged,
    /// under no lock of the keeper's holdings. He must not block.
    pub fn observe(&self, observer: Observer) {
        self.observers().push(observer);
    }

    /// Every withdrawal from now on, for those whose lagging behind does no harm.
    pub fn withdrawn(&self) -> broadcast::Receiver<Withdrawal> {
        self.withdrawn.subscribe()
    }

    /// A task of a workload ended here: the tokens it was given aren't accepted any more.
    pub(in crate::agent) fn task_ended(&self, workload: &str, task: &str, why: &Refusal) {
        self.holdings().issued.end_task(workload, task, why);
    }
}

/// What is withdrawn, in a few words: a list of workloads may be long.
fn named(of: &Withdrawn) -> String {
    match of {
        Withdrawn::Node => "the node".to_owned(),
        Withdrawn::Workloads(ids) => {
            let first: String = ids.first().map_or("", String::as_str).chars().take(256).collect();
            format!("{} workloads, the first {first}", ids.len())
        }
        Withdrawn::Credential(id) => format!("credential {id}"),
        Withdrawn::Task(id) => format!("task {id}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codes;

    fn withdrawal(of: Withdrawn) -> Withdrawal {
        Withdrawal { number: 1, of, refusal: Refusal::new(codes::GATE_REVOKED, "a test") }
    }

    #[test]
    fn what_was_asked_for_before_its_withdrawal_is_not_taken_up() {
        let mut taken = Taken::default();
        let before = taken.mark;
        taken.note(&withdrawal(Withdrawn::Workloads(vec!["a".to_owned(), "not here".to_owned()])), |id| id == "a");
        assert!(taken.crossed(before, "a", &[]).is_some());
        assert!(taken.crossed(before, "b", &[]).is_none());
        assert_eq!(taken.workloads.len(), 1, "what isn't this node's is never asked for");
        // Decided anew since: another matter.
        assert!(taken.crossed(taken.mark, "a", &[]).is_none());
        // A credential stays ended, whenever it was asked for.
        taken.note(&withdrawal(Withdrawn::Credential("07".to_owned())), |_| true);
        assert!(taken.crossed(taken.mark, "b", &["06", "07"]).is_some());
        assert!(taken.crossed(taken.mark, "b", &["08"]).is_none());
        taken.note(&withdrawal(Withdrawn::Node), |_| true);
        assert!(taken.crossed(taken.mark - 1, "b", &[]).is_some());
        assert!(taken.crossed(taken.mark, "b", &[]).is_none());
        taken.retain(|id| id != "a");
        assert!(taken.workloads.is_empty());
        for number in 0..2 * REMEMBERED {
            taken.note(&withdrawal(Withdrawn::Credential(number.to_string())), |_| true);
        }
        assert_eq!(taken.ended.len(), REMEMBERED);
    }
}
