//! The tests that come with a bundle: questions with the answer they must get, and properties that
//! must hold for every combination of values. They run before it comes into force.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::engine;
use super::inputs::Inputs;
use super::rules::Rules;
use crate::clock::WallTime;
use crate::codes::{self, Refusal};

/// The most decisions that the tests of one bundle may need.
const DECISIONS: usize = 20_000;
/// A Monday, at noon.
const NOON: u64 = 1_767_614_400;

/// The tests of a bundle, read.
#[derive(Clone, Debug, Default)]
pub struct Trials {
    files: Vec<(String, File)>,
}

/// How much was tested.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Passed {
    /// Single questions.
    pub tests: usize,
    /// Properties.
    pub properties: usize,
    /// Decisions made for both.
    pub decisions: usize,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    /// Inputs that every test of the file begins with.
    #[serde(default)]
    base: Map<String, Value>,
    #[serde(default, rename = "test")]
    tests: Vec<Test>,
    #[serde(default, rename = "never")]
    properties: Vec<Never>,
}

/// One question.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Test {
    name: String,
    expect: Expected,
    /// Policies or guardrails that must be among those it follows from.
    #[serde(default)]
    by: Vec<String>,
    /// The lifetime it must give.
    #[serde(default)]
    ttl_seconds: Option<u64>,
    /// The refusal's code.
    #[serde(default)]
    code: Option<String>,
    #[serde(default)]
    set: Map<String, Value>,
    #[serde(default = "yes")]
    guardrails: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Expected {
    Permit,
    Deny,
}

/// What is never permitted, over the product of these values.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Never {
    name: String,
    /// Values by path.
    each: BTreeMap<String, Vec<Value>>,
    /// Of all combinations, those that are never permitted; all of them if absent.
    #[serde(default)]
    when: BTreeMap<String, Value>,
    #[serde(default)]
    set: Map<String, Value>,
    #[serde(default = "yes")]
    guardrails: bool,
}

const fn yes() -> bool {
    true
}

impl Trials {
    /// Reads the files; each question must be one.
    ///
    /// # Errors
    /// [`codes::POLICY_BUNDLE`], naming file, line or test.
    pub fn read(files: &BTreeMap<String, String>) -> Result<Self, Refusal> {
        let mut read = Vec::new();
        for (name, text) in files {
            let at = format!("tests/{name}");
            let file: File =
                crate::config::parse(text, &at).map_err(|it| Refusal { code: codes::POLICY_BUNDLE, ..it })?;
            read.push((at, file));
        }
        let trials = Self { files: read };
        let decisions = trials.count();
        match decisions <= DECISIONS {
            true => Ok(trials),
            false => Err(Refusal::new(codes::POLICY_BUNDLE, format!("its tests need {decisions} decisions"))
                .expected(format!("at most {DECISIONS}"))),
        }
    }

    /// How many tests and properties there are.
    pub fn len(&self) -> usize {
        self.files.iter().map(|(_, file)| file.tests.len() + file.properties.len()).sum()
    }

    /// Runs them all.
    ///
    /// # Errors
    /// [`codes::POLICY_BUNDLE`], naming the first that fails and how many do.
    pub fn run(&self, rules: &Rules) -> Result<Passed, Refusal> {
        let mut passed = Passed::default();
        let mut failures = Vec::new();
        for (file, trials) in &self.files {
            let base = base(&trials.base).map_err(|refusal| refusal.at(file))?;
            for test in &trials.tests {
                let at = format!("{file} test `{}`", test.name);
                passed.tests += 1;
                passed.decisions += 1;
                failures.extend(test.fault(&base, rules).map_err(|it| it.at(&at))?.map(|found| (at, found)));
            }
            for property in &trials.properties {
                let at = format!("{file} never `{}`", property.name);
                passed.properties += 1;
                let (decisions, fault) = property.run(&base, rules).map_err(|it| it.at(&at))?;
                passed.decisions += decisions;
                failures.extend(fault.map(|found| (at, found)));
            }
        }
        match failures.first() {
            None => Ok(passed),
            Some((at, found)) => Err(Refusal::new(codes::POLICY_BUNDLE, found.clone())
                .at(at)
                .expected(format!("every test to hold; {} did not", failures.len()))),
        }
    }

    fn count(&self) -> usize {
        let product = |property: &Never| property.each.values().fold(1_usize, |all, of| all.saturating_mul(of.len()));
        self.files.iter().fold(0, |all, (_, file)| {
            file.properties.iter().map(product).fold(all.saturating_add(file.tests.len()), usize::saturating_add)
        })
    }
}

impl Test {
    /// What is wrong, if something is.
    fn fault(&self, base: &Value, rules: &Rules) -> Result<Option<String>, Refusal> {
        let inputs = inputs(&with(base, &self.set))?;
        let answer = engine::decide_with(&inputs, Ok(rules), self.guardrails);
        let by = || answer.policies.iter().cloned().collect::<Vec<_>>().join(", ");
        let found = match (&answer.refusal, self.expect) {
            (Some(refusal), Expected::Permit) => Some(format!("denied: {refusal}")),
            (None, Expected::Deny) => Some(format!("permitted by {}", by())),
            (Some(refusal), Expected::Deny) if self.code.as_ref().is_some_and(|it| *it != refusal.code.as_str()) => {
                Some(format!("denied with another code: {refusal}"))
            }
            _ if self.by.iter().any(|id| !answer.policies.contains(id)) => Some(format!("it follows from {}", by())),
            _ if self.ttl_seconds.is_some_and(|ttl| ttl != answer.ttl_seconds) => {
                Some(format!("permitted for {} s", answer.ttl_seconds))
            }
            _ => None,
        };
        Ok(found)
    }
}

