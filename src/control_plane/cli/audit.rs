//! `leasehold-server audit …`: records, whether they hold, and whether they join.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::Value;

use super::args::Shared;
use super::client::Client;
use super::print;
use crate::clock::WallTime;
use crate::codes::exit::{CONTRAINDICATED, DONE, WARNING};
use crate::codes::{self, Refusal};
use crate::control_plane::admin::Command;
use crate::control_plane::audit::listing::{Filter, Of};
use crate::control_plane::audit::{Reading, heads};
use crate::control_plane::store;
use crate::output::{self, say};

/// How a log is verified.
const LIFE: &str = "Every record is chained to the one before it and the chain's head is signed every 5 s; the last head also \
    lies beside the wrapping key (wrapping.key.audit) and with every node. Nodes deliver their own records under heads \
    that their TPMs signed.\n\n  \
    leasehold-server audit verify                               # a running server's log\n  \
    leasehold-server audit verify --store copy.db --head wrapping.key.audit   # any copy, without a server\n  \
    leasehold-server audit tail --nodes --credential SERIAL     # one credential's life\n  \
    leasehold-server audit export --since 2026-11-01T00:00:00Z > november.jsonl\n";

/// Commands about the record.
#[derive(Clone, Debug, Subcommand)]
#[command(after_help = LIFE)]
pub enum AuditCommand {
    /// Prints the newest records, oldest first.
    Tail {
        /// Only those after this number.
        #[arg(long, default_value_t = 0)]
        after: u64,
        /// At most so many.
        #[arg(long, short = 'n', default_value_t = 50)]
        lines: u64,
        /// Goes on with new ones.
        #[arg(long, short)]
        follow: bool,
        /// Those that nodes delivered, too, in the order of their times.
        #[arg(long)]
        nodes: bool,
        /// Which.
        #[command(flatten)]
        filter: FilterArguments,
    },
    /// Writes every record as a line of JSON, the control plane's and those of all nodes, each with its
    /// writer and number, in the order of their times.
    Export {
        /// Not before this time (RFC 3339).
        #[arg(long, value_name = "TIME")]
        since: Option<String>,
        /// Before this time.
        #[arg(long, value_name = "TIME")]
        until: Option<String>,
        /// Which.
        #[command(flatten)]
        filter: FilterArguments,
    },
    /// Verifies every record: finds an edit, a gap and a cut before the last signed head, and names the record.
    ///
    /// Also says what could be changed without being found. Exit code 0 if all holds, 3 if something was found and
    /// recorded before, 4 if something is wrong.
    Verify {
        /// A store file instead of the running server: its own or a copy. Needs no server and no key.
        #[arg(long, value_name = "FILE")]
        store: Option<PathBuf>,
        /// The head outside the store; default: `wrapping.key.audit` beside FILE, if it is there.
        #[arg(long, value_name = "FILE", requires = "store")]
        head: Option<PathBuf>,
        /// Of the nodes' journals only this node's: its id, or the start of it.
        #[arg(long)]
        node: Option<String>,
    },
    /// Joins the records: every credential has one issue, its releases and one end, each under its decision.
    ///
    /// Prints what stands alone. Exit code 0 if nothing does, 4 otherwise.
    Check {
        /// A store file instead of the running server.
        #[arg(long, value_name = "FILE")]
        store: Option<PathBuf>,
    },
}

/// Which records.
#[derive(Clone, Debug, Default, Args)]
pub struct FilterArguments {
    /// About this node: its id, or the start of it.
    #[arg(long)]
    node: Option<String>,
    /// About this workload.
    #[arg(long, value_name = "SPIFFE-ID")]
    workload: Option<String>,
    /// About this credential: a serial number in hexadecimal, or a `jti`.
    #[arg(long, value_name = "ID")]
    credential: Option<String>,
    /// Under this decision.
    #[arg(long, value_name = "ID")]
    decision: Option<String>,
    /// Of this task.
    #[arg(long, value_name = "ID")]
    task: Option<String>,
    /// What happened, or how that begins: `credential.` or `audit.tampered`.
    #[arg(long)]
    what: Option<String>,
}

