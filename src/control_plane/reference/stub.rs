//! What systemd-stub and the Linux EFI stub measure of a unified kernel image (UKI).
//!
//! systemd-stub extends PCR 11, for each section it knows, in an order of its own: first with the
//! section's name and a NUL, then with its contents (systemd, docs/TPM2_PCR_MEASUREMENTS.md). The
//! kernel's EFI stub extends PCR 9 with the command line (UTF-16, with its NUL) and the initrd.

use super::pe::Image;
use super::unusable;
use crate::codes::Refusal;
use crate::measurements::LogHash;
use crate::measurements::userspace::{OS_SEPARATOR, PHASES};
use crate::verify::references::EventReference;

/// The sections that the stub measures, in the stub's order.
pub const SECTIONS: [&str; 13] = [
    ".linux", ".osrel", ".cmdline", ".initrd", ".ucode", ".splash", ".dtb", ".uname", ".sbat", ".pcrpkey", ".dtbauto",
    ".hwids", ".efifw",
];
/// How the stub's own version stands in `.sdmagic`.
const MAGIC: &str = "#### LoaderInfo: systemd-stub ";

/// What is known of a section's contents.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Contents {
    /// All of it.
    Bytes(Vec<u8>),
    /// Its SHA-256 only.
    Sha256([u8; 32]),
    /// That it is there.
    Unknown,
}

impl Contents {
    /// The digest in a bank, if it can be said.
    pub fn digest(&self, hash: LogHash) -> Option<Vec<u8>> {
        match self {
            Self::Bytes(bytes) => Some(hash.digest(&[bytes])),
            Self::Sha256(digest) if hash == LogHash::Sha256 => Some(digest.to_vec()),
            Self::Sha256(_) | Self::Unknown => None,
        }
    }
}

/// The version of the stub in an image, e.g. 252.
///
/// Red Hat's 252 measures what others measure since 254, and is taken for that.
///
/// # Errors
/// [`crate::codes::ADMIN_INVALID`] when the image isn't made with systemd's stub.
pub fn version(image: &Image<'_>, name: &str) -> Result<u32, Refusal> {
    let magic = image.section(".sdmagic").map(super::pe::Section::in_memory).unwrap_or_default();
    let text = String::from_utf8_lossy(&magic);
    let version = text.trim_start_matches('\0').strip_prefix(MAGIC).and_then(|rest| {
        let digits = rest.find(|character: char| !character.is_ascii_digit()).unwrap_or(rest.len());
        let number = rest.get(..digits)?.parse().ok()?;
        Some(if number == 252 && rest.contains(".el") { 254 } else { number })
    });
    version.ok_or_else(|| {
        unusable(name, "it says nothing of systemd-stub").expected("a unified kernel image made with systemd's stub")
    })
}

/// The measured sections of an image, in the stub's order.
///
/// # Errors
/// [`crate::codes::ADMIN_INVALID`] for an image with profiles, and for a stub of which it isn't known
/// what it measures.
pub fn sections<'i>(image: &'i Image<'_>, version: u32, name: &str) -> Result<Vec<(&'i str, Vec<u8>)>, Refusal> {
    if image.section(".profile").is_some() {
        return Err(unusable(name, "it has profiles: which one is started is decided at boot")
            .expected("an image without .profile; or `reference learn` from a node"));
    }
    let known = SECTIONS.iter().filter_map(|section| image.section(section)).filter(|section| section.memory > 0);
    let mut measured = Vec::new();
    for section in known {
        // .uname and .sbat joined the list after 252; .ucode and what follows are later than that.
        let later = matches!(section.name, ".uname" | ".sbat");
        if later && version == 253 {
            return Err(unusable(name, format!("systemd-stub 253 with a section {}", section.name))
                .expected("252 or older, which doesn't measure it, or 254 and newer, which does"));
        }
        if !later || version > 253 {
            measured.push((section.name, section.in_memory()));
        }
    }
    Ok(measured)
}

/// PCR 11: each section's name and contents, then the phases. A section whose contents nobody knows
/// has an empty digest: whatever it is, it isn't judged.
pub fn pcr11<'s>(sections: impl IntoIterator<Item = (&'s str, &'s Contents)>, hash: LogHash) -> Vec<EventReference> {
    let mut events = Vec::new();
    for (name, contents) in sections {
        let name_digest = hash.digest(&[name.as_bytes(), &[0]]);
        events.push(event("EV_IPL", name_digest, format!("UKI section {name}: its name")));
        let (digest, what) = match contents.digest(hash) {
            Some(digest) => (digest, format!("UKI section {name}")),
            None => (Vec::new(), format!("UKI section {name}: its contents aren't among the artefacts")),
        };
        events.push(event("EV_IPL", digest, what));
    }
    events.extend(phases(hash));
    events
}

/// The phases of PCR 11, all of them: a node may have come only part of the way.
pub fn phases(hash: LogHash) -> [EventReference; 6] {
    PHASES.map(|phase| event("systemd:phase", hash.digest(&[phase.as_bytes()]), format!("boot phase {phase}")))
}

/// PCR 9: the command line and the initrd as the kernel's EFI stub got them, in that order.
pub fn pcr9(cmdline: &str, initrd: Vec<u8>, hash: LogHash) -> Vec<EventReference> {
    let options: Vec<u8> = cmdline.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect();
    vec![
        event("EV_EVENT_TAG", hash.digest(&[&options]), "command line, as the kernel got it".to_owned()),
        event("EV_EVENT_TAG", initrd, "initrd, as the kernel got it".to_owned()),
    ]
}

/// PCR 4: the firmware starts the first boot entry, an image, and that perhaps another one.
pub fn pcr4(images: impl IntoIterator<Item = (Vec<u8>, String)>, hash: LogHash) -> Vec<EventReference> {
    let calling = hash.digest(&[b"Calling EFI Application from Boot Option"]);
    let mut events = vec![
        event("EV_EFI_ACTION", calling, "Calling EFI Application from Boot Option".to_owned()),
        event("EV_SEPARATOR", hash.digest(&[&[0; 4]]), "separator".to_owned()),
    ];
    events.extend(images.into_iter().map(|(digest, what)| event("EV_EFI_BOOT_SERVICES_APPLICATION", digest, what)));
    events
}

/// What systemd says where the initrd begins. Whether it does depends on its version, and a node
/// may have come only part of the way: so it stands last, where it may be missing.
pub fn os_separator(hash: LogHash) -> EventReference {
    event("systemd:os-separator", hash.digest(&[OS_SEPARATOR.as_bytes()]), "the initrd began".to_owned())
}

/// The command line that a stub of this version makes of `.cmdline`: since 254 it drops blanks at
/// both ends and makes one of every control character.
pub fn effective_cmdline(section: &str, version: Option<u32>) -> String {
    let section = section.split('\0').next().unwrap_or_default();
    if version.is_some_and(|version| version < 254) {
        return section.to_owned();
    }
    let plain: String = section.chars().map(|c| if c <= '\u{1F}' { ' ' } else { c }).collect();
    plain.trim_matches(' ').to_owned()
}

fn event(kind: &str, digest: Vec<u8>, what: String) -> EventReference {
    EventReference { kind: kind.to_owned(), digest, what }
}
