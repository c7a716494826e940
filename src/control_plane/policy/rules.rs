//! Policies, read, validated and ready to be asked.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::str::FromStr;

use cedar_policy::{
    Authorizer, Decision, Effect, Entities, Policy, PolicyId, PolicySet, PrincipalConstraint, Request, ValidationMode,
    Validator,
};
use miette::Diagnostic;
use serde_json::Value;

use super::schema::{self, RESERVED};
use crate::codes::{self, Code, Refusal};

/// The most policies of a bundle.
const POLICIES: usize = 1024;
/// The longest lifetime and evidence age that a policy can state: a day, in seconds.
const DAY: u64 = 86_400;
/// What a policy of a bundle may carry: its name, two bounds, and words for people.
const ANNOTATIONS: [&str; 4] = ["id", "ttl", "evidence_max_age", "says"];
/// What guardrails may carry.
const OF_GUARDRAILS: [&str; 3] = ["id", "code", "says"];
/// Members of the context that are the caller's own words, or its node's word for it. A task may ask for less
/// time.
const CLAIMS: [&str; 4] = ["task", "caller", "detail", "ttl_seconds"];
/// Members of the context that change by themselves.
const TIMED: [&str; 5] = ["now", "hour", "weekday", "evidence", "approved_until"];

/// Validated policies.
#[derive(Clone, Debug)]
pub struct Rules {
    set: PolicySet,
    notes: HashMap<PolicyId, Notes>,
    /// What the validator finds odd, e.g. a policy that can never apply.
    pub warnings: Vec<String>,
    /// Whether time alone can change what they say.
    pub timed: bool,
}

/// What a policy says beside its condition.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Notes {
    /// The longest lifetime it permits, in seconds.
    pub ttl: Option<u64>,
    /// The oldest evidence it permits on, in seconds.
    pub evidence_max_age: Option<u64>,
    /// The code of its refusal.
    pub code: Option<Code>,
    /// Its refusal in words.
    pub says: String,
}

/// What policies say to one request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Said {
    /// Whether it is permitted.
    pub permitted: bool,
    /// The policies that this follows from: forbids that match, or else permits that do. In the
    /// order of their ids.
    pub determining: BTreeSet<String>,
}

impl Rules {
    /// Reads the policies of a bundle, by file name.
    ///
    /// # Errors
    /// [`codes::POLICY_BUNDLE`], naming file and policy.
    pub fn of_bundle(files: &BTreeMap<String, String>) -> Result<Self, Refusal> {
        let mut rules = Self::empty();
        for (file, text) in files {
            rules.read(file, text, &ANNOTATIONS)?;
        }
        rules.validated()
    }

    /// Reads the guardrails.
    ///
    /// # Errors
    /// As [`Self::of_bundle`].
    pub fn guardrails(text: &str) -> Result<Self, Refusal> {
        let mut rules = Self::empty();
        rules.read("guardrails.cedar", text, &OF_GUARDRAILS)?;
        rules.validated()
    }

    fn empty() -> Self {
        Self { set: PolicySet::new(), notes: HashMap::new(), warnings: Vec::new(), timed: false }
    }

    /// Asks. A policy that can't be evaluated would be skipped by Cedar, a forbid as well as a permit: here it
    /// is an error, and that denies.
    ///
    /// # Errors
    /// [`codes::POLICY_FAILED`], naming the policy.
    pub fn ask(&self, request: &Request, entities: &Entities) -> Result<Said, Refusal> {
        let response = Authorizer::new().is_authorized(request, &self.set, entities);
        if let Some(error) = response.diagnostics().errors().next() {
            return Err(Refusal::new(codes::POLICY_FAILED, error.to_string()));
        }
        let determining = response.diagnostics().reason().map(ToString::to_string).collect();
        Ok(Said { permitted: response.decision() == Decision::Allow, determining })
    }

