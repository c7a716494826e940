//! What relying parties are given, with OpenSSL as one of them; and breaking glass.

use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use base64ct::{Base64, Encoding};
use futures_util::StreamExt;
use leasehold::clock::BootInstant;
use serde_json::Value;

use crate::bench::world::{Node, PATIENCE, Server, holds_svid};
use crate::fleet::client;
use crate::soft::Client;

fn openssl(arguments: &[&str]) -> Output {
    Command::new("openssl").args(arguments).output().unwrap()
}

fn said(output: &Output) -> String {
    [&output.stdout[..], &output.stderr].map(String::from_utf8_lossy).concat()
}

fn write(directory: &Path, name: &str, bytes: &[u8]) -> String {
    let path = directory.join(name);
    std::fs::write(&path, bytes).unwrap();
    path.display().to_string()
}

/// The CRL as PEM, and the file it is in.
fn crl_file(server: &Server, name: &str) -> (String, Value) {
    let der = server.path(&format!("{name}.der")).display().to_string();
    let facts = server.json(&["ca", "crl", "--out", &der]);
    let pem = server.path(name).display().to_string();
    assert!(openssl(&["crl", "-inform", "DER", "-in", &der, "-out", &pem]).status.success());
    (pem, facts)
}

async fn get(client: &Client, path: &str) -> (u16, reqwest::header::HeaderMap, Vec<u8>) {
    let response = client.http.get(format!("{}{path}", client.base)).send().await.unwrap();
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    (status, headers, response.bytes().await.unwrap().to_vec())
}

