//! The watcher: one task that reads the PCRs at an interval and whenever somebody waits.
//!
//! Requests that arrive while a reading is under way wait for the next one, since theirs must
//! *start* after they arrived; all that wait then share it. So a thousand callers cost two
//! readings, and none gets an old one.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{broadcast, mpsc, oneshot, watch};

use crate::shutdown::CancellationToken;
use crate::tpm::{PcrReading, PcrSelection, Tpm, TpmError};

/// What a reading found.
pub type Observation = Result<Arc<PcrReading>, TpmError>;

/// A cloneable handle to the watcher's task.
#[derive(Clone, Debug)]
pub struct Watcher {
    requests: mpsc::Sender<oneshot::Sender<Observation>>,
    selection: watch::Sender<PcrSelection>,
    observations: broadcast::Sender<Observation>,
}

impl Watcher {
    /// Makes the watcher and the task that must be spawned for it; it ends with `token`.
    pub fn new(
        tpm: Tpm,
        selection: PcrSelection,
        interval: Duration,
        token: CancellationToken,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        // As many as may wait at once; more callers queue at the sender, in order.
        let (requests, waiting) = mpsc::channel(1024);
        let (selection, selected) = watch::channel(selection);
        let (observations, _) = broadcast::channel(16);
        let watcher = Self { requests, selection, observations: observations.clone() };
        let task = watch_pcrs(tpm, selected, waiting, observations, interval, token);
        (watcher, task)
    }

    /// A reading that starts after this call.
    ///
    /// # Errors
    /// Those of the TPM; [`TpmError::Unavailable`] when the agent is shutting down.
    pub async fn fresh(&self) -> Observation {
        let ended = || TpmError::Unavailable("the agent is shutting down".to_owned());
        let (answer, reading) = oneshot::channel();
        self.requests.send(answer).await.map_err(|_| ended())?;
        reading.await.map_err(|_| ended())?
    }

    /// The PCRs that are read.
    pub fn selection(&self) -> PcrSelection {
        *self.selection.borrow()
    }

    /// Reads other PCRs from the next reading on.
    pub fn select(&self, selection: PcrSelection) {
        self.selection.send_if_modified(|present| std::mem::replace(present, selection) != selection);
    }

    /// Every observation from now on, wanted by somebody or made at the interval.
    pub fn observations(&self) -> broadcast::Receiver<Observation> {
        self.observations.subscribe()
    }
}

async fn watch_pcrs(
    tpm: Tpm,
    selected: watch::Receiver<PcrSelection>,
    mut waiting: mpsc::Receiver<oneshot::Sender<Observation>>,
    observations: broadcast::Sender<Observation>,
    interval: Duration,
    token: CancellationToken,
) {
    let mut callers = Vec::new();
    loop {
        tokio::select! {
            () = token.cancelled() => return,
            first = waiting.recv() => match first {
                Some(first) => callers.push(first),
                None => return,
            },
            () = tokio::time::sleep(interval) => {}
        }
        // Everyone who is here now may share the reading that starts below.
        while let Ok(caller) = waiting.try_recv() {
            callers.push(caller);
        }
        let selection = *selected.borrow();
        let observation = tpm.read_pcrs(selection).await.map(Arc::new);
        // Published before the callers are answered: whoever judges observations sees a drift no
        // later than a caller does. Nobody listening is no error.
        let _ = observations.send(observation.clone());
        for caller in callers.drain(..) {
            // A caller that gave up is no error either.
            let _ = caller.send(observation.clone());
        }
    }
}