    /// What the policy of this id says beside its condition.
    pub fn notes(&self, id: &str) -> Notes {
        self.notes.get(&PolicyId::new(id)).cloned().unwrap_or_default()
    }

    /// The policies, in the order of their ids.
    pub fn policies(&self) -> Vec<&Policy> {
        let mut all: Vec<&Policy> = self.set.policies().collect();
        all.sort_by_key(|policy| policy.id().to_string());
        all
    }

    /// The same with one policy of them alone.
    pub fn only(&self, policy: &Policy) -> Self {
        let mut one = Self { notes: self.notes.clone(), ..Self::empty() };
        // The set is empty, so its id can't stand there.
        let _ = one.set.add(policy.clone());
        one
    }

    fn read(&mut self, file: &str, text: &str, annotations: &[&str]) -> Result<(), Refusal> {
        let invalid = |found: String| Refusal::new(codes::POLICY_BUNDLE, found);
        let set = PolicySet::from_str(text).map_err(|e| invalid(words(&e)).at(place(file, text, &e)))?;
        if set.num_of_templates() > 0 {
            return Err(invalid("a template (`?principal` or `?resource`)".to_owned()).at(file).expected("policies"));
        }
        for policy in set.policies() {
            let id = policy.annotation("id").unwrap_or_default().to_owned();
            let at = || if id.is_empty() { file.to_owned() } else { format!("{file} policy {id}") };
            check_id(&id, annotations == ANNOTATIONS).map_err(|refusal| refusal.at(at()))?;
            let notes = notes(policy, annotations).map_err(|refusal| refusal.at(at()))?;
            let json = policy.to_json().map_err(|e| invalid(e.to_string()).at(at()))?;
            let reads = reads(&json);
            if policy.effect() == Effect::Permit
                && !names_principals(policy)
                && let Some(claim) = CLAIMS.iter().find(|claim| reads.contains(**claim))
            {
                return Err(invalid(format!("a permit for every principal that reads `context.{claim}`"))
                    .at(at())
                    .expected("a scope like `principal in Role::\"…\"`: a caller's words widen nothing"));
            }
            self.timed |= notes.evidence_max_age.is_some() || TIMED.iter().any(|name| reads.contains(*name));
            let policy = policy.new_id(PolicyId::new(&id));
            self.notes.insert(policy.id().clone(), notes);
            self.set.add(policy).map_err(|_| invalid("another policy has this id".to_owned()).at(at()))?;
        }
        if self.notes.len() > POLICIES {
            return Err(invalid(format!("{} policies", self.notes.len())).expected(format!("at most {POLICIES}")));
        }
        Ok(())
    }

    /// Holds them to the schema, strictly.
    fn validated(mut self) -> Result<Self, Refusal> {
        let result = Validator::new(schema::schema().clone()).validate(&self.set, ValidationMode::Strict);
        if let Some(error) = result.validation_errors().next() {
            let help = error.help().map_or_else(|| "what `policy schema` prints".to_owned(), |help| words(&help));
            return Err(Refusal::new(codes::POLICY_BUNDLE, words(error)).expected(help));
        }
        self.warnings = result.validation_warnings().map(words).collect();
        Ok(self)
    }
}

fn check_id(id: &str, of_bundle: bool) -> Result<(), Refusal> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    let invalid = |found: String| Refusal::new(codes::POLICY_BUNDLE, found);
    if id.is_empty() {
        return Err(invalid("a policy without an id".to_owned()).expected("`@id(\"…\")` before it"));
    }
    if id.len() > 64 || !id.bytes().all(plain) {
        return Err(invalid(format!("id `{}`", id.escape_debug())).expected("1 to 64 letters, digits, `.`, `-` or `_`"));
    }
    match of_bundle && id.to_ascii_lowercase().starts_with(RESERVED) {
        true => Err(invalid(format!("id `{id}`")).expected(format!("one that doesn't begin with `{RESERVED}`"))),
        false => Ok(()),
    }
}

