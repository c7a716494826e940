//! Workloads: who may be what, and on which nodes.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::nodes::Node;
use super::owners;
use crate::clock::WallTime;
use crate::codes::{self, Refusal};
use crate::control_plane::store::{Transaction, damaged, fixed, params, signed, unsigned};
use crate::identity::{NodeId, RESERVED_PATH, SpiffeId, TrustDomain};
use crate::protocol::Entry;

/// The longest free text of an entry, in bytes; also the longest hint (SPIFFE Workload API, 8).
const TEXT_LIMIT: usize = 1024;
/// The most selectors of an entry.
const SELECTOR_LIMIT: usize = 32;

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

/// A workload as stated by an operator, not yet checked.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stated {
    /// Its SPIFFE ID.
    pub id: String,
    /// Who answers for it.
    pub owner: String,
    /// What it is for.
    pub purpose: String,
    /// For clients with several identities.
    #[serde(default)]
    pub hint: String,
    /// The longest lifetime of its SVIDs in seconds.
    #[serde(default)]
    pub ttl_seconds: Option<u64>,
    /// The node it is for (id, or the start of one) …
    #[serde(default)]
    pub node: Option<String>,
    /// … or the group of nodes.
    #[serde(default)]
    pub node_group: Option<String>,
    /// What a caller must match.
    pub selectors: Vec<String>,
    /// Further words on it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// 1 (what matters most) to 4.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tier: Option<u8>,
    /// The audiences its tokens may name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub audiences: Vec<String>,
    /// The destinations it may be issued credentials for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub destinations: Vec<String>,
    /// Groups it is in, for policies.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub roles: Vec<String>,
    /// Whether somebody else's program runs as it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub third_party: bool,
    /// Whether processes of login sessions may have it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub interactive: bool,
}

/// A workload as shown to an operator.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Facts {
    /// What was registered; `node` is the full id.
    #[serde(flatten)]
    pub stated: Stated,
    /// RFC 3339.
    pub added: String,
}

impl Workload {
    /// Checks what an operator stated.
    ///
    /// # Errors
    /// [`codes::ADMIN_INVALID`] naming the option, [`codes::ADMIN_UNKNOWN`] for an owner or node
    /// that isn't known.
    pub fn check(tx: &Transaction<'_>, stated: Stated, trust_domain: &TrustDomain) -> Result<Self, Refusal> {
        let id = check_id(&stated.id, trust_domain)?;
        check_text("--owner", &stated.owner)?;
        check_text("--purpose", &stated.purpose)?;
        if !stated.hint.is_empty() {
            check_text("--hint", &stated.hint)?;
        }
        if stated.ttl_seconds == Some(0) {
            return Err(invalid("--ttl", "0").expected("at least one second"));
        }
        if !owners::exists(tx, &stated.owner)? {
            return Err(Refusal::new(codes::ADMIN_UNKNOWN, format!("no owner `{}`", stated.owner))
                .at("--owner")
                .expected(format!("`leasehold-server owner add {}` first", stated.owner)));
        }
        let target = match (stated.node, stated.node_group) {
            (Some(node), None) => Target::Node(super::nodes::resolve(tx, &node)?.id),
            (None, Some(group)) => {
                check_group(&group)?;
                Target::Group(group)
            }
            _ => return Err(invalid("--node", "no node and no group, or both").expected("one of --node, --node-group")),
        };
        let selectors = check_selectors(stated.selectors)?;
        Ok(Self {
            id,
            owner: stated.owner,
            purpose: stated.purpose,
            hint: stated.hint,
            ttl_seconds: stated.ttl_seconds,
            target,
            selectors,
            description: stated.description,
            tier: stated.tier,
            environment: String::new(),
            audiences: stated.audiences.into_iter().collect(),
            destinations: stated.destinations.into_iter().collect(),
            roles: stated.roles.into_iter().collect(),
            third_party: stated.third_party,
            interactive: stated.interactive,
            suspended: None,
        })
    }

    /// Whether it may run on `node`. A node's claims play no part in it.
    pub fn is_for(&self, node: &Node) -> bool {
        match &self.target {
            Target::Node(id) => *id == node.id,
            Target::Group(group) => node.group.as_ref() == Some(group),
        }
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
        }
    }

    fn facts(self, added: WallTime) -> Facts {
        let (node, node_group) = match self.target {
            Target::Node(id) => (Some(id.to_string()), None),
            Target::Group(group) => (None, Some(group)),
        };
        Facts {
            stated: Stated {
                id: self.id.to_string(),
                owner: self.owner,
                purpose: self.purpose,
                hint: self.hint,
                ttl_seconds: self.ttl_seconds,
                node,
                node_group,
                selectors: self.selectors.into_iter().collect(),
                description: self.description,
                tier: self.tier,
                audiences: self.audiences.into_iter().collect(),
                destinations: self.destinations.into_iter().collect(),
                roles: self.roles.into_iter().collect(),
                third_party: self.third_party,
                interactive: self.interactive,
            },
            added: added.to_string(),
        }
    }
}

