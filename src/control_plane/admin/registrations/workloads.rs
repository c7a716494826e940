//! Commands about workloads.

use serde_json::{Value, json};

use super::{felt, subject};
use crate::clock::WallTime;
use crate::codes::{self, Refusal};
use crate::control_plane::admin::commands::{Outcome, only};
use crate::control_plane::audit;
use crate::control_plane::credentials::ledger::{self, Of};
use crate::control_plane::registry::names;
use crate::control_plane::registry::owners;
use crate::control_plane::registry::rules::Rules;
use crate::control_plane::registry::workloads::{self, Change, Changes, Facts, Stated, Workload};
use crate::control_plane::store::Transaction;
use crate::identity::SpiffeId;

/// Registers a workload; the nodes it is for hear of it at once.
///
/// # Errors
/// As [`Workload::check`] and [`workloads::add`].
pub fn add(tx: &Transaction<'_>, stated: Stated, rules: &Rules, now: WallTime) -> Result<Outcome, Refusal> {
    let workload = Workload::check(tx, stated, rules)?;
    let changed = workloads::add(tx, &workload, now)?;
    let facts = shown(tx, &workload.id)?;
    let id = workload.id.to_string();
    let mut changes = Vec::new();
    if changed {
        audit::about(tx, now, "workload.added", &subject(&id), json!({ "workload": &facts }))?;
        changes.push(Change { before: None, after: Some(workload) });
    }
    Ok((json!({ "schema": 1, "changed": changed, "workload": facts }), felt(tx, &changes, "", now)?))
}

/// Changes a workload in place. Where that changes its scope, what it was issued ends.
///
/// # Errors
/// As [`Workload::check`] and [`workloads::put`].
pub fn set(tx: &Transaction<'_>, changes: Changes, rules: &Rules, now: WallTime) -> Result<Outcome, Refusal> {
    let before = workloads::existing(tx, &changes.id)?;
    let after = Workload::check(tx, changes.of(before.stated()), rules)?;
    let after = Workload { suspended: before.suspended.clone(), ..after };
    changed(tx, "workload.changed", Change::between(before, after), "its registration changed", now)
}

/// Suspends a workload: it keeps its registration and gets nothing.
///
/// # Errors
/// [`codes::ADMIN_UNKNOWN`], [`codes::ADMIN_INVALID`].
pub fn suspend(tx: &Transaction<'_>, id: &str, reason: &str, now: WallTime) -> Result<Outcome, Refusal> {
    names::text("--reason", reason)?;
    let before = workloads::existing(tx, id)?;
    let after = before.suspended(reason, now);
    changed(tx, "workload.suspended", Change::between(before, after), reason, now)
}

/// Lets a suspended workload have credentials again.
///
/// # Errors
/// [`codes::ADMIN_UNKNOWN`]; [`codes::ADMIN_INVALID`] while nobody answers for it.
pub fn resume(tx: &Transaction<'_>, id: &str, now: WallTime) -> Result<Outcome, Refusal> {
    let before = workloads::existing(tx, id)?;
    owners::serving(tx, &before.owner)
        .map_err(|refusal| refusal.expected("`workload set --owner` first: somebody must answer for it"))?;
    let after = Workload { suspended: None, ..before.clone() };
    changed(tx, "workload.resumed", Change::between(before, after), "", now)
}

/// All workloads.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn list(tx: &Transaction<'_>) -> Result<Outcome, Refusal> {
    Ok(only(json!({ "schema": 1, "workloads": workloads::shown(tx, None)? })))
}

/// One workload, who answers for it, and what it holds.
///
/// # Errors
/// [`codes::ADMIN_UNKNOWN`].
pub fn show(tx: &Transaction<'_>, id: &str) -> Result<Outcome, Refusal> {
    let workload = workloads::existing(tx, id)?;
    let live: Vec<Value> = ledger::live(tx, Of::Workload(&workload.id.to_string()))?
        .iter()
        .map(|credential| {
            json!({
                "id": credential.id, "kind": credential.kind.as_str(), "node": credential.node.to_string(),
                "task": credential.task, "decision": credential.decision,
                "issued": credential.issued_at.to_string(), "until": credential.not_after.to_string(),
            })
        })
        .collect();
    let facts = json!({
        "schema": 1, "workload": shown(tx, &workload.id)?, "answers_for_it": owners::find(tx, &workload.owner)?,
        "credentials": live,
    });
    Ok(only(facts))
}

/// Removes a workload (a revocation if a reason is given): nothing is issued for it any more, and
/// its nodes withdraw what they hold.
///
/// # Errors
/// [`codes::ADMIN_UNKNOWN`].
pub fn remove(tx: &Transaction<'_>, id: &str, reason: Option<&str>, now: WallTime) -> Result<Outcome, Refusal> {
    if let Some(reason) = reason {
        names::text("--reason", reason)?;
    }
    let workload = workloads::remove(tx, id)?;
    let what = if reason.is_some() { "workload.revoked" } else { "workload.removed" };
    let detail = json!({ "workload": id, "owner": workload.owner, "reason": reason });
    audit::about(tx, now, what, &subject(&workload.id.to_string()), detail)?;
    let changes = [Change { before: Some(workload), after: None }];
    let effects = felt(tx, &changes, reason.unwrap_or("it was removed"), now)?;
    Ok((json!({ "schema": 1, "changed": true, "workload": null }), effects))
}

/// Writes a change, with the record of before and after.
fn changed(tx: &Transaction<'_>, what: &str, change: Change, reason: &str, now: WallTime) -> Result<Outcome, Refusal> {
    let (Some(before), Some(after)) = (&change.before, &change.after) else {
        return Err(Refusal::new(codes::STORE_FAILED, "BUG: nothing to change"));
    };
    let id = after.id.clone();
    if before == after {
        return Ok(only(json!({ "schema": 1, "changed": false, "workload": shown(tx, &id)? })));
    }
    let was = shown(tx, &id)?;
    workloads::put(tx, after, now)?;
    let facts = shown(tx, &id)?;
    let detail = json!({ "reason": reason, "before": was, "after": facts });
    audit::about(tx, now, what, &subject(&id.to_string()), detail)?;
    let effects = felt(tx, std::slice::from_ref(&change), reason, now)?;
    Ok((json!({ "schema": 1, "changed": true, "workload": facts }), effects))
}

fn shown(tx: &Transaction<'_>, id: &SpiffeId) -> Result<Option<Facts>, Refusal> {
    Ok(workloads::shown(tx, Some(id))?.pop())
}
