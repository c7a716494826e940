//! Promise 2, tried to be broken: PCRs are extended at random moments, half of them between a PCR
//! read's request and its answer, while clients fetch and hold streams. The oracle sees each
//! extend's answer at the TPM and each release at a client, on one clock.
//!
//! Four tests of 25 rounds each, so that they run side by side; a fresh TPM for each round.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod bench;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bench::check::{Rules, check, stream_end_delays};
use bench::faults::{ExtendDuringRead, Order};
use bench::oracle::{Oracle, Status, What};
use bench::world::{Node, Server};
use futures_util::StreamExt;
use leasehold::clock::BootInstant;
use spiffe::WorkloadApiClient;

const ROUNDS: u32 = 25;
const CLIENTS: u32 = 8;
const STREAMS: u32 = 2;

/// No round ends before each client has had this many answers.
const REQUESTS_EACH: u64 = 14;

/// The promise is 1 s. A test bounds it at ten times that, so that only a broken promise fails and
/// never a slow machine; the figures are printed.
const RULES: Rules =
    Rules { local: Duration::from_secs(10), pushed: Duration::from_secs(20), settle: Duration::from_secs(100) };

/// The PCRs of the default selection: a random one is extended.
const SELECTED: [u8; 14] = [0, 1, 2, 3, 4, 5, 6, 7, 9, 11, 12, 13, 14, 15];

#[tokio::test(flavor = "multi_thread")]
async fn no_release_after_an_extend_was_answered_1() {
    rounds(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_release_after_an_extend_was_answered_2() {
    rounds(2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_release_after_an_extend_was_answered_3() {
    rounds(3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_release_after_an_extend_was_answered_4() {
    rounds(4).await;
}

async fn rounds(part: u32) {
    let server = Server::start("");
    let (mut requests, mut refusals, mut delays) = (0, 0, Vec::new());
    for round in 0..ROUNDS {
        let oracle = Oracle::default();
        one_round(&server, &oracle, round).await;
        let events = oracle.events();
        let violations = check(&events, &RULES);
        if !violations.is_empty() {
            let log = std::env::temp_dir().join(format!("freshness-{part}-{round}.jsonl"));
            oracle.dump(&log).unwrap();
            panic!("round {round}: {violations:#?}\nthe oracle's log is in {}", log.display());
        }
        requests += events.iter().filter(|e| matches!(e.what, What::RequestSent { .. })).count();
        refusals += events.iter().filter(|e| matches!(e.what, What::Refused { .. })).count();
        let ended = stream_end_delays(&events);
        assert!(ended.len() >= STREAMS as usize, "round {round}: {} of {STREAMS} streams ended", ended.len());
        delays.extend(ended);
    }
    delays.sort();
    println!(
        "part {part}: {ROUNDS} rounds, {requests} requests, {refusals} refused, 0 violations; {} streams ended, median {:?}, maximum {:?} after the extend's answer",
        delays.len(),
        delays[delays.len() / 2],
        delays[delays.len() - 1],
    );
    assert!(requests >= 2_500, "{requests} requests are too few to show anything");
}

async fn one_round(server: &Server, oracle: &Oracle, round: u32) {
    let mut node = Node::boot(server).await;
    let measured_at = BootInstant::now();
    node.settle_as(server, &format!("round-{round}")).await;
    oracle.record(What::LeaseGranted { measured_at, expires_at: measured_at.after(Duration::from_secs(600)) });

    let stop = Arc::new(AtomicBool::new(false));
    let mut tasks = Vec::new();
    for client in 0..CLIENTS {
        let (api, oracle, stop) = (node.client().await, oracle.clone(), stop.clone());
        tasks.push(tokio::spawn(fetch_in_a_loop(api, oracle, client, stop)));
    }
    let mut streams = Vec::new();
    for client in CLIENTS..CLIENTS + STREAMS {
        streams.push(tokio::spawn(hold_a_stream(node.client().await, oracle.clone(), client)));
    }

    let [moment, pick, fill, _] = leasehold::secret::random::<4>().unwrap();
    tokio::time::sleep(Duration::from_millis(150 + u64::from(moment) * 2)).await;
    let pcr = SELECTED[usize::from(pick) % SELECTED.len()];
    let digest = [fill; 32];
    if round.is_multiple_of(2) {
        let at = node.tpm.extend(pcr, digest).await;
        oracle.record_at(at, What::Extended { pcr });
    } else {
        let order = if round % 4 == 1 { Order::ExtendThenRead } else { Order::ReadThenExtend };
        let tap = ExtendDuringRead::new(node.tpm.relay.handle());
        node.tpm.relay.set_tap(Some(Arc::new(tap.clone())));
        let log = oracle.clone();
        tap.arm(order, pcr, digest, move |at| log.record_at(at, What::Extended { pcr })).await.unwrap();
    }
    // Each ends by itself, or is given up after the bound, which the checker objects to.
    for stream in streams {
        stream.await.unwrap();
    }
    // Requests go on for a while into the drift.
    tokio::time::sleep(Duration::from_millis(500)).await;
    stop.store(true, Ordering::Relaxed);
    for task in tasks {
        task.await.unwrap();
    }
    oracle.record(What::Closed);
}

async fn fetch_in_a_loop(api: WorkloadApiClient, oracle: Oracle, client: u32, stop: Arc<AtomicBool>) {
    let mut request = 0;
    while !stop.load(Ordering::Relaxed) || request < REQUESTS_EACH {
        oracle.record(What::RequestSent { client, request });
        match api.fetch_x509_svid().await {
            Ok(_) => {
                oracle.record(What::Released { client, request });
                oracle.record(What::StreamEnded { client, request, status: Status::Cancelled });
            }
            Err(error) => {
                oracle.record(What::Refused { client, request, status: status_of(&error) });
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        request += 1;
    }
}

async fn hold_a_stream(api: WorkloadApiClient, oracle: Oracle, client: u32) {
    oracle.record(What::RequestSent { client, request: 0 });
    let mut stream = match api.stream_x509_contexts().await {
        Ok(stream) => Box::pin(stream),
        Err(error) => {
            oracle.record(What::Refused { client, request: 0, status: status_of(&error) });
            return;
        }
    };
    let mut received = false;
    let status = loop {
        match tokio::time::timeout(RULES.local * 2, stream.next()).await {
            Ok(Some(Ok(_))) => {
                oracle.record(What::Released { client, request: 0 });
                received = true;
            }
            Ok(Some(Err(error))) => break status_of(&error),
            Ok(None) => break Status::Other("end of stream".to_owned()),
            Err(_) => break Status::Cancelled,
        }
    };
    oracle.record(match received {
        true => What::StreamEnded { client, request: 0, status },
        false => What::Refused { client, request: 0, status },
    });
}

fn status_of(error: &spiffe::WorkloadApiError) -> Status {
    match error {
        spiffe::WorkloadApiError::NoIdentityIssued => Status::Denied,
        spiffe::WorkloadApiError::PermissionDenied(_) => Status::Denied,
        other if format!("{other:?}").contains("Unavailable") => Status::Unavailable,
        other => Status::Other(format!("{other:?}")),
    }
}
