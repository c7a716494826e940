//! Commands about reference sets as documents.

use std::sync::Arc;

use serde_json::json;

use super::commands::{Outcome, only};
use crate::clock::WallTime;
use crate::codes::{self, Refusal};
use crate::control_plane::basis::Basis;
use crate::control_plane::effects::Effects;
use crate::control_plane::events::Audience;
use crate::control_plane::reference::{difference, learn};
use crate::control_plane::references::documents::{self, Facts, Target};
use crate::control_plane::registry::{names, nodes};
use crate::control_plane::settings::Settings;
use crate::control_plane::store::Transaction;
use crate::control_plane::{audit, leases, logs, references, replay};
use crate::identity::NodeId;
use crate::protocol::Event;
use crate::verify::appraisal::{ImaLog, Logs};
use crate::verify::profile::Source;
use crate::verify::references::{BootState, ReferenceSet};

/// Puts a document in force, if the policy keys signed it; its nodes attest anew.
///
/// Leases on the version before stand until then: most new versions accept what the one before did.
///
/// # Errors
/// As [`Policy::read`](crate::verify::references::Policy::read), [`Basis::new`] and [`documents::import`]; [`codes::ADMIN_INVALID`] for another bank than
/// the one this server asks for.
pub fn import(tx: &Transaction<'_>, document: &str, settings: &Settings, now: WallTime) -> Result<Outcome, Refusal> {
    let bank = settings.selection.bank();
    let bytes = hex::decode(document).map_err(|_| Refusal::new(codes::ADMIN_INVALID, "it is not hexadecimal"))?;
    let document = settings.policy.read(&bytes)?;
    if document.set.bank != bank {
        return Err(Refusal::new(codes::ADMIN_INVALID, document.set.bank.to_string())
            .at("bank")
            .expected(format!("{bank}, which this server's `pcrs` names")));
    }
    // A set that no node could be held against would lock out those that it is assigned to.
    Basis::new(Arc::new(document.clone()), settings)?;
    let changed = documents::import(tx, &document, now)?;
    let mut effects = Effects::default();
    let facts = Facts::of(&document);
    if changed {
        let signers: Vec<String> = document.signers.iter().map(hex::encode).collect();
        let detail = json!({
            "name": facts.name, "version": facts.version, "digest": facts.digest, "states": facts.states,
            "claimed": facts.signers, "verified": signers,
        });
        audit::done(tx, now, "reference.imported", None, detail)?;
        effects = attest(tx, &documents::nodes_of(tx, &document.set.name)?)?;
        // A restored store would put the version before in force again.
        effects.taken = true;
    }
    Ok((json!({ "schema": 1, "changed": changed, "set": facts }), effects))
}

/// A set learnt from a node's logs: to be looked at, signed and imported. Nothing is changed by it.
///
/// # Errors
/// [`codes::ADMIN_UNKNOWN`] when the node sent no quote or logs, or of another boot than its quote;
/// those of [`learn::learn`].
pub fn draft(
    tx: &Transaction<'_>,
    settings: &Settings,
    node: &str,
    profile: &str,
    name: Option<&str>,
    state: Option<&str>,
) -> Result<Outcome, Refusal> {
    let node = nodes::resolve(tx, node)?;
    let profile = settings.profile(profile).map_err(|refusal| refusal.at("--profile"))?;
    let quote = references::latest_quote(tx, node.id)?.ok_or_else(|| references::no_quote(node.id))?;
    let stored = logs::stored(tx, node.id)?.filter(|stored| stored.boot_id == quote.boot_id);
    // A platform without logs has values only, which may need a signature all the same.
    if stored.is_none() && profile.pcrs.values().any(|rules| rules.source == Source::Logs) {
        return Err(Refusal::new(codes::ADMIN_UNKNOWN, "it sent no logs in the boot of its latest quote")
            .at(format!("node {}", node.id))
            .expected("an agent that sends them, or a profile of values only"));
    }
    let seen = stored.as_ref().map(|stored| Logs {
        boot: stored.boot.as_deref(),
        userspace: stored.userspace.as_deref(),
        ima: (!stored.ima.is_empty()).then_some(ImaLog { from: None, rest: &stored.ima }),
    });
    let learnt = learn::learn(&profile, &quote.pcrs, &seen.unwrap_or_default())?;
    let assigned = documents::assigned(tx, &node)?;
    let name = name.map(str::to_owned).or(assigned).unwrap_or_else(|| "learnt".to_owned());
    let before = documents::find(tx, &name, None).ok();
    let set = ReferenceSet {
        name,
        version: before.as_ref().map_or(1, |before| before.set.version.saturating_add(1)),
        profile: profile.name.clone(),
        bank: quote.pcrs.selection().bank(),
        states: vec![BootState { name: state.unwrap_or("learnt").to_owned(), ..learnt.state }],
        runtime: learnt.runtime,
    }
    .checked()?;
    let differences = before.map(|before| difference::sets(&before.set, &set)).unwrap_or_default();
    Ok(only(json!({
        "schema": 1, "node": node.id.to_string(), "grade": node.grade, "verdict": quote.verdict,
        "notes": learnt.notes, "differences": differences, "toml": set.to_toml(),
    })))
}

