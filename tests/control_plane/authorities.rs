//! Rotation of the CA as nodes and workloads live through it.

use std::sync::Arc;

use rustls::pki_types::{CertificateDer, UnixTime};
use serde_bytes::ByteBuf;

use crate::bench::Server;

#[tokio::test]
async fn the_next_ca_is_known_before_it_signs_and_nobody_is_cut_off() {
    let server = Server::start().await;
    let mut member = server.leased().await;
    let id = server.register("web", &member.id()).await;
    let before = member.attest().await.unwrap().bundle;
    let (old, _) = member.credential(&id).await.unwrap();

    assert_eq!(server.run(&["ca", "rotate"]).await.status.code(), Some(1), "nothing is prepared");
    assert_eq!(server.admin(&["ca", "prepare"]).await["changed"], true);
    assert_eq!(server.admin(&["ca", "prepare"]).await["changed"], false);
    let published = member.attest().await.unwrap().bundle;
    assert_eq!((before.certificates.len(), published.certificates.len()), (1, 2));
    assert!(published.sequence > before.sequence);
    let (still_old, _) = member.credential(&id).await.unwrap();
    assert!(leads_to(&still_old.answers[0].chain, &before.certificates[0]));
    assert_eq!(server.run(&["ca", "rotate"]).await.status.code(), Some(1), "not every node can know it yet");

    let hash = server.bound().ca_hash.clone();
    server.admin(&["ca", "rotate", "--early"]).await;
    let shown = server.admin(&["ca", "show"]).await;
    assert_ne!(shown["ca_hash"], hash.as_str());
    // The node's certificate is the old CA's and still good, also for a new connection.
    member.reconnect(&server);
    let rotated = member.attest().await.unwrap().bundle;
    assert_eq!(rotated.certificates.len(), 2);
    let (new, _) = member.credential(&id).await.unwrap();
    assert!(leads_to(&new.answers[0].chain, &rotated.certificates[0]));
    assert!(!leads_to(&new.answers[0].chain, &before.certificates[0]));
    // What was issued before still leads to the bundle; what is issued now led to it before, too.
    assert!(rotated.certificates.iter().any(|ca| leads_to(&old.answers[0].chain, ca)));
    assert!(published.certificates.iter().any(|ca| leads_to(&new.answers[0].chain, ca)));
}

fn leads_to(chain: &[ByteBuf], ca: &ByteBuf) -> bool {
    let ca = CertificateDer::from(ca.to_vec());
    let leaf = CertificateDer::from(chain[0].to_vec());
    let anchors = [webpki::anchor_from_trusted_cert(&ca).unwrap()];
    let leaf = webpki::EndEntityCert::try_from(&leaf).unwrap();
    let usage = webpki::KeyUsage::client_auth();
    leaf.verify_for_usage(webpki::ALL_VERIFICATION_ALGS, &anchors, &[], UnixTime::now(), usage, None, None).is_ok()
}

#[tokio::test]
async fn the_listener_shows_the_certificate_of_the_active_ca() {
    let server = Server::start().await;
    let sent = async || {
        let stream = tokio::net::TcpStream::connect(server.bound().addr).await.unwrap();
        let name = rustls::pki_types::ServerName::try_from("127.0.0.1").unwrap();
        let config = Arc::new(crate::bench::client_config(None));
        let stream = tokio_rustls::TlsConnector::from(config).connect(name, stream).await.unwrap();
        let chain = stream.get_ref().1.peer_certificates().unwrap();
        let leaf = <x509_cert::Certificate as der::Decode>::from_der(&chain[0]).unwrap();
        assert_eq!(
            leasehold::identity::certified_id(&leaf).unwrap().to_string(),
            "spiffe://example.org/leasehold/server"
        );
        chain[1].to_vec()
    };
    let first = sent().await;
    server.admin(&["ca", "prepare"]).await;
    assert_eq!(sent().await, first);
    server.admin(&["ca", "rotate", "--early"]).await;
    assert_ne!(sent().await, first);
}
