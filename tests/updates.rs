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

use std::path::{Path, PathBuf};
use std::time::Duration;

use bench::world::{Node, Server, holds_svid};
use bench::{Image, Machine, TestTpm};
use leasehold::clock::BootInstant;
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
    // The client is this test's program: it must have been measured like all that runs.
    let (own, digest) = bench::ima::own();
    machine.execute(&node.tpm, own, digest).await;
    machine.come_up(&node.tpm).await;
    node.start();
}

fn stands(status: &Value, layer: &str, standing: &str) -> bool {
    status["layers"].as_array().unwrap().iter().any(|one| one["layer"] == layer && one["standing"] == standing)
}

/// A node that runs the first of three images and is held against what was computed of it.
struct Installed {
    directory: tempfile::TempDir,
    machine: Machine,
    images: [Image; 3],
    /// Where the images are.
    paths: Vec<String>,
    node: Node,
    id: String,
}

impl Installed {
    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    async fn new(server: &Server) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str| directory.path().join(name);
        let images = ["6.1.0-55", "6.1.0-56", "6.1.0-57"].map(Image::new);
        let paths: Vec<String> = images
            .iter()
            .zip(["a.efi", "b.efi", "c.efi"])
            .map(|(image, name)| write(&file(name), &image.bytes))
            .collect();
        let (own, digest) = bench::ima::own();
        let lines = format!("{}  /sbin/init\n{}  {own}\n", hex::encode(Sha256::digest(INIT)), hex::encode(digest));
        let digests = write(&file("rootfs.sha256"), lines.as_bytes());

        let machine = Machine::new(directory.path());
        let mut node = Node { agent: None, tpm: TestTpm::blank(), dir: tempfile::tempdir().unwrap() };
        node.configure(server, &machine.configuration());
        boot(&mut node, &machine, &images[0]).await;
        let id = node.admit(server).await;

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
        node.register(server, &id, "app");
        let status = node.until(holds_svid).await;
        println!("{}", status["layers"]);
        for layer in ["boot", "runtime"] {
            assert!(stands(&status, layer, "affirmed"), "{layer}: {status}");
        }
        assert!(!stands(&status, "userspace", "contraindicated"), "{status}");
        node.fetch().await.unwrap();
        Self { directory, machine, images, paths, node, id }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_planned_update_needs_nobody_and_an_unplanned_one_is_named() {
    let server = Server::start("");
    let mut installed = Installed::new(&server).await;
    let next = installed.file("next.toml").display().to_string();
    let Installed { machine, images, paths, node, id, .. } = &mut installed;

    // The update is announced before it comes.
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
    boot(node, machine, &images[1]).await;
    node.until(holds_svid).await;
    node.fetch().await.unwrap();

    // Nobody announced this one.
    boot(node, machine, &images[2]).await;
    let status = node.until(|status| status["reason"]["code"] == "verify.event_unexpected").await;
    let findings = status["findings"].to_string();
    println!("{findings}");
    assert_eq!(status["standing"], "contraindicated");
    assert!(findings.contains("EV_EFI_BOOT_SERVICES_APPLICATION") && findings.contains("PCR 4"), "{findings}");
    assert!(node.fetch().await.is_err());
    let explained = server.try_admin(&["node", "explain", id]);
    let words = String::from_utf8_lossy(&explained.stdout).into_owned();
    println!("{words}");
    assert!(words.contains("reference plan-update"), "{words}");
    // And back into the announced one.
    boot(node, machine, &images[1]).await;
    node.until(holds_svid).await;
}

/// systemd measures while the system runs: what its log tells of is affirmed, what it doesn't tell of is not; and a
/// log that is marked as incomplete for good, though all that counts is told, costs nothing.
#[tokio::test(flavor = "multi_thread")]
async fn the_userspace_log_is_followed_and_its_mark_is_not_waited_for_for_ever() {
    let server = Server::start("[terms]\nlease_seconds = 30\nsvid_seconds = 30\n");
    let installed = Installed::new(&server).await;
    let Installed { machine, node, .. } = &installed;
    let sequence = |status: &Value| status["lease"]["sequence"].as_u64();
    let before = sequence(&node.status().unwrap());
    machine.measure(&node.tpm, 15, "filesystem", "filesystem:/home:ext4").await;
    let status = node.until(|status| holds_svid(status) && sequence(status) > before).await;

    // The writer failed at something that no PCR shows.
    machine.mark(true);
    let before = sequence(&status);
    let since = BootInstant::now();
    while sequence(&node.status().unwrap()) <= before {
        node.fetch().await.unwrap_or_else(|error| panic!("{error}\n{}", node.log()));
        assert!(BootInstant::now().since(since) < Duration::from_secs(60), "{}", node.log());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    println!("another lease {:?} after the mark, with no refusal", BootInstant::now().since(since));
    assert!(node.log().contains("measurements.incomplete"), "it was waited for: {}", node.log());

    // And then at a record of what a PCR does show.
    machine.extend(&node.tpm, 15, "filesystem:/srv:ext4").await;
    assert!(node.fetch().await.is_err());
    let status = node.until(|status| status["reason"]["code"] == "verify.log_replay").await;
    assert!(status["reason"].to_string().contains("PCR 15"), "{status}");
    machine.record(15, "filesystem", "filesystem:/srv:ext4");
    machine.mark(false);
    node.until(holds_svid).await;
}