#[tokio::test(flavor = "multi_thread")]
async fn openssl_refuses_a_revoked_svid() {
    let server = Server::start("");
    let mut node = Node::boot(&server).await;
    node.settle(&server).await;
    let svid = node.fetch().await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    let der = write(directory.path(), "leaf.der", svid.leaf().as_bytes());
    let leaf = directory.path().join("leaf.pem").display().to_string();
    assert!(openssl(&["x509", "-inform", "DER", "-in", &der, "-out", &leaf]).status.success());
    let shown = server.json(&["ca", "show"]);
    let active = &shown["cas"][0];
    let ca = write(directory.path(), "ca.pem", active["pem"].as_str().unwrap().as_bytes());
    let verify =
        |crl: &str| openssl(&["verify", "-purpose", "sslclient", "-crl_check", "-CAfile", &ca, "-CRLfile", crl, &leaf]);

    let (empty, before) = crl_file(&server, "empty.pem");
    assert_eq!(before["revoked"], 0);
    let checked = openssl(&["crl", "-in", &empty, "-CAfile", &ca, "-noout", "-verify"]);
    assert!(checked.status.success() && said(&checked).contains("verify OK"), "{}", said(&checked));
    let good = verify(&empty);
    assert!(good.status.success(), "{}", said(&good));

    // As OpenSSL prints serial numbers.
    let serial = said(&openssl(&["x509", "-in", &leaf, "-noout", "-serial"]));
    let serial = serial.trim().strip_prefix("serial=").unwrap().to_owned();
    server.admin(&["revoke", "svid", &serial, "--reason", "a leak"]);
    let (full, after) = crl_file(&server, "full.pem");
    assert_eq!(after["revoked"], 1);
    assert!(after["number"].as_u64() > before["number"].as_u64());
    let text = said(&openssl(&["crl", "-in", &full, "-noout", "-text"]));
    assert!(text.contains(&serial), "{text}");
    let bad = verify(&full);
    assert!(!bad.status.success() && said(&bad).contains("certificate revoked"), "{}", said(&bad));
    println!("openssl verify -crl_check: {}", said(&bad).trim().replace('\n', "; "));
    // Asked for again it is the same one.
    assert_eq!(crl_file(&server, "again.pem").1["number"], after["number"]);

    // The same over the wire, without a certificate; and whoever has it needn't be sent it again.
    let client = client(&server, None);
    let since = BootInstant::now();
    let (status, headers, body) = loop {
        let got = get(&client, "/v1/crl").await;
        if got.2 == std::fs::read(server.path("full.pem.der")).unwrap() {
            break got;
        }
        assert!(BootInstant::now().since(since) < PATIENCE);
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert_eq!(status, 200);
    assert_eq!(headers["content-type"], "application/pkix-crl");
    assert_eq!(headers["cache-control"], "public, max-age=5");
    let by_key = get(&client, &format!("/v1/crl/{}", active["key_id"].as_str().unwrap())).await;
    assert_eq!(by_key.2, body);
    let again = client.http.get(format!("{}/v1/crl", client.base)).header("if-none-match", &headers["etag"]);
    assert_eq!(again.send().await.unwrap().status(), 304);
    // Whole, or another list each would be kept for every part of a name.
    let short = &active["key_id"].as_str().unwrap()[..16];
    assert_eq!(get(&client, &format!("/v1/crl/{short}")).await.0, 403);
    assert_eq!(get(&client, "/v1/crl/00000000").await.0, 403);
    // Its next rotation doesn't change what its CA is asked for.
    server.admin(&["ca", "prepare"]);
    server.admin(&["ca", "rotate", "--early"]);
    let retired = get(&client, &format!("/v1/crl/{}", active["key_id"].as_str().unwrap())).await;
    assert_eq!((retired.0, retired.2), (200, body));

    let (status, headers, body) = get(&client, "/v1/denied").await;
    assert_eq!((status, headers["content-type"].to_str().unwrap()), (200, "application/json"));
    let denied: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((denied["schema"].as_u64(), denied["denied"].as_array().unwrap().len()), (Some(1), 0));
}

/// The CAs that the SPIFFE bundle names, DER.
async fn bundle(client: &Client) -> Vec<Vec<u8>> {
    let (status, _, body) = get(client, "/v1/bundle").await;
    assert_eq!(status, 200);
    let document: Value = serde_json::from_slice(&body).unwrap();
    assert!(document["spiffe_sequence"].as_u64().unwrap() > 0);
    let keys = document["keys"].as_array().unwrap();
    let x509 = keys.iter().filter(|key| key["use"] == "x509-svid");
    x509.map(|key| Base64::decode_vec(key["x5c"][0].as_str().unwrap()).unwrap()).collect()
}

/// The active CA's key is somebody else's: it goes at once, and the node comes back by itself, though it knew no
/// other CA and only that one's hash is in its configuration.
#[tokio::test(flavor = "multi_thread")]
async fn breaking_glass_replaces_the_ca_and_nodes_come_back_by_themselves() {
    let server = Server::start("");
    let mut node = Node::boot(&server).await;
    let id = node.settle(&server).await;
    let workload = node.client().await;
    let mut stream = Box::pin(workload.stream_x509_contexts().await.unwrap());
    let leaf = |context: spiffe::X509Context| context.default_svid().unwrap().leaf().as_bytes().to_vec();
    let old_leaf = leaf(stream.next().await.unwrap().unwrap());
    let old = server.ca_hash();
    let stranger = client(&server, None);
    let before = bundle(&stranger).await;
    assert_eq!(before.len(), 1);
    // Not by accident.
    assert_eq!(server.try_admin(&["ca", "remove", &old[..16], "--reason", "x"]).status.code(), Some(2));
    assert_eq!(
        server.try_admin(&["ca", "remove", "00000000", "--break-glass", "--reason", "x"]).status.code(),
        Some(1)
    );

    let began = BootInstant::now();
    let removed = server.json(&["ca", "remove", &old[..16], "--break-glass", "--reason", "its key was stolen"]);
    assert_eq!((removed["removed"].as_str(), removed["credentials"].as_u64()), (Some(old.as_str()), Some(1)));
    assert_ne!(server.ca_hash(), old);
    // Relying parties: over another connection, since the one before was ended.
    let stranger = client(&server, None);
    let after = loop {
        let after = bundle(&stranger).await;
        if after != before {
            break after;
        }
        assert!(BootInstant::now().since(began) < PATIENCE);
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert!(after.len() == 1 && !after.contains(&before[0]), "the key is removed, not joined");
    // The workload's stream stays, and brings an SVID of the new CA with the new bundle.
    let context = loop {
        let context = tokio::time::timeout(PATIENCE, stream.next()).await.unwrap().unwrap().unwrap();
        if leaf(context.clone()) != old_leaf {
            break context;
        }
    };
    println!("a workload had an SVID of the new CA {:?} after the command", BootInstant::now().since(began));
    let domain = spiffe::TrustDomain::new(crate::bench::world::TRUST_DOMAIN).unwrap();
    let authorities = context.bundle_set().get(&domain).unwrap().authorities().to_vec();
    assert!(authorities.len() == 1 && authorities[0].as_bytes() == after[0], "the old CA is in no bundle");
    let status = node.until(holds_svid).await;
    assert_eq!(status["node"], id.as_str());
    let records = server.decided();
    assert!(records.iter().any(|what| what == "ca.removed"));
    // Again it is gone already; and a restart of either side changes nothing.
    let again = server.try_admin(&["ca", "remove", &old[..16], "--break-glass", "--reason", "x"]);
    assert_eq!(again.status.code(), Some(1));
    node.start();
    node.until(holds_svid).await;
}
