//! What things cost at the TPM, counted by the relay between agent and TPM, and what crosses it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod bench;

use std::time::Duration;

use bench::TestTpm;
use bench::world::{Node, Server, holds_svid};
use leasehold::clock::BootInstant;
use leasehold::control_plane::dev::{Direction, Recording, wire};
use leasehold::identity::TrustDomain;
use leasehold::tpm::structures::Public;
use leasehold::tpm::{Tpm, TpmAddress};
use leasehold::verify::credential;

/// The commands of the journal so far, by name, in order.
fn commands(node: &Node) -> Vec<String> {
    let entries = node.tpm.relay.take_journal();
    entries
        .iter()
        .filter(|entry| entry.user != 0 && entry.direction == Direction::ToTpm)
        .map(|entry| wire::name(entry.command))
        .collect()
}

/// Waits until nothing has crossed the relay for a while.
async fn quiet(node: &Node) {
    let mut before = usize::MAX;
    loop {
        let now = node.tpm.relay.journal().len();
        if now == before {
            return;
        }
        before = now;
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

/// Steady-state attestation takes at most four TPM commands; the other counts are printed.
#[tokio::test(flavor = "multi_thread")]
async fn tpm_commands_are_counted() {
    let mut server = Server::start("[terms]\nlease_seconds = 12\nsvid_seconds = 3600\n");
    // The watcher rests, so that every command counted belongs to what is counted.
    let mut node = Node::boot_with(&server, TestTpm::blank(), "[watch]\ninterval_ms = 60000\n").await;
    node.tpm.relay.record(Recording::Order);
    node.start();
    let id = node.admit(&server).await;
    quiet(&node).await;
    let enrolment = commands(&node);
    println!("start and enrolment, {} commands: {enrolment:?}", enrolment.len());

    server.admin(&["reference", "learn", "--node", &id, "--yes"]);
    node.register(&server, &id, "app");
    node.until(holds_svid).await;
    recorded(&node).await;
    quiet(&node).await;
    commands(&node);

    let before = requests(&server);
    let sequence = node.status().unwrap()["lease"]["sequence"].as_u64().unwrap();
    node.until(|status| status["lease"]["sequence"].as_u64() > Some(sequence)).await;
    let attestation = commands(&node);
    let after = requests(&server);
    println!("steady-state attestation, {} commands: {attestation:?}", attestation.len());
    assert!(attestation.len() <= 4, "{attestation:?}");
    assert_eq!(attestation.iter().filter(|name| *name == "TPM2_Quote").count(), 1);
    assert_eq!(attestation.iter().filter(|name| *name == "TPM2_Sign").count(), 1);
    assert_eq!(attestation.iter().filter(|name| *name == "TPM2_PCR_Read").count(), attestation.len() - 2);
    let trips: Vec<_> = after.iter().filter(|(route, count)| before.get(*route) != Some(count)).collect();
    println!("requests since: {trips:?}");
    assert_eq!(after["/v1/attest"], before["/v1/attest"] + 1, "one round trip");
    assert_eq!(after["/v1/nonce"], before["/v1/nonce"], "the nonce came with the last answer");

    let api = node.client().await;
    commands(&node);
    api.fetch_x509_svid().await.unwrap();
    let release = commands(&node);
    println!("a release, {} commands: {release:?}", release.len());
    assert!(release.iter().filter(|name| *name == "TPM2_PCR_Read").count() == 1);
    assert_eq!(count(&release, "TPM2_Sign"), 0, "a release asks for no signature");
    // Its record's head is signed later, together with whatever else is new.
    for _ in 0..20 {
        api.fetch_x509_svid().await.unwrap();
    }
    recorded(&node).await;
    let heads = count(&commands(&node), "TPM2_Sign");
    println!("the records of 21 releases, {heads} TPM2_Sign");
    assert!((1..=2).contains(&heads), "{heads} signatures");

    // The connection breaks; the agent makes another one, and attests over it.
    server.kill();
    commands(&node);
    server.restart();
    let since = BootInstant::now();
    let mut reconnected = Vec::new();
    let attested = ["TPM2_Quote".to_owned(), "TPM2_Sign".to_owned()];
    // Evidence that was gathered while there was no connection comes first; wait for what came after one.
    while !reconnected.ends_with(&attested) || count(&reconnected, "TPM2_Sign") == count(&reconnected, "TPM2_Quote") {
        assert!(BootInstant::now().since(since) < Duration::from_secs(100), "the agent doesn't connect again");
        tokio::time::sleep(Duration::from_millis(20)).await;
        reconnected.extend(commands(&node));
    }
    // Evidence takes one signature for each quote; what is left was for TLS.
    let for_tls = count(&reconnected, "TPM2_Sign") - count(&reconnected, "TPM2_Quote");
    println!("a new TLS connection, {for_tls} TPM2_Sign, and the attestation over it: {reconnected:?}");
    assert_eq!(for_tls, 1, "{reconnected:?}");
}

/// Waits until the head of everything recorded so far is signed and delivered; that asks for a signature at most
/// every 5 s, at any time.
async fn recorded(node: &Node) {
    node.until(|status| {
        let journal = &status["journal"];
        journal["signed"] == journal["number"] && journal["acknowledged"] == journal["number"]
    })
    .await;
}

fn count(commands: &[String], wanted: &str) -> usize {
    commands.iter().filter(|name| *name == wanted).count()
}

/// Requests the server has answered, by route, from its metrics.
fn requests(server: &Server) -> std::collections::BTreeMap<String, u64> {
    let mut counts = std::collections::BTreeMap::from([("/v1/attest".to_owned(), 0), ("/v1/nonce".to_owned(), 0)]);
    for line in server.metrics().lines() {
        if let Some((route, count)) =
            line.strip_prefix("leasehold_server_requests_total{route=\"").and_then(|rest| rest.split_once("\"} "))
        {
            counts.insert(route.to_owned(), count.parse().unwrap());
        }
    }
    counts
}

/// Nothing that is secret crosses the way to the TPM in the clear: not the activated secret, not
/// a workload's key.
#[tokio::test(flavor = "multi_thread")]
async fn no_planted_secret_is_in_the_recorded_frames() {
    let server = Server::start("[terms]\nlease_seconds = 4\nsvid_seconds = 3\n");
    let tpm = TestTpm::blank();
    let relay = tpm.relay.handle();
    relay.record(Recording::Frames);
    let mut node = Node::boot_with(&server, tpm, "").await;
    node.settle(&server).await;
    let mut secrets = Vec::new();
    for _ in 0..5 {
        let svid = node.fetch().await.unwrap();
        let key = svid.private_key().as_bytes().to_vec();
        // The scalar itself: a PKCS#8 P-256 key has it after `04 20`.
        let at = key.windows(2).position(|pair| pair == [0x04, 0x20]).unwrap();
        secrets.push(key[at + 2..at + 34].to_vec());
        tokio::time::sleep(Duration::from_millis(700)).await;
    }
    node.agent.take().unwrap().terminate();

    // The same TPM, activating a credential whose secret the test has chosen.
    let address = TpmAddress::parse(&relay.address()).unwrap();
    let (handle, thread) =
        Tpm::spawn(address, Duration::from_secs(20), &TrustDomain::new("example.org").unwrap()).unwrap();
    let identity = handle.identity().await.unwrap();
    let ek = Public::parse(&identity.ek.public).unwrap();
    let ak = Public::parse(&identity.ak_public).unwrap();
    let canary = *b"CANARY-of-a-secret-in-32-bytes!!";
    let (credential, encrypted) = credential::make(&ek, &ak.name(), &canary).unwrap();
    assert_eq!(handle.activate(credential, encrypted).await.unwrap().as_slice(), canary);
    thread.stop(Duration::from_secs(5)).unwrap();
    secrets.push(canary.to_vec());

    let frames = relay.take_journal();
    assert!(frames.len() > 50, "{} frames are too few to show anything", frames.len());
    // What is no secret is found, so the search can find.
    let name = &ak.name()[2..];
    assert!(frames.iter().any(|frame| contains(&frame.bytes, name)), "the AK's name crosses the relay");
    for frame in &frames {
        for secret in &secrets {
            assert!(!contains(&frame.bytes, secret), "{} carries a secret", wire::name(frame.command));
            assert!(!contains(&frame.bytes, &secret[..16]), "{} carries half of a secret", wire::name(frame.command));
        }
    }
    println!("{} frames, {} planted secrets, none found", frames.len(), secrets.len());
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}
