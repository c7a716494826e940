//! Software nodes of one manufacturer: each enrols, attests, holds an SVID and follows its events.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use leasehold::clock::BootInstant;
use leasehold::codes::Code;
use leasehold::identity::NodeId;
use leasehold::protocol::{Event, Noted, Withdrawal, WithdrawalsApplied, decode};
use p256::ecdsa::SigningKey;
use p256::pkcs8::EncodePrivateKey;
use serde_bytes::ByteBuf;
use tokio::task::JoinHandle;

use crate::bench::world::{PATIENCE, Server};
use crate::soft::{Client, Member, SoftTpm, client_config};

/// The group that its nodes join.
pub const GROUP: &str = "fleet";

/// A TPM manufacturer of this test.
pub struct Maker {
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
    dir: tempfile::TempDir,
}

impl Maker {
    pub fn new() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("maker.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
        Self { issuer: rcgen::Issuer::new(params, key), dir }
    }

    /// Configuration that lets its TPMs join the group, with further sections.
    pub fn configuration(&self, more: &str) -> String {
        format!(
            "pcrs = \"sha256:0-7\"\n{more}[admission]\nek_roots = [\"{}\"]\n[[admission.join]]\nname = \"fleet\"\ngrade = \"certified\"\n\
             group = \"{GROUP}\"\n",
            Path::display(self.dir.path())
        )
    }

    /// A TPM in software with an EK certificate.
    pub fn tpm(&self) -> SoftTpm {
        let mut tpm = SoftTpm::new();
        let key = tpm.ek.to_pkcs8_der().unwrap();
        let key = rcgen::KeyPair::try_from(key.as_bytes()).unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, "an EK");
        // tcg-kp-EKCertificate.
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::Other(vec![2, 23, 133, 8, 1])];
        tpm.certificate = Some(params.signed_by(&key, &self.issuer).unwrap().der().to_vec());
        tpm
    }
}

/// How a software node takes a withdrawal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Manner {
    /// It drops what it holds, acknowledges, and says so in its next evidence.
    Honest,
    /// It acknowledges and does nothing; its evidence doesn't say it.
    Claims,
    /// It goes on as if nothing had been said.
    Silent,
}

/// A client of the server, as a stranger or with a certificate.
pub fn client(server: &Server, identity: Option<(&[ByteBuf], &SigningKey)>) -> Client {
    let tls = client_config(identity);
    let http = reqwest::Client::builder().tls_backend_preconfigured(tls).no_proxy().build().unwrap();
    Client { http, base: format!("https://127.0.0.1:{}", server.port) }
}

/// A software node and the time since its last quote, which its TPM's clock shows.
pub struct SoftNode {
    pub member: Member,
    quoted: BootInstant,
}

impl SoftNode {
    /// Enrols; the join rule lets it in.
    pub async fn enrol(server: &Server, mut tpm: SoftTpm) -> Self {
        let result = tpm.enrol(&client(server, None)).await.unwrap();
        let admitted = result.admitted.expect("admitted by the join rule");
        tpm.node.id = Some(NodeId::from_bytes(result.node));
        let client = client(server, Some((&admitted.certificate, &tpm.node.node_key)));
        let (certificate, next) = (admitted.certificate, admitted.nonce.nonce);
        let member = Member { client, tpm, certificate, next, sequence: 0, epoch: [0; 16] };
        Self { member, quoted: BootInstant::now() }
    }

    pub async fn attest(&mut self) -> Result<leasehold::protocol::AttestAnswer, Code> {
        let now = BootInstant::now();
        self.member.tpm.node.clock_ms += u64::try_from(now.since(self.quoted).as_millis()).unwrap();
        self.quoted = now;
        self.member.attest().await.map_err(|failure| failure.code())
    }

    pub async fn acknowledge(&self, numbers: Vec<u64>) {
        let applied = WithdrawalsApplied { numbers };
        let _: Noted = self.member.client.post("/v1/withdrawals", &applied).await.unwrap();
    }
}

/// A node's stream of events.
pub struct Events {
    response: reqwest::Response,
    buffer: Vec<u8>,
}

