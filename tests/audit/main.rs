//! The record of releases with the real parts: a node with a TPM, its agent, a control plane, stock clients.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

#[path = "../bench/mod.rs"]
mod bench;
mod delivered;
mod durable;
mod full;

use serde_json::Value;

use bench::world::{Node, Server};

/// The records in the node's own journal, oldest first.
fn journal(node: &Node) -> Vec<Value> {
    let output = node.run_agent(&["audit", "tail", "--json", "--lines", "1000000"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    lines(&output.stdout)
}

/// What nodes delivered, in the order of arrival.
fn delivered(server: &Server) -> Vec<Value> {
    let output = server.try_admin(&["audit", "export"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let own = |record: &Value| record["process"].is_null() && record["writer"] == lines(&output.stdout)[0]["writer"];
    lines(&output.stdout).into_iter().filter(|record| !own(record)).collect()
}

fn lines(printed: &[u8]) -> Vec<Value> {
    let text = std::str::from_utf8(printed).unwrap();
    assert!(text.bytes().all(|byte| byte == b'\n' || (0x20..0x7f).contains(&byte)));
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// How often these say that something was released.
fn releases(records: &[Value]) -> u64 {
    let released = records.iter().filter(|record| record["what"] == "credential.released");
    released.map(|record| record["count"].as_u64().unwrap()).sum()
}

/// Waits until the control plane has all that the node wrote.
async fn all_delivered(node: &Node) -> Value {
    node.until(|status| {
        let journal = &status["journal"];
        journal["number"].as_u64() > Some(0) && journal["acknowledged"] == journal["number"]
    })
    .await
}

/// Both sides verify, and everything that was issued or released joins.
fn all_holds(server: &Server, node: &Node) {
    let verified = node.run_agent(&["audit", "verify"]);
    assert_eq!(verified.status.code(), Some(0), "{}", String::from_utf8_lossy(&verified.stdout));
    let verified = server.try_admin(&["audit", "verify"]);
    assert_eq!(verified.status.code(), Some(0), "{}", String::from_utf8_lossy(&verified.stdout));
    let checked = server.try_admin(&["audit", "check"]);
    assert_eq!(checked.status.code(), Some(0), "{}", String::from_utf8_lossy(&checked.stdout));
}
