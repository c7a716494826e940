//! Who is who and who answers for it: owners who leave, twins, environments, third parties, one key for one name.

use leasehold::codes;
use leasehold::protocol::{CredentialAnswer, CredentialRequest, Entry, Event, Wanted, Withdrawn};
use serde_json::Value;

use crate::bench::{Server, csr, random};
use crate::pushed::Stream;

/// The command for a workload, from the parts that differ.
fn add<'a>(id: &'a str, owner: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["workload", "add", "--id", id, "--owner", owner, "--purpose", "p"][..], more].concat()
}

/// Runs a command that must be refused; the exit code and what was said.
async fn refused(server: &Server, arguments: &[&str]) -> (i32, String) {
    let output = server.run(arguments).await;
    assert!(!output.status.success(), "{arguments:?} was taken");
    (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
}

/// Whether the node is told of these only that it gets nothing for them.
fn withheld(entries: Vec<Entry>) -> bool {
    let suspended = |entry: &Entry| entry.withheld.as_ref().is_some_and(|why| why.code == codes::POLICY_SUSPENDED);
    !entries.is_empty() && entries.iter().all(suspended)
}

fn row<'a>(facts: &'a Value, list: &str, id: &str) -> &'a Value {
    facts[list].as_array().unwrap().iter().find(|row| row["id"] == id).unwrap()
}

#[tokio::test]
async fn who_leaves_hands_over_or_leaves_nothing_behind() {
    let server = Server::start().await;
    let mut member = server.leased().await;
    let node = member.id();
    for owner in ["alice", "bob"] {
        server.admin(&["owner", "add", owner, "--kind", "person", "--contact", "mail"]).await;
    }
    let ids = ["spiffe://example.org/a", "spiffe://example.org/b"];
    for (id, uid) in ids.iter().zip(["unix:uid:1", "unix:uid:2"]) {
        server.admin(&add(id, "alice", &["--node", &node, "--selector", uid])).await;
        member.attest().await.unwrap();
        assert!(member.credential(id).await.unwrap().0.answers[0].refusal.is_none());
    }
    let mut stream = Stream::open(&member.client).await;

    // Nobody takes over from themselves, from nobody, or after having left.
    for (to, code) in [("alice", "admin.invalid"), ("carol", "admin.unknown")] {
        let (_, said) = refused(&server, &["owner", "retire", "alice", "--to", to, "--reason", "left"]).await;
        assert!(said.contains(code), "{said}");
    }
    assert_eq!(server.admin(&["owner", "show", "alice"]).await["answers_for"].as_array().unwrap().len(), 2);

    let retired = server.admin(&["owner", "retire", "alice", "--reason", "left"]).await;
    assert_eq!((&retired["changed"], &retired["suspended"]), (&true.into(), &serde_json::json!(ids)));
    for id in ids {
        let Some(Event::Withdraw(withdrawal)) = stream.said().await else { panic!("{id} isn't withdrawn") };
        assert_eq!(withdrawal.of, Withdrawn::Workloads(vec![id.to_owned()]));
    }
    assert_eq!(stream.said().await, Some(Event::Attest));
    assert!(withheld(member.attest().await.unwrap().entries), "the node is told why");
    for id in ids {
        let refusal = member.credential(id).await.unwrap().0.answers[0].refusal.clone().unwrap();
        assert_eq!(refusal.code, codes::POLICY_SUSPENDED);
        let shown = server.admin(&["workload", "show", id]).await;
        assert_eq!(shown["credentials"].as_array().unwrap().len(), 0);
        assert!(shown["workload"]["suspended_reason"].as_str().unwrap().contains("left"));
    }
    // Again is nothing, and nothing new may begin in that name.
    assert_eq!(server.admin(&["owner", "retire", "alice", "--reason", "left"]).await["changed"], false);
    let (code, said) =
        refused(&server, &add("spiffe://example.org/c", "alice", &["--node", &node, "--selector", "unix:uid:3"])).await;
    assert!(code == 2 && said.contains("left"), "{said}");
    assert!(refused(&server, &["workload", "resume", ids[0]]).await.1.contains("--owner"));
    assert!(refused(&server, &["owner", "add", "alice"]).await.1.contains("--again"));

    // Somebody else answers for them: they stay suspended until that one resumes them.
    let handed = server.admin(&["owner", "retire", "alice", "--to", "bob", "--reason", "left"]).await;
    assert_eq!(handed["reassigned"], serde_json::json!(ids));
    assert!(withheld(member.attest().await.unwrap().entries));
    server.admin(&["workload", "resume", ids[0]]).await;
    assert_eq!(member.attest().await.unwrap().entries[0].owner, "bob");
    assert!(member.credential(ids[0]).await.unwrap().0.answers[0].refusal.is_none());
    server.admin(&["owner", "add", "alice", "--again", "--kind", "person"]).await;
    assert_eq!(server.admin(&["owner", "show", "alice"]).await["answers_for"].as_array().unwrap().len(), 0);

    let recorded = server.recorded().await;
    for what in ["owner.retired", "credential.revoked", "workload.resumed", "owner.returned"] {
        assert!(recorded.iter().any(|found| found == what), "{what} in {recorded:?}");
    }
    assert_eq!(recorded.iter().filter(|what| *what == "credential.revoked").count(), 2);
}

