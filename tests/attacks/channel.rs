//! The way there: who may speak at all, how much, in which language, and to whom an agent speaks.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use leasehold::codes;
use leasehold::control_plane::routes::{Access, ROUTES};
use leasehold::protocol::{AttestRequest, BODY_LIMIT, CredentialAnswer, encode};
use reqwest::Method;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use serde_bytes::ByteBuf;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::bench::world::{Node, Server, holds_svid};
use crate::rogue::{Client, Docket, Member, client_config, random};

/// A key in software, as TLS uses it.
fn tls_key(key: &rcgen::KeyPair) -> Arc<dyn rustls::sign::SigningKey> {
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    rustls::crypto::aws_lc_rs::sign::any_supported_type(&key).unwrap()
}

/// A certificate for this SPIFFE ID and key, of a CA that anybody could have made, and that CA's.
fn of_another_ca(id: &str, key: &rcgen::KeyPair) -> Vec<ByteBuf> {
    let mut params = rcgen::CertificateParams::default();
    params.subject_alt_names = vec![rcgen::SanType::URI(id.try_into().unwrap())];
    params.extended_key_usages =
        vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth, rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    let mut ca = rcgen::CertificateParams::default();
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca_key = rcgen::KeyPair::generate().unwrap();
    let ca_certificate = ca.self_signed(&ca_key).unwrap().der().to_vec();
    let leaf = params.signed_by(key, &rcgen::Issuer::new(ca, ca_key)).unwrap().der().to_vec();
    vec![ByteBuf::from(leaf), ByteBuf::from(ca_certificate)]
}

/// A workload's SVID with its key, which its node got for it.
async fn svid(server: &Server, member: &Member) -> (Vec<ByteBuf>, rcgen::KeyPair) {
    let id = "spiffe://example.org/tls";
    let add = ["workload", "add", "--id", id, "--owner", "team-a", "--purpose", "tests", "--selector", "unix:uid:7"];
    server.admin(&[&add[..], &["--node", &member.id()]].concat());
    let key = rcgen::KeyPair::generate().unwrap();
    let request = member.wanted(id, member.sequence, &key);
    let answer: CredentialAnswer = member.client.post("/v1/credentials", &request).await.unwrap();
    (answer.answers[0].chain.clone(), key)
}

/// Every node route, for everybody who isn't a node.
#[tokio::test(flavor = "multi_thread")]
async fn the_nodes_routes_are_for_nodes() {
    let server = Server::start("");
    let member = Member::leased(&server).await;
    let (chain, key) = svid(&server, &member).await;
    let name = format!("spiffe://example.org/leasehold/node/{}", member.id());
    let own_key = rcgen::KeyPair::generate().unwrap();
    let own = of_another_ca(&name, &own_key);
    let clients = [
        ("no certificate", Client::stranger(&server)),
        ("the node's name from another CA", Client::certified(&server, &own, tls_key(&own_key))),
        ("a workload's SVID", Client::certified(&server, &chain, tls_key(&key))),
    ];
    let mut docket = Docket::of(&server);
    for route in ROUTES.iter().filter(|route| route.access == Access::Node) {
        for (who, client) in &clients {
            let what = format!("{} {} with {who}", route.method, route.path);
            let body = if route.method == Method::GET { Vec::new() } else { vec![0; 100] };
            let refused = client.try_send(route.method.clone(), route.path, body).await.unwrap();
            docket.refused(&what, refused, codes::PROTOCOL_CLIENT_CERTIFICATE);
        }
    }
    assert_eq!(ROUTES.iter().filter(|route| route.access == Access::Node).count(), 10);
}

