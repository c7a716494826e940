//! Joins what was recorded: each credential has one issue, its releases and uses, and one end, all of them under
//! one decision; whatever stands alone is an orphan. Decisions are forgotten after a time, as configured: until
//! when is kept with them, and of older credentials none is asked for.

use std::collections::{BTreeMap, BTreeSet};

use rusqlite::Connection;
use serde::Serialize;

use super::super::policy;
use super::super::store::unsigned;
use crate::clock::WallTime;
use crate::codes::Refusal;
use crate::protocol::Record;

/// What has run out is ended by the server's regular work: so many seconds later at the latest.
const LATE: u64 = 120;
/// The record of an issue as versions before the ledger wrote it; those that were over then aren't in the ledger.
const FORMERLY: &str = "svid.issued";
/// So many orphans are told.
const MOST: usize = 1000;

/// What was found. Schema version 1.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Joined {
    /// 1.
    pub schema: u32,
    /// Whether there are no orphans.
    pub holds: bool,
    /// Credentials that were issued.
    pub credentials: u64,
    /// Of these, those that ended.
    pub ended: u64,
    /// Of these, those that are live.
    pub live: u64,
    /// Releases that nodes recorded, counts and all.
    pub releases: u64,
    /// Uses.
    pub uses: u64,
    /// Denials.
    pub denials: u64,
    /// Decisions that credentials name.
    pub decisions: u64,
    /// Decisions from before this were forgotten (RFC 3339); absent if none was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decisions_since: Option<String>,
    /// How many orphans there are.
    pub orphan_count: u64,
    /// The first of them, in words.
    pub orphans: Vec<String>,
}

#[derive(Default)]
struct Life {
    decision: String,
    node: String,
    ended: bool,
    issued_at: u64,
    not_after: u64,
    /// Issued by a version that kept no decisions.
    undecided: bool,
    issues: u64,
    ends: u64,
}

/// Joins everything in the store behind `connection`, as of `now`.
///
/// # Errors
/// [`crate::codes::STORE_FAILED`].
pub fn join(connection: &Connection, now: WallTime) -> Result<Joined, Refusal> {
    let mut joined = Joined { schema: 1, ..Joined::default() };
    let mut lives = ledger(connection)?;
    log(connection, &mut lives, &mut joined)?;
    node_records(connection, &lives, &mut joined)?;
    let (decisions, since) = (decisions(connection)?, policy::kept_since(connection)?);
    joined.decisions_since = (since.0 > 0).then(|| since.to_string());
    let mut named = BTreeSet::new();
    for (id, life) in &lives {
        joined.credentials += 1;
        match life.ended {
            true => joined.ended += 1,
            false => joined.live += 1,
        }
        if life.issues != 1 {
            joined.orphan(format!("credential {id} has {} records of its issue, expected 1", life.issues));
        }
        if life.ends != u64::from(life.ended) {
            joined.orphan(format!(
                "credential {id} has {} records of its end, expected {}",
                life.ends,
                u64::from(life.ended)
            ));
        }
        if !life.ended && life.not_after.saturating_add(LATE) < now.0 {
            joined.orphan(format!("credential {id} ran out at {} and has no end", WallTime(life.not_after)));
        }
        if !life.undecided && life.issued_at >= since.0 && !decisions.contains(&life.decision) {
            joined.orphan(format!("credential {id} names the decision {}, which isn't there", life.decision));
        }
        named.insert(&life.decision);
    }
    joined.decisions = named.len() as u64;
    joined.holds = joined.orphan_count == 0;
    Ok(joined)
}

impl Joined {
    fn orphan(&mut self, what: String) {
        self.orphan_count += 1;
        if self.orphans.len() < MOST {
            self.orphans.push(what);
        }
    }
}

