//! A list grown long: it is taken in once, and an increment costs what is new.

use std::time::{Duration, Instant};

use leasehold::codes;
use leasehold::evidence::logs::{SEGMENT_LIMIT, log_digests};
use leasehold::evidence::{LogChain, LogKind};
use leasehold::protocol::{AttestAnswer, AttestRequest, LogPart, LogsHeld, LogsRequest};
use leasehold::verify::runtime::RuntimeRules;
use sha2::{Digest, Sha256};

use crate::bench::{Member, Server};
use crate::list::{VALUES, document, entry, extended, rules, write};

/// A member with a list of its own.
struct Listed {
    member: Member,
    chain: LogChain,
}

impl Listed {
    /// A node held against a document with these rules.
    async fn new(server: &Server, runtime: RuntimeRules) -> Self {
        let mut member = server.admitted().await;
        let values: std::collections::BTreeMap<_, _> = VALUES.map(|pcr| (pcr, vec![pcr + 1; 32])).into();
        let file = write(server.dir.path(), &document("fleet", 1, values.clone(), runtime));
        server.admin(&["reference", "import", &file]).await;
        server.admin(&["reference", "assign", "--name", "fleet", "--node", &member.id()]).await;
        member.tpm.node.values = values;
        member.tpm.node.values.insert(10, vec![0; 32]);
        member.next = member.client.nonce().await.unwrap().nonce;
        let mut listed = Self { member, chain: LogChain::default() };
        let aggregate = Sha256::digest((0..8).flat_map(|pcr| vec![pcr + 1; 32]).collect::<Vec<u8>>());
        let first = listed.add("boot_aggregate", &aggregate);
        listed.send(&first).await;
        listed
    }

    /// An entry, extended: its bytes.
    fn add(&mut self, path: &str, digest: &[u8]) -> Vec<u8> {
        let (bytes, digest) = entry(path, digest);
        let value = self.member.tpm.node.values.get_mut(&10).unwrap();
        *value = extended(value, &digest).to_vec();
        bytes
    }

    /// Sends bytes ahead.
    async fn send(&mut self, bytes: &[u8]) {
        for part in bytes.chunks(SEGMENT_LIMIT) {
            let offset = self.chain.length;
            self.chain = self.chain.append(part);
            let part = Some(LogPart { kind: LogKind::Ima, offset, bytes: part.to_vec() });
            let request = LogsRequest { boot_id: *self.member.tpm.node.boot().as_bytes(), part };
            let held: LogsHeld = self.member.client.post("/v1/logs", &request).await.unwrap();
            assert_eq!(held.of(LogKind::Ima), self.chain);
        }
    }

    /// Attests, with bytes bound to the quote.
    async fn attest(&mut self, bytes: Vec<u8>) -> AttestAnswer {
        let mut logs = Vec::new();
        if !bytes.is_empty() {
            let offset = self.chain.length;
            self.chain = self.chain.append(&bytes);
            logs.push(LogPart { kind: LogKind::Ima, offset, bytes });
        }
        let chain = self.chain;
        self.member.tpm.node.logs = log_digests(|kind| if kind == LogKind::Ima { chain } else { LogChain::default() });
        let request = AttestRequest { logs, ..self.member.request() };
        let answer: AttestAnswer = self.member.client.post("/v1/attest", &request).await.unwrap();
        self.member.next = answer.next.nonce;
        answer
    }

    /// Attests over ten new entries, some times; the median time.
    async fn increments(&mut self) -> Duration {
        let mut times = Vec::new();
        for _ in 0..15 {
            let bytes: Vec<u8> = (0..10).flat_map(|_| self.add("/usr/bin/true", &Sha256::digest(b"true"))).collect();
            let since = Instant::now();
            let answer = self.attest(bytes).await;
            times.push(since.elapsed());
            assert!(answer.lease.is_some(), "{:?} {:?}", answer.refusal, answer.findings);
        }
        times.sort();
        times[times.len() / 2]
    }
}

/// The most memory this process ever had, in MiB.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

