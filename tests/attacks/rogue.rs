//! A client of the protocol that says whatever it is told to, and a node with a real TPM that is
//! driven by hand.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::hmac;
use leasehold::clock::{BootId, BootInstant};
use leasehold::codes::Code;
use leasehold::evidence::{NodeClaims, Unsigned, certification_binding, quote_binding};
use leasehold::identity::{NodeId, TrustDomain};
use leasehold::protocol::{
    self, AttestAnswer, AttestRequest, CredentialAnswer, CredentialRequest, EnrolAnswer, EnrolChallenge, EnrolRequest,
    EnrolResult, FreshNonce, PresentedEk, Refused, Wanted,
};
use leasehold::tpm::structures::Attest;
use leasehold::tpm::{PcrSelection, Signed, Tpm, TpmAddress, TpmError, TpmIdentity, TpmThread};
use leasehold::verify::{AkPublic, Lease, LeaseExpectation, NodeKey};
use reqwest::Method;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::sign::{CertifiedKey, Signer, SigningKey, SingleCertAndKey};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureAlgorithm, SignatureScheme};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_bytes::ByteBuf;
use sha2::{Digest, Sha256};

use crate::bench::TestTpm;
use crate::bench::world::{Server, TRUST_DOMAIN, boot_extends};

/// A client of the protocol.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    base: String,
}

impl Client {
    /// One without a certificate.
    pub fn stranger(server: &Server) -> Self {
        Self::new(server.port, None)
    }

    /// One with a certificate, whose key is wherever the signer has it.
    pub fn certified(server: &Server, chain: &[ByteBuf], key: Arc<dyn SigningKey>) -> Self {
        Self::new(server.port, Some((chain, key)))
    }

    fn new(port: u16, identity: Option<(&[ByteBuf], Arc<dyn SigningKey>)>) -> Self {
        let http =
            reqwest::Client::builder().tls_backend_preconfigured(client_config(identity)).no_proxy().build().unwrap();
        Self { http, base: format!("https://127.0.0.1:{port}") }
    }

    /// Sends any body and returns the answer's, or the words of what broke the connection.
    pub async fn try_send(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> Result<Result<Vec<u8>, Refused>, String> {
        let request = self.http.request(method, format!("{}{path}", self.base)).body(body);
        let response = request.timeout(Duration::from_secs(30)).send().await.map_err(|e| format!("{e:?}"))?;
        let status = response.status().as_u16();
        let body = response.bytes().await.map_err(|e| format!("{e:?}"))?.to_vec();
        Ok(match status {
            200 => Ok(body),
            _ => Err(protocol::decode(&body).unwrap()),
        })
    }

    pub async fn send(&self, path: &str, body: Vec<u8>) -> Result<Vec<u8>, Refused> {
        self.try_send(Method::POST, path, body).await.unwrap()
    }

    pub async fn post<A: DeserializeOwned>(&self, path: &str, message: &impl Serialize) -> Result<A, Refused> {
        let answer = self.send(path, protocol::encode(message).unwrap()).await?;
        Ok(protocol::decode(&answer).unwrap())
    }

    pub async fn nonce(&self) -> Result<FreshNonce, Refused> {
        let answer = self.try_send(Method::GET, "/v1/nonce", Vec::new()).await.unwrap()?;
        Ok(protocol::decode(&answer).unwrap())
    }

    pub async fn begin(&self, request: &EnrolRequest) -> Result<EnrolChallenge, Refused> {
        self.post("/v1/enrol", request).await
    }

    pub async fn answer(&self, answer: &EnrolAnswer) -> Result<EnrolResult, Refused> {
        self.post("/v1/enrol/answer", answer).await
    }

    /// Submits evidence under a new request id.
    pub async fn attest(&self, evidence: Vec<u8>) -> Result<AttestAnswer, Refused> {
        self.post("/v1/attest", &AttestRequest::new(random(), evidence)).await
    }
}

/// TLS that takes any server: who it is plays no part when it is the one under attack.
pub fn client_config(identity: Option<(&[ByteBuf], Arc<dyn SigningKey>)>) -> ClientConfig {
    let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer));
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => {
            let chain = chain.iter().map(|der| CertificateDer::from(der.to_vec())).collect();
            builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(CertifiedKey::new(chain, key))))
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

