//! What runs while a node holds a lease: allowed entries of IMA's list leave everything open, any other one
//! closes it at once, whether the control plane can be asked or not; and logs travel by increments.
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

use bench::faults::{ExtendDuringRead, Order};
use bench::ima::{Kernel, assign, document, logs_config, rules};
use bench::world::{Node, PATIENCE, Server, holds_svid};
use futures_util::StreamExt;
use leasehold::clock::BootInstant;
use serde_json::Value;

const ALLOWED: &[(&str, &[u8])] = &[("/usr/bin/true", b"true"), ("/usr/bin/false", b"false")];

/// A node with a list, that holds an SVID under rules that allow [`ALLOWED`].
async fn settled(server: &Server, name: &str) -> (Node, Kernel, String) {
    let mut node = Node::boot(server).await;
    node.configure(server, &logs_config(&node.path("ima")));
    let mut kernel = Kernel::start(&node).await;
    kernel.run(&node, "/usr/bin/true", b"true").await;
    node.start();
    let id = node.admit(server).await;
    assign(server, &id, &document(&node, &format!("set-{name}"), 1, rules(ALLOWED)).await);
    node.register(server, &id, name);
    node.until(holds_svid).await;
    (node, kernel, id)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_rules_allow_leaves_streams_open_and_what_they_do_not_ends_them() {
    let server = Server::start("");
    let (node, mut kernel, id) = settled(&server, "app").await;
    let status = node.status().unwrap();
    assert!(status["lease"]["rules"].is_string(), "{status}");
    let layer = |status: &Value, name: &str| {
        let layers = status["layers"].as_array().unwrap().clone();
        layers.into_iter().find(|layer| layer["layer"] == name).unwrap()["standing"].clone()
    };
    assert_eq!((layer(&status, "boot"), layer(&status, "runtime")), ("affirmed".into(), "affirmed".into()));

    let client = node.client().await;
    let mut stream = Box::pin(client.stream_x509_contexts().await.unwrap());
    stream.next().await.unwrap().unwrap();
    let sequence = status["lease"]["sequence"].clone();
    for _ in 0..10 {
        kernel.run(&node, "/usr/bin/false", b"false").await;
        node.fetch().await.unwrap();
    }
    // The control plane hears of them: another lease, on the new value.
    node.until(|status| status["lease"]["sequence"] != sequence && status["lease"]["new_entries"] == 0).await;
    assert_eq!(node.status().unwrap()["standing"], "affirming");
    let ended = tokio::time::timeout(Duration::from_millis(500), stream.next()).await;
    assert!(!matches!(ended, Ok(None | Some(Err(_)))), "an allowed entry ended the stream: {ended:?}");

    kernel.run(&node, "/tmp/evil", b"evil").await;
    let end = tokio::time::timeout(PATIENCE, async {
        loop {
            match stream.next().await {
                Some(Ok(_)) => {}
                other => return other,
            }
        }
    });
    assert!(matches!(end.await.unwrap(), Some(Err(_))));
    assert!(node.fetch().await.is_err());
    // The node says so by itself, and then the control plane: which entry, and what would have been accepted.
    let status = node.until(|status| status["reason"]["code"] == "verify.ima_unlisted").await;
    assert_eq!(status["standing"], "contraindicated");
    assert!(status["reason"].to_string().contains("/tmp/evil"), "{status}");
    let status = node.until(|status| status["findings"].to_string().contains("/tmp/evil")).await;
    assert_eq!(layer(&status, "runtime"), "contraindicated");
    let explained = server.try_admin(&["node", "explain", &id]);
    let words = String::from_utf8_lossy(&explained.stdout).into_owned();
    assert!(words.contains("/tmp/evil") && words.contains("verify.ima_unlisted"), "{words}");
}

/// Else root would only have to boot without IMA's policy, or to hide the list, to run what it likes.
#[tokio::test(flavor = "multi_thread")]
async fn where_rules_are_enforced_a_node_that_shows_no_list_gets_no_lease() {
    let server = Server::start("");
    let mut node = Node::boot(&server).await;
    node.configure(&server, "[logs]\nboot = \"\"\nuserspace = \"\"\nima = \"\"\n");
    node.start();
    let id = node.admit(&server).await;
    assign(&server, &id, &document(&node, "enforced", 1, rules(ALLOWED)).await);
    node.register(&server, &id, "app");
    let status = node.until(|status| status["reason"]["code"] == "verify.runtime_unproven").await;
    assert!(status["lease"].is_null(), "{status}");
    println!("{}", status["reason"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_does_not_lead_to_the_pcr_is_drift() {
    let server = Server::start("");
    let (node, _kernel, _) = settled(&server, "app").await;
    node.tpm.extend(10, [0xD1; 32]).await;
    let refused = node.fetch().await.unwrap_err();
    assert!(format!("{refused:?}").contains("NoIdentityIssued"), "{refused:?}");
    let status = node.until(|status| status["standing"] == "contraindicated").await;
    let code = status["reason"]["code"].as_str().unwrap();
    assert!(["gate.drift", "verify.log_replay"].contains(&code), "{status}");
}

/// Promise: what is disallowed closes at once also while nobody can be asked.
#[tokio::test(flavor = "multi_thread")]
async fn the_gate_needs_no_control_plane_to_listen() {
    let mut server = Server::start("");
    let (node, mut kernel, _) = settled(&server, "app").await;
    server.kill();
    for _ in 0..5 {
        kernel.run(&node, "/usr/bin/true", b"true").await;
        node.fetch().await.unwrap();
    }
    kernel.run(&node, "/usr/bin/true", b"other contents").await;
    assert!(node.fetch().await.is_err());
    let status = node.status().unwrap();
    assert_eq!(
        (&status["standing"], &status["reason"]["code"]),
        (&"contraindicated".into(), &"verify.ima_unlisted".into())
    );
    let reason = status["reason"].to_string();
    let nearest = hex::encode(<sha2::Sha256 as sha2::Digest>::digest(b"true"));
    assert!(reason.contains("/usr/bin/true") && reason.contains(&nearest), "{reason}");
    // Back again, it says the same.
    server.restart();
    node.until(|status| status["findings"].to_string().contains("/usr/bin/true")).await;
}

/// Both reactions, many times: `LEASEHOLD_TRIALS=100` for as many as the promise names. In every trial what
/// was disallowed is accepted afterwards by another version of the document, so that the node stands well again.
#[tokio::test(flavor = "multi_thread")]
async fn reactions_over_many_trials() {
    let trials: u64 = std::env::var("LEASEHOLD_TRIALS").ok().and_then(|n| n.parse().ok()).unwrap_or(5);
    let mut server = Server::start("");
    let (node, mut kernel, id) = settled(&server, "app").await;
    let mut allowed_files = rules(ALLOWED);
    for reachable in [true, false] {
        let (mut allowed, mut ended) = (Vec::new(), Vec::new());
        for trial in 0..trials {
            let version = 2 + trial + if reachable { 0 } else { trials };
            let client = node.client().await;
            let mut stream = Box::pin(client.stream_x509_contexts().await.unwrap());
            stream.next().await.unwrap().unwrap();
            if !reachable {
                server.kill();
            }
            let since = kernel.run(&node, "/usr/bin/false", b"false").await;
            node.fetch().await.unwrap();
            allowed.push(BootInstant::now().since(since));
            let evil = format!("/tmp/evil-{version}");
            let since = kernel.run(&node, &evil, b"evil").await;
            let end = tokio::time::timeout(PATIENCE, async { while let Some(Ok(_)) = stream.next().await {} });
            end.await.expect("the stream ends");
            ended.push(BootInstant::now().since(since));
            assert!(node.fetch().await.is_err(), "trial {trial}");
            if !reachable {
                server.restart();
            }
            let digest = <sha2::Sha256 as sha2::Digest>::digest(b"evil");
            allowed_files.allow_file(evil.as_bytes(), leasehold::measurements::LogHash::Sha256, &digest);
            assign(&server, &id, &document(&node, "set-app", version, allowed_files.clone()).await);
            node.until(holds_svid).await;
        }
        println!(
            "control plane {}: {trials} trials; released after an allowed entry: median {:?}, maximum {:?}; \
             stream ended after a disallowed one: median {:?}, maximum {:?}",
            if reachable { "up" } else { "down" },
            percentile(&mut allowed, 50),
            percentile(&mut allowed, 100),
            percentile(&mut ended, 50),
            percentile(&mut ended, 100),
        );
        assert!(ended.iter().all(|time| *time < Duration::from_secs(10)), "{ended:?}");
    }
}

/// The figure below which so many of a hundred lie.
fn percentile(times: &mut [Duration], percent: usize) -> Duration {
    times.sort();
    times[(times.len() * percent / 100).min(times.len() - 1)]
}

/// 8 clients fetch for `time`; how long each took. None may be refused.
async fn fetching(node: &Node, time: Duration) -> Vec<Duration> {
    let mut tasks = Vec::new();
    for _ in 0..8 {
        let client = node.client().await;
        tasks.push(tokio::spawn(async move {
            let (began, mut times) = (BootInstant::now(), Vec::new());
            while BootInstant::now().since(began) < time {
                let since = BootInstant::now();
                client.fetch_x509_svid().await.expect("a release");
                times.push(BootInstant::now().since(since));
            }
            times
        }));
    }
    let mut times = Vec::new();
    for task in tasks {
        times.extend(task.await.unwrap());
    }
    times
}

/// A busy host: 100 new allowed entries a second. `LEASEHOLD_BUSY_SECONDS=60` for the whole minute.
#[tokio::test(flavor = "multi_thread")]
async fn a_busy_host_keeps_releasing() {
    let seconds = std::env::var("LEASEHOLD_BUSY_SECONDS").ok().and_then(|n| n.parse().ok()).unwrap_or(6);
    let time = Duration::from_secs(seconds);
    let server = Server::start("");
    let (node, mut kernel, _) = settled(&server, "app").await;
    let client = node.client().await;
    let mut stream = Box::pin(client.stream_x509_contexts().await.unwrap());
    stream.next().await.unwrap().unwrap();
    let mut idle = fetching(&node, time).await;
    let began = BootInstant::now();
    let measuring = async {
        let mut entries = 0;
        while BootInstant::now().since(began) < time {
            kernel.run(&node, "/usr/bin/true", b"true").await;
            entries += 1;
            let due = Duration::from_millis(10) * entries;
            tokio::time::sleep(due.saturating_sub(BootInstant::now().since(began))).await;
        }
        entries
    };
    let (mut busy, entries) = tokio::join!(fetching(&node, time), measuring);
    println!(
        "{seconds} s, 8 clients: idle {} releases, p50 {:?}, p99 {:?}; with {entries} entries ({:.0} a second) {} releases, p50 {:?}, p99 {:?}",
        idle.len(),
        percentile(&mut idle, 50),
        percentile(&mut idle, 99),
        f64::from(entries) / time.as_secs_f64(),
        busy.len(),
        percentile(&mut busy, 50),
        percentile(&mut busy, 99),
    );
    assert!(
        entries >= u32::try_from(seconds).unwrap() * 50,
        "only {entries} entries: the machine is too slow to show anything"
    );
    let status = node.until(|status| status["lease"]["new_entries"] == 0).await;
    assert_eq!(status["standing"], "affirming", "{status}");
    // The stream is open still, and what no rule allows ends it.
    let since = kernel.run(&node, "/tmp/evil", b"evil").await;
    let end = tokio::time::timeout(PATIENCE, async { while let Some(Ok(_)) = stream.next().await {} });
    end.await.expect("the stream ends");
    println!("after that the stream ended {:?} after a disallowed entry", BootInstant::now().since(since));
    assert!(node.fetch().await.is_err());
}

/// Other rules come into force while entries keep coming: the lease that is there goes on by its own rules until
/// the next one opens the gate, so nothing ends and nobody is refused.
#[tokio::test(flavor = "multi_thread")]
async fn other_rules_come_into_force_on_a_busy_host() {
    const VERSIONS: u64 = 5;
    let server = Server::start("");
    let (node, mut kernel, id) = settled(&server, "app").await;
    let client = node.client().await;
    let mut stream = Box::pin(client.stream_x509_contexts().await.unwrap());
    stream.next().await.unwrap().unwrap();
    let documents = async {
        let mut allowed = rules(ALLOWED);
        for version in 2..2 + VERSIONS {
            let path = format!("/usr/bin/{version}");
            allowed.allow_file(path.as_bytes(), leasehold::measurements::LogHash::Sha256, &[7; 32]);
            assign(&server, &id, &document(&node, "set-app", version, allowed.clone()).await);
            node.until(|status| status["lease"]["reference_version"] == version).await;
        }
    };
    let entries = async {
        loop {
            kernel.run(&node, "/usr/bin/true", b"true").await;
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let time = Duration::from_millis(2_000 * VERSIONS);
    tokio::select! {
        ((), _) = async { tokio::join!(documents, fetching(&node, time)) } => {}
        () = entries => {}
    }
    let ended =
        tokio::time::timeout(Duration::from_millis(200), async { while let Some(Ok(_)) = stream.next().await {} });
    assert!(ended.await.is_err(), "the stream ended: {}", node.log());
    assert!(!node.log().contains("the lease ended"), "{}", node.log());
}

/// Promise 2 under rules, tried to be broken: among allowed entries one that isn't, half the time between a PCR
/// read's request and its answer. Whoever asks after its extend was answered gets nothing.
#[tokio::test(flavor = "multi_thread")]
async fn no_release_after_a_disallowed_entry_was_extended() {
    const ROUNDS: u64 = 8;
    let server = Server::start("");
    let (node, mut kernel, id) = settled(&server, "app").await;
    let mut allowed_files = rules(ALLOWED);
    let (mut released, mut refused) = (0, 0);
    for round in 0..ROUNDS {
        let stop = Arc::new(AtomicBool::new(false));
        let mut tasks = Vec::new();
        for _ in 0..8 {
            let (client, stop) = (node.client().await, stop.clone());
            tasks.push(tokio::spawn(async move {
                let mut requests = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let sent = BootInstant::now();
                    requests.push((sent, client.fetch_x509_svid().await.is_ok()));
                }
                requests
            }));
        }
        let [moment] = leasehold::secret::random::<1>().unwrap();
        for _ in 0..10 + moment / 16 {
            kernel.run(&node, "/usr/bin/true", b"true").await;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let evil = format!("/tmp/evil-{round}");
        let extended = if round % 2 == 0 {
            kernel.run(&node, &evil, b"evil").await
        } else {
            let digest = kernel.list(&evil, b"evil");
            let order = if round % 4 == 1 { Order::ExtendThenRead } else { Order::ReadThenExtend };
            let tap = ExtendDuringRead::new(node.tpm.relay.handle());
            node.tpm.relay.set_tap(Some(Arc::new(tap.clone())));
            let extended = tap.arm(order, 10, digest, |_| ()).await.unwrap();
            node.tpm.relay.set_tap(None);
            extended
        };
        tokio::time::sleep(Duration::from_millis(300)).await;
        stop.store(true, Ordering::Relaxed);
        for task in tasks {
            for (sent, ok) in task.await.unwrap() {
                assert!(!ok || sent < extended, "round {round}: asked {:?} after, and released", sent.since(extended));
                if ok { released += 1 } else { refused += 1 }
            }
        }
        let digest = <sha2::Sha256 as sha2::Digest>::digest(b"evil");
        allowed_files.allow_file(evil.as_bytes(), leasehold::measurements::LogHash::Sha256, &digest);
        assign(&server, &id, &document(&node, "set-app", 2 + round, allowed_files.clone()).await);
        node.until(holds_svid).await;
    }
    println!("{ROUNDS} rounds: {released} released before, {refused} refused after");
    assert!(released > 100 && refused > 100, "too few to show anything");
}

/// What the store says of the node's IMA list: its length, and the row of its first segment.
fn held(server: &Server) -> Option<(i64, i64)> {
    let store = rusqlite::Connection::open(server.path("state/store.db")).unwrap();
    store.busy_timeout(Duration::from_secs(20)).unwrap();
    let one = |sql: &str| store.query_row(sql, [], |row| row.get::<_, i64>(0)).ok();
    Some((
        one("SELECT length FROM node_logs WHERE kind = 'ima'")?,
        one("SELECT rowid FROM log_segments WHERE kind = 'ima' AND start = 0")?,
    ))
}

/// The first list of a node that has run for long: in parts, and on where it was when the agent is killed.
#[tokio::test(flavor = "multi_thread")]
async fn a_long_first_list_is_sent_in_parts_and_goes_on_after_the_agent_was_killed() {
    let server = Server::start("");
    let mut node = Node::boot(&server).await;
    node.configure(&server, &logs_config(&node.path("ima")));
    let mut kernel = Kernel::start(&node).await;
    let mut allowed = rules(&[]);
    allowed.digests.insert(
        "sha256".to_owned(),
        [leasehold::verify::runtime::HexBytes(<sha2::Sha256 as sha2::Digest>::digest(b"true").to_vec())].into(),
    );
    // Long names make a long list of few entries: 4 MiB for each thousand.
    for number in 0..4_500 {
        kernel.run(&node, &format!("/{number:05}{}", "x".repeat(4_000)), b"true").await;
    }
    let length = i64::try_from(std::fs::metadata(&kernel.path).unwrap().len()).unwrap();
    node.start();
    let id = node.until(|status| status["node"].is_string()).await["node"].as_str().unwrap().to_owned();
    assign(&server, &id, &document(&node, "long", 1, allowed).await);
    node.register(&server, &id, "app");
    server.admin(&["node", "approve", &id]);
    let since = BootInstant::now();
    let (seen, first) = loop {
        if let Some(held) = held(&server) {
            break held;
        }
        assert!(BootInstant::now().since(since) < PATIENCE, "{}", node.log());
    };
    node.agent.take().unwrap().kill();
    let interrupted = held(&server).unwrap();
    assert!(seen < length, "it was sent too quickly to be interrupted");
    println!("interrupted after {} of {length} bytes", interrupted.0);
    node.start();
    node.until(holds_svid).await;
    let after = held(&server).unwrap();
    assert_eq!(after, (length, first), "the first part was sent again");
    // And the agent that is started again once more has nothing to send.
    node.start();
    node.until(holds_svid).await;
    assert_eq!(held(&server).unwrap(), (length, first));
}

/// The server is killed again and again while entries come: both sides come into step by themselves.
#[tokio::test(flavor = "multi_thread")]
async fn logs_survive_a_server_that_is_killed() {
    let mut server = Server::start("");
    let (node, mut kernel, _) = settled(&server, "app").await;
    for round in 0..4 {
        for _ in 0..20 {
            kernel.run(&node, "/usr/bin/true", b"true").await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        server.kill();
        for _ in 0..5 {
            kernel.run(&node, "/usr/bin/false", b"false").await;
            node.fetch().await.unwrap_or_else(|error| panic!("round {round}: {error}\n{}", node.log()));
        }
        server.restart();
        let length = i64::try_from(std::fs::metadata(&kernel.path).unwrap().len()).unwrap();
        node.until(|status| status["lease"]["new_entries"] == 0).await;
        let since = BootInstant::now();
        while held(&server).map(|held| held.0) != Some(length) {
            assert!(BootInstant::now().since(since) < PATIENCE, "round {round}: {}", node.log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(node.status().unwrap()["standing"], "affirming");
    }
}
