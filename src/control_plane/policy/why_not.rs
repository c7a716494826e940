//! Why not: a decision that nobody asked for, explained. What stands in its way, each with the single
//! changes that would lift it.

use std::collections::BTreeSet;

use cedar_policy::{Effect, Entities, Policy, Request};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::bundle::Bundle;
use super::engine;
use super::entities;
use super::inputs::{Inputs, TaskFacts};
use super::rules::Rules;
use super::schema;
use super::trials::{get, put};
use super::{Action, Question};
use crate::clock::WallTime;
use crate::codes::{self, Refusal};
use crate::control_plane::leases::{self, LeaseRow};
use crate::control_plane::registry::{nodes, workloads};
use crate::control_plane::server::Shared;
use crate::control_plane::store::Transaction;
use crate::identity::exact_id;

/// The most changes that are tried.
const TRIED: usize = 600;
/// The most policies that are explained one by one.
const EXPLAINED: usize = 64;
/// The most changes that are shown of one obstacle.
const SHOWN: usize = 8;

/// What somebody wants to know.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Asked {
    /// The workload's SPIFFE ID.
    pub workload: String,
    /// The node's id, or the start of one.
    pub node: String,
    /// What it would ask for.
    pub action: Action,
    /// Whom a token would be for.
    pub audience: Vec<String>,
    /// Towards what.
    pub destination: Option<String>,
    /// For what task, in the caller's words.
    pub intent: Option<String>,
}

/// Explains.
///
/// # Errors
/// [`codes::ADMIN_UNKNOWN`] for a node or workload that isn't known; [`codes::STORE_FAILED`].
pub fn explain(tx: &Transaction<'_>, shared: &Shared, asked: &Asked, now: WallTime) -> Result<Value, Refusal> {
    let inputs = inputs(tx, shared, asked, now)?;
    let bundle = match shared.bundles.in_force(tx, &shared.settings.policy) {
        Ok(bundle) => Ok(bundle),
        Err(refusal) if refusal.code == codes::STORE_FAILED => return Err(refusal),
        Err(refusal) => Err(refusal),
    };
    let answer = engine::decide(&inputs, bundle.as_deref().map(|bundle| &bundle.rules));
    let mut facts = json!({
        "schema": 1, "workload": inputs.workload.id, "node": inputs.node.id, "action": inputs.action.as_str(),
        "permitted": answer.permits(), "refusal": answer.refusal, "policies": answer.policies,
        "ttl_seconds": answer.ttl_seconds,
        "bundle": bundle.as_ref().map(|it| json!({ "version": it.content.version, "digest": hex::encode(it.digest) })).ok(),
    });
    if let (false, Ok(bundle), Some(members)) = (answer.permits(), &bundle, facts.as_object_mut()) {
        let known = destinations(tx)?;
        let changes = changes(&inputs, bundle, &known);
        let lifting = |lifts: &dyn Fn(&Change) -> bool| -> Vec<String> {
            let lifts = changes.iter().filter(|change| lifts(change));
            lifts.take(SHOWN).map(|change| change.words.clone()).collect()
        };
        let alone = lifting(&|change| engine::decide(&change.inputs, Ok(&bundle.rules)).permits());
        members.insert("any_of_these_alone".to_owned(), json!(alone));
        members.insert("in_the_way".to_owned(), obstacles(&inputs, bundle, &lifting));
    }
    if let Some(members) = facts.as_object_mut() {
        members.insert("inputs".to_owned(), json!(inputs));
    }
    Ok(facts)
}

