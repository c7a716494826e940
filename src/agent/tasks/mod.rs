//! Tasks: credentials for one piece of work of one process, for as long as it lasts.
//!
//! ```text
//! begin ─▶ who is it, does the gate stand open ─▶ control plane decides ─▶ held ─▶ released, note first
//!                                                                           │ renewed at half of its life
//! process ended, changed, silent; stream closed; gate closed; withdrawn ────┴─▶ dropped and wiped, stream
//!                                                       ended, noted, told to the control plane until heard
//! ```
//!
//! One run of the agent is named by 16 random bytes, and numbers what it begins: whatever an earlier run
//! held is over with it, and the control plane hears so before anything else.

mod granting;
mod telling;
mod watching;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

use super::journal::{Journal, Note, What};
use super::keeper::Keeper;
use crate::clock::BootInstant;
use crate::codes::{self, Refusal};
use crate::credentials::Held;
use crate::delivery::workload_api::Denied;
use crate::delivery::workload_api::tasks::{Begun, Desk, Over, Progress, Stated, TaskCredentials, TaskX509};
use crate::gate::Released;
use crate::protocol::{Enrolled, TaskEnd, TaskStatement, Withdrawal, Withdrawn};
use crate::secret::random;
use crate::shutdown::Shutdown;
use crate::workload::{Endings, Peer};
use granting::{Asking, Granted};
use telling::Teller;
use watching::{Due, Watcher};

/// Live tasks of all, of one user, and of one workload.
const ALL: usize = 1024;
const OF_A_USER: usize = 256;
const OF_A_WORKLOAD: usize = 512;

/// So long a begin waits until the control plane has heard of the end of the last task of that id.
const HEARD: Duration = Duration::from_secs(5);

/// Begins and ends tasks; the Workload API's socket asks it.
#[derive(Debug)]
pub struct Tasks {
    shared: Arc<Shared>,
}

/// What all watchers share.
#[derive(Debug)]
struct Shared {
    keeper: Arc<Keeper>,
    client: watch::Receiver<Option<Enrolled>>,
    journal: Journal,
    endings: Endings,
    run: [u8; 16],
    teller: Teller,
    shutdown: Shutdown,
    book: Mutex<Book>,
}

/// The live tasks by number, and the numbers of their ids. Never held across an await.
#[derive(Debug, Default)]
struct Book {
    last: u64,
    live: BTreeMap<u64, Live>,
    ids: BTreeMap<String, u64>,
}

/// A live task.
#[derive(Debug)]
struct Live {
    id: String,
    workload: String,
    peer: Peer,
    heartbeat: Option<Duration>,
    heard_at: BootInstant,
    /// Nothing until it was granted, and once it is about to end.
    held: Option<Held<Granted>>,
    /// It was taken back: what is still on its way of it isn't taken up.
    withdrawn: bool,
    /// The decision of the last grant.
    decision: Option<String>,
    progress: watch::Sender<Progress>,
    orders: mpsc::Sender<Verdict>,
}

/// That a task is over: how its stream ends, and what the record says.
#[derive(Clone, Debug)]
struct Verdict {
    over: Over,
    why: Refusal,
}

impl Verdict {
    fn denied(why: Refusal) -> Self {
        Self { over: Over::Denied(why.clone()), why }
    }

    fn unavailable(why: Refusal) -> Self {
        Self { over: Over::Unavailable(why.clone()), why }
    }

    fn orderly(why: Refusal) -> Self {
        Self { over: Over::Orderly, why }
    }
}

impl Tasks {
    /// Tasks of the workloads that `keeper` knows, granted by the control plane behind `client`. What has to
    /// run for them runs until `shutdown`.
    ///
    /// # Errors
    /// When the kernel gives no randomness.
    pub fn start(
        keeper: Arc<Keeper>,
        client: watch::Receiver<Option<Enrolled>>,
        journal: Journal,
        shutdown: Shutdown,
    ) -> std::io::Result<Self> {
        let run = random()?;
        let (endings, teller) = (Endings::default(), Teller::new(run));
        let (tasks, token) = (shutdown.tasks.clone(), shutdown.token.clone());
        let shared = Shared { keeper, client, journal, endings, run, teller, shutdown, book: Mutex::default() };
        let shared = Arc::new(shared);
        let observer = Arc::downgrade(&shared);
        shared.keeper.observe(Box::new(move |withdrawal| {
            if let Some(shared) = observer.upgrade() {
                shared.withdraw(withdrawal);
            }
        }));
        let told = shared.clone();
        tasks.spawn(async move { told.teller.run(told.client.clone(), token).await });
        Ok(Self { shared })
    }
}

