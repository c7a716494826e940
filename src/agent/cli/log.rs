//! `log boot|userspace|ima`: what a log says, read without a TPM. Nothing is judged here; only
//! replay against a quote vouches for a log, and `data_verified` says which data a digest covers.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Subcommand;
use serde::Serialize;

use crate::codes::{self, Refusal, exit};
use crate::measurements::boot::{self, BootEvent, BootLog};
use crate::measurements::uefi::{PartRule, Vouched, printable, summary};
use crate::measurements::userspace::{Target, UserspaceLog, UserspaceRecord};
use crate::measurements::{LogHash, sources};
use crate::output::say;

/// A log to show.
#[derive(Debug, Subcommand)]
pub enum LogCommand {
    /// The firmware's boot event log.
    Boot {
        /// The log; without it the kernel's, /sys/kernel/security/tpm0/binary_bios_measurements.
        file: Option<PathBuf>,
        /// Only this bank: sha1, sha256, sha384 or sha512. Without it every bank of the log.
        #[arg(long, value_name = "BANK", value_parser = bank)]
        bank: Option<LogHash>,
        /// Print JSON (schema 1).
        #[arg(long)]
        json: bool,
    },
    /// systemd's log of what userspace measured.
    Userspace {
        /// The log; without it systemd's, /run/log/systemd/tpm2-measure.log.
        file: Option<PathBuf>,
        /// Print JSON (schema 1).
        #[arg(long)]
        json: bool,
    },
    /// IMA's list of what the kernel measured.
    Ima {
        /// The binary list; without it the kernel's, /sys/kernel/security/ima/binary_runtime_measurements.
        file: Option<PathBuf>,
        /// Only this bank: sha1, sha256, sha384 or sha512. Without it sha256.
        #[arg(long, value_name = "BANK", value_parser = bank)]
        bank: Option<LogHash>,
        /// List the entries too.
        #[arg(long)]
        entries: bool,
        /// Print JSON (schema 1).
        #[arg(long)]
        json: bool,
    },
}

/// `leasehold-agent log …`.
pub fn show(command: &LogCommand) -> anyhow::Result<u8> {
    match command {
        LogCommand::Boot { file, bank, json } => show_boot(file.as_deref(), *bank, *json),
        LogCommand::Userspace { file, json } => show_userspace(file.as_deref(), *json),
        LogCommand::Ima { file, bank, entries, json } => super::log_ima::show(file.as_deref(), *bank, *entries, *json),
    }
}

fn bank(name: &str) -> Result<LogHash, String> {
    LogHash::from_name(name).ok_or_else(|| "expected sha1, sha256, sha384 or sha512".to_owned())
}

fn show_boot(file: Option<&Path>, bank: Option<LogHash>, json: bool) -> anyhow::Result<u8> {
    let path = file.unwrap_or_else(|| Path::new(sources::BOOT_LOG));
    let log = BootLog::parse(&sources::read_file(path, boot::LIMIT)?)?;
    let banks = match bank {
        None => log.banks.clone(),
        Some(bank) if log.banks.contains(&bank) => vec![bank],
        Some(bank) => return Err(no_bank(&log, bank).into()),
    };
    let shown = ShownBoot::new(&log, &banks);
    match json {
        true => super::print_json(&shown)?,
        false => shown.print(),
    }
    Ok(exit::DONE)
}

fn no_bank(log: &BootLog, bank: LogHash) -> Refusal {
    let names: Vec<&str> = log.banks.iter().map(|bank| bank.as_str()).collect();
    Refusal::new(codes::MEASUREMENTS_BOOT_LOG, format!("no digests of {bank} in every event"))
        .at("boot log")
        .expected(if names.is_empty() { "a log with digests".to_owned() } else { names.join(", ") })
}

/// A boot log. Schema version 1.
#[derive(Serialize)]
struct ShownBoot {
    schema: u32,
    /// The PCRs that the log extends, with the values it leads to.
    banks: BTreeMap<&'static str, BTreeMap<u8, String>>,
    events: Vec<ShownEvent>,
    notes: Vec<String>,
}

#[derive(Serialize)]
struct ShownEvent {
    number: u32,
    pcr: u8,
    #[serde(rename = "type")]
    kind: String,
    digests: BTreeMap<&'static str, String>,
    /// Whether each digest shown is the hash of the event's data.
    data_verified: bool,
    /// If not: which part of the data each digest shown is the hash of.
    #[serde(skip_serializing_if = "Option::is_none")]
    verified_part: Option<ShownPart>,
    summary: String,
}

#[derive(Serialize)]
struct ShownPart {
    rule: &'static str,
    /// The first byte of the data, and the one behind the last.
    start: usize,
    end: usize,
}

impl ShownBoot {
    fn new(log: &BootLog, banks: &[LogHash]) -> Self {
        let values = |bank: &LogHash| {
            let replayed = log.replay(*bank)?;
            Some((bank.as_str(), replayed.extended().map(|(pcr, value)| (pcr, hex::encode(value))).collect()))
        };
        Self {
            schema: 1,
            banks: banks.iter().filter_map(values).collect(),
            events: log.events.iter().map(|event| ShownEvent::new(event, banks)).collect(),
            notes: log.notes.clone(),
        }
    }

