//! Asking again: what was permitted once is held to what holds now.
//!
//! A credential that its question would no longer be granted is taken back. That is asked whenever
//! something changes that policies see (a bundle, a registration, what a node's evidence says) and,
//! where policies look at the time, by the clock.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::decisions::{self, Kept};
use super::inputs::Inputs;
use super::{Action, Question, answered, fresh_id};
use crate::clock::WallTime;
use crate::codes::{self, Refusal};
use crate::control_plane::credentials::ledger::{self, Credential, Kind, Of};
use crate::control_plane::effects::Effects;
use crate::control_plane::leases;
use crate::control_plane::registry::{nodes, workloads};
use crate::control_plane::revocation::{self, Cause, What};
use crate::control_plane::server::Shared;
use crate::control_plane::store::{Transaction, fixed};
use crate::identity::{NodeId, SpiffeId};
use crate::protocol::AuthorizationDetail;

/// The nodes that hold live credentials.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn holders(tx: &Transaction<'_>) -> Result<Vec<NodeId>, Refusal> {
    let mut statement = tx.prepare_cached("SELECT DISTINCT node FROM credentials WHERE ended_at IS NULL")?;
    let mut rows = statement.query([])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        found.push(NodeId::from_bytes(fixed(&row.get::<_, Vec<u8>>(0)?, "a node id")?));
    }
    Ok(found)
}

/// Whether time alone can change what the bundle in force says.
fn timed(tx: &Transaction<'_>, shared: &Shared) -> Result<bool, Refusal> {
    match shared.bundles.in_force(tx, &shared.settings.policy) {
        Ok(bundle) => Ok(bundle.rules.timed),
        Err(refusal) if refusal.code == codes::STORE_FAILED => Err(refusal),
        Err(_) => Ok(false),
    }
}

/// Holds what is live to the policies in force, where they look at the time.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub async fn reconsider_timed(shared: &Arc<Shared>) -> Result<(), Refusal> {
    let of_work = shared.clone();
    match shared.store.reading(false, move |tx| timed(tx, &of_work)).await? {
        true => reconsider_all(shared).await,
        false => Ok(()),
    }
}

/// Holds what is live to the policies in force: one transaction for each node, so that nobody waits long.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub async fn reconsider_all(shared: &Arc<Shared>) -> Result<(), Refusal> {
    let now = shared.now();
    for node in shared.store.reading(false, holders).await? {
        let of_work = shared.clone();
        let effects =
            shared.store.transaction(move |tx| reconsider(tx, &of_work, node, now)?.seal(tx, &of_work)).await?;
        effects.carry_out(shared).await?;
    }
    Ok(())
}

/// Asks again for all that a node holds, takes back what it wouldn't get now, and gives back what
/// is still to be done. Where the bundle itself fails nothing is concluded: what is out runs to its end.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn reconsider(tx: &Transaction<'_>, shared: &Shared, node: NodeId, now: WallTime) -> Result<Effects, Refusal> {
    let mut effects = Effects::default();
    for credential in ledger::live(tx, Of::Node(node))? {
        let Some((decision, refusal)) = denied(tx, shared, &credential, now)? else { continue };
        let reason = format!("{} (decision {decision})", refusal.found);
        let id = credential.id.clone();
        let cause = Cause { kind: "credential", target: &id, reason: &reason, code: refusal.code };
        effects.join(revocation::take_back(tx, &What::Credential(credential), &cause, now)?.effects());
    }
    Ok(effects)
}

/// Why a credential would not be issued now, with the decision that says so.
fn denied(
    tx: &Transaction<'_>,
    shared: &Shared,
    credential: &Credential,
    now: WallTime,
) -> Result<Option<(String, Refusal)>, Refusal> {
    if credential.not_after <= now {
        return Ok(None);
    }
    // One that an earlier version made isn't kept: the question is then the plain one.
    let before = match decisions::find(tx, &credential.decision) {
        Ok(kept) => Some(kept),
        Err(refusal) if refusal.code == codes::ADMIN_UNKNOWN => None,
        Err(refusal) => return Err(refusal),
    };
    let id = SpiffeId::new(&credential.workload).ok();
    let workload = id.map(|id| workloads::find(tx, &id)).transpose()?.flatten();
    let (Some(workload), Some(node)) = (workload, nodes::find(tx, credential.node)?) else { return Ok(None) };
    let Some(lease) = leases::find(tx, node.id)? else { return Ok(None) };
    let asked = before.as_ref().map(|kept| &kept.inputs);
    let question = Question {
        action: match credential.kind {
            Kind::X509 => Action::X509,
            Kind::Jwt => Action::Jwt,
        },
        node: &node,
        lease: &lease,
        workload: &workload,
        caller: None,
        task: None,
        audience: &credential.audience,
        destination: asked.and_then(|inputs| inputs.destination.as_ref()).map(|it| it.name.as_str()),
        details: asked.map(|inputs| inputs.details.as_slice()).unwrap_or_default(),
    };
    let inputs = Inputs {
        caller: asked.and_then(|inputs| inputs.caller.clone()),
        task: asked.and_then(|inputs| inputs.task.clone()),
        ..Inputs::gather(tx, shared, &question, now)?
    };
    let (policy, answer) = answered(tx, shared, &inputs)?;
    let narrower = || before.as_ref().is_some_and(|before| !covers(&answer.details, &before.answer.details));
    let refusal = match &answer.refusal {
        // The decision is kept as it was made; that it permits too little is said beside it.
        None if narrower() => {
            Refusal::new(codes::POLICY_DENIED, "not all that it says may be done is permitted any more")
        }
        None => return Ok(None),
        Some(refusal) if refusal.code == codes::POLICY_FAILED => return Ok(None),
        Some(refusal) => refusal.clone(),
    };
    let decision = fresh_id()?;
    decisions::keep(tx, &Kept { id: decision.clone(), at: now, policy, inputs, answer })?;
    Ok(Some((decision, refusal)))
}

/// Whether everything in `less` stands in `more`.
fn covers(more: &[AuthorizationDetail], less: &[AuthorizationDetail]) -> bool {
    let singles = |details: &[AuthorizationDetail]| -> BTreeSet<(String, String, String)> {
        let texts = |texts: &[String]| if texts.is_empty() { vec![String::new()] } else { texts.to_vec() };
        details
            .iter()
            .flat_map(|detail| {
                let locations = texts(&detail.locations);
                texts(&detail.actions).into_iter().flat_map(move |action| {
                    let kind = detail.kind.clone();
                    locations.clone().into_iter().map(move |location| (kind.clone(), action.clone(), location))
                })
            })
            .collect()
    };
    singles(less).is_subset(&singles(more))
}
