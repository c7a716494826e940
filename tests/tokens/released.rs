//! Tokens on their way: a real control plane, a real agent on its own TPM, stock clients.

use std::time::Duration;

use leasehold::clock::BootInstant;
use spiffe::{JwtSvid, WorkloadApiClient, WorkloadApiError};

use crate::bench::world::{Node, PATIENCE, Server, TRUST_DOMAIN};

/// A stock client's token for an audience.
async fn token(client: &WorkloadApiClient, audience: &str) -> Result<JwtSvid, WorkloadApiError> {
    client.fetch_jwt_svid([audience], None).await
}

fn jti(token: &JwtSvid) -> String {
    let claims = token.token().split('.').nth(1).unwrap();
    let claims = <base64ct::Base64UrlUnpadded as base64ct::Encoding>::decode_vec(claims).unwrap();
    let claims: serde_json::Value = serde_json::from_slice(&claims).unwrap();
    claims["jti"].as_str().unwrap().to_owned()
}

/// Tries again while the answer is that it may come later.
async fn soon(client: &WorkloadApiClient, audience: &str) -> JwtSvid {
    let since = BootInstant::now();
    loop {
        match token(client, audience).await {
            Ok(token) => return token,
            Err(error) if BootInstant::now().since(since) > PATIENCE => panic!("no token: {error:?}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stock_client_fetches_verifies_and_has_judged() {
    let server = Server::start("");
    let mut node = Node::boot(&server).await;
    node.settle(&server).await;
    let client = node.client().await;
    let asked_at = BootInstant::now();
    let one = token(&client, "api").await.unwrap();
    println!("a first token after {:?}", BootInstant::now().since(asked_at));
    assert_eq!(one.spiffe_id().to_string(), format!("spiffe://{TRUST_DOMAIN}/app"));
    assert_eq!(one.audience(), ["api"]);
    // By the bundle alone, as a service elsewhere does it; and by the agent.
    let bundles = client.fetch_jwt_bundles().await.unwrap();
    let domain = spiffe::TrustDomain::new(TRUST_DOMAIN).unwrap();
    let keys = bundles.get(&domain).unwrap();
    let jwk = serde_json::from_slice(keys.find_jwt_authority(one.key_id()).unwrap().jwk_json()).unwrap();
    let mut rules = jsonwebtoken::Validation::new(jsonwebtoken::Algorithm::ES256);
    rules.set_audience(&["api"]);
    let key = jsonwebtoken::DecodingKey::from_jwk(&jwk).unwrap();
    jsonwebtoken::decode::<serde_json::Value>(one.token(), &key, &rules).unwrap();
    client.validate_jwt_token("api", one.token()).await.unwrap();
    for (audience, text) in [("other", one.token().to_owned()), ("api", format!("{}A", one.token()))] {
        client.validate_jwt_token(audience, &text).await.unwrap_err();
    }
    // Held while it is young: the same token, without another decision; for another audience another.
    assert_eq!(jti(&token(&client, "api").await.unwrap()), jti(&one));
    let two = token(&client, "reports").await.unwrap();
    assert_ne!(jti(&one), jti(&two));
    client.validate_jwt_token("api", two.token()).await.unwrap_err();
    let issued: Vec<_> = server
        .records()
        .into_iter()
        .filter(|record| record["what"] == "credential.issued" && record["detail"]["kind"] == "jwt")
        .collect();
    assert_eq!(issued.len(), 2, "{issued:?}");
    assert!(issued.iter().all(|record| record["decision"].is_string()));
    let id = spiffe::SpiffeId::new(format!("spiffe://{TRUST_DOMAIN}/other")).unwrap();
    let denied = client.fetch_jwt_svid(["api"], Some(&id)).await.unwrap_err();
    assert!(matches!(denied, WorkloadApiError::NoIdentityIssued), "{denied:?}");

    let extended = node.tpm.extend(7, [0xD1; 32]).await;
    let refused = token(&client, "api").await.unwrap_err();
    println!("refused {:?} after the extend: {refused}", BootInstant::now().since(extended));
    assert!(matches!(refused, WorkloadApiError::NoIdentityIssued), "{refused:?}");
    let unjudged = client.validate_jwt_token("api", one.token()).await.unwrap_err();
    assert!(matches!(unjudged, WorkloadApiError::NoIdentityIssued), "{unjudged:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_control_plane_what_is_held_goes_on_and_nothing_new_comes() {
    let mut server = Server::start("");
    let mut node = Node::boot(&server).await;
    node.settle(&server).await;
    let client = node.client().await;
    let one = token(&client, "api").await.unwrap();
    server.kill();
    assert_eq!(jti(&token(&client, "api").await.unwrap()), jti(&one));
    client.validate_jwt_token("api", one.token()).await.unwrap();
    let away = token(&client, "reports").await.unwrap_err();
    assert!(format!("{away:?}").contains("Unavailable"), "{away:?}");
    server.restart();
    soon(&client, "reports").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_keys_rotate_and_no_fetch_fails() {
    let server = Server::start("");
    let mut node = Node::boot(&server).await;
    node.settle(&server).await;
    let client = node.client().await;
    let first = token(&client, "api").await.unwrap();
    let header = |token: &JwtSvid| token.token().split('.').next().unwrap().to_owned();
    let mut fetched = 1;
    let mut headers = std::collections::BTreeSet::from([header(&first)]);
    // Audiences that none was held for, two sets for each rotation.
    let sets: [&[&str]; 6] = [
        &["ledger"],
        &["reports"],
        &["api", "ledger"],
        &["api", "reports"],
        &["ledger", "reports"],
        &["api", "ledger", "reports"],
    ];
    for audiences in sets.chunks(2) {
        server.admin(&["ca", "prepare"]);
        server.admin(&["ca", "rotate", "--early"]);
        // At once: the node may not have heard of the new key yet.
        for audience in audiences {
            let token = client.fetch_jwt_svid(audience.iter(), None).await.unwrap();
            client.validate_jwt_token(audience[0], token.token()).await.unwrap();
            headers.insert(header(&token));
            fetched += 1;
        }
        // What was signed by a key before holds.
        client.validate_jwt_token("api", first.token()).await.unwrap();
    }
    assert_eq!(headers.len(), 4, "each rotation signs with another key");
    println!("{fetched} tokens over 3 rotations, none failed");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_fetches_and_judges_as_any_workload() {
    use std::os::unix::fs::MetadataExt;
    let server = Server::start("");
    let mut node = Node::boot(&server).await;
    node.settle(&server).await;
    let id = format!("spiffe://{TRUST_DOMAIN}/app");
    let run = |arguments: &[&str]| {
        let output = node.run_agent(arguments);
        let said = String::from_utf8(output.stdout).unwrap();
        (output.status.code().unwrap(), said, String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, token, error) = run(&["svid", "jwt", "--audience", "api"]);
    assert_eq!((code, token.split('.').count()), (0, 3), "{error}");
    let file = node.path("token");
    std::fs::write(&file, &token).unwrap();
    let file = file.to_str().unwrap();
    let (code, said, _) = run(&["svid", "validate", "--audience", "api", file, "--json"]);
    let said: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!((code, said["id"].as_str(), said["claims"]["sub"].as_str()), (0, Some(id.as_str()), Some(id.as_str())));
    assert!(said["claims"]["exp"].is_u64(), "{said}");
    let (code, _, error) = run(&["svid", "validate", "--audience", "other", file]);
    assert_eq!((code, error.contains("token.audience")), (1, true), "{error}");
    assert!(!error.contains(token.trim()));

    let out = node.path("out");
    let (code, said, error) = run(&["svid", "x509", "--out", out.to_str().unwrap(), "--json"]);
    assert_eq!(code, 0, "{error}");
    let said: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(said["svids"][0]["id"], id.as_str());
    assert!(said["svids"][0]["not_after"].as_str().unwrap().ends_with('Z'));
    let read = |name: &str| std::fs::read(out.join(name)).unwrap();
    for name in ["svid.pem", "svid_key.pem", "bundle.pem"] {
        assert_eq!(std::fs::metadata(out.join(name)).unwrap().mode() & 0o777, 0o600);
    }
    let chain = rustls::pki_types::pem::PemObject::pem_slice_iter(&read("svid.pem")).map(Result::unwrap).collect();
    let key = rustls::pki_types::pem::PemObject::from_pem_slice(&read("svid_key.pem")).unwrap();
    let config =
        rustls::ServerConfig::builder_with_provider(std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider()));
    // Refuses a key that isn't the leaf's.
    config.with_safe_default_protocol_versions().unwrap().with_no_client_auth().with_single_cert(chain, key).unwrap();
    assert_eq!(x509_cert::Certificate::load_pem_chain(&read("bundle.pem")).unwrap().len(), 1);
    assert!(run(&["svid", "x509"]).1.contains(&id));
    assert_eq!(run(&["svid", "x509", "--id", "spiffe://example.org/other"]).0, 1);
    assert_eq!(run(&["svid", "jwt"]).0, 2, "an audience is mandatory");
    assert_eq!(run(&["svid", "jwt", "--audience", "api", "--socket", "/nowhere"]).0, 5);

    node.tpm.extend(7, [0xD1; 32]).await;
    for arguments in [&["svid", "x509"][..], &["svid", "jwt", "--audience", "api"]] {
        let (code, said, error) = run(arguments);
        assert_eq!((code, said.as_str(), error.contains("A PCR ")), (4, "", true), "{error}");
    }
}
