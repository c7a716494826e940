//! The TLS listener: TLS 1.3 only, no resumption, no early data, every limit explicit.

use std::convert::Infallible;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper::service::Service;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::time_provider::TimeProvider;
use rustls::{DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::authn::Peer;
use super::keys;
use super::server::Now;
use super::sources::Sources;
use crate::codes::{self, Refusal};
use crate::protocol::Bundle;
use crate::shutdown::{CancellationToken, Shutdown};

/// A handshake takes milliseconds; a client that hasn't finished by then is none.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Connections without a client certificate are for enrolment only, which takes seconds.
const ANONYMOUS_AGE: Duration = Duration::from_secs(60);
/// How many connections may have a client certificate; counted apart from those without (or before)
/// one, which [`Sources`] counts, so that strangers can't take the nodes' places.
const NODES: usize = 16_384;
/// Requests at once on one connection: one attestation, one stream of events and some credentials.
const STREAMS: u32 = 32;
/// HTTP/2 pings: a peer that went away is noticed within the sum of both.
const PING: Duration = Duration::from_secs(20);
const PONG: Duration = Duration::from_secs(10);
/// How long requests under way may take when the server stops.
const DRAIN: Duration = Duration::from_secs(5);

/// Who is on the other end of a connection, as its client certificate says; attached to each request.
#[derive(Clone, Debug)]
pub enum Channel {
    /// There was no certificate.
    Stranger,
    /// There was one that leads to none of our CAs, or has expired.
    Refused(Arc<Refusal>),
    /// There was one of ours, valid now.
    Certified(Arc<Peer>),
}

/// The TLS configuration that new connections get; replaced when a CA or certificate changes.
#[derive(Debug)]
pub struct Tls(RwLock<Configuration>);

/// What a connection is accepted with.
#[derive(Clone, Debug)]
pub struct Configuration {
    config: Arc<ServerConfig>,
    clients: Arc<Clients>,
    /// Ends the connections that were accepted with it.
    over: CancellationToken,
}

impl Tls {
    /// A listener's configuration; see [`configuration`].
    pub const fn new(configuration: Configuration) -> Self {
        Self(RwLock::new(configuration))
    }

    /// Replaces it for connections to come; those that are open end if `close`.
    pub fn replace(&self, configuration: Configuration, close: bool) {
        let mut current = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let over = match close {
            true => {
                current.over.cancel();
                CancellationToken::new()
            }
            false => current.over.clone(),
        };
        *current = Configuration { over, ..configuration };
    }

    fn current(&self) -> Configuration {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The configuration of a server with this certificate chain and key, whose clients' certificates
/// lead to `bundle` and are valid by the clock `now`.
///
/// # Errors
/// [`codes::STORE_FAILED`] when the parts don't fit together: never with certificates of ours.
pub fn configuration(
    chain: &[impl AsRef<[u8]>],
    key: &p256::ecdsa::SigningKey,
    bundle: &Bundle,
    now: &Now,
) -> Result<Configuration, Refusal> {
    let bug = |what: String| Refusal::new(codes::STORE_FAILED, format!("BUG: TLS can't be set up: {what}"));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    for certificate in &bundle.certificates {
        roots.add(CertificateDer::from(certificate.to_vec())).map_err(|e| bug(e.to_string()))?;
    }
    // Optional here, since enrolment has none yet; each route says whether it needs one.
    let path = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(|e| bug(e.to_string()))?;
    let chain = chain.iter().map(|der| CertificateDer::from(der.as_ref().to_vec())).collect();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(keys::to_pkcs8(key)?.to_vec()));
    let clients = Arc::new(Clients { path, now: now.clone() });
    let mut config = ServerConfig::builder_with_details(provider, Arc::new(Clock(now.clone())))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| bug(e.to_string()))?
        .with_client_cert_verifier(clients.clone())
        .with_single_cert(chain, key)
        .map_err(|e| bug(e.to_string()))?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    // A resumed session would skip the client certificate's check.
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.max_early_data_size = 0;
    Ok(Configuration { config: Arc::new(config), clients, over: CancellationToken::new() })
}

/// Client certificates. The handshake proves the possession of a certificate's key; what the
/// certificate is worth is judged right after it, by [`Clients::channel`]. So a node whose
/// certificate has expired, or whose CA has gone while the node was off, is told why and enrols
/// again; a handshake that fails looks to it like a server that is away.
struct Clients {
    path: Arc<dyn ClientCertVerifier>,
    now: Now,
}

impl Clients {
    /// Judges what the client sent in its handshake.
    fn channel(&self, sent: Option<&[CertificateDer<'_>]>) -> Channel {
        let Some((leaf, intermediates)) = sent.and_then(<[_]>::split_first) else { return Channel::Stranger };
        let now = UnixTime::since_unix_epoch(Duration::from_secs((self.now)().0));
        let judged = match self.path.verify_client_cert(leaf, intermediates, now) {
            Ok(_) => Peer::from_certificate(leaf),
            Err(error) => Err(Refusal::new(codes::PROTOCOL_CLIENT_CERTIFICATE, error.to_string())
                .expected("the certificate that enrolment gave an admitted node")),
        };
        match judged {
            Ok(peer) => Channel::Certified(Arc::new(peer)),
            Err(refusal) => Channel::Refused(Arc::new(refusal)),
        }
    }
}

impl ClientCertVerifier for Clients {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // None: a node has one certificate, and shows it even when its CA is none of ours any more.
        &[]
    }

    fn verify_client_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken here".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.path.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.path.supported_verify_schemes()
    }
}

