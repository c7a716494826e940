//! The command line of `leasehold-server`.

mod appraise;
mod args;
mod audit;
mod client;
mod declared;
mod governance;
mod operator;
mod policy;
mod print;
mod reference;
mod registry;
mod remote;
mod revoke;
mod run;
mod task;

use std::io::{BufRead, IsTerminal};
use std::process::ExitCode;

use clap::Parser;
use serde_json::Value;

pub use args::Cli;
use args::{CaCommand, Command, Shared};

use super::admin;
use crate::codes::exit::{CONTRAINDICATED, DONE, FAILED, UNAVAILABLE, USAGE, WARNING};
use crate::codes::{self, Refusal};
use crate::output::{self, say};
use crate::telemetry;

/// Runs `leasehold-server` with the process's arguments.
pub fn main() -> ExitCode {
    let Cli { shared, command } = Cli::parse();
    telemetry::start(shared.log_format);
    match command {
        Command::Run { accept_clock } => run::run(&shared, accept_clock),
        Command::Dev(arguments) => run::dev(arguments, shared.json),
        command => match administer(&shared, command) {
            Ok(code) => ExitCode::from(output::outcome(code)),
            Err(refusal) => complain(&refusal),
        },
    }
}

/// Says why on standard error; the exit code follows from the refusal's.
fn complain(refusal: &Refusal) -> ExitCode {
    eprintln!("leasehold-server: {}", print::plain(&refusal.to_string()));
    ExitCode::from(match refusal.code {
        codes::CONFIG_INVALID | codes::CONFIG_MODE | codes::ADMIN_INVALID => USAGE,
        codes::PROTOCOL_UNREACHABLE | codes::TPM_UNAVAILABLE | codes::TPM_LOCKOUT => UNAVAILABLE,
        _ => FAILED,
    })
}

fn administer(cli: &Shared, command: Command) -> Result<u8, Refusal> {
    if let Command::Appraise(arguments) = &command {
        return appraise::appraise(arguments, cli.json);
    }
    let command = match command {
        Command::Policy(command) => match policy::offline(cli, command)? {
            Ok(code) => return Ok(code),
            Err(command) => Command::Policy(command),
        },
        command => command,
    };
    let client = cli.client()?;
    let command = match command {
        Command::Audit(command) => return audit::run(cli, &client, command),
        Command::Apply(arguments) => return declared::apply(cli, &client, &arguments),
        Command::Export(arguments) => return declared::export(cli, &client, &arguments),
        Command::Reference(command) => return reference::run(cli, &client, command),
        Command::Policy(command) => return policy::run(cli, &client, command),
        Command::Decision(command) => return policy::decision(cli, &client, command),
        Command::Revoke(command) => return revoke::revoke(cli, &client, command),
        Command::Node(registry::NodeCommand::Revoke(stated)) => {
            return revoke::revoke(cli, &client, revoke::RevokeCommand::Node(stated));
        }
        Command::Revocation(command) => return revoke::revocation(cli, &client, command),
        Command::Ca(CaCommand::Crl { ca, out }) => return revoke::crl(cli, &client, ca, &out),
        command => request(command)?,
    };
    let explains = matches!(command, admin::Command::NodeExplain { .. });
    let facts = client.call(&command)?;
    print::facts(&facts, cli.json);
    Ok(match explains {
        true if holds(&facts, "contraindicated") => CONTRAINDICATED,
        true if !all_hold(&facts) => WARNING,
        _ if facts.get("attention").and_then(Value::as_u64).is_some_and(|count| count > 0) => WARNING,
        _ if facts.get("due").and_then(Value::as_array).is_some_and(|due| !due.is_empty()) => WARNING,
        _ => DONE,
    })
}

/// The admin command of a command line.
fn request(command: Command) -> Result<admin::Command, Refusal> {
    use admin::Command as Admin;
    Ok(match command {
        Command::Node(command) => registry::node(command),
        Command::Ek(command) => registry::ek(command)?,
        Command::Owner(command) => registry::owner(command),
        Command::Destination(command) => registry::destination(command),
        Command::Inventory => Admin::Inventory,
        Command::Workload(command) => registry::workload(command),
        Command::Operator(command) => operator::request(command),
        Command::Approval(command) => governance::approval(command)?,
        Command::Exception(command) => governance::exception(command)?,
        Command::Review(command) => governance::review(command),
        Command::Debt => Admin::Debt,
        Command::Task(command) => task::request(command),
        Command::Report { framework } => Admin::Report { framework },
        Command::Ca(CaCommand::Show) => Admin::CaShow,
        Command::Ca(CaCommand::Prepare) => Admin::CaPrepare,
        Command::Ca(CaCommand::Rotate { early }) => Admin::CaRotate { early },
        Command::Ca(CaCommand::Remove { ca, break_glass: _, reason }) => Admin::CaRemove { ca, reason },
        Command::Run { .. }
        | Command::Apply(_)
        | Command::Export(_)
        | Command::Dev(_)
        | Command::Appraise(_)
        | Command::Audit(_)
        | Command::Reference(_)
        | Command::Ca(CaCommand::Crl { .. })
        | Command::Policy(_)
        | Command::Decision(_)
        | Command::Revoke(_)
        | Command::Revocation(_) => {
            return Err(Refusal::new(codes::ADMIN_INVALID, "BUG: this command is carried out elsewhere"));
        }
    })
}

/// Shows what would be learnt, asks, and learns exactly that.
fn learn(cli: &Shared, client: &client::Client, node: String, yes: bool) -> Result<u8, Refusal> {
    let preview = client.call(&admin::Command::ReferencePreview { node })?;
    if !yes {
        print::facts(&preview, cli.json);
        if !confirmed(cli, "Make these values what the node must show?")? {
            return Ok(FAILED);
        }
    } else if !cli.json {
        print::facts(&preview, false);
    }
    let text = |key: &str| preview.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let command = admin::Command::ReferenceLearn { node: text("node"), fingerprint: text("fingerprint") };
    print::facts(&client.call(&command)?, cli.json);
    Ok(DONE)
}

/// Asks, if somebody is there to answer.
fn confirmed(cli: &Shared, question: &str) -> Result<bool, Refusal> {
    if cli.json || !std::io::stdin().is_terminal() {
        return Err(Refusal::new(codes::ADMIN_INVALID, "nobody is there to confirm").expected("--yes"));
    }
    output::part(format_args!("{question} [yes/no] "));
    let mut answer = String::new();
    let read = std::io::stdin().lock().read_line(&mut answer);
    let confirmed = read.is_ok() && answer.trim() == "yes";
    if !confirmed {
        say!("Nothing was changed.");
    }
    Ok(confirmed)
}

fn all_hold(facts: &Value) -> bool {
    facts.get("steps").and_then(Value::as_array).is_some_and(|steps| steps.iter().all(|step| holds(step, "holds")))
}

/// Whether this member is there and true.
fn holds(value: &Value, key: &str) -> bool {
    value.get(key) == Some(&Value::Bool(true))
}
