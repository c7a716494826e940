//! The Workload API over real sockets, with real clients; only what is released is made up.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::UnixListener;
use tokio::sync::watch;
use tonic::codec::Streaming;
use tonic::{Code, Request, Status};

use super::generated::{JwtBundlesRequest, JwtBundlesResponse, JwtsvidRequest, JwtsvidResponse, X509svidRequest};
use super::generated::{ValidateJwtsvidRequest, ValidateJwtsvidResponse, X509svidResponse};
use super::*;
use crate::codes;
use crate::shutdown::Shutdown;
use crate::workload::{PeerMethod, Peers, Selector};
use bench::{Answer, Bench, Ca, Client, channel, with_header};

mod bench;

mod callers;

mod stalled;

mod stock_clients;

mod tokens;

const SOON: Duration = Duration::from_secs(5);

/// Longer than anything that is under way takes to show.
const WHILE: Duration = Duration::from_millis(300);

fn refusal(code: codes::Code) -> Refusal {
    Refusal::new(code, "in a test")
}

async fn next(stream: &mut Streaming<X509svidResponse>) -> Result<X509svidResponse, Status> {
    tokio::time::timeout(SOON, stream.message()).await.expect("a message or the end")?.ok_or_else(|| Status::ok("end"))
}

/// How the stream ends, which it does now.
async fn end(stream: &mut Streaming<X509svidResponse>) -> Status {
    next(stream).await.map(|_| ()).unwrap_err()
}

fn id(response: &X509svidResponse) -> &str {
    &response.svids[0].spiffe_id
}

fn code(status: &Status) -> &str {
    status.metadata().get(CODE_METADATA).map(|code| code.to_str().unwrap()).unwrap_or_default()
}

