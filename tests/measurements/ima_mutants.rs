//! Attacks on lists: from good lists with the PCR they lead to, a family of altered ones. None may
//! be accepted and say something else than the original.

use std::collections::BTreeMap;

use leasehold::measurements::LogHash;
use leasehold::tpm::Bank;
use leasehold::verify::runtime::{Checkpoint, CompiledRules, Finding, Judge};

use crate::ima_judge::rules;
use crate::ima_made::{List, digest_and_name, field, raw};
use crate::testdata::testdata;

/// What is read from an accepted list: all of the checkpoint but what nothing vouches for, which
/// is of a violation everything except that there was one.
#[derive(PartialEq, Eq, Debug)]
struct Claims {
    entries: u64,
    value: Vec<u8>,
    unlisted: Vec<Finding>,
    counts: [u64; 2],
    violations: Vec<u64>,
    boot_aggregates: Vec<Finding>,
}

/// What became of a mutant.
enum Outcome {
    Accepted(Box<Claims>),
    /// In words.
    Refused(String),
}

fn appraise(list: &[u8], target: &[u8], rules: &CompiledRules) -> Outcome {
    let mut judge = Judge::new(Some(rules), Checkpoint::start(Bank::Sha256));
    match judge.take(list, Some(target)) {
        Ok(true) => {
            let at = judge.at;
            Outcome::Accepted(Box::new(Claims {
                entries: at.entries,
                value: at.value,
                unlisted: at.unlisted.into_iter().map(|finding| Finding { offset: 0, ..finding }).collect(),
                counts: [at.unlisted_count, at.violations_count + at.waived_count],
                violations: at.violations.iter().map(|finding| finding.entry).collect(),
                boot_aggregates: at.boot_aggregates,
            }))
        }
        Ok(false) => Outcome::Refused("the list doesn't lead to the quoted PCR 10".to_owned()),
        Err(refusal) => Outcome::Refused(refusal.to_string()),
    }
}

/// A list in entries.
#[derive(Clone)]
struct Original {
    name: String,
    entries: Vec<Vec<u8>>,
    target: Vec<u8>,
}

impl Original {
    fn new(name: &str, bytes: &[u8]) -> Self {
        let mut entries = Vec::new();
        let mut rest = bytes;
        while let Some((_, length)) = leasehold::measurements::ima::entry(rest, 0).unwrap() {
            entries.push(rest[..length].to_vec());
            rest = &rest[length..];
        }
        let target = crate::ima_made::pcr(bytes, LogHash::Sha256, false, entries.len());
        Self { name: name.to_owned(), entries, target }
    }
}

fn originals() -> Vec<Original> {
    let mut list = List::new();
    for number in 0..12u8 {
        list.measure(b"/bin/sh", &[0x51; 32])
            .signed(
                &[b"/opt/", &[b'a' + number][..]].concat(),
                "sha256",
                &[number | 1; 32],
                &[3, 2, 4, 0, 0, 0, 0, 0, 2, 9, 9],
            )
            .buffer(b"kernel_version", b"6.1")
            .buffer(b"kexec-cmdline", &[b'q', number])
            .legacy(&[b"/init", &[b'a' + number][..]].concat(), &[number; 20])
            .entry("ima-ng", &digest_and_name("sha512", &[5; 64], b"/usr/bin/x"));
        if number % 4 == 0 {
            list.violation(b"/root/f");
        }
    }
    let mut originals = vec![Original::new("made", &list.bytes)];
    if let Some(root) = testdata() {
        for folder in ["x86_64/uki", "x86_64/uki-secureboot-3banks-rich", "aarch64/uki-2banks-rich"] {
            let list = root.join("measured-boot").join(folder).join("binary_runtime_measurements");
            originals.push(Original::new(folder, &std::fs::read(list).unwrap()));
        }
    }
    originals
}

/// The mutants of a list, by kind.
fn mutants(original: &Original) -> Vec<(&'static str, Vec<u8>)> {
    let entries = &original.entries;
    let count = entries.len();
    let mut found = Vec::new();
    let mut add = |kind, change: &dyn Fn(&mut Vec<Vec<u8>>)| {
        let mut entries = entries.clone();
        change(&mut entries);
        found.push((kind, entries.concat()));
    };
    for at in 0..count {
        add("drop", &|e| drop(e.remove(at)));
        add("duplicate", &|e| e.insert(at, e[at].clone()));
        add("reorder", &|e| e.swap(at, (at + 1) % count));
        add("reorder far", &|e| e.swap(at, (at * 7 + 3) % count));
        add("move to the end", &|e| {
            let moved = e.remove(at);
            e.push(moved);
        });
        add("truncate", &|e| e.truncate(at));
        add("truncate within", &|e| {
            e.truncate(at + 1);
            let last = e.last_mut().unwrap();
            last.truncate(last.len() / 2);
        });
        add("insert a file", &|e| {
            e.insert(at, List::default().measure(b"/bin/sh", &[0x51; 32]).bytes.clone());
        });
        add("insert an entry for PCR 11", &|e| {
            e.insert(at, raw(11, [1; 20], "ima-ng", &digest_and_name("sha256", &[1; 32], b"/x")))
        });
        add("insert a violation", &|e| e.insert(at, List::default().violation(b"/x").bytes.clone()));
        add("another PCR", &|e| e[at][0] = 9);
        add("hide or make a violation", &|e| {
            let printed = if e[at][4..24] == [0; 20] { 1 } else { 0 };
            e[at][4..24].fill(printed);
        });
        add("print another bank's hash", &|e| {
            let hash = LogHash::Sha256.digest(&[&e[at]]);
            e[at][4..24].copy_from_slice(&hash[..20]);
        });
        add("swap the data", &|e| {
            let other = (at + 1) % count;
            let (a, b) = (data_of(&e[at]), data_of(&e[other]));
            let (first, second) = (e[at].split_off(a), e[other].split_off(b));
            e[at].extend(second);
            e[other].extend(first);
        });
        for (kind, from, to) in [
            ("relabel as a buffer", "ima-sig", "ima-buf"),
            ("relabel as a file", "ima-buf", "ima-sig"),
            ("relabel as another version", "ima-sig", "ima-sigv2"),
            ("relabel as another template", "ima-ng", "ima-ngv2"),
            ("relabel as shorter", "ima-sig", "ima-ng"),
            ("relabel as longer", "ima-ng", "ima-sig"),
            ("relabel as legacy", "ima-ng", "ima"),
        ] {
            if name_of(&entries[at]) == from.as_bytes() {
                add(kind, &|e| relabel(&mut e[at], to));
            }
        }
    }
    add("append a file", &|e| e.push(List::default().measure(b"/tmp/evil", &[0xE7; 32]).bytes.clone()));
    add("append half an entry", &|e| e.push(List::default().measure(b"/tmp/evil", &[0xE7; 32]).bytes[..40].to_vec()));
    add("append another list", &|e| e.extend(entries.clone()));
    // One bit, all over: names, digests, signatures, lengths, template names, printed digests.
    for at in 0..count {
        for byte in (at % 4..entries[at].len()).step_by(4) {
            add("alter a byte", &|e| e[at][byte] ^= 1 << (byte % 8));
        }
    }
    found
}