impl std::fmt::Debug for Clients {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Clients")
    }
}

/// The server's clock, as rustls reads it.
struct Clock(Now);

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs((self.0)().0)))
    }
}

impl std::fmt::Debug for Clock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Clock")
    }
}

/// Accepts connections until `shutdown`, each served by `router` on a task of its own.
pub async fn serve(listener: TcpListener, tls: Arc<Tls>, router: Router, shutdown: Shutdown) {
    let sources = Arc::new(Sources::default());
    let nodes = Arc::new(Semaphore::new(NODES));
    loop {
        let accepted = tokio::select! {
            () = shutdown.token.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, mostly: it helps to wait.
                tracing::warn!(%error, "a connection can't be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Some(visit) = sources.enter(address.ip()) else {
            tracing::debug!(%address, "too many connections of strangers");
            continue;
        };
        let (tls, router, nodes) = (tls.current(), router.clone(), nodes.clone());
        let stop = shutdown.token.clone();
        shutdown.tasks.spawn(async move {
            let over = visit.over.clone();
            let shaken = tokio::time::timeout(HANDSHAKE, handshake(tls.config, stream));
            let stream = match over.run_until_cancelled(shaken).await {
                Some(Ok(Ok(stream))) => stream,
                Some(Ok(Err(error))) => return tracing::debug!(%address, %error, "TLS handshake failed"),
                Some(Err(_)) => return tracing::debug!(%address, "TLS handshake took too long"),
                None => return tracing::debug!(%address, "too many connections from this address"),
            };
            let channel = tls.clients.channel(stream.get_ref().1.peer_certificates());
            match &channel {
                Channel::Stranger | Channel::Refused(_) => {
                    let served = connection(stream, channel, router, ANONYMOUS_AGE, stop);
                    over.run_until_cancelled(served).await;
                }
                Channel::Certified(_) => {
                    visit.proved_a_node();
                    let Ok(_permit) = nodes.try_acquire_owned() else {
                        return tracing::warn!(%address, "too many connections of nodes");
                    };
                    let served = connection(stream, channel, router, Duration::MAX, stop);
                    tls.over.run_until_cancelled(served).await;
                }
            }
        });
    }
}

async fn handshake(config: Arc<ServerConfig>, stream: TcpStream) -> std::io::Result<TlsStream<TcpStream>> {
    stream.set_nodelay(true)?;
    TlsAcceptor::from(config).accept(stream).await
}

/// Serves HTTP/2 on one connection until it ends, `age` is over or the server stops.
async fn connection(
    stream: TlsStream<TcpStream>,
    channel: Channel,
    router: Router,
    age: Duration,
    stop: crate::shutdown::CancellationToken,
) {
    let service = hyper::service::service_fn(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(channel.clone());
        let router = TowerToHyperService::new(router.clone());
        async move {
            let response = router.call(request.map(Body::new)).await;
            Ok::<_, Infallible>(response.unwrap_or_else(|never| match never {}))
        }
    });
    let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(16 << 10)
        .keep_alive_interval(PING)
        .keep_alive_timeout(PONG);
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        _ = connection.as_mut() => return,
        () = stop.cancelled() => {}
        () = tokio::time::sleep(age) => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = tokio::time::timeout(DRAIN, connection).await;
}
