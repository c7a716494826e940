//! Follows IMA's list from where a lease stands: whether what made PCR 10 move is allowed by the rules
//! that the lease names.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, MutexGuard};

use super::sources::Sources;
use crate::codes::{self, Refusal};
use crate::evidence::LogKind;
use crate::gate::Moved;
use crate::protocol::ListPosition;
use crate::tpm::IMA_PCR;
use crate::verify::Lease;
use crate::verify::runtime::{Advanced, Checkpoint, CompiledRules, Judge};

/// How much of the list is read for one judgement, in bytes: 100 entries are about 10 KiB.
const REACH: usize = 16 << 20;
/// The kernel adds to the list before it extends the PCR, so an entry that was extended is there. A list
/// that lags all the same is read again, so often and after such a pause: 100 ms in all.
const TRIES: u32 = 5;
const PAUSE: Duration = Duration::from_millis(25);

/// Holds the place in the list. One at a time follows it; the lock may be kept across an await.
#[derive(Debug)]
pub struct Follower {
    sources: Arc<Sources>,
    place: Mutex<Place>,
}

/// Where the list was judged up to, and by which rules.
#[derive(Debug, Default)]
pub struct Place {
    rules: Option<([u8; 32], Arc<CompiledRules>)>,
    at: Option<(u64, Checkpoint)>,
}

/// What was found.
#[derive(Debug)]
pub enum Followed {
    /// Allowed entries lead to the reading.
    Allowed(Advanced, Checkpoint),
    /// An entry that no rule allows.
    Refused(Refusal),
    /// The list says nothing of it, and why.
    Unexplained(String),
}

impl Follower {
    /// Nowhere yet.
    pub fn new(sources: Arc<Sources>) -> Self {
        Self { sources, place: Mutex::default() }
    }

    /// The place, for as long as the guard is kept.
    pub async fn lock(&self) -> MutexGuard<'_, Place> {
        self.place.lock().await
    }

    /// Judges what lies between the two values.
    pub async fn follow(&self, place: &Place, moved: &Moved) -> Followed {
        let Some((_, rules)) = place.rules.as_ref().filter(|(digest, _)| *digest == moved.rules) else {
            return Followed::Unexplained("the rules for new entries, which the lease names, aren't here".to_owned());
        };
        let Some((_, at)) =
            place.at.as_ref().filter(|(sequence, at)| *sequence == moved.lease_sequence && at.value == moved.from)
        else {
            return Followed::Unexplained("nothing says where in IMA's list the lease stands".to_owned());
        };
        for tried in 0..TRIES {
            if tried > 0 {
                tokio::time::sleep(PAUSE).await;
            }
            let (sources, offset) = (self.sources.clone(), at.offset);
            // Off the runtime's threads: a file may take its time.
            let read = tokio::task::spawn_blocking(move || sources.read(LogKind::Ima, offset, REACH)).await;
            let rest = match read {
                Ok(Ok(Some(rest))) => rest,
                Ok(Ok(None)) => return Followed::Unexplained("there is no IMA list".to_owned()),
                Ok(Err(refusal)) => return Followed::Unexplained(refusal.to_string()),
                Err(error) => return Followed::Unexplained(error.to_string()),
            };
            let mut judge = Judge::new(Some(rules), at.clone());
            match judge.advance(&rest, &moved.to) {
                Ok(Some(advanced)) => return Followed::Allowed(advanced, judge.at),
                Ok(None) => {}
                Err(refusal) => return Followed::Refused(refusal),
            }
        }
        Followed::Unexplained("IMA's list doesn't lead to it".to_owned())
    }
}

impl Place {
    /// Takes up the place of a lease that the gate opened under.
    pub fn begin(&mut self, lease: &Lease, position: Option<ListPosition>) {
        let pcrs = &lease.claims().pcrs;
        self.at = position.zip(pcrs.get(IMA_PCR)).map(|(position, value)| {
            let ListPosition { entries, offset, padded } = position;
            let start = Checkpoint::start(pcrs.selection().bank());
            let at = Checkpoint { entries, offset, padded, value: value.to_vec(), ..start };
            (lease.claims().sequence, at)
        });
    }

    /// The place, if there is one.
    pub fn at(&self) -> Option<&Checkpoint> {
        self.at.as_ref().map(|(_, at)| at)
    }

    /// Goes on to where the gate followed.
    pub fn advance(&mut self, at: Checkpoint) {
        if let Some((_, present)) = &mut self.at {
            *present = at;
        }
    }

    /// Takes up rules, named by their document's digest.
    pub fn rule(&mut self, digest: [u8; 32], rules: CompiledRules) {
        self.rules = Some((digest, Arc::new(rules)));
    }

    /// Whether it has the rules of the document with this digest.
    pub fn has(&self, digest: &[u8; 32]) -> bool {
        self.rules.as_ref().is_some_and(|(present, _)| present == digest)
    }
}

/// The refusal when nothing explains that PCR 10 moved.
pub fn unexplained(moved: &Moved, bank: &str, why: &str) -> Refusal {
    Refusal::new(codes::GATE_DRIFT, hex::encode(&moved.to))
        .at(format!("PCR {IMA_PCR} ({bank}): {why}"))
        .expected(hex::encode(&moved.from))
}
