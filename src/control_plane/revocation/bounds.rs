//! Whom a revocation concerns, and until when each of them could go on if it heard nothing.

use std::collections::{BTreeMap, BTreeSet};

use rusqlite::types::Value;

use super::{What, told};
use crate::clock::WallTime;
use crate::codes::{self, Refusal};
use crate::control_plane::leases;
use crate::control_plane::registry::workloads::{self, Target};
use crate::control_plane::store::{OptionalExtension, Transaction, fixed, params, signed, unsigned};
use crate::identity::{NodeId, SpiffeId};
use crate::protocol::Withdrawn;

/// The bound of a pushed revocation (promise 3), in seconds.
pub const PUSHED: u64 = 2;

/// A node that a revocation concerns.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Concerned {
    /// Which.
    pub node: NodeId,
    /// What it is told.
    pub of: Withdrawn,
    /// When the last of what it holds runs out, whatever it hears: the earlier of its lease's end, after which
    /// its agent releases nothing, and of the last of these credentials', after which nobody takes them.
    pub bound: WallTime,
    /// Credentials of it that are good now.
    pub holds: u64,
}

/// The nodes that `what` concerns: those it may be on, and those that hold something of it.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn concerned(tx: &Transaction<'_>, what: &What, now: WallTime) -> Result<Vec<Concerned>, Refusal> {
    let mut of: BTreeMap<NodeId, Vec<String>> = BTreeMap::new();
    match what {
        What::Node(node) | What::Task(node, _) => drop(of.insert(*node, Vec::new())),
        What::Credential(credential) => drop(of.insert(credential.node, Vec::new())),
        What::Workloads(ids) => {
            for id in ids {
                for node in nodes_of(tx, id, now)? {
                    of.entry(node).or_default().push(id.clone());
                }
            }
        }
    }
    let mut concerned = Vec::with_capacity(of.len());
    for (node, workloads) in of {
        let lease = lease_end(tx, node)?;
        let mut held = Held::default();
        match what {
            What::Node(_) => held.add(tx, "node = ?1", &[node.as_bytes().to_vec().into()], now)?,
            What::Credential(credential) => held.add(tx, "id = ?1", &[credential.id.clone().into()], now)?,
            What::Task(_, task) => {
                held.add(tx, "node = ?1 AND task = ?2", &[node.as_bytes().to_vec().into(), task.clone().into()], now)?;
            }
            What::Workloads(_) => {
                for id in &workloads {
                    let values = [node.as_bytes().to_vec().into(), id.clone().into()];
                    held.add(tx, "node = ?1 AND workload = ?2", &values, now)?;
                }
            }
        }
        let until = lease.map_or(held.until, |lease| lease.min(held.until)).max(now);
        concerned.push(Concerned { node, of: told(what, workloads), bound: until, holds: held.live });
    }
    Ok(concerned)
}

/// The end of the last lease's term, for which the node may go on, whatever ended it here. `None` where that
/// isn't known: the store was restored, and the credentials alone bound it.
fn lease_end(tx: &Transaction<'_>, node: NodeId) -> Result<Option<WallTime>, Refusal> {
    let lease = leases::find(tx, node)?;
    Ok(match lease {
        Some(lease) if lease.ended.as_deref() == Some(codes::PROTOCOL_EPOCH.as_str()) => None,
        Some(lease) => Some(lease.ends_at),
        None => Some(WallTime(0)),
    })
}

/// What is held of it.
#[derive(Debug)]
struct Held {
    until: WallTime,
    live: u64,
}

impl Default for Held {
    fn default() -> Self {
        Self { until: WallTime(0), live: 0 }
    }
}

impl Held {
    /// Counts in what was issued and isn't over; also what ended here before, which a node that heard nothing
    /// may still hold.
    fn add(&mut self, tx: &Transaction<'_>, condition: &str, values: &[Value], now: WallTime) -> Result<(), Refusal> {
        let place = values.len() + 1;
        let mut all = values.to_vec();
        all.push(signed(now.0).into());
        let (until, live): (Option<i64>, i64) = tx
            .prepare_cached(&holding(condition, place))?
            .query_row(rusqlite::params_from_iter(all), |row| Ok((row.get(0)?, row.get(1)?)))?;
        self.until = self.until.max(WallTime(until.map_or(0, unsigned)));
        self.live += unsigned(live);
        Ok(())
    }
}

fn holding(condition: &str, place: usize) -> String {
    format!(
        "SELECT max(not_after), count(*) FILTER (WHERE ended_at IS NULL) FROM credentials
         WHERE {condition} AND not_after > ?{place}"
    )
}

/// Who holds something of a workload.
const HOLDERS: &str = "SELECT DISTINCT credentials.node FROM credentials JOIN nodes ON nodes.id = credentials.node
     WHERE credentials.workload = ?1 AND credentials.not_after > ?2 AND nodes.state = 'admitted'";

/// The admitted nodes that a workload may be on, or that hold credentials of it.
fn nodes_of(tx: &Transaction<'_>, id: &str, now: WallTime) -> Result<BTreeSet<NodeId>, Refusal> {
    let mut nodes = BTreeSet::new();
    let registered = match SpiffeId::new(id) {
        Ok(id) => workloads::find(tx, &id)?,
        Err(_) => None,
    };
    match registered.map(|workload| workload.target) {
        Some(Target::Node(node)) => {
            let admitted = tx
                .prepare_cached("SELECT 1 FROM nodes WHERE id = ?1 AND state = 'admitted'")?
                .query_row([node.as_bytes()], |_| Ok(()))
                .optional()?;
            nodes.extend(admitted.map(|()| node));
        }
        Some(Target::Group(group)) => {
            let mut statement =
                tx.prepare_cached("SELECT id FROM nodes WHERE node_group = ?1 AND state = 'admitted'")?;
            collect(&mut nodes, statement.query_map([group], |row| row.get(0))?)?;
        }
        None => {}
    }
    let mut statement = tx.prepare_cached(HOLDERS)?;
    collect(&mut nodes, statement.query_map(params![id, signed(now.0)], |row| row.get(0))?)?;
    Ok(nodes)
}

fn collect(nodes: &mut BTreeSet<NodeId>, ids: impl Iterator<Item = rusqlite::Result<Vec<u8>>>) -> Result<(), Refusal> {
    for id in ids {
        nodes.insert(NodeId::from_bytes(fixed(&id?, "a node id")?));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control_plane::registry::nodes;

    /// The ledger only grows, and everybody waits while it is asked: only what isn't over is looked at.
    #[test]
    fn whom_it_concerns_is_found_by_an_index() {
        let (_dir, store) = nodes::tests::store();
        store
            .transaction_blocking(|tx| {
                for query in [
                    holding("node = ?1", 2),
                    holding("node = ?1 AND task = ?2", 3),
                    holding("node = ?1 AND workload = ?2", 3),
                    holding("id = ?1", 2),
                    HOLDERS.to_owned(),
                ] {
                    let mut statement = tx.prepare(&format!("EXPLAIN QUERY PLAN {query}"))?;
                    let values = vec![Value::Null; statement.parameter_count()];
                    let steps =
                        statement.query_map(rusqlite::params_from_iter(values), |row| row.get::<_, String>(3))?;
                    let steps: Vec<String> = steps.collect::<Result<_, _>>()?;
                    let good = |step: &String| {
                        !step.contains("credentials") || step.contains("not_after>?") || step.contains("(id=?)")
                    };
                    assert!(steps.iter().all(good), "{query}: {steps:?}");
                }
                Ok(())
            })
            .unwrap();
    }
}
