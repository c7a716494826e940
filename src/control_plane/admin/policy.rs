//! Commands about policy bundles and decisions.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};

use super::commands::{Outcome, only};
use crate::clock::WallTime;
use crate::codes::{self, Refusal};
use crate::control_plane::audit;
use crate::control_plane::effects::Effects;
use crate::control_plane::events::Audience;
use crate::control_plane::policy::{self, Asked, Bundle, Content, Filter, Replayed};
use crate::control_plane::registry::nodes;
use crate::control_plane::server::Shared;
use crate::control_plane::store::Transaction;
use crate::protocol::Event;

/// How many decisions are made again in one transaction: everybody else waits meanwhile.
const REPLAYED: u64 = 500;

/// Policies and tests of a directory, by file name.
pub type Files = BTreeMap<String, String>;

/// Reads a bundle and runs its tests, before and outside of the transaction that puts it in force.
///
/// # Errors
/// Those of [`Bundle::read`] and [`Bundle::test`].
pub async fn tested(shared: &Arc<Shared>, document: String) -> Result<(), Refusal> {
    let shared = shared.clone();
    let work = move || read(&shared, &document)?.test().map(drop);
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Refusal::new(codes::POLICY_BUNDLE, format!("BUG: its tests ended early: {error}")))?
}

/// Puts a tested bundle in force: what is live is held to it at once, and every node asks anew.
///
/// # Errors
/// [`codes::POLICY_BUNDLE`], [`codes::POLICY_BUNDLE_SIGNATURE`], [`codes::POLICY_BUNDLE_ORDER`].
pub fn apply(tx: &Transaction<'_>, shared: &Shared, document: &str, now: WallTime) -> Result<Outcome, Refusal> {
    put(tx, shared, &read(shared, document)?, now)
}

/// The same for a directory, as the next version, where nobody must sign.
///
/// # Errors
/// As [`apply`].
pub fn apply_files(
    tx: &Transaction<'_>,
    shared: &Shared,
    policies: Files,
    tests: Files,
    now: WallTime,
) -> Result<Outcome, Refusal> {
    unsigned_is_enough(shared)?;
    let highest = policy::highest(tx, &shared.bundles)?;
    if let Ok(in_force) = shared.bundles.in_force(tx, &shared.settings.policy) {
        let content = &in_force.content;
        if content.version > 0 && content.policies == policies && content.tests == tests {
            let facts = json!({ "schema": 1, "changed": false, "bundle": policy::Facts::of(&in_force) });
            return Ok((facts, Effects { policy: Some(content.version), ..Effects::default() }));
        }
    }
    let version = highest.saturating_add(1);
    put(tx, shared, &Bundle::unsigned(Content { schema: 1, version, policies, tests })?, now)
}

/// Tests a directory as [`tested`] does a bundle.
///
/// # Errors
/// As [`tested`].
pub async fn tested_files(shared: &Arc<Shared>, policies: Files, tests: Files) -> Result<(), Refusal> {
    unsigned_is_enough(shared)?;
    let work = move || Bundle::unsigned(Content { schema: 1, version: 1, policies, tests })?.test().map(drop);
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Refusal::new(codes::POLICY_BUNDLE, format!("BUG: its tests ended early: {error}")))?
}

/// All bundles, and what is in force.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn list(tx: &Transaction<'_>) -> Result<Outcome, Refusal> {
    Ok(only(json!({ "schema": 1, "bundles": policy::all_bundles(tx)? })))
}

/// One bundle: the one in force, or of this version.
///
/// # Errors
/// [`codes::ADMIN_UNKNOWN`]; [`codes::POLICY_FAILED`] when the one in force can't be used.
pub fn show(tx: &Transaction<'_>, shared: &Shared, version: Option<u64>) -> Result<Outcome, Refusal> {
    let stored = policy::all_bundles(tx)?;
    let bundle = match version {
        None => shared.bundles.in_force(tx, &shared.settings.policy)?,
        Some(version) => Arc::new(Bundle::read(&policy::document(tx, version)?, &Default::default())?),
    };
    let facts = stored
        .into_iter()
        .find(|facts| facts.version == bundle.content.version)
        .unwrap_or_else(|| policy::Facts::of(&bundle));
    Ok(only(json!({
        "schema": 1, "bundle": facts, "policies": bundle.content.policies, "tests": bundle.content.tests,
        "document": hex::encode(&bundle.bytes),
    })))
}

