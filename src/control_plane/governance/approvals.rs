//! Approvals: what is sensitive is asked for by one and approved by another, for a time.
//!
//! Whoever approves shows who they are by their certificate, and is not, and doesn't belong to, the
//! owner of the workload, nor is it who asked. The server's local socket can break the glass: it is
//! nobody in particular, and that is what the record says.

use serde::{Deserialize, Serialize};

use super::super::admin::roles::Actor;
use super::super::audit::{self, Subject};
use super::super::registry::operators::Operator;
use super::super::registry::workloads::Workload;
use super::super::store::{OptionalExtension, Transaction, params, signed, unsigned};
use super::Governance;
use crate::clock::WallTime;
use crate::codes::{self, Refusal};
use crate::secret;

/// An approval, or the request for one.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Approval {
    /// 16 hexadecimal digits.
    pub id: String,
    /// For which workload.
    pub workload: String,
    /// For one destination; empty for any.
    pub destination: String,
    /// Why it is needed.
    pub reason: String,
    /// For how long from the moment it is approved, in seconds.
    pub seconds: u64,
    /// When it was asked for.
    pub requested_at: WallTime,
    /// By whom.
    pub requested_by: String,
    /// By whom it was approved, or turned down.
    pub decided_by: Option<String>,
    /// Whether it was approved.
    pub approved: bool,
    /// Whether that was by breaking the glass.
    pub break_glass: bool,
    /// The end of it; none until it is approved.
    pub expires_at: Option<WallTime>,
    /// When its end was recorded.
    pub ended_at: Option<WallTime>,
}

const COLUMNS: &str = "id, workload, destination, reason, seconds, requested_at, requested_by, decided_by, approved, \
    break_glass, expires_at, ended_at";

/// What somebody asks for.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// For which workload.
    pub workload: &'a Workload,
    /// For one destination; empty for any.
    pub destination: &'a str,
    /// Why it is needed.
    pub reason: &'a str,
    /// For how long once it is approved.
    pub seconds: u64,
    /// Who asks.
    pub by: &'a Actor,
}

/// Asks for an approval.
///
/// # Errors
/// [`codes::ADMIN_INVALID`] when it is to hold longer than configured.
pub fn request(
    tx: &Transaction<'_>,
    asked: &Asked<'_>,
    bounds: &Governance,
    now: WallTime,
) -> Result<Approval, Refusal> {
    let Asked { workload, destination, reason, seconds, by } = *asked;
    if seconds == 0 || seconds > bounds.approval {
        return Err(Refusal::new(codes::ADMIN_INVALID, format!("{seconds} s"))
            .at("--for")
            .expected(format!("at most {} hours, as `governance.approval_hours` says", bounds.approval / 3600)));
    }
    let random: [u8; 8] = secret::random().map_err(|e| Refusal::new(codes::STORE_FAILED, e.to_string()))?;
    let approval = Approval {
        id: hex::encode(random),
        workload: workload.id.to_string(),
        destination: destination.to_owned(),
        reason: reason.to_owned(),
        seconds,
        requested_at: now,
        requested_by: by.name.clone(),
        decided_by: None,
        approved: false,
        break_glass: false,
        expires_at: None,
        ended_at: None,
    };
    tx.execute(
        "INSERT INTO approvals(id, workload, destination, reason, seconds, requested_at, requested_by)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        params![
            approval.id,
            approval.workload,
            approval.destination,
            approval.reason,
            signed(seconds),
            signed(now.0),
            approval.requested_by,
        ],
    )?;
    record(tx, now, "approval.requested", &approval)?;
    Ok(approval)
}

