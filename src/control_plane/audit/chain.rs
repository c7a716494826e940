//! The chain over the log: each record gets its number and its place in the chain in the transaction that
//! it is written in.

use rusqlite::types::{FromSql, ValueRef};

use super::super::store::{OptionalExtension, Transaction, damaged, fixed, params, signed, unsigned};
use super::Subject;
use crate::clock::WallTime;
use crate::codes::{self, Refusal};
use crate::identity::NodeId;
use crate::protocol::records::printable;
use crate::protocol::{Chain, Head, Record, Writer};

/// The columns that a [`Row`] is read from.
pub const COLUMNS: &str = "id, time, what, node, workload, lease, decision, credential, task, detail, chain";

/// A row of the log, as the store has it.
pub struct Row {
    /// The record; `Err` names the column that this program can't have written so.
    pub record: Result<Record, &'static str>,
    /// Its number.
    pub number: u64,
    /// The chain beside it.
    pub chain: Option<Chain>,
}

impl Row {
    /// Reads [`COLUMNS`]. What isn't as it was written is a finding, not an error: somebody changed it.
    pub fn read(row: &rusqlite::Row<'_>) -> rusqlite::Result<Self> {
        let number = unsigned(row.get(0)?);
        let chain = row.get_ref(10)?.as_blob().ok().and_then(|bytes| Some(Chain::from_bytes(bytes.try_into().ok()?)));
        Ok(Self { record: Self::record(row, number), number, chain })
    }

    fn record(row: &rusqlite::Row<'_>, number: u64) -> Result<Record, &'static str> {
        let detail_text: String = column(row, 9, "detail")?;
        let detail = serde_json::from_str(&detail_text).map_err(|_| "detail")?;
        // The same value in other bytes isn't what was written.
        if printable(&detail) != detail_text {
            return Err("detail");
        }
        let node: Option<Vec<u8>> = column(row, 3, "node")?;
        Ok(Record {
            number,
            time: unsigned(column(row, 1, "time")?),
            what: column(row, 2, "what")?,
            node: node.map(hex::encode),
            workload: column(row, 4, "workload")?,
            lease: column::<Option<i64>>(row, 5, "lease")?.map(unsigned),
            decision: column(row, 6, "decision")?,
            credential: column(row, 7, "credential")?,
            task: column(row, 8, "task")?,
            count: 1,
            detail,
            ..Record::default()
        })
    }
}

fn column<T: FromSql>(row: &rusqlite::Row<'_>, at: usize, name: &'static str) -> Result<T, &'static str> {
    let value: ValueRef<'_> = row.get_ref(at).map_err(|_| name)?;
    T::column_result(value).map_err(|_| name)
}

/// Writes a record; gives back its number.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn append(
    tx: &Transaction<'_>,
    now: WallTime,
    what: &str,
    subject: &Subject<'_>,
    detail: serde_json::Value,
) -> Result<u64, Refusal> {
    let before = match head(tx)? {
        Some(head) => head,
        None => start(tx, now)?,
    };
    let number = before.number.saturating_add(1);
    let Subject { node, workload, lease, decision, credential, task } = *subject;
    let text = |text: Option<&str>| text.map(str::to_owned);
    // SQLite's integers end earlier than ours; what is hashed is what is stored.
    let (time, lease) = (signed(now.0), lease.map(signed));
    let record = Record {
        number,
        time: unsigned(time),
        what: what.to_owned(),
        node: node.map(|node| node.to_string()),
        workload: text(workload),
        lease: lease.map(unsigned),
        decision: text(decision),
        credential: text(credential),
        task: text(task),
        count: 1,
        detail,
        ..Record::default()
    };
    let chain = before.chain.then(&record.line());
    tx.prepare_cached(
        "INSERT INTO log(id, time, what, node, workload, lease, decision, credential, task, detail, chain)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
    )?
    .execute(params![
        signed(number),
        time,
        record.what,
        node.as_ref().map(NodeId::as_bytes),
        workload,
        lease,
        decision,
        credential,
        task,
        printable(&record.detail),
        chain.as_bytes(),
    ])?;
    advance(tx, number, chain)?;
    Ok(number)
}

/// Where the chain ends; none before its first record.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn head(tx: &rusqlite::Connection) -> Result<Option<Head>, Refusal> {
    let found: Option<(Vec<u8>, i64, Vec<u8>)> = tx
        .prepare_cached("SELECT writer, number, chain FROM log_chain")?
        .query_row([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        .optional()?;
    let Some((writer, number, chain)) = found else { return Ok(None) };
    Ok(Some(Head {
        writer: Writer::from_bytes(fixed(&writer, "the log's writer")?),
        number: unsigned(number),
        chain: Chain::from_bytes(fixed(&chain, "the log's chain")?),
    }))
}

/// Goes on from `number`: what lies between stays missing, for everybody to see.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn skip_to(tx: &Transaction<'_>, number: u64) -> Result<(), Refusal> {
    tx.execute("UPDATE log_chain SET number = max(number, ?1)", [signed(number)])?;
    Ok(())
}

/// The chain's value after the record of this number.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn chain_at(tx: &rusqlite::Connection, number: u64) -> Result<Option<Chain>, Refusal> {
    let found: Option<Option<Vec<u8>>> = tx
        .prepare_cached("SELECT chain FROM log WHERE id = ?1")?
        .query_row([signed(number)], |row| row.get(0))
        .optional()?;
    Ok(found.flatten().and_then(|bytes| Some(Chain::from_bytes(bytes.try_into().ok()?))))
}

fn advance(tx: &Transaction<'_>, number: u64, chain: Chain) -> Result<(), Refusal> {
    tx.prepare_cached("UPDATE log_chain SET number = ?1, chain = ?2")?
        .execute(params![signed(number), chain.as_bytes()])?;
    Ok(())
}

/// Begins the chain. Records of a version without one are taken into it as they stand.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn start(tx: &Transaction<'_>, now: WallTime) -> Result<Head, Refusal> {
    let writer = Writer::random().map_err(|e| Refusal::new(codes::STORE_FAILED, e.to_string()))?;
    let head = Head::begin(writer);
    tx.execute(
        "INSERT INTO log_chain(writer, number, chain) VALUES (?1, 0, ?2)",
        params![writer.as_bytes(), head.chain.as_bytes()],
    )?;
    let old: Vec<(i64, String)> = tx
        .prepare("SELECT id, detail FROM log ORDER BY id")?
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<Result<_, _>>()?;
    if old.is_empty() {
        return Ok(head);
    }
    for (id, detail) in &old {
        // In the one form that a detail has from now on.
        let value = serde_json::from_str(detail).unwrap_or(serde_json::Value::String(detail.clone()));
        tx.execute("UPDATE log SET detail = ?2 WHERE id = ?1", params![id, printable(&value)])?;
        let row = tx.query_row(&format!("SELECT {COLUMNS} FROM log WHERE id = ?1"), [id], Row::read)?;
        let record = row.record.map_err(damaged)?;
        let before = self::head(tx)?.unwrap_or(head).chain;
        let chain = before.then(&record.line());
        tx.execute("UPDATE log SET chain = ?2 WHERE id = ?1", params![id, chain.as_bytes()])?;
        advance(tx, row.number, chain)?;
    }
    append(tx, now, "audit.began", &Subject::default(), serde_json::json!({ "before": old.len() }))?;
    self::head(tx)?.ok_or_else(|| damaged("the log's chain"))
}