impl FilterArguments {
    fn filter(self, since: Option<&str>, until: Option<&str>) -> Result<Filter, Refusal> {
        let time = |text: Option<&str>| {
            text.map(|text| WallTime::parse(text).map(|time| time.0))
                .transpose()
                .map_err(|why| Refusal::new(codes::ADMIN_INVALID, why).expected("RFC 3339, e.g. 2026-11-22T00:00:00Z"))
        };
        let Self { node, workload, credential, decision, task, what } = self;
        Ok(Filter { node, workload, credential, decision, task, what, since: time(since)?, until: time(until)? })
    }
}

/// Runs a command.
///
/// # Errors
/// The refusal for the operator.
#[expect(clippy::indexing_slicing, reason = "a member that is absent from a JSON value reads as null")]
pub fn run(cli: &Shared, client: &Client, command: AuditCommand) -> Result<u8, Refusal> {
    match command {
        AuditCommand::Tail { after, lines, follow, nodes, filter } => {
            tail(cli, client, &filter.filter(None, None)?, after, lines, follow, nodes)
        }
        AuditCommand::Export { since, until, filter } => {
            export(client, &filter.filter(since.as_deref(), until.as_deref())?)
        }
        AuditCommand::Verify { store, head, node } => {
            let facts = match store {
                Some(store) => {
                    let head = head.or_else(|| beside(&store));
                    offline(&store, head.as_deref(), &Reading::Verify { node })?
                }
                None => client.call(&Command::AuditVerify { node })?,
            };
            verified(cli, &facts);
            let noted = facts["noted"].as_array().is_some_and(|noted| !noted.is_empty());
            Ok(match facts["holds"] == Value::Bool(true) {
                true if noted => WARNING,
                true => DONE,
                false => CONTRAINDICATED,
            })
        }
        AuditCommand::Check { store } => {
            let facts = match store {
                Some(store) => offline(&store, None, &Reading::Join)?,
                None => client.call(&Command::AuditJoin)?,
            };
            checked(cli, &facts);
            Ok(if facts["holds"] == Value::Bool(true) { DONE } else { CONTRAINDICATED })
        }
    }
}

/// The witness beside a store, where the wrapping key is kept by default.
fn beside(store: &Path) -> Option<PathBuf> {
    let path = heads::witness_path(&store.with_file_name("wrapping.key"));
    path.exists().then_some(path)
}

fn offline(path: &Path, head: Option<&Path>, reading: &Reading) -> Result<Value, Refusal> {
    reading.read(&store::open_reader(path)?.transaction()?, head, WallTime::now())
}

/// The records of an answer.
fn listed(
    client: &Client,
    of: Of,
    after: u64,
    limit: u64,
    newest: bool,
    filter: &Filter,
) -> Result<Vec<Value>, Refusal> {
    let mut facts = client.call(&Command::AuditList { of, after, limit, newest, filter: filter.clone() })?;
    match facts.get_mut("records").map(Value::take) {
        Some(Value::Array(records)) => Ok(records),
        _ => Err(Refusal::new(codes::PROTOCOL_MALFORMED, "an answer without records")),
    }
}

/// Prints records, one a line, and goes on with new ones if asked to.
fn tail(
    cli: &Shared,
    client: &Client,
    filter: &Filter,
    mut after: u64,
    lines: u64,
    follow: bool,
    nodes: bool,
) -> Result<u8, Refusal> {
    let (mut arrived, mut limit, mut newest) = (0, lines, true);
    loop {
        let own = listed(client, Of::Log, after, limit, newest, filter)?;
        let theirs = match nodes {
            true => listed(client, Of::Nodes, arrived, limit, newest, filter)?,
            false => Vec::new(),
        };
        after = last_id(&own).unwrap_or(after);
        arrived = last_id(&theirs).unwrap_or(arrived);
        let all = merged(own, theirs);
        let skipped = if newest { all.len().saturating_sub(usize::try_from(lines).unwrap_or(usize::MAX)) } else { 0 };
        for (of, record) in all.iter().skip(skipped) {
            print::record(record, *of == Of::Nodes, cli.json);
        }
        if !follow || !output::is_open() {
            return Ok(DONE);
        }
        (limit, newest) = (u64::MAX, false);
        std::thread::sleep(std::time::Duration::from_secs(1));
    }
}

