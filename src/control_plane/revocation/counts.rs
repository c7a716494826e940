//! Who was told, who says that it is done, who has proven it: three counts that are never mixed.

use serde::{Deserialize, Serialize};

use crate::clock::WallTime;
use crate::codes::{self, Refusal};
use crate::control_plane::events::Hub;
use crate::control_plane::store::{OptionalExtension, Transaction, damaged, fixed, params, signed, unsigned};
use crate::identity::NodeId;
use crate::protocol::{self, Withdrawal};

/// The most withdrawals of one answer.
const AT_ONCE: i64 = 256;
/// The most revocations of one list.
const LISTED: i64 = 1_000;

/// How far a node came with a withdrawal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// It was written to the node's stream, or stands in an answer to it. It need not have arrived.
    Told,
    /// The node says that it is applied.
    Acknowledged,
    /// Evidence that was affirmed names it.
    Proven,
}

impl Step {
    /// The columns it is noted in. A step implies those before it.
    const fn columns(self) -> &'static [(&'static str, &'static str)] {
        const ALL: [(&str, &str); 3] =
            [("told_at", "told_ms"), ("acknowledged_at", "acknowledged_ms"), ("proven_at", "proven_ms")];
        match self {
            Self::Told => ALL.split_at(1).0,
            Self::Acknowledged => ALL.split_at(2).0,
            Self::Proven => &ALL,
        }
    }
}

/// Notes a step of a node; `ms` is how long after the command. What isn't the node's is passed over. Returns
/// whether the step is new.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn note(
    tx: &Transaction<'_>,
    node: NodeId,
    number: u64,
    step: Step,
    now: WallTime,
    ms: Option<u64>,
) -> Result<bool, Refusal> {
    let mut new = false;
    for (at, after) in step.columns() {
        let changed = tx
            .prepare_cached(&format!(
                "UPDATE withdrawals SET {at} = ?3, {after} = ?4 WHERE revocation = ?1 AND node = ?2 AND {at} IS NULL"
            ))?
            .execute(params![signed(number), node.as_bytes(), signed(now.0), ms.map(signed)])?;
        new = changed == 1;
    }
    Ok(new)
}

/// What a node hasn't acknowledged, the oldest first; at most 256.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn outstanding(tx: &Transaction<'_>, node: NodeId) -> Result<Vec<Withdrawal>, Refusal> {
    let mut statement = tx.prepare_cached(
        "SELECT message FROM withdrawals
         WHERE node = ?1 AND proven_at IS NULL AND acknowledged_at IS NULL ORDER BY revocation LIMIT ?2",
    )?;
    let rows = statement.query_map(params![node.as_bytes(), AT_ONCE], |row| row.get::<_, Vec<u8>>(0))?;
    rows.map(|row| protocol::decode(&row?).map_err(|_| damaged("a withdrawal"))).collect()
}

/// A revocation as shown to an operator. All times are RFC 3339.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Facts {
    /// Its number.
    pub number: u64,
    /// When.
    pub at: String,
    /// `node`, `workload`, `owner`, `credential`, `task` or `ca`.
    pub kind: String,
    /// Which.
    pub target: String,
    /// Why.
    pub reason: String,
    /// Credentials that it ended.
    pub credentials: u64,
    /// Nodes that it concerns …
    pub nodes: u64,
    /// … those that were told …
    pub told: u64,
    /// … those that say that it is applied …
    pub acknowledged: u64,
    /// … and those whose affirmed evidence says so.
    pub proven: u64,
    /// When the last of what was not acknowledged runs out; absent if all was.
    pub until: Option<String>,
}

/// A node's part in a revocation.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Part {
    /// The node.
    pub node: String,
    /// Whether it listens now.
    pub stream: bool,
    /// When it last attested or enrolled.
    pub last_seen: String,
    /// When the last of what it held runs out, whatever it hears.
    pub until: String,
    /// When it was told.
    pub told: Option<String>,
    /// Milliseconds after the command; absent if the server was restarted in between.
    pub told_ms: Option<u64>,
    /// When it acknowledged.
    pub acknowledged: Option<String>,
    /// As `told_ms`.
    pub acknowledged_ms: Option<u64>,
    /// When evidence said so.
    pub proven: Option<String>,
    /// As `told_ms`.
    pub proven_ms: Option<u64>,
}

