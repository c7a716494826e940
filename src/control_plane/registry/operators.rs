//! Operators: who may administer over the network. The identity is a workload's SVID like any other;
//! a row here gives its id a role.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::workloads::{self, Target};
use super::{eks, nodes, owners};
use crate::clock::WallTime;
use crate::codes::{self, Refusal};
use crate::control_plane::admin::roles;
use crate::control_plane::store::{OptionalExtension, Transaction, params, signed, unsigned};
use crate::identity::SpiffeId;

/// An operator.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Operator {
    /// The SPIFFE ID in its certificate.
    pub id: String,
    /// Its role.
    pub role: String,
    /// The owner that it is, or belongs to.
    pub owner: Option<String>,
    /// RFC 3339.
    pub added: String,
    /// Who added it.
    pub added_by: String,
}

/// Adds an operator, or gives it another role. Returns whether anything changed.
///
/// # Errors
/// [`codes::ADMIN_INVALID`] for an unknown role.
pub fn put(
    tx: &Transaction<'_>,
    id: &SpiffeId,
    role: &str,
    owner: Option<&str>,
    by: &str,
    now: WallTime,
) -> Result<bool, Refusal> {
    if !roles::ROLES.contains(&role) {
        return Err(Refusal::new(codes::ADMIN_INVALID, format!("role `{}`", role.escape_debug()))
            .at("--role")
            .expected(roles::ROLES.join(", ")));
    }
    if find(tx, id)?.is_some_and(|known| known.role == role && known.owner.as_deref() == owner) {
        return Ok(false);
    }
    tx.execute(
        "INSERT INTO operators(id, role, owner, added_at, added_by) VALUES (?1, ?2, ?3, ?4, ?5)
         ON CONFLICT(id) DO UPDATE SET role = ?2, owner = ?3, added_at = ?4, added_by = ?5",
        params![id.to_string(), role, owner, signed(now.0), by],
    )?;
    Ok(true)
}

/// Removes one.
///
/// # Errors
/// [`codes::ADMIN_UNKNOWN`].
pub fn remove(tx: &Transaction<'_>, id: &str) -> Result<(), Refusal> {
    match tx.execute("DELETE FROM operators WHERE id = ?1", [id])? {
        0 => Err(Refusal::new(codes::ADMIN_UNKNOWN, "no such operator")
            .at(id.to_owned())
            .expected("one that `leasehold-server operator list` shows")),
        _ => Ok(()),
    }
}

/// A way to an operator's identity: whose processes, and where, can have its certificate.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Way {
    operator: String,
    /// A node, or an EK that one may come with.
    node: String,
    selectors: BTreeSet<String>,
    interactive: bool,
}

/// All ways to operators' identities: over nodes that are admitted, and over EKs that will be once they come.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn ways(tx: &Transaction<'_>) -> Result<BTreeSet<Way>, Refusal> {
    let mut ways = BTreeSet::new();
    for operator in all(tx)? {
        // One whose owner left is none: whoever brings the owner back brings it back.
        if let Some(owner) = &operator.owner
            && owners::find(tx, owner)?.is_none_or(|owner| owner.retired.is_some())
        {
            continue;
        }
        let workload = SpiffeId::new(&operator.id).ok().map(|id| workloads::find(tx, &id)).transpose()?.flatten();
        let Some(workload) = workload.filter(|workload| workload.suspended.is_none()) else { continue };
        let mut nodes = Vec::new();
        match &workload.target {
            Target::Node(id) => nodes.push(id.to_string()),
            Target::Group(group) => {
                nodes.extend(nodes::of_group(tx, group)?.iter().map(ToString::to_string));
                let known = eks::all(tx)?.into_iter().filter(|ek| ek.group.as_ref() == Some(group));
                nodes.extend(known.map(|ek| ek.value));
            }
        }
        ways.extend(nodes.into_iter().map(|node| Way {
            operator: operator.id.clone(),
            node,
            selectors: workload.selectors.clone(),
            interactive: workload.interactive,
        }));
    }
    Ok(ways)
}

/// That nothing leads to an operator's identity now that didn't `before`: whoever could lay such a way had
/// that operator's role.
///
/// # Errors
/// [`codes::ADMIN_ROLE`].
pub fn no_new_way(tx: &Transaction<'_>, before: &BTreeSet<Way>) -> Result<(), Refusal> {
    match ways(tx)?.difference(before).next() {
        None => Ok(()),
        Some(way) => Err(Refusal::new(codes::ADMIN_ROLE, "other processes could then have this operator's identity")
            .at(way.operator.clone())
            .expected("the role admin, or the server's local socket")),
    }
}

/// The operator of this id.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn find(tx: &Transaction<'_>, id: &SpiffeId) -> Result<Option<Operator>, Refusal> {
    Ok(tx
        .prepare_cached("SELECT id, role, owner, added_at, added_by FROM operators WHERE id = ?1")?
        .query_row([id.to_string()], read)
        .optional()?)
}

/// All of them, by id.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn all(tx: &Transaction<'_>) -> Result<Vec<Operator>, Refusal> {
    let mut statement = tx.prepare("SELECT id, role, owner, added_at, added_by FROM operators ORDER BY id")?;
    let rows = statement.query_map([], read)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn read(row: &rusqlite::Row<'_>) -> rusqlite::Result<Operator> {
    Ok(Operator {
        id: row.get(0)?,
        role: row.get(1)?,
        owner: row.get(2)?,
        added: WallTime(unsigned(row.get(3)?)).to_string(),
        added_by: row.get(4)?,
    })
}
