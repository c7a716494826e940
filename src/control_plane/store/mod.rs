//! The store: one SQLite file with one writer.
//!
//! Everything the control plane must not forget is in it, and what belongs together changes in one
//! transaction: a nonce is spent in the transaction that stores what it authorised.

mod generation;
pub mod meta;
mod migrations;

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Semaphore;

use rusqlite::{Connection, OpenFlags, TransactionBehavior};
pub use rusqlite::{OptionalExtension, Transaction, params};

pub use generation::{Epoch, Generation, next_sequence};

use crate::codes::{self, Refusal};

/// A cloneable handle to the store.
#[derive(Clone)]
pub struct Store {
    // A std mutex: it is only ever held on blocking threads, for the length of a transaction.
    connection: Arc<Mutex<Connection>>,
    path: Arc<Path>,
    long_readings: Arc<Semaphore>,
}

/// How many long readings go on at once; others wait for their turn.
const LONG_READINGS: usize = 4;

impl Store {
    /// Opens the store at `path`, creating it (mode 0600) or migrating it to this version's schema.
    ///
    /// # Errors
    /// [`codes::STORE_FAILED`] for a file that is damaged, another program's, or of a newer schema.
    pub fn open(path: &Path) -> Result<Self, Refusal> {
        let at = |refusal: Refusal| refusal.at(path.display().to_string());
        // SQLite would create the file with the umask's mode; its WAL takes the mode of the file.
        OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(path)
            .map_err(|e| at(Refusal::new(codes::STORE_FAILED, e.to_string())))?;
        let mut connection = Connection::open(path).map_err(|e| at(e.into()))?;
        migrations::run(&mut connection).map_err(at)?;
        let long_readings = Arc::new(Semaphore::new(LONG_READINGS));
        Ok(Self { connection: Arc::new(Mutex::new(connection)), path: path.into(), long_readings })
    }

