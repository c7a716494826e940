//! A server with a source whose answers the test sets, on a real socket.

use std::path::PathBuf;
use std::sync::Mutex;

use hyper_util::rt::TokioIo;
use tokio::task::JoinHandle;
use tonic::client::Grpc;
use tonic::codec::Streaming;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use super::super::generated::{X509BundlesRequest, X509BundlesResponse, X509svidRequest, X509svidResponse};
use super::*;
use crate::clock::WallTime;
use crate::credentials::token::{self, Claims, TokenKeys};
use crate::delivery::socket::BoundSocket;
use crate::protocol::JwtKey;

/// What the source says.
#[derive(Clone)]
pub(super) enum Answer {
    Give(X509Context),
    Deny(Denied),
    /// As `Give`, to whom these selectors match.
    GiveIf(Vec<Selector>, X509Context),
    /// Doesn't come.
    Silence,
}

pub(super) struct Stub {
    answer: Mutex<Answer>,
    changes: Signal,
    pub(super) asked: Mutex<Vec<BootInstant>>,
    pub(super) tokens: TokenSigner,
}

/// Signs the stub's JWT-SVIDs.
pub(super) struct TokenSigner {
    key: p256::ecdsa::SigningKey,
    public: JwtKey,
}

impl TokenSigner {
    fn new() -> Self {
        let key = p256::ecdsa::SigningKey::from_slice(&crate::secret::random::<32>().unwrap()).unwrap();
        let public = key.verifying_key().to_sec1_point(false).as_bytes().to_vec();
        Self { key, public: JwtKey { kid: token::thumbprint(&public).unwrap(), public } }
    }

    fn sign(&self, id: &str, audience: &[String]) -> String {
        let now = WallTime::now().0;
        let claims = Claims {
            sub: id.to_owned(),
            aud: audience.to_vec(),
            exp: now + 60,
            iat: now,
            jti: "1".to_owned(),
            decision: "2".to_owned(),
            purpose: "tests".to_owned(),
            task_id: None,
            intent: None,
            authorization_details: Vec::new(),
        };
        token::sign(&claims, &self.key, &self.public.kid).unwrap()
    }
}

impl Stub {
    /// Says something else from now on, and that it does.
    pub(super) fn set(&self, answer: Answer) {
        self.set_silently(answer);
        self.touch();
    }

    pub(super) fn set_silently(&self, answer: Answer) {
        *self.answer.lock().unwrap() = answer;
    }

    pub(super) fn touch(&self) {
        self.changes.changed();
    }

    pub(super) fn times_asked(&self) -> usize {
        self.asked.lock().unwrap().len()
    }
}

impl Source for Stub {
    async fn x509(&self, peer: &Peer, arrived: BootInstant) -> Result<Released<X509Context>, Denied> {
        self.asked.lock().unwrap().push(arrived);
        let answer = self.answer.lock().unwrap().clone();
        match answer {
            Answer::Give(context) => Ok(Released::for_test(context)),
            Answer::Deny(denied) => Err(denied),
            Answer::Silence => std::future::pending().await,
            Answer::GiveIf(selectors, context) => {
                let observed = peer.observe(&[&selectors]).await.map_err(Denied::NoIdentity)?;
                if observed.matches(&selectors) {
                    Ok(Released::for_test(context))
                } else {
                    Err(Denied::NoIdentity(Refusal::new(codes::WORKLOAD_NO_MATCH, "no entry matches")))
                }
            }
        }
    }

    async fn bundles(&self, peer: &Peer, arrived: BootInstant) -> Result<Released<Bundles>, Denied> {
        let context = self.x509(peer, arrived).await?.into_inner();
        let of = context.svids.into_iter().next().map(|svid| svid.bundle).unwrap_or_default();
        Ok(Released::for_test(Bundles([("spiffe://example.org".to_owned(), of)].into())))
    }

    async fn jwt(&self, peer: &Peer, arrived: BootInstant, asked: &JwtAsked) -> Result<Released<JwtContext>, Denied> {
        let context = self.x509(peer, arrived).await?;
        Ok(context.map(|context| {
            let of = |svid: X509Item| JwtItem {
                token: Zeroizing::new(self.tokens.sign(&svid.spiffe_id, &asked.audience)),
                spiffe_id: svid.spiffe_id,
                hint: svid.hint,
            };
            let wanted = |svid: &X509Item| asked.id.as_ref().is_none_or(|id| id.to_string() == svid.spiffe_id);
            JwtContext { svids: context.svids.into_iter().filter(wanted).map(of).collect() }
        }))
    }

    async fn jwt_bundles(&self, peer: &Peer, arrived: BootInstant) -> Result<Released<JwtBundles>, Denied> {
        let context = self.x509(peer, arrived).await?;
        let keys = token::jwks(std::slice::from_ref(&self.tokens.public));
        Ok(context.map(|_| JwtBundles([("spiffe://example.org".to_owned(), keys)].into())))
    }

    async fn validate(&self, peer: &Peer, audience: &str, text: &str) -> Result<Verified, Unaccepted> {
        self.x509(peer, BootInstant::now()).await?;
        let keys = TokenKeys::new(std::slice::from_ref(&self.tokens.public)).unwrap();
        let domain = crate::identity::TrustDomain::new("example.org").unwrap();
        Verified::read(text, audience, &keys, &domain, WallTime::now()).map_err(Unaccepted::Invalid)
    }

    fn changes(&self) -> Changes {
        self.changes.follow()
    }
}

pub(super) struct Bench {
    pub(super) stub: Arc<Stub>,
    pub(super) path: PathBuf,
    pub(super) shutdown: Shutdown,
    pub(super) directory: tempfile::TempDir,
    _socket: BoundSocket,
    _serving: JoinHandle<()>,
}

