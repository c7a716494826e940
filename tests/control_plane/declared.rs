//! The registry as files: planned, asked about, applied at once, exported, the same again.

use std::path::Path;

use leasehold::protocol::Event;
use serde_json::Value;

use crate::bench::Server;
use crate::pushed::Stream;

const ENVIRONMENTS: &str = "[registry]\nenvironments = [\"prod\", \"dev\"]\n";

const OWNERS: &str = "[[owner]]\nname = \"team \\\"a\\\"\"\ncontact = \"x'; DROP TABLE owners; --\"\n\
    [[owner]]\nname = \"alice\"\nkind = \"person\"\n";

fn workloads(node_group: &str, more: &str) -> String {
    format!(
        "[[destination]]\nname = \"ledger\"\nenvironment = \"prod\"\n\n\
         [[workload]]\nid = \"spiffe://example.org/prod/settle\"\nowner = \"alice\"\npurpose = \"settlement\"\n\
         node_group = \"{node_group}\"\nselectors = [\"unix:uid:1\"]\ndestinations = [\"ledger\"]\ntier = 1\n{more}\n\
         [[workload]]\nid = \"spiffe://example.org/prod/web\"\nowner = \"team \\\"a\\\"\"\npurpose = \"serving\"\n\
         node_group = \"{node_group}\"\nselectors = [\"unix:uid:2\"]\n"
    )
}

fn write(dir: &Path, name: &str, text: &str) {
    std::fs::write(dir.join(name), text).unwrap();
}

/// `apply DIR` with further options: exit code, standard output and error.
async fn apply(server: &Server, dir: &Path, more: &[&str]) -> (i32, String, String) {
    let output = server.run(&[&["apply", dir.to_str().unwrap()], more].concat()).await;
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

async fn exported(server: &Server) -> Value {
    let dir = tempfile::tempdir().unwrap();
    server.admin(&["export", dir.path().join("new").to_str().unwrap()]).await["files"].clone()
}

#[tokio::test]
async fn a_plan_is_shown_and_exactly_that_is_done_once() {
    let server = Server::start_with(ENVIRONMENTS).await;
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "a-owners.toml", OWNERS);
    write(dir.path(), "b-workloads.toml", &workloads("edge", ""));
    write(dir.path(), "notes.txt", "not read");

    // Nothing is done without being told to.
    let (code, shown, said) = apply(&server, dir.path(), &[]).await;
    assert!(code == 2 && said.contains("--yes"), "{said}");
    assert_eq!(shown.lines().filter(|line| line.starts_with("added")).count(), 5, "{shown}");
    assert!(shown.contains("b-workloads.toml:5"), "{shown}");
    assert_eq!(apply(&server, dir.path(), &["--plan"]).await.0, 0);
    assert_eq!(exported(&server).await, serde_json::json!([]));

    let (code, shown, said) = apply(&server, dir.path(), &["--yes"]).await;
    assert!(code == 0 && shown.contains("done: 5 steps"), "{shown}{said}");
    let before = exported(&server).await;
    for again in [&["--yes"][..], &["--plan"], &[], &["--yes", "--prune"]] {
        let (code, shown, _) = apply(&server, dir.path(), again).await;
        assert!(code == 0 && shown.contains("nothing to change"), "{shown}");
    }
    assert_eq!(exported(&server).await, before);

    // A change shows what differs; what isn't declared stays, until --prune says otherwise.
    server.admin(&["owner", "add", "undeclared"]).await;
    write(
        dir.path(),
        "b-workloads.toml",
        &workloads("edge", "suspended = \"audit\"").replace("\"serving\"", "\"selling\""),
    );
    let (_, shown, _) = apply(&server, dir.path(), &["--plan"]).await;
    assert!(shown.contains("purpose: serving -> selling") && shown.contains("suspended workload"), "{shown}");
    assert!(!shown.contains("undeclared"), "{shown}");
    let (_, shown, _) = apply(&server, dir.path(), &["--plan", "--prune"]).await;
    assert!(shown.contains("retired   owner undeclared: not declared, and --prune"), "{shown}");
    let recorded = server.recorded().await;
    assert_eq!(recorded.iter().filter(|what| *what == "workload.added").count(), 2);
    assert!(!recorded.iter().any(|what| what == "workload.changed"), "a plan leaves no record");

    // A mistake anywhere changes nothing anywhere.
    write(
        dir.path(),
        "c.toml",
        "[[workload]]\nid = \"spiffe://example.org/prod/x\"\nowner = \"alice\"\npurpose = \"p\"\nnode_group = \"edge\"\nselectors = [\"unix:uid:2\"]\n",
    );
    let (code, _, said) = apply(&server, dir.path(), &["--yes"]).await;
    assert!(code == 1 && said.contains("admin.conflict") && said.contains("toml:"), "{said}");
    write(
        dir.path(),
        "c.toml",
        "[[workload]]\nid = \"spiffe://example.org/prod/../x\"\nowner = \"a\"\npurpose = \"p\"\nselectors = []\n",
    );
    let (code, _, said) = apply(&server, dir.path(), &["--yes"]).await;
    assert!(code == 2 && said.contains("c.toml:2: id"), "{said}");
    write(dir.path(), "c.toml", "[[workloads]]\n");
    let (code, _, said) = apply(&server, dir.path(), &["--yes"]).await;
    assert!(code == 2 && said.contains("c.toml:1") && said.contains("`workload`"), "{said}");
    assert_eq!(exported(&server).await[2], before[2]);
    assert_eq!(apply(&server, &dir.path().join("none"), &["--yes"]).await.0, 2);
    assert_eq!(apply(&server, tempfile::tempdir().unwrap().path(), &["--yes"]).await.0, 2);
}

