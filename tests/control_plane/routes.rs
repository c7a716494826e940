//! Each route with each kind of client certificate, and the limits of the listener.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use leasehold::codes::{self, Code};
use leasehold::control_plane::routes::ROUTES;
use leasehold::protocol::{
    AttestRequest, BODY_LIMIT, Chain, CredentialAnswer, CredentialRequest, GrantAnswer, LogsRequest, RecordsRequest,
    TasksEnded, Wanted, WithdrawalsApplied, Writer, decode, encode,
};
use p256::ecdsa::SigningKey;
use p256::pkcs8::DecodePrivateKey;
use reqwest::Method;
use rustls::pki_types::ServerName;
use serde_bytes::ByteBuf;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::bench::{Client, Failure, Member, Server, SoftTpm, client_config, csr, random};
use crate::grants;

/// How a call ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Ended {
    /// 200.
    Served,
    /// Refused with this code.
    Refused(Code),
    /// There was no connection.
    NoConnection,
}
use Ended::{NoConnection, Refused, Served};

/// What every route must do for: no certificate, one of another CA, a workload's SVID, a revoked
/// node's, another node's, the right one, an operator who may look, and one who may do everything.
fn expected() -> BTreeMap<&'static str, [Ended; 8]> {
    let no = Refused(codes::PROTOCOL_CLIENT_CERTIFICATE);
    let revoked = Refused(codes::ENROL_REVOKED);
    BTreeMap::from([
        ("/v1/enrol", [Served; 8]),
        // Each enrolment can be answered once: the matrix makes a new one for each call.
        ("/v1/enrol/answer", [Served; 8]),
        ("/v1/nonce", [no, no, no, revoked, Served, Served, no, no]),
        ("/v1/logs", [no, no, no, revoked, Served, Served, no, no]),
        // Neither has a document assigned: what counts is that they may ask.
        ("/v1/references", {
            let none = Refused(codes::VERIFY_NO_REFERENCE);
            [no, no, no, revoked, none, none, no, no]
        }),
        ("/v1/attest", [no, no, no, revoked, Refused(codes::VERIFY_NONCE_OTHER_NODE), Served, no, no]),
        // Asked for the right node's workload; what counts here is below, in `credentials_of`.
        ("/v1/credentials", [no, no, no, revoked, Refused(codes::ISSUER_NOT_THIS_NODE), Served, no, no]),
        ("/v1/grants", [no, no, no, revoked, Refused(codes::ISSUER_NOT_THIS_NODE), Served, no, no]),
        // Whoever verifies what we issue needs it, and it says nothing secret.
        ("/v1/bundle", [Served; 8]),
        // A command that changes something: whoever may look isn't enough.
        ("/v1/command", {
            let node = Refused(codes::ADMIN_PEER);
            [no, no, no, revoked, node, node, Refused(codes::ADMIN_ROLE), Served]
        }),
        ("/v1/tasks/end", [no, no, no, revoked, Served, Served, no, no]),
        ("/v1/records", [no, no, no, revoked, Served, Served, no, no]),
        ("/v1/events", [no, no, no, revoked, Served, Served, no, no]),
        ("/v1/crl", [Served; 8]),
        ("/v1/crl/{key}", [Served; 8]),
        ("/v1/denied", [Served; 8]),
        // A revoked node may still say that it applied that.
        ("/v1/withdrawals", [no, no, no, Served, Served, Served, no, no]),
    ])
}

