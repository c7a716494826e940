//! Tasks: work on a node that has credentials of its own, and how it ended.
//!
//! The node's agent watches the process; what it says here may only end a task, never keep one. A
//! task that nothing is heard of ends with the last credential that was issued for it.

use super::audit::{self, Subject};
use super::credentials::ledger;
use super::store::{OptionalExtension, Transaction, damaged, fixed, params, signed, unsigned};
use crate::clock::WallTime;
use crate::codes::{self, Code, Refusal};
use crate::identity::NodeId;
use crate::protocol::{TaskStatement, TasksEnded};

/// Live tasks of one node.
const LIVE: u64 = 4096;
/// Ends in one message.
const ENDS: usize = 256;

/// A task.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Task {
    /// The node it runs on.
    pub node: NodeId,
    /// The run of the agent that began it.
    pub run: [u8; 16],
    /// Its number in that run.
    pub number: u64,
    /// Its id, the caller's choice.
    pub id: String,
    /// The workload it is of.
    pub workload: String,
    /// The decision that it began by.
    pub decision: String,
    /// What it means to do, in its own words.
    pub intent: String,
    /// A purpose narrower than the workload's, in its own words; may be empty.
    pub purpose: String,
    /// Seconds within which its process must be heard of; 0 where it is only watched.
    pub heartbeat_seconds: u64,
    /// When it began.
    pub began_at: WallTime,
    /// When its last credential runs out.
    pub not_after: WallTime,
    /// When, how and why it ended.
    pub ended: Option<(WallTime, Code, String)>,
}

/// Which live tasks.
#[derive(Clone, Copy, Debug)]
pub enum Of<'a> {
    /// All of a node.
    Node(NodeId),
    /// Those of a node that another run of its agent began.
    OtherRuns(NodeId, [u8; 16]),
    /// All of a workload, wherever.
    Workload(&'a str),
    /// All of this id on a node: one of each workload.
    Task(NodeId, &'a str),
    /// Those whose time is over.
    Expired(WallTime),
}

const COLUMNS: &str = "node, run, number, id, workload, decision, intent, purpose, heartbeat_seconds, began_at, \
                       not_after, ended_at, ended_code, ended_reason";

/// Whether a task may be begun, or renewed, as stated; to be asked before anything is decided.
///
/// # Errors
/// [`codes::TASK_INVALID`] for a statement that can't be used or an id that is taken, [`codes::TASK_UNKNOWN`]
/// for a renewal of what has ended.
pub fn check(tx: &Transaction<'_>, node: NodeId, workload: &str, stated: &TaskStatement) -> Result<(), Refusal> {
    stated.check()?;
    let at = || format!("task {}", stated.id);
    if let Some(task) = find(tx, node, stated.run, stated.number)? {
        if task.id != stated.id || task.workload != workload {
            let found = format!("it began as task {} of {}", task.id, task.workload);
            return Err(Refusal::new(codes::TASK_INVALID, found).at(at()).expected("another number"));
        }
        return match task.ended {
            None => Ok(()),
            Some((when, code, _)) => {
                Err(Refusal::new(codes::TASK_UNKNOWN, format!("it ended at {when}: {code}")).at(at()))
            }
        };
    }
    let namesakes = live(tx, Of::Task(node, &stated.id))?;
    // One of an earlier run is over: its agent is. And one of another workload is another task.
    if namesakes.iter().any(|task| task.run == stated.run && task.workload == workload) {
        return Err(Refusal::new(codes::TASK_INVALID, "a task of this id lives on the node")
            .at(at())
            .expected("another id, or its end"));
    }
    let count: i64 = tx
        .prepare_cached("SELECT count(*) FROM tasks WHERE node = ?1 AND ended_at IS NULL")?
        .query_row([node.as_bytes()], |row| row.get(0))?;
    if unsigned(count) >= LIVE {
        return Err(Refusal::new(codes::TASK_INVALID, format!("{count} tasks live on the node"))
            .at(at())
            .expected(format!("at most {LIVE}")));
    }
    Ok(())
}

/// Notes that a task was begun, or renewed, by a decision that permitted it; `not_after` is the end of
/// the last credential that was issued for it. To be called in the transaction of [`check`].
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn begin(
    tx: &Transaction<'_>,
    node: NodeId,
    workload: &str,
    decision: &str,
    stated: &TaskStatement,
    not_after: WallTime,
    now: WallTime,
) -> Result<(), Refusal> {
    abandon(tx, node, stated.run, now)?;
    let renewed = tx
        .prepare_cached("UPDATE tasks SET not_after = max(not_after, ?4) WHERE node = ?1 AND run = ?2 AND number = ?3")?
        .execute(params![node.as_bytes(), stated.run, signed(stated.number), signed(not_after.0)])?;
    if renewed > 0 {
        return Ok(());
    }
    let task = Task {
        node,
        run: stated.run,
        number: stated.number,
        id: stated.id.clone(),
        workload: workload.to_owned(),
        decision: decision.to_owned(),
        intent: stated.intent.clone(),
        purpose: stated.purpose.clone(),
        heartbeat_seconds: stated.heartbeat_seconds,
        began_at: now,
        not_after,
        ended: None,
    };
    tx.prepare_cached(
        "INSERT INTO tasks(node, run, number, id, workload, decision, intent, purpose, heartbeat_seconds, began_at,
         not_after) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
    )?
    .execute(params![
        task.node.as_bytes(),
        task.run,
        signed(task.number),
        task.id,
        task.workload,
        task.decision,
        task.intent,
        task.purpose,
        signed(task.heartbeat_seconds),
        signed(task.began_at.0),
        signed(task.not_after.0),
    ])?;
    let detail = serde_json::json!({
        "intent": task.intent, "purpose": task.purpose, "heartbeat_seconds": task.heartbeat_seconds,
        "until": task.not_after.to_string(),
    });
    audit::about(tx, now, "task.began", &task.subject(), detail)
}

