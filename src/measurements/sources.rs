//! The log files of this node: opened once, before privileges are dropped, and read as they grow.
//!
//! Files of securityfs say they have no bytes, so all are read to their end. Reading blocks: it is
//! for a thread that may.

use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{boot, userspace};
use crate::clock::BootInstant;
use crate::codes::{self, Refusal};

/// Where Linux shows the boot log.
pub const BOOT_LOG: &str = "/sys/kernel/security/tpm0/binary_bios_measurements";
/// Where systemd writes the userspace log.
pub const USERSPACE_LOG: &str = "/run/log/systemd/tpm2-measure.log";
/// Where Linux shows IMA's list.
pub const IMA_LIST: &str = "/sys/kernel/security/ima/binary_runtime_measurements";

/// systemd sets this bit on its log before it extends a PCR and clears it once the record is
/// written. Left set, a record is missing.
const STICKY: u32 = 0o1000;
/// How often and how long a writer in the middle of a record is waited for.
const WAITS: u32 = 10;
const WAIT: Duration = Duration::from_millis(20);
/// For how long a log that lacks a record is not read. A writer that takes its time is done by then; one that
/// failed leaves the mark for good, and then the replay says better than the mark what is missing, if anything.
const PATIENCE: Duration = Duration::from_secs(10);
/// How many bytes of IMA's list are kept behind a reading, for a reader that goes on within them.
const KEPT: usize = 64 << 10;

/// The logs of this node.
#[derive(Debug, Default)]
pub struct Sources {
    boot: Option<Source>,
    userspace: Option<Source>,
    /// Where the userspace log will be, if nothing has been measured yet.
    userspace_path: Option<PathBuf>,
    /// Since when that log has been marked as one that lacks a record.
    incomplete_since: Option<BootInstant>,
    ima: Option<Ima>,
}

#[derive(Debug)]
struct Source {
    path: PathBuf,
    file: File,
}

/// IMA's list. The kernel makes its bytes anew from the first entry on at every seek, so the file
/// stays where reading ended, and the last bytes read are kept.
#[derive(Debug)]
struct Ima {
    source: Source,
    /// Where the file stands, in bytes from the list's start.
    position: u64,
    /// The bytes before that.
    kept: Vec<u8>,
}

impl Sources {
    /// Opens the files. One that isn't there is no error: the platform has no such log, or the
    /// kernel no IMA.
    ///
    /// # Errors
    /// [`crate::codes::MEASUREMENTS_UNREADABLE`] for a file that is there and can't be opened.
    pub fn open(boot: Option<&Path>, userspace: Option<&Path>, ima: Option<&Path>) -> Result<Self, Refusal> {
        let open = |path: Option<&Path>| path.map_or(Ok(None), Source::open);
        Ok(Self {
            boot: open(boot)?,
            userspace: open(userspace)?,
            userspace_path: userspace.map(Path::to_path_buf),
            incomplete_since: None,
            ima: open(ima)?.map(|source| Ima { source, position: 0, kept: Vec::new() }),
        })
    }

    /// Whether this node has a boot log.
    pub const fn has_boot(&self) -> bool {
        self.boot.is_some()
    }

    /// Whether this node has a list of IMA's.
    pub const fn has_ima(&self) -> bool {
        self.ima.is_some()
    }

    /// The boot log.
    ///
    /// # Errors
    /// [`crate::codes::MEASUREMENTS_UNREADABLE`] and [`crate::codes::MEASUREMENTS_TOO_LARGE`].
    pub fn read_boot(&mut self) -> Result<Option<Vec<u8>>, Refusal> {
        self.boot.as_mut().map(|source| source.whole(boot::LIMIT)).transpose()
    }

    /// The userspace log, which may have come into being since. A writer in the middle of a record
    /// is waited for, up to 200 ms. A log that has been marked as incomplete for 10 s of readings is read
    /// as it is: nothing is believed for want of the mark, each PCR is still to be led to.
    ///
    /// # Errors
    /// As [`Self::read_boot`], and [`crate::codes::MEASUREMENTS_INCOMPLETE`].
    pub fn read_userspace(&mut self) -> Result<Option<Vec<u8>>, Refusal> {
        self.read_userspace_after(PATIENCE)
    }

    fn read_userspace_after(&mut self, patience: Duration) -> Result<Option<Vec<u8>>, Refusal> {
        if let (None, Some(path)) = (&self.userspace, &self.userspace_path) {
            self.userspace = Source::open(path)?;
        }
        let Some(source) = &mut self.userspace else { return Ok(None) };
        for _ in 0..WAITS {
            // Clear before and after: no record was under way while the bytes were read.
            if !source.is_sticky()? {
                let bytes = source.whole(userspace::LIMIT)?;
                if !source.is_sticky()? {
                    self.incomplete_since = None;
                    return Ok(Some(bytes));
                }
            }
            if self.incomplete_since.is_some_and(|since| BootInstant::now().since(since) >= patience) {
                return source.whole(userspace::LIMIT).map(Some);
            }
            std::thread::sleep(WAIT);
        }
        self.incomplete_since.get_or_insert_with(BootInstant::now);
        Err(incomplete(&source.path))
    }

