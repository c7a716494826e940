//! A hundred nodes on loopback: five agents with a software TPM each, ninety-five clients with software keys.

use std::time::Duration;

use futures_util::StreamExt;
use leasehold::clock::BootInstant;
use serde_json::Value;

use crate::bench::TestTpm;
use crate::bench::world::{Node, PATIENCE, Server, holds_svid, interactive};
use crate::fleet::{Fleet, GROUP, Maker, Manner};
use crate::wire::Wire;

/// The longest that an SVID of this test lives: what bounds a node that was cut off.
const SVID_SECONDS: u64 = 15;

/// Real agents, each over a line of its own.
pub struct Agent {
    pub node: Node,
    pub wire: Wire,
    pub id: String,
}

impl Agent {
    /// Boots one, and lets it into the group.
    pub async fn settle(server: &Server) -> Self {
        let mut node = Node::boot_with(server, TestTpm::blank(), "").await;
        let wire = Wire::to(server.port).await;
        let file = node.path("agent.toml");
        let text = std::fs::read_to_string(&file).unwrap();
        let (direct, over) = (format!("127.0.0.1:{}", server.port), format!("127.0.0.1:{}", wire.port));
        std::fs::write(&file, text.replace(&direct, &over)).unwrap();
        node.start();
        let id = node.until(|status| status["node"].is_string()).await["node"].as_str().unwrap().to_owned();
        server.admin(&["node", "approve", &id, "--group", GROUP]);
        let since = BootInstant::now();
        while server.json(&["node", "show", &id])["quote"].is_null() {
            assert!(BootInstant::now().since(since) < PATIENCE, "no quote: {}", node.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        server.admin(&["reference", "learn", "--node", &id, "--yes"]);
        node.until(holds_svid).await;
        Self { node, wire, id }
    }
}

/// Registers `/fleet` for the whole group and for this test's user.
pub fn register(server: &Server) -> String {
    let uid = format!("unix:uid:{}", rustix::process::geteuid().as_raw());
    let id = format!("spiffe://{}/fleet", crate::bench::world::TRUST_DOMAIN);
    let add = ["workload", "add", "--id", &id, "--owner", "team-a", "--purpose", "tests", "--node-group", GROUP];
    server.admin(&[&add[..], &["--selector", &uid], interactive()].concat());
    id
}

/// The revocation's counts and parts, once `wanted` holds of them.
pub async fn until(server: &Server, number: u64, wanted: impl Fn(&Value) -> bool) -> Value {
    let since = BootInstant::now();
    loop {
        let shown = server.json(&["revocation", "show", &number.to_string()]);
        if wanted(&shown) {
            return shown;
        }
        assert!(BootInstant::now().since(since) < PATIENCE, "it never came about: {shown:#}\n{}", server.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Told, acknowledged and proven, in this order.
pub fn counts(shown: &Value) -> [u64; 3] {
    ["told", "acknowledged", "proven"].map(|step| shown[step].as_u64().unwrap())
}

/// The median, the 99th of a hundred and the maximum of a column, in milliseconds.
pub fn spread(shown: &Value, column: &str) -> (u64, u64, u64) {
    let mut all: Vec<u64> =
        shown["parts"].as_array().unwrap().iter().filter_map(|part| part[column].as_u64()).collect();
    all.sort_unstable();
    (all[all.len() / 2], all[all.len() * 99 / 100], *all.last().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workload_on_a_hundred_nodes_is_revoked() {
    let maker = Maker::new();
    let terms = format!("[terms]\nlease_seconds = 60\nsvid_seconds = {SVID_SECONDS}\n");
    let server = Server::start(&maker.configuration(&terms));
    let id = register(&server);
    let manners: Vec<Manner> = (0..95)
        .map(|number| match number {
            0..10 => Manner::Claims,
            10..15 => Manner::Silent,
            _ => Manner::Honest,
        })
        .collect();
    let fleet = Fleet::start(&server, &maker, &id, &manners).await;
    let agents = futures_util::future::join_all((0..5).map(|_| Agent::settle(&server))).await;
    let (cut, listening) = agents.split_at(2);

    // An open stream on an agent that listens, and one on an agent that will be cut off.
    let client = listening[0].node.client().await;
    let mut stream = Box::pin(client.stream_x509_svids().await.unwrap());
    stream.next().await.unwrap().unwrap();
    for agent in cut {
        agent.wire.cut();
    }
    // The server notices a broken line by its reads.
    let away = |node: &Value| node["stream"] == false;
    let since = BootInstant::now();
    let explained = loop {
        let explained = server.json(&["revoke", "workload", &id, "--explain"]);
        let concerned = explained["concerned"].as_array().unwrap();
        if concerned.iter().filter(|node| away(node)).count() == cut.len() {
            break explained;
        }
        assert!(BootInstant::now().since(since) < PATIENCE, "{explained:#}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert_eq!(explained["nodes"], 100);
    assert_eq!(explained["pushed_within_seconds"], 2);
    let printed = server.admin(&["revoke", "workload", &id, "--explain"]);
    println!("{}", printed.lines().take(5).collect::<Vec<_>>().join("\n"));
    let bounds: Vec<u64> = explained["concerned"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|node| away(node))
        .map(|node| node["until_seconds"].as_u64().unwrap())
        .collect();
    assert!(bounds.iter().all(|bound| (1..=SVID_SECONDS).contains(bound)), "{bounds:?}");

    let began = BootInstant::now();
    let revoked = server.json(&["revoke", "workload", &id, "--reason", "a leak"]);
    let number = revoked["revocation"].as_u64().unwrap();
    assert_eq!((revoked["changed"].as_bool(), revoked["nodes"].as_u64()), (Some(true), Some(100)));
    let end = tokio::time::timeout(PATIENCE, stream.next()).await.unwrap();
    println!("an open stream of a listening agent ended {:?} after the command began", BootInstant::now().since(began));
    assert!(format!("{end:?}").contains("NoIdentityIssued"), "0 further messages: {end:?}");

    // 100 nodes: 2 are cut off, 5 are silent, 10 claim what they didn't do.
    let shown = until(&server, number, |shown| counts(shown) == [98, 93, 83]).await;
    for column in ["told_ms", "acknowledged_ms", "proven_ms"] {
        let (median, _, most) = spread(&shown, column);
        println!("{column}: median {median}, maximum {most}");
    }
    assert!(spread(&shown, "acknowledged_ms").2 < 20_000, "ten times the bound of a pushed revocation");
    let heard = fleet.heard.lock().unwrap().clone();
    let mut delays: Vec<Duration> =
        heard.iter().filter_map(|one| one.acknowledged_at).map(|at| at.since(began)).collect();
    delays.sort_unstable();
    println!(
        "as the {} clients saw it, from before the command's process started: median {:?}, maximum {:?}",
        delays.len(),
        delays[delays.len() / 2],
        delays.last().unwrap()
    );
    let people = server.admin(&["revocation", "show", &number.to_string()]);
    println!("{people}");
    assert!(people.contains("told 98, acknowledged 93 (their claim), proven 83"), "{people}");

    // What was cut off goes on until the printed bound and not beyond.
    for (agent, bound) in cut.iter().zip(bounds.iter().max().into_iter().cycle()) {
        let mut last = None;
        loop {
            let asked = BootInstant::now();
            match agent.node.fetch().await {
                Ok(_) => last = Some(asked.since(began)),
                Err(_) if asked.since(began) > Duration::from_secs(*bound) => break,
                Err(_) => {}
            }
            assert!(asked.since(began) < Duration::from_secs(bound + 10), "it goes on beyond its bound");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        println!("cut off: the last release {last:?} after the command, bound {bound} s");
        // A second for the bound's whole seconds.
        assert!(last.is_none_or(|last| last < Duration::from_secs(bound + 1)));
    }
    // Back again they hear of it by themselves.
    for agent in cut {
        agent.wire.mend();
    }
    until(&server, number, |shown| counts(shown) == [100, 95, 85]).await;
    for agent in &agents {
        let refused = agent.node.fetch().await.unwrap_err();
        assert!(format!("{refused:?}").contains("NoIdentityIssued"), "{refused:?}");
        assert!(agent.node.status().unwrap()["standing"] == "affirming", "it is the workload that was revoked");
    }
    assert_eq!(fleet.nodes.len(), 95);
}

/// As many connected nodes as `LEASEHOLD_NODES` says, all with keys in software.
#[tokio::test(flavor = "multi_thread")]
async fn a_fleet_of_software_nodes_is_told_at_once() {
    let count: usize = std::env::var("LEASEHOLD_NODES").ok().and_then(|text| text.parse().ok()).unwrap_or(50);
    let maker = Maker::new();
    let server = Server::start(&maker.configuration(""));
    let id = register(&server);
    let began = BootInstant::now();
    let fleet = Fleet::start(&server, &maker, &id, &vec![Manner::Honest; count]).await;
    println!("{count} nodes enrolled, leased and listening after {:?}", BootInstant::now().since(began));
    let began = BootInstant::now();
    let revoked = server.json(&["revoke", "workload", &id, "--reason", "a leak", "--wait", "60"]);
    println!("`revoke workload --wait` took {:?}", BootInstant::now().since(began));
    let number = revoked["number"].as_u64().unwrap();
    let count = count as u64;
    assert_eq!(counts(&revoked)[..2], [count, count]);
    let shown = until(&server, number, |shown| counts(shown) == [count; 3]).await;
    for column in ["told_ms", "acknowledged_ms", "proven_ms"] {
        let (median, p99, most) = spread(&shown, column);
        println!("{column}: median {median}, p99 {p99}, maximum {most}");
    }
    assert_eq!(fleet.heard.lock().unwrap().len() as u64, count);
    // A node too, with everybody connected.
    let one = fleet.nodes.first().unwrap();
    let revoked = server.json(&["revoke", "node", one, "--reason", "lost", "--wait", "60"]);
    assert_eq!((revoked["state"].as_str(), revoked["acknowledged"].as_u64()), (Some("revoked"), Some(1)));
    let (_, _, most) = spread(&revoked, "acknowledged_ms");
    println!("`revoke node` among them was acknowledged after {most} ms");
}