/// A stored set with its document, in hexadecimal.
///
/// # Errors
/// [`codes::ADMIN_UNKNOWN`].
pub fn show(tx: &Transaction<'_>, name: &str, version: Option<u64>) -> Result<Outcome, Refusal> {
    let document = documents::find(tx, name, version)?;
    Ok(only(json!({ "schema": 1, "set": Facts::of(&document), "document": hex::encode(&document.bytes) })))
}

/// Holds a node or a group against a set.
///
/// # Errors
/// [`codes::ADMIN_UNKNOWN`], [`codes::ADMIN_INVALID`].
pub fn assign(
    tx: &Transaction<'_>,
    name: &str,
    node: Option<&str>,
    group: Option<&str>,
    now: WallTime,
) -> Result<Outcome, Refusal> {
    let target = target(tx, node, group)?;
    let changed = documents::assign(tx, name, &target, now)?;
    let mut effects = Effects::default();
    if changed {
        audit::done(tx, now, "reference.assigned", node_of(&target), detail(name, &target))?;
        effects = ended(tx, &concerned(tx, &target)?)?;
    }
    Ok((json!({ "schema": 1, "changed": changed, "assigned": detail(name, &target) }), effects))
}

/// Undoes it: the node falls back to its group's set, or to the values learnt from itself.
///
/// # Errors
/// [`codes::ADMIN_UNKNOWN`] when there is no assignment, [`codes::ADMIN_INVALID`].
pub fn unassign(
    tx: &Transaction<'_>,
    node: Option<&str>,
    group: Option<&str>,
    now: WallTime,
) -> Result<Outcome, Refusal> {
    let target = target(tx, node, group)?;
    if !documents::unassign(tx, &target)? {
        return Err(Refusal::new(codes::ADMIN_UNKNOWN, "no set is assigned to it"));
    }
    audit::done(tx, now, "reference.unassigned", node_of(&target), detail("", &target))?;
    let effects = ended(tx, &concerned(tx, &target)?)?;
    Ok((json!({ "schema": 1, "changed": true, "assigned": null }), effects))
}

/// Retires a set: the leases of its nodes end, and they get none until there is a newer version.
///
/// # Errors
/// [`codes::ADMIN_UNKNOWN`].
pub fn retire(tx: &Transaction<'_>, name: &str, now: WallTime) -> Result<Outcome, Refusal> {
    documents::retire(tx, name, now)?;
    let nodes = documents::nodes_of(tx, name)?;
    audit::done(tx, now, "reference.retired", None, json!({ "name": name, "nodes": nodes.len() }))?;
    Ok((json!({ "schema": 1, "changed": true, "name": name, "nodes": nodes.len() }), ended(tx, &nodes)?))
}

fn target(tx: &Transaction<'_>, node: Option<&str>, group: Option<&str>) -> Result<Target, Refusal> {
    match (node, group) {
        (Some(node), None) => Ok(Target::Node(nodes::resolve(tx, node)?.id)),
        (None, Some(group)) => {
            names::plain("--node-group", group)?;
            Ok(Target::Group(group.to_owned()))
        }
        _ => Err(Refusal::new(codes::ADMIN_INVALID, "no target, or two").expected("one of --node, --node-group")),
    }
}

/// Whom an assignment of this target means: a node's own goes before its group's.
fn concerned(tx: &Transaction<'_>, target: &Target) -> Result<Vec<NodeId>, Refusal> {
    match target {
        Target::Node(node) => Ok(vec![*node]),
        Target::Group(group) => {
            let mut concerned = Vec::new();
            for node in nodes::of_group(tx, group)? {
                if !documents::has_own(tx, node)? {
                    concerned.push(node);
                }
            }
            Ok(concerned)
        }
    }
}

const fn node_of(target: &Target) -> Option<NodeId> {
    match target {
        Target::Node(node) => Some(*node),
        Target::Group(_) => None,
    }
}

fn detail(name: &str, target: &Target) -> serde_json::Value {
    match target {
        Target::Node(node) => json!({ "name": name, "node": node.to_string() }),
        Target::Group(group) => json!({ "name": name, "node_group": group }),
    }
}

/// The nodes attest anew; what was answered before is no longer repeated.
fn attest(tx: &Transaction<'_>, nodes: &[NodeId]) -> Result<Effects, Refusal> {
    for node in nodes {
        replay::forget(tx, Some(*node))?;
    }
    let push = nodes.iter().map(|node| (Audience::Node(*node), Event::Attest)).collect();
    Ok(Effects { push, ..Effects::default() })
}

/// The nodes' leases were on other reference values, and end with them.
fn ended(tx: &Transaction<'_>, nodes: &[NodeId]) -> Result<Effects, Refusal> {
    for node in nodes {
        leases::end(tx, *node, codes::VERIFY_NO_REFERENCE)?;
    }
    Ok(Effects { taken: true, ..attest(tx, nodes)? })
}
