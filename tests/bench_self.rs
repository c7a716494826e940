//! The bench's tests of itself: the TPM, the relay, the faults and the oracle do what they say.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod bench;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use bench::{ExtendDuringRead, Fault, Order, Script, TestTpm};
use leasehold::clock::BootInstant;
use leasehold::control_plane::dev::{
    Direction, EkCert, Frame, OnResponse, Presence, Recording, Swtpm, Tap, Verdict, wire,
};
use leasehold::tpm::{Bank, PcrSelection};

/// A user of the relay, as libtss2 is one: a plain TCP connection.
struct User(TcpStream);

impl User {
    fn connect(tpm: &TestTpm) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", tpm.relay.port())).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        Self(stream)
    }

    fn send(&mut self, command: &[u8]) -> std::io::Result<()> {
        self.0.write_all(command)
    }

    fn receive(&mut self) -> std::io::Result<Vec<u8>> {
        let mut header = [0; wire::HEADER];
        self.0.read_exact(&mut header)?;
        let mut answer = header.to_vec();
        answer.resize(wire::header_size(&header).unwrap(), 0);
        self.0.read_exact(&mut answer[wire::HEADER..])?;
        Ok(answer)
    }

    fn ask(&mut self, command: &[u8]) -> std::io::Result<Vec<u8>> {
        self.send(command)?;
        self.receive()
    }

    fn pcr(&mut self, pcr: u8) -> std::io::Result<(u32, Vec<u8>)> {
        let answer = self.ask(&read_command(pcr))?;
        let mut answer = wire::parse_pcr_read(&answer).map_err(std::io::Error::other)?;
        Ok((answer.update_counter, answer.values.remove(0)))
    }
}

fn read_command(pcr: u8) -> Vec<u8> {
    wire::pcr_read(PcrSelection::new(Bank::Sha256, [pcr]).unwrap())
}

#[tokio::test]
async fn several_users_share_one_tpm_and_are_counted() {
    let tpm = TestTpm::blank();
    tpm.relay.record(Recording::Frames);
    let (mut one, mut two) = (User::connect(&tpm), User::connect(&tpm));
    let (counter, before) = one.pcr(7).unwrap();
    let answered = tpm.extend(7, [1; 32]).await;
    assert!(answered <= BootInstant::now());
    let (later, after) = two.pcr(7).unwrap();
    assert_ne!(before, after);
    assert_eq!(later, counter + 1);
    assert_eq!(one.pcr(7).unwrap().1, after);
    assert_eq!(tpm.relay.counts(), [("TPM2_PCR_Read".to_owned(), 3)].into());
    tpm.relay.reset_counts();
    assert!(tpm.relay.counts().is_empty());
    let journal = tpm.relay.take_journal();
    assert_eq!(journal.len(), 8);
    assert!(journal.is_sorted_by_key(|entry| entry.at));
    for pair in journal.chunks(2) {
        assert_eq!((pair[0].direction, pair[1].direction), (Direction::ToTpm, Direction::FromTpm));
        assert_eq!((pair[0].user, pair[0].command), (pair[1].user, pair[1].command));
        assert_eq!(pair[1].response, Some(0));
    }
    assert_eq!(journal[0].bytes, read_command(7));
}

#[test]
fn concurrent_users_never_get_each_others_answers() {
    let tpm = TestTpm::blank();
    std::thread::scope(|scope| {
        for pcr in 0..8u8 {
            let tpm = &tpm;
            scope.spawn(move || {
                let mut user = User::connect(tpm);
                for _ in 0..100 {
                    // Each asks for another number of PCRs, so a swapped answer has another length.
                    let selection = PcrSelection::new(Bank::Sha256, 0..=pcr).unwrap();
                    let answer = wire::parse_pcr_read(&user.ask(&wire::pcr_read(selection)).unwrap()).unwrap();
                    assert_eq!(answer.values.len(), usize::from(pcr) + 1);
                }
            });
        }
    });
    assert_eq!(tpm.relay.counts()["TPM2_PCR_Read"], 800);
}

#[tokio::test]
async fn a_reset_with_replayed_extends_looks_the_same_but_for_its_count() {
    let tpm = TestTpm::blank();
    let mut user = User::connect(&tpm);
    let extends: Vec<_> = (0..4).map(|n| wire::pcr_extend(n, Bank::Sha256, &[n; 32])).collect();
    // From a reset, so that both runs start alike.
    tpm.relay.reset(extends.clone()).await.unwrap();
    let before = user.pcr(3).unwrap();
    tpm.extend(3, [9; 32]).await;
    assert_ne!(user.pcr(3).unwrap(), before);
    let reset = tpm.relay.reset(extends).await.unwrap();
    assert!(reset <= BootInstant::now());
    assert_eq!(user.pcr(3).unwrap(), before, "update counter and value after the replay");
}