fn notes(policy: &Policy, annotations: &[&str]) -> Result<Notes, Refusal> {
    let invalid = |found: String| Refusal::new(codes::POLICY_BUNDLE, found);
    if let Some((name, _)) = policy.annotations().find(|(name, _)| !annotations.contains(name)) {
        return Err(invalid(format!("annotation `@{name}`")).expected(format!("of {annotations:?} only")));
    }
    let permit = policy.effect() == Effect::Permit;
    let seconds = |name: &str| match policy.annotation(name) {
        None => Ok(None),
        Some(_) if !permit => Err(invalid(format!("`@{name}` on a forbid")).expected("it on permits only")),
        Some(text) => duration(text).map(Some).ok_or_else(|| {
            invalid(format!("`@{name}(\"{}\")`", text.escape_debug())).expected("1s to 24h, e.g. \"300s\", \"5m\"")
        }),
    };
    let says = policy.annotation("says").unwrap_or_default();
    if says.len() > 256 || says.chars().any(char::is_control) {
        return Err(invalid("`@says` is too long or not plain".to_owned()).expected("at most 256 bytes of plain text"));
    }
    Ok(Notes {
        ttl: seconds("ttl")?,
        evidence_max_age: seconds("evidence_max_age")?,
        code: policy.annotation("code").map(Code::from_text),
        says: says.to_owned(),
    })
}

/// `300s`, `5m`, `2h`; in seconds, 1 to a day.
pub fn duration(text: &str) -> Option<u64> {
    let unit = text.bytes().last()?;
    let factor = match unit {
        b's' => 1,
        b'm' => 60,
        b'h' => 3600,
        _ => return None,
    };
    let digits = text.get(..text.len() - 1)?;
    let plain = !digits.is_empty() && digits.len() <= 6 && digits.bytes().all(|byte| byte.is_ascii_digit());
    let seconds = plain.then(|| digits.parse::<u64>().ok())??.checked_mul(factor)?;
    (1..=DAY).contains(&seconds).then_some(seconds)
}

/// Whether a policy's scope says for whom it is.
fn names_principals(policy: &Policy) -> bool {
    use PrincipalConstraint::{Eq, In, IsIn};
    matches!(policy.principal_constraint(), Eq(_) | In(_) | IsIn(..))
}

/// The members of the context that a policy (as JSON) reads; all of them where it uses the context as a whole.
fn reads(value: &Value) -> BTreeSet<&str> {
    let mut found = BTreeSet::new();
    collect(value, &mut found);
    found
}

#[expect(clippy::indexing_slicing, reason = "a member that is absent from a JSON value reads as null")]
fn collect<'a>(value: &'a Value, found: &mut BTreeSet<&'a str>) {
    match value {
        Value::Object(object) => {
            for (key, inner) in object {
                // The caller names its task: one that a policy names is its word, too.
                if key == "type" && inner == "Task" {
                    found.insert("task");
                }
                let of_context = (key == "." || key == "has") && inner["left"]["Var"] == "context";
                match inner["attr"].as_str().filter(|_| of_context) {
                    Some(attribute) => drop(found.insert(attribute)),
                    // The variable itself, outside of such an access.
                    None if key == "Var" && inner == "context" => found.extend(CLAIMS.iter().chain(&TIMED)),
                    None => collect(inner, found),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| collect(item, found)),
        _ => {}
    }
}

/// An error of Cedar on one line.
fn words(error: &impl std::fmt::Display) -> String {
    error.to_string().split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The file, with the line of a mistake.
fn place(file: &str, text: &str, errors: &cedar_policy::ParseErrors) -> String {
    let offset = errors.labels().and_then(|mut labels| labels.next()).map(|label| label.offset());
    match offset.and_then(|offset| text.as_bytes().get(..offset)) {
        Some(before) => format!("{file}:{}", 1 + before.iter().filter(|byte| **byte == b'\n').count()),
        None => file.to_owned(),
    }
}
