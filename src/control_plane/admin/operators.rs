//! Commands about operators.

use serde_json::json;

use super::commands::{Outcome, only};
use super::roles::Actor;
use crate::clock::WallTime;
use crate::codes::{self, Refusal};
use crate::control_plane::audit;
use crate::control_plane::effects::Effects;
use crate::control_plane::registry::{operators, owners, workloads};
use crate::control_plane::store::Transaction;
use crate::identity::{SpiffeId, TrustDomain};

/// Gives a registered workload's identity a role.
///
/// # Errors
/// [`codes::ADMIN_INVALID`], [`codes::ADMIN_UNKNOWN`].
pub fn add(
    tx: &Transaction<'_>,
    id: &str,
    role: &str,
    owner: Option<&str>,
    by: &Actor,
    domain: &TrustDomain,
    now: WallTime,
) -> Result<Outcome, Refusal> {
    let at = || "the operator's id".to_owned();
    let parsed = SpiffeId::new(id).map_err(|e| Refusal::new(codes::ADMIN_INVALID, e.to_string()).at(at()))?;
    if parsed.to_string() != id || !parsed.is_member_of(domain) {
        return Err(Refusal::new(codes::ADMIN_INVALID, format!("`{}`", id.escape_debug()))
            .at(at())
            .expected(format!("spiffe://{domain}/…")));
    }
    // The certificate is a workload's: without a registration it could never be had.
    if workloads::find(tx, &parsed)?.is_none() {
        return Err(Refusal::new(codes::ADMIN_UNKNOWN, "no such workload is registered")
            .at(id.to_owned())
            .expected("`leasehold-server workload add` first, for the machine the operator works on"));
    }
    if let Some(owner) = owner
        && owners::find(tx, owner)?.is_none()
    {
        return Err(Refusal::new(codes::ADMIN_UNKNOWN, format!("no owner `{}`", owner.escape_debug()))
            .at("--owner")
            .expected("one that `leasehold-server owner list` shows"));
    }
    let known = operators::find(tx, &parsed)?.is_some();
    let changed = operators::put(tx, &parsed, role, owner, &by.name, now)?;
    if changed {
        audit::done(tx, now, "operator.added", None, json!({ "operator": id, "role": role, "owner": owner }))?;
    }
    let operator = operators::find(tx, &parsed)?;
    // A store from before would give back a role that was taken from it.
    let effects = Effects { taken: known && changed, ..Effects::default() };
    Ok((json!({ "schema": 1, "changed": changed, "operator": operator }), effects))
}

/// All operators.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn list(tx: &Transaction<'_>) -> Result<Outcome, Refusal> {
    Ok(only(json!({ "schema": 1, "operators": operators::all(tx)? })))
}

/// Takes an operator's role away; its next command is refused.
///
/// # Errors
/// [`codes::ADMIN_UNKNOWN`].
pub fn remove(tx: &Transaction<'_>, id: &str, now: WallTime) -> Result<Outcome, Refusal> {
    operators::remove(tx, id)?;
    audit::done(tx, now, "operator.removed", None, json!({ "operator": id }))?;
    let facts = json!({ "schema": 1, "changed": true, "operator": null });
    Ok((facts, Effects { taken: true, ..Effects::default() }))
}
