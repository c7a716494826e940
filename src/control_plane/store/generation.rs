//! Notices a store that was restored from a backup.
//!
//! A restored store has forgotten what happened since the backup: spent nonces, ended leases,
//! revocations. So a generation counter grows in the store and, after it, in a small file that
//! should not be part of the same backup (it lies beside the wrapping key). A store whose counter
//! is behind the file's is an older one: it announces a new epoch and every node attests afresh.
//!
//! What this can't notice: a restore of both together. Then nothing here knows better; the nodes
//! still attest afresh, since their nonces and leases are unknown, but a revocation made after the
//! backup is lost and must be made again.

use std::path::{Path, PathBuf};

use super::{Transaction, fixed, meta, params, signed};
use crate::clock::WallTime;
use crate::codes::{self, Refusal};
use crate::secret;

/// Random for each store and each restore of it; named in leases.
pub type Epoch = [u8; 16];

/// How far numbers jump after a restore: more than an hour's worth of one a second.
const SKIPPED: u64 = 4096;

/// The counter and where its witness lies.
#[derive(Clone, Debug)]
pub struct Generation {
    witness: PathBuf,
}

impl Generation {
    /// The counter with its witness file at `witness`.
    pub fn new(witness: PathBuf) -> Self {
        Self { witness }
    }

    /// Whether the store is older than its witness.
    ///
    /// # Errors
    /// As [`Self::enter`].
    pub fn is_behind(&self, tx: &Transaction<'_>) -> Result<bool, Refusal> {
        Ok(counter(tx)? < self.witnessed()?)
    }

    /// Compares store and witness and takes the next generation. A store behind its witness loses
    /// its nonces, enrolments, stored answers and leases and gets a new epoch; so does one that is `cut`: its log
    /// ends before the head outside.
    /// Returns the epoch and whether it is new because of a restore.
    ///
    /// # Errors
    /// [`codes::STORE_FAILED`]; [`codes::CONFIG_INVALID`] for an unreadable witness.
    pub fn enter(&self, tx: &Transaction<'_>, cut: bool, now: WallTime) -> Result<(Epoch, bool), Refusal> {
        let stored = counter(tx)?;
        let witnessed = self.witnessed()?;
        let restored = cut || stored < witnessed;
        if restored {
            tx.execute_batch("DELETE FROM nonces; DELETE FROM enrolments; DELETE FROM requests;")?;
            // What was numbered after the backup isn't known; the numbers go on well above it.
            let ahead = now.0.saturating_add(SKIPPED);
            tx.execute(
                "UPDATE leases SET ends_at = 0, ended_code = ?1, sequence = max(sequence, ?2)",
                params![codes::PROTOCOL_EPOCH.as_str(), signed(ahead)],
            )?;
            // A node may still say that it applied a withdrawal made after the backup: no other may have its number.
            tx.execute(
                "INSERT INTO revocations(number, at, kind, target, reason, credentials) VALUES (?1, 0, 'ca', '', '', 0)",
                [signed(ahead)],
            )?;
            tx.execute("DELETE FROM revocations WHERE number = ?1", [signed(ahead)])?;
            let bundle = meta::number(tx, "bundle_sequence")?;
            meta::set_number(tx, "bundle_sequence", bundle.max(ahead))?;
            meta::set(tx, "epoch", &random_epoch()?)?;
        }
        let epoch = match meta::get(tx, "epoch")? {
            Some(epoch) => fixed(&epoch, "the epoch")?,
            None => {
                let epoch = random_epoch()?;
                meta::set(tx, "epoch", &epoch)?;
                epoch
            }
        };
        meta::set_number(tx, "generation", stored.max(witnessed) + 1)?;
        Ok((epoch, restored))
    }

    /// Counts on, in the transaction that takes something away: a restore of an older store would
    /// give it back.
    ///
    /// # Errors
    /// [`codes::STORE_FAILED`].
    pub fn advance(&self, tx: &Transaction<'_>) -> Result<(), Refusal> {
        meta::set_number(tx, "generation", counter(tx)? + 1)
    }

    /// Writes the witness, after the commit: a crash between the two leaves the store ahead, which
    /// is harmless.
    ///
    /// # Errors
    /// [`codes::STORE_FAILED`].
    pub fn witness(&self, tx: &Transaction<'_>) -> Result<(), Refusal> {
        secret::write_atomically(&self.witness, format!("{}\n", counter(tx)?).as_bytes())
            .map_err(|e| Refusal::new(codes::STORE_FAILED, e.to_string()))
    }

    fn witnessed(&self) -> Result<u64, Refusal> {
        match std::fs::read_to_string(&self.witness) {
            Ok(text) => text.trim().parse().map_err(|_| self.unreadable("it is no number".to_owned())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(0),
            Err(error) => Err(self.unreadable(error.to_string())),
        }
    }

    fn unreadable(&self, why: String) -> Refusal {
        Refusal::new(codes::CONFIG_INVALID, why)
            .at(Path::display(&self.witness).to_string())
            .expected("the generation that this server wrote there")
    }
}

fn counter(tx: &Transaction<'_>) -> Result<u64, Refusal> {
    meta::number(tx, "generation")
}

fn random_epoch() -> Result<Epoch, Refusal> {
    secret::random().map_err(|e| Refusal::new(codes::STORE_FAILED, e.to_string()))
}

/// The next number of a sequence that never goes back, not even after a restore: one more than the
/// last, but at least the present time in seconds. (It is used less than once a second on average.)
pub fn next_sequence(last: u64, now: WallTime) -> u64 {
    last.saturating_add(1).max(now.0)
}

#[cfg(test)]
mod tests {
    use super::super::Store;
    use super::*;

    #[test]
    fn an_older_store_gets_a_new_epoch() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.db");
        let generation = Generation::new(dir.path().join("elsewhere"));
        let start = |path: &Path| {
            let store = Store::open(path).unwrap();
            let entered = store.transaction_blocking(|tx| generation.enter(tx, false, WallTime(7))).unwrap();
            store.transaction_blocking(|tx| generation.witness(tx)).unwrap();
            entered
        };
        let (first, restored) = start(&path);
        assert!(!restored);
        let backup = dir.path().join("backup.db");
        std::fs::copy(&path, &backup).unwrap();
        assert_eq!(start(&path), (first, false));
        std::fs::copy(&backup, &path).unwrap();
        let _ = std::fs::remove_file(dir.path().join("store.db-wal"));
        let (second, restored) = start(&path);
        assert!(restored);
        assert_ne!(first, second);
        assert_eq!(start(&path), (second, false));
    }

    #[test]
    fn sequences_grow_even_from_nothing() {
        let now = WallTime(1_000);
        assert_eq!(next_sequence(0, now), 1_000);
        assert_eq!(next_sequence(1_000, now), 1_001);
    }
}
