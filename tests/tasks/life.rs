//! A task while it lives: what it gets, who may speak for it, and what it leaves.

use std::time::Duration;

use base64ct::{Base64UrlUnpadded, Encoding};
use leasehold::clock::BootInstant;
use leasehold::delivery::workload_api::tasks::messages::{HeartbeatRequest, HeartbeatResponse};
use serde_json::json;

use super::bench::world::{Node, PATIENCE, Server, holds_svid};
use super::client::{Client, Records};
use super::helper::{code, connect, unary};

/// A begin for one task of this id.
fn named(id: &str) -> serde_json::Value {
    json!({ "task_id": id, "intent": "a test" })
}

/// The order to begin it, whatever comes of it.
fn named_begin(id: &str) -> serde_json::Value {
    json!({ "begin": named(id) })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_has_its_own_credentials_renewed_while_it_lives() {
    let server = Server::start("[terms]\nlease_seconds = 30\nsvid_seconds = 4\n");
    let mut node = Node::boot(&server).await;
    node.settle(&server).await;
    let records = Records::of(&server);
    let mut client = Client::start(&node);
    let first = client.begin(&named("books")).await;
    assert_eq!(first["spiffe_id"], "spiffe://example.org/app");
    assert!(first["key_bytes"].as_u64().unwrap() > 100, "{first}");
    let mut seen = vec![first["svid"].clone()];
    for _ in 0..3 {
        let update = client.next().await;
        assert_eq!(update["update"], "books");
        assert!(!seen.contains(&update["svid"]), "each has a key of its own");
        assert!(update["term_seconds"].as_u64().unwrap() <= 4);
        seen.push(update["svid"].clone());
    }
    let renewed = records.count("SELECT count(DISTINCT decision) FROM credentials WHERE task = 'books'");
    assert!(renewed >= 4, "each renewal is a decision: {renewed}");
    assert_eq!(records.count("SELECT count(*) FROM tasks"), 1);

    // A second one beside it, of another id; the same id is taken, for anybody.
    client.begin(&named("mail")).await;
    let mut other = Client::start(&node);
    assert_eq!(other.refused(&named("mail")).await, "task.invalid");
    assert_eq!(client.answer(json!({ "end": "mail" })).await["ended"], true);
    let (ended, _) = records.ended("mail").await;
    assert_eq!(ended.code.as_deref(), Some("task.ended"));
    assert!(ended.reason.contains("as told"), "{ended:?}");
    let listed = server.json(&["task", "list"]);
    let ids: Vec<_> = listed["tasks"].as_array().unwrap().iter().map(|task| task["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["books"]);
    let shown = server.json(&["task", "show", "mail"]);
    assert_eq!((&shown["begun"][0]["code"], &shown["begun"][0]["intent"]), (&json!("task.ended"), &json!("a test")));
    assert_eq!(server.try_admin(&["task", "show", "nobodys"]).status.code(), Some(1));
    // Free again, and another task.
    let again = other.begin(&named("mail")).await;
    assert!(!seen.contains(&again["svid"]));
    assert_eq!(records.task("mail").code, None);
    assert_eq!(records.task("books").code, None, "none of the others is touched");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_process_that_began_it_speaks_for_a_task() {
    let server = Server::start("");
    let mut node = Node::boot(&server).await;
    node.settle(&server).await;
    let records = Records::of(&server);
    let (mut client, mut other) = (Client::start(&node), Client::start(&node));
    client.begin(&json!({ "task_id": "mine", "heartbeat_seconds": 2 })).await;
    for order in [json!({ "heartbeat": "mine" }), json!({ "end": "mine" }), json!({ "heartbeat": "nobodys" })] {
        assert_eq!(other.answer(order).await["refused"], "task.unknown");
    }
    records.denied("task.unknown").await;
    let (since, mut heard) = (BootInstant::now(), BootInstant::now());
    while BootInstant::now().since(since) < Duration::from_secs(3) {
        heard = BootInstant::now();
        assert_eq!(client.answer(json!({ "heartbeat": "mine" })).await["heard"], 2);
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    assert_eq!(records.task("mine").code, None, "heard of, it lives");
    // Silent from here on.
    assert_eq!(client.over().await, ("task.heartbeat".to_owned(), "PermissionDenied".to_owned()));
    let (ended, at) = records.ended("mine").await;
    println!("silent: ended {:?} after the last sign of life, 2 s being allowed", at.since(heard));
    assert_eq!(ended.code.as_deref(), Some("task.heartbeat"));
}

#[tokio::test(flavor = "multi_thread")]
async fn statements_that_can_not_be_kept_are_refused_before_anything_is_asked() {
    let server = Server::start("");
    let mut node = Node::boot(&server).await;
    node.settle(&server).await;
    let records = Records::of(&server);
    let mut client = Client::start(&node);
    for wrong in [
        json!({ "task_id": "a b" }),
        json!({ "task_id": "x".repeat(129) }),
        json!({ "intent": "x".repeat(257) }),
        json!({ "purpose": "a\nb" }),
        json!({ "heartbeat_seconds": 3601 }),
        json!({ "x509": false }),
        json!({ "spiffe_id": "spiffe://example.org/other" }),
        json!({ "details": { "type": "no list" } }),
        json!({ "details": [{ "type": "a", "who": "knows" }] }),
        json!({ "details": [{ "type": "x".repeat(20_000) }] }),
    ] {
        assert_eq!(client.refused(&wrong).await, "task.invalid", "{wrong}");
    }
    // The Workload API's rule holds here too: a browser, or a proxy, can't be made to call.
    let channel = connect(node.path("workload.sock"));
    let request = HeartbeatRequest { task_id: "any".to_owned() };
    let bare = unary::<_, HeartbeatResponse>(&channel, "Heartbeat", tonic::Request::new(request)).await.unwrap_err();
    assert_eq!((bare.code(), code(&bare).as_str()), (tonic::Code::InvalidArgument, "delivery.header"));
    assert_eq!(records.count("SELECT count(*) FROM tasks"), 0);
    assert_eq!(records.count("SELECT count(*) FROM credentials WHERE task IS NOT NULL"), 0);
    // Its own id, made up.
    let made = client.begin(&json!({})).await;
    assert_eq!(made["update"].as_str().unwrap().len(), 32, "{made}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_tasks_leave_nothing_behind() {
    const TASKS: usize = 1000;
    let server = Server::start("");
    let mut node = Node::boot(&server).await;
    node.settle(&server).await;
    let records = Records::of(&server);
    let agent = node.agent.as_ref().unwrap().id();
    let descriptors = || std::fs::read_dir(format!("/proc/{agent}/fd")).unwrap().count();
    let mut client = Client::start(&node);
    let mut cycle = async |number: usize| {
        let id = format!("n{number}");
        client.begin(&named(&id)).await;
        if number.is_multiple_of(2) {
            assert_eq!(client.answer(json!({ "end": id })).await["ended"], true);
            client.over().await;
        } else {
            client.order(&json!({ "close": id }));
        }
    };
    for number in 0..10 {
        cycle(number).await;
    }
    let before = descriptors();
    let since = BootInstant::now();
    for number in 10..TASKS {
        cycle(number).await;
    }
    let took = BootInstant::now().since(since);
    println!("{} tasks begun and ended by one process in {took:?}", TASKS - 10);
    let open = "SELECT (SELECT count(*) FROM tasks WHERE ended_at IS NULL)
        + (SELECT count(*) FROM credentials WHERE task IS NOT NULL AND ended_at IS NULL)";
    let since = BootInstant::now();
    while records.count(open) > 0 {
        assert!(BootInstant::now().since(since) < PATIENCE, "{} rows stay open", records.count(open));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(records.count("SELECT count(*) FROM tasks WHERE ended_code = 'task.ended'"), TASKS as i64);
    let after = descriptors();
    assert!(after <= before + 8, "{before} descriptors before, {after} after");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_holds_the_ids_of_another_workload_s_tasks() {
    let server = Server::start("");
    let mut node = Node::boot(&server).await;
    let id = node.settle(&server).await;
    node.register(&server, &id, "other");
    node.until(|status| holds_svid(status) && status["workloads"].as_array().is_some_and(|all| all.len() == 2)).await;
    let records = Records::of(&server);
    let deploy =
        |workload: &str| json!({ "task_id": "deploy-42", "spiffe_id": format!("spiffe://example.org/{workload}") });
    let (mut one, mut two) = (Client::start(&node), Client::start(&node));
    one.begin(&deploy("app")).await;
    assert_eq!(one.refused(&deploy("other")).await, "task.invalid", "a process names its tasks by their ids alone");
    assert_eq!(two.refused(&deploy("app")).await, "task.invalid");
    two.begin(&deploy("other")).await;
    // Each speaks for its own, and each ends its own.
    assert_eq!(one.answer(json!({ "end": "deploy-42" })).await["ended"], true);
    assert_eq!(one.over().await.1, "Ok");
    let open = |workload: &str| {
        let of = format!("workload = 'spiffe://example.org/{workload}' AND ended_at IS NULL");
        records.count(&format!("SELECT count(*) FROM tasks WHERE id = 'deploy-42' AND {of}"))
            + records.count(&format!("SELECT count(*) FROM credentials WHERE task = 'deploy-42' AND {of}"))
    };
    let since = BootInstant::now();
    while open("app") > 0 {
        assert!(BootInstant::now().since(since) < PATIENCE);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(open("other"), 2, "one task and its credential");
    one.begin(&deploy("app")).await;
    assert_eq!((open("app"), open("other")), (2, 2));
    // Nobody shields another's task from being revoked by taking its id, too: all of the id are meant.
    server.admin(&["revoke", "task", "deploy-42", "--reason", "a test"]);
    assert_eq!((open("app"), open("other")), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_begin_that_is_given_up_leaves_nothing_and_its_id_is_free_again() {
    use rustix::process::{Pid, Signal, kill_process};
    let server = Server::start("");
    let mut node = Node::boot(&server).await;
    node.settle(&server).await;
    let records = Records::of(&server);
    let mut client = Client::start(&node);
    client.begin(&named("first")).await;
    let control_plane = Pid::from_raw(i32::try_from(server.process.as_ref().unwrap().id()).unwrap()).unwrap();
    for round in 0..5 {
        // It stands still while it is asked, and goes on once the caller has left.
        kill_process(control_plane, Signal::STOP).unwrap();
        client.order(&named_begin("again"));
        tokio::time::sleep(Duration::from_millis(200)).await;
        client.order(&json!({ "close": "again" }));
        assert_eq!(client.over().await.1, "given up");
        // Time for the agent to hear of that.
        tokio::time::sleep(Duration::from_millis(100)).await;
        kill_process(control_plane, Signal::CONT).unwrap();
        // The same id once more, as callers do that name their jobs.
        let begun = client.begin(&named("again")).await;
        assert_eq!(begun["update"], "again", "round {round}");
        assert_eq!(client.answer(json!({ "end": "again" })).await["ended"], true);
        client.over().await;
    }
    let live = "SELECT (SELECT count(*) FROM tasks WHERE id = 'again' AND ended_at IS NULL)
        + (SELECT count(*) FROM credentials WHERE task = 'again' AND ended_at IS NULL)";
    let since = BootInstant::now();
    while records.count(live) > 0 {
        assert!(BootInstant::now().since(since) < PATIENCE, "what was begun for nobody lives on");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let nothing = records.count("SELECT count(*) FROM tasks WHERE ended_reason LIKE '%given nothing%'");
    assert!(nothing > 0, "a grant that nobody waited for came, and its task was ended");
    assert_eq!(records.task("first").code, None);
}

/// The claims of a token; who signed it is for others to check.
fn claims(token: &serde_json::Value) -> serde_json::Value {
    let body = token.as_str().unwrap().split('.').nth(1).unwrap();
    let bytes = Base64UrlUnpadded::decode_vec(body).unwrap();
    serde_json::from_slice(&bytes).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_s_token_names_task_audience_and_what_was_granted() {
    let server = Server::start("");
    let mut node = Node::boot(&server).await;
    node.settle(&server).await;
    server.admin(&["workload", "set", "spiffe://example.org/app", "--audience", "https://ledger.example.org"]);
    node.until(holds_svid).await;
    let mut client = Client::start(&node);
    let details = json!([{ "type": "ledger", "actions": ["post"], "locations": ["books/2026"] }]);
    let stated = |id: &str| json!({ "task_id": id, "intent": "close the books", "audience": ["https://ledger.example.org"], "details": details });
    let update = client.begin(&stated("close")).await;
    let token = claims(&update["token"]);
    assert_eq!(token["aud"], json!(["https://ledger.example.org"]), "{token}");
    assert_eq!((&token["task_id"], &token["intent"]), (&json!("close"), &json!("close the books")));
    assert_eq!((&token["authorization_details"], &update["details"]), (&details, &details));
    assert_eq!(token["sub"], update["spiffe_id"]);
    assert!(update["svid"].is_string() && update["decision"].is_string(), "both in one update");
    // Another beginning, another token.
    client.answer(json!({ "end": "close" })).await;
    client.over().await;
    let again = claims(&client.begin(&stated("close")).await["token"]);
    assert_ne!(again["jti"], token["jti"]);
    let records = Records::of(&server);
    let jti = token["jti"].as_str().unwrap();
    let end = records.count(&format!("SELECT ended_code = 'task.ended' FROM credentials WHERE id = '{jti}'"));
    assert_eq!(end, 1, "the token ended with its task");
}