#[tokio::test]
async fn calls_without_exactly_one_true_header_are_refused() {
    let bench = Bench::new(Answer::Give(Ca::new().context("/app")));
    let mut client = bench.client().await;
    let mut requests = vec![Request::new(X509svidRequest {})];
    for values in [&["True"][..], &["false"], &[""], &["true", "true"], &["true", "false"], &["true,true"]] {
        let mut request = Request::new(X509svidRequest {});
        for value in values {
            request.metadata_mut().append("workload.spiffe.io", value.parse().unwrap());
        }
        requests.push(request);
    }
    for request in requests {
        let status = client.call::<_, X509svidResponse>("/SpiffeWorkloadAPI/FetchX509SVID", request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(status.message(), "security header missing from request");
        assert_eq!(code(&status), "delivery.header");
    }
    assert_eq!(bench.stub.times_asked(), 0);
    assert_eq!(id(&next(&mut client.x509().await.unwrap()).await.unwrap()), "spiffe://example.org/app");
}

#[tokio::test]
async fn what_is_not_served_is_unimplemented() {
    let bench = Bench::new(Answer::Give(Ca::new().context("/app")));
    let mut client = bench.client().await;
    for path in ["/SpiffeWorkloadAPI/FetchWITSVID", "/Other/Call"] {
        let status = client.call::<_, JwtsvidResponse>(path, with_header(X509svidRequest {})).await.unwrap_err();
        assert_eq!(status.code(), Code::Unimplemented, "{path}");
    }
}

#[tokio::test]
async fn reflection_lists_the_service_without_the_header() {
    macro_rules! services {
        ($version:ident, $channel:expr) => {{
            use tonic_reflection::pb::$version::server_reflection_request::MessageRequest;
            use tonic_reflection::pb::$version::server_reflection_response::MessageResponse;
            use tonic_reflection::pb::$version::{ServerReflectionRequest, server_reflection_client};
            let ask = |message_request| {
                let request = ServerReflectionRequest { host: String::new(), message_request: Some(message_request) };
                tokio_stream::iter([request])
            };
            let mut client = server_reflection_client::ServerReflectionClient::new($channel);
            let list = ask(MessageRequest::ListServices(String::new()));
            let mut answers = client.server_reflection_info(list).await.unwrap().into_inner();
            let answer = answers.message().await.unwrap().unwrap().message_response;
            let Some(MessageResponse::ListServicesResponse(list)) = answer else { panic!("{answer:?}") };
            let symbol = ask(MessageRequest::FileContainingSymbol("SpiffeWorkloadAPI.FetchX509SVID".to_owned()));
            let mut answers = client.server_reflection_info(symbol).await.unwrap().into_inner();
            let answer = answers.message().await.unwrap().unwrap().message_response;
            assert!(matches!(answer, Some(MessageResponse::FileDescriptorResponse(_))), "{answer:?}");
            list.service.into_iter().map(|service| service.name).collect::<Vec<_>>()
        }};
    }
    let bench = Bench::new(Answer::Silence);
    for services in
        [services!(v1, channel(&bench.path).await.unwrap()), services!(v1alpha, channel(&bench.path).await.unwrap())]
    {
        assert!(services.contains(&"SpiffeWorkloadAPI".to_owned()), "{services:?}");
    }
}

#[tokio::test]
async fn a_change_is_pushed_and_no_change_is_not() {
    let ca = Ca::new();
    let first = ca.context("/app");
    let bench = Bench::new(Answer::Give(first.clone()));
    let mut client = bench.client().await;
    let mut stream = client.x509().await.unwrap();
    assert_eq!(next(&mut stream).await.unwrap().svids[0].x509_svid_key, *first.svids[0].key_pkcs8);

    let asked = bench.stub.times_asked();
    bench.stub.touch();
    assert!(tokio::time::timeout(WHILE, stream.message()).await.is_err(), "nothing changed");
    assert_eq!(bench.stub.times_asked(), asked + 1);

    let second = ca.context("/app");
    bench.stub.set(Answer::Give(second.clone()));
    assert_eq!(next(&mut stream).await.unwrap().svids[0].x509_svid_key, *second.svids[0].key_pkcs8);
    let asked = bench.stub.asked.lock().unwrap().clone();
    assert!(asked.is_sorted() && asked.windows(2).all(|pair| pair[0] < pair[1]), "each time anew: {asked:?}");
}

#[tokio::test]
async fn withdrawal_ends_a_stream_with_the_words_clients_know() {
    let bench = Bench::new(Answer::Give(Ca::new().context("/app")));
    let mut client = bench.client().await;
    let mut svids = client.x509().await.unwrap();
    next(&mut svids).await.unwrap();
    let mut bundles = client.bundles().await.unwrap();
    bundles.message().await.unwrap().unwrap();

    let withdrawn = Instant::now();
    bench.stub.set(Answer::Deny(Denied::NoIdentity(refusal(codes::GATE_DRIFT))));
    let ends = [end(&mut svids).await, bundles.message().await.unwrap_err()];
    assert!(withdrawn.elapsed() < Duration::from_secs(1));
    let first = client.x509().await.map(|_| ()).unwrap_err();
    for status in ends.into_iter().chain([first]) {
        assert_eq!((status.code(), status.message()), (Code::PermissionDenied, "no identity issued"));
        assert_eq!(code(&status), "gate.drift");
    }
}

#[tokio::test]
async fn unavailable_refuses_a_first_request_and_lets_an_open_stream_wait() {
    let ca = Ca::new();
    let starting = || Answer::Deny(Denied::Unavailable(refusal(codes::GATE_STARTING)));
    let bench = Bench::new(starting());
    let mut client = bench.client().await;
    let status = client.x509().await.map(|_| ()).unwrap_err();
    assert_eq!((status.code(), code(&status)), (Code::Unavailable, "gate.starting"));
    assert_eq!(status.message(), codes::GATE_STARTING.meaning(), "no details for whoever may call");

    bench.stub.set(Answer::Give(ca.context("/one")));
    let mut stream = client.x509().await.unwrap();
    assert_eq!(id(&next(&mut stream).await.unwrap()), "spiffe://example.org/one");
    bench.stub.set(starting());
    assert!(tokio::time::timeout(WHILE, stream.message()).await.is_err(), "the stream stays");
    // Without a word of a change: the stream asks by itself.
    bench.stub.set_silently(Answer::Give(ca.context("/two")));
    let waited = Instant::now();
    assert_eq!(id(&next(&mut stream).await.unwrap()), "spiffe://example.org/two");
    assert!(waited.elapsed() < Duration::from_millis(1500));
    let asked = bench.stub.times_asked();
    tokio::time::sleep(WHILE).await;
    assert_eq!(bench.stub.times_asked(), asked, "once answered, it only waits for changes");
}

#[tokio::test]
async fn the_end_of_a_term_ends_streams_as_unavailable() {
    let bench = Bench::new(Answer::Give(Ca::new().context("/app")));
    let mut client = bench.client().await;
    let mut stream = client.x509().await.unwrap();
    next(&mut stream).await.unwrap();
    bench.stub.set(Answer::Deny(Denied::Ended(refusal(codes::GATE_STALE))));
    let status = end(&mut stream).await;
    assert_eq!((status.code(), code(&status)), (Code::Unavailable, "gate.stale"));
    let status = client.x509().await.map(|_| ()).unwrap_err();
    assert_eq!((status.code(), code(&status)), (Code::Unavailable, "gate.stale"));
}

#[tokio::test]
async fn stopping_ends_streams_and_questions_under_way() {
    let bench = Bench::new(Answer::Give(Ca::new().context("/app")));
    let mut client = bench.client().await;
    let mut stream = client.x509().await.unwrap();
    next(&mut stream).await.unwrap();
    bench.stub.set_silently(Answer::Silence);
    let mut other = bench.client().await;
    let asking = tokio::spawn(async move { other.x509().await.map(|_| ()).unwrap_err() });
    while bench.stub.times_asked() < 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(bench.shutdown.drain(SOON).await, "all connections end");
    for status in [end(&mut stream).await, asking.await.unwrap()] {
        assert_eq!((status.code(), code(&status)), (Code::Unavailable, "delivery.stopping"), "{status:?}");
    }
}

/// Counts lines by their code.
#[derive(Clone, Default)]
struct Lines(Arc<std::sync::Mutex<Vec<u8>>>);

impl std::io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn the_same_on_connection_after_connection_is_logged_once() {
    let lines = Lines::default();
    let subscriber = {
        let lines = lines.clone();
        tracing_subscriber::fmt().with_ansi(false).with_writer(move || lines.clone()).finish()
    };
    // Of this thread, on which the server runs.
    let _logging = tracing::subscriber::set_default(subscriber);
    let denied = Answer::Deny(Denied::Unavailable(refusal(codes::GATE_STARTING).expected("known to the log")));
    let bench = Bench::with(denied, Limits { streams_per_user: 1, ..Limits::default() });
    let mut holder = bench.client().await;
    for _ in 0..5 {
        let mut client = bench.client().await;
        let request = Request::new(X509svidRequest {});
        let status = client.call::<_, X509svidResponse>("/SpiffeWorkloadAPI/FetchX509SVID", request).await.unwrap_err();
        assert_eq!(code(&status), "delivery.header");
        assert_eq!(code(&client.x509().await.map(|_| ()).unwrap_err()), "gate.starting");
    }
    bench.stub.set(Answer::Give(Ca::new().context("/app")));
    let _held = holder.x509().await.unwrap();
    for _ in 0..5 {
        let status = bench.client().await.x509().await.map(|_| ()).unwrap_err();
        assert_eq!(code(&status), "delivery.busy");
    }
    let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    for code in ["delivery.header", "gate.starting", "delivery.busy"] {
        assert_eq!(text.lines().filter(|line| line.contains(&format!("code={code}"))).count(), 1, "{text}");
    }
    assert!(text.contains("known to the log"), "{text}");
}

#[tokio::test]
async fn a_silent_client_is_cut_off_and_costs_nobody() {
    use tokio::io::AsyncReadExt;
    let limits = Limits { greeting: Duration::from_millis(200), ..Limits::default() };
    let bench = Bench::with(Answer::Give(Ca::new().context("/app")), limits);
    let mut silent = tokio::net::UnixStream::connect(&bench.path).await.unwrap();
    let mut client = bench.client().await;
    let mut stream = client.x509().await.unwrap();
    next(&mut stream).await.unwrap();
    let mut bytes = Vec::new();
    let _ = tokio::time::timeout(SOON, silent.read_to_end(&mut bytes)).await.expect("the server hangs up");
    // The greeting's deadline is none for what comes after it.
    assert!(tokio::time::timeout(WHILE, stream.message()).await.is_err());
}
