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

mod book;
mod telling;
mod watching;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, oneshot, watch};

use super::journal::Journal;
use super::keeper::{Granted, Holdings, Keeper, Matched, There, Ungiven, Wanted, all, unlooked};
use crate::clock::BootInstant;
use crate::codes::{self, Refusal};
use crate::delivery::workload_api::tasks::{Begun, Desk, Over, Stated, TaskCredentials, TaskX509};
use crate::delivery::workload_api::{Changes, Denied, Source};
use crate::gate::Released;
use crate::protocol::{CallerClaims, Enrolled, TaskEnd, TaskStatement};
use crate::secret::random;
use crate::shutdown::Shutdown;
use crate::workload::{Endings, Peer, Turn};
use book::{Book, Place, Taken, Untaken};
use telling::Teller;
use watching::Watcher;

/// So long a begin waits until the last task of that id is over, and the control plane has heard of it.
const HEARD: Duration = Duration::from_secs(5);

/// A request whose answer was lost may still wait in the control plane; so long is waited before its end is
/// told, which must not come first.
const LATE: Duration = Duration::from_secs(1);

/// Begins and ends tasks; the Workload API's socket asks it.
#[derive(Debug)]
pub struct Tasks {
    shared: Arc<Shared>,
}

/// What all watchers share.
#[derive(Debug)]
struct Shared {
    keeper: Arc<Keeper>,
    journal: Journal,
    endings: Endings,
    run: [u8; 16],
    teller: Teller,
    shutdown: Shutdown,
    book: Mutex<Book>,
    /// Rung when a task is over, here.
    freed: Notify,
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
    /// Tasks of the workloads that `keeper` knows, granted by its control plane; their ends are told to the one
    /// behind `client`. What has to run for them runs until `shutdown`.
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
        let (book, freed) = (Mutex::default(), Notify::new());
        let shared = Arc::new(Shared { keeper, journal, endings, run, teller, shutdown, book, freed });
        let observer = Arc::downgrade(&shared);
        shared.keeper.observe(Box::new(move |withdrawal| {
            if let Some(shared) = observer.upgrade() {
                shared.book().withdraw(withdrawal);
            }
        }));
        let told = shared.clone();
        tasks.spawn(async move { told.teller.run(client, token).await });
        Ok(Self { shared })
    }

    async fn begun(&self, peer: &Peer, stated: Stated, arrived: BootInstant) -> Result<Begun, Denied> {
        let shared = &self.shared;
        let (workloads, caller) = shared.keeper.callers(peer).await?;
        let workload = chosen(&workloads, &stated.spiffe_id).map_err(Denied::NoIdentity)?;
        // The node first: nothing is asked for that couldn't be released.
        shared.keeper.permit(arrived).await?;
        let (mut statement, wanted) = asking(shared.run, workload, caller, stated)?;
        let (place, progress, orders) = self.place(peer, &wanted.workload, &mut statement).await?;
        let wanted = Wanted { task: Some(statement), ..wanted };
        // Watched before it has anything: an end from here on is seen.
        let watch = shared.endings.watch(peer);
        let number = self.granted(place, wanted.clone()).await?.kept();
        let (listening, closed) = oneshot::channel();
        let watcher = Watcher { shared: shared.clone(), number, peer: peer.clone(), watch, wanted };
        shared.shutdown.tasks.spawn(watcher.run(closed, orders));
        Ok(Begun { number, progress, listening })
    }

    /// A place for a task, once the last one of its id is over and the control plane has heard of that.
    async fn place(&self, peer: &Peer, workload: &str, statement: &mut TaskStatement) -> Result<Taken, Denied> {
        let shared = &self.shared;
        let key = (workload.to_owned(), statement.id.clone());
        let taken = tokio::time::timeout(HEARD, async {
            let taken = loop {
                let freed = shared.freed.notified();
                match Place::take(shared, peer, workload, statement) {
                    Ok(taken) => break taken,
                    Err(Untaken::Soon) => freed.await,
                    Err(Untaken::Invalid(refusal)) => return Err(Denied::NoIdentity(refusal)),
                }
            };
            shared.teller.heard_of(&key).await;
            Ok(taken)
        });
        taken.await.unwrap_or_else(|_| {
            let found = "the end of the last task of this id isn't told yet";
            Err(Denied::Unavailable(Refusal::new(codes::PROTOCOL_UNREACHABLE, found).at(format!("task {}", key.1))))
        })
    }

    /// Asks for a task's first credentials. That goes on when the caller has gone: only once it is known what
    /// became of the request can the control plane be told that the task is over.
    async fn granted(&self, mut place: Place, wanted: Wanted) -> Result<Place, Denied> {
        let (answer, answered) = oneshot::channel();
        let stopping = self.shared.shutdown.token.clone();
        self.shared.shutdown.tasks.spawn(async move {
            let shared = place.shared.clone();
            let granted = tokio::select! {
                biased;
                // What comes of it is over with this run.
                () = stopping.cancelled() => return,
                granted = shared.first_granted(place.number, &wanted) => granted,
            };
            match granted {
                // Whoever isn't there to take the place drops it.
                Ok(()) => {
                    place.there = There::Issued;
                    drop(answer.send(Ok(place)));
                }
                Err(Ungiven { why, there }) => {
                    place.there = there;
                    drop(answer.send(Err(why)));
                    if there == There::Unknown {
                        drop(tokio::time::timeout(LATE, stopping.cancelled()).await);
                    }
                    drop(place);
                }
            }
        });
        answered.await.unwrap_or_else(|_| Err(Denied::Unavailable(stopped())))
    }

    /// The number of the live task of this id, if it is of this very process.
    async fn of(&self, peer: &Peer, task: &str) -> Result<u64, Denied> {
        let unknown = || Denied::NoIdentity(Refusal::new(codes::TASK_UNKNOWN, "none of this process").at("task_id"));
        peer.check().await.map_err(unlooked)?;
        let found = self.shared.book().of(peer, task);
        let (number, began) = found.ok_or_else(unknown)?;
        // Both have the same number. That the one that began it is alive after the one that asks was makes
        // them one: a number passes on only when its process is gone.
        match began.check().await.map_err(unlooked) {
            Ok(()) => Ok(number),
            Err(Denied::NoIdentity(_)) => Err(unknown()),
            Err(other) => Err(other),
        }
    }

    async fn heard(&self, peer: &Peer, task: &str) -> Result<u64, Denied> {
        let number = self.of(peer, task).await?;
        let mut book = self.shared.book();
        let live = book.get_mut(number).ok_or_else(over)?;
        live.heard_at = BootInstant::now();
        Ok(live.heartbeat().map_or(0, |within| within.as_secs()))
    }

    async fn said_to_end(&self, peer: &Peer, task: &str, outcome: Result<String, String>) -> Result<(), Denied> {
        let number = self.of(peer, task).await?;
        let why = |code, words: &str, note: String| {
            let note = if note.is_empty() { note } else { format!(": {note}") };
            Refusal::new(code, format!("{words}{note}")).at(peer.to_string())
        };
        self.shared.book().get(number)?.order(Verdict::orderly(match outcome {
            Ok(note) => why(codes::TASK_ENDED, "it says that it is done", note),
            Err(note) => why(codes::TASK_FAILED, "it says that it failed", note),
        }));
        Ok(())
    }
}

