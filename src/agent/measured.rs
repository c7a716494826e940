//! "This program, measured by this kernel": whether a program's digest stands in the part of IMA's list
//! that the present lease, or the gate since, vouches for.
//!
//! The list is replayed from its start for each program that asks for the first time, in pieces, so that
//! a list of a million entries takes no more memory than a short one. What was found stays found for
//! this boot, since the list only grows; what wasn't is looked for in what came since.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, PoisonError};

use tokio::sync::Mutex;

use super::sources::Sources;
use crate::codes::{self, Refusal};
use crate::measurements::LogHash;
use crate::measurements::ima::ENTRY_LIMIT;
use crate::verify::runtime::{Checkpoint, Search};

/// So much of the list is in memory at one time, in bytes, unless an entry is longer.
const PIECE: usize = 256 << 10;
/// The longest piece: an entry of the greatest size with its head.
const LONGEST_PIECE: usize = 2 * ENTRY_LIMIT;
/// So many programs are remembered.
const REMEMBERED: usize = 1024;

/// What is known of programs.
#[derive(Debug)]
pub struct Measured {
    sources: Arc<Sources>,
    /// One replay at a time.
    known: Arc<Mutex<Known>>,
    /// What was warned of: once is enough.
    warned: std::sync::Mutex<BTreeSet<String>>,
}

type Known = HashMap<(LogHash, Vec<u8>), Search>;

/// What a replay says of a program.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Standing {
    /// This entry measured it.
    Entry(u64),
    /// None up to here; the list's digests are of these algorithms.
    Absent(Vec<LogHash>),
}

impl Measured {
    /// Nothing is known yet.
    pub fn new(sources: Arc<Sources>) -> Self {
        Self { sources, known: Arc::default(), warned: std::sync::Mutex::default() }
    }

    /// Says what rules that only warn would refuse; the same once.
    pub fn warn(&self, refusal: &Refusal) {
        let mut warned = self.warned.lock().unwrap_or_else(PoisonError::into_inner);
        if warned.len() >= REMEMBERED {
            warned.clear();
        }
        if warned.insert(refusal.found.clone()) {
            tracing::warn!(code = %refusal.code, "released to a program that enforced rules would refuse: {refusal}");
        }
    }

    /// Whether the file with this digest was measured, up to the place that is vouched for.
    ///
    /// # Errors
    /// When the list can't be read, or isn't the one that `at` vouches for.
    pub async fn look(&self, hash: LogHash, digest: &[u8], at: Checkpoint) -> Result<Standing, Refusal> {
        let mut known = Arc::clone(&self.known).lock_owned().await;
        let (sources, key) = (Arc::clone(&self.sources), (hash, digest.to_vec()));
        // Off the runtime's threads: a long list takes its time.
        let looked = tokio::task::spawn_blocking(move || {
            let search = match known.get(&key) {
                Some(search) if search.leads_to(&at) => search.clone(),
                _ => Search::start(key.0, &key.1, &at)?,
            };
            let search = replay(search, &at, &sources)?;
            let Some(found) = search.found(&at) else { return Err(not_attested(&at)) };
            let standing = found.map_or_else(|| Standing::Absent(search.algorithms().to_vec()), Standing::Entry);
            if known.len() >= REMEMBERED && !known.contains_key(&key) {
                known.clear();
            }
            known.insert(key, search);
            Ok(standing)
        });
        looked.await.unwrap_or_else(|error| Err(Refusal::new(codes::MEASUREMENTS_UNREADABLE, error.to_string())))
    }
}

fn replay(mut search: Search, at: &Checkpoint, sources: &Sources) -> Result<Search, Refusal> {
    let mut piece = PIECE;
    while search.offset() < at.offset {
        let left = usize::try_from(at.offset.saturating_sub(search.offset())).unwrap_or(usize::MAX);
        let bytes = sources.look(search.offset(), piece.min(left))?.unwrap_or_default();
        if search.take(&bytes, at)? {
            piece = PIECE;
        } else if piece < LONGEST_PIECE && piece < left {
            piece = LONGEST_PIECE;
        } else {
            return Err(not_attested(at));
        }
    }
    Ok(search)
}