impl Events {
    pub async fn open(client: &Client) -> Self {
        let response = client.http.get(format!("{}/v1/events", client.base)).send().await.unwrap();
        assert_eq!(response.status(), 200);
        let mut events = Self { response, buffer: Vec::new() };
        assert_eq!(events.next().await, Some(Event::Alive));
        events
    }

    pub async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some((length, rest)) = self.buffer.split_first_chunk::<4>() {
                let length = usize::try_from(u32::from_be_bytes(*length)).unwrap();
                if rest.len() >= length {
                    let event = decode(&rest[..length]).unwrap();
                    self.buffer.drain(..4 + length);
                    return Some(event);
                }
            }
            let chunk = tokio::time::timeout(PATIENCE, self.response.chunk()).await.ok()?;
            self.buffer.extend(chunk.ok()??);
        }
    }

    /// The next withdrawal.
    pub async fn withdrawal(&mut self) -> Withdrawal {
        loop {
            if let Event::Withdraw(withdrawal) = self.next().await.expect("the stream stays open") {
                return withdrawal;
            }
        }
    }
}

/// What a software node did with a withdrawal, and when.
#[derive(Clone, Debug)]
pub struct Heard {
    pub acknowledged_at: Option<BootInstant>,
}

/// Software nodes that follow their events, each in its manner.
pub struct Fleet {
    pub heard: Arc<Mutex<Vec<Heard>>>,
    pub nodes: BTreeSet<String>,
    tasks: Vec<JoinHandle<()>>,
}

impl Fleet {
    /// Brings up a node for each of `manners` and returns when all follow their events.
    pub async fn start(server: &Server, maker: &Maker, workload: &str, manners: &[Manner]) -> Self {
        let mut ready = Vec::new();
        // A few at a time: the server makes one credential challenge after the other.
        for part in manners.chunks(16) {
            let enrolling = part.iter().map(|manner| async {
                let mut node = SoftNode::enrol(server, maker.tpm()).await;
                assert!(node.attest().await.unwrap().lease.is_none(), "nobody said yet how it should be");
                (node, *manner)
            });
            ready.extend(futures_util::future::join_all(enrolling).await);
        }
        for (node, _) in &ready {
            server.admin(&["reference", "learn", "--node", &node.member.id(), "--yes"]);
        }
        let heard = Arc::new(Mutex::new(Vec::new()));
        let (mut nodes, mut tasks) = (BTreeSet::new(), Vec::new());
        for part in ready.chunks_mut(16) {
            let opening = part.iter_mut().map(|(node, manner)| async {
                assert!(node.attest().await.unwrap().lease.is_some());
                let issued = node.member.credential(workload).await.unwrap().0.answers.remove(0);
                assert_eq!(issued.refusal, None);
                (Events::open(&node.member.client).await, *manner)
            });
            let opened = futures_util::future::join_all(opening).await;
            nodes.extend(part.iter().map(|(node, _)| node.member.id()));
            drop(opened.into_iter().map(|(events, manner)| tasks.push((events, manner))).collect::<Vec<_>>());
        }
        let tasks = ready
            .into_iter()
            .zip(tasks)
            .map(|((node, _), (events, manner))| tokio::spawn(follow(node, events, manner, heard.clone())))
            .collect();
        Self { heard, nodes, tasks }
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

async fn follow(mut node: SoftNode, mut events: Events, manner: Manner, heard: Arc<Mutex<Vec<Heard>>>) {
    loop {
        let number = events.withdrawal().await.number;
        let mut acknowledged_at = None;
        if manner != Manner::Silent {
            node.acknowledge(vec![number]).await;
            acknowledged_at = Some(BootInstant::now());
        }
        heard.lock().unwrap().push(Heard { acknowledged_at });
        // Evidence follows a little later, as an agent's does.
        let pause = Duration::from_millis(u64::from(crate::soft::random::<1>()[0]) * 4);
        tokio::time::sleep(pause).await;
        if manner == Manner::Honest {
            node.member.tpm.node.withdrawn = vec![number];
        }
        // A node that was revoked is heard no more.
        if node.attest().await.is_err() {
            return;
        }
        node.member.tpm.node.withdrawn.clear();
    }
}
