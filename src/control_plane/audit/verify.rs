//! Verifies a log from its first record to its last: the chain, the heads that were signed, the file outside,
//! and the journals that nodes delivered. Reads only; a running server goes on meanwhile.

mod delivered;
mod own;

use std::path::Path;

use rusqlite::Connection;
use serde::Serialize;

use self::own::{Claim, Log};
use super::super::store::{fixed, unsigned};
use super::chain;
use super::heads::{BETWEEN, Witness};
use crate::codes::{self, Code, Refusal};
use crate::protocol::{Chain, Head, Record, SignedHead, Writer};

/// So many findings are told of one writer, the first ones; and of what it recorded as found, the last ones.
const MOST: usize = 100;

/// What was found. Schema version 1.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Report {
    /// 1.
    pub schema: u32,
    /// Whether nothing was found.
    pub holds: bool,
    /// Each chain: the log's own first, then the journals of nodes.
    pub writers: Vec<Chained>,
    /// What is wrong, by writer and number.
    pub findings: Vec<Finding>,
    /// What was found and recorded before: such records stand in the log for good.
    pub noted: Vec<Finding>,
    /// What could be changed without being found.
    pub unprotected: Vec<String>,
}

/// A chain.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Chained {
    /// Its writer.
    pub writer: String,
    /// The node, where it isn't the control plane's own log.
    pub node: Option<String>,
    /// Its records.
    pub records: u64,
    /// The number of the last one.
    pub last: u64,
    /// Up to which a signed head vouches for it.
    pub signed: u64,
}

/// Something that is wrong.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Finding {
    /// Whose chain.
    pub writer: String,
    /// The record; the first of several.
    pub number: u64,
    /// `audit.tampered` or `audit.gap`.
    pub code: Code,
    /// What.
    pub found: String,
}

/// Verifies the store behind `connection`; `witness` is the file outside, if it is at hand; `node` narrows the
/// journals to those of one node (its id, or the start of it).
///
/// # Errors
/// [`codes::STORE_FAILED`] when it can't be read at all.
pub fn verify(connection: &Connection, witness: Option<&Path>, node: Option<&str>) -> Result<Report, Refusal> {
    let mut report = Report { schema: 1, ..Report::default() };
    let Some(head) = chain::head(connection)? else {
        report.holds = true;
        report.unprotected.push("the log has no chain yet".to_owned());
        return Ok(report);
    };
    let own = head.writer.to_string();
    let key: Option<Vec<u8>> = connection.query_row("SELECT key_spki FROM log_chain", [], |row| row.get(0))?;
    let heads = signed_heads(connection, head.writer)?;
    let outside = outside(witness, key.as_deref(), head.writer, &mut report);
    let claims = heads.iter().map(|signed| Claim { head: signed.head, outside: false });
    let claims = claims.chain(outside.iter().map(|signed| Claim { head: signed.head, outside: true })).collect();
    let mut log = Log::new(&mut report, own.clone(), witness, claims);
    for signed in heads.iter().filter(|signed| !key.as_deref().is_some_and(|key| signed.signed_by(key))) {
        log.find(signed.head.number, codes::AUDIT_TAMPERED, "the signature of the head at this record doesn't hold");
    }
    let (records, last) = log.read(connection, head)?;
    let told = log.finish();
    let signed = heads.iter().chain(&outside).map(|signed| signed.head.number).max().unwrap_or(0);
    report.writers.push(Chained { writer: own, node: None, records, last, signed: signed.min(last) });
    delivered::journals(connection, node, &told, &mut report)?;
    windows(&mut report, signed, last, outside.is_some(), witness);
    report.findings.sort_by_key(|finding| finding.number);
    report.holds = report.findings.is_empty();
    Ok(report)
}

/// The heads in the store.
fn signed_heads(connection: &Connection, writer: Writer) -> Result<Vec<SignedHead>, Refusal> {
    let mut statement = connection.prepare("SELECT number, chain, signature FROM log_heads ORDER BY number")?;
    let mut rows = statement.query([])?;
    let mut heads = Vec::new();
    while let Some(row) = rows.next()? {
        let chain: Vec<u8> = row.get(1)?;
        // Of another length it is nobody's chain: then it won't be met.
        let chain = Chain::from_bytes(fixed(&chain, "a head").unwrap_or_default());
        heads.push(SignedHead { head: Head { writer, number: unsigned(row.get(0)?), chain }, signature: row.get(2)? });
    }
    Ok(heads)
}

/// The head outside the store.
fn outside(path: Option<&Path>, key: Option<&[u8]>, writer: Writer, report: &mut Report) -> Option<SignedHead> {
    let path = path?;
    let mut find = |number, found: String| {
        let found = format!("{}: {found}", path.display());
        report.findings.push(Finding { writer: writer.to_string(), number, code: codes::AUDIT_TAMPERED, found });
        None
    };
    match Witness::read(path).and_then(|found| found.map(|witness| witness.signed()).transpose()) {
        Ok(None) => None,
        Ok(Some((signed, its_key))) if Some(its_key.as_slice()) == key && signed.head.writer == writer => Some(signed),
        Ok(Some((signed, _))) => {
            find(signed.head.number, "it is of another log, or the log's key was replaced".to_owned())
        }
        Err(refusal) => find(0, refusal.to_string()),
    }
}

/// What a record says was found before, if it says so.
fn finding_of(writer: &str, record: &Record) -> Option<Finding> {
    let code = match record.what.as_str() {
        "audit.tampered" => codes::AUDIT_TAMPERED,
        "audit.gap" | "audit.restored" => codes::AUDIT_GAP,
        "audit.torn" => codes::AUDIT_TORN,
        _ => return None,
    };
    let found = format!("record {} says: {} {}", record.number, record.what, record.detail);
    Some(Finding { writer: writer.to_owned(), number: record.number, code, found })
}

/// What could be changed without being found, in words.
fn windows(report: &mut Report, signed_to: u64, last: u64, has_outside: bool, witness: Option<&Path>) {
    let seconds = BETWEEN.as_secs();
    let since = match last.saturating_sub(signed_to) {
        0 => "every record here is under a signed head".to_owned(),
        more => format!("the last {more} records here are under no signed head yet"),
    };
    report.unprotected.push(format!(
        "control plane: records of the last {seconds} s, until their head is signed, by whoever can write the store \
         and computes the chain anew; {since}"
    ));
    if !has_outside {
        let where_ = witness.map_or("no file was given".to_owned(), |path| format!("no {}", path.display()));
        report.unprotected.push(format!(
            "control plane: a cut of the end, since the head outside the store isn't at hand ({where_})"
        ));
    }
    report.unprotected.push(
        "nodes: what wasn't delivered yet, by root of that node; of a process's repeats, the numbers of the last 5 s \
         before a kill -9 (never its first release)"
            .to_owned(),
    );
}
