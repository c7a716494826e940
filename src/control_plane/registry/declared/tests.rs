use proptest::prelude::*;

use super::super::sample::{NOW, Sample, rules, samples, store};
use super::super::workloads;
use super::*;
use crate::codes::{self, Refusal};
use crate::control_plane::store::Store;

fn declare(store: &Store, files: &[SourceFile], prune: bool) -> Result<Vec<Step>, Refusal> {
    store.transaction_blocking(|tx| Ok(carry_out(tx, &Declaration::read(files)?, &rules(), prune, NOW)?.steps))
}

fn exported(store: &Store) -> Vec<SourceFile> {
    store.transaction_blocking(export).unwrap()
}

fn file(text: &str) -> Vec<SourceFile> {
    vec![SourceFile { name: "all.toml".to_owned(), text: text.to_owned() }]
}

/// A store with the sample in it, and one with its nodes alone.
fn both(sample: &Sample) -> [(tempfile::TempDir, Store); 2] {
    let (full, empty) = (store(), store());
    full.1
        .transaction_blocking(|tx| {
            sample.write(tx);
            Ok(())
        })
        .unwrap();
    empty
        .1
        .transaction_blocking(|tx| {
            sample.enrol(tx, false);
            Ok(())
        })
        .unwrap();
    [full, empty]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn what_is_exported_makes_the_same_registry_elsewhere(sample in samples()) {
        let [(_a, full), (_b, empty)] = both(&sample);
        let files = exported(&full);
        prop_assert_eq!(declare(&full, &files, true).unwrap(), []);
        let steps = declare(&empty, &files, false).unwrap();
        prop_assert_eq!(exported(&empty), files.clone());
        prop_assert_eq!(declare(&empty, &files, true).unwrap(), []);
        prop_assert_eq!(steps.is_empty(), files.is_empty());
    }

    #[test]
    fn one_registry_is_made_another_and_nothing_undeclared_is_lost(one in samples(), other in samples()) {
        // Who left stays on record, so only who is there can be declared away without a trace.
        let there = |sample: Sample| Sample {
            owners: sample.owners.into_iter().map(|(name, kind, _)| (name, kind, false)).collect(),
            nodes: Vec::new(),
            ..sample
        };
        let [(_a, full), _] = both(&there(one));
        let [(_b, target), _] = both(&there(other));
        let (before, wanted) = (exported(&full), exported(&target));
        let count = |store: &Store| store.transaction_blocking(|tx| Ok(workloads::all(tx)?.len())).unwrap();
        let had = count(&full);
        // A destination that changes its environment while it is in use is refused, and then nothing is changed.
        match declare(&full, &wanted, false) {
            Err(refusal) => {
                prop_assert_eq!(refusal.code, codes::ADMIN_CONFLICT);
                prop_assert_eq!(exported(&full), before);
            }
            Ok(steps) => {
                prop_assert!(steps.iter().all(|step| !["removed", "retired"].contains(&step.action.as_str())));
                prop_assert!(count(&full) >= had);
                declare(&full, &wanted, true).unwrap();
                let of_kind = |files: &[SourceFile], name: &str| files.iter().find(|file| file.name == name).cloned();
                for name in ["destinations.toml", "eks.toml"] {
                    prop_assert_eq!(of_kind(&exported(&full), name), of_kind(&wanted, name));
                }
                // The same workloads; a suspension that nobody spoke of stays.
                let plain = |store: &Store| store.transaction_blocking(|tx| {
                    Ok(workloads::all(tx)?.iter().map(workloads::Workload::stated).collect::<Vec<_>>())
                }).unwrap();
                prop_assert_eq!(plain(&full), plain(&target));
                prop_assert_eq!(declare(&full, &wanted, true).unwrap(), []);
            }
        }
    }
}

/// A registry of one owner and two workloads.
const SMALL: &str = r#"
[[owner]]
name = "team"

[[workload]]
id = "spiffe://example.org/prod/a"
owner = "team"
purpose = "p"
node_group = "edge"
selectors = ["unix:uid:1"]

[[workload]]
id = "spiffe://example.org/prod/b"
owner = "team"
purpose = "p"
node_group = "edge"
selectors = ["unix:uid:2"]
"#;

