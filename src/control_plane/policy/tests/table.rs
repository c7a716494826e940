//! The table of decisions: every input matters to at least one of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;

use serde_json::{Value, json};

use super::super::bundle::{Bundle, Content};
use super::super::engine;
use super::super::trials::{plain, put};

const DIR: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/policy/table");

type Set = Vec<(&'static str, Value)>;

/// Workloads as they are meant: each is permitted.
fn scenarios() -> Vec<(&'static str, Set)> {
    let ledger = json!({ "name": "ledger", "environment": "prod" });
    let prod = || vec![("workload.environment", json!("prod")), ("node.environment", json!("prod"))];
    let of = |more: Set| -> Set { prod().into_iter().chain(more).collect() };
    vec![
        (
            "settlement",
            of(vec![
                ("workload.roles", json!(["payments"])),
                ("workload.purpose", json!("settlement")),
                ("workload.destinations", json!(["ledger"])),
                ("owner.name", json!("treasury")),
                ("node.group", json!("ledger-nodes")),
                ("node.firmware", json!("0007005500111100")),
                ("evidence.profile", json!("uefi-uki")),
                ("evidence.references", json!("fleet")),
                ("destination", ledger.clone()),
            ]),
        ),
        (
            "agent",
            of(vec![
                ("action", json!("jwt")),
                ("workload.roles", json!(["agents"])),
                ("workload.audiences", json!(["ledger"])),
                ("audience", json!(["ledger"])),
                ("caller.selectors", json!(["systemd:unit:agent.service"])),
                ("task.id", json!("nightly")),
                ("task.intent", json!("ledger:append")),
                ("task.purpose", json!("settlement/nightly")),
                ("details", json!([{ "type": "ledger", "actions": ["append"], "locations": ["eu"] }])),
            ]),
        ),
        (
            "supplier",
            vec![
                ("action", json!("jwt")),
                ("workload.roles", json!(["suppliers"])),
                ("workload.third_party", json!(true)),
                ("workload.pinned", json!(true)),
                ("workload.audiences", json!(["ledger"])),
                ("audience", json!(["ledger"])),
            ],
        ),
        (
            "operator",
            vec![
                ("workload.roles", json!(["operators"])),
                ("workload.interactive", json!(true)),
                ("caller.login_session", json!(true)),
                ("approved_until", json!("2026-01-05T13:00:00Z")),
                ("exception_until", json!("2026-01-06T00:00:00Z")),
                // The server would give more; the registration and the task ask for less.
                ("limit_seconds", json!(3600)),
                ("workload.ttl_seconds", json!(900)),
            ],
        ),
        (
            "task",
            vec![
                ("workload.roles", json!(["operators"])),
                ("approved_until", json!("2026-01-05T13:00:00Z")),
                ("limit_seconds", json!(3600)),
                ("task.term_seconds", json!(600)),
            ],
        ),
    ]
}

/// Every input otherwise.
fn flips() -> Vec<(&'static str, Value)> {
    let mut flips = vec![
        ("action", json!("jwt")),
        ("action", json!("x509")),
        ("now", json!("2026-01-05T23:00:00Z")),
        ("limit_seconds", json!(3601)),
        ("workload.id", json!("spiffe://example.org/quarantined")),
        ("workload.purpose", json!("reports")),
        ("workload.tier", json!(3)),
        ("workload.environment", json!("dev")),
        ("workload.roles", json!([])),
        ("workload.roles", json!(["payments", "agents"])),
        ("workload.audiences", json!(["archive"])),
        ("workload.destinations", json!([])),
        ("workload.third_party", json!(true)),
        ("workload.interactive", json!(false)),
        ("workload.pinned", json!(false)),
        ("workload.registered", json!(false)),
        ("workload.suspended", json!("leaked")),
        ("workload.ttl_seconds", json!(3600)),
        ("owner.name", json!("sales")),
        ("owner.kind", json!("person")),
        ("owner.active", json!(false)),
        ("node.id", json!("f".repeat(64))),
        ("node.group", json!("web-nodes")),
        ("node.environment", json!("dev")),
        ("node.grade", json!("listed")),
        ("node.firmware", json!("0007005500111099")),
        ("evidence.verdict", json!("verify.pcr_mismatch")),
        ("evidence.age_seconds", json!(601)),
        ("evidence.term_seconds", json!(0)),
        ("evidence.profile", json!("uefi-grub")),
        ("evidence.references", json!("lab")),
        ("destination", Value::Null),
        ("destination.name", json!("archive")),
        ("destination.environment", json!("dev")),
        ("audience", json!(["archive"])),
        ("audience", json!(["ledger", "archive"])),
        ("caller.uid", json!(0)),
        ("caller.login_session", json!(true)),
        ("caller.selectors", json!(["systemd:unit:other.service"])),
        ("task.id", json!("hourly")),
        ("task.intent", json!("ledger:read")),
        ("task.purpose", json!("curiosity")),
        ("task.term_seconds", json!(0)),
        ("details", json!([{ "type": "ledger", "actions": ["delete"], "locations": ["eu"] }])),
        ("details", json!([{ "type": "ledger", "actions": ["append"], "locations": ["us"] }])),
        ("details", json!([{ "type": "archive", "actions": ["append"], "locations": ["eu"] }])),
        ("approved_until", json!("2026-01-05T11:59:59Z")),
        ("exception_until", json!("2026-01-05T12:00:00Z")),
    ];
    for claim in [
        "instance_identity",
        "configuration",
        "executables",
        "file_system",
        "hardware",
        "runtime_opaque",
        "storage_opaque",
        "sourced_data",
    ] {
        let path: &'static str = Box::leak(format!("evidence.vector.{claim}").into_boxed_str());
        flips.push((path, json!(96)));
    }
    flips
}

/// What is no input of policy: it says which evidence, not what it says.
const NAMES: [&str; 1] = ["evidence.digest"];

fn bundle() -> Bundle {
    let policies = std::fs::read_to_string(Path::new(DIR).join("table.cedar")).unwrap();
    let policies = BTreeMap::from([("table.cedar".to_owned(), policies)]);
    Bundle::unsigned(Content { schema: 1, version: 1, policies, tests: BTreeMap::new() }).unwrap()
}

fn permits(bundle: &Bundle, set: &Set) -> Option<bool> {
    let mut question = plain();
    set.iter().for_each(|(path, value)| put(&mut question, path, value.clone()));
    let inputs = serde_json::from_value(question).ok()?;
    Some(engine::decide(&inputs, Ok(&bundle.rules)).permits())
}

/// The paths of everything in a complete question.
fn paths() -> BTreeSet<String> {
    let mut question = plain();
    for path in ["caller.uid", "task.id", "destination.name", "approved_until", "exception_until"] {
        put(&mut question, path, Value::Null);
    }
    for claim in ["file_system", "hardware", "runtime_opaque", "storage_opaque", "sourced_data"] {
        put(&mut question, &format!("evidence.vector.{claim}"), json!(0));
    }
    let mut found = BTreeSet::new();
    walk(&question, "", &mut found);
    found
}

fn walk(value: &Value, at: &str, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(members) => {
            let step = |key: &str| if at.is_empty() { key.to_owned() } else { format!("{at}.{key}") };
            members.iter().for_each(|(key, value)| walk(value, &step(key), found));
        }
        _ => drop(found.insert(at.to_owned())),
    }
}