    /// Runs `work` in a transaction that only reads, on a connection of its own: it sees what was committed
    /// before it began, and however long it takes, the one writer doesn't wait for it. `long` ones take turns.
    ///
    /// # Errors
    /// Those of `work`, or [`codes::STORE_FAILED`], also for an attempt to write.
    pub async fn reading<T, F>(&self, long: bool, work: F) -> Result<T, Refusal>
    where
        T: Send + 'static,
        F: FnOnce(&Transaction<'_>) -> Result<T, Refusal> + Send + 'static,
    {
        let ended = |error: String| Refusal::new(codes::STORE_FAILED, format!("BUG: a reading ended early: {error}"));
        let turn = match long {
            true => Some(self.long_readings.clone().acquire_owned().await.map_err(|e| ended(e.to_string()))?),
            false => None,
        };
        let path = self.path.clone();
        let reading = move || {
            // Whoever asked may be gone: the turn is over when the work is.
            let _turn = turn;
            work(&open_reader(&path)?.transaction()?)
        };
        tokio::task::spawn_blocking(reading).await.map_err(|e| ended(e.to_string()))?
    }

    /// Runs `work` in one transaction: committed durably if it returns `Ok`, undone otherwise.
    ///
    /// Work that refuses and yet has something to keep (a spent nonce, a log record) returns
    /// `Ok(Err(refusal))`.
    ///
    /// # Errors
    /// Those of `work`, or [`codes::STORE_FAILED`].
    pub async fn transaction<T, F>(&self, work: F) -> Result<T, Refusal>
    where
        T: Send + 'static,
        F: FnOnce(&Transaction<'_>) -> Result<T, Refusal> + Send + 'static,
    {
        let store = self.clone();
        match tokio::task::spawn_blocking(move || store.transaction_blocking(work)).await {
            Ok(done) => done,
            // The transaction was rolled back when the work unwound.
            Err(error) => Err(Refusal::new(codes::STORE_FAILED, format!("BUG: a transaction ended early: {error}"))),
        }
    }

    /// As [`Store::transaction`], on the calling thread.
    ///
    /// # Errors
    /// As [`Store::transaction`].
    pub fn transaction_blocking<T>(
        &self,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, Refusal>,
    ) -> Result<T, Refusal> {
        // A poisoned lock means that some work panicked; its transaction was rolled back by drop.
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let done = work(&transaction)?;
        transaction.commit()?;
        Ok(done)
    }
}

/// Runs `work` within a transaction that goes on in any case: what it wrote is undone if it refuses.
///
/// # Errors
/// Those of `work`, or [`codes::STORE_FAILED`].
pub fn attempt<T>(tx: &Transaction<'_>, work: impl FnOnce() -> Result<T, Refusal>) -> Result<T, Refusal> {
    tx.execute_batch("SAVEPOINT attempt")?;
    let done = work();
    tx.execute_batch(match done {
        Ok(_) => "RELEASE attempt",
        Err(_) => "ROLLBACK TO attempt; RELEASE attempt",
    })?;
    done
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Store")
    }
}

impl From<rusqlite::Error> for Refusal {
    fn from(error: rusqlite::Error) -> Self {
        Self::new(codes::STORE_FAILED, error.to_string())
    }
}

/// Opens the store at `path` to read it only; it may be in use.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn open_reader(path: &Path) -> Result<Connection, Refusal> {
    let at = |refusal: Refusal| refusal.at(path.display().to_string());
    if !path.exists() {
        return Err(at(Refusal::new(codes::STORE_FAILED, "there is no such file")));
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(|e| at(e.into()))?;
    connection.busy_timeout(std::time::Duration::from_secs(5)).map_err(|e| at(e.into()))?;
    Ok(connection)
}

/// A row that this program wrote can't be read back: the store was changed by something else.
pub fn damaged(what: &str) -> Refusal {
    Refusal::new(codes::STORE_FAILED, format!("{what} in the store can't be read back"))
}

/// Exactly `N` bytes out of a column called `what`.
///
/// # Errors
/// [`codes::STORE_FAILED`] when the length is another.
pub fn fixed<const N: usize>(bytes: &[u8], what: &str) -> Result<[u8; N], Refusal> {
    bytes.try_into().map_err(|_| damaged(what))
}

/// Wall time and counters are unsigned; SQLite's integers are not. Saturates.
pub fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// The inverse of [`signed`]; negative values, which are never written, become zero.
pub fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn the_file_is_private_and_survives_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.db");
        let store = Store::open(&path).unwrap();
        store
            .transaction_blocking(|tx| {
                tx.execute("INSERT INTO owners(name, contact, created_at) VALUES ('a', '', 0)", [])?;
                Ok(())
            })
            .unwrap();
        for entry in std::fs::read_dir(dir.path()).unwrap() {
            assert_eq!(entry.unwrap().metadata().unwrap().mode() & 0o777, 0o600);
        }
        drop(store);
        let store = Store::open(&path).unwrap();
        let owners: i64 = store
            .transaction_blocking(|tx| Ok(tx.query_row("SELECT count(*) FROM owners", [], |row| row.get(0))?))
            .unwrap();
        assert_eq!(owners, 1);
    }

    #[test]
    fn refused_work_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store.db")).unwrap();
        let refused: Result<(), _> = store.transaction_blocking(|tx| {
            tx.execute("INSERT INTO owners(name, contact, created_at) VALUES ('a', '', 0)", [])?;
            Err(Refusal::new(codes::ADMIN_INVALID, "no"))
        });
        assert_eq!(refused.unwrap_err().code, codes::ADMIN_INVALID);
        let owners: i64 = store
            .transaction_blocking(|tx| Ok(tx.query_row("SELECT count(*) FROM owners", [], |row| row.get(0))?))
            .unwrap();
        assert_eq!(owners, 0);
    }

    #[test]
    fn a_newer_schema_and_another_programs_file_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.db");
        drop(Store::open(&path).unwrap());
        let connection = Connection::open(&path).unwrap();
        connection.pragma_update(None, "user_version", 1_000).unwrap();
        drop(connection);
        let error = Store::open(&path).unwrap_err();
        assert!(error.found.contains("newer"), "{error}");

        let other = dir.path().join("other.db");
        let connection = Connection::open(&other).unwrap();
        connection.execute_batch("CREATE TABLE theirs(a)").unwrap();
        drop(connection);
        assert!(Store::open(&other).unwrap_err().found.contains("another program"));
        std::fs::write(dir.path().join("junk.db"), [0xAA; 8192]).unwrap();
        assert_eq!(Store::open(&dir.path().join("junk.db")).unwrap_err().code, codes::STORE_FAILED);
    }
}
