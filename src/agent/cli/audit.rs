//! `audit`: the node's own record, read from its files. Needs neither the agent nor the TPM.

use std::path::Path;
use std::time::Duration;

use clap::Subcommand;
use serde::Serialize;
use serde_json::Value;
use x509_cert::der::{Decode, Encode};

use super::print_json;
use crate::agent::journal::check::{self, Found};
use crate::agent::journal::{BETWEEN, DIRECTORY, WINDOW};
use crate::agent::state;
use crate::clock::WallTime;
use crate::codes::{self, Code, Refusal, exit};
use crate::output::say;
use crate::protocol::Record;
use crate::protocol::records::printable;

/// Commands about the node's own record.
#[derive(Debug, Subcommand)]
pub enum AuditCommand {
    /// Verify every record that is kept here: finds an edit, a gap and a cut before the last signed head, and names it.
    ///
    /// What a power cut left (the beginning of a record at the very end) is told from a change. Exit code 0 if all
    /// holds, 3 for a torn end, which the next start of the agent cuts off, 4 if something was changed.
    Verify {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Print the newest records that are kept here, oldest first. The control plane has the older ones.
    Tail {
        /// At most so many.
        #[arg(long, short = 'n', default_value_t = 50)]
        lines: usize,
        /// Only about this workload.
        #[arg(long, value_name = "SPIFFE-ID")]
        workload: Option<String>,
        /// Only about this credential: a serial number in hexadecimal, or a `jti`.
        #[arg(long, value_name = "ID")]
        credential: Option<String>,
        /// Print a line of JSON for each.
        #[arg(long)]
        json: bool,
    },
}

/// What was found. Schema version 1.
#[derive(Debug, Serialize)]
struct Report {
    schema: u32,
    holds: bool,
    writer: Option<String>,
    /// The first record that is kept here, and the last.
    first: u64,
    last: u64,
    /// Up to which the TPM signed, and up to which the control plane has them.
    signed: u64,
    acknowledged: u64,
    findings: Vec<Finding>,
    torn: Option<Finding>,
    unprotected: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Finding {
    number: u64,
    code: Code,
    found: String,
}

/// Runs a command.
///
/// # Errors
/// When the files can't be read.
pub async fn run(command: AuditCommand, state_dir: &Path) -> anyhow::Result<u8> {
    let directory = state_dir.join(DIRECTORY);
    match command {
        AuditCommand::Verify { json } => verify(state_dir, &directory, json).await,
        AuditCommand::Tail { lines, workload, credential, json } => {
            let wanted = |record: &Record| {
                let is = |wanted: &Option<String>, found: &Option<String>| wanted.is_none() || wanted == found;
                is(&workload, &record.workload) && is(&credential, &record.credential)
            };
            tail(&directory, lines, wanted, json)
        }
    }
}

async fn verify(state_dir: &Path, directory: &Path, json: bool) -> anyhow::Result<u8> {
    let mut found = read(directory)?;
    // A running agent may be in the middle of a line.
    for _ in 0..3 {
        if found.torn.is_none() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
        found = read(directory)?;
    }
    let report = Report::of(&found, node_key(state_dir).as_deref());
    if json {
        print_json(&report)?;
    } else {
        report.print();
    }
    Ok(match (report.holds, &report.torn) {
        (false, _) => exit::CONTRAINDICATED,
        (true, Some(_)) => exit::WARNING,
        (true, None) => exit::DONE,
    })
}

fn read(directory: &Path) -> Result<Found, Refusal> {
    let none = || {
        Refusal::new(codes::CONFIG_INVALID, "there is no journal")
            .at(directory.display().to_string())
            .expected("the state directory of an agent that has run (`state_dir` of its configuration)")
    };
    check::read(directory, &mut |_| {})?.ok_or_else(none)
}

/// The public half of the node key, from the node's certificate; none before it was admitted.
fn node_key(state_dir: &Path) -> Option<Vec<u8>> {
    let membership = state::membership(state_dir)?;
    let leaf = x509_cert::Certificate::from_der(membership.certificate.first()?).ok()?;
    leaf.tbs_certificate().subject_public_key_info().to_der().ok()
}

impl Report {
    fn of(found: &Found, key: Option<&[u8]>) -> Self {
        let marks = found.marks.as_ref();
        let signed = marks.and_then(|marks| marks.signed.as_ref());
        let last = found.head.map_or(0, |head| head.number);
        let mut findings: Vec<Finding> = found
            .faults
            .iter()
            .map(|fault| Finding { number: fault.number, code: fault.refusal.code, found: fault.refusal.to_string() })
            .collect();
        let mut unprotected = Vec::new();
        match (signed, key) {
            (Some(signed), Some(key)) if !signed.signed_by(key) => findings.push(Finding {
                number: signed.head.number,
                code: codes::AUDIT_TAMPERED,
                found: "the head at this record isn't signed by the node key".to_owned(),
            }),
            (Some(_), None) => unprotected.push("the head's signature: this node has no certificate now".to_owned()),
            _ => {}
        }
        let signed = signed.map_or(0, |signed| signed.head.number);
        unprotected.push(format!(
            "{} records since the last signed head, at most those of {} s while the TPM answers: whoever can write here may \
             change or cut them unseen",
            last.saturating_sub(signed),
            BETWEEN.as_secs()
        ));
        unprotected.push(format!(
            "of a process's repeats, the numbers of the last {} s before a kill -9; never its first release",
            WINDOW.as_secs()
        ));
        unprotected.push(
            "root of this node can have the TPM sign: what the control plane doesn't have yet is root's word"
                .to_owned(),
        );
        let torn = found.torn.as_ref().map(|torn| Finding {
            number: torn.number,
            code: codes::AUDIT_TORN,
            found: format!("{} bytes of a record at the end of {}", torn.bytes, torn.path.display()),
        });
        Self {
            schema: 1,
            holds: findings.is_empty(),
            writer: found.head.map(|head| head.writer.to_string()),
            first: found.first,
            last,
            signed,
            acknowledged: marks.map_or(0, |marks| marks.acknowledged.number),
            findings,
            torn,
            unprotected,
        }
    }

