//! Rotation of the CA as real processes live through it: nobody is cut off, and every SVID leads
//! to the bundle that came with it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod bench;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bench::world::{Node, PATIENCE, Server, TRUST_DOMAIN, holds_svid};
use futures_util::StreamExt;
use leasehold::clock::BootInstant;
use rustls::pki_types::{CertificateDer, UnixTime};
use serde_json::Value;
use spiffe::{TrustDomain, WorkloadApiClient, X509Context};

/// What a client holds after one push: a leaf, and the CAs it may judge others by.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Held {
    leaf: Vec<u8>,
    bundle: Vec<Vec<u8>>,
}

impl Held {
    fn of(context: &X509Context) -> Self {
        let bundle = context.bundle_set().get(&TrustDomain::new(TRUST_DOMAIN).unwrap()).unwrap();
        Self {
            leaf: context.default_svid().unwrap().leaf().as_bytes().to_vec(),
            bundle: bundle.authorities().iter().map(|ca| ca.as_bytes().to_vec()).collect(),
        }
    }

    fn is_whole(&self) -> bool {
        self.bundle.iter().any(|ca| leads_to(&self.leaf, ca))
    }
}

/// Path validation of a leaf to one CA, as any TLS stack does it.
fn leads_to(leaf: &[u8], ca: &[u8]) -> bool {
    let (leaf, ca) = (CertificateDer::from(leaf.to_vec()), CertificateDer::from(ca.to_vec()));
    let anchors = [webpki::anchor_from_trusted_cert(&ca).unwrap()];
    let leaf = webpki::EndEntityCert::try_from(&leaf).unwrap();
    let usage = webpki::KeyUsage::client_auth();
    leaf.verify_for_usage(webpki::ALL_VERIFICATION_ALGS, &anchors, &[], UnixTime::now(), usage, None, None).is_ok()
}

/// Every state a client is given over one stream, checked as it comes.
struct Stream(
    std::pin::Pin<Box<dyn futures_util::Stream<Item = Result<X509Context, spiffe::WorkloadApiError>> + Send>>,
);

impl Stream {
    async fn open(client: &WorkloadApiClient) -> Self {
        Self(Box::pin(client.stream_x509_contexts().await.unwrap()))
    }

    async fn next(&mut self) -> Held {
        let pushed = tokio::time::timeout(PATIENCE, self.0.next()).await.expect("a push within the test's patience");
        let held = Held::of(&pushed.expect("the stream stays open").expect("nothing ends the stream"));
        assert!(held.is_whole(), "an SVID was pushed with a bundle that it doesn't lead to");
        held
    }

    async fn until(&mut self, wanted: impl Fn(&Held) -> bool) -> Held {
        let since = BootInstant::now();
        loop {
            let held = self.next().await;
            if wanted(&held) {
                return held;
            }
            assert!(BootInstant::now().since(since) < PATIENCE, "never pushed");
        }
    }
}

/// Clients that fetch in a loop, each answer checked.
struct Load {
    stop: Arc<AtomicBool>,
    fetched: Arc<AtomicUsize>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Load {
    async fn start(node: &Node, clients: usize) -> Self {
        let (stop, fetched) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let mut tasks = Vec::new();
        for _ in 0..clients {
            let (client, stop, fetched) = (node.client().await, stop.clone(), fetched.clone());
            tasks.push(tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let context = client.fetch_x509_context().await.expect("a rotation cuts nobody off");
                    assert!(Held::of(&context).is_whole(), "fetched with a bundle that it doesn't lead to");
                    fetched.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }));
        }
        Self { stop, fetched, tasks }
    }

    async fn stop(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.unwrap();
        }
        self.fetched.load(Ordering::Relaxed)
    }
}

/// DER of the active CA.
fn active(server: &Server) -> Vec<u8> {
    let shown = server.json(&["ca", "show"]);
    let active = shown["cas"].as_array().unwrap().iter().find(|ca| ca["state"] == "active").unwrap();
    let pem = active["pem"].as_str().unwrap();
    <CertificateDer as rustls::pki_types::pem::PemObject>::from_pem_slice(pem.as_bytes()).unwrap().to_vec()
}

