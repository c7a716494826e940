//! The process that has tasks: this test binary once more, told what to do line by line.
//!
//! It is a plain gRPC client of `tasks.proto`, and does to itself what tasks' processes do: ends, takes
//! too much memory, becomes another user or another program.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;

use hyper_util::rt::TokioIo;
use leasehold::delivery::workload_api::tasks::messages::{
    BeginRequest, EndRequest, EndResponse, HeartbeatRequest, HeartbeatResponse, TaskUpdate,
};
use serde_json::{Value, json};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

/// Set to the Workload API's socket in the process that is told what to do.
pub const SOCKET: &str = "LEASEHOLD_TEST_TASKS";

/// No test: what a child process runs.
#[test]
#[ignore = "run by the others, as their child"]
fn child() {
    let Some(socket) = std::env::var_os(SOCKET) else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(obey(socket.into()));
}

/// A connection to the Workload API's socket, made when it is needed.
pub fn connect(socket: PathBuf) -> Channel {
    Endpoint::from_static("http://localhost").connect_with_connector_lazy(tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { tokio::net::UnixStream::connect(socket).await.map(TokioIo::new) }
    }))
}

async fn obey(socket: PathBuf) {
    let channel = connect(socket);
    let mut streams = std::collections::HashMap::new();
    let (sender, mut lines) = tokio::sync::mpsc::unbounded_channel();
    std::thread::spawn(move || std::io::stdin().lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
    while let Some(line) = lines.recv().await {
        let order: Value = serde_json::from_str(&line).unwrap();
        let (what, of) = order.as_object().unwrap().iter().next().unwrap();
        let text = of.as_str().unwrap_or_default().to_owned();
        match what.as_str() {
            "begin" => {
                let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
                let streams: &mut Vec<_> =
                    streams.entry(of["task_id"].as_str().unwrap_or_default().to_owned()).or_default();
                streams.push(stop);
                tokio::spawn(follow(channel.clone(), begin(of), stopped));
            }
            "close" => drop(streams.remove(&text)),
            "heartbeat" => {
                let request = HeartbeatRequest { task_id: text };
                say(match unary::<_, HeartbeatResponse>(&channel, "Heartbeat", with_header(request)).await {
                    Ok(answer) => json!({ "heard": answer.within_seconds }),
                    Err(status) => json!({ "refused": code(&status) }),
                });
            }
            "end" | "fail" => {
                let outcome = i32::from(what == "fail");
                let request = EndRequest { task_id: text, outcome, note: "as told".to_owned() };
                say(match unary::<_, EndResponse>(&channel, "End", with_header(request)).await {
                    Ok(EndResponse {}) => json!({ "ended": true }),
                    Err(status) => json!({ "refused": code(&status) }),
                });
            }
            "exit" => std::process::exit(i32::try_from(of.as_i64().unwrap()).unwrap()),
            "uid" => {
                let uid = nix::unistd::Uid::from_raw(u32::try_from(of.as_u64().unwrap()).unwrap());
                nix::unistd::setresuid(uid, uid, uid).unwrap();
            }
            "exec" => panic!("{}", std::process::Command::new(text).arg("1000").exec()),
            "cgroup" => std::fs::write(text, std::process::id().to_string()).unwrap(),
            "eat" => eat(),
            _ => panic!("{line}"),
        }
    }
}

/// Takes memory until the kernel ends this.
fn eat() {
    let mut eaten = Vec::new();
    loop {
        // Written, or the kernel gives none.
        eaten.push(vec![1_u8; 1 << 20]);
        std::hint::black_box(&eaten);
    }
}

fn begin(of: &Value) -> BeginRequest {
    let text = |key: &str| of[key].as_str().unwrap_or_default().to_owned();
    BeginRequest {
        task_id: text("task_id"),
        spiffe_id: text("spiffe_id"),
        intent: text("intent"),
        purpose: text("purpose"),
        audience: of["audience"].as_array().into_iter().flatten().map(|a| a.as_str().unwrap().to_owned()).collect(),
        destination: text("destination"),
        authorization_details: of.get("details").map(Value::to_string).unwrap_or_default(),
        heartbeat_seconds: of["heartbeat_seconds"].as_u64().unwrap_or_default(),
        term_seconds: of["term_seconds"].as_u64().unwrap_or_default(),
        x509: of["x509"].as_bool().unwrap_or(true),
    }
}

/// One task's stream, told line by line until it ends.
async fn follow(channel: Channel, request: BeginRequest, mut stopped: tokio::sync::oneshot::Receiver<()>) {
    let task = request.task_id.clone();
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::<BeginRequest, TaskUpdate>::default();
    let path = PathAndQuery::from_static("/leasehold.task.v1.Tasks/Begin");
    let answer = tokio::select! {
        answer = client.server_streaming(with_header(request), path, codec) => answer,
        // Given up before there was an answer.
        _ = &mut stopped => return,
    };
    let mut updates = match answer {
        Ok(answer) => answer.into_inner(),
        Err(status) => {
            return say(json!({ "over": task, "code": code(&status), "status": format!("{:?}", status.code()) }));
        }
    };
    loop {
        let update = tokio::select! {
            update = updates.message() => update,
            _ = &mut stopped => return,
        };
        match update {
            Ok(Some(update)) => say(json!({
                "update": update.task_id,
                "spiffe_id": update.spiffe_id,
                "decision": update.decision_id,
                "term_seconds": update.term_seconds,
                "details": serde_json::from_str::<Value>(&update.authorization_details).unwrap(),
                "svid": update.x509.as_ref().map(|x509| hex::encode(&x509.svid)),
                "key_bytes": update.x509.as_ref().map(|x509| x509.key.len()),
                "token": update.jwt.as_ref().map(|jwt| jwt.token.clone()),
            })),
            Ok(None) => return say(json!({ "over": task, "code": "", "status": "Ok" })),
            Err(status) => {
                return say(json!({ "over": task, "code": code(&status), "status": format!("{:?}", status.code()) }));
            }
        }
    }
}

/// One call with one answer.
pub async fn unary<Q, A>(channel: &Channel, method: &str, request: Request<Q>) -> Result<A, Status>
where
    Q: prost::Message + Send + Sync + 'static,
    A: prost::Message + Default + Send + Sync + 'static,
{
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await.unwrap();
    let path = PathAndQuery::try_from(format!("/leasehold.task.v1.Tasks/{method}")).unwrap();
    let codec = tonic_prost::ProstCodec::<Q, A>::default();
    Ok(client.unary(request, path, codec).await?.into_inner())
}

fn with_header<M>(message: M) -> Request<M> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("workload.spiffe.io", "true".parse().unwrap());
    request
}

/// The code of a refusal.
pub fn code(status: &Status) -> String {
    status.metadata().get("leasehold-code").map(|code| code.to_str().unwrap().to_owned()).unwrap_or_default()
}

fn say(what: Value) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{what}").unwrap();
    out.flush().unwrap();
}
