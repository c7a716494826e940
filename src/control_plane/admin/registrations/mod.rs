//! Commands about what an operator registers: EKs, owners, destinations, workloads.

pub mod destinations;
pub mod eks;
pub mod owners;
pub mod workloads;

use std::collections::BTreeSet;

use serde_json::json;

use super::commands::{Outcome, only};
use super::operators as of_operators;
use crate::clock::WallTime;
use crate::codes::{self, Refusal};
use crate::control_plane::audit::Subject;
use crate::control_plane::effects::Effects;
use crate::control_plane::events::Audience;
use crate::control_plane::governance::{approvals, exceptions};
use crate::control_plane::registry::workloads::{Change, Target, Workload};
use crate::control_plane::registry::{inventory, nodes, operators};
use crate::control_plane::replay;
use crate::control_plane::revocation::{Cause, What, take_back};
use crate::control_plane::store::Transaction;
use crate::identity::NodeId;
use crate::protocol::Event;

/// Makes changes of workloads felt: what was issued before them and can't stand is taken back, and
/// the nodes concerned attest at once, by which they learn what they may still hold.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn felt(tx: &Transaction<'_>, changes: &[Change], reason: &str, now: WallTime) -> Result<Effects, Refusal> {
    let mut effects = Effects::default();
    let mut told = BTreeSet::new();
    for change in changes {
        for workload in change.before.iter().chain(&change.after) {
            told.extend(nodes_of(tx, workload)?);
        }
        let Some(before) = &change.before else { continue };
        let id = before.id.to_string();
        // What was granted to the name doesn't outlive its registration: whoever registers it again is another.
        if change.after.is_none() {
            exceptions::void(tx, &id, now)?;
            if operators::find(tx, &before.id)?.is_some() {
                effects.join(of_operators::remove(tx, &id, now)?.1);
            }
        }
        let code = match change {
            Change { after: None, .. } => codes::GATE_REVOKED,
            change if change.suspends() => codes::POLICY_SUSPENDED,
            change if change.is_of_scope() => codes::POLICY_SCOPE,
            _ => continue,
        };
        if change.is_of_scope() {
            approvals::void(tx, &id, now)?;
        }
        let taken = take_back(
            tx,
            &What::Workloads(vec![id.clone()]),
            &Cause { kind: "workload", target: &id, reason, code },
            now,
        )?;
        effects.join(taken.effects());
    }
    effects.join(attest(tx, told)?);
    Ok(effects)
}

/// The nodes that must attest anew, since what they may hold of this workload has changed.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn told(tx: &Transaction<'_>, workload: &Workload) -> Result<Effects, Refusal> {
    attest(tx, nodes_of(tx, workload)?.into_iter().collect())
}

/// The inventory.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn inventory(tx: &Transaction<'_>, now: WallTime) -> Result<Outcome, Refusal> {
    let inventory = inventory::of(tx, now)?;
    Ok(only(json!({ "schema": 1, "inventory": inventory.rows, "totals": inventory.totals })))
}

/// Whom a record about a workload is about.
pub fn subject(id: &str) -> Subject<'_> {
    Subject { workload: Some(id), ..Subject::default() }
}

/// By which these nodes attest anew; answers that are kept for their retries are out of date.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn attest(tx: &Transaction<'_>, nodes: BTreeSet<NodeId>) -> Result<Effects, Refusal> {
    for node in &nodes {
        replay::forget(tx, Some(*node))?;
    }
    let push = nodes.into_iter().map(|node| (Audience::Node(node), Event::Attest)).collect();
    Ok(Effects { push, ..Effects::default() })
}

fn nodes_of(tx: &Transaction<'_>, workload: &Workload) -> Result<Vec<NodeId>, Refusal> {
    match &workload.target {
        Target::Node(id) => Ok(vec![*id]),
        Target::Group(group) => nodes::of_group(tx, group),
    }
}
