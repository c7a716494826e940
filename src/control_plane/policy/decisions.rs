//! Decisions as they are kept: with their inputs and the digest of the bundle, so that each can be
//! made again.

use serde_json::{Value, json};

use super::engine::{self, Answer};
use super::in_force::Bundles;
use super::inputs::Inputs;
use super::schema;
use crate::clock::WallTime;
use crate::codes::{self, Refusal};
use crate::control_plane::store::{Transaction, damaged, fixed, meta, params, signed, unsigned};
use crate::identity::NodeId;

/// So many are forgotten at a time: everybody else waits meanwhile.
const AT_ONCE: usize = 1000;
/// Where the store keeps from when on all are there.
const SINCE: &str = "decisions_since";

/// A kept decision.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Kept {
    /// 32 hexadecimal digits.
    pub id: String,
    /// When it was made.
    pub at: WallTime,
    /// Digest of the bundle; zeros where there was no valid one.
    pub policy: [u8; 32],
    /// What it was made of.
    pub inputs: Inputs,
    /// What it says.
    pub answer: Answer,
}

/// Which decisions.
#[derive(Clone, Debug, Default)]
pub struct Filter<'a> {
    /// Of this workload.
    pub workload: Option<&'a str>,
    /// Of this node.
    pub node: Option<NodeId>,
    /// Refusals only.
    pub denied: bool,
    /// Not older than this.
    pub since: Option<WallTime>,
}

/// What came of making decisions again.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Replayed {
    /// How many were made again.
    pub decisions: u64,
    /// How many came to the same.
    pub same: u64,
    /// The ids of the first others, with how they differ.
    pub others: Vec<(String, String)>,
}

/// Keeps a decision.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn keep(tx: &Transaction<'_>, kept: &Kept) -> Result<(), Refusal> {
    let node: Option<NodeId> = kept.inputs.node.id.parse().ok();
    let answer = serde_json::to_string(&kept.answer).map_err(|_| damaged("an answer"))?;
    tx.prepare_cached(
        "INSERT INTO decisions(id, at, node, workload, action, permitted, policy, inputs, answer)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
    )?
    .execute(params![
        kept.id,
        signed(kept.at.0),
        node.as_ref().map(NodeId::as_bytes),
        kept.inputs.workload.id,
        kept.inputs.action.as_str(),
        kept.answer.permits(),
        kept.policy,
        kept.inputs.canonical()?,
        answer,
    ])?;
    Ok(())
}

/// Forgets decisions from before `until`, a number of them at a time; those of live credentials stay. Says whether
/// there are more.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn forget(tx: &Transaction<'_>, until: WallTime) -> Result<bool, Refusal> {
    let forgotten = tx
        .prepare_cached(
            "DELETE FROM decisions WHERE rowid IN (SELECT rowid FROM decisions WHERE at < ?1
             AND id NOT IN (SELECT decision FROM credentials WHERE ended_at IS NULL) ORDER BY at LIMIT ?2)",
        )?
        .execute(params![signed(until.0), signed(AT_ONCE as u64)])?;
    if forgotten > 0 && kept_since(tx)? < until {
        meta::set_number(tx, SINCE, until.0)?;
    }
    Ok(forgotten >= AT_ONCE)
}

/// From when on all decisions are kept; whoever joins records asks for none from before.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn kept_since(connection: &rusqlite::Connection) -> Result<WallTime, Refusal> {
    Ok(WallTime(meta::number(connection, SINCE)?))
}

/// The decision of this id, or of the one id that begins so (at least 8 digits).
///
/// # Errors
/// [`codes::ADMIN_UNKNOWN`].
pub fn find(tx: &Transaction<'_>, id: &str) -> Result<Kept, Refusal> {
    let unknown = |found: &str| {
        Refusal::new(codes::ADMIN_UNKNOWN, found).at(format!("decision {}", id.escape_debug())).expected(
            "an id as `decision list` shows it, at least its first 8 digits; what was refused before there was \
                 anything to decide stands in the log alone",
        )
    };
    if id.len() < 8 || id.len() > 32 || !id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(unknown("it is no decision's id"));
    }
    let id = id.to_ascii_lowercase();
    let mut statement = tx.prepare_cached(
        "SELECT id, at, policy, inputs, answer FROM decisions WHERE id >= ?1 AND id < ?1 || 'g' ORDER BY id LIMIT 2",
    )?;
    let mut rows = statement.query([id])?;
    let Some(row) = rows.next()? else { return Err(unknown("no such decision is kept")) };
    let kept = read(row)?;
    match rows.next()? {
        None => Ok(kept),
        Some(_) => Err(unknown("several decisions begin so")),
    }
}

