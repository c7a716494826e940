//! Grants just in time: tokens and certificates for one process that waits.

use leasehold::codes;
use leasehold::credentials::token::{TokenKeys, Verified, jwks};
use leasehold::identity::TrustDomain;
use leasehold::protocol::{AuthorizationDetail, Bundle, CallerClaims, GrantAnswer, GrantRequest, TaskStatement};

use crate::bench::{Failure, Member, Server, TRUST_DOMAIN, csr, random};

/// A request for a token, as an agent makes it.
pub fn request(lease_sequence: u64, workload: &str, audience: &[&str]) -> GrantRequest {
    GrantRequest {
        request_id: random(),
        lease_sequence,
        workload: workload.to_owned(),
        caller: CallerClaims { uid: 1000, login_session: false, selectors: vec!["unix:uid:1000".to_owned()] },
        task: None,
        csr: None,
        audience: audience.iter().map(|one| (*one).to_owned()).collect(),
        destination: None,
        details: Vec::new(),
    }
}

pub fn detail(kind: &str, actions: &[&str], locations: &[&str]) -> AuthorizationDetail {
    let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
    AuthorizationDetail { kind: kind.to_owned(), actions: owned(actions), locations: owned(locations) }
}

async fn grant(member: &Member, request: &GrantRequest) -> GrantAnswer {
    let answer: GrantAnswer = member.client.post("/v1/grants", request).await.unwrap();
    assert_eq!(answer.refusal, None);
    answer
}

/// As a relying party reads it that has nothing but the bundle.
fn read(server: &Server, token: &str, audience: &str, bundle: &Bundle) -> Result<Verified, leasehold::codes::Refusal> {
    let keys = TokenKeys::from_jwks(&jwks(&bundle.jwt_keys)).unwrap();
    Verified::read(token, audience, &keys, &TrustDomain::new(TRUST_DOMAIN).unwrap(), server.now())
}

#[tokio::test]
async fn a_token_says_what_was_granted_and_no_more() {
    let server = Server::start().await;
    let mut member = server.leased().await;
    let id = server.register("web", &member.id()).await;
    let bundle = member.attest().await.unwrap().bundle;
    let asked = GrantRequest {
        details: vec![detail("ledger", &["append", "read"], &["spiffe://example.org/ledger"])],
        ..request(member.sequence, &id, &["ledger", "reports"])
    };
    let one = grant(&member, &asked).await;
    assert_eq!(one.details, asked.details);
    assert!((1..=600).contains(&one.term_seconds), "{}", one.term_seconds);
    let token = read(&server, &one.token, "ledger", &bundle).unwrap();
    assert_eq!((token.id().to_string(), token.jti(), token.task()), (id.clone(), one.jti.as_str(), None));
    assert_eq!(token.expires().0, server.now().0 + one.term_seconds);
    let names: Vec<&str> = token.claims().keys().map(String::as_str).collect();
    assert_eq!(names, ["sub", "aud", "exp", "iat", "jti", "decision", "purpose", "authorization_details"]);
    assert_eq!(token.claims()["decision"], one.decision.as_str());
    assert_eq!(token.claims()["purpose"], "tests");
    // For the one audience and not for another; what was granted and nothing beside it.
    assert_eq!(read(&server, &one.token, "other", &bundle).unwrap_err().code, codes::TOKEN_AUDIENCE);
    assert!(token.permits("ledger", "append", "spiffe://example.org/ledger"));
    for (kind, action, location) in [
        ("ledger", "delete", "spiffe://example.org/ledger"),
        ("ledger", "append", "spiffe://example.org/ledger2"),
        ("ledger", "append", "spiffe://example.org/Ledger"),
        ("Ledger", "append", "spiffe://example.org/ledger"),
        ("", "", ""),
    ] {
        assert!(!token.permits(kind, action, location), "{kind} {action} {location}");
    }
    // The same request is one credential; another request is another.
    assert_eq!(grant(&member, &asked).await, one);
    let two = grant(&member, &GrantRequest { request_id: random(), ..asked }).await;
    assert_ne!(one.jti, two.jti);
    assert_ne!(one.decision, two.decision);
    server.pass(one.term_seconds);
    assert_eq!(read(&server, &one.token, "ledger", &bundle).unwrap_err().code, codes::TOKEN_EXPIRED);
}

