//! Who is calling: real processes, a real agent, and stock clients. What the kernel says of a process
//! decides, at each release and for as long as a stream lives.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod bench;

use std::path::Path;
use std::time::Duration;

use bench::caller::{self, Held, STRANGER};
use bench::ima::{Kernel, assign, document, logs_config, own, rules};
use bench::world::{Node, PATIENCE, Server, TRUST_DOMAIN, holds_svid, interactive};
use futures_util::StreamExt;
use leasehold::clock::BootInstant;
use sha2::{Digest, Sha256};

/// Not a test of its own.
#[tokio::test]
#[ignore = "a role of other tests"]
async fn role() {
    let Ok(role) = std::env::var("LEASEHOLD_TEST_ROLE") else { return };
    match role.split_once(' ') {
        Some(("fetch", times)) => caller::fetch(times.parse().unwrap()).await,
        _ => tokio::task::spawn_blocking(caller::hold).await.unwrap(),
    }
}

fn is_root(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("SKIPPED {test}: it needs root");
    }
    root
}

fn uid() -> String {
    format!("unix:uid:{}", rustix::process::geteuid().as_raw())
}

fn register(server: &Server, node: &str, name: &str, selectors: &[&str], more: &[&str]) {
    let id = format!("spiffe://{TRUST_DOMAIN}/{name}");
    let add = ["workload", "add", "--id", &id, "--owner", "team-a", "--purpose", "tests", "--node", node];
    let selectors: Vec<&str> = selectors.iter().flat_map(|selector| ["--selector", selector]).collect();
    server.admin(&[&add[..], &selectors, more].concat());
}

/// A node that is affirmed and whose registrations are these.
async fn settled(server: &Server, registrations: &[(&str, &[&str])]) -> Node {
    let mut node = Node::boot(server).await;
    caller::open(&node);
    node.start();
    let id = node.admit(server).await;
    server.admin(&["reference", "learn", "--node", &id, "--yes"]);
    for (name, selectors) in registrations {
        register(server, &id, name, selectors, interactive());
    }
    node.until(|status| {
        holds_svid(status) && status["workloads"].as_array().is_some_and(|all| all.len() == registrations.len())
    })
    .await;
    node
}

/// How many requests the agent refused with this code.
fn refused(node: &Node, code: &str) -> u64 {
    use std::io::{Read, Write};
    let mut socket = std::os::unix::net::UnixStream::connect(node.path("admin.sock")).unwrap();
    socket.write_all(b"GET /metrics HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    let line = answer.lines().find(|line| line.contains(&format!("code=\"{code}\"")));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0)
}

/// T01: from the wrong user, the wrong program and the wrong unit, a thousand times each.
#[tokio::test(flavor = "multi_thread")]
async fn three_thousand_requests_of_others_get_nothing() {
    let test = "three_thousand_requests_of_others_get_nothing";
    let server = Server::start("");
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let (right, wrong) = (caller::copy(directory.path(), "right"), caller::copy(directory.path(), "wrong"));
    let path = format!("unix:path:{}", right.display());
    let node = settled(
        &server,
        &[("by-program", &[&uid(), &path]), ("by-unit", &[&uid(), "systemd:unit:leasehold-nobody.service"])],
    )
    .await;
    assert_eq!(caller::says(caller::role(&node, &right, "fetch 1")).await, "1 given, 0 denied");
    let since = BootInstant::now();
    let mut asked = 1000;
    assert_eq!(caller::says(caller::role(&node, &wrong, "fetch 1000")).await, "0 given, 1000 denied");
    // The nearest registration is told, and what failed there: the path, or the unit.
    assert!(node.log().contains("unix:path:") || node.log().contains("systemd:unit:"), "{}", node.log());
    if is_root(test) {
        for program in [&right, &wrong] {
            let mut command = caller::role(&node, program, "fetch 1000");
            std::os::unix::process::CommandExt::uid(&mut command, STRANGER);
            assert_eq!(caller::says(command).await, "0 given, 1000 denied");
            asked += 1000;
        }
    }
    println!("{asked} requests of others: 0 given, {asked} denied, in {:?}", BootInstant::now().since(since));
    assert_eq!(refused(&node, "workload.no_match"), asked);
}

