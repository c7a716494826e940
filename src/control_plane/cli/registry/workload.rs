//! `leasehold-server workload …`.

use clap::{Args, Subcommand};

use crate::control_plane::admin::Command;
use crate::control_plane::registry::workloads::{Changes, Stated};

/// What a registration says, at its fullest.
const EXAMPLES: &str = "Examples:\n\n  \
    leasehold-server workload add --id spiffe://example.org/web --owner shop --purpose 'serves the shop' \\\n    \
    --node 3f9a02 --selector unix:uid:1000\n  \
    leasehold-server workload add --id spiffe://example.org/prod/scanner --owner security --purpose scanning \\\n    \
    --node-group edge --selector unix:sha256:… --third-party --audience vendor.example --ttl 300\n\n\
    With `registry.environments` in the server's configuration, the path of an id begins with one of them.\n";

/// Commands about workloads.
#[derive(Clone, Debug, Subcommand)]
pub enum WorkloadCommand {
    /// Registers a workload. Its nodes hear of it at once.
    #[command(after_help = EXAMPLES)]
    Add(Box<WorkloadAdd>),
    /// Changes a workload in place; what isn't stated stays. Before and after are recorded.
    ///
    /// With another owner, purpose, place or selectors, or fewer audiences, destinations or roles, what it was
    /// issued before ends.
    Set(Box<WorkloadSet>),
    /// Suspends a workload: it gets nothing, and its nodes withdraw what they hold, until it is resumed.
    Suspend {
        /// Its SPIFFE ID.
        id: String,
        /// Why; it is recorded, and whoever asks for its credentials is told.
        #[arg(long)]
        reason: String,
    },
    /// Resumes a suspended workload, if somebody answers for it.
    Resume {
        /// Its SPIFFE ID.
        id: String,
    },
    /// Shows a workload, who answers for it, and the credentials it holds.
    Show {
        /// Its SPIFFE ID.
        id: String,
    },
    /// Lists the workloads.
    List,
    /// Removes a workload: nothing is issued for it any more, and its nodes withdraw what they hold.
    Remove {
        /// Its SPIFFE ID.
        id: String,
    },
}

/// A workload.
#[derive(Clone, Debug, Args)]
pub struct WorkloadAdd {
    /// Its SPIFFE ID, in this server's trust domain.
    #[arg(long, value_name = "SPIFFE-ID")]
    pub id: String,
    /// Who answers for it; see `owner add`.
    #[arg(long)]
    pub owner: String,
    /// What it is for, in a few words, or one of `registry.purposes` where the server has them.
    #[arg(long)]
    pub purpose: String,
    /// Further words on it.
    #[arg(long, default_value = "")]
    pub description: String,
    /// Where it may run.
    #[command(flatten)]
    pub target: WorkloadTarget,
    /// What a process must match, every one of them: unix:uid:N, unix:gid:N (effective),
    /// unix:supplementary-gid:N, unix:path:/PATH, unix:sha256:HEX (of its executable),
    /// unix:fsverity:ALGORITHM:HEX (the kernel's digest of it),
    /// systemd:unit:app.service, systemd:slice:system.slice, systemd:invocation:HEX,
    /// cgroup:path:/PATH, container:id:HEX (all 64 digits).
    #[arg(long = "selector", required = true, value_name = "TYPE:KEY:VALUE")]
    pub selectors: Vec<String>,
    /// How much depends on it: 1 (internet-facing, build systems, write access) to 4. Without one it counts as 1.
    #[arg(long)]
    pub tier: Option<u8>,
    /// Whom its tokens may be for; again for each.
    #[arg(long = "audience")]
    pub audiences: Vec<String>,
    /// A registered destination it may have credentials for; again for each.
    #[arg(long = "destination")]
    pub destinations: Vec<String>,
    /// A role that policies know; again for each.
    #[arg(long = "role")]
    pub roles: Vec<String>,
    /// Somebody else's program: it needs a digest of its executable, an audience or destination, and a short --ttl.
    #[arg(long)]
    pub third_party: bool,
    /// People may use it, too: processes of login sessions, which are refused otherwise. For trying
    /// things from a terminal, and for jobs of cron, which PAM marks as somebody's login.
    #[arg(long)]
    pub interactive: bool,
    /// The longest lifetime of its credentials in seconds, if shorter than the server's.
    #[arg(long, value_name = "SECONDS")]
    pub ttl: Option<u64>,
    /// A hint for clients with several identities.
    #[arg(long, default_value = "")]
    pub hint: String,
}

