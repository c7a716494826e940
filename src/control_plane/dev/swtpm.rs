//! One software TPM: a `swtpm` process, its sockets and its state, gone when the value is dropped.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use super::wire;
use crate::clock::BootInstant;
use crate::secret;

/// How long a start may take before it counts as failed.
const START_DEADLINE: Duration = Duration::from_secs(20);

/// The longest path of a Unix socket on Linux, in bytes (`sun_path` less its NUL).
const SOCKET_PATH_LIMIT: usize = 107;

/// Commands of swtpm's control channel (swtpm_ioctls(3)).
const CONTROL_GET_CAPABILITY: u32 = 1;
const CONTROL_INIT: u32 = 2;

/// How to start one.
#[derive(Clone, Debug)]
pub struct Options {
    /// Whether swtpm itself runs TPM2_Startup(CLEAR), as firmware would have done.
    pub startup: bool,
    /// swtpm's own log level, 0 to 20; its log is `swtpm.log` in the directory.
    pub log_level: u8,
}

impl Default for Options {
    fn default() -> Self {
        Self { startup: true, log_level: 0 }
    }
}

/// Where a swtpm listens. It serves one connection at a time on each: users go through a
/// [`Relay`](super::Relay).
#[derive(Clone, Debug)]
pub struct Sockets {
    /// TPM commands.
    pub data: PathBuf,
    /// swtpm's control channel.
    pub control: PathBuf,
}

/// A running (or killed) software TPM. Every call blocks; each takes milliseconds.
#[derive(Debug)]
pub struct Swtpm {
    pub(super) directory: PathBuf,
    options: Options,
    sockets: Sockets,
    process: Option<Process>,
}