#[test]
fn no_input_is_dead() {
    let bundle = bundle();
    let mut rows: Vec<(String, Set, bool)> = Vec::new();
    let mut flipped = BTreeSet::new();
    for (name, base) in scenarios() {
        assert_eq!(permits(&bundle, &base), Some(true), "{name}");
        rows.push((name.to_owned(), base.clone(), true));
        for (number, (path, value)) in flips().into_iter().enumerate() {
            let set: Set = base.iter().cloned().chain([(path, value)]).collect();
            let permitted = permits(&bundle, &set).unwrap();
            if !permitted {
                flipped.insert(path.to_owned());
            }
            rows.push((format!("{name}, {path} otherwise ({number})"), set, permitted));
        }
    }
    assert!(rows.len() >= 200, "{}", rows.len());
    let dead: Vec<_> =
        paths().into_iter().filter(|path| !flipped.contains(path) && !NAMES.contains(&path.as_str())).collect();
    assert!(dead.is_empty(), "no decision turns on {dead:?}");
    println!("{} decisions, {} inputs, each of which turns at least one", rows.len(), flipped.len());

    // The table is a file: what changes in it shows.
    let file = Path::new(DIR).join("tests/table.toml");
    let text = written(&rows);
    if std::env::var_os("LEASEHOLD_WRITE_TABLE").is_some() {
        std::fs::write(&file, &text).unwrap();
    }
    let kept = std::fs::read_to_string(&file).unwrap();
    assert!(kept == text, "{} isn't what these policies say; LEASEHOLD_WRITE_TABLE=1 writes it anew", file.display());
}

/// The table as tests of the bundle.
fn written(rows: &[(String, Set, bool)]) -> String {
    let mut text = "# Made by src/control_plane/policy/tests/table.rs.\n".to_owned();
    for (name, set, permitted) in rows {
        let expect = if *permitted { "permit" } else { "deny" };
        let mut last: BTreeMap<&str, &Value> = BTreeMap::new();
        // A whole member replaces what was set within it, so it stands first.
        last.extend(set.iter().map(|(path, value)| (*path, value)));
        let nothing = last.iter().any(|(_, value)| value.is_null());
        let set: Vec<String> = last
            .iter()
            .filter(|(path, value)| !(value.is_null() || nothing && path.starts_with("destination.")))
            .map(|(path, value)| format!("{path:?} = {}", toml_of(value)))
            .collect();
        let _ = write!(text, "\n[[test]]\nname = {name:?}\nexpect = \"{expect}\"\nset = {{ {} }}\n", set.join(", "));
    }
    text
}

fn toml_of(value: &Value) -> String {
    match value {
        Value::Object(members) => {
            let members: Vec<String> =
                members.iter().map(|(key, value)| format!("{key} = {}", toml_of(value))).collect();
            format!("{{ {} }}", members.join(", "))
        }
        Value::Array(items) => format!("[{}]", items.iter().map(toml_of).collect::<Vec<_>>().join(", ")),
        other => other.to_string(),
    }
}

#[test]
fn the_table_and_the_example_hold_as_bundles() {
    for dir in [DIR, concat!(env!("CARGO_MANIFEST_DIR"), "/tests/policy/example")] {
        let read = |dir: &Path, ending: &str| -> BTreeMap<String, String> {
            let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
            entries
                .filter(|path| path.to_string_lossy().ends_with(ending))
                .map(|path| {
                    let name = path.file_name().unwrap().to_string_lossy().into_owned();
                    (name, std::fs::read_to_string(path).unwrap())
                })
                .collect()
        };
        let policies = read(Path::new(dir), ".cedar");
        let tests = read(&Path::new(dir).join("tests"), ".toml");
        let bundle = Bundle::unsigned(Content { schema: 1, version: 1, policies, tests })
            .unwrap_or_else(|refusal| panic!("{dir}: {refusal}"));
        let passed = bundle.test().unwrap_or_else(|refusal| panic!("{dir}: {refusal}"));
        assert!(passed.tests > 0 && bundle.rules.warnings.is_empty(), "{dir}: {:?}", bundle.rules.warnings);
    }
}
