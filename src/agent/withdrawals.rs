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
/// Withdrawals that wait to be acknowledged, and numbers that evidence has yet to say. Beyond them one is
/// applied like any other, and acknowledged when the control plane tells it again.
const MOST: usize = 4_096;
/// Bytes of each text of a reason.
const TEXT: usize = 512;
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

impl Waiting {
    /// Whether it is one of these, and not told again since.
    fn is_in(&self, batch: &[Self]) -> bool {
        batch.iter().any(|one| (one.number, one.applied.change) == (self.number, self.applied.change))
    }
}

impl State {
    /// Has one acknowledged. Told again while it waits, it is one: it says when the last of it was applied.
    fn wait(&mut self, mut one: Waiting) {
        if let Some(at) = self.waiting.iter().position(|waiting| waiting.number == one.number) {
            let before = self.waiting.remove(at);
            if !before.noted {
                one.applied.dropped.splice(..0, before.applied.dropped);
            }
        }
        match self.waiting.len() < MOST {
            true => self.waiting.push(one),
            false => tracing::warn!(number = one.number, "too many withdrawals wait to be acknowledged"),
        }
    }

    /// Has evidence say these, of which the newest are kept.
    fn say_in_evidence(&mut self, numbers: &[u64]) {
        self.applied.extend(numbers);
        while self.applied.len() > MOST {
            self.applied.pop_first();
        }
    }
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
        let withdrawal = &Withdrawal { refusal: withdrawal.refusal.clone().clipped(TEXT), ..withdrawal.clone() };
        let applied = self.keeper.withdraw(withdrawal);
        self.state().wait(Waiting {
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
            state.say_in_evidence(&numbers);
            state.waiting.iter_mut().filter(|one| one.is_in(&batch)).for_each(|one| one.noted = true);
        }
        // Before it is said: a restart must not forget what evidence is to repeat.
        self.keep();
        self.unproven.notify_one();
        match client.withdrawn(&WithdrawalsApplied { numbers: numbers.clone() }).await {
            Ok(_) => {
                // One that was told again meanwhile is acknowledged again, which is harmless.
                self.state().waiting.retain(|one| !one.is_in(&batch));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codes;

    fn waiting(number: u64, change: u64, dropped: &str) -> Waiting {
        let dropped = vec![(dropped.to_owned(), "07".to_owned())];
        let applied = Applied { change, dropped };
        Waiting { number, applied, code: codes::GATE_REVOKED, reason: "a test".to_owned(), noted: false }
    }

    #[test]
    fn what_is_told_again_waits_once_and_nothing_waits_without_bounds() {
        let mut state = State::default();
        state.wait(waiting(1, 1, "a"));
        state.wait(waiting(2, 2, "b"));
        let batch = state.waiting.clone();
        state.wait(waiting(1, 3, "c"));
        assert_eq!(state.waiting.len(), 2);
        let again = state.waiting.iter().find(|one| one.number == 1).unwrap();
        assert_eq!(again.applied.dropped.len(), 2, "what it ended before isn't forgotten");
        assert!(!again.is_in(&batch), "what was applied since isn't acknowledged with what was before");
        (0..2 * MOST as u64).for_each(|number| state.wait(waiting(number, 4, "d")));
        assert_eq!(state.waiting.len(), MOST);
        state.say_in_evidence(&(0..2 * MOST as u64).collect::<Vec<_>>());
        assert_eq!((state.applied.len(), state.applied.first()), (MOST, Some(&(MOST as u64))));
    }
}
