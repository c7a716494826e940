//! From what was measured to what is said of each layer.

use std::collections::BTreeSet;

use super::compare::{BY_AUTHORITY, LEARN, Outcome, compare, finding};
use super::runtime;
use super::{Appraisal, Finding, LayerResult, LayerStanding, Measured};
use crate::clock::WallTime;
use crate::codes::{self, Refusal};
use crate::verify::profile::{Layer, Profile, Status};
use crate::verify::references::{BootState, ReferenceSet};
use crate::verify::trust::TrustVector;

/// One state, held against every PCR.
struct Candidate<'a> {
    state: &'a BootState,
    expired: bool,
    outcomes: Vec<(u8, Layer, Outcome)>,
}

/// See [`Measured::appraise`].
pub(super) fn appraise(
    measured: &Measured,
    profile: &Profile,
    references: Option<&ReferenceSet>,
    now: WallTime,
) -> Appraisal {
    let mut notes = measured.notes.clone();
    if profile.status == Status::Unproven {
        notes.push(format!(
            "the profile `{}` is unproven: no log of such a platform was appraised by its makers",
            profile.name
        ));
    }
    if let Some(refusal) = another_profile(measured, profile, references) {
        return nothing(profile, refusal, notes);
    }
    let chosen = references.and_then(|set| nearest(measured, profile, set, now));
    let mut findings = Vec::new();
    let mut layers = Vec::new();
    for layer in Layer::ALL.into_iter().filter(|layer| *layer != Layer::Runtime) {
        let (result, found) = match &chosen {
            Some(candidate) => candidate.layer(layer, profile),
            None => (not_proven(layer, profile, "no reference values"), Vec::new()),
        };
        layers.push(result);
        findings.extend(found);
    }
    if chosen.as_ref().is_some_and(|candidate| candidate.outcomes.iter().any(|(_, _, it)| it.met == Some(BY_AUTHORITY)))
    {
        notes.push(
            "PCR 4 is accepted by who signed the images: whatever else these keys vouch for could be started, and \
             extend PCRs 8 to 15 with the same events"
                .to_owned(),
        );
    }
    let (result, found) = runtime::appraise(measured, profile, references);
    layers.push(result);
    findings.extend(found);
    if let Some(set) = references {
        findings.iter_mut().for_each(|finding| accept(finding, set));
    }
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.standing));
    let met = chosen.as_ref().filter(|candidate| candidate.differences() == 0 && !candidate.expired);
    Appraisal {
        state: met.map(|candidate| candidate.state.name.clone()),
        vector: TrustVector::of_layers(&layers, &differing(chosen.as_ref())),
        layers,
        findings,
        notes,
    }
}

/// The profile that this was measured under, and the references, must be the one that is asked about.
fn another_profile(measured: &Measured, profile: &Profile, references: Option<&ReferenceSet>) -> Option<Refusal> {
    let found = match references {
        _ if measured.profile != profile.name => format!("measured under `{}`", measured.profile),
        Some(set) if set.profile != profile.name => format!("references `{}` are for `{}`", set.name, set.profile),
        Some(set) if set.bank != measured.pcrs.selection().bank() => format!("references for the bank {}", set.bank),
        _ => return None,
    };
    Some(Refusal::new(codes::VERIFY_PROFILE, found).expected(format!("the profile `{}`", profile.name)))
}

fn nothing(profile: &Profile, refusal: Refusal, notes: Vec<String>) -> Appraisal {
    let layers: Vec<LayerResult> = Layer::ALL
        .into_iter()
        .map(|layer| match layer {
            Layer::Boot => result(layer, LayerStanding::Contraindicated, refusal.to_string()),
            layer => not_proven(layer, profile, "another profile"),
        })
        .collect();
    let bad = finding(Layer::Boot, refusal, "");
    Appraisal { vector: TrustVector::of_layers(&layers, &[]), layers, findings: vec![bad], state: None, notes }
}

/// The state with the fewest differences; of those that are met one that is still accepted, and
/// then the one that says most.
fn nearest<'a>(measured: &Measured, profile: &Profile, set: &'a ReferenceSet, now: WallTime) -> Option<Candidate<'a>> {
    let candidates = set.states.iter().map(|state| Candidate {
        state,
        expired: state.until.is_some_and(|until| now >= until),
        outcomes: profile
            .pcrs
            .iter()
            .filter(|(_, rules)| rules.layer != Layer::Runtime)
            .map(|(pcr, rules)| (*pcr, rules.layer, compare(measured, *pcr, rules, state)))
            .chain(beyond(profile, state))
            .collect(),
    });
    candidates.min_by_key(|candidate| {
        let uncovered = candidate.outcomes.iter().filter(|(_, _, outcome)| outcome.uncovered.is_some()).count();
        // Where nothing else tells them apart: the one that lasts, which is what nodes should be in.
        (candidate.differences(), candidate.expired, uncovered, candidate.state.until.is_some())
    })
}

