//! Clients as people have them, unmodified: the crate `spiffe`, and PyPI's `spiffe` on gRPC C-core.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

#[tokio::test]
async fn the_crate_spiffe_fetches_rotates_and_withdraws() {
    let ca = Ca::new();
    let bench = Bench::new(Answer::Deny(Denied::Unavailable(refusal(codes::GATE_STARTING))));
    // It may start before the agent is ready.
    let starting = tokio::spawn(spiffe::X509Source::builder().endpoint(bench.address()).build());
    while bench.stub.times_asked() == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    bench.stub.set(Answer::Give(ca.context("/one")));
    let source = starting.await.unwrap().unwrap();
    assert_eq!(source.svid().unwrap().spiffe_id().to_string(), "spiffe://example.org/one");
    let client = spiffe::WorkloadApiClient::connect_to(bench.address()).await.unwrap();
    assert_eq!(client.fetch_x509_bundles().await.unwrap().len(), 1);
    let token = client.fetch_jwt_svid(["api"], None).await.unwrap();
    assert_eq!(token.spiffe_id().to_string(), "spiffe://example.org/one");
    assert_eq!(client.fetch_jwt_bundles().await.unwrap().iter().count(), 1);
    client.validate_jwt_token("api", token.token()).await.unwrap();
    client.validate_jwt_token("other", token.token()).await.unwrap_err();

    let mut updates = source.updated();
    bench.stub.set(Answer::Give(ca.context("/two")));
    tokio::time::timeout(SOON, updates.changed()).await.unwrap().unwrap();
    assert_eq!(source.svid().unwrap().spiffe_id().to_string(), "spiffe://example.org/two");

    bench.stub.set(Answer::Deny(Denied::NoIdentity(refusal(codes::GATE_DRIFT))));
    let withdrawn = Instant::now();
    while source.svid().is_ok() {
        assert!(withdrawn.elapsed() < Duration::from_secs(1), "the client still has its SVID");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let denied = client.fetch_x509_svid().await.unwrap_err();
    assert!(matches!(denied, spiffe::WorkloadApiError::NoIdentityIssued), "{denied:?}");
}

/// What a C-core client sends for a first `FetchX509SVID` on `/run/workload.sock`.
pub(super) fn fetch_as_c_core() -> Vec<u8> {
    let frame = |kind: u8, flags: u8, stream: u8, payload: &[u8]| {
        let length = u8::try_from(payload.len()).unwrap();
        [&[0, 0, length, kind, flags, 0, 0, 0, stream], payload].concat()
    };
    let mut block = Vec::new();
    for (name, value) in [
        (":path", "/SpiffeWorkloadAPI/FetchX509SVID"),
        (":authority", "%2Frun%2Fworkload.sock"),
        (":method", "POST"),
        (":scheme", "http"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        ("workload.spiffe.io", "true"),
    ] {
        // Literal with indexing, both strings plain (RFC 7541, 6.2.1).
        block.push(0x40);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).unwrap());
            block.extend_from_slice(text.as_bytes());
        }
    }
    [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(),
        &frame(4, 0, 0, b""),
        &frame(1, 4, 1, &block),
        // An empty message, and the end of the request.
        &frame(0, 1, 1, &[0; 5]),
    ]
    .concat()
}

#[tokio::test]
async fn a_request_with_a_socket_path_as_authority_is_served() {
    let bench = Bench::new(Answer::Give(Ca::new().context("/app")));
    let mut stream = tokio::net::UnixStream::connect(&bench.path).await.unwrap();
    stream.write_all(&fetch_as_c_core()).await.unwrap();
    let (mut answer, mut buffer) = (Vec::new(), [0; 4096]);
    let id = b"spiffe://example.org/app";
    while !answer.windows(id.len()).any(|window| window == id) {
        let read = tokio::time::timeout(SOON, stream.read(&mut buffer)).await.unwrap().unwrap();
        assert_ne!(read, 0, "the server hung up: {answer:?}");
        answer.extend_from_slice(&buffer[..read]);
    }
}

