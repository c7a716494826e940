//! Commands about tasks.

use serde_json::{Value, json};

use super::commands::{Outcome, only};
use crate::codes::{self, Refusal};
use crate::control_plane::credentials::ledger;
use crate::control_plane::store::Transaction;
use crate::control_plane::tasks::{self, Task};

/// Rows of a list.
const ROWS: u64 = 1000;

/// The tasks that began last, the live ones or all of them, the latest first.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn list(tx: &Transaction<'_>, all: bool) -> Result<Outcome, Refusal> {
    let rows: Vec<_> = tasks::latest(tx, None, !all, ROWS)?.iter().map(shown).collect();
    Ok(only(json!({ "schema": 1, "tasks": rows })))
}

/// Every task of this id, the latest first, with what is live of its credentials.
///
/// # Errors
/// [`codes::ADMIN_UNKNOWN`].
pub fn show(tx: &Transaction<'_>, id: &str) -> Result<Outcome, Refusal> {
    let mut rows = Vec::new();
    for task in tasks::latest(tx, Some(id), false, ROWS)? {
        let live = match task.ended {
            None => ledger::live(tx, ledger::Of::OneTask(task.node, &task.workload, &task.id))?,
            Some(_) => Vec::new(),
        };
        let live: Vec<_> = live
            .iter()
            .map(|credential| {
                json!({
                    "id": credential.id, "kind": credential.kind.as_str(), "decision": credential.decision,
                    "audience": credential.audience, "until": credential.not_after.to_string(),
                })
            })
            .collect();
        let mut row = shown(&task);
        if let Some(row) = row.as_object_mut() {
            row.insert("credentials".to_owned(), live.into());
        }
        rows.push(row);
    }
    if rows.is_empty() {
        return Err(Refusal::new(codes::ADMIN_UNKNOWN, "no task of this id began here").at(id));
    }
    Ok(only(json!({ "schema": 1, "id": id, "begun": rows })))
}

fn shown(task: &Task) -> Value {
    let ended = task.ended.as_ref();
    json!({
        "id": task.id,
        "node": task.node.to_string(),
        "workload": task.workload,
        "decision": task.decision,
        "intent": task.intent,
        "purpose": task.purpose,
        "heartbeat_seconds": task.heartbeat_seconds,
        "began": task.began_at.to_string(),
        "until": task.not_after.to_string(),
        "ended": ended.map(|(at, _, _)| at.to_string()),
        "code": ended.map(|(_, code, _)| code.as_str()),
        "reason": ended.map(|(_, _, reason)| reason),
    })
}