/// Capability 2: the same user and path, one byte changed.
#[tokio::test(flavor = "multi_thread")]
async fn one_byte_more_is_another_program() {
    let server = Server::start("");
    let directory = tempfile::tempdir().unwrap();
    let program = caller::copy(directory.path(), "app");
    let digest = |program: &Path| hex::encode(Sha256::digest(std::fs::read(program).unwrap()));
    let right = format!("unix:sha256:{}", digest(&program));
    let node = settled(&server, &[("app", &[&uid(), &format!("unix:path:{}", program.display()), &right])]).await;
    assert_eq!(caller::says(caller::role(&node, &program, "fetch 1")).await, "1 given, 0 denied");
    let mut file = std::fs::File::options().append(true).open(&program).unwrap();
    std::io::Write::write_all(&mut file, b"!").unwrap();
    drop(file);
    assert_eq!(caller::says(caller::role(&node, &program, "fetch 1")).await, "0 given, 1 denied");
    let log = node.log();
    let said = log.lines().find(|line| line.contains("workload.no_match")).expect(&log);
    assert!(said.contains(&right) && said.contains(&digest(&program)), "{said}");
    println!("{said}");
}

/// T04, T05: the same path, user and even file, seen from elsewhere.
#[tokio::test(flavor = "multi_thread")]
async fn the_same_path_elsewhere_is_another_program() {
    if !is_root("the_same_path_elsewhere_is_another_program") {
        return;
    }
    let server = Server::start("");
    let directory = tempfile::tempdir().unwrap();
    let (app, fake) = (caller::copy(directory.path(), "app"), caller::copy(directory.path(), "fake"));
    let path = format!("unix:path:{}", app.display());
    let node = settled(&server, &[("app", &[&uid(), &path])]).await;
    let inner = caller::role(&node, &app, "fetch 1");
    assert_eq!(caller::says(caller::role(&node, &app, "fetch 1")).await, "1 given, 0 denied");
    // A mount namespace of one's own alone is no reason: services that systemd shields have one.
    let own = caller::behind(&["unshare", "--mount", "--"], &inner);
    assert_eq!(caller::says(own).await, "1 given, 0 denied");
    let bind = format!("mount --bind {} {} && exec \"$@\"", fake.display(), app.display());
    for (prefix, why) in [
        (vec!["unshare", "--mount", "--", "sh", "-c", &bind, "sh"], "another file in the agent's mount namespace"),
        (vec!["unshare", "--pid", "--fork", "--"], "in another PID namespace"),
        (vec!["unshare", "--user", "--map-root-user", "--"], "in another user namespace"),
    ] {
        assert_eq!(caller::says(caller::behind(&prefix, &inner)).await, "0 given, 1 denied", "{prefix:?}");
        println!("denied: {why}");
    }
    // The log says the same of one user once in ten seconds; the agent's count tells that each was denied.
    assert_eq!(refused(&node, "workload.no_match"), 3);
    let said = node.log();
    assert!(said.contains(&path) && said.contains("another file in the agent's mount namespace"), "{said}");
}

/// T03 and capability 22: what a process becomes while its stream is open.
#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_changes_loses_its_stream_within_a_second() {
    let server = Server::start("");
    let node = settled(&server, &[("app", &[&uid()])]).await;
    let mut changes = vec!["another program"];
    if is_root("a_caller_that_changes_loses_its_stream_within_a_second, but for exec") {
        changes.extend(["another user", "another group", "other groups"]);
    }
    for what in changes {
        let mut took = Vec::new();
        for _ in 0..3 {
            let mut held = Held::start(&node).await;
            let client = held.client().await;
            let mut stream = Box::pin(client.stream_x509_contexts().await.unwrap());
            stream.next().await.unwrap().unwrap();
            let since = held.becomes(what);
            let end = tokio::time::timeout(PATIENCE, stream.next()).await.expect(what);
            took.push(BootInstant::now().since(since));
            // Nothing more came, and why is said.
            assert!(matches!(&end, Some(Err(_)) | None), "{what}: {end:?}");
            assert!(client.fetch_x509_svid().await.is_err());
        }
        println!("{what}: the stream ended after {took:?}");
        assert!(took.iter().all(|took| *took < Duration::from_secs(10)), "{what}: {took:?}");
        assert!(node.log().contains("workload.peer_changed"), "{}", node.log());
    }
}

