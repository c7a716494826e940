//! Power cuts and broken lines between the steps of a revocation.

use std::time::Duration;

use leasehold::clock::BootInstant;

use crate::bench::world::{PATIENCE, Server, holds_svid};
use crate::hundred::{Agent, counts, register, until};

/// The server dies after it committed a revocation and before any of it reached a node: what it sends waits on
/// a line that never delivers it.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_killed_before_its_push_arrives_tells_it_after_its_start() {
    let mut server = Server::start("");
    let id = register(&server);
    let agent = Agent::settle(&server).await;
    agent.wire.hold_down();
    let revoked = server.json(&["revoke", "workload", &id, "--reason", "a leak"]);
    server.kill();
    assert!(agent.node.fetch().await.is_ok(), "the agent can't know of it yet");
    agent.wire.mend();
    server.restart();
    let number = revoked["revocation"].as_u64().unwrap();
    let shown = until(&server, number, |shown| counts(shown) == [1, 1, 1]).await;
    // This process didn't see the command: how long it took isn't made up.
    assert!(shown["parts"][0]["acknowledged"].is_string() && shown["parts"][0]["acknowledged_ms"].is_null());
    assert!(agent.node.fetch().await.is_err());
    // Resumed, it is decided anew.
    server.admin(&["workload", "resume", &id]);
    agent.node.until(holds_svid).await;
    assert!(agent.node.fetch().await.is_ok());
}

/// The agent dies after it applied a withdrawal and before its acknowledgement arrives.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_killed_before_it_acknowledged_does_it_after_its_start() {
    let server = Server::start("");
    let id = register(&server);
    let mut agent = Agent::settle(&server).await;
    agent.wire.hold_up();
    let revoked = server.json(&["revoke", "workload", &id, "--reason", "a leak"]);
    let number = revoked["revocation"].as_u64().unwrap();
    let since = BootInstant::now();
    while agent.node.fetch().await.is_ok() {
        assert!(BootInstant::now().since(since) < PATIENCE, "it applies what it hears");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    agent.node.agent.take().unwrap().kill();
    let shown = server.json(&["revocation", "show", &number.to_string()]);
    assert_eq!(counts(&shown), [1, 0, 0], "told is not acknowledged");
    agent.wire.mend();
    agent.node.start();
    until(&server, number, |shown| counts(shown) == [1, 1, 1]).await;
    assert!(agent.node.fetch().await.is_err(), "nothing came back with the restart");
}

/// One that is away hears of it when it is back, also in the answer to its attestation.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_off_hears_of_it_when_it_is_back() {
    let server = Server::start("");
    let id = register(&server);
    let mut agent = Agent::settle(&server).await;
    agent.node.agent.take().unwrap().kill();
    let revoked = server.json(&["revoke", "workload", &id, "--reason", "a leak"]);
    let number = revoked["revocation"].as_u64().unwrap();
    assert_eq!(revoked["listening"].as_u64().unwrap(), 0, "its connection ended with it");
    agent.node.start();
    until(&server, number, |shown| counts(shown) == [1, 1, 1]).await;
    // Told over its stream, it may have proven that with the very evidence that it gets its lease on.
    agent.node.until(|status| status["standing"] == "affirming").await;
    let refused = agent.node.fetch().await.unwrap_err();
    assert!(format!("{refused:?}").contains("NoIdentityIssued"), "{refused:?}");
}

/// A credential alone: its holder goes on with another one, by another decision.
#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_credential_is_replaced_and_a_revoked_node_gets_none() {
    let server = Server::start("");
    let id = register(&server);
    let agent = Agent::settle(&server).await;
    let first = agent.node.fetch().await.unwrap();
    let serial = serial(&first);
    let revoked = server.json(&["revoke", "svid", &serial, "--reason", "a leak", "--wait", "30"]);
    assert_eq!((revoked["nodes"].as_u64(), revoked["acknowledged"].as_u64()), (Some(1), Some(1)));
    let since = BootInstant::now();
    let second = loop {
        if let Ok(svid) = agent.node.fetch().await {
            break svid;
        }
        assert!(BootInstant::now().since(since) < PATIENCE, "another one is issued");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_ne!(self::serial(&second), serial);
    let live = server.json(&["workload", "show", &id])["credentials"].clone();
    assert!(live.as_array().unwrap().iter().all(|one| one["id"] != serial.as_str()), "{live}");

    let began = BootInstant::now();
    let revoked = server.json(&["revoke", "node", &agent.id, "--reason", "stolen", "--wait", "30"]);
    println!("`revoke node --wait` took {:?}", BootInstant::now().since(began));
    // A revoked node may say that it stopped; it can't prove anything any more.
    assert_eq!(counts(&revoked), [1, 1, 0]);
    agent.node.until(|status| status["standing"] == "contraindicated").await;
    assert!(agent.node.fetch().await.is_err());
}

/// The serial number of an SVID's leaf.
fn serial(svid: &spiffe::X509Svid) -> String {
    let leaf = <x509_cert::Certificate as der::Decode>::from_der(svid.leaf().as_bytes()).unwrap();
    hex::encode(leaf.tbs_certificate().serial_number().as_bytes())
}
