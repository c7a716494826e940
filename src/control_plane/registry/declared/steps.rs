//! What a declaration changes, step by step.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::read::{Declaration, EkText, Place, Suspended};
use crate::clock::WallTime;
use crate::codes::{self, Refusal};
use crate::control_plane::registry::destinations::{self, Destination};
use crate::control_plane::registry::eks::{self, Kind, Words};
use crate::control_plane::registry::nodes::{self, Node, State};
use crate::control_plane::registry::placement;
use crate::control_plane::registry::rules::Rules;
use crate::control_plane::registry::workloads::{self, Change, Suspension, Workload};
use crate::control_plane::registry::{names, owners};
use crate::control_plane::store::{Transaction, damaged};

/// One thing that is done.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Step {
    /// `added`, `changed`, `suspended`, `resumed`, `retired`, `returned` or `removed`.
    pub action: String,
    /// `owner`, `destination`, `ek`, `node` or `workload`.
    pub kind: String,
    /// Which.
    pub name: String,
    /// Why it is done.
    pub reason: String,
    /// What it was; null for something new.
    pub before: Value,
    /// What it is; null for what is gone.
    pub after: Value,
}

/// What was done.
#[derive(Debug, Default)]
pub struct Carried {
    /// Step by step.
    pub steps: Vec<Step>,
    /// Workloads that changed, and why: to be felt by what holds their credentials.
    pub workloads: Vec<(Change, String)>,
    /// Nodes that were put elsewhere: before, after.
    pub nodes: Vec<(Node, Node)>,
}

impl Carried {
    /// Tells this plan from every other: it covers each step with what was there before.
    ///
    /// # Errors
    /// [`codes::STORE_FAILED`], never: the encoder has an error type.
    pub fn fingerprint(&self) -> Result<String, Refusal> {
        let bytes = serde_json::to_vec(&self.steps).map_err(|_| damaged("a plan"))?;
        Ok(hex::encode(Sha256::digest(bytes)))
    }

    fn step(&mut self, action: &str, kind: &str, name: &str, reason: String, before: Value, after: Value) {
        let [action, kind, name] = [action, kind, name].map(str::to_owned);
        self.steps.push(Step { action, kind, name, reason, before, after });
    }
}

/// Makes the registry what is declared; with `prune` also takes away what isn't declared. Records nothing
/// and tells nobody: that is for whoever keeps it.
///
/// # Errors
/// What is wrong with the declaration, at its file, line and key; then the transaction must be undone.
pub fn carry_out(
    tx: &Transaction<'_>,
    declaration: &Declaration,
    rules: &Rules,
    prune: bool,
    now: WallTime,
) -> Result<Carried, Refusal> {
    let mut work = Work { tx, declaration, rules, now, done: Carried::default() };
    work.owners()?;
    work.destinations()?;
    work.eks()?;
    work.nodes()?;
    work.workloads()?;
    if prune {
        work.prune_workloads()?;
    }
    work.told_apart()?;
    work.leavers()?;
    if prune {
        work.prune_rest()?;
    }
    Ok(work.done)
}

struct Work<'a> {
    tx: &'a Transaction<'a>,
    declaration: &'a Declaration,
    rules: &'a Rules,
    now: WallTime,
    done: Carried,
}

