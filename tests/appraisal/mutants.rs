//! Every good log, tampered with in every way: each mutant is refused with a reason, or what policy
//! reads of it is what it reads of the original.

use std::collections::BTreeMap;

use leasehold::clock::WallTime;
use leasehold::measurements::boot::BootLog;
use leasehold::measurements::{EventType, LogHash};
use leasehold::tpm::Bank;
use leasehold::verify::appraisal::{LayerStanding, Logs, Measured, measured};
use leasehold::verify::profile::Profile;
use leasehold::verify::references::ReferenceSet;

use crate::corpus::GOOD;
use crate::samples::{read, replayed, testdata};

const NOW: WallTime = WallTime(1_770_000_000);

/// An event as it stands in the log.
#[derive(Clone)]
struct Raw {
    pcr: u32,
    kind: u32,
    digests: Vec<(u16, Vec<u8>)>,
    data: Vec<u8>,
}

impl Raw {
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = [self.pcr.to_le_bytes(), self.kind.to_le_bytes()].concat();
        bytes.extend((self.digests.len() as u32).to_le_bytes());
        for (algorithm, digest) in &self.digests {
            bytes.extend(algorithm.to_le_bytes());
            bytes.extend(digest);
        }
        bytes.extend((self.data.len() as u32).to_le_bytes());
        bytes.extend(&self.data);
        bytes
    }

    fn extended(pcr: u32, kind: EventType, data: &[u8], like: &Self) -> Self {
        let digests = like
            .digests
            .iter()
            .map(|(algorithm, _)| (*algorithm, LogHash::from_algorithm(*algorithm).unwrap().digest(&[data])));
        Self { pcr, kind: kind.0, digests: digests.collect(), data: data.to_vec() }
    }
}

/// The header's bytes, and the events.
fn split(bytes: &[u8]) -> (Vec<u8>, Vec<Raw>) {
    let log = BootLog::parse(bytes).unwrap();
    let header = 32 + u32::from_le_bytes(bytes[28..32].try_into().unwrap()) as usize;
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    let raw = |event: &leasehold::measurements::boot::BootEvent| {
        let (mut at, mut digests) = (event.offset + 12, Vec::new());
        for _ in 0..word(event.offset + 8) {
            let algorithm = u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap());
            let size = LogHash::from_algorithm(algorithm).unwrap().size();
            digests.push((algorithm, bytes[at + 2..at + 2 + size].to_vec()));
            at += 2 + size;
        }
        Raw { pcr: event.pcr.into(), kind: event.kind.0, digests, data: event.data.clone() }
    };
    (bytes[..header].to_vec(), log.events.iter().skip(1).map(raw).collect())
}

fn joined(header: &[u8], events: &[Raw]) -> Vec<u8> {
    let mut bytes = header.to_vec();
    events.iter().for_each(|event| bytes.extend(event.bytes()));
    bytes
}

/// All mutants of a log, each with its kind.
fn mutants(header: &[u8], events: &[Raw]) -> Vec<(&'static str, Vec<u8>)> {
    let mut found = Vec::new();
    let mut put = |kind, events: Vec<Raw>| found.push((kind, joined(header, &events)));
    let changed = |n: usize, change: &dyn Fn(&mut Raw)| {
        let mut events = events.to_vec();
        change(&mut events[n]);
        events
    };
    let with = |n: usize, event: Raw| {
        let mut events = events.to_vec();
        events.insert(n, event);
        events
    };
    let kinds = [
        EventType::NO_ACTION,
        EventType::SEPARATOR,
        EventType::EFI_ACTION,
        EventType::EFI_BOOT_SERVICES_APPLICATION,
        EventType::EFI_VARIABLE_DRIVER_CONFIG,
        EventType::EFI_VARIABLE_AUTHORITY,
        EventType::IPL,
        EventType::EVENT_TAG,
        EventType(0x8000_BEEF),
    ];
    for n in 0..events.len() {
        let event = &events[n];
        for kind in kinds.iter().filter(|kind| kind.0 != event.kind) {
            put("relabel", changed(n, &|event| event.kind = kind.0));
        }
        let mut dropped = events.to_vec();
        dropped.remove(n);
        put("drop", dropped);
        put("duplicate", with(n, event.clone()));
        put("truncate", events[..n].to_vec());
        put("append", with(events.len(), event.clone()));
        put("second separator", with(n, Raw::extended(event.pcr, EventType::SEPARATOR, &[0; 4], event)));
        put(
            "insert",
            with(n, Raw::extended(event.pcr, EventType::EFI_ACTION, b"Exit Boot Services Invocation", event)),
        );
        put("other PCR", changed(n, &|event| event.pcr = (event.pcr + 1) % 16));
        put("data appended", changed(n, &|event| event.data.push(0)));
        if !event.data.is_empty() {
            put("data flipped", changed(n, &|event| *event.data.last_mut().unwrap() ^= 1));
            put("data cut", changed(n, &|event| assert!(event.data.pop().is_some())));
        }
        put("digest flipped", changed(n, &|event| event.digests.iter_mut().for_each(|(_, digest)| digest[0] ^= 1)));
        put(
            "hash of another bank",
            changed(n, &|event| {
                let first = event.digests[0].clone();
                for (algorithm, digest) in &mut event.digests {
                    let other =
                        if *algorithm == first.0 { LogHash::Sha512.digest(&[&event.data]) } else { first.1.clone() };
                    digest.iter_mut().zip(other.iter().chain([&0; 64])).for_each(|(to, from)| *to = *from);
                }
            }),
        );
        if event.digests.len() > 1 {
            put("bank dropped", changed(n, &|event| assert!(event.digests.pop().is_some())));
            put(
                "bank swap",
                changed(n, &|event| {
                    let names: Vec<u16> = event.digests.iter().map(|(algorithm, _)| *algorithm).collect();
                    event.digests.iter_mut().zip(names.iter().rev()).for_each(|((to, _), from)| *to = *from);
                }),
            );
        }
        if n + 1 < events.len() {
            let mut swapped = events.to_vec();
            swapped.swap(n, n + 1);
            put("reorder", swapped);
            let mut exchanged = events.to_vec();
            (exchanged[n].data, exchanged[n + 1].data) = (events[n + 1].data.clone(), event.data.clone());
            put("data swapped", exchanged);
        }
    }
    found
}