    fn print(&self) {
        say!("What is marked = is the hash of all that is said of it, ~ of a part; the rest is hearsay.\n");
        say!("{:>6} {:>3}   {:<32} WHAT IT SAYS", "EVENT", "PCR", "TYPE");
        for ShownEvent { number, pcr, kind, data_verified, verified_part, summary, .. } in &self.events {
            let mark = match (data_verified, verified_part) {
                (true, _) => '=',
                (false, Some(_)) => '~',
                (false, None) => ' ',
            };
            say!("{number:>6} {pcr:>3} {mark} {kind:<32} {summary}");
        }
        for (bank, pcrs) in &self.banks {
            say!("\n{bank}");
            for (pcr, value) in pcrs {
                say!("{pcr:>6} {value}");
            }
        }
        if !self.notes.is_empty() {
            say!("");
        }
        for note in &self.notes {
            say!("note: {note}");
        }
    }
}

impl ShownEvent {
    fn new(event: &BootEvent, banks: &[LogHash]) -> Self {
        let digest = |bank: &LogHash| Some((bank.as_str(), hex::encode(event.digest(*bank)?)));
        // Banks that disagree are no proof of anything.
        let mut vouched = banks.iter().map(|bank| event.vouched(*bank));
        let first = vouched.next().unwrap_or(Vouched::No);
        let agreed = if vouched.all(|other| other == first) { first } else { Vouched::No };
        Self {
            number: event.number,
            pcr: event.pcr,
            kind: event.kind.to_string(),
            digests: banks.iter().filter_map(digest).collect(),
            data_verified: agreed == Vouched::Whole,
            verified_part: match agreed {
                Vouched::Part { rule, range } => {
                    Some(ShownPart { rule: rule_name(rule), start: range.start, end: range.end })
                }
                Vouched::Whole | Vouched::No => None,
            },
            summary: summary(event),
        }
    }
}

const fn rule_name(rule: PartRule) -> &'static str {
    match rule {
        PartRule::VariableContents => "variable-contents",
        PartRule::AllButLastByte => "all-but-last-byte",
        PartRule::GrubString => "grub-string",
        PartRule::Utf16Text => "utf16-text",
        PartRule::SectionName => "section-name",
    }
}

fn show_userspace(file: Option<&Path>, json: bool) -> anyhow::Result<u8> {
    let path = file.unwrap_or_else(|| Path::new(sources::USERSPACE_LOG));
    let log = UserspaceLog::parse(&sources::read_userspace_file(path)?)?;
    let shown = ShownUserspace { schema: 1, records: log.records.iter().map(ShownRecord::new).collect() };
    match json {
        true => super::print_json(&shown)?,
        false => shown.print(),
    }
    Ok(exit::DONE)
}

/// A userspace log. Schema version 1.
#[derive(Serialize)]
struct ShownUserspace {
    schema: u32,
    records: Vec<ShownRecord>,
}

#[derive(Serialize)]
struct ShownRecord {
    number: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pcr: Option<u8>,
    /// The name of the NV index that was extended instead of a PCR.
    #[serde(skip_serializing_if = "Option::is_none")]
    nvpcr: Option<String>,
    #[serde(rename = "type")]
    kind: String,
    digests: BTreeMap<&'static str, String>,
    /// Whether each digest is the hash of the string.
    data_verified: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    string: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    boot_id: Option<String>,
}

impl ShownUserspace {
    fn print(&self) {
        say!("What is marked = is the hash of all that is said of it; the rest is hearsay.\n");
        say!("{:>6} {:>12}   {:<16} WHAT IT SAYS", "RECORD", "PCR", "TYPE");
        for ShownRecord { number, pcr, nvpcr, kind, data_verified, string, .. } in &self.records {
            let target = pcr.map(|pcr| pcr.to_string()).or_else(|| nvpcr.clone()).unwrap_or_default();
            let mark = if *data_verified { '=' } else { ' ' };
            let (target, kind) = (printable(&target, 40), printable(kind, 40));
            let string = printable(string.as_deref().unwrap_or_default(), 200);
            say!("{number:>6} {target:>12} {mark} {kind:<16} {string}");
        }
    }
}

impl ShownRecord {
    fn new(record: &UserspaceRecord) -> Self {
        let (pcr, nvpcr) = match &record.target {
            Target::Pcr(pcr) => (Some(*pcr), None),
            Target::NvPcr(name) => (None, Some(name.clone())),
        };
        let vouched = record.digests.iter().all(|(bank, _)| record.vouched(*bank));
        Self {
            number: record.number,
            pcr,
            nvpcr,
            kind: record.kind.clone(),
            digests: record.digests.iter().map(|(bank, digest)| (bank.as_str(), hex::encode(digest))).collect(),
            data_verified: vouched && !record.digests.is_empty(),
            string: record.string.clone(),
            boot_id: record.boot_id.clone(),
        }
    }
}
