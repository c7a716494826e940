//! Which tasks live, what each holds, and what is due of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use super::{Shared, Verdict, over};
use crate::agent::journal::{Note, What};
use crate::agent::keeper::{Chosen, Granted, There};
use crate::clock::BootInstant;
use crate::codes::{self, Refusal};
use crate::credentials::Held;
use crate::delivery::workload_api::Denied;
use crate::delivery::workload_api::tasks::{Over, Progress};
use crate::protocol::{TaskEnd, TaskStatement, Withdrawal, Withdrawn};
use crate::workload::Peer;

/// Live tasks of all, of one user, and of one workload.
const ALL: usize = 1024;
const OF_A_USER: usize = 256;
const OF_A_WORKLOAD: usize = 512;

/// The live tasks by number. Never held across an await; whoever also locks the keeper's holdings locks
/// those first.
#[derive(Debug, Default)]
pub(super) struct Book {
    last: u64,
    live: BTreeMap<u64, Live>,
}

/// A live task.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) id: String,
    pub(super) workload: String,
    pub(super) peer: Peer,
    /// The process as records name it.
    process: String,
    heartbeat: Option<Duration>,
    pub(super) heard_at: BootInstant,
    /// Nothing until it was granted, and once it is about to end.
    pub(super) held: Option<Held<Granted>>,
    /// It was taken back: what is still on its way of it isn't taken up.
    withdrawn: bool,
    /// The decision of the last grant; none before it has begun.
    decision: Option<String>,
    progress: watch::Sender<Progress>,
    orders: mpsc::Sender<Verdict>,
}

/// Why an id, or a place, can't be had.
pub(super) enum Untaken {
    /// The last task of the id is about to be over: nobody listens to it any more.
    Soon,
    /// As stated it can't be had.
    Invalid(Refusal),
}

/// What is due of a task.
#[derive(Debug)]
pub(super) enum Due {
    Nothing,
    Renewal,
    Over(Verdict),
}

impl Book {
    /// Takes a number, and the id for the workload; the statement then has the number.
    ///
    /// An id is one of its workload: nobody can hold those that another one will use. A process has it once,
    /// for it names its tasks by their ids alone.
    fn take(
        &mut self,
        peer: &Peer,
        workload: &str,
        statement: &mut TaskStatement,
        progress: watch::Sender<Progress>,
        orders: mpsc::Sender<Verdict>,
    ) -> Result<u64, Untaken> {
        let invalid = |found: String, expected: String| {
            Err(Untaken::Invalid(Refusal::new(codes::TASK_INVALID, found).expected(expected)))
        };
        let same = self
            .live
            .values()
            .find(|live| live.id == statement.id && (live.workload == workload || live.peer.pid() == peer.pid()));
        if let Some(live) = same {
            if live.progress.is_closed() {
                return Err(Untaken::Soon);
            }
            let found = format!("a task of the id {} lives on this node", statement.id);
            return invalid(found, "another id, or its end".to_owned());
        }
        let count = |of: &dyn Fn(&Live) -> bool| self.live.values().filter(|live| of(live)).count();
        let counts = [
            ("on this node", self.live.len(), ALL),
            ("of this user", count(&|live| live.peer.uid() == peer.uid()), OF_A_USER),
            ("of this workload", count(&|live| live.workload == workload), OF_A_WORKLOAD),
        ];
        if let Some((whose, found, most)) = counts.into_iter().find(|(_, found, most)| found >= most) {
            return invalid(format!("{found} tasks {whose} live"), format!("at most {most}"));
        }
        self.last += 1;
        statement.number = self.last;
        let heartbeat = Some(statement.heartbeat_seconds).filter(|seconds| *seconds > 0).map(Duration::from_secs);
        let live = Live {
            id: statement.id.clone(),
            workload: workload.to_owned(),
            peer: peer.clone(),
            process: peer.described(),
            heartbeat,
            heard_at: BootInstant::now(),
            held: None,
            withdrawn: false,
            decision: None,
            progress,
            orders,
        };
        self.live.insert(self.last, live);
        Ok(self.last)
    }

    pub(super) fn get(&self, number: u64) -> Result<&Live, Denied> {
        self.live.get(&number).ok_or_else(over)
    }

    pub(super) fn get_mut(&mut self, number: u64) -> Option<&mut Live> {
        self.live.get_mut(&number)
    }

    /// The live task of this id whose process has this process's number.
    pub(super) fn of(&self, peer: &Peer, id: &str) -> Option<(u64, Peer)> {
        let ours = |live: &Live| live.id == id && live.peer.pid() == peer.pid() && live.decision.is_some();
        let (number, live) = self.live.iter().find(|(_, live)| ours(live))?;
        Some((*number, live.peer.clone()))
    }

