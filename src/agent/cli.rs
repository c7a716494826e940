//! The command line of `leasehold-agent`.

mod audit;
mod doctor;
mod evidence;
mod log;
mod log_ima;
mod probe;
mod profile;
mod svid;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};

use super::status::Status;
use crate::codes::{self, Refusal, exit};
use crate::config::{self, AgentConfig};
use crate::output::{self, say};
use crate::shutdown;
use crate::telemetry::{self, LogFormat};
use crate::tpm::TpmError;

/// Where the configuration is unless `--config` says otherwise.
const CONFIG: &str = "/etc/leasehold/agent.toml";

#[derive(Debug, Parser)]
#[command(
    name = "leasehold-agent",
    version,
    about = "Proves with the TPM what this node is and runs, and releases workload credentials to local processes while that holds",
    after_help = "Exit codes: 0 done, 1 failed, 2 usage or configuration, 4 contraindicated, 5 unavailable (try later).\n\
                  A first configuration:\n\n  \
                  trust_domain = \"example.org\"\n  \
                  [control_plane]\n  \
                  address = \"control.example.org:8443\"\n  \
                  ca_hash = \"…\"               # `leasehold-server ca show` prints it\n"
)]
struct Arguments {
    /// The configuration file (TOML).
    #[arg(long, global = true, value_name = "FILE", default_value = CONFIG)]
    config: PathBuf,
    /// How log lines are written to standard error; LEASEHOLD_LOG filters them.
    #[arg(long, global = true, value_enum, default_value_t)]
    log_format: LogFormat,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the agent: enrol, attest, renew, and serve the SPIFFE Workload API.
    Run,
    /// Enrol this node now, and say whether it is admitted.
    ///
    /// `run` enrols by itself too; `join` is for setting up: it shows the node id that an
    /// operator approves. It needs the TPM to itself unless that is /dev/tpmrm0.
    Join {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show what this node can prove: its TPM's keys and certificates, its firmware profile and the gaps.
    Probe {
        /// The TPM, instead of the one in the configuration: `device:PATH` or `swtpm:host=IP,port=PORT`.
        #[arg(long, value_name = "ADDRESS")]
        tpm: Option<String>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Ask the running agent how the node stands, and why.
    Status {
        /// Print JSON (schema 1).
        #[arg(long)]
        json: bool,
    },
    /// Check every link from the configuration to the released credential, and name the broken one.
    Doctor {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Write evidence of this node and the public keys to check it with: for `leasehold-server appraise`.
    ///
    /// Beside FILE it writes FILE.ak and FILE.node-key. They prove nothing of whose TPM it is: that is
    /// what enrolment is for. Stop the agent first where the TPM takes one connection (swtpm).
    Evidence {
        /// The verifier's nonce, 64 hexadecimal digits; without it a random one is used and printed.
        #[arg(long, value_name = "HEX")]
        nonce: Option<String>,
        /// The PCRs to quote; without it sha256:0-7.
        #[arg(long, value_name = "BANK:LIST", conflicts_with = "profile")]
        pcrs: Option<String>,
        /// Quotes the PCRs of this shipped firmware profile instead, in the first bank it names.
        #[arg(long, value_name = "NAME")]
        profile: Option<String>,
        /// The file to write; `-` is standard output, then without the keys.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// The node's own record of what it released: verify it, or print it. Needs no TPM and no running agent.
    #[command(subcommand)]
    Audit(audit::AuditCommand),
    /// Fetch what a workload gets, over the Workload API and as the process that asks: for a look, and for scripts.
    #[command(subcommand)]
    Svid(svid::SvidCommand),
    /// Read a measurement log, of this node or in a file. Needs no TPM and no configuration.
    #[command(subcommand)]
    Log(log::LogCommand),
}

/// Runs the command line.
pub fn main() -> ExitCode {
    crate::tpm::quiet_libtss2();
    let arguments = Arguments::parse();
    telemetry::start(arguments.log_format);
    // Two workers: one may wait for the TPM inside a TLS handshake while the other releases.
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("leasehold-agent: no runtime: {error}");
            return ExitCode::from(exit::FAILED);
        }
    };
    let outcome = runtime.block_on(carry_out(arguments));
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    match outcome {
        Ok(code) => ExitCode::from(output::outcome(code)),
        Err(error) => {
            eprintln!("leasehold-agent: {error:#}");
            ExitCode::from(exit_code(&error))
        }
    }
}

async fn carry_out(arguments: Arguments) -> anyhow::Result<u8> {
    let config = || config::load::<AgentConfig>(&arguments.config);
    match arguments.command {
        Command::Run => run(config()?).await,
        Command::Join { json } => probe::join(config()?, json).await,
        Command::Probe { tpm, json } => {
            let address = match tpm {
                Some(address) => address,
                None => config()?.tpm.address,
            };
            probe::probe(&address, json).await
        }
        Command::Status { json } => status(&config()?, json).await,
        Command::Doctor { json } => doctor::doctor(&arguments.config, json).await,
        Command::Evidence { nonce, pcrs, profile, out } => {
            let wanted =
                evidence::Wanted { nonce: nonce.as_deref(), pcrs: pcrs.as_deref(), profile: profile.as_deref() };
            evidence::write(config()?, wanted, &out).await
        }
        Command::Audit(command) => audit::run(command, &config()?.state_dir).await,
        Command::Svid(command) => svid::carry_out(command, &arguments.config).await,
        Command::Log(command) => log::show(&command),
    }
}

async fn run(config: AgentConfig) -> anyhow::Result<u8> {
    harden();
    let workload = config.sockets.workload.clone();
    let agent = super::start(config).await?;
    tracing::info!(socket = %workload.display(), "serving the Workload API");
    let signal = shutdown::requested().await.context("waiting for signals")?;
    tracing::info!(signal, "ending");
    agent.stop().await;
    Ok(exit::DONE)
}

async fn status(config: &AgentConfig, json: bool) -> anyhow::Result<u8> {
    let status = ask(&config.sockets.admin).await?;
    if json {
        print_json(&status)?
    } else {
        output::part(format_args!("{status}"))
    }
    Ok(status.exit_code())
}

/// The running agent's status.
async fn ask(socket: &Path) -> anyhow::Result<Status> {
    let away = |e: reqwest::Error| {
        let mut words = format!("no agent answers at {}", socket.display());
        let mut source: Option<&dyn std::error::Error> = Some(&e);
        while let Some(cause) = source {
            words = format!("{words}: {cause}");
            source = cause.source();
        }
        Refusal::new(codes::PROTOCOL_UNREACHABLE, words).expected("`leasehold-agent run` with the same configuration")
    };
    let client = reqwest::Client::builder()
        .unix_socket(socket)
        .timeout(std::time::Duration::from_secs(5))
        .no_proxy()
        .tls_backend_preconfigured(no_tls()?)
        .build()
        .map_err(away)?;
    let response = client.get("http://agent/v1/status").send().await.map_err(away)?;
    let body = response.bytes().await.map_err(away)?;
    Ok(serde_json::from_slice(&body)?)
}

/// reqwest wants a TLS configuration even where none is spoken: one that trusts nobody.
fn no_tls() -> anyhow::Result<rustls::ClientConfig> {
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    Ok(rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth())
}

fn print_json<T: serde::Serialize>(value: &T) -> anyhow::Result<()> {
    say!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}

/// The exit code for an error: usage and configuration 2, unavailable 5, contraindicated 4.
fn exit_code(error: &anyhow::Error) -> u8 {
    let refusal = error
        .downcast_ref::<Refusal>()
        .map(|refusal| refusal.code)
        .or_else(|| error.downcast_ref::<TpmError>().map(|e| Refusal::from(e.clone()).code));
    match refusal {
        Some(codes::CONFIG_INVALID | codes::CONFIG_MODE) => exit::USAGE,
        Some(codes::TPM_UNAVAILABLE | codes::TPM_LOCKOUT | codes::PROTOCOL_UNREACHABLE) => exit::UNAVAILABLE,
        _ => exit::FAILED,
    }
}

/// No core dump and no ptrace by others of the same user: workload keys are in this memory.
fn harden() {
    use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    if let Err(error) =
        set_dumpable_behavior(DumpableBehavior::NotDumpable).and_then(|()| setrlimit(Resource::Core, none))
    {
        tracing::warn!(%error, "core dumps can't be switched off");
    }
}
