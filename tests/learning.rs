//! A set that is learnt from a good node's logs, signed away from the control plane, and believed by control
//! plane and agent for its signature alone. And evidence that is appraised without either.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod bench;

use std::path::Path;
use std::process::{Command, Output};

use bench::world::{Node, Server, holds_svid};
use bench::{Image, Machine, TestTpm};
use serde_json::Value;
use sha2::{Digest, Sha256};

fn digest(file: &[u8]) -> [u8; 32] {
    Sha256::digest(file).into()
}

/// A command of `leasehold-server` that needs no server.
fn offline(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_leasehold-server")).args(arguments).output().unwrap()
}

fn words(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// The same with another line in its file.
fn edit(file: &Path, from: &str, to: &str) {
    let text = std::fs::read_to_string(file).unwrap();
    assert!(text.contains(from), "{text}");
    std::fs::write(file, text.replace(from, to)).unwrap();
}

/// A machine that has booted and run its init, and its node; the agent isn't started.
async fn booted(server: &Server, directory: &Path) -> (Machine, Node) {
    let (machine, tpm) = (Machine::new(directory), TestTpm::blank());
    machine.boot(&tpm, &Image::new("6.1.0-55")).await;
    machine.execute(&tpm, "/sbin/init", &digest(b"init")).await;
    let node = Node { agent: None, tpm, dir: tempfile::tempdir().unwrap() };
    node.configure(server, &machine.configuration());
    (machine, node)
}

fn layer(status: &Value, name: &str) -> String {
    let layers = status["layers"].as_array().unwrap();
    let found = layers.iter().find(|layer| layer["layer"] == name);
    found.map_or_else(String::new, |layer| layer["standing"].as_str().unwrap().to_owned())
}

/// Drafts a set from the node, once all that it sent is there.
async fn learn(server: &Server, id: &str, out: &str) -> String {
    for _ in 0..500 {
        let said = server.try_admin(&[
            "reference",
            "learn",
            "--node",
            id,
            "--profile",
            "uefi-uki",
            "--name",
            "edge",
            "--state",
            "6.1.0-55",
            "--out",
            out,
        ]);
        if said.status.success() {
            return words(&said);
        }
        assert!(words(&said).contains("sent no logs"), "{}", words(&said));
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!("no logs came: {}", server.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_learnt_counts_by_its_signature_alone() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name).display().to_string();
    let (key, public) = (at("policy.key"), at("policy.pem"));
    assert!(offline(&["reference", "keygen", "--out", &key, "--public", &public]).status.success());
    let policy = format!("[policy]\nkeys = [\"{public}\"]");
    let mut server = Server::start(&policy);
    let (machine, mut node) = booted(&server, directory.path()).await;
    // What asks for credentials must have been measured like all that runs: this test.
    let (path, own) = bench::ima::own();
    machine.execute(&node.tpm, path, own).await;
    edit(&node.path("agent.toml"), "[tpm]", &format!("policy_keys = [\"{public}\"]\n[tpm]"));
    node.start();
    let id = node.admit(&server).await;
    node.register(&server, &id, "app");
    assert!(words(&server.try_admin(&["reference", "learn", "--node", &id, "--yes"])).contains("reference_signature"));

    // From its logs; what its first quote didn't cover isn't in it.
    let (draft, signed) = (at("edge.toml"), at("edge.cose"));
    let said = learn(&server, &id, &draft).await;
    assert!(said.contains("PCR 10: it wasn't quoted") && said.contains("latest verdict"), "{said}");
    assert!(words(&server.try_admin(&["reference", "import", &draft])).contains("verify.reference_signature"));
    let sign = || assert!(offline(&["reference", "sign", "--key", &key, &draft]).status.success());
    sign();
    server.admin(&["reference", "import", &signed]);
    server.admin(&["reference", "assign", "--name", "edge", "--node", &id]);
    let status = node.until(holds_svid).await;
    assert_eq!((layer(&status, "boot"), layer(&status, "runtime")), ("affirmed".to_owned(), "not-proven".to_owned()));
    std::fs::copy(&signed, at("first.cose")).unwrap();

    // Now PCR 10 is quoted, and what ran is learnt, too.
    let said = learn(&server, &id, &draft).await;
    assert!(said.contains("runtime: rules added"), "{said}");
    sign();
    server.admin(&["reference", "import", &signed]);
    let followed = |status: &Value| holds_svid(status) && status["lease"]["rules"].is_string();
    let status = node.until(|status| followed(status) && status["lease"]["reference_version"] == 2).await;
    assert_eq!(layer(&status, "runtime"), "affirmed");
    machine.execute(&node.tpm, "/sbin/init", &digest(b"init")).await;
    node.fetch().await.unwrap();
    // An older version, signed as it may be, doesn't come back.
    let said = words(&server.try_admin(&["reference", "import", &at("first.cose")]));
    assert!(said.contains("verify.reference_order"), "{said}");

    // A control plane by itself, the policy taken out of its configuration, lets nothing new run.
    let configuration = server.path("server.toml");
    edit(&configuration, &policy, "");
    server.restart();
    edit(Path::new(&draft), "version = 2", "version = 3");
    let more = format!("[runtime.files]\n\"/bin/backdoor\" = [\"sha256:{}\"]", hex::encode(digest(b"backdoor")));
    edit(Path::new(&draft), "[runtime.files]", &more);
    server.admin(&["reference", "import", &draft]);
    let status = node.until(|status| status["trouble"]["code"] == "verify.reference_signature").await;
    println!("{status:#}");
    assert_eq!(status["standing"], "affirming");
    let diagnosis = words(&node.run_agent(&["doctor"]));
    assert!(diagnosis.contains("BROKEN rules") && diagnosis.contains("reference_signature"), "{diagnosis}");
    machine.execute(&node.tpm, "/bin/backdoor", &digest(b"backdoor")).await;
    assert!(node.fetch().await.is_err());

    // With the policy back, what nobody signed counts no more; signed, it does.
    server.kill();
    std::fs::write(&configuration, std::fs::read_to_string(&configuration).unwrap() + &policy).unwrap();
    server.restart();
    node.until(|status| status["reason"]["code"] == "verify.reference_signature").await;
    edit(Path::new(&draft), "version = 3", "version = 4");
    sign();
    server.admin(&["reference", "import", &signed]);
    node.until(|status| followed(status) && status["lease"]["reference_version"] == 4).await;
    node.fetch().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn evidence_is_appraised_without_a_control_plane() {
    let server = Server::start("");
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name).display().to_string();
    let (machine, node) = booted(&server, directory.path()).await;
    let image = at("linux.efi");
    std::fs::write(&image, Image::new("6.1.0-55").bytes).unwrap();
    std::fs::write(at("files"), format!("{}  /sbin/init\n", hex::encode(digest(b"init")))).unwrap();
    let set = at("edge.toml");
    let made = offline(&[
        "reference",
        "from-artifacts",
        "--name",
        "edge",
        "--profile",
        "uefi-uki",
        "--uki",
        &image,
        "--ima-digests",
        &at("files"),
        "--out",
        &set,
    ]);
    assert!(made.status.success(), "{}", words(&made));

    let (nonce, out) = ("5e".repeat(32), at("evidence"));
    let written = node.run_agent(&["evidence", "--nonce", &nonce, "--profile", "uefi-uki", "--out", &out]);
    assert!(written.status.success(), "{}", words(&written));
    // It says what to run; what it can't know is added.
    let said = words(&written);
    let line = said.lines().find_map(|line| line.strip_prefix("leasehold-server ")).unwrap();
    let (boot, ima) = (machine.boot_log.display().to_string(), machine.ima_list.display().to_string());
    let appraise = |line: &str| {
        let mut arguments: Vec<&str> = line.split(' ').collect();
        arguments.extend(["--boot-log", &boot, "--ima-log", &ima, "--references", &set, "--json"]);
        let output = offline(&arguments);
        let facts: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}", words(&output)));
        (output.status.code(), facts)
    };
    let (code, facts) = appraise(line);
    println!("{facts:#}");
    assert_eq!((code, facts["verdict"].as_str()), (Some(0), Some("affirmed")));
    assert_eq!((layer(&facts, "boot"), layer(&facts, "runtime")), ("affirmed".to_owned(), "affirmed".to_owned()));
    // Another nonce, another key: no evidence. A change of the node: evidence against it.
    let (code, facts) = appraise(&line.replace(&nonce, &"5f".repeat(32)));
    assert_eq!((code, facts["verdict"].as_str()), (Some(1), Some("broken")), "{facts}");
    let (code, facts) = appraise(&line.replace("evidence.node-key", "evidence.ak"));
    assert_eq!((code, facts["verdict"].as_str()), (Some(1), Some("broken")), "{facts}");
    machine.execute(&node.tpm, "/bin/backdoor", &digest(b"backdoor")).await;
    let written = node.run_agent(&["evidence", "--nonce", &nonce, "--profile", "uefi-uki", "--out", &out]);
    assert!(written.status.success(), "{}", words(&written));
    let (code, facts) = appraise(line);
    assert_eq!((code, facts["verdict"].as_str()), (Some(4), Some("contraindicated")), "{facts}");
    // A profile that isn't there is named with those that are.
    let written = node.run_agent(&["evidence", "--profile", "nonsense", "--out", &out]);
    assert_eq!(written.status.code(), Some(2));
    assert!(words(&written).contains("uefi-uki"), "{}", words(&written));
}