impl Desk for Tasks {
    async fn begin(&self, peer: &Peer, stated: Stated, arrived: BootInstant) -> Result<Begun, Denied> {
        let shared = &self.shared;
        let (workloads, claims) = shared.keeper.callers(peer).await?;
        let workload = chosen(&workloads, &stated.spiffe_id).map_err(Denied::NoIdentity)?;
        // The node first: nothing is asked for that couldn't be released.
        shared.keeper.permit(arrived).await?;
        let (progress, seen) = watch::channel(Progress::default());
        let (orders, ordered) = mpsc::channel(1);
        let (asking, place) = Place::take(shared, peer, workload, stated, progress, orders)?;
        let id = asking.statement.id.clone();
        if tokio::time::timeout(HEARD, shared.teller.heard_of(&id)).await.is_err() {
            let refusal =
                Refusal::new(codes::PROTOCOL_UNREACHABLE, "the end of the last task of this id isn't told yet");
            return Err(Denied::Unavailable(refusal.at(format!("task {id}"))));
        }
        // Watched before it has anything: an end from here on is seen.
        let watch = shared.endings.watch(peer);
        let place = place.asked();
        let granted = shared.grant(&asking, claims).await?;
        let number = place.kept(granted);
        let (listening, closed) = oneshot::channel();
        let (shared, peer) = (shared.clone(), peer.clone());
        let watcher = Watcher { shared, number, peer, watch, asking, closed, orders: ordered };
        self.shared.shutdown.tasks.spawn(watcher.run());
        Ok(Begun { number, progress: seen, listening })
    }

    async fn release(&self, task: &Begun, arrived: BootInstant) -> Result<Released<TaskCredentials>, Denied> {
        let (id, workload, peer) = {
            let book = self.shared.book();
            let live = book.live.get(&task.number).ok_or_else(over)?;
            (live.id.clone(), live.workload.clone(), live.peer.clone())
        };
        let permit = self.shared.keeper.permit(arrived).await?;
        let lease = permit.lease_sequence();
        let (workloads, _) = self.shared.keeper.callers(&peer).await?;
        if !workloads.contains(&workload) {
            let refusal = Refusal::new(codes::WORKLOAD_NO_MATCH, "it isn't registered for the process any more");
            return Err(Denied::NoIdentity(refusal.at(workload)));
        }
        let noted = self.note_release(task.number, &peer, lease).await?;
        let bundle = self.shared.keeper.bundle();
        // The disk may have taken its time: what was withdrawn meanwhile isn't released.
        let released = self.shared.keeper.while_open(lease, || {
            let book = self.shared.book();
            let held = book.live.get(&task.number).and_then(|live| live.held.as_ref()).ok_or_else(over)?;
            if held.value().credentials != noted {
                return Err(Denied::Unavailable(Refusal::new(codes::GATE_STARTING, "it was renewed just now")));
            }
            permit.release(&[held], BootInstant::now()).map_err(|reason| Denied::Unavailable(reason.refusal))
        })?;
        if released.get().is_empty() {
            return Err(Denied::Unavailable(Refusal::new(codes::ISSUER_EXPIRED, "its renewal is on the way")));
        }
        Ok(released.map(|granted| shaped(id, workload, granted, bundle)))
    }

    async fn heartbeat(&self, peer: &Peer, task: &str) -> Result<u64, Refusal> {
        peer.check().await?;
        let mut book = self.shared.book();
        let live = book.of(peer, task)?;
        live.heard_at = BootInstant::now();
        Ok(live.heartbeat.map_or(0, |within| within.as_secs()))
    }

    async fn end(&self, peer: &Peer, task: &str, outcome: Result<String, String>) -> Result<(), Refusal> {
        peer.check().await?;
        let mut book = self.shared.book();
        let live = book.of(peer, task)?;
        let why = |code, words: &str, note: String| {
            let note = if note.is_empty() { note } else { format!(": {note}") };
            Refusal::new(code, format!("{words}{note}")).at(peer.to_string())
        };
        let verdict = Verdict::orderly(match outcome {
            Ok(note) => why(codes::TASK_ENDED, "it says that it is done", note),
            Err(note) => why(codes::TASK_FAILED, "it says that it failed", note),
        });
        // Full means that another end is on its way.
        let _ = live.orders.try_send(verdict);
        Ok(())
    }
}

impl Tasks {
    /// Notes what is about to be released; gives back the ids of the credentials.
    async fn note_release(&self, number: u64, peer: &Peer, lease: u64) -> Result<Vec<String>, Denied> {
        let (note, credentials) = {
            let book = self.shared.book();
            let live = book.live.get(&number).ok_or_else(over)?;
            let held = live.held.as_ref().ok_or_else(over)?;
            (live.note(What::Release, peer, Some(lease)), held.value().credentials.clone())
        };
        for credential in &credentials {
            let note = Note { credential: Some(credential.clone()), ..note.clone() };
            // What can't be written doesn't leave.
            self.shared.journal.write(note).await.map_err(Denied::Unavailable)?;
        }
        Ok(credentials)
    }
}