/// Where a workload may run.
#[derive(Clone, Debug, Args)]
#[group(required = true, multiple = false)]
pub struct WorkloadTarget {
    /// The node it is for …
    #[arg(long)]
    pub node: Option<String>,
    /// … or the group of nodes.
    #[arg(long)]
    pub node_group: Option<String>,
}

/// What is to be changed of a workload.
#[derive(Clone, Debug, Args)]
#[command(group(clap::ArgGroup::new("place").args(["node", "node_group"])))]
#[command(group(clap::ArgGroup::new("what").required(true).multiple(true).args([
    "owner", "purpose", "description", "node", "node_group", "selectors", "tier", "audiences", "destinations", "roles",
    "third_party", "interactive", "ttl", "hint",
])))]
pub struct WorkloadSet {
    /// Its SPIFFE ID.
    pub id: String,
    /// Who answers for it from now on.
    #[arg(long)]
    pub owner: Option<String>,
    /// What it is for.
    #[arg(long)]
    pub purpose: Option<String>,
    /// Further words; '' takes them away.
    #[arg(long)]
    pub description: Option<String>,
    /// The node it is for …
    #[arg(long)]
    pub node: Option<String>,
    /// … or the group of nodes.
    #[arg(long)]
    pub node_group: Option<String>,
    /// All its selectors, in place of those before.
    #[arg(long = "selector", value_name = "TYPE:KEY:VALUE")]
    pub selectors: Vec<String>,
    /// Its tier, 1 to 4.
    #[arg(long)]
    pub tier: Option<u8>,
    /// All its audiences; '' takes them away.
    #[arg(long = "audience")]
    pub audiences: Vec<String>,
    /// All its destinations; '' takes them away.
    #[arg(long = "destination")]
    pub destinations: Vec<String>,
    /// All its roles; '' takes them away.
    #[arg(long = "role")]
    pub roles: Vec<String>,
    /// Whether it is somebody else's program.
    #[arg(long, value_name = "true|false")]
    pub third_party: Option<bool>,
    /// Whether people's login sessions may have it.
    #[arg(long, value_name = "true|false")]
    pub interactive: Option<bool>,
    /// The longest lifetime of its credentials in seconds; 0 takes the limit away.
    #[arg(long, value_name = "SECONDS")]
    pub ttl: Option<u64>,
    /// A hint for clients with several identities; '' takes it away.
    #[arg(long)]
    pub hint: Option<String>,
}

/// The admin command.
pub fn request(command: WorkloadCommand) -> Command {
    match command {
        WorkloadCommand::Add(add) => Command::WorkloadAdd(Stated {
            id: add.id,
            owner: add.owner,
            purpose: add.purpose,
            hint: add.hint,
            ttl_seconds: add.ttl,
            node: add.target.node,
            node_group: add.target.node_group,
            selectors: add.selectors,
            description: add.description,
            tier: add.tier,
            audiences: add.audiences,
            destinations: add.destinations,
            roles: add.roles,
            third_party: add.third_party,
            interactive: add.interactive,
        }),
        WorkloadCommand::Set(set) => Command::WorkloadSet(Changes {
            id: set.id,
            owner: set.owner,
            purpose: set.purpose,
            hint: set.hint,
            ttl_seconds: set.ttl,
            node: set.node,
            node_group: set.node_group,
            selectors: set.selectors,
            description: set.description,
            tier: set.tier,
            audiences: set.audiences,
            destinations: set.destinations,
            roles: set.roles,
            third_party: set.third_party,
            interactive: set.interactive,
        }),
        WorkloadCommand::Suspend { id, reason } => Command::WorkloadSuspend { id, reason },
        WorkloadCommand::Resume { id } => Command::WorkloadResume { id },
        WorkloadCommand::Show { id } => Command::WorkloadShow { id },
        WorkloadCommand::List => Command::WorkloadList,
        WorkloadCommand::Remove { id } => Command::WorkloadRemove { id, reason: None },
    }
}