/// `LEASEHOLD_IMA_ENTRIES=1000000` with `--release` for the size that the promise names.
#[tokio::test(flavor = "multi_thread")]
async fn an_increment_costs_the_same_after_many_entries() {
    let entries: usize = std::env::var("LEASEHOLD_IMA_ENTRIES").ok().and_then(|n| n.parse().ok()).unwrap_or(40_000);
    let server = Server::start_with("[logs]\nnode_mib = 1024\n").await;
    let mut listed = Listed::new(&server, rules(&[("/usr/bin/true", b"true")])).await;
    let digest = Sha256::digest(b"true");
    let few: Vec<u8> = (0..1000).flat_map(|_| listed.add("/usr/bin/true", &digest)).collect();
    listed.send(&few).await;
    let after_few = listed.increments().await;

    let many: Vec<u8> = (0..entries).flat_map(|_| listed.add("/usr/bin/true", &digest)).collect();
    let since = Instant::now();
    let hashed = hex::encode(Sha256::digest(&many));
    let hashing = since.elapsed();
    let before = peak();
    let since = Instant::now();
    listed.send(&many).await;
    let sending = since.elapsed();
    let since = Instant::now();
    let answer = listed.attest(Vec::new()).await;
    let attesting = since.elapsed();
    assert!(answer.lease.is_some(), "{:?}", answer.refusal);
    assert_eq!(answer.position.unwrap().entries, 1 + 1000 + 150 + entries as u64);
    let peak = peak();
    let after_many = listed.increments().await;
    println!(
        "{entries} entries, {} MiB ({hashed:.8}…): hashing the bytes {hashing:?}; sent in segments and taken in {sending:?}, \
         then attested in {attesting:?}; memory at most {peak} MiB, {before} MiB before; 10 entries more: {after_few:?} \
         after 1000 entries, {after_many:?} after {entries}",
        many.len() >> 20
    );
    // Ten times as bad would be no slow machine.
    assert!(
        after_many < after_few * 10 + Duration::from_millis(50),
        "{after_many:?} after many, {after_few:?} after few"
    );
}

/// How long the longest of another node's requests took while `work` went on.
async fn meanwhile<T>(other: &Member, work: impl Future<Output = T>) -> (T, Duration) {
    let ended = std::cell::Cell::new(false);
    let asking = async {
        let mut longest = Duration::ZERO;
        while !ended.get() {
            let since = Instant::now();
            other.client.nonce().await.unwrap();
            longest = longest.max(since.elapsed());
        }
        longest
    };
    let working = async {
        let done = work.await;
        ended.set(true);
        done
    };
    tokio::join!(working, asking)
}

/// A long list that is to be judged anew, by other rules or because it leads nowhere, is one node's affair: all
/// others are answered between its pieces.
#[tokio::test(flavor = "multi_thread")]
async fn a_long_list_that_is_taken_in_anew_holds_nobody_up() {
    const LONG: usize = 64 << 20;
    let server = Server::start().await;
    let other = server.admitted().await;
    let mut listed = Listed::new(&server, rules(&[("/usr/bin/true", b"true")])).await;
    let digest = Sha256::digest(b"true");
    let path = format!("/usr/bin/{}", "x".repeat(400));
    let mut many = Vec::new();
    while many.len() < LONG {
        many.extend(listed.add(&path, &digest));
    }
    let (_, sending) = meanwhile(&other, listed.send(&many)).await;
    // It leads nowhere, and never did.
    let kept = listed.member.tpm.node.values.insert(10, vec![7; 32]).unwrap();
    let never = meanwhile(&other, async {
        for _ in 0..3 {
            assert_eq!(listed.attest(Vec::new()).await.refusal.unwrap().code, codes::VERIFY_LOG_REPLAY);
        }
    });
    let ((), never) = never.await;
    listed.member.tpm.node.values.insert(10, kept);
    assert_eq!(listed.attest(Vec::new()).await.refusal.unwrap().code, codes::VERIFY_IMA_UNLISTED);
    let values = VALUES.map(|pcr| (pcr, vec![pcr + 1; 32])).into();
    let file = write(server.dir.path(), &document("fleet", 2, values, rules(&[(&path, b"true")])));
    server.admin(&["reference", "import", &file]).await;
    let since = Instant::now();
    let (answer, anew) = meanwhile(&other, listed.attest(Vec::new())).await;
    let whole = since.elapsed();
    assert!(answer.lease.is_some(), "{:?}", answer.refusal);
    let kept = listed.member.tpm.node.values.insert(10, vec![7; 32]).unwrap();
    let nowhere = meanwhile(&other, async {
        for _ in 0..3 {
            assert_eq!(listed.attest(Vec::new()).await.refusal.unwrap().code, codes::VERIFY_LOG_REPLAY);
        }
    });
    let ((), nowhere) = nowhere.await;
    listed.member.tpm.node.values.insert(10, kept);
    assert!(listed.attest(Vec::new()).await.lease.is_some());
    println!(
        "{} MiB: taken in anew in {whole:?}; others waited at most {sending:?} while it was sent, {never:?} while \
         it led nowhere, {anew:?} while it was taken in anew, {nowhere:?} while it led nowhere again",
        many.len() >> 20
    );
    assert!(anew.max(never).max(nowhere) < whole / 2, "{whole:?}");
}

