//! The calling process.

use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{getsockopt, sockopt};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::Selector;
use super::cgroup::Trees;
use super::digest::Digests;
use super::held::Held;
use super::observed::{Asked, Observed};
use super::process::{Process, Surroundings, no_descriptors, ticks, unknown};
use super::turns::Turns;
use crate::clock::BootInstant;
use crate::codes::{self, Refusal};
use crate::measurements::LogHash;

/// Questions to `/proc` take microseconds. A file system served by somebody's own process may take
/// for ever over them, and nobody else should wait for that.
const PATIENCE: Duration = Duration::from_secs(5);

/// The same for reading a program of at most 1 GiB.
const HASHING_PATIENCE: Duration = Duration::from_secs(30);

/// So many programs are hashed at one time, and so many of one user's processes: a program whose file system never
/// answers holds its turn for as long as it is waited for.
const HASHING: usize = 8;
const HASHING_OF_A_USER: usize = 2;

/// How the process at the other end of a socket is found.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum PeerMethod {
    /// `SO_PEERPIDFD` where the kernel has it (Linux 6.5), otherwise the fallback.
    #[default]
    Auto,
    /// `SO_PEERPIDFD` only.
    PeerPidfd,
    /// `SO_PEERCRED`, `pidfd_open`, and a start no later than the accept.
    ///
    /// A process that connected and ended before the accept could leave its number to a new one,
    /// which this can't see. The new one would have to be of the same user and group.
    Fallback,
}

/// Finds the processes behind connections; one for each listener.
#[derive(Clone, Debug)]
pub struct Peers {
    method: PeerMethod,
    /// Whether every id has a meaning here; if not, the overflow id stands for any that has none.
    unmapped: Option<(u32, u32)>,
    node: Arc<Node>,
    hashing: Arc<Turns>,
}

/// What is known of this node for all callers.
#[derive(Debug)]
struct Node {
    digests: Digests,
    trees: Trees,
    own: Option<Surroundings>,
}

impl Peers {
    /// Finds processes by `method`.
    pub fn new(method: PeerMethod) -> Self {
        let node = Node { digests: Digests::default(), trees: Trees::open(), own: Surroundings::own() };
        let hashing = Arc::new(Turns::new(HASHING, HASHING_OF_A_USER));
        Self { method, unmapped: unmapped_ids(), node: Arc::new(node), hashing }
    }

    pub(super) fn digests(&self) -> &Digests {
        &self.node.digests
    }

    pub(super) fn trees(&self) -> &Trees {
        &self.node.trees
    }

    /// The agent's own surroundings, if it may see them.
    pub(super) fn own(&self) -> Option<&Surroundings> {
        self.node.own.as_ref()
    }

    /// Takes hold of the process at the other end of `stream`; call it right after the accept.
    ///
    /// # Errors
    /// [`codes::WORKLOAD_PEER_GONE`], or [`codes::WORKLOAD_PEER_UNKNOWN`] if it is of another PID
    /// namespace or has no user here.
    pub fn catch(&self, stream: &impl AsFd) -> Result<Caught, Refusal> {
        let accepted = BootInstant::now();
        let credentials = getsockopt(stream, sockopt::PeerCredentials)
            .map_err(|e| Refusal::new(codes::WORKLOAD_PEER_UNKNOWN, e.desc()).at("SO_PEERCRED"))?;
        let connected = Connected { pid: credentials.pid(), uid: credentials.uid(), gid: credentials.gid() };
        self.known(connected)?;
        let peer_pidfd = match self.method {
            PeerMethod::Fallback => None,
            PeerMethod::PeerPidfd => Some(peer_pidfd(stream, connected.pid)?),
            PeerMethod::Auto => match peer_pidfd(stream, connected.pid) {
                Err(refusal) if refusal.code == codes::WORKLOAD_PEER_UNKNOWN => None,
                pidfd => Some(pidfd?),
            },
        };
        self.hold(connected, peer_pidfd, accepted)
    }

    /// [`Self::catch`] and [`Caught::identify`].
    ///
    /// # Errors
    /// As both.
    pub async fn identify(&self, stream: &impl AsFd) -> Result<Peer, Refusal> {
        let caught = self.catch(stream)?;
        caught.identify().await
    }