    /// IMA's list from byte `offset` on, at most `limit` bytes; none when nothing is new.
    ///
    /// To go on where the last reading ended, or up to 64 KiB before, costs what is new; anywhere
    /// else it costs the whole list up to there.
    ///
    /// # Errors
    /// [`crate::codes::MEASUREMENTS_UNREADABLE`].
    pub fn read_ima(&mut self, offset: u64, limit: usize) -> Result<Option<Vec<u8>>, Refusal> {
        self.ima.as_mut().map(|ima| ima.read(offset, limit)).transpose()
    }
}

/// Reads a file to its end, of at most `limit` bytes.
///
/// # Errors
/// [`crate::codes::MEASUREMENTS_UNREADABLE`], for a file that isn't there too, and
/// [`crate::codes::MEASUREMENTS_TOO_LARGE`].
pub fn read_file(path: &Path, limit: usize) -> Result<Vec<u8>, Refusal> {
    let file = File::open(path).map_err(|error| unreadable(path, &error))?;
    Source { path: path.to_path_buf(), file }.whole(limit)
}

/// As [`read_file`], and the log must be complete.
///
/// # Errors
/// As [`read_file`], and [`crate::codes::MEASUREMENTS_INCOMPLETE`].
pub fn read_userspace_file(path: &Path) -> Result<Vec<u8>, Refusal> {
    let mut sources = Sources::open(None, Some(path), None)?;
    let absent = || unreadable(path, &std::io::Error::from(ErrorKind::NotFound));
    sources.read_userspace()?.ok_or_else(absent)
}

impl Source {
    /// Opens a file; `None` if it isn't there.
    fn open(path: &Path) -> Result<Option<Self>, Refusal> {
        match File::open(path) {
            Ok(file) => Ok(Some(Self { path: path.to_path_buf(), file })),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(unreadable(path, &error)),
        }
    }

    /// The file from its start to its end.
    fn whole(&mut self, limit: usize) -> Result<Vec<u8>, Refusal> {
        let unreadable = |error| unreadable(&self.path, &error);
        self.file.seek(SeekFrom::Start(0)).map_err(unreadable)?;
        let mut bytes = Vec::new();
        let most = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
        (&self.file).take(most).read_to_end(&mut bytes).map_err(unreadable)?;
        match bytes.len() > limit {
            true => Err(Refusal::new(codes::MEASUREMENTS_TOO_LARGE, format!("more than {limit} bytes"))
                .at(self.path.display().to_string())
                .expected(format!("at most {limit}"))),
            false => Ok(bytes),
        }
    }

    fn is_sticky(&self) -> Result<bool, Refusal> {
        let metadata = self.file.metadata().map_err(|error| unreadable(&self.path, &error))?;
        Ok(metadata.mode() & STICKY != 0)
    }
}

impl Ima {
    fn read(&mut self, offset: u64, limit: usize) -> Result<Vec<u8>, Refusal> {
        let mut bytes = self.take_kept(offset)?;
        if let Some(missing) = limit.checked_sub(bytes.len()) {
            let read = (&self.source.file)
                .take(u64::try_from(missing).unwrap_or(u64::MAX))
                .read_to_end(&mut bytes)
                .map_err(|error| unreadable(&self.source.path, &error));
            match read {
                Ok(count) => self.position = self.position.saturating_add(u64::try_from(count).unwrap_or(u64::MAX)),
                Err(refusal) => {
                    // Where the file stands now is unknown: the next reading seeks.
                    self.position = u64::MAX;
                    self.kept.clear();
                    return Err(refusal);
                }
            }
        }
        let from = bytes.len().saturating_sub(KEPT);
        self.kept = bytes.get(from..).unwrap_or_default().to_vec();
        bytes.truncate(limit);
        Ok(bytes)
    }

    /// What is kept from `offset` on. If nothing is known there, the file is moved to it.
    fn take_kept(&mut self, offset: u64) -> Result<Vec<u8>, Refusal> {
        let back = self.position.checked_sub(offset).and_then(|back| usize::try_from(back).ok());
        if let Some(start) = back.and_then(|back| self.kept.len().checked_sub(back)) {
            return Ok(self.kept.get(start..).unwrap_or_default().to_vec());
        }
        self.kept.clear();
        // Until the seek has succeeded, the position is unknown.
        self.position = u64::MAX;
        let file = &mut self.source.file;
        self.position = file.seek(SeekFrom::Start(offset)).map_err(|error| unreadable(&self.source.path, &error))?;
        Ok(Vec::new())
    }
}

