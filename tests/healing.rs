//! What a node gets over by itself, and what is not lost on the way.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod bench;

use bench::world::{Node, Server, holds_svid};
use leasehold::clock::BootInstant;

/// `join` beside a running agent would enrol against it: it is refused and changes nothing.
#[tokio::test(flavor = "multi_thread")]
async fn join_beside_a_running_agent_is_refused() {
    let server = Server::start("");
    let mut node = Node::boot(&server).await;
    node.settle(&server).await;
    let output = node.run_agent(&["join"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("another leasehold-agent uses this state directory"), "{said}");
    assert!(holds_svid(&node.status().unwrap()));
}

/// A state directory from before the last enrolment (a snapshot, a restored backup) heals.
#[tokio::test(flavor = "multi_thread")]
async fn an_older_enrolment_on_disk_heals() {
    let server = Server::start("");
    let mut node = Node::boot(&server).await;
    let id = node.settle(&server).await;
    node.agent.take().unwrap().terminate();
    let kept = node.path("state/enrolment.cbor");
    let older = std::fs::read(&kept).unwrap();
    for _ in 0..3 {
        assert!(node.run_agent(&["join"]).status.success());
    }
    std::fs::write(&kept, older).unwrap();
    node.start();
    let status = node.until(holds_svid).await;
    assert_eq!(status["node"], id.as_str());
}

/// A revocation while the event stream is down is heard as soon as it is up again, not at the
/// next renewal.
#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_in_a_gap_of_the_event_stream_is_heard() {
    let mut server = Server::start("");
    let mut node = Node::boot(&server).await;
    let id = node.settle(&server).await;
    for _ in 0..2 {
        server.restart();
    }
    server.admin(&["node", "revoke", &id, "--reason", "in the gap"]);
    let revoked = BootInstant::now();
    let status = node.until(|status| status["standing"] == "contraindicated").await;
    println!("heard {:?} after the revocation: {}", BootInstant::now().since(revoked), status["reason"]["code"]);
    assert!(node.fetch().await.is_err());
}

/// A torn or foreign enrolment file is put aside, and the node enrols again.
#[tokio::test(flavor = "multi_thread")]
async fn an_unusable_enrolment_file_is_put_aside() {
    let server = Server::start("");
    let mut node = Node::boot(&server).await;
    let id = node.settle(&server).await;
    node.agent.take().unwrap().kill();
    let kept = node.path("state/enrolment.cbor");
    let whole = std::fs::read(&kept).unwrap();
    for torn in [Vec::new(), whole[..whole.len() / 2].to_vec(), b"not CBOR at all".to_vec()] {
        std::fs::write(&kept, torn).unwrap();
        node.start();
        assert_eq!(node.until(holds_svid).await["node"], id.as_str());
        node.agent.take().unwrap().kill();
        assert!(node.path("state/enrolment.cbor.unusable").exists());
    }
}

/// A lease that ended on the server's side only (a restored store, say) is replaced as soon as the
/// issuer says so: the agent doesn't go on asking under it to the term's end.
#[tokio::test(flavor = "multi_thread")]
async fn a_lease_the_server_has_ended_is_replaced_at_the_next_fetch() {
    for why in ["verify.clock", "protocol.epoch"] {
        let server = Server::start("[terms]\nsvid_seconds = 4\n");
        let mut node = Node::boot(&server).await;
        node.settle(&server).await;
        let before = node.status().unwrap()["lease"]["sequence"].as_u64();
        let store = rusqlite::Connection::open(server.path("state/store.db")).unwrap();
        store.busy_timeout(std::time::Duration::from_secs(10)).unwrap();
        assert_eq!(store.execute("UPDATE leases SET ended_code = ?1", [why]).unwrap(), 1);
        drop(store);
        node.until(|status| holds_svid(status) && status["lease"]["sequence"].as_u64() > before).await;
        assert!(server.decided().iter().any(|what| what == "issuer.no_lease" || what == "protocol.epoch"));
    }
}

/// Reference values that are retired under a live lease withdraw: open streams end with a denial.
#[tokio::test(flavor = "multi_thread")]
async fn retired_reference_values_withdraw() {
    use futures_util::StreamExt;

    let server = Server::start("");
    let mut node = Node::boot(&server).await;
    let id = node.settle(&server).await;
    let api = node.client().await;
    let mut stream = Box::pin(api.stream_x509_svids().await.unwrap());
    stream.next().await.unwrap().unwrap();
    server.admin(&["reference", "retire", "--node", &id]);
    let end = tokio::time::timeout(bench::world::PATIENCE, stream.next()).await.unwrap();
    assert!(format!("{end:?}").contains("NoIdentityIssued"), "{end:?}");
    let status = node.until(|status| status["standing"] == "contraindicated").await;
    assert_eq!(status["reason"]["code"], "verify.no_reference");
    server.admin(&["reference", "learn", "--node", &id, "--yes"]);
    node.until(holds_svid).await;
}
