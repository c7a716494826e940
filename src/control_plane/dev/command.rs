//! `leasehold-server dev`: everything on this machine, in a directory, until Ctrl-C.

use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Subcommand};
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::household::{self, Facts, Household};
use super::{swtpm, wire};
use crate::output::{self, say};
use crate::shutdown;
use crate::tpm::{Bank, PcrSelection};

/// `dev` and what can be done to what it runs.
#[derive(Clone, Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct DevArguments {
    #[command(subcommand)]
    command: Option<DevCommand>,
    /// Where everything goes; a temporary directory, removed at the end, unless given.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

#[derive(Clone, Debug, Subcommand)]
enum DevCommand {
    /// Extend a PCR of the software TPM, as a change of what booted or runs would.
    Drift {
        /// The directory that `dev` runs in.
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// The PCR, 0 to 23.
        #[arg(long, value_name = "N")]
        pcr: u8,
    },
}

/// Carries it out; returns the exit code. With `json`, what is printed is one JSON object.
///
/// # Errors
/// When something is missing or does not start, with the end of its log.
pub async fn run(arguments: DevArguments, json: bool) -> anyhow::Result<u8> {
    match arguments.command {
        Some(DevCommand::Drift { dir, pcr }) => drift(&dir, pcr, json),
        None => dev(arguments.dir, json).await,
    }
}

async fn dev(dir: Option<PathBuf>, json: bool) -> anyhow::Result<u8> {
    // Dropped at the end, which removes it; a directory the user named stays.
    let temporary = dir.is_none().then(tempfile::tempdir).transpose().context("a temporary directory")?;
    let directory = dir.or_else(|| temporary.as_ref().map(|t| t.path().to_path_buf())).unwrap_or_default();
    let mut step = |what: &str| eprintln!("{what} …");
    // One for the whole life: a signal between two waits would be lost.
    let mut asked_to_end = std::pin::pin!(shutdown::requested());
    let household = tokio::select! {
        household = Household::set_up(&directory, &mut step) => household?,
        signal = &mut asked_to_end => {
            eprintln!("{}: ended before everything ran", signal?);
            return Ok(1);
        }
    };
    if json {
        say!("{}", serde_json::to_string(&household.facts)?);
    } else {
        output::part(format_args!("{}", next_commands(&household.facts)));
    }

    let loss = tokio::select! {
        signal = &mut asked_to_end => {
            eprintln!("{}: ending", signal?);
            None
        }
        loss = lost(&household) => Some(loss),
    };
    household.end().await;
    match loss {
        None => Ok(0),
        Some(loss) => anyhow::bail!("{loss}; its log is in {}", directory.display()),
    }
}

/// Returns when one of the processes has ended by itself.
async fn lost(household: &Household) -> String {
    loop {
        if let Some(loss) = household.loss() {
            return loss;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

fn next_commands(facts: &Facts) -> String {
    let Facts { directory, spiffe_id, workload_socket, node, agent_config, server_config, .. } = facts;
    let (directory, agent, server) = (directory.display(), agent_config.display(), server_config.display());
    format!(
        "\n{spiffe_id} is registered for you on node {node}.\n\n\
         The Workload API:\n  export SPIFFE_ENDPOINT_SOCKET={workload_socket}\n\n\
         Next, in another terminal:\n  \
         leasehold-agent --config {agent} status\n  \
         leasehold-server --config {server} workload list\n  \
         leasehold-server dev drift --dir {directory} --pcr 7     # then ask for an SVID, and for the status\n\n\
         Ctrl-C ends everything.\n"
    )
}

/// What `dev drift` did. Schema version 1.
#[derive(Debug, Serialize)]
struct Drift {
    schema: u32,
    pcr: u8,
    before: String,
    after: String,
}

fn drift(directory: &Path, pcr: u8, json: bool) -> anyhow::Result<u8> {
    let selection = PcrSelection::new(Bank::Sha256, [pcr]).map_err(anyhow::Error::msg)?;
    let facts = household::facts(directory)?;
    let mut tpm = TcpStream::connect(("127.0.0.1", facts.tpm_port))
        .with_context(|| format!("the software TPM of {} at {}", directory.display(), facts.tpm))?;
    tpm.set_read_timeout(Some(Duration::from_secs(10)))?;
    let read = |tpm: &mut TcpStream| -> anyhow::Result<String> {
        let answer = wire::parse_pcr_read(&swtpm::exchange(tpm, &wire::pcr_read(selection))?)?;
        Ok(answer.values.first().map(hex::encode).unwrap_or_default())
    };
    let before = read(&mut tpm)?;
    let event = Sha256::digest(b"leasehold dev: something changed");
    wire::check(&swtpm::exchange(&mut tpm, &wire::pcr_extend(pcr, Bank::Sha256, &event))?, "TPM2_PCR_Extend")?;
    let drift = Drift { schema: 1, pcr, before, after: read(&mut tpm)? };
    if json {
        say!("{}", serde_json::to_string(&drift)?);
    } else {
        say!("PCR {pcr} was {}\nPCR {pcr} is  {}", drift.before, drift.after);
    }
    Ok(0)
}
