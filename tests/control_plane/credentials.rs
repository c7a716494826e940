//! Issuing: for whom, for how long, over which key.

use der::Decode;
use leasehold::codes;
use leasehold::protocol::{CredentialAnswer, CredentialRequest, Wanted, encode};
use p256::pkcs8::EncodePrivateKey;
use reqwest::Method;

use crate::bench::{Server, csr, random};

#[tokio::test]
async fn an_svid_is_one_that_stock_clients_take() {
    let server = Server::start().await;
    let mut member = server.leased().await;
    let id = server.register("web", &member.id()).await;
    let bundle = member.attest().await.unwrap().bundle;
    let (answer, key) = member.credential(&id).await.unwrap();
    let issued = &answer.answers[0];
    assert_eq!((issued.id.as_str(), &issued.refusal), (id.as_str(), &None));
    assert_eq!(issued.term_seconds, 600);
    let chain: Vec<u8> = issued.chain.iter().flat_map(|der| der.iter().copied()).collect();
    let svid = spiffe::X509Svid::parse_from_der(&chain, key.serialized_der()).unwrap();
    assert_eq!(svid.spiffe_id().to_string(), id);
    let anchors: Vec<u8> = bundle.certificates.iter().flat_map(|der| der.iter().copied()).collect();
    let domain = spiffe::TrustDomain::new("example.org").unwrap();
    assert_eq!(spiffe::X509Bundle::parse_from_der(domain, &anchors).unwrap().authorities().len(), 1);
    assert_eq!(server.recorded().await.last().unwrap(), "credential.issued");
}