/// Registers a workload. The same again changes nothing. Returns whether it is new.
///
/// # Errors
/// [`codes::ADMIN_CONFLICT`] when the id is registered differently.
pub fn add(tx: &Transaction<'_>, workload: &Workload, now: WallTime) -> Result<bool, Refusal> {
    if let Some(known) = find(tx, &workload.id)? {
        return match known == *workload {
            true => Ok(false),
            false => Err(Refusal::new(codes::ADMIN_CONFLICT, "it is registered differently")
                .at(workload.id.to_string())
                .expected("another id, or `workload remove` first")),
        };
    }
    let (node, group) = match &workload.target {
        Target::Node(id) => (Some(id.as_bytes().to_vec()), None),
        Target::Group(group) => (None, Some(group)),
    };
    let list = |texts: &BTreeSet<String>| serde_json::to_string(texts).map_err(|_| damaged("a list of texts"));
    tx.execute(
        &format!(
            "INSERT INTO workloads({COLUMNS})
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19)"
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
    Ok(true)
}

/// Removes a workload and returns what it was.
///
/// # Errors
/// [`codes::ADMIN_UNKNOWN`].
pub fn remove(tx: &Transaction<'_>, id: &str) -> Result<Workload, Refusal> {
    let unknown = || {
        Refusal::new(codes::ADMIN_UNKNOWN, "no such workload is registered")
            .at(id.to_owned())
            .expected("one that `leasehold-server workload list` shows")
    };
    let id = SpiffeId::new(id).map_err(|_| unknown())?;
    let workload = find(tx, &id)?.ok_or_else(unknown)?;
    tx.execute("DELETE FROM workloads WHERE id = ?1", [id.to_string()])?;
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

/// The workloads that may run on `node`, by id.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn of_node(tx: &Transaction<'_>, node: &Node) -> Result<Vec<Workload>, Refusal> {
    let mut statement = tx.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM workloads WHERE node = ?1 OR (node_group IS NOT NULL AND node_group = ?2) ORDER BY id"
    ))?;
    let mut rows = statement.query(params![node.id.as_bytes(), node.group])?;
    let mut workloads = Vec::new();
    while let Some(row) = rows.next()? {
        workloads.push(read(row)?.0);
    }
    Ok(workloads)
}

/// All workloads, by id.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn all(tx: &Transaction<'_>) -> Result<Vec<Facts>, Refusal> {
    let mut statement = tx.prepare(&format!("SELECT {COLUMNS} FROM workloads ORDER BY id"))?;
    let mut rows = statement.query([])?;
    let mut workloads = Vec::new();
    while let Some(row) = rows.next()? {
        let (workload, added) = read(row)?;
        workloads.push(workload.facts(added));
    }
    Ok(workloads)
}

/// All workloads as they stand in the store, with when they were registered.
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

/// A group's name: it stands in configurations and commands, so it is kept plain.
///
/// # Errors
/// [`codes::ADMIN_INVALID`].
pub fn check_group(group: &str) -> Result<(), Refusal> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    match !group.is_empty() && group.len() <= 64 && group.bytes().all(plain) {
        true => Ok(()),
        false => {
            Err(invalid("a group's name", &format!("`{group}`")).expected("1 to 64 letters, digits, `-`, `_` or `.`"))
        }
    }
}

/// A short text that must say something.
///
/// # Errors
/// [`codes::ADMIN_INVALID`].
pub fn check_text(option: &str, text: &str) -> Result<(), Refusal> {
    if text.trim().is_empty() {
        return Err(invalid(option, "it is empty"));
    }
    if text.len() > TEXT_LIMIT || text.chars().any(char::is_control) {
        return Err(invalid(option, "it is too long or has control characters")
            .expected(format!("at most {TEXT_LIMIT} bytes of plain text")));
    }
    Ok(())
}

const COLUMNS: &str = "id, owner, purpose, hint, ttl_seconds, node, node_group, selectors, created_at, \
    description, tier, environment, audiences, destinations, roles, third_party, interactive, suspended_at, suspended_reason";

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

fn check_id(text: &str, trust_domain: &TrustDomain) -> Result<SpiffeId, Refusal> {
    let id = SpiffeId::new(text).map_err(|e| invalid("--id", &format!("`{text}`: {e}")))?;
    // The parser is lenient about nothing that matters, but what is stored is what was typed.
    if id.to_string() != text {
        return Err(invalid("--id", &format!("`{text}`")).expected(format!("its one form, {id}")));
    }
    if !id.is_member_of(trust_domain) {
        return Err(invalid("--id", &format!("`{text}` is of another trust domain"))
            .expected(format!("spiffe://{trust_domain}/…")));
    }
    if id.path().is_empty() {
        return Err(invalid("--id", &format!("`{text}` has no path")).expected(format!("spiffe://{trust_domain}/…")));
    }
    if format!("{}/", id.path()).starts_with(RESERVED_PATH) {
        return Err(invalid("--id", &format!("`{text}` is reserved for Leasehold's own parts"))
            .expected(format!("a path that doesn't start with {RESERVED_PATH}")));
    }
    Ok(id)
}

