//! Clients that don't take what they asked for, until it is theirs no longer.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio_stream::StreamExt;

use super::super::generated::spiffe_workload_api_server::SpiffeWorkloadApi;
use super::super::limits::Counts;
use super::super::service::{Caller, Service};
use super::*;

/// Ten times the time that is promised.
const BOUND: Duration = Duration::from_secs(10);

fn frame(kind: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let length = u8::try_from(payload.len()).unwrap();
    [&[0, 0, length, kind, 0, 0, 0, 0, stream], payload].concat()
}

/// SETTINGS_INITIAL_WINDOW_SIZE (RFC 9113, 6.5.2).
fn initial_window(bytes: u32) -> Vec<u8> {
    frame(4, 0, &[&[0, 4], bytes.to_be_bytes().as_slice()].concat())
}

/// The request of [`super::stock_clients`] with these settings instead of none.
fn fetch(settings: &[u8]) -> Vec<u8> {
    let request = super::stock_clients::fetch_as_c_core();
    let (preface, rest) = request.split_at(24);
    [preface, settings, &rest[9..]].concat()
}

/// All that comes until the server hangs up, which it does.
async fn everything(stream: &mut UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    let reading = async {
        let mut buffer = [0; 4096];
        while let Ok(read @ 1..) = stream.read(&mut buffer).await {
            bytes.extend_from_slice(&buffer[..read]);
        }
    };
    tokio::time::timeout(BOUND, reading).await.expect("the server hangs up");
    bytes
}

fn holds(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

#[tokio::test]
async fn an_answer_that_is_not_taken_does_not_outlast_its_moment() {
    for window in [0, 1] {
        let context = Ca::new().context("/app");
        let key = context.svids[0].key_pkcs8.clone();
        let bench = Bench::new(Answer::Give(context));
        let mut stream = UnixStream::connect(&bench.path).await.unwrap();
        stream.write_all(&fetch(&initial_window(window))).await.unwrap();
        while bench.stub.times_asked() == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        bench.stub.set(Answer::Deny(Denied::NoIdentity(refusal(codes::GATE_DRIFT))));
        let mut bytes = everything(&mut stream).await;
        assert!(!bytes.is_empty());
        // Too late.
        let _ = stream.write_all(&initial_window(65_535)).await;
        bytes.extend(everything(&mut stream).await);
        for part in key.chunks_exact(16) {
            assert!(!holds(&bytes, part), "window {window}: some of the key");
        }
    }
}

#[tokio::test]
async fn an_answer_behind_a_socket_that_is_not_read_does_not_outlast_its_moment() {
    // More than a socket holds, in windows that are wide open.
    let mut context = Ca::new().context("/app");
    context.svids[0].bundle = vec![vec![7; 2 << 20]];
    let bench = Bench::new(Answer::Give(context));
    let mut stream = UnixStream::connect(&bench.path).await.unwrap();
    stream.write_all(&fetch(&initial_window(i32::MAX.cast_unsigned()))).await.unwrap();
    stream.write_all(&frame(8, 0, &(i32::MAX - 65_535).to_be_bytes())).await.unwrap();
    bench.shutdown.tasks.close();
    while bench.stub.times_asked() == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    bench.stub.set(Answer::Deny(Denied::NoIdentity(refusal(codes::GATE_DRIFT))));
    tokio::time::timeout(BOUND, bench.shutdown.tasks.wait()).await.expect("the connection is cut");
    assert!(everything(&mut stream).await.len() < 2 << 20);
}

#[tokio::test]
async fn a_client_that_takes_its_answers_keeps_its_connection() {
    let limits = Limits { delivery: WHILE / 3, ..Limits::default() };
    let ca = Ca::new();
    let bench = Bench::with(Answer::Give(ca.context("/app")), limits);
    let mut client = bench.client().await;
    let mut stream = client.x509().await.unwrap();
    for _ in 0..3 {
        next(&mut stream).await.unwrap();
        assert!(tokio::time::timeout(WHILE, stream.message()).await.is_err(), "nothing new");
        bench.stub.set(Answer::Give(ca.context("/app")));
    }
}

#[tokio::test]
async fn a_first_answer_is_asked_for_anew_if_something_happened_before_it_was_taken() {
    let ca = Ca::new();
    let bench = Bench::new(Answer::Give(ca.context("/one")));
    let (_client, server) = UnixStream::pair().unwrap();
    let peer = Peers::new(PeerMethod::Auto).identify(&server).await.unwrap();
    let (lose, lost) = watch::channel(None);
    let counts = Counts::new(Limits::default());
    let service = Service { source: Arc::clone(&bench.stub), retry: Duration::from_secs(1), repeats: Arc::default() };
    let open = async || {
        let mut request = Request::new(X509svidRequest {});
        request.extensions_mut().insert(Caller {
            peer: peer.clone(),
            arrived: BootInstant::now(),
            lost: lost.clone(),
            stopping: bench.shutdown.token.clone(),
            _slot: Arc::new(counts.stream(0).unwrap()),
        });
        service.fetch_x509svid(request).await.unwrap().into_inner()
    };

    // A change that isn't one, and no change but time: the answer comes all the same.
    let mut answers = open().await;
    bench.stub.touch();
    assert_eq!(id(&answers.next().await.unwrap().unwrap()), "spiffe://example.org/one");
    let mut answers = open().await;
    tokio::time::sleep(WHILE).await;
    bench.stub.set_silently(Answer::Give(ca.context("/two")));
    assert_eq!(id(&answers.next().await.unwrap().unwrap()), "spiffe://example.org/two");

    let mut answers = open().await;
    bench.stub.set(Answer::Deny(Denied::NoIdentity(refusal(codes::GATE_DRIFT))));
    assert_eq!(code(&answers.next().await.unwrap().map(|_| ()).unwrap_err()), "gate.drift");
    assert!(answers.next().await.is_none());

    bench.stub.set(Answer::Give(ca.context("/three")));
    let mut answers = open().await;
    lose.send_replace(Some(refusal(codes::WORKLOAD_PEER_CHANGED)));
    assert_eq!(code(&answers.next().await.unwrap().map(|_| ()).unwrap_err()), "workload.peer_changed");
}
