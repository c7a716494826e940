//! The control plane's keys sealed to its own TPM: what crosses the bus, what lies on disk, what
//! opens where, and what a kill leaves behind.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]
#![cfg(feature = "tpm-device")]

mod bench;

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use bench::world::{PATIENCE, Process, Server};
use bench::{Fault, Script, TestTpm};
use leasehold::clock::BootInstant;
use leasehold::control_plane::dev::{Presence, Recording, wire};
use leasehold::tpm::{Sealed, TpmAddress, TpmError, Vault};

const UNSEAL: u32 = 0x15E;
const SECRET: [u8; 32] = *b"a secret that nobody else knows!";

fn vault(tpm: &TestTpm) -> Vault {
    Vault::new(TpmAddress::parse(&tpm.address()).unwrap(), Duration::from_secs(20))
}

/// TPM2_Clear by the platform (Part 3, 24.6): a new owner hierarchy.
async fn clear(tpm: &TestTpm) {
    let command = [
        &[0x80, 0x02, 0, 0, 0, 27, 0, 0, 0x01, 0x26][..],
        &wire::PLATFORM.to_be_bytes(),
        &[0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 0, 0, 0],
    ]
    .concat();
    tpm.relay.execute(&command).await.unwrap();
}

/// Whether `bytes` contain a run of the secret that no chance explains.
fn contains(bytes: &[u8], secret: &[u8]) -> bool {
    secret.windows(6).any(|run| bytes.windows(6).any(|part| part == run))
}

