//! Reference sets on the server: signed as policy asks, in order, assigned, retired.

use leasehold::codes;
use leasehold::protocol::{AttestAnswer, Event};

use crate::bench::{Failure, Member, Server};
use crate::pushed::Stream;

const TEXT: &str = r#"
schema = 1
name = "edge"
version = 1
profile = "swtpm-dev"
bank = "sha256"
[[state]]
name = "now"
[state.value]
0 = "0101010101010101010101010101010101010101010101010101010101010101"
"#;

/// Writes a version of the set and returns the file.
fn file(server: &Server, version: u64) -> String {
    let path = server.dir.path().join(format!("edge-{version}.toml"));
    std::fs::write(&path, TEXT.replace("version = 1", &format!("version = {version}"))).unwrap();
    path.display().to_string()
}

/// A refusal's exit code and words.
async fn refused(server: &Server, arguments: &[&str]) -> String {
    let output = server.run(arguments).await;
    assert!(!output.status.success(), "{arguments:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test]
async fn sets_come_into_force_in_order_and_nodes_hear_of_it() {
    let server = Server::start().await;
    let member = server.leased().await;
    let mut stream = Stream::open(&member.client).await;
    let (one, two) = (file(&server, 1), file(&server, 2));
    let imported = server.admin(&["reference", "import", &two]).await;
    assert_eq!((imported["changed"].as_bool(), imported["set"]["version"].as_u64()), (Some(true), Some(2)));
    // Again it changes nothing; older ones are refused; so is the same version with other contents.
    assert_eq!(server.admin(&["reference", "apply", &two]).await["changed"], false);
    assert!(refused(&server, &["reference", "import", &one]).await.contains("verify.reference_order"));
    let other = server.dir.path().join("other.toml");
    std::fs::write(&other, std::fs::read_to_string(&two).unwrap().replace("\"now\"", "\"then\"")).unwrap();
    assert!(refused(&server, &["reference", "import", &other.display().to_string()]).await.contains("more than 2"));
    assert!(
        refused(&server, &["reference", "assign", "--name", "none", "--node", &member.id()])
            .await
            .contains("admin.unknown")
    );

    let id = member.id();
    assert_eq!(server.admin(&["reference", "assign", "--name", "edge", "--node", &id]).await["changed"], true);
    assert_eq!(stream.said().await, Some(Event::Attest));
    assert_eq!(server.admin(&["reference", "assign", "--name", "edge", "--node", &id]).await["changed"], false);
    // Another set is another measure: the lease on the one before ended.
    let shown = server.admin(&["node", "show", &id]).await;
    assert_eq!(shown["reference_set"].as_str().or(shown["node"]["reference_set"].as_str()), Some("edge version 2"));
    server.admin(&["reference", "import", &file(&server, 3)]).await;
    assert_eq!(stream.said().await, Some(Event::Attest));

    let listed = server.admin(&["reference", "list"]).await;
    let sets = listed["sets"].as_array().unwrap();
    assert_eq!(sets.len(), 2);
    assert!(sets[0]["retired"].is_string() && sets[1]["retired"].is_null());
    assert_eq!(sets[1]["assigned"][0], format!("node {id}"));
    let text = String::from_utf8(server.run(&["reference", "list"]).await.stdout).unwrap();
    assert!(text.contains("LEARNT") && text.contains("ASSIGNED"), "{text}");

    // What is stored is what was imported.
    let shown = server.run(&["reference", "show", "edge", "--version", "2", "--toml"]).await;
    assert!(String::from_utf8(shown.stdout).unwrap().contains("version = 2"));
    let same = server.admin(&["reference", "diff", "edge", &two]).await;
    assert_eq!(same["differences"].as_array().unwrap().len(), 0);

    server.admin(&["reference", "retire", "--name", "edge"]).await;
    assert_eq!(stream.said().await, Some(Event::Attest));
    assert!(refused(&server, &["reference", "retire", "--name", "edge"]).await.contains("admin.unknown"));
    server.admin(&["reference", "unassign", "--node", &id]).await;
    assert!(refused(&server, &["reference", "unassign", "--node", &id]).await.contains("admin.unknown"));
    let recorded = server.recorded().await;
    for what in ["imported", "assigned", "retired", "unassigned"] {
        assert!(recorded.contains(&format!("reference.{what}")), "{what}: {recorded:?}");
    }
}

#[tokio::test]
async fn a_node_s_own_assignment_goes_before_its_group_s() {
    let server = Server::start().await;
    let mut tpm = crate::bench::SoftTpm::new();
    let waiting = tpm.enrol(&server.stranger()).await.unwrap();
    let id = hex::encode(waiting.node);
    server.admin(&["node", "approve", &id, "--group", "edge-nodes"]).await;
    server.admin(&["reference", "import", &file(&server, 1)]).await;
    let own = server.dir.path().join("own.toml");
    std::fs::write(&own, TEXT.replace("\"edge\"", "\"own\"")).unwrap();
    server.admin(&["reference", "import", &own.display().to_string()]).await;
    let set = async || {
        let shown = server.admin(&["node", "show", &id]).await;
        shown["reference_set"].as_str().or(shown["node"]["reference_set"].as_str()).map(str::to_owned)
    };
    assert_eq!(set().await, None);
    server.admin(&["reference", "assign", "--name", "edge", "--node-group", "edge-nodes"]).await;
    assert_eq!(set().await.as_deref(), Some("edge version 1"));
    server.admin(&["reference", "assign", "--name", "own", "--node", &id]).await;
    assert_eq!(set().await.as_deref(), Some("own version 1"));
    server.admin(&["reference", "unassign", "--node", &id]).await;
    assert_eq!(set().await.as_deref(), Some("edge version 1"));
    // A retired set leaves the node without reference values, not with others.
    server.admin(&["reference", "retire", "--name", "edge"]).await;
    assert!(set().await.unwrap().contains("retired"));
}

#[tokio::test]
async fn a_group_s_assignment_leaves_nodes_with_their_own_alone() {
    let server = Server::start().await;
    let member = server.leased().await;
    let id = member.id();
    server.admin(&["node", "approve", &id, "--group", "edge-nodes"]).await;
    server.admin(&["reference", "import", &file(&server, 1)]).await;
    let own = server.dir.path().join("own.toml");
    std::fs::write(&own, TEXT.replace("\"edge\"", "\"own\"")).unwrap();
    server.admin(&["reference", "import", &own.display().to_string()]).await;
    server.admin(&["reference", "assign", "--name", "own", "--node", &id]).await;
    let mut stream = Stream::open(&member.client).await;
    server.admin(&["reference", "assign", "--name", "edge", "--node-group", "edge-nodes"]).await;
    server.admin(&["reference", "unassign", "--node-group", "edge-nodes"]).await;
    // The first that the node hears is what came after.
    server.admin(&["node", "revoke", &id, "--reason", "a test"]).await;
    assert!(matches!(stream.said().await, Some(Event::Withdraw(_))));
    assert!(matches!(stream.said().await, Some(Event::Revoked(_))));
}

#[tokio::test]
async fn only_what_the_policy_keys_signed_comes_into_force() {
    let keys = tempfile::tempdir().unwrap();
    let at = |name: &str| keys.path().join(name).display().to_string();
    for name in ["one", "two", "stranger"] {
        // Keys are made and used where there is no server.
        let made = tokio::process::Command::new(env!("CARGO_BIN_EXE_leasehold-server"))
            .args(["reference", "keygen", "--out", &at(&format!("{name}.key"))])
            .args(["--public", &at(&format!("{name}.pem"))])
            .output()
            .await
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    }
    let policy = format!("[policy]\nkeys = [\"{}\", \"{}\"]\nthreshold = 2\n", at("one.pem"), at("two.pem"));
    let server = Server::start_with(&policy).await;
    let (text, once, twice) = (file(&server, 1), at("once.cose"), at("twice.cose"));
    let sign = async |key: &str, set: &str, out: &str| {
        server.admin(&["reference", "sign", "--key", &at(key), set, "--out", out]).await
    };
    assert!(refused(&server, &["reference", "import", &text]).await.contains("verify.reference_signature"));
    sign("one.key", &text, &once).await;
    assert!(refused(&server, &["reference", "import", &once]).await.contains("2 different policy keys"));
    // Nobody approves their own set, and a key that policy doesn't name approves none.
    assert!(refused(&server, &["reference", "sign", "--key", &at("one.key"), &once]).await.contains("already"));
    sign("stranger.key", &once, &twice).await;
    assert!(refused(&server, &["reference", "import", &twice]).await.contains("verify.reference_signature"));
    sign("two.key", &once, &twice).await;
    let imported = server.admin(&["reference", "import", &twice]).await;
    assert_eq!(imported["set"]["signers"].as_array().unwrap().len(), 2);
    assert!(server.recorded().await.contains(&"reference.imported".to_owned()));
    // Nobody signs what is learnt from a node: nothing of it counts here, and it is said before anybody is asked.
    let mut member = server.admitted().await;
    assert_eq!(member.attest().await.unwrap().refusal.unwrap().code, codes::VERIFY_NO_REFERENCE);
    let id = member.id();
    for yes in [&[][..], &["--yes"]] {
        let learn = [&["reference", "learn", "--node", &id], yes].concat();
        assert!(refused(&server, &learn).await.contains("reference learn --profile"));
    }
    // Where no log explains the values, they are drafted to be signed.
    let draft = at("draft.toml");
    let learn = ["reference", "learn", "--node", &id, "--name", "own", "--out", &draft, "--profile"];
    assert!(refused(&server, &[&learn[..], &["uefi-uki"]].concat()).await.contains("sent no logs"));
    server.admin(&[&learn[..], &["swtpm-dev"]].concat()).await;
    assert!(std::fs::read_to_string(&draft).unwrap().contains("[state.value]"));
    sign("one.key", &draft, &once).await;
    sign("two.key", &once, &twice).await;
    server.admin(&["reference", "import", &twice]).await;
    // Of another bank than this server asks for.
    let sha384 = server.dir.path().join("sha384.toml");
    let text = TEXT.replace("\"sha256\"", "\"sha384\"").replace(&"01".repeat(32), &"01".repeat(48));
    std::fs::write(&sha384, text.replace("version = 1", "version = 2")).unwrap();
    sign("one.key", &sha384.display().to_string(), &once).await;
    sign("two.key", &once, &twice).await;
    assert!(refused(&server, &["reference", "import", &twice]).await.contains("bank"));
}

/// Keys that are configured later hold for what came into force before: in both its forms.
#[tokio::test]
async fn what_nobody_signed_ends_with_the_first_policy_key() {
    let mut server = Server::start().await;
    let mut member = server.leased().await;
    let at = |name: &str| server.dir.path().join(name).display().to_string();
    let (private, public, signed) = (at("policy.key"), at("policy.pem"), at("edge.cose"));
    server.admin(&["reference", "keygen", "--out", &private, "--public", &public]).await;
    let id = member.id();
    server.config.policy.keys = vec![public.into()];
    server.restart().await;
    let answer = attest(&mut member, &server).await.unwrap();
    assert!(answer.lease.is_none());
    assert_eq!(answer.refusal.unwrap().code, codes::VERIFY_NO_REFERENCE);
    assert!(explained(&server, &id).await.contains("none that a policy key signed"));

    let keys = std::mem::take(&mut server.config.policy.keys);
    server.restart().await;
    server.admin(&["reference", "import", &file(&server, 1)]).await;
    server.admin(&["reference", "assign", "--name", "edge", "--node", &id]).await;
    server.config.policy.keys = keys;
    server.restart().await;
    assert_eq!(attest(&mut member, &server).await.unwrap_err().code(), codes::VERIFY_REFERENCE_SIGNATURE);
    let words = explained(&server, &id).await;
    assert!(words.contains("NO   it has reference values: verify.reference_signature"), "{words}");
    server.admin(&["reference", "sign", "--key", &private, &file(&server, 2), "--out", &signed]).await;
    server.admin(&["reference", "import", &signed]).await;
    let said = attest(&mut member, &server).await.err().map(|refused| refused.code());
    assert_ne!(said, Some(codes::VERIFY_REFERENCE_SIGNATURE));
    assert!(explained(&server, &id).await.contains("yes  it has reference values: the reference set `edge`"));
    // Nor does a retired one count as reference values.
    server.admin(&["reference", "retire", "--name", "edge"]).await;
    let words = explained(&server, &id).await;
    assert!(words.contains("NO   it has reference values") && words.contains("is retired"), "{words}");
}

/// Attests anew, after whatever happened to server and nonce.
async fn attest(member: &mut Member, server: &Server) -> Result<AttestAnswer, Failure> {
    member.reconnect(server);
    member.next = member.client.nonce().await?.nonce;
    member.attest().await
}

async fn explained(server: &Server, id: &str) -> String {
    String::from_utf8(server.run(&["node", "explain", id]).await.stdout).unwrap()
}

#[tokio::test]
async fn a_set_that_no_node_could_be_held_against_changes_nothing() {
    let server = Server::start().await;
    let other = server.dir.path().join("other.toml");
    std::fs::write(&other, TEXT.replace("swtpm-dev", "nonsense")).unwrap();
    let said = refused(&server, &["reference", "import", &other.display().to_string()]).await;
    assert!(said.contains("verify.profile") && said.contains("nonsense"), "{said}");
    assert_eq!(server.admin(&["reference", "list"]).await["sets"].as_array().unwrap().len(), 0);
}
