//! The log's own chain.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;

use rusqlite::Connection;

use super::super::chain::{COLUMNS, Row};
use super::super::heads;
use super::{Finding, MOST, Report, finding_of};
use crate::codes::{self, Code, Refusal};
use crate::protocol::{Chain, Head, Record};

/// A head that the chain must go through.
#[derive(Clone, Copy, Debug)]
pub struct Claim {
    /// Which.
    pub head: Head,
    /// Whether it lies outside the store.
    pub outside: bool,
}

/// What the log says of a journal.
#[derive(Clone, Debug, Default)]
pub struct Told {
    /// Whose it is: the node's id, hexadecimal.
    pub node: Option<String>,
    /// SHA-256 of the key that signs its heads, hexadecimal.
    pub key: Option<String>,
    /// The chain after the last record of each delivery, by number.
    pub delivered: BTreeMap<u64, String>,
    /// What was missing and will not come: from → to, and the chain before what comes next.
    pub gaps: BTreeMap<u64, (u64, Chain)>,
}

/// What lies between a record and the one before it.
enum Gap {
    /// Nothing.
    None,
    /// What a restore from a backup lost.
    Restored { to: u64, chain: Option<Chain> },
    /// Nobody says why.
    Unexplained,
}

/// Reads the log's own chain.
pub struct Log<'a> {
    report: &'a mut Report,
    writer: String,
    found: usize,
    witness: Option<&'a Path>,
    /// By number.
    claims: Vec<Claim>,
    told: BTreeMap<String, Told>,
    /// What was found and recorded: the newest, and of what a node can repeat at will the number.
    noted: VecDeque<Finding>,
    repeated: BTreeMap<(String, String), (u64, Finding)>,
}

impl<'a> Log<'a> {
    /// Of this writer, to go through these claims; `witness` is where the head outside is kept.
    pub fn new(report: &'a mut Report, writer: String, witness: Option<&'a Path>, mut claims: Vec<Claim>) -> Self {
        claims.sort_by_key(|claim| claim.head.number);
        let (told, noted, repeated) = (BTreeMap::new(), VecDeque::new(), BTreeMap::new());
        Self { report, writer, found: 0, witness, claims, told, noted, repeated }
    }

    /// Notes what is wrong.
    pub fn find(&mut self, number: u64, code: Code, found: impl Into<String>) {
        self.found += 1;
        if self.found <= MOST {
            self.report.findings.push(Finding { writer: self.writer.clone(), number, code, found: found.into() });
        }
    }

    /// What it says of journals; what it says of findings goes into the report.
    pub fn finish(self) -> BTreeMap<String, Told> {
        self.report.noted.extend(self.noted);
        for (times, mut last) in self.repeated.into_values() {
            if times > 1 {
                last.found = format!("{times} times, the last: {}", last.found);
            }
            self.report.noted.push(last);
        }
        self.told
    }

