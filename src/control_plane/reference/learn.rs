//! `learn`: a state and rules from the logs of a node that an operator knows to be good.
//!
//! Only what leads to the quoted PCRs is learnt: an event that was written into a log afterwards
//! would otherwise be approved with the rest.

use std::collections::BTreeSet;

use super::stub;
use crate::codes::Refusal;
use crate::measurements::LogHash;
use crate::measurements::ima::{BOOT_AGGREGATE, Entries, escaped};
use crate::tpm::PcrValues;
use crate::verify::appraisal::{Logs, ProvenEvent, SecureBoot, measured};
use crate::verify::profile::{Judged, PcrProfile, Profile, Source};
use crate::verify::references::{BootState, EventReference, SecureBootReference};
use crate::verify::runtime::RuntimeRules;

/// The variables that are learnt. Not dbx: it grows with every update, and nothing is started by it.
const VARIABLES: [&str; 3] = ["PK", "KEK", "db"];

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

/// Learns from a node's logs what the profile judges by reference. They are read by the verifier's own replay:
/// what that refuses, nobody could be affirmed on.
///
/// # Errors
/// Those of [`measured`].
pub fn learn(profile: &Profile, pcrs: &PcrValues, logs: &Logs<'_>) -> Result<Learnt, Refusal> {
    let measured = measured(pcrs, profile, logs, None)?;
    let hash = LogHash::from(pcrs.selection().bank());
    let mut learnt = Learnt::default();
    for (pcr, rules) in &profile.pcrs {
        let Some(quoted) = pcrs.get(*pcr) else {
            learnt.notes.push(format!(
                "PCR {pcr}: it wasn't quoted, so nothing is learnt of it. A node with a set quotes what its profile asks \
                 for: import and assign this one, then learn again"
            ));
            continue;
        };
        let events = || measured.events().get(pcr).into_iter().flatten().map(reference).collect();
        match (rules.source, rules.judged) {
            (Source::Value, Judged::Reference) => {
                learnt.state.values.insert(*pcr, quoted.to_vec());
            }
            (Source::Logs, Judged::Reference) => {
                let events = to_come(events(), rules, hash);
                // Nothing was measured: nothing may be, but an empty list says nothing.
                if events.is_empty() {
                    learnt.state.values.insert(*pcr, quoted.to_vec());
                } else {
                    learnt.state.events.insert(*pcr, events);
                }
            }
            (Source::Logs, Judged::SecureBoot) => match measured.secure_boot().map_or(Keys::Off, keys) {
                Keys::On(reference) => learnt.state.secure_boot = Some(reference),
                Keys::Off => {
                    learnt.notes.push(format!("PCR {pcr}: Secure Boot is off, so whoever started what is not proven"))
                }
                Keys::Unread => {
                    learnt.state.events.insert(*pcr, events());
                    learnt.notes.push(format!(
                        "PCR {pcr}: an old shim's log doesn't tell who vouched for what was started, so the \
                         events are learnt one by one, and an update of db or dbx needs a new state"
                    ));
                }
            },
            _ => {}
        }
    }
    if let (Some(list), Some(at)) = (logs.ima, measured.ima()) {
        // What came after the quote isn't learnt.
        let length = usize::try_from(at.offset).unwrap_or(usize::MAX);
        learnt.runtime(list.rest.get(..length).unwrap_or(list.rest))?;
    }
    Ok(learnt)
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

fn reference(event: &ProvenEvent) -> EventReference {
    EventReference { kind: event.kind.clone(), digest: event.digest.clone(), what: words(&event.words) }
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

fn keys(found: &SecureBoot) -> Keys {
    if !found.enabled {
        return Keys::Off;
    }
    let vouching = found.authorities.iter().filter(|authority| authority.vouches());
    let read: Option<BTreeSet<Vec<u8>>> = vouching.map(|one| Some(one.read.as_ref()?.digest.to_vec())).collect();
    let Some(authorities) = read else { return Keys::Unread };
    let pinned =
        VARIABLES.iter().filter_map(|name| Some(((*name).to_owned(), vec![found.variables.get(*name)?.to_vec()])));
    Keys::On(SecureBootReference { authorities: authorities.into_iter().collect(), variables: pinned.collect() })
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
