//! Watches one task: the process, its signs of life, and what speaks against it; renews what it holds.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::book::Due;
use super::{Shared, Verdict, not_registered, stopped};
use crate::agent::keeper::{Ungiven, Wanted, unlooked};
use crate::clock::BootInstant;
use crate::codes::{self, Refusal};
use crate::delivery::workload_api::{Denied, Source};
use crate::gate::Standing;
use crate::workload::{Ending, Peer, Watch};

/// Between two looks at the process: what it has become is noticed within this and the look's own time.
const LOOK: Duration = Duration::from_millis(250);

/// A stream that is closed may be the first sign of a process that ends or becomes another program; so
/// long is waited for what it was.
const GRACE: Duration = Duration::from_millis(300);

/// A process that is on its way out may look like another program for a moment; so long is waited for its end.
const LAST_BREATH: Duration = Duration::from_millis(500);

/// Between two tries to renew.
const RETRY: Duration = Duration::from_secs(1);

/// One task, watched.
pub(super) struct Watcher {
    pub(super) shared: Arc<Shared>,
    pub(super) number: u64,
    pub(super) peer: Peer,
    pub(super) watch: Watch,
    pub(super) wanted: Wanted,
}

/// What a look found.
enum Found {
    /// The process is gone.
    Gone,
    /// It isn't what it was any more.
    Changed(Refusal),
    /// The node or the registration speaks against it.
    Against(Refusal),
}

type Work<T> = Pin<Box<dyn Future<Output = T> + Send>>;

impl Watcher {
    /// Watches until the task is over, and ends it. `closed` resolves when the stream's end is dropped;
    /// `orders` has an end, from whoever may say so.
    pub(super) async fn run(mut self, mut closed: oneshot::Receiver<()>, mut orders: mpsc::Receiver<Verdict>) {
        let verdict = self.verdict(&mut closed, &mut orders).await;
        self.shared.conclude(self.number, verdict).await;
    }

    async fn verdict(&mut self, closed: &mut oneshot::Receiver<()>, orders: &mut mpsc::Receiver<Verdict>) -> Verdict {
        let stopping = self.shared.shutdown.token.clone();
        let mut changes = self.shared.keeper.changes();
        let mut looks = tokio::time::interval(LOOK);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        // A look may take its time, with a program to be hashed; what ends the task isn't kept waiting by it.
        let mut look: Option<Work<Option<Found>>> = Some(self.against());
        let mut renewal: Option<Work<Result<(), Ungiven>>> = None;
        let mut renew_after = BootInstant::from_nanos(0);
        loop {
            tokio::select! {
                biased;
                ending = self.watch.ended() => return ended(&self.peer, ending),
                Some(verdict) = orders.recv() => return verdict,
                _ = &mut *closed => {
                    // Nothing leaves any more: nobody need wait for this.
                    drop(changes);
                    return self.after_closing().await;
                }
                () = stopping.cancelled() => return Verdict::unavailable(stopped()),
                found = at_work(&mut look) => {
                    look = None;
                    if let Some(found) = found {
                        return self.concluded(found).await;
                    }
                    // Of what was seen before it began; what came since is still to be seen.
                    changes.dealt_with();
                }
                true = changes.changed(), if look.is_none() => look = Some(self.against()),
                renewed = at_work(&mut renewal) => {
                    renewal = None;
                    match renewed.map_err(|ungiven| ungiven.why) {
                        Ok(()) => {}
                        Err(Denied::NoIdentity(refusal)) => return Verdict::denied(refusal),
                        Err(Denied::Unavailable(refusal) | Denied::Ended(refusal)) => {
                            tracing::debug!(workload = self.wanted.workload, %refusal, "a task isn't renewed yet");
                            renew_after = BootInstant::now().after(RETRY);
                        }
                    }
                }
                _ = looks.tick() => {
                    self.watch.look();
                    // A look that is under way may hash for long; the gate is asked without it.
                    if let Some(refusal) = contraindicated(&self.shared) {
                        return Verdict::denied(refusal);
                    }
                    if look.is_none() {
                        let peer = self.peer.clone();
                        look = Some(Box::pin(async move { changed(&peer).await }));
                    }
                    let now = BootInstant::now();
                    let due = self.shared.book().due(self.number, now);
                    match due {
                        Due::Nothing => {}
                        Due::Over(verdict) => return verdict,
                        Due::Renewal if renewal.is_none() && now >= renew_after => renewal = Some(self.renewal()),
                        Due::Renewal => {}
                    }
                }
            }
        }
    }