/// What an evidence is about; each part can be somebody else's.
#[derive(Clone, Debug)]
pub struct About {
    pub nonce: [u8; 32],
    pub node: Option<NodeId>,
    pub selection: PcrSelection,
    pub certification: Certification,
}

/// The AK's certification of the node key, over this nonce.
#[derive(Clone, Debug)]
pub struct Certification {
    pub nonce: [u8; 32],
    pub signed: Signed,
}

/// A machine with a real TPM.
pub struct Station {
    pub tpm: TestTpm,
    pub handle: Tpm,
    pub identity: TpmIdentity,
    pub ak: AkPublic,
    pub node_key: NodeKey,
    pub thread: TpmThread,
}

impl Station {
    /// With a blank TPM.
    pub async fn blank() -> Self {
        Self::boot(TestTpm::blank()).await
    }

    /// With this TPM, after a boot.
    pub async fn boot(tpm: TestTpm) -> Self {
        for extend in boot_extends() {
            tpm.relay.execute(&extend).await.unwrap();
        }
        let address = TpmAddress::parse(&tpm.address()).unwrap();
        let domain = TrustDomain::new(TRUST_DOMAIN).unwrap();
        let (handle, thread) = Tpm::spawn(address, Duration::from_secs(20), &domain).unwrap();
        let identity = handle.identity().await.unwrap();
        let ak = AkPublic::parse(&identity.ak_public).unwrap();
        let node_key = NodeKey::parse(&identity.node_key_public).unwrap();
        Self { tpm, handle, identity, ak, node_key, thread }
    }

    /// What an honest agent presents.
    pub fn request(&self) -> EnrolRequest {
        let presented = |ek: &leasehold::tpm::EkPublic| PresentedEk {
            public: ek.public.clone(),
            certificate: ek.certificate.clone(),
        };
        EnrolRequest {
            ek: presented(&self.identity.ek),
            aliases: self.identity.aliases.iter().map(presented).collect(),
            chain: self.identity.chain.iter().cloned().map(ByteBuf::from).collect(),
            ak_public: self.identity.ak_public.clone(),
            node_key_public: self.identity.node_key_public.clone(),
            agent_version: "0.0.0-rogue".to_owned(),
        }
    }

    /// The id that this TPM has by its EK.
    pub fn id(&self) -> NodeId {
        let ek = leasehold::tpm::structures::Public::parse(&self.identity.ek.public).unwrap();
        NodeId::derive(&TrustDomain::new(TRUST_DOMAIN).unwrap(), &ek.name())
    }

    /// TPM2_ActivateCredential.
    pub async fn activate(&self, challenge: &EnrolChallenge) -> Result<Vec<u8>, TpmError> {
        let secret = self.handle.activate(challenge.credential.clone(), challenge.encrypted_secret.clone()).await?;
        Ok(secret.to_vec())
    }

    /// The answer to a challenge, with this secret for a proof.
    pub async fn answer(&self, challenge: &EnrolChallenge, secret: &[u8]) -> (EnrolAnswer, Certification) {
        let certification = self.certify(challenge.nonce).await;
        let evidence = self
            .evidence(&About {
                nonce: challenge.nonce,
                node: None,
                selection: challenge.selection,
                certification: certification.clone(),
            })
            .await;
        (answer_with(challenge, secret, evidence), certification)
    }

    /// The AK's certification of the node key.
    pub async fn certify(&self, nonce: [u8; 32]) -> Certification {
        let binding = certification_binding(&nonce, &self.node_key.name());
        Certification { nonce, signed: self.handle.certify_node_key(binding).await.unwrap() }
    }

    /// Evidence as this TPM makes it now.
    pub async fn evidence(&self, about: &About) -> Vec<u8> {
        self.seal(&self.claims(about).await).await
    }

    /// Any claims that the crate's encoder takes, signed by the node key.
    pub async fn seal(&self, claims: &NodeClaims) -> Vec<u8> {
        let unsigned = Unsigned::new(claims, &self.node_key.name()).unwrap();
        let signature = self.handle.sign(unsigned.digest()).await.unwrap();
        unsigned.finish(signature)
    }