impl Work<'_> {
    fn owners(&mut self) -> Result<(), Refusal> {
        for owner in &self.declaration.owners {
            let (text, place) = (&owner.what, &owner.place);
            let stated = owners::Stated {
                name: text.name.clone(),
                contact: text.contact.clone(),
                kind: text.kind,
                again: text.retired == Some(false),
            }
            .checked()
            .map_err(|refusal| place.refused(refusal))?;
            let said = |contact: &str, kind: owners::Kind| json!({ "contact": contact, "kind": kind });
            let after = said(&stated.contact, stated.kind);
            match owners::find(self.tx, &stated.name)? {
                None => {
                    owners::put(self.tx, &stated, self.now)?;
                    self.done.step("added", "owner", &stated.name, declared(place), Value::Null, after);
                }
                Some(known) => {
                    let before = said(&known.contact, known.kind);
                    if before != after {
                        owners::describe(self.tx, &stated)?;
                        self.done.step("changed", "owner", &stated.name, declared(place), before, after.clone());
                    }
                    if known.retired.is_some() && stated.again {
                        owners::put(self.tx, &stated, self.now)?;
                        let left = json!({ "retired": known.retired });
                        self.done.step("returned", "owner", &stated.name, declared(place), left, after);
                    }
                }
            }
        }
        Ok(())
    }

    fn destinations(&mut self) -> Result<(), Refusal> {
        for destination in &self.declaration.destinations {
            let (text, place) = (destination.what.clone(), &destination.place);
            let stated = Destination { name: text.name, environment: text.environment, description: text.description }
                .checked(self.rules)
                .map_err(|refusal| place.refused(refusal))?;
            let known = destinations::find(self.tx, &stated.name)?;
            if known.as_ref() != Some(&stated) {
                destinations::put(self.tx, &stated, self.now).map_err(|refusal| place.refused(refusal))?;
                let action = if known.is_some() { "changed" } else { "added" };
                self.done.step(action, "destination", &stated.name, declared(place), json!(known), json!(stated));
            }
        }
        Ok(())
    }

    fn eks(&mut self) -> Result<(), Refusal> {
        for ek in &self.declaration.eks {
            let place = &ek.place;
            let (kind, value) = named(&ek.what).map_err(|refusal| place.refused(refusal))?;
            let text = ek.what.clone();
            let words = Words { label: text.label, group: text.group, environment: text.environment }
                .checked(self.rules)
                .map_err(|refusal| place.refused(refusal))?;
            let known = eks::find(self.tx, kind, &value)?.map(|known| known.words());
            if known.as_ref() != Some(&words) {
                eks::put(self.tx, kind, &value, &words, self.now)?;
                let action = if known.is_some() { "changed" } else { "added" };
                self.done.step(action, "ek", &hex::encode(&value), declared(place), json!(known), json!(words));
            }
        }
        Ok(())
    }

    fn nodes(&mut self) -> Result<(), Refusal> {
        for node in &self.declaration.nodes {
            let (text, place) = (&node.what, &node.place);
            let unknown = |refusal: Refusal| match refusal.code {
                codes::ADMIN_UNKNOWN => refusal
                    .expected("a node that has enrolled: nodes prove themselves, an [[ek]] can be declared before"),
                _ => refusal,
            };
            let before =
                nodes::resolve(self.tx, &text.id).map_err(|refusal| place.refused(unknown(refusal).at("--id")))?;
            if before.state == State::Revoked {
                let refusal = Refusal::new(codes::ADMIN_CONFLICT, "it was revoked").at("--id");
                return Err(place.refused(refusal));
            }
            let stated = placement::Place { group: text.group.clone(), environment: text.environment.clone() };
            let after = stated.of(before.clone(), self.rules).map_err(|refusal| place.refused(refusal))?;
            let said = |node: &Node| json!({ "group": node.group, "environment": node.environment });
            if said(&before) != said(&after) {
                nodes::put(self.tx, &after)?;
                let name = after.id.to_string();
                self.done.step("changed", "node", &name, declared(place), said(&before), said(&after));
                self.done.nodes.push((before, after));
            }
        }
        Ok(())
    }

    fn workloads(&mut self) -> Result<(), Refusal> {
        for workload in &self.declaration.workloads {
            let (text, place) = (&workload.what, &workload.place);
            let known = workloads::existing(self.tx, &text.id).map(Some).or_else(|refusal| match refusal.code {
                codes::ADMIN_UNKNOWN => Ok(None),
                _ => Err(refusal),
            })?;
            let stated = text.stated();
            let described = match &known {
                // What stands there already may stand, whatever the rules have become since.
                Some(known) if known.stated() == sorted(stated.clone()) => {
                    Workload { suspended: None, ..known.clone() }
                }
                _ => Workload::check(self.tx, stated, self.rules).map_err(|refusal| place.refused(refusal))?,
            };
            let stood = known.as_ref().and_then(|known| known.suspended.clone());
            let suspended = match &text.suspended {
                None => stood.clone(),
                Some(Suspended::No) => None,
                Some(Suspended::For(reason)) => {
                    names::text("--suspended", reason).map_err(|refusal| place.refused(refusal))?;
                    let at = stood.as_ref().map_or(self.now, |stood| stood.at);
                    Some(Suspension { at, reason: reason.clone() })
                }
            };
            if stood.is_some() && suspended.is_none() {
                owners::serving(self.tx, &described.owner).map_err(|refusal| place.refused(refusal))?;
            }
            let after = Workload { suspended, ..described };
            if known.as_ref() != Some(&after) {
                workloads::write(self.tx, &after, self.now)?;
                self.changed(known, after, place);
            }
        }
        Ok(())
    }

    /// The steps of one workload: what is said of it, and whether it is suspended, are two.
    fn changed(&mut self, before: Option<Workload>, after: Workload, place: &Place) {
        let id = after.id.to_string();
        let stood =
            before.as_ref().and_then(|before| before.suspended.as_ref()).map(|suspended| suspended.reason.clone());
        let stands = after.suspended.as_ref().map(|suspended| suspended.reason.clone());
        let (was, is) = (before.as_ref().map(Workload::stated), after.stated());
        match &was {
            None => self.done.step("added", "workload", &id, declared(place), Value::Null, json!(is)),
            Some(was) if *was != is => {
                self.done.step("changed", "workload", &id, declared(place), json!(was), json!(is));
            }
            Some(_) => {}
        }
        if stood != stands {
            let action = if stands.is_some() { "suspended" } else { "resumed" };
            let reason = stands.clone().unwrap_or_else(|| declared(place));
            self.done.step(action, "workload", &id, reason, json!(stood), json!(stands));
        }
        let reason = stands.unwrap_or_else(|| "its registration changed".to_owned());
        self.done.workloads.push((Change { before, after: Some(after) }, reason));
    }

    fn prune_workloads(&mut self) -> Result<(), Refusal> {
        let declared: BTreeSet<&str> = self.declaration.workloads.iter().map(|one| one.what.id.as_str()).collect();
        for workload in workloads::all(self.tx)? {
            let id = workload.id.to_string();
            if !declared.contains(id.as_str()) {
                workloads::remove(self.tx, &id)?;
                self.done.step("removed", "workload", &id, pruned(), json!(workload.stated()), Value::Null);
                let change = Change { before: Some(workload), after: None };
                self.done.workloads.push((change, pruned()));
            }
        }
        Ok(())
    }

    /// With everything in its place: processes are told apart, and nothing is where it can never run.
    fn told_apart(&self) -> Result<(), Refusal> {
        for workload in &self.declaration.workloads {
            let known = workloads::existing(self.tx, &workload.what.id)?;
            workloads::no_twin(self.tx, &known).map_err(|refusal| workload.place.refused(refusal))?;
        }
        for node in &self.declaration.nodes {
            let known = nodes::resolve(self.tx, &node.what.id)?;
            placement::check(self.tx, &known).map_err(|refusal| node.place.refused(refusal))?;
        }
        Ok(())
    }

    /// Those who are declared to have left.
    fn leavers(&mut self) -> Result<(), Refusal> {
        for owner in self.declaration.owners.iter().filter(|owner| owner.what.retired == Some(true)) {
            self.retire(&owner.what.name, &declared(&owner.place))?;
        }
        Ok(())
    }

    fn retire(&mut self, name: &str, reason: &str) -> Result<(), Refusal> {
        let retired = owners::retire(self.tx, name, None, reason, self.now)?;
        if retired.newly {
            self.done.step("retired", "owner", name, reason.to_owned(), Value::Null, Value::Null);
        }
        for change in retired.changes {
            let suspended = change.after.as_ref().and_then(|after| after.suspended.as_ref());
            let why = suspended.map(|suspended| suspended.reason.clone()).unwrap_or_default();
            let id = change.id().map(ToString::to_string).unwrap_or_default();
            self.done.step("suspended", "workload", &id, why.clone(), Value::Null, json!(why));
            self.done.workloads.push((change, why));
        }
        Ok(())
    }

    /// What isn't declared, once nothing needs it any more. Nodes are never taken away like that.
    fn prune_rest(&mut self) -> Result<(), Refusal> {
        let names: BTreeSet<&str> = self.declaration.destinations.iter().map(|one| one.what.name.as_str()).collect();
        for facts in destinations::all(self.tx)? {
            let gone = facts.destination;
            if !names.contains(gone.name.as_str()) {
                destinations::remove(self.tx, &gone.name)?;
                self.done.step("removed", "destination", &gone.name, pruned(), json!(gone), Value::Null);
            }
        }
        let named: BTreeSet<String> =
            self.declaration.eks.iter().filter_map(|one| Some(hex::encode(named(&one.what).ok()?.1))).collect();
        for ek in eks::all(self.tx)? {
            if !named.contains(&ek.value) {
                eks::remove(self.tx, &hex::decode(&ek.value).map_err(|_| damaged("an EK"))?)?;
                self.done.step("removed", "ek", &ek.value, pruned(), json!(ek.words()), Value::Null);
            }
        }
        let owners_named: BTreeSet<&str> = self.declaration.owners.iter().map(|one| one.what.name.as_str()).collect();
        for owner in owners::all(self.tx)? {
            // An owner that ever answered for something stays on record: it leaves.
            if owner.retired.is_none() && !owners_named.contains(owner.name.as_str()) {
                self.retire(&owner.name, &pruned())?;
            }
        }
        Ok(())
    }
}

fn declared(place: &Place) -> String {
    format!("declared in {place}")
}

fn pruned() -> String {
    "not declared, and --prune".to_owned()
}

/// A statement with its lists in the order in which they are kept.
fn sorted(mut stated: workloads::Stated) -> workloads::Stated {
    for list in [&mut stated.selectors, &mut stated.audiences, &mut stated.destinations, &mut stated.roles] {
        list.sort();
    }
    stated
}

/// How an EK is named, and by what.
fn named(ek: &EkText) -> Result<(Kind, Vec<u8>), Refusal> {
    match (&ek.name, &ek.key) {
        (Some(name), None) => Ok((Kind::Name, eks::tpm_name("--name", name)?)),
        (None, Some(key)) => {
            let mut digest = [0; 32];
            hex::decode_to_slice(key, &mut digest).map_err(|_| {
                Refusal::new(codes::ADMIN_INVALID, "it is no SHA-256 of a key")
                    .at("--key")
                    .expected("64 hexadecimal digits, as `ek list` shows them")
            })?;
            Ok((Kind::Key, digest.to_vec()))
        }
        _ => Err(Refusal::new(codes::ADMIN_INVALID, "no EK, or two").expected("one of `name` and `key`")),
    }
}
