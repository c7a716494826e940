//! `leasehold-server node …`, `ek …`, `owner …`, `destination …` and `workload …`: who is who, and
//! who answers for it.

mod workload;

use std::path::PathBuf;

use clap::Subcommand;

use super::client;
use super::revoke::{self, Revocation};
use crate::codes::Refusal;
use crate::control_plane::admin::Command;
use crate::control_plane::admin::registrations::eks::StatedEk;
use crate::control_plane::registry::destinations::Destination;
use crate::control_plane::registry::owners::{Kind, Stated};
use crate::control_plane::revocation::plan;

pub use workload::WorkloadCommand;

/// Commands about nodes. NODE is a node's id or the start of it (at least 6 digits).
#[derive(Clone, Debug, Subcommand)]
pub enum NodeCommand {
    /// Lists all nodes.
    List,
    /// Shows one node with its lease and its latest verified quote.
    Show {
        /// The node.
        node: String,
    },
    /// Admits a waiting node: its TPM is genuine or known to you, and it may attest.
    ///
    /// Compare the id with the one that `leasehold-agent status` prints on the machine itself.
    Approve {
        /// The node.
        node: String,
        /// Puts it in this group; workloads can be registered for a group.
        #[arg(long)]
        group: Option<String>,
        /// The environment it belongs to, one of `registry.environments` in the server's configuration.
        #[arg(long)]
        environment: Option<String>,
        /// Accepts that the TPM's reset count or clock went back: after a TPM was rightly cleared.
        ///
        /// Otherwise that is how a copied or rolled-back TPM shows.
        #[arg(long)]
        accept_counts: bool,
    },
    /// Changes a node's group or environment. What it may not hold there any more ends.
    #[command(group(clap::ArgGroup::new("what").required(true).multiple(true).args(["group", "environment"])))]
    Set {
        /// The node.
        node: String,
        /// The group it is in from now on.
        #[arg(long)]
        group: Option<String>,
        /// The environment it belongs to from now on.
        #[arg(long)]
        environment: Option<String>,
    },
    /// As `revoke node`.
    Revoke(Revocation),
    /// Says step by step why a node has, or has not, a lease, and what would change that.
    ///
    /// Exit code 0 if it has one, 3 if a step is missing, 4 if its measurements are refused.
    Explain {
        /// The node.
        node: String,
    },
}

/// Commands about EKs.
#[derive(Clone, Debug, Subcommand)]
pub enum EkCommand {
    /// Names an EK: a node with it is graded `listed` and joins when it enrols.
    #[command(group(clap::ArgGroup::new("ek").required(true).args(["name", "cert", "public"])))]
    Add {
        /// The EK's TPM name in hexadecimal: 000b and the SHA-256 of its public area.
        #[arg(long, value_name = "HEX")]
        name: Option<String>,
        /// The EK's certificate, DER or PEM.
        #[arg(long, value_name = "FILE")]
        cert: Option<PathBuf>,
        /// The EK's public area, TPMT_PUBLIC or TPM2B_PUBLIC.
        #[arg(long, value_name = "FILE")]
        public: Option<PathBuf>,
        /// Your words for it, e.g. an inventory number.
        #[arg(long)]
        label: String,
        /// The group its node is put in.
        #[arg(long)]
        group: Option<String>,
        /// The environment its node belongs to.
        #[arg(long, default_value = "")]
        environment: String,
    },
    /// Lists the named EKs.
    List,
    /// Removes one; a node that joined by it stays.
    Remove {
        /// The value that `ek list` shows.
        value: String,
    },
}

/// How somebody leaves.
const LEAVING: &str = "Examples:\n\n  \
    leasehold-server owner add alice --kind person --contact alice@example.org\n  \
    leasehold-server owner retire alice --to team-payments --reason 'left the company'\n  \
    leasehold-server owner retire alice --reason 'left the company'     # suspends what she answered for\n";