#[tokio::test]
async fn a_library_that_is_not_ours_takes_the_token() {
    use jsonwebtoken::jwk::JwkSet;
    use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
    let server = Server::start().await;
    let mut member = server.leased().await;
    let id = server.register("web", &member.id()).await;
    let bundle = member.attest().await.unwrap().bundle;
    let granted = grant(&member, &request(member.sequence, &id, &["api"])).await;
    let header = decode_header(&granted.token).unwrap();
    let keys: JwkSet = serde_json::from_slice(&jwks(&bundle.jwt_keys)).unwrap();
    let key = DecodingKey::from_jwk(keys.find(&header.kid.unwrap()).unwrap()).unwrap();
    let mut rules = Validation::new(Algorithm::ES256);
    rules.set_audience(&["api"]);
    rules.set_required_spec_claims(&["exp", "aud", "sub"]);
    rules.leeway = 0;
    let claims = decode::<serde_json::Value>(&granted.token, &key, &rules).unwrap().claims;
    assert_eq!((claims["sub"].as_str().unwrap(), claims["jti"].as_str().unwrap()), (id.as_str(), granted.jti.as_str()));
    rules.set_audience(&["another"]);
    assert!(decode::<serde_json::Value>(&granted.token, &key, &rules).is_err());
}

#[tokio::test]
async fn both_kinds_come_by_one_request_and_hold_as_long() {
    let server = Server::start().await;
    let member = server.leased().await;
    let id = server.register("web", &member.id()).await;
    let key = rcgen::KeyPair::generate().unwrap();
    let asked =
        GrantRequest { csr: Some(serde_bytes::ByteBuf::from(csr(&key))), ..request(member.sequence, &id, &["api"]) };
    let answer = grant(&member, &asked).await;
    let svid = spiffe::X509Svid::parse_from_der(&answer.chain[0], key.serialized_der()).unwrap();
    assert_eq!(svid.spiffe_id().to_string(), id);
    assert!(!answer.token.is_empty());
    let issued = server.recorded().await.into_iter().filter(|what| what == "credential.issued").count();
    assert_eq!(issued, 2);
}

#[tokio::test]
async fn what_is_asked_wrongly_gets_nothing() {
    let server = Server::start().await;
    let member = server.leased().await;
    let other = server.leased().await;
    let id = server.register("web", &member.id()).await;
    let good = request(member.sequence, &id, &["api"]);
    let long = "x".repeat(2049);
    let many: Vec<String> = (0..17).map(|n| n.to_string()).collect();
    let malformed = [
        GrantRequest { audience: Vec::new(), ..good.clone() },
        GrantRequest { audience: many, ..good.clone() },
        GrantRequest { audience: vec!["a".into(), "a".into()], ..good.clone() },
        GrantRequest { audience: vec![String::new()], ..good.clone() },
        GrantRequest { audience: vec![long.clone()], ..good.clone() },
        GrantRequest { audience: vec!["a\nb".into()], ..good.clone() },
        GrantRequest { destination: Some(long.clone()), ..good.clone() },
        GrantRequest { details: vec![detail("", &[], &[])], ..good.clone() },
        GrantRequest { details: vec![detail("a", &[&long], &[])], ..good.clone() },
        GrantRequest { details: vec![detail("a", &[], &[]); 33], ..good.clone() },
        GrantRequest { details: vec![detail("a", &["x"; 33], &[])], ..good.clone() },
    ];
    for asked in malformed {
        let refused = member.client.post::<GrantAnswer>("/v1/grants", &asked).await.unwrap_err();
        assert_eq!(refused.code(), codes::PROTOCOL_MALFORMED, "{asked:?}");
    }
    let refused = async |client: &Member, asked: GrantRequest| {
        let asked = GrantRequest { request_id: random(), ..asked };
        let answer: GrantAnswer = client.client.post("/v1/grants", &asked).await.unwrap();
        assert!(answer.token.is_empty() && answer.jti.is_empty() && answer.chain.is_empty());
        answer.refusal.unwrap().code
    };
    let nobody = GrantRequest { workload: "spiffe://example.org/nobody".into(), ..good.clone() };
    assert_eq!(refused(&member, nobody).await, codes::ISSUER_UNKNOWN_WORKLOAD);
    let others = GrantRequest { lease_sequence: other.sequence, ..good.clone() };
    assert_eq!(refused(&other, others).await, codes::ISSUER_NOT_THIS_NODE);
    // What would be larger than servers take in a header is no token.
    let wide = vec![detail("a", &["x".repeat(200).as_str(); 16], &["y".repeat(200).as_str(); 32])];
    let wide = GrantRequest { details: wide, ..good.clone() };
    assert_eq!(refused(&member, wide.clone()).await, codes::TOKEN_MALFORMED);
    // Nor is half of a grant given: the certificate that could have been made isn't.
    let csr = serde_bytes::ByteBuf::from(csr(&rcgen::KeyPair::generate().unwrap()));
    assert_eq!(refused(&member, GrantRequest { csr: Some(csr), ..wide }).await, codes::TOKEN_MALFORMED);
    let broken = GrantRequest { csr: Some(serde_bytes::ByteBuf::from(vec![0; 9])), ..good.clone() };
    assert_eq!(refused(&member, broken).await, codes::ISSUER_REQUEST);
    let code = |result: Result<GrantAnswer, Failure>| result.unwrap_err().code();
    let stale = GrantRequest { lease_sequence: member.sequence - 1, request_id: random(), ..good.clone() };
    assert_eq!(code(member.client.post("/v1/grants", &stale).await), codes::ISSUER_NO_LEASE);
    server.pass(601);
    assert_eq!(code(member.client.post("/v1/grants", &good).await), codes::ISSUER_NO_LEASE);
    let count = server.recorded().await.into_iter().filter(|what| what == "credential.issued").count();
    assert_eq!(count, 0, "something was issued");
}

