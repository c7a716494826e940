//! The decision itself: a pure function of inputs and rules.
//!
//! ```text
//!  inputs ─▶ narrowing ─▶ guardrails ─▶ bundle ─▶ each thing the caller means to do ─▶ lifetime ─▶ answer
//! ```
//! Whatever can't be evaluated denies.

use std::collections::{BTreeMap, BTreeSet};

use cedar_policy::Entities;
use serde::{Deserialize, Serialize};

use super::Action;
use super::entities::{self, Triple};
use super::inputs::Inputs;
use super::rules::{Rules, Said};
use super::schema;
use crate::codes::{self, Refusal};
use crate::protocol::AuthorizationDetail;

/// The most audiences, and the most types of things of one request.
const AUDIENCES: usize = 16;
const DETAILS: usize = 32;
/// The most single things (type, action and location) of one request.
const TRIPLES: usize = 512;

/// What a decision says.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answer {
    /// The refusal, if it is one.
    pub refusal: Option<Refusal>,
    /// The lifetime it permits, in seconds; 0 when refused.
    pub ttl_seconds: u64,
    /// Of what the caller means to do, what it may.
    pub details: Vec<AuthorizationDetail>,
    /// The policies it follows from, guardrails among them; in the order of their ids.
    pub policies: BTreeSet<String>,
    /// Which schema and guardrails it was made under.
    pub engine: String,
}

impl Answer {
    /// Whether it permits.
    pub const fn permits(&self) -> bool {
        self.refusal.is_none()
    }

    fn refused(refusal: Refusal, policies: BTreeSet<String>) -> Self {
        let engine = schema::fingerprint().to_owned();
        Self { refusal: Some(refusal), ttl_seconds: 0, details: Vec::new(), policies, engine }
    }
}

/// Decides under the guardrails and `rules`; `Err` in place of rules is why there are none.
pub fn decide(inputs: &Inputs, rules: Result<&Rules, &Refusal>) -> Answer {
    decide_with(inputs, rules, true)
}

/// As [`decide`]; without the guardrails it says what a bundle permits by itself.
pub fn decide_with(inputs: &Inputs, rules: Result<&Rules, &Refusal>, guarded: bool) -> Answer {
    let mut policies = BTreeSet::new();
    match steps(inputs, rules, guarded, &mut policies) {
        Ok((ttl_seconds, details)) => {
            Answer { refusal: None, ttl_seconds, details, policies, engine: schema::fingerprint().to_owned() }
        }
        Err(refusal) => Answer::refused(refusal, policies),
    }
}

fn steps(
    inputs: &Inputs,
    rules: Result<&Rules, &Refusal>,
    guarded: bool,
    policies: &mut BTreeSet<String>,
) -> Result<(u64, Vec<AuthorizationDetail>), Refusal> {
    let entities = entities::entities(inputs)?;
    let request = entities::request(inputs, None)?;
    if guarded {
        let said = schema::guardrails().ask(&request, &entities)?;
        if !said.permitted {
            let refusal = guardrail(inputs, &said);
            *policies = said.determining;
            return Err(refusal);
        }
    }
    let rules = rules.map_err(Clone::clone)?;
    narrows(inputs)?;
    let said = rules.ask(&request, &entities)?;
    if !said.permitted {
        let refusal = denied(rules, inputs, &said);
        *policies = said.determining;
        return Err(refusal);
    }
    let mut bounds = Bounds::new(inputs);
    bounds.take(rules, &said);
    policies.extend(said.determining);
    bounds.check_age(inputs)?;
    let details = authorized(inputs, rules, &entities, &mut bounds, policies)?;
    let ttl_seconds = bounds.seconds();
    if ttl_seconds == 0 {
        return Err(Refusal::new(codes::POLICY_DENIED, "nothing is left of the time it could hold").at(at(inputs)));
    }
    Ok((ttl_seconds, details))
}

