//! Records for people and scripts: the log's own and those of nodes, each with its writer and number.

use rusqlite::Connection;
use rusqlite::types::Value as Sql;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::super::store::{signed, unsigned};
use super::chain::{self, COLUMNS, Row};
use crate::clock::WallTime;
use crate::codes::Refusal;
use crate::protocol::Record;

/// Which records.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Of {
    /// The control plane's.
    #[default]
    Log,
    /// Those that nodes delivered.
    Nodes,
}

/// What a record must have; all that is given.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Filter {
    /// A node's id, or the start of it.
    pub node: Option<String>,
    /// A workload's SPIFFE ID.
    pub workload: Option<String>,
    /// A credential's id.
    pub credential: Option<String>,
    /// A decision's id.
    pub decision: Option<String>,
    /// A task's id.
    pub task: Option<String>,
    /// What happened, or the start of it: `credential.` for all about credentials.
    pub what: Option<String>,
    /// Not before, in seconds since 1970.
    pub since: Option<u64>,
    /// Before this, in seconds since 1970.
    pub until: Option<u64>,
}

/// One record as shown. Names stay.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
pub struct Shown {
    /// Where to go on from: the number in the log, or the order of arrival of a node's.
    pub id: u64,
    /// Whose chain it is of.
    pub writer: String,
    /// Its number there.
    pub number: u64,
    /// RFC 3339.
    pub time: String,
    /// What happened: an action, or a refusal's code.
    pub what: String,
    /// The node.
    pub node: Option<String>,
    /// The workload.
    pub workload: Option<String>,
    /// The lease.
    pub lease: Option<u64>,
    /// The decision.
    pub decision: Option<String>,
    /// The credential.
    pub credential: Option<String>,
    /// The task.
    pub task: Option<String>,
    /// The process.
    pub process: Option<String>,
    /// How often.
    pub count: u64,
    /// Why, as a code.
    pub code: Option<String>,
    /// Why, in words.
    pub reason: Option<String>,
    /// Further facts.
    pub detail: Value,
}

impl Shown {
    fn of(record: Record, id: u64, writer: String, node: Option<String>) -> Self {
        Self {
            id,
            writer,
            number: record.number,
            time: WallTime(record.time).to_string(),
            what: record.what,
            node: node.or(record.node),
            workload: record.workload,
            lease: record.lease,
            decision: record.decision,
            credential: record.credential,
            task: record.task,
            process: record.process,
            count: record.count,
            code: record.code,
            reason: record.reason,
            detail: record.detail,
        }
    }
}

/// At most `limit` records after `after`: the first of them, or the newest; oldest first.
///
/// # Errors
/// [`crate::codes::STORE_FAILED`].
pub fn list(
    connection: &Connection,
    of: Of,
    after: u64,
    limit: u64,
    newest: bool,
    filter: &Filter,
) -> Result<Vec<Shown>, Refusal> {
    let order = if newest { "DESC" } else { "ASC" };
    let mut shown = match of {
        Of::Log => log(connection, after, limit, order, filter)?,
        Of::Nodes => nodes(connection, after, limit, order, filter)?,
    };
    if newest {
        shown.reverse();
    }
    Ok(shown)
}

fn log(connection: &Connection, after: u64, limit: u64, order: &str, filter: &Filter) -> Result<Vec<Shown>, Refusal> {
    let writer = chain::head(connection)?.map_or_else(String::new, |head| head.writer.to_string());
    let columns = ["lower(hex(node))", "workload", "credential", "decision", "task", "what", "time"];
    let (conditions, values) = conditions("id", after, filter, columns);
    let query = format!("SELECT {COLUMNS} FROM log WHERE {conditions} ORDER BY id {order} LIMIT {}", signed(limit));
    let mut statement = connection.prepare(&query)?;
    let mut rows = statement.query(rusqlite::params_from_iter(values))?;
    let mut shown = Vec::new();
    while let Some(row) = rows.next()? {
        let row = Row::read(row)?;
        let unreadable = |column: &str| Record {
            number: row.number,
            what: crate::codes::AUDIT_TAMPERED.as_str().to_owned(),
            count: 1,
            reason: Some(format!("its {column} can't be read: see `audit verify`")),
            ..Record::default()
        };
        let record = row.record.unwrap_or_else(unreadable);
        shown.push(Shown::of(record, row.number, writer.clone(), None));
    }
    Ok(shown)
}

fn nodes(connection: &Connection, after: u64, limit: u64, order: &str, filter: &Filter) -> Result<Vec<Shown>, Refusal> {
    const FIELDS: [&str; 7] = [
        "lower(hex(j.node))",
        "json_extract(r.record, '$.workload')",
        "json_extract(r.record, '$.credential')",
        "json_extract(r.record, '$.decision')",
        "json_extract(r.record, '$.task')",
        "json_extract(r.record, '$.what')",
        "json_extract(r.record, '$.time')",
    ];
    let (conditions, values) = conditions("r.arrival", after, filter, FIELDS);
    // A record that isn't JSON any more matches nothing but is shown where nothing is asked for.
    let conditions = match values.len() {
        1 => conditions,
        _ => format!("json_valid(r.record) AND {conditions}"),
    };
    let query = format!(
        "SELECT r.arrival, r.number, r.record, lower(hex(r.writer)), lower(hex(j.node)) FROM node_records r
         JOIN journals j ON j.writer = r.writer WHERE {conditions} ORDER BY r.arrival {order} LIMIT {}",
        signed(limit)
    );
    let mut statement = connection.prepare(&query)?;
    let mut rows = statement.query(rusqlite::params_from_iter(values))?;
    let mut shown = Vec::new();
    while let Some(row) = rows.next()? {
        let number = unsigned(row.get(1)?);
        let unreadable = || Record {
            number,
            what: crate::codes::AUDIT_TAMPERED.as_str().to_owned(),
            count: 1,
            reason: Some("it can't be read: see `audit verify`".to_owned()),
            ..Record::default()
        };
        let record = row.get_ref(2)?.as_str().ok().and_then(|line| Record::parse(line).ok()).unwrap_or_else(unreadable);
        shown.push(Shown::of(record, unsigned(row.get(0)?), row.get(3)?, Some(row.get(4)?)));
    }
    Ok(shown)
}

/// The conditions and their values; `columns` are those of the filter's fields.
fn conditions(id: &str, after: u64, filter: &Filter, columns: [&str; 7]) -> (String, Vec<Sql>) {
    let [node, workload, credential, decision, task, what, time] = columns;
    let mut text = format!("{id} > ?1");
    let mut values = vec![Sql::from(signed(after))];
    let mut add = |condition: String, value: Sql| {
        values.push(value);
        text.push_str(&format!(" AND {}", condition.replace('?', &format!("?{}", values.len()))));
    };
    let given = [(workload, &filter.workload), (credential, &filter.credential), (decision, &filter.decision)];
    for (column, value) in given.into_iter().chain([(task, &filter.task)]) {
        if let Some(value) = value {
            add(format!("{column} = ?"), value.clone().into());
        }
    }
    for (column, start) in [(node, &filter.node), (what, &filter.what)] {
        if let Some(start) = start {
            add(format!("substr({column}, 1, length(?)) = ?"), start.clone().into());
        }
    }
    if let Some(since) = filter.since {
        add(format!("{time} >= ?"), signed(since).into());
    }
    if let Some(until) = filter.until {
        add(format!("{time} < ?"), signed(until).into());
    }
    (text, values)
}
