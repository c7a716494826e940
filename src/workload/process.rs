//! One process, held: a pidfd that tells when it ends, and its directory in `/proc`.
//!
//! The directory is opened while the pidfd says that the process lives, so it is the same
//! process's; and the kernel never lets an open `/proc/PID` show a later process of that number.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, fstat, openat, readlinkat};
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::clock::BootInstant;
use crate::codes::{self, Refusal};

/// Which file: device and inode.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct FileId {
    pub(super) device: u64,
    pub(super) inode: u64,
}

/// A process, by number only in words: every question goes through the two descriptors.
#[derive(Debug)]
pub(super) struct Process {
    pid: i32,
    pidfd: AsyncFd<OwnedFd>,
    directory: OwnedFd,
}

impl Process {
    /// Takes hold of the process that `pidfd` names and whose number is `pid`.
    ///
    /// # Errors
    /// [`codes::WORKLOAD_PEER_GONE`] if it has ended, [`codes::WORKLOAD_PEER_UNKNOWN`] if `/proc`
    /// doesn't show it.
    pub(super) fn hold(pid: i32, pidfd: OwnedFd) -> Result<Self, Refusal> {
        let opened =
            rustix::fs::open(format!("/proc/{pid}"), OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        // A living process can't have lost its number, so what was opened is its directory.
        alive(pid, pidfd.as_fd())?;
        let directory = opened.map_err(|e| unknown(pid, "its directory", e.into()))?;
        #[expect(deprecated, reason = "unsound only for types whose descriptor may change; an OwnedFd's can't")]
        let pidfd = AsyncFd::with_interest(pidfd, Interest::READABLE).map_err(|e| unknown(pid, "its pidfd", e))?;
        Ok(Self { pid, pidfd, directory })
    }

    /// Its number, for people.
    pub(super) const fn pid(&self) -> i32 {
        self.pid
    }

    /// Waits until it has ended.
    pub(super) async fn exited(&self) {
        while self.alive().is_ok() {
            match self.pidfd.readable().await {
                // Readable only once ended; if that was a false alarm, wait again.
                Ok(mut ready) if self.alive().is_ok() => ready.clear_ready(),
                Ok(_) | Err(_) => return,
            }
        }
    }

    /// Whether it still runs.
    ///
    /// # Errors
    /// [`codes::WORKLOAD_PEER_GONE`].
    pub(super) fn alive(&self) -> Result<(), Refusal> {
        alive(self.pid, self.pidfd.get_ref().as_fd())
    }

    /// Effective user and group id, now.
    pub(super) fn ids(&self) -> Result<(u32, u32), Refusal> {
        let status = self.read("status")?;
        let effective = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            // Real, effective, saved, file system (proc_pid_status(5)).
            line.split_ascii_whitespace().nth(1)?.parse::<u32>().ok()
        };
        effective("Uid:")
            .zip(effective("Gid:"))
            .ok_or_else(|| unknown(self.pid, "status", io::Error::other("no Uid and Gid line")))
    }

    /// When it started, in clock ticks since boot, rounded down.
    pub(super) fn start_ticks(&self) -> Result<u64, Refusal> {
        let stat = self.read("stat")?;
        // The name of the program stands in parentheses and may hold any character; after the last
        // parenthesis come fields 3 and on (proc_pid_stat(5)), and field 22 is the start.
        stat.rsplit_once(')')
            .and_then(|(_, fields)| fields.split_ascii_whitespace().nth(22 - 3)?.parse().ok())
            .ok_or_else(|| unknown(self.pid, "stat", io::Error::other("no start time")))
    }

    /// The file of the program it runs, or nothing if the agent may not see it.
    ///
    /// # Errors
    /// [`codes::WORKLOAD_NO_DESCRIPTORS`]: that says nothing about the program.
    pub(super) fn executable(&self) -> Result<Option<FileId>, Refusal> {
        // O_PATH: whoever serves the file's content isn't asked anything.
        let opened = openat(&self.directory, "exe", OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
        let file = match opened.map_err(io::Error::from) {
            Ok(file) => file,
            Err(error) if no_descriptors(&error) => return Err(unknown(self.pid, "exe", error)),
            Err(_) => return Ok(None),
        };
        Ok(fstat(file).ok().map(|stat| FileId { device: stat.st_dev, inode: stat.st_ino }))
    }

    /// The path of that file, if the same file is there for the agent too.
    pub(super) fn path(&self, executable: FileId) -> Option<PathBuf> {
        let path = readlinkat(&self.directory, "exe", Vec::new()).ok()?;
        let path = PathBuf::from(std::ffi::OsString::from_vec(path.into_bytes()));
        // In another mount namespace, or once it is deleted, the path says something else to us.
        let here = std::fs::symlink_metadata(&path).ok()?;
        (here.dev() == executable.device && here.ino() == executable.inode).then_some(path)
    }

    /// The program's file, to be read.
    pub(super) fn open_executable(&self) -> io::Result<File> {
        Ok(File::from(openat(&self.directory, "exe", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?))
    }

    /// A small file of its directory, as text.
    pub(super) fn read(&self, name: &str) -> Result<String, Refusal> {
        let read = || {
            let file = openat(&self.directory, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
            let mut bytes = Vec::new();
            // Program names in these files need not be UTF-8.
            File::from(file).take(64 << 10).read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        read().map_err(|e: io::Error| match self.alive() {
            Ok(()) => unknown(self.pid, name, e),
            Err(gone) => gone,
        })
    }
}

/// CLOCK_BOOTTIME in clock ticks, rounded down, as `/proc/PID/stat` counts a start.
pub(super) fn ticks(moment: BootInstant) -> u64 {
    let per_second = rustix::param::clock_ticks_per_second().max(1);
    let ticks = u128::from(moment.as_nanos()) * u128::from(per_second) / 1_000_000_000;
    u64::try_from(ticks).unwrap_or(u64::MAX)
}

fn alive(pid: i32, pidfd: BorrowedFd<'_>) -> Result<(), Refusal> {
    let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    match poll(&mut fds, Some(&now)) {
        Ok(0) => Ok(()),
        // An error, too: what can't be shown to live is treated as gone.
        Ok(_) | Err(_) => Err(Refusal::new(codes::WORKLOAD_PEER_GONE, format!("process {pid} has ended"))),
    }
}

/// Whether this process or the machine has no descriptor left: others' doing, perhaps, and it passes.
pub(super) fn no_descriptors(error: &io::Error) -> bool {
    [Errno::MFILE, Errno::NFILE].iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

pub(super) fn unknown(pid: i32, what: &str, error: io::Error) -> Refusal {
    let code = if no_descriptors(&error) { codes::WORKLOAD_NO_DESCRIPTORS } else { codes::WORKLOAD_PEER_UNKNOWN };
    Refusal::new(code, error.to_string()).at(format!("/proc/{pid}: {what}"))
}
