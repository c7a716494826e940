//! The inventory: which identities there are, where, whose, what for, in which state, and what they
//! hold now. It is made from the store each time, so it can't be out of date.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::nodes::{self, Node};
use super::owners::{self, Kind, Owner};
use super::workloads::{self, Workload};
use crate::clock::WallTime;
use crate::codes::Refusal;
use crate::control_plane::governance::exceptions;
use crate::control_plane::references;
use crate::control_plane::store::{Transaction, fixed, unsigned};
use crate::identity::NodeId;

/// A workload on a node it may run on; or a node without workloads, or a workload without nodes.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Row {
    /// The node's id; none for a workload whose group has no nodes.
    pub node: Option<String>,
    /// TPM name of its EK, hexadecimal.
    pub ek: Option<String>,
    /// `waiting`, `admitted` or `revoked`.
    pub node_state: Option<String>,
    /// Its group.
    pub node_group: Option<String>,
    /// Its environment; empty for none.
    pub node_environment: Option<String>,
    /// When its latest verified evidence was received, RFC 3339.
    pub last_attest: Option<String>,
    /// What that said: `affirming`, or a refusal's code.
    pub verdict: Option<String>,
    /// The workload's SPIFFE ID; none for a node without workloads.
    pub workload: Option<String>,
    /// Whether the workload is registered for this node. Otherwise the row is there for what was issued before.
    pub registered: bool,
    /// The environment it is of.
    pub environment: Option<String>,
    /// Who answers for it.
    pub owner: Option<String>,
    /// A person or a team.
    pub owner_kind: Option<Kind>,
    /// How to reach the owner.
    pub owner_contact: Option<String>,
    /// When the owner left, RFC 3339.
    pub owner_retired: Option<String>,
    /// What it is for.
    pub purpose: Option<String>,
    /// The tier it counts as.
    pub tier: Option<u8>,
    /// Whether somebody stated that tier.
    pub tier_stated: Option<bool>,
    /// Whether somebody else's program runs as it.
    pub third_party: Option<bool>,
    /// Why it is suspended.
    pub suspended: Option<String>,
    /// Credentials of it on this node that have not ended.
    pub live_credentials: u64,
    /// Exceptions that hold for it.
    pub exceptions: u64,
}

/// The whole of it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Inventory {
    /// By node, then by workload; workloads without nodes last.
    pub rows: Vec<Row>,
    /// What the rows add up to.
    pub totals: Totals,
}

/// Counts of the store itself, to hold the rows against.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Totals {
    /// Nodes.
    pub nodes: u64,
    /// Workloads.
    pub workloads: u64,
    /// Owners, those that left too.
    pub owners: u64,
    /// Workloads that are suspended.
    pub suspended: u64,
    /// Workloads that nobody gave a tier.
    pub without_tier: u64,
    /// Credentials that have not ended.
    pub live_credentials: u64,
    /// Exceptions that hold.
    pub exceptions: u64,
}

/// Makes the inventory.
///
/// # Errors
/// [`crate::codes::STORE_FAILED`].
pub fn of(tx: &Transaction<'_>, now: WallTime) -> Result<Inventory, Refusal> {
    let facts = Facts::read(tx, now)?;
    let mut rows = Vec::new();
    let mut placed = BTreeSet::new();
    for node in &facts.nodes {
        let here = Row { registered: false, ..node_row(tx, node)? };
        let mut seen = BTreeSet::new();
        for workload in facts.workloads.values().filter(|workload| workload.is_for(node)) {
            let id = workload.id.to_string();
            rows.push(facts.row(&here, Some(node.id), &id));
            placed.insert(id.clone());
            seen.insert(id);
        }
        // What it still holds of workloads that may no longer run on it, or are gone.
        for (of, id) in facts.credentials.keys().filter(|(of, id)| *of == node.id && !seen.contains(id)) {
            rows.push(Row { registered: false, ..facts.row(&here, Some(*of), id) });
        }
        if rows.last().is_none_or(|row| row.node != here.node) {
            rows.push(here);
        }
    }
    for id in facts.workloads.keys().filter(|id| !placed.contains(*id)) {
        rows.push(facts.row(&Row::default(), None, id));
    }
    Ok(Inventory { rows, totals: facts.totals(tx)? })
}

