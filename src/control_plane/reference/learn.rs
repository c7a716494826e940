//! `learn`: a state and rules from the logs of a node that an operator knows to be good.
//!
//! Only what leads to the quoted PCRs is learnt: an event that was written into a log afterwards
//! would otherwise be approved with the rest.

use std::collections::BTreeSet;

use super::stub;
use crate::codes::{self, Refusal};
use crate::measurements::LogHash;
use crate::measurements::boot::{BootEvent, BootLog};
use crate::measurements::ima::{BOOT_AGGREGATE, Entries, escaped};
use crate::measurements::uefi::summary;
use crate::measurements::userspace::{Target, UserspaceLog};
use crate::tpm::PcrValues;
use crate::verify::appraisal::SecureBoot;
use crate::verify::profile::{Judged, PcrProfile, Profile, Source};
use crate::verify::references::{BootState, EventReference, SecureBootReference};
use crate::verify::runtime::{Checkpoint, Judge, RuntimeRules};

/// The variables that are learnt. Not dbx: it grows with every update, and nothing is started by it.
const VARIABLES: [&str; 3] = ["PK", "KEK", "db"];

/// The logs of one node and the PCRs of its verified quote.
#[derive(Clone, Copy, Debug)]
pub struct Logs<'a> {
    /// What the quote covers.
    pub pcrs: &'a PcrValues,
    /// The boot log.
    pub boot: Option<&'a BootLog>,
    /// The userspace log.
    pub userspace: Option<&'a UserspaceLog>,
    /// IMA's list, as its bytes.
    pub ima: &'a [u8],
}

/// What was learnt.
#[derive(Clone, Debug, Default)]
pub struct Learnt {
    /// The state, without a name.
    pub state: BootState,
    /// Rules that allow what ran; `None` without a list.
    pub runtime: Option<RuntimeRules>,
    /// What an operator should know, in words.
    pub notes: Vec<String>,
}

/// Learns from a node's logs what the profile judges by reference.
///
/// # Errors
/// [`codes::VERIFY_LOG_REPLAY`] for a PCR that the logs don't lead to; those of IMA's list and of
/// [`SecureBoot::read`].
pub fn learn(profile: &Profile, logs: &Logs<'_>) -> Result<Learnt, Refusal> {
    let hash = LogHash::from(logs.pcrs.selection().bank());
    let mut learnt = Learnt::default();
    for (pcr, rules) in &profile.pcrs {
        let Some(quoted) = logs.pcrs.get(*pcr) else {
            learnt.notes.push(format!(
                "PCR {pcr}: it wasn't quoted, so nothing is learnt of it. A node with a set quotes what its profile asks \
                 for: import and assign this one, then learn again"
            ));
            continue;
        };
        match (rules.source, rules.judged) {
            (Source::Value, Judged::Reference) => {
                learnt.state.values.insert(*pcr, quoted.to_vec());
            }
            (Source::Logs, Judged::Reference) => {
                let events = to_come(proven(*pcr, rules, logs, hash, quoted)?, rules, hash);
                // Nothing was measured: nothing may be, but an empty list says nothing.
                if events.is_empty() {
                    learnt.state.values.insert(*pcr, quoted.to_vec());
                } else {
                    learnt.state.events.insert(*pcr, events);
                }
            }
            (Source::Logs, Judged::SecureBoot) => {
                let events = proven(*pcr, rules, logs, hash, quoted)?;
                match secure_boot(logs, *pcr, hash)? {
                    Keys::On(reference) => learnt.state.secure_boot = Some(reference),
                    Keys::Off => learnt
                        .notes
                        .push(format!("PCR {pcr}: Secure Boot is off, so whoever started what is not proven")),
                    Keys::Unread => {
                        learnt.state.events.insert(*pcr, events);
                        learnt.notes.push(format!(
                            "PCR {pcr}: an old shim's log doesn't tell who vouched for what was started, so the \
                             events are learnt one by one, and an update of db or dbx needs a new state"
                        ));
                    }
                }
            }
            (Source::Ima, _) if !logs.ima.is_empty() => learnt.runtime(proven_list(*pcr, logs, quoted)?)?,
            _ => {}
        }
    }
    Ok(learnt)
}

/// The events that lead to the quoted value: the whole boot log, and as much of the userspace log
/// as had happened when the quote was made.
fn proven(
    pcr: u8,
    rules: &PcrProfile,
    logs: &Logs<'_>,
    hash: LogHash,
    quoted: &[u8],
) -> Result<Vec<EventReference>, Refusal> {
    let empty = BootLog::default();
    let boot = logs.boot.unwrap_or(&empty);
    let start = boot.start(hash);
    let mut value = start.value(pcr).unwrap_or_default().to_vec();
    let mut events = Vec::new();
    for event in boot.events.iter().filter(|event| event.pcr == pcr && event.extends()) {
        let digest = event.digest(hash).ok_or_else(|| {
            Refusal::new(codes::VERIFY_BANK, format!("no {hash} digest")).at(format!("boot log event {}", event.number))
        })?;
        value = hash.extend(&value, digest);
        events.push(reference(event, digest));
    }
    if value == quoted {
        return Ok(events);
    }
    let records = logs.userspace.map(|log| log.records.as_slice()).unwrap_or_default();
    for record in records.iter().filter(|record| record.target == Target::Pcr(pcr)) {
        let Some(digest) = record.digest(hash) else { break };
        value = hash.extend(&value, digest);
        let what = record.string.as_deref().unwrap_or(&record.kind);
        events.push(EventReference {
            kind: format!("systemd:{}", record.kind),
            digest: digest.to_vec(),
            what: words(what),
        });
        if value == quoted {
            return Ok(events);
        }
    }
    Err(Refusal::new(codes::VERIFY_LOG_REPLAY, hex::encode(value))
        .at(format!("PCR {pcr} ({}), after {} events", rules.layer, events.len()))
        .expected(hex::encode(quoted)))
}

