//! What ends a task from outside: what its process became, its node, its agent, its control plane.

use std::time::Duration;

use leasehold::clock::BootInstant;
use serde_json::json;

use super::bench::world::{Node, PATIENCE, Server, holds_svid, interactive};
use super::client::{Client, Records, within_a_second};

async fn settled(server: &Server) -> (Node, String) {
    let mut node = Node::boot(server).await;
    let id = node.settle(server).await;
    (node, id)
}

fn refused(code: &str) -> (String, String) {
    (code.to_owned(), "PermissionDenied".to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn another_program_another_cgroup_is_another_scope() {
    let server = Server::start("");
    let (node, _) = settled(&server).await;
    let records = Records::of(&server);
    let mut took = Vec::new();
    for round in 0..10 {
        let id = format!("exec-{round}");
        let mut client = Client::start(&node);
        client.begin(&json!({ "task_id": id })).await;
        let since = BootInstant::now();
        client.order(&json!({ "exec": "sleep" }));
        let (ended, at) = records.ended(&id).await;
        assert_eq!(ended.code.as_deref(), Some("task.scope"), "{ended:?}");
        assert!(ended.reason.contains("another program"), "{ended:?}");
        took.push(at.since(since));
    }
    within_a_second("exec of another program", took);

    // The tree that says where a process stands: v2's, or the named one of v1.
    let trees = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup/systemd", "/sys/fs/cgroup"];
    let made = trees.into_iter().find_map(|tree| {
        let directory = std::path::Path::new(tree).join(format!("leasehold-scope-{}", std::process::id()));
        std::fs::create_dir(&directory).ok().map(|()| directory)
    });
    let Some(directory) = made else {
        println!("SKIPPED: a change of cgroup: none can be made here");
        return;
    };
    let mut took = Vec::new();
    for round in 0..10 {
        let id = format!("cgroup-{round}");
        let mut client = Client::start(&node);
        client.begin(&json!({ "task_id": id })).await;
        let since = BootInstant::now();
        client.order(&json!({ "cgroup": directory.join("cgroup.procs") }));
        let (ended, at) = records.ended(&id).await;
        assert_eq!(ended.code.as_deref(), Some("task.scope"), "{ended:?}");
        assert!(ended.reason.contains("leasehold-scope"), "{ended:?}");
        assert_eq!(client.over().await, refused("task.scope"));
        took.push(at.since(since));
    }
    within_a_second(&format!("a change of cgroup in {}", directory.display()), took);
    std::fs::remove_dir(&directory).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drift_ends_what_its_node_holds() {
    let server = Server::start("");
    let (node, _) = settled(&server).await;
    let records = Records::of(&server);
    let mut client = Client::start(&node);
    client.begin(&json!({ "task_id": "drifts" })).await;
    let since = node.tpm.extend(7, [0xD1; 32]).await;
    assert_eq!(client.over().await, refused("gate.drift"));
    println!("its stream ended {:?} after the drift", BootInstant::now().since(since));
    let (ended, at) = records.ended("drifts").await;
    println!("and the control plane had it after {:?}", at.since(since));
    assert_eq!(ended.code.as_deref(), Some("gate.drift"), "{ended:?}");
    assert_eq!(client.refused(&json!({ "task_id": "later" })).await.split('.').next(), Some("gate"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registration_taken_away_takes_its_tasks() {
    let server = Server::start("");
    let (node, _) = settled(&server).await;
    let records = Records::of(&server);
    let mut client = Client::start(&node);
    client.begin(&json!({ "task_id": "removed" })).await;
    let since = BootInstant::now();
    server.admin(&["workload", "remove", "spiffe://example.org/app"]);
    let (code, status) = client.over().await;
    println!("its stream ended {:?} after the command: {code}", BootInstant::now().since(since));
    assert_eq!(status, "PermissionDenied");
    assert!(records.ended("removed").await.0.code.is_some());
    assert_eq!(records.count("SELECT count(*) FROM credentials WHERE task = 'removed' AND ended_at IS NULL"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ended_while_the_control_plane_was_away_is_told_when_it_is_back() {
    let mut server = Server::start("");
    let (node, _) = settled(&server).await;
    let mut clients = Vec::new();
    for number in 0..3 {
        let mut client = Client::start(&node);
        client.begin(&json!({ "task_id": format!("away-{number}") })).await;
        clients.push(client);
    }
    server.kill();
    for (code, client) in clients.iter_mut().enumerate() {
        client.order(&json!({ "exit": code }));
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    server.restart();
    let back = BootInstant::now();
    let records = Records::of(&server);
    for (number, code) in ["task.ended", "task.failed", "task.failed"].into_iter().enumerate() {
        let (ended, at) = records.ended(&format!("away-{number}")).await;
        println!("told {:?} after the control plane's return", at.since(back));
        assert_eq!(ended.code.as_deref(), Some(code), "{ended:?}");
        assert!(at.since(back) < PATIENCE);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_was_killed_leaves_no_task_alive() {
    let server = Server::start("");
    let (mut node, _) = settled(&server).await;
    let records = Records::of(&server);
    let mut client = Client::start(&node);
    client.begin(&json!({ "task_id": "orphan" })).await;
    node.agent.take().unwrap().kill();
    let (_, status) = client.over().await;
    assert_ne!(status, "Ok", "the stream broke");
    assert_eq!(records.task("orphan").code, None, "nobody has told yet");
    node.start();
    let (ended, _) = records.ended("orphan").await;
    assert_eq!(ended.code.as_deref(), Some("task.abandoned"), "{ended:?}");
    node.until(holds_svid).await;
    // The id is free.
    client = Client::start(&node);
    client.begin(&json!({ "task_id": "orphan" })).await;
    assert_eq!(records.task("orphan").code, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn revocations_reach_tasks_and_nothing_else() {
    let server = Server::start("");
    let (node, id) = settled(&server).await;
    node.register(&server, &id, "other");
    node.until(|status| holds_svid(status) && status["workloads"].as_array().is_some_and(|all| all.len() == 2)).await;
    let records = Records::of(&server);
    let of = |name: &str, workload: &str| json!({ "task_id": name, "spiffe_id": format!("spiffe://example.org/{workload}") });
    let mut clients = Vec::new();
    for (name, workload) in [("one", "app"), ("two", "app"), ("three", "other")] {
        let mut client = Client::start(&node);
        client.begin(&of(name, workload)).await;
        clients.push(client);
    }
    // One task.
    let since = BootInstant::now();
    server.admin(&["revoke", "task", "one", "--reason", "a test"]);
    assert_eq!(clients[0].over().await, refused("gate.revoked"));
    println!("revoke task: its stream ended {:?} after the command began", BootInstant::now().since(since));
    assert_eq!(records.task("one").code.as_deref(), Some("gate.revoked"));
    assert_eq!(records.task("two").code, None);
    // Another one of the same id is another decision.
    clients[0].begin(&of("one", "app")).await;
    // All of a workload, and what it began anew.
    let since = BootInstant::now();
    server.admin(&["revoke", "workload", "spiffe://example.org/app", "--reason", "a test"]);
    for client in &mut clients[..2] {
        assert_eq!(client.over().await.1, "PermissionDenied");
    }
    println!("revoke workload: its streams ended {:?} after the command began", BootInstant::now().since(since));
    for name in ["one", "two"] {
        assert_eq!(records.ended(name).await.0.code.as_deref(), Some("gate.revoked"), "{name}");
        assert!(records.credential_ends(name).iter().all(|code| code.as_deref() == Some("gate.revoked")));
    }
    assert_ne!(clients[1].refused(&of("two", "app")).await, "");
    assert_eq!(records.task("three").code, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_taken_back_is_not_accepted_by_its_own_node() {
    let server = Server::start("");
    let (node, id) = settled(&server).await;
    // Whoever judges is another workload, which stays.
    node.register(&server, &id, "judge");
    node.until(|status| holds_svid(status) && status["workloads"].as_array().is_some_and(|all| all.len() == 2)).await;
    let stock = node.client().await;
    let accepted = async |token: &str| match stock.validate_jwt_token("api", token).await {
        Ok(_) => true,
        Err(error) => {
            assert!(format!("{error:?}").contains("The token was revoked."), "{error:?}");
            false
        }
    };
    let app = spiffe::SpiffeId::new("spiffe://example.org/app").unwrap();
    let fetched = async || stock.fetch_jwt_svid(["api"], Some(&app)).await.unwrap().token().to_owned();
    let plain = fetched().await;
    let mut client = Client::start(&node);
    let mut tokens = Vec::new();
    for name in ["one", "two", "three"] {
        let task = json!({ "task_id": name, "spiffe_id": "spiffe://example.org/app", "audience": ["api"] });
        tokens.push(client.begin(&task).await["token"].as_str().unwrap().to_owned());
    }
    for token in tokens.iter().chain([&plain]) {
        assert!(accepted(token).await);
    }
    // A task that ended, one that was revoked, and then all of the workload.
    assert_eq!(client.answer(json!({ "end": "one" })).await["ended"], true);
    client.over().await;
    assert!(!accepted(&tokens[0]).await);
    server.admin(&["revoke", "task", "two", "--reason", "a test"]);
    client.over().await;
    assert!(!accepted(&tokens[1]).await);
    assert!(accepted(&tokens[2]).await && accepted(&plain).await, "of these nothing was taken back");
    server.admin(&["revoke", "workload", "spiffe://example.org/app", "--reason", "a test"]);
    client.over().await;
    assert!(!accepted(&tokens[2]).await && !accepted(&plain).await);
    // Decided anew, it is another token; the old ones stay taken back.
    server.admin(&["workload", "resume", "spiffe://example.org/app"]);
    let since = BootInstant::now();
    let anew = loop {
        match stock.fetch_jwt_svid(["api"], Some(&app)).await {
            Ok(token) => break token.token().to_owned(),
            Err(error) => assert!(BootInstant::now().since(since) < PATIENCE, "{error:?}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert!(accepted(&anew).await && !accepted(&plain).await);
    Records::of(&server).denied("token.denied").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_begins_no_task() {
    if !interactive().is_empty() {
        println!("SKIPPED: begin from a login session: this test runs in one, and what it registers is for people too");
        return;
    }
    let server = Server::start("");
    let (node, _) = settled(&server).await;
    // As systemd-logind places them.
    let trees = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"];
    let made = trees.into_iter().find_map(|tree| {
        let directory = std::path::Path::new(tree).join(format!("session-{}.scope", std::process::id()));
        std::fs::create_dir(&directory).ok().map(|()| directory)
    });
    let Some(directory) = made else {
        println!("SKIPPED: begin from a login session: no cgroup can be made here");
        return;
    };
    let mut client = Client::start(&node);
    std::fs::write(directory.join("cgroup.procs"), client.id().to_string()).unwrap();
    assert_eq!(client.refused(&json!({ "task_id": "by-hand" })).await, "workload.login_session");
    Records::of(&server).denied("workload.login_session").await;
    assert_eq!(Records::of(&server).count("SELECT count(*) FROM tasks"), 0);
    drop(client);
    std::fs::remove_dir(&directory).unwrap();
}
