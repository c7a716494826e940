//! Whoever got a credential, it is on the disk: killed right after, torn, changed.

use std::time::Duration;

use leasehold::clock::BootInstant;
use x509_cert::Certificate;
use x509_cert::der::Decode;

use crate::bench::world::{Node, Server, holds_svid};
use crate::{all_delivered, all_holds, delivered, journal, releases};

const KILLS: usize = 50;

/// The agent is killed as soon as a client has its SVID: the record of that SVID is there, each time, and in the
/// end the control plane has each record once.
#[tokio::test(flavor = "multi_thread")]
async fn a_record_is_on_the_disk_before_its_credential_leaves() {
    let server = Server::start("");
    let mut node = Node::boot(&server).await;
    node.settle(&server).await;
    let mut serials = Vec::new();
    for kill in 0..KILLS {
        let client = node.client().await;
        let svid = loop {
            match client.fetch_x509_svid().await {
                Ok(svid) => break svid,
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        };
        node.agent.take().unwrap().kill();
        let leaf = Certificate::from_der(svid.leaf().as_bytes()).unwrap();
        let serial = hex::encode(leaf.tbs_certificate().serial_number().as_bytes());
        let kept = journal(&node);
        let process = format!("process {} of uid", std::process::id());
        let record = kept
            .iter()
            .find(|record| record["what"] == "credential.released" && record["credential"] == serial.as_str())
            .unwrap_or_else(|| panic!("kill {kill}: {serial} was released and isn't recorded"));
        assert!(record["process"].as_str().unwrap().starts_with(&process), "{record}");
        assert!(record["decision"].as_str().is_some_and(|decision| !decision.is_empty()) && record["lease"].is_u64());
        serials.push(serial);
        node.start();
    }
    node.until(holds_svid).await;
    all_delivered(&node).await;
    let arrived = delivered(&server);
    let mut numbers: Vec<u64> = arrived.iter().map(|record| record["number"].as_u64().unwrap()).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>(), "each once, none missing");
    for serial in &serials {
        assert!(arrived.iter().any(|record| record["credential"] == serial.as_str()), "{serial}");
    }
    all_holds(&server, &node);
    println!("{KILLS} kills right after a release: {KILLS} records, {} delivered", numbers.len());
}

/// As many releases as clients saw, however they are written; and how fast that goes.
#[tokio::test(flavor = "multi_thread")]
async fn counts_add_up() {
    let server = Server::start("");
    let mut node = Node::boot(&server).await;
    node.settle(&server).await;
    let since = BootInstant::now();
    let clients: Vec<_> = (0..8)
        .map(|_| {
            let endpoint = node.endpoint();
            tokio::spawn(async move {
                let client = spiffe::WorkloadApiClient::connect_to(endpoint).await.unwrap();
                let mut got = 0_u64;
                for _ in 0..250 {
                    got += u64::from(client.fetch_x509_svid().await.is_ok());
                }
                got
            })
        })
        .collect();
    let mut got = 0;
    for client in clients {
        got += client.await.unwrap();
    }
    let took = BootInstant::now().since(since);
    assert!(got > 0);
    let before = node.status().unwrap()["journal"].clone();
    assert_eq!(node.agent.take().unwrap().terminate(), Some(0));
    let kept = journal(&node);
    assert_eq!(releases(&kept), got, "{kept:?}");
    let records = kept.iter().filter(|record| record["what"] == "credential.released").count();
    println!(
        "{got} fetches by one process in {took:?} ({:.0} a second), {records} records, {} writes to the disk",
        got as f64 / took.as_secs_f64(),
        before["writes"]
    );
    // One at once, then one for each window and each lease; whatever the machine.
    assert!(records as u64 <= 4 + took.as_secs(), "{records} records");
}

/// A journal that was changed while the agent was away: found on the node, put aside, and the control plane hears
/// of it; a torn end is none.
#[tokio::test(flavor = "multi_thread")]
async fn a_changed_journal_is_told_from_a_torn_one() {
    let server = Server::start("");
    let mut node = Node::boot(&server).await;
    node.settle(&server).await;
    node.fetch().await.unwrap();
    all_delivered(&node).await;
    node.agent.take().unwrap().kill();
    let directory = node.path("state/journal");
    let segment = std::fs::read_dir(&directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.extension().is_some_and(|extension| extension == "log"))
        .unwrap();
    let whole = std::fs::read(&segment).unwrap();
    let number = journal(&node).len() as u64;
    let torn = [&whole[..], &b"0123456789abcdef"[..]].concat();
    std::fs::write(&segment, torn).unwrap();
    let verified = node.run_agent(&["audit", "verify"]);
    let printed = String::from_utf8(verified.stdout).unwrap();
    assert_eq!(verified.status.code(), Some(3), "{printed}");
    assert!(printed.contains(&format!("torn: record {}", number + 1)), "{printed}");
    node.start();
    node.until(holds_svid).await;
    node.fetch().await.unwrap();
    all_delivered(&node).await;
    assert!(delivered(&server).iter().any(|record| record["what"] == "audit.torn"));
    assert_eq!(node.run_agent(&["audit", "verify"]).status.code(), Some(0));

    node.agent.take().unwrap().kill();
    let mut changed = std::fs::read(&segment).unwrap();
    let place = changed.iter().position(|byte| *byte == b'{').unwrap() + 40;
    changed[place] ^= 1;
    std::fs::write(&segment, changed).unwrap();
    let verified = node.run_agent(&["audit", "verify"]);
    let printed = String::from_utf8(verified.stdout).unwrap();
    assert_eq!(verified.status.code(), Some(4), "{printed}");
    assert!(printed.contains("WRONG: record 1:"), "{printed}");
    node.start();
    node.until(holds_svid).await;
    node.fetch().await.expect("the change is reported, and no workload is stopped by it");
    all_delivered(&node).await;
    assert!(
        delivered(&server).iter().any(|record| record["what"] == "audit.tampered" && record["detail"]["record"] == 1)
    );
    let verified = server.try_admin(&["audit", "verify"]);
    let printed = String::from_utf8(verified.stdout).unwrap();
    assert_eq!(verified.status.code(), Some(3), "found before, and it stays to be seen: {printed}");
    assert!(server.decided().iter().filter(|what| *what == "audit.journal_began").count() == 2);
}
