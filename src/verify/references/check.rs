//! What every reference set keeps to, however it was written.

use std::collections::BTreeSet;

use super::{BootState, EventReference, ReferenceSet, SecureBootReference};
use crate::codes::{self, Refusal};
use crate::measurements::{EventType, LogHash};
use crate::tpm::Bank;
use crate::tpm::pcr::PCR_COUNT;
use crate::verify::keys::certificate_spki;
use crate::verify::runtime::{Exclusion, RuntimeRules};

/// The most states of a set.
pub const STATES_LIMIT: usize = 64;
/// The most events of a set, over all its states.
pub const EVENTS_LIMIT: usize = 10_000;
/// The most digests in a set's runtime rules.
pub const DIGESTS_LIMIT: usize = 1_000_000;
/// The longest name of a set, state or profile, in characters.
const NAME_LIMIT: usize = 64;
/// The longest words, in bytes.
const WORDS_LIMIT: usize = 512;
/// The longest path, in bytes: the kernel's PATH_MAX.
const PATH_LIMIT: usize = 4096;
/// The most signers' certificates, exclusions or waivers.
const LIST_LIMIT: usize = 4096;
/// The variables whose data a set may pin.
pub(super) const VARIABLES: [&str; 6] = ["PK", "KEK", "db", "dbx", "dbr", "dbt"];

impl ReferenceSet {
    /// The set in its one form (lists in order, nothing twice) if it keeps every bound.
    ///
    /// # Errors
    /// [`codes::VERIFY_REFERENCE_MALFORMED`] naming the key.
    pub fn checked(mut self) -> Result<Self, Refusal> {
        name("name", &self.name)?;
        name("profile", &self.profile)?;
        if self.version == 0 || i64::try_from(self.version).is_err() {
            return Err(refuse("version", self.version.to_string()).expected("1 to 2^63-1"));
        }
        self.check_states()?;
        if let Some(rules) = &mut self.runtime {
            check_runtime(rules)?;
        } else if self.states.is_empty() {
            return Err(refuse("state", "a set that says nothing").expected("a state, or rules for the runtime"));
        }
        Ok(self)
    }

    fn check_states(&mut self) -> Result<(), Refusal> {
        within("state", self.states.len(), STATES_LIMIT)?;
        let events = self.states.iter().flat_map(|state| state.events.values()).map(Vec::len).sum();
        within("state.event", events, EVENTS_LIMIT)?;
        let mut names = BTreeSet::new();
        for state in &mut self.states {
            name("state.name", &state.name)?;
            if !names.insert(state.name.clone()) {
                return Err(refuse("state.name", format!("`{}` stands twice", state.name)));
            }
            check_state(state, self.bank)?;
        }
        Ok(())
    }
}

fn check_state(state: &mut BootState, bank: Bank) -> Result<(), Refusal> {
    let at = |what: String| format!("state `{}` {what}", state.name);
    for (pcr, events) in &state.events {
        check_pcr(&at(format!("event pcr {pcr}")), *pcr)?;
        if events.is_empty() {
            return Err(refuse(&at(format!("PCR {pcr}")), "an empty list of events").expected("no list at all"));
        }
        for (number, event) in events.iter().enumerate() {
            check_event(&at(format!("PCR {pcr} event {number}")), event, bank)?;
        }
    }
    for (pcr, value) in &state.values {
        let at = at(format!("value {pcr}"));
        check_pcr(&at, *pcr)?;
        sized(&at, value, bank.size())?;
        if state.events.contains_key(pcr) {
            return Err(refuse(&at, "a PCR with both events and a value").expected("one of the two"));
        }
    }
    let at = at("secure_boot".to_owned());
    match &mut state.secure_boot {
        Some(secure_boot) => check_secure_boot(&at, secure_boot),
        None => Ok(()),
    }
}

fn check_event(at: &str, event: &EventReference, bank: Bank) -> Result<(), Refusal> {
    words(at, &event.kind)?;
    words(at, &event.what)?;
    match event.digest.is_empty() {
        // An image that nobody knows is no reference: without events of its PCR, Secure Boot decides.
        true if event.kind != "EV_IPL" => {
            return Err(refuse(at, "an event without a digest").expected("one; only a part of type EV_IPL may lack it"));
        }
        true => {}
        false => sized(at, &event.digest, bank.size())?,
    }
    let known = EventType::from_name(&event.kind).is_some()
        || event.kind.strip_prefix("systemd:").is_some_and(|kind| !kind.is_empty())
        || event.kind.strip_prefix("0x").is_some_and(|number| u32::from_str_radix(number, 16).is_ok());
    match known {
        true => Ok(()),
        false => Err(refuse(at, format!("type `{}`", event.kind)).expected("EV_…, systemd:KIND or 0xNUMBER")),
    }
}

fn check_secure_boot(at: &str, secure_boot: &mut SecureBootReference) -> Result<(), Refusal> {
    in_order(&mut secure_boot.authorities);
    for authority in &secure_boot.authorities {
        sized(&format!("{at}.authorities"), authority, 32)?;
    }
    for (variable, digests) in &mut secure_boot.variables {
        let at = format!("{at}.variables.{variable}");
        if !VARIABLES.contains(&variable.as_str()) {
            return Err(refuse(&at, "a variable that isn't pinned").expected(VARIABLES.join(", ")));
        }
        if digests.is_empty() {
            return Err(refuse(&at, "an empty list").expected("no entry: then it may be anything"));
        }
        in_order(digests);
        for digest in digests {
            sized(&at, digest, 32)?;
        }
    }
    Ok(())
}

