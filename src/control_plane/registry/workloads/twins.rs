//! One process, one name: two workloads with the same selectors on the same node would give each
//! process both, and nobody could say which of them acted.

use super::{Target, Workload};
use crate::codes::{self, Refusal};
use crate::control_plane::registry::nodes::Node;
use crate::control_plane::store::{OptionalExtension, Transaction, damaged, params};

/// Refuses a workload that matches exactly the processes another one matches, somewhere.
///
/// # Errors
/// [`codes::ADMIN_CONFLICT`], naming the other.
pub fn none(tx: &Transaction<'_>, workload: &Workload) -> Result<(), Refusal> {
    // Both lists are sorted and written by the same writer, so that equal means equal.
    let selectors = serde_json::to_string(&workload.selectors).map_err(|_| damaged("a list of texts"))?;
    let id = workload.id.to_string();
    let twin: Option<String> = match &workload.target {
        Target::Node(node) => tx
            .prepare_cached(
                "SELECT id FROM workloads WHERE selectors = ?1 AND id <> ?2
                 AND (node = ?3 OR node_group = (SELECT node_group FROM nodes WHERE nodes.id = ?3)) ORDER BY id LIMIT 1",
            )?
            .query_row(params![selectors, id, node.as_bytes()], |row| row.get(0))
            .optional()?,
        Target::Group(group) => tx
            .prepare_cached(
                "SELECT id FROM workloads WHERE selectors = ?1 AND id <> ?2
                 AND (node_group = ?3 OR node IN (SELECT nodes.id FROM nodes WHERE nodes.node_group = ?3)) ORDER BY id LIMIT 1",
            )?
            .query_row(params![selectors, id, group], |row| row.get(0))
            .optional()?,
    };
    match twin {
        None => Ok(()),
        Some(twin) => Err(refused(&id, &twin)),
    }
}

/// Refuses a node in a group whose workloads match the same processes as one that is registered for the node itself.
///
/// # Errors
/// [`codes::ADMIN_CONFLICT`], naming both.
pub fn of_moved_node(tx: &Transaction<'_>, node: &Node) -> Result<(), Refusal> {
    let twins: Option<(String, String)> = tx
        .prepare_cached(
            "SELECT own.id, shared.id FROM workloads AS own JOIN workloads AS shared ON own.selectors = shared.selectors
             WHERE own.node = ?1 AND shared.node_group = ?2 ORDER BY own.id, shared.id LIMIT 1",
        )?
        .query_row(params![node.id.as_bytes(), node.group], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    match twins {
        None => Ok(()),
        Some((own, shared)) => Err(refused(&own, &shared)),
    }
}

fn refused(id: &str, twin: &str) -> Refusal {
    Refusal::new(codes::ADMIN_CONFLICT, format!("{twin} has the same selectors on the same node"))
        .at(id)
        .expected("a selector that tells their processes apart")
}
