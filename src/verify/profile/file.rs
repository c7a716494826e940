//! A profile as it is written: TOML, every key known, every name checked.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde::Deserialize;

use super::{Judged, Layer, PcrProfile, Profile, Source, Status};
use crate::codes::{self, Refusal};
use crate::config;
use crate::measurements::EventType;
use crate::tpm::{Bank, PCR_COUNT};

/// The schema this version reads.
const SCHEMA: u32 = 1;
/// The longest name and the longest word of a userspace log, in bytes.
const NAME_LIMIT: usize = 64;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    schema: u32,
    status: Status,
    summary: String,
    banks: Vec<String>,
    boot_log: Option<PathBuf>,
    userspace_log: Option<PathBuf>,
    ima_list: Option<PathBuf>,
    #[serde(default)]
    seal: BTreeSet<u8>,
    pcr: BTreeMap<String, FilePcr>,
    #[serde(default)]
    not_proven: BTreeMap<Layer, String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FilePcr {
    layer: Layer,
    #[serde(default)]
    source: Source,
    #[serde(default)]
    judged: Judged,
    #[serde(default)]
    events: BTreeSet<String>,
    #[serde(default)]
    userspace: BTreeSet<String>,
    #[serde(default)]
    required: BTreeSet<String>,
    #[serde(default)]
    separator: bool,
}

/// Reads a profile; see [`Profile::parse`].
pub(super) fn parse(name: &str, text: &str) -> Result<Profile, Refusal> {
    let file_name = format!("{}.toml", name.escape_default());
    let file: File = config::parse(text, &file_name)?;
    let refuse =
        |key: &str, found: String| Refusal::new(codes::CONFIG_INVALID, found).at(format!("{file_name}: {key}"));
    if !is_name(name) {
        return Err(refuse("name", format!("`{}`", name.escape_default()))
            .expected("a file name of 1 to 64 lower-case letters, digits and `-`"));
    }
    if file.schema != SCHEMA {
        return Err(refuse("schema", file.schema.to_string()).expected(SCHEMA.to_string()));
    }
    if file.summary.trim().is_empty() {
        return Err(refuse("summary", "nothing".to_owned()).expected("one sentence"));
    }
    let mut banks = Vec::new();
    for bank in &file.banks {
        let bank: Bank = bank.parse().map_err(|e| refuse("banks", e))?;
        if banks.contains(&bank) {
            return Err(refuse("banks", format!("{bank} twice")));
        }
        banks.push(bank);
    }
    if banks.is_empty() {
        return Err(refuse("banks", "none".to_owned()).expected("at least one of sha256, sha384, sha512"));
    }
    let mut pcrs = BTreeMap::new();
    for (number, rules) in file.pcr {
        let key = format!("pcr.{}", number.escape_default());
        let pcr = number
            .parse::<u8>()
            .ok()
            .filter(|pcr| *pcr < PCR_COUNT && pcr.to_string() == number)
            .ok_or_else(|| refuse(&key, "no PCR".to_owned()).expected("0 to 23"))?;
        let rules = rules.check().map_err(|(found, expected)| refuse(&key, found).expected(expected))?;
        pcrs.insert(pcr, rules);
    }
    let profile = Profile {
        name: name.to_owned(),
        status: file.status,
        summary: file.summary.trim().to_owned(),
        banks,
        boot_log: file.boot_log,
        userspace_log: file.userspace_log,
        ima_list: file.ima_list,
        pcrs,
        not_proven: file.not_proven,
        seal: file.seal,
    };
    consistent(&profile).map_err(|(key, found, expected)| refuse(&key, found).expected(expected))?;
    Ok(profile)
}

