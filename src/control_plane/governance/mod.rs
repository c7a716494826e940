//! What deviates from the rules for a time, and whether somebody still looks: approvals, exceptions,
//! reviews. Whatever is begun here has an end of its own; nobody has to remember to end it.

pub mod approvals;
pub mod debt;
pub mod exceptions;
pub mod report;
pub mod reviews;
#[cfg(test)]
mod tests;

use super::admin::registrations;
use super::effects::Effects;
use super::registry::workloads;
use super::revocation::{Cause, What, take_back};
use super::store::Transaction;
use crate::clock::WallTime;
use crate::codes::{self, Refusal};
use crate::identity::SpiffeId;

/// What counts for a decision about a workload, towards a destination.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Standing {
    /// Until when somebody approved it; none if that is over.
    pub approved_until: Option<WallTime>,
    /// Until when the exceptions hold that it stands on; it may be over, and then nothing is issued.
    pub exception_until: Option<WallTime>,
}

/// How things stand for `workload` towards `destination` (empty for none).
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn standing(tx: &Transaction<'_>, workload: &str, destination: &str, now: WallTime) -> Result<Standing, Refusal> {
    Ok(Standing {
        approved_until: approvals::until(tx, workload, destination, now)?,
        exception_until: exceptions::until(tx, workload)?,
    })
}

/// Records what has ended by itself since the last round, and suspends what nobody reviewed in time.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn round(tx: &Transaction<'_>, bounds: &Governance, now: WallTime) -> Result<Effects, Refusal> {
    let mut effects = Effects::default();
    approvals::ended(tx, bounds, now)?;
    for exception in exceptions::ended(tx, now)? {
        // Of several that it stands on the last one counts.
        if exceptions::until(tx, &exception.workload)?.is_some_and(|until| until <= now) {
            effects.join(taken(tx, &exception.workload, "its exception has ended", now)?);
        }
    }
    for (workload, reason) in reviews::overdue(tx, bounds, now)? {
        let (_, suspended) = registrations::workloads::suspend(tx, &workload, &reason, now)?;
        effects.join(suspended);
    }
    Ok(effects)
}

/// Ends what was issued to a workload; its nodes hear of it.
fn taken(tx: &Transaction<'_>, id: &str, reason: &str, now: WallTime) -> Result<Effects, Refusal> {
    let cause = Cause { kind: "workload", target: id, reason, code: codes::POLICY_GUARDRAIL };
    let mut effects = take_back(tx, &What::Workloads(vec![id.to_owned()]), &cause, now)?.effects();
    if let Ok(id) = SpiffeId::new(id)
        && let Some(workload) = workloads::find(tx, &id)?
    {
        effects.join(registrations::told(tx, &workload)?);
    }
    Ok(effects)
}

/// Bounds and habits, from the configuration.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Governance {
    /// The longest exception, in seconds.
    pub exception: u64,
    /// The longest approval, in seconds.
    pub approval: u64,
    /// Seconds after which a workload is to be reviewed again.
    pub review: u64,
    /// Seconds without a credential after which a workload counts as unused.
    pub unused: u64,
    /// Seconds after a review was due from which on the workload is suspended; `None` never.
    pub suspend_overdue: Option<u64>,
}