fn name_of(entry: &[u8]) -> &[u8] {
    let length = u32::from_le_bytes(entry[24..28].try_into().unwrap()) as usize;
    &entry[28..28 + length]
}

/// Where the template data begins, with its length.
fn data_of(entry: &[u8]) -> usize {
    28 + name_of(entry).len()
}

fn relabel(entry: &mut Vec<u8>, to: &str) {
    let data = entry.split_off(data_of(entry));
    entry.truncate(24);
    entry.extend(field(to.as_bytes()));
    entry.extend(data);
}

#[test]
fn no_altered_list_is_accepted_with_other_claims() {
    let rules = rules().compile().unwrap();
    let (mut all, mut refused, mut worse) = (0, 0, 0);
    let mut neutral = BTreeMap::<&str, usize>::new();
    let mut reasons = BTreeMap::<String, usize>::new();
    for original in originals() {
        let Outcome::Accepted(claims) = appraise(&original.entries.concat(), &original.target, &rules) else {
            panic!("{} is refused as it is", original.name);
        };
        for (number, (kind, list)) in mutants(&original).into_iter().enumerate() {
            all += 1;
            match appraise(&list, &original.target, &rules) {
                Outcome::Refused(why) => {
                    refused += 1;
                    assert!(!why.is_empty());
                    let class: String = why.split(':').next().unwrap().chars().take(60).collect();
                    *reasons.entry(class).or_default() += 1;
                }
                Outcome::Accepted(found) if found == claims => *neutral.entry(kind).or_default() += 1,
                Outcome::Accepted(found) => {
                    // Nothing vouches for a template's name. Under an unknown one an entry says
                    // nothing, so no rule allows it: that is the one way to say less, and it
                    // only ever adds to what is refused.
                    let less = found.counts[0] > claims.counts[0]
                        || (found.counts[0] == claims.counts[0]
                            && found.unlisted.iter().any(|finding| finding.why.contains("template")));
                    let unknown = found.unlisted.iter().any(|finding| finding.why.contains("is not known here"));
                    assert!(
                        kind == "alter a byte" && less && unknown,
                        "{}, {kind} (number {number}): {found:#?} instead of {claims:#?}",
                        original.name
                    );
                    worse += 1;
                }
            }
        }
    }
    println!(
        "{all} mutants: {refused} refused, {worse} with an entry nothing allows, neutral {neutral:?}\n{reasons:?}"
    );
    assert!(all >= 2000, "{all}");
    assert!(refused > neutral.values().sum::<usize>());
    for (kind, count) in &neutral {
        let why = NEUTRAL.iter().find(|(known, _)| known == kind).map(|(_, why)| why);
        println!("neutral: {kind}, {count} times: {}", why.unwrap_or_else(|| panic!("{kind} should not be neutral")));
    }
}

/// What may change nothing, and why.
const NEUTRAL: &[(&str, &str)] = &[
    ("append a file", "what comes after the quoted value waits for the next quote"),
    ("append half an entry", "the same"),
    ("append another list", "the same"),
    ("duplicate", "the same, for the last entry"),
    ("move to the end", "the last entry is there already"),
    ("reorder", "an entry with itself"),
    ("reorder far", "an entry with itself"),
    ("swap the data", "of violations, whose data nothing vouches for"),
    ("print another bank's hash", "nothing vouches for the printed digest, and nothing reads it"),
    ("alter a byte", "of the printed digest, or of a violation's data"),
    ("relabel as a buffer", "a violation, whose data nothing vouches for"),
];

/// The list of one bank against the PCR of another.
#[test]
fn a_list_leads_to_no_other_banks_value() {
    let rules = rules().compile().unwrap();
    for original in originals() {
        let list = original.entries.concat();
        for (bank, of) in
            [(Bank::Sha384, LogHash::Sha512), (Bank::Sha512, LogHash::Sha384), (Bank::Sha256, LogHash::Sha1)]
        {
            let mut value = crate::ima_made::pcr(&list, of, false, original.entries.len());
            value.resize(bank.size(), 0);
            let mut judge = Judge::new(Some(&rules), Checkpoint::start(bank));
            assert_eq!(judge.take(&list, Some(&value)), Ok(false), "{}", original.name);
        }
    }
}
