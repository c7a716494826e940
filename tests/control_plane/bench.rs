//! A server, clients and nodes to test it with.

use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use aws_lc_rs::cipher::{AES_128, DecryptingKey, DecryptionContext, UnboundCipherKey};
use aws_lc_rs::iv::FixedLength;
use aws_lc_rs::{agreement, hmac};
use leasehold::clock::WallTime;
use leasehold::codes::{Code, Refusal};
use leasehold::config::{self, ServerConfig};
use leasehold::control_plane::server::{self, Bound};
use leasehold::identity::{NodeId, TrustDomain};
use leasehold::protocol::{
    self, AttestAnswer, AttestRequest, CredentialAnswer, CredentialRequest, EnrolAnswer, EnrolChallenge, EnrolRequest,
    EnrolResult, FreshNonce, PresentedEk, Refused, Wanted,
};
use leasehold::verify::{Lease, LeaseExpectation};
use p256::ecdsa::SigningKey;
use p256::pkcs8::EncodePrivateKey;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_bytes::ByteBuf;
use sha2::{Digest, Sha256};

use crate::node::{self, Node};

pub const TRUST_DOMAIN: &str = "example.org";

/// A server whose clock is ours.
pub struct Server {
    pub dir: tempfile::TempDir,
    pub config: ServerConfig,
    clock: Arc<AtomicU64>,
    bound: Option<Bound>,
}

impl Server {
    pub async fn start() -> Self {
        Self::start_with("").await
    }

    /// With further configuration.
    pub async fn start_with(more: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = Self::config(&dir, more);
        let mut server = Self { dir, config, clock: Arc::new(AtomicU64::new(WallTime::now().0)), bound: None };
        server.restart().await;
        server
    }

    pub fn config(dir: &tempfile::TempDir, more: &str) -> ServerConfig {
        let at = dir.path().display();
        let text = format!(
            "trust_domain = \"{TRUST_DOMAIN}\"\nstate_dir = \"{at}/state\"\nlisten = \"127.0.0.1:0\"\n\
             admin_socket = \"{at}/admin.sock\"\npcrs = \"sha256:0-7\"\n{more}"
        );
        config::parse(&text, "server.toml").unwrap()
    }

    /// Stops it, if it runs, and starts it on the same state.
    pub async fn restart(&mut self) {
        self.stop().await;
        self.bound = Some(self.try_start().await.unwrap_or_else(|refusal| panic!("{refusal}")));
    }

    pub async fn try_start(&self) -> Result<Bound, Refusal> {
        let clock = self.clock.clone();
        server::start_at(self.config.clone(), Arc::new(move || WallTime(clock.load(Ordering::SeqCst)))).await
    }

    pub async fn stop(&mut self) {
        if let Some(bound) = self.bound.take() {
            assert!(bound.stop().await, "not everything ended");
        }
    }

    pub fn bound(&self) -> &Bound {
        self.bound.as_ref().unwrap()
    }

    /// The server's time.
    pub fn now(&self) -> WallTime {
        WallTime(self.clock.load(Ordering::SeqCst))
    }

    /// Lets the server's clock go on.
    pub fn pass(&self, seconds: u64) {
        self.clock.fetch_add(seconds, Ordering::SeqCst);
    }

    /// Sets the server's clock back.
    pub fn back(&self, seconds: u64) {
        self.clock.fetch_sub(seconds, Ordering::SeqCst);
    }

    /// A client without a certificate.
    pub fn stranger(&self) -> Client {
        self.client(None)
    }

    /// A client with this certificate chain and key.
    pub fn client(&self, identity: Option<(&[ByteBuf], &SigningKey)>) -> Client {
        let tls = client_config(identity);
        let http = reqwest::Client::builder().tls_backend_preconfigured(tls).no_proxy().build().unwrap();
        Client { http, base: format!("https://{}", self.bound().addr) }
    }

    /// Runs a command of the binary against the admin socket.
    pub async fn run(&self, arguments: &[&str]) -> Output {
        tokio::process::Command::new(env!("CARGO_BIN_EXE_leasehold-server"))
            .arg("--admin-socket")
            .arg(&self.config.admin_socket)
            .args(arguments)
            .stdin(std::process::Stdio::null())
            .output()
            .await
            .unwrap()
    }

