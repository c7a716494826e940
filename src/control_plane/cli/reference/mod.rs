//! `leasehold-server reference …`: the arguments, and which of them need a running server.

mod author;
mod sources;
mod stored;

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::args::Shared;
use super::client::Client;
use crate::codes::Refusal;
use crate::control_plane::admin::Command;

pub use sources::read_document;

/// How a set comes about and into force.
const LIFE: &str = "From artefacts to a lease:\n\n  \
    leasehold-server reference from-artifacts --name edge --profile uefi-uki --uki linux.efi \\\n    \
    --out edge.toml\n  \
    leasehold-server reference keygen --out policy.key --public policy.pub.pem   # once, anywhere\n  \
    leasehold-server reference sign --key policy.key edge.toml                   # anywhere: edge.cose\n  \
    leasehold-server reference import edge.cose\n  \
    leasehold-server reference assign --name edge --node-group edge\n\n\
    Before an update:\n\n  \
    leasehold-server reference plan-update --from edge --uki new.efi --until 2026-12-01T00:00:00Z \\\n    \
    --out edge.toml\n";

/// Commands about reference values. SET is a file (TOML, a document, a CoRIM) or the name of a stored set.
#[derive(Clone, Debug, Subcommand)]
#[command(after_help = LIFE)]
pub enum ReferenceCommand {
    /// Makes the PCRs of a node's latest verified quote what it must show from now on.
    ///
    /// It shows them first, with the TPM's grade and what differs from the values so far, and asks.
    /// They are the node's own word of a good state: run this when you know that it is in one. Where
    /// `policy.keys` is configured nobody signs such values, so it is refused without --profile.
    ///
    /// With --profile a set is drafted from the node's logs instead, as TOML to be looked at, signed and
    /// imported: events rather than values, so that it serves other nodes and survives updates.
    Learn {
        /// The node.
        #[arg(long)]
        node: String,
        /// Doesn't ask.
        #[arg(long)]
        yes: bool,
        /// Drafts a set from the node's logs, read under this firmware profile.
        #[arg(long)]
        profile: Option<String>,
        /// The draft's name; default: that of the set assigned to the node.
        #[arg(long, requires = "profile")]
        name: Option<String>,
        /// The name of the draft's state.
        #[arg(long, requires = "profile")]
        state: Option<String>,
        /// Where to write the draft; otherwise to standard output.
        #[arg(long, value_name = "FILE", requires = "profile")]
        out: Option<PathBuf>,
    },
    /// Computes a set from what is installed, without having booted it.
    ///
    /// Says in words what the artefacts can't tell. Needs no server.
    FromArtifacts(Box<FromArtifacts>),
    /// Predicts the state a coming update boots into; both are accepted until a moment you name.
    ///
    /// Shows the difference event by event, and writes the next version of the set, to be signed and
    /// imported before the nodes are updated. Where a PCR can't be predicted there is no plan. Files that
    /// may run are added; those of before stay allowed until a version of the set without them.
    PlanUpdate(Box<PlanUpdate>),
    /// Makes a policy key: a set that it signed is approved. Needs no server.
    Keygen {
        /// The private key: PKCS #8 in PEM, mode 0600. It must not exist yet.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// The public key in PEM, for `policy.keys` of server.toml; printed if absent.
        #[arg(long, value_name = "FILE")]
        public: Option<PathBuf>,
    },
    /// Signs a set with a policy key: the first to sign is its author, others approve it.
    ///
    /// Needs no server, and the key need not be where the server is.
    Sign {
        /// The private key, as `reference keygen` made it.
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
        /// The set: TOML, or a document that others signed.
        #[arg(value_name = "SET")]
        set: PathBuf,
        /// The signed document; default: SET's name, ending in `.cose`.
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Puts a set in force on the server: a newer version than any before, signed as policy asks.
    #[command(alias = "apply")]
    Import {
        /// The set: a signed document, or where no policy key is configured, TOML or a CoRIM.
        #[arg(value_name = "FILE")]
        set: PathBuf,
    },
    /// Writes a set in another form.
    Export {
        /// The set.
        set: String,
        /// A CoRIM (draft-ietf-rats-corim), unsigned.
        #[arg(long, conflicts_with = "toml")]
        corim: bool,
        /// TOML, to be read or changed. The default is the document as it was signed.
        #[arg(long)]
        toml: bool,
        /// Where to.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Says what the second set accepts otherwise than the first, event by event.
    Diff {
        /// The set before.
        before: String,
        /// The set after.
        after: String,
    },
    /// Shows a set: what it is called, its states, who signed it; with --toml all of it.
    Show {
        /// The set.
        set: String,
        /// Another version of a stored set than the newest.
        #[arg(long)]
        version: Option<u64>,
        /// All of it, as TOML.
        #[arg(long)]
        toml: bool,
    },
    /// Lists all reference values, retired ones too: those learnt from a node, and the sets.
    List,
    /// Holds a node, or a group of nodes, against a set. A node's own goes before its group's.
    Assign {
        /// The stored set's name.
        #[arg(long)]
        name: String,
        /// Who.
        #[command(flatten)]
        target: Target,
    },
    /// Undoes it: the node falls back to its group's set, or to values learnt from itself.
    Unassign {
        /// Who.
        #[command(flatten)]
        target: Target,
    },
    /// Retires reference values: the leases on them end, and there are none until there are others.
    #[command(group(clap::ArgGroup::new("what").required(true).args(["node", "name"])))]
    Retire {
        /// The values learnt from this node …
        #[arg(long)]
        node: Option<String>,
        /// … or the stored set of this name.
        #[arg(long)]
        name: Option<String>,
    },
}

/// Who is held against a set.
#[derive(Clone, Debug, Args)]
#[group(required = true, multiple = false)]
pub struct Target {
    /// The node …
    #[arg(long)]
    pub node: Option<String>,
    /// … or the group of nodes.
    #[arg(long)]
    pub node_group: Option<String>,
}

/// A set from artefacts.
#[derive(Clone, Debug, Args)]
pub struct FromArtifacts {
    /// What it is computed from.
    #[command(flatten)]
    pub sources: Sources,
    /// The set's name.
    #[arg(long)]
    pub name: String,
    /// The firmware profile of the nodes it is for.
    #[arg(long)]
    pub profile: String,
    /// The PCR bank.
    #[arg(long, default_value = "sha256")]
    pub bank: String,
    /// The state's name, e.g. the kernel's version.
    #[arg(long, default_value = "installed")]
    pub state: String,
    /// The set's version: grows with every change.
    #[arg(long, default_value_t = 1)]
    pub version: u64,
    /// Where to write the TOML; otherwise to standard output.
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

/// An update.
#[derive(Clone, Debug, Args)]
pub struct PlanUpdate {
    /// The set in force: a file, or a stored set's name.
    #[arg(long, value_name = "SET")]
    pub from: String,
    /// What will be installed.
    #[command(flatten)]
    pub sources: Sources,
    /// Until when the state before is accepted, too: RFC 3339.
    #[arg(long, value_name = "TIME")]
    pub until: String,
    /// The new state's name; default: the image's file name.
    #[arg(long)]
    pub state: Option<String>,
    /// Where to write the next version as TOML; without it only the difference is shown.
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

/// Artefacts.
#[derive(Clone, Debug, Default, Args)]
pub struct Sources {
    /// A unified kernel image made with systemd's stub, signed or not.
    #[arg(long, value_name = "FILE")]
    pub uki: Option<PathBuf>,
    /// Its kernel, where the image itself isn't at hand.
    #[arg(long, value_name = "FILE", conflicts_with = "uki")]
    pub kernel: Option<PathBuf>,
    /// Its initrd.
    #[arg(long, value_name = "FILE", conflicts_with = "uki")]
    pub initrd: Option<PathBuf>,
    /// Its command line, or a file with it.
    #[arg(long, value_name = "TEXT|FILE", conflicts_with = "uki")]
    pub cmdline: Option<String>,
    /// Its os-release; `none` if it has none. Presumed, with unknown contents, if absent.
    #[arg(long, value_name = "FILE|none", conflicts_with = "uki")]
    pub osrel: Option<String>,
    /// Digests of such parts: lines of `SHA256 SIZE ROLE NAME`, the role being kernel, initrd,
    /// cmdline, osrel, uki or uki_signed.
    #[arg(long, value_name = "FILE", conflicts_with = "uki")]
    pub digests: Option<PathBuf>,
    /// Secure Boot is on. Implied by the options below.
    #[arg(long)]
    pub secure_boot: bool,
    /// Secure Boot's variables: a directory like /sys/firmware/efi/efivars, or with .esl or .auth files.
    #[arg(long, value_name = "DIR")]
    pub secure_boot_vars: Option<PathBuf>,
    /// The one certificate in db by which images may be verified.
    #[arg(long, value_name = "CERT", requires = "secure_boot_vars")]
    pub signer: Option<PathBuf>,
    /// Accepts every image that the node's own db allows, whatever is in it.
    #[arg(long, conflicts_with = "secure_boot_vars")]
    pub trust_measured_db: bool,
    /// Debian packages whose files may run.
    #[arg(long = "deb", value_name = "FILE", num_args = 1..)]
    pub debs: Vec<PathBuf>,
    /// A directory whose regular files may run, by their paths below it.
    #[arg(long, value_name = "DIR")]
    pub tree: Option<PathBuf>,
    /// Digests of files that may run, as sha256sum writes them.
    #[arg(long, value_name = "FILE")]
    pub ima_digests: Option<PathBuf>,
}

/// Runs a command.
///
/// # Errors
/// The refusal for the operator.
pub fn run(cli: &Shared, client: &Client, command: ReferenceCommand) -> Result<u8, Refusal> {
    match command {
        ReferenceCommand::Learn { node, profile: Some(profile), name, state, out, yes: _ } => {
            author::draft(cli, client, Command::ReferenceDraft { node, profile, name, state }, out.as_deref())
        }
        ReferenceCommand::Learn { node, yes, .. } => super::learn(cli, client, node, yes),
        ReferenceCommand::FromArtifacts(arguments) => author::from_artifacts(cli, &arguments),
        ReferenceCommand::PlanUpdate(arguments) => author::plan_update(cli, client, &arguments),
        ReferenceCommand::Keygen { out, public } => author::keygen(cli, &out, public.as_deref()),
        ReferenceCommand::Sign { key, set, out } => author::sign(cli, &key, &set, out),
        ReferenceCommand::Diff { before, after } => author::diff(cli, client, &before, &after),
        ReferenceCommand::Export { set, corim, toml, out } => author::export(cli, client, &set, corim, toml, &out),
        ReferenceCommand::Show { set, version, toml } => author::show(cli, client, &set, version, toml),
        command => stored::run(cli, client, command),
    }
}