/// As much of IMA's list as leads to the quoted value; what came after the quote isn't learnt.
fn proven_list<'a>(pcr: u8, logs: &Logs<'a>, quoted: &[u8]) -> Result<&'a [u8], Refusal> {
    let mut judge = Judge::new(None, Checkpoint::start(logs.pcrs.selection().bank()));
    if !judge.take(logs.ima, Some(quoted))? {
        return Err(Refusal::new(codes::VERIFY_LOG_REPLAY, hex::encode(&judge.at.value))
            .at(format!("PCR {pcr} (runtime), after {} entries", judge.at.entries))
            .expected(hex::encode(quoted)));
    }
    let length = usize::try_from(judge.at.offset).unwrap_or(usize::MAX);
    Ok(logs.ima.get(..length).unwrap_or(logs.ima))
}

/// The events with what systemd is yet to say: a node that is learnt from early goes on, and one
/// with a newer systemd says where its initrd began.
fn to_come(mut events: Vec<EventReference>, rules: &PcrProfile, hash: LogHash) -> Vec<EventReference> {
    if rules.userspace.contains("phase") {
        let said = events.iter().filter(|event| event.kind == "systemd:phase").count();
        let all = stub::phases(hash);
        let as_usual = events
            .iter()
            .rev()
            .take(said)
            .rev()
            .map(|event| &event.digest)
            .eq(all.iter().take(said).map(|event| &event.digest));
        if as_usual {
            events.extend(all.into_iter().skip(said));
        }
    }
    let began = stub::os_separator(hash);
    if events.is_empty() && rules.userspace.contains("os-separator") {
        events.push(began);
    }
    events
}

fn reference(event: &BootEvent, digest: &[u8]) -> EventReference {
    EventReference { kind: event.kind.to_string(), digest: digest.to_vec(), what: words(&summary(event)) }
}

/// What Secure Boot was.
enum Keys {
    /// Off.
    Off,
    /// On, under these keys, and these vouched for what was started.
    On(SecureBootReference),
    /// On, but who vouched can't be read: an old shim's log has other data than was measured.
    Unread,
}

/// Reads PCR 7 as the verifier does: what it couldn't read again isn't learnt.
///
/// # Errors
/// Those of [`SecureBoot::read`].
fn secure_boot(logs: &Logs<'_>, pcr: u8, hash: LogHash) -> Result<Keys, Refusal> {
    let events = logs.boot.map(|log| log.events.as_slice()).unwrap_or_default();
    let events: Vec<&BootEvent> = events.iter().filter(|event| event.pcr == pcr && event.extends()).collect();
    let found = SecureBoot::read(&events, hash)?;
    if !found.enabled {
        return Ok(Keys::Off);
    }
    let vouching = found.authorities.iter().filter(|authority| authority.vouches());
    let read: Option<BTreeSet<Vec<u8>>> = vouching.map(|one| Some(one.read.as_ref()?.digest.to_vec())).collect();
    let Some(authorities) = read else { return Ok(Keys::Unread) };
    let pinned =
        VARIABLES.iter().filter_map(|name| Some(((*name).to_owned(), vec![found.variables.get(*name)?.to_vec()])));
    Ok(Keys::On(SecureBootReference { authorities: authorities.into_iter().collect(), variables: pinned.collect() }))
}

impl Learnt {
    /// Rules that allow each file under its path, and each buffer.
    fn runtime(&mut self, list: &[u8]) -> Result<(), Refusal> {
        let mut rules = RuntimeRules::default();
        let (mut violations, mut weak) = (0u64, 0u64);
        for entry in Entries::new(list, 0, 0) {
            let entry = entry?;
            let fields = &entry.fields;
            let hash = LogHash::from_name(fields.algorithm)
                .filter(|hash| *hash != LogHash::Sha1 && hash.size() == fields.digest.len());
            if entry.violation {
                violations = violations.saturating_add(1);
            } else if fields.path == BOOT_AGGREGATE {
                // Bound to the boot by its own rule.
            } else if entry.template == "ima-buf" {
                let digest = hex::encode(LogHash::Sha256.digest(&[fields.buffer]));
                super::files::add(&mut rules.buffers, escaped(fields.path), &digest);
            } else if let Some(hash) = hash {
                rules.allow_file(fields.path, hash, fields.digest);
            } else {
                weak = weak.saturating_add(1);
            }
        }
        if violations > 0 {
            self.notes
                .push(format!("runtime: {violations} violations: waive each path with a reason, or they are refused"));
        }
        if weak > 0 {
            self.notes.push(format!("runtime: {weak} entries with a digest that isn't believed (SHA-1): not learnt"));
        }
        self.runtime = Some(rules);
        Ok(())
    }
}

/// Words as a set may have them.
fn words(text: &str) -> String {
    let plain: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let cut = plain.get(..plain.floor_char_boundary(512)).unwrap_or_default().trim();
    if cut.is_empty() { "no data".to_owned() } else { cut.to_owned() }
}