#[tokio::test]
async fn a_successor_takes_over_at_once_and_what_was_issued_before_ends() {
    let server = Server::start().await;
    let mut member = server.leased().await;
    let id = server.register("web", &member.id()).await;
    server.admin(&["owner", "add", "others"]).await;
    member.attest().await.unwrap();
    member.credential(&id).await.unwrap();
    let retired = server.admin(&["owner", "retire", "team", "--to", "others", "--reason", "merged"]).await;
    assert_eq!((&retired["reassigned"], &retired["suspended"]), (&serde_json::json!([id]), &serde_json::json!([])));
    let shown = server.admin(&["workload", "show", &id]).await;
    assert_eq!((&shown["workload"]["owner"], &shown["credentials"]), (&"others".into(), &serde_json::json!([])));
    member.attest().await.unwrap();
    assert!(member.credential(&id).await.unwrap().0.answers[0].refusal.is_none());
}

#[tokio::test]
async fn a_workload_is_suspended_resumed_and_changed_in_place() {
    let server = Server::start().await;
    let mut member = server.leased().await;
    let id = server.register("web", &member.id()).await;
    let mut stream = Stream::open(&member.client).await;
    member.attest().await.unwrap();
    member.credential(&id).await.unwrap();
    server.admin(&["workload", "suspend", &id, "--reason", "strange traffic"]).await;
    assert!(matches!(stream.said().await, Some(Event::Withdraw(_))));
    assert_eq!(stream.said().await, Some(Event::Attest));
    let again = server.admin(&["workload", "suspend", &id, "--reason", "another"]).await;
    assert_eq!((&again["changed"], &again["workload"]["suspended_reason"]), (&false.into(), &"strange traffic".into()));
    member.attest().await.unwrap();
    let refusal = member.credential(&id).await.unwrap().0.answers[0].refusal.clone().unwrap();
    assert_eq!(refusal.code, codes::POLICY_SUSPENDED);
    assert!(refusal.found.contains("strange traffic"), "{refusal}");
    // Changing it leaves it suspended.
    server.admin(&["workload", "set", &id, "--tier", "2", "--ttl", "60"]).await;
    let shown = server.admin(&["workload", "show", &id]).await;
    let workload = &shown["workload"];
    assert_eq!((&workload["tier"], &workload["ttl_seconds"]), (&2.into(), &60.into()));
    assert!(workload["suspended"].is_string());
    server.admin(&["workload", "resume", &id]).await;
    member.attest().await.unwrap();
    assert_eq!(member.credential(&id).await.unwrap().0.answers[0].term_seconds, 60);
    // What doesn't change its scope ends nothing; what does, ends all of it.
    let live = async || server.admin(&["workload", "show", &id]).await["credentials"].as_array().unwrap().len();
    let more = ["--audience", "api", "--audience", "ledger", "--audience", "reports", "--audience", "x"];
    server.admin(&[&["workload", "set", &id, "--description", "words", "--ttl", "0"], &more[..]].concat()).await;
    assert_eq!(live().await, 1);
    server.admin(&["workload", "set", &id, "--audience", ""]).await;
    assert_eq!(live().await, 0);
    member.credential(&id).await.unwrap();
    server.admin(&["workload", "set", &id, "--purpose", "another"]).await;
    assert_eq!(live().await, 0);
    let records = server.run(&["--json", "audit", "tail", "-n", "1000"]).await.stdout;
    let records = String::from_utf8(records).unwrap();
    let changed = records.lines().rfind(|line| line.contains("workload.changed")).unwrap();
    let changed: Value = serde_json::from_str(changed).unwrap();
    assert_eq!(
        (&changed["detail"]["before"]["purpose"], &changed["detail"]["after"]["purpose"]),
        (&"tests".into(), &"another".into())
    );
    assert_eq!(refused(&server, &["workload", "set", &id]).await.0, 2);
    assert!(refused(&server, &["workload", "set", &id, "--tier", "5"]).await.1.contains("1 (internet-facing"));
}

