//! Decisions without a server: what engine, rules and bundles hold.

mod bundles;
mod random;
mod table;

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::bundle::{Bundle, Content};
use super::engine::{self, Answer};
use super::inputs::Inputs;
use super::trials::{plain, put};
use crate::codes;

/// A bundle of one file.
fn bundle(text: &str) -> Bundle {
    Bundle::unsigned(content(text, "")).unwrap_or_else(|refusal| panic!("{refusal}"))
}

fn content(text: &str, tests: &str) -> Content {
    let named = |name: &str, text: &str| match text.is_empty() {
        true => BTreeMap::new(),
        false => BTreeMap::from([(name.to_owned(), text.to_owned())]),
    };
    Content { schema: 1, version: 1, policies: named("a.cedar", text), tests: named("a.toml", tests) }
}

/// The plain question with these members.
fn inputs(changes: &[(&str, Value)]) -> Inputs {
    let mut question = plain();
    for (path, value) in changes {
        put(&mut question, path, value.clone());
    }
    serde_json::from_value(question).unwrap_or_else(|e| panic!("{changes:?}: {e}"))
}

fn decide(bundle: &Bundle, changes: &[(&str, Value)]) -> Answer {
    engine::decide(&inputs(changes), Ok(&bundle.rules))
}

#[test]
fn what_is_registered_is_permitted_within_the_guardrails() {
    let built_in = Bundle::built_in(true).unwrap();
    assert_eq!(decide(&built_in, &[]).ttl_seconds, 600);
    for (guardrail, code, changes) in [
        ("not-this-node", codes::ISSUER_NOT_THIS_NODE, vec![("workload.registered", json!(false))]),
        ("suspended", codes::POLICY_SUSPENDED, vec![("workload.suspended", json!("leaked"))]),
        ("owner", codes::POLICY_SUSPENDED, vec![("owner.active", json!(false))]),
        ("node-environment", codes::POLICY_GUARDRAIL, vec![("workload.environment", json!("prod"))]),
        ("node-environment", codes::POLICY_GUARDRAIL, vec![("node.environment", json!("dev"))]),
        (
            "destination-environment",
            codes::POLICY_GUARDRAIL,
            vec![
                ("destination", json!({ "name": "ledger", "environment": "prod" })),
                ("workload.destinations", json!(["ledger"])),
            ],
        ),
        ("verdict", codes::POLICY_GUARDRAIL, vec![("evidence.verdict", json!("verify.pcr_mismatch"))]),
        ("evidence-age", codes::POLICY_GUARDRAIL, vec![("evidence.age_seconds", json!(601))]),
        ("exception", codes::POLICY_GUARDRAIL, vec![("exception_until", json!("2026-01-05T12:00:00Z"))]),
        ("login-session", codes::POLICY_GUARDRAIL, vec![("caller.login_session", json!(true))]),
        ("third-party", codes::POLICY_GUARDRAIL, vec![("workload.third_party", json!(true))]),
        (
            "third-party-audience",
            codes::POLICY_GUARDRAIL,
            vec![
                ("workload.third_party", json!(true)),
                ("workload.pinned", json!(true)),
                ("action", json!("jwt")),
                ("audience", json!(["any"])),
            ],
        ),
    ] {
        // A bundle that permits everything lifts none of them.
        for bundle in [&built_in, &bundle("@id(\"all\") permit (principal, action, resource);")] {
            let answer = decide(bundle, &changes);
            let refusal = answer.refusal.unwrap_or_else(|| panic!("{guardrail} permits"));
            assert_eq!(refusal.code, code, "{refusal}");
            assert!(refusal.found.contains(&format!("guardrail.{guardrail}: ")), "{refusal}");
            assert!(answer.policies.contains(&format!("guardrail.{guardrail}")));
        }
    }
    // Each guardrail stands above.
    assert_eq!(super::schema::guardrails().policies().len(), 12);
    // What else the built-in bundle says.
    let third = [("workload.third_party", json!(true)), ("workload.pinned", json!(true))];
    assert_eq!(decide(&built_in, &third).ttl_seconds, 300);
    assert_eq!(decide(&Bundle::built_in(false).unwrap(), &[]).refusal.unwrap().code, codes::POLICY_DENIED);
}