#[tokio::test(flavor = "multi_thread")]
async fn every_route_serves_whom_it_should_and_nobody_else() {
    let server = Server::start().await;
    let mut right = server.leased().await;
    let mut another = server.leased().await;
    let revoked = server.leased().await;
    let workload = server.register("web", &right.id()).await;
    let (answer, key) = right.credential(&workload).await.unwrap();
    let key = SigningKey::from_pkcs8_der(key.serialized_der()).unwrap();
    server.admin(&["revoke", "node", &revoked.id(), "--reason", "test"]).await;
    let clients = [
        server.stranger(),
        server.client(Some((&foreign_certificate(&right), &right.tpm.node.node_key))),
        server.client(Some((&answer.answers[0].chain, &key))),
        revoked.client.clone(),
        another.client.clone(),
        right.client.clone(),
        operator(&server, &mut right, "viewer").await,
        operator(&server, &mut right, "admin").await,
    ];
    let expected = expected();
    assert_eq!(expected.len(), ROUTES.len());
    for route in ROUTES {
        let row = expected.get(route.path).unwrap_or_else(|| panic!("{} has no row in the matrix", route.path));
        for (column, (client, expected)) in clients.iter().zip(row).enumerate() {
            let found = call(&server, route.path, route.method.clone(), client, column, &mut right, &mut another).await;
            assert_eq!(found, *expected, "{} in column {column}", route.path);
        }
    }
}

/// A client with the SVID of a workload that has this role.
async fn operator(server: &Server, node: &mut Member, role: &str) -> Client {
    let id = server.register(role, &node.id()).await;
    server.admin(&["operator", "add", &id, "--role", role]).await;
    let (answer, key) = node.credential(&id).await.unwrap();
    let key = SigningKey::from_pkcs8_der(key.serialized_der()).unwrap();
    server.client(Some((&answer.answers[0].chain, &key)))
}

/// One call as the right node would make it, over another's connection.
async fn call(
    server: &Server,
    path: &str,
    method: reqwest::Method,
    client: &Client,
    column: usize,
    right: &mut Member,
    another: &mut Member,
) -> Ended {
    let body = match path {
        "/v1/enrol" => encode(&SoftTpm::new().request()).unwrap(),
        "/v1/enrol/answer" => {
            let mut tpm = SoftTpm::new();
            let challenge = server.stranger().post("/v1/enrol", &tpm.request()).await.unwrap();
            encode(&tpm.answer(&challenge)).unwrap()
        }
        "/v1/attest" => encode(&right.request()).unwrap(),
        "/v1/credentials" => {
            // The other node asks under its own lease: it is the workload that isn't its own.
            let lease_sequence = if column == 4 { another.sequence } else { right.sequence };
            let wanted =
                vec![Wanted { id: "spiffe://example.org/web".into(), csr: csr(&rcgen::KeyPair::generate().unwrap()) }];
            encode(&CredentialRequest { request_id: random(), lease_sequence, wanted }).unwrap()
        }
        "/v1/withdrawals" => encode(&WithdrawalsApplied { numbers: vec![1] }).unwrap(),
        "/v1/grants" => {
            let lease_sequence = if column == 4 { another.sequence } else { right.sequence };
            encode(&grants::request(lease_sequence, "spiffe://example.org/web", &["api"])).unwrap()
        }
        // A question only: how far a journal has arrived that nobody knows.
        "/v1/records" => {
            let writer = Writer::from_bytes([1; 16]);
            let before = Chain::begin(&writer);
            let request = RecordsRequest {
                writer,
                first: 1,
                before,
                records: Vec::new(),
                head: None,
                missing: false,
                witnessed: None,
            };
            encode(&request).unwrap()
        }
        "/v1/tasks/end" => encode(&TasksEnded { run: random(), tasks: Vec::new() }).unwrap(),
        "/v1/logs" => encode(&LogsRequest { boot_id: random(), part: None }).unwrap(),
        _ => Vec::new(),
    };
    if path == "/v1/command" {
        let command = r#"{"command":"owner_add","name":"team","contact":""}"#;
        let sent = client.http.post(format!("{}{path}", client.base)).body(command).send().await;
        return match sent {
            Err(_) => NoConnection,
            Ok(response) if response.status() == 200 => Served,
            Ok(response) => {
                let refusal: leasehold::codes::Refusal =
                    serde_json::from_slice(&response.bytes().await.unwrap()).unwrap();
                Refused(refusal.code)
            }
        };
    }
    if path == "/v1/events" {
        // A stream has no end to wait for.
        let sent = client.http.get(format!("{}{path}", client.base)).send().await;
        return match sent {
            Err(_) => NoConnection,
            Ok(response) if response.status() == 200 => Served,
            Ok(response) => {
                let refused: leasehold::protocol::Refused = decode(&response.bytes().await.unwrap()).unwrap();
                Refused(refused.refusal.code)
            }
        };
    }
    let path = path.replace("{key}", server.admin(&["ca", "show"]).await["cas"][0]["key_id"].as_str().unwrap());
    match client.send(method, &path, body).await {
        Ok(answer) if path == "/v1/credentials" => {
            let answer: CredentialAnswer = decode(&answer).unwrap();
            answer.answers[0].refusal.as_ref().map_or(Served, |refusal| Refused(refusal.code))
        }
        Ok(answer) if path == "/v1/grants" => {
            let answer: GrantAnswer = decode(&answer).unwrap();
            answer.refusal.as_ref().map_or(Served, |refusal| Refused(refusal.code))
        }
        Ok(answer) => {
            if path == "/v1/attest" {
                right.next = decode::<leasehold::protocol::AttestAnswer>(&answer).unwrap().next.nonce;
                right.sequence = u64::MAX;
            }
            if path == "/v1/attest" || path == "/v1/nonce" {
                refresh(right).await;
            }
            Served
        }
        Err(Failure::Refused(_, refused)) => Refused(refused.refusal.code),
        Err(Failure::Broken) => NoConnection,
    }
}

