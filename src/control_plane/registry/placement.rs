//! Where nodes are: their group and environment, and what may run there.

use super::names;
use super::nodes::Node;
use super::rules::Rules;
use super::workloads::{self, Target, Workload};
use crate::codes::{self, Refusal};
use crate::control_plane::store::Transaction;

/// Where an operator puts a node; what isn't stated stays.
#[derive(Clone, Debug, Default)]
pub struct Place {
    /// Its group.
    pub group: Option<String>,
    /// Its environment; empty for none.
    pub environment: Option<String>,
}

impl Place {
    /// `node`, put there.
    ///
    /// # Errors
    /// [`codes::ADMIN_INVALID`] for a group or environment that can't be one.
    pub fn of(self, node: Node, rules: &Rules) -> Result<Node, Refusal> {
        if let Some(group) = &self.group {
            names::plain("--group", group)?;
        }
        if let Some(environment) = &self.environment {
            rules.environment("--environment", environment)?;
        }
        Ok(Node { group: self.group.or(node.group), environment: self.environment.unwrap_or(node.environment), ..node })
    }
}

/// Workloads that are registered for `node` must be able to run where it is, and their processes to be told
/// from those of its group's.
///
/// # Errors
/// [`codes::ADMIN_CONFLICT`], naming the workload.
pub fn check(tx: &Transaction<'_>, node: &Node) -> Result<(), Refusal> {
    let elsewhere = |workload: &&Workload| {
        matches!(workload.target, Target::Node(_))
            && !node.environment.is_empty()
            && workload.environment != node.environment
    };
    if let Some(workload) = workloads::of_node(tx, node)?.iter().find(elsewhere) {
        let found = format!("{} is registered for it, of the environment `{}`", workload.id, workload.environment);
        return Err(Refusal::new(codes::ADMIN_CONFLICT, found).at("--environment"));
    }
    workloads::of_moved_node(tx, node)
}
