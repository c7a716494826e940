//! Workloads: who may be what, on which nodes, who answers for it.

mod stated;
mod twins;

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::nodes::Node;
use crate::clock::WallTime;
use crate::codes::{self, Refusal};
use crate::control_plane::store::{Transaction, damaged, fixed, params, signed, unsigned};
use crate::identity::{NodeId, SpiffeId, exact_id};
use crate::protocol::Entry;

pub use stated::{Changes, Stated};
pub use twins::{none as no_twin, of_moved_node};

/// What a workload counts as that nobody gave a tier: what matters most.
pub const STRICTEST_TIER: u8 = 1;

/// The nodes an entry is for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Target {
    /// One node.
    Node(NodeId),
    /// Every node of a group.
    Group(String),
}

/// A registered workload.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Workload {
    /// Its SPIFFE ID.
    pub id: SpiffeId,
    /// Who answers for it.
    pub owner: String,
    /// What it is for.
    pub purpose: String,
    /// For clients with several identities; may be empty.
    pub hint: String,
    /// The longest lifetime of its SVIDs in seconds, below the server's own limit.
    pub ttl_seconds: Option<u64>,
    /// Where it may run.
    pub target: Target,
    /// All of these must match a caller.
    pub selectors: BTreeSet<String>,
    /// Further words on it.
    pub description: String,
    /// How much depends on it: 1 (internet-facing, builds, write access) to 4. `None` counts as 1.
    pub tier: Option<u8>,
    /// Its environment, e.g. `prod`; it stands first in the path of its id. Empty where none are used.
    pub environment: String,
    /// The audiences its tokens may name.
    pub audiences: BTreeSet<String>,
    /// The destinations it may be issued credentials for, by name.
    pub destinations: BTreeSet<String>,
    /// Groups it is in, for policies.
    pub roles: BTreeSet<String>,
    /// Whether somebody else's program runs as it.
    pub third_party: bool,
    /// Whether processes of login sessions may have it: it is for people, too.
    pub interactive: bool,
    /// Since when, and why, nothing is issued for it.
    pub suspended: Option<Suspension>,
}

/// A workload that gets nothing until somebody resumes it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Suspension {
    /// Since when.
    pub at: WallTime,
    /// Why.
    pub reason: String,
}

/// A workload as shown to an operator.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Facts {
    /// What was registered; `node` is the full id.
    #[serde(flatten)]
    pub stated: Stated,
    /// Its environment; empty where none are used.
    #[serde(default)]
    pub environment: String,
    /// The tier it counts as: the strictest, if nobody stated one.
    pub counts_as_tier: u8,
    /// RFC 3339: since when it is suspended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspended: Option<String>,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspended_reason: Option<String>,
    /// RFC 3339.
    pub added: String,
}

/// A workload before and after something was done to it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Change {
    /// As it was; none if it is new.
    pub before: Option<Workload>,
    /// As it is; none if it was removed.
    pub after: Option<Workload>,
}

impl Change {
    /// One that was there before and is there now.
    pub const fn between(before: Workload, after: Workload) -> Self {
        Self { before: Some(before), after: Some(after) }
    }

    /// Whether what was issued before can't stand: it names another owner's, purpose's or process's workload.
    pub fn is_of_scope(&self) -> bool {
        let (Some(before), Some(after)) = (&self.before, &self.after) else { return self.after.is_none() };
        before.owner != after.owner
            || before.purpose != after.purpose
            || before.selectors != after.selectors
            || before.target != after.target
            || before.third_party != after.third_party
            || (before.interactive && !after.interactive)
            || !before.audiences.is_subset(&after.audiences)
            || !before.destinations.is_subset(&after.destinations)
            || !before.roles.is_subset(&after.roles)
    }

    /// Whether it is suspended now and wasn't before.
    pub fn suspends(&self) -> bool {
        let is = |workload: &Option<Workload>| workload.as_ref().is_some_and(|workload| workload.suspended.is_some());
        is(&self.after) && !is(&self.before)
    }

    /// The SPIFFE ID.
    pub fn id(&self) -> Option<&SpiffeId> {
        self.after.as_ref().or(self.before.as_ref()).map(|workload| &workload.id)
    }
}

impl Workload {
    /// Whether it may run on `node`. A node's claims play no part in it.
    pub fn is_for(&self, node: &Node) -> bool {
        match &self.target {
            Target::Node(id) => *id == node.id,
            Target::Group(group) => node.group.as_ref() == Some(group),
        }
    }

    /// The tier it counts as: what nobody classified is treated as what matters most.
    pub fn counts_as_tier(&self) -> u8 {
        self.tier.unwrap_or(STRICTEST_TIER)
    }

    /// As it is once it is suspended; of two reasons the first stands.
    #[must_use]
    pub fn suspended(&self, reason: &str, now: WallTime) -> Self {
        let suspended = self.suspended.clone().unwrap_or_else(|| Suspension { at: now, reason: reason.to_owned() });
        Self { suspended: Some(suspended), ..self.clone() }
    }

