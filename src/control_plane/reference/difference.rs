//! What differs between two sets, or two states, event by event, in words.

use std::collections::{BTreeMap, BTreeSet};

use crate::verify::references::{BootState, EventReference, ReferenceSet, SecureBootReference};
use crate::verify::runtime::{Exclusion, Mode, RuntimeRules};

/// How many digits of a digest are shown: enough to find it, few enough to read.
const SHOWN: usize = 16;
/// How many changed files are named one by one.
const FILES_SHOWN: usize = 100;

/// What is otherwise in `after` than in `before`. Nothing: they accept the same.
pub fn sets(before: &ReferenceSet, after: &ReferenceSet) -> Vec<String> {
    let mut lines = Vec::new();
    changed(&mut lines, "name", &before.name, &after.name);
    changed(&mut lines, "profile", &before.profile, &after.profile);
    changed(&mut lines, "bank", before.bank, after.bank);
    let by_name = |set: &ReferenceSet| -> BTreeMap<String, BootState> {
        set.states.iter().map(|state| (state.name.clone(), state.clone())).collect()
    };
    let (old, new) = (by_name(before), by_name(after));
    for name in old.keys().filter(|name| !new.contains_key(*name)) {
        lines.push(format!("state `{name}`: no longer accepted"));
    }
    for (name, state) in &new {
        match old.get(name) {
            None => lines.push(format!("state `{name}`: accepted from now on{}", until(state))),
            Some(before) => {
                let prefix = format!("state `{name}`: ");
                lines.extend(states(before, state).into_iter().map(|line| prefix.clone() + &line));
                if before.until != state.until {
                    let end = state.until.map_or("without end".to_owned(), |until| format!("until {until}"));
                    lines.push(format!("{prefix}accepted {end}"));
                }
            }
        }
    }
    let none = RuntimeRules::default();
    let rules = |set: &ReferenceSet| set.runtime.is_some();
    if rules(before) != rules(after) {
        lines.push(format!("runtime: rules {}", if rules(after) { "added" } else { "taken away" }));
    }
    runtime(&mut lines, before.runtime.as_ref().unwrap_or(&none), after.runtime.as_ref().unwrap_or(&none));
    lines
}

/// What is otherwise in the state `after` than in `before`.
pub fn states(before: &BootState, after: &BootState) -> Vec<String> {
    let mut lines = Vec::new();
    let pcrs: BTreeSet<u8> = before.events.keys().chain(after.events.keys()).copied().collect();
    for pcr in pcrs {
        match (before.events.get(&pcr), after.events.get(&pcr)) {
            (Some(before), Some(after)) => events(&mut lines, pcr, before, after),
            (None, Some(after)) => {
                lines.push(format!("PCR {pcr}: {} events, which weren't judged before", after.len()))
            }
            _ => lines.push(format!("PCR {pcr}: its events are no longer judged")),
        }
    }
    let pcrs: BTreeSet<u8> = before.values.keys().chain(after.values.keys()).copied().collect();
    for pcr in pcrs {
        let (old, new) = (before.values.get(&pcr), after.values.get(&pcr));
        let text = |value: Option<&Vec<u8>>| value.map_or("any".to_owned(), |value| short(value));
        if old != new {
            lines.push(format!("PCR {pcr}: {} → {}", text(old), text(new)));
        }
    }
    secure_boot(&mut lines, before.secure_boot.as_ref(), after.secure_boot.as_ref());
    lines
}

/// Two lists of events side by side. What has the same words is the same thing, though its digest
/// may have changed; the longest run of such things is kept in place.
fn events(lines: &mut Vec<String>, pcr: u8, before: &[EventReference], after: &[EventReference]) {
    let same = |a: &EventReference, b: &EventReference| a.kind == b.kind && (a.what == b.what || a.digest == b.digest);
    let mut rest = after;
    for event in before {
        match rest.iter().position(|other| same(event, other)) {
            // The lists are short, and in the stub's or firmware's order: the next that fits is it.
            Some(at) => {
                let (added, from) = rest.split_at(at);
                lines.extend(added.iter().map(|event| format!("PCR {pcr} event {}: new", named(event))));
                if let Some((found, left)) = from.split_first() {
                    if found.digest != event.digest {
                        let (old, new) = (short(&event.digest), short(&found.digest));
                        lines.push(format!("PCR {pcr} event `{}`: {old} → {new}", found.what));
                    }
                    rest = left;
                }
            }
            None => match rest.split_first() {
                // Another image in the place of one: the kinds agree, the words don't.
                Some((found, left)) if found.kind == event.kind && !before.iter().any(|event| same(event, found)) => {
                    lines.push(format!("PCR {pcr} event {} → {}", named(event), named(found)));
                    rest = left;
                }
                _ => lines.push(format!("PCR {pcr} event {}: gone", named(event))),
            },
        }
    }
    lines.extend(rest.iter().map(|event| format!("PCR {pcr} event {}: new", named(event))));
}

