//! A private TPM for each test: `swtpm` on a socket in its own directory, driven by tpm2-tools.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub struct Swtpm {
    process: Child,
    directory: tempfile::TempDir,
}

impl Swtpm {
    pub fn start() -> Self {
        Self::start_in(tempfile::tempdir().unwrap())
    }

    /// Starts on the state that is in `directory`.
    pub fn start_in(directory: tempfile::TempDir) -> Self {
        let path = |name: &str| directory.path().join(name).display().to_string();
        let process = Command::new("swtpm")
            .args(["socket", "--tpm2", "--flags", "not-need-init,startup-clear"])
            .args(["--tpmstate", &format!("dir={}", directory.path().display())])
            .args(["--server", &format!("type=unixio,path={}", path("tpm"))])
            .args(["--ctrl", &format!("type=unixio,path={}", path("tpm.ctrl"))])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("swtpm is installed");
        let end = Instant::now() + Duration::from_secs(30);
        while !(directory.path().join("tpm").exists() && directory.path().join("tpm.ctrl").exists()) {
            assert!(Instant::now() < end, "swtpm opens no socket");
            std::thread::sleep(Duration::from_millis(5));
        }
        Self { process, directory }
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Runs one of tpm2-tools in the TPM's directory.
    pub fn run(&self, command: &str) {
        let mut words = command.split_whitespace();
        let output = Command::new(words.next().unwrap())
            .args(words)
            .current_dir(self.path())
            .env("TPM2TOOLS_TCTI", format!("swtpm:path={}", self.path().join("tpm").display()))
            .output()
            .expect("tpm2-tools are installed");
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path().join(name)).unwrap()
    }

    pub fn write(&self, name: &str, contents: &[u8]) {
        std::fs::write(self.path().join(name), contents).unwrap();
    }
}

impl Drop for Swtpm {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