    fn known(&self, Connected { pid, uid, gid }: Connected) -> Result<(), Refusal> {
        if pid <= 0 {
            // The kernel's number for a process that this namespace doesn't see.
            return Err(Refusal::new(codes::WORKLOAD_PEER_UNKNOWN, format!("process {pid}"))
                .at("SO_PEERCRED")
                .expected("a process of the agent's PID namespace"));
        }
        if uid == u32::MAX || gid == u32::MAX || self.unmapped.is_some_and(|(u, g)| u == uid || g == gid) {
            return Err(Refusal::new(codes::WORKLOAD_PEER_UNKNOWN, format!("uid {uid}, gid {gid}"))
                .at(format!("process {pid}"))
                .expected("a user and a group of the agent's user namespace"));
        }
        Ok(())
    }

    fn hold(
        &self,
        connected: Connected,
        peer_pidfd: Option<OwnedFd>,
        accepted: BootInstant,
    ) -> Result<Caught, Refusal> {
        let (pidfd, started_by) = match peer_pidfd {
            Some(pidfd) => (pidfd, None),
            None => (open_pidfd(connected.pid)?, Some(accepted)),
        };
        Ok(Caught { connected, pidfd, started_by, peers: self.clone() })
    }
}

/// A process held by pidfd about which nothing but its user at the time of its connection is known.
#[derive(Debug)]
pub struct Caught {
    connected: Connected,
    pidfd: OwnedFd,
    /// Set if the pidfd was opened by number: the process must have run by then.
    started_by: Option<BootInstant>,
    peers: Peers,
}

impl Caught {
    /// The effective user id it connected with.
    pub const fn uid(&self) -> u32 {
        self.connected.uid
    }

    /// Looks at it for the first time.
    ///
    /// # Errors
    /// [`codes::WORKLOAD_PEER_GONE`], [`codes::WORKLOAD_PEER_CHANGED`] if it isn't of the user it
    /// connected as, [`codes::WORKLOAD_PEER_UNKNOWN`] if `/proc` doesn't show it.
    pub async fn identify(self) -> Result<Peer, Refusal> {
        let pid = self.connected.pid;
        patiently(pid, PATIENCE, move || {
            let Connected { pid, uid, gid } = self.connected;
            let process = Process::hold(pid, self.pidfd)?;
            // A later process of that number isn't the one that connected.
            if let Some(accepted) = self.started_by
                && process.start_ticks()? > ticks(accepted)
            {
                return Err(Refusal::new(codes::WORKLOAD_PEER_GONE, format!("process {pid} started later"))
                    .expected("one that ran when its connection was accepted"));
            }
            let held = Held::new(process, self.peers, uid, gid)?;
            Ok(Peer { held: Arc::new(held), uid, gid })
        })
        .await
    }
}

/// A calling process, held until the last clone is dropped: its number can't pass to another unseen.
#[derive(Clone, Debug)]
pub struct Peer {
    held: Arc<Held>,
    uid: u32,
    gid: u32,
}

impl Peer {
    /// Its process id, for people; it identifies nothing.
    pub fn pid(&self) -> i32 {
        self.held.process.pid()
    }

    /// The effective user id it connected with.
    pub fn uid(&self) -> u32 {
        self.uid
    }

    /// The effective group id it connected with.
    pub fn gid(&self) -> u32 {
        self.gid
    }

    /// For the record: its number, its user and its start, in clock ticks since boot. No other process of this boot
    /// has all three.
    pub fn described(&self) -> String {
        match self.held.process.start_ticks() {
            Ok(ticks) => format!("{self}, started at tick {ticks}"),
            Err(_) => format!("{self}, ended"),
        }
    }

    /// Whether it still runs, as when it connected: same user and groups, same program, same cgroup in
    /// the same run of its unit, same login session or none.
    ///
    /// # Errors
    /// [`codes::WORKLOAD_PEER_GONE`], [`codes::WORKLOAD_PEER_CHANGED`], [`codes::WORKLOAD_PEER_UNKNOWN`], and
    /// [`codes::WORKLOAD_UNSEEN`], which is no finding: look again later.
    pub async fn check(&self) -> Result<(), Refusal> {
        self.blocking(PATIENCE, Held::check).await
    }

    /// What is true of it now, as far as `entries` (the selectors of each registered workload) ask.
    ///
    /// The program's digests are taken only if an entry that asks for them matches in everything else,
    /// so nobody can make the agent hash files by connecting.
    ///
    /// # Errors
    /// As [`Peer::check`].
    pub async fn observe<E: AsRef<[Selector]> + Sync>(&self, entries: &[E]) -> Result<Observed, Refusal> {
        let observed = self.blocking(PATIENCE, Held::facts).await?;
        let asked = observed.asked(entries);
        if asked == Asked::default() {
            return Ok(observed);
        }
        // Also where nothing is hashed: a file system served by somebody's own process may take for ever to open a file.
        self.hashing(move |held| held.with_digests(observed, asked)).await
    }