/// What is larger than allowed, and what is no message at all.
#[tokio::test(flavor = "multi_thread")]
async fn too_much_and_garbage_are_refused_on_every_route() {
    let server = Server::start("");
    let mut member = Member::leased(&server).await;
    let mut docket = Docket::of(&server);
    let client = member.client.clone();
    let before = leasehold::clock::BootInstant::now();
    let mut evidence = member.evidence(member.next).await;
    evidence.resize((4 << 20) + 1, 0);
    let request = encode(&AttestRequest::new(random(), evidence)).unwrap();
    let refused = client.send("/v1/attest", request).await;
    docket.refused("V26: evidence of 4 MiB and a byte", refused, codes::EVIDENCE_TOO_LARGE);
    // An operator's command is refused before its body is looked at, and in JSON.
    let posts = ROUTES.iter().filter(|route| route.method == Method::POST && route.access != Access::Operator);
    for route in posts {
        let refused = client.send(route.path, vec![0; route.limit + 1]).await;
        docket.refused(&format!("{} bytes to {}", route.limit + 1, route.path), refused, codes::PROTOCOL_TOO_LARGE);
        for (what, body) in garbage() {
            let refused = client.send(route.path, body).await;
            docket.refused(&format!("{what} to {}", route.path), refused, codes::PROTOCOL_MALFORMED);
        }
    }
    println!("all of it in {:?}", leasehold::clock::BootInstant::now().since(before));
    // A body on a route that takes none.
    let refused = client.try_send(Method::GET, "/v1/nonce", vec![0; 1]).await.unwrap();
    docket.refused("a body with GET /v1/nonce", refused, codes::PROTOCOL_TOO_LARGE);
    for (method, path) in
        [(Method::POST, "/v1/other"), (Method::GET, "/v2/nonce"), (Method::POST, "/v1/attest/../nonce")]
    {
        let refused = client.try_send(method, path, Vec::new()).await.unwrap().unwrap_err();
        assert_eq!(refused.refusal.code, codes::PROTOCOL_MALFORMED, "{path}");
    }
    // A lie about the size costs its connection at most.
    assert_eq!(BODY_LIMIT, (4 << 20) + (64 << 10));
    // None of this cost the node its lease or its nonce.
    assert!(member.attest().await.unwrap().lease.is_some());
}

/// Bodies that are no message of any route.
fn garbage() -> Vec<(&'static str, Vec<u8>)> {
    let mut noise = Vec::new();
    for _ in 0..32 {
        noise.extend(random::<64>());
    }
    // A map keeps the noise from being a valid item by chance.
    noise[0] = 0xBF;
    vec![
        ("nothing", Vec::new()),
        ("noise", noise),
        ("an empty map", vec![0xA0]),
        ("an unknown field", vec![0xA1, 0x61, b'x', 0x00]),
        ("a map of 2^63 entries", vec![0xBB, 0x7F, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF]),
        ("a text of 2^63 bytes", vec![0x7B, 0x7F, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF]),
        ("ten thousand nested arrays", vec![0x81; 10_000]),
        ("ten thousand nested tags", vec![0xC1; 10_000]),
        ("JSON", b"{\"request_id\":\"' OR 1=1 --\"}".to_vec()),
    ]
}

/// TLS 1.3 only, each handshake whole.
#[tokio::test(flavor = "multi_thread")]
async fn an_older_tls_is_refused_and_nothing_is_resumed() {
    let server = Server::start("");
    let connect = async |config: Arc<rustls::ClientConfig>| {
        let stream = TcpStream::connect(("127.0.0.1", server.port)).await.unwrap();
        let name = ServerName::try_from("127.0.0.1").unwrap();
        let mut stream = tokio_rustls::TlsConnector::from(config).connect(name, stream).await?;
        // Whatever tickets there are come before the first answer.
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await?;
        stream.read_u8().await?;
        let (_, session) = stream.get_ref();
        Ok::<_, std::io::Error>((
            session.handshake_kind(),
            session.tls13_tickets_received(),
            session.protocol_version(),
        ))
    };
    let config = Arc::new(client_config(None));
    for _ in 0..2 {
        let (kind, tickets, version) = connect(config.clone()).await.unwrap();
        println!("{version:?}, handshake {kind:?}, {tickets} tickets");
        assert_eq!(version, Some(rustls::ProtocolVersion::TLSv1_3));
        assert!(matches!(kind, Some(rustls::HandshakeKind::Full | rustls::HandshakeKind::FullWithHelloRetryRequest)));
        assert_eq!(tickets, 0);
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let old = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let refused = connect(Arc::new(old)).await.unwrap_err();
    println!("TLS 1.2: {refused}");
    assert!(refused.to_string().contains("ProtocolVersion"), "{refused}");
}

/// A server that isn't the control plane, and counts what it is told.
struct Impostor {
    port: u16,
    connections: Arc<AtomicUsize>,
    handshakes: Arc<AtomicUsize>,
    bytes: Arc<AtomicUsize>,
}

impl Impostor {
    async fn start(chain: Vec<ByteBuf>, key: &rcgen::KeyPair) -> Self {
        let chain = chain.iter().map(|der| CertificateDer::from(der.to_vec())).collect();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let mut config =
            rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(chain, key)
                .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let counter = || Arc::new(AtomicUsize::new(0));
        let (connections, handshakes, bytes) = (counter(), counter(), counter());
        let impostor =
            Self { port, connections: connections.clone(), handshakes: handshakes.clone(), bytes: bytes.clone() };
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                connections.fetch_add(1, Ordering::SeqCst);
                let (acceptor, handshakes, bytes) = (acceptor.clone(), handshakes.clone(), bytes.clone());
                tokio::spawn(async move {
                    let Ok(mut stream) = acceptor.accept(stream).await else { return };
                    handshakes.fetch_add(1, Ordering::SeqCst);
                    let mut buffer = [0; 4096];
                    while let Ok(count @ 1..) = stream.read(&mut buffer).await {
                        bytes.fetch_add(count, Ordering::SeqCst);
                    }
                });
            }
        });
        impostor
    }
}