const PYTHON: &str = r#"
import sys
from spiffe import WorkloadApiClient

def say(*words):
    print(*words, flush=True)

client = WorkloadApiClient()
say("fetched", client.fetch_x509_svid(timeout=20).spiffe_id)
say("again", client.fetch_x509_svid(timeout=20).spiffe_id)
say("bundles", len(client.fetch_x509_bundles(timeout=20).bundles))
token = client.fetch_jwt_svid({"api"}, timeout=20)
say("token", token.spiffe_id, sorted(token.audience))
from spiffe import JwtSvid, TrustDomain
keys = client.fetch_jwt_bundles(timeout=20).get_bundle_for_trust_domain(TrustDomain("example.org"))
say("verified", JwtSvid.parse_and_validate(token.token, keys, {"api"}).spiffe_id)
say("judged", client.validate_jwt_svid(token.token, "api", timeout=20).spiffe_id)
client.stream_x509_contexts(
    lambda context: say("streamed", context.default_svid.spiffe_id),
    lambda error: say("error", error),
)
sys.stdin.readline()
try:
    client.fetch_x509_svid(timeout=20)
    say("given")
except Exception as error:
    say("denied", error)
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pypi_spiffe_on_grpc_c_core_fetches_and_rotates() {
    let Some(python) = tokio::task::spawn_blocking(python).await.unwrap() else {
        eprintln!("SKIPPED pypi_spiffe_on_grpc_c_core_fetches_and_rotates: no Python with PyPI's spiffe can be had");
        return;
    };
    let ca = Ca::new();
    let bench = Bench::new(Answer::Give(ca.context("/one")));
    let mut child = Command::new(python)
        .args(["-c", PYTHON])
        .env("SPIFFE_ENDPOINT_SOCKET", bench.address())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut stdin = child.stdin.take().unwrap();
    let stub = Arc::clone(&bench.stub);
    let said = tokio::task::spawn_blocking(move || {
        let mut line = || lines.next().map(|line| line.unwrap()).unwrap_or_default();
        let mut said: Vec<_> = (0..7).map(|_| line()).collect();
        stub.set(Answer::Give(ca.context("/two")));
        said.push(line());
        stub.set(Answer::Deny(Denied::NoIdentity(refusal(codes::GATE_DRIFT))));
        writeln!(stdin).unwrap();
        while let last = line()
            && !last.is_empty()
        {
            said.push(last);
        }
        said
    })
    .await
    .unwrap();
    let _ = child.kill();
    let _ = child.wait();
    let one = "spiffe://example.org/one";
    assert_eq!(
        said[..8],
        [
            format!("fetched {one}"),
            format!("again {one}"),
            "bundles 1".to_owned(),
            format!("token {one} ['api']"),
            format!("verified {one}"),
            format!("judged {one}"),
            format!("streamed {one}"),
            "streamed spiffe://example.org/two".to_owned(),
        ]
    );
    assert!(said.iter().any(|line| line.starts_with("denied") && line.contains(NO_IDENTITY)), "{said:?}");
}

/// A Python that has the packages, made once beside the build; nothing if it can't be made here.
fn python() -> Option<PathBuf> {
    const PACKAGES: [&str; 2] = ["grpcio==1.85.1", "spiffe==0.3.2"];
    let directory = std::env::current_exe().ok()?.ancestors().nth(3)?.join("python-clients");
    let (python, complete) = (directory.join("bin/python"), directory.join("complete"));
    if !complete.exists() {
        let run = |command: &mut Command| command.stdout(Stdio::null()).status().is_ok_and(|status| status.success());
        let made = run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&directory))
            && run(Command::new(&python)
                .args(["-m", "pip", "install", "--quiet", "--retries", "1", "--timeout", "20"])
                .args(PACKAGES));
        made.then(|| std::fs::write(&complete, "").ok())??;
    }
    Some(python)
}
