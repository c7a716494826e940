//! Putting a node out for good.

use crate::clock::WallTime;
use crate::codes::{self, Refusal};
use crate::control_plane::registry::nodes::{self, Node, State};
use crate::control_plane::registry::ownership;
use crate::control_plane::store::Transaction;
use crate::control_plane::{audit, leases};

/// Revokes a node that isn't yet: its lease ends, and it can't enrol again under any of its EKs.
///
/// # Errors
/// [`codes::ADMIN_CONFLICT`] for a waiting node that claims another one's keys.
pub fn put_out(tx: &Transaction<'_>, before: &Node, reason: &str, now: WallTime) -> Result<Node, Refusal> {
    // A waiting node with the key or an EK of another one only claims them: it takes nothing along.
    ownership::check_keys(tx, before.id, &before.ak_public, &before.node_key_spki).map_err(
        |refusal| match refusal.code {
            codes::STORE_FAILED => refusal,
            _ => Refusal { code: codes::ADMIN_CONFLICT, ..refusal }.at(format!("node {}", before.id)),
        },
    )?;
    let aliases = match before.state {
        // Its own EK is proven. What a node that nobody ever admitted says of others is not, and
        // must not keep their TPMs out.
        State::Waiting => Vec::new(),
        State::Admitted | State::Revoked => before.aliases.clone(),
    };
    let revoked_reason = Some(reason.to_owned());
    let node = Node { state: State::Revoked, aliases, revoked_at: Some(now), revoked_reason, ..before.clone() };
    nodes::put(tx, &node)?;
    audit::claimed_eks(tx, now, &node, &ownership::claim_eks(tx, &node)?)?;
    leases::end(tx, node.id, codes::GATE_REVOKED)?;
    tx.execute("DELETE FROM nonces WHERE node = ?1 AND used_at IS NULL", [node.id.as_bytes()])?;
    Ok(node)
}