fn last_id(records: &[Value]) -> Option<u64> {
    records.last()?.get("id")?.as_u64()
}

/// Both in the order of their times, each in its own order.
fn merged(own: Vec<Value>, theirs: Vec<Value>) -> Vec<(Of, Value)> {
    let (mut own, mut theirs) = (own.into_iter().peekable(), theirs.into_iter().peekable());
    let time = |record: &Value| record["time"].as_str().unwrap_or_default().to_owned();
    let mut all = Vec::new();
    loop {
        let first = match (own.peek(), theirs.peek()) {
            (Some(ours), Some(its)) if time(its) < time(ours) => Of::Nodes,
            (None, Some(_)) => Of::Nodes,
            _ => Of::Log,
        };
        let next = if first == Of::Nodes { theirs.next() } else { own.next() };
        let Some(record) = next else { return all };
        all.push((first, record));
    }
}

/// Writes everything, page by page.
fn export(client: &Client, filter: &Filter) -> Result<u8, Refusal> {
    const PAGE: u64 = 2_000;
    let mut pages = [Page { of: Of::Log, ..Page::default() }, Page { of: Of::Nodes, ..Page::default() }];
    while output::is_open() {
        for page in &mut pages {
            if page.records.is_empty() && !page.over {
                let records = listed(client, page.of, page.after, PAGE, false, filter)?;
                page.after = last_id(&records).unwrap_or(page.after);
                page.over = (records.len() as u64) < PAGE;
                page.records = records.into();
            }
        }
        let time = |page: &Page| page.records.front().and_then(|record| record["time"].as_str()).map(str::to_owned);
        let [own, theirs] = &pages;
        let from_nodes = match (time(own), time(theirs)) {
            (Some(ours), Some(its)) => its < ours,
            (None, Some(_)) => true,
            _ => false,
        };
        let [own, theirs] = &mut pages;
        let page = if from_nodes { theirs } else { own };
        match page.records.pop_front() {
            Some(record) => print::record(&record, from_nodes, true),
            None => break,
        }
    }
    Ok(DONE)
}

#[derive(Default)]
struct Page {
    of: Of,
    after: u64,
    over: bool,
    records: std::collections::VecDeque<Value>,
}

fn verified(cli: &Shared, facts: &Value) {
    if cli.json {
        say!("{facts:#}");
        return;
    }
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), print::plain);
    for chain in facts["writers"].as_array().into_iter().flatten() {
        let whose = chain["node"].as_str().map_or("control plane".to_owned(), |node| format!("node {}", short(node)));
        say!(
            "{whose}: {} records, the last {}, signed up to {} (writer {})",
            chain["records"],
            chain["last"],
            chain["signed"],
            short(&text(&chain["writer"]))
        );
    }
    for (title, key) in [("WRONG", "findings"), ("noted before", "noted")] {
        for finding in facts[key].as_array().into_iter().flatten() {
            let (writer, code) = (short(&text(&finding["writer"])).to_owned(), text(&finding["code"]));
            say!("{title}: writer {writer}, record {}: {code}: {}", finding["number"], text(&finding["found"]));
        }
    }
    for window in facts["unprotected"].as_array().into_iter().flatten() {
        say!("not protected: {}", text(window));
    }
    let holds = facts["holds"] == Value::Bool(true);
    say!("{}", if holds { "The records hold." } else { "The records do not hold." });
}

fn short(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}

fn checked(cli: &Shared, facts: &Value) {
    if cli.json {
        say!("{facts:#}");
        return;
    }
    say!(
        "{} credentials: {} live, {} ended; {} decisions; {} releases, {} uses, {} denials",
        facts["credentials"],
        facts["live"],
        facts["ended"],
        facts["decisions"],
        facts["releases"],
        facts["uses"],
        facts["denials"]
    );
    if let Some(since) = facts["decisions_since"].as_str() {
        say!("decisions from before {since} were forgotten; none is asked for from then");
    }
    for orphan in facts["orphans"].as_array().into_iter().flatten() {
        say!("ORPHAN: {}", print::plain(orphan.as_str().unwrap_or_default()));
    }
    say!("{} orphans", facts["orphan_count"]);
}
