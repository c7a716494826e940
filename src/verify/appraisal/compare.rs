//! One PCR held against one state.

use super::events::{is_mark, is_phase, is_separator};
use super::{Finding, LayerStanding, Log, Measured, ProvenEvent};
use crate::codes::{self, Refusal};
use crate::measurements::LogHash;
use crate::verify::profile::{Judged, Layer, PcrProfile, Source};
use crate::verify::references::{BootState, EventReference, SecureBootReference};

/// The most differences of one PCR that are named; what is beyond is only counted.
const NAMED: usize = 8;

/// The PCR with the images that the firmware started (PC Client Platform Firmware Profile 1.06, 3.3.4.5).
const IMAGES: u8 = 4;

/// How PCR 4 is met where its images aren't listed: by the keys that vouch for them.
pub(super) const BY_AUTHORITY: &str = "by authority";

/// What comes of it.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// How the PCR met the state, e.g. `event by event`; `None` if nothing in it counts as met.
    pub met: Option<&'static str>,
    /// The state has nothing to hold it against, and why that matters.
    pub uncovered: Option<String>,
    /// What differs.
    pub findings: Vec<Finding>,
    /// How many differences there are.
    pub differences: usize,
}

impl Outcome {
    fn met(how: &'static str) -> Self {
        Self { met: Some(how), ..Self::default() }
    }

    pub(super) fn uncovered(why: String) -> Self {
        Self { uncovered: Some(why), ..Self::default() }
    }

    fn differs(findings: Vec<Finding>, differences: usize) -> Self {
        Self { findings, differences, ..Self::default() }
    }

    /// Both: what one finds is not undone by what the other met.
    fn and(mut self, other: Self) -> Self {
        self.findings.extend(other.findings);
        self.differences = self.differences.saturating_add(other.differences);
        self.met = if self.differences > 0 { None } else { self.met.or(other.met) };
        self
    }
}

/// The one command that would make this node's measurements the accepted ones.
pub(super) const LEARN: &str = "leasehold-server reference learn --node NODE";

/// Holds one PCR against `state`.
pub(super) fn compare(measured: &Measured, pcr: u8, rules: &PcrProfile, state: &BootState) -> Outcome {
    let listed = state.events.contains_key(&pcr) || state.values.contains_key(&pcr);
    let Some(found) = measured.pcrs.get(pcr) else {
        return match rules.judged {
            Judged::Types if !listed => Outcome::default(),
            _ => Outcome::uncovered(format!("PCR {pcr} isn't quoted")),
        };
    };
    if let Some(expected) = state.values.get(&pcr) {
        return value(pcr, rules, found, expected, state);
    }
    let events = measured.events.get(&pcr).map_or(&[][..], Vec::as_slice);
    let bank = LogHash::from(measured.pcrs.selection().bank());
    let one = One { measured, pcr, rules, state, events, bank };
    if rules.source != Source::Logs {
        return match state.events.get(&pcr).is_none_or(Vec::is_empty) {
            // Nothing was measured and nothing expected.
            true if found.iter().all(|byte| *byte == 0) => Outcome::default(),
            true => Outcome::uncovered(format!("no reference value for PCR {pcr}")),
            false => Outcome::uncovered(format!("PCR {pcr} has no log that its events could be held against")),
        };
    }
    match (rules.judged, &state.secure_boot, state.events.get(&pcr)) {
        (Judged::SecureBoot, Some(expected), Some(list)) => one.secure_boot(expected).and(one.listed(list)),
        (Judged::SecureBoot, Some(expected), None) => one.secure_boot(expected),
        (_, _, Some(list)) => one.listed(list),
        (Judged::Types, _, None) => Outcome::default(),
        (_, _, None) => one.unlisted(),
    }
}

/// A whole value. One of zeros was never extended: that is no match, but no difference either where
/// nothing was expected to be.
fn value(pcr: u8, rules: &PcrProfile, found: &[u8], expected: &[u8], state: &BootState) -> Outcome {
    if found == expected {
        return match found.iter().all(|byte| *byte == 0) {
            true => Outcome::default(),
            false => Outcome::met("as a whole"),
        };
    }
    let refusal = Refusal::new(codes::VERIFY_PCR_MISMATCH, hex::encode(found))
        .at(format!("PCR {pcr}"))
        .expected(format!("{} (state `{}`)", hex::encode(expected), state.name));
    Outcome::differs(vec![finding(rules.layer, refusal, LEARN)], 1)
}

pub(super) fn finding(layer: Layer, refusal: Refusal, accept: &str) -> Finding {
    Finding {
        layer: layer.as_str().to_owned(),
        standing: LayerStanding::Contraindicated,
        refusal,
        accept: accept.to_owned(),
    }
}

