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

use std::collections::BTreeMap;
use std::time::Duration;

use bench::world::{Node, PATIENCE, Server, TRUST_DOMAIN, boot_extends, interactive};
use leasehold::clock::BootInstant;
use serde_json::Value;

/// Short, so that there is a renewal near every point.
const TERMS: &str = "[terms]\nlease_seconds = 8\nsvid_seconds = 6\n";

/// Who is the test's own process, in several ways.
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
    suspended: Option<&'static str>,
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
        for (name, selectors) in WORKLOADS.into_iter().zip(selectors) {
            let workload = format!("spiffe://{TRUST_DOMAIN}/{name}");
            let add = ["workload", "add", "--id", &workload, "--owner", "team-a", "--purpose", "soak", "--node", &id];
            let chosen: Vec<&str> = selectors.iter().flat_map(|selector| ["--selector", selector]).collect();
            server.admin(&[&add[..], &chosen[..], &["--audience", "api"], interactive()].concat());
        }
        let chance = Chance::of_today();
        let tally = Tally::default();
        let soak = Self { server, node, id, chance, tally, serials: Vec::new(), suspended: None };
        soak.recover().await;
        soak
    }

    /// One thing, at random. Fetches are the most of it.
    async fn step(&mut self) {
        match self.chance.below(100) {
            0..=54 => self.fetch().await,
            55..=69 => self.token().await,
            70..=77 => self.revoke_one(),
            78..=83 => self.suspend_or_resume(),
            84..=86 => self.kill_agent().await,
            87..=88 => self.kill_server().await,
            89..=91 => self.drift().await,
            92..=93 => self.reset_tpm().await,
            _ => tokio::time::sleep(Duration::from_millis(self.chance.below(1_500))).await,
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

    fn suspend_or_resume(&mut self) {
        match self.suspended.take() {
            Some(name) => {
                let id = format!("spiffe://{TRUST_DOMAIN}/{name}");
                self.server.admin(&["workload", "resume", &id]);
                self.tally.note("workloads resumed", true);
            }
            None => {
                let name = WORKLOADS[usize::try_from(self.chance.below(3)).unwrap()];
                let id = format!("spiffe://{TRUST_DOMAIN}/{name}");
                self.server.admin(&["revoke", "workload", &id, "--reason", "soak"]);
                self.suspended = Some(name);
                self.tally.note("workloads revoked", true);
            }
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

    /// Ends everything that was issued, and waits for the node's last records.
    async fn wind_up(&mut self) -> Value {
        self.server.admin(&["revoke", "node", &self.id, "--reason", "the soak is over"]);
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
    if soak.suspended.is_some() {
        soak.suspend_or_resume();
    }
    soak.recover().await;
    // The node delivers what it recorded before it is turned out.
    tokio::time::sleep(Duration::from_secs(8)).await;
    let joined = soak.wind_up().await;
    println!("{:.1} minutes: {joined}", minutes());
    for (what, (done, of)) in &soak.tally.0 {
        println!("  {what}: {done} of {of}");
    }
    assert_eq!(joined["orphan_count"], 0, "{joined}");
    assert_eq!(joined["credentials"], joined["ended"], "{joined}");
    assert!(joined["credentials"].as_u64() > Some(0) && joined["releases"].as_u64() > Some(0), "{joined}");
    let verified = soak.server.try_admin(&["audit", "verify", "--json"]);
    let facts: Value = serde_json::from_slice(&verified.stdout).unwrap();
    assert_eq!(facts["holds"], true, "{facts}");

    // One character changed anywhere in a record is found, and the record is named.
    soak.server.kill();
    let copy = soak.server.path("copy.db");
    std::fs::copy(soak.server.path("state/store.db"), &copy).unwrap();
    for kind in ["-wal", "-shm"] {
        let from = soak.server.path(&format!("state/store.db{kind}"));
        if from.exists() {
            std::fs::copy(from, soak.server.path(&format!("copy.db{kind}"))).unwrap();
        }
    }
    let connection = rusqlite::Connection::open(&copy).unwrap();
    let last: i64 = connection.query_row("SELECT max(id) FROM log", [], |row| row.get(0)).unwrap();
    let number = 1 + i64::try_from(soak.chance.below(u64::try_from(last).unwrap())).unwrap();
    let changed = connection.execute("UPDATE log SET time = time + 1 WHERE id = ?1", [number]).unwrap();
    assert_eq!(changed, 1);
    drop(connection);
    let copy = copy.display().to_string();
    let verified = soak.server.try_admin(&["audit", "verify", "--store", &copy, "--json"]);
    assert_eq!(verified.status.code(), Some(4));
    let said = String::from_utf8(verified.stdout).unwrap();
    assert!(said.contains(&number.to_string()), "record {number} isn't named: {said}");
}