    /// The claims of [`Self::evidence`].
    pub async fn claims(&self, about: &About) -> NodeClaims {
        let boot_id = BootId::read().unwrap();
        let requested_at = BootInstant::now();
        let binding = quote_binding(&about.nonce, &self.node_key.name(), &boot_id, &[]);
        let pcrs = self.handle.read_pcrs(about.selection).await.unwrap().values;
        NodeClaims {
            nonce: about.nonce,
            node: about.node,
            boot_id,
            requested_at,
            quote: self.handle.quote(about.selection, binding).await.unwrap(),
            pcrs,
            node_key_certification: about.certification.signed.clone(),
            certification_nonce: about.certification.nonce,
            agent_version: "0.0.0-rogue".to_owned(),
            agent_digest: [0; 32],
            log_digests: Vec::new(),
            withdrawn: Vec::new(),
        }
    }

    /// Both steps of an honest enrolment.
    pub async fn enrol(&self, client: &Client) -> Result<(EnrolResult, Certification, PcrSelection), Refused> {
        let challenge = client.begin(&self.request()).await?;
        let secret = self.activate(&challenge).await.unwrap();
        let (answer, certification) = self.answer(&challenge, &secret).await;
        Ok((client.answer(&answer).await?, certification, challenge.selection))
    }

    /// Enrols a node that will be admitted, and becomes it.
    pub async fn join(self, server: &Server) -> Member {
        let (result, certification, selection) = self.enrol(&Client::stranger(server)).await.unwrap();
        let admitted = result.admitted.expect("admitted");
        let node = NodeId::from_bytes(result.node);
        let certificate = admitted.certificate;
        let client = Client::certified(server, &certificate, self.tls_key());
        Member {
            station: self,
            client,
            node,
            certificate,
            certification,
            selection,
            next: admitted.nonce.nonce,
            sequence: 0,
            epoch: [0; 16],
        }
    }

    /// Waits, is approved by an operator, and joins.
    pub async fn approved(self, server: &Server) -> Member {
        let (result, ..) = self.enrol(&Client::stranger(server)).await.unwrap();
        assert!(result.admitted.is_none());
        server.admin(&["node", "approve", &hex::encode(result.node)]);
        self.join(server).await
    }

    /// The node key as TLS uses it.
    pub fn tls_key(&self) -> Arc<dyn SigningKey> {
        Arc::new(TpmKey(self.handle.clone()))
    }
}

/// An answer with any secret and any evidence.
pub fn answer_with(challenge: &EnrolChallenge, secret: &[u8], evidence: Vec<u8>) -> EnrolAnswer {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
    let proof = hmac::sign(&key, &[b"leasehold-enrol-v1\0", evidence.as_slice()].concat());
    EnrolAnswer { enrolment: challenge.enrolment, proof: proof.as_ref().try_into().unwrap(), evidence }
}

/// An admitted node.
pub struct Member {
    pub station: Station,
    pub client: Client,
    pub node: NodeId,
    pub certificate: Vec<ByteBuf>,
    pub certification: Certification,
    pub selection: PcrSelection,
    pub next: [u8; 32],
    pub sequence: u64,
    epoch: [u8; 16],
}

impl Member {
    /// A node with a blank TPM, approved, and with a live lease.
    pub async fn leased(server: &Server) -> Self {
        let mut member = Station::blank().await.approved(server).await;
        member.learn(server);
        member.attest().await.unwrap();
        assert_ne!(member.sequence, 0, "a lease");
        member
    }

    /// Makes its present values its reference values.
    pub fn learn(&self, server: &Server) {
        server.admin(&["reference", "learn", "--node", &self.id(), "--yes"]);
    }

    pub fn id(&self) -> String {
        self.node.to_string()
    }

    /// What its honest evidence over `nonce` is about.
    pub fn about(&self, nonce: [u8; 32]) -> About {
        let certification = self.certification.clone();
        About { nonce, node: Some(self.node), selection: self.selection, certification }
    }

    /// Honest evidence over `nonce`.
    pub async fn evidence(&self, nonce: [u8; 32]) -> Vec<u8> {
        self.station.evidence(&self.about(nonce)).await
    }