struct One<'a> {
    measured: &'a Measured,
    pcr: u8,
    rules: &'a PcrProfile,
    state: &'a BootState,
    events: &'a [ProvenEvent],
    bank: LogHash,
}

impl One<'_> {
    /// Event by event. The boot log's must be the state's, in order. Of the userspace log's the node
    /// may have come only part of the way; boot phases need not be listed.
    fn listed(&self, list: &[EventReference]) -> Outcome {
        let expected: Vec<&EventReference> = list.iter().filter(|event| !is_mark(&event.digest, self.bank)).collect();
        let (later, firmware): (Vec<_>, Vec<_>) =
            expected.into_iter().partition(|event| event.kind.starts_with("systemd:"));
        let found = |log: Log| self.events.iter().filter(move |event| event.log == log && !event.mark);
        let boot: Vec<&ProvenEvent> = found(Log::Boot).collect();
        let mut userspace: Vec<&ProvenEvent> = found(Log::Userspace).collect();
        if later.is_empty() {
            userspace.retain(|event| !is_phase(&event.digest, self.bank));
        }
        let reached = later.get(..userspace.len().min(later.len())).unwrap_or_default();
        let outcome = self.differences(&boot, &firmware).and(self.differences(&userspace, reached));
        if let (0, Some(difference)) = (outcome.differences, self.separator(list)) {
            return Outcome::differs(vec![finding(self.rules.layer, difference, LEARN)], 1);
        }
        if outcome.differences > 0 || (boot.is_empty() && userspace.is_empty()) {
            return outcome;
        }
        let held_against = || firmware.iter().chain(reached);
        match held_against().filter(|event| event.digest.is_empty()).count() {
            0 => Outcome::met("event by event"),
            // As many as were found: nothing was judged, so nothing is met.
            all if all == held_against().count() && all > 0 => {
                Outcome::uncovered(format!("of none of PCR {}'s events it is known what it should be", self.pcr))
            }
            _ => Outcome::met("event by event, but for those that the state doesn't judge"),
        }
    }

    /// The separator's place among events that are otherwise the same: what the firmware said before it, the system
    /// that it started could say after it.
    fn separator(&self, list: &[EventReference]) -> Option<Refusal> {
        let before = |digests: &mut dyn Iterator<Item = &[u8]>| {
            let mut measures = 0_usize;
            for digest in digests {
                if is_separator(digest, self.bank) {
                    return Some(measures);
                }
                measures = measures.saturating_add(usize::from(!is_mark(digest, self.bank)));
            }
            None
        };
        let of_boot = || self.events.iter().filter(|event| event.log == Log::Boot);
        let found = before(&mut of_boot().map(|event| event.digest.as_slice()))?;
        let expected = before(&mut list.iter().map(|event| event.digest.as_slice()))?;
        let separator = of_boot().find(|event| is_separator(&event.digest, self.bank))?;
        (found != expected).then(|| {
            Refusal::new(codes::VERIFY_SEPARATOR, format!("it stands after {found} measurements"))
                .at(format!("{} {}, PCR {}, {}", Log::Boot, separator.number, self.pcr, separator.kind))
                .expected(format!("after {expected} (state `{}`)", self.state.name))
        })
    }

    /// Names what lies between the events that are the same at the start and at the end.
    fn differences(&self, found: &[&ProvenEvent], expected: &[&EventReference]) -> Outcome {
        let same = |(found, expected): &(&&ProvenEvent, &&EventReference)| expected.accepts(&found.digest);
        let start = found.iter().zip(expected).take_while(same).count();
        let (found, expected) = (found.get(start..).unwrap_or_default(), expected.get(start..).unwrap_or_default());
        let end = found.iter().rev().zip(expected.iter().rev()).take_while(same).count();
        let found = found.get(..found.len().saturating_sub(end)).unwrap_or_default();
        let expected = expected.get(..expected.len().saturating_sub(end)).unwrap_or_default();
        // As many as expected: each stands for the one in its place, and what is the same isn't named.
        let aligned = found.len() == expected.len();
        let pairs: Vec<_> = (0..found.len().max(expected.len()))
            .map(|n| (found.get(n).copied(), expected.get(n).copied()))
            .filter(|pair| !aligned || !matches!(pair, (Some(one), Some(other)) if other.accepts(&one.digest)))
            .collect();
        let findings = pairs
            .iter()
            .take(NAMED)
            .map(|(found, expected)| finding(self.rules.layer, self.difference(*found, *expected), LEARN))
            .collect();
        Outcome::differs(findings, pairs.len())
    }

    fn difference(&self, found: Option<&ProvenEvent>, expected: Option<&EventReference>) -> Refusal {
        let state = &self.state.name;
        let wanted = expected.map_or_else(
            || format!("nothing more in PCR {} (state `{state}`)", self.pcr),
            |event| format!("{} {}, {} (state `{state}`)", event.kind, hex::encode(&event.digest), event.what),
        );
        match found {
            Some(event) => {
                Refusal::new(codes::VERIFY_EVENT_UNEXPECTED, format!("{}, {}", hex::encode(&event.digest), event.words))
                    .at(format!("{} {}, PCR {}, {}", event.log, event.number, self.pcr, event.kind))
            }
            None => Refusal::new(codes::VERIFY_EVENT_UNEXPECTED, "no such event").at(format!(
                "PCR {}, after {}",
                self.pcr,
                self.last()
            )),
        }
        .expected(wanted)
    }

    fn last(&self) -> String {
        self.events.last().map_or_else(|| "nothing".to_owned(), |event| format!("{} {}", event.log, event.number))
    }

    /// The state says nothing of this PCR.
    fn unlisted(&self) -> Outcome {
        let phase = |event: &&ProvenEvent| is_phase(&event.digest, self.bank);
        let measures: Vec<&ProvenEvent> =
            self.events.iter().filter(|event| !event.mark).filter(|event| !phase(event)).collect();
        // Where every image that was started is listed itself, who vouched for it adds nothing.
        let images = self.state.values.contains_key(&IMAGES)
            || self.state.events.get(&IMAGES).is_some_and(|list| !list.is_empty());
        if measures.is_empty() || (self.rules.judged == Judged::SecureBoot && images) {
            return Outcome::default();
        }
        if self.by_authority() {
            return Outcome::met(BY_AUTHORITY);
        }
        Outcome::uncovered(format!("no reference value for PCR {}", self.pcr))
    }

    /// PCR 4 without events of its own: the firmware started these images because keys that the
    /// state accepts vouch for them.
    fn by_authority(&self) -> bool {
        let accepted = self.state.secure_boot.as_ref().zip(self.measured.secure_boot.as_ref());
        self.pcr == IMAGES
            && accepted.is_some_and(|(expected, found)| {
                found.enabled && problems(expected, found).is_empty() && self.measured.pcrs.get(7).is_some()
            })
    }

    fn secure_boot(&self, expected: &SecureBootReference) -> Outcome {
        let Some(found) = &self.measured.secure_boot else {
            return Outcome::uncovered(format!("PCR {} says nothing of Secure Boot", self.pcr));
        };
        let problems = problems(expected, found);
        if problems.is_empty() {
            return Outcome::met("by the rules of Secure Boot");
        }
        let count = problems.len();
        let findings = problems
            .into_iter()
            .take(NAMED)
            .map(|(what, at, wanted)| {
                let refusal = Refusal::new(codes::VERIFY_SECURE_BOOT, what)
                    .at(at)
                    .expected(format!("{wanted} (state `{}`)", self.state.name));
                finding(self.rules.layer, refusal, "")
            })
            .collect();
        Outcome::differs(findings, count)
    }
}

