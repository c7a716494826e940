//! Debt: how many exceptions there are, how old they are, and whether they get fewer.

use serde_json::{Value, json};

use super::super::store::Transaction;
use super::exceptions::{self, Exception};
use crate::clock::WallTime;
use crate::codes::Refusal;

/// A week in seconds, and how many weeks are looked back on.
const WEEK: u64 = 7 * 86_400;
const WEEKS: u64 = 8;

/// The debt as facts: each exception that isn't closed, the sums, and the count at the end of each of the
/// last eight weeks.
///
/// # Errors
/// [`crate::codes::STORE_FAILED`].
pub fn facts(tx: &Transaction<'_>, now: WallTime) -> Result<Value, Refusal> {
    let all = exceptions::all(tx)?;
    let open: Vec<&Exception> = all.iter().filter(|exception| exception.closed_at.is_none()).collect();
    let live = open.iter().filter(|exception| exception.is_live(now)).count();
    let age = |exception: &Exception| now.0.saturating_sub(exception.added_at.0) / 86_400;
    let rows: Vec<Value> = open
        .iter()
        .map(|exception| {
            json!({
                "id": exception.id, "workload": exception.workload, "owner": exception.owner,
                "reason": exception.reason, "ticket": exception.ticket, "age_days": age(exception),
                "expires": exception.expires_at.to_string(), "live": exception.is_live(now),
            })
        })
        .collect();
    let trend: Vec<Value> = (0..WEEKS)
        .rev()
        .map(|back| {
            let at = WallTime(now.0.saturating_sub(back.saturating_mul(WEEK)));
            json!({ "at": at.to_string(), "open": all.iter().filter(|exception| open_at(exception, at)).count() })
        })
        .collect();
    let ages: Vec<u64> = open.iter().map(|exception| age(exception)).collect();
    Ok(json!({
        "schema": 1,
        "count": open.len(),
        "live": live,
        "ended_not_closed": open.len() - live,
        "oldest_days": ages.iter().max(),
        "median_days": median(ages),
        "trend": trend,
        "debt": rows,
    }))
}

/// Whether it was there and not closed at a moment: what ended and wasn't closed is debt still.
fn open_at(exception: &Exception, at: WallTime) -> bool {
    exception.added_at <= at && exception.closed_at.is_none_or(|closed| closed > at)
}

fn median(mut ages: Vec<u64>) -> Option<u64> {
    ages.sort_unstable();
    ages.get(ages.len() / 2).copied()
}
