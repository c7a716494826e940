//! Commands about approvals, exceptions, reviews and debt.

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::commands::{Outcome, only};
use super::registrations;
use super::roles::Actor;
use crate::clock::WallTime;
use crate::codes::{self, Refusal};
use crate::control_plane::audit;
use crate::control_plane::credentials::registered;
use crate::control_plane::effects::Effects;
use crate::control_plane::governance::{approvals, debt, exceptions, report, reviews};
use crate::control_plane::registry::destinations;
use crate::control_plane::registry::{names, operators, owners, workloads};
use crate::control_plane::server::Shared;
use crate::control_plane::store::Transaction;
use crate::identity::SpiffeId;

/// An exception as stated.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StatedException {
    /// The workload's SPIFFE ID.
    pub workload: String,
    /// Who answers for the exception.
    pub owner: String,
    /// Why.
    pub reason: String,
    /// Where it is worked off.
    pub ticket: String,
    /// For how long, in seconds.
    pub seconds: u64,
}

/// A request for an approval as stated.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StatedRequest {
    /// The workload's SPIFFE ID.
    pub workload: String,
    /// For one destination; empty for any.
    pub destination: String,
    /// Why.
    pub reason: String,
    /// For how long, in seconds.
    pub seconds: u64,
}

/// Grants an exception.
///
/// # Errors
/// [`codes::ADMIN_INVALID`], [`codes::ADMIN_UNKNOWN`].
pub fn exception_add(
    tx: &Transaction<'_>,
    shared: &Shared,
    stated: &StatedException,
    by: &Actor,
    now: WallTime,
) -> Result<Outcome, Refusal> {
    for (option, text) in [("--reason", &stated.reason), ("--ticket", &stated.ticket), ("--owner", &stated.owner)] {
        names::text(option, text)?;
    }
    let workload = known(tx, &stated.workload)?;
    if owners::find(tx, &stated.owner)?.is_none() {
        return Err(Refusal::new(codes::ADMIN_UNKNOWN, format!("no owner `{}`", stated.owner)).at("--owner"));
    }
    let StatedException { workload: id, owner, reason, ticket, seconds } = stated;
    let stated = exceptions::Stated { workload: id, owner, reason, ticket, seconds: *seconds, by: &by.name };
    let exception = exceptions::add(tx, &stated, &shared.settings.governance, now)?;
    let facts = json!({ "schema": 1, "changed": true, "exception": shown(&exception, now) });
    Ok((facts, registrations::told(tx, &workload)?))
}

/// All exceptions.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn exception_list(tx: &Transaction<'_>, now: WallTime) -> Result<Outcome, Refusal> {
    let exceptions: Vec<_> = exceptions::all(tx)?.iter().map(|exception| shown(exception, now)).collect();
    Ok(only(json!({ "schema": 1, "exceptions": exceptions })))
}

/// Closes an exception.
///
/// # Errors
/// [`codes::ADMIN_UNKNOWN`].
pub fn exception_close(tx: &Transaction<'_>, id: &str, reason: &str, now: WallTime) -> Result<Outcome, Refusal> {
    names::text("--reason", reason)?;
    let exception = exceptions::close(tx, id, reason, now)?;
    let facts = json!({ "schema": 1, "changed": true, "exception": shown(&exception, now) });
    Ok((facts, told(tx, &exception.workload)?))
}

/// Asks for an approval.
///
/// # Errors
/// [`codes::ADMIN_INVALID`], [`codes::ADMIN_UNKNOWN`].
pub fn approval_request(
    tx: &Transaction<'_>,
    shared: &Shared,
    stated: &StatedRequest,
    by: &Actor,
    now: WallTime,
) -> Result<Outcome, Refusal> {
    names::text("--reason", &stated.reason)?;
    let workload = known(tx, &stated.workload)?;
    let StatedRequest { destination, reason, seconds, .. } = stated;
    if !destination.is_empty() && destinations::find(tx, destination)?.is_none() {
        return Err(Refusal::new(codes::ADMIN_UNKNOWN, "no such destination")
            .at(audit::clipped(destination))
            .expected("one that `leasehold-server destination list` shows, or none for any"));
    }
    let asked = approvals::Asked { workload: &workload, destination, reason, seconds: *seconds, by };
    let approval = approvals::request(tx, &asked, &shared.settings.governance, now)?;
    Ok(only(json!({ "schema": 1, "changed": true, "approval": approval_shown(&approval, now) })))
}

/// Approves.
///
/// # Errors
/// [`codes::APPROVAL_OWN`], [`codes::APPROVAL_IDENTITY`] over the local socket without `break_glass`.
pub fn approval_grant(
    tx: &Transaction<'_>,
    id: &str,
    note: &str,
    break_glass: bool,
    by: &Actor,
    now: WallTime,
) -> Result<Outcome, Refusal> {
    let approval = approvals::find(tx, id)?;
    let workload = known(tx, &approval.workload)?;
    names::optional_text("--reason", note)?;
    let operator = match SpiffeId::new(&by.name) {
        Ok(id) if !by.local => operators::find(tx, &id)?,
        _ => None,
    };
    let approver = match (&operator, break_glass) {
        (Some(operator), false) => approvals::Approver::Operator(operator),
        (None, true) if by.local => {
            names::text("--reason", note)?;
            approvals::Approver::BreakGlass(by)
        }
        (Some(_), true) => {
            return Err(Refusal::new(
                codes::APPROVAL_IDENTITY,
                "the glass is broken at the server's local socket only",
            )
            .at(by.name.clone()));
        }
        (None, _) => {
            return Err(Refusal::new(codes::APPROVAL_IDENTITY, "the local socket doesn't show who approves")
                .at(by.name.clone())
                .expected("an operator's certificate (--server, --svid); in an emergency --break-glass --reason"));
        }
    };
    let approval = approvals::grant(tx, id, approver, &workload.owner, note, now)?;
    let facts = json!({ "schema": 1, "changed": true, "approval": approval_shown(&approval, now) });
    Ok((facts, registrations::told(tx, &workload)?))
}