    /// Attests honestly, and checks the lease as an agent does.
    pub async fn attest(&mut self) -> Result<AttestAnswer, Refused> {
        let claims = self.station.claims(&self.about(self.next)).await;
        let answer = self.client.attest(self.station.seal(&claims).await).await;
        match &answer {
            Ok(answer) => {
                self.next = answer.next.nonce;
                if let Some(lease) = &answer.lease {
                    let expected = LeaseExpectation {
                        node: self.node,
                        ak_name: self.station.ak.name(),
                        node_key_name: self.station.node_key.name(),
                        boot_id: claims.boot_id,
                        counts: Attest::parse(&claims.quote.attest).unwrap().clock_info.counts,
                        requested_at: claims.requested_at,
                        after_sequence: self.sequence,
                        after_epoch: self.epoch,
                    };
                    let lease = Lease::verify(lease, &answer.bundle.certificates, &expected).unwrap();
                    (self.sequence, self.epoch) = (lease.claims().sequence, lease.claims().epoch);
                }
            }
            Err(refused) => {
                if let Some(next) = &refused.next {
                    self.next = next.nonce;
                }
            }
        }
        answer
    }

    /// Asks for an SVID of `id` under the lease `sequence`.
    pub async fn ask(&self, id: &str, sequence: u64) -> Result<CredentialAnswer, Refused> {
        let key = rcgen::KeyPair::generate().unwrap();
        self.client.post("/v1/credentials", &self.wanted(id, sequence, &key)).await
    }

    pub fn wanted(&self, id: &str, lease_sequence: u64, key: &rcgen::KeyPair) -> CredentialRequest {
        let wanted = vec![Wanted { id: id.to_owned(), csr: csr(key) }];
        CredentialRequest { request_id: random(), lease_sequence, wanted }
    }

    /// Connects anew.
    pub fn reconnect(&mut self, server: &Server) {
        self.client = Client::certified(server, &self.certificate, self.station.tls_key());
    }
}

pub fn csr(key: &rcgen::KeyPair) -> Vec<u8> {
    rcgen::CertificateParams::default().serialize_request(key).unwrap().der().to_vec()
}

pub fn random<const N: usize>() -> [u8; N] {
    leasehold::secret::random().unwrap()
}

/// Holds refusals against the server's record.
pub struct Docket<'a> {
    server: &'a Server,
    seen: usize,
}

impl<'a> Docket<'a> {
    pub fn of(server: &'a Server) -> Self {
        Self { server, seen: server.decided().len() }
    }

    /// `result` must be this refusal, and the server must have recorded it.
    #[track_caller]
    pub fn refused<T: Debug>(&mut self, what: &str, result: Result<T, Refused>, code: Code) -> Refused {
        let refused = result.expect_err(what);
        assert_eq!(refused.refusal.code, code, "{what}: {}", refused.refusal);
        self.recorded(what, code);
        println!("{what}\n    → {}", refused.refusal);
        refused
    }

    /// Since the last look the server must have recorded this code, and no grant.
    #[track_caller]
    pub fn recorded(&mut self, what: &str, code: Code) {
        let decided = self.server.decided();
        let news = &decided[self.seen..];
        assert!(news.iter().any(|what| what == code.as_str()), "{what}: {code} is not in {news:?}");
        for grant in ["lease.granted", "credential.issued", "node.admitted"] {
            assert!(!news.iter().any(|what| what == grant), "{what}: {news:?}");
        }
        self.seen = decided.len();
    }

    /// Forgets what has been recorded until now.
    pub fn skip(&mut self) {
        self.seen = self.server.decided().len();
    }
}

/// The node key in the TPM, as rustls sees it.
#[derive(Debug)]
struct TpmKey(Tpm);

impl SigningKey for TpmKey {
    fn choose_scheme(&self, _: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        Some(Box::new(Self(self.0.clone())))
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::ECDSA
    }
}

impl Signer for TpmKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rustls::Error> {
        let digest = Sha256::digest(message).into();
        let signature = tokio::task::block_in_place(|| self.0.sign_blocking(digest))
            .map_err(|e| rustls::Error::General(e.to_string()))?;
        Ok(signature.to_der().as_bytes().to_vec())
    }

    fn scheme(&self) -> SignatureScheme {
        SignatureScheme::ECDSA_NISTP256_SHA256
    }
}

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