impl FilePcr {
    /// The rules, checked by themselves; otherwise what was found and what was expected.
    fn check(self) -> Result<PcrProfile, (String, String)> {
        let events = types(&self.events)?;
        let required = types(&self.required)?;
        if let Some(missing) = required.difference(&events).next() {
            return Err((format!("{missing} is required but may not stand here"), "it among `events` too".to_owned()));
        }
        if let Some(kind) = self.userspace.iter().find(|kind| !is_name(kind)) {
            return Err((
                format!("userspace kind `{}`", kind.escape_default()),
                "e.g. `phase` or `os-separator`".to_owned(),
            ));
        }
        if self.separator && !events.contains(&EventType::SEPARATOR) {
            return Err(("`separator` without EV_SEPARATOR among `events`".to_owned(), "both or neither".to_owned()));
        }
        if events.contains(&EventType::NO_ACTION) {
            return Err(("EV_NO_ACTION".to_owned(), "types that extend: this one never does".to_owned()));
        }
        let silent = events.is_empty() && self.userspace.is_empty();
        match self.source {
            Source::Logs if silent => {
                return Err((
                    "no event may stand here".to_owned(),
                    "`events`, `userspace` or another `source`".to_owned(),
                ));
            }
            Source::Ima | Source::Value if !silent => {
                return Err(("events of logs".to_owned(), "`source = \"logs\"`, or no `events`".to_owned()));
            }
            _ => {}
        }
        if self.judged == Judged::SecureBoot
            && !(self.separator && events.contains(&EventType::EFI_VARIABLE_DRIVER_CONFIG))
        {
            return Err((
                "Secure Boot without its events".to_owned(),
                "EV_EFI_VARIABLE_DRIVER_CONFIG and EV_SEPARATOR among `events`, and `separator = true`".to_owned(),
            ));
        }
        Ok(PcrProfile {
            layer: self.layer,
            source: self.source,
            judged: self.judged,
            events,
            userspace: self.userspace,
            required,
            separator: self.separator,
        })
    }
}

/// What the tables must be to one another: key, found, expected.
fn consistent(profile: &Profile) -> Result<(), (String, String, String)> {
    let missing = |key: &str, found: &str| Err((key.to_owned(), found.to_owned(), "a path".to_owned()));
    if profile.pcrs.is_empty() {
        return Err(("pcr".to_owned(), "no PCR".to_owned(), "at least one `[pcr.N]`".to_owned()));
    }
    if profile.needs_boot_log() && profile.boot_log.is_none() {
        return missing("boot_log", "none, though events explain PCRs");
    }
    if profile.pcrs.values().any(|rules| !rules.userspace.is_empty()) && profile.userspace_log.is_none() {
        return missing("userspace_log", "none, though its records explain PCRs");
    }
    let ima: Vec<u8> =
        profile.pcrs.iter().filter(|(_, rules)| rules.source == Source::Ima).map(|(pcr, _)| *pcr).collect();
    if !ima.is_empty() && profile.ima_list.is_none() {
        return missing("ima_list", "none, though it explains a PCR");
    }
    // CONFIG_IMA_MEASURE_PCR_IDX is 10 everywhere it is used with a boot_aggregate.
    if ima.iter().any(|pcr| *pcr != 10) {
        return Err(("pcr".to_owned(), format!("source `ima` for PCR {ima:?}"), "PCR 10".to_owned()));
    }
    if let Some(pcr) = profile.seal.iter().find(|pcr| !profile.pcrs.contains_key(pcr)) {
        return Err(("seal".to_owned(), format!("PCR {pcr}, of which nothing is said"), format!("a `[pcr.{pcr}]`")));
    }
    if let Some((layer, _)) = profile.not_proven.iter().find(|(_, why)| why.trim().is_empty()) {
        return Err((format!("not_proven.{layer}"), "nothing".to_owned(), "why it isn't proven".to_owned()));
    }
    Ok(())
}

/// Event types by name, or by number (`0x8000000E`) where no specification names them.
fn types(names: &BTreeSet<String>) -> Result<BTreeSet<EventType>, (String, String)> {
    names
        .iter()
        .map(|name| {
            let number = || name.strip_prefix("0x").and_then(|digits| u32::from_str_radix(digits, 16).ok());
            EventType::from_name(name)
                .or_else(|| number().map(EventType).filter(|kind| kind.name().is_none()))
                .ok_or_else(|| (format!("event type `{}`", name.escape_default()), "e.g. EV_SEPARATOR".to_owned()))
        })
        .collect()
}

fn is_name(text: &str) -> bool {
    (1..=NAME_LIMIT).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}