impl Desk for Tasks {
    async fn begin(&self, peer: &Peer, stated: Stated, arrived: BootInstant) -> Result<Begun, Denied> {
        self.shared.keeper.noted(peer, self.begun(peer, stated, arrived).await)
    }

    async fn release(&self, task: &Begun, arrived: BootInstant) -> Result<Released<TaskCredentials>, Denied> {
        let shared = &self.shared;
        let peer = shared.book().get(task.number)?.peer.clone();
        let choose = |_: &Holdings, matched: &Matched| {
            let book = shared.book();
            let live = book.get(task.number)?;
            if !matched.is(&live.workload) {
                return Err(Denied::NoIdentity(not_registered(&live.workload)));
            }
            live.chosen()
        };
        let released = shared.keeper.release(&peer, arrived, choose, |holdings, chosen, permit| {
            let book = shared.book();
            let live = book.get(task.number)?;
            let held = live.held.as_ref().ok_or_else(|| live.gone())?;
            // Renewed just now: that is another release.
            if live.chosen()? != chosen {
                return Ok(None);
            }
            let (id, workload) = (live.id.clone(), live.workload.clone());
            let bundle = holdings.bundle();
            Ok(all(permit, &[held])?.map(|released| released.map(|granted| shaped(id, workload, granted, bundle))))
        });
        shared.keeper.counted(&peer, released.await)
    }