impl Never {
    /// How many decisions were made, and the first that permits.
    fn run(&self, base: &Value, rules: &Rules) -> Result<(usize, Option<String>), Refusal> {
        let axes: Vec<(&String, &Vec<Value>)> = self.each.iter().collect();
        let total = axes.iter().fold(1_usize, |all, (_, values)| all.saturating_mul(values.len()));
        let base = with(base, &self.set);
        let mut decisions = 0;
        for number in 0..total {
            let mut rest = number;
            let mut question = base.clone();
            for (path, values) in &axes {
                let value = values.get(rest % values.len()).cloned().unwrap_or_default();
                rest /= values.len();
                put(&mut question, path, value);
            }
            if !self.when.iter().all(|(path, wanted)| matches(&question, path, wanted)) {
                continue;
            }
            decisions += 1;
            let answer = engine::decide_with(&inputs(&question)?, Ok(rules), self.guardrails);
            if answer.permits() {
                let shown = |(path, _): &(&String, &Vec<Value>)| format!("{path} = {}", get(&question, path));
                let case = axes.iter().map(shown).collect::<Vec<_>>().join(", ");
                let by = answer.policies.iter().cloned().collect::<Vec<_>>().join(", ");
                return Ok((decisions, Some(format!("permitted by {by} with {case}"))));
            }
        }
        match decisions {
            // It says nothing: most likely a path is misspelt.
            0 => Ok((0, Some("no combination of its values is meant".to_owned()))),
            decisions => Ok((decisions, None)),
        }
    }
}

/// The question that tests change: a workload of nothing in particular, on a good node.
pub fn plain() -> Value {
    json!({
        "action": "x509", "now": NOON, "limit_seconds": 600,
        "workload": {
            "id": "spiffe://example.org/workload", "purpose": "", "tier": 1, "environment": "", "roles": [],
            "audiences": [], "destinations": [], "third_party": false, "interactive": false, "pinned": false,
            "registered": true, "suspended": null, "ttl_seconds": null,
        },
        "owner": { "name": "team", "kind": "team", "active": true },
        "node": {
            "id": "00".repeat(32), "group": "", "environment": "", "grade": "certified", "firmware": "",
        },
        "evidence": {
            "digest": "", "verdict": "affirming", "age_seconds": 0, "term_seconds": 600, "profile": "",
            "references": "", "vector": { "instance_identity": 2, "configuration": 2, "executables": 3 },
        },
        "destination": null, "audience": [], "caller": null, "task": null, "details": [],
    })
}

/// What stands behind the first word of a path where the question has nothing there yet.
fn absent(member: &str) -> Value {
    match member {
        "destination" => json!({ "name": "", "environment": "" }),
        "caller" => json!({ "uid": 1000, "login_session": false, "selectors": [] }),
        "task" => json!({ "id": "task", "intent": "", "purpose": "", "term_seconds": 0 }),
        _ => json!({}),
    }
}

fn base(of_file: &Map<String, Value>) -> Result<Value, Refusal> {
    let base = with(&plain(), of_file);
    inputs(&base).map(|_| base)
}

fn inputs(question: &Value) -> Result<Inputs, Refusal> {
    serde_json::from_value(question.clone()).map_err(|e| {
        Refusal::new(codes::POLICY_BUNDLE, e.to_string()).expected("inputs as `decision show --json` has them")
    })
}

/// The question with these members; a key is a path, a table the same as a path for each of its members.
fn with(question: &Value, changes: &Map<String, Value>) -> Value {
    let mut changed = question.clone();
    for (path, value) in changes {
        merge(&mut changed, path, value);
    }
    changed
}

fn merge(question: &mut Value, path: &str, value: &Value) {
    match value {
        Value::Object(members) => {
            members.iter().for_each(|(key, value)| merge(question, &format!("{path}.{key}"), value))
        }
        other => put(question, path, other.clone()),
    }
}

/// Sets the member at a path.
pub fn put(question: &mut Value, path: &str, value: Value) {
    let value = match (path, &value) {
        ("now" | "approved_until" | "exception_until", Value::String(text)) => {
            WallTime::parse(text).map_or(value, |time| Value::from(time.0))
        }
        _ => value,
    };
    let mut at = question;
    let mut words = path.split('.').peekable();
    while let Some(word) = words.next() {
        if at.is_null() {
            *at = json!({});
        }
        let Value::Object(members) = at else { return };
        let member = members.entry(word.to_owned()).or_insert(Value::Null);
        if words.peek().is_none() {
            *member = value;
            return;
        }
        if member.is_null() {
            *member = absent(word);
        }
        at = member;
    }
}

/// The member at a path.
pub fn get<'a>(question: &'a Value, path: &str) -> &'a Value {
    path.split('.').fold(question, |at, word| &at[word])
}

/// Whether the member at a path is this value, or one of these.
fn matches(question: &Value, path: &str, wanted: &Value) -> bool {
    let found = get(question, path);
    match wanted {
        Value::Array(any) if !found.is_array() => any.contains(found),
        wanted => found == wanted,
    }
}