#[tokio::test]
async fn two_names_for_the_same_process_are_refused() {
    let server = Server::start().await;
    let (one, two) = (server.admitted().await, server.admitted().await);
    server.admin(&["owner", "add", "team"]).await;
    server.admin(&["node", "set", &one.id(), "--group", "edge"]).await;
    let same = ["--selector", "unix:uid:1", "--selector", "unix:gid:1"];
    let turned = ["--selector", "unix:gid:1", "--selector", "unix:uid:1"];
    let on = |place: [&str; 2], selectors: &[&str]| -> Vec<String> {
        place.iter().chain(selectors).map(|text| (*text).to_owned()).collect()
    };
    let (first, second) = ("spiffe://example.org/first", "spiffe://example.org/second");
    let try_add = async |id: &str, more: Vec<String>| {
        let more: Vec<&str> = more.iter().map(String::as_str).collect();
        server.run(&add(id, "team", &more)).await
    };
    assert!(try_add(first, on(["--node", &one.id()], &same)).await.status.success());
    for place in [["--node", one.id().as_str()], ["--node-group", "edge"]] {
        let output = try_add(second, on(place, &turned)).await;
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(1) && said.contains("admin.conflict") && said.contains(first), "{said}");
    }
    // Elsewhere, or with one selector more, they are others.
    assert!(try_add(second, on(["--node", &two.id()], &same)).await.status.success());
    assert!(try_add("spiffe://example.org/third", on(["--node-group", "far"], &same)).await.status.success());
    let more = [&same[..], &["--selector", "unix:path:/bin/x"]].concat();
    assert!(try_add("spiffe://example.org/fourth", on(["--node", &one.id()], &more)).await.status.success());
    // Neither a node's move nor a change brings twins together.
    for command in [
        vec!["node", "set", &two.id(), "--group", "far"],
        vec!["node", "approve", &one.id(), "--group", "far"],
        vec!["workload", "set", second, "--node", &one.id()],
        vec!["workload", "set", "spiffe://example.org/third", "--node-group", "edge"],
        vec!["workload", "set", "spiffe://example.org/fourth", "--selector", "unix:uid:1", "--selector", "unix:gid:1"],
    ]
    .iter()
    .map(|words| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>())
    {
        let words: Vec<&str> = command.iter().map(String::as_str).collect();
        let (code, said) = refused(&server, &words).await;
        assert!(code == 1 && said.contains("admin.conflict"), "{words:?}: {said}");
    }
}

