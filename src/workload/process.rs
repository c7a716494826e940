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
use rustix::fs::{AtFlags, Mode, OFlags, fstat, openat, readlinkat, statat};
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::clock::BootInstant;
use crate::codes::{self, Refusal};

/// More than `status` takes with the most groups a process can have (65,536).
const READ_LIMIT: u64 = 1 << 20;

/// Which file: device and inode.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct FileId {
    pub(super) device: u64,
    pub(super) inode: u64,
}

impl FileId {
    pub(super) fn of(file: &File) -> io::Result<Self> {
        let stat = fstat(file)?;
        Ok(Self { device: stat.st_dev, inode: stat.st_ino })
    }
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

    /// Effective user, effective group and supplementary groups, now.
    pub(super) fn credentials(&self) -> Result<Credentials, Refusal> {
        let status = self.read("status")?;
        credentials(&status).ok_or_else(|| unknown(self.pid, "status", io::Error::other("no Uid, Gid and Groups line")))
    }

    /// Whose login session it is of, or nobody's. `cgroup` is its cgroup's path.
    ///
    /// The kernel keeps the login's user id from the login on, through `sudo` and `su`. A kernel without
    /// audit has none: then a controlling terminal counts, besides the cgroup.
    pub(super) fn login(&self, cgroup: Option<&str>) -> Result<Option<Login>, Refusal> {
        let user = match self.read("loginuid") {
            Ok(text) => LoginUid::of(&text),
            Err(refusal) if refusal.code == codes::WORKLOAD_PEER_UNKNOWN => LoginUid::Absent,
            Err(refusal) => return Err(refusal),
        };
        let terminal = match user {
            LoginUid::Absent => Some(self.read("stat")?),
            _ => None,
        };
        Ok(login(&user, terminal.as_deref(), cgroup))
    }

    /// Its `/proc/PID/cgroup`.
    pub(super) fn cgroups(&self) -> Result<String, Refusal> {
        self.read("cgroup")
    }

    /// When it started, in clock ticks since boot, rounded down.
    pub(super) fn start_ticks(&self) -> Result<u64, Refusal> {
        let stat = self.read("stat")?;
        field(&stat, 22).ok_or_else(|| unknown(self.pid, "stat", io::Error::other("no start time")))
    }

    /// The file of the program it runs, or nothing if the agent may not see it.
    ///
    /// # Errors
    /// [`codes::WORKLOAD_UNSEEN`]: that says nothing about the program.
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
    ///
    /// A mount namespace of its own is no hindrance: services that systemd shields have one, and so may
    /// the agent. What matters is that nobody but root arranged what the process sees, and that the path
    /// leads the agent to the same file.
    ///
    /// # Errors
    /// In words, why there is none.
    pub(super) fn path(&self, executable: FileId, own: &Surroundings) -> Result<PathBuf, String> {
        let theirs = Surroundings::of(&self.directory).ok_or("the agent may not see its namespaces")?;
        theirs.same_as(own)?;
        let path = readlinkat(&self.directory, "exe", Vec::new()).map_err(|error| error.to_string())?;
        let path = PathBuf::from(std::ffi::OsString::from_vec(path.into_bytes()));
        // In another mount namespace, or once it is deleted, the path says something else to us.
        match std::fs::symlink_metadata(&path) {
            Ok(here) if here.dev() == executable.device && here.ino() == executable.inode => Ok(path),
            Ok(_) => {
                Err(format!("its path is {}, which is another file in the agent's mount namespace", path.display()))
            }
            Err(_) => Err(format!("its path is {}, which isn't there in the agent's mount namespace", path.display())),
        }
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
            File::from(file).take(READ_LIMIT).read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        read().map_err(|e: io::Error| match self.alive() {
            Ok(()) => unknown(self.pid, name, e),
            Err(gone) => gone,
        })
    }
}

/// What surrounds a process, apart from its mounts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Surroundings {
    pids: FileId,
    users: FileId,
    root: FileId,
}

impl Surroundings {
    /// The agent's own.
    pub(super) fn own() -> Option<Self> {
        Self::of(
            rustix::fs::open("/proc/self", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).ok()?,
        )
    }

    fn of(directory: impl AsFd) -> Option<Self> {
        let identity = |name: &str| {
            let stat = statat(&directory, name, AtFlags::empty()).ok()?;
            Some(FileId { device: stat.st_dev, inode: stat.st_ino })
        };
        Some(Self { pids: identity("ns/pid")?, users: identity("ns/user")?, root: identity("root")? })
    }

    fn same_as(&self, own: &Self) -> Result<(), &'static str> {
        match own {
            _ if self.users != own.users => Err("it is in another user namespace"),
            _ if self.pids != own.pids => Err("it is in another PID namespace"),
            _ if self.root != own.root => Err("its root directory is another one"),
            _ => Ok(()),
        }
    }
}