#[test]
fn a_mistake_is_named_with_file_line_and_key_and_nothing_changes() {
    let (_dir, store) = store();
    declare(&store, &file(SMALL), false).unwrap();
    let before = exported(&store);
    for (from, to, at, word) in [
        ("purpose = \"p\"", "purpos = \"p\"", "all.toml:8", "`purpose`"),
        ("owner = \"team\"", "owner = 3", "all.toml:7", "string"),
        ("owner = \"team\"", "owner = \"nobody\"", "all.toml:7: owner", "owner add nobody"),
        ("prod/b", "test/b", "all.toml:13: id", "dev, prod"),
        ("selectors = [\"unix:uid:2\"]", "selectors = [\"unix:uid:x\"]", "all.toml:17: selectors", "unix:uid"),
        ("selectors = [\"unix:uid:2\"]", "selectors = [\"unix:uid:1\"]", "all.toml:5: ", "/prod/b"),
        ("node_group = \"edge\"", "node = \"abcdef01\"", "all.toml:9: node", "node list"),
        ("name = \"team\"", "name = \"team\"\nretired = 1", "all.toml:4", "boolean"),
        ("name = \"team\"", "name = \"team\\n\"", "all.toml:3: name", "control"),
        ("purpose = \"p\"", "purpose = \"p\"\ntier = 9", "all.toml:9: tier", "1 (internet"),
        ("purpose = \"p\"", "purpose = \"p\"\nsuspended = true", "all.toml:9", "the reason, or false"),
        ("purpose = \"p\"", "purpose = \"p\"\ndestinations = [\"x\"]", "all.toml:9: destinations", "destination add"),
        ("[[owner]]", "[[destination]]\nname = \"d\"\n[[owner]]", "all.toml:2: environment", "registry.environments"),
        ("[[owner]]", "[[ek]]\nlabel = \"x\"\n[[owner]]", "all.toml:2", "`name` and `key`"),
        ("[[owner]]", "[[owner]]\nname = \"team\"\n[[owner]]", "all.toml:5: name", "all.toml:2"),
        ("[[owner]]", "[[node]]\nid = \"abcdef01\"\n[[owner]]", "all.toml:3: id", "prove themselves"),
        ("[[owner]]", "owner = 1\n[[owner]]", "all.toml:3", ""),
    ] {
        let text = SMALL.replacen(from, to, 1);
        assert_ne!(text, SMALL);
        let refusal = declare(&store, &file(&text), true).unwrap_err();
        assert!(refusal.at.starts_with(at) && refusal.to_string().contains(word), "{to}: {refusal}");
        assert_eq!(exported(&store), before, "{to}");
    }
}

#[test]
fn what_must_change_together_may() {
    let (_dir, store) = store();
    declare(&store, &file(SMALL), false).unwrap();
    let swapped = SMALL.replace("uid:1", "uid:x").replace("uid:2", "uid:1").replace("uid:x", "uid:2");
    let steps = declare(&store, &file(&swapped), false).unwrap();
    assert_eq!(steps.iter().map(|step| step.action.as_str()).collect::<Vec<_>>(), ["changed", "changed"]);
}

#[test]
fn only_what_is_said_ends_a_suspension_or_a_leave() {
    let (_dir, store) = store();
    let said = |text: &str| {
        let steps = declare(&store, &file(text), false).unwrap();
        steps.into_iter().map(|step| format!("{} {} {}", step.action, step.kind, step.name)).collect::<Vec<_>>()
    };
    let (a, b) = ("workload spiffe://example.org/prod/a", "workload spiffe://example.org/prod/b");
    assert_eq!(said(SMALL), ["added owner team".to_owned(), format!("added {a}"), format!("added {b}")]);
    let suspended = SMALL.replacen("purpose = \"p\"", "purpose = \"p\"\nsuspended = \"why\"", 1);
    assert_eq!(said(&suspended), [format!("suspended {a}")]);
    assert!(said(&suspended).is_empty() && said(SMALL).is_empty());
    let resumed = SMALL.replacen("purpose = \"p\"", "purpose = \"p\"\nsuspended = false", 1);
    assert_eq!(said(&resumed), [format!("resumed {a}")]);
    // An owner that leaves takes along what nobody else answers for.
    let left = SMALL.replacen("name = \"team\"", "name = \"team\"\nretired = true", 1);
    assert_eq!(said(&left), ["retired owner team".to_owned(), format!("suspended {a}"), format!("suspended {b}")]);
    assert!(said(&left).is_empty() && said(SMALL).is_empty());
    let back = SMALL.replacen("name = \"team\"", "name = \"team\"\nretired = false", 1);
    assert_eq!(said(&back), ["returned owner team"]);
    // Handing over in the same declaration suspends nothing.
    let handed = left.replacen("[[owner]]", "[[owner]]\nname = \"others\"\n\n[[owner]]", 1);
    let handed = handed.replace("owner = \"team\"", "owner = \"others\"");
    let steps = said(&handed);
    assert!(
        steps.contains(&"retired owner team".to_owned()) && !steps.iter().any(|step| step.starts_with("suspended"))
    );
}