/// Commands about owners.
#[derive(Clone, Debug, Subcommand)]
#[command(after_help = LEAVING)]
pub enum OwnerCommand {
    /// Adds an owner.
    Add {
        /// Its name, e.g. a team's.
        name: String,
        /// How to reach it.
        #[arg(long, default_value = "")]
        contact: String,
        /// What it is: teams stay when people leave.
        #[arg(long, value_enum, default_value_t)]
        kind: Kind,
        /// It left once and is back. What it answered for before doesn't come back by that.
        #[arg(long)]
        again: bool,
    },
    /// Changes how an owner is reached, or what it is.
    #[command(group(clap::ArgGroup::new("what").required(true).multiple(true).args(["contact", "kind"])))]
    Set {
        /// The owner.
        name: String,
        /// How to reach it.
        #[arg(long)]
        contact: Option<String>,
        /// What it is.
        #[arg(long, value_enum)]
        kind: Option<Kind>,
    },
    /// Retires an owner: each of its workloads goes to another one, or is suspended, all at once.
    ///
    /// What a suspended workload was issued ends, and its nodes withdraw it within seconds. Safe to repeat.
    Retire {
        /// The owner.
        name: String,
        /// Who answers for its workloads from now on.
        #[arg(long, value_name = "OWNER", conflicts_with = "suspend")]
        to: Option<String>,
        /// Suspends them, until somebody answers for them and resumes them: so it is without --to, too.
        #[arg(long)]
        suspend: bool,
        /// Why; it is recorded.
        #[arg(long)]
        reason: String,
    },
    /// Shows an owner and what it answers for.
    Show {
        /// The owner.
        name: String,
    },
    /// Lists the owners.
    List,
}

/// Commands about destinations: names that registrations, callers and policies use for what a credential is for.
#[derive(Clone, Debug, Subcommand)]
pub enum DestinationCommand {
    /// Adds a destination.
    Add {
        /// Its name, e.g. `ledger-db`.
        name: String,
        /// The environment it belongs to; only workloads and nodes of the same one can reach it.
        #[arg(long, default_value = "")]
        environment: String,
        /// Words on it.
        #[arg(long, default_value = "")]
        description: String,
    },
    /// Lists the destinations.
    List,
    /// Removes one that no workload names any more.
    Remove {
        /// Its name.
        name: String,
    },
}

/// The admin command of one about nodes.
pub fn node(command: NodeCommand) -> Command {
    match command {
        NodeCommand::List => Command::NodeList,
        NodeCommand::Show { node } => Command::NodeShow { node },
        NodeCommand::Explain { node } => Command::NodeExplain { node },
        NodeCommand::Approve { node, group, environment, accept_counts } => {
            Command::NodeApprove { node, group, environment, accept_counts }
        }
        NodeCommand::Set { node, group, environment } => Command::NodeSet { node, group, environment },
        // Carried out as `revoke node`, which can explain and wait.
        NodeCommand::Revoke(stated) => revoke::request(plan::Kind::Node, stated, None),
    }
}

/// The admin command of one about EKs.
///
/// # Errors
/// [`crate::codes::ADMIN_INVALID`] for a file that can't be read.
pub fn ek(command: EkCommand) -> Result<Command, Refusal> {
    Ok(match command {
        EkCommand::Add { name, cert, public, label, group, environment } => Command::EkAdd(StatedEk {
            name,
            certificate: cert.map(|path| client::read_certificate(&path)).transpose()?,
            public: public.map(|path| client::read_hex(&path)).transpose()?,
            label,
            group,
            environment,
        }),
        EkCommand::List => Command::EkList,
        EkCommand::Remove { value } => Command::EkRemove { value },
    })
}

/// The admin command of one about owners.
pub fn owner(command: OwnerCommand) -> Command {
    match command {
        OwnerCommand::Add { name, contact, kind, again } => Command::OwnerAdd(Stated { name, contact, kind, again }),
        OwnerCommand::Set { name, contact, kind } => Command::OwnerSet { name, contact, kind },
        OwnerCommand::Retire { name, to, suspend: _, reason } => Command::OwnerRetire { name, to, reason },
        OwnerCommand::Show { name } => Command::OwnerShow { name },
        OwnerCommand::List => Command::OwnerList,
    }
}

/// The admin command of one about destinations.
pub fn destination(command: DestinationCommand) -> Command {
    match command {
        DestinationCommand::Add { name, environment, description } => {
            Command::DestinationAdd(Destination { name, environment, description })
        }
        DestinationCommand::List => Command::DestinationList,
        DestinationCommand::Remove { name } => Command::DestinationRemove { name },
    }
}

/// The admin command of one about workloads.
pub fn workload(command: WorkloadCommand) -> Command {
    workload::request(command)
}