/// The refusal of the guardrails that match: the first one's code, and all their words.
fn guardrail(inputs: &Inputs, said: &Said) -> Refusal {
    let matching: Vec<_> = said.determining.iter().map(|id| (id, schema::guardrails().notes(id))).collect();
    // Where the workload isn't for this node, or suspended, that says more than what follows from it.
    let code = [codes::ISSUER_NOT_THIS_NODE, codes::POLICY_SUSPENDED]
        .into_iter()
        .find(|code| matching.iter().any(|(_, notes)| notes.code == Some(*code)))
        .unwrap_or(codes::POLICY_GUARDRAIL);
    let mut found: Vec<String> = matching.iter().map(|(id, notes)| format!("{id}: {}", notes.says)).collect();
    if let Some(reason) = inputs.workload.suspended.as_ref().filter(|_| code == codes::POLICY_SUSPENDED) {
        found.push(reason.clone());
    }
    Refusal::new(code, found.join("; ")).at(at(inputs))
}

/// The refusal of a bundle's policies.
fn denied(rules: &Rules, inputs: &Inputs, said: &Said) -> Refusal {
    let by = |id: &String| match rules.notes(id).says {
        says if says.is_empty() => id.clone(),
        says => format!("{id}: {says}"),
    };
    let found = match said.determining.is_empty() {
        true => "no policy permits it".to_owned(),
        false => format!("forbidden by {}", said.determining.iter().map(by).collect::<Vec<_>>().join("; ")),
    };
    Refusal::new(codes::POLICY_DENIED, found).at(at(inputs)).expected("what `policy why-not` says")
}

/// Whether the caller asks for no more than the workload is registered for.
fn narrows(inputs: &Inputs) -> Result<(), Refusal> {
    let wider = |what: String, expected: String| {
        Err(Refusal::new(codes::POLICY_NARROWING, what).at(at(inputs)).expected(expected))
    };
    let registered = |names: &BTreeSet<String>| match names.is_empty() {
        true => "none: nothing is registered".to_owned(),
        false => names.iter().cloned().collect::<Vec<_>>().join(", "),
    };
    let audiences = &inputs.workload.audiences;
    if inputs.audience.len() > AUDIENCES || inputs.details.len() > DETAILS || triples(inputs).count() > TRIPLES {
        return wider(
            "it asks for too many things at once".to_owned(),
            format!("at most {AUDIENCES} audiences, {DETAILS} details, {TRIPLES} things in them"),
        );
    }
    if let Some(other) = inputs.audience.iter().find(|it| !audiences.is_empty() && !audiences.contains(*it)) {
        return wider(format!("audience `{}`", other.escape_debug()), registered(audiences));
    }
    match &inputs.destination {
        Some(destination) if !inputs.workload.destinations.contains(&destination.name) => wider(
            format!("destination `{}`", destination.name.escape_debug()),
            registered(&inputs.workload.destinations),
        ),
        Some(destination) if destination.environment.is_none() => wider(
            format!("destination `{}`", destination.name.escape_debug()),
            "one that is registered with its environment".to_owned(),
        ),
        _ => Ok(()),
    }
}

/// Of what the caller means to do, what is permitted: each single thing is asked for.
fn authorized(
    inputs: &Inputs,
    rules: &Rules,
    entities: &Entities,
    bounds: &mut Bounds,
    policies: &mut BTreeSet<String>,
) -> Result<Vec<AuthorizationDetail>, Refusal> {
    let mut granted = BTreeSet::new();
    for triple in triples(inputs) {
        let said = rules.ask(&entities::request(inputs, Some(&triple))?, entities)?;
        let mut with = bounds.clone();
        with.take(rules, &said);
        if said.permitted && with.check_age(inputs).is_ok() {
            *bounds = with;
            policies.extend(said.determining);
            granted.insert(triple);
        }
    }
    if granted.is_empty() && !inputs.details.is_empty() {
        return Err(Refusal::new(codes::POLICY_DENIED, "nothing of what it means to do is permitted").at(at(inputs)));
    }
    let details = inputs.details.iter().flat_map(|detail| granted_of(detail, &granted));
    Ok(details.collect())
}