/// Takes in what a node says of its tasks: those that ended, and that none of an earlier run of its
/// agent is left. The same again changes nothing.
///
/// # Errors
/// [`codes::PROTOCOL_MALFORMED`], [`codes::STORE_FAILED`].
pub fn ended(tx: &Transaction<'_>, node: NodeId, told: &TasksEnded, now: WallTime) -> Result<(), Refusal> {
    if told.tasks.len() > ENDS {
        return Err(Refusal::new(codes::PROTOCOL_MALFORMED, format!("{} tasks", told.tasks.len()))
            .at("tasks")
            .expected(format!("at most {ENDS}")));
    }
    abandon(tx, node, told.run, now)?;
    for end in &told.tasks {
        let Some(task) = find(tx, node, told.run, end.number)?.filter(|task| task.ended.is_none()) else { continue };
        conclude(tx, &task, end.refusal.code, &words(&end.refusal), now)?;
    }
    Ok(())
}

/// Ends live tasks, and the credentials that are left of them; gives back which.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn end(tx: &Transaction<'_>, of: Of<'_>, code: Code, reason: &str, now: WallTime) -> Result<Vec<Task>, Refusal> {
    let tasks = live(tx, of)?;
    for task in &tasks {
        conclude(tx, task, code, reason, now)?;
    }
    Ok(tasks)
}

/// Ends what nothing was renewed of; to be called now and then.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn expire(tx: &Transaction<'_>, now: WallTime) -> Result<usize, Refusal> {
    Ok(end(tx, Of::Expired(now), codes::ISSUER_EXPIRED, "nothing of it was renewed in time", now)?.len())
}

/// Forgets tasks that ended before `until`, a number of them at a time; the log has them for good. Says whether there
/// are more.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn forget(tx: &Transaction<'_>, until: WallTime) -> Result<bool, Refusal> {
    /// So many at a time: everybody else waits meanwhile.
    const AT_ONCE: usize = 1000;
    let forgotten = tx
        .prepare_cached("DELETE FROM tasks WHERE rowid IN (SELECT rowid FROM tasks WHERE ended_at < ?1 LIMIT ?2)")?
        .execute(params![signed(until.0), signed(AT_ONCE as u64)])?;
    Ok(forgotten >= AT_ONCE)
}

/// The live ones, in the order of their beginning.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn live(tx: &Transaction<'_>, of: Of<'_>) -> Result<Vec<Task>, Refusal> {
    let (condition, value, also): (&str, rusqlite::types::Value, rusqlite::types::Value) = match of {
        Of::Node(node) => ("node = ?1 AND ?2 IS NULL", node.as_bytes().to_vec().into(), rusqlite::types::Value::Null),
        Of::OtherRuns(node, run) => ("node = ?1 AND run <> ?2", node.as_bytes().to_vec().into(), run.to_vec().into()),
        Of::Workload(id) => ("workload = ?1 AND ?2 IS NULL", id.to_owned().into(), rusqlite::types::Value::Null),
        Of::Task(node, id) => ("node = ?1 AND id = ?2", node.as_bytes().to_vec().into(), id.to_owned().into()),
        Of::Expired(now) => ("not_after <= ?1 AND ?2 IS NULL", signed(now.0).into(), rusqlite::types::Value::Null),
    };
    let mut statement = tx.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM tasks WHERE ended_at IS NULL AND {condition} ORDER BY began_at, number"
    ))?;
    gather(statement.query([value, also])?)
}

