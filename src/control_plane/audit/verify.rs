//! Verifies a log from its first record to its last: the chain, the heads that were signed, the file outside,
//! and the journals that nodes delivered. Reads only; a running server goes on meanwhile.

use std::collections::BTreeMap;
use std::path::Path;

use rusqlite::Connection;
use serde::Serialize;

use super::super::store::{damaged, fixed, unsigned};
use super::chain::{self, COLUMNS, Row};
use super::heads::{BETWEEN, Witness};
use crate::codes::{self, Code, Refusal};
use crate::protocol::{Chain, Head, Record, SignedHead, Writer};

/// So many findings are told of one writer; the first is the one that counts.
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
    let mut log = Log { report: &mut report, writer: own.clone(), claims: Vec::new(), delivered: BTreeMap::new() };
    for signed in heads.iter().filter(|signed| !key.as_deref().is_some_and(|key| signed.signed_by(key))) {
        log.find(signed.head.number, codes::AUDIT_TAMPERED, "the signature of the head at this record doesn't hold");
    }
    log.claims = heads.iter().chain(&outside).map(|signed| signed.head).collect();
    log.claims.sort_by_key(|claim| claim.number);
    let (records, last) = log.read(connection, head)?;
    let delivered = log.delivered;
    let signed = heads.iter().chain(&outside).map(|signed| signed.head.number).max().unwrap_or(0);
    report.writers.push(Chained { writer: own, node: None, records, last, signed: signed.min(last) });
    journals(connection, node, &delivered, &mut report)?;
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

/// The log's own chain.
struct Log<'a> {
    report: &'a mut Report,
    writer: String,
    /// Heads that the chain must go through, by number.
    claims: Vec<Head>,
    /// What the log says of journals that were delivered: writer → number → chain.
    delivered: BTreeMap<String, BTreeMap<u64, String>>,
}

impl Log<'_> {
    fn find(&mut self, number: u64, code: Code, found: impl Into<String>) {
        if self.report.findings.len() < MOST {
            self.report.findings.push(Finding { writer: self.writer.clone(), number, code, found: found.into() });
        }
    }

    /// Reads every record; gives back how many there are, and the last one's number.
    fn read(&mut self, connection: &Connection, head: Head) -> Result<(u64, u64), Refusal> {
        let mut statement = connection.prepare(&format!("SELECT {COLUMNS} FROM log ORDER BY id"))?;
        let mut rows = statement.query([])?;
        let (mut records, mut last) = (0, 0);
        // What comes next must follow one of these: the chain as it stands, or as it is computed.
        let begin = Chain::begin(&head.writer);
        let mut before = [Some(begin), Some(begin)];
        let mut claims = std::mem::take(&mut self.claims).into_iter().peekable();
        while let Some(row) = rows.next()? {
            let row = Row::read(row)?;
            records += 1;
            let missing = self.gap(last, &row);
            let computed = row.record.as_ref().map(|record| record.line()).ok();
            match (&row.record, &computed, row.chain) {
                (Err(column), ..) => self.find(row.number, codes::AUDIT_TAMPERED, format!("its {column} was changed")),
                (Ok(_), Some(line), Some(chain))
                    if missing || before.iter().flatten().any(|it| it.then(line) == chain) => {}
                _ => self.find(row.number, codes::AUDIT_TAMPERED, "the record was changed"),
            }
            before = [row.chain, computed.and_then(|line| before[1].map(|it| it.then(&line)))];
            if let Ok(record) = &row.record {
                self.note(record);
            }
            while let Some(claim) = claims.next_if(|claim| claim.number <= row.number) {
                if claim.number == row.number && Some(claim.chain) != row.chain {
                    let found = "this record or one before it was changed, and the chain computed anew";
                    self.find(row.number, codes::AUDIT_TAMPERED, found);
                }
            }
            last = row.number;
        }
        let furthest = claims.map(|claim| claim.number).chain([head.number]).max().unwrap_or(0);
        if furthest > last {
            let found = format!("the log ends with record {last}; {furthest} were written");
            self.find(last.saturating_add(1), codes::AUDIT_GAP, found);
        } else if before[0] != Some(head.chain) {
            self.find(last, codes::AUDIT_TAMPERED, "the log's own head is another");
        }
        Ok((records, last))
    }

    /// Whether records are missing between `last` and this one, unless a restore from a backup explains that.
    #[expect(clippy::indexing_slicing, reason = "a member that is absent from a JSON value reads as null")]
    fn gap(&mut self, last: u64, row: &Row) -> bool {
        let expected = last.saturating_add(1);
        if row.number == expected {
            return false;
        }
        let explained = row.record.as_ref().is_ok_and(|record| {
            record.what == "audit.restored"
                && record.detail["from"].as_u64() == Some(expected)
                && record.detail["to"].as_u64() == row.number.checked_sub(1)
        });
        let found = format!("records {expected} to {} are missing", row.number.saturating_sub(1));
        if !explained {
            self.find(expected, codes::AUDIT_GAP, found);
        }
        !explained
    }

    /// Takes up what a record says of other records.
    #[expect(clippy::indexing_slicing, reason = "a member that is absent from a JSON value reads as null")]
    fn note(&mut self, record: &Record) {
        note(self.report, &self.writer, record);
        if record.what == "audit.delivered"
            && let (Some(writer), Some(to), Some(chain)) =
                (record.detail["writer"].as_str(), record.detail["to"].as_u64(), record.detail["chain"].as_str())
        {
            self.delivered.entry(writer.to_owned()).or_default().insert(to, chain.to_owned());
        }
    }
}

