//! Which shipped profile fits a node. A proposal: what the node then shows is held to the profile,
//! so a wrong guess is refused by the first event that may not stand where it stands.

use std::collections::BTreeSet;

use super::Profile;
use crate::measurements::EventType;
use crate::measurements::boot::{BootEvent, BootLog};

/// What a node shows of itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct Signs<'a> {
    /// Its boot log, if it has one that can be read.
    pub boot: Option<&'a BootLog>,
    /// Whether it has systemd's log.
    pub userspace: bool,
    /// Whether it has IMA's list.
    pub ima: bool,
    /// The TPM's manufacturer, the four characters of TPM_PT_MANUFACTURER.
    pub manufacturer: Option<&'a str>,
    /// The device tree's `model`.
    pub model: Option<&'a str>,
}

/// The name of the profile and why it fits.
pub(super) fn detect(signs: &Signs<'_>) -> (Profile, Vec<String>) {
    let mut why = Vec::new();
    let mut name = match signs.boot {
        None => without_log(signs, &mut why),
        Some(log) => with_log(log, signs, &mut why),
    };
    why.push(match (signs.userspace, signs.ima) {
        (true, true) => "systemd's log and IMA's list are there".to_owned(),
        (true, false) => "systemd's log is there; IMA's list isn't, so what runs isn't measured".to_owned(),
        (false, true) => "IMA's list is there; systemd's log isn't".to_owned(),
        (false, false) => "neither systemd's log nor IMA's list is there".to_owned(),
    });
    loop {
        match Profile::shipped(name) {
            Some(profile) => return (profile, why),
            // The shipped files are parsed by a test, so the first one ends the loop.
            None => name = "vtpm-no-log",
        }
    }
}

fn without_log(signs: &Signs<'_>, why: &mut Vec<String>) -> &'static str {
    if let Some(model) = signs.model.filter(|model| model.contains("Raspberry Pi")) {
        why.push(format!("the device tree's model is `{}`, and there is no boot log", model.escape_debug()));
        return "raspberry-pi";
    }
    if signs.manufacturer == Some("IBM") {
        why.push("no boot log, and the TPM calls itself IBM: a software TPM".to_owned());
        return "swtpm-dev";
    }
    why.push("there is no boot log: PCR values stand for themselves".to_owned());
    "vtpm-no-log"
}

fn with_log(log: &BootLog, signs: &Signs<'_>, why: &mut Vec<String>) -> &'static str {
    let has =
        |pcr: u8, test: &dyn Fn(&BootEvent) -> bool| log.events.iter().any(|event| event.pcr == pcr && test(event));
    let text = |event: &BootEvent, start: &[u8]| event.kind == EventType::IPL && event.data.starts_with(start);
    let shim = has(14, &|event| text(event, b"MokList"));
    let grub = has(8, &|event| text(event, b"grub_cmd: "));
    if shim || grub {
        why.push(match (shim, grub) {
            (true, true) => "shim measured MokList into PCR 14, and GRUB its commands into PCR 8".to_owned(),
            (true, false) => "shim measured MokList into PCR 14".to_owned(),
            _ => "GRUB measured its commands into PCR 8".to_owned(),
        });
        return "uefi-shim-grub";
    }
    // UTF-16 `.linux`, as the stub names the sections it measures.
    let stub = has(11, &|event| text(event, b".\0l\0i\0n\0u\0x\0"));
    let secure_boot =
        has(7, &|event| event.kind == EventType::EFI_VARIABLE_DRIVER_CONFIG && is_secure_boot_on(&event.data));
    let ovmf = ovmf(log);
    if ovmf && !secure_boot {
        why.push("PCR 0 begins as OVMF's does, and Secure Boot is off".to_owned());
        return "qemu-ovmf";
    }
    if stub {
        why.push("systemd's EFI stub measured the sections of a unified kernel image into PCR 11".to_owned());
        return "uefi-uki";
    }
    if secure_boot {
        why.push("Secure Boot is on, and no boot loader with a profile of its own measured anything".to_owned());
        return "uefi-secureboot";
    }
    let pcrs: BTreeSet<u8> = log.events.iter().map(|event| event.pcr).collect();
    let efi = log.events.iter().any(|event| event.kind.0 & 0x8000_0000 != 0);
    if !efi || (signs.model.is_some() && pcrs.contains(&8)) {
        why.push("the log has no UEFI event, or a device tree stands beside PCR 8: U-Boot's way".to_owned());
        return "uboot-measured";
    }
    match signs.manufacturer {
        Some("AMD") => {
            why.push("a UEFI log, and AMD's firmware TPM".to_owned());
            "amd-ftpm"
        }
        Some("INTC") => {
            why.push("a UEFI log, and Intel's firmware TPM".to_owned());
            "intel-ptt"
        }
        _ => {
            why.push("a UEFI log without Secure Boot and without a boot loader that has a profile".to_owned());
            "uefi-shim-grub"
        }
    }
}

/// OVMF's CRTM version is an empty UTF-16 string, and firmware volumes follow it.
fn ovmf(log: &BootLog) -> bool {
    let mut own = log.events.iter().filter(|event| event.pcr == 0 && event.kind != EventType::NO_ACTION);
    own.next().is_some_and(|first| first.kind == EventType::S_CRTM_VERSION && first.data == [0, 0])
        && own.next().is_some_and(|second| {
            [EventType::EFI_PLATFORM_FIRMWARE_BLOB, EventType::EFI_PLATFORM_FIRMWARE_BLOB2].contains(&second.kind)
        })
}

/// UEFI_VARIABLE_DATA of the variable `SecureBoot` with the one byte 1: GUID, two lengths, the
/// name in UTF-16, the byte. Only a hint here; the appraisal reads it strictly.
fn is_secure_boot_on(data: &[u8]) -> bool {
    let name: Vec<u8> = "SecureBoot".encode_utf16().flat_map(u16::to_le_bytes).collect();
    data.get(32..).and_then(|rest| rest.strip_prefix(name.as_slice())) == Some(&[1])
}
