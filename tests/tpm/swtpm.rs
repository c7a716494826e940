//! A private software TPM: own process, own state, own ports; gone with the value.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// A running swtpm and its state directory.
pub struct Swtpm {
    state: TempDir,
    process: Child,
    pub port: u16,
}

impl Swtpm {
    /// Starts one with fresh state and no certificate.
    pub fn start() -> Self {
        Self::start_with(tempfile::tempdir().unwrap())
    }

    /// Starts one as a factory delivers it: EKs and certificates for RSA-2048 and P-384, and the
    /// CA that signed them in the state directory.
    pub fn start_manufactured() -> Self {
        let state = tempfile::tempdir().unwrap();
        manufacture(state.path());
        Self::start_with(state)
    }

    fn start_with(state: TempDir) -> Self {
        for _ in 0..20 {
            let port = free_ports();
            let mut process = launch(state.path(), port);
            if answers(&mut process, port + 1) {
                return Self { state, process, port };
            }
            let _ = process.kill();
            let _ = process.wait();
        }
        panic!("no swtpm could be started: is swtpm installed?");
    }

    /// `swtpm:host=…,port=…`.
    pub fn address(&self) -> String {
        format!("swtpm:host=127.0.0.1,port={}", self.port)
    }

    /// The state directory.
    pub fn state(&self) -> &Path {
        self.state.path()
    }

    /// An EK certificate for this point, signed by the factory's CA, in DER.
    pub fn certify_p256(&self, x: &[u8], y: &[u8]) -> Vec<u8> {
        let file = |name: &str| self.state.path().join(name).display().to_string();
        let point = format!("x={},y={},id=secp256r1", hex::encode(x), hex::encode(y));
        let done = Command::new("swtpm_localca")
            .args(["--type", "ek", "--ek", &point, "--dir", &self.state.path().display().to_string(), "--tpm2"])
            .args(["--tpm-spec-family", "2.0", "--tpm-spec-level", "0", "--tpm-spec-revision", "164"])
            .args(["--tpm-manufacturer", "id:00001014", "--tpm-model", "swtpm", "--tpm-version", "id:20191023"])
            .args(["--configfile", &file("localca.conf"), "--optsfile", &file("options.conf")])
            .args(["--logfile", &file("localca.log")])
            .status()
            .unwrap();
        assert!(done.success(), "{}", std::fs::read_to_string(file("localca.log")).unwrap_or_default());
        std::fs::read(file("ek.cert")).unwrap()
    }

    /// Ends it as a power cut would.
    pub fn kill(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }

    /// Starts it again on the same ports after [`Self::kill`]: a TPM Reset.
    pub fn restart(&mut self) {
        for _ in 0..50 {
            self.process = launch(self.state.path(), self.port);
            if answers(&mut self.process, self.port + 1) {
                return;
            }
            // The old connection's port may still be in use for a moment.
            self.kill();
            std::thread::sleep(Duration::from_millis(100));
        }
        panic!("swtpm doesn't come back");
    }

    /// Stops (`true`) or continues the process: a TPM that hangs.
    pub fn hang(&self, stop: bool) {
        let pid = self.process.id().to_string();
        let signal = if stop { "-STOP" } else { "-CONT" };
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    /// _TPM_Init through the control port, as a reset line does it. TPM2_Startup must follow.
    pub fn init(&self) {
        // CMD_INIT, then its flags.
        let answer = control(self.port + 1, &[0, 0, 0, 2, 0, 0, 0, 0], 4).unwrap();
        assert_eq!(answer, [0; 4]);
    }
}

impl Drop for Swtpm {
    fn drop(&mut self) {
        // A stopped process takes the signal too.
        self.kill();
    }
}

fn launch(state: &Path, port: u16) -> Child {
    Command::new("swtpm")
        .args(["socket", "--tpm2", "--flags", "not-need-init,startup-clear", "--tpmstate"])
        .arg(format!("dir={}", state.display()))
        .args(["--server", &format!("type=tcp,bindaddr=127.0.0.1,port={port}")])
        .args(["--ctrl", &format!("type=tcp,bindaddr=127.0.0.1,port={}", port + 1)])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn manufacture(state: &Path) {
    let file = |name: &str| state.join(name).display().to_string();
    let localca = format!(
        "statedir = {0}\nsigningkey = {0}/signkey.pem\nissuercert = {0}/issuercert.pem\ncertserial = {0}/certserial\n",
        state.display()
    );
    std::fs::write(file("localca.conf"), localca).unwrap();
    std::fs::write(file("options.conf"), "").unwrap();
    let setup = format!(
        "create_certs_tool = swtpm_localca\ncreate_certs_tool_config = {}\ncreate_certs_tool_options = {}\n",
        file("localca.conf"),
        file("options.conf")
    );
    std::fs::write(file("setup.conf"), setup).unwrap();
    let done = Command::new("swtpm_setup")
        .args(["--tpm2", "--create-ek-cert", "--tpmstate", &state.display().to_string()])
        .args(["--config", &file("setup.conf"), "--logfile", &file("setup.log")])
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(done.success(), "{}", std::fs::read_to_string(file("setup.log")).unwrap_or_default());
}

/// Two consecutive ports that were free a moment ago; another test may be quicker.
pub fn free_ports() -> u16 {
    loop {
        let first = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = first.local_addr().unwrap().port();
        if port < u16::MAX && TcpListener::bind((Ipv4Addr::LOCALHOST, port + 1)).is_ok() {
            return port;
        }
    }
}

/// Whether the control port answers before the process ends.
fn answers(process: &mut Child, port: u16) -> bool {
    let until = Instant::now() + Duration::from_secs(10);
    while Instant::now() < until {
        if process.try_wait().unwrap().is_some() {
            return false;
        }
        // CMD_GET_CAPABILITY.
        if control(port, &[0, 0, 0, 1], 8).is_ok() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    false
}

/// Sends a control command and reads an answer of `size` bytes.
fn control(port: u16, command: &[u8], size: usize) -> std::io::Result<Vec<u8>> {
    let address = SocketAddrV4::new(Ipv4Addr::LOCALHOST, port).into();
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(command)?;
    let mut answer = vec![0; size];
    stream.read_exact(&mut answer)?;
    Ok(answer)
}