/// The right node's lease after the matrix used it.
async fn refresh(right: &mut Member) {
    right.sequence = 0;
    right.attest().await.unwrap();
}

/// A certificate with the right node's name and key, of a CA that isn't ours.
fn foreign_certificate(member: &Member) -> Vec<ByteBuf> {
    use p256::pkcs8::EncodePrivateKey;
    let key = member.tpm.node.node_key.to_pkcs8_der().unwrap();
    let key = rcgen::KeyPair::try_from(key.as_bytes()).unwrap();
    let mut params = rcgen::CertificateParams::default();
    let id = format!("spiffe://example.org/leasehold/node/{}", member.id());
    params.subject_alt_names = vec![rcgen::SanType::URI(id.try_into().unwrap())];
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    let ca_key = rcgen::KeyPair::generate().unwrap();
    let mut ca = rcgen::CertificateParams::default();
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let issuer = rcgen::Issuer::new(ca, ca_key);
    vec![ByteBuf::from(params.signed_by(&key, &issuer).unwrap().der().to_vec())]
}

#[tokio::test]
async fn what_is_too_large_or_unknown_is_refused() {
    let server = Server::start().await;
    let member = server.leased().await;
    let refused = |result: Result<Vec<u8>, Failure>| match result.unwrap_err() {
        Failure::Refused(status, refused) => (status, refused.refusal.code),
        Failure::Broken => panic!("the connection broke"),
    };
    let post = |path: &'static str, body: Vec<u8>| member.client.send(Method::POST, path, body);
    assert_eq!(refused(post("/v1/enrol", vec![0; (64 << 10) + 1]).await), (413, codes::PROTOCOL_TOO_LARGE));
    assert_eq!(refused(post("/v1/attest", vec![0; BODY_LIMIT + 1]).await), (413, codes::PROTOCOL_TOO_LARGE));
    let request = AttestRequest::new(random(), vec![0; (4 << 20) + 1]);
    assert_eq!(refused(post("/v1/attest", encode(&request).unwrap()).await), (413, codes::EVIDENCE_TOO_LARGE));
    assert_eq!(refused(post("/v1/attest", vec![0xA0]).await), (400, codes::PROTOCOL_MALFORMED));
    assert_eq!(refused(post("/v1/enrol", Vec::new()).await), (400, codes::PROTOCOL_MALFORMED));
    assert_eq!(refused(post("/v1/nothing", Vec::new()).await).1, codes::PROTOCOL_MALFORMED);
    assert_eq!(refused(post("/v2/attest", Vec::new()).await).1, codes::PROTOCOL_MALFORMED);
    assert!(member.client.nonce().await.is_ok());
}

