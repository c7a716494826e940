//! kill -9 at random points, 100 of the agent and 100 of the control plane: both come back by
//! themselves, nothing enrols again, no registration is lost, and the oracle objects to nothing.
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

use bench::check::{Rules, check};
use bench::oracle::{Oracle, Status, What};
use bench::world::{Node, Server, boot_extends, holds_svid};
use leasehold::clock::BootInstant;
use leasehold::control_plane::dev::wire;
use spiffe::WorkloadApiClient;

const KILLS: u32 = 100;

#[tokio::test(flavor = "multi_thread")]
async fn the_agent_is_killed_100_times() {
    let server = Server::start("[terms]\nlease_seconds = 20\n");
    let mut node = Node::boot(&server).await;
    let oracle = Oracle::default();
    let measured_at = BootInstant::now();
    let id = node.settle(&server).await;
    oracle.record(What::LeaseGranted { measured_at, expires_at: measured_at.after(Duration::from_secs(3_600)) });
    let stop = Arc::new(AtomicBool::new(false));
    let client = tokio::spawn(fetch_through_kills(node.endpoint(), oracle.clone(), stop.clone()));

    let mut recoveries = Vec::new();
    for kill in 0..KILLS {
        // From the first instructions of a start to the middle of steady state.
        tokio::time::sleep(random_up_to(Duration::from_millis(600))).await;
        node.agent.take().unwrap().kill();
        let drift = kill % 10 == 9;
        if drift {
            let at = node.tpm.extend(11, [0xAB; 32]).await;
            oracle.record_at(at, What::Extended { pcr: 11 });
        }
        node.start();
        if drift {
            node.until(|status| status["standing"] == "contraindicated").await;
            tokio::time::sleep(Duration::from_millis(200)).await;
            // Back to the approved state the only way there is: a reset and the same boot.
            let at = node.tpm.relay.reset(boot_extends()).await.unwrap();
            oracle.record_at(at, What::Reset);
            let measured_at = BootInstant::now();
            oracle
                .record(What::LeaseGranted { measured_at, expires_at: measured_at.after(Duration::from_secs(3_600)) });
        } else if kill % 3 == 0 {
            // Another kill comes before it has recovered.
            continue;
        }
        let since = BootInstant::now();
        node.until(holds_svid).await;
        recoveries.push(BootInstant::now().since(since));
    }
    node.until(holds_svid).await;
    node.fetch().await.unwrap();
    stop.store(true, Ordering::Relaxed);
    let requests = client.await.unwrap();

    oracle.record(What::Closed);
    // A killed agent's streams just end; their clients see it as unavailable, which is no denial.
    assert_eq!(
        check(
            &oracle.events(),
            &Rules { local: Duration::from_secs(10), settle: Duration::from_secs(100), ..Rules::default() }
        ),
        []
    );
    assert_eq!(server.json(&["node", "show", &id])["id"], id.as_str());
    let admissions = server.decided().iter().filter(|what| what.starts_with("node.admitted")).count();
    assert_eq!(admissions, 1, "no re-enrolment");
    let lockout = node.tpm.relay.exchange(&wire::get_dictionary_attack()).await.unwrap();
    assert_eq!(wire::parse_dictionary_attack(&lockout.response).unwrap().failures, 0, "noDA: no failure is counted");
    recoveries.sort();
    println!(
        "{KILLS} kills of the agent, {requests} requests meanwhile, 0 violations; from start to SVID median {:?}, maximum {:?}",
        recoveries[recoveries.len() / 2],
        recoveries[recoveries.len() - 1]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_control_plane_is_killed_100_times() {
    // A short lease, so that there is an attestation near every point.
    let mut server = Server::start("[terms]\nlease_seconds = 4\n");
    let mut node = Node::boot(&server).await;
    let oracle = Oracle::default();
    let measured_at = BootInstant::now();
    let id = node.settle(&server).await;
    oracle.record(What::LeaseGranted { measured_at, expires_at: measured_at.after(Duration::from_secs(3_600)) });
    let stop = Arc::new(AtomicBool::new(false));
    let client = tokio::spawn(fetch_through_kills(node.endpoint(), oracle.clone(), stop.clone()));

    let mut acknowledged = Vec::new();
    let mut recoveries = Vec::new();
    for kill in 0..KILLS {
        // Registrations go on while it is killed: what was acknowledged must be there afterwards.
        let path = format!("spiffe://example.org/kill/{kill}");
        let arguments = [
            "workload",
            "add",
            "--id",
            &path,
            "--owner",
            "team-a",
            "--purpose",
            "tests",
            "--node",
            &id,
            "--selector",
            "unix:uid:4242",
            "--selector",
            &format!("unix:gid:{kill}"),
        ];
        let pause = random_up_to(Duration::from_millis(60));
        let registered = std::thread::scope(|scope| {
            let adding = scope.spawn(|| server.try_admin(&arguments).status.success());
            std::thread::sleep(pause);
            let pid = rustix::process::Pid::from_raw(server.process.as_ref().unwrap().id().cast_signed()).unwrap();
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
            adding.join().unwrap()
        });
        if registered {
            acknowledged.push(path);
        }
        let since = BootInstant::now();
        server.launch();
        if kill % 3 == 0 {
            // Killed again while it starts.
            tokio::time::sleep(random_up_to(Duration::from_millis(300))).await;
            server.launch();
        }
        server.wait_ready();
        recoveries.push(BootInstant::now().since(since));
        tokio::time::sleep(random_up_to(Duration::from_millis(400))).await;
    }
    node.until(holds_svid).await;
    node.fetch().await.unwrap();
    stop.store(true, Ordering::Relaxed);
    let requests = client.await.unwrap();
    oracle.record(What::Closed);
    assert_eq!(
        check(
            &oracle.events(),
            &Rules { local: Duration::from_secs(10), settle: Duration::from_secs(100), ..Rules::default() }
        ),
        []
    );
    let listed = server.json(&["workload", "list"]).to_string();
    for id in &acknowledged {
        assert!(listed.contains(&format!("\"{id}\"")), "{id} was acknowledged and is lost");
    }
    let admissions = server.decided().iter().filter(|what| what.starts_with("node.admitted")).count();
    assert_eq!(admissions, 1, "no re-enrolment");
    recoveries.sort();
    println!(
        "{KILLS} kills of the control plane, {} of {KILLS} registrations acknowledged and kept, {requests} requests meanwhile, 0 violations; back after median {:?}, maximum {:?}",
        acknowledged.len(),
        recoveries[recoveries.len() / 2],
        recoveries[recoveries.len() - 1]
    );
}

/// Fetches until told to stop, connecting anew whenever the agent was killed.
async fn fetch_through_kills(endpoint: String, oracle: Oracle, stop: Arc<AtomicBool>) -> u64 {
    let mut request = 0;
    while !stop.load(Ordering::Relaxed) {
        let Ok(api) = WorkloadApiClient::connect_to(&endpoint).await else {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        for _ in 0..10 {
            oracle.record(What::RequestSent { client: 0, request });
            match api.fetch_x509_svid().await {
                Ok(_) => {
                    oracle.record(What::Released { client: 0, request });
                    oracle.record(What::StreamEnded { client: 0, request, status: Status::Cancelled });
                    request += 1;
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                Err(error) => {
                    let status = match error {
                        spiffe::WorkloadApiError::NoIdentityIssued => Status::Denied,
                        _ => Status::Unavailable,
                    };
                    oracle.record(What::Refused { client: 0, request, status });
                    request += 1;
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    break;
                }
            }
        }
    }
    request
}

fn random_up_to(most: Duration) -> Duration {
    let [byte, fine] = leasehold::secret::random::<2>().unwrap();
    most * (u32::from(byte) * 256 + u32::from(fine)) / 65_536
}
