//! Operators over the network: by an SVID that is live, in a role that allows it.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Output;

use leasehold::codes::exit;
use serde_json::Value;

use crate::bench::{Member, Server};

/// The files that an operator has, of a workload's SVID.
pub async fn operator(server: &Server, node: &mut Member, name: &str, role: Option<&str>) -> tempfile::TempDir {
    let id = server.register(name, &node.id()).await;
    if let Some(role) = role {
        server.admin(&["operator", "add", &id, "--role", role]).await;
    }
    let (answer, key) = node.credential(&id).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let pem = |der: &[u8]| {
        let encoded = rcgen_pem(der);
        encoded.into_bytes()
    };
    std::fs::write(dir.path().join("svid.pem"), pem(&answer.answers[0].chain[0])).unwrap();
    let bundle = server.admin(&["ca", "show"]).await;
    let ca = bundle["cas"][0]["pem"].as_str().unwrap_or_else(|| panic!("{bundle}")).to_owned();
    std::fs::write(dir.path().join("bundle.pem"), ca).unwrap();
    let path = dir.path().join("svid_key.pem");
    std::fs::write(&path, key.serialize_pem()).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    dir
}

fn rcgen_pem(der: &[u8]) -> String {
    use der::pem::{LineEnding, encode_string};
    encode_string("CERTIFICATE", LineEnding::LF, der).unwrap()
}

/// A command over the network.
pub async fn run(server: &Server, svid: &Path, arguments: &[&str]) -> Output {
    tokio::process::Command::new(env!("CARGO_BIN_EXE_leasehold-server"))
        .args(["--server", &server.bound().addr.to_string(), "--svid"])
        .arg(svid)
        .args(arguments)
        .stdin(std::process::Stdio::null())
        .output()
        .await
        .unwrap()
}

