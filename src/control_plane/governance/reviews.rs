//! Reviews: which registrations somebody should look at, and why; who looked last.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::super::audit::{self, Subject};
use super::super::registry::owners;
use super::super::registry::workloads;
use super::super::store::{Transaction, params, signed, unsigned};
use super::Governance;
use crate::clock::WallTime;
use crate::codes::Refusal;

/// A workload that is to be reviewed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Due {
    /// Its SPIFFE ID.
    pub workload: String,
    /// Who answers for it.
    pub owner: String,
    /// Why, each in a few words; the first is the most pressing.
    pub why: Vec<String>,
    /// When it was reviewed last, or registered.
    pub since: WallTime,
    /// When it was reviewed last.
    pub reviewed: Option<WallTime>,
    /// When it is suspended if nobody looks; none where that isn't configured.
    pub suspended_from: Option<WallTime>,
}

/// The last credential and the last release of a workload.
#[derive(Clone, Copy, Default)]
struct Activity {
    issued: Option<WallTime>,
    released: Option<WallTime>,
}

/// What is to be reviewed, the most pressing first.
///
/// # Errors
/// [`crate::codes::STORE_FAILED`].
pub fn due(tx: &Transaction<'_>, bounds: &Governance, svid_seconds: u64, now: WallTime) -> Result<Vec<Due>, Refusal> {
    let owners: BTreeMap<String, bool> =
        owners::all(tx)?.into_iter().map(|owner| (owner.name, owner.retired.is_some())).collect();
    let signed = signatures(tx)?;
    let activity = activity(tx)?;
    let mut found = Vec::new();
    for (workload, added) in workloads::rows(tx)? {
        let id = workload.id.to_string();
        // One that was signed before it was registered was another.
        let reviewed = signed.get(&id).copied().filter(|signed| *signed >= added);
        let since = reviewed.unwrap_or(added);
        let Activity { issued, released } = activity.get(&id).copied().unwrap_or_default();
        let mut why = Vec::new();
        match owners.get(&workload.owner) {
            None => why.push(format!("its owner `{}` is missing", workload.owner)),
            Some(true) => why.push(format!("its owner `{}` left", workload.owner)),
            Some(false) => {}
        }
        let overdue = now.0.saturating_sub(since.0) >= bounds.review;
        if overdue {
            why.push(format!("nobody looked at it since {since}"));
        }
        let quiet = |last: Option<WallTime>| now.0.saturating_sub(last.unwrap_or(since).0) >= bounds.unused;
        match (issued, released) {
            (Some(_), None) if quiet(None) => why.push("what was issued to it was never released".to_owned()),
            (None, None) if quiet(None) => why.push("nothing was ever issued to it".to_owned()),
            (_, Some(last)) if quiet(Some(last)) => why.push(format!("nothing was released to it since {last}")),
            _ => {}
        }
        if workload.ttl_seconds.is_some_and(|ttl| ttl > svid_seconds) {
            why.push(format!(
                "it asks for {} s, above the server's {svid_seconds} s",
                workload.ttl_seconds.unwrap_or(0)
            ));
        }
        // These are worth a look only until somebody has looked.
        if reviewed.is_none() && workload.tier.is_none() {
            why.push("nobody stated its tier: it counts as 1".to_owned());
        }
        if why.is_empty() {
            continue;
        }
        let suspended_from =
            bounds.suspend_overdue.map(|grace| WallTime(since.0.saturating_add(bounds.review).saturating_add(grace)));
        found.push(Due { workload: id, owner: workload.owner, why, since, reviewed, suspended_from });
    }
    found.sort_by(|a, b| b.why.len().cmp(&a.why.len()).then(a.since.cmp(&b.since)).then(a.workload.cmp(&b.workload)));
    Ok(found)
}

/// Notes that somebody looked.
///
/// # Errors
/// [`crate::codes::STORE_FAILED`].
pub fn sign(tx: &Transaction<'_>, workload: &str, by: &str, note: &str, now: WallTime) -> Result<(), Refusal> {
    tx.execute(
        "INSERT INTO reviews(workload, signed_at, signed_by, note) VALUES (?1, ?2, ?3, ?4)
         ON CONFLICT(workload) DO UPDATE SET signed_at = ?2, signed_by = ?3, note = ?4",
        params![workload, signed(now.0), by, note],
    )?;
    let subject = Subject { workload: Some(workload), ..Subject::default() };
    audit::about(tx, now, "review.signed", &subject, serde_json::json!({ "signed_by": by, "note": note }))
}

/// Those that are to be suspended now, and why.
///
/// # Errors
/// [`crate::codes::STORE_FAILED`].
pub fn overdue(tx: &Transaction<'_>, bounds: &Governance, now: WallTime) -> Result<Vec<(String, String)>, Refusal> {
    let Some(grace) = bounds.suspend_overdue else { return Ok(Vec::new()) };
    let signed = signatures(tx)?;
    let mut found = Vec::new();
    for (workload, added) in workloads::rows(tx)? {
        let id = workload.id.to_string();
        let since = signed.get(&id).copied().unwrap_or(added).max(added);
        let late = now.0.saturating_sub(since.0) >= bounds.review.saturating_add(grace);
        if late && workload.suspended.is_none() {
            found.push((id, format!("its review is overdue: nobody looked at it since {since}")));
        }
    }
    Ok(found)
}

fn signatures(tx: &Transaction<'_>) -> Result<BTreeMap<String, WallTime>, Refusal> {
    let mut statement = tx.prepare_cached("SELECT workload, signed_at FROM reviews")?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, WallTime(unsigned(row.get(1)?)))))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn activity(tx: &Transaction<'_>) -> Result<BTreeMap<String, Activity>, Refusal> {
    let mut found: BTreeMap<String, Activity> = BTreeMap::new();
    let mut statement = tx.prepare_cached("SELECT workload, max(issued_at) FROM credentials GROUP BY workload")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        found.entry(row.get(0)?).or_default().issued = Some(WallTime(unsigned(row.get(1)?)));
    }
    for (workload, last) in super::super::audit::released(tx)? {
        found.entry(workload).or_default().released = Some(last);
    }
    Ok(found)
}