#[tokio::test]
async fn a_list_is_judged_by_its_rules_from_part_to_part() {
    let server = Server::start().await;
    let mut listed = Listed::new(&server, rules(&[("/usr/bin/true", b"true")])).await;
    let good = Sha256::digest(b"true");
    // An entry that is cut by the parts, and one that came after the quote and is not in PCR 10 yet.
    let bytes = [listed.add("/usr/bin/true", &good), listed.add("/usr/bin/true", &good)].concat();
    listed.send(&bytes[..100]).await;
    let quoted = listed.member.tpm.node.values[&10].clone();
    let late = listed.add("/tmp/evil", &Sha256::digest(b"evil"));
    let later = std::mem::replace(listed.member.tpm.node.values.get_mut(&10).unwrap(), quoted);
    let answer = listed.attest([&bytes[100..], &late].concat()).await;
    assert!(answer.lease.is_some(), "{:?}", answer.refusal);
    assert_eq!(answer.position.unwrap().entries, 3);
    // Once PCR 10 covers it, it counts; and from then on.
    listed.member.tpm.node.values.insert(10, later);
    for _ in 0..2 {
        let answer = listed.attest(Vec::new()).await;
        let refusal = answer.refusal.unwrap();
        assert_eq!(refusal.code, codes::VERIFY_IMA_UNLISTED);
        assert!(refusal.at.contains("entry 3") || refusal.to_string().contains("/tmp/evil"), "{refusal}");
    }
    // A quote that the list doesn't lead to: nothing is granted, and it isn't forgotten what was reached.
    let kept = listed.member.tpm.node.values.insert(10, vec![7; 32]).unwrap();
    assert_eq!(listed.attest(Vec::new()).await.refusal.unwrap().code, codes::VERIFY_LOG_REPLAY);
    listed.member.tpm.node.values.insert(10, kept);
    assert_eq!(listed.attest(Vec::new()).await.refusal.unwrap().code, codes::VERIFY_IMA_UNLISTED);
    // Other rules judge the same list anew, from its start.
    let values = VALUES.map(|pcr| (pcr, vec![pcr + 1; 32])).into();
    let allowing = rules(&[("/usr/bin/true", b"true"), ("/tmp/evil", b"evil")]);
    let file = write(server.dir.path(), &document("fleet", 2, values, allowing));
    server.admin(&["reference", "import", &file]).await;
    assert!(listed.attest(Vec::new()).await.lease.is_some());
    // Evidence that is bound to no log is held against none.
    listed.member.tpm.node.logs = Vec::new();
    let request = listed.member.request();
    let answer: AttestAnswer = listed.member.client.post("/v1/attest", &request).await.unwrap();
    assert_eq!(answer.refusal.unwrap().code, codes::VERIFY_LOG_MISSING);
}
