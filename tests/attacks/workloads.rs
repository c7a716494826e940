//! What a node may hold is what an operator registered for it, and only under its last live lease.

use leasehold::codes::{self, Code};
use leasehold::protocol::{CredentialAnswer, Refused};

use crate::bench::world::Server;
use crate::rogue::{Docket, Member, Station};

fn register(server: &Server, id: &str, place: &[&str]) {
    let add = ["workload", "add", "--id", id, "--owner", "team-a", "--purpose", "tests", "--selector", "unix:uid:7"];
    server.admin(&[&add[..], place].concat());
}

/// The refusal within an answer, as if it had been the answer.
fn inner(answer: Result<CredentialAnswer, Refused>) -> Result<usize, Refused> {
    let issued = answer?.answers.remove(0);
    match issued.refusal {
        Some(refusal) => {
            assert!(issued.chain.is_empty());
            Err(Refused { refusal, next: None })
        }
        None => Ok(issued.chain.len()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_enrolled_node_does_not_get_another_nodes_workload() {
    let server = Server::start("");
    let one = Member::leased(&server).await;
    let two = Member::leased(&server).await;
    let (of_one, of_two) = ("spiffe://example.org/one", "spiffe://example.org/two");
    register(&server, of_one, &["--node", &one.id()]);
    register(&server, of_two, &["--node", &two.id()]);
    register(&server, "spiffe://example.org/edge", &["--node-group", "edge"]);
    assert_eq!(inner(two.ask(of_two, two.sequence).await).unwrap(), 1);
    let mut docket = Docket::of(&server);
    let mut ask = async |what: &str, id: &str, code: Code| {
        docket.refused(what, inner(two.ask(id, two.sequence).await), code);
    };
    ask("another node's workload", of_one, codes::ISSUER_NOT_THIS_NODE).await;
    ask("a workload of a group it isn't in", "spiffe://example.org/edge", codes::ISSUER_NOT_THIS_NODE).await;
    for (what, id) in [
        ("a workload that nobody registered", "spiffe://example.org/nobody"),
        ("the server's own id", "spiffe://example.org/leasehold/server"),
        ("another node's id", &format!("spiffe://example.org/leasehold/node/{}", one.id())),
        // Scheme and trust domain may be written so (SPIFFE ID, 2.1); an id has one text here, and it is that.
        ("its own id in capitals", "SPIFFE://EXAMPLE.ORG/two"),
        ("another spelling", "spiffe://example.org/./one"),
        ("another spelling in percent", "spiffe://example.org/%6fne"),
        ("a trailing slash", "spiffe://example.org/two/"),
        ("another trust domain", "spiffe://example.com/two"),
        ("a piece of SQL", "spiffe://example.org/two' OR '1'='1"),
        ("a wildcard", "spiffe://example.org/%"),
        ("a NUL", "spiffe://example.org/two\0"),
        ("lines and colours", "x\r\n{\"what\":\"credential.issued\"}\u{1b}[31m"),
        ("a hundred thousand letters", &"a".repeat(100_000)),
        ("nothing", ""),
    ] {
        ask(what, id, codes::ISSUER_UNKNOWN_WORKLOAD).await;
    }
    // What was sent is in the record as one text, cut, and nothing else came of it.
    let records = server.records();
    let strange =
        records.iter().find(|record| record["detail"]["workload"].as_str().is_some_and(|id| id.contains('\u{1b}')));
    assert_eq!(strange.unwrap()["what"], "issuer.unknown_workload");
    assert!(records.iter().all(|record| record.to_string().len() < 8192));
    let log = server.log();
    assert!(
        !log.contains("\u{1b}[31m") && !log.lines().any(|line| line.starts_with("{\"what\"")),
        "the log is kept in lines"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_issued_without_the_last_live_lease() {
    let server = Server::start("");
    let mut member = Station::blank().await.approved(&server).await;
    let id = "spiffe://example.org/app";
    register(&server, id, &["--node", &member.id()]);
    let mut docket = Docket::of(&server);
    docket.refused("before any attestation", inner(member.ask(id, 0).await), codes::ISSUER_NO_LEASE);
    // Nobody has said how it should be: that is an answer without a lease.
    assert_eq!(member.attest().await.unwrap().refusal.unwrap().code, codes::VERIFY_NO_REFERENCE);
    docket.recorded("attestation without reference values", codes::VERIFY_NO_REFERENCE);
    docket.refused("without a lease", inner(member.ask(id, 1).await), codes::ISSUER_NO_LEASE);
    member.learn(&server);
    member.attest().await.unwrap();
    let old = member.sequence;
    assert_eq!(inner(member.ask(id, old).await).unwrap(), 1);
    member.attest().await.unwrap();
    docket.skip();
    docket.refused("under the lease before", inner(member.ask(id, old).await), codes::ISSUER_NO_LEASE);
    for sequence in [0, member.sequence + 1, u64::MAX] {
        let refused = inner(member.ask(id, sequence).await);
        docket.refused(&format!("under a lease numbered {sequence}"), refused, codes::ISSUER_NO_LEASE);
    }
    assert_eq!(inner(member.ask(id, member.sequence).await).unwrap(), 1);

    // A drift ends it with the attestation that tells of it, …
    let key = rcgen::KeyPair::generate().unwrap();
    let kept = leasehold::protocol::encode(&member.wanted(id, member.sequence, &key)).unwrap();
    member.client.send("/v1/credentials", kept.clone()).await.unwrap();
    let leased = member.sequence;
    member.station.tpm.extend(7, [0xD1; 32]).await;
    docket.skip();
    assert_eq!(member.attest().await.unwrap().refusal.unwrap().code, codes::VERIFY_PCR_MISMATCH);
    docket.recorded("attestation after a drift", codes::VERIFY_PCR_MISMATCH);
    docket.refused("after a drift", inner(member.ask(id, leased).await), codes::ISSUER_NO_LEASE);
    // … and the answer that was kept for a retry with it.
    let refused = member.client.send("/v1/credentials", kept).await;
    docket.refused("the last SVID, asked for again", refused, codes::PROTOCOL_REPLAYED);

    // Back by an operator's word, gone by an operator's word.
    member.learn(&server);
    member.attest().await.unwrap();
    let request = leasehold::protocol::AttestRequest::new(crate::rogue::random(), member.evidence(member.next).await);
    let body = leasehold::protocol::encode(&request).unwrap();
    member.client.send("/v1/attest", body.clone()).await.unwrap();
    server.admin(&["reference", "retire", "--node", &member.id()]);
    docket.skip();
    let refused = member.client.send("/v1/attest", body).await;
    docket.refused("the last lease, asked for again after its values were retired", refused, codes::PROTOCOL_REPLAYED);
    docket.refused("without reference values", inner(member.ask(id, member.sequence).await), codes::ISSUER_NO_LEASE);
}

/// What an operator types is checked as well: it ends up in tables, logs and clients.
#[tokio::test(flavor = "multi_thread")]
async fn registrations_hold_plain_text_only() {
    let server = Server::start("");
    let refused = |changed: &[(&str, &str)]| {
        let mut options = std::collections::BTreeMap::from([
            ("--id", "spiffe://example.org/x"),
            ("--owner", "team-a"),
            ("--purpose", "tests"),
            ("--node-group", "edge"),
            ("--selector", "unix:uid:7"),
        ]);
        options.extend(changed.iter().copied());
        let mut arguments = vec!["workload", "add"];
        arguments.extend(options.iter().flat_map(|(option, value)| [*option, *value]));
        let output = server.try_admin(&arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{changed:?} was taken");
        assert!(said.contains("admin.invalid") || said.contains("admin.unknown"), "{changed:?}: {said}");
        let (option, value) = changed[0];
        let shown: String = value.chars().take(40).collect();
        println!("{option} {shown:?}: {}", said.lines().next().unwrap_or_default());
    };
    let long = "x".repeat(1025);
    for changed in [
        ("--hint", long.as_str()),
        ("--hint", "a\nb"),
        ("--hint", "\u{1b}[31m"),
        ("--purpose", long.as_str()),
        ("--purpose", "a\tb"),
        ("--owner", "team-a' --"),
        ("--node-group", "../edge"),
        ("--node-group", "edge\n"),
        ("--selector", "unix:path:/bin/\u{1}"),
        ("--selector", "unix:path:/bin/../sh"),
        ("--selector", "unix:uid:7 "),
        ("--selector", "unix:uid:٧"),
        ("--selector", "unix:sha256:"),
        ("--id", "spiffe://example.org/leasehold/node/x"),
        ("--id", "spiffe://example.org/x?y"),
        ("--id", "spiffe://example.org:1/x"),
        ("--ttl", "0"),
    ] {
        refused(&[changed]);
    }
    assert_eq!(server.json(&["workload", "list"])["workloads"].as_array().unwrap().len(), 0);
}