impl Shared {
    /// Drops, and so wipes, what a withdrawal concerns, and ends it.
    fn withdraw(&self, withdrawal: &Withdrawal) {
        for live in self.book().live.values_mut() {
            let concerned = match &withdrawal.of {
                Withdrawn::Node => true,
                Withdrawn::Workloads(workloads) => workloads.contains(&live.workload),
                Withdrawn::Task(id) => *id == live.id,
                Withdrawn::Credential(id) => {
                    live.held.as_ref().is_some_and(|held| held.value().credentials.contains(id))
                }
            };
            if concerned {
                live.held = None;
                live.withdrawn = true;
                // Full means that another end is on its way.
                let _ = live.orders.try_send(Verdict::denied(withdrawal.refusal.clone()));
            }
        }
    }

    /// Holds what a task was granted anew.
    fn renewed(&self, number: u64, granted: Held<Granted>) {
        let mut book = self.book();
        let Some(live) = book.live.get_mut(&number).filter(|live| !live.withdrawn) else { return };
        live.decision = Some(granted.value().decision.clone());
        live.held = Some(granted);
        live.progress.send_modify(|progress| progress.renewals += 1);
    }

    /// Drops, and so wipes, what a task holds.
    fn drop_held(&self, number: u64) {
        if let Some(live) = self.book().live.get_mut(&number) {
            live.held = None;
        }
    }