/// Rotates without `--early`: as soon as every node has had a lease's term to learn of the next CA.
async fn rotate(server: &Server) {
    let since = BootInstant::now();
    let mut waited = false;
    while !server.try_admin(&["ca", "rotate"]).status.success() {
        waited = true;
        assert!(BootInstant::now().since(since) < PATIENCE);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!(waited, "right after `ca prepare` not every node can know the next CA");
}

fn trouble(status: &Value) -> &str {
    status["trouble"]["code"].as_str().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_under_load_cuts_nobody_off() {
    let server = Server::start("[terms]\nlease_seconds = 6\nsvid_seconds = 4\n");
    let mut node = Node::boot(&server).await;
    node.settle(&server).await;
    let client = node.client().await;
    let mut stream = Stream::open(&client).await;
    let load = Load::start(&node, 4).await;
    let old = active(&server);
    let first = stream.next().await;
    assert_eq!(first.bundle, std::slice::from_ref(&old));

    server.admin(&["ca", "prepare"]);
    let prepared_at = BootInstant::now();
    let published = stream.until(|held| held.bundle.len() == 2).await;
    println!("the next CA reached the client {:?} after `ca prepare`", BootInstant::now().since(prepared_at));
    assert!(leads_to(&published.leaf, &old), "it signs nothing before it is active");
    rotate(&server).await;
    let new = active(&server);
    assert_ne!(new, old);
    assert!(published.bundle.contains(&new), "the client had it before it signed anything");
    let mut last_old = published;
    let rotated = loop {
        let held = stream.next().await;
        if leads_to(&held.leaf, &new) {
            break held;
        }
        last_old = held;
    };
    assert!(leads_to(&last_old.leaf, &old));
    assert!(rotated.bundle.contains(&old), "what the old CA signed stays verifiable");
    println!("{} fetches during the rotation, all whole", load.stop().await);

    // Only the old CA's hash is in its configuration; what it learnt since carries it over.
    node.start();
    node.until(holds_svid).await;
    let again = Held::of(&node.client().await.fetch_x509_context().await.unwrap());
    assert!(again.is_whole() && leads_to(&again.leaf, &new));
}

/// Rotations as quick as an operator can order them: what a client is given stays whole.
#[tokio::test(flavor = "multi_thread")]
async fn early_rotations_give_no_client_an_svid_without_its_ca() {
    let server = Server::start("[terms]\nlease_seconds = 30\nsvid_seconds = 2\n");
    let mut node = Node::boot(&server).await;
    node.settle(&server).await;
    let client = node.client().await;
    let mut stream = Stream::open(&client).await;
    let load = Load::start(&node, 2).await;
    for _ in 0..6 {
        server.admin(&["ca", "prepare"]);
        server.admin(&["ca", "rotate", "--early"]);
        let new = active(&server);
        stream.until(|held| leads_to(&held.leaf, &new)).await;
    }
    println!("{} fetches during six rotations, all whole", load.stop().await);
}

/// Off during two rotations, with the first CA's hash in its configuration and nothing newer.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_off_comes_back_and_a_new_one_joins_by_the_old_hash() {
    let server = Server::start("");
    let mut node = Node::boot(&server).await;
    let fresh = Node::boot(&server).await;
    node.settle(&server).await;
    node.agent = None;
    for _ in 0..2 {
        server.admin(&["ca", "prepare"]);
        server.admin(&["ca", "rotate", "--early"]);
    }
    let new = active(&server);
    node.start();
    node.until(holds_svid).await;
    let held = Held::of(&node.client().await.fetch_x509_context().await.unwrap());
    assert!(held.is_whole() && leads_to(&held.leaf, &new));
    assert_eq!(held.bundle.len(), 3);

    let mut fresh = fresh;
    fresh.start();
    fresh.admit(&server).await;
}

/// Off until the CA that it knows was dropped: it says what to do, and does the rest by itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_off_for_too_long_says_what_to_do() {
    let mut server = Server::start("");
    let mut node = Node::boot(&server).await;
    let id = node.settle(&server).await;
    node.agent = None;
    server.admin(&["ca", "prepare"]);
    server.admin(&["ca", "rotate", "--early"]);
    // As if the last certificate of the old CA had expired.
    server.kill();
    let store = rusqlite::Connection::open(server.path("state/store.db")).unwrap();
    assert_eq!(store.execute("DELETE FROM ca_keys WHERE state = 'retired'", []).unwrap(), 1);
    drop(store);
    server.restart();

    node.start();
    let status = node.until(|status| trouble(status) == "protocol.untrusted").await;
    let expected = status["trouble"]["expected"].as_str().unwrap();
    assert!(expected.contains("ca_hash") && expected.contains("leasehold-server ca show"), "{status}");

    // The operator does as told. The node's own certificate is of the old CA, too: it enrols again,
    // known as it is, without another approval.
    node.agent = None;
    node.configure(&server, "");
    node.start();
    let status = node.until(holds_svid).await;
    assert_eq!(status["node"], id.as_str());
    let held = Held::of(&node.client().await.fetch_x509_context().await.unwrap());
    assert!(held.is_whole() && leads_to(&held.leaf, &active(&server)));
}
