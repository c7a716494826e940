//! A private software TPM: own process, own state, own ports; gone with the value.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// A running swtpm and its state directory.
pub struct Swtpm {
    state: TempDir,
    process: Child,
    port: u16,
}

impl Swtpm {
    /// Starts one with fresh state.
    pub fn start() -> Self {
        Self::start_with(tempfile::tempdir().unwrap())
    }

    /// Starts one on this state.
    pub fn start_with(state: TempDir) -> Self {
        for _ in 0..20 {
            let port = free_ports();
            let mut process = launch(&state, port);
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
}

impl Drop for Swtpm {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn launch(state: &TempDir, port: u16) -> Child {
    Command::new("swtpm")
        .args(["socket", "--tpm2", "--flags", "not-need-init,startup-clear", "--tpmstate"])
        .arg(format!("dir={}", state.path().display()))
        .args(["--server", &format!("type=tcp,bindaddr=127.0.0.1,port={port}")])
        .args(["--ctrl", &format!("type=tcp,bindaddr=127.0.0.1,port={}", port + 1)])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Two consecutive ports that were free a moment ago; another test may be quicker.
fn free_ports() -> u16 {
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