fn unreadable(path: &Path, error: &std::io::Error) -> Refusal {
    Refusal::new(codes::MEASUREMENTS_UNREADABLE, error.to_string()).at(path.display().to_string())
}

fn incomplete(path: &Path) -> Refusal {
    Refusal::new(codes::MEASUREMENTS_INCOMPLETE, "the sticky bit is set: a PCR was extended and no record written")
        .at(path.display().to_string())
        .expected("the bit cleared, as systemd does after each record; one that failed leaves it until a reboot")
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn set_mode(path: &Path, mode: u32) {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn what_is_not_there_is_no_error_and_what_is_too_large_is() {
        let directory = tempfile::tempdir().unwrap();
        let absent = directory.path().join("absent");
        let mut sources = Sources::open(Some(&absent), Some(&absent), Some(&absent)).unwrap();
        assert_eq!(
            (sources.read_boot(), sources.read_userspace(), sources.read_ima(0, 9)),
            (Ok(None), Ok(None), Ok(None))
        );
        assert_eq!(read_file(&absent, 9).unwrap_err().code, codes::MEASUREMENTS_UNREADABLE);
        let there = directory.path().join("there");
        std::fs::write(&there, [7; 10]).unwrap();
        assert_eq!(read_file(&there, 10), Ok(vec![7; 10]));
        assert_eq!(read_file(&there, 9).unwrap_err().code, codes::MEASUREMENTS_TOO_LARGE);
        // A directory opens, and can't be read.
        let mut sources = Sources::open(Some(directory.path()), None, None).unwrap();
        assert_eq!(sources.read_boot().unwrap_err().code, codes::MEASUREMENTS_UNREADABLE);
    }

    #[test]
    fn a_userspace_log_with_the_sticky_bit_is_waited_for_and_then_incomplete() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tpm2-measure.log");
        let mut sources = Sources::open(None, Some(&path), None).unwrap();
        assert_eq!(sources.read_userspace(), Ok(None));
        std::fs::write(&path, "first").unwrap();
        assert_eq!(sources.read_userspace(), Ok(Some(b"first".to_vec())));
        set_mode(&path, 0o1600);
        assert_eq!(sources.read_userspace().unwrap_err().code, codes::MEASUREMENTS_INCOMPLETE);
        // A writer that finishes in time.
        let writer = std::thread::spawn({
            let path = path.clone();
            move || {
                std::thread::sleep(WAIT);
                std::fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b" second").unwrap();
                set_mode(&path, 0o600);
            }
        });
        assert_eq!(sources.read_userspace(), Ok(Some(b"first second".to_vec())));
        writer.join().unwrap();
        // A writer that never finishes is given up, and what there is, is read; until it is whole again.
        set_mode(&path, 0o1600);
        let mut read = || sources.read_userspace_after(WAIT * WAITS);
        assert_eq!(read().unwrap_err().code, codes::MEASUREMENTS_INCOMPLETE);
        std::thread::sleep(WAIT * WAITS);
        assert_eq!(read(), Ok(Some(b"first second".to_vec())));
        set_mode(&path, 0o600);
        assert_eq!(read(), Ok(Some(b"first second".to_vec())));
        set_mode(&path, 0o1600);
        assert_eq!(read().unwrap_err().code, codes::MEASUREMENTS_INCOMPLETE);
    }

    #[test]
    fn a_list_that_grows_is_read_from_any_place_on() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("list");
        // Longer than what is kept, and no two places alike.
        let mut whole: Vec<u8> = (0..80_000_u32).flat_map(u32::to_le_bytes).collect();
        std::fs::write(&path, &whole).unwrap();
        let mut sources = Sources::open(None, None, Some(&path)).unwrap();
        let mut expect = |whole: &[u8], offset: usize, limit: usize| {
            let end = whole.len().min(offset.saturating_add(limit));
            let expected = whole.get(offset..end).unwrap_or_default().to_vec();
            assert_eq!(sources.read_ima(offset as u64, limit), Ok(Some(expected)), "{offset} {limit}");
        };
        for (offset, limit) in [(0, 1000), (1000, 100_000), (90_000, 50_000), (3, 5), (0, usize::MAX), (319_990, 99)] {
            expect(&whole, offset, limit);
        }
        for size in [0, 1, 10, 70_000] {
            let seen = whole.len() - 7;
            let more = vec![0xA5; size];
            std::fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(&more).unwrap();
            whole.extend(more);
            expect(&whole, seen, usize::MAX);
            expect(&whole, seen, 20);
        }
        expect(&whole, whole.len() + 10, 20);
        expect(&whole, 0, usize::MAX);
    }
}