    /// Holds what a task was granted, unless it is over or taken back.
    pub(super) fn hold(&mut self, number: u64, granted: Held<Granted>) {
        let Some(live) = self.live.get_mut(&number) else { return };
        if live.decision.is_none() {
            live.heard_at = BootInstant::now();
        }
        live.decision = Some(granted.value().decision.clone());
        if !live.withdrawn {
            live.held = Some(granted);
            live.progress.send_modify(|progress| progress.renewals += 1);
        }
    }

    /// Drops, and so wipes, what a withdrawal concerns, and ends it.
    pub(super) fn withdraw(&mut self, withdrawal: &Withdrawal) {
        for live in self.live.values_mut() {
            let concerned = match &withdrawal.of {
                Withdrawn::Node => true,
                Withdrawn::Workloads(workloads) => workloads.contains(&live.workload),
                Withdrawn::Task(id) => *id == live.id,
                Withdrawn::Credential(id) => {
                    live.held.as_ref().is_some_and(|held| held.value().credentials().any(|(known, _)| known == id))
                }
            };
            if concerned {
                live.held = None;
                live.withdrawn = true;
                // At once: an answer that was made before must not leave after the acknowledgement.
                live.over(Over::Denied(withdrawal.refusal.clone()));
                live.order(Verdict::denied(withdrawal.refusal.clone()));
            }
        }
    }

    pub(super) fn remove(&mut self, number: u64) -> Option<Live> {
        let mut live = self.live.remove(&number)?;
        live.held = None;
        Some(live)
    }

    /// What is due of a task at `now`.
    pub(super) fn due(&self, number: u64, now: BootInstant) -> Due {
        let Some(live) = self.live.get(&number) else { return Due::Nothing };
        if let Some(within) = live.heartbeat
            && now.since(live.heard_at) > within
        {
            let found = format!("it wasn't heard of for {} s", now.since(live.heard_at).as_secs());
            let refusal = Refusal::new(codes::TASK_HEARTBEAT, found).at(live.peer.to_string());
            return Due::Over(Verdict::denied(refusal.expected(format!("a sign of life within {within:?}"))));
        }
        match &live.held {
            Some(held) if now >= held.until() => {
                let refusal = Refusal::new(codes::ISSUER_EXPIRED, "it couldn't be renewed in time");
                Due::Over(Verdict::unavailable(refusal.at(format!("task {}", live.id))))
            }
            Some(held) if now >= held.half_life() => Due::Renewal,
            _ => Due::Nothing,
        }
    }
}

impl Live {
    /// How often it must be heard of.
    pub(super) fn heartbeat(&self) -> Option<Duration> {
        self.heartbeat
    }

    /// Says to its stream how it ends; the first word counts.
    pub(super) fn over(&self, over: Over) {
        self.progress.send_modify(|progress| {
            let _ = progress.over.get_or_insert(over);
        });
    }

    /// Ends it.
    pub(super) fn order(&self, verdict: Verdict) {
        // Full means that another end is on its way.
        let _ = self.orders.try_send(verdict);
    }

    /// What it holds, to be released.
    pub(super) fn chosen(&self) -> Result<Vec<Chosen>, Denied> {
        let held = self.held.as_ref().ok_or_else(|| self.gone())?;
        let chosen = held.value().credentials().map(|(id, decision)| Chosen {
            workload: self.workload.clone(),
            credential: id.to_owned(),
            decision: decision.to_owned(),
            task: Some(self.id.clone()),
        });
        Ok(chosen.collect())
    }

    /// Why it holds nothing any more.
    pub(super) fn gone(&self) -> Denied {
        match &self.progress.borrow().over {
            Some(Over::Denied(refusal)) => Denied::NoIdentity(refusal.clone()),
            Some(Over::Unavailable(refusal)) => Denied::Ended(refusal.clone()),
            Some(Over::Orderly) | None => over(),
        }
    }

    /// The record of its end.
    pub(super) fn end(&self, why: &Refusal, lease: Option<u64>) -> Note {
        Note {
            what: What::End,
            workload: Some(self.workload.clone()),
            credential: None,
            decision: self.decision.clone(),
            task: Some(self.id.clone()),
            lease,
            process: self.process.clone(),
            code: Some(why.code),
            reason: why.found.clone(),
        }
    }
}

/// A number and an id that are taken, given back when dropped unless the task has begun.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) shared: Arc<Shared>,
    pub(super) number: u64,
    /// Whether the control plane has it as begun, or may have.
    pub(super) there: There,
    kept: bool,
}

/// A place, how the task goes, and what ends it.
pub(super) type Taken = (Place, watch::Receiver<Progress>, mpsc::Receiver<Verdict>);

impl Place {
    /// Takes one for `statement`, which then has its number.
    pub(super) fn take(
        shared: &Arc<Shared>,
        peer: &Peer,
        workload: &str,
        statement: &mut TaskStatement,
    ) -> Result<Taken, Untaken> {
        let (progress, seen) = watch::channel(Progress::default());
        let (orders, ordered) = mpsc::channel(1);
        let number = shared.book().take(peer, workload, statement, progress, orders)?;
        let place = Self { shared: shared.clone(), number, there: There::Nothing, kept: false };
        Ok((place, seen, ordered))
    }