/// What a node with this log is: every claim, and what is said of each layer by what was learnt.
fn standings(found: &Measured, profile: &Profile, set: &ReferenceSet) -> Vec<(String, LayerStanding)> {
    let appraisal = found.appraise(profile, Some(set), NOW);
    appraisal.layers.into_iter().map(|layer| (layer.layer, layer.standing)).collect()
}

/// How many mutants there were, and what became of them.
#[derive(Default)]
struct Tally {
    total: u32,
    refused: BTreeMap<(&'static str, &'static str), u32>,
    neutral: BTreeMap<&'static str, u32>,
}

/// All mutants of one log.
fn tally(name: &str, profile: &str) -> Tally {
    let mut tally = Tally::default();
    let bytes = read(name).unwrap();
    let profile = Profile::shipped(profile).unwrap();
    let log = BootLog::parse(&bytes).unwrap();
    let pcrs = replayed(&log, Bank::Sha256, &profile);
    let logs = Logs { boot: Some(&bytes), ..Logs::default() };
    let original = measured(&pcrs, &profile, &logs, None).unwrap();
    let set = crate::machines::set(&profile.name, crate::machines::learnt(&profile, &pcrs, &logs), None);
    let expected = standings(&original, &profile, &set);
    assert!(expected.iter().all(|(_, standing)| *standing != LayerStanding::Contraindicated), "{name}");
    let (header, events) = split(&bytes);
    let unchanged = joined(&header, &events);
    assert!(bytes.starts_with(&unchanged), "{name}: the log is put together as it was");
    for (kind, mutant) in mutants(&header, &events).into_iter().filter(|(_, mutant)| *mutant != unchanged) {
        tally.total += 1;
        let logs = Logs { boot: Some(&mutant), ..Logs::default() };
        match measured(&pcrs, &profile, &logs, None) {
            Err(refusal) => {
                assert!(!refusal.at.is_empty(), "{name}, {kind}: {refusal}");
                *tally.refused.entry((kind, refusal.code.as_str())).or_default() += 1;
            }
            Ok(found) => {
                assert_eq!(found.facts(), original.facts(), "{name}: {kind} changes what policy reads");
                assert_eq!(standings(&found, &profile, &set), expected, "{name}: {kind}");
                *tally.neutral.entry(kind).or_default() += 1;
            }
        }
    }
    tally
}

#[test]
fn no_mutant_of_a_good_log_says_anything_else() {
    if testdata().is_none() {
        return;
    }
    let mut all = Tally::default();
    std::thread::scope(|scope| {
        let each: Vec<_> = GOOD.iter().map(|(name, profile, _)| scope.spawn(move || tally(name, profile))).collect();
        for one in each.into_iter().map(|one| one.join().unwrap()) {
            all.total += one.total;
            one.refused.into_iter().for_each(|(kind, count)| *all.refused.entry(kind).or_default() += count);
            one.neutral.into_iter().for_each(|(kind, count)| *all.neutral.entry(kind).or_default() += count);
        }
    });
    for ((kind, code), count) in &all.refused {
        println!("{count:6} refused  {kind}: {code}");
    }
    for (kind, count) in &all.neutral {
        println!("{count:6} neutral  {kind}");
    }
    println!("{} mutants, {} neutral, 0 with other claims", all.total, all.neutral.values().sum::<u32>());
    assert!(all.total >= 5_000, "{}", all.total);
    // What breaks a chain is neutral only in a PCR that the profile doesn't look at.
    for kind in ["truncate", "digest flipped", "drop", "append"] {
        assert!(all.neutral.get(kind).copied().unwrap_or(0) < 3, "{kind}");
    }
}
