//! A planned update and the machine it is for: before, after, and with an image nobody planned.

use leasehold::clock::WallTime;
use leasehold::control_plane::reference::artifacts::{self, Inputs};
use leasehold::control_plane::reference::update::{Transition, plan};
use leasehold::measurements::boot::{BootEvent, BootLog};
use leasehold::measurements::{EventType, LogHash};
use leasehold::tpm::{Bank, PcrSelection, PcrValues};
use leasehold::verify::appraisal::{Appraisal, LayerStanding, Logs, measured};
use leasehold::verify::profile::{Layer, Profile};
use leasehold::verify::references::{BootState, ReferenceSet};

use crate::image::{kernel, uki};
use crate::measured::folder;

const NOW: WallTime = WallTime(1_800_000_000);
const UNTIL: WallTime = WallTime(1_800_086_400);

fn inputs(release: &str) -> Inputs {
    let bytes = uki("252.39-1", &kernel(release.as_bytes()), "quiet", format!("initrd of {release}").as_bytes());
    Inputs {
        uki: Some((format!("{release}.efi"), bytes)),
        trust_measured_db: true,
        secure_boot: true,
        ..Inputs::default()
    }
}

/// The log of a real machine, had it started this image: what it measured of its own is replaced.
fn booted(original: &[u8], release: &str) -> Vec<u8> {
    let log = BootLog::parse(original).unwrap();
    let state = |bank: Bank| artifacts::predict(&inputs(release), bank).unwrap().state;
    let (sha256, sha384) = (state(Bank::Sha256), state(Bank::Sha384));
    let of_image = |event: &BootEvent| {
        matches!(
            (event.pcr, event.kind),
            (4, EventType::EFI_BOOT_SERVICES_APPLICATION) | (9, EventType::EVENT_TAG) | (11, EventType::IPL)
        )
    };
    let header = 32 + u32::from_le_bytes(original[28..32].try_into().unwrap()) as usize;
    let mut bytes = original[..header].to_vec();
    let mut place = std::collections::BTreeMap::<u8, usize>::new();
    for event in log.events.iter().skip(1) {
        let mut digests = event.digests.clone();
        if of_image(event) {
            let at = place.entry(event.pcr).or_default();
            let kind = event.kind.to_string();
            let digest = |state: &BootState| {
                state.events[&event.pcr].iter().filter(|event| event.kind == kind).nth(*at).unwrap().digest.clone()
            };
            for (hash, value) in &mut digests {
                match hash {
                    LogHash::Sha256 => *value = digest(&sha256),
                    LogHash::Sha384 => *value = digest(&sha384),
                    _ => {}
                }
            }
            *at += 1;
        }
        bytes.extend([u32::from(event.pcr), event.kind.0, digests.len() as u32].map(u32::to_le_bytes).concat());
        for (hash, value) in &digests {
            bytes.extend(hash.algorithm().to_le_bytes());
            bytes.extend(value);
        }
        bytes.extend((event.data.len() as u32).to_le_bytes());
        bytes.extend(&event.data);
    }
    bytes
}

fn appraised(log: &[u8], set: &ReferenceSet, now: WallTime) -> Appraisal {
    let profile = Profile::shipped("uefi-uki").unwrap();
    let pcrs: Vec<u8> = profile.pcrs().collect();
    let replayed = BootLog::parse(log).unwrap().replay(LogHash::Sha256).unwrap();
    let values = pcrs.iter().map(|pcr| (*pcr, replayed.value(*pcr).unwrap().to_vec())).collect();
    let values = PcrValues::new(PcrSelection::new(Bank::Sha256, pcrs).unwrap(), values).unwrap();
    let logs = Logs { boot: Some(log), ..Logs::default() };
    measured(&values, &profile, &logs, Some(set)).unwrap().appraise(&profile, Some(set), now)
}

#[test]
fn a_node_reboots_into_what_was_planned_without_an_operator() {
    let Some(folder) = folder("x86_64/uki-secureboot-3banks-rich") else { return };
    let original = std::fs::read(folder.join("binary_bios_measurements")).unwrap();
    let [old, new, third] = ["56", "57", "58"].map(|release| booted(&original, release));
    let before = artifacts::set(&inputs("56"), "edge", "uefi-uki", Bank::Sha256, "56").unwrap().0;
    let boot = |appraisal: &Appraisal| appraisal.layer(Layer::Boot).unwrap().clone();

    let present = appraised(&old, &before, NOW);
    assert_eq!(boot(&present).standing, LayerStanding::Affirmed, "{:#?}", present.findings);
    assert_eq!(boot(&appraised(&new, &before, NOW)).standing, LayerStanding::Contraindicated);

    let transition = Transition { name: "57", until: UNTIL, now: NOW };
    let planned = plan(&before, &inputs("57"), &transition).unwrap().set;
    for (log, state) in [(&old, "56"), (&new, "57")] {
        let appraisal = appraised(log, &planned, NOW);
        assert_eq!(boot(&appraisal).standing, LayerStanding::Affirmed, "{:#?}", appraisal.findings);
        assert_eq!(appraisal.state.as_deref(), Some(state));
    }
    // A third image: the event that differs is named, with what would have been accepted.
    let stranger = appraised(&third, &planned, NOW);
    assert_eq!(boot(&stranger).standing, LayerStanding::Contraindicated);
    let finding = stranger.contraindication().unwrap();
    assert_eq!(finding.refusal.code, leasehold::codes::VERIFY_EVENT_UNEXPECTED);
    assert!(finding.refusal.at.contains("PCR 4"), "{}", finding.refusal);
    // When the old state has ended, only the new one is accepted.
    let late = WallTime(UNTIL.0 + 1);
    assert_eq!(boot(&appraised(&old, &planned, late)).standing, LayerStanding::Contraindicated);
    assert_eq!(boot(&appraised(&new, &planned, late)).standing, LayerStanding::Affirmed);
}