/// Why not.
///
/// # Errors
/// As [`policy::explain`].
pub fn why_not(tx: &Transaction<'_>, shared: &Shared, asked: &Asked, now: WallTime) -> Result<Outcome, Refusal> {
    Ok(only(policy::explain(tx, shared, asked, now)?))
}

/// One decision, made again beside it.
///
/// # Errors
/// [`codes::ADMIN_UNKNOWN`].
pub fn decision_show(tx: &Transaction<'_>, shared: &Shared, id: &str) -> Result<Outcome, Refusal> {
    Ok(only(policy::shown(tx, shared, id)?))
}

/// Decisions, newest first.
///
/// # Errors
/// [`codes::ADMIN_UNKNOWN`] for a node that isn't known, [`codes::ADMIN_INVALID`].
pub fn decision_list(
    tx: &Transaction<'_>,
    workload: Option<&str>,
    node: Option<&str>,
    denied: bool,
    since: Option<&str>,
    limit: u64,
) -> Result<Outcome, Refusal> {
    let node = node.map(|node| nodes::resolve(tx, node)).transpose()?.map(|node| node.id);
    let since = since.map(WallTime::parse).transpose().map_err(|what| {
        Refusal::new(codes::ADMIN_INVALID, what).at("--since").expected("RFC 3339, e.g. 2026-12-01T00:00:00Z")
    })?;
    let decisions = policy::list(tx, &Filter { workload, node, denied, since }, limit)?;
    Ok(only(json!({ "schema": 1, "decisions": decisions })))
}

/// Makes some decisions again, from where the last call ended.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn decision_replay(tx: &Transaction<'_>, shared: &Shared, after: i64) -> Result<Outcome, Refusal> {
    let mut replayed = Replayed::default();
    let next = policy::replay(tx, &shared.bundles, after, REPLAYED, &mut replayed)?;
    let others: Vec<Value> = replayed.others.iter().map(|(id, how)| json!({ "id": id, "difference": how })).collect();
    Ok(only(json!({
        "schema": 1, "decisions": replayed.decisions, "same": replayed.same, "others": others, "next": next,
    })))
}

fn put(tx: &Transaction<'_>, shared: &Shared, bundle: &Bundle, now: WallTime) -> Result<Outcome, Refusal> {
    let changed = policy::apply(tx, &shared.bundles, &shared.settings.policy, bundle, now)?;
    let facts = policy::Facts::of(bundle);
    let mut effects = Effects { policy: Some(bundle.content.version), ..Effects::default() };
    if changed {
        audit::done(tx, now, "policy.applied", None, json!({ "bundle": facts }))?;
        // A store from before would bring the older one back.
        effects.taken = true;
        effects.push.push((Audience::All, Event::Attest));
    }
    Ok((json!({ "schema": 1, "changed": changed, "bundle": facts }), effects))
}

fn read(shared: &Shared, document: &str) -> Result<Bundle, Refusal> {
    let bytes = hex::decode(document)
        .map_err(|_| Refusal::new(codes::ADMIN_INVALID, "it is not hexadecimal").at("the bundle"))?;
    Bundle::read(&bytes, &shared.settings.policy)
}

/// A directory has no signatures: only a server without policy keys takes one.
fn unsigned_is_enough(shared: &Shared) -> Result<(), Refusal> {
    match shared.settings.policy.is_empty() {
        true => Ok(()),
        false => Err(Refusal::new(codes::POLICY_BUNDLE_SIGNATURE, "a directory, which nobody signed")
            .expected("`policy build`, then `policy sign` with the keys in `policy.keys`")),
    }
}