impl Bench {
    pub(super) fn new(answer: Answer) -> Self {
        Self::with(answer, Limits::default())
    }

    pub(super) fn with(answer: Answer, limits: Limits) -> Self {
        Self::serving(answer, limits, PeerMethod::Auto)
    }

    pub(super) fn serving(answer: Answer, limits: Limits, method: PeerMethod) -> Self {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let path = directory.path().join("workload.sock");
        let mut socket = BoundSocket::bind(&path, 0o666).unwrap();
        let listener = UnixListener::from_std(socket.take().unwrap()).unwrap();
        let (changes, asked) = (Signal::default(), Mutex::default());
        let stub = Arc::new(Stub { answer: Mutex::new(answer), changes, asked, tokens: TokenSigner::new() });
        let shutdown = Shutdown::default();
        let server = Server::new(Arc::clone(&stub), Peers::new(method), limits);
        let stop = shutdown.clone();
        let serving = tokio::spawn(async move { server.serve(listener, stop).await.unwrap() });
        Self { stub, path, shutdown, directory, _socket: socket, _serving: serving }
    }

    /// `unix:…` for `SPIFFE_ENDPOINT_SOCKET`.
    pub(super) fn address(&self) -> String {
        format!("unix:{}", self.path.display())
    }

    pub(super) async fn client(&self) -> Client {
        Client::connect(&self.path).await
    }
}

/// A plain gRPC client, to say what no SPIFFE library would.
pub(super) struct Client(Grpc<Channel>);

impl Client {
    pub(super) async fn connect(path: &std::path::Path) -> Self {
        Self(Grpc::new(channel(path).await.unwrap()))
    }

    pub(super) async fn x509(&mut self) -> Result<Streaming<X509svidResponse>, Status> {
        let request = with_header(X509svidRequest {});
        self.call("/SpiffeWorkloadAPI/FetchX509SVID", request).await
    }

    pub(super) async fn bundles(&mut self) -> Result<Streaming<X509BundlesResponse>, Status> {
        let request = with_header(X509BundlesRequest {});
        self.call("/SpiffeWorkloadAPI/FetchX509Bundles", request).await
    }

    /// `FetchJWTSVID` with any request.
    pub(super) async fn jwt(&mut self, request: JwtsvidRequest) -> Result<JwtsvidResponse, Status> {
        self.ask("/SpiffeWorkloadAPI/FetchJWTSVID", with_header(request)).await
    }

    /// `ValidateJWTSVID`.
    pub(super) async fn validate(&mut self, audience: &str, svid: &str) -> Result<ValidateJwtsvidResponse, Status> {
        let request = ValidateJwtsvidRequest { audience: audience.to_owned(), svid: svid.to_owned() };
        self.ask("/SpiffeWorkloadAPI/ValidateJWTSVID", with_header(request)).await
    }

    async fn ask<Q, A>(&mut self, path: &'static str, request: Request<Q>) -> Result<A, Status>
    where
        Q: prost::Message + Send + Sync + 'static,
        A: prost::Message + Default + Send + Sync + 'static,
    {
        self.0.ready().await.map_err(|e| Status::unknown(e.to_string()))?;
        let path = tonic::codegen::http::uri::PathAndQuery::from_static(path);
        let codec = tonic_prost::ProstCodec::<Q, A>::default();
        self.0.unary(request, path, codec).await.map(tonic::Response::into_inner)
    }

    pub(super) async fn call<Q, A>(&mut self, path: &'static str, request: Request<Q>) -> Result<Streaming<A>, Status>
    where
        Q: prost::Message + Send + Sync + 'static,
        A: prost::Message + Default + Send + Sync + 'static,
    {
        self.0.ready().await.map_err(|e| Status::unknown(e.to_string()))?;
        let path = tonic::codegen::http::uri::PathAndQuery::from_static(path);
        let codec = tonic_prost::ProstCodec::<Q, A>::default();
        self.0.server_streaming(request, path, codec).await.map(tonic::Response::into_inner)
    }
}

pub(super) async fn channel(path: &std::path::Path) -> Result<Channel, tonic::transport::Error> {
    let path = path.to_owned();
    let connect = move |_| {
        let path = path.clone();
        async move { tokio::net::UnixStream::connect(path).await.map(TokioIo::new) }
    };
    Endpoint::from_static("http://localhost").connect_with_connector(tower::service_fn(connect)).await
}

pub(super) fn with_header<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("workload.spiffe.io", "true".parse().unwrap());
    request
}

/// A CA, and what it issues.
pub(super) struct Ca {
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
    certificate: Vec<u8>,
}

impl Ca {
    pub(super) fn new() -> Self {
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, "test CA");
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
        params.subject_alt_names.push(rcgen::SanType::URI("spiffe://example.org".try_into().unwrap()));
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap().der().to_vec();
        Self { issuer: rcgen::Issuer::new(params, key), certificate }
    }

    /// One X.509-SVID for this path, with a new key each time.
    pub(super) fn context(&self, path: &str) -> X509Context {
        let id = format!("spiffe://example.org{path}");
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, "workload");
        params.is_ca = rcgen::IsCa::ExplicitNoCa;
        params.key_usages = vec![rcgen::KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth, rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        params.subject_alt_names.push(rcgen::SanType::URI(id.as_str().try_into().unwrap()));
        let key = rcgen::KeyPair::generate().unwrap();
        let chain = vec![params.signed_by(&key, &self.issuer).unwrap().der().to_vec()];
        let key_pkcs8 = Zeroizing::new(key.serialize_der());
        let bundle = vec![self.certificate.clone()];
        X509Context { svids: vec![X509Item { spiffe_id: id, chain, key_pkcs8, bundle, hint: String::new() }] }
    }
}
