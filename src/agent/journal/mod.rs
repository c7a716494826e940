//! The node's own record of what it released, denied and withdrew: written before anything leaves.
//!
//! ```text
//! write(note) ─▶ repeats: counted, written before? ─ yes ─▶ done
//!                  │ no
//!                  ▼
//!              thread `journal`: all that wait in one write, one fsync ─▶ done, or AUDIT_UNWRITABLE
//!                  │
//!                  ▼
//!              courier: the TPM signs the head ─▶ control plane ─▶ acknowledged: may be dropped
//! ```

pub mod check;
mod courier;
mod repeats;
mod shares;
mod spool;
#[cfg(test)]
mod tests;
mod thread;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};

use serde::{Deserialize, Serialize};
use tokio::sync::{oneshot, watch};

use crate::clock::BootInstant;
use crate::codes::{self, Code, Refusal};
use crate::protocol::{Head, Record};

pub use courier::{BETWEEN, Courier};
pub use repeats::WINDOW;
pub use thread::JournalThread;

use repeats::Repeats;
use shares::Shares;
use spool::{Batch, Spool};
use thread::Ask;

/// The journal's directory in the agent's state directory.
pub const DIRECTORY: &str = "journal";

/// What happened.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum What {
    /// A credential was handed to a process.
    Release {
        /// The process's user.
        uid: u32,
    },
    /// A token that a process showed was examined here.
    Use {
        /// The process's user: a token of one task is shown by one user of one node.
        uid: u32,
    },
    /// A process got nothing.
    Deny,
    /// A credential, or a task, ended here.
    End,
}

impl What {
    /// As in a record.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Release { .. } => "credential.released",
            Self::Use { .. } => "credential.used",
            Self::Deny => "credential.denied",
            Self::End => "release.ended",
        }
    }
}

impl What {
    /// Whose credential it is about, where one leaves or is shown.
    const fn uid(self) -> Option<u32> {
        match self {
            Self::Release { uid } | Self::Use { uid } => Some(uid),
            Self::Deny | Self::End => None,
        }
    }
}

/// One thing that happened, and to whom. Equal notes are one thing that happens again.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Note {
    /// What.
    pub what: What,
    /// The workload's SPIFFE ID.
    pub workload: Option<String>,
    /// The credential's id: serial number in hexadecimal, or `jti`.
    pub credential: Option<String>,
    /// The decision it was issued by.
    pub decision: Option<String>,
    /// The task it is for.
    pub task: Option<String>,
    /// The lease it happened under.
    pub lease: Option<u64>,
    /// The process, for people: what the kernel says of it.
    pub process: String,
    /// Why, where something was denied or ended.
    pub code: Option<Code>,
    /// The same in words.
    pub reason: String,
}

impl Note {
    /// As a record of something that happened `count` times.
    fn record(&self, count: u64) -> Record {
        let cut = |text: &String| clipped(text).to_owned();
        let given = |text: &String| (!text.is_empty()).then(|| cut(text));
        Record {
            what: self.what.as_str().to_owned(),
            workload: self.workload.as_ref().map(|id| cut_at(id, ID).to_owned()),
            lease: self.lease,
            decision: self.decision.as_ref().map(cut),
            credential: self.credential.as_ref().map(cut),
            task: self.task.as_ref().map(cut),
            process: given(&self.process),
            count,
            code: self.code.map(|code| code.as_str().to_owned()),
            reason: given(&self.reason),
            detail: match self.what {
                What::Use { uid } => serde_json::json!({ "uid": uid }),
                _ => serde_json::Value::Null,
            },
            ..Record::default()
        }
    }
}

/// The longest field of a record in bytes, and the longest SPIFFE ID (SPIFFE-ID, 2.4). All at their limits, every
/// byte escaped as six, are a line within [`crate::protocol::records::LINE_LIMIT`].
const FIELD: usize = 512;
const ID: usize = 2048;

/// `text`, cut at a character boundary to what a record keeps.
fn clipped(text: &str) -> &str {
    cut_at(text, FIELD)
}

fn cut_at(text: &str, limit: usize) -> &str {
    text.get(..text.floor_char_boundary(limit)).unwrap_or_default()
}

