//! Commands about the registry as files.

use serde_json::{Value, json};

use super::commands::{Outcome, only};
use super::nodes;
use super::registrations::{felt, subject};
use crate::clock::WallTime;
use crate::codes::{self, Refusal};
use crate::control_plane::audit;
use crate::control_plane::effects::Effects;
use crate::control_plane::registry::declared::{self, Carried, Declaration, SourceFile, Step};
use crate::control_plane::registry::rules::Rules;
use crate::control_plane::store::Transaction;
use crate::protocol::Event;

/// What a declaration would change: it is done, and undone.
///
/// # Errors
/// As [`Declaration::read`] and [`declared::carry_out`].
pub fn plan(
    tx: &Transaction<'_>,
    files: &[SourceFile],
    prune: bool,
    rules: &Rules,
    now: WallTime,
) -> Result<Outcome, Refusal> {
    let declaration = Declaration::read(files)?;
    tx.execute_batch("SAVEPOINT plan")?;
    let carried = declared::carry_out(tx, &declaration, rules, prune, now);
    tx.execute_batch("ROLLBACK TO plan; RELEASE plan")?;
    Ok(only(facts(&carried?, false)?))
}

/// Makes the registry what is declared, if that is what was shown.
///
/// # Errors
/// As [`plan`]; [`codes::ADMIN_CONFLICT`] when it would now do something else than was shown.
pub fn apply(
    tx: &Transaction<'_>,
    files: &[SourceFile],
    prune: bool,
    fingerprint: &str,
    rules: &Rules,
    now: WallTime,
) -> Result<Outcome, Refusal> {
    let declaration = Declaration::read(files)?;
    let carried = declared::carry_out(tx, &declaration, rules, prune, now)?;
    if carried.fingerprint()? != fingerprint {
        return Err(Refusal::new(codes::ADMIN_CONFLICT, "the registry has changed since this plan was made")
            .expected("`apply` again, to see the plan as it is now"));
    }
    for step in &carried.steps {
        record(tx, step, now)?;
    }
    let mut effects = Effects::default();
    for (change, reason) in &carried.workloads {
        effects.join(felt(tx, std::slice::from_ref(change), reason, now)?);
    }
    for (before, after) in &carried.nodes {
        effects.join(nodes::moved(tx, before, after, now)?);
    }
    // What is withdrawn first, then what is to be asked for.
    effects.push.sort_by_key(|(_, event)| *event == Event::Attest);
    effects.taken |= carried.steps.iter().any(|step| ["removed", "retired"].contains(&step.action.as_str()));
    Ok((facts(&carried, true)?, effects))
}

/// The registry as files.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn export(tx: &Transaction<'_>) -> Result<Outcome, Refusal> {
    Ok(only(json!({ "schema": 1, "files": declared::export(tx)? })))
}

fn facts(carried: &Carried, applied: bool) -> Result<Value, Refusal> {
    Ok(json!({
        "schema": 1, "applied": applied, "changed": applied && !carried.steps.is_empty(),
        "fingerprint": carried.fingerprint()?, "steps": carried.steps,
    }))
}

/// The record of a step, under the name that the single command's has.
fn record(tx: &Transaction<'_>, step: &Step, now: WallTime) -> Result<(), Refusal> {
    let what = format!("{}.{}", step.kind, step.action);
    let mut detail = json!({ "reason": step.reason, "before": step.before, "after": step.after, "by_apply": true });
    if let Some(detail) = detail.as_object_mut() {
        detail.insert(step.kind.clone(), json!(step.name));
    }
    match step.kind.as_str() {
        "workload" => audit::about(tx, now, &what, &subject(&step.name), detail),
        // Where a node is put is recorded with what it loses by it.
        "node" => Ok(()),
        _ => audit::done(tx, now, &what, None, detail),
    }
}