    /// What is due of a task at `now`.
    fn due(&self, number: u64, now: BootInstant) -> Due {
        let book = self.book();
        let Some(live) = book.live.get(&number) else { return Due::Nothing };
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

    /// Ends a task here: dropped and wiped first, then said to its stream, written down, and told.
    async fn conclude(&self, number: u64, peer: &Peer, verdict: Verdict) {
        let live = self.book().remove(number);
        let Some(live) = live else { return };
        live.progress.send_modify(|progress| progress.over = Some(verdict.over));
        tracing::info!(task = live.id, workload = live.workload, code = %verdict.why.code, "a task ended: {}", verdict.why);
        let note = Note {
            code: Some(verdict.why.code),
            reason: verdict.why.found.clone(),
            ..live.note(What::End, peer, self.keeper.sequence().map(|(sequence, _)| sequence))
        };
        self.teller.tell(live.id, TaskEnd { number, refusal: verdict.why });
        // It has ended, whether or not that can be written.
        if let Err(error) = self.journal.write(note).await {
            tracing::warn!(%error, "the end of a task can't be recorded here");
        }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Book {
    fn remove(&mut self, number: u64) -> Option<Live> {
        let mut live = self.live.remove(&number)?;
        self.ids.remove(&live.id);
        live.held = None;
        Some(live)
    }

    /// The live task of this id, for the process that began it. Both are held alive, so the same number is
    /// the same process.
    fn of(&mut self, peer: &Peer, id: &str) -> Result<&mut Live, Refusal> {
        let number = self.ids.get(id).copied();
        let live = number.and_then(|number| self.live.get_mut(&number));
        live.filter(|live| live.peer.pid() == peer.pid() && live.decision.is_some())
            .ok_or_else(|| Refusal::new(codes::TASK_UNKNOWN, "none of this process").at("task_id"))
    }
}

impl Live {
    fn note(&self, what: What, peer: &Peer, lease: Option<u64>) -> Note {
        Note {
            what,
            workload: Some(self.workload.clone()),
            credential: None,
            decision: self.decision.clone(),
            task: Some(self.id.clone()),
            lease,
            process: peer.to_string(),
            code: None,
            reason: String::new(),
        }
    }
}

/// A number and an id that are taken, given back when dropped unless the task has begun.
struct Place {
    shared: Arc<Shared>,
    number: u64,
    /// Whether the control plane may have heard of it.
    asked: bool,
    kept: bool,
}

impl Place {
    fn take(
        shared: &Arc<Shared>,
        peer: &Peer,
        workload: String,
        stated: Stated,
        progress: watch::Sender<Progress>,
        orders: mpsc::Sender<Verdict>,
    ) -> Result<(Asking, Self), Denied> {
        let invalid = |found: String, expected: String| {
            Denied::NoIdentity(Refusal::new(codes::TASK_INVALID, found).expected(expected))
        };
        if !stated.x509 && stated.audience.is_empty() {
            return Err(invalid("nothing is asked for".to_owned(), "`x509`, an audience, or both".to_owned()));
        }
        let id = match stated.task_id {
            id if id.is_empty() => hex::encode(
                random::<16>().map_err(|e| Denied::Unavailable(Refusal::new(codes::TASK_INVALID, e.to_string())))?,
            ),
            id => id,
        };
        let mut book = shared.book();
        let number = book.last + 1;
        let statement = TaskStatement {
            id,
            run: shared.run,
            number,
            intent: stated.intent,
            purpose: stated.purpose,
            heartbeat_seconds: stated.heartbeat_seconds,
            term_seconds: stated.term_seconds,
        };
        statement.check().map_err(Denied::NoIdentity)?;
        if book.ids.contains_key(&statement.id) {
            let found = format!("a task of the id {} lives on this node", statement.id);
            return Err(invalid(found, "another id, or its end".to_owned()));
        }
        let count = |of: &dyn Fn(&Live) -> bool| book.live.values().filter(|live| of(live)).count();
        let counts = [
            ("on this node", book.live.len(), ALL),
            ("of this user", count(&|live| live.peer.uid() == peer.uid()), OF_A_USER),
            ("of this workload", count(&|live| live.workload == workload), OF_A_WORKLOAD),
        ];
        if let Some((whose, found, most)) = counts.into_iter().find(|(_, found, most)| found >= most) {
            return Err(invalid(format!("{found} tasks {whose} live"), format!("at most {most}")));
        }
        book.last = number;
        book.ids.insert(statement.id.clone(), number);
        let heartbeat = Some(statement.heartbeat_seconds).filter(|seconds| *seconds > 0).map(Duration::from_secs);
        let (id, heard_at) = (statement.id.clone(), BootInstant::now());
        let (peer, asked_by) = (peer.clone(), workload.clone());
        let live = Live {
            id,
            workload,
            peer,
            heartbeat,
            heard_at,
            held: None,
            withdrawn: false,
            decision: None,
            progress,
            orders,
        };
        book.live.insert(number, live);
        let asking = Asking {
            workload: asked_by,
            statement,
            audience: stated.audience,
            destination: stated.destination,
            details: stated.details,
            x509: stated.x509,
        };
        Ok((asking, Self { shared: shared.clone(), number, asked: false, kept: false }))
    }

    fn asked(mut self) -> Self {
        self.asked = true;
        self
    }

    /// The task has begun with this.
    fn kept(mut self, granted: Held<Granted>) -> u64 {
        let mut book = self.shared.book();
        if let Some(live) = book.live.get_mut(&self.number) {
            live.decision = Some(granted.value().decision.clone());
            live.held = Some(granted).filter(|_| !live.withdrawn);
            live.heard_at = BootInstant::now();
        }
        drop(book);
        self.kept = true;
        self.number
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        let live = self.shared.book().remove(self.number);
        if let Some(live) = live.filter(|_| self.asked) {
            // The caller left, or the answer was lost: what was issued for it reaches nobody.
            let refusal = Refusal::new(codes::TASK_ENDED, "it was given nothing").at(live.peer.to_string());
            self.shared.teller.tell(live.id, TaskEnd { number: self.number, refusal });
        }
    }
}

/// The workload that is meant: the one named, or the only one.
fn chosen(workloads: &[String], named: &str) -> Result<String, Refusal> {
    let all = || format!("one of {}", workloads.join(", "));
    match workloads {
        [only] if named.is_empty() => Ok(only.clone()),
        _ if named.is_empty() => {
            let found = format!("{} workloads match the process", workloads.len());
            Err(Refusal::new(codes::TASK_INVALID, found).at("spiffe_id").expected(all()))
        }
        _ if workloads.iter().any(|workload| workload == named) => Ok(named.to_owned()),
        // Whether there is such a workload elsewhere is none of its business.
        _ => Err(Refusal::new(codes::TASK_INVALID, "the process isn't that workload").at("spiffe_id").expected(all())),
    }
}

fn shaped(id: String, workload: String, granted: Vec<Granted>, bundle: Vec<Vec<u8>>) -> TaskCredentials {
    let granted = granted.into_iter().next();
    let (decision, details) =
        granted.as_ref().map(|granted| (granted.decision.clone(), granted.details.clone())).unwrap_or_default();
    let (svid, token) = granted.map(|granted| (granted.svid, granted.token)).unwrap_or_default();
    let x509 = svid.map(|svid| TaskX509 { chain: svid.chain, key_pkcs8: svid.key, bundle });
    TaskCredentials { task_id: id, spiffe_id: workload, decision, details, x509, token }
}

fn over() -> Denied {
    Denied::NoIdentity(Refusal::new(codes::TASK_UNKNOWN, "the task is over"))
}
