//! Twice, at once, and of what there isn't.

use leasehold::protocol::Withdrawn;

use crate::bench::world::Server;
use crate::fleet::{Events, Maker, SoftNode};
use crate::hundred::{counts, register};

async fn leased(server: &Server, maker: &Maker) -> SoftNode {
    let mut node = SoftNode::enrol(server, maker.tpm()).await;
    node.attest().await.unwrap();
    server.admin(&["reference", "learn", "--node", &node.member.id(), "--yes"]);
    assert!(node.attest().await.unwrap().lease.is_some());
    node
}

#[tokio::test(flavor = "multi_thread")]
async fn twice_is_once_and_what_there_is_not_is_refused() {
    let maker = Maker::new();
    let server = Server::start(&maker.configuration(""));
    let id = register(&server);
    let mut node = leased(&server, &maker).await;
    node.member.credential(&id).await.unwrap();
    let first = server.json(&["revoke", "workload", &id, "--reason", "a leak"]);
    let again = server.json(&["revoke", "workload", &id, "--reason", "a leak"]);
    assert_eq!((first["changed"].as_bool(), again["changed"].as_bool()), (Some(true), Some(false)));
    assert_eq!(first["revocation"], again["revocation"], "the same revocation");
    assert_eq!(first["credentials"], 1);
    for (kind, target) in [
        ("node", "abcdef00"),
        ("workload", "spiffe://example.org/nobody"),
        ("owner", "nobody"),
        ("svid", "00"),
        ("task", "none"),
    ] {
        for more in [&["--reason", "x"][..], &["--explain"]] {
            let output = server.try_admin(&[&["revoke", kind, target], more].concat());
            assert_eq!(output.status.code(), Some(1), "{kind}");
            assert!(String::from_utf8_lossy(&output.stderr).contains("admin.unknown"), "{kind}");
        }
    }
    // Without a reason nothing is revoked.
    assert_eq!(server.try_admin(&["revoke", "workload", &id]).status.code(), Some(2));
    // Nothing is issued, and the node is told until it acknowledged; then no more.
    let refused = node.member.credential(&id).await.unwrap().0.answers.remove(0).refusal.unwrap();
    assert_eq!(refused.code, leasehold::codes::POLICY_SUSPENDED);
    let number = first["revocation"].as_u64().unwrap();
    for _ in 0..2 {
        let answer = node.attest().await.unwrap();
        assert_eq!(answer.withdrawals.len(), 1);
        assert_eq!(answer.withdrawals[0].of, Withdrawn::Workloads(vec![id.clone()]));
        assert_eq!(answer.entries[0].withheld.as_ref().unwrap().code, leasehold::codes::POLICY_SUSPENDED);
        let mut events = Events::open(&node.member.client).await;
        assert_eq!(events.withdrawal().await.number, number);
    }
    // Numbers that aren't its own count for nothing.
    node.acknowledge(vec![number + 1, 77, u64::MAX]).await;
    let show = || server.json(&["revocation", "show", &number.to_string()]);
    assert_eq!(counts(&show()), [1, 0, 0]);
    node.acknowledge(vec![number]).await;
    assert_eq!(counts(&show()), [1, 1, 0]);
    assert!(node.attest().await.unwrap().withdrawals.is_empty());
    assert_eq!(counts(&show()), [1, 1, 0], "evidence that doesn't say it proves nothing");
    node.member.tpm.node.withdrawn = vec![number];
    node.attest().await.unwrap();
    assert_eq!(counts(&show()), [1, 1, 1]);
    let records = server.decided();
    for what in
        ["revocation.made", "workload.revoked", "credential.revoked", "withdrawal.acknowledged", "withdrawal.proven"]
    {
        assert_eq!(records.iter().filter(|found| *found == what).count(), 1, "{what}");
    }
}

/// Two of the same and two of different workloads, all given at once.
#[tokio::test(flavor = "multi_thread")]
async fn revocations_at_once_each_have_their_number() {
    let maker = Maker::new();
    let server = Server::start(&maker.configuration(""));
    let id = register(&server);
    let other = "spiffe://example.org/other";
    let add = ["workload", "add", "--id", other, "--owner", "team-a", "--purpose", "tests", "--node-group", "fleet"];
    server.admin(&[&add[..], &["--selector", "unix:uid:4242"]].concat());
    let node = leased(&server, &maker).await;
    let mut events = Events::open(&node.member.client).await;
    let results: Vec<serde_json::Value> = std::thread::scope(|scope| {
        let started: Vec<_> = [&id, &id, &other.to_owned(), &other.to_owned()]
            .map(|id| {
                let (server, id) = (&server, id.clone());
                scope.spawn(move || server.json(&["revoke", "workload", &id, "--reason", "at once"]))
            })
            .into_iter()
            .collect();
        started.into_iter().map(|one| one.join().unwrap()).collect()
    });
    assert_eq!(results.iter().filter(|one| one["changed"] == true).count(), 2);
    let mut numbers: Vec<u64> = results.iter().map(|one| one["revocation"].as_u64().unwrap()).collect();
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), 2);
    let mut told = vec![events.withdrawal().await.number, events.withdrawal().await.number];
    told.sort_unstable();
    assert_eq!(told, numbers);
    node.acknowledge(numbers.clone()).await;
    for number in &numbers {
        let shown = server.json(&["revocation", "show", &number.to_string()]);
        assert_eq!(counts(&shown), [1, 1, 0]);
    }
    // An owner's: all of it is gone already.
    let owner = server.json(&["revoke", "owner", "team-a", "--reason", "left"]);
    assert_eq!(owner["changed"], false);
    let listed = server.json(&["revocation", "list"]);
    assert_eq!(listed["revocations"].as_array().unwrap().len(), 2);
    assert!(server.admin(&["revocation", "list"]).contains("ACKNOWLEDGED"));
}