/// The inputs of the decision that would be made now.
fn inputs(tx: &Transaction<'_>, shared: &Shared, asked: &Asked, now: WallTime) -> Result<Inputs, Refusal> {
    let unknown = || {
        Refusal::new(codes::ADMIN_UNKNOWN, "no such workload is registered")
            .at(asked.workload.escape_debug().to_string())
            .expected("one that `leasehold-server workload list` shows")
    };
    let id = exact_id(&asked.workload).map_err(|_| unknown())?;
    let workload = workloads::find(tx, &id)?.ok_or_else(unknown)?;
    let node = nodes::resolve(tx, &asked.node)?;
    let none = LeaseRow { sequence: 0, issued_at: now, ends_at: now, ended: None };
    let lease = leases::find(tx, node.id)?.unwrap_or(none);
    let question = Question {
        action: asked.action,
        node: &node,
        lease: &lease,
        workload: &workload,
        caller: None,
        task: None,
        audience: &asked.audience,
        destination: asked.destination.as_deref(),
        details: &[],
    };
    let task = asked.intent.as_ref().map(|intent| TaskFacts {
        id: "why-not".to_owned(),
        intent: intent.clone(),
        purpose: String::new(),
        term_seconds: 0,
    });
    Ok(Inputs { task, ..Inputs::gather(tx, shared, &question, now)? })
}

/// Which changes, in words, are among those that a test holds for.
type Lifting<'a> = dyn Fn(&dyn Fn(&Change) -> bool) -> Vec<String> + 'a;

/// Each guardrail and forbid that matches; and where no permit does, each permit.
fn obstacles(inputs: &Inputs, bundle: &Bundle, lifting: &Lifting<'_>) -> Value {
    let now = Asking::of(inputs);
    let mut found = Vec::new();
    for (rules, built_in) in [(schema::guardrails(), true), (&bundle.rules, false)] {
        for policy in rules.policies().into_iter().take(EXPLAINED) {
            let forbids = policy.effect() == Effect::Forbid;
            let one = rules.only(policy);
            let stands = |asking: &Option<Asking>| applies(&one, policy, asking.as_ref()) == forbids;
            if (built_in && !forbids) || !stands(&now) {
                continue;
            }
            found.push(json!({
                "policy": policy.id().to_string(), "says": rules.notes(policy.id().as_ref()).says,
                "why": if forbids { "it forbids this" } else { "it doesn't permit this" },
                "would_be_lifted_by": lifting(&|change| !stands(&change.asking)),
            }));
        }
    }
    // One permit is enough: where one holds, the others aren't in the way.
    let permits = |it: &Value| it["why"] == "it doesn't permit this";
    let of_bundle = bundle.rules.policies().into_iter().filter(|policy| policy.effect() == Effect::Permit).count();
    if found.iter().filter(|it| permits(it)).count() < of_bundle.min(EXPLAINED) {
        found.retain(|it| !permits(it));
    }
    Value::Array(found)
}

/// A question as Cedar takes it.
struct Asking {
    request: Request,
    entities: Entities,
}

impl Asking {
    fn of(inputs: &Inputs) -> Option<Self> {
        Some(Self { request: entities::request(inputs, None).ok()?, entities: entities::entities(inputs).ok()? })
    }
}

/// Whether one policy matches.
fn applies(one: &Rules, policy: &Policy, asking: Option<&Asking>) -> bool {
    let said = asking.and_then(|asking| one.ask(&asking.request, &asking.entities).ok());
    said.is_some_and(|said| said.determining.contains(&policy.id().to_string()))
}

/// One attribute otherwise.
struct Change {
    words: String,
    inputs: Inputs,
    asking: Option<Asking>,
}

