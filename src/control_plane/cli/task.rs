//! `leasehold-server task …`.

use clap::Subcommand;

use crate::control_plane::admin::Command;

/// How they come and go.
const LIFE: &str = "A process begins a task at its agent's Workload API socket, and gets credentials for it alone. The task\n\
    ends when the process does, or becomes another user or program, or isn't heard of in time; when the node\n\
    drifts; or when somebody revokes it: `leasehold-server revoke task ID --reason …`.\n";

/// Commands about tasks.
#[derive(Clone, Debug, Subcommand)]
#[command(after_help = LIFE)]
pub enum TaskCommand {
    /// Lists the live tasks, the latest first; at most 1000.
    List {
        /// Those that ended, too.
        #[arg(long)]
        all: bool,
    },
    /// Shows every task of an id: what it was for, how it ended, which of its credentials are live.
    Show {
        /// The task's id.
        id: String,
    },
}

/// The admin command of a command line.
pub fn request(command: TaskCommand) -> Command {
    match command {
        TaskCommand::List { all } => Command::TaskList { all },
        TaskCommand::Show { id } => Command::TaskShow { id },
    }
}