    /// Runs a command that must succeed; its JSON.
    pub async fn admin(&self, arguments: &[&str]) -> serde_json::Value {
        let output = self.run(&[arguments, &["--json"]].concat()).await;
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Runs a command that must end with this exit code; its JSON.
    pub async fn admin_of(&self, arguments: &[&str], code: i32) -> serde_json::Value {
        let output = self.run(&[arguments, &["--json"]].concat()).await;
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// What was recorded, oldest first.
    pub async fn recorded(&self) -> Vec<String> {
        let output = self.run(&["--json", "audit", "tail", "--lines", "10000"]).await;
        let text = String::from_utf8(output.stdout).unwrap();
        let record = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap();
        text.lines().map(|line| record(line)["what"].as_str().unwrap().to_owned()).collect()
    }

    /// Registers `/NAME` for `node`.
    pub async fn register(&self, name: &str, node: &str) -> String {
        let id = format!("spiffe://{TRUST_DOMAIN}/{name}");
        self.admin(&["owner", "add", "team"]).await;
        // Two workloads of one node are told apart by something.
        let program = format!("unix:path:/usr/bin/{}", name.replace('/', "-"));
        let place = ["--node", node, "--selector", "unix:uid:1000", "--selector", &program];
        let place = [&place[..], &["--audience", "api", "--audience", "ledger", "--audience", "reports"]].concat();
        self.admin(&[&["workload", "add", "--id", &id, "--owner", "team", "--purpose", "tests"], &place[..]].concat())
            .await;
        id
    }

    /// An enrolled and admitted node.
    pub async fn admitted(&self) -> Member {
        let mut tpm = SoftTpm::new();
        let waiting = tpm.enrol(&self.stranger()).await.unwrap();
        self.admin(&["node", "approve", &hex::encode(waiting.node)]).await;
        let result = tpm.enrol(&self.stranger()).await.unwrap();
        Member::new(self, tpm, result)
    }

    /// A node with a live lease.
    pub async fn leased(&self) -> Member {
        let mut member = self.admitted().await;
        self.admin(&["reference", "learn", "--node", &member.id(), "--yes"]).await;
        assert!(member.attest().await.unwrap().lease.is_some());
        member
    }
}

pub fn client_config(identity: Option<(&[ByteBuf], &SigningKey)>) -> ClientConfig {
    let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer));
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => {
            let chain = chain.iter().map(|der| CertificateDer::from(der.to_vec())).collect();
            let key = key.to_pkcs8_der().unwrap().as_bytes().to_vec();
            builder.with_client_auth_cert(chain, PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key))).unwrap()
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

/// A client of the protocol.
#[derive(Clone)]
pub struct Client {
    pub http: reqwest::Client,
    pub base: String,
}

/// Why there is no answer.
#[derive(Debug)]
pub enum Failure {
    Refused(u16, Box<Refused>),
    /// The connection was refused or broke.
    Broken,
}

impl Failure {
    pub fn code(&self) -> Code {
        match self {
            Self::Refused(_, refused) => refused.refusal.code,
            Self::Broken => panic!("the connection broke"),
        }
    }

    pub fn next(&self) -> FreshNonce {
        match self {
            Self::Refused(_, refused) => refused.next.clone().expect("a fresh nonce"),
            Self::Broken => panic!("the connection broke"),
        }
    }
}

impl Client {
    /// Sends any body; the answer's bytes.
    pub async fn send(&self, method: reqwest::Method, path: &str, body: Vec<u8>) -> Result<Vec<u8>, Failure> {
        let request = self.http.request(method, format!("{}{path}", self.base)).body(body);
        let response = request.timeout(Duration::from_secs(20)).send().await.map_err(|_| Failure::Broken)?;
        assert_eq!(response.version(), reqwest::Version::HTTP_2);
        let status = response.status().as_u16();
        let body = response.bytes().await.map_err(|_| Failure::Broken)?.to_vec();
        match status {
            200 => Ok(body),
            status => Err(Failure::Refused(status, Box::new(protocol::decode(&body).unwrap()))),
        }
    }

    pub async fn post<A: DeserializeOwned>(&self, path: &str, message: &impl Serialize) -> Result<A, Failure> {
        let answer = self.send(reqwest::Method::POST, path, protocol::encode(message).unwrap()).await?;
        Ok(protocol::decode(&answer).unwrap())
    }

    pub async fn nonce(&self) -> Result<FreshNonce, Failure> {
        Ok(protocol::decode(&self.send(reqwest::Method::GET, "/v1/nonce", Vec::new()).await?).unwrap())
    }
}

