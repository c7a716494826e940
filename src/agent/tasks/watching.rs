//! Watches one task: the process, its signs of life, and what speaks against it; renews what it holds.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::granting::{Asking, Granted};
use super::{Shared, Verdict};
use crate::clock::BootInstant;
use crate::codes::{self, Refusal};
use crate::credentials::Held;
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
    pub(super) asking: Asking,
    /// Resolves when the stream's end is dropped.
    pub(super) closed: oneshot::Receiver<()>,
    /// Why it is to end, from whoever may say so.
    pub(super) orders: mpsc::Receiver<Verdict>,
}

type Renewal = Pin<Box<dyn Future<Output = Result<Held<Granted>, Denied>> + Send>>;

impl Watcher {
    /// Watches until the task is over, and ends it.
    pub(super) async fn run(mut self) {
        let verdict = self.verdict().await;
        self.shared.conclude(self.number, &self.peer, verdict).await;
    }

    async fn verdict(&mut self) -> Verdict {
        let stopping = self.shared.shutdown.token.clone();
        let mut changes = self.shared.keeper.changes();
        let mut looks = tokio::time::interval(LOOK);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        if let Some(verdict) = self.against().await {
            return verdict;
        }
        let mut renewal: Option<Renewal> = None;
        let mut renew_after = BootInstant::from_nanos(0);
        loop {
            let renewed = async {
                match &mut renewal {
                    Some(renewal) => renewal.await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                ending = self.watch.ended() => return ended(&self.peer, ending),
                Some(verdict) = self.orders.recv() => return verdict,
                _ = &mut self.closed => return self.after_closing().await,
                () = stopping.cancelled() => {
                    return Verdict::unavailable(Refusal::new(codes::DELIVERY_STOPPING, "the agent is stopping"));
                }
                true = changes.changed() => {
                    if let Some(verdict) = self.against().await {
                        return verdict;
                    }
                    changes.dealt_with();
                }
                renewed = renewed => {
                    renewal = None;
                    match renewed {
                        Ok(granted) => self.shared.renewed(self.number, granted),
                        Err(Denied::NoIdentity(refusal)) => return Verdict::denied(refusal),
                        Err(Denied::Unavailable(refusal) | Denied::Ended(refusal)) => {
                            tracing::debug!(task = self.asking.statement.id, %refusal, "not renewed yet");
                            renew_after = BootInstant::now().after(RETRY);
                        }
                    }
                }
                _ = looks.tick() => {
                    self.watch.look();
                    if let Some(verdict) = self.changed().await {
                        return verdict;
                    }
                    let now = BootInstant::now();
                    match self.shared.due(self.number, now) {
                        Due::Nothing => {}
                        Due::Over(verdict) => return verdict,
                        Due::Renewal if renewal.is_none() && now >= renew_after => renewal = Some(self.renewal()),
                        Due::Renewal => {}
                    }
                }
            }
        }
    }

    fn renewal(&self) -> Renewal {
        let (shared, peer, asking) = (self.shared.clone(), self.peer.clone(), self.asking.clone());
        Box::pin(async move {
            let (_, claims) = shared.keeper.callers(&peer).await?;
            shared.grant(&asking, claims).await
        })
    }

    /// Whether the process still is what it was.
    async fn changed(&self) -> Option<Verdict> {
        match self.peer.check().await {
            Ok(()) => None,
            // Nothing is released meanwhile: a release looks at the peer, too.
            Err(refusal) if refusal.code == codes::WORKLOAD_UNSEEN => None,
            Err(refusal) if refusal.code == codes::WORKLOAD_PEER_GONE => {
                Some(ended(&self.peer, self.watch.ended().await))
            }
            Err(refusal) => {
                if self.watch.is_ending()
                    && let Ok(ending) = tokio::time::timeout(LAST_BREATH, self.watch.ended()).await
                {
                    return Some(ended(&self.peer, ending));
                }
                Some(Verdict::denied(Refusal { code: codes::TASK_SCOPE, ..refusal }))
            }
        }
    }

    /// Whether the node or the registration speaks against it now.
    async fn against(&self) -> Option<Verdict> {
        let closed = self.shared.keeper.with_gate(|gate, _, _| gate.reason().cloned());
        if let Some(reason) = closed {
            // A lease that merely ran out may come back; what is held ends by itself.
            return (reason.standing == Standing::Contraindicated).then(|| Verdict::denied(reason.refusal));
        }
        match self.shared.keeper.callers(&self.peer).await {
            Ok((workloads, _)) if workloads.contains(&self.asking.workload) => None,
            Ok(_) => {
                let refusal = Refusal::new(codes::WORKLOAD_NO_MATCH, "it isn't registered for the process any more");
                Some(Verdict::denied(refusal.at(self.asking.workload.clone())))
            }
            Err(Denied::NoIdentity(refusal)) => match self.changed().await {
                Some(verdict) => Some(verdict),
                None => Some(Verdict::denied(refusal)),
            },
            Err(Denied::Unavailable(_) | Denied::Ended(_)) => None,
        }
    }

    /// The stream is gone: what is held is dropped at once, and then it is seen why.
    async fn after_closing(&self) -> Verdict {
        self.shared.drop_held(self.number);
        let until = BootInstant::now().after(GRACE);
        while BootInstant::now() < until {
            if let Some(verdict) = self.changed().await {
                return verdict;
            }
            let wait = tokio::time::timeout(Duration::from_millis(20), self.watch.ended());
            if let Ok(ending) = wait.await {
                return ended(&self.peer, ending);
            }
        }
        // A stream that was refused something closes, too.
        if let Some(verdict) = self.against().await {
            return verdict;
        }
        Verdict::orderly(Refusal::new(codes::TASK_ENDED, "it closed its stream").at(self.peer.to_string()))
    }
}

/// What is due of a task.
#[derive(Debug)]
pub(super) enum Due {
    Nothing,
    Renewal,
    Over(Verdict),
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