/// Every single change worth trying: what the policies themselves speak of, and what is registered.
fn changes(inputs: &Inputs, bundle: &Bundle, destinations: &[(String, String)]) -> Vec<Change> {
    let Ok(question) = serde_json::to_value(inputs) else { return Vec::new() };
    let words = Words::of(&bundle.rules);
    let mut tried: Vec<(&str, Value)> = vec![
        ("workload.registered", json!(true)),
        ("workload.suspended", Value::Null),
        ("workload.pinned", json!(true)),
        ("workload.third_party", json!(false)),
        ("workload.interactive", json!(true)),
        ("owner.active", json!(true)),
        ("caller.login_session", json!(false)),
        ("evidence.verdict", json!("affirming")),
        ("evidence.age_seconds", json!(0)),
        ("exception_until", Value::Null),
        ("approved_until", json!(inputs.now.saturating_add(600))),
        ("workload.environment", json!(inputs.node.environment)),
        ("node.environment", json!(inputs.workload.environment)),
        ("destination", Value::Null),
        ("audience", json!([])),
    ];
    let texts = [
        "workload.environment",
        "node.environment",
        "workload.purpose",
        "node.group",
        "node.firmware",
        "evidence.profile",
        "evidence.references",
        "task.intent",
        "task.purpose",
    ];
    for path in texts.into_iter().filter(|path| inputs.task.is_some() || !path.starts_with("task")) {
        tried.extend(words.texts.iter().map(|text| (path, json!(text))));
    }
    tried.extend(["certified", "listed", "unknown"].map(|grade| ("node.grade", json!(grade))));
    tried.extend(["person", "team"].map(|kind| ("owner.kind", json!(kind))));
    tried.extend(words.owners.iter().map(|owner| ("owner.name", json!(owner))));
    tried.extend((1..=4).map(|tier| ("workload.tier", json!(tier))));
    for role in &words.roles {
        let with: BTreeSet<&String> = inputs.workload.roles.iter().chain([role]).collect();
        tried.push(("workload.roles", json!(with)));
    }
    for role in &inputs.workload.roles {
        let without: Vec<&String> = inputs.workload.roles.iter().filter(|it| *it != role).collect();
        tried.push(("workload.roles", json!(without)));
    }
    tried.extend(words.texts.iter().chain(&inputs.workload.audiences).map(|text| ("audience", json!([text]))));
    for (name, environment) in destinations {
        tried.push(("destination", json!({ "name": name, "environment": environment })));
    }
    // Every hour from now on, and the same hour of every other day.
    tried.extend((1..24).map(|hours| ("now", json!(inputs.now.saturating_add(hours * 3600)))));
    tried.extend((1..7).map(|days| ("now", json!(inputs.now.saturating_add(days * 86_400)))));
    let claims = ["configuration", "executables", "file_system", "hardware", "runtime_opaque"];
    let claims = claims.map(|claim| format!("evidence.vector.{claim}"));
    tried.extend(claims.iter().flat_map(|path| [2, 3].map(|value| (path.as_str(), json!(value)))));
    tried.into_iter().take(TRIED).filter_map(|(path, value)| change(&question, path, value)).collect()
}

fn change(question: &Value, path: &str, value: Value) -> Option<Change> {
    let before = get(question, path).clone();
    if before == value {
        return None;
    }
    let mut other = question.clone();
    put(&mut other, path, value);
    let shown = |value: &Value| match (path, value.as_u64()) {
        ("now" | "approved_until", Some(time)) => WallTime(time).to_string(),
        _ => value.to_string(),
    };
    let words = format!("{path}: {} instead of {}", shown(get(&other, path)), shown(&before));
    let inputs = serde_json::from_value(other).ok()?;
    Some(Change { words, asking: Asking::of(&inputs), inputs })
}

/// The texts, roles and owners that policies name.
#[derive(Debug, Default)]
struct Words {
    texts: BTreeSet<String>,
    roles: BTreeSet<String>,
    owners: BTreeSet<String>,
}

impl Words {
    fn of(rules: &Rules) -> Self {
        let mut words = Self::default();
        rules.policies().into_iter().filter_map(|policy| policy.to_json().ok()).for_each(|json| words.collect(&json));
        words
    }

    fn collect(&mut self, value: &Value) {
        match value {
            Value::Object(object) => {
                if let (Some(kind), Some(id)) = (object.get("type").and_then(Value::as_str), object.get("id")) {
                    let id = id.as_str().unwrap_or_default().to_owned();
                    match kind {
                        "Role" => drop(self.roles.insert(id)),
                        "Owner" => drop(self.owners.insert(id)),
                        _ => {}
                    }
                }
                if let Some(text) = object.get("Value").and_then(Value::as_str) {
                    self.texts.insert(text.to_owned());
                }
                object.values().for_each(|inner| self.collect(inner));
            }
            Value::Array(items) => items.iter().for_each(|item| self.collect(item)),
            _ => {}
        }
    }
}

fn destinations(tx: &Transaction<'_>) -> Result<Vec<(String, String)>, Refusal> {
    let mut statement = tx.prepare("SELECT name, environment FROM destinations ORDER BY name LIMIT 64")?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(rows.collect::<Result<_, _>>()?)
}
