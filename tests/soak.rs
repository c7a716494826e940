//! A soak: grants, faults and revocations at random, and afterwards every record joined. `tests/run soak` lasts
//! twenty minutes, LEASEHOLD_SOAK_MINUTES=… longer; among the other tests it lasts half a minute.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod bench;
#[path = "soak/callers.rs"]
mod callers;
#[path = "tasks/client.rs"]
#[allow(dead_code, reason = "the tests of tasks use more of it")]
mod client;
#[path = "soak/flips.rs"]
mod flips;
#[path = "tasks/helper.rs"]
mod helper;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bench::world::{Node, PATIENCE, Server, TRUST_DOMAIN, boot_extends, interactive};
use callers::Callers;
use client::Records;
use leasehold::clock::BootInstant;
use serde_json::Value;

/// Short, so that there is a renewal near every point.
const TERMS: &str = "[terms]\nlease_seconds = 8\nsvid_seconds = 6\n";

/// Who is the test's own process, in several ways. The last is of an owner of its own.
const WORKLOADS: [&str; 3] = ["one", "two", "three"];

/// Numbers that come again for the same seed (xorshift64*).
struct Chance(u64);

impl Chance {
    fn of_today() -> Self {
        let seed = std::env::var("LEASEHOLD_SOAK_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = seed.unwrap_or_else(|| u64::from_le_bytes(leasehold::secret::random().unwrap()) | 1);
        println!("LEASEHOLD_SOAK_SEED={seed}");
        Self(seed)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % limit
    }
}

/// What was done, by name.
#[derive(Default)]
struct Tally(BTreeMap<&'static str, (u64, u64)>);

impl Tally {
    fn note(&mut self, what: &'static str, came_about: bool) {
        let (done, of) = self.0.entry(what).or_default();
        *done += u64::from(came_about);
        *of += 1;
    }
}

struct Soak {
    server: Server,
    node: Node,
    id: String,
    chance: Chance,
    tally: Tally,
    /// Serial numbers of what was fetched last.
    serials: Vec<String>,
    callers: Callers,
    suspended: BTreeSet<&'static str>,
}

impl Soak {
    async fn begin() -> Self {
        let server = Server::start(TERMS);
        let mut node = Node::boot(&server).await;
        node.start();
        let id = node.admit(&server).await;
        server.admin(&["reference", "learn", "--node", &id, "--yes"]);
        let uid = format!("unix:uid:{}", rustix::process::geteuid().as_raw());
        let gid = format!("unix:gid:{}", rustix::process::getegid().as_raw());
        let selectors: [&[&str]; 3] = [&[&uid], &[&gid], &[&uid, &gid]];
        server.admin(&["owner", "add", "team-b"]);
        let owners = ["team-a", "team-a", "team-b"];
        for ((name, selectors), owner) in WORKLOADS.into_iter().zip(selectors).zip(owners) {
            let workload = format!("spiffe://{TRUST_DOMAIN}/{name}");
            let add = ["workload", "add", "--id", &workload, "--owner", owner, "--purpose", "soak", "--node", &id];
            let chosen: Vec<&str> = selectors.iter().flat_map(|selector| ["--selector", selector]).collect();
            server.admin(&[&add[..], &chosen[..], &["--audience", "api"], interactive()].concat());
        }
        let chance = Chance::of_today();
        let tally = Tally::default();
        let (callers, suspended) = (Callers::default(), BTreeSet::new());
        let soak = Self { server, node, id, chance, tally, serials: Vec::new(), callers, suspended };
        soak.recover().await;
        soak
    }

    /// One thing, at random. Fetches and tasks are the most of it.
    async fn step(&mut self) {
        self.callers.listen(&mut self.tally);
        let Self { callers, node, chance, tally, .. } = self;
        match chance.below(100) {
            0..=24 => self.fetch().await,
            25..=34 => self.token().await,
            35..=49 => callers.begin(node, chance, tally).await,
            50..=54 => callers.cancel(node, chance, tally).await,
            55..=64 => callers.word(chance, tally).await,
            65..=68 => callers.leave(chance, tally),
            69..=73 => self.revoke_one(),
            74..=76 => self.revoke_task(),
            77..=80 => self.suspend_or_resume(),
            81..=82 => self.revoke_owner(),
            83..=84 => self.kill_agent().await,
            85..=86 => self.kill_server().await,
            87..=88 => self.drift().await,
            89 => self.reset_tpm().await,
            _ => tokio::time::sleep(Duration::from_millis(chance.below(1_500))).await,
        }
    }

    async fn fetch(&mut self) {
        let client = self.node.client().await;
        let fetched = tokio::time::timeout(Duration::from_secs(20), client.fetch_x509_svid()).await;
        let svid = fetched.ok().and_then(Result::ok);
        self.tally.note("fetches of an X.509-SVID", svid.is_some());
        if let Some(svid) = svid {
            let leaf = <x509_cert::Certificate as der::Decode>::from_der(svid.leaf().as_bytes()).unwrap();
            self.serials.push(hex::encode(leaf.tbs_certificate().serial_number().as_bytes()));
        }
    }

    async fn token(&mut self) {
        let client = self.node.client().await;
        let wanted = format!("spiffe://{TRUST_DOMAIN}/one").parse().unwrap();
        let fetched =
            tokio::time::timeout(Duration::from_secs(20), client.fetch_jwt_svid(["api"], Some(&wanted))).await;
        self.tally.note("fetches of a JWT-SVID", fetched.is_ok_and(|token| token.is_ok()));
    }

    fn revoke_one(&mut self) {
        let Some(serial) = self.serials.pop() else { return };
        // It may have run out meanwhile; then there is nothing to revoke.
        let output = self.server.try_admin(&["revoke", "svid", &serial, "--reason", "soak", "--json"]);
        self.tally.note("revocations of one SVID", output.status.success());
    }

    fn revoke_task(&mut self) {
        let Some(task) = self.callers.task(&mut self.chance) else { return };
        // It may be over meanwhile.
        let output = self.server.try_admin(&["revoke", "task", &task, "--reason", "soak", "--json"]);
        self.tally.note("revocations of a task", output.status.success());
    }

    fn revoke_owner(&mut self) {
        let output = self.server.try_admin(&["revoke", "owner", "team-b", "--reason", "soak", "--json"]);
        self.suspended.insert(WORKLOADS[2]);
        self.tally.note("revocations of an owner", output.status.success());
    }

    fn suspend_or_resume(&mut self) {
        if self.suspended.is_empty() {
            let name = WORKLOADS[usize::try_from(self.chance.below(3)).unwrap()];
            let id = format!("spiffe://{TRUST_DOMAIN}/{name}");
            self.server.admin(&["revoke", "workload", &id, "--reason", "soak"]);
            self.suspended.insert(name);
            self.tally.note("workloads revoked", true);
        } else {
            self.resume();
        }
    }

    fn resume(&mut self) {
        for name in std::mem::take(&mut self.suspended) {
            self.server.admin(&["workload", "resume", &format!("spiffe://{TRUST_DOMAIN}/{name}")]);
            self.tally.note("workloads resumed", true);
        }
    }

    async fn kill_agent(&mut self) {
        self.node.agent.take().unwrap().kill();
        tokio::time::sleep(Duration::from_millis(self.chance.below(500))).await;
        self.node.start();
        self.tally.note("kills of the agent", true);
    }

    async fn kill_server(&mut self) {
        self.server.kill();
        tokio::time::sleep(Duration::from_millis(self.chance.below(3_000))).await;
        self.server.restart();
        self.tally.note("kills of the control plane", true);
    }

    async fn drift(&mut self) {
        self.node.tpm.extend(11, [0xAB; 32]).await;
        self.node.until(|status| status["standing"] == "contraindicated").await;
        let refused = self.node.fetch().await.is_err();
        assert!(refused, "an SVID was released after a drift");
        self.node.tpm.relay.reset(boot_extends()).await.unwrap();
        self.tally.note("drifts, refused, and a reboot", true);
    }

    async fn reset_tpm(&mut self) {
        self.node.tpm.relay.reset(boot_extends()).await.unwrap();
        self.tally.note("resets of the TPM", true);
    }

    /// Everything is well again: a client gets what it may have.
    async fn recover(&self) {
        let since = BootInstant::now();
        while let Err(error) = self.node.fetch().await {
            assert!(
                BootInstant::now().since(since) < PATIENCE,
                "it doesn't recover: {error}\n{}\n{}",
                self.node.log(),
                self.server.log()
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// With their processes go all tasks. Then one that lives ends with its node, as does everything that was issued; waits
    /// for the node's last records.
    async fn wind_up(&mut self) -> Value {
        let records = Records::of(&self.server);
        self.callers.clear();
        let since = BootInstant::now();
        let live = || records.count("SELECT count(*) FROM tasks WHERE ended_at IS NULL");
        while live() > 0 {
            assert!(BootInstant::now().since(since) < PATIENCE, "{} tasks live on: {}", live(), self.node.log());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let mut last = callers::all_well(&self.node).await;
        assert_eq!(live(), 1, "the one that goes on");
        // The node delivers what it recorded before it is turned out.
        tokio::time::sleep(Duration::from_secs(8)).await;
        self.server.admin(&["revoke", "node", &self.id, "--reason", "the soak is over"]);
        assert_eq!(callers::over(&mut last).await, "PermissionDenied");
        let since = BootInstant::now();
        loop {
            let output = self.server.try_admin(&["audit", "check", "--json"]);
            let joined: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
            if (joined["live"] == 0 && joined["holds"] == true) || BootInstant::now().since(since) > PATIENCE {
                return joined;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    /// Each task has one beginning and one end in the log, each credential of one one issue and one end; none lives.
    fn tasks_join(&self) {
        let records = Records::of(&self.server);
        let tasks = records.count("SELECT count(*) FROM tasks");
        assert!(tasks > 0);
        for what in ["task.began", "task.ended"] {
            let joined = records.count(&format!(
                "SELECT count(*) FROM tasks t WHERE t.ended_at IS NOT NULL AND (SELECT count(*) FROM log l
                 WHERE l.what = '{what}' AND l.task = t.id AND l.decision = t.decision AND l.workload = t.workload) = 1"
            ));
            assert_eq!(joined, tasks, "of {tasks} tasks {joined} have one {what}");
        }
        let credentials = records.count("SELECT count(*) FROM credentials WHERE task IS NOT NULL");
        assert!(credentials > tasks, "the last one was renewed");
        for what in ["'credential.issued'", "'credential.revoked', 'credential.expired'"] {
            let joined = records.count(&format!(
                "SELECT count(*) FROM credentials c WHERE c.task IS NOT NULL AND c.ended_at IS NOT NULL AND (SELECT count(*)
                 FROM log l WHERE l.credential = c.id AND l.what IN ({what}) AND l.task = c.task) = 1"
            ));
            assert_eq!(joined, credentials, "of {credentials} credentials of tasks {joined} have one of {what}");
        }
        println!("  {tasks} tasks with {credentials} credentials: each one beginning, one end");
    }
}

fn minutes() -> f64 {
    std::env::var("LEASEHOLD_SOAK_MINUTES").ok().and_then(|minutes| minutes.parse().ok()).unwrap_or(0.5)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_credential_has_one_issue_its_releases_and_one_end() {
    let mut soak = Soak::begin().await;
    let (since, term) = (BootInstant::now(), Duration::from_secs_f64(minutes() * 60.0));
    while BootInstant::now().since(since) < term {
        soak.step().await;
    }
    soak.resume();
    soak.recover().await;
    let joined = soak.wind_up().await;
    println!("{:.1} minutes: {joined}", minutes());
    for (what, (done, of)) in &soak.tally.0 {
        println!("  {what}: {done} of {of}");
        // In minutes each of them succeeds sometimes, whatever was broken meanwhile.
        assert!(*done > 0 || minutes() < 5.0, "{what}: none of {of}");
    }
    assert_eq!(joined["orphan_count"], 0, "{joined}");
    assert_eq!(joined["credentials"], joined["ended"], "{joined}");
    assert!(joined["credentials"].as_u64() > Some(0) && joined["releases"].as_u64() > Some(0), "{joined}");
    soak.tasks_join();
    let verified = soak.server.try_admin(&["audit", "verify", "--json"]);
    let facts: Value = serde_json::from_slice(&verified.stdout).unwrap();
    assert_eq!(facts["holds"], true, "{facts}");
    soak.server.kill();
    flips::each_is_named(&soak.server, &mut soak.chance);
}