fn check_runtime(rules: &mut RuntimeRules) -> Result<(), Refusal> {
    let files = rules.files.values().chain(rules.buffers.values()).map(Vec::len);
    let count = rules.digests.values().map(BTreeSet::len).chain(files).sum();
    within("runtime", count, DIGESTS_LIMIT)?;
    for (algorithm, digests) in &rules.digests {
        let at = format!("runtime.digests.{algorithm}");
        let size = algorithm_size(&at, algorithm)?;
        if digests.is_empty() {
            return Err(refuse(&at, "an empty list").expected("no list at all"));
        }
        for digest in digests {
            sized(&at, &digest.0, size)?;
        }
    }
    for (list, entries) in [("files", &mut rules.files), ("buffers", &mut rules.buffers)] {
        for (file, digests) in entries {
            let at = format!("runtime.{list}.{}", file.escape_debug());
            path(&at, file)?;
            if digests.is_empty() {
                return Err(refuse(&at, "an empty list").expected("a digest, or no entry"));
            }
            for digest in digests.iter() {
                split_digest(&at, digest)?;
            }
            in_order(digests);
        }
    }
    within("runtime.signers", rules.signers.len(), LIST_LIMIT)?;
    in_order(&mut rules.signers);
    for (number, certificate) in rules.signers.iter().enumerate() {
        certificate_spki(certificate)
            .map_err(|refusal| refuse(&format!("runtime.signers {number}"), refusal.found).expected("a certificate"))?;
    }
    argued("runtime.exclude", &mut rules.exclusions)?;
    argued("runtime.waive", &mut rules.waivers)?;
    rules.check()
}

/// An algorithm and a digest from `sha256:…`.
pub(super) fn split_digest<'a>(at: &str, text: &'a str) -> Result<(&'a str, Vec<u8>), Refusal> {
    let wrong = || refuse(at, format!("`{}`", text.escape_debug())).expected("sha256: and 64 hexadecimal digits");
    let (algorithm, digits) = text.split_once(':').ok_or_else(wrong)?;
    let size = algorithm_size(at, algorithm)?;
    let digest = hex::decode(digits).map_err(|_| wrong())?;
    // One text for one digest: the judge compares texts.
    if digits.bytes().any(|digit| digit.is_ascii_uppercase()) {
        return Err(wrong());
    }
    sized(at, &digest, size)?;
    Ok((algorithm, digest))
}

/// SHA-1 is no algorithm here: two files with one SHA-1 can be made by anyone.
pub(super) fn algorithm_size(at: &str, algorithm: &str) -> Result<usize, Refusal> {
    LogHash::from_name(algorithm)
        .filter(|hash| *hash != LogHash::Sha1)
        .map(LogHash::size)
        .ok_or_else(|| refuse(at, format!("`{}`", algorithm.escape_debug())).expected("sha256, sha384 or sha512"))
}

pub(super) fn refuse(at: &str, found: impl Into<String>) -> Refusal {
    Refusal::new(codes::VERIFY_REFERENCE_MALFORMED, found).at(at)
}

fn argued(at: &str, list: &mut [Exclusion]) -> Result<(), Refusal> {
    within(at, list.len(), LIST_LIMIT)?;
    list.sort_by(|a, b| (&a.path, &a.reason).cmp(&(&b.path, &b.reason)));
    let mut seen = BTreeSet::new();
    for exclusion in list.iter() {
        path(at, &exclusion.path)?;
        words(at, &exclusion.reason).map_err(|refusal| refusal.expected("a reason, in words"))?;
        if exclusion.path == "/" {
            return Err(refuse(at, "`/` excludes everything").expected("mode = \"warn\", which also lists"));
        }
        if !seen.insert(&exclusion.path) {
            return Err(refuse(at, format!("`{}` stands twice", exclusion.path.escape_debug())));
        }
    }
    Ok(())
}

fn in_order<T: Ord>(list: &mut Vec<T>) {
    list.sort();
    list.dedup();
}

fn name(at: &str, text: &str) -> Result<(), Refusal> {
    match (1..=NAME_LIMIT).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic()) {
        true => Ok(()),
        false => Err(refuse(at, format!("`{}`", text.escape_debug()))
            .expected(format!("1 to {NAME_LIMIT} printable ASCII characters without blanks"))),
    }
}

fn words(at: &str, text: &str) -> Result<(), Refusal> {
    match (1..=WORDS_LIMIT).contains(&text.len()) && !text.chars().any(char::is_control) {
        true => Ok(()),
        false => Err(refuse(at, format!("`{}`", text.escape_debug()))
            .expected(format!("1 to {WORDS_LIMIT} bytes of text without control characters"))),
    }
}

fn path(at: &str, text: &str) -> Result<(), Refusal> {
    match (1..=PATH_LIMIT).contains(&text.len()) && !text.chars().any(char::is_control) {
        true => Ok(()),
        false => Err(refuse(at, format!("`{}`", text.escape_debug()))
            .expected(format!("a path of 1 to {PATH_LIMIT} bytes without control characters"))),
    }
}

fn check_pcr(at: &str, pcr: u8) -> Result<(), Refusal> {
    match pcr < PCR_COUNT {
        true => Ok(()),
        false => Err(refuse(at, format!("PCR {pcr}")).expected("0 to 23")),
    }
}

fn sized(at: &str, digest: &[u8], size: usize) -> Result<(), Refusal> {
    match digest.len() == size {
        true => Ok(()),
        false => Err(refuse(at, format!("a digest of {} bytes", digest.len())).expected(format!("{size}"))),
    }
}

fn within(at: &str, count: usize, limit: usize) -> Result<(), Refusal> {
    match count <= limit {
        true => Ok(()),
        false => Err(refuse(at, format!("{count} entries")).expected(format!("at most {limit}"))),
    }
}
