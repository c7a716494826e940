//! `leasehold-server operator`: who may administer over the network.

use clap::Subcommand;

use crate::control_plane::admin::Command;

/// Commands about operators.
#[derive(Clone, Debug, Subcommand)]
pub enum OperatorCommand {
    /// Gives a workload's identity a role: whoever holds its SVID may give commands over the network.
    ///
    /// Roles: viewer (looks), approver (looks and approves), operator (daily work), admin (everything).
    /// Register the workload first, for the machine and the user the operator works as, with --interactive.
    Add {
        /// Its SPIFFE ID.
        id: String,
        /// viewer, approver, operator or admin.
        #[arg(long)]
        role: String,
        /// The owner (a person or a team) that this operator is, or belongs to: nobody approves what is
        /// their own, so approvers need one.
        #[arg(long)]
        owner: Option<String>,
    },
    /// Lists the operators.
    List,
    /// Takes the role away: the next command is refused. The workload stays registered.
    Remove {
        /// Its SPIFFE ID.
        id: String,
    },
}

/// The admin command of a command line.
pub fn request(command: OperatorCommand) -> Command {
    match command {
        OperatorCommand::Add { id, role, owner } => Command::OperatorAdd { id, role, owner },
        OperatorCommand::List => Command::OperatorList,
        OperatorCommand::Remove { id } => Command::OperatorRemove { id },
    }
}
