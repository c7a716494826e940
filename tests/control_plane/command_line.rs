//! The command line: its help, its mistakes, its exit codes.

use std::process::Output;

use leasehold::config::ServerConfig;

use crate::bench::Server;

fn error(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test]
async fn mistakes_are_named_and_change_nothing() {
    let server = Server::start().await;
    let member = server.leased().await;
    let node = member.id();
    server.admin(&["owner", "add", "team", "--contact", "team@example.org"]).await;
    let add = |id: &'static str, owner: &'static str, node: String, selector: &'static str| {
        let server = &server;
        async move {
            let line = [
                "workload",
                "add",
                "--id",
                id,
                "--owner",
                owner,
                "--purpose",
                "p",
                "--node",
                &node,
                "--selector",
                selector,
            ];
            server.run(&line).await
        }
    };
    for (id, owner, node, selector, code, word) in [
        ("spiffe://other.org/a", "team", node.clone(), "unix:uid:1", 2, "trust domain"),
        ("spiffe://example.org/leasehold/node/x", "team", node.clone(), "unix:uid:1", 2, "reserved"),
        ("spiffe://example.org/a/..", "team", node.clone(), "unix:uid:1", 2, "--id"),
        ("spiffe://example.org/a", "nobody", node.clone(), "unix:uid:1", 1, "leasehold-server owner add nobody"),
        ("spiffe://example.org/a", "team", "abcdef00".to_owned(), "unix:uid:1", 1, "node list"),
        ("spiffe://example.org/a", "team", "xyz".to_owned(), "unix:uid:1", 2, "no node id"),
        ("spiffe://example.org/a", "team", node.clone(), "unix:user:root", 2, "unix:uid:N"),
    ] {
        let output = add(id, owner, node, selector).await;
        assert_eq!(output.status.code(), Some(code), "{}", error(&output));
        assert!(error(&output).contains(word), "{}", error(&output));
    }
    assert_eq!(server.admin(&["workload", "list"]).await["workloads"].as_array().unwrap().len(), 0);
    for changed in [true, false] {
        let output = add("spiffe://example.org/a", "team", node[..10].to_owned(), "unix:uid:1").await;
        assert!(output.status.success());
        assert!(String::from_utf8_lossy(&output.stdout).contains(if changed { "changed: yes" } else { "changed: no" }));
    }
    let output = add("spiffe://example.org/a", "team", node.clone(), "unix:uid:2").await;
    assert_eq!(output.status.code(), Some(1));
    assert!(error(&output).contains("admin.conflict"));
    assert_eq!(server.run(&["workload", "remove", "spiffe://example.org/b"]).await.status.code(), Some(1));
    assert!(server.run(&["revoke", "workload", "spiffe://example.org/a", "--reason", "done"]).await.status.success());
    assert_eq!(server.run(&["workload", "add"]).await.status.code(), Some(2));
}

#[tokio::test]
async fn lists_and_records_are_printed_for_people_too() {
    let server = Server::start().await;
    let member = server.leased().await;
    server.register("web", &member.id()).await;
    let text = async |arguments: &[&str]| {
        let output = server.run(arguments).await;
        assert!(output.status.success(), "{arguments:?} {}", error(&output));
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(text(&["node", "list"]).await.contains("affirming"));
    assert!(text(&["node", "show", &member.id()]).await.contains("grade: unknown"));
    assert!(text(&["node", "explain", &member.id()]).await.contains("it has a live lease"));
    assert!(text(&["workload", "list"]).await.contains("unix:uid:1000"));
    assert!(text(&["owner", "list"]).await.contains("team"));
    assert!(text(&["ek", "list"]).await.contains("LABEL"));
    assert!(text(&["reference", "list"]).await.contains("sha256:0-7"));
    assert!(text(&["ca", "show"]).await.contains("BEGIN CERTIFICATE"));
    let last = text(&["audit", "tail", "-n", "3"]).await;
    assert_eq!(last.lines().count(), 3);
    assert!(last.contains("workload.added"));
}

#[tokio::test]
async fn learning_asks_and_nobody_to_ask_means_no() {
    let server = Server::start().await;
    let member = server.admitted().await;
    let output = server.run(&["reference", "learn", "--node", &member.id()]).await;
    assert_eq!(output.status.code(), Some(2));
    assert!(error(&output).contains("--yes"));
    // What would be learnt is shown all the same.
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(shown.contains("grade: unknown") && shown.contains(&"08".repeat(32)), "{shown}");
    assert_eq!(server.admin(&["reference", "list"]).await["references"].as_array().unwrap().len(), 0);
    let shown = server.run(&["reference", "learn", "--node", &member.id(), "--yes"]).await;
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.contains("grade: unknown") && shown.contains(&"08".repeat(32)), "{shown}");
}

