//! Away from the control plane: what was released meanwhile arrives afterwards, once, whoever is started again.

use std::time::Duration;

use crate::bench::world::{Node, Server, holds_svid};
use crate::{all_delivered, all_holds, delivered, journal, releases};

#[tokio::test(flavor = "multi_thread")]
async fn what_was_released_offline_arrives_once() {
    let mut server = Server::start("");
    let mut node = Node::boot(&server).await;
    node.settle(&server).await;
    let mut seen = 0;
    for round in 0..4 {
        node.until(holds_svid).await;
        server.kill();
        for _ in 0..5 {
            node.fetch().await.expect("release goes on without the control plane");
            seen += 1;
        }
        // Ended in order, so that every count is on the disk; on the way back both are killed while records travel.
        assert_eq!(node.agent.take().unwrap().terminate(), Some(0));
        assert!(releases(&journal(&node)) > 0);
        server.restart();
        node.start();
        if round % 2 == 1 {
            tokio::time::sleep(Duration::from_millis(900 + 200 * round)).await;
            server.kill();
            node.agent.take().unwrap().kill();
            server.restart();
            node.start();
        }
    }
    node.until(holds_svid).await;
    node.fetch().await.unwrap();
    assert_eq!(node.agent.take().unwrap().terminate(), Some(0));
    node.start();
    all_delivered(&node).await;
    let arrived = delivered(&server);
    assert_eq!(releases(&arrived), seen + 1);
    let numbers: Vec<_> = arrived.iter().map(|record| record["number"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>());
    all_holds(&server, &node);
    println!("{} releases, most of them offline, in {} records, each delivered once", seen + 1, numbers.len());
}

/// Whoever gets nothing any more, and why: counted by user and code, each end with its own.
#[tokio::test(flavor = "multi_thread")]
async fn denials_and_ends_are_recorded() {
    let server = Server::start("");
    let mut node = Node::boot(&server).await;
    let id = node.settle(&server).await;
    let client = node.client().await;
    let mut stream = Box::pin(client.stream_x509_svids().await.unwrap());
    use futures_util::StreamExt;
    stream.next().await.unwrap().unwrap();
    server.admin(&["workload", "remove", "spiffe://example.org/app"]);
    while stream.next().await.is_some_and(|item| item.is_ok()) {}
    node.until(|status| status["workloads"].as_array().is_some_and(Vec::is_empty)).await;
    for _ in 0..20 {
        node.fetch().await.unwrap_err();
    }
    assert_eq!(node.agent.take().unwrap().terminate(), Some(0));
    let kept = journal(&node);
    let ended: Vec<_> = kept.iter().filter(|record| record["what"] == "release.ended").collect();
    // The stream's end, with its process, and the credential's, with its serial number.
    assert!(ended.iter().any(|record| record["process"].is_string()), "{kept:?}");
    assert!(ended.iter().all(|record| record["code"] == "gate.revoked"), "{kept:?}");
    let denied = kept.iter().filter(|record| record["what"] == "credential.denied");
    let (mut records, mut count) = (0, 0);
    for record in denied {
        records += 1;
        count += record["count"].as_u64().unwrap();
        assert_eq!(record["process"], format!("uid {}", rustix::process::geteuid().as_raw()));
    }
    // The stream's last question may be one of them.
    assert!((20..=22).contains(&count), "{kept:?}");
    assert!(records <= 5, "{records} records for {count} denials");
    node.start();
    all_delivered(&node).await;
    let shown = server.admin(&["audit", "tail", "--nodes", "--node", &id[..10], "--what", "credential.denied"]);
    assert_eq!(shown.lines().count(), records, "{shown}");
}
