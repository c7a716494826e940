//! The ends of tasks, a hundred of each: how soon, and with which reason in the control plane's record.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::future::join_all;
use leasehold::clock::BootInstant;
use rustix::process::Signal;
use serde_json::json;

use super::bench::world::{Node, Server};
use super::client::{Client, Records, within_a_second};

/// Of each.
const ROUNDS: usize = 100;

/// At one time.
const LANES: usize = 4;

/// A memory cgroup with little in it, of whichever version the machine has for memory.
struct Box32 {
    directory: PathBuf,
}

impl Box32 {
    fn make(name: &str) -> Result<Self, String> {
        let (v1, v2) = (Path::new("/sys/fs/cgroup/memory"), Path::new("/sys/fs/cgroup"));
        let (root, limit) = match v1.join("memory.limit_in_bytes").exists() {
            true => (v1, "memory.limit_in_bytes"),
            false => (v2, "memory.max"),
        };
        let directory = root.join(format!("leasehold-test-{name}-{}", std::process::id()));
        std::fs::create_dir(&directory).map_err(|e| format!("{}: {e}", directory.display()))?;
        let made = Self { directory };
        std::fs::write(made.directory.join(limit), "33554432").map_err(|e| format!("{limit}: {e}"))?;
        Ok(made)
    }

    fn enter(&self, process: u32) {
        std::fs::write(self.directory.join("cgroup.procs"), process.to_string()).unwrap();
    }
}

impl Drop for Box32 {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.directory);
    }
}

/// A way in which a task ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    Done,
    Failed,
    Killed,
    OutOfMemory,
    OtherUser,
}

impl End {
    const fn code(self) -> &'static str {
        match self {
            Self::Done => "task.ended",
            Self::Failed | Self::Killed => "task.failed",
            Self::OutOfMemory => "task.out_of_memory",
            Self::OtherUser => "task.scope",
        }
    }

    /// What the record says of it beside the code.
    const fn words(self) -> &'static str {
        match self {
            Self::Done => "ended with code 0",
            Self::Failed => "ended with code 3",
            Self::Killed => "killed by signal 15",
            Self::OutOfMemory => "out of memory",
            Self::OtherUser => "uid 4711",
        }
    }

    fn cause(self, client: &mut Client) {
        match self {
            Self::Done => client.order(&json!({ "exit": 0 })),
            Self::Failed => client.order(&json!({ "exit": 3 })),
            Self::Killed => client.signal(Signal::TERM),
            Self::OutOfMemory => client.order(&json!({ "eat": true })),
            Self::OtherUser => client.order(&json!({ "uid": 4711 })),
        }
    }
}

/// One task that ends so; gives back how long that took, from its cause to the control plane's record.
async fn one(node: &Node, records: &Records, end: End, name: &str) -> Duration {
    let mut client = Client::start(node);
    let memory = (end == End::OutOfMemory).then(|| Box32::make(name).unwrap());
    if let Some(memory) = &memory {
        memory.enter(client.id());
    }
    client.begin(&json!({ "task_id": name, "intent": "a test" })).await;
    assert_eq!(records.task(name).code, None);
    let since = BootInstant::now();
    end.cause(&mut client);
    let (recorded, at) = records.ended(name).await;
    assert_eq!(recorded.code.as_deref(), Some(end.code()), "{name}: {recorded:?}");
    assert!(recorded.reason.contains(end.words()), "{name}: {recorded:?}");
    assert_eq!(records.credential_ends(name), [Some(end.code().to_owned())]);
    if end == End::OtherUser {
        // It lives, and hears of it.
        assert_eq!(client.over().await, ("task.scope".to_owned(), "PermissionDenied".to_owned()));
    }
    at.since(since)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_of_each_end_are_recorded_with_their_reasons() {
    let server = Server::start("");
    let mut node = Node::boot(&server).await;
    node.settle(&server).await;
    let mut ends = vec![End::Done, End::Failed];
    match Box32::make("try") {
        Ok(_) => ends.push(End::OutOfMemory),
        Err(why) => println!("SKIPPED: out of memory: no cgroup for memory can be made here: {why}"),
    }
    match rustix::process::geteuid().is_root() {
        true => ends.push(End::OtherUser),
        false => println!("SKIPPED: a change of user: only root can become somebody else"),
    }
    let records = Records::of(&server);
    for end in ends {
        let lanes = (0..LANES).map(async |lane| {
            let mut took = Vec::new();
            for round in (lane..ROUNDS).step_by(LANES) {
                // Failing is to end with a code, and to be killed.
                let end = if end == End::Failed && round % 2 == 1 { End::Killed } else { end };
                took.push(one(&node, &records, end, &format!("{end:?}-{round}")).await);
            }
            took
        });
        let took = join_all(lanes).await.concat();
        assert_eq!(took.len(), ROUNDS);
        within_a_second(&format!("{end:?}"), took);
    }
    // One beginning and one end for each task, each by its decision, and nothing is left.
    assert_eq!(records.count("SELECT count(*) FROM tasks WHERE ended_at IS NULL"), 0);
    assert_eq!(records.count("SELECT count(*) FROM credentials WHERE task IS NOT NULL AND ended_at IS NULL"), 0);
    let tasks = records.count("SELECT count(*) FROM tasks");
    for what in ["task.began", "task.ended"] {
        let counted = format!(
            "SELECT count(*) FROM tasks WHERE (SELECT count(*) FROM log WHERE what = '{what}' AND log.task = tasks.id
             AND log.decision = tasks.decision AND log.workload = tasks.workload) = 1"
        );
        assert_eq!(records.count(&counted), tasks, "{what}");
    }
    let unified = std::fs::read_to_string("/proc/self/mountinfo").unwrap().contains("- cgroup2 ");
    let told: BTreeSet<_> = [
        ("cgroup v2's count of kills", Path::new("/sys/fs/cgroup/memory.stat").exists()),
        ("a change of cgroup in v2", unified),
        ("a change of systemd unit", Path::new("/run/systemd/system").exists()),
    ]
    .into();
    for (row, here) in told {
        let word = if here { "here" } else { "NOT HERE, for the machine that boots" };
        println!("row: {row}: {word}");
    }
}
