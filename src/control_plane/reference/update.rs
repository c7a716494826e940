//! `plan-update`: the state that a coming update boots into, predicted from the set in force and the
//! new artefacts. Both are accepted until the old one's expiry, so that no node needs an operator
//! in between.

use super::artifacts::{self, Inputs};
use super::difference;
use super::unusable;
use crate::clock::WallTime;
use crate::codes::Refusal;
use crate::verify::references::{BootState, EventReference, ReferenceSet};
use crate::verify::runtime::RuntimeRules;

/// PCRs whose events a new image replaces, where the state has events of them.
const REPLACED: [u8; 3] = [4, 9, 11];

/// A planned update.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The next version of the set: the old states, with an end, and the new one.
    pub set: ReferenceSet,
    /// The difference between the state before and the new one, event by event.
    pub differences: Vec<String>,
    /// What could not be said.
    pub notes: Vec<String>,
}

/// When the states before end, and how the new one is called.
#[derive(Clone, Debug)]
pub struct Transition<'a> {
    /// The new state's name.
    pub name: &'a str,
    /// From then on only the new state is accepted.
    pub until: WallTime,
    /// The present moment: states that have ended are left out.
    pub now: WallTime,
}

/// Plans the update of the set's present state to these artefacts.
///
/// What a new image can't tell stays as it is. Where it would change a PCR that nobody can predict,
/// there is no plan: a wrong one would stop every node at its next boot.
///
/// # Errors
/// [`crate::codes::ADMIN_INVALID`] naming the PCR that can't be predicted.
pub fn plan(set: &ReferenceSet, inputs: &Inputs, transition: &Transition<'_>) -> Result<Plan, Refusal> {
    if transition.until <= transition.now {
        return Err(unusable("--until", transition.until.to_string()).expected("a moment in the future"));
    }
    let present = present(set)?;
    let predicted = artifacts::predict(&with_secure_boot(inputs, present), set.bank)?;
    let mut next = BootState { name: transition.name.to_owned(), until: None, ..present.clone() };
    let mut notes = Vec::new();
    for pcr in REPLACED {
        if let Some(value) = present.values.get(&pcr) {
            return Err(unusable(format!("PCR {pcr}"), format!("only its value is known, {}", hex::encode(value)))
                .expected("events of it: `reference learn` from a node that sends its logs"));
        }
        let Some(before) = present.events.get(&pcr) else {
            notes.push(format!("PCR {pcr}: the state before has no events of it, and neither has the new one"));
            continue;
        };
        let after = predicted.state.events.get(&pcr);
        next.events.insert(pcr, replaced(pcr, before, after, &predicted.notes)?);
    }
    if inputs.variables.is_some() {
        next.secure_boot = predicted.state.secure_boot.clone();
    }
    if next == (BootState { name: transition.name.to_owned(), until: None, ..present.clone() })
        && inputs.files.is_empty()
    {
        return Err(unusable("plan-update", "the artefacts boot into the present state: there is nothing to plan"));
    }
    let differences = difference::states(present, &next);
    let mut states: Vec<BootState> = Vec::new();
    for state in &set.states {
        let until = state.until.map_or(transition.until, |until| until.min(transition.until));
        if until > transition.now {
            states.push(BootState { until: Some(until), ..state.clone() });
        }
    }
    states.push(next);
    let runtime = set.runtime.clone().map(|rules| RuntimeRules { files: union(&rules, inputs), ..rules });
    if runtime.is_some() && !inputs.files.is_empty() {
        notes
            .push("runtime: the files of before stay allowed after that, too, until a version without them".to_owned());
    }
    if runtime.is_none() && !inputs.files.is_empty() {
        notes.push("runtime: the set has no rules for it, and the files given add none".to_owned());
    }
    let version = set.version.checked_add(1).ok_or_else(|| unusable("version", "there is no next one"))?;
    let planned = ReferenceSet { version, states, runtime, ..set.clone() }.checked()?;
    Ok(Plan { set: planned, differences, notes })
}

/// The state without an end: what nodes should be in now.
fn present(set: &ReferenceSet) -> Result<&BootState, Refusal> {
    let mut lasting = set.states.iter().filter(|state| state.until.is_none());
    match (lasting.next(), lasting.next()) {
        (Some(state), None) => Ok(state),
        (None, _) => Err(unusable("--from", "every state of the set has an end").expected("one without `until`")),
        (Some(one), Some(other)) => Err(unusable("--from", format!("states `{}` and `{}`", one.name, other.name))
            .expected("one state without `until`: which of them is updated isn't known")),
    }
}

/// A state that Secure Boot is part of was booted with it on: the stub's inner kernel leaves no event.
fn with_secure_boot(inputs: &Inputs, present: &BootState) -> Inputs {
    Inputs { secure_boot: inputs.secure_boot || present.secure_boot.is_some(), ..inputs.clone() }
}

/// The events of `before` with those of a new image in the place of the old one's.
fn replaced(
    pcr: u8,
    before: &[EventReference],
    after: Option<&Vec<EventReference>>,
    notes: &[String],
) -> Result<Vec<EventReference>, Refusal> {
    let kind = match pcr {
        4 => "EV_EFI_BOOT_SERVICES_APPLICATION",
        9 => "EV_EVENT_TAG",
        _ => "EV_IPL",
    };
    let of_image = |event: &&EventReference| event.kind == kind;
    let count = before.iter().filter(of_image).count();
    let Some(after) = after else {
        if count == 0 {
            return Ok(before.to_vec());
        }
        let why = notes.iter().find(|note| note.starts_with(&format!("PCR {pcr}"))).cloned().unwrap_or_default();
        return Err(unusable(format!("PCR {pcr}"), format!("its events can't be predicted. {why}"))
            .expected("an image of which they can; else `reference learn` from a node that was updated first"));
    };
    let new: Vec<&EventReference> = after.iter().filter(of_image).collect();
    // Sections may come and go; images and what the kernel got may not.
    if pcr != 11 && new.len() != count {
        return Err(unusable(
            format!("PCR {pcr}"),
            format!("{count} events of type {kind}, where the image makes {}", new.len()),
        )
        .expected("a boot path from the firmware to the image and nothing between; a boot loader's must be learnt"));
    }
    let first = before.iter().position(|event| event.kind == kind).unwrap_or(before.len());
    let last = before.iter().rposition(|event| event.kind == kind).map_or(first, |last| last + 1);
    let between = before.get(first..last).unwrap_or_default();
    if between.iter().any(|event| event.kind != kind) {
        return Err(unusable(format!("PCR {pcr}"), "the image's events aren't together")
            .expected("nothing of others between them"));
    }
    let (head, tail) = (before.get(..first).unwrap_or_default(), before.get(last..).unwrap_or_default());
    Ok(head.iter().chain(new).chain(tail).cloned().collect())
}

/// Old and new files: both run while nodes are between the two.
fn union(rules: &RuntimeRules, inputs: &Inputs) -> super::files::Files {
    let mut files = rules.files.clone();
    for (path, digests) in &inputs.files {
        let known = files.entry(path.clone()).or_default();
        known.extend(digests.iter().filter(|digest| !known.contains(digest)).cloned().collect::<Vec<_>>());
    }
    files
}
