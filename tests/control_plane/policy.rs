//! Policy on a running server: in force at the next request, in order, signed, explained, and held to
//! by what is live.

use std::path::Path;

use leasehold::codes;
use leasehold::protocol::Event;
use serde_json::Value;

use crate::bench::{Member, Server};
use crate::pushed::Stream;

const ALL: &str = "@id(\"all\") permit (principal, action, resource);";
const SHORT: &str = "@id(\"short\") @ttl(\"60s\") permit (principal, action, resource);";
const NONE: &str = "@id(\"all\") permit (principal, action, resource);\n\
    @id(\"closed\") @says(\"closed for today\") forbid (principal, action, resource) when { principal.tier <= 4 };";

/// Writes a directory with one policy file.
fn directory(server: &Server, name: &str, text: &str) -> String {
    let dir = server.dir.path().join(name);
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("a.cedar"), text).unwrap();
    dir.display().to_string()
}

/// What a command that fails says.
async fn refused(server: &Server, arguments: &[&str]) -> String {
    let output = server.run(arguments).await;
    assert!(!output.status.success(), "{arguments:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The answer to one request: its term, or its refusal's code; and the decision's id.
async fn asked(member: &Member, id: &str) -> (Result<u64, String>, String) {
    let answer = member.credential(id).await.unwrap().0.answers.remove(0);
    let outcome = match answer.refusal {
        None => Ok(answer.term_seconds),
        Some(refusal) => Err(refusal.code.to_string()),
    };
    (outcome, answer.decision)
}

fn denied(code: codes::Code) -> Result<u64, String> {
    Err(code.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_is_in_force_at_the_next_request_and_what_is_live_is_held_to_it() {
    let server = Server::start().await;
    let mut member = server.leased().await;
    let id = server.register("web", &member.id()).await;
    let shown = async |decision: &str| server.admin(&["decision", "show", decision]).await;

    // What is registered is permitted, and says so.
    let (term, decision) = asked(&member, &id).await;
    assert_eq!(term, Ok(600));
    let first = shown(&decision).await;
    assert_eq!(first["bundle"]["version"], 0);
    assert_eq!(first["policies"], serde_json::json!(["registered"]));
    assert_eq!(first["replay"]["same"], true);
    assert_eq!(first["inputs"]["evidence"]["verdict"], "affirming");
    assert_eq!(first["evidence"].as_str().unwrap().len(), 64);

    let (all, short, none) =
        (directory(&server, "all", ALL), directory(&server, "short", SHORT), directory(&server, "none", NONE));
    let applied = server.admin(&["policy", "apply", &short]).await;
    assert_eq!((applied["changed"].as_bool(), applied["bundle"]["version"].as_u64()), (Some(true), Some(1)));
    // Twice is once.
    assert_eq!(server.admin(&["policy", "apply", &short]).await["changed"], false);
    let (term, decision) = asked(&member, &id).await;
    assert_eq!(term, Ok(60));
    let second = shown(&decision).await;
    assert_ne!(second["bundle"]["digest"], first["bundle"]["digest"]);
    assert_eq!(second["bundle"]["digest"], applied["bundle"]["digest"]);

    // One that forbids: refused at the next request, and what was issued is taken back.
    let mut stream = Stream::open(&member.client).await;
    server.admin(&["policy", "apply", &none]).await;
    assert!(stream.said().await.is_some_and(|event| !matches!(event, Event::Revoked(_))));
    let (outcome, decision) = asked(&member, &id).await;
    assert_eq!(outcome, denied(codes::POLICY_DENIED));
    let why = shown(&decision).await;
    assert_eq!(why["policies"], serde_json::json!(["closed"]));
    assert!(why["refusal"]["found"].as_str().unwrap().contains("closed for today"), "{why}");
    let recorded = server.recorded().await;
    assert_eq!(recorded.iter().filter(|what| *what == "credential.revoked").count(), 2, "{recorded:?}");
    assert!(recorded.contains(&"policy.applied".to_owned()));
    let refusals = server.admin(&["decision", "list", "--denied", "--workload", &id]).await;
    // Two for what was live, one for what was asked.
    assert_eq!(refusals["decisions"].as_array().unwrap().len(), 3);

    // Explained before anybody asks: exit code 4.
    let asked_why = ["policy", "why-not", "--workload", &id, "--node", &member.id()];
    let output = server.run(&asked_why).await;
    assert_eq!(output.status.code(), Some(4));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("in the way: closed (it forbids this): closed for today"), "{text}");

    server.admin(&["policy", "apply", &all]).await;
    assert_eq!(asked(&member, &id).await.0, Ok(600));
    assert!(server.run(&asked_why).await.status.success());
    let listed = server.admin(&["policy", "list"]).await;
    let versions: Vec<_> = listed["bundles"].as_array().unwrap().iter().map(|it| it["retired"].is_null()).collect();
    assert_eq!(versions, [false, false, true]);
    assert!(server.admin(&["policy", "show", "--version", "2"]).await["policies"]["a.cedar"] == NONE);
    let replayed = server.admin(&["decision", "replay", "--all"]).await;
    assert_eq!(replayed["decisions"], replayed["same"]);
    assert!(replayed["decisions"].as_u64().unwrap() >= 6);
    // A restart changes nothing of it.
    let mut server = server;
    server.restart().await;
    member.reconnect(&server);
    assert_eq!(asked(&member, &id).await.0, Ok(600));
    assert_eq!(server.admin(&["policy", "apply", &all]).await["changed"], false);
}

#[tokio::test(flavor = "multi_thread")]
async fn bundles_come_in_order_and_signed_by_enough() {
    let keys = tempfile::tempdir().unwrap();
    let at = |name: &str| keys.path().join(name).display().to_string();
    let offline = async |arguments: &[&str]| {
        let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_leasehold-server"))
            .args(arguments)
            .output()
            .await
            .unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    for name in ["one", "two"] {
        let (key, public) = (at(&format!("{name}.key")), at(&format!("{name}.pem")));
        offline(&["reference", "keygen", "--out", &key, "--public", &public]).await;
    }
    let policy = format!("[policy]\nkeys = [\"{}\", \"{}\"]\nthreshold = 2\n", at("one.pem"), at("two.pem"));
    let server = Server::start_with(&format!("{policy}default = \"deny\"\n")).await;
    let (all, none) = (directory(&server, "all", ALL), directory(&server, "none", NONE));
    for (version, dir) in [("5", &all), ("4", &all), ("6", &none)] {
        offline(&["policy", "build", dir, "--version", version, "--out", &at(&format!("{version}.bundle"))]).await;
    }
    let sign = async |file: &str, key: &str, out: &str| {
        offline(&["policy", "sign", &at(file), "--key", &at(key), "--out", &at(out)]).await;
    };
    sign("5.bundle", "one.key", "5-once").await;
    sign("5-once", "two.key", "5-twice").await;
    sign("4.bundle", "one.key", "4-once").await;
    sign("4-once", "two.key", "4-twice").await;
    for unsigned in [&all, &at("5.bundle"), &at("5-once")] {
        let said = refused(&server, &["policy", "apply", unsigned]).await;
        assert!(said.contains("policy.bundle_signature"), "{said}");
    }
    assert_eq!(server.admin(&["policy", "apply", &at("5-twice")]).await["changed"], true);
    assert_eq!(server.admin(&["policy", "apply", &at("5-twice")]).await["changed"], false);
    let said = refused(&server, &["policy", "apply", &at("4-twice")]).await;
    assert!(said.contains("policy.bundle_order") && said.contains("at least"), "{said}");
    let shown = server.admin(&["policy", "show"]).await;
    assert_eq!(shown["bundle"]["signers"].as_array().unwrap().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_permitted_without_the_bundle_that_was_in_force() {
    // The bundle lost, altered, rolled back; each under a running server, and after its restart.
    for (how, damage) in [
        ("lost", "DELETE FROM policy_bundles"),
        ("lost, with what knew of it", "DELETE FROM policy_bundles; DELETE FROM meta WHERE name = 'policy_version'"),
        ("altered", "UPDATE policy_bundles SET document = CAST(document || x'00' AS BLOB) WHERE retired_at IS NULL"),
        (
            "rolled back",
            "UPDATE policy_bundles SET retired_at = 1 WHERE version = 2;
             UPDATE policy_bundles SET retired_at = NULL WHERE version = 1;
             UPDATE meta SET value = x'0000000000000001' WHERE name = 'policy_version'",
        ),
    ] {
        let mut server = Server::start().await;
        let mut member = server.leased().await;
        let id = server.register("web", &member.id()).await;
        let all = directory(&server, "all", ALL);
        server.admin(&["policy", "apply", &directory(&server, "short", SHORT)]).await;
        server.admin(&["policy", "apply", &all]).await;
        assert_eq!(asked(&member, &id).await.0, Ok(600), "{how}");
        let store = rusqlite::Connection::open(Path::new(&server.config.state_dir).join("store.db")).unwrap();
        store.busy_timeout(std::time::Duration::from_secs(20)).unwrap();
        store.execute_batch(damage).unwrap();
        drop(store);
        let mut permits = 0;
        for restart in [false, true] {
            if restart {
                server.restart().await;
                member.reconnect(&server);
            }
            for _ in 0..10 {
                let (outcome, decision) = asked(&member, &id).await;
                permits += usize::from(outcome.is_ok());
                assert_eq!(outcome, denied(codes::POLICY_FAILED), "{how}");
                assert_eq!(server.admin(&["decision", "show", &decision]).await["permitted"], false);
            }
        }
        assert_eq!(permits, 0, "{how}");
        // What was issued before isn't taken back for it: nothing speaks against the node.
        assert!(!server.recorded().await.contains(&"credential.revoked".to_owned()));
        // A newer bundle mends it.
        server.admin(&["policy", "apply", &directory(&server, "short", SHORT)]).await;
        assert_eq!(asked(&member, &id).await.0, Ok(60), "{how}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_whose_tests_fail_stays_out() {
    let server = Server::start().await;
    let dir = directory(&server, "open", ALL);
    let tests = Path::new(&dir).join("tests");
    std::fs::create_dir(&tests).unwrap();
    std::fs::write(
        tests.join("never.toml"),
        "[[never]]\nname = \"prod from dev\"\nguardrails = false\n[never.each]\n\
         \"workload.environment\" = [\"prod\"]\n\"node.environment\" = [\"dev\", \"prod\"]\n\
         [never.when]\n\"node.environment\" = \"dev\"\n",
    )
    .unwrap();
    for command in [&["policy", "check", &dir][..], &["policy", "apply", &dir]] {
        let said = refused(&server, command).await;
        assert!(said.contains("policy.bundle") && said.contains("never `prod from dev`"), "{said}");
    }
    assert_eq!(server.admin(&["policy", "list"]).await["bundles"].as_array().unwrap().len(), 0);
    std::fs::write(Path::new(&dir).join("typo.ceder"), "").unwrap();
    assert!(refused(&server, &["policy", "check", &dir]).await.contains("typo.ceder"));
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/policy/example");
    let checked = server.admin(&["policy", "check", example]).await;
    assert!(checked["decisions"].as_u64().unwrap() > 100 && checked["properties"] == 2, "{checked}");
    let table = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/policy/table");
    let checked = server.admin(&["policy", "check", table]).await;
    assert!(checked["tests"].as_u64().unwrap() >= 200, "{checked}");
    let schema = server.run(&["policy", "schema"]).await;
    assert!(String::from_utf8(schema.stdout).unwrap().contains("entity Workload in [Role]"));
    let guardrails = server.run(&["policy", "schema", "--guardrails"]).await;
    assert!(String::from_utf8(guardrails.stdout).unwrap().contains("guardrail.verdict"));
}

/// Counts the credentials that were taken back.
async fn revoked(server: &Server) -> usize {
    server.recorded().await.iter().filter(|what| *what == "credential.revoked").count()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_evidence_says_and_the_clock_take_back_too() {
    let server = Server::start().await;
    let mut member = server.leased().await;
    let id = server.register("web", &member.id()).await;
    // After a while nothing is permitted any more; the clock of the server stands since its start.
    let now = leasehold::clock::WallTime::now();
    let until = leasehold::clock::WallTime(now.0 + 100);
    let text =
        format!("@id(\"until\") permit (principal, action, resource) when {{ context.now < datetime(\"{until}\") }};");
    server.admin(&["policy", "apply", &directory(&server, "until", &text)]).await;
    assert_eq!(asked(&member, &id).await.0, Ok(600));
    let before = revoked(&server).await;
    server.pass(400);
    let mut taken = 0;
    for _ in 0..600 {
        taken = revoked(&server).await - before;
        if taken == 1 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    assert_eq!(taken, 1, "by the clock alone");

    // Drift: the node's next evidence is of another verdict.
    server.admin(&["policy", "apply", &directory(&server, "all", ALL)]).await;
    // The node's own clocks stood meanwhile: a quote over the nonce of before would be a stale one.
    member.next = member.client.nonce().await.unwrap().nonce;
    member.attest().await.unwrap();
    assert_eq!(asked(&member, &id).await.0, Ok(600));
    let before = revoked(&server).await;
    member.tpm.node.values.insert(7, vec![0xEE; 32]);
    assert!(member.attest().await.unwrap().lease.is_none());
    assert_eq!(revoked(&server).await - before, 1, "by what the evidence says");
    let last = server.admin(&["decision", "list", "--denied", "-n", "1"]).await["decisions"][0].clone();
    assert_eq!(last["code"], codes::POLICY_GUARDRAIL.as_str(), "{last}");
    let shown = server.admin(&["decision", "show", last["id"].as_str().unwrap()]).await;
    assert_eq!(shown["inputs"]["evidence"]["verdict"], codes::VERIFY_PCR_MISMATCH.as_str());
    let why: Vec<&Value> = shown["policies"].as_array().unwrap().iter().collect();
    assert_eq!(why, ["guardrail.verdict"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn approvals_and_exceptions_count_and_end_by_themselves() {
    let server = Server::start().await;
    let member = server.leased().await;
    let id = server.register("web", &member.id()).await;
    let text = "@id(\"approved\") permit (principal, action, resource)\n\
                when { context has approved_until && context.approved_until > context.now };";
    server.admin(&["policy", "apply", &directory(&server, "approved", text)]).await;
    assert_eq!(asked(&member, &id).await.0, denied(codes::POLICY_DENIED));
    let why = server.run(&["policy", "why-not", "--workload", &id, "--node", &member.id()]).await;
    let why = String::from_utf8(why.stdout).unwrap();
    assert!(why.contains("would be permitted with approved_until"), "{why}");
    let request = ["approval", "request", "--workload", &id, "--reason", "release day", "--for", "5m"];
    let request = server.admin(&request).await["approval"]["id"].as_str().unwrap().to_owned();
    assert_eq!(asked(&member, &id).await.0, denied(codes::POLICY_DENIED), "asked for is not approved");
    server.admin(&["approval", "grant", &request, "--break-glass", "--reason", "nobody else is here"]).await;
    // No longer than the approval.
    assert_eq!(asked(&member, &id).await.0, Ok(300));
    server.pass(300);
    assert_eq!(asked(&member, &id).await.0, denied(codes::POLICY_DENIED));

    server.admin(&["policy", "apply", &directory(&server, "all", ALL)]).await;
    assert_eq!(asked(&member, &id).await.0, Ok(300), "what is left of the lease");
    let exception = ["exception", "add", "--workload", &id, "--reason", "old library", "--ticket", "T-1"];
    server.admin(&[&exception[..], &["--owner", "team", "--expires", "1d"]].concat()).await;
    assert_eq!(asked(&member, &id).await.0, Ok(300));
    // A day later, with a lease of then: nobody did anything.
    server.pass(90_000);
    let mut member = member;
    member.next = member.client.nonce().await.unwrap().nonce;
    member.attest().await.unwrap();
    assert_eq!(asked(&member, &id).await.0, denied(codes::POLICY_GUARDRAIL));
    let last = server.admin(&["decision", "list", "--denied", "-n", "1"]).await["decisions"][0].clone();
    assert_eq!(last["policies"], serde_json::json!(["guardrail.exception"]));
}