/// Who approves.
#[derive(Clone, Copy, Debug)]
pub enum Approver<'a> {
    /// An operator, by certificate.
    Operator(&'a Operator),
    /// Whoever is at the local socket, in an emergency.
    BreakGlass(&'a Actor),
}

/// Approves; from now on it holds, for its time.
///
/// # Errors
/// [`codes::APPROVAL_OWN`] for who asked or answers for the workload, [`codes::ADMIN_CONFLICT`] when it was
/// decided already, [`codes::ADMIN_UNKNOWN`].
pub fn grant(
    tx: &Transaction<'_>,
    id: &str,
    by: Approver<'_>,
    workload_owner: &str,
    note: &str,
    now: WallTime,
) -> Result<Approval, Refusal> {
    let approval = undecided(tx, id)?;
    let (name, break_glass) = match by {
        Approver::Operator(operator) => {
            may_approve(operator, &approval, workload_owner)?;
            (operator.id.as_str(), false)
        }
        Approver::BreakGlass(actor) => (actor.name.as_str(), true),
    };
    let expires_at = WallTime(now.0.saturating_add(approval.seconds));
    tx.execute(
        "UPDATE approvals SET decided_at = ?2, decided_by = ?3, approved = 1, break_glass = ?4, note = ?5,
         expires_at = ?6 WHERE id = ?1",
        params![id, signed(now.0), name, break_glass, note, signed(expires_at.0)],
    )?;
    let decided_by = Some(name.to_owned());
    let approval = Approval { decided_by, approved: true, break_glass, expires_at: Some(expires_at), ..approval };
    record(tx, now, if break_glass { "approval.break_glass" } else { "approval.granted" }, &approval)?;
    Ok(approval)
}

/// Turns a request down, or ends an approval before its time.
///
/// # Errors
/// [`codes::ADMIN_UNKNOWN`], [`codes::ADMIN_CONFLICT`] when it has ended.
pub fn deny(tx: &Transaction<'_>, id: &str, by: &Actor, note: &str, now: WallTime) -> Result<Approval, Refusal> {
    let approval = find(tx, id)?;
    if approval.ended_at.is_some() {
        return Err(Refusal::new(codes::ADMIN_CONFLICT, "it has ended already").at(format!("approval {id}")));
    }
    tx.execute(
        "UPDATE approvals SET decided_at = coalesce(decided_at, ?2), decided_by = coalesce(decided_by, ?3), note = ?4,
         ended_at = ?2 WHERE id = ?1",
        params![id, signed(now.0), by.name, note],
    )?;
    let what = if approval.approved { "approval.ended" } else { "approval.denied" };
    let decided_by = approval.decided_by.clone().or(Some(by.name.clone()));
    let approval = Approval { ended_at: Some(now), decided_by, ..approval };
    record(tx, now, what, &approval)?;
    Ok(approval)
}

/// Until when a workload is approved towards a destination; none if that is over.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn until(
    tx: &Transaction<'_>,
    workload: &str,
    destination: &str,
    now: WallTime,
) -> Result<Option<WallTime>, Refusal> {
    let last: Option<i64> = tx
        .prepare_cached(
            "SELECT max(expires_at) FROM approvals WHERE workload = ?1 AND approved = 1 AND ended_at IS NULL
             AND destination IN ('', ?2) AND expires_at > ?3",
        )?
        .query_row(params![workload, destination, signed(now.0)], |row| row.get(0))?;
    Ok(last.map(|at| WallTime(unsigned(at))))
}

/// Records those whose time is over, and requests that nobody decided in the time that an approval may hold.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn ended(tx: &Transaction<'_>, bounds: &Governance, now: WallTime) -> Result<(), Refusal> {
    for approval in select(tx, "approved = 1 AND ended_at IS NULL AND expires_at <= ?1", signed(now.0))? {
        tx.execute("UPDATE approvals SET ended_at = expires_at WHERE id = ?1", [&approval.id])?;
        record(tx, now, "approval.ended", &approval)?;
    }
    let lapsed = signed(now.0.saturating_sub(bounds.approval));
    for request in select(tx, "decided_by IS NULL AND ended_at IS NULL AND requested_at <= ?1", lapsed)? {
        end(tx, &request, "approval.lapsed", now)?;
    }
    Ok(())
}

/// Ends what was approved, or asked for, of a workload: it isn't the one any more that somebody looked at.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn void(tx: &Transaction<'_>, workload: &str, now: WallTime) -> Result<(), Refusal> {
    for approval in select(tx, "workload = ?1 AND ended_at IS NULL", workload)? {
        end(tx, &approval, "approval.void", now)?;
    }
    Ok(())
}

