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
use crate::verify::runtime::{Advanced, Checkpoint, CompiledRules, Judge, Mode};

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
    /// Those of the present lease, and those that the next one will name: until it opens the gate, the
    /// present one goes on by its own.
    rules: Vec<([u8; 32], Arc<CompiledRules>)>,
    /// Which of them the present lease names.
    named: Option<[u8; 32]>,
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
        let Some((_, rules)) = place.rules.iter().find(|(digest, _)| *digest == moved.rules) else {
            return Followed::Unexplained("the rules for new entries, which the lease names, aren't here".to_owned());
        };
        let Some((_, at)) =
            place.at.as_ref().filter(|(sequence, at)| *sequence == moved.lease_sequence && at.value == moved.from)
        else {
            return Followed::Unexplained("nothing says where in IMA's list the lease stands".to_owned());
        };
        let mut why = "IMA's list doesn't lead to it".to_owned();
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
                Ok(Err(refusal)) => {
                    why = refusal.to_string();
                    continue;
                }
                Err(error) => return Followed::Unexplained(error.to_string()),
            };
            let mut judge = Judge::new(Some(rules), at.clone());
            match judge.advance(&rest, &moved.to) {
                Ok(Some(advanced)) => return Followed::Allowed(advanced, judge.at),
                Ok(None) => {}
                Err(refusal) => return Followed::Refused(refusal),
            }
        }
        Followed::Unexplained(why)
    }
}

impl Place {
    /// Takes up the place of a lease that the gate opened under.
    pub fn begin(&mut self, lease: &Lease, position: Option<ListPosition>) {
        self.named = lease.claims().rules;
        self.rules.retain(|(digest, _)| Some(*digest) == self.named);
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

    /// Whether the rules of the present lease only say what they would refuse.
    pub fn only_warns(&self) -> bool {
        let named = self.rules.iter().find(|(digest, _)| Some(*digest) == self.named);
        named.is_some_and(|(_, rules)| rules.mode() == Mode::Warn)
    }

    /// Goes on to where the gate followed.
    pub fn advance(&mut self, at: Checkpoint) {
        if let Some((_, present)) = &mut self.at {
            *present = at;
        }
    }

    /// Takes up rules, named by their document's digest.
    pub fn rule(&mut self, digest: [u8; 32], rules: CompiledRules) {
        self.rules.retain(|(present, _)| Some(*present) == self.named && *present != digest);
        self.rules.push((digest, Arc::new(rules)));
    }

    /// Whether it has the rules of the document with this digest.
    pub fn has(&self, digest: &[u8; 32]) -> bool {
        self.rules.iter().any(|(present, _)| present == digest)
    }
}

/// The refusal when nothing explains that PCR 10 moved.
pub fn unexplained(moved: &Moved, bank: &str, why: &str) -> Refusal {
    Refusal::new(codes::GATE_DRIFT, hex::encode(&moved.to))
        .at(format!("PCR {IMA_PCR} ({bank}): {why}"))
        .expected(hex::encode(&moved.from))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::AgentLogs;
    use crate::measurements::LogHash;
    use crate::measurements::ima::{Entries, Fold};
    use crate::tpm::Bank;
    use crate::verify::runtime::RuntimeRules;

    /// An `ima-ng` entry of `/bin/true`.
    fn entry() -> Vec<u8> {
        let field = |bytes: &[u8]| [&u32::try_from(bytes.len()).unwrap().to_le_bytes()[..], bytes].concat();
        let data = [field(&[&b"sha256:\0"[..], &[7; 32]].concat()), field(b"/bin/true\0")].concat();
        [&10u32.to_le_bytes()[..], &[1; 20], &field(b"ima-ng"), &field(&data)].concat()
    }

    #[tokio::test]
    async fn the_present_lease_goes_on_by_its_own_rules_while_the_next_ones_are_taken_up() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("list");
        std::fs::write(&path, entry()).unwrap();
        let none = std::path::PathBuf::new();
        let logs = AgentLogs { boot: none.clone(), userspace: none, ima: path };
        let follower = Follower::new(Arc::new(Sources::open(&logs).unwrap()));
        let mut fold = Fold::start(LogHash::Sha256, false);
        Entries::new(&entry(), 0, 0).for_each(|entry| fold.take(&entry.unwrap()));

        let mut rules = RuntimeRules::default();
        rules.allow_file(b"/bin/true", LogHash::Sha256, &[7; 32]);
        let mut place = follower.lock().await;
        place.rule([1; 32], rules.compile().unwrap());
        place.named = Some([1; 32]);
        place.at = Some((5, Checkpoint::start(Bank::Sha256)));
        let moved = |rules| Moved { lease_sequence: 5, rules, from: vec![0; 32], to: fold.value().to_vec() };
        // Not those that nobody's lease names yet, and those of the lease however many follow.
        for next in [2, 3] {
            place.rule([next; 32], RuntimeRules::default().compile().unwrap());
            let followed = follower.follow(&place, &moved([1; 32])).await;
            assert!(matches!(followed, Followed::Allowed(..)), "{followed:?}");
        }
        assert!(place.has(&[3; 32]) && !place.has(&[2; 32]));
        assert!(matches!(follower.follow(&place, &moved([3; 32])).await, Followed::Refused(_)));
        assert!(matches!(follower.follow(&place, &moved([2; 32])).await, Followed::Unexplained(_)));
    }
}
