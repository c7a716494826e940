//! The product's main job, end to end on real parts: TPM, agent, control plane, stock client.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod bench;

use bench::world::{Node, Server, TRUST_DOMAIN, holds_svid};
use futures_util::StreamExt;
use leasehold::clock::BootInstant;
use std::time::Duration;

/// A client gets its SVID while the measurements hold, and is refused from the moment they don't.
#[tokio::test(flavor = "multi_thread")]
async fn released_under_a_lease_and_refused_after_a_drift() {
    let server = Server::start("");
    let mut node = Node::boot(&server).await;
    node.settle(&server).await;

    let svid = node.fetch().await.unwrap();
    assert_eq!(svid.spiffe_id().to_string(), format!("spiffe://{TRUST_DOMAIN}/app"));

    let extended = node.tpm.extend(7, [0xD1; 32]).await;
    let refused = node.fetch().await.unwrap_err();
    println!("refused {:?} after the extend: {refused}", BootInstant::now().since(extended));
    assert!(
        refused.to_string().contains("no identity issued") || format!("{refused:?}").contains("NoIdentityIssued"),
        "{refused:?}"
    );

    let (_, found) = node.tpm.read(7).await;
    let status = node.until(|status| status["standing"] == "contraindicated").await;
    let difference = &status["differences"][0];
    assert_eq!(difference["pcr"], 7);
    assert_eq!(difference["found"].as_str().unwrap(), hex::encode(found));
    assert_ne!(difference["found"], difference["expected"]);
    assert_eq!(node.run_agent(&["status"]).status.code(), Some(4));
    assert_eq!(node.run_agent(&["doctor"]).status.code(), Some(4));
}

/// What was learnt anew is affirmed without a restart: the control plane pushes "attest now".
#[tokio::test(flavor = "multi_thread")]
async fn learning_the_new_state_heals_a_drifted_node() {
    let server = Server::start("");
    let mut node = Node::boot(&server).await;
    let id = node.settle(&server).await;
    node.tpm.extend(4, [0xD2; 32]).await;
    // The differences come with the control plane's own verdict: the drifted quote has arrived.
    node.until(|status| status["reason"]["code"] == "verify.pcr_mismatch").await;
    server.admin(&["reference", "learn", "--node", &id, "--yes"]);
    node.until(holds_svid).await;
    node.fetch().await.unwrap();
}

/// Handed over, an owner's workloads go on; when nobody answers for them any more, their streams end and
/// nothing is released, within 5 s.
#[tokio::test(flavor = "multi_thread")]
async fn an_owner_who_leaves_takes_their_identities_along() {
    let server = Server::start("");
    let mut node = Node::boot(&server).await;
    node.settle(&server).await;
    let id = format!("spiffe://{TRUST_DOMAIN}/app");
    let live = || server.json(&["workload", "show", &id])["credentials"].as_array().unwrap().len();
    server.admin(&["owner", "add", "team-b"]);
    let handed = server.json(&["owner", "retire", "team-a", "--to", "team-b", "--reason", "merged"]);
    assert_eq!(handed["reassigned"][0], id);
    // Under the new owner it is issued anew.
    node.until(|status| status["workloads"][0]["owner"] == "team-b" && holds_svid(status)).await;
    node.fetch().await.unwrap();
    assert_eq!(live(), 1);

    let client = node.client().await;
    let mut stream = client.stream_x509_contexts().await.unwrap();
    assert!(stream.next().await.unwrap().is_ok());
    let left = BootInstant::now();
    let retired = server.json(&["owner", "retire", "team-b", "--reason", "left"]);
    assert_eq!((&retired["suspended"][0], &retired["nodes_told"]), (&id.clone().into(), &1.into()));
    assert_eq!(live(), 0);
    let ended = tokio::time::timeout(Duration::from_secs(50), async { while let Some(Ok(_)) = stream.next().await {} });
    ended.await.expect("the stream goes on");
    println!("owner retired: the open stream ended after {:?} (promised: 5 s)", BootInstant::now().since(left));
    assert!(node.fetch().await.is_err());
    let decided = server.decided();
    let place = |what: &str| decided.iter().rposition(|found| found == what).unwrap();
    assert!(place("owner.retired") < place("credential.revoked"), "{decided:?}");
}

/// A caller that no registration matches gets nothing, whatever the node's standing.
#[tokio::test(flavor = "multi_thread")]
async fn a_caller_without_registration_is_denied() {
    let server = Server::start("");
    let mut node = Node::boot(&server).await;
    node.start();
    let id = node.admit(&server).await;
    server.admin(&["reference", "learn", "--node", &id, "--yes"]);
    server.admin(&[
        "workload",
        "add",
        "--id",
        "spiffe://example.org/other",
        "--owner",
        "team-a",
        "--purpose",
        "tests",
        "--node",
        &id,
        "--selector",
        "unix:uid:4242",
    ]);
    node.until(holds_svid).await;
    let refused = node.fetch().await.unwrap_err();
    assert!(format!("{refused:?}").contains("NoIdentityIssued"), "{refused:?}");
}

/// A revoked node's streams end within the pushed bound, and it gets nothing more.
#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_node_is_closed_at_once() {
    use futures_util::StreamExt;

    let server = Server::start("");
    let mut node = Node::boot(&server).await;
    let id = node.settle(&server).await;
    let client = node.client().await;
    let mut stream = Box::pin(client.stream_x509_contexts().await.unwrap());
    stream.next().await.unwrap().unwrap();
    let revoked = BootInstant::now();
    server.admin(&["node", "revoke", &id, "--reason", "test"]);
    let end = tokio::time::timeout(Duration::from_secs(20), stream.next()).await.unwrap();
    println!("the stream ended {:?} after the command began: {end:?}", BootInstant::now().since(revoked));
    assert!(matches!(end, Some(Err(_)) | None));
    assert!(node.fetch().await.is_err());
    node.until(|status| status["standing"] == "contraindicated").await;
}

/// The lease is renewed and the SVID rotated by themselves, pushed on the open stream.
#[tokio::test(flavor = "multi_thread")]
async fn rotation_is_pushed_at_half_life() {
    use futures_util::StreamExt;

    let server = Server::start("[terms]\nlease_seconds = 6\nsvid_seconds = 4\n");
    let mut node = Node::boot(&server).await;
    node.settle(&server).await;
    let client = node.client().await;
    let mut stream = Box::pin(client.stream_x509_svids().await.unwrap());
    let mut serials = Vec::new();
    while serials.len() < 4 {
        let svid = tokio::time::timeout(Duration::from_secs(30), stream.next()).await.unwrap().unwrap().unwrap();
        serials.push(svid.leaf().as_bytes().to_vec());
    }
    serials.sort();
    serials.dedup();
    assert_eq!(serials.len(), 4, "each push is a new SVID");
}
