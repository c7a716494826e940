//! `leasehold-server apply` and `export`: the registry as files.

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::Value;

use super::args::Shared;
use super::client::Client;
use super::{confirmed, print};
use crate::codes::exit::{DONE, FAILED};
use crate::codes::{self, Refusal};
use crate::control_plane::admin::Command;
use crate::control_plane::registry::declared::SourceFile;
use crate::output::say;

/// What such a file looks like.
pub const EXAMPLE: &str = "A file (any number of *.toml; each may hold all of it):\n\n  \
    [[owner]]\n  \
    name = \"team-payments\"        # contact, kind = \"person\"|\"team\", retired = true|false\n\n  \
    [[destination]]\n  \
    name = \"ledger-db\"            # environment, description\n\n  \
    [[ek]]\n  \
    name = \"000b…\"                # or key = \"…\"; label, group, environment\n  \
    label = \"rack 7\"\n\n  \
    [[node]]\n  \
    id = \"3f9a02…\"                # group, environment\n\n  \
    [[workload]]\n  \
    id = \"spiffe://example.org/prod/settle\"\n  \
    owner = \"team-payments\"\n  \
    purpose = \"settlement\"        # description, tier, node|node_group, ttl_seconds, audiences, destinations, roles,\n  \
    node_group = \"edge\"           # third_party, interactive, hint, suspended = \"why\"|false\n  \
    selectors = [\"unix:uid:1000\"]\n\n\
    `leasehold-server export DIR` writes what there is in this form.\n";

/// `apply`.
#[derive(Clone, Debug, Args)]
pub struct Apply {
    /// The directory; its *.toml files are read, in the order of their names.
    pub dir: PathBuf,
    /// Shows the plan and changes nothing.
    #[arg(long, conflicts_with = "yes")]
    pub plan: bool,
    /// Doesn't ask.
    #[arg(long)]
    pub yes: bool,
    /// Also takes away what isn't declared: workloads, destinations and EKs are removed, owners leave. Nodes stay.
    #[arg(long)]
    pub prune: bool,
}

/// `export`.
#[derive(Clone, Debug, Args)]
pub struct Export {
    /// The directory; it is made if it isn't there.
    pub dir: PathBuf,
    /// Overwrites files of before.
    #[arg(long)]
    pub force: bool,
}

/// Shows what would change, asks, and does exactly that.
///
/// # Errors
/// The server's refusals; [`codes::ADMIN_INVALID`] for a directory without a file, and when nobody can be asked.
pub fn apply(cli: &Shared, client: &Client, arguments: &Apply) -> Result<u8, Refusal> {
    let (files, prune) = (read(&arguments.dir)?, arguments.prune);
    let plan = client.call(&Command::DeclarationPlan { files: files.clone(), prune })?;
    let steps = plan.get("steps").and_then(Value::as_array).map_or(0, Vec::len);
    if arguments.plan || steps == 0 {
        show(&plan, cli.json);
        return Ok(DONE);
    }
    if !arguments.yes || !cli.json {
        show(&plan, cli.json);
    }
    if !arguments.yes && !confirmed(cli, "Do this?")? {
        return Ok(FAILED);
    }
    let fingerprint = plan.get("fingerprint").and_then(Value::as_str).unwrap_or_default().to_owned();
    let done = client.call(&Command::DeclarationApply { files, prune, fingerprint })?;
    match cli.json {
        true => print::facts(&done, true),
        false => say!("done: {steps} steps"),
    }
    Ok(DONE)
}

/// Writes the registry into files.
///
/// # Errors
/// [`codes::ADMIN_INVALID`] for a file that is there already or can't be written.
pub fn export(cli: &Shared, client: &Client, arguments: &Export) -> Result<u8, Refusal> {
    let facts = client.call(&Command::DeclarationExport)?;
    let files: Vec<SourceFile> = serde_json::from_value(facts.get("files").cloned().unwrap_or_default())
        .map_err(|e| Refusal::new(codes::PROTOCOL_MALFORMED, e.to_string()))?;
    let failed = |path: &Path, what: String| Refusal::new(codes::ADMIN_INVALID, what).at(path.display().to_string());
    let dir = &arguments.dir;
    std::fs::create_dir_all(dir).map_err(|e| failed(dir, e.to_string()))?;
    // Others in there would be read by the next `apply` as if they had been exported.
    if let Some(other) = toml_files(dir)?.first().filter(|_| !arguments.force) {
        return Err(failed(other, "there are files already".to_owned()).expected("an empty directory, or --force"));
    }
    for file in &files {
        // The server says what they are called, not where they go.
        if Path::new(&file.name).file_name().is_none_or(|name| name != file.name.as_str()) {
            return Err(Refusal::new(codes::PROTOCOL_MALFORMED, "a file that isn't of this directory")
                .at(file.name.escape_debug().to_string()));
        }
        let path = dir.join(&file.name);
        std::fs::write(&path, &file.text).map_err(|e| failed(&path, e.to_string()))?;
    }
    match cli.json {
        true => print::facts(&facts, true),
        false => files.iter().for_each(|file| say!("{}", dir.join(&file.name).display())),
    }
    Ok(DONE)
}

fn read(dir: &Path) -> Result<Vec<SourceFile>, Refusal> {
    let failed = |path: &Path, what: String| Refusal::new(codes::ADMIN_INVALID, what).at(path.display().to_string());
    let files = toml_files(dir)?;
    if files.is_empty() {
        return Err(failed(dir, "no file is in it".to_owned()).expected("*.toml; see `apply --help`"));
    }
    let read = |path: PathBuf| match std::fs::read_to_string(&path) {
        Ok(text) => Ok(SourceFile { name: path.display().to_string(), text }),
        Err(error) => Err(failed(&path, error.to_string())),
    };
    files.into_iter().map(read).collect()
}

/// The files of a directory that end in `.toml`, by name.
fn toml_files(dir: &Path) -> Result<Vec<PathBuf>, Refusal> {
    let failed = |e: std::io::Error| Refusal::new(codes::ADMIN_INVALID, e.to_string()).at(dir.display().to_string());
    let entries = std::fs::read_dir(dir).map_err(failed)?;
    let mut files: Vec<PathBuf> =
        entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>().map_err(failed)?;
    files.retain(|file| file.is_file() && file.extension().is_some_and(|extension| extension == "toml"));
    files.sort();
    Ok(files)
}

fn show(plan: &Value, json: bool) {
    if json {
        return print::facts(plan, true);
    }
    let steps = plan.get("steps").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    if steps.is_empty() {
        say!("nothing to change");
    }
    for step in steps {
        let text = |key: &str| print::plain(step.get(key).and_then(Value::as_str).unwrap_or_default());
        say!("{:9} {} {}: {}", text("action"), text("kind"), text("name"), text("reason"));
        for (key, before, after) in differences(step) {
            say!("            {}: {} -> {}", print::plain(key), print::cell(before), print::cell(after));
        }
    }
}

/// The keys that differ, for something that was there and is there.
fn differences(step: &Value) -> Vec<(&str, &Value, &Value)> {
    let (Some(before), Some(after)) = (step["before"].as_object(), step["after"].as_object()) else {
        return Vec::new();
    };
    let keys: std::collections::BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let both = keys
        .into_iter()
        .map(|key| (key.as_str(), before.get(key).unwrap_or(&Value::Null), after.get(key).unwrap_or(&Value::Null)));
    both.filter(|(_, before, after)| before != after).collect()
}