    fn print(&self) {
        say!(
            "records {} to {} (writer {}): signed up to {}, delivered up to {}",
            self.first,
            self.last,
            self.writer.as_deref().unwrap_or("unknown"),
            self.signed,
            self.acknowledged
        );
        for finding in &self.findings {
            say!("WRONG: record {}: {}", finding.number, finding.found);
        }
        if let Some(torn) = &self.torn {
            say!("torn: record {} was being written: {}", torn.number, torn.found);
        }
        for window in &self.unprotected {
            say!("not protected: {window}");
        }
        say!("{}", if self.holds { "The records hold." } else { "The records do not hold." });
    }
}

fn tail(directory: &Path, lines: usize, wanted: impl Fn(&Record) -> bool, json: bool) -> anyhow::Result<u8> {
    let mut newest = std::collections::VecDeque::new();
    let found = check::read(directory, &mut |record| {
        if wanted(record) {
            newest.push_back(record.clone());
            if newest.len() > lines {
                newest.pop_front();
            }
        }
    })?;
    let writer = found.and_then(|found| found.head).map(|head| head.writer.to_string());
    for record in newest {
        match json {
            true => say!("{}", printable(&shown(&record, writer.as_deref()))),
            false => say!("{} {} {}", record.number, WallTime(record.time), words(&record)),
        }
    }
    Ok(exit::DONE)
}

/// As `leasehold-server audit tail --json` shows it.
fn shown(record: &Record, writer: Option<&str>) -> Value {
    let mut value = serde_json::to_value(record).unwrap_or_default();
    if let Some(fields) = value.as_object_mut() {
        fields.insert("time".to_owned(), WallTime(record.time).to_string().into());
        fields.insert("count".to_owned(), record.count.into());
        fields.insert("writer".to_owned(), writer.into());
    }
    value
}

/// In printable ASCII: whatever stands in it can't move the cursor.
fn words(record: &Record) -> String {
    let mut line = record.what.escape_default().to_string();
    let fields = [
        ("workload", &record.workload),
        ("credential", &record.credential),
        ("decision", &record.decision),
        ("task", &record.task),
        ("process", &record.process),
        ("code", &record.code),
        ("reason", &record.reason),
    ];
    for (name, value) in fields {
        if let Some(value) = value {
            line.push_str(&format!(" {name} {}", printable(value).trim_matches('"')));
        }
    }
    if record.count > 1 {
        line.push_str(&format!(" count {}", record.count));
    }
    if !record.detail.is_null() {
        line.push_str(&format!(" {}", printable(&record.detail)));
    }
    line
}
