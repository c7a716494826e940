//! `leasehold-server revoke …` and `revocation …`.

use std::io::IsTerminal;
use std::path::Path;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use serde_json::Value;

use super::args::Shared;
use super::client::Client;
use super::print;
use crate::codes::exit::{DONE, WARNING};
use crate::codes::{self, Refusal};
use crate::control_plane::admin::Command;
use crate::control_plane::admin::revocations::Stated;
use crate::control_plane::revocation::plan::Kind;
use crate::output::say;
use crate::secret;

/// What an acknowledgement is worth.
const WORTH: &str = "Nodes that listen are told at once, and say when they have applied it: within 2 s nothing of it is\n\
    released any more. A node that can't be reached goes on until what it holds runs out, at the time\n\
    that --explain prints for each. An acknowledgement is the node's claim; its next affirmed evidence\n\
    proves it. `leasehold-server revocation show NUMBER` counts them apart.\n\n\
    What a process already holds can't be called back: it ends by its own time, or where the relying\n\
    party asks (`ca crl`, GET /v1/crl, GET /v1/denied).\n";

/// What can be revoked.
#[derive(Clone, Debug, Subcommand)]
#[command(after_help = WORTH)]
pub enum RevokeCommand {
    /// A node, for good: its lease ends, and it can't enrol again.
    ///
    /// TARGET is the node's id or the start of it.
    Node(Revocation),
    /// A workload, wherever it is: withdrawn, and suspended until `workload resume`.
    ///
    /// TARGET is its SPIFFE ID. `workload remove` takes its registration away too.
    Workload(Revocation),
    /// All workloads of an owner: withdrawn and suspended.
    ///
    /// TARGET is the owner's name.
    Owner(Revocation),
    /// One credential; its workload may be issued another, by a decision anew.
    ///
    /// TARGET is the serial number of a certificate in hexadecimal, or the `jti` of a token.
    Svid(Revocation),
    /// A task and its credentials.
    ///
    /// TARGET is the task's id.
    Task(TaskRevocation),
}

/// A revocation.
#[derive(Clone, Debug, Args)]
pub struct Revocation {
    /// What is revoked.
    pub target: String,
    /// Why; it is recorded, and the nodes are told.
    #[arg(long, required_unless_present = "explain")]
    pub reason: Option<String>,
    /// Changes nothing: says which nodes it concerns, whether they listen, and until when each could go on.
    #[arg(long)]
    pub explain: bool,
    /// Waits at most so long until every node that listens or was told has acknowledged, and prints the counts.
    ///
    /// Exit code 3 if some didn't.
    #[arg(long, value_name = "SECONDS", conflicts_with = "explain")]
    pub wait: Option<u64>,
}

/// A task's.
#[derive(Clone, Debug, Args)]
pub struct TaskRevocation {
    /// As of the others.
    #[command(flatten)]
    pub revocation: Revocation,
    /// The node it runs on, where several have a task of this id.
    #[arg(long)]
    pub node: Option<String>,
}

/// Commands about revocations that were made.
#[derive(Clone, Debug, Subcommand)]
pub enum RevocationCommand {
    /// Lists the newest revocations and how far each has come.
    List,
    /// Shows one: who was told, who acknowledged, who has proven it, who is outstanding and until when.
    Show {
        /// Its number.
        number: u64,
    },
}

/// Runs `revoke …`.
///
/// # Errors
/// The refusal for the operator.
pub fn revoke(cli: &Shared, client: &Client, command: RevokeCommand) -> Result<u8, Refusal> {
    let (kind, revocation, node) = match command {
        RevokeCommand::Node(revocation) => (Kind::Node, revocation, None),
        RevokeCommand::Workload(revocation) => (Kind::Workload, revocation, None),
        RevokeCommand::Owner(revocation) => (Kind::Owner, revocation, None),
        RevokeCommand::Svid(revocation) => (Kind::Svid, revocation, None),
        RevokeCommand::Task(TaskRevocation { revocation, node }) => (Kind::Task, revocation, node),
    };
    let (explain, wait) = (revocation.explain, revocation.wait);
    let facts = client.call(&request(kind, revocation, node))?;
    if explain {
        explanation(cli, &facts);
        return Ok(DONE);
    }
    let Some((seconds, number)) = wait.zip(facts.get("revocation").and_then(Value::as_u64)) else {
        print::facts(&facts, cli.json);
        return Ok(DONE);
    };
    if !cli.json {
        print::facts(&facts, false);
    }
    let listened = facts.get("listening").and_then(Value::as_u64).unwrap_or_default();
    let shown = wait_for(cli, client, number, listened, Duration::from_secs(seconds))?;
    if cli.json {
        let mut all = facts;
        if let (Some(all), Value::Object(shown)) = (all.as_object_mut(), shown.clone()) {
            all.extend(shown);
        }
        print::facts(&all, true);
    }
    Ok(if awaited(&shown, listened) == 0 { DONE } else { WARNING })
}

/// The admin command of one.
pub fn request(kind: Kind, stated: Revocation, node: Option<String>) -> Command {
    let Revocation { target, reason, explain, wait: _ } = stated;
    Command::Revoke(Stated { kind, target, node, reason: reason.unwrap_or_default(), explain })
}