    /// The digest of its program by `hash`, or in words why there is none.
    ///
    /// # Errors
    /// As [`Peer::check`].
    pub async fn digest(&self, hash: LogHash) -> Result<Result<Vec<u8>, String>, Refusal> {
        self.hashing(move |held| held.digest(hash)).await
    }

    async fn hashing<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Held) -> Result<T, Refusal> + Send + 'static,
    ) -> Result<T, Refusal> {
        let turn = Arc::clone(&self.held.peers.hashing);
        let hashed = async {
            let _turn = turn.next(self.uid).await;
            self.blocking(HASHING_PATIENCE, question).await
        };
        tokio::time::timeout(HASHING_PATIENCE, hashed).await.unwrap_or_else(|_| Err(silent(self.pid())))
    }

    /// The process itself, for the rest of this room.
    pub(super) fn process(&self) -> &Process {
        &self.held.process
    }

    /// Waits until the process has ended.
    pub async fn exited(&self) {
        self.held.process.exited().await;
    }

    async fn blocking<T: Send + 'static>(
        &self,
        patience: Duration,
        question: impl FnOnce(&Held) -> Result<T, Refusal> + Send + 'static,
    ) -> Result<T, Refusal> {
        let held = Arc::clone(&self.held);
        patiently(self.pid(), patience, move || question(&held)).await
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} of uid {}", self.pid(), self.uid)
    }
}

/// What `SO_PEERCRED` says: as it was when the peer connected.
#[derive(Clone, Copy, Debug)]
struct Connected {
    pid: i32,
    uid: u32,
    gid: u32,
}

/// Asks on a thread that may block, and waits for the answer no longer than `patience`.
async fn patiently<T: Send + 'static>(
    pid: i32,
    patience: Duration,
    question: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Refusal> {
    match tokio::time::timeout(patience, tokio::task::spawn_blocking(question)).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(_)) | Err(_) => Err(silent(pid)),
    }
}

/// Others may have taken all threads that ask: that says nothing about this process.
fn silent(pid: i32) -> Refusal {
    Refusal::new(codes::WORKLOAD_UNSEEN, "no answer in time").at(format!("/proc/{pid}"))
}

/// The peer's pidfd from the socket itself.
///
/// # Errors
/// [`codes::WORKLOAD_PEER_UNKNOWN`] only if the kernel doesn't have `SO_PEERPIDFD`.
fn peer_pidfd(stream: &impl AsFd, pid: i32) -> Result<OwnedFd, Refusal> {
    getsockopt(stream, sockopt::PeerPidfd).map_err(|error| match error {
        Errno::ENOPROTOOPT => {
            Refusal::new(codes::WORKLOAD_PEER_UNKNOWN, error.desc()).at("SO_PEERPIDFD").expected("Linux 6.5 or later")
        }
        Errno::EMFILE | Errno::ENFILE => unknown(pid, "SO_PEERPIDFD", error.into()),
        _ => Refusal::new(codes::WORKLOAD_PEER_GONE, format!("process {pid}: {}", error.desc())),
    })
}

fn open_pidfd(number: i32) -> Result<OwnedFd, Refusal> {
    let gone = |e: String| Refusal::new(codes::WORKLOAD_PEER_GONE, format!("process {number}: {e}"));
    let pid = Pid::from_raw(number).ok_or_else(|| gone("no number".to_owned()))?;
    pidfd_open(pid, PidfdFlags::empty()).map_err(|error| {
        let error = std::io::Error::from(error);
        if no_descriptors(&error) { unknown(number, "its pidfd", error) } else { gone(error.to_string()) }
    })
}

/// The overflow user and group id if this user namespace lacks some ids: the kernel shows those
/// under the overflow id, which then may be anybody.
fn unmapped_ids() -> Option<(u32, u32)> {
    let whole = |map: &str| {
        std::fs::read_to_string(map)
            .is_ok_and(|text| text.split_ascii_whitespace().collect::<Vec<_>>() == ["0", "0", "4294967295"])
    };
    if whole("/proc/self/uid_map") && whole("/proc/self/gid_map") {
        return None;
    }
    let overflow =
        |file: &str| std::fs::read_to_string(file).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(65534);
    Some((overflow("/proc/sys/kernel/overflowuid"), overflow("/proc/sys/kernel/overflowgid")))
}

#[cfg(test)]
#[path = "peer_tests.rs"]
pub(super) mod tests;