/// A TPM in software: an EK of template L-2, and the keys of a [`Node`].
#[derive(Clone)]
pub struct SoftTpm {
    pub ek: SigningKey,
    pub aliases: Vec<SigningKey>,
    /// DER of the EK's certificate.
    pub certificate: Option<Vec<u8>>,
    pub node: Node,
}

impl SoftTpm {
    pub fn new() -> Self {
        let node = Node { ak: random_key(), node_key: random_key(), id: None, ..Node::honest() };
        Self { ek: random_key(), aliases: Vec::new(), certificate: None, node }
    }

    pub fn id(&self) -> NodeId {
        let domain = TrustDomain::new(TRUST_DOMAIN).unwrap();
        NodeId::derive(&domain, &node::name(&ek_public(&self.ek)))
    }

    pub fn request(&self) -> EnrolRequest {
        let presented = |ek: &SigningKey| PresentedEk { public: ek_public(ek), certificate: None };
        EnrolRequest {
            ek: PresentedEk { certificate: self.certificate.clone(), ..presented(&self.ek) },
            aliases: self.aliases.iter().map(presented).collect(),
            chain: Vec::new(),
            ak_public: self.node.ak_public(),
            node_key_public: self.node.node_key_public(),
            agent_version: "0.1.0".to_owned(),
        }
    }

    /// Enrols: both steps.
    pub async fn enrol(&mut self, client: &Client) -> Result<EnrolResult, Failure> {
        let challenge: EnrolChallenge = client.post("/v1/enrol", &self.request()).await?;
        client.post("/v1/enrol/answer", &self.answer(&challenge)).await
    }

    /// The honest answer to a challenge.
    pub fn answer(&mut self, challenge: &EnrolChallenge) -> EnrolAnswer {
        let secret = self.activate(challenge).unwrap_or_default();
        self.answer_with(challenge, &secret)
    }

    /// An answer with any secret.
    pub fn answer_with(&mut self, challenge: &EnrolChallenge, secret: &[u8]) -> EnrolAnswer {
        self.node.nonce = challenge.nonce;
        self.node.certification_nonce = challenge.nonce;
        self.tick();
        let evidence = Node { id: None, ..self.node.clone() }.evidence();
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
        let proof = hmac::sign(&key, &[b"leasehold-enrol-v1\0", evidence.as_slice()].concat());
        EnrolAnswer { enrolment: challenge.enrolment, proof: proof.as_ref().try_into().unwrap(), evidence }
    }

    /// TPM2_ActivateCredential (Part 3, 12.5) with a P-256 EK; `None` if the integrity check fails.
    pub fn activate(&self, challenge: &EnrolChallenge) -> Option<Vec<u8>> {
        let (x, rest) = unsized_(&challenge.encrypted_secret);
        let (y, _) = unsized_(rest);
        let point = [&[4], x, y].concat();
        let own = agreement::PrivateKey::from_private_key(&agreement::ECDH_P256, &self.ek.to_bytes()).unwrap();
        let peer = agreement::UnparsedPublicKey::new(&agreement::ECDH_P256, &point);
        let own_point = self.ek.verifying_key().to_sec1_point(false);
        let own_x = &own_point.as_bytes()[1..33];
        let seed = agreement::agree(&own, peer, (), |shared| {
            Ok(Sha256::digest([&1u32.to_be_bytes()[..], shared, b"IDENTITY\0", x, own_x].concat()))
        })
        .ok()?;
        let name = node::name(&self.node.ak_public());
        let (integrity, encrypted) = unsized_(&challenge.credential);
        let mac_key = kdfa(&seed, b"INTEGRITY\0", &[], 256);
        let expected = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &mac_key), &[encrypted, name.as_slice()].concat());
        if expected.as_ref() != integrity {
            return None;
        }
        let key = UnboundCipherKey::new(&AES_128, &kdfa(&seed, b"STORAGE\0", &name, 128)[..16]).unwrap();
        let mut plain = encrypted.to_vec();
        DecryptingKey::cfb128(key)
            .unwrap()
            .decrypt(&mut plain, DecryptionContext::Iv128(FixedLength::from([0; 16])))
            .unwrap();
        Some(unsized_(&plain).0.to_vec())
    }

    /// The TPM's clock and the node's go on.
    pub fn tick(&mut self) {
        self.node.clock_ms += 1_000;
        self.node.requested_at += 1_000_000_000;
    }
}