    /// What the node is told of it.
    pub fn entry(&self) -> Entry {
        Entry {
            id: self.id.to_string(),
            selectors: self.selectors.iter().cloned().collect(),
            owner: self.owner.clone(),
            purpose: self.purpose.clone(),
            hint: self.hint.clone(),
            interactive: self.interactive,
            withheld: self.suspended.as_ref().map(|suspended| {
                let found = format!("suspended at {}: {}", suspended.at, suspended.reason);
                Refusal::new(codes::POLICY_SUSPENDED, found).at(self.id.to_string())
            }),
        }
    }

    /// As an operator would state it.
    pub fn stated(&self) -> Stated {
        let (node, node_group) = match &self.target {
            Target::Node(id) => (Some(id.to_string()), None),
            Target::Group(group) => (None, Some(group.clone())),
        };
        let list = |texts: &BTreeSet<String>| texts.iter().cloned().collect();
        Stated {
            id: self.id.to_string(),
            owner: self.owner.clone(),
            purpose: self.purpose.clone(),
            hint: self.hint.clone(),
            ttl_seconds: self.ttl_seconds,
            node,
            node_group,
            selectors: list(&self.selectors),
            description: self.description.clone(),
            tier: self.tier,
            audiences: list(&self.audiences),
            destinations: list(&self.destinations),
            roles: list(&self.roles),
            third_party: self.third_party,
            interactive: self.interactive,
        }
    }

    fn facts(&self, added: WallTime) -> Facts {
        Facts {
            stated: self.stated(),
            environment: self.environment.clone(),
            counts_as_tier: self.counts_as_tier(),
            suspended: self.suspended.as_ref().map(|suspended| suspended.at.to_string()),
            suspended_reason: self.suspended.as_ref().map(|suspended| suspended.reason.clone()),
            added: added.to_string(),
        }
    }
}

/// Registers a workload. The same again changes nothing, also for one that is suspended. Returns whether it is new.
///
/// # Errors
/// [`codes::ADMIN_CONFLICT`] when the id is registered differently, or another workload matches the same processes.
pub fn add(tx: &Transaction<'_>, workload: &Workload, now: WallTime) -> Result<bool, Refusal> {
    if let Some(known) = find(tx, &workload.id)? {
        return match (Workload { suspended: None, ..known }) == *workload {
            true => Ok(false),
            false => Err(Refusal::new(codes::ADMIN_CONFLICT, "it is registered differently")
                .at(workload.id.to_string())
                .expected("`workload set` to change it, or another id")),
        };
    }
    put(tx, workload, now)?;
    Ok(true)
}

/// Writes a workload as it is to be; one that is new is registered at `now`.
///
/// # Errors
/// [`codes::ADMIN_CONFLICT`] when another workload matches the same processes on the same node.
pub fn put(tx: &Transaction<'_>, workload: &Workload, now: WallTime) -> Result<(), Refusal> {
    no_twin(tx, workload)?;
    write(tx, workload, now)
}

/// As [`put`], where several change at once: then [`no_twin`] is to be asked of each afterwards.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn write(tx: &Transaction<'_>, workload: &Workload, now: WallTime) -> Result<(), Refusal> {
    let (node, group) = match &workload.target {
        Target::Node(id) => (Some(id.as_bytes().to_vec()), None),
        Target::Group(group) => (None, Some(group)),
    };
    let list = |texts: &BTreeSet<String>| serde_json::to_string(texts).map_err(|_| damaged("a list of texts"));
    tx.execute(
        &format!(
            "INSERT INTO workloads({COLUMNS})
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19)
             ON CONFLICT(id) DO UPDATE SET owner = ?2, purpose = ?3, hint = ?4, ttl_seconds = ?5, node = ?6,
             node_group = ?7, selectors = ?8, description = ?10, tier = ?11, environment = ?12, audiences = ?13,
             destinations = ?14, roles = ?15, third_party = ?16, interactive = ?17, suspended_at = ?18,
             suspended_reason = ?19"
        ),
        params![
            workload.id.to_string(),
            workload.owner,
            workload.purpose,
            workload.hint,
            workload.ttl_seconds.map(signed),
            node,
            group,
            list(&workload.selectors)?,
            signed(now.0),
            workload.description,
            workload.tier,
            workload.environment,
            list(&workload.audiences)?,
            list(&workload.destinations)?,
            list(&workload.roles)?,
            workload.third_party,
            workload.interactive,
            workload.suspended.as_ref().map(|suspended| signed(suspended.at.0)),
            workload.suspended.as_ref().map(|suspended| &suspended.reason),
        ],
    )?;
    Ok(())
}

/// Removes a workload; returns what it was.
///
/// # Errors
/// [`codes::ADMIN_UNKNOWN`].
pub fn remove(tx: &Transaction<'_>, id: &str) -> Result<Workload, Refusal> {
    let workload = existing(tx, id)?;
    tx.execute("DELETE FROM workloads WHERE id = ?1", [workload.id.to_string()])?;
    Ok(workload)
}

