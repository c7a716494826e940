//! From a withdrawal to its acknowledgement: applied at once; then the open streams are told, it is written
//! down, and only then the control plane hears that it is done. Evidence repeats it until that was affirmed.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};

use super::journal::{Journal, Note, What};
use super::keeper::{Applied, Keeper};
use crate::codes::Code;
use crate::evidence::WITHDRAWN_LIMIT;
use crate::protocol::{Enrolled, Withdrawal, WithdrawalsApplied};
use crate::secret::write_atomically;
use crate::shutdown::CancellationToken;

/// How long open streams may take to notice. Nothing new leaves on one that takes longer, and what it was
/// sent before is dropped with its connection by then.
const STREAMS: Duration = Duration::from_millis(1_500);
/// Between two tries to acknowledge.
const PAUSE: Duration = Duration::from_secs(1);
/// Numbers of one acknowledgement.
const AT_ONCE: usize = 1_024;
/// The file's version.
const VERSION: u32 = 1;

/// The contents of `withdrawals.cbor` in the state directory. Nothing that was withdrawn is on the disk, so a
/// restart has nothing to drop; what is kept is what evidence has yet to say.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    version: u32,
    applied: BTreeSet<u64>,
}

/// See the module.
#[derive(Debug)]
pub struct Withdrawals {
    keeper: Arc<Keeper>,
    journal: Journal,
    path: PathBuf,
    state: Mutex<State>,
    wake: Notify,
    /// Something is applied that evidence has yet to say.
    unproven: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Applied, and not yet in evidence that was affirmed.
    applied: BTreeSet<u64>,
    /// Applied, and not yet written down and acknowledged.
    waiting: Vec<Waiting>,
}

#[derive(Clone, Debug)]
struct Waiting {
    number: u64,
    applied: Applied,
    code: Code,
    reason: String,
    noted: bool,
}

impl Withdrawals {
    /// Those of `keeper`, with what an earlier run applied, kept at `path`.
    pub fn new(keeper: Arc<Keeper>, journal: Journal, path: PathBuf) -> Self {
        let kept = std::fs::read(&path).ok().and_then(|bytes| serde_cbor::from_slice::<Kept>(&bytes).ok());
        let applied = kept.filter(|kept| kept.version == VERSION).map(|kept| kept.applied).unwrap_or_default();
        Self {
            keeper,
            journal,
            path,
            state: Mutex::new(State { applied, waiting: Vec::new() }),
            wake: Notify::new(),
            unproven: Notify::new(),
        }
    }

    /// Applies a withdrawal; the acknowledgement follows by itself.
    pub fn take(&self, withdrawal: &Withdrawal) {
        let applied = self.keeper.withdraw(withdrawal);
        self.state().waiting.push(Waiting {
            number: withdrawal.number,
            applied,
            code: withdrawal.refusal.code,
            reason: withdrawal.refusal.to_string(),
            noted: false,
        });
        self.wake.notify_one();
    }

    /// What the next evidence should say: the newest 256, ascending.
    pub fn applied(&self) -> Vec<u64> {
        let state = self.state();
        let beyond = state.applied.len().saturating_sub(WITHDRAWN_LIMIT);
        state.applied.iter().skip(beyond).copied().collect()
    }

    /// Returns when something was applied that evidence has yet to say.
    pub async fn to_prove(&self) {
        self.unproven.notified().await;
    }

    /// Evidence that named these was affirmed: they needn't be said again.
    pub fn proven(&self, numbers: &[u64]) {
        if numbers.is_empty() {
            return;
        }
        self.state().applied.retain(|number| !numbers.contains(number));
        self.keep();
    }

    /// Acknowledges what is applied, until `token` is cancelled.
    pub async fn acknowledge(self: Arc<Self>, client: watch::Receiver<Option<Enrolled>>, token: CancellationToken) {
        loop {
            let idle = self.state().waiting.is_empty();
            tokio::select! {
                () = token.cancelled() => return,
                () = self.wake.notified() => {}
                // What couldn't be said before.
                () = tokio::time::sleep(PAUSE), if !idle => {}
            }
            let Some(client) = client.borrow().clone() else { continue };
            tokio::select! {
                () = token.cancelled() => return,
                () = self.round(&client) => {}
            }
        }
    }

    async fn round(&self, client: &Enrolled) {
        let batch: Vec<Waiting> = self.state().waiting.iter().take(AT_ONCE).cloned().collect();
        let Some(change) = batch.iter().map(|one| one.applied.change).max() else { return };
        if tokio::time::timeout(STREAMS, self.keeper.noticed(change)).await.is_err() {
            tracing::warn!("a stream was slow to notice a withdrawal; nothing of it is released on it any more");
        }
        for one in batch.iter().filter(|one| !one.noted) {
            self.note(one).await;
        }
        let numbers: Vec<u64> = batch.iter().map(|one| one.number).collect();
        {
            let mut state = self.state();
            state.applied.extend(&numbers);
            state.waiting.iter_mut().filter(|one| numbers.contains(&one.number)).for_each(|one| one.noted = true);
        }
        // Before it is said: a restart must not forget what evidence is to repeat.
        self.keep();
        self.unproven.notify_one();
        match client.withdrawn(&WithdrawalsApplied { numbers: numbers.clone() }).await {
            Ok(_) => {
                // One that was told again meanwhile is acknowledged again, which is harmless.
                let mut gone = batch.len();
                self.state().waiting.retain(|one| {
                    let done = gone > 0 && numbers.contains(&one.number);
                    gone -= usize::from(done);
                    !done
                });
            }
            // The control plane tells it again when it is back, too.
            Err(failure) => tracing::debug!("withdrawals can't be acknowledged now: {failure}"),
        }
    }

    /// The node's own record: each credential that ended here, or that the withdrawal was applied at all.
    async fn note(&self, one: &Waiting) {
        let note = Note {
            what: What::End,
            workload: None,
            credential: None,
            decision: None,
            task: None,
            lease: self.keeper.sequence().map(|(sequence, _)| sequence),
            process: String::new(),
            code: Some(one.code),
            reason: format!("withdrawal {}: {}", one.number, one.reason),
        };
        let mut notes: Vec<Note> = one
            .applied
            .dropped
            .iter()
            .map(|(workload, serial)| Note {
                workload: Some(workload.clone()),
                credential: Some(serial.clone()),
                ..note.clone()
            })
            .collect();
        if notes.is_empty() {
            notes.push(note);
        }
        for note in notes {
            // What is applied stays applied, and is a fact whether or not there is room to write it down here:
            // the control plane has its own record.
            if let Err(refusal) = self.journal.write(note).await {
                tracing::error!(%refusal, "a withdrawal can't be noted in the journal");
            }
        }
    }

    fn keep(&self) {
        let kept = Kept { version: VERSION, applied: self.state().applied.clone() };
        let written = serde_cbor::to_vec(&kept).map_err(std::io::Error::other);
        if let Err(error) = written.and_then(|bytes| write_atomically(&self.path, &bytes)) {
            tracing::warn!(%error, path = %self.path.display(), "applied withdrawals can't be kept; a restart before the \
                next attestation leaves them unproven");
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
