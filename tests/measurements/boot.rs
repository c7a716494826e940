//! Every boot log of the test data, by name: what it must replay to, or why it is refused.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use leasehold::codes;
use leasehold::measurements::boot::BootLog;
use leasehold::measurements::uefi::{SignatureList, VariableData, Vouched, summary};
use leasehold::measurements::{EventType, LogHash};

use crate::expected::{Pcrs, hashes_of_data, replayed, yaml};
use crate::testdata::{files, read, testdata};

const TOOLS: &str = "tpm2-tools/test/integration/fixtures/";
const TSS: &str = "tpm2-tss/test/data/fapi/eventlog/";
const KEYLIME: &str = "keylime/test/data/";

/// What must come of a log.
enum Must {
    /// Replays to the `pcrs:` of the YAML that tpm2-tools keeps of it, and to nothing else.
    Yaml(&'static str),
    /// Replays to the entry of `replayed_pcrs.json`, and to nothing else.
    Json,
    /// Replays, where it extends a PCR, to what the TPM held then; PCR 10 is IMA's.
    Tpm(&'static str),
    /// Replays to what `tpm2_eventlog` 5.4 printed when this test was written, and to nothing else.
    Eventlog(&'static str),
    /// Has a header alone.
    Empty,
    /// Is refused, and the refusal has this in it.
    Refused(&'static str),
}
use Must::{Empty, Eventlog, Json, Refused, Tpm, Yaml};

#[rustfmt::skip]
fn table() -> Vec<(String, Must)> {
    let of = |folder: &str, files: Vec<(&str, Must)>| -> Vec<(String, Must)> {
        files.into_iter().map(|(file, must)| (format!("{folder}{file}"), must)).collect()
    };
    [
        of(TOOLS, vec![
            ("event-arch-linux.bin", Yaml("event-raw/event-arch-linux.bin.yaml")),
            ("event-bootorder.bin", Yaml("event-raw/event-bootorder.bin.yaml")),
            ("event-gce-ubuntu-2104-log.bin", Yaml("event-raw/event-gce-ubuntu-2104-log.bin.yaml")),
            ("event-moklisttrusted.bin", Yaml("event-raw/event-moklisttrusted.bin.yaml")),
            ("event-postcode.bin", Yaml("event-raw/event-postcode.bin.yaml")),
            ("event-sd-boot-fedora37.bin", Yaml("event-raw/event-sd-boot-fedora37.bin.yaml")),
            ("event-uefi-sha1-log.bin", Yaml("event-raw/event-uefi-sha1-log.bin.yaml")),
            ("event-uefiaction.bin", Yaml("event-raw/event-uefiaction.bin.yaml")),
            ("event-uefiservices.bin", Yaml("event-raw/event-uefiservices.bin.yaml")),
            ("event-uefivar.bin", Yaml("event-raw/event-uefivar.bin.yaml")),
            ("event.bin", Yaml("event.bin.yaml")),
            ("specid-vendordata.bin", Yaml("specid-vendordata.bin.yaml")),
        ]),
        of(TSS, vec![
            ("binary_measurements_nuc.b64", Json),
            ("binary_measurements_pc_client.b64", Eventlog(include_str!("eventlog/binary_measurements_pc_client.yaml"))),
            ("event-uefiaction.b64", Json),
            ("event-uefiservices.b64", Json),
            ("event-uefivar.b64", Json),
            ("event.b64", Json),
            ("specid-vendordata.b64", Empty),
        ]),
        of("go-attestation/", vec![
            ("coreos_36_shielded_vm_no_secure_boot_eventlog", Json),
            ("crypto_agile_eventlog", Json),
            ("option_rom_eventlog", Json),
            ("ubuntu_2104_shielded_vm_no_secure_boot_eventlog", Json),
        ]),
        of(KEYLIME, vec![
            ("create-mb-policy/binary_bios_measurements", Json),
            ("create-mb-policy/binary_bios_measurements-secureboot", Json),
            ("create-mb-policy/binary_bios_measurements-bogus", Refused("boot log, event 0, byte 0: PCR 1969712994")),
            ("create-mb-policy/binary_bios_measurements-empty", Refused("boot log, event 0, byte 0: an empty file")),
            ("mb_log.b64", Eventlog(include_str!("eventlog/mb_log.yaml"))),
        ]),
        of("rust-keylime/keylime/test-data/", vec![("uefi_log.bin", Json)]),
        of("measured-boot/", vec![
            ("x86_64/uki/binary_bios_measurements", Tpm("x86_64/uki/pcrs.yaml")),
            ("x86_64/uki-secureboot-3banks-rich/binary_bios_measurements", Tpm("x86_64/uki-secureboot-3banks-rich/pcrs.yaml")),
            ("aarch64/uki-2banks-rich/binary_bios_measurements", Tpm("aarch64/uki-2banks-rich/pcrs.yaml")),
            ("aarch64/direct-debian-tpm-bypass/binary_bios_measurements", Tpm("aarch64/direct-debian-tpm-bypass/pcrs.yaml")),
        ]),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// The files that must be readable.
pub fn good_logs() -> Vec<String> {
    table().into_iter().filter(|(_, must)| !matches!(must, Refused(_))).map(|(file, _)| file).collect()
}

#[test]
fn every_boot_log_of_the_test_data_replays_or_is_refused_with_a_reason() {
    let Some(root) = testdata() else { return };
    for (file, must) in table() {
        eprintln!("{file}");
        let bytes = read(&root, &file);
        let log = BootLog::parse(&bytes);
        let text = |path: String| std::fs::read_to_string(root.join(path)).unwrap();
        match must {
            Yaml(path) => assert_eq!(values(&log.unwrap()), without_empty(yaml(&text(format!("{TOOLS}{path}"))))),
            Json => assert_eq!(values(&log.unwrap()), without_empty(replayed(&root, &file))),
            Tpm(path) => held(&log.unwrap(), &yaml(&text(format!("measured-boot/{path}")))),
            Eventlog(expected) => assert_eq!(values(&log.unwrap()), yaml(expected)),
            Empty => assert_eq!((values(log.as_ref().unwrap()), log.unwrap().events.len()), (Pcrs::new(), 1)),
            Refused(reason) => {
                let refusal = log.unwrap_err();
                assert_eq!(refusal.code, codes::MEASUREMENTS_BOOT_LOG);
                assert!(refusal.to_string().contains(reason), "{refusal}");
            }
        }
    }
}

/// A log that is added to the test data must be added to the table.
#[test]
fn the_table_names_every_boot_log() {
    let Some(root) = testdata() else { return };
    let named: BTreeSet<String> = table().into_iter().map(|(file, _)| file).collect();
    let present: BTreeSet<String> = files(&root).into_iter().filter(|file| may_be_boot_log(file)).collect();
    assert_eq!(present, named);
}

/// Everything but what is known to be something else: IMA lists (`ima.rs` names those),
/// certificates, keys, quotes, texts.
fn may_be_boot_log(file: &str) -> bool {
    let name = Path::new(file).file_name().unwrap().to_str().unwrap();
    let extension = name.rsplit_once('.').map(|(_, extension)| extension);
    let other = matches!(
        extension,
        Some("pem" | "der" | "yaml" | "json" | "md" | "txt" | "sha256" | "warn" | "sig" | "msg" | "pub" | "name")
    );
    let facts =
        ["LICENSE", "SOURCE_COMMIT", "cmdline", "uname", "secureboot", "verdict", "quote.pcrs", "ak.tpm2b_public"];
    let ima = name.starts_with("sml-ima") || name.ends_with("_runtime_measurements");
    !other && !facts.contains(&name) && !ima && !file.starts_with("tpm-ca-certificates/")
}

/// What the log leads to, in every bank of it that has an extended PCR.
fn values(log: &BootLog) -> Pcrs {
    let of = |bank: LogHash| {
        let pcrs = log.replay(bank).unwrap();
        (bank.to_string(), pcrs.extended().map(|(pcr, value)| (pcr, hex::encode(value))).collect())
    };
    without_empty(log.banks.iter().copied().map(of).collect())
}

fn without_empty(mut pcrs: Pcrs) -> Pcrs {
    pcrs.retain(|_, pcrs| !pcrs.is_empty());
    pcrs
}

/// The TPM held what the log leads to. A PCR that userspace extended later would differ; in these
/// folders only IMA did, and no boot log extends its PCR.
fn held(log: &BootLog, tpm: &Pcrs) {
    let found = values(log);
    let mut compared = 0;
    for (bank, pcrs) in &found {
        for (pcr, value) in pcrs {
            assert_ne!(*pcr, 10);
            assert_eq!(Some(value), tpm[bank].get(pcr), "{bank}:{pcr}");
            compared += 1;
        }
    }
    assert!(compared >= 8, "{found:?}");
}

/// An independent count, by type: how many digests are the hash of their event's data, how many aren't.
#[test]
fn what_is_vouched_for_whole_agrees_with_another_count() {
    let Some(root) = testdata() else { return };
    let mut logs = 0;
    for (file, _) in table().into_iter().filter(|(_, must)| matches!(must, Json | Yaml(_))) {
        let Some(expected) = hashes_of_data(&root, &file) else { continue };
        let log = BootLog::parse(&read(&root, &file)).unwrap();
        let mut found = BTreeMap::<u32, (u64, u64)>::new();
        for event in &log.events {
            for (bank, _) in &event.digests {
                let (yes, no) = found.entry(event.kind.0).or_default();
                match event.vouched(*bank) {
                    Vouched::Whole => *yes += 1,
                    _ => *no += 1,
                }
            }
        }
        assert_eq!(found, expected, "{file}");
        logs += 1;
    }
    assert!(logs >= 20, "{logs}");
}

/// Everything GRUB says it measured as a string is that string; every summary is a printable line.
#[test]
fn strings_of_boot_loaders_are_vouched_for_and_summaries_are_lines() {
    let Some(root) = testdata() else { return };
    let mut parts = BTreeMap::<String, usize>::new();
    for (file, must) in table() {
        let Ok(log) = BootLog::parse(&read(&root, &file)) else { continue };
        for event in &log.events {
            let line = summary(event);
            assert!(!line.is_empty() && line.chars().count() <= 200, "{file} {}: {line}", event.number);
            assert!(line.chars().all(|c| !c.is_control()), "{file} {}: {line}", event.number);
            for bank in log.banks.iter().filter(|_| !matches!(must, Refused(_))) {
                let vouched = event.vouched(*bank);
                let grub = [&b"grub_cmd: "[..], b"kernel_cmdline: "].iter().any(|start| event.data.starts_with(start));
                assert!(!grub || matches!(vouched, Vouched::Part { .. }), "{file} {}: {line}", event.number);
                if let Vouched::Part { rule, .. } = vouched {
                    *parts.entry(format!("{rule:?}")).or_default() += 1;
                }
            }
        }
    }
    println!("{parts:?}");
    let rules = ["AllButLastByte", "GrubString", "SectionName", "VariableContents"];
    assert_eq!(parts.keys().collect::<Vec<_>>(), rules);
}

/// Secure Boot's variables in real logs keep to the strict reading of signature lists.
#[test]
fn signature_databases_of_real_logs_are_read() {
    let Some(root) = testdata() else { return };
    let mut read_ones = BTreeMap::<String, usize>::new();
    for file in good_logs() {
        let log = BootLog::parse(&read(&root, &file)).unwrap();
        for event in log.events.iter().filter(|event| event.kind == EventType::EFI_VARIABLE_DRIVER_CONFIG) {
            let variable = VariableData::parse(&event.data).unwrap_or_else(|| panic!("{file} {}", event.number));
            if ["PK", "KEK", "db", "dbx"].contains(&variable.name.as_str()) {
                let lists = SignatureList::parse_all(variable.data);
                let lists = lists.unwrap_or_else(|| panic!("{file} {}: {}", event.number, variable.name));
                *read_ones.entry(variable.name).or_default() +=
                    lists.iter().map(|list| list.signatures.len()).sum::<usize>();
            }
        }
    }
    println!("{read_ones:?}");
    assert!(read_ones.len() == 4 && read_ones.values().all(|entries| *entries >= 10), "{read_ones:?}");
}