#[tokio::test]
async fn a_key_serves_one_name() {
    let server = Server::start().await;
    let (one, two) = (server.leased().await, server.leased().await);
    let first = server.register("first", &one.id()).await;
    let second = server.register("second", &one.id()).await;
    let far = server.register("far", &two.id()).await;
    let key = rcgen::KeyPair::generate().unwrap();
    let ask = async |member: &crate::bench::Member, ids: &[&str]| {
        let wanted = ids.iter().map(|id| Wanted { id: (*id).to_owned(), csr: csr(&key) }).collect();
        let request = CredentialRequest { request_id: random(), lease_sequence: member.sequence, wanted };
        let answer: CredentialAnswer = member.client.post("/v1/credentials", &request).await.unwrap();
        answer.answers.iter().map(|issued| issued.refusal.as_ref().map(|why| why.code)).collect::<Vec<_>>()
    };
    assert_eq!(ask(&one, &[&first, &second]).await, [None, Some(codes::ISSUER_REQUEST)]);
    assert_eq!(ask(&two, &[&far]).await, [Some(codes::ISSUER_REQUEST)], "nor on another node");
    assert_eq!(ask(&one, &[&first]).await, [None], "the same name may have it again");
    // A name that was taken back doesn't set its key free before its certificates have run out.
    server.admin(&["workload", "remove", &first]).await;
    assert_eq!(ask(&one, &[&second]).await, [Some(codes::ISSUER_REQUEST)]);
    server.pass(601);
    let mut one = one;
    one.next = one.client.nonce().await.unwrap().nonce;
    one.attest().await.unwrap();
    assert_eq!(ask(&one, &[&second]).await, [None]);
}

const ENVIRONMENTS: &str = "[registry]\nenvironments = [\"prod\", \"dev\"]\npurposes = [\"serving\", \"settlement\"]\n";

