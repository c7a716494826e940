//! An update that was announced: the node boots into the new image and is affirmed, nobody touching
//! anything; into an image that nobody announced, and is not.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod bench;

use std::path::Path;

use bench::world::{Node, Server, holds_svid};
use bench::{Image, Machine, TestTpm};
use serde_json::Value;
use sha2::{Digest, Sha256};

/// What runs on every boot.
const INIT: &[u8] = b"init";

fn write(path: &Path, bytes: &[u8]) -> String {
    std::fs::write(path, bytes).unwrap();
    path.display().to_string()
}

/// The machine goes off and boots `image`; the agent comes up with it.
async fn boot(node: &mut Node, machine: &Machine, image: &Image) {
    node.agent = None;
    machine.boot(&node.tpm, image).await;
    machine.execute(&node.tpm, "/sbin/init", &Sha256::digest(INIT).into()).await;
    machine.come_up(&node.tpm).await;
    node.start();
}

fn stands(status: &Value, layer: &str, standing: &str) -> bool {
    status["layers"].as_array().unwrap().iter().any(|one| one["layer"] == layer && one["standing"] == standing)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_planned_update_needs_nobody_and_an_unplanned_one_is_named() {
    let server = Server::start("");
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| directory.path().join(name);
    let images = ["6.1.0-55", "6.1.0-56", "6.1.0-57"].map(Image::new);
    let paths: Vec<String> =
        images.iter().zip(["a.efi", "b.efi", "c.efi"]).map(|(image, name)| write(&file(name), &image.bytes)).collect();
    let digests =
        write(&file("rootfs.sha256"), format!("{}  /sbin/init\n", hex::encode(Sha256::digest(INIT))).as_bytes());

    let tpm = TestTpm::blank();
    let machine = Machine::new(directory.path());
    machine.boot(&tpm, &images[0]).await;
    let node_directory = tempfile::tempdir().unwrap();
    let mut node = Node { agent: None, tpm, dir: node_directory };
    node.configure(&server, &machine.configuration());
    boot(&mut node, &machine, &images[0]).await;
    let id = node.admit(&server).await;

    // What is installed, computed from the artefacts alone.
    let set = file("edge.toml").display().to_string();
    let notes = server.admin(&[
        "reference",
        "from-artifacts",
        "--name",
        "edge",
        "--profile",
        "uefi-uki",
        "--state",
        "6.1.0-55",
        "--uki",
        &paths[0],
        "--ima-digests",
        &digests,
        "--out",
        &set,
    ]);
    println!("{notes}");
    server.admin(&["reference", "import", &set]);
    server.admin(&["reference", "assign", "--name", "edge", "--node", &id]);
    node.register(&server, &id, "app");
    let status = node.until(holds_svid).await;
    println!("{}", status["layers"]);
    for layer in ["boot", "runtime"] {
        assert!(stands(&status, layer, "affirmed"), "{layer}: {status}");
    }
    assert!(!stands(&status, "userspace", "contraindicated"), "{status}");
    node.fetch().await.unwrap();

    // The update is announced before it comes.
    let next = file("next.toml").display().to_string();
    let until = "2099-01-01T00:00:00Z";
    let said = server.admin(&[
        "reference",
        "plan-update",
        "--from",
        "edge",
        "--uki",
        &paths[1],
        "--state",
        "6.1.0-56",
        "--until",
        until,
        "--out",
        &next,
    ]);
    println!("{said}");
    for event in ["PCR 4", "PCR 9", "PCR 11", ".initrd"] {
        assert!(said.contains(event), "{event} isn't in the difference");
    }
    server.admin(&["reference", "import", &next]);
    // Both are accepted: nothing ends while the node still runs the old one.
    node.until(|status| holds_svid(status) && status["lease"]["reference_version"] == 2).await;
    boot(&mut node, &machine, &images[1]).await;
    node.until(holds_svid).await;
    node.fetch().await.unwrap();

    // Nobody announced this one.
    boot(&mut node, &machine, &images[2]).await;
    let status = node.until(|status| status["reason"]["code"] == "verify.event_unexpected").await;
    let findings = status["findings"].to_string();
    println!("{findings}");
    assert_eq!(status["standing"], "contraindicated");
    assert!(findings.contains("EV_EFI_BOOT_SERVICES_APPLICATION") && findings.contains("PCR 4"), "{findings}");
    assert!(node.fetch().await.is_err());
    let explained = server.try_admin(&["node", "explain", &id]);
    let words = String::from_utf8_lossy(&explained.stdout).into_owned();
    println!("{words}");
    assert!(words.contains("reference plan-update"), "{words}");
    // And back into the announced one.
    boot(&mut node, &machine, &images[1]).await;
    node.until(holds_svid).await;
}