/// The `limit` that began last, of all or of one id, the latest first.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn latest(tx: &Transaction<'_>, id: Option<&str>, only_live: bool, limit: u64) -> Result<Vec<Task>, Refusal> {
    let mut statement = tx.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM tasks WHERE (?1 IS NULL OR id = ?1) AND (NOT ?2 OR ended_at IS NULL)
         ORDER BY began_at DESC, number DESC LIMIT ?3"
    ))?;
    gather(statement.query(params![id, only_live, signed(limit)])?)
}

impl Task {
    /// Whom a record about it is about.
    pub fn subject(&self) -> Subject<'_> {
        Subject {
            node: Some(self.node),
            workload: Some(&self.workload),
            lease: None,
            decision: Some(&self.decision),
            credential: None,
            task: Some(&self.id),
        }
    }
}

/// A node's agent runs as `run`: what another run of it began is nobody's any more.
fn abandon(tx: &Transaction<'_>, node: NodeId, run: [u8; 16], now: WallTime) -> Result<(), Refusal> {
    end(tx, Of::OtherRuns(node, run), codes::TASK_ABANDONED, "the node's agent was started again", now).map(drop)
}

fn conclude(tx: &Transaction<'_>, task: &Task, code: Code, reason: &str, now: WallTime) -> Result<(), Refusal> {
    let reason = audit::clipped(reason);
    tx.prepare_cached(
        "UPDATE tasks SET ended_at = ?4, ended_code = ?5, ended_reason = ?6
         WHERE node = ?1 AND run = ?2 AND number = ?3",
    )?
    .execute(params![
        task.node.as_bytes(),
        task.run,
        signed(task.number),
        signed(now.0),
        code.as_str(),
        reason
    ])?;
    ledger::end(tx, ledger::Of::OneTask(task.node, &task.workload, &task.id), code, reason, now)?;
    let detail = serde_json::json!({ "code": code, "reason": reason });
    audit::about(tx, now, "task.ended", &task.subject(), detail)
}

/// What a refusal says beside its code, which stands for itself.
fn words(refusal: &Refusal) -> String {
    let text = refusal.to_string();
    text.split_once(": ").map_or(text.as_str(), |(_, words)| words).to_owned()
}

fn find(tx: &Transaction<'_>, node: NodeId, run: [u8; 16], number: u64) -> Result<Option<Task>, Refusal> {
    let query = format!("SELECT {COLUMNS} FROM tasks WHERE node = ?1 AND run = ?2 AND number = ?3");
    tx.prepare_cached(&query)?
        .query_row(params![node.as_bytes(), run, signed(number)], |row| Ok(read(row)))
        .optional()?
        .transpose()
}

fn gather(mut rows: rusqlite::Rows<'_>) -> Result<Vec<Task>, Refusal> {
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        found.push(read(row)?);
    }
    Ok(found)
}

fn read(row: &rusqlite::Row<'_>) -> Result<Task, Refusal> {
    let ended: Option<i64> = row.get(11)?;
    let ended = match ended {
        None => None,
        Some(at) => Some((WallTime(unsigned(at)), Code::from_text(&row.get::<_, String>(12)?), row.get(13)?)),
    };
    Ok(Task {
        node: NodeId::from_bytes(fixed(&row.get::<_, Vec<u8>>(0)?, "a node id")?),
        run: row.get::<_, Vec<u8>>(1)?.try_into().map_err(|_| damaged("a task's run"))?,
        number: unsigned(row.get(2)?),
        id: row.get(3)?,
        workload: row.get(4)?,
        decision: row.get(5)?,
        intent: row.get(6)?,
        purpose: row.get(7)?,
        heartbeat_seconds: unsigned(row.get(8)?),
        began_at: WallTime(unsigned(row.get(9)?)),
        not_after: WallTime(unsigned(row.get(10)?)),
        ended,
    })
}

#[cfg(test)]
mod tests;
