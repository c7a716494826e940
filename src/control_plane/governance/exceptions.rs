//! Exceptions: a workload is let off a rule for a time, with an owner, a reason and a ticket.
//!
//! An exception ends by itself. Until somebody closes it, the workload is known to stand on it, and so
//! gets nothing once it has ended: debt that was forgotten stops working, it doesn't become the rule.

use serde::{Deserialize, Serialize};

use super::super::audit::{self, Subject};
use super::super::store::{OptionalExtension, Transaction, params, signed, unsigned};
use super::Governance;
use crate::clock::WallTime;
use crate::codes::{self, Refusal};
use crate::secret;

/// An exception.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Exception {
    /// 16 hexadecimal digits.
    pub id: String,
    /// The workload that stands on it.
    pub workload: String,
    /// Who answers for it.
    pub owner: String,
    /// Why there is one.
    pub reason: String,
    /// Where it is worked off.
    pub ticket: String,
    /// When it was granted, in seconds since 1970.
    pub added_at: WallTime,
    /// Who granted it.
    pub added_by: String,
    /// When it ends, whatever anybody does.
    pub expires_at: WallTime,
    /// When somebody closed it.
    pub closed_at: Option<WallTime>,
}

impl Exception {
    /// Whether it holds.
    pub fn is_live(&self, now: WallTime) -> bool {
        self.closed_at.is_none() && now < self.expires_at
    }
}

/// What an operator states.
#[derive(Clone, Debug)]
pub struct Stated<'a> {
    /// A registered workload.
    pub workload: &'a str,
    /// A registered owner.
    pub owner: &'a str,
    /// Why.
    pub reason: &'a str,
    /// Where it is worked off.
    pub ticket: &'a str,
    /// How long, in seconds.
    pub seconds: u64,
    /// Who asks.
    pub by: &'a str,
}

const COLUMNS: &str = "id, workload, owner, reason, ticket, added_at, added_by, expires_at, closed_at";

/// Grants one.
///
/// # Errors
/// [`codes::ADMIN_INVALID`] when it would hold longer than configured.
pub fn add(
    tx: &Transaction<'_>,
    stated: &Stated<'_>,
    bounds: &Governance,
    now: WallTime,
) -> Result<Exception, Refusal> {
    if stated.seconds == 0 || stated.seconds > bounds.exception {
        return Err(Refusal::new(codes::ADMIN_INVALID, format!("{} s", stated.seconds))
            .at("--expires")
            .expected(format!("at most {} days, as `governance.exception_days` says", bounds.exception / 86_400)));
    }
    let random: [u8; 8] = secret::random().map_err(|e| Refusal::new(codes::STORE_FAILED, e.to_string()))?;
    let exception = Exception {
        id: hex::encode(random),
        workload: stated.workload.to_owned(),
        owner: stated.owner.to_owned(),
        reason: stated.reason.to_owned(),
        ticket: stated.ticket.to_owned(),
        added_at: now,
        added_by: stated.by.to_owned(),
        expires_at: WallTime(now.0.saturating_add(stated.seconds)),
        closed_at: None,
    };
    tx.execute(
        &format!("INSERT INTO exceptions({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, NULL)"),
        params![
            exception.id,
            exception.workload,
            exception.owner,
            exception.reason,
            exception.ticket,
            signed(exception.added_at.0),
            exception.added_by,
            signed(exception.expires_at.0),
        ],
    )?;
    record(tx, now, "exception.added", &exception)?;
    Ok(exception)
}

/// Closes one: the workload doesn't stand on it any more.
///
/// # Errors
/// [`codes::ADMIN_UNKNOWN`].
pub fn close(tx: &Transaction<'_>, id: &str, reason: &str, now: WallTime) -> Result<Exception, Refusal> {
    let exception = find(tx, id)?.filter(|exception| exception.closed_at.is_none()).ok_or_else(|| {
        Refusal::new(codes::ADMIN_UNKNOWN, "no such open exception")
            .at(id.to_owned())
            .expected("one that `leasehold-server exception list` shows")
    })?;
    tx.execute(
        "UPDATE exceptions SET closed_at = ?2, closed_reason = ?3, ended_at = coalesce(ended_at, ?2) WHERE id = ?1",
        params![id, signed(now.0), reason],
    )?;
    let exception = Exception { closed_at: Some(now), ..exception };
    record(tx, now, "exception.closed", &exception)?;
    Ok(exception)
}

/// Closes those of a workload that is gone: they weren't granted to who gets its name next.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn void(tx: &Transaction<'_>, workload: &str, now: WallTime) -> Result<(), Refusal> {
    for exception in select(tx, "workload = ?1 AND closed_at IS NULL", workload)? {
        close(tx, &exception.id, "its workload was removed", now)?;
    }
    Ok(())
}

/// Until when the exceptions hold that a workload stands on: the last of them.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn until(tx: &Transaction<'_>, workload: &str) -> Result<Option<WallTime>, Refusal> {
    let last: Option<i64> = tx
        .prepare_cached("SELECT max(expires_at) FROM exceptions WHERE workload = ?1 AND closed_at IS NULL")?
        .query_row([workload], |row| row.get(0))?;
    Ok(last.map(|at| WallTime(unsigned(at))))
}

/// Records those that ended by themselves since the last time.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn ended(tx: &Transaction<'_>, now: WallTime) -> Result<Vec<Exception>, Refusal> {
    let over = select(tx, "ended_at IS NULL AND expires_at <= ?1", signed(now.0))?;
    for exception in &over {
        tx.execute("UPDATE exceptions SET ended_at = expires_at WHERE id = ?1", [&exception.id])?;
        record(tx, now, "exception.ended", exception)?;
    }
    Ok(over)
}

/// All of them, the newest first.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn all(tx: &Transaction<'_>) -> Result<Vec<Exception>, Refusal> {
    select(tx, "?1 = ?1", 0)
}

fn find(tx: &Transaction<'_>, id: &str) -> Result<Option<Exception>, Refusal> {
    Ok(tx.query_row(&format!("SELECT {COLUMNS} FROM exceptions WHERE id = ?1"), [id], read).optional()?)
}

fn select(tx: &Transaction<'_>, condition: &str, value: impl rusqlite::ToSql) -> Result<Vec<Exception>, Refusal> {
    let sql = format!("SELECT {COLUMNS} FROM exceptions WHERE {condition} ORDER BY added_at DESC, id");
    let mut statement = tx.prepare_cached(&sql)?;
    let rows = statement.query_map([value], read)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn read(row: &rusqlite::Row<'_>) -> rusqlite::Result<Exception> {
    let time = |at: i64| WallTime(unsigned(at));
    Ok(Exception {
        id: row.get(0)?,
        workload: row.get(1)?,
        owner: row.get(2)?,
        reason: row.get(3)?,
        ticket: row.get(4)?,
        added_at: time(row.get(5)?),
        added_by: row.get(6)?,
        expires_at: time(row.get(7)?),
        closed_at: row.get::<_, Option<i64>>(8)?.map(time),
    })
}

fn record(tx: &Transaction<'_>, now: WallTime, what: &str, exception: &Exception) -> Result<(), Refusal> {
    let subject = Subject { workload: Some(&exception.workload), ..Subject::default() };
    let detail = serde_json::json!({
        "exception": exception.id, "owner": exception.owner, "reason": exception.reason,
        "ticket": exception.ticket, "expires": exception.expires_at.to_string(),
    });
    audit::about(tx, now, what, &subject, detail)
}