fn check_selectors(stated: Vec<String>) -> Result<BTreeSet<String>, Refusal> {
    if stated.is_empty() {
        return Err(invalid("--selector", "none").expected("at least one, e.g. unix:uid:1000"));
    }
    if stated.len() > SELECTOR_LIMIT {
        return Err(invalid("--selector", "too many").expected(format!("at most {SELECTOR_LIMIT}")));
    }
    let mut selectors = BTreeSet::new();
    for selector in stated {
        check_selector(&selector)?;
        if !selectors.insert(selector.clone()) {
            return Err(invalid("--selector", &format!("`{selector}` stands twice")));
        }
    }
    Ok(selectors)
}

/// The selectors an agent knows. An unknown one could never match, and would look as if it did
/// something.
fn check_selector(selector: &str) -> Result<(), Refusal> {
    let refused = |expected: &str| invalid("--selector", &format!("`{selector}`")).expected(expected.to_owned());
    let kinds = "unix:uid:N, unix:gid:N, unix:path:/ABSOLUTE/PATH or unix:sha256:HEX";
    let rest = selector.strip_prefix("unix:").ok_or_else(|| refused(kinds))?;
    let (key, value) = rest.split_once(':').ok_or_else(|| refused(kinds))?;
    match key {
        // Exactly as the agent prints the number, so that equal means equal.
        "uid" | "gid" => match value.parse::<u32>() {
            Ok(number) if number.to_string() == value => Ok(()),
            _ => Err(refused("a number from 0 to 4294967295")),
        },
        "path" => {
            let plain = value.starts_with('/')
                && value.len() <= 4096
                && !value.chars().any(char::is_control)
                && value.split('/').skip(1).all(|part| !matches!(part, "" | "." | ".."));
            if plain { Ok(()) } else { Err(refused("an absolute path without `.`, `..` or `//`")) }
        }
        "sha256" => {
            let lower_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
            if value.len() == 64 && value.bytes().all(lower_hex) {
                Ok(())
            } else {
                Err(refused("64 lower-case hexadecimal digits"))
            }
        }
        _ => Err(refused(kinds)),
    }
}

fn invalid(at: &str, found: &str) -> Refusal {
    Refusal::new(codes::ADMIN_INVALID, found).at(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_of_this_trust_domain_and_not_reserved() {
        let domain = TrustDomain::new("example.org").unwrap();
        for good in
            ["spiffe://example.org/a", "spiffe://example.org/leaseholder/x", "spiffe://example.org/a/leasehold/x"]
        {
            check_id(good, &domain).unwrap();
        }
        for bad in [
            "spiffe://example.org",
            "spiffe://example.org/",
            "spiffe://other.org/a",
            "spiffe://example.org/leasehold",
            "spiffe://example.org/leasehold/node/x",
            "spiffe://example.org/a/../leasehold/server",
            "spiffe://example.org//a",
            "spiffe://example.org/%2e%2e/a",
            "spiffe://example.org/a/",
            "spiffe://example.org/ü",
            "spiffe://example.org/a\0",
            "https://example.org/a",
            "",
        ] {
            assert_eq!(check_id(bad, &domain).unwrap_err().code, codes::ADMIN_INVALID, "{bad}");
        }
    }

    #[test]
    fn selectors_are_the_ones_an_agent_can_match() {
        let digest = format!("unix:sha256:{}", "ab".repeat(32));
        for good in ["unix:uid:0", "unix:gid:4294967295", "unix:path:/usr/bin/a b", digest.as_str()] {
            check_selector(good).unwrap();
        }
        let upper = digest.to_uppercase().replace("UNIX:SHA256", "unix:sha256");
        for bad in [
            "uid:0",
            "unix:uid:",
            "unix:uid:01",
            "unix:uid:+1",
            "unix:uid:-1",
            "unix:uid:4294967296",
            "unix:user:root",
            "unix:path:bin",
            "unix:path:/a/../b",
            "unix:path://a",
            "unix:path:/a/",
            "unix:sha256:ab",
            "k8s:ns:x",
            "",
            upper.as_str(),
        ] {
            assert_eq!(check_selector(bad).unwrap_err().code, codes::ADMIN_INVALID, "{bad}");
        }
        let twice = vec!["unix:uid:1".to_owned(); 2];
        assert!(check_selectors(twice).is_err());
        assert!(check_selectors(Vec::new()).is_err());
    }
}