    /// Reads every record; gives back how many there are, and the last one's number.
    ///
    /// # Errors
    /// [`codes::STORE_FAILED`].
    pub fn read(&mut self, connection: &Connection, head: Head) -> Result<(u64, u64), Refusal> {
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
            let gap = self.gap(last, &row);
            while let Some(claim) = claims.next_if(|claim| claim.head.number < row.number) {
                self.within(&gap, &claim);
            }
            let computed = row.record.as_ref().map(|record| record.line()).ok();
            match (&row.record, &computed, row.chain) {
                (Err(column), ..) => self.find(row.number, codes::AUDIT_TAMPERED, format!("its {column} was changed")),
                (Ok(_), Some(line), Some(chain))
                    if matches!(gap, Gap::Unexplained) || before.iter().flatten().any(|it| it.then(line) == chain) => {}
                _ => self.find(row.number, codes::AUDIT_TAMPERED, "the record was changed"),
            }
            before = [row.chain, computed.and_then(|line| before[1].map(|it| it.then(&line)))];
            if let Ok(record) = &row.record {
                self.note(record);
            }
            while let Some(claim) = claims.next_if(|claim| claim.head.number == row.number) {
                if Some(claim.head.chain) != row.chain {
                    let found = "this record or one before it was changed, and the chain computed anew";
                    self.find(row.number, codes::AUDIT_TAMPERED, found);
                }
            }
            last = row.number;
        }
        let furthest = claims.map(|claim| claim.head.number).chain([head.number]).max().unwrap_or(0);
        if furthest > last {
            let found = format!("the log ends with record {last}; {furthest} were written");
            self.find(last.saturating_add(1), codes::AUDIT_GAP, found);
        } else if before[0] != Some(head.chain) {
            self.find(last, codes::AUDIT_TAMPERED, "the log's own head is another");
        }
        Ok((records, last))
    }

    /// Whether records are missing between `last` and this one, and why.
    #[expect(clippy::indexing_slicing, reason = "a member that is absent from a JSON value reads as null")]
    fn gap(&mut self, last: u64, row: &Row) -> Gap {
        let expected = last.saturating_add(1);
        if row.number == expected {
            return Gap::None;
        }
        let to = row.number.saturating_sub(1);
        match &row.record {
            Ok(record)
                if record.what == "audit.restored"
                    && record.detail["from"].as_u64() == Some(expected)
                    && record.detail["to"].as_u64() == Some(to) =>
            {
                Gap::Restored { to, chain: record.detail["chain"].as_str().and_then(Chain::from_text) }
            }
            _ => {
                self.find(expected, codes::AUDIT_GAP, format!("records {expected} to {to} are missing"));
                Gap::Unexplained
            }
        }
    }

    /// A head that was signed for a record that isn't here. A backup holds none for what came after it; the one
    /// outside is what the restore was found out by, and was put aside then.
    fn within(&mut self, gap: &Gap, claim: &Claim) {
        let Head { number, chain, .. } = claim.head;
        let explained = match gap {
            // Found already; and with no gap every claim lies at a record.
            Gap::Unexplained | Gap::None => return,
            Gap::Restored { to, chain: lost } => {
                claim.outside
                    && *to == number
                    && *lost == Some(chain)
                    && self.witness.is_some_and(|witness| heads::was_found_missing(witness, &claim.head))
            }
        };
        if !explained {
            let found = "its head was signed, and the store says that a backup from before it was restored";
            self.find(number, codes::AUDIT_TAMPERED, found);
        }
    }

    /// Takes up what a record says of other records.
    fn note(&mut self, record: &Record) {
        let detail = &record.detail;
        if let Some(finding) = finding_of(&self.writer, record) {
            match (&record.node, detail["during"].is_string() || detail["writer"].is_string()) {
                // A node brings these about as often as it likes.
                (Some(node), true) => {
                    let repeated = (0, finding.clone());
                    let (times, last) = self.repeated.entry((node.clone(), record.what.clone())).or_insert(repeated);
                    (*times, *last) = (*times + 1, finding);
                }
                _ => {
                    self.noted.push_back(finding);
                    if self.noted.len() > MOST {
                        self.noted.pop_front();
                    }
                }
            }
        }
        let Some(writer) = detail["writer"].as_str() else { return };
        match record.what.as_str() {
            "audit.journal_began" | "audit.journal_key" => {
                let told = self.told.entry(writer.to_owned()).or_default();
                told.node.get_or_insert_with(|| record.node.clone().unwrap_or_default());
                told.key = detail["key"].as_str().map(str::to_owned).or(told.key.take());
            }
            "audit.delivered" => {
                if let (Some(to), Some(chain)) = (detail["to"].as_u64(), detail["chain"].as_str()) {
                    let told = self.told.entry(writer.to_owned()).or_default();
                    told.node.get_or_insert_with(|| record.node.clone().unwrap_or_default());
                    told.delivered.insert(to, chain.to_owned());
                }
            }
            "audit.gap" => {
                let before = detail["before"].as_str().and_then(Chain::from_text);
                if let (Some(from), Some(to), Some(before)) = (detail["from"].as_u64(), detail["to"].as_u64(), before) {
                    self.told.entry(writer.to_owned()).or_default().gaps.insert(from, (to, before));
                }
            }
            _ => {}
        }
    }
}