/// Runs `revocation …`.
///
/// # Errors
/// The refusal for the operator.
pub fn revocation(cli: &Shared, client: &Client, command: RevocationCommand) -> Result<u8, Refusal> {
    match command {
        RevocationCommand::List => print::facts(&client.call(&Command::RevocationList)?, cli.json),
        RevocationCommand::Show { number } => show(cli, &client.call(&Command::RevocationShow { number })?),
    }
    Ok(DONE)
}

/// Runs `ca crl`.
///
/// # Errors
/// The refusal for the operator.
pub fn crl(cli: &Shared, client: &Client, ca: Option<String>, out: &Path) -> Result<u8, Refusal> {
    let mut facts = client.call(&Command::CaCrl { ca })?;
    let refuse = |found: String| Refusal::new(codes::ADMIN_INVALID, found).at(out.display().to_string());
    let crl = facts.as_object_mut().and_then(|facts| facts.remove("crl"));
    let der =
        hex::decode(crl.as_ref().and_then(Value::as_str).unwrap_or_default()).map_err(|e| refuse(e.to_string()))?;
    // Whole or not at all: a relying party may read it at any moment.
    secret::write_atomically(out, &der).map_err(|e| refuse(e.to_string()))?;
    print::facts(&facts, cli.json);
    Ok(DONE)
}

/// Asks until everybody who listens has acknowledged, saying what is new.
#[expect(clippy::indexing_slicing, reason = "a member that is absent from a JSON value reads as null")]
fn wait_for(cli: &Shared, client: &Client, number: u64, listened: u64, at_most: Duration) -> Result<Value, Refusal> {
    let started = Instant::now();
    let mut said = String::new();
    loop {
        let shown = client.call(&Command::RevocationShow { number })?;
        let left = awaited(&shown, listened);
        let line = format!(
            "{} of {} nodes told, {} acknowledged, {} proven; {left} awaited",
            shown["told"], shown["nodes"], shown["acknowledged"], shown["proven"]
        );
        let over = left == 0 || started.elapsed() >= at_most;
        // A line for each change on a terminal; one at the end otherwise.
        if !cli.json && line != said && (over || std::io::stdout().is_terminal()) {
            say!("{:>7.1} s  {line}", started.elapsed().as_secs_f64());
        }
        if over {
            return Ok(shown);
        }
        said = line;
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// How many acknowledgements are missing: of nodes that listen or were told, and at least so many as listened when
/// the command came. (A revoked node's stream ends with the word that it is.)
fn awaited(shown: &Value, listened: u64) -> u64 {
    let parts = shown["parts"].as_array().map(Vec::as_slice).unwrap_or_default();
    let heard = |part: &&Value| part["stream"] == Value::Bool(true) || part["told"].is_string();
    let missing = parts.iter().filter(|part| part["acknowledged"].is_null()).filter(heard).count() as u64;
    missing.max(listened.saturating_sub(shown["acknowledged"].as_u64().unwrap_or_default()))
}

fn explanation(cli: &Shared, facts: &Value) {
    if cli.json {
        return print::facts(facts, true);
    }
    let text = |key: &str| print::plain(facts[key].as_str().unwrap_or_default());
    say!("revoking {} {} would", text("kind"), text("target"));
    for id in facts["suspends"].as_array().into_iter().flatten() {
        say!("  suspend {}", print::plain(id.as_str().unwrap_or_default()));
    }
    say!("  end {} credentials", facts["credentials"]);
    say!(
        "  concern {} nodes: {} listen and are told at once (no release after {} s)",
        facts["nodes"],
        facts["listening"],
        facts["pushed_within_seconds"]
    );
    for node in facts["concerned"].as_array().into_iter().flatten() {
        let part = |key: &str| print::plain(node[key].as_str().unwrap_or("-"));
        let listens = if node["stream"] == Value::Bool(true) { "listens" } else { "away   " };
        say!(
            "    {} {listens} last seen {}, holds {}; if it hears nothing, until {} ({} s)",
            part("node").get(..12).unwrap_or_default(),
            part("last_seen"),
            node["credentials"],
            part("until"),
            node["until_seconds"]
        );
    }
    match facts["until"].as_str() {
        Some(until) => say!("  be over everywhere by {}, whoever hears of it", print::plain(until)),
        None => say!("  concern no node"),
    }
    if facts["spent"] == Value::Bool(true) {
        say!("  change nothing: all of it was taken back before");
    }
}

fn show(cli: &Shared, facts: &Value) {
    if cli.json {
        return print::facts(facts, true);
    }
    let text = |key: &str| print::plain(facts[key].as_str().unwrap_or("-"));
    say!("revocation {} at {}: {} {}", facts["number"], text("at"), text("kind"), text("target"));
    say!("  reason: {}", text("reason"));
    say!("  credentials ended: {}", facts["credentials"]);
    say!(
        "  nodes: {}; told {}, acknowledged {} (their claim), proven {} (by affirmed evidence)",
        facts["nodes"],
        facts["told"],
        facts["acknowledged"],
        facts["proven"]
    );
    for part in facts["parts"].as_array().into_iter().flatten().filter(|part| part["acknowledged"].is_null()) {
        let of = |key: &str| print::plain(part[key].as_str().unwrap_or("-"));
        say!(
            "  outstanding: {} {}, {}, last seen {}; over by {}",
            of("node").get(..12).unwrap_or_default(),
            if part["stream"] == Value::Bool(true) { "listens" } else { "is away" },
            if part["told"].is_null() { "not told" } else { "told" },
            of("last_seen"),
            of("until")
        );
    }
}