fn end(tx: &Transaction<'_>, approval: &Approval, what: &str, now: WallTime) -> Result<(), Refusal> {
    tx.execute("UPDATE approvals SET ended_at = ?2 WHERE id = ?1", params![approval.id, signed(now.0)])?;
    record(tx, now, what, approval)
}

/// All of them, the newest first.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn all(tx: &Transaction<'_>) -> Result<Vec<Approval>, Refusal> {
    select(tx, "?1 = ?1", 0)
}

/// The one with this id.
///
/// # Errors
/// [`codes::ADMIN_UNKNOWN`].
pub fn find(tx: &Transaction<'_>, id: &str) -> Result<Approval, Refusal> {
    tx.query_row(&format!("SELECT {COLUMNS} FROM approvals WHERE id = ?1"), [id], read).optional()?.ok_or_else(|| {
        Refusal::new(codes::ADMIN_UNKNOWN, "no such approval")
            .at(id.to_owned())
            .expected("one that `leasehold-server approval list` shows")
    })
}

fn undecided(tx: &Transaction<'_>, id: &str) -> Result<Approval, Refusal> {
    let approval = find(tx, id)?;
    match &approval.decided_by {
        None if approval.ended_at.is_some() => {
            Err(Refusal::new(codes::ADMIN_CONFLICT, "it has lapsed, or its workload was changed since")
                .at(format!("approval {id}"))
                .expected("a new request"))
        }
        None => Ok(approval),
        Some(by) => {
            let how = if approval.approved { "approved" } else { "turned down" };
            Err(Refusal::new(codes::ADMIN_CONFLICT, format!("it was {how} already, by {by}"))
                .at(format!("approval {id}"))
                .expected("a request that nobody has decided"))
        }
    }
}

fn may_approve(operator: &Operator, approval: &Approval, workload_owner: &str) -> Result<(), Refusal> {
    let refuse = |what: String| {
        Refusal::new(codes::APPROVAL_OWN, what)
            .at(format!("approval {}", approval.id))
            .expected("somebody else, whose owner is known and is another than the workload's")
    };
    if operator.id == approval.requested_by {
        return Err(refuse("who asked can't approve".to_owned()));
    }
    if operator.id == approval.workload {
        return Err(refuse("it is the workload itself".to_owned()));
    }
    match &operator.owner {
        None => Err(refuse(format!("nobody said whom {} belongs to (`operator add --owner`)", operator.id))),
        Some(owner) if owner == workload_owner => {
            Err(refuse(format!("{} belongs to `{owner}`, who answers for the workload", operator.id)))
        }
        Some(_) => Ok(()),
    }
}

fn select(tx: &Transaction<'_>, condition: &str, value: impl rusqlite::ToSql) -> Result<Vec<Approval>, Refusal> {
    let sql = format!("SELECT {COLUMNS} FROM approvals WHERE {condition} ORDER BY requested_at DESC, id");
    let mut statement = tx.prepare_cached(&sql)?;
    let rows = statement.query_map([value], read)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn read(row: &rusqlite::Row<'_>) -> rusqlite::Result<Approval> {
    let time = |at: i64| WallTime(unsigned(at));
    Ok(Approval {
        id: row.get(0)?,
        workload: row.get(1)?,
        destination: row.get(2)?,
        reason: row.get(3)?,
        seconds: unsigned(row.get(4)?),
        requested_at: time(row.get(5)?),
        requested_by: row.get(6)?,
        decided_by: row.get(7)?,
        approved: row.get(8)?,
        break_glass: row.get(9)?,
        expires_at: row.get::<_, Option<i64>>(10)?.map(time),
        ended_at: row.get::<_, Option<i64>>(11)?.map(time),
    })
}

fn record(tx: &Transaction<'_>, now: WallTime, what: &str, approval: &Approval) -> Result<(), Refusal> {
    let subject = Subject { workload: Some(&approval.workload), ..Subject::default() };
    let detail = serde_json::json!({
        "approval": approval.id, "destination": approval.destination, "reason": approval.reason,
        "requested_by": approval.requested_by, "decided_by": approval.decided_by,
        "expires": approval.expires_at.map(|at| at.to_string()),
    });
    audit::about(tx, now, what, &subject, detail)
}
