//! Commands about owners.

use serde_json::{Value, json};

use super::felt;
use crate::clock::WallTime;
use crate::codes::Refusal;
use crate::control_plane::admin::commands::{Outcome, only};
use crate::control_plane::audit;
use crate::control_plane::effects::Effects;
use crate::control_plane::registry::names;
use crate::control_plane::registry::owners::{self, Kind, Retired, Stated};
use crate::control_plane::registry::workloads::{self, Change};
use crate::control_plane::store::Transaction;
use crate::protocol::Event;

/// Adds an owner.
///
/// # Errors
/// [`crate::codes::ADMIN_INVALID`], [`crate::codes::ADMIN_CONFLICT`].
pub fn add(tx: &Transaction<'_>, stated: Stated, now: WallTime) -> Result<Outcome, Refusal> {
    let stated = stated.checked()?;
    let changed = owners::add(tx, &stated, now)?;
    if changed {
        let what = if stated.again { "owner.returned" } else { "owner.added" };
        let detail = json!({ "owner": stated.name, "contact": stated.contact, "kind": stated.kind });
        audit::done(tx, now, what, None, detail)?;
    }
    Ok(only(facts(tx, &stated.name, changed)?))
}

/// Changes how an owner is reached, or what it is.
///
/// # Errors
/// [`crate::codes::ADMIN_UNKNOWN`], [`crate::codes::ADMIN_INVALID`] for one that left.
pub fn set(
    tx: &Transaction<'_>,
    name: &str,
    contact: Option<String>,
    kind: Option<Kind>,
    now: WallTime,
) -> Result<Outcome, Refusal> {
    let before = owners::serving(tx, name)?;
    let stated = Stated {
        name: before.name.clone(),
        contact: contact.unwrap_or_else(|| before.contact.clone()),
        kind: kind.unwrap_or(before.kind),
        again: false,
    }
    .checked()?;
    let changed = stated.contact != before.contact || stated.kind != before.kind;
    if changed {
        owners::put(tx, &stated, now)?;
        let detail = json!({
            "owner": name,
            "before": { "contact": before.contact, "kind": before.kind },
            "after": { "contact": stated.contact, "kind": stated.kind },
        });
        audit::done(tx, now, "owner.changed", None, detail)?;
    }
    Ok(only(facts(tx, name, changed)?))
}

/// Retires an owner: its workloads go to another one, or are suspended, in this one transaction.
///
/// # Errors
/// As [`owners::retire`].
pub fn retire(
    tx: &Transaction<'_>,
    name: &str,
    to: Option<&str>,
    reason: &str,
    now: WallTime,
) -> Result<Outcome, Refusal> {
    names::text("--reason", reason)?;
    let Retired { newly, changes } = owners::retire(tx, name, to, reason, now)?;
    let listed = |wanted: fn(&Change) -> bool| -> Vec<String> {
        changes.iter().filter(|change| wanted(change)).filter_map(|c| c.id().map(ToString::to_string)).collect()
    };
    let suspended = listed(Change::suspends);
    let reassigned = listed(|change| !change.suspends());
    let changed = newly || !changes.is_empty();
    let mut effects = Effects::default();
    if changed {
        let detail = json!({
            "owner": name, "reason": reason, "to": to, "reassigned": reassigned, "suspended": suspended,
        });
        audit::done(tx, now, "owner.retired", None, detail)?;
        effects = felt(tx, &changes, &format!("its owner `{name}` left: {reason}"), now)?;
        effects.taken = true;
    }
    let told = effects.push.iter().filter(|(_, event)| *event == Event::Attest).count();
    let mut facts = facts(tx, name, changed)?;
    if let Some(facts) = facts.as_object_mut() {
        facts.insert("reassigned".to_owned(), json!(reassigned));
        facts.insert("suspended".to_owned(), json!(suspended));
        facts.insert("nodes_told".to_owned(), json!(told));
    }
    Ok((facts, effects))
}

/// All owners.
///
/// # Errors
/// [`crate::codes::STORE_FAILED`].
pub fn list(tx: &Transaction<'_>) -> Result<Outcome, Refusal> {
    Ok(only(json!({ "schema": 1, "owners": owners::all(tx)? })))
}

/// An owner and what it answers for.
///
/// # Errors
/// [`crate::codes::ADMIN_UNKNOWN`].
pub fn show(tx: &Transaction<'_>, name: &str) -> Result<Outcome, Refusal> {
    let owner = owners::existing(tx, name)?;
    let answers_for: Vec<Value> = workloads::of_owner(tx, name)?
        .iter()
        .map(|workload| {
            json!({
                "id": workload.id.to_string(), "purpose": workload.purpose, "tier": workload.counts_as_tier(),
                "suspended": workload.suspended.as_ref().map(|suspended| &suspended.reason),
            })
        })
        .collect();
    Ok(only(json!({ "schema": 1, "owner": owner, "answers_for": answers_for })))
}

fn facts(tx: &Transaction<'_>, name: &str, changed: bool) -> Result<Value, Refusal> {
    Ok(json!({ "schema": 1, "changed": changed, "owner": owners::find(tx, name)? }))
}
