//! The arguments, with the help that teaches them.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use super::audit::AuditCommand;
use super::client::{Client, Local};
use super::declared::{Apply, Export};
use super::reference::ReferenceCommand;
use super::registry::{DestinationCommand, EkCommand, NodeCommand, OwnerCommand, WorkloadCommand};
use super::remote::Remote;
use super::revoke::{RevocationCommand, RevokeCommand};
use crate::codes::Refusal;
use crate::config::{self, ServerConfig};
use crate::control_plane::dev::command::DevArguments;
use crate::telemetry::LogFormat;

/// What a new operator writes first.
const FIRST_CONFIGURATION: &str = "A first configuration (server.toml); everything else has a default:\n\n  \
    trust_domain = \"example.org\"\n  \
    state_dir = \"/var/lib/leasehold-server\"\n  \
    listen = \"0.0.0.0:8443\"\n\n\
    Then: leasehold-server run --config server.toml\n";

/// Raw artefacts of tpm2-tools and the kernel.
const APPRAISE_EXAMPLE: &str = "Example:\n\n  \
    leasehold-server appraise --quote quote.msg --signature quote.sig --ak ak.pub --nonce 1234abcd \\\n    \
    --boot-log binary_bios_measurements --ima-log binary_runtime_measurements \\\n    \
    --profile uefi-uki --references fleet.toml\n";

/// The Leasehold control plane: decides which nodes are good and which workload gets which credential.
///
/// `run` is the server. The others talk to a running one over its admin socket, but for `dev`, `appraise` and
/// those of `reference` that say that they need no server.
///
/// Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 a warning, 4 a contraindicated
/// node, 5 unavailable (try later).
#[derive(Debug, Parser)]
#[command(name = "leasehold-server", version, max_term_width = 100, after_help = FIRST_CONFIGURATION)]
pub struct Cli {
    /// Options of every command.
    #[command(flatten)]
    pub shared: Shared,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Clone, Debug, Args)]
pub struct Shared {
    /// The server's configuration file (TOML).
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The admin socket, instead of the one in the configuration.
    ///
    /// Without both it is /run/leasehold-server/admin.sock.
    #[arg(long, global = true, value_name = "PATH")]
    pub admin_socket: Option<PathBuf>,
    /// A server elsewhere, by its TLS listener, as an operator: needs --svid and a role (`operator add`).
    #[arg(long, global = true, value_name = "HOST:PORT", requires = "svid", conflicts_with = "admin_socket")]
    pub server: Option<String>,
    /// The directory of the operator's SVID, as `leasehold-agent svid x509 --out DIR` writes it.
    #[arg(long, global = true, value_name = "DIR", requires = "server")]
    pub svid: Option<PathBuf>,
    /// Prints facts as JSON; names in it stay the same from version to version.
    #[arg(long, global = true)]
    pub json: bool,
    /// How log lines are written to standard error; LEASEHOLD_LOG filters them.
    #[arg(long, global = true, value_enum, default_value_t)]
    pub log_format: LogFormat,
}

impl Shared {
    /// A client of the server that these options name.
    ///
    /// # Errors
    /// [`crate::codes::CONFIG_INVALID`] for a configuration file that can't be used.
    pub fn client(&self) -> Result<Client, Refusal> {
        Ok(match (&self.server, &self.svid) {
            (Some(server), Some(svid)) => Client::Remote(Remote::new(server.clone(), svid.clone())),
            _ => Client::Local(Local::new(self.admin_socket()?)),
        })
    }

    /// The admin socket to talk to.
    ///
    /// # Errors
    /// [`crate::codes::CONFIG_INVALID`] for a configuration file that can't be used.
    pub fn admin_socket(&self) -> Result<PathBuf, Refusal> {
        match (&self.admin_socket, &self.config) {
            (Some(path), _) => Ok(path.clone()),
            (None, Some(file)) => Ok(config::load::<ServerConfig>(file)?.admin_socket),
            (None, None) => Ok(PathBuf::from("/run/leasehold-server/admin.sock")),
        }
    }
}

