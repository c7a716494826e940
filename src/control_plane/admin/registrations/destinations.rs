//! Commands about destinations.

use serde_json::json;

use crate::clock::WallTime;
use crate::codes::{self, Refusal};
use crate::control_plane::admin::commands::{Outcome, only};
use crate::control_plane::audit;
use crate::control_plane::effects::Effects;
use crate::control_plane::registry::destinations::{self, Destination};
use crate::control_plane::registry::rules::Rules;
use crate::control_plane::store::Transaction;

/// Adds a destination. The same again changes nothing.
///
/// # Errors
/// [`codes::ADMIN_INVALID`]; [`codes::ADMIN_CONFLICT`] when it is registered differently.
pub fn add(tx: &Transaction<'_>, stated: Destination, rules: &Rules, now: WallTime) -> Result<Outcome, Refusal> {
    let stated = stated.checked(rules)?;
    let known = destinations::find(tx, &stated.name)?;
    if known.as_ref().is_some_and(|known| *known != stated) {
        return Err(Refusal::new(codes::ADMIN_CONFLICT, "it is registered differently")
            .at(format!("destination {}", stated.name))
            .expected("the same words, or `destination remove` first"));
    }
    let changed = known.is_none();
    if changed {
        destinations::put(tx, &stated, now)?;
        audit::done(tx, now, "destination.added", None, json!({ "destination": stated }))?;
    }
    Ok(only(json!({ "schema": 1, "changed": changed, "destination": stated })))
}

/// All destinations.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn list(tx: &Transaction<'_>) -> Result<Outcome, Refusal> {
    Ok(only(json!({ "schema": 1, "destinations": destinations::all(tx)? })))
}

/// Removes a destination that no workload names.
///
/// # Errors
/// [`codes::ADMIN_UNKNOWN`], [`codes::ADMIN_CONFLICT`].
pub fn remove(tx: &Transaction<'_>, name: &str, now: WallTime) -> Result<Outcome, Refusal> {
    destinations::remove(tx, name)?;
    audit::done(tx, now, "destination.removed", None, json!({ "destination": name }))?;
    let facts = json!({ "schema": 1, "changed": true, "destination": null });
    Ok((facts, Effects { taken: true, ..Effects::default() }))
}
