//! Child processes that end with the value that owns them, and with this process at the latest.

use std::ffi::OsStr;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::clock::BootInstant;

/// A child that is killed by its id on drop.
///
/// It has a thread of its own because the parent-death signal is sent when the *thread* that
/// spawned the child ends, and callers' threads come and go.
#[derive(Debug)]
pub(super) struct Process {
    pid: u32,
    child: Arc<Mutex<Child>>,
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Process {
    /// A command for [`spawn`](Self::spawn): `program` dies with this process, however that ends,
    /// and is in a process group of its own, since Ctrl-C at a terminal is for its owner, who then
    /// ends it in order.
    pub(super) fn command(program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(program).process_group(0);
        command
    }

    /// Starts a command made by [`command`](Self::command).
    ///
    /// # Errors
    /// When it can't be started.
    pub(super) fn spawn(mut command: Command) -> io::Result<Self> {
        let (stop, stopped) = mpsc::channel::<()>();
        let (started, start) = mpsc::channel();
        let thread = std::thread::Builder::new().name("child".to_owned()).spawn(move || {
            let spawned = command.spawn().map(|child| (child.id(), Arc::new(Mutex::new(child))));
            let alive = spawned.is_ok();
            // The receiver waits below; both ends are in this function.
            let _ = started.send(spawned);
            if alive {
                // Returns when the sender is dropped.
                let _ = stopped.recv();
            }
        })?;
        let (pid, child) = start
            .recv()
            .map_err(|_| io::Error::other("the thread that starts a child ended"))?
            .map_err(|e| io::Error::new(e.kind(), format!("setpriv: {e} (Debian package: util-linux)")))?;
        Ok(Self { pid, child, stop: Some(stop), thread: Some(thread) })
    }

    /// Its process id.
    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    /// How it ended, if it has.
    pub(super) fn ended(&self) -> Option<ExitStatus> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner).try_wait().ok().flatten()
    }

    /// Asks it to end by SIGTERM and waits. Returns whether it did within `deadline`.
    pub(super) async fn terminate(&self, deadline: Duration) -> bool {
        let until = BootInstant::now().after(deadline);
        // Only we reap it, so while it hasn't ended the id is still its own.
        if let (None, Some(pid)) = (self.ended(), i32::try_from(self.pid).ok().and_then(Pid::from_raw)) {
            // An error means that it ended just now.
            let _ = kill_process(pid, Signal::TERM);
        }
        while self.ended().is_none() {
            if BootInstant::now() > until {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        true
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        {
            let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
            // An error means that it ended by itself; wait() reaps it either way.
            let _ = child.kill();
            let _ = child.wait();
        }
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