/// How the journal stands, for status.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Standing {
    /// Its writer; a new one after it was begun anew.
    pub writer: Option<String>,
    /// Records in it.
    pub number: u64,
    /// Up to which the TPM signed.
    pub signed: u64,
    /// Up to which the control plane has them.
    pub acknowledged: u64,
    /// Bytes that wait for the control plane.
    pub waiting_bytes: u64,
    /// The most that may wait: then nothing is released.
    pub limit_bytes: u64,
    /// Writes to the disk since the agent started; each may be of many records.
    pub writes: u64,
    /// So long repeats are only counted in memory, in seconds.
    pub window_seconds: u64,
    /// Why it can't be written now.
    pub trouble: Option<Refusal>,
}

/// Writes notes. Cloned freely; all clones write one journal.
#[derive(Clone, Debug)]
pub struct Journal {
    shared: Arc<Shared>,
    asks: mpsc::Sender<Ask>,
}

#[derive(Debug, Default)]
struct Shared {
    repeats: Mutex<Repeats>,
    /// The last write failed: nothing counts as written before.
    failing: AtomicBool,
    /// More than half of what may wait does.
    nearly_full: AtomicBool,
    /// Locked by itself, and only for a look.
    shares: Mutex<Shares>,
    standing: watch::Sender<Standing>,
}

impl Shared {
    fn repeats(&self) -> MutexGuard<'_, Repeats> {
        self.repeats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn shares(&self) -> MutexGuard<'_, Shares> {
        self.shares.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Journal {
    /// Starts the journal in `state_dir`, of which at most `limit` bytes may wait for the control plane. What is there
    /// already is gone on with. A disk that can't be written is no error here: then nothing is released.
    ///
    /// # Errors
    /// [`codes::AUDIT_UNWRITABLE`] if its thread can't be started.
    pub fn start(state_dir: &Path, limit: u64) -> Result<(Self, JournalThread), Refusal> {
        let directory: PathBuf = state_dir.join(DIRECTORY);
        let shared = Arc::<Shared>::default();
        let (asks, asked) = mpsc::channel();
        let thread = JournalThread::start(Spool::new(directory, limit), shared.clone(), asked, asks.clone())?;
        Ok((Self { shared, asks }, thread))
    }

    /// Writes `note`; when it returns, the note is on the disk. Repeats by one process are counted in one record. A
    /// denial isn't waited for, since nothing leaves with it.
    ///
    /// # Errors
    /// [`codes::AUDIT_UNWRITABLE`]: then nothing may leave. So it is, too, for a user that has used up what is left to each
    /// of a journal more than half full.
    pub async fn write(&self, note: Note) -> Result<(), Refusal> {
        if note.what == What::Deny {
            self.denied(note);
            return Ok(());
        }
        if let Some(uid) = note.what.uid() {
            self.shared.shares().room(uid)?;
        }
        if self.counts(&note) {
            return Ok(());
        }
        let (reply, written) = oneshot::channel();
        self.asks.send(Ask::Write(note, Some(reply))).map_err(|_| stopped())?;
        written.await.unwrap_or_else(|_| Err(stopped()))
    }

    /// Notes a denial without waiting for the disk.
    pub fn denied(&self, note: Note) {
        let note = {
            let nearly_full = self.shared.nearly_full.load(Ordering::Relaxed);
            self.shared.repeats().bounded(note, nearly_full, BootInstant::now())
        };
        if !self.shared.repeats().again(&note) {
            self.say(note);
        }
    }

    /// Writes a note soon, and doesn't wait: nothing leaves with it. If it can't be written it is kept in memory
    /// until it can.
    pub fn say(&self, note: Note) {
        // A journal that has ended is one of an agent that is ending.
        let _ = self.asks.send(Ask::Write(note, None));
    }

    /// How the journal stands, and when that changes.
    pub fn standing(&self) -> watch::Receiver<Standing> {
        self.shared.standing.subscribe()
    }

    fn counts(&self, note: &Note) -> bool {
        !self.shared.failing.load(Ordering::Acquire) && self.shared.repeats().again(note)
    }

    async fn ask<T>(&self, ask: impl FnOnce(oneshot::Sender<T>) -> Ask) -> Result<T, Refusal> {
        let (reply, answer) = oneshot::channel();
        self.asks.send(ask(reply)).map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())
    }

    /// Where the chain ends.
    async fn head(&self) -> Result<Head, Refusal> {
        self.ask(Ask::Head).await?
    }
}

fn stopped() -> Refusal {
    Refusal::new(codes::AUDIT_UNWRITABLE, "the agent is stopping")
}