    /// The task has begun, and somebody watches it.
    pub(super) fn kept(mut self) -> u64 {
        self.kept = true;
        self.number
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        let Some(live) = self.shared.book().remove(self.number) else { return };
        if self.there != There::Nothing {
            // The caller left, or the answer was lost: what was issued for it reaches nobody.
            let refusal = Refusal::new(codes::TASK_ENDED, "it was given nothing").at(live.peer.to_string());
            self.shared.teller.tell_nothing((live.workload, live.id), TaskEnd { number: self.number, refusal });
        }
        self.shared.freed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::{PeerMethod, Peers};

    fn statement(id: &str) -> TaskStatement {
        let (id, intent, purpose) = (id.to_owned(), String::new(), String::new());
        TaskStatement { id, run: [1; 16], number: 0, intent, purpose, heartbeat_seconds: 0, term_seconds: 0 }
    }

    fn granted(jti: &str) -> Held<Granted> {
        let now = BootInstant::now();
        Held::new(Granted::for_test(jti), now, now.after(Duration::from_secs(60)))
    }

    struct Begun {
        number: u64,
        seen: watch::Receiver<Progress>,
        ordered: mpsc::Receiver<Verdict>,
    }

    async fn ourselves() -> Peer {
        let (one, _other) = tokio::net::UnixStream::pair().unwrap();
        Peers::new(PeerMethod::Auto).identify(&one).await.unwrap()
    }

    fn begin(book: &mut Book, peer: &Peer, workload: &str, id: &str) -> Result<Begun, Untaken> {
        let (progress, seen) = watch::channel(Progress::default());
        let (orders, ordered) = mpsc::channel(1);
        let mut statement = statement(id);
        let number = book.take(peer, workload, &mut statement, progress, orders)?;
        assert_eq!(statement.number, number);
        Ok(Begun { number, seen, ordered })
    }

    #[tokio::test]
    async fn a_withdrawal_is_seen_by_the_task_s_stream_before_it_is_acknowledged() {
        let (mut book, peer) = (Book::default(), ourselves().await);
        let cases: [(Withdrawn, [bool; 3]); 4] = [
            (Withdrawn::Node, [true; 3]),
            (Withdrawn::Workloads(vec!["a".to_owned()]), [true, true, false]),
            (Withdrawn::Task("2".to_owned()), [false, true, false]),
            (Withdrawn::Credential("j3".to_owned()), [false, false, true]),
        ];
        for (of, expected) in cases {
            let mut begun = Vec::new();
            for (workload, id) in [("a", "1"), ("a", "2"), ("b", "3")] {
                let task = begin(&mut book, &peer, workload, id).ok().unwrap();
                book.hold(task.number, granted(&format!("j{id}")));
                begun.push(task);
            }
            let refusal = Refusal::new(codes::GATE_REVOKED, "a test");
            book.withdraw(&Withdrawal { number: 1, of: of.clone(), refusal: refusal.clone() });
            // When this returns it may be acknowledged: nothing is held, and the stream knows.
            for (task, expected) in begun.iter_mut().zip(expected) {
                let over = task.seen.borrow().over.clone();
                assert_eq!(over, expected.then(|| Over::Denied(refusal.clone())), "{of:?}");
                assert_eq!(task.ordered.try_recv().is_ok(), expected);
                assert_eq!(book.get(task.number).unwrap().held.is_none(), expected);
                // Its renewal was on the way.
                book.hold(task.number, granted("later"));
                assert_eq!(book.get(task.number).unwrap().held.is_none(), expected);
                book.remove(task.number);
            }
        }
    }

    #[tokio::test]
    async fn an_id_is_taken_while_somebody_listens_and_waited_for_once_nobody_does() {
        let (mut book, peer) = (Book::default(), ourselves().await);
        let first = begin(&mut book, &peer, "a", "job").ok().unwrap();
        for workload in ["a", "b"] {
            assert!(matches!(begin(&mut book, &peer, workload, "job"), Err(Untaken::Invalid(_))), "{workload}");
        }
        drop(first.seen);
        assert!(matches!(begin(&mut book, &peer, "a", "job"), Err(Untaken::Soon)));
        book.remove(first.number);
        let second = begin(&mut book, &peer, "a", "job").ok().unwrap();
        assert_ne!(second.number, first.number);
        // Nothing speaks for it before it has begun.
        assert!(book.of(&peer, "job").is_none());
        book.hold(second.number, granted("j"));
        assert_eq!(book.of(&peer, "job").unwrap().0, second.number);
    }

    #[tokio::test]
    async fn tasks_have_bounds() {
        let (mut book, peer) = (Book::default(), ourselves().await);
        let mut all = Vec::new();
        for number in 0..OF_A_USER {
            all.push(begin(&mut book, &peer, "a", &number.to_string()).ok().unwrap());
        }
        assert!(matches!(begin(&mut book, &peer, "b", "more"), Err(Untaken::Invalid(_))));
    }
}
