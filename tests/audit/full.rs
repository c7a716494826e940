//! No room on the disk: nothing is released, and it heals by itself.

use std::process::Command;
use std::time::Duration;

use leasehold::clock::BootInstant;
use rustix::process::{Pid, Resource, Rlimit, prlimit};

use crate::bench::world::{Node, PATIENCE, Process, Server, holds_svid};
use crate::{all_delivered, all_holds, journal, releases};

/// Starts the agent so that a write beyond its limit of file sizes fails, as on a full disk, without the signal
/// that the kernel sends otherwise.
fn start(node: &mut Node) {
    node.agent = None;
    let agent = env!("CARGO_BIN_EXE_leasehold-agent");
    let script = format!("trap '' XFSZ; exec {agent} run --config {}", node.path("agent.toml").display());
    let mut command = Command::new("sh");
    // Its log would be too long as well.
    command.args(["-c", &script]).env("LEASEHOLD_LOG", "off");
    node.agent = Some(Process::spawn(&mut command, &node.path("agent.log")));
}

/// How long a file of the agent may become from now on.
fn limit(node: &Node, bytes: Option<u64>) {
    let pid = Pid::from_raw(node.agent.as_ref().unwrap().id().cast_signed()).unwrap();
    prlimit(Some(pid), Resource::Fsize, Rlimit { current: bytes, maximum: None }).unwrap();
}

fn size(node: &Node) -> u64 {
    let entries = std::fs::read_dir(node.path("state/journal")).unwrap().map(|entry| entry.unwrap());
    let logs = entries.filter(|entry| entry.path().extension().is_some_and(|extension| extension == "log"));
    logs.map(|entry| entry.metadata().unwrap().len()).max().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_released_that_cant_be_recorded() {
    let server = Server::start("");
    let mut node = Node::boot(&server).await;
    node.settle(&server).await;
    let mut seen = 0;
    for _ in 0..3 {
        // By another run of the agent: another credential, and so other records.
        start(&mut node);
        node.until(holds_svid).await;
        node.fetch().await.unwrap();
        seen += 1;
        all_delivered(&node).await;
        // Not one more byte, wherever its last record ends.
        limit(&node, Some(size(&node)));
        let since = BootInstant::now();
        let error = loop {
            match node.fetch().await {
                // Repeats are counted without the disk, until their number is to be written.
                Ok(_) => seen += 1,
                Err(error) => break error,
            }
            assert!(BootInstant::now().since(since) < PATIENCE, "it goes on releasing");
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        println!("nothing released {:?} after the disk was full", BootInstant::now().since(since));
        assert!(format!("{error:?}").contains("Unavailable"), "{error:?}");
        for _ in 0..10 {
            node.fetch().await.expect_err("nothing is released that can't be recorded");
        }
        let status = node.status().unwrap();
        assert_eq!(status["journal"]["trouble"]["code"], "audit.unwritable", "{status}");
        assert_eq!(node.run_agent(&["status"]).status.code(), Some(5));
        // Room again: nobody has to do anything.
        limit(&node, None);
        let healing = BootInstant::now();
        while node.fetch().await.is_err() {
            assert!(BootInstant::now().since(healing) < Duration::from_secs(100), "not healed");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        println!("released again {:?} after there was room", BootInstant::now().since(healing));
        seen += 1;
        assert_eq!(node.agent.take().unwrap().terminate(), Some(0));
    }
    // What clients saw is there, once each, and nothing of what they didn't get.
    assert_eq!(releases(&journal(&node)), seen);
    start(&mut node);
    node.until(holds_svid).await;
    all_delivered(&node).await;
    all_holds(&server, &node);
}