/// What isn't as the state has it: found, where, expected.
fn problems(expected: &SecureBootReference, found: &super::SecureBoot) -> Vec<(String, String, String)> {
    let mut problems = Vec::new();
    if !found.enabled {
        problems.push(("Secure Boot is off".to_owned(), "PCR 7, SecureBoot".to_owned(), "on".to_owned()));
    }
    for (name, accepted) in &expected.variables {
        let digest = found.variables.get(name);
        if !digest.is_some_and(|digest| accepted.iter().any(|one| one == digest)) {
            problems.push((
                format!("data with SHA-256 {}", digest.map(hex::encode).unwrap_or_else(|| "of nothing".to_owned())),
                format!("PCR 7, the variable {name}"),
                accepted.iter().map(hex::encode).collect::<Vec<_>>().join(" or "),
            ));
        }
    }
    if expected.authorities.is_empty() {
        if let Some(authority) = found.beyond_db() {
            let name = authority.read.as_ref().map_or("an authority that can't be read", |data| data.variable.as_str());
            problems.push((
                format!("`{}` vouched for something that was started", name.escape_debug()),
                format!("{} {}, PCR 7", Log::Boot, authority.event),
                "what the measured db allows, and no machine owner's key".to_owned(),
            ));
        }
        return problems;
    }
    for authority in found.authorities.iter().filter(|authority| authority.vouches()) {
        let accepted =
            authority.read.as_ref().is_some_and(|data| expected.authorities.iter().any(|one| *one == data.digest));
        if !accepted {
            problems.push((
                authority.read.as_ref().map_or_else(
                    || "an authority whose data its digest doesn't vouch for (an old shim's)".to_owned(),
                    |data| format!("{} {}", data.variable.escape_debug(), hex::encode(data.digest)),
                ),
                format!("{} {}, PCR 7", Log::Boot, authority.event),
                expected.authorities.iter().map(hex::encode).collect::<Vec<_>>().join(" or "),
            ));
        }
    }
    problems
}