    fn changes(&self) -> Changes {
        self.shared.keeper.changes()
    }

    async fn heartbeat(&self, peer: &Peer, task: &str) -> Result<u64, Denied> {
        self.shared.keeper.noted(peer, self.heard(peer, task).await)
    }

    async fn end(&self, peer: &Peer, task: &str, outcome: Result<String, String>) -> Result<(), Denied> {
        self.shared.keeper.noted(peer, self.said_to_end(peer, task, outcome).await)
    }
}

impl Shared {
    async fn first_granted(&self, number: u64, wanted: &Wanted) -> Result<(), Ungiven> {
        let turn = self.keeper.turn(wanted.caller.uid).await?;
        self.granted(number, wanted, turn).await
    }

    /// Asks for a task's credentials, at its beginning and at each renewal, and holds them with it.
    async fn granted(&self, number: u64, wanted: &Wanted, turn: Turn) -> Result<(), Ungiven> {
        self.keeper.grant(wanted, turn, |_, granted| self.book().hold(number, granted)).await
    }

    /// Ends a task here: dropped and wiped first, then said to its stream, written down, and told.
    async fn conclude(&self, number: u64, verdict: Verdict) {
        let live = self.book().remove(number);
        let Some(live) = live else { return };
        let Verdict { over, why } = verdict;
        self.keeper.task_ended(&live.workload, &live.id, &why);
        live.over(over);
        tracing::info!(task = live.id, workload = live.workload, code = %why.code, "a task ended: {why}");
        let note = live.end(&why, self.keeper.sequence().map(|(sequence, _)| sequence));
        self.teller.tell((live.workload, live.id), TaskEnd { number, refusal: why });
        self.freed.notify_waiters();
        // It has ended, whether or not that can be written.
        if let Err(error) = self.journal.write(note).await {
            tracing::warn!(%error, "the end of a task can't be recorded here");
        }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is asked for, of a statement that can be used.
fn asking(
    run: [u8; 16],
    workload: String,
    caller: CallerClaims,
    stated: Stated,
) -> Result<(TaskStatement, Wanted), Denied> {
    if !stated.x509 && stated.audience.is_empty() {
        let refusal = Refusal::new(codes::TASK_INVALID, "nothing is asked for");
        return Err(Denied::NoIdentity(refusal.expected("`x509`, an audience, or both")));
    }
    let id = match stated.task_id {
        id if id.is_empty() => hex::encode(
            random::<16>().map_err(|e| Denied::Unavailable(Refusal::new(codes::TASK_INVALID, e.to_string())))?,
        ),
        id => id,
    };
    let statement = TaskStatement {
        id,
        run,
        number: 0,
        intent: stated.intent,
        purpose: stated.purpose,
        heartbeat_seconds: stated.heartbeat_seconds,
        term_seconds: stated.term_seconds,
    };
    statement.check().map_err(Denied::NoIdentity)?;
    let wanted = Wanted {
        workload,
        caller,
        task: None,
        x509: stated.x509,
        audience: stated.audience,
        destination: stated.destination,
        details: stated.details,
    };
    Ok((statement, wanted))
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
    let token = token.map(|token| token.token);
    let x509 = svid.map(|svid| TaskX509 { chain: svid.chain, key_pkcs8: svid.key, bundle });
    TaskCredentials { task_id: id, spiffe_id: workload, decision, details, x509, token }
}

fn over() -> Denied {
    Denied::NoIdentity(Refusal::new(codes::TASK_UNKNOWN, "the task is over"))
}

fn not_registered(workload: &str) -> Refusal {
    Refusal::new(codes::WORKLOAD_NO_MATCH, "it isn't registered for the process any more").at(workload)
}

fn stopped() -> Refusal {
    Refusal::new(codes::DELIVERY_STOPPING, "the agent is stopping")
}