/// What was found before and recorded.
fn note(report: &mut Report, writer: &str, record: &Record) {
    let code = match record.what.as_str() {
        "audit.tampered" => codes::AUDIT_TAMPERED,
        "audit.gap" | "audit.restored" => codes::AUDIT_GAP,
        "audit.torn" => codes::AUDIT_TORN,
        _ => return,
    };
    if report.noted.len() < MOST {
        let found = format!("record {} says: {} {}", record.number, record.what, record.detail);
        report.noted.push(Finding { writer: writer.to_owned(), number: record.number, code, found });
    }
}

/// The journals of nodes.
fn journals(
    connection: &Connection,
    node: Option<&str>,
    delivered: &BTreeMap<String, BTreeMap<u64, String>>,
    report: &mut Report,
) -> Result<(), Refusal> {
    let mut statement =
        connection.prepare("SELECT writer, node, number, chain, signature, key_spki FROM journals ORDER BY rowid")?;
    let mut rows = statement.query([])?;
    let mut seen = Vec::new();
    while let Some(row) = rows.next()? {
        let (writer, owner, chain): (Vec<u8>, Vec<u8>, Vec<u8>) = (row.get(0)?, row.get(1)?, row.get(3)?);
        let writer = Writer::from_bytes(fixed(&writer, "a journal's writer")?);
        let owner = hex::encode(owner);
        seen.push(writer.to_string());
        if node.is_some_and(|node| !owner.starts_with(node)) {
            continue;
        }
        let chain =
            fixed(&chain, "a journal's chain").map(Chain::from_bytes).map_err(|_| damaged("a journal's chain"))?;
        let head = Head { writer, number: unsigned(row.get(2)?), chain };
        let signed = SignedHead { head, signature: row.get(4)? };
        let key: Vec<u8> = row.get(5)?;
        let mut journal = Journal { report, writer, claims: delivered.get(&writer.to_string()) };
        if !signed.signed_by(&key) {
            journal.find(head.number, codes::AUDIT_TAMPERED, "the head isn't signed by the node's key");
        }
        let (records, last) = journal.read(connection, head)?;
        let (writer, node) = (writer.to_string(), Some(owner));
        report.writers.push(Chained { writer, node, records, last, signed: head.number.min(last) });
    }
    for (writer, claims) in delivered.iter().filter(|(writer, _)| node.is_none() && !seen.contains(writer)) {
        let found = format!("the whole journal is missing; {} were delivered", claims.keys().max().unwrap_or(&0));
        report.findings.push(Finding { writer: writer.clone(), number: 1, code: codes::AUDIT_GAP, found });
    }
    Ok(())
}

struct Journal<'a> {
    report: &'a mut Report,
    writer: Writer,
    /// What the log says of it.
    claims: Option<&'a BTreeMap<u64, String>>,
}

impl Journal<'_> {
    fn find(&mut self, number: u64, code: Code, found: impl Into<String>) {
        if self.report.findings.len() < MOST {
            let (writer, found) = (self.writer.to_string(), found.into());
            self.report.findings.push(Finding { writer, number, code, found });
        }
    }

    fn read(&mut self, connection: &Connection, head: Head) -> Result<(u64, u64), Refusal> {
        let mut statement =
            connection.prepare("SELECT number, record, chain FROM node_records WHERE writer = ?1 ORDER BY number")?;
        let mut rows = statement.query([self.writer.as_bytes()])?;
        let (mut records, mut last) = (0, 0);
        let mut before = [Some(Chain::begin(&self.writer)); 2];
        while let Some(row) = rows.next()? {
            let number = unsigned(row.get(0)?);
            let line = row.get_ref(1)?.as_str().ok().map(str::to_owned);
            let stored: Option<[u8; 32]> = row.get_ref(2)?.as_blob().ok().and_then(|bytes| bytes.try_into().ok());
            let stored = stored.map(Chain::from_bytes);
            records += 1;
            if number != last + 1 {
                // Recorded when it was accepted; the chain goes on from what the node said.
                self.find(last + 1, codes::AUDIT_GAP, format!("records {} to {} are missing", last + 1, number - 1));
                before = [None, None];
            }
            let record = line.as_deref().and_then(|line| Record::parse(line).ok());
            let known = before.iter().flatten().count() > 0;
            let follows = |line: &str| before.iter().flatten().any(|it| Some(it.then(line)) == stored);
            match (&record, &line) {
                (Some(record), Some(line)) if record.number == number && (!known || follows(line)) => {
                    note(self.report, &self.writer.to_string(), record);
                }
                _ => self.find(number, codes::AUDIT_TAMPERED, "the record was changed"),
            }
            if let (Some(claim), Some(stored)) = (self.claims.and_then(|claims| claims.get(&number)), stored)
                && *claim != stored.to_string()
            {
                let found = "this record or one before it was changed, and the chain computed anew";
                self.find(number, codes::AUDIT_TAMPERED, found);
            }
            before = [stored, line.as_deref().and_then(|line| before[1].map(|it| it.then(line)))];
            last = number;
        }
        let claimed = self.claims.and_then(|claims| claims.keys().max().copied()).unwrap_or(0);
        let furthest = head.number.max(claimed);
        if furthest > last {
            let found = format!("the journal ends with record {last}; {furthest} were delivered");
            self.find(last + 1, codes::AUDIT_GAP, found);
        } else if before[0] != Some(head.chain) {
            self.find(last, codes::AUDIT_TAMPERED, "the journal's head is another");
        }
        Ok((records, last))
    }
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