#[tokio::test]
async fn an_absent_server_is_unavailable_and_a_bad_configuration_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let program = || tokio::process::Command::new(env!("CARGO_BIN_EXE_leasehold-server"));
    let socket = dir.path().join("none.sock");
    let output = program().arg("--admin-socket").arg(&socket).args(["node", "list"]).output().await.unwrap();
    assert_eq!(output.status.code(), Some(5), "{}", error(&output));
    let file = dir.path().join("server.toml");
    std::fs::write(&file, "trust_domain = \"example.org\"\nlisten_on = \"x\"\n").unwrap();
    let output = program().arg("run").arg("--config").arg(&file).output().await.unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(error(&output).contains("server.toml:2") && error(&output).contains("`listen`"), "{}", error(&output));
    // A TPM that doesn't answer is no mistake in the configuration: try later.
    let sealed = format!(
        "trust_domain = \"example.org\"\nstate_dir = \"{0}/state\"\nadmin_socket = \"{0}/a.sock\"\n[keys]\ntpm = \"device:{0}/none\"\n",
        dir.path().display()
    );
    std::fs::write(&file, sealed).unwrap();
    let output = program().arg("run").arg("--config").arg(&file).output().await.unwrap();
    assert_eq!(output.status.code(), Some(5), "{}", error(&output));
    assert!(!dir.path().join("state/wrapping.key").exists(), "no key is left in the clear");
    let missing = dir.path().join("missing.toml");
    for mut command in [program(), {
        let mut with = program();
        with.arg("--config").arg(&missing);
        with
    }] {
        let output = command.arg("run").output().await.unwrap();
        assert_eq!(output.status.code(), Some(2));
        assert!(error(&output).contains("--help"), "{}", error(&output));
    }
}

#[tokio::test]
async fn help_says_what_each_command_is_for() {
    let program = |arguments: &'static [&'static str]| async move {
        let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_leasehold-server"))
            .args(arguments)
            .output()
            .await
            .unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap()
    };
    let help = program(&["--help"]).await;
    for command in [
        "run",
        "dev",
        "node",
        "ek",
        "owner",
        "destination",
        "workload",
        "apply",
        "export",
        "inventory",
        "reference",
        "ca",
        "revoke",
        "audit",
    ] {
        assert!(help.lines().any(|line| line.trim_start().starts_with(command)), "{command}");
    }
    assert!(help.contains("Exit codes"));
    assert!(program(&["run", "--help"]).await.contains("trust_domain = \"example.org\""));
    assert!(program(&["workload", "add", "--help"]).await.contains("Example"));
}

#[tokio::test]
async fn the_admin_socket_is_private_and_tells_liveness() {
    use std::os::unix::fs::MetadataExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let server = Server::start().await;
    let config: &ServerConfig = &server.config;
    assert_eq!(std::fs::metadata(&config.admin_socket).unwrap().mode() & 0o777, 0o600);
    for path in ["/live", "/ready"] {
        let mut stream = tokio::net::UnixStream::connect(&config.admin_socket).await.unwrap();
        stream
            .write_all(format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").as_bytes())
            .await
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
}

#[tokio::test]
async fn a_reader_that_leaves_is_no_panic() {
    let server = Server::start().await;
    server.admitted().await;
    for arguments in [&["node", "list"][..], &["--json", "node", "list"], &["audit", "tail", "--follow"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_leasehold-server"));
        command.arg("--admin-socket").arg(&server.config.admin_socket).args(arguments);
        let running = command.stdin(std::process::Stdio::null()).stdout(writer).kill_on_drop(true);
        let running = running.stderr(std::process::Stdio::piped()).spawn().unwrap().wait_with_output();
        let output = tokio::time::timeout(std::time::Duration::from_secs(20), running).await.unwrap().unwrap();
        assert_eq!((output.status.code(), error(&output).as_str()), (Some(0), ""), "{arguments:?}");
    }
}

#[tokio::test]
async fn output_that_can_not_be_written_is_a_failure() {
    let server = Server::start().await;
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_leasehold-server"));
    command.arg("--admin-socket").arg(&server.config.admin_socket).args(["ca", "show"]).stdout(full);
    // `output` would take a pipe of its own.
    let running = command.stderr(std::process::Stdio::piped()).spawn().unwrap();
    let output = running.wait_with_output().await.unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(error(&output).contains("standard output"), "{}", error(&output));
}