#[tokio::test]
async fn only_tls_13_with_the_post_quantum_exchange_and_without_tickets() {
    let server = Server::start().await;
    let connect = |config: rustls::ClientConfig| {
        let addr = server.bound().addr;
        async move {
            let stream = tokio::net::TcpStream::connect(addr).await.unwrap();
            let name = ServerName::try_from("127.0.0.1").unwrap();
            tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await
        }
    };
    let stream = connect(client_config(None)).await.unwrap();
    let (_, session) = stream.get_ref();
    assert_eq!(session.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    assert_eq!(session.negotiated_key_exchange_group().unwrap().name(), rustls::NamedGroup::X25519MLKEM768);
    assert_eq!(session.alpn_protocol(), Some(b"h2".as_slice()));
    // Leaf and CA: whoever pins the CA's hash finds it in the chain.
    let chain = session.peer_certificates().unwrap();
    assert_eq!(chain.len(), 2);
    use sha2::{Digest, Sha256};
    assert_eq!(hex::encode(Sha256::digest(&chain[1])), server.bound().ca_hash);
    assert_eq!(server.admin(&["ca", "show"]).await["ca_hash"], server.bound().ca_hash.as_str());

    let old = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    // A client that trusts nothing gets nothing either.
    assert!(connect(old).await.is_err());
    // A ClientHello of TLS 1.2 is answered with an alert and the end.
    let mut plain = tokio::net::TcpStream::connect(server.bound().addr).await.unwrap();
    plain.write_all(&TLS12_HELLO).await.unwrap();
    let mut answer = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(5), plain.read_to_end(&mut answer)).await.unwrap();
    assert!(read.is_err() || answer.first() == Some(&21), "no alert: {answer:02x?}");
}

/// A TLS 1.2 ClientHello with one cipher suite and no extensions (RFC 5246, 7.4.1.2).
const TLS12_HELLO: [u8; 50] = {
    let mut hello = [0; 50];
    let head = [22, 3, 1, 0, 45, 1, 0, 0, 41, 3, 3];
    let mut at = 0;
    while at < head.len() {
        hello[at] = head[at];
        at += 1;
    }
    // 32 random bytes (zeros), no session id, one suite, one compression method.
    let tail = [0, 0, 2, 0xC0, 0x2B, 1, 0];
    let mut at = 0;
    while at < tail.len() {
        hello[43 + at] = tail[at];
        at += 1;
    }
    hello
};

#[tokio::test(flavor = "multi_thread")]
async fn idle_strangers_do_not_keep_a_node_waiting() {
    let server = Server::start().await;
    let mut member = server.leased().await;
    let mut idle = Vec::new();
    for count in 0..300 {
        let mut stream = tokio::net::TcpStream::connect(server.bound().addr).await.unwrap();
        if count % 2 == 0 {
            stream.write_all(&[22, 3, 1, 2, 0, 1]).await.unwrap();
        }
        idle.push(stream);
    }
    member.reconnect(&server);
    let served = tokio::time::timeout(Duration::from_secs(5), member.attest()).await.unwrap().unwrap();
    assert!(served.lease.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_address_has_so_many_places_before_it_shows_a_certificate() {
    let server = Server::start().await;
    let mut idle = Vec::new();
    for _ in 0..100 {
        idle.push(tokio::net::TcpStream::connect(server.bound().addr).await.unwrap());
    }
    // The oldest made room, long before their handshake's time is over.
    let mut byte = [0];
    let read = tokio::time::timeout(Duration::from_secs(5), idle[0].read(&mut byte)).await.unwrap();
    assert_eq!(read.unwrap_or(0), 0);
    let mut last = idle.pop().unwrap();
    assert!(tokio::time::timeout(Duration::from_millis(300), last.read(&mut byte)).await.is_err(), "the newest stays");
    // A stranger from there is served all the same.
    assert!(SoftTpm::new().enrol(&server.stranger()).await.unwrap().waiting.is_some());
}