const SELECT: &str = "SELECT number, at, kind, target, reason, credentials, count(node), count(told_at),
     count(acknowledged_at), count(proven_at), max(bound) FILTER (WHERE acknowledged_at IS NULL)
     FROM revocations LEFT JOIN withdrawals ON revocation = number";

fn facts(row: &rusqlite::Row<'_>) -> rusqlite::Result<Facts> {
    let count = |column| row.get(column).map(unsigned);
    let time = |at: i64| WallTime(unsigned(at)).to_string();
    Ok(Facts {
        number: count(0)?,
        at: time(row.get(1)?),
        kind: row.get(2)?,
        target: row.get(3)?,
        reason: row.get(4)?,
        credentials: count(5)?,
        nodes: count(6)?,
        told: count(7)?,
        acknowledged: count(8)?,
        proven: count(9)?,
        until: row.get::<_, Option<i64>>(10)?.map(time),
    })
}

/// The newest revocations, the newest first.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn list(tx: &Transaction<'_>) -> Result<Vec<Facts>, Refusal> {
    let mut statement = tx.prepare(&format!("{SELECT} GROUP BY number ORDER BY number DESC LIMIT {LISTED}"))?;
    let rows = statement.query_map([], facts)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// One revocation.
///
/// # Errors
/// [`codes::ADMIN_UNKNOWN`].
pub fn find(tx: &Transaction<'_>, number: u64) -> Result<Facts, Refusal> {
    tx.query_row(&format!("{SELECT} WHERE number = ?1 GROUP BY number"), [signed(number)], facts)
        .optional()?
        .ok_or_else(|| {
            Refusal::new(codes::ADMIN_UNKNOWN, format!("no revocation has the number {number}"))
                .expected("one that `leasehold-server revocation list` shows")
        })
}

/// The newest revocation of exactly this.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn latest(tx: &Transaction<'_>, kind: &str, target: &str) -> Result<Option<u64>, Refusal> {
    let number: Option<i64> = tx.query_row(
        "SELECT max(number) FROM revocations WHERE kind = ?1 AND target = ?2",
        params![kind, target],
        |row| row.get(0),
    )?;
    Ok(number.map(unsigned))
}

/// Each node's part in it, by node.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn parts(tx: &Transaction<'_>, hub: &Hub, number: u64) -> Result<Vec<Part>, Refusal> {
    let mut statement = tx.prepare(
        "SELECT node, last_seen_at, bound, told_at, told_ms, acknowledged_at, acknowledged_ms, proven_at, proven_ms
         FROM withdrawals JOIN nodes ON nodes.id = node WHERE revocation = ?1 ORDER BY node",
    )?;
    let mut rows = statement.query([signed(number)])?;
    let mut parts = Vec::new();
    while let Some(row) = rows.next()? {
        let node = NodeId::from_bytes(fixed(&row.get::<_, Vec<u8>>(0)?, "a node id")?);
        let time = |at: i64| WallTime(unsigned(at)).to_string();
        let moment = |column| row.get::<_, Option<i64>>(column).map(|at| at.map(time));
        let ms = |column| row.get::<_, Option<i64>>(column).map(|ms| ms.map(unsigned));
        parts.push(Part {
            node: node.to_string(),
            stream: hub.is_open(node),
            last_seen: time(row.get(1)?),
            until: time(row.get(2)?),
            told: moment(3)?,
            told_ms: ms(4)?,
            acknowledged: moment(5)?,
            acknowledged_ms: ms(6)?,
            proven: moment(7)?,
            proven_ms: ms(8)?,
        });
    }
    Ok(parts)
}
