//! The registry as files that say all of it, byte for byte the same for the same registry.
//!
//! Written by hand, so that two exports differ in the lines that differ.

use std::fmt::Write;

use super::SourceFile;
use crate::codes::Refusal;
use crate::config::quoted;
use crate::control_plane::registry::eks::{self, Kind};
use crate::control_plane::registry::nodes::{self, State};
use crate::control_plane::registry::workloads::{self, Target, Workload};
use crate::control_plane::registry::{destinations, owners};
use crate::control_plane::store::Transaction;

/// What the files begin with.
const HEAD: &str = "# Written by `leasehold-server export`; `leasehold-server apply` reads it.\n";

/// The files: one for each kind of thing of which there is any.
///
/// # Errors
/// [`crate::codes::STORE_FAILED`].
pub fn export(tx: &Transaction<'_>) -> Result<Vec<SourceFile>, Refusal> {
    let texts = [
        ("owners.toml", owners_text(tx)?),
        ("destinations.toml", destinations_text(tx)?),
        ("eks.toml", eks_text(tx)?),
        ("nodes.toml", nodes_text(tx)?),
        ("workloads.toml", workloads_text(tx)?),
    ];
    let some = texts.into_iter().filter(|(_, text)| !text.is_empty());
    Ok(some.map(|(name, text)| SourceFile { name: name.to_owned(), text: format!("{HEAD}{text}") }).collect())
}

fn owners_text(tx: &Transaction<'_>) -> Result<String, Refusal> {
    let mut text = Text::default();
    for owner in owners::all(tx)? {
        text.table("owner");
        text.text("name", &owner.name);
        text.some("contact", &owner.contact);
        text.text("kind", owner.kind.as_str());
        text.flag("retired", owner.retired.is_some());
    }
    Ok(text.0)
}

fn destinations_text(tx: &Transaction<'_>) -> Result<String, Refusal> {
    let mut text = Text::default();
    for facts in destinations::all(tx)? {
        text.table("destination");
        text.text("name", &facts.destination.name);
        text.some("environment", &facts.destination.environment);
        text.some("description", &facts.destination.description);
    }
    Ok(text.0)
}

fn eks_text(tx: &Transaction<'_>) -> Result<String, Refusal> {
    let mut eks = eks::all(tx)?;
    // When each was added is no part of what is declared.
    eks.sort_by(|one, other| one.value.cmp(&other.value));
    let mut text = Text::default();
    for ek in eks {
        text.table("ek");
        let key = match ek.kind {
            Kind::Name => "name",
            Kind::Key => "key",
        };
        text.text(key, &ek.value);
        text.text("label", &ek.label);
        text.some("group", ek.group.as_deref().unwrap_or_default());
        text.some("environment", &ek.environment);
    }
    Ok(text.0)
}

fn nodes_text(tx: &Transaction<'_>) -> Result<String, Refusal> {
    let mut text = Text::default();
    for node in nodes::all(tx)?.iter().filter(|node| node.state != State::Revoked) {
        if node.group.is_some() || !node.environment.is_empty() {
            text.table("node");
            text.text("id", &node.id.to_string());
            text.some("group", node.group.as_deref().unwrap_or_default());
            text.some("environment", &node.environment);
        }
    }
    Ok(text.0)
}

fn workloads_text(tx: &Transaction<'_>) -> Result<String, Refusal> {
    let mut text = Text::default();
    for workload in workloads::all(tx)? {
        workload_text(&mut text, &workload);
    }
    Ok(text.0)
}

fn workload_text(text: &mut Text, workload: &Workload) {
    text.table("workload");
    text.text("id", &workload.id.to_string());
    text.text("owner", &workload.owner);
    text.text("purpose", &workload.purpose);
    text.some("description", &workload.description);
    text.number("tier", workload.tier.map(u64::from));
    match &workload.target {
        Target::Node(node) => text.text("node", &node.to_string()),
        Target::Group(group) => text.text("node_group", group),
    }
    text.list("selectors", workload.selectors.iter());
    text.number("ttl_seconds", workload.ttl_seconds);
    text.list("audiences", workload.audiences.iter());
    text.list("destinations", workload.destinations.iter());
    text.list("roles", workload.roles.iter());
    text.flag("third_party", workload.third_party);
    text.flag("interactive", workload.interactive);
    text.some("hint", &workload.hint);
    text.some("suspended", workload.suspended.as_ref().map(|suspended| suspended.reason.as_str()).unwrap_or_default());
}

/// TOML as it grows. Writing to a string can't fail.
#[derive(Default)]
struct Text(String);

impl Text {
    fn table(&mut self, name: &str) {
        let _ = writeln!(self.0, "\n[[{name}]]");
    }

    fn text(&mut self, key: &str, value: &str) {
        let _ = writeln!(self.0, "{key} = {}", quoted(value));
    }

    /// Unless it is empty.
    fn some(&mut self, key: &str, value: &str) {
        if !value.is_empty() {
            self.text(key, value);
        }
    }

    fn number(&mut self, key: &str, value: Option<u64>) {
        if let Some(value) = value {
            let _ = writeln!(self.0, "{key} = {value}");
        }
    }

    fn flag(&mut self, key: &str, value: bool) {
        if value {
            let _ = writeln!(self.0, "{key} = true");
        }
    }

    fn list<'a>(&mut self, key: &str, values: impl Iterator<Item = &'a String>) {
        let values: Vec<String> = values.map(|value| quoted(value)).collect();
        if !values.is_empty() {
            let _ = writeln!(self.0, "{key} = [{}]", values.join(", "));
        }
    }
}
