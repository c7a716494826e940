//! How a process ended, which a pidfd doesn't say to whoever isn't its parent.
//!
//! Three things are asked, and the first that knows counts:
//!
//! 1. `/proc/PID/stat`, as long as nobody has waited for the process;
//! 2. the kernel's process connector, which tells every exit with its status (`cn_proc`; to root, and since
//!    Linux 6.6 to others). It speaks to the initial namespaces only;
//! 3. nobody: then it is unknown how it ended, and that it ended stands all the same.
//!
//! Killed for want of memory is a signal 9 while the kernel's own count of such kills went up: in the
//! process's cgroup, or on the machine where its cgroup isn't counted.

mod connector;
mod memory;

use std::sync::Arc;
use std::time::Duration;

use connector::{Connector, Watched};
use memory::Kills;

use super::Peer;
use super::process::Process;

/// The kernel tells the waiting parent and everybody else at about the same time, and the connector
/// right after; so long is waited for its word.
const PATIENCE: Duration = Duration::from_millis(200);

/// How a process ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ending {
    /// By itself, with this exit code.
    Exited(i32),
    /// By this signal.
    Killed(i32),
    /// By the kernel, which was out of memory.
    OutOfMemory,
    /// It ended; how isn't known here.
    Unseen,
}

impl Ending {
    /// From a wait status (wait(2)).
    const fn of_status(status: i32) -> Self {
        match status & 0x7f {
            0 => Self::Exited((status >> 8) & 0xff),
            signal => Self::Killed(signal),
        }
    }
}

/// Sees how processes end; one for an agent.
#[derive(Clone, Debug, Default)]
pub struct Endings {
    connector: Arc<Connector>,
}

impl Endings {
    /// Begins to watch `peer`. From here on its end is noticed however soon it comes.
    pub fn watch(&self, peer: &Peer) -> Watch {
        let process = peer.process();
        let kills = Kills::of(&process.read("cgroup").unwrap_or_default());
        // Whose program the agent may see, of those it may see the status too; of others it reads as 0.
        let shown = matches!(process.executable(), Ok(Some(_)));
        Watch { watched: self.connector.watch(peer.pid()), kills, shown, peer: peer.clone() }
    }
}

/// A process that is watched.
#[derive(Debug)]
pub struct Watch {
    peer: Peer,
    watched: Watched,
    kills: Kills,
    /// Whether `/proc` shows its status.
    shown: bool,
}

impl Watch {
    /// To be called now and then: a kill of another process long ago explains nothing.
    pub fn look(&mut self) {
        self.kills.look();
    }

    /// Whether its first thread is on its way out: it has no program any more, and that is no other program.
    pub fn is_ending(&self) -> bool {
        // PF_EXITING of field 9 (proc_pid_stat(5), linux/sched.h).
        let flags = |stat: String| stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(9 - 3)?.parse::<u32>().ok();
        self.peer.process().read("stat").ok().and_then(flags).is_none_or(|flags| flags & 4 != 0)
    }

    /// Waits until the process has ended, and says how.
    pub async fn ended(&self) -> Ending {
        self.peer.exited().await;
        match self.status().await.map(Ending::of_status) {
            Some(Ending::Killed(9)) if self.kills.went_up() => Ending::OutOfMemory,
            Some(ending) => ending,
            None => Ending::Unseen,
        }
    }

    async fn status(&self) -> Option<i32> {
        if let Some(status) = self.shown.then(|| left_status(self.peer.process())).flatten() {
            return Some(status);
        }
        tokio::time::timeout(PATIENCE, self.watched.status()).await.ok().flatten()
    }
}

/// The status of an ended process that nobody has waited for yet: field 52 of its `stat`, the third being
/// its state (proc_pid_stat(5)).
fn left_status(process: &Process) -> Option<i32> {
    let stat = process.read("stat").ok()?;
    // The name of the program stands in parentheses and may hold any character.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace();
    (fields.next()? == "Z").then(|| fields.nth(52 - 4)?.parse().ok())?
}

#[cfg(test)]
mod tests;