/// Who a process is to the kernel.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Credentials {
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Supplementary groups, in order.
    pub(super) groups: Vec<u32>,
}

/// Reads `/proc/PID/status` (proc_pid_status(5)).
fn credentials(status: &str) -> Option<Credentials> {
    let line = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
    // Real, effective, saved, file system.
    let effective = |name: &str| line(name)?.split_ascii_whitespace().nth(1)?.parse().ok();
    let groups: Result<Vec<u32>, _> = line("Groups:")?.split_ascii_whitespace().map(str::parse).collect();
    let mut groups = groups.ok()?;
    groups.sort_unstable();
    Some(Credentials { uid: effective("Uid:")?, gid: effective("Gid:")?, groups })
}

/// What makes a process part of somebody's login session.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Login {
    /// The kernel's audit id of who logged in.
    User(u32),
    /// Its cgroup is that of a session, or of a user's own service manager.
    Cgroup(String),
    /// It has a controlling terminal, and the kernel doesn't say who logged in.
    Terminal,
}

impl std::fmt::Display for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::User(uid) => write!(f, "of the login of uid {uid}"),
            Self::Cgroup(path) => write!(f, "of the login session {path}"),
            Self::Terminal => f.write_str("of a terminal"),
        }
    }
}

/// What `/proc/PID/loginuid` says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum LoginUid {
    /// The kernel has no such file, or says nothing we know.
    Absent,
    /// Nobody logged in: started by the system.
    Unset,
    User(u32),
}

impl LoginUid {
    fn of(text: &str) -> Self {
        match text.trim().parse() {
            Ok(u32::MAX) => Self::Unset,
            Ok(uid) => Self::User(uid),
            Err(_) => Self::Absent,
        }
    }
}

fn login(user: &LoginUid, stat: Option<&str>, cgroup: Option<&str>) -> Option<Login> {
    // Field 7 is the number of the controlling terminal, 0 for none.
    let terminal = || field(stat?, 7).filter(|number: &i64| *number != 0).map(|_| Login::Terminal);
    match (user, cgroup.filter(|path| super::cgroup::is_session(path))) {
        (LoginUid::User(uid), _) => Some(Login::User(*uid)),
        (_, Some(path)) => Some(Login::Cgroup(path.to_owned())),
        (LoginUid::Absent, None) => terminal(),
        (LoginUid::Unset, None) => None,
    }
}

/// A field of `/proc/PID/stat` from the third on, counted as in proc_pid_stat(5).
fn field<T: std::str::FromStr>(stat: &str, number: usize) -> Option<T> {
    // The name of the program stands in parentheses and may hold any character.
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_ascii_whitespace().nth(number.checked_sub(3)?)?.parse().ok()
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
    let code = if no_descriptors(&error) { codes::WORKLOAD_UNSEEN } else { codes::WORKLOAD_PEER_UNKNOWN };
    Refusal::new(code, error.to_string()).at(format!("/proc/{pid}: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_read_whole_or_not_at_all() {
        let status = "Name:\ta\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nGroups:\t30 4 27 \n";
        assert_eq!(credentials(status), Some(Credentials { uid: 2, gid: 6, groups: vec![4, 27, 30] }));
        let none = status.replace("30 4 27 ", "");
        assert_eq!(credentials(&none).map(|read| read.groups), Some(Vec::new()));
        for missing in ["Uid:", "Gid:", "Groups:", "\t2\t", " 4 "] {
            assert_eq!(credentials(&status.replace(missing, "\tx\t")), None, "{missing}");
        }
    }

    #[test]
    fn a_login_is_told_by_its_user_then_its_cgroup_then_its_terminal() {
        const SESSION: &str = "/user.slice/user-1000.slice/session-3.scope";
        let session = Some(SESSION);
        let service = Some("/system.slice/app.service");
        let (tty, no_tty) = (Some("7 (a) b) S 1 7 7 34816 7"), Some("7 (a) b) S 1 7 7 0 -1"));
        let uid = |text: &str| LoginUid::of(text);
        assert_eq!(login(&uid("1000"), None, service), Some(Login::User(1000)));
        assert_eq!(login(&uid("0\n"), None, None), Some(Login::User(0)), "root logs in, too");
        assert_eq!(login(&uid("4294967295"), None, service), None);
        assert_eq!(login(&uid("4294967295"), None, session), Some(Login::Cgroup(SESSION.to_owned())));
        // Without audit in the kernel.
        assert_eq!(uid(""), LoginUid::Absent);
        assert_eq!(login(&LoginUid::Absent, no_tty, service), None);
        assert_eq!(login(&LoginUid::Absent, tty, service), Some(Login::Terminal));
        assert_eq!(login(&LoginUid::Absent, no_tty, session), Some(Login::Cgroup(SESSION.to_owned())));
    }
}
