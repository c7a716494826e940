//! Reference sets that operators imported: kept as the bytes that were signed, one version of each
//! name in force, assigned to nodes and groups of them.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::clock::WallTime;
use crate::codes::{self, Refusal};
use crate::control_plane::registry::nodes::{self, Node};
use crate::control_plane::store::{OptionalExtension, Transaction, damaged, fixed, params, signed, unsigned};
use crate::identity::NodeId;
use crate::verify::references::Document;

/// How many read documents are kept, so that an attestation doesn't read megabytes again.
const CACHED: usize = 16;

/// The documents that were read last, by their digest: a document never changes.
static READ: Mutex<VecDeque<Arc<Document>>> = Mutex::new(VecDeque::new());

/// A stored set as shown to an operator.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Facts {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: u64,
    /// The firmware profile it is read under.
    pub profile: String,
    /// The bank.
    pub bank: String,
    /// The accepted states, with the moment until which.
    pub states: Vec<String>,
    /// The author and those who approved: SHA-256 of their keys.
    pub signers: Vec<String>,
    /// SHA-256 of the document: what leases name.
    pub digest: String,
    /// Nodes and groups that are held against it, while it is in force.
    pub assigned: Vec<String>,
    /// RFC 3339.
    pub imported: String,
    /// RFC 3339; absent while it is in force.
    pub retired: Option<String>,
}

/// Who is held against a set.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Target {
    /// A node.
    Node(NodeId),
    /// All nodes of a group, but those with an assignment of their own.
    Group(String),
}

/// The document a node is held against: its own assignment before its group's.
///
/// # Errors
/// [`codes::ADMIN_UNKNOWN`] when the set it is assigned was retired: the node then has no reference
/// values, rather than others; [`codes::STORE_FAILED`].
pub fn of_node(tx: &Transaction<'_>, node: &Node) -> Result<Option<Arc<Document>>, Refusal> {
    let Some(name) = assigned(tx, node)? else { return Ok(None) };
    match active(tx, &name)? {
        Some(document) => Ok(Some(document)),
        None => Err(Refusal::new(codes::VERIFY_NO_REFERENCE, format!("the reference set `{name}` is retired"))
            .at(format!("node {}", node.id))
            .expected("`reference import` of a newer version, or another `reference assign`")),
    }
}

/// The name of the set a node is held against.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn assigned(tx: &Transaction<'_>, node: &Node) -> Result<Option<String>, Refusal> {
    Ok(tx
        .prepare_cached(
            "SELECT name FROM reference_assignments WHERE node = ?1 OR node_group = ?2 ORDER BY node IS NULL LIMIT 1",
        )?
        .query_row(params![node.id.as_bytes(), node.group], |row| row.get(0))
        .optional()?)
}

/// Whether a node has an assignment of its own.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn has_own(tx: &Transaction<'_>, node: NodeId) -> Result<bool, Refusal> {
    Ok(tx.prepare_cached("SELECT 1 FROM reference_assignments WHERE node = ?1")?.exists([node.as_bytes()])?)
}

/// The version in force of a name.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn active(tx: &Transaction<'_>, name: &str) -> Result<Option<Arc<Document>>, Refusal> {
    let digest = tx
        .prepare_cached("SELECT digest FROM reference_documents WHERE name = ?1 AND retired_at IS NULL")?
        .query_row([name], |row| row.get::<_, Vec<u8>>(0))
        .optional()?;
    digest.map(|digest| by_digest(tx, &fixed(&digest, "a document's digest")?)).transpose()
}

/// A version of a name, in force or not; without a version the newest.
///
/// # Errors
/// [`codes::ADMIN_UNKNOWN`].
pub fn find(tx: &Transaction<'_>, name: &str, version: Option<u64>) -> Result<Arc<Document>, Refusal> {
    let digest = tx
        .prepare_cached(
            "SELECT digest FROM reference_documents WHERE name = ?1 AND (?2 IS NULL OR version = ?2)
             ORDER BY version DESC LIMIT 1",
        )?
        .query_row(params![name, version.map(signed)], |row| row.get::<_, Vec<u8>>(0))
        .optional()?
        .ok_or_else(|| unknown(name))?;
    by_digest(tx, &fixed(&digest, "a document's digest")?)
}

/// Puts a document in force; the version before is retired. The one in force again changes nothing.
///
/// # Errors
/// [`codes::VERIFY_REFERENCE_ORDER`] for a version that isn't newer than every one there was.
pub fn import(tx: &Transaction<'_>, document: &Document, now: WallTime) -> Result<bool, Refusal> {
    let set = &document.set;
    if active(tx, &set.name)?.is_some_and(|known| known.digest == document.digest) {
        return Ok(false);
    }
    let last: Option<i64> =
        tx.query_row("SELECT max(version) FROM reference_documents WHERE name = ?1", [&set.name], |row| row.get(0))?;
    if let Some(last) = last.map(unsigned).filter(|last| *last >= set.version) {
        return Err(Refusal::new(codes::VERIFY_REFERENCE_ORDER, format!("version {}", set.version))
            .at(format!("reference set `{}`", set.name))
            .expected(format!("more than {last}")));
    }
    end(tx, &set.name, now)?;
    let facts = serde_json::to_string(&Facts::of(document)).map_err(|_| damaged("a reference document's facts"))?;
    tx.execute(
        "INSERT INTO reference_documents(name, version, digest, document, facts, imported_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        params![set.name, signed(set.version), document.digest, document.bytes, facts, signed(now.0)],
    )?;
    Ok(true)
}

