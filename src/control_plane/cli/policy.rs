//! `leasehold-server policy` and `leasehold-server decision`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::{Subcommand, ValueEnum};
use serde_json::{Value, json};

use super::args::Shared;
use super::client::Client;
use super::print;
use crate::codes::exit::{CONTRAINDICATED, DONE, FAILED};
use crate::codes::{self, Refusal};
use crate::control_plane::admin::Command;
use crate::control_plane::policy::{self, Action, Asked, Bundle, Content};
use crate::control_plane::reference::{files, key};
use crate::output::{part, say};
use crate::secret::write_atomically;

/// A first policy.
pub const EXAMPLE: &str = "A first bundle (policies/web.cedar):\n\n  \
    @id(\"web\") @ttl(\"300s\")\n  \
    permit (principal in Role::\"web\", action, resource)\n  \
    when { context.evidence.age_seconds <= 120 };\n\n\
    Then: leasehold-server policy check policies && leasehold-server policy apply policies\n";

/// Commands about policy.
#[derive(Clone, Debug, Subcommand)]
pub enum PolicyCommand {
    /// Validates a directory's policies and runs its tests. Needs no server.
    ///
    /// DIR has `*.cedar` files and, under `tests/`, `*.toml` files. Nothing else may be in it but a README.
    Check {
        /// The directory.
        dir: PathBuf,
    },
    /// Makes one document of a directory, to be signed and applied. Needs no server.
    Build {
        /// The directory.
        dir: PathBuf,
        /// The bundle's version: more than that of every bundle before.
        #[arg(long, value_name = "N")]
        version: u64,
        /// Where to write it.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Signs a bundle with a policy key, which `reference keygen` makes. Needs no server.
    ///
    /// The first to sign is its author, others approve it. Its tests run before.
    Sign {
        /// The bundle, as `policy build` or another `policy sign` wrote it.
        file: PathBuf,
        /// The private key.
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
        /// The signed bundle; default: FILE's name, ending in `.cose`.
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Puts a bundle in force, once its tests hold; the same again changes nothing.
    ///
    /// What is live is held to it at once. A directory gets the next version; it is taken only where
    /// `policy.keys` is empty, for nobody signed it.
    Apply {
        /// The bundle, or a directory.
        #[arg(value_name = "FILE|DIR")]
        bundle: PathBuf,
    },
    /// Shows a bundle with its policies: the one in force, unless a version is named.
    Show {
        /// The version.
        #[arg(long, value_name = "N")]
        version: Option<u64>,
    },
    /// Lists all bundles that ever were in force.
    List,
    /// Prints the schema that policies keep to: who asks, for what, and all that is known then.
    Schema {
        /// Prints the built-in guardrails instead, which no bundle lifts.
        #[arg(long)]
        guardrails: bool,
    },
    /// Says whether a workload would get a credential now, and if not what stands in its way.
    ///
    /// Of each policy in the way it names the single changes that would lift it. Nothing is issued and
    /// nothing kept. Exit code 0 if it would be permitted, 4 if not.
    WhyNot {
        /// The workload's SPIFFE ID.
        #[arg(long, value_name = "SPIFFE-ID")]
        workload: String,
        /// The node it would run on.
        #[arg(long)]
        node: String,
        /// What it would ask for.
        #[arg(long, value_enum, default_value_t)]
        action: Asking,
        /// Whom a token would be for; may be repeated.
        #[arg(long)]
        audience: Vec<String>,
        /// Towards what, by a registered name.
        #[arg(long)]
        destination: Option<String>,
        /// For a task of this intent.
        #[arg(long)]
        intent: Option<String>,
    },
}

/// Commands about decisions.
#[derive(Clone, Debug, Subcommand)]
pub enum DecisionCommand {
    /// Shows a decision: its inputs, the policies it follows from, and whether it comes to the same again.
    ///
    /// Exit code 1 if it doesn't.
    Show {
        /// Its id, as answers and the record have it; at least the first 8 digits.
        id: String,
    },
    /// Lists decisions, newest first.
    List {
        /// Of this workload.
        #[arg(long, value_name = "SPIFFE-ID")]
        workload: Option<String>,
        /// Of this node.
        #[arg(long)]
        node: Option<String>,
        /// Refusals only.
        #[arg(long)]
        denied: bool,
        /// Not older than this: RFC 3339.
        #[arg(long, value_name = "TIME")]
        since: Option<String>,
        /// At most so many.
        #[arg(long, short = 'n', default_value_t = 50)]
        lines: u64,
    },
    /// Makes kept decisions again and says how many come to the same. Exit code 1 if one doesn't.
    Replay {
        /// Every one that is kept.
        #[arg(long, required = true)]
        all: bool,
    },
}

/// What is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
pub enum Asking {
    /// An X.509-SVID.
    #[default]
    X509,
    /// A JWT-SVID.
    Jwt,
}

/// Carries out a command that needs no server; gives back the others.
///
/// # Errors
/// The refusal for the operator.
pub fn offline(cli: &Shared, command: PolicyCommand) -> Result<Result<u8, PolicyCommand>, Refusal> {
    match command {
        PolicyCommand::Check { dir } => {
            let (bundle, passed) = tested(&dir, 1)?;
            let facts = json!({
                "schema": 1, "policies": bundle.rules.policies().len(), "tests": passed.tests,
                "properties": passed.properties, "decisions": passed.decisions, "warnings": bundle.rules.warnings,
            });
            print::facts(&facts, cli.json);
        }
        PolicyCommand::Build { dir, version, out } => {
            let (bundle, _) = tested(&dir, version)?;
            written(cli, &bundle, &out, None)?;
        }
        PolicyCommand::Sign { file, key, out } => {
            let key = key::load(&key)?;
            let bundle = Bundle::read(&files::read(&file, policy::BUNDLE_LIMIT as u64)?, &Default::default())?;
            bundle.test()?;
            let out = out.unwrap_or_else(|| file.with_extension("cose"));
            written(cli, &bundle.signed_by(&key)?, &out, Some(key::id(&key)?))?;
        }
        PolicyCommand::Schema { guardrails } => {
            let text = if guardrails { policy::GUARDRAILS } else { policy::SCHEMA };
            match cli.json {
                true => print::facts(&json!({ "schema": 1, "text": text }), true),
                false => part(format_args!("{text}")),
            }
        }
        command => return Ok(Err(command)),
    }
    Ok(Ok(DONE))
}

/// Carries out a command on the server.
///
/// # Errors
/// The server's refusal.
pub fn run(cli: &Shared, client: &Client, command: PolicyCommand) -> Result<u8, Refusal> {
    let request = match command {
        PolicyCommand::Apply { bundle } if bundle.is_dir() => {
            let (policies, tests) = directory(&bundle)?;
            Command::PolicyApplyFiles { policies, tests }
        }
        PolicyCommand::Apply { bundle } => {
            Command::PolicyApply { document: hex::encode(files::read(&bundle, policy::BUNDLE_LIMIT as u64)?) }
        }
        PolicyCommand::Show { version } => return show(cli, client, version),
        PolicyCommand::List => Command::PolicyList,
        PolicyCommand::WhyNot { workload, node, action, audience, destination, intent } => {
            let action = match action {
                Asking::X509 => Action::X509,
                Asking::Jwt => Action::Jwt,
            };
            let asked = Asked { workload, node, action, audience, destination, intent };
            return why_not(cli, client, asked);
        }
        _ => return Err(Refusal::new(codes::ADMIN_INVALID, "BUG: this command is carried out elsewhere")),
    };
    print::facts(&client.call(&request)?, cli.json);
    Ok(DONE)
}

/// Carries out a command about decisions.
///
/// # Errors
/// The server's refusal.
#[expect(clippy::indexing_slicing, reason = "a member that is absent from a JSON value reads as null")]
pub fn decision(cli: &Shared, client: &Client, command: DecisionCommand) -> Result<u8, Refusal> {
    let facts = match command {
        DecisionCommand::Show { id } => {
            let facts = client.call(&Command::DecisionShow { id })?;
            print::facts(&facts, cli.json);
            return Ok(if facts["replay"]["same"] == Value::Bool(true) { DONE } else { FAILED });
        }
        DecisionCommand::List { workload, node, denied, since, lines } => {
            client.call(&Command::DecisionList { workload, node, denied, since, limit: lines })?
        }
        DecisionCommand::Replay { all: _ } => return replay(cli, client),
    };
    print::facts(&facts, cli.json);
    Ok(DONE)
}

#[expect(clippy::indexing_slicing, reason = "a member that is absent from a JSON value reads as null")]
fn replay(cli: &Shared, client: &Client) -> Result<u8, Refusal> {
    let (mut decisions, mut same, mut others, mut after) = (0, 0, Vec::new(), 0);
    loop {
        let facts = client.call(&Command::DecisionReplay { after })?;
        decisions += facts["decisions"].as_u64().unwrap_or_default();
        same += facts["same"].as_u64().unwrap_or_default();
        others.extend(facts["others"].as_array().into_iter().flatten().cloned());
        match facts["next"].as_i64() {
            Some(next) => after = next,
            None => break,
        }
    }
    print::facts(&json!({ "schema": 1, "decisions": decisions, "same": same, "others": others }), cli.json);
    Ok(if decisions == same { DONE } else { FAILED })
}

fn show(cli: &Shared, client: &Client, version: Option<u64>) -> Result<u8, Refusal> {
    let mut facts = client.call(&Command::PolicyShow { version })?;
    if let (false, Some(members)) = (cli.json, facts.as_object_mut()) {
        // For scripts: people read the texts.
        members.remove("document");
    }
    print::facts(&facts, cli.json);
    Ok(DONE)
}

#[expect(clippy::indexing_slicing, reason = "a member that is absent from a JSON value reads as null")]
fn why_not(cli: &Shared, client: &Client, asked: Asked) -> Result<u8, Refusal> {
    let facts = client.call(&Command::PolicyWhyNot(asked))?;
    let permitted = facts["permitted"] == Value::Bool(true);
    if cli.json {
        print::facts(&facts, true);
    } else {
        explain(&facts, permitted);
    }
    Ok(if permitted { DONE } else { CONTRAINDICATED })
}

/// Why not, in words.
#[expect(clippy::indexing_slicing, reason = "a member that is absent from a JSON value reads as null")]
fn explain(facts: &Value, permitted: bool) {
    let text = |value: &Value| print::plain(value.as_str().unwrap_or_default());
    let list = |value: &Value| {
        let items: Vec<String> = value.as_array().into_iter().flatten().map(text).collect();
        items.join(", ")
    };
    say!("{} for {} on node {}", text(&facts["action"]), text(&facts["workload"]), text(&facts["node"]));
    if permitted {
        say!("  permitted for {} s, by {}", facts["ttl_seconds"], list(&facts["policies"]));
        return;
    }
    say!("  denied: {}: {}", text(&facts["refusal"]["code"]), text(&facts["refusal"]["found"]));
    if let Some(expected) =
        facts["refusal"]["expected"].as_str().filter(|it| !it.is_empty() && facts["in_the_way"] == json!([]))
    {
        say!("  expected: {}", print::plain(expected));
    }
    for obstacle in facts["in_the_way"].as_array().into_iter().flatten() {
        let says = text(&obstacle["says"]);
        let says = if says.is_empty() { says } else { format!(": {says}") };
        say!("  in the way: {} ({}){says}", text(&obstacle["policy"]), text(&obstacle["why"]));
        for change in obstacle["would_be_lifted_by"].as_array().into_iter().flatten() {
            say!("    lifted by {}", text(change));
        }
    }
    let alone = facts["any_of_these_alone"].as_array().into_iter().flatten();
    alone.for_each(|change| say!("  would be permitted with {}", text(change)));
}

/// The directory as a bundle whose tests hold.
fn tested(dir: &Path, version: u64) -> Result<(Bundle, policy::Passed), Refusal> {
    let (policies, tests) = directory(dir)?;
    let bundle = Bundle::unsigned(Content { schema: 1, version, policies, tests })?;
    let passed = bundle.test()?;
    Ok((bundle, passed))
}

type Files = BTreeMap<String, String>;

/// The policies and the tests of a directory. Every file must be one of them, or a README: what is
/// named wrongly would be missing.
fn directory(dir: &Path) -> Result<(Files, Files), Refusal> {
    let (policies, others) = texts(dir, ".cedar")?;
    let (tests, stray) = match others.iter().any(|name| name == "tests") {
        true => texts(&dir.join("tests"), ".toml")?,
        false => (Files::new(), Vec::new()),
    };
    let stray =
        others.into_iter().filter(|name| name != "tests").chain(stray.iter().map(|name| format!("tests/{name}")));
    match stray.into_iter().find(|name| !name.starts_with("README")) {
        Some(name) => Err(Refusal::new(codes::POLICY_BUNDLE, format!("`{}`", name.escape_debug()))
            .at(dir.display().to_string())
            .expected("`*.cedar`, `tests/*.toml`, README")),
        None => Ok((policies, tests)),
    }
}

/// The files of this ending, and the names of all else.
fn texts(dir: &Path, ending: &str) -> Result<(Files, Vec<String>), Refusal> {
    let failed = |what: String| Refusal::new(codes::POLICY_BUNDLE, what);
    let entries = std::fs::read_dir(dir).map_err(|e| failed(e.to_string()).at(dir.display().to_string()))?;
    let (mut found, mut others) = (Files::new(), Vec::new());
    for entry in entries {
        let path = entry.map_err(|e| failed(e.to_string()).at(dir.display().to_string()))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if !policy::is_name(&name, ending) || !path.is_file() {
            others.push(name);
            continue;
        }
        let bytes = files::read(&path, policy::BUNDLE_LIMIT as u64)?;
        let text =
            String::from_utf8(bytes).map_err(|_| failed("it isn't text".to_owned()).at(path.display().to_string()))?;
        found.insert(name, text);
    }
    others.sort();
    Ok((found, others))
}

fn written(cli: &Shared, bundle: &Bundle, out: &Path, signed_by: Option<String>) -> Result<(), Refusal> {
    write_atomically(out, &bundle.bytes)
        .map_err(|e| Refusal::new(codes::ADMIN_INVALID, e.to_string()).at(out.display().to_string()))?;
    let facts = policy::Facts::of(bundle);
    print::facts(&json!({ "schema": 1, "bundle": facts, "out": out, "signed_by": signed_by }), cli.json);
    Ok(())
}
