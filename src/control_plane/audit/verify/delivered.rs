//! The journals that nodes delivered.

use std::collections::{BTreeMap, BTreeSet};

use rusqlite::Connection;
use sha2::{Digest, Sha256};

use super::super::super::store::{damaged, fixed, unsigned};
use super::own::Told;
use super::{Chained, Finding, MOST, Report, finding_of};
use crate::codes::{self, Code, Refusal};
use crate::protocol::{Chain, Head, Record, SignedHead, Writer};

/// Verifies them; `node` narrows them to those of one node (its id, or the start of it).
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn journals(
    connection: &Connection,
    node: Option<&str>,
    told: &BTreeMap<String, Told>,
    report: &mut Report,
) -> Result<(), Refusal> {
    let mut statement =
        connection.prepare("SELECT writer, node, number, chain, signature, key_spki FROM journals ORDER BY rowid")?;
    let mut rows = statement.query([])?;
    let (mut seen, nothing) = (BTreeSet::new(), Told::default());
    while let Some(row) = rows.next()? {
        let (writer, owner, chain): (Vec<u8>, Vec<u8>, Vec<u8>) = (row.get(0)?, row.get(1)?, row.get(3)?);
        let writer = Writer::from_bytes(fixed(&writer, "a journal's writer")?);
        let owner = hex::encode(owner);
        let told = told.get(&writer.to_string()).unwrap_or(&nothing);
        seen.insert(writer.to_string());
        let of = |start: &str| owner.starts_with(start) || told.node.as_ref().is_some_and(|it| it.starts_with(start));
        if node.is_some_and(|node| !of(node)) {
            continue;
        }
        let chain =
            fixed(&chain, "a journal's chain").map(Chain::from_bytes).map_err(|_| damaged("a journal's chain"))?;
        let head = Head { writer, number: unsigned(row.get(2)?), chain };
        let signed = SignedHead { head, signature: row.get(4)? };
        let key: Vec<u8> = row.get(5)?;
        let mut journal = Journal { report, writer, told, found: 0 };
        if !signed.signed_by(&key) {
            journal.find(head.number, codes::AUDIT_TAMPERED, "the head isn't signed by the node's key");
        }
        if told.node.as_ref().is_some_and(|node| *node != owner) {
            journal.find(1, codes::AUDIT_TAMPERED, "the store says that it is another node's than the log");
        }
        if told.key.as_ref().is_some_and(|known| *known != hex::encode(Sha256::digest(&key))) {
            journal.find(head.number, codes::AUDIT_TAMPERED, "the key that its head is signed with was replaced");
        }
        let (records, last) = journal.read(connection, head)?;
        let (writer, node) = (writer.to_string(), Some(owner));
        report.writers.push(Chained { writer, node, records, last, signed: head.number.min(last) });
    }
    for (writer, told) in told.iter().filter(|(writer, _)| node.is_none() && !seen.contains(*writer)) {
        let Some(last) = told.delivered.keys().max() else { continue };
        let found = format!("the whole journal is missing; {last} were delivered");
        report.findings.push(Finding { writer: writer.clone(), number: 1, code: codes::AUDIT_GAP, found });
    }
    Ok(())
}

struct Journal<'a> {
    report: &'a mut Report,
    writer: Writer,
    told: &'a Told,
    found: usize,
}

impl Journal<'_> {
    fn find(&mut self, number: u64, code: Code, found: impl Into<String>) {
        self.found += 1;
        if self.found <= MOST {
            let (writer, found) = (self.writer.to_string(), found.into());
            self.report.findings.push(Finding { writer, number, code, found });
        }
    }

    fn read(&mut self, connection: &Connection, head: Head) -> Result<(u64, u64), Refusal> {
        let mut statement =
            connection.prepare("SELECT number, record, chain FROM node_records WHERE writer = ?1 ORDER BY number")?;
        let mut rows = statement.query([self.writer.as_bytes()])?;
        let (mut records, mut last, mut noted) = (0, 0, 0);
        let mut before = [Some(Chain::begin(&self.writer)); 2];
        while let Some(row) = rows.next()? {
            let number = unsigned(row.get(0)?);
            let line = row.get_ref(1)?.as_str().ok().map(str::to_owned);
            let stored: Option<[u8; 32]> = row.get_ref(2)?.as_blob().ok().and_then(|bytes| bytes.try_into().ok());
            let stored = stored.map(Chain::from_bytes);
            records += 1;
            if number != last + 1 {
                before = [self.gap(last + 1, number); 2];
            }
            let record = line.as_deref().and_then(|line| Record::parse(line).ok());
            let known = before.iter().flatten().count() > 0;
            let follows = |line: &str| before.iter().flatten().any(|it| Some(it.then(line)) == stored);
            match (&record, &line) {
                (Some(record), Some(line)) if record.number == number && (!known || follows(line)) => {
                    let finding = finding_of(&self.writer.to_string(), record).filter(|_| noted < MOST);
                    noted += usize::from(finding.is_some());
                    self.report.noted.extend(finding);
                }
                _ => self.find(number, codes::AUDIT_TAMPERED, "the record was changed"),
            }
            if let (Some(claim), Some(stored)) = (self.told.delivered.get(&number), stored)
                && *claim != stored.to_string()
            {
                let found = "this record or one before it was changed, and the chain computed anew";
                self.find(number, codes::AUDIT_TAMPERED, found);
            }
            before = [stored, line.as_deref().and_then(|line| before[1].map(|it| it.then(line)))];
            last = number;
        }
        let claimed = self.told.delivered.keys().max().copied().unwrap_or(0);
        let furthest = head.number.max(claimed);
        if furthest > last {
            let found = format!("the journal ends with record {last}; {furthest} were delivered");
            self.find(last + 1, codes::AUDIT_GAP, found);
        } else if before[0] != Some(head.chain) {
            self.find(last, codes::AUDIT_TAMPERED, "the journal's head is another");
        }
        Ok((records, last))
    }

    /// The chain before record `next`, where those from `from` on are missing: as the log has it, which recorded the
    /// gap when it took what came after it. A gap that it doesn't know was made here.
    fn gap(&mut self, from: u64, next: u64) -> Option<Chain> {
        let to = next.saturating_sub(1);
        match self.told.gaps.get(&from) {
            Some((known, before)) if *known == to => Some(*before),
            _ => {
                self.find(from, codes::AUDIT_GAP, format!("records {from} to {to} are missing"));
                None
            }
        }
    }
}
