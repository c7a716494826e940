//! Against the logs of machines that booted: predictions from their artefacts, and what is learnt.

use std::path::PathBuf;
use std::process::Command;

use leasehold::codes;
use leasehold::control_plane::reference::learn::learn;
use leasehold::measurements::boot::BootLog;
use leasehold::measurements::{EventType, LogHash};
use leasehold::tpm::{Bank, PcrSelection, PcrValues};
use leasehold::verify::appraisal::{ImaLog, Logs};
use leasehold::verify::profile::Profile;
use leasehold::verify::references::{EventReference, ReferenceSet};
use leasehold::verify::runtime::{Checkpoint, Judge};

/// The folder of a machine's data, if the data is here.
pub fn folder(name: &str) -> Option<PathBuf> {
    let root = std::env::var_os("LEASEHOLD_TESTDATA")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared/testdata"), PathBuf::from);
    let folder = root.join("measured-boot").join(name);
    if !folder.is_dir() {
        eprintln!("SKIPPED: {} is not there", folder.display());
        return None;
    }
    Some(folder)
}

fn log(folder: &std::path::Path) -> BootLog {
    BootLog::parse(&std::fs::read(folder.join("binary_bios_measurements")).unwrap()).unwrap()
}

/// What the log measured into a PCR.
fn measured(log: &BootLog, pcr: u8) -> Vec<Vec<u8>> {
    let events = log.events.iter().filter(|event| event.pcr == pcr && event.extends());
    events.map(|event| event.digest(LogHash::Sha256).unwrap().to_vec()).collect()
}

/// The boot log's part of what is expected.
fn of_boot(events: &[EventReference]) -> Vec<&EventReference> {
    events.iter().filter(|event| !event.kind.starts_with("systemd:")).collect()
}

#[test]
fn digests_of_artefacts_give_the_events_that_were_logged() {
    for name in ["x86_64/uki-secureboot-3banks-rich", "x86_64/uki", "aarch64/uki-2banks-rich"] {
        let Some(folder) = folder(name) else { return };
        let directory = tempfile::tempdir().unwrap();
        let out = directory.path().join("set.toml");
        let output = Command::new(env!("CARGO_BIN_EXE_leasehold-server"))
            .args(["reference", "from-artifacts", "--name", "edge", "--profile", "uefi-uki", "--json", "--digests"])
            .arg(folder.join("artefacts.sha256"))
            .arg("--cmdline")
            .arg(folder.join("cmdline"))
            .arg("--ima-digests")
            .arg(folder.join("rootfs.sha256"))
            .arg("--out")
            .arg(&out)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let set = ReferenceSet::from_toml(&std::fs::read_to_string(&out).unwrap(), "set.toml").unwrap();
        let state = &set.states[0];
        let log = log(&folder);
        for pcr in [9, 11] {
            let (expected, found) = (of_boot(&state.events[&pcr]), measured(&log, pcr));
            assert_eq!(expected.len(), found.len(), "{name} PCR {pcr}");
            let unknown = expected.iter().filter(|event| event.digest.is_empty()).count();
            // The contents of .osrel are in no list.
            assert_eq!(unknown, usize::from(pcr == 11), "{name} PCR {pcr}");
            for (expected, found) in expected.iter().zip(&found) {
                assert!(expected.accepts(found), "{name} PCR {pcr} {}: {}", expected.what, hex::encode(found));
            }
        }
        // Only where the image was signed does Secure Boot vouch for it; PCR 4 has no events here.
        assert_eq!(state.secure_boot.is_some(), name.contains("secureboot"), "{name}");
        assert!(!state.events.contains_key(&4));
        assert!(!set.runtime.unwrap().files.is_empty());
    }
}