fn secure_boot(lines: &mut Vec<String>, before: Option<&SecureBootReference>, after: Option<&SecureBootReference>) {
    match (before, after) {
        (Some(_), None) => lines.push("Secure Boot: no longer judged".to_owned()),
        (None, Some(_)) => lines.push("Secure Boot: must be on from now on".to_owned()),
        (Some(before), Some(after)) => {
            let list = |list: &[Vec<u8>]| -> BTreeSet<Vec<u8>> { list.iter().cloned().collect() };
            let show = |digest: &Vec<u8>| short(digest);
            sets_of(lines, "Secure Boot: authority", &list(&before.authorities), &list(&after.authorities), show);
            // No list is no condition: that one is gone would read as if less were accepted.
            if after.authorities.is_empty() && !before.authorities.is_empty() {
                lines.push(
                    "Secure Boot: every authority that the measured db allows is accepted from now on".to_owned(),
                );
            }
            let names: BTreeSet<&String> = before.variables.keys().chain(after.variables.keys()).collect();
            for name in names {
                let of = |reference: &SecureBootReference| {
                    list(reference.variables.get(name).map(Vec::as_slice).unwrap_or_default())
                };
                sets_of(lines, &format!("Secure Boot: {name}"), &of(before), &of(after), show);
                if !after.variables.contains_key(name) {
                    lines.push(format!("Secure Boot: {name} may be anything from now on"));
                }
            }
        }
        (None, None) => {}
    }
}

fn runtime(lines: &mut Vec<String>, before: &RuntimeRules, after: &RuntimeRules) {
    let mode = |rules: &RuntimeRules| if rules.mode == Mode::Warn { "warn" } else { "enforce" };
    changed(lines, "runtime: mode", mode(before), mode(after));
    for (what, old, new) in [("file", &before.files, &after.files), ("buffer", &before.buffers, &after.buffers)] {
        let paths: BTreeSet<&String> =
            old.keys().chain(new.keys()).filter(|path| old.get(*path) != new.get(*path)).collect();
        for path in paths.iter().take(FILES_SHOWN) {
            let how = match (old.get(*path), new.get(*path)) {
                (None, _) => "new",
                (_, None) => "gone",
                _ => "other digests",
            };
            lines.push(format!("runtime: {what} {path}: {how}"));
        }
        if let Some(more) = paths.len().checked_sub(FILES_SHOWN).filter(|more| *more > 0) {
            lines.push(format!("runtime: and {more} {what}s more"));
        }
    }
    let digests = |rules: &RuntimeRules| -> BTreeSet<(String, Vec<u8>)> {
        let each = rules.digests.iter().flat_map(|(alg, list)| list.iter().map(move |d| (alg.clone(), d.0.clone())));
        each.collect()
    };
    let show = |(algorithm, digest): &(String, Vec<u8>)| format!("{algorithm}:{}", short(digest));
    sets_of(lines, "runtime: digest", &digests(before), &digests(after), show);
    let signers = |rules: &RuntimeRules| -> BTreeSet<Vec<u8>> {
        rules.signers.iter().map(|der| crate::measurements::LogHash::Sha256.digest(&[der])).collect()
    };
    let show = |digest: &Vec<u8>| short(digest);
    sets_of(lines, "runtime: signer (SHA-256 of the certificate)", &signers(before), &signers(after), show);
    let argued = |list: &[Exclusion]| -> BTreeSet<String> {
        list.iter().map(|exclusion| format!("{} ({})", exclusion.path, exclusion.reason)).collect()
    };
    sets_of(lines, "runtime: exclusion", &argued(&before.exclusions), &argued(&after.exclusions), String::clone);
    sets_of(lines, "runtime: waiver", &argued(&before.waivers), &argued(&after.waivers), String::clone);
}

/// What is in one of two lists only: compared whole, shown short.
fn sets_of<T: Ord>(
    lines: &mut Vec<String>,
    what: &str,
    before: &BTreeSet<T>,
    after: &BTreeSet<T>,
    show: impl Fn(&T) -> String,
) {
    for (list, other, how) in [(before, after, "gone"), (after, before, "new")] {
        lines.extend(list.difference(other).take(FILES_SHOWN).map(|one| format!("{what} {}: {how}", show(one))));
        if let Some(more) = list.difference(other).count().checked_sub(FILES_SHOWN).filter(|more| *more > 0) {
            lines.push(format!("{what}: and {more} more {how}"));
        }
    }
}

fn changed<T: std::fmt::Display + PartialEq>(lines: &mut Vec<String>, what: &str, before: T, after: T) {
    if before != after {
        lines.push(format!("{what}: {before} → {after}"));
    }
}

fn named(event: &EventReference) -> String {
    format!("`{}` ({})", event.what, short(&event.digest))
}

fn short(digest: &[u8]) -> String {
    if digest.is_empty() {
        return "not judged".to_owned();
    }
    let text = hex::encode(digest);
    format!("{}…", text.get(..SHOWN).unwrap_or(&text))
}

fn until(state: &BootState) -> String {
    state.until.map_or(String::new(), |until| format!(", until {until}"))
}
