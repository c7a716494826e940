//! One software TPM: a `swtpm` process, its sockets and its state, gone when the value is dropped.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use super::process::Process;
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
        self.process.as_ref().map(Process::pid)
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
        exchange(&mut connect(&self.sockets.data)?, command)
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
        // Never `--daemon`: Debian 12's build goes into failure mode with it.
        let mut command = Process::command("swtpm");
        command
            .args(["socket", "--tpm2", "--tpmstate"])
            .arg(format!("dir={}", self.directory.join("state").display()))
            .arg("--server")
            .arg(format!("type=unixio,path={}", self.sockets.data.display()))
            .arg("--ctrl")
            .arg(format!("type=unixio,path={}", self.sockets.control.display()))
            .arg("--flags")
            .arg(if self.options.startup { "not-need-init,startup-clear" } else { "not-need-init" })
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output);
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
            let ended = process.ended().is_some();
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

/// One command and its answer over a connection to a TPM.
///
/// # Errors
/// Any error of the connection, and an answer whose header makes no sense.
pub(super) fn exchange(tpm: &mut (impl Read + Write), command: &[u8]) -> io::Result<Vec<u8>> {
    tpm.write_all(command)?;
    let mut header = [0; wire::HEADER];
    tpm.read_exact(&mut header)?;
    let mut answer = header.to_vec();
    answer.resize(wire::header_size(&header).map_err(io::Error::other)?, 0);
    tpm.read_exact(answer.get_mut(wire::HEADER..).unwrap_or_default())?;
    Ok(answer)
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