pub fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_role_does_its_own_work_over_the_network() {
    let server = Server::start().await;
    let mut node = server.leased().await;
    let viewer = operator(&server, &mut node, "viewer", Some("viewer")).await;
    let daily = operator(&server, &mut node, "daily", Some("operator")).await;
    let admin = operator(&server, &mut node, "admin", Some("admin")).await;
    let nobody = operator(&server, &mut node, "nobody", None).await;

    for svid in [&viewer, &daily, &admin] {
        let output = run(&server, svid.path(), &["node", "list", "--json"]).await;
        assert!(output.status.success(), "{}", said(&output));
        let nodes: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(nodes["nodes"][0]["id"], node.id().as_str());
    }
    let add = ["owner", "add", "from-afar"];
    let refused = run(&server, viewer.path(), &add).await;
    assert_eq!(refused.status.code(), Some(i32::from(exit::FAILED)));
    assert!(said(&refused).contains("admin.role") && said(&refused).contains("`viewer`"), "{}", said(&refused));
    assert!(run(&server, daily.path(), &add).await.status.success());
    let rotate = ["ca", "prepare"];
    assert!(said(&run(&server, daily.path(), &rotate).await).contains("admin.role"));
    assert!(run(&server, admin.path(), &rotate).await.status.success());
    let stranger = run(&server, nobody.path(), &["node", "list"]).await;
    assert!(said(&stranger).contains("protocol.client_certificate"), "{}", said(&stranger));

    // Who did it stands in the record.
    let output = server.run(&["--json", "audit", "tail", "--lines", "1000"]).await;
    let text = String::from_utf8(output.stdout).unwrap();
    let by = |name: &str| {
        let mut record = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        record.rfind(|record| record["what"] == "owner.added" && record["detail"]["owner"] == name).unwrap()
            ["detail"]["by"]
            .clone()
    };
    assert_eq!(by("from-afar"), "spiffe://example.org/daily");
    assert!(by("team").as_str().unwrap().starts_with("local:uid:"));
    assert!(text.contains("admin.role"), "a refused command isn't in the record");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operators_role_and_certificate_end_at_once() {
    let server = Server::start().await;
    let mut node = server.leased().await;
    let admin = operator(&server, &mut node, "admin", Some("admin")).await;
    let list = ["operator", "list", "--json"];
    assert!(run(&server, admin.path(), &list).await.status.success());
    // Without the role nothing is left of it, though the certificate is still good.
    server.admin(&["operator", "remove", "spiffe://example.org/admin"]).await;
    assert!(said(&run(&server, admin.path(), &list).await).contains("protocol.client_certificate"));
    server.admin(&["operator", "add", "spiffe://example.org/admin", "--role", "admin"]).await;
    assert!(run(&server, admin.path(), &list).await.status.success());
    // The workload's registration goes, and with it what was issued to it.
    server.admin(&["workload", "remove", "spiffe://example.org/admin"]).await;
    let refused = run(&server, admin.path(), &list).await;
    assert!(said(&refused).contains("protocol.client_certificate"), "{}", said(&refused));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_operator_must_have_is_said() {
    let server = Server::start().await;
    let mut node = server.leased().await;
    let admin = operator(&server, &mut node, "admin", Some("admin")).await;
    let list = ["operator", "list"];
    let key = admin.path().join("svid_key.pem");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    let open = run(&server, admin.path(), &list).await;
    assert_eq!(open.status.code(), Some(i32::from(exit::USAGE)));
    assert!(said(&open).contains("config.mode"), "{}", said(&open));
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    // A bundle of somebody else's: nothing is sent to a server that isn't known.
    let other = Server::start().await;
    let theirs = run(&other, admin.path(), &list).await;
    assert_eq!(theirs.status.code(), Some(i32::from(exit::UNAVAILABLE)), "{}", said(&theirs));
    std::fs::remove_file(admin.path().join("bundle.pem")).unwrap();
    let missing = run(&server, admin.path(), &list).await;
    assert!(said(&missing).contains("bundle.pem"), "{}", said(&missing));
    // A role that nobody knows, an id that nobody has.
    let wrong = server.run(&["operator", "add", "spiffe://example.org/admin", "--role", "root"]).await;
    assert!(said(&wrong).contains("viewer, approver, operator, admin"), "{}", said(&wrong));
    let wrong = server.run(&["operator", "add", "spiffe://example.org/ghost", "--role", "admin"]).await;
    assert!(said(&wrong).contains("admin.unknown"), "{}", said(&wrong));
}

/// Whoever may change workloads doesn't become, by that, somebody who may do more.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_gives_itself_another_ones_identity() {
    let server = Server::start().await;
    let mut node = server.leased().await;
    let _admin = operator(&server, &mut node, "boss", Some("admin")).await;
    let daily = operator(&server, &mut node, "daily", Some("operator")).await;
    let other = server.leased().await;
    let boss = "spiffe://example.org/boss";
    let dir = tempfile::tempdir().unwrap();
    server.admin(&["export", dir.path().join("registry").to_str().unwrap()]).await;
    let registry = dir.path().join("registry");
    for entry in std::fs::read_dir(&registry).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace("unix:path:/usr/bin/boss", "unix:path:/usr/bin/mine")).unwrap();
    }
    let (other, registry) = (other.id(), registry.to_str().unwrap().to_owned());
    let ways: [&[&str]; 3] = [
        &["workload", "set", boss, "--selector", "unix:uid:7"],
        &["workload", "set", boss, "--node", &other],
        &["apply", &registry, "--yes"],
    ];
    let before = server.admin(&["workload", "show", boss]).await["workload"].clone();
    for way in ways {
        let refused = run(&server, daily.path(), way).await;
        assert!(said(&refused).contains("admin.role"), "{way:?}: {}", said(&refused));
        assert!(said(&refused).contains("the role admin"), "{way:?}: {}", said(&refused));
    }
    assert_eq!(server.admin(&["workload", "show", boss]).await["workload"], before);

    // A group with nobody in it is nobody's way; putting a node into it would be one.
    server.admin(&["workload", "set", boss, "--node-group", "ops"]).await;
    for joins in [
        &["node", "set", &other, "--group", "ops"][..],
        &["ek", "add", "--name", &format!("000b{}", "11".repeat(32)), "--label", "mine", "--group", "ops"][..],
    ] {
        let refused = run(&server, daily.path(), joins).await;
        assert!(said(&refused).contains("admin.role"), "{joins:?}: {}", said(&refused));
    }
    // Its own work goes on; and the name of an operator whose registration went is a name like any other.
    assert!(run(&server, daily.path(), &["owner", "add", "others"]).await.status.success());
    let removed = run(&server, daily.path(), &["workload", "remove", boss]).await;
    assert!(removed.status.success(), "{}", said(&removed));
    let operators = server.admin(&["operator", "list"]).await;
    assert!(!operators.to_string().contains(boss), "{operators}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_whose_owner_left_is_none() {
    let server = Server::start().await;
    let mut node = server.leased().await;
    let svid = operator(&server, &mut node, "alices", None).await;
    server.admin(&["owner", "add", "alice", "--kind", "person"]).await;
    server.admin(&["operator", "add", "spiffe://example.org/alices", "--role", "admin", "--owner", "alice"]).await;
    let list = ["operator", "list"];
    assert!(run(&server, svid.path(), &list).await.status.success());
    server.admin(&["owner", "retire", "alice", "--reason", "left"]).await;
    let refused = run(&server, svid.path(), &list).await;
    assert!(said(&refused).contains("its owner `alice` left"), "{}", said(&refused));
}

/// Who was an admin when it began to speak is asked again when it has spoken.
#[tokio::test(flavor = "multi_thread")]
async fn a_command_is_carried_out_as_whoever_its_sender_is_by_then() {
    use p256::pkcs8::DecodePrivateKey;
    let server = Server::start().await;
    let node = server.leased().await;
    let id = server.register("boss", &node.id()).await;
    server.admin(&["operator", "add", &id, "--role", "admin"]).await;
    let (answer, key) = node.credential(&id).await.unwrap();
    let key = p256::ecdsa::SigningKey::from_pkcs8_der(key.serialized_der()).unwrap();
    let client = server.client(Some((&answer.answers[0].chain, &key)));
    for (role, status) in [("admin", 200), ("viewer", 403)] {
        let (more, pieces) = tokio::sync::mpsc::channel::<Result<&'static str, std::io::Error>>(2);
        let body = reqwest::Body::wrap_stream(tokio_stream::wrappers::ReceiverStream::new(pieces));
        let request = client.http.post(format!("{}/v1/command", client.base)).body(body);
        let answer = tokio::spawn(request.send());
        more.send(Ok("{\"command\":")).await.unwrap();
        // By then the server has asked who it is.
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        server.admin(&["operator", "add", &id, "--role", role]).await;
        more.send(Ok("\"ca_prepare\"}")).await.unwrap();
        drop(more);
        let answer = answer.await.unwrap().unwrap();
        assert_eq!(answer.status(), status, "{role}");
        let said = answer.text().await.unwrap();
        assert_eq!(said.contains("admin.role"), status == 403, "{said}");
    }
}