/// The files under a directory that contain a run of the secret.
fn files_with(directory: &Path, secret: &[u8]) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files_with(&path, secret));
        } else if std::fs::read(&path).is_ok_and(|bytes| contains(&bytes, secret)) {
            found.push(path.display().to_string());
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_opens_again_and_never_crosses_the_bus_in_the_clear() {
    let tpm = TestTpm::blank();
    tpm.relay.record(Recording::Frames);
    let sealed = vault(&tpm).seal(&SECRET).unwrap();
    let read = Sealed::decode(&sealed.encode()).unwrap();
    assert_eq!(vault(&tpm).unseal(&read).unwrap().as_slice(), SECRET);
    assert!(!contains(&sealed.encode(), &SECRET));

    let journal = tpm.relay.take_journal();
    let frames = journal.iter().filter(|entry| !entry.bytes.is_empty()).count();
    assert!(frames > 20 && frames == journal.len(), "{frames} frames recorded");
    for entry in &journal {
        assert!(!contains(&entry.bytes, &SECRET), "{}", hex::encode(&entry.bytes));
    }
    assert!(tpm.handles(0x8000_0000).await.is_empty(), "no key stays in the TPM");
    assert!(tpm.handles(0x0200_0000).await.is_empty(), "no session stays in the TPM");

    // A reset changes nothing.
    tpm.relay.reset(Vec::new()).await.unwrap();
    assert_eq!(vault(&tpm).unseal(&sealed).unwrap().as_slice(), SECRET);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_tpm_that_sealed_opens() {
    let (tpm, other) = (TestTpm::blank(), TestTpm::blank());
    let sealed = vault(&tpm).seal(&SECRET).unwrap();
    other.relay.reset_counts();
    let refused = vault(&other).unseal(&sealed).unwrap_err();
    let TpmError::SealedElsewhere { found, expected } = refused else { panic!("{refused}") };
    assert_eq!(expected, sealed.srk_name());
    assert_ne!(found, expected);
    assert!(!other.relay.counts().keys().any(|command| command.contains("Load")), "{:?}", other.relay.counts());
    clear(&tpm).await;
    let refused = vault(&tpm).unseal(&sealed).unwrap_err();
    assert!(matches!(refused, TpmError::SealedElsewhere { .. }), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_altered_file_or_answer_gives_no_secret() {
    let tpm = TestTpm::blank();
    let sealed = vault(&tpm).seal(&SECRET).unwrap();
    let file = sealed.encode();
    for position in (0..file.len()).step_by(7) {
        let mut altered = file.clone();
        altered[position] ^= 1;
        if let Ok(altered) = Sealed::decode(&altered) {
            let refused = vault(&tpm).unseal(&altered).unwrap_err();
            assert!(!refused.is_unavailable(), "byte {position}: {refused}");
        }
    }
    let script = Script::new();
    tpm.relay.set_tap(Some(Arc::new(script.clone())));
    // Past the header, the parameters' size and the data's size: inside the secret.
    script.fault(Some(UNSEAL), 1, Fault::FlipAnswerBit(8 * 20));
    assert!(vault(&tpm).unseal(&sealed).is_err());
    // A sealing whose opening fails makes no file.
    script.fault(Some(UNSEAL), 1, Fault::Code(wire::rc::FAILURE));
    assert!(vault(&tpm).seal(&SECRET).is_err());
    assert_eq!(script.hits(), 2);
    assert_eq!(vault(&tpm).unseal(&sealed).unwrap().as_slice(), SECRET);
}

/// What the server's own configuration file says, and the same with a TPM to seal to.
fn with_tpm(server: &Server, address: &str) -> String {
    let plain = std::fs::read_to_string(server.path("server.toml")).unwrap();
    format!("{plain}[keys]\ntpm = \"{address}\"\n")
}

fn configure(server: &Server, text: &str) {
    std::fs::write(server.path("server.toml"), text).unwrap();
}

/// Runs the server, which must refuse to start: its exit code and what it says.
fn refused(server: &Server) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_leasehold-server"))
        .arg("run")
        .arg("--config")
        .arg(server.path("server.toml"))
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!said.contains(":esys:") && !said.contains(":tcti:"), "libtss2 speaks too: {said}");
    (output.status.code(), said)
}

fn key_file(server: &Server) -> Vec<u8> {
    std::fs::read(server.path("state/wrapping.key")).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_control_plane_seals_its_key_and_starts_again_with_it() {
    let tpm = TestTpm::blank();
    let mut server = Server::start(&format!("[keys]\ntpm = \"{}\"", tpm.address()));
    let file = key_file(&server);
    let mode = std::fs::metadata(server.path("state/wrapping.key")).unwrap().mode();
    assert_eq!(mode & 0o777, 0o600);
    let sealed = Sealed::decode(&file).unwrap();
    assert!(server.log().contains(&sealed.srk_name()), "{}", server.log());
    let key = vault(&tpm).unseal(&sealed).unwrap();
    assert_eq!(key.len(), 32);
    assert_eq!(files_with(server.dir.path(), &key), Vec::<String>::new());
    let hash = server.ca_hash();
    tpm.relay.reset(Vec::new()).await.unwrap();
    server.restart();
    assert_eq!(server.ca_hash(), hash);
    assert_eq!(key_file(&server), file);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_in_the_clear_is_sealed_and_then_needs_its_tpm() {
    let (tpm, other) = (TestTpm::blank(), TestTpm::blank());
    let mut server = Server::start("");
    let (hash, key) = (server.ca_hash(), key_file(&server));
    assert_eq!(key.len(), 32);
    let plain = std::fs::read_to_string(server.path("server.toml")).unwrap();
    let sealing = with_tpm(&server, &tpm.address());

    // Nothing changes while the TPM is away.
    server.kill();
    configure(&server, &sealing);
    tpm.relay.set_presence(Presence::Gone);
    let (code, said) = refused(&server);
    assert_eq!((code, said.contains("tpm.unavailable")), (Some(5), true), "{said}");
    assert_eq!(key_file(&server), key);

    tpm.relay.set_presence(Presence::Here);
    server.restart();
    assert_eq!(server.ca_hash(), hash);
    assert!(server.log().contains("lay in the clear and is sealed"), "{}", server.log());
    let file = key_file(&server);
    let sealed = Sealed::decode(&file).unwrap();
    assert_eq!(vault(&tpm).unseal(&sealed).unwrap().as_slice(), key);
    assert_eq!(files_with(server.dir.path(), &key), Vec::<String>::new());
    server.restart();
    assert_eq!(server.ca_hash(), hash);

    server.kill();
    configure(&server, &plain);
    let (code, said) = refused(&server);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("wrapping.key") && said.contains("keys.tpm"), "{said}");

    configure(&server, &plain);
    configure(&server, &with_tpm(&server, &other.address()));
    let (code, said) = refused(&server);
    assert_eq!((code, said.contains("tpm.sealed_elsewhere")), (Some(1), true), "{said}");
    let srk_of_other = vault(&other).seal(&SECRET).unwrap().srk_name();
    assert!(said.contains(&sealed.srk_name()) && said.contains(&srk_of_other), "{said}");

    configure(&server, &plain);
    configure(&server, &with_tpm(&server, "device:/dev/there-is-no-such-tpm"));
    let (code, said) = refused(&server);
    assert_eq!(code, Some(5), "{said}");
    assert!(said.contains("/dev/there-is-no-such-tpm does not exist"), "{said}");
    assert_eq!(key_file(&server), file, "no refusal changes the file");

    configure(&server, &sealing);
    server.restart();
    assert_eq!(server.ca_hash(), hash);
}

/// Killed at any command of the migration, the file is the old one or the new one.
#[tokio::test(flavor = "multi_thread")]
async fn a_migration_that_is_killed_goes_on_at_the_next_start() {
    let tpm = TestTpm::blank();
    let script = Script::new();
    tpm.relay.set_tap(Some(Arc::new(script.clone())));
    let mut server = Server::start("");
    let (hash, key) = (server.ca_hash(), key_file(&server));
    server.kill();
    let plain = std::fs::read_to_string(server.path("server.toml")).unwrap();
    let sealing = with_tpm(&server, &tpm.address());
    configure(&server, &sealing);
    let (mut in_the_clear, mut commands) = (0, 0);
    loop {
        std::fs::write(server.path("state/wrapping.key"), &key).unwrap();
        let before = script.hits();
        script.clear();
        script.fault_after(None, commands, 1, Fault::Delay(PATIENCE));
        let mut run = Command::new(env!("CARGO_BIN_EXE_leasehold-server"));
        run.arg("run").arg("--config").arg(server.path("server.toml"));
        let process = Process::spawn(&mut run, &server.path("killed.log"));
        let since = BootInstant::now();
        // Held at this command, or past the last one.
        while script.hits() == before && !Sealed::looks_like(&key_file(&server)) {
            assert!(BootInstant::now().since(since) < PATIENCE, "{}", server.log());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let held = script.hits() > before;
        process.kill();
        script.clear();
        let file = key_file(&server);
        if file == key {
            in_the_clear += 1;
        } else {
            assert_eq!(vault(&tpm).unseal(&Sealed::decode(&file).unwrap()).unwrap().as_slice(), key);
        }
        if !held {
            break;
        }
        commands += 1;
    }
    assert!(commands > 10, "killed at {commands} commands");
    assert_eq!(in_the_clear, commands, "the file is replaced only when all is done");
    println!("killed at each of {commands} commands; the next start goes on");
    server.restart();
    assert_eq!(server.ca_hash(), hash);
    assert!(Sealed::looks_like(&key_file(&server)));
    assert_eq!(files_with(server.dir.path(), &key), Vec::<String>::new());
    configure(&server, &plain);
}