/// The newest decisions that the filter takes, newest first.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn list(tx: &Transaction<'_>, filter: &Filter<'_>, limit: u64) -> Result<Vec<Value>, Refusal> {
    let mut statement = tx.prepare(
        "SELECT id, at, policy, inputs, answer FROM decisions
         WHERE (?1 IS NULL OR workload = ?1) AND (?2 IS NULL OR node = ?2) AND (NOT ?3 OR NOT permitted) AND at >= ?4
         ORDER BY at DESC, rowid DESC LIMIT ?5",
    )?;
    let node = filter.node.as_ref().map(NodeId::as_bytes);
    let since = filter.since.map_or(0, |since| signed(since.0));
    let mut rows = statement.query(params![filter.workload, node, filter.denied, since, signed(limit)])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        let kept = read(row)?;
        found.push(json!({
            "id": kept.id, "time": kept.at.to_string(), "action": kept.inputs.action.as_str(),
            "workload": kept.inputs.workload.id, "node": kept.inputs.node.id,
            "destination": kept.inputs.destination.map(|destination| destination.name),
            "permitted": kept.answer.permits(), "ttl_seconds": kept.answer.ttl_seconds,
            "code": kept.answer.refusal.map(|refusal| refusal.code), "policies": kept.answer.policies,
        }));
    }
    Ok(found)
}

/// Makes a decision again.
///
/// # Errors
/// [`codes::ADMIN_UNKNOWN`] when its bundle isn't there any more.
pub fn again(tx: &Transaction<'_>, bundles: &Bundles, kept: &Kept) -> Result<Answer, Refusal> {
    if kept.policy == [0; 32] {
        // There was no valid bundle: the refusal says why, and guardrails may have come first.
        let refusal = kept.answer.refusal.clone().unwrap_or_else(|| Refusal::new(codes::POLICY_FAILED, "no bundle"));
        return Ok(engine::decide(&kept.inputs, Err(&refusal)));
    }
    let bundle = bundles.of_digest(tx, &kept.policy)?;
    Ok(engine::decide(&kept.inputs, Ok(&bundle.rules)))
}

/// Makes a number of decisions again, those after `after` in the order they were kept; gives back where to go on.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn replay(
    tx: &Transaction<'_>,
    bundles: &Bundles,
    after: i64,
    limit: u64,
    replayed: &mut Replayed,
) -> Result<Option<i64>, Refusal> {
    let mut statement = tx.prepare_cached(
        "SELECT id, at, policy, inputs, answer, rowid FROM decisions WHERE rowid > ?1 ORDER BY rowid LIMIT ?2",
    )?;
    let mut rows = statement.query(params![after, signed(limit)])?;
    let mut last = None;
    while let Some(row) = rows.next()? {
        last = Some(row.get(5)?);
        let kept = read(row)?;
        replayed.decisions += 1;
        match again(tx, bundles, &kept).map(|answer| difference(&kept.answer, &answer)) {
            Ok(None) => replayed.same += 1,
            Ok(Some(other)) => replayed.note(kept.id, other),
            Err(refusal) if refusal.code == codes::STORE_FAILED => return Err(refusal),
            Err(refusal) => replayed.note(kept.id, refusal.to_string()),
        }
    }
    Ok(last)
}

/// How two answers differ, if they do.
pub fn difference(kept: &Answer, again: &Answer) -> Option<String> {
    if kept == again {
        return None;
    }
    let said = |answer: &Answer| match &answer.refusal {
        Some(refusal) => refusal.to_string(),
        None => format!("permitted for {} s by {:?}", answer.ttl_seconds, answer.policies),
    };
    let engine = match kept.engine == again.engine {
        true => String::new(),
        false => format!("; it was made under the guardrails and schema {}, these are {}", kept.engine, again.engine),
    };
    Some(format!("kept: {}; now: {}{engine}", said(kept), said(again)))
}

impl Replayed {
    fn note(&mut self, id: String, how: String) {
        if self.others.len() < 20 {
            self.others.push((id, how));
        }
    }
}

impl Kept {
    /// All of it, as shown to an operator, beside what making it again came to.
    pub fn facts(&self, version: Option<u64>, again: Result<Answer, Refusal>) -> Value {
        let replay = match again.map(|answer| difference(&self.answer, &answer)) {
            Ok(None) => json!({ "same": true }),
            Ok(Some(how)) => json!({ "same": false, "difference": how }),
            Err(refusal) => json!({ "same": false, "difference": refusal.to_string() }),
        };
        json!({
            "schema": 1, "id": self.id, "time": self.at.to_string(), "permitted": self.answer.permits(),
            "refusal": self.answer.refusal, "ttl_seconds": self.answer.ttl_seconds, "details": self.answer.details,
            "policies": self.answer.policies,
            "bundle": { "version": version, "digest": hex::encode(self.policy) },
            "engine": self.answer.engine, "engine_now": schema::fingerprint(),
            "evidence": self.inputs.evidence.digest, "inputs": self.inputs, "replay": replay,
        })
    }
}

fn read(row: &rusqlite::Row<'_>) -> Result<Kept, Refusal> {
    Ok(Kept {
        id: row.get(0)?,
        at: WallTime(unsigned(row.get(1)?)),
        policy: fixed(&row.get::<_, Vec<u8>>(2)?, "a bundle's digest")?,
        inputs: serde_json::from_str(&row.get::<_, String>(3)?).map_err(|_| damaged("a decision's inputs"))?,
        answer: serde_json::from_str(&row.get::<_, String>(4)?).map_err(|_| damaged("a decision's answer"))?,
    })
}