#[tokio::test]
async fn a_certificate_says_where_its_crl_is_where_that_is_configured() {
    for (more, expected) in [("[published]\nurl = \"http://pki.test/\"\n", Some("http://pki.test/v1/crl/")), ("", None)]
    {
        let server = Server::start_with(more).await;
        let member = server.leased().await;
        let id = server.register("web", &member.id()).await;
        let (answer, _) = member.credential(&id).await.unwrap();
        let leaf = x509_cert::Certificate::from_der(&answer.answers[0].chain[0]).unwrap();
        let points = leaf.tbs_certificate().get_extension::<x509_cert::ext::pkix::CrlDistributionPoints>().unwrap();
        let active = server.admin(&["ca", "show"]).await["cas"][0]["key_id"].as_str().unwrap().to_owned();
        let said = points.map(|(critical, points)| {
            assert!(!critical && points.0.len() == 1);
            format!("{:?}", points.0[0].distribution_point)
        });
        match expected {
            Some(url) => {
                assert!(said.as_ref().is_some_and(|said| said.contains(&format!("{url}{active}"))), "{said:?}")
            }
            None => assert_eq!(said, None),
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let config = Server::config(&dir, "[published]\nurl = \"http://pki.test/crls\"\n");
    let refused = leasehold::control_plane::server::start(config).await.err().unwrap();
    assert_eq!((refused.code, refused.at.as_str()), (codes::CONFIG_INVALID, "published.url"));
}

#[tokio::test]
async fn each_identity_is_decided_by_itself() {
    let server = Server::start().await;
    let one = server.leased().await;
    let two = server.leased().await;
    let own = server.register("own", &one.id()).await;
    let others = server.register("others", &two.id()).await;
    let key = rcgen::KeyPair::generate().unwrap();
    let wanted = |id: &str, csr: Vec<u8>| Wanted { id: id.to_owned(), csr };
    let node_key = one.tpm.node.node_key.to_pkcs8_der().unwrap();
    let node_key = rcgen::KeyPair::try_from(node_key.as_bytes()).unwrap();
    let request = CredentialRequest {
        request_id: random(),
        lease_sequence: one.sequence,
        wanted: vec![
            wanted(&own, csr(&key)),
            wanted(&others, csr(&key)),
            wanted("spiffe://example.org/nobody", csr(&key)),
            wanted("spiffe://example.org/leasehold/server", csr(&key)),
            wanted("no id", csr(&key)),
            wanted(&own, vec![0; 10]),
            wanted(&own, csr(&node_key)),
        ],
    };
    let answer: CredentialAnswer = one.client.post("/v1/credentials", &request).await.unwrap();
    let codes: Vec<_> = answer.answers.iter().map(|issued| issued.refusal.as_ref().map(|why| why.code)).collect();
    assert_eq!(
        codes,
        [
            None,
            Some(codes::ISSUER_NOT_THIS_NODE),
            Some(codes::ISSUER_UNKNOWN_WORKLOAD),
            Some(codes::ISSUER_UNKNOWN_WORKLOAD),
            Some(codes::ISSUER_UNKNOWN_WORKLOAD),
            Some(codes::ISSUER_REQUEST),
            Some(codes::ISSUER_REQUEST),
        ]
    );
    assert!(answer.answers.iter().skip(1).all(|issued| issued.chain.is_empty()));
    let decisions: std::collections::BTreeSet<_> = answer.answers.iter().map(|issued| &issued.decision).collect();
    assert_eq!(decisions.len(), answer.answers.len());
    let recorded = server.recorded().await;
    assert_eq!(recorded[recorded.len() - 7..].iter().filter(|what| what.starts_with("issuer.")).count(), 6);
}

#[tokio::test]
async fn a_group_reaches_its_nodes_only() {
    let server = Server::start().await;
    let mut inside = server.leased().await;
    let outside = server.leased().await;
    server.admin(&["node", "approve", &inside.id(), "--group", "edge"]).await;
    server.admin(&["owner", "add", "team"]).await;
    let id = "spiffe://example.org/group/web";
    let add = ["workload", "add", "--id", id, "--owner", "team", "--purpose", "p", "--node-group", "edge"];
    server.admin(&[&add[..], &["--selector", "unix:gid:7"]].concat()).await;
    assert_eq!(inside.attest().await.unwrap().entries.len(), 1);
    assert!(inside.credential(id).await.unwrap().0.answers[0].refusal.is_none());
    let refusal = outside.credential(id).await.unwrap().0.answers[0].refusal.clone().unwrap();
    assert_eq!(refusal.code, codes::ISSUER_NOT_THIS_NODE);
    // Removed is removed.
    server.admin(&["workload", "remove", id]).await;
    assert!(inside.attest().await.unwrap().entries.is_empty());
    let refusal = inside.credential(id).await.unwrap().0.answers[0].refusal.clone().unwrap();
    assert_eq!(refusal.code, codes::ISSUER_UNKNOWN_WORKLOAD);
}

#[tokio::test]
async fn no_svid_outlives_entry_configuration_or_lease() {
    let server = Server::start_with("[terms]\nlease_seconds = 100\nsvid_seconds = 60\n").await;
    let member = server.leased().await;
    server.admin(&["owner", "add", "team"]).await;
    let id = "spiffe://example.org/short";
    let add = ["workload", "add", "--id", id, "--owner", "team", "--purpose", "p", "--node"];
    let more = [member.id(), "--selector".into(), "unix:uid:7".into(), "--ttl".into(), "50".into()];
    server.admin(&[&add[..], &more.iter().map(String::as_str).collect::<Vec<_>>()[..]].concat()).await;
    let long = server.register("long", &member.id()).await;
    let term = async |id: &str| {
        let issued = member.credential(id).await.unwrap().0.answers.remove(0);
        let leaf = x509_cert::Certificate::from_der(&issued.chain[0]).unwrap();
        let validity = *leaf.tbs_certificate().validity();
        let life = validity.not_after.to_unix_duration() - validity.not_before.to_unix_duration();
        assert_eq!(life.as_secs(), issued.term_seconds + 60, "backdated by a minute");
        issued.term_seconds
    };
    assert_eq!(term(id).await, 50);
    assert_eq!(term(&long).await, 60);
    server.pass(70);
    assert_eq!(term(&long).await, 30);
    server.pass(30);
    assert_eq!(member.credential(&long).await.unwrap_err().code(), codes::ISSUER_NO_LEASE);
}

#[tokio::test]
async fn another_lease_than_the_last_is_refused_and_a_retry_is_answered_alike() {
    let server = Server::start().await;
    let mut member = server.leased().await;
    let id = server.register("web", &member.id()).await;
    let key = rcgen::KeyPair::generate().unwrap();
    let mut request = CredentialRequest {
        request_id: random(),
        lease_sequence: member.sequence,
        wanted: vec![Wanted { id, csr: csr(&key) }],
    };
    let body = encode(&request).unwrap();
    let first = member.client.send(Method::POST, "/v1/credentials", body.clone()).await.unwrap();
    assert_eq!(member.client.send(Method::POST, "/v1/credentials", body.clone()).await.unwrap(), first);
    member.attest().await.unwrap();
    request.request_id = random();
    let refused = member.client.post::<CredentialAnswer>("/v1/credentials", &request).await.unwrap_err();
    assert_eq!(refused.code(), codes::ISSUER_NO_LEASE);
    server.pass(61);
    let refused = member.client.send(Method::POST, "/v1/credentials", body).await.unwrap_err();
    assert_eq!(refused.code(), codes::PROTOCOL_REPLAYED);
    request.wanted = vec![request.wanted[0].clone(); 257];
    request.request_id = random();
    let refused = member.client.post::<CredentialAnswer>("/v1/credentials", &request).await.unwrap_err();
    assert_eq!(refused.code(), codes::PROTOCOL_MALFORMED);
}