fn not_attested(at: &Checkpoint) -> Refusal {
    Refusal::new(codes::WORKLOAD_UNMEASURED, "IMA's list doesn't lead to the attested value of PCR 10")
        .at(format!("entry {}, byte {}", at.entries, at.offset))
        .expected(hex::encode(&at.value))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::clock::BootInstant;
    use crate::config::AgentLogs;
    use crate::measurements::ima::{Entries, Fold};
    use crate::tpm::Bank;

    /// An `ima-ng` entry of a file whose digest begins with this number.
    fn entry(number: u64) -> Vec<u8> {
        let field = |bytes: &[u8]| [&u32::try_from(bytes.len()).unwrap().to_le_bytes()[..], bytes].concat();
        let digest = [&b"sha256:\0"[..], &number.to_be_bytes(), &[7; 24]].concat();
        let data = [field(&digest), field(format!("/usr/lib/file-{number}\0").as_bytes())].concat();
        [&10u32.to_le_bytes()[..], &[1; 20], &field(b"ima-ng"), &field(&data)].concat()
    }

    fn digest(number: u64) -> Vec<u8> {
        [&number.to_be_bytes()[..], &[7; 24]].concat()
    }

    /// A list of so many entries, and the checkpoint behind them.
    fn list(entries: u64) -> (tempfile::NamedTempFile, Checkpoint) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let (mut fold, mut offset) = (Fold::start(LogHash::Sha256, false), 0);
        for number in 0..entries {
            let bytes = entry(number);
            Entries::new(&bytes, number, offset).for_each(|entry| fold.take(&entry.unwrap()));
            offset += bytes.len() as u64;
            file.write_all(&bytes).unwrap();
        }
        (file, Checkpoint { entries, offset, value: fold.value().to_vec(), ..Checkpoint::start(Bank::Sha256) })
    }

    fn measured(list: &std::path::Path) -> Measured {
        let none = std::path::PathBuf::new();
        let logs = AgentLogs { boot: none.clone(), userspace: none, ima: list.to_path_buf() };
        Measured::new(Arc::new(Sources::open(&logs).unwrap()))
    }

    /// The most memory this process ever had, in KiB.
    fn peak() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.split_ascii_whitespace().next().unwrap().parse().unwrap()
    }

    #[tokio::test]
    async fn a_program_is_measured_once_its_entry_is_vouched_for() {
        let (mut file, at) = list(20);
        let measured = measured(file.path());
        let look = async |number, at: &Checkpoint| measured.look(LogHash::Sha256, &digest(number), at.clone()).await;
        assert_eq!(look(7, &at).await, Ok(Standing::Entry(7)));
        assert_eq!(look(20, &at).await, Ok(Standing::Absent(vec![LogHash::Sha256])));
        // There, but nobody vouches for it; then somebody does.
        file.write_all(&entry(20)).unwrap();
        assert_eq!(look(20, &at).await, Ok(Standing::Absent(vec![LogHash::Sha256])));
        let (_, after) = list(21);
        assert_eq!(look(20, &after).await, Ok(Standing::Entry(20)));
        assert_eq!(look(7, &after).await, Ok(Standing::Entry(7)));
        // A lease may stand further back than the last one's gate had followed.
        assert_eq!(look(20, &at).await, Ok(Standing::Absent(vec![LogHash::Sha256])));
        assert_eq!(look(7, &at).await, Ok(Standing::Entry(7)));
    }

    #[tokio::test]
    async fn a_list_that_is_not_the_attested_one_shows_nothing() {
        let (file, at) = list(20);
        let other = Checkpoint { value: vec![9; 32], ..at.clone() };
        let beyond = Checkpoint { offset: at.offset + 1, ..at.clone() };
        let measured = measured(file.path());
        for at in [other, beyond] {
            let refusal = measured.look(LogHash::Sha256, &digest(7), at).await.unwrap_err();
            assert_eq!(refusal.code, codes::WORKLOAD_UNMEASURED, "{refusal}");
        }
        assert_eq!(measured.look(LogHash::Sha256, &digest(7), at).await, Ok(Standing::Entry(7)));
    }

    /// `LEASEHOLD_ENTRIES=1000000` for as many.
    #[tokio::test]
    async fn a_long_list_takes_time_and_no_memory() {
        let entries = std::env::var("LEASEHOLD_ENTRIES").ok().and_then(|n| n.parse().ok()).unwrap_or(50_000);
        let (file, at) = list(entries);
        let (before, size) = (peak(), at.offset);
        let measured = measured(file.path());
        for (number, what) in [(entries - 1, "the last"), (entries, "none"), (entries, "none, again")] {
            let since = BootInstant::now();
            let found = measured.look(LogHash::Sha256, &digest(number), at.clone()).await.unwrap();
            assert_eq!(found == Standing::Entry(number), number < entries);
            println!("{entries} entries, {size} bytes: {what} in {:?}", BootInstant::now().since(since));
        }
        let grown = peak() - before;
        println!("memory grew by {grown} KiB");
        assert!(grown < 8192, "{grown} KiB");
    }
}