#[tokio::test]
async fn keys_for_tokens_rotate_without_a_token_that_nobody_can_verify() {
    let server = Server::start().await;
    let mut member = server.leased().await;
    let id = server.register("web", &member.id()).await;
    let first = member.attest().await.unwrap().bundle;
    assert_eq!(first.jwt_keys.len(), 1);
    let ask = async |member: &Member| grant(member, &request(member.sequence, &id, &["api"])).await;
    let before = ask(&member).await;
    server.admin(&["ca", "prepare"]).await;
    let published = member.attest().await.unwrap().bundle;
    assert_eq!(published.jwt_keys.len(), 2);
    assert!(published.sequence > first.sequence);
    let still_first = ask(&member).await;
    server.admin(&["ca", "rotate", "--early"]).await;
    let after = ask(&member).await;
    // Who learnt of the next key before it signed reads all; who learns now reads what is left.
    let rotated = member.attest().await.unwrap().bundle;
    for token in [&before, &still_first, &after] {
        read(&server, &token.token, "api", &published).unwrap();
        read(&server, &token.token, "api", &rotated).unwrap();
    }
    assert_eq!(read(&server, &after.token, "api", &first).unwrap_err().code, codes::TOKEN_SIGNATURE);
}

#[tokio::test]
async fn no_token_and_no_key_lies_in_the_store() {
    let server = Server::start().await;
    let member = server.leased().await;
    let id = server.register("web", &member.id()).await;
    let asked = request(member.sequence, &id, &["api"]);
    let granted = grant(&member, &asked).await;
    // Kept for a retry, and given again: but not in a form that a copy of the store shows.
    assert_eq!(grant(&member, &asked).await, granted);
    let signature = granted.token.rsplit('.').next().unwrap().as_bytes().to_vec();
    let claims = granted.token.split('.').nth(1).unwrap().as_bytes().to_vec();
    // The head of PKCS#8 for P-256 (RFC 5958, RFC 5480): version, algorithm, curve.
    let pkcs8 = hex::decode("020100301306072a8648ce3d020106082a8648ce3d030107").unwrap();
    let mut files = 0;
    for entry in std::fs::read_dir(server.dir.path().join("state")).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        files += 1;
        for secret in [&signature, &claims, &pkcs8] {
            assert!(!bytes.windows(secret.len()).any(|window| window == secret.as_slice()));
        }
    }
    assert!(files >= 2, "{files} files");
    // The id is there, or this looked in the wrong place: it is no secret.
    let id_is_there = std::fs::read_dir(server.dir.path().join("state")).unwrap().any(|entry| {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        bytes.windows(granted.jti.len()).any(|window| window == granted.jti.as_bytes())
    });
    assert!(id_is_there);
}

