//! `leasehold-server dev` as its user meets it: it says what it made, and leaves nothing behind.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use leasehold::clock::BootInstant;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const SERVER: &str = env!("CARGO_BIN_EXE_leasehold-server");

/// Killed when a test fails; its children then end by themselves.
struct Dev(Child);

impl Dev {
    fn start(arguments: &[&str]) -> (Self, Value) {
        let mut child = Command::new(SERVER)
            .args(["dev", "--json"])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        (Self(child), serde_json::from_str(&line).expect("one JSON object when everything runs"))
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The processes that dev started, and their `/proc` entries.
fn processes(facts: &Value) -> [PathBuf; 2] {
    ["agent_pid", "server_pid"].map(|key| PathBuf::from(format!("/proc/{}", facts[key].as_u64().unwrap())))
}

fn until(what: &str, holds: impl Fn() -> bool) {
    let since = BootInstant::now();
    while !holds() {
        assert!(BootInstant::now().since(since) < Duration::from_secs(60), "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn an_interrupt_ends_everything_and_removes_the_temporary_directory() {
    let (mut dev, facts) = Dev::start(&[]);
    let processes = processes(&facts);
    assert!(processes.iter().all(|process| process.exists()));
    let directory = PathBuf::from(facts["directory"].as_str().unwrap());
    assert!(directory.join("dev.json").exists());
    assert!(facts["workload_socket"].as_str().unwrap().starts_with("unix:///"));
    dev.signal(Signal::INT);
    assert!(dev.0.wait().unwrap().success());
    assert!(!processes.iter().any(|process| process.exists()));
    assert!(!directory.exists());
}

#[test]
fn a_killed_dev_leaves_no_process() {
    let directory = tempfile::tempdir().unwrap();
    let (dev, facts) = Dev::start(&["--dir", directory.path().to_str().unwrap()]);
    let processes = processes(&facts);
    dev.signal(Signal::KILL);
    drop(dev);
    until("its children end with it", || !processes.iter().any(|process| process.exists()));
}

#[test]
fn drift_names_the_pcr_and_both_values_and_refuses_what_it_cannot_do() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().to_str().unwrap();
    let drift = |pcr: &str| {
        Command::new(SERVER).args(["dev", "drift", "--json", "--dir", path, "--pcr", pcr]).output().unwrap()
    };
    let nobody = drift("7");
    assert!(!nobody.status.success());
    let words = String::from_utf8(nobody.stderr).unwrap();
    assert!(words.contains(path) && words.contains("dev"), "{words}");

    let (_dev, _facts) = Dev::start(&["--dir", path]);
    let first: Value = serde_json::from_slice(&drift("4").stdout).unwrap();
    let second: Value = serde_json::from_slice(&drift("4").stdout).unwrap();
    assert_eq!(first["pcr"], 4);
    assert_ne!(first["before"], first["after"]);
    assert_eq!(first["after"], second["before"]);
    assert!(!drift("24").status.success());
    // A second one in the same directory would fight over everything.
    let again = Command::new(SERVER).args(["dev", "--dir", path]).output().unwrap();
    assert!(!again.status.success());
    assert!(Path::new(path).join("dev.json").exists());
}