    fn renewal(&self) -> Work<Result<(), Ungiven>> {
        let (shared, peer) = (self.shared.clone(), self.peer.clone());
        let (number, wanted) = (self.number, self.wanted.clone());
        Box::pin(async move {
            let (_, caller) = shared.keeper.callers(&peer).await?;
            let turn = shared.keeper.turn_in_line(caller.uid).await?;
            shared.granted(number, &Wanted { caller, ..wanted }, turn).await
        })
    }

    /// Whether the node or the registration speaks against it now.
    fn against(&self) -> Work<Option<Found>> {
        let (shared, peer, workload) = (self.shared.clone(), self.peer.clone(), self.wanted.workload.clone());
        Box::pin(async move {
            if let Some(refusal) = contraindicated(&shared) {
                return Some(Found::Against(refusal));
            }
            match shared.keeper.callers(&peer).await {
                Ok((workloads, _)) if workloads.contains(&workload) => None,
                Ok(_) => Some(Found::Against(not_registered(&workload))),
                Err(Denied::NoIdentity(refusal)) => Some(changed(&peer).await.unwrap_or(Found::Against(refusal))),
                Err(Denied::Unavailable(_) | Denied::Ended(_)) => None,
            }
        })
    }

    /// What follows from what was found.
    async fn concluded(&self, found: Found) -> Verdict {
        match found {
            Found::Gone => ended(&self.peer, self.watch.ended().await),
            Found::Against(refusal) => Verdict::denied(refusal),
            Found::Changed(refusal) => {
                if self.watch.is_ending()
                    && let Ok(ending) = tokio::time::timeout(LAST_BREATH, self.watch.ended()).await
                {
                    return ended(&self.peer, ending);
                }
                Verdict::denied(Refusal { code: codes::TASK_SCOPE, ..refusal })
            }
        }
    }

    /// The stream is gone: what is held is dropped at once, and then it is seen why.
    async fn after_closing(&self) -> Verdict {
        if let Some(live) = self.shared.book().get_mut(self.number) {
            live.held = None;
        }
        let until = BootInstant::now().after(GRACE);
        while BootInstant::now() < until {
            if let Some(found) = changed(&self.peer).await {
                return self.concluded(found).await;
            }
            let wait = tokio::time::timeout(Duration::from_millis(20), self.watch.ended());
            if let Ok(ending) = wait.await {
                return ended(&self.peer, ending);
            }
        }
        // A stream that was refused something closes, too.
        let found = tokio::select! {
            biased;
            ending = self.watch.ended() => return ended(&self.peer, ending),
            found = self.against() => found,
        };
        if let Some(found) = found {
            return self.concluded(found).await;
        }
        Verdict::orderly(Refusal::new(codes::TASK_ENDED, "it closed its stream").at(self.peer.to_string()))
    }
}

/// The result of what is under way; never, while nothing is.
async fn at_work<T>(work: &mut Option<Work<T>>) -> T {
    match work {
        Some(work) => work.await,
        None => std::future::pending().await,
    }
}

/// Whether the process isn't what it was any more.
async fn changed(peer: &Peer) -> Option<Found> {
    match peer.check().await.map_err(unlooked) {
        Ok(()) => None,
        Err(Denied::NoIdentity(refusal)) if refusal.code == codes::WORKLOAD_PEER_GONE => Some(Found::Gone),
        Err(Denied::NoIdentity(refusal)) => Some(Found::Changed(refusal)),
        // Nothing is released meanwhile: a release looks at the peer, too.
        Err(Denied::Unavailable(_) | Denied::Ended(_)) => None,
    }
}

fn ended(peer: &Peer, ending: Ending) -> Verdict {
    let (code, found) = match ending {
        Ending::Exited(0) => (codes::TASK_ENDED, "it ended with code 0".to_owned()),
        Ending::Exited(code) => (codes::TASK_FAILED, format!("it ended with code {code}")),
        Ending::Killed(signal) => (codes::TASK_FAILED, format!("it was killed by signal {signal}")),
        Ending::OutOfMemory => (codes::TASK_OUT_OF_MEMORY, "it was killed by signal 9, out of memory".to_owned()),
        Ending::Unseen => (codes::TASK_ENDED, "it ended, and how isn't told here".to_owned()),
    };
    Verdict::denied(Refusal::new(code, found).at(peer.to_string()))
}

/// What speaks against the node. A lease that merely ran out may come back; what is held ends by itself.
fn contraindicated(shared: &Shared) -> Option<Refusal> {
    let closed = shared.keeper.with_gate(|gate, _, _| gate.reason().cloned());
    closed.filter(|reason| reason.standing == Standing::Contraindicated).map(|reason| reason.refusal)
}