#[tokio::test]
async fn a_suspend_keeps_what_a_reset_loses() {
    let tpm = TestTpm::blank();
    tpm.extend(3, [9; 32]).await;
    let (_, value) = tpm.read(3).await;
    tpm.relay.suspend().await.unwrap();
    assert_eq!(tpm.read(3).await.1, value);
    tpm.relay.reset(Vec::new()).await.unwrap();
    assert_eq!(tpm.read(3).await.1, [0; 32]);
}

#[tokio::test]
async fn the_relay_finds_a_restarted_tpm_again() {
    let mut tpm = TestTpm::blank();
    let mut user = User::connect(&tpm);
    user.pcr(0).unwrap();
    tpm.swtpm.kill();
    assert!(user.pcr(0).is_err());
    assert!(User::connect(&tpm).pcr(0).is_err());
    tpm.swtpm.restart().unwrap();
    User::connect(&tpm).pcr(0).unwrap();
    tpm.read(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_tpm_answers_when_it_is_back_and_a_gone_one_closes() {
    let tpm = TestTpm::blank();
    let mut user = User::connect(&tpm);
    tpm.relay.set_presence(Presence::Silent);
    user.send(&read_command(0)).unwrap();
    user.0.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    assert!(user.receive().is_err(), "silent");
    tpm.read(0).await;
    tpm.relay.set_presence(Presence::Here);
    user.0.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    user.receive().unwrap();
    tpm.relay.set_presence(Presence::Gone);
    assert_eq!(user.0.read(&mut [0]).unwrap(), 0, "closed");
    assert!(User::connect(&tpm).pcr(0).is_err());
    tpm.relay.set_presence(Presence::Here);
    User::connect(&tpm).pcr(0).unwrap();
}

struct Meddler;

impl Tap for Meddler {
    fn on_command(&self, command: &Frame) -> Verdict {
        match command.code {
            wire::code::SIGN => Verdict::Answer(wire::answer(wire::rc::LOCKOUT)),
            wire::code::QUOTE => Verdict::CloseConnection,
            wire::code::CERTIFY => Verdict::Replace(read_command(1)),
            _ => Verdict::Forward,
        }
    }

    fn on_response(&self, command: &Frame, response: &[u8]) -> OnResponse {
        match command.code {
            wire::code::GET_CAPABILITY => OnResponse::ReplaceAndClose(response[..12].to_vec()),
            wire::code::PCR_READ => OnResponse::Replace(wire::answer(wire::rc::FAILURE)),
            _ => OnResponse::Deliver,
        }
    }
}

#[test]
fn a_tap_answers_replaces_tears_and_closes() {
    let tpm = TestTpm::blank();
    tpm.relay.set_tap(Some(Arc::new(Meddler)));
    tpm.relay.record(Recording::Order);
    let mut user = User::connect(&tpm);
    let command = |code: u32| {
        let mut bytes = wire::answer(wire::rc::SUCCESS);
        bytes[6..10].copy_from_slice(&code.to_be_bytes());
        bytes
    };
    assert_eq!(user.ask(&command(wire::code::SIGN)).unwrap(), wire::answer(wire::rc::LOCKOUT));
    assert!(wire::parse_pcr_read(&user.ask(&command(wire::code::CERTIFY)).unwrap()).is_ok());
    assert_eq!(user.ask(&read_command(0)).unwrap(), wire::answer(wire::rc::FAILURE));
    assert!(user.ask(&wire::get_handles(0x8000_0000)).is_err(), "torn");
    assert!(User::connect(&tpm).ask(&command(wire::code::QUOTE)).is_err(), "closed");
    let directions: Vec<_> = tpm.relay.journal().iter().map(|entry| entry.direction).collect();
    use Direction::{FromTpm, FromUser, ToTpm, ToUser};
    assert_eq!(
        directions,
        [FromUser, ToUser, FromUser, ToTpm, FromTpm, ToTpm, FromTpm, ToUser, ToTpm, FromTpm, ToUser, FromUser]
    );
    tpm.relay.set_tap(None);
    User::connect(&tpm).pcr(0).unwrap();
}

#[test]
fn libtss2_reaches_the_tpm_through_the_relay() {
    let tpm = TestTpm::blank();
    let read = std::process::Command::new("tpm2_pcrread").args(["-T", &tpm.address(), "sha256:0"]).output().unwrap();
    assert!(read.status.success(), "{}", String::from_utf8_lossy(&read.stderr));
}

#[test]
fn manufactured_tpms_have_the_certificates_asked_for() {
    for (certificates, indices, persistent) in [
        (EkCert::Rsa2048, vec![0x01C0_0002], vec![0x8101_0001]),
        (EkCert::P384, vec![0x01C0_0016], vec![0x8101_0016]),
        (EkCert::P256, vec![0x01C0_000A], vec![]),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let (swtpm, ca) = Swtpm::manufacture(directory.path(), certificates).unwrap();
        assert!(ca.root().exists() && ca.intermediate().exists());
        let handles = |first: u32| -> Vec<u32> {
            wire::parse_handles(&swtpm.exchange(&wire::get_handles(first)).unwrap()).unwrap()
        };
        assert_eq!(handles(0x01C0_0000), indices, "{certificates:?}");
        assert_eq!(handles(0x8101_0000), persistent, "{certificates:?}");
        swtpm.reset().unwrap();
        assert_eq!(handles(0x01C0_0000), indices, "after a reset");
    }
}

#[test]
fn a_dropped_tpm_leaves_no_process() {
    let tpm = TestTpm::blank();
    let pid = tpm.swtpm.pid().unwrap();
    let process = format!("/proc/{pid}");
    assert!(std::path::Path::new(&process).exists());
    drop(tpm);
    assert!(!std::path::Path::new(&process).exists());
}

#[test]
fn scripted_faults_meet_the_commands_they_are_for() {
    let tpm = TestTpm::blank();
    let script = Script::new();
    tpm.relay.set_tap(Some(Arc::new(script.clone())));
    let read = Some(wire::code::PCR_READ);
    let mut user = User::connect(&tpm);
    let (_, value) = user.pcr(0).unwrap();

    script.fault_after(read, 1, 2, Fault::Code(wire::rc::RETRY));
    user.pcr(0).unwrap();
    for _ in 0..2 {
        assert_eq!(user.ask(&read_command(0)).unwrap(), wire::answer(wire::rc::RETRY));
    }
    user.pcr(0).unwrap();
    script.fault(Some(wire::code::QUOTE), 1, Fault::Close);
    user.pcr(0).unwrap();
    assert_eq!(script.hits(), 2);
    script.clear();

    for fault in [Fault::Delay(Duration::from_millis(50)), Fault::DelayAnswer(Duration::from_millis(50))] {
        script.fault(None, 1, fault);
        let before = BootInstant::now();
        user.pcr(0).unwrap();
        assert!(BootInstant::now().since(before) >= Duration::from_millis(50));
    }
    script.fault(read, 1, Fault::FlipAnswerBit(8 * 61));
    assert_ne!(user.pcr(0).unwrap().1, value);
    script.fault(read, 1, Fault::FlipCommandBit(8 * 5));
    assert_ne!(user.pcr(0).ok().map(|(_, value)| value), Some(value.clone()));
    for fault in [Fault::Truncate(20), Fault::CloseAfter, Fault::Close] {
        script.fault(read, 1, fault);
        assert!(User::connect(&tpm).pcr(0).is_err());
    }
    for fault in [Fault::Drop, Fault::DropAnswer] {
        script.fault(read, 1, fault);
        let mut user = User::connect(&tpm);
        user.send(&read_command(0)).unwrap();
        user.0.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        assert!(user.receive().is_err());
    }
    assert_eq!(user.pcr(0).unwrap().1, value);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_extend_falls_between_a_read_and_its_answer_in_either_order() {
    let tpm = TestTpm::blank();
    let trigger = ExtendDuringRead::new(tpm.relay.handle());
    tpm.relay.set_tap(Some(Arc::new(trigger.clone())));
    for (order, shows) in [(Order::ExtendThenRead, true), (Order::ReadThenExtend, false)] {
        let (_, before) = tpm.read(7).await;
        let (told, telling) = std::sync::mpsc::channel();
        let done = trigger.arm(order, 7, [1; 32], move |at| told.send(at).unwrap());
        let mut user = User::connect(&tpm);
        let sent = BootInstant::now();
        let (_, seen) = tokio::task::spawn_blocking(move || user.pcr(7)).await.unwrap().unwrap();
        let received = BootInstant::now();
        let extended = done.await.unwrap();
        assert_eq!(telling.recv().unwrap(), extended);
        assert!(sent < extended && extended < received);
        let (_, after) = tpm.read(7).await;
        assert_ne!(before, after);
        assert_eq!(seen, if shows { after } else { before }, "{order:?}");
    }
}
