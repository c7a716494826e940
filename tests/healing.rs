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