#[tokio::test]
async fn nodes_hear_of_it_at_once_and_what_was_issued_ends() {
    let server = Server::start_with(ENVIRONMENTS).await;
    let mut member = server.leased().await;
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "owners.toml", OWNERS);
    write(
        dir.path(),
        "nodes.toml",
        &format!("[[node]]\nid = \"{}\"\ngroup = \"edge\"\nenvironment = \"prod\"\n", member.id()),
    );
    write(dir.path(), "workloads.toml", &workloads("edge", ""));
    let mut stream = Stream::open(&member.client).await;
    assert_eq!(apply(&server, dir.path(), &["--yes"]).await.0, 0);
    assert_eq!(stream.said().await, Some(Event::Attest));
    assert_eq!(member.attest().await.unwrap().entries.len(), 2);
    let id = "spiffe://example.org/prod/settle";
    assert!(member.credential(id).await.unwrap().0.answers[0].refusal.is_none());
    // Alice leaves: the file that says so suspends what she answers for.
    write(dir.path(), "owners.toml", &OWNERS.replace("kind = \"person\"", "kind = \"person\"\nretired = true"));
    let (_, shown, _) = apply(&server, dir.path(), &["--yes"]).await;
    assert!(shown.contains("suspended workload spiffe://example.org/prod/settle: its owner `alice` left"), "{shown}");
    assert_eq!(server.admin(&["workload", "show", id]).await["credentials"], serde_json::json!([]));
    let rows = server.admin(&["inventory"]).await;
    let row = rows["inventory"].as_array().unwrap().iter().find(|row| row["workload"] == id).unwrap();
    assert_eq!(
        (&row["node"], &row["verdict"], &row["node_environment"]),
        (&member.id().into(), &"affirming".into(), &"prod".into())
    );
    assert!(
        row["suspended"].is_string() && row["owner_retired"].is_string() && row["ek"].as_str().unwrap().len() == 68
    );
    assert_eq!((&rows["totals"]["suspended"], &rows["totals"]["without_tier"]), (&1.into(), &1.into()));
    let text = String::from_utf8(server.run(&["inventory"]).await.stdout).unwrap();
    assert!(text.contains("WORKLOAD") && text.contains("settlement"), "{text}");
}

#[tokio::test]
async fn an_export_makes_the_same_registry_on_an_empty_server() {
    let server = Server::start_with(ENVIRONMENTS).await;
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "owners.toml", OWNERS);
    write(
        dir.path(),
        "workloads.toml",
        &workloads("edge", "suspended = \"a # \\\\ \\\"b\\\"\"\ndescription = \"größe €\""),
    );
    let ek = format!(
        "[[ek]]\nname = \"000b{}\"\nlabel = \"rack 7\"\ngroup = \"edge\"\nenvironment = \"prod\"\n",
        "ab".repeat(32)
    );
    write(dir.path(), "eks.toml", &format!("{ek}[[ek]]\nkey = \"{}\"\nlabel = \"rack 8\"\n", "cd".repeat(32)));
    assert_eq!(apply(&server, dir.path(), &["--yes"]).await.0, 0);
    let out = tempfile::tempdir().unwrap();
    let path = out.path().to_str().unwrap();
    server.admin(&["export", path]).await;
    assert_eq!(server.run(&["export", path]).await.status.code(), Some(2), "nothing is overwritten unasked");
    server.admin(&["export", path, "--force"]).await;
    let other = Server::start_with(ENVIRONMENTS).await;
    let (code, _, said) = apply(&other, out.path(), &["--yes"]).await;
    assert_eq!(code, 0, "{said}");
    assert_eq!(exported(&other).await, exported(&server).await);
    assert!(apply(&other, out.path(), &["--prune"]).await.1.contains("nothing to change"));
}

#[tokio::test]
async fn a_plan_that_is_out_of_date_is_not_done() {
    let server = Server::start_with(ENVIRONMENTS).await;
    let files = serde_json::json!([{ "name": "all.toml", "text": "[[owner]]\nname = \"a\"\ncontact = \"x\"\n" }]);
    let send = async |command: Value| {
        let body = command.to_string();
        let stream = tokio::net::UnixStream::connect(&server.config.admin_socket).await.unwrap();
        let (mut reader, mut writer) = stream.into_split();
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let head = format!(
            "POST /v1/command HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        writer.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
        let mut answer = String::new();
        reader.read_to_string(&mut answer).await.unwrap();
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        serde_json::from_str::<Value>(body).unwrap()
    };
    let plan = send(serde_json::json!({ "command": "declaration_plan", "files": files, "prune": false })).await;
    assert_eq!(plan["steps"][0]["action"], "added");
    // Somebody else was quicker.
    server.admin(&["owner", "add", "a"]).await;
    let done = serde_json::json!({
        "command": "declaration_apply", "files": files, "prune": false, "fingerprint": plan["fingerprint"],
    });
    assert_eq!(send(done).await["code"], "admin.conflict");
    assert_eq!(server.admin(&["owner", "show", "a"]).await["owner"]["contact"], "");
}