/// An admitted node with its certificate and connection.
pub struct Member {
    pub tpm: SoftTpm,
    pub client: Client,
    pub certificate: Vec<ByteBuf>,
    pub next: [u8; 32],
    pub sequence: u64,
    pub epoch: [u8; 16],
}

impl Member {
    pub fn new(server: &Server, mut tpm: SoftTpm, result: EnrolResult) -> Self {
        let admitted = result.admitted.expect("admitted");
        tpm.node.id = Some(NodeId::from_bytes(result.node));
        let client = server.client(Some((&admitted.certificate, &tpm.node.node_key)));
        Self { client, tpm, certificate: admitted.certificate, next: admitted.nonce.nonce, sequence: 0, epoch: [0; 16] }
    }

    pub fn id(&self) -> String {
        self.tpm.id().to_string()
    }

    /// Connects anew, as after a restart of the server.
    pub fn reconnect(&mut self, server: &Server) {
        self.client = server.client(Some((&self.certificate, &self.tpm.node.node_key)));
    }

    /// A request over the next nonce.
    pub fn request(&mut self) -> AttestRequest {
        self.tpm.tick();
        self.tpm.node.nonce = self.next;
        AttestRequest::new(random(), self.tpm.node.evidence())
    }

    /// Attests; takes over nonce and lease, which it checks as an agent does.
    pub async fn attest(&mut self) -> Result<AttestAnswer, Failure> {
        let request = self.request();
        let answer: AttestAnswer = self.client.post("/v1/attest", &request).await?;
        self.next = answer.next.nonce;
        if let Some(lease) = &answer.lease {
            let node = &self.tpm.node;
            let expected = LeaseExpectation {
                node: node.id.unwrap(),
                ak_name: node::name(&node.ak_public()),
                node_key_name: node::name(&node.node_key_public()),
                boot_id: node.boot(),
                counts: leasehold::tpm::ResetCounts { reset: node.reset, restart: node.restart },
                requested_at: leasehold::clock::BootInstant::from_nanos(node.requested_at),
                after_sequence: self.sequence,
                after_epoch: self.epoch,
            };
            let lease = Lease::verify(lease, &answer.bundle.certificates, &expected).unwrap();
            self.sequence = lease.claims().sequence;
            self.epoch = lease.claims().epoch;
        }
        Ok(answer)
    }

    /// Asks for an SVID of `id` over a fresh key.
    pub async fn credential(&self, id: &str) -> Result<(CredentialAnswer, rcgen::KeyPair), Failure> {
        let key = rcgen::KeyPair::generate().unwrap();
        let request = CredentialRequest {
            request_id: random(),
            lease_sequence: self.sequence,
            wanted: vec![Wanted { id: id.to_owned(), csr: csr(&key) }],
        };
        Ok((self.client.post("/v1/credentials", &request).await?, key))
    }
}

pub fn csr(key: &impl rcgen::SigningKey) -> Vec<u8> {
    rcgen::CertificateParams::default().serialize_request(key).unwrap().der().to_vec()
}

pub fn random<const N: usize>() -> [u8; N] {
    leasehold::secret::random().unwrap()
}

pub fn random_key() -> SigningKey {
    SigningKey::from_slice(&random::<32>()).unwrap()
}

/// TPMT_PUBLIC of a P-256 EK, template L-2 (TCG EK Credential Profile, B.3.4).
pub fn ek_public(key: &SigningKey) -> Vec<u8> {
    let policy = hex::decode("837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa").unwrap();
    let mut public = vec![0x00, 0x23, 0x00, 0x0B, 0x00, 0x03, 0x00, 0xB2];
    public.extend(node::sized(&policy));
    // AES-128 in CFB mode, no scheme, P-256, no key derivation.
    public.extend([0x00, 0x06, 0x00, 0x80, 0x00, 0x43, 0x00, 0x10, 0x00, 0x03, 0x00, 0x10]);
    public.extend(node::point(key));
    public
}

fn unsized_(bytes: &[u8]) -> (&[u8], &[u8]) {
    let size = usize::from(u16::from_be_bytes([bytes[0], bytes[1]]));
    bytes[2..].split_at(size)
}

/// KDFa (Part 1, 11.4.10.2), one block.
fn kdfa(key: &[u8], label: &[u8], context: &[u8], bits: u32) -> Vec<u8> {
    let message = [&1u32.to_be_bytes()[..], label, context, &bits.to_be_bytes()].concat();
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), &message).as_ref().to_vec()
}

/// Who the server is plays no part in most tests.
#[derive(Debug)]
struct AnyServer;

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}