impl Swtpm {
    /// Starts a TPM on the state in `directory`; without any, a blank TPM with new seeds.
    ///
    /// # Errors
    /// When swtpm is not installed, doesn't start or doesn't answer within 20 s; the message has
    /// what it wrote to its log.
    pub fn start(directory: &Path, options: Options) -> io::Result<Self> {
        secret::private_directory(&directory.join("state"))?;
        // Unix sockets: unlike ports they can't be taken by somebody between choosing and binding.
        let sockets = Sockets { data: directory.join("data.sock"), control: directory.join("control.sock") };
        if sockets.control.as_os_str().len() > SOCKET_PATH_LIMIT {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{}: more than {SOCKET_PATH_LIMIT} bytes for a socket's path", sockets.control.display()),
            ));
        }
        let mut swtpm = Self { directory: directory.to_path_buf(), options, sockets, process: None };
        swtpm.launch()?;
        Ok(swtpm)
    }

    /// Where it listens; the same after a [`restart`](Self::restart).
    pub fn sockets(&self) -> &Sockets {
        &self.sockets
    }

    /// Its process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(|process| process.pid)
    }

    /// Cuts the power: SIGKILL, nothing is saved that wasn't.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Cuts the power and turns it on again on the same state: a TPM Reset.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn restart(&mut self) -> io::Result<()> {
        self.kill();
        self.launch()
    }

    /// Resets the running TPM, as a pulse on its reset line would: `_TPM_Init`, then
    /// TPM2_Startup(CLEAR) over a connection of its own. With a relay connected use
    /// [`RelayHandle::reset`](super::RelayHandle::reset), since swtpm serves one connection only.
    ///
    /// # Errors
    /// When swtpm doesn't answer or the TPM refuses to start.
    pub fn reset(&self) -> io::Result<()> {
        init(&self.sockets.control)?;
        let answer = self.exchange(&wire::startup(wire::StartupType::Clear))?;
        wire::check(&answer, "TPM2_Startup").map_err(io::Error::other)
    }

    /// Runs one command over a connection of its own; only while no relay is connected.
    ///
    /// # Errors
    /// When swtpm is gone, or busy with another connection for 20 s.
    pub fn exchange(&self, command: &[u8]) -> io::Result<Vec<u8>> {
        let mut stream = connect(&self.sockets.data)?;
        stream.write_all(command)?;
        let mut header = [0; wire::HEADER];
        stream.read_exact(&mut header)?;
        let mut answer = header.to_vec();
        answer.resize(wire::header_size(&header).map_err(io::Error::other)?, 0);
        stream.read_exact(answer.get_mut(wire::HEADER..).unwrap_or_default())?;
        Ok(answer)
    }

    fn launch(&mut self) -> io::Result<()> {
        for socket in [&self.sockets.data, &self.sockets.control] {
            match std::fs::remove_file(socket) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        let log = self.directory.join("swtpm.log");
        let output = File::create(&log)?;
        // setpriv: a test runner that is killed outright takes its TPMs with it. Never `--daemon`:
        // Debian 12's build goes into failure mode with it.
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "--", "swtpm", "socket", "--tpm2", "--tpmstate"])
            .arg(format!("dir={}", self.directory.join("state").display()))
            .arg("--server")
            .arg(format!("type=unixio,path={}", self.sockets.data.display()))
            .arg("--ctrl")
            .arg(format!("type=unixio,path={}", self.sockets.control.display()))
            .arg("--flags")
            .arg(if self.options.startup { "not-need-init,startup-clear" } else { "not-need-init" })
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            // Ctrl-C at a terminal is for the program that owns the TPM, which then ends it.
            .process_group(0);
        if self.options.log_level > 0 {
            command.arg("--log").arg(format!("level={}", self.options.log_level));
        }
        let process = self.process.insert(Process::spawn(command)?);
        let deadline = BootInstant::now().after(START_DEADLINE);
        loop {
            // An answer on the control channel comes from swtpm's main loop: the TPM is up.
            let problem = match control(&self.sockets.control, &CONTROL_GET_CAPABILITY.to_be_bytes(), 8) {
                Ok(_) => return Ok(()),
                Err(error) => error,
            };
            let ended = process.ended();
            if ended || BootInstant::now() > deadline {
                self.process = None;
                let said = std::fs::read_to_string(&log).unwrap_or_default();
                let what = if ended { "swtpm ended at its start".to_owned() } else { problem.to_string() };
                return Err(io::Error::other(format!(
                    "{what}; it wrote: {} (Debian packages: swtpm, util-linux)",
                    said.trim()
                )));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// `_TPM_Init` through the control channel at `control`: power on again, volatile state lost.
///
/// # Errors
/// When swtpm doesn't answer or refuses.
pub(super) fn init(control_socket: &Path) -> io::Result<()> {
    let mut request = CONTROL_INIT.to_be_bytes().to_vec();
    request.extend([0; 4]);
    match control(control_socket, &request, 4)?.as_slice() {
        [0, 0, 0, 0] => Ok(()),
        other => Err(io::Error::other(format!("swtpm answered {} to CMD_INIT", hex::encode(other)))),
    }
}

/// One request on a control connection of its own: swtpm serves one at a time.
fn control(socket: &Path, request: &[u8], answer: usize) -> io::Result<Vec<u8>> {
    let mut stream = connect(socket)?;
    stream.write_all(request)?;
    let mut bytes = vec![0; answer];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn connect(socket: &Path) -> io::Result<UnixStream> {
    let stream =
        UnixStream::connect(socket).map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", socket.display())))?;
    stream.set_read_timeout(Some(START_DEADLINE))?;
    stream.set_write_timeout(Some(START_DEADLINE))?;
    Ok(stream)
}

/// A child that is killed by its id on drop.
///
/// It has a thread of its own because the parent-death signal of [`Swtpm::launch`] is sent when
/// the *thread* that spawned the child ends, and callers' threads come and go.
#[derive(Debug)]
struct Process {
    pid: u32,
    child: std::sync::Arc<std::sync::Mutex<Child>>,
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Process {
    fn spawn(mut command: Command) -> io::Result<Self> {
        let (stop, stopped) = mpsc::channel::<()>();
        let (started, start) = mpsc::channel();
        let thread = std::thread::Builder::new().name("swtpm".to_owned()).spawn(move || {
            let spawned = command.spawn().map(|child| (child.id(), std::sync::Arc::new(std::sync::Mutex::new(child))));
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
            .map_err(|_| io::Error::other("the thread that starts swtpm ended"))?
            .map_err(|e| io::Error::new(e.kind(), format!("setpriv swtpm: {e} (Debian package: util-linux)")))?;
        Ok(Self { pid, child, stop: Some(stop), thread: Some(thread) })
    }

    fn ended(&self) -> bool {
        self.child.lock().is_ok_and(|mut child| matches!(child.try_wait(), Ok(Some(_))))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Ok(mut child) = self.child.lock() {
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