/// An agent tells an impostor nothing: not one byte of a request, enrolled or not.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_tells_an_impostor_nothing() {
    let server = Server::start("");
    let member = Member::leased(&server).await;
    let server_name = "spiffe://example.org/leasehold/server";
    let foreign_key = rcgen::KeyPair::generate().unwrap();
    let foreign = of_another_ca(server_name, &foreign_key);
    // A workload's SVID is of the right CA, and may serve TLS; it is not the control plane's.
    let (mut workload, workload_key) = svid(&server, &member).await;
    let pem = server.json(&["ca", "show"])["cas"][0]["pem"].as_str().unwrap().to_owned();
    let ca = x509_cert::Certificate::load_pem_chain(pem.as_bytes()).unwrap().remove(0);
    workload.push(ByteBuf::from(der::Encode::to_der(&ca).unwrap()));
    // The right CA's certificate, sent along by somebody without its key.
    let mut hashed = foreign.clone();
    hashed.push(ByteBuf::from(der::Encode::to_der(&ca).unwrap()));

    let mut enrolled = Node::boot(&server).await;
    enrolled.settle(&server).await;
    enrolled.agent.take().unwrap().terminate();
    let mut fresh = Node::boot(&server).await;
    for (what, chain, key) in [
        ("the server's name from another CA", foreign, &foreign_key),
        ("the same, and the right CA in the chain", hashed, &foreign_key),
        ("a workload's SVID of the right CA", workload, &workload_key),
    ] {
        let impostor = Impostor::start(chain, key).await;
        for (who, node) in [("an enrolled agent", &mut enrolled), ("a new agent", &mut fresh)] {
            let config = std::fs::read_to_string(node.path("agent.toml")).unwrap();
            std::fs::write(node.path("agent.toml"), retarget(&config, impostor.port)).unwrap();
            node.start();
            let untrusted = codes::PROTOCOL_UNTRUSTED.as_str();
            let status = node.until(|status| status["trouble"]["code"] == untrusted).await;
            println!("{what}: {who} says {}", status["trouble"]["found"]);
            node.agent.take().unwrap().terminate();
        }
        let count = |counter: &AtomicUsize| counter.load(Ordering::SeqCst);
        println!(
            "{what}: {} connections, {} bytes after the handshake",
            count(&impostor.connections),
            count(&impostor.bytes)
        );
        assert!(count(&impostor.connections) >= 2);
        assert_eq!((count(&impostor.handshakes), count(&impostor.bytes)), (0, 0));
    }
    // The real one is taken as before, without another enrolment.
    let config = std::fs::read_to_string(enrolled.path("agent.toml")).unwrap();
    std::fs::write(enrolled.path("agent.toml"), retarget(&config, server.port)).unwrap();
    enrolled.start();
    enrolled.until(holds_svid).await;
}

/// The agent's configuration with another port of the control plane.
fn retarget(config: &str, port: u16) -> String {
    let lines = config.lines().map(|line| match line.starts_with("address = \"127.0.0.1:") {
        true => format!("address = \"127.0.0.1:{port}\""),
        false => line.to_owned(),
    });
    lines.collect::<Vec<_>>().join("\n")
}