/// The granted part of one detail: the locations with the same actions together.
fn granted_of(detail: &AuthorizationDetail, granted: &BTreeSet<Triple<'_>>) -> Vec<AuthorizationDetail> {
    let mut by_actions: BTreeMap<Vec<&str>, Vec<&str>> = BTreeMap::new();
    for location in or_empty(&detail.locations) {
        let actions: Vec<&str> = or_empty(&detail.actions)
            .filter(|action| granted.contains(&Triple { kind: &detail.kind, action, location }))
            .collect();
        if !actions.is_empty() {
            by_actions.entry(actions).or_default().push(location);
        }
    }
    let stated = |texts: Vec<&str>| texts.into_iter().filter(|text| !text.is_empty()).map(str::to_owned).collect();
    by_actions
        .into_iter()
        .map(|(actions, locations)| AuthorizationDetail {
            kind: detail.kind.clone(),
            actions: stated(actions),
            locations: stated(locations),
        })
        .collect()
}

fn triples(inputs: &Inputs) -> impl Iterator<Item = Triple<'_>> {
    inputs.details.iter().flat_map(|detail| {
        or_empty(&detail.actions).flat_map(move |action| {
            or_empty(&detail.locations).map(move |location| Triple { kind: &detail.kind, action, location })
        })
    })
}

/// What is listed, or one empty text where nothing is.
fn or_empty(texts: &[String]) -> impl Iterator<Item = &str> {
    let none = texts.is_empty().then_some("");
    texts.iter().map(String::as_str).chain(none)
}

/// How long it may hold, and on how old evidence: the least that anything says.
#[derive(Clone, Debug)]
struct Bounds {
    ttl: u64,
    /// Of the oldest evidence, and of which policy.
    age: Option<(u64, String)>,
    age_now: u64,
}

impl Bounds {
    fn new(inputs: &Inputs) -> Self {
        let left = |until: u64| until.saturating_sub(inputs.now);
        // An approval that ended shortens nothing: whether one is needed is for policies to say.
        let approved = inputs.approved_until.map(left).filter(|left| *left > 0);
        let evidence = inputs.evidence.term_seconds.saturating_sub(inputs.evidence.age_seconds);
        let ttl = [inputs.exception_until.map(left), approved, Some(evidence)]
            .into_iter()
            .flatten()
            .fold(entities::asked(inputs), u64::min);
        Self { ttl, age: None, age_now: inputs.evidence.age_seconds }
    }

    /// Takes over what the determining permits state.
    fn take(&mut self, rules: &Rules, said: &Said) {
        for id in said.determining.iter().filter(|_| said.permitted) {
            let notes = rules.notes(id);
            self.ttl = notes.ttl.map_or(self.ttl, |ttl| ttl.min(self.ttl));
            if let Some(age) = notes.evidence_max_age.filter(|age| self.age.as_ref().is_none_or(|known| *age < known.0))
            {
                self.age = Some((age, id.clone()));
            }
        }
    }

    fn check_age(&self, inputs: &Inputs) -> Result<(), Refusal> {
        match &self.age {
            Some((most, id)) if self.age_now > *most => {
                Err(Refusal::new(codes::POLICY_DENIED, format!("{id}: the evidence is {} s old", self.age_now))
                    .at(at(inputs))
                    .expected(format!("at most {most} s")))
            }
            _ => Ok(()),
        }
    }

    /// What is left: a credential ends when the evidence under it would be too old for it.
    fn seconds(&self) -> u64 {
        self.age.as_ref().map_or(self.ttl, |(most, _)| self.ttl.min(most.saturating_sub(self.age_now)))
    }
}

/// Whom a refusal is about.
fn at(inputs: &Inputs) -> String {
    match (&inputs.destination, inputs.action) {
        (Some(destination), _) => format!("{} towards {}", inputs.workload.id, destination.name.escape_debug()),
        (None, Action::X509 | Action::Jwt) => inputs.workload.id.clone(),
    }
}