#[tokio::test]
async fn nothing_is_registered_across_environments() {
    let server = Server::start_with(ENVIRONMENTS).await;
    let (prod, dev) = (server.admitted().await, server.admitted().await);
    server.admin(&["owner", "add", "team"]).await;
    server.admin(&["node", "approve", &prod.id(), "--environment", "prod"]).await;
    let moved = server.admin(&["node", "set", &dev.id(), "--environment", "dev"]).await;
    assert_eq!((&moved["changed"], &moved["environment"]), (&true.into(), &"dev".into()));
    server.admin(&["destination", "add", "ledger", "--environment", "prod", "--description", "the ledger"]).await;
    assert_eq!(
        server.admin(&["destination", "add", "ledger", "--environment", "prod", "--description", "the ledger"]).await["changed"],
        false
    );
    let uid = ["--selector", "unix:uid:1"];
    let try_add = async |id: &str, purpose: &str, more: &[&str]| {
        let line = [&["workload", "add", "--id", id, "--owner", "team", "--purpose", purpose], more, &uid].concat();
        let output = server.run(&line).await;
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let (prod_id, dev_id) = (prod.id(), dev.id());
    for (id, purpose, more, word) in [
        ("spiffe://example.org/web", "serving", vec!["--node", &prod_id], "prod"),
        ("spiffe://example.org/staging/web", "serving", vec!["--node", &prod_id], "dev, prod"),
        ("spiffe://example.org/prod/web", "anything", vec!["--node", &prod_id], "serving, settlement"),
        ("spiffe://example.org/prod/web", "serving", vec!["--node", &dev_id], "of the environment `dev`"),
        ("spiffe://example.org/dev/web", "serving", vec!["--node", &dev_id, "--destination", "ledger"], "`prod`"),
    ] {
        let (code, said) = try_add(id, purpose, &more).await;
        assert!(code == 2 && said.contains(word), "{id} {purpose}: {said}");
    }
    assert!(
        try_add("spiffe://example.org/prod/web", "serving", &["--node", &prod_id, "--destination", "gone"])
            .await
            .1
            .contains("destination add")
    );
    assert_eq!(
        try_add("spiffe://example.org/prod/web", "serving", &["--node", &prod_id, "--destination", "ledger"]).await.0,
        0
    );
    let listed = server.admin(&["workload", "list"]).await;
    let workload = row(&listed, "workloads", "spiffe://example.org/prod/web");
    assert_eq!((&workload["environment"], &workload["counts_as_tier"]), (&"prod".into(), &1.into()));
    for command in [
        &["node", "set", prod_id.as_str(), "--environment", "dev"][..],
        &["node", "set", prod_id.as_str(), "--environment", "test"],
        &["destination", "remove", "ledger"],
        &["destination", "add", "other"],
        &["destination", "add", "ledger", "--environment", "dev"],
        &["ek", "add", "--name", &format!("000b{}", "11".repeat(32)), "--label", "x", "--environment", "test"],
    ] {
        refused(&server, command).await;
    }
    server.admin(&["workload", "set", "spiffe://example.org/prod/web", "--destination", ""]).await;
    server.admin(&["destination", "remove", "ledger"]).await;
    assert_eq!(server.admin(&["destination", "list"]).await["destinations"].as_array().unwrap().len(), 0);
}

#[tokio::test]
async fn a_named_ek_brings_its_node_to_its_environment() {
    let server = Server::start_with(ENVIRONMENTS).await;
    let mut tpm = crate::bench::SoftTpm::new();
    let name = hex::encode(crate::node::name(&crate::bench::ek_public(&tpm.ek)));
    let place = ["--group", "edge", "--environment", "prod"];
    server.admin(&[&["ek", "add", "--name", &name, "--label", "rack 7"], &place[..]].concat()).await;
    assert!(tpm.enrol(&server.stranger()).await.unwrap().admitted.is_some());
    let shown = server.admin(&["node", "show", &tpm.id().to_string()]).await;
    assert_eq!((&shown["group"], &shown["environment"]), (&"edge".into(), &"prod".into()));
}

#[tokio::test]
async fn somebody_elses_program_is_pinned_bound_and_short() {
    let server = Server::start().await;
    server.admin(&["owner", "add", "team"]).await;
    let digest = format!("unix:sha256:{}", "ab".repeat(32));
    let id = "spiffe://example.org/vendor";
    let place = ["--node-group", "edge", "--selector", "unix:uid:1", "--third-party"];
    let whole = ["--selector", digest.as_str(), "--audience", "vendor.example", "--ttl", "900"];
    for (left_out, word) in [(0, "unix:sha256"), (2, "--audience"), (4, "--ttl")] {
        let more: Vec<&str> = [&whole[..left_out], &whole[left_out + 2..]].concat();
        let (code, said) = refused(&server, &add(id, "team", &[&place[..], &more].concat())).await;
        assert!(code == 2 && said.contains("--third-party") && said.contains(word), "{said}");
    }
    let long = [&whole[..4], &["--ttl", "901"]].concat();
    assert!(refused(&server, &add(id, "team", &[&place[..], &long].concat())).await.1.contains("900"));
    server.admin(&add(id, "team", &[&place[..], &whole[..]].concat())).await;
    // It can't be loosened bit by bit either.
    for loosening in [["--ttl", "0"], ["--audience", ""], ["--selector", "unix:uid:1"]] {
        refused(&server, &[&["workload", "set", id], &loosening[..]].concat()).await;
    }
    server.admin(&["workload", "set", id, "--third-party", "false", "--ttl", "0"]).await;
}

#[tokio::test]
async fn a_node_that_is_put_elsewhere_loses_what_it_may_not_hold_there() {
    let server = Server::start_with(ENVIRONMENTS).await;
    let mut member = server.leased().await;
    let node = member.id();
    server.admin(&["owner", "add", "team"]).await;
    server.admin(&["node", "set", &node, "--group", "edge", "--environment", "prod"]).await;
    let id = "spiffe://example.org/prod/web";
    let place = ["--node-group", "edge", "--selector", "unix:uid:1"];
    let add = ["workload", "add", "--id", id, "--owner", "team", "--purpose", "serving"];
    server.admin(&[&add[..], &place].concat()).await;
    let live = async || server.admin(&["workload", "show", id]).await["credentials"].as_array().unwrap().len();
    let refused = async |member: &crate::bench::Member| {
        member.credential(id).await.unwrap().0.answers[0].refusal.as_ref().map(|why| why.code)
    };
    for (elsewhere, back, code) in [
        (["--environment", "dev"], ["--environment", "prod"], codes::POLICY_GUARDRAIL),
        (["--group", "far"], ["--group", "edge"], codes::ISSUER_NOT_THIS_NODE),
    ] {
        member.attest().await.unwrap();
        assert_eq!((refused(&member).await, live().await), (None, 1));
        server.admin(&[&["node", "set", &node], &elsewhere[..]].concat()).await;
        assert_eq!((refused(&member).await, live().await), (Some(code), 0), "{elsewhere:?}");
        server.admin(&[&["node", "set", &node], &back[..]].concat()).await;
    }
}