/// Every credential, as the ledger has it.
fn ledger(connection: &Connection) -> Result<BTreeMap<String, Life>, Refusal> {
    let mut statement = connection.prepare(
        "SELECT id, decision, lower(hex(node)), ended_at IS NOT NULL, not_after, issued_at FROM credentials",
    )?;
    let mut rows = statement.query([])?;
    let mut lives = BTreeMap::new();
    while let Some(row) = rows.next()? {
        let life = Life {
            decision: row.get(1)?,
            node: row.get(2)?,
            ended: row.get(3)?,
            not_after: unsigned(row.get(4)?),
            issued_at: unsigned(row.get(5)?),
            ..Life::default()
        };
        lives.insert(row.get(0)?, life);
    }
    Ok(lives)
}

/// Issues and ends, as the log has them.
fn log(connection: &Connection, lives: &mut BTreeMap<String, Life>, joined: &mut Joined) -> Result<(), Refusal> {
    let mut statement = connection.prepare(
        "SELECT id, what, coalesce(credential, json_extract(detail, '$.serial')), decision FROM log
         WHERE what IN ('svid.issued', 'credential.issued', 'credential.revoked', 'credential.expired') ORDER BY id",
    )?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let (number, what): (i64, String) = (row.get(0)?, row.get(1)?);
        let (credential, decision): (Option<String>, Option<String>) = (row.get(2)?, row.get(3)?);
        let Some(life) = credential.as_ref().and_then(|id| lives.get_mut(id)) else {
            if what == FORMERLY {
                continue;
            }
            let id = credential.unwrap_or_default();
            joined.orphan(format!("record {number} ({what}) is about credential {id}, which isn't in the ledger"));
            continue;
        };
        if decision.as_deref() != Some(life.decision.as_str()) {
            joined.orphan(format!("record {number} ({what}) names another decision than its credential"));
        }
        match what.as_str() {
            "credential.issued" => life.issues += 1,
            FORMERLY => (life.issues, life.undecided) = (life.issues + 1, true),
            _ => life.ends += 1,
        }
        if life.issues == 0 {
            joined.orphan(format!("record {number} ({what}) comes before the credential's issue"));
        }
    }
    Ok(())
}

/// Releases and uses, as nodes have them.
fn node_records(connection: &Connection, lives: &BTreeMap<String, Life>, joined: &mut Joined) -> Result<(), Refusal> {
    let mut statement = connection.prepare(
        "SELECT lower(hex(r.writer)), lower(hex(j.node)), r.record FROM node_records r
         LEFT JOIN journals j ON j.writer = r.writer ORDER BY r.arrival",
    )?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let (writer, node): (String, Option<String>) = (row.get(0)?, row.get(1)?);
        let line = row.get_ref(2)?.as_str().map(str::to_owned).unwrap_or_default();
        let Ok(record) = Record::parse(&line) else {
            joined.orphan(format!("a record of journal {writer} can't be read"));
            continue;
        };
        let name = format!("record {} of journal {writer} ({})", record.number, record.what);
        match record.what.as_str() {
            "credential.released" => joined.releases += record.count,
            "credential.used" => joined.uses += record.count,
            "credential.denied" => joined.denials += record.count,
            _ => {}
        }
        let released = record.what == "credential.released";
        let Some(life) = record.credential.as_ref().and_then(|id| lives.get(id)) else {
            // A token of another trust domain may be examined; what was released was issued here.
            if released {
                joined.orphan(format!("{name} is about a credential that isn't in the ledger"));
            }
            continue;
        };
        if released && record.decision.as_deref() != Some(life.decision.as_str()) {
            joined.orphan(format!("{name} names another decision than its credential"));
        }
        if released && node.as_deref() != Some(life.node.as_str()) {
            joined.orphan(format!("{name} is of another node than its credential"));
        }
    }
    Ok(())
}

fn decisions(connection: &Connection) -> Result<BTreeSet<String>, Refusal> {
    let mut statement = connection.prepare("SELECT id FROM decisions")?;
    let rows = statement.query_map([], |row| row.get(0))?;
    Ok(rows.collect::<Result<_, _>>()?)
}