/// What a state lists is never passed over: of a PCR that the profile doesn't ask for nothing is known.
fn beyond(profile: &Profile, state: &BootState) -> impl Iterator<Item = (u8, Layer, Outcome)> {
    let judged = |pcr: &u8| profile.pcrs.get(pcr).is_some_and(|rules| rules.layer != Layer::Runtime);
    let listed: BTreeSet<u8> = state.events.keys().chain(state.values.keys()).copied().collect();
    listed.into_iter().filter(move |pcr| !judged(pcr)).map(|pcr| {
        let why =
            format!("the state `{}` lists PCR {pcr}, which the profile `{}` doesn't judge", state.name, profile.name);
        (pcr, Layer::Boot, Outcome::uncovered(why))
    })
}

fn differing(chosen: Option<&Candidate<'_>>) -> Vec<u8> {
    let outcomes = chosen.into_iter().flat_map(|candidate| &candidate.outcomes);
    outcomes.filter(|(_, _, outcome)| outcome.differences > 0).map(|(pcr, _, _)| *pcr).collect()
}

impl Candidate<'_> {
    fn differences(&self) -> usize {
        self.outcomes.iter().fold(0, |sum, (_, _, outcome)| sum.saturating_add(outcome.differences))
    }

    fn layer(&self, layer: Layer, profile: &Profile) -> (LayerResult, Vec<Finding>) {
        let own = || self.outcomes.iter().filter(move |(_, of, _)| *of == layer);
        let mut findings: Vec<Finding> = own().flat_map(|(_, _, outcome)| outcome.findings.clone()).collect();
        if !findings.is_empty() {
            let count = own().fold(0_usize, |sum, (_, _, outcome)| sum.saturating_add(outcome.differences));
            let plural = if count == 1 { "" } else { "s" };
            let why = format!("{count} difference{plural} from the nearest state, `{}`", self.state.name);
            return (result(layer, LayerStanding::Contraindicated, why), findings);
        }
        // A state is met as a whole or not at all.
        if self.expired && layer == Layer::Boot && self.differences() == 0 {
            let until = self.state.until.map(|until| until.to_string()).unwrap_or_default();
            let refusal = Refusal::new(codes::VERIFY_STATE_EXPIRED, format!("the state `{}`", self.state.name))
                .at(format!("accepted until {until}"))
                .expected("a state that is still accepted");
            findings.push(finding(layer, refusal, PLAN));
            return (
                result(layer, LayerStanding::Contraindicated, format!("the state `{}` has expired", self.state.name)),
                findings,
            );
        }
        if let Some(why) = profile.not_proven.get(&layer) {
            return (result(layer, LayerStanding::NotProven, why.clone()), findings);
        }
        let uncovered: Vec<&str> = own().filter_map(|(_, _, outcome)| outcome.uncovered.as_deref()).collect();
        if !uncovered.is_empty() {
            return (result(layer, LayerStanding::NotProven, uncovered.join("; ")), findings);
        }
        let met: Vec<String> =
            own().filter_map(|(pcr, _, outcome)| Some(format!("PCR {pcr} {}", outcome.met?))).collect();
        if met.is_empty() {
            return (not_proven(layer, profile, "its contents are not held against anything"), findings);
        }
        (result(layer, LayerStanding::Affirmed, format!("state `{}`: {}", self.state.name, met.join(", "))), findings)
    }
}

/// The command by which a state is accepted again.
const PLAN: &str = "leasehold-server reference plan-update --until TIME";

/// Names the set, and for what is booted the way that needs no node to be trusted first.
fn accept(finding: &mut Finding, set: &ReferenceSet) {
    let boot = finding.layer == Layer::Boot.as_str();
    finding.accept = match finding.accept.as_str() {
        LEARN | PLAN if boot => {
            format!("leasehold-server reference plan-update --from {} --uki FILE --until TIME", set.name)
        }
        LEARN => format!("leasehold-server reference learn --node NODE --profile {}", set.profile),
        _ => return,
    };
}

pub(super) fn result(layer: Layer, standing: LayerStanding, why: impl Into<String>) -> LayerResult {
    LayerResult { layer: layer.as_str().to_owned(), standing, why: why.into() }
}

/// The profile's words where it has some.
pub(super) fn not_proven(layer: Layer, profile: &Profile, why: &str) -> LayerResult {
    result(layer, LayerStanding::NotProven, profile.not_proven.get(&layer).map_or(why, String::as_str))
}