/// Turns a request down, or ends an approval.
///
/// # Errors
/// [`codes::ADMIN_UNKNOWN`], [`codes::ADMIN_CONFLICT`].
pub fn approval_deny(
    tx: &Transaction<'_>,
    id: &str,
    reason: &str,
    by: &Actor,
    now: WallTime,
) -> Result<Outcome, Refusal> {
    names::text("--reason", reason)?;
    let approval = approvals::deny(tx, id, by, reason, now)?;
    let facts = json!({ "schema": 1, "changed": true, "approval": approval_shown(&approval, now) });
    Ok((facts, told(tx, &approval.workload)?))
}

/// All approvals and requests.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn approval_list(tx: &Transaction<'_>, now: WallTime) -> Result<Outcome, Refusal> {
    let approvals: Vec<_> = approvals::all(tx)?.iter().map(|approval| approval_shown(approval, now)).collect();
    Ok(only(json!({ "schema": 1, "approvals": approvals })))
}

/// What is to be reviewed.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn review_due(tx: &Transaction<'_>, shared: &Shared, now: WallTime) -> Result<Outcome, Refusal> {
    let settings = &shared.settings;
    let due = reviews::due(tx, &settings.governance, settings.svid.as_secs(), now)?;
    let rows: Vec<_> = due
        .iter()
        .map(|due| {
            json!({
                "workload": due.workload, "owner": due.owner, "why": due.why, "since": due.since.to_string(),
                "reviewed": due.reviewed.map(|at| at.to_string()),
                "suspended_from": due.suspended_from.map(|at| at.to_string()),
            })
        })
        .collect();
    Ok(only(json!({ "schema": 1, "due": rows })))
}

/// Notes that a workload was reviewed.
///
/// # Errors
/// [`codes::ADMIN_UNKNOWN`].
pub fn review_sign(
    tx: &Transaction<'_>,
    workload: &str,
    note: &str,
    by: &Actor,
    now: WallTime,
) -> Result<Outcome, Refusal> {
    if !note.is_empty() {
        names::text("--note", note)?;
    }
    let workload = known(tx, workload)?;
    reviews::sign(tx, &workload.id.to_string(), &by.name, note, now)?;
    Ok(only(json!({ "schema": 1, "changed": true, "workload": workload.id.to_string(), "signed_by": by.name })))
}

/// A report for a framework.
///
/// # Errors
/// [`codes::ADMIN_INVALID`].
pub fn report(tx: &Transaction<'_>, shared: &Shared, framework: &str, now: WallTime) -> Result<Outcome, Refusal> {
    Ok(only(report::of(tx, shared, framework, now)?))
}

/// The debt.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn debt(tx: &Transaction<'_>, now: WallTime) -> Result<Outcome, Refusal> {
    Ok(only(debt::facts(tx, now)?))
}

fn known(tx: &Transaction<'_>, id: &str) -> Result<workloads::Workload, Refusal> {
    registered(tx, id).map_err(|refusal| match refusal.code {
        codes::ISSUER_UNKNOWN_WORKLOAD => Refusal { code: codes::ADMIN_UNKNOWN, ..refusal }.at("--workload"),
        _ => refusal,
    })
}

fn shown(exception: &exceptions::Exception, now: WallTime) -> serde_json::Value {
    let state = match (exception.closed_at, exception.is_live(now)) {
        (Some(_), _) => "closed",
        (None, true) => "live",
        (None, false) => "ended",
    };
    json!({
        "id": exception.id, "workload": exception.workload, "owner": exception.owner, "reason": exception.reason,
        "ticket": exception.ticket, "state": state, "added": exception.added_at.to_string(),
        "added_by": exception.added_by, "expires": exception.expires_at.to_string(),
        "closed": exception.closed_at.map(|at| at.to_string()),
    })
}

fn approval_shown(approval: &approvals::Approval, now: WallTime) -> serde_json::Value {
    let state = match (approval.approved, approval.ended_at, approval.expires_at) {
        (true, None, Some(end)) if now < end => "live",
        (true, _, _) => "ended",
        (false, Some(_), _) => "denied",
        (false, None, _) => "requested",
    };
    json!({
        "id": approval.id, "workload": approval.workload, "destination": approval.destination,
        "reason": approval.reason, "state": state, "requested": approval.requested_at.to_string(),
        "requested_by": approval.requested_by, "decided_by": approval.decided_by,
        "break_glass": approval.break_glass, "expires": approval.expires_at.map(|at| at.to_string()),
        "seconds": approval.seconds,
    })
}

/// The nodes of a workload attest anew, if it is still there.
fn told(tx: &Transaction<'_>, workload: &str) -> Result<Effects, Refusal> {
    match known(tx, workload) {
        Ok(workload) => registrations::told(tx, &workload),
        Err(refusal) if refusal.code == codes::ADMIN_UNKNOWN => Ok(Effects::default()),
        Err(refusal) => Err(refusal),
    }
}