/// The same for the cgroup it is in.
#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_is_moved_loses_its_stream_within_a_second() {
    let name = format!("leasehold-callers-{}", std::process::id());
    let tree = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup/systemd", "/sys/fs/cgroup"];
    let made = |path: &std::path::PathBuf| {
        // A plain directory, on a tmpfs above the trees, is no cgroup.
        let cgroup = std::fs::create_dir(path).is_ok() && path.join("cgroup.procs").exists();
        if !cgroup {
            let _ = std::fs::remove_dir(path);
        }
        cgroup
    };
    let Some(other) = tree.iter().map(|tree| Path::new(tree).join(&name)).find(made) else {
        eprintln!("SKIPPED a_caller_that_is_moved_loses_its_stream_within_a_second: no cgroups can be made here");
        return;
    };
    let server = Server::start("");
    let node = settled(&server, &[("app", &[&uid()])]).await;
    let mut took = Vec::new();
    for _ in 0..3 {
        let held = Held::start(&node).await;
        let mut stream = Box::pin(held.client().await.stream_x509_contexts().await.unwrap());
        stream.next().await.unwrap().unwrap();
        std::fs::write(other.join("cgroup.procs"), held.id().to_string()).unwrap();
        let since = BootInstant::now();
        let end = tokio::time::timeout(PATIENCE, stream.next()).await.unwrap();
        took.push(BootInstant::now().since(since));
        assert!(matches!(&end, Some(Err(_)) | None), "{end:?}");
    }
    println!("moved to another cgroup: the stream ended after {took:?}");
    assert!(took.iter().all(|took| *took < Duration::from_secs(10)), "{took:?}");
    assert!(node.log().contains(&name), "{}", node.log());
    let _ = std::fs::remove_dir(other);
}

/// T45: a person's process is not a workload, unless it was said that it may be.
#[tokio::test(flavor = "multi_thread")]
async fn a_person_does_not_get_a_workloads_identity() {
    let test = "a_person_does_not_get_a_workloads_identity";
    let server = Server::start("");
    let mut node = Node::boot(&server).await;
    caller::open(&node);
    node.start();
    let id = node.admit(&server).await;
    server.admin(&["reference", "learn", "--node", &id, "--yes"]);
    register(&server, &id, "app", &[&uid()], &[]);
    node.until(holds_svid).await;
    let program = std::env::current_exe().unwrap();
    let plain = caller::role(&node, &program, "fetch 1");
    // As PAM does it: the kernel keeps who logged in, whatever `sudo` and `su` make of the process.
    let logged_in = || {
        let script = format!("echo {STRANGER} > /proc/self/loginuid && exec \"$@\"");
        caller::behind(&["sh", "-c", &script, "sh"], &plain)
    };
    let session = if interactive().is_empty() {
        assert_eq!(caller::says(caller::role(&node, &program, "fetch 1")).await, "1 given, 0 denied");
        if !is_root(test) {
            return;
        }
        logged_in()
    } else {
        // This test was started by a person itself.
        caller::role(&node, &program, "fetch 1")
    };
    assert_eq!(caller::says(session).await, "0 given, 1 denied");
    let log = node.log();
    let said = log.lines().find(|line| line.contains("workload.login_session")).expect(&log);
    println!("{said}");
    assert_eq!(refused(&node, "workload.login_session"), 1);
    // Registered for people, too.
    register(
        &server,
        &id,
        "for-people",
        &[&uid(), &format!("unix:gid:{}", rustix::process::getegid().as_raw())],
        &["--interactive"],
    );
    node.until(|status| holds_svid(status) && status["workloads"].as_array().is_some_and(|all| all.len() == 2)).await;
    let session = if interactive().is_empty() { logged_in() } else { caller::role(&node, &program, "fetch 1") };
    assert_eq!(caller::says(session).await, "1 given, 0 denied");
}

/// "This program, measured by this kernel": rules in the lease, and a caller that isn't in the attested list.
#[tokio::test(flavor = "multi_thread")]
async fn where_what_runs_is_attested_a_caller_must_be_in_the_list() {
    let server = Server::start("");
    let mut node = Node::boot(&server).await;
    node.configure(&server, &logs_config(&node.path("ima")));
    // The rules allow this test's program, and the kernel hasn't seen it run.
    let mut kernel = Kernel::boot(&node).await;
    kernel.run(&node, "/usr/bin/true", b"true").await;
    node.start();
    let id = node.admit(&server).await;
    assign(&server, &id, &document(&node, "set-app", 1, rules(&[("/usr/bin/true", b"true")])).await);
    node.register(&server, &id, "app");
    node.until(holds_svid).await;
    let refusal = node.fetch().await.unwrap_err();
    assert!(format!("{refusal:?}").contains("NoIdentityIssued"), "{refusal:?}");
    let (path, digest) = own();
    let log = node.log();
    let said = log.lines().find(|line| line.contains("workload.unmeasured")).expect(&log);
    assert!(said.contains(path.as_str()) && said.contains(&hex::encode(digest)), "{said}");
    println!("{said}");
    // In the list, but not in the PCR: nobody vouches for it.
    let extended = kernel.list_digest(path, digest);
    assert!(node.fetch().await.is_err());
    node.tpm.extend(10, extended).await;
    node.fetch().await.unwrap();
    // The drift of another program is nobody's measurement but still drift.
    kernel.run(&node, "/tmp/evil", b"evil").await;
    assert!(node.fetch().await.is_err());
}