#[test]
fn what_is_learnt_is_what_led_to_the_quote() {
    let Some(folder) = folder("x86_64/uki-secureboot-3banks-rich") else { return };
    let (log, bytes) = (log(&folder), std::fs::read(folder.join("binary_bios_measurements")).unwrap());
    let ima = std::fs::read(folder.join("binary_runtime_measurements")).unwrap();
    let profile = Profile::shipped("uefi-uki").unwrap();
    let replayed = log.replay(LogHash::Sha256).unwrap();
    let mut whole = Judge::new(None, Checkpoint::start(Bank::Sha256));
    whole.take(&ima, None).unwrap();
    let values = |change: Option<u8>| {
        let value = |pcr: u8| {
            let mut value = if pcr == 10 { whole.at.value.clone() } else { replayed.value(pcr).unwrap().to_vec() };
            value[0] ^= u8::from(change == Some(pcr));
            (pcr, value)
        };
        PcrValues::new(PcrSelection::new(Bank::Sha256, profile.pcrs()).unwrap(), profile.pcrs().map(value).collect())
            .unwrap()
    };
    let pcrs = values(None);
    let logs = Logs { boot: Some(&bytes), userspace: None, ima: Some(ImaLog { from: None, rest: &ima }) };
    let learnt = learn(&profile, &pcrs, &logs).unwrap();
    for pcr in [0, 2, 4, 11] {
        let digests: Vec<Vec<u8>> =
            of_boot(&learnt.state.events[&pcr]).iter().map(|event| event.digest.clone()).collect();
        assert_eq!(digests, measured(&log, pcr), "PCR {pcr}");
    }
    // Nothing was measured into PCR 12, and nothing of the boot log may be.
    assert!(of_boot(&learnt.state.events[&12]).is_empty());
    // Of a node that is learnt from early: the phases that follow are expected.
    assert_eq!(learnt.state.events[&11].iter().filter(|event| event.kind == "systemd:phase").count(), 6);
    let secure_boot = learnt.state.secure_boot.as_ref().unwrap();
    assert_eq!(secure_boot.authorities.len(), 1);
    assert_eq!(secure_boot.variables.keys().collect::<Vec<_>>(), ["KEK", "PK", "db"]);
    // What ran is allowed from now on; its two violations are not.
    assert!(learnt.notes.iter().any(|note| note.starts_with("runtime: 2 violations")), "{:?}", learnt.notes);
    let rules = learnt.runtime.clone().unwrap();
    let rules = rules.compile().unwrap();
    let mut judge = Judge::new(Some(&rules), Checkpoint::start(Bank::Sha256));
    judge.take(&ima, None).unwrap();
    assert_eq!((judge.at.unlisted_count, judge.at.violations_count), (0, 2), "{:?}", judge.at.unlisted);

    // One set of it, through text and bytes.
    let set = ReferenceSet {
        name: "edge".to_owned(),
        version: 1,
        profile: profile.name.clone(),
        bank: Bank::Sha256,
        states: vec![leasehold::verify::references::BootState { name: "now".to_owned(), ..learnt.state }],
        runtime: learnt.runtime,
    };
    let set = set.checked().unwrap();
    assert_eq!(ReferenceSet::from_toml(&set.to_toml(), "set.toml").unwrap(), set);

    // A PCR that the log doesn't lead to: nothing is learnt at all.
    for pcr in [0, 4, 7, 10, 11, 12] {
        let refusal = learn(&profile, &values(Some(pcr)), &logs).unwrap_err();
        assert!(refusal.at.starts_with(&format!("PCR {pcr} ")), "{refusal}");
    }
    // Nor from a log in which an event was given another type, or that lacks its end; nor without one.
    let mut relabelled = bytes.clone();
    let separator = log.events.iter().find(|event| event.kind == EventType::SEPARATOR).unwrap();
    relabelled[separator.offset + 4] = 5;
    for (boot, code) in [
        (Some(&relabelled[..]), codes::VERIFY_EVENT_TYPE),
        (Some(&bytes[..log.events.last().unwrap().offset]), codes::VERIFY_LOG_REPLAY),
        (None, codes::VERIFY_LOG_MISSING),
    ] {
        assert_eq!(learn(&profile, &pcrs, &Logs { boot, ..logs }).unwrap_err().code, code);
    }
}

/// A profile that looks at Secure Boot alone judges no unified kernel image: its PCRs aren't put into the set.
#[test]
fn artefacts_are_predicted_only_where_the_profile_judges_them() {
    let Some(folder) = folder("x86_64/uki-secureboot-3banks-rich") else { return };
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("set.toml");
    let output = Command::new(env!("CARGO_BIN_EXE_leasehold-server"))
        .args(["reference", "from-artifacts", "--name", "edge", "--profile", "uefi-secureboot", "--trust-measured-db"])
        .arg("--digests")
        .arg(folder.join("artefacts.sha256"))
        .arg("--out")
        .arg(&out)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("PCR 11: the profile `uefi-secureboot` doesn't judge it"), "{said}");
    let set = ReferenceSet::from_toml(&std::fs::read_to_string(&out).unwrap(), "set.toml").unwrap();
    assert!(set.states[0].events.is_empty() && set.states[0].secure_boot.is_some());
}
