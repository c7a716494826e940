//! A reference set as people write and read it: TOML.
//!
//! Written by hand, not by the TOML crate: an event stays on one line, so that two versions of a
//! set differ in the lines that differ.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use serde::Deserialize;

use super::check::refuse;
use super::{BootState, EventReference, ReferenceSet, SecureBootReference};
use crate::clock::WallTime;
use crate::codes::Refusal;
use crate::config::{self, quoted};
use crate::verify::runtime::{Exclusion, HexBytes, Mode, RuntimeRules};

/// The one schema.
const SCHEMA: u64 = 1;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SetText {
    schema: u64,
    name: String,
    version: u64,
    profile: String,
    bank: String,
    #[serde(default)]
    state: Vec<StateText>,
    runtime: Option<RuntimeText>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StateText {
    name: String,
    until: Option<String>,
    #[serde(default)]
    event: Vec<EventText>,
    #[serde(default)]
    value: BTreeMap<String, String>,
    secure_boot: Option<SecureBootReference>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EventText {
    pcr: u8,
    #[serde(rename = "type")]
    kind: String,
    #[serde(with = "hex::serde")]
    digest: Vec<u8>,
    what: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RuntimeText {
    #[serde(default)]
    mode: Mode,
    #[serde(default, with = "super::hex_list")]
    signers: Vec<Vec<u8>>,
    #[serde(default)]
    digests: BTreeMap<String, BTreeSet<HexBytes>>,
    #[serde(default)]
    files: BTreeMap<String, Vec<String>>,
    #[serde(default)]
    buffers: BTreeMap<String, Vec<String>>,
    #[serde(default)]
    exclude: Vec<Exclusion>,
    #[serde(default)]
    waive: Vec<Exclusion>,
}

impl ReferenceSet {
    /// Reads a set from TOML; `file` is its name in messages.
    ///
    /// # Errors
    /// [`crate::codes::CONFIG_INVALID`] with the line and the nearest known key;
    /// [`crate::codes::VERIFY_REFERENCE_MALFORMED`] naming the key whose value can't be.
    pub fn from_toml(text: &str, file: &str) -> Result<Self, Refusal> {
        if text.len() > TEXT_LIMIT {
            return Err(refuse(file, format!("{} bytes", text.len())).expected(format!("at most {TEXT_LIMIT}")));
        }
        let set: SetText = config::parse(text, file)?;
        if set.schema != SCHEMA {
            return Err(refuse("schema", set.schema.to_string()).expected(SCHEMA.to_string()));
        }
        Self {
            name: set.name,
            version: set.version,
            profile: set.profile,
            bank: set.bank.parse().map_err(|what: String| refuse("bank", what))?,
            states: set.state.into_iter().map(state_of).collect::<Result<_, _>>()?,
            runtime: set.runtime.map(|rules| RuntimeRules {
                mode: rules.mode,
                digests: rules.digests,
                files: rules.files,
                signers: rules.signers,
                exclusions: rules.exclude,
                waivers: rules.waive,
                buffers: rules.buffers,
            }),
        }
        .checked()
    }

    /// The set as TOML.
    pub fn to_toml(&self) -> String {
        let mut out = String::new();
        // Writing into a String has no way to fail.
        let _ = write_set(&mut out, self);
        out
    }
}

/// The largest TOML, in bytes: hexadecimal takes about twice a document's size.
const TEXT_LIMIT: usize = 4 * super::LIMIT;

fn state_of(text: StateText) -> Result<BootState, Refusal> {
    let at = |key: &str| format!("state `{}` {key}", text.name.escape_debug());
    let until = (text.until.as_deref())
        .map(|until| WallTime::parse(until).map_err(|what| refuse(&at("until"), what).expected("RFC 3339")))
        .transpose()?;
    let mut events: BTreeMap<u8, Vec<EventReference>> = BTreeMap::new();
    for EventText { pcr, kind, digest, what } in text.event {
        events.entry(pcr).or_default().push(EventReference { kind, digest, what });
    }
    let mut values = BTreeMap::new();
    for (pcr, value) in &text.value {
        let at = at(&format!("value {}", pcr.escape_debug()));
        // `0` and `00` are one PCR: only the first is its name.
        let pcr = pcr.parse::<u8>().ok().filter(|number| number.to_string() == *pcr);
        let pcr = pcr.ok_or_else(|| refuse(&at, "no PCR").expected("0 to 23"))?;
        values.insert(pcr, hex::decode(value).map_err(|e| refuse(&at, e.to_string()).expected("hexadecimal"))?);
    }
    Ok(BootState { name: text.name, until, events, values, secure_boot: text.secure_boot })
}

fn write_set(out: &mut String, set: &ReferenceSet) -> std::fmt::Result {
    writeln!(out, "schema = {SCHEMA}")?;
    writeln!(out, "name = {}", quoted(&set.name))?;
    writeln!(out, "version = {}", set.version)?;
    writeln!(out, "profile = {}", quoted(&set.profile))?;
    writeln!(out, "bank = {}", quoted(set.bank.as_str()))?;
    for state in &set.states {
        write_state(out, state)?;
    }
    match &set.runtime {
        Some(rules) => write_runtime(out, rules),
        None => Ok(()),
    }
}

fn write_state(out: &mut String, state: &BootState) -> std::fmt::Result {
    writeln!(out, "\n[[state]]\nname = {}", quoted(&state.name))?;
    if let Some(until) = state.until {
        writeln!(out, "until = {}", quoted(&until.to_string()))?;
    }
    if !state.events.is_empty() {
        writeln!(out, "event = [")?;
        for (pcr, events) in &state.events {
            for EventReference { kind, digest, what } in events {
                let (kind, digest, what) = (quoted(kind), hex::encode(digest), quoted(what));
                writeln!(out, "  {{ pcr = {pcr}, type = {kind}, digest = \"{digest}\", what = {what} }},")?;
            }
        }
        writeln!(out, "]")?;
    }
    if !state.values.is_empty() {
        writeln!(out, "\n[state.value]")?;
        for (pcr, value) in &state.values {
            writeln!(out, "{pcr} = \"{}\"", hex::encode(value))?;
        }
    }
    if let Some(secure_boot) = &state.secure_boot {
        writeln!(out, "\n[state.secure_boot]")?;
        if !secure_boot.authorities.is_empty() {
            write_list(out, "authorities", secure_boot.authorities.iter().map(hex::encode))?;
        }
        if !secure_boot.variables.is_empty() {
            writeln!(out, "\n[state.secure_boot.variables]")?;
            for (variable, digests) in &secure_boot.variables {
                write_list(out, &quoted(variable), digests.iter().map(hex::encode))?;
            }
        }
    }
    Ok(())
}

fn write_runtime(out: &mut String, rules: &RuntimeRules) -> std::fmt::Result {
    let mode = if rules.mode == Mode::Warn { "warn" } else { "enforce" };
    writeln!(out, "\n[runtime]\nmode = \"{mode}\"")?;
    if !rules.signers.is_empty() {
        write_list(out, "signers", rules.signers.iter().map(hex::encode))?;
    }
    for (key, list) in [("exclude", &rules.exclusions), ("waive", &rules.waivers)] {
        if !list.is_empty() {
            writeln!(out, "{key} = [")?;
            for Exclusion { path, reason } in list {
                writeln!(out, "  {{ path = {}, reason = {} }},", quoted(path), quoted(reason))?;
            }
            writeln!(out, "]")?;
        }
    }
    if !rules.digests.is_empty() {
        writeln!(out, "\n[runtime.digests]")?;
        for (algorithm, digests) in &rules.digests {
            write_list(out, &quoted(algorithm), digests.iter().map(|digest| hex::encode(&digest.0)))?;
        }
    }
    for (key, entries) in [("files", &rules.files), ("buffers", &rules.buffers)] {
        if !entries.is_empty() {
            writeln!(out, "\n[runtime.{key}]")?;
            for (path, digests) in entries {
                let digests: Vec<String> = digests.iter().map(|digest| quoted(digest)).collect();
                writeln!(out, "{} = [{}]", quoted(path), digests.join(", "))?;
            }
        }
    }
    Ok(())
}

fn write_list(out: &mut String, key: &str, digests: impl Iterator<Item = String>) -> std::fmt::Result {
    writeln!(out, "{key} = [")?;
    for digest in digests {
        writeln!(out, "  \"{digest}\",")?;
    }
    writeln!(out, "]")
}