/// Retires a set: nodes that are held against it get no lease until there is a newer version.
///
/// # Errors
/// [`codes::ADMIN_UNKNOWN`].
pub fn retire(tx: &Transaction<'_>, name: &str, now: WallTime) -> Result<(), Refusal> {
    match end(tx, name, now)? {
        0 => Err(unknown(name)),
        _ => Ok(()),
    }
}

/// Holds a node or a group against a set that is in force; says whether that is new.
///
/// # Errors
/// [`codes::ADMIN_UNKNOWN`].
pub fn assign(tx: &Transaction<'_>, name: &str, target: &Target, now: WallTime) -> Result<bool, Refusal> {
    active(tx, name)?.ok_or_else(|| unknown(name))?;
    let (node, group) = target.columns();
    let before: Option<String> = tx
        .query_row(
            "SELECT name FROM reference_assignments WHERE node = ?1 OR node_group = ?2",
            params![node, group],
            |row| row.get(0),
        )
        .optional()?;
    if before.as_deref() == Some(name) {
        return Ok(false);
    }
    unassign(tx, target)?;
    tx.execute(
        "INSERT INTO reference_assignments(node, node_group, name, assigned_at) VALUES (?1, ?2, ?3, ?4)",
        params![node, group, name, signed(now.0)],
    )?;
    Ok(true)
}

/// Undoes it; says whether there was an assignment.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn unassign(tx: &Transaction<'_>, target: &Target) -> Result<bool, Refusal> {
    let (node, group) = target.columns();
    let removed =
        tx.execute("DELETE FROM reference_assignments WHERE node = ?1 OR node_group = ?2", params![node, group])?;
    Ok(removed > 0)
}

/// The nodes that a change of this set concerns.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn nodes_of(tx: &Transaction<'_>, name: &str) -> Result<Vec<NodeId>, Refusal> {
    let mut found = Vec::new();
    for node in nodes::all(tx)? {
        if assigned(tx, &node)?.as_deref() == Some(name) {
            found.push(node.id);
        }
    }
    Ok(found)
}

/// All stored sets, by name and version.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn all(tx: &Transaction<'_>) -> Result<Vec<Facts>, Refusal> {
    let mut statement =
        tx.prepare("SELECT facts, imported_at, retired_at FROM reference_documents ORDER BY name, version")?;
    let mut rows = statement.query([])?;
    let mut sets = Vec::new();
    while let Some(row) = rows.next()? {
        let facts: Facts =
            serde_json::from_str(&row.get::<_, String>(0)?).map_err(|_| damaged("a reference document's facts"))?;
        let retired = row.get::<_, Option<i64>>(2)?.map(|at| WallTime(unsigned(at)).to_string());
        let assigned = if retired.is_none() { targets(tx, &facts.name)? } else { Vec::new() };
        let imported = WallTime(unsigned(row.get(1)?)).to_string();
        sets.push(Facts { assigned, imported, retired, ..facts });
    }
    Ok(sets)
}

impl Facts {
    /// What the document itself says.
    pub fn of(document: &Document) -> Self {
        let set = &document.set;
        let states = set.states.iter().map(|state| match state.until {
            Some(until) => format!("{} until {until}", state.name),
            None => state.name.clone(),
        });
        Self {
            name: set.name.clone(),
            version: set.version,
            profile: set.profile.clone(),
            bank: set.bank.to_string(),
            states: states.collect(),
            signers: document.claimed.iter().map(hex::encode).collect(),
            digest: hex::encode(document.digest),
            assigned: Vec::new(),
            imported: String::new(),
            retired: None,
        }
    }
}

impl Target {
    fn columns(&self) -> (Option<&[u8; 32]>, Option<&str>) {
        match self {
            Self::Node(node) => (Some(node.as_bytes()), None),
            Self::Group(group) => (None, Some(group)),
        }
    }
}

fn targets(tx: &Transaction<'_>, name: &str) -> Result<Vec<String>, Refusal> {
    let mut statement =
        tx.prepare("SELECT node, node_group FROM reference_assignments WHERE name = ?1 ORDER BY 1, 2")?;
    let rows = statement.query_map([name], |row| {
        let node: Option<Vec<u8>> = row.get(0)?;
        let group: Option<String> = row.get(1)?;
        Ok(match (node, group) {
            (Some(node), _) => format!("node {}", hex::encode(node)),
            (None, group) => format!("group {}", group.unwrap_or_default()),
        })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn by_digest(tx: &Transaction<'_>, digest: &[u8; 32]) -> Result<Arc<Document>, Refusal> {
    // A panic while it is held can't leave it half changed: entries are only moved.
    let mut read = READ.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = read.iter().position(|document| document.digest == *digest).and_then(|at| read.remove(at)) {
        read.push_back(known.clone());
        return Ok(known);
    }
    let bytes: Vec<u8> = tx
        .prepare_cached("SELECT document FROM reference_documents WHERE digest = ?1")?
        .query_row([digest], |row| row.get(0))?;
    // Its signatures were verified at its import.
    let document = Arc::new(Document::read(&bytes, &[], 0)?);
    if document.digest != *digest {
        return Err(damaged("a reference document"));
    }
    read.push_back(document.clone());
    if read.len() > CACHED {
        read.pop_front();
    }
    Ok(document)
}

fn end(tx: &Transaction<'_>, name: &str, now: WallTime) -> Result<usize, Refusal> {
    Ok(tx.execute(
        "UPDATE reference_documents SET retired_at = ?1 WHERE name = ?2 AND retired_at IS NULL",
        params![signed(now.0), name],
    )?)
}

fn unknown(name: &str) -> Refusal {
    Refusal::new(codes::ADMIN_UNKNOWN, "no such reference set is in force")
        .at(format!("`{name}`"))
        .expected("a name that `reference list` shows")
}