/// A command.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Runs the server until SIGTERM or SIGINT.
    ///
    /// At the first start it makes its state directory, its CA and the key that wraps what is
    /// secret in the store. `leasehold-server ca show` then prints the hash that agents pin.
    #[command(after_help = FIRST_CONFIGURATION)]
    Run {
        /// Takes the wall clock as it is now, though the server had seen a later time before.
        ///
        /// Time in the server never goes back, so that nothing that ended comes back. Only for a clock
        /// that had been set ahead by mistake.
        #[arg(long)]
        accept_clock: bool,
    },
    /// Tries everything out on this machine: a software TPM, a server, an agent and a workload.
    Dev(DevArguments),
    /// Appraises files without a server: a quote and logs of any tool, or evidence of our agent.
    ///
    /// It says for each check what held, what didn't and what isn't proven. Exit code 0 if the node is
    /// affirmed, 3 for a warning, 4 if it is contraindicated, 1 if the quote itself is none.
    #[command(after_help = APPRAISE_EXAMPLE)]
    Appraise(Box<super::appraise::AppraiseArguments>),
    /// Nodes: which are there, which wait, why one has no lease.
    #[command(subcommand)]
    Node(NodeCommand),
    /// Endorsement keys (EKs) of TPMs that may join without being asked about.
    #[command(subcommand)]
    Ek(EkCommand),
    /// Owners: who answers for a workload.
    #[command(subcommand)]
    Owner(OwnerCommand),
    /// Destinations: what credentials are for.
    #[command(subcommand)]
    Destination(DestinationCommand),
    /// Workloads: which identities there are, on which nodes, for which processes.
    #[command(subcommand)]
    Workload(WorkloadCommand),
    /// Makes the registry what files in a directory say, after showing what that would change.
    ///
    /// All of it in one transaction, or nothing. What isn't declared stays, but for --prune; a suspension and an
    /// owner's leave stay until a file says otherwise. Applied twice, the second time there is nothing to change.
    #[command(after_help = super::declared::EXAMPLE)]
    Apply(Apply),
    /// Writes the registry into files that `apply` reads: the same registry, the same bytes.
    Export(Export),
    /// Every identity: where, whose, what for, how its node stands, what it holds; instead of a spreadsheet.
    ///
    /// One row for each workload on each node it may run on, made from the store as it is now.
    Inventory,
    /// Reference values: what a node must have booted, and what may run on it.
    #[command(subcommand)]
    Reference(ReferenceCommand),
    /// Policy: bundles of rules that decide who gets which credential, their tests, and why not.
    #[command(subcommand, after_help = super::policy::EXAMPLE)]
    Policy(super::policy::PolicyCommand),
    /// Decisions: each with its inputs, to be looked at and made again.
    #[command(subcommand)]
    Decision(super::policy::DecisionCommand),
    /// Approvals: what is sensitive is asked for by one and approved by another, for a time.
    #[command(subcommand)]
    Approval(super::governance::ApprovalCommand),
    /// Exceptions: a workload is let off a rule, with a reason, a ticket and an end.
    #[command(subcommand)]
    Exception(super::governance::ExceptionCommand),
    /// Reviews: what somebody should look at.
    #[command(subcommand)]
    Review(super::governance::ReviewCommand),
    /// Tasks: work that has credentials of its own, and how it ended.
    #[command(subcommand)]
    Task(super::task::TaskCommand),
    /// How many exceptions there are, how old they are, and whether they get fewer.
    Debt,
    /// What a framework asks, the question to this server that answers it, and the answer now.
    ///
    /// A report proves what this server knows, no more; a control that it has nothing to say about says that,
    /// and so does one whose words were not compared with its publisher's. Exit code 3 if one needs attention.
    Report {
        /// nhi10, agentic, maestro, ai-rmf or csf2.
        #[arg(long)]
        framework: String,
    },
    /// Operators: who may administer over the network.
    #[command(subcommand)]
    Operator(super::operator::OperatorCommand),
    /// The trust domain's CAs and their rotation.
    #[command(subcommand)]
    Ca(CaCommand),
    /// Takes something back, now: a node, a workload, an owner's workloads, a credential, a task.
    #[command(subcommand)]
    Revoke(RevokeCommand),
    /// Revocations that were made: who was told, who acknowledged, who has proven it.
    #[command(subcommand)]
    Revocation(RevocationCommand),
    /// The record of what was decided, released and ended: shown, exported, verified, joined.
    #[command(subcommand)]
    Audit(AuditCommand),
}

/// Commands about CAs.
#[derive(Clone, Debug, Subcommand)]
pub enum CaCommand {
    /// Shows the CAs: the hash that agents pin, the certificates, how long each is needed.
    Show,
    /// Publishes the next CA in the trust bundle; it signs nothing yet.
    Prepare,
    /// Makes the published CA the one that signs. The one before stays in the bundle while needed.
    ///
    /// The server does both by itself, at half and three quarters of a CA's life.
    Rotate {
        /// Doesn't wait until every node has had the time to learn of the new CA.
        #[arg(long)]
        early: bool,
    },
    /// Takes a CA out of the trust bundle now: everything that it signed is worth nothing any more.
    ///
    /// For a CA key that somebody else has. The active CA is replaced at once; nodes notice within seconds,
    /// enrol again by themselves and fetch new credentials. Relying parties refuse what the old CA signed
    /// as soon as they have the new bundle, and everything else too until then.
    Remove {
        /// The CA: the start of a `hash` or `key_id` that `ca show` prints, at least 8 digits.
        ca: String,
        /// Says that this is meant.
        #[arg(long, required = true)]
        break_glass: bool,
        /// Why; it is recorded.
        #[arg(long)]
        reason: String,
    },
    /// Writes a CA's certificate revocation list (RFC 5280), DER: revoked certificates whose time isn't over.
    ///
    /// The listener serves the same at GET /v1/crl and /v1/crl/KEY-ID.
    Crl {
        /// The CA, as in `ca remove`; otherwise the active one.
        #[arg(long)]
        ca: Option<String>,
        /// Where to.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_workload_needs_owner_purpose_place_and_selector() {
        let full = [
            "leasehold-server",
            "workload",
            "add",
            "--id",
            "spiffe://example.org/a",
            "--owner",
            "o",
            "--purpose",
            "p",
            "--node",
            "abcdef",
            "--selector",
            "unix:uid:1",
        ];
        Cli::try_parse_from(full).unwrap();
        for without in [3, 5, 7, 9, 11] {
            let args: Vec<_> = full
                .iter()
                .enumerate()
                .filter(|(at, _)| *at != without && *at != without + 1)
                .map(|(_, a)| a)
                .collect();
            assert!(Cli::try_parse_from(args).is_err(), "without {}", full[without]);
        }
        let both = full.iter().chain(&["--node-group", "g"]);
        assert!(Cli::try_parse_from(both).is_err());
    }
}