#[tokio::test]
async fn a_retry_across_a_restart_is_refused_and_a_new_request_served() {
    let mut server = Server::start().await;
    let mut member = server.leased().await;
    let id = server.register("web", &member.id()).await;
    let asked = request(member.sequence, &id, &["api"]);
    let before = grant(&member, &asked).await;
    server.restart().await;
    member.reconnect(&server);
    let refused = member.client.post::<GrantAnswer>("/v1/grants", &asked).await.unwrap_err();
    assert_eq!(refused.code(), codes::PROTOCOL_REPLAYED);
    let after = grant(&member, &GrantRequest { request_id: random(), ..asked }).await;
    assert_ne!(before.jti, after.jti);
}

#[tokio::test]
async fn a_task_has_tokens_of_its_own_and_each_has_another_id() {
    let server = Server::start().await;
    let mut member = server.leased().await;
    let id = server.register("web", &member.id()).await;
    let bundle = member.attest().await.unwrap().bundle;
    let stated = |number, id: &str| TaskStatement {
        id: id.to_owned(),
        run: [7; 16],
        number,
        intent: "settle the day".to_owned(),
        purpose: "settlement".to_owned(),
        heartbeat_seconds: 0,
        term_seconds: 30,
    };
    let asked = |task| GrantRequest { task: Some(task), ..request(member.sequence, &id, &["ledger"]) };
    let one = grant(&member, &asked(stated(1, "day-1"))).await;
    let two = grant(&member, &asked(stated(2, "day-2"))).await;
    let renewed = grant(&member, &asked(stated(1, "day-1"))).await;
    assert_eq!([&one, &two, &renewed].map(|granted| granted.term_seconds), [30; 3]);
    let jtis: std::collections::BTreeSet<_> = [&one, &two, &renewed].map(|granted| &granted.jti).into();
    assert_eq!(jtis.len(), 3);
    let token = read(&server, &one.token, "ledger", &bundle).unwrap();
    assert_eq!(token.task(), Some("day-1"));
    assert_eq!(
        (&token.claims()["intent"], &token.claims()["purpose"]),
        (&"settle the day".into(), &"settlement".into())
    );
    // A task whose name is taken, or can't be one, gets nothing.
    for task in [stated(3, "day-2"), stated(4, "day 4"), stated(1, "day-2")] {
        let answer: GrantAnswer = member.client.post("/v1/grants", &asked(task)).await.unwrap();
        assert_eq!((answer.refusal.unwrap().code, answer.token.as_str()), (codes::TASK_INVALID, ""));
    }
}

#[tokio::test]
async fn anybody_gets_the_bundle_and_can_verify_by_it() {
    let server = Server::start().await;
    let member = server.leased().await;
    let id = server.register("web", &member.id()).await;
    let granted = grant(&member, &request(member.sequence, &id, &["api"])).await;
    let fetch = async || server.stranger().send(reqwest::Method::GET, "/v1/bundle", Vec::new()).await.unwrap();
    let document = fetch().await;
    let keys = TokenKeys::from_jwks(&document).unwrap();
    let domain = TrustDomain::new(TRUST_DOMAIN).unwrap();
    Verified::read(&granted.token, "api", &keys, &domain, server.now()).unwrap();
    // As another program reads a SPIFFE bundle: one key of each use, and a number that grows.
    let bundle: serde_json::Value = serde_json::from_slice(&document).unwrap();
    let uses: Vec<&str> = bundle["keys"].as_array().unwrap().iter().map(|key| key["use"].as_str().unwrap()).collect();
    assert_eq!(uses, ["x509-svid", "jwt-svid"]);
    let ca = &bundle["keys"][0];
    assert!(ca["kid"].is_null() && ca["x5c"].as_array().unwrap().len() == 1, "{ca}");
    let der = <base64ct::Base64 as base64ct::Encoding>::decode_vec(ca["x5c"][0].as_str().unwrap()).unwrap();
    use sha2::Digest;
    assert_eq!(hex::encode(sha2::Sha256::digest(&der)), server.bound().ca_hash);
    server.admin(&["ca", "prepare"]).await;
    let next: serde_json::Value = serde_json::from_slice(&fetch().await).unwrap();
    assert_eq!(next["keys"].as_array().unwrap().len(), 4);
    assert!(next["spiffe_sequence"].as_u64() > bundle["spiffe_sequence"].as_u64());
}
