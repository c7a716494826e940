//! Every boot log of the test data under the profile that is detected for it: what is proven by
//! which, and what is refused with which reason.

use leasehold::codes::{self, Code};
use leasehold::measurements::boot::BootLog;
use leasehold::tpm::Bank;
use leasehold::verify::appraisal::{Logs, measured};
use leasehold::verify::profile::{Profile, Signs, Status};

use crate::samples::{read, replayed, testdata};

/// Name, profile, whether Secure Boot is on.
pub const GOOD: &[(&str, &str, bool)] = &[
    ("measured-boot/x86_64/uki/binary_bios_measurements", "qemu-ovmf", false),
    ("measured-boot/x86_64/uki-secureboot-3banks-rich/binary_bios_measurements", "uefi-uki", true),
    ("measured-boot/aarch64/uki-2banks-rich/binary_bios_measurements", "qemu-ovmf", false),
    ("measured-boot/aarch64/direct-debian-tpm-bypass/binary_bios_measurements", "qemu-ovmf", false),
    ("go-attestation/coreos_36_shielded_vm_no_secure_boot_eventlog", "uefi-shim-grub", false),
    ("go-attestation/ubuntu_2104_shielded_vm_no_secure_boot_eventlog", "uefi-shim-grub", false),
    ("go-attestation/crypto_agile_eventlog", "uefi-shim-grub", false),
    ("tpm2-tools/test/integration/fixtures/event-arch-linux.bin", "uefi-shim-grub", false),
    ("tpm2-tools/test/integration/fixtures/event-bootorder.bin", "uefi-shim-grub", false),
    ("tpm2-tools/test/integration/fixtures/event-gce-ubuntu-2104-log.bin", "uefi-shim-grub", false),
    ("tpm2-tools/test/integration/fixtures/event-moklisttrusted.bin", "uefi-shim-grub", true),
    ("tpm2-tools/test/integration/fixtures/event-postcode.bin", "uefi-shim-grub", true),
    ("tpm2-tools/test/integration/fixtures/event-sd-boot-fedora37.bin", "qemu-ovmf", false),
    ("tpm2-tss/test/data/fapi/eventlog/binary_measurements_pc_client.b64", "uefi-shim-grub", false),
    ("keylime/test/data/create-mb-policy/binary_bios_measurements", "uefi-shim-grub", false),
    ("keylime/test/data/create-mb-policy/binary_bios_measurements-secureboot", "uefi-shim-grub", true),
    ("keylime/test/data/mb_log.b64", "uefi-shim-grub", true),
];

/// Name, profile, code and what the refusal says of the place.
const REFUSED: &[(&str, &str, Code, &str)] = &[
    // An event type that no specification names, of the maker's own.
    (
        "rust-keylime/keylime/test-data/uefi_log.bin",
        "uefi-shim-grub",
        codes::VERIFY_EVENT_TYPE,
        "event 42, PCR 2, 0x00008401",
    ),
    ("go-attestation/option_rom_eventlog", "uefi-shim-grub", codes::VERIFY_SHA1_ONLY, "event 0"),
    ("tpm2-tools/test/integration/fixtures/event-uefi-sha1-log.bin", "uefi-shim-grub", codes::VERIFY_SHA1_ONLY, ""),
    ("tpm2-tss/test/data/fapi/eventlog/binary_measurements_nuc.b64", "uefi-shim-grub", codes::VERIFY_SHA1_ONLY, ""),
    // Fragments: PCRs that the firmware always extends are empty.
    (
        "tpm2-tools/test/integration/fixtures/event-uefivar.bin",
        "uefi-secureboot",
        codes::VERIFY_PCR_UNEXTENDED,
        "PCR 0",
    ),
    ("tpm2-tools/test/integration/fixtures/event-uefiaction.bin", "uefi-uki", codes::VERIFY_PCR_UNEXTENDED, "PCR 0"),
    ("tpm2-tools/test/integration/fixtures/event-uefiservices.bin", "uefi-uki", codes::VERIFY_PCR_UNEXTENDED, "PCR 0"),
    ("tpm2-tools/test/integration/fixtures/event.bin", "uefi-uki", codes::VERIFY_PCR_UNEXTENDED, "PCR 1"),
];

#[test]
fn every_good_log_is_proven_under_its_profile() {
    if testdata().is_none() {
        return;
    }
    let mut proven = std::collections::BTreeSet::from(["swtpm-dev".to_owned()]);
    for (name, profile, secure_boot) in GOOD {
        let bytes = read(name).unwrap();
        let log = BootLog::parse(&bytes).unwrap();
        let (detected, why) = Profile::detect(&Signs { boot: Some(&log), ..Signs::default() });
        assert_eq!(&detected.name, profile, "{name}: {why:?}");
        assert!(!why.is_empty());
        for bank in detected.banks.iter().filter(|bank| log.banks.contains(&(**bank).into())) {
            let pcrs = replayed(&log, *bank, &detected);
            let logs = Logs { boot: Some(&bytes), ..Logs::default() };
            let found = measured(&pcrs, &detected, &logs, None).unwrap_or_else(|refusal| panic!("{name}: {refusal}"));
            assert_eq!(found.secure_boot().unwrap().enabled, *secure_boot, "{name}");
            println!("{name} ({bank}): `{profile}`, {} PCRs explained", found.events().len());
        }
        proven.insert(detected.name);
    }
    // Secure Boot's own profile holds for machines whose boot loader has another one.
    for (name, _, secure_boot) in GOOD.iter().filter(|(_, _, on)| *on) {
        let bytes = read(name).unwrap();
        let profile = Profile::shipped("uefi-secureboot").unwrap();
        let pcrs = replayed(&BootLog::parse(&bytes).unwrap(), Bank::Sha256, &profile);
        let logs = Logs { boot: Some(&bytes), ..Logs::default() };
        let found = measured(&pcrs, &profile, &logs, None).unwrap_or_else(|refusal| panic!("{name}: {refusal}"));
        assert_eq!(found.secure_boot().unwrap().enabled, *secure_boot, "{name}");
        proven.insert(profile.name);
    }
    // What is shipped as proven is proven here, and nothing else is.
    for name in Profile::shipped_names() {
        let status = Profile::shipped(name).unwrap().status;
        assert_eq!(status == Status::Proven, proven.contains(name), "{name}");
    }
}

#[test]
fn every_other_log_is_refused_with_its_reason() {
    if testdata().is_none() {
        return;
    }
    for (name, profile, code, at) in REFUSED {
        let bytes = read(name).unwrap();
        let profile = Profile::shipped(profile).unwrap();
        let log = BootLog::parse(&bytes).unwrap();
        let bank = Bank::Sha256;
        let pcrs = match log.replay(bank.into()) {
            Some(_) => replayed(&log, bank, &profile),
            // Nothing can be quoted that such a log explains.
            None => replayed(&BootLog { banks: vec![bank.into()], ..BootLog::default() }, bank, &profile),
        };
        let logs = Logs { boot: Some(&bytes), ..Logs::default() };
        let refusal = measured(&pcrs, &profile, &logs, None).unwrap_err();
        assert_eq!(refusal.code, *code, "{name}: {refusal}");
        assert!(refusal.at.contains(at), "{name}: {refusal}");
        println!("{name}: {refusal}");
    }
}
