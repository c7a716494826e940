//! Digests of program files, computed once for each state of a file.

use std::collections::HashMap;
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use sha2::{Digest, Sha256, Sha384, Sha512};

use super::process::FileId;
use crate::clock::WallTime;
use crate::measurements::LogHash;

/// Larger programs have no digest, and so match no selector that asks for one.
const LIMIT: u64 = 1 << 30;

/// So many files are remembered; programs in use at one time are far fewer.
const REMEMBERED: usize = 1024;

/// A file can change twice within one step of the file system's clock. A file that changed less
/// than this long ago is hashed again each time.
const SETTLED: Duration = Duration::from_secs(2);

/// A state of a file: a change of its content changes at least its change time, which no call can set.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct State {
    file: FileId,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl State {
    fn of(metadata: &Metadata) -> Self {
        Self {
            file: FileId { device: metadata.dev(), inode: metadata.ino() },
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    fn settled(&self) -> bool {
        u64::try_from(self.changed.0).is_ok_and(|changed| WallTime(changed).after(SETTLED) < WallTime::now())
    }
}

/// The digests known so far. A plain mutex: it is never held while a file is read.
#[derive(Debug, Default)]
pub(super) struct Digests(Mutex<HashMap<(State, LogHash), Vec<u8>>>);

impl Digests {
    /// The digest of `file` by `hash`, which is SHA-256 or longer; the file must be `wanted`.
    ///
    /// Blocks while the file is read.
    ///
    /// # Errors
    /// When it is another file, too large, can't be read or changes meanwhile.
    pub(super) fn of(&self, mut file: File, wanted: FileId, hash: LogHash) -> io::Result<Vec<u8>> {
        let metadata = file.metadata()?;
        let state = State::of(&metadata);
        if state.file != wanted {
            return Err(io::Error::other("the process runs another program now"));
        }
        if !metadata.is_file() || state.size > LIMIT {
            return Err(io::Error::other(format!("{} bytes, more than {LIMIT}", state.size)));
        }
        if let Some(digest) = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&(state, hash)) {
            return Ok(digest.clone());
        }
        let digest = match hash {
            LogHash::Sha1 => return Err(io::Error::other("SHA-1 identifies no program")),
            LogHash::Sha256 => read_whole::<Sha256>(&mut file)?,
            LogHash::Sha384 => read_whole::<Sha384>(&mut file)?,
            LogHash::Sha512 => read_whole::<Sha512>(&mut file)?,
        };
        if State::of(&file.metadata()?) != state {
            return Err(io::Error::other("the file changed while it was read"));
        }
        if state.settled() {
            let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if known.len() >= REMEMBERED {
                known.clear();
            }
            known.insert((state, hash), digest.clone());
        }
        Ok(digest)
    }

    #[cfg(test)]
    pub(super) fn known(&self) -> usize {
        self.0.lock().unwrap().len()
    }
}

fn read_whole<D: Digest>(file: &mut File) -> io::Result<Vec<u8>> {
    let mut hash = D::new();
    let mut buffer = vec![0; 128 << 10];
    let mut left = LIMIT;
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok(hash.finalize().to_vec());
        }
        left = left.checked_sub(read as u64).ok_or_else(|| io::Error::other("the file grows"))?;
        hash.update(buffer.get(..read).unwrap_or_default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(file: &File) -> FileId {
        State::of(&file.metadata().unwrap()).file
    }

    #[test]
    fn a_settled_file_is_remembered_and_a_new_one_is_not() {
        let digests = Digests::default();
        // The test's own program was written well before it runs; what was written now wasn't.
        let own = || File::open("/bin/sh").unwrap();
        let first = digests.of(own(), id(&own()), LogHash::Sha256).unwrap();
        assert_eq!(digests.known(), 1);
        assert_eq!(digests.of(own(), id(&own()), LogHash::Sha256).unwrap(), first);
        assert_eq!(digests.of(own(), id(&own()), LogHash::Sha512).unwrap().len(), 64);
        assert!(digests.of(own(), id(&own()), LogHash::Sha1).is_err());

        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new");
        for content in ["one", "two"] {
            std::fs::write(&path, content).unwrap();
            let file = File::open(&path).unwrap();
            let expected = Sha256::digest(content).to_vec();
            let wanted = id(&file);
            assert_eq!(digests.of(file, wanted, LogHash::Sha256).unwrap(), expected);
        }
        assert_eq!(digests.known(), 2);
    }

    #[test]
    fn another_file_is_refused() {
        let digests = Digests::default();
        let sh = File::open("/bin/sh").unwrap();
        assert!(digests.of(File::open("/proc/self/exe").unwrap(), id(&sh), LogHash::Sha256).is_err());
        assert!(digests.of(File::open("/").unwrap(), id(&File::open("/").unwrap()), LogHash::Sha256).is_err());
    }
}