struct Facts {
    nodes: Vec<Node>,
    workloads: BTreeMap<String, Workload>,
    owners: BTreeMap<String, Owner>,
    credentials: BTreeMap<(NodeId, String), u64>,
    exceptions: BTreeMap<String, u64>,
}

impl Facts {
    fn read(tx: &Transaction<'_>, now: WallTime) -> Result<Self, Refusal> {
        let mut credentials = BTreeMap::new();
        let mut statement = tx.prepare_cached(
            "SELECT node, workload, count(*) FROM credentials WHERE ended_at IS NULL GROUP BY node, workload",
        )?;
        let mut counted = statement.query([])?;
        while let Some(row) = counted.next()? {
            let node: Vec<u8> = row.get(0)?;
            let node = NodeId::from_bytes(fixed(&node, "a node id")?);
            credentials.insert((node, row.get(1)?), unsigned(row.get(2)?));
        }
        let mut held = BTreeMap::new();
        for exception in exceptions::all(tx)?.into_iter().filter(|exception| exception.is_live(now)) {
            *held.entry(exception.workload).or_default() += 1;
        }
        Ok(Self {
            nodes: nodes::all(tx)?,
            workloads: workloads::all(tx)?.into_iter().map(|one| (one.id.to_string(), one)).collect(),
            owners: owners::all(tx)?.into_iter().map(|owner| (owner.name.clone(), owner)).collect(),
            credentials,
            exceptions: held,
        })
    }

    /// The row of the workload `id` on the node that `here` describes.
    fn row(&self, here: &Row, node: Option<NodeId>, id: &str) -> Row {
        let live = node.and_then(|node| self.credentials.get(&(node, id.to_owned()))).copied().unwrap_or(0);
        let named = Row {
            workload: Some(id.to_owned()),
            live_credentials: live,
            exceptions: self.exceptions.get(id).copied().unwrap_or(0),
            ..here.clone()
        };
        let Some(workload) = self.workloads.get(id) else { return named };
        let owner = self.owners.get(&workload.owner);
        Row {
            registered: true,
            environment: Some(workload.environment.clone()),
            owner: Some(workload.owner.clone()),
            owner_kind: owner.map(|owner| owner.kind),
            owner_contact: owner.map(|owner| owner.contact.clone()),
            owner_retired: owner.and_then(|owner| owner.retired.clone()),
            purpose: Some(workload.purpose.clone()),
            tier: Some(workload.counts_as_tier()),
            tier_stated: Some(workload.tier.is_some()),
            third_party: Some(workload.third_party),
            suspended: workload.suspended.as_ref().map(|suspended| suspended.reason.clone()),
            ..named
        }
    }

    /// Counted by the database, not from the rows: a mistake in one would show in the other.
    fn totals(&self, tx: &Transaction<'_>) -> Result<Totals, Refusal> {
        let count = |sql: &str| -> Result<u64, Refusal> { Ok(unsigned(tx.query_row(sql, [], |row| row.get(0))?)) };
        Ok(Totals {
            nodes: count("SELECT count(*) FROM nodes")?,
            workloads: count("SELECT count(*) FROM workloads")?,
            owners: count("SELECT count(*) FROM owners")?,
            suspended: count("SELECT count(*) FROM workloads WHERE suspended_at IS NOT NULL")?,
            without_tier: count("SELECT count(*) FROM workloads WHERE tier IS NULL")?,
            live_credentials: count("SELECT count(*) FROM credentials WHERE ended_at IS NULL")?,
            exceptions: self.exceptions.values().sum(),
        })
    }
}

fn node_row(tx: &Transaction<'_>, node: &Node) -> Result<Row, Refusal> {
    let quote = references::latest_quote(tx, node.id)?;
    Ok(Row {
        node: Some(node.id.to_string()),
        ek: Some(hex::encode(&node.ek_name)),
        node_state: Some(node.state.as_str().to_owned()),
        node_group: node.group.clone(),
        node_environment: Some(node.environment.clone()),
        last_attest: quote.as_ref().map(|quote| quote.received_at.to_string()),
        verdict: quote.map(|quote| quote.verdict),
        ..Row::default()
    })
}

#[cfg(test)]
mod tests;