/// The workload with this id.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn find(tx: &Transaction<'_>, id: &SpiffeId) -> Result<Option<Workload>, Refusal> {
    let mut statement = tx.prepare_cached(&format!("SELECT {COLUMNS} FROM workloads WHERE id = ?1"))?;
    let mut rows = statement.query([id.to_string()])?;
    rows.next()?.map(|row| Ok(read(row)?.0)).transpose()
}

/// The workload with this id, as an operator typed it.
///
/// # Errors
/// [`codes::ADMIN_UNKNOWN`].
pub fn existing(tx: &Transaction<'_>, id: &str) -> Result<Workload, Refusal> {
    let unknown = || {
        Refusal::new(codes::ADMIN_UNKNOWN, "no such workload")
            .at(id.to_owned())
            .expected("one that `leasehold-server workload list` shows")
    };
    let id = exact_id(id).map_err(|_| unknown())?;
    find(tx, &id)?.ok_or_else(unknown)
}

/// The workloads that may run on `node`, by id, suspended ones too.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn of_node(tx: &Transaction<'_>, node: &Node) -> Result<Vec<Workload>, Refusal> {
    let mut statement = tx.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM workloads WHERE node = ?1 OR (node_group IS NOT NULL AND node_group = ?2) ORDER BY id"
    ))?;
    collect(statement.query(params![node.id.as_bytes(), node.group])?)
}

/// What `node` is told of: the workloads that may run on it, the suspended ones with the reason.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn entries(tx: &Transaction<'_>, node: &Node) -> Result<Vec<Entry>, Refusal> {
    Ok(of_node(tx, node)?.iter().map(Workload::entry).collect())
}

/// What `owner` answers for, by id.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn of_owner(tx: &Transaction<'_>, owner: &str) -> Result<Vec<Workload>, Refusal> {
    let mut statement = tx.prepare_cached(&format!("SELECT {COLUMNS} FROM workloads WHERE owner = ?1 ORDER BY id"))?;
    collect(statement.query([owner])?)
}

/// All workloads, by id.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn all(tx: &Transaction<'_>) -> Result<Vec<Workload>, Refusal> {
    let mut statement = tx.prepare(&format!("SELECT {COLUMNS} FROM workloads ORDER BY id"))?;
    collect(statement.query([])?)
}

/// All workloads, by id, with when they were registered.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn rows(tx: &Transaction<'_>) -> Result<Vec<(Workload, WallTime)>, Refusal> {
    let mut statement = tx.prepare(&format!("SELECT {COLUMNS} FROM workloads ORDER BY id"))?;
    let mut rows = statement.query([])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        found.push(read(row)?);
    }
    Ok(found)
}

/// All workloads as they are shown, by id.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn shown(tx: &Transaction<'_>, id: Option<&SpiffeId>) -> Result<Vec<Facts>, Refusal> {
    let mut statement =
        tx.prepare_cached(&format!("SELECT {COLUMNS} FROM workloads WHERE ?1 IS NULL OR id = ?1 ORDER BY id"))?;
    let mut rows = statement.query([id.map(ToString::to_string)])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        let (workload, added) = read(row)?;
        found.push(workload.facts(added));
    }
    Ok(found)
}

const COLUMNS: &str = "id, owner, purpose, hint, ttl_seconds, node, node_group, selectors, created_at, \
    description, tier, environment, audiences, destinations, roles, third_party, interactive, suspended_at, suspended_reason";

fn collect(mut rows: rusqlite::Rows<'_>) -> Result<Vec<Workload>, Refusal> {
    let mut workloads = Vec::new();
    while let Some(row) = rows.next()? {
        workloads.push(read(row)?.0);
    }
    Ok(workloads)
}

fn read(row: &rusqlite::Row<'_>) -> Result<(Workload, WallTime), Refusal> {
    let target = match (row.get::<_, Option<Vec<u8>>>(5)?, row.get::<_, Option<String>>(6)?) {
        (Some(node), None) => Target::Node(NodeId::from_bytes(fixed(&node, "a node id")?)),
        (None, Some(group)) => Target::Group(group),
        _ => return Err(damaged("a workload's node")),
    };
    let list = |column: usize| -> Result<BTreeSet<String>, Refusal> {
        serde_json::from_str(&row.get::<_, String>(column)?).map_err(|_| damaged("a list of texts"))
    };
    let suspended = row.get::<_, Option<i64>>(17)?.zip(row.get::<_, Option<String>>(18)?);
    let workload = Workload {
        id: SpiffeId::new(row.get::<_, String>(0)?).map_err(|_| damaged("a SPIFFE ID"))?,
        owner: row.get(1)?,
        purpose: row.get(2)?,
        hint: row.get(3)?,
        ttl_seconds: row.get::<_, Option<i64>>(4)?.map(unsigned),
        target,
        selectors: list(7)?,
        description: row.get(9)?,
        tier: row.get(10)?,
        environment: row.get(11)?,
        audiences: list(12)?,
        destinations: list(13)?,
        roles: list(14)?,
        third_party: row.get(15)?,
        interactive: row.get(16)?,
        suspended: suspended.map(|(at, reason)| Suspension { at: WallTime(unsigned(at)), reason }),
    };
    Ok((workload, WallTime(unsigned(row.get(8)?))))
}
