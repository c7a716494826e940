//! Firmware profiles: what a platform measures, where its logs are, and what it can't prove.
//!
//! The files are in `firmware-profiles/`, whose README is the schema's description.

mod detect;
mod file;
mod shipped;

pub use detect::Signs;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde::Deserialize;

use crate::codes::Refusal;
use crate::measurements::EventType;
use crate::tpm::Bank;

/// A part of the system of which a verdict speaks by itself.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layer {
    /// The platform's firmware and its settings: PCRs 0 to 3 and 6, on most.
    Firmware,
    /// What was booted: Secure Boot, boot loader, kernel, initrd, command line.
    Boot,
    /// What userspace says of itself as it comes up: phases, file systems, machine id.
    Userspace,
    /// What the kernel executed since: IMA.
    Runtime,
}

impl Layer {
    /// All, in the order they come up.
    pub const ALL: [Self; 4] = [Self::Firmware, Self::Boot, Self::Userspace, Self::Runtime];

    /// `firmware`, `boot`, `userspace` or `runtime`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Firmware => "firmware",
            Self::Boot => "boot",
            Self::Userspace => "userspace",
            Self::Runtime => "runtime",
        }
    }
}

impl std::fmt::Display for Layer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Whether a log of this platform was appraised under the profile by those who ship it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// One was.
    Proven,
    /// None was at hand: `probe` and every verdict say so.
    Unproven,
}

/// A firmware profile.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Profile {
    /// Its name: the file's, without `.toml`.
    pub name: String,
    /// Proven or not.
    pub status: Status,
    /// One sentence: what platforms it is for.
    pub summary: String,
    /// Banks that may be pinned, best first.
    pub banks: Vec<Bank>,
    /// Where the boot log is on a node; `None` if the platform has none.
    pub boot_log: Option<PathBuf>,
    /// Where the userspace log is.
    pub userspace_log: Option<PathBuf>,
    /// Where IMA's list is.
    pub ima_list: Option<PathBuf>,
    /// The rules by PCR. A PCR without one is not quoted.
    pub pcrs: BTreeMap<u8, PcrProfile>,
    /// What this platform can't prove, by layer, and why.
    pub not_proven: BTreeMap<Layer, String>,
    /// What to seal to.
    pub seal: BTreeSet<u8>,
}

/// What a profile says of one PCR.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PcrProfile {
    /// The layer it tells of.
    pub layer: Layer,
    /// What explains its value.
    pub source: Source,
    /// How its contents are judged.
    pub judged: Judged,
    /// The boot log's event types that may stand in it. Any other is refused.
    pub events: BTreeSet<EventType>,
    /// The userspace log's kinds that may stand in it.
    pub userspace: BTreeSet<String>,
    /// Event types that must be there.
    pub required: BTreeSet<EventType>,
    /// Whether exactly one valid EV_SEPARATOR must stand in it.
    pub separator: bool,
}

/// What explains a PCR's value.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// The boot log, then the userspace log.
    #[default]
    Logs,
    /// IMA's list.
    Ima,
    /// Nothing: the value stands for itself.
    Value,
}

/// How a PCR's contents are judged.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Judged {
    /// Against the reference set: its events, one by one, or its value.
    #[default]
    Reference,
    /// By the rules of Secure Boot, and against the reference set where it says more.
    SecureBoot,
    /// Only the types are judged: contents rightly vary from machine to machine or boot to boot.
    Types,
}

impl Profile {
    /// Reads a profile from TOML; `name` is the file's, without `.toml`.
    ///
    /// # Errors
    /// [`crate::codes::CONFIG_INVALID`] with file, line and the nearest known key; a mistake that is
    /// in no single key is named by its table.
    pub fn parse(name: &str, text: &str) -> Result<Self, Refusal> {
        file::parse(name, text)
    }

    /// The shipped profile of this name.
    pub fn shipped(name: &str) -> Option<Self> {
        shipped::text(name).and_then(|text| Self::parse(name, text).ok())
    }

    /// The names of the shipped profiles.
    pub fn shipped_names() -> impl Iterator<Item = &'static str> {
        shipped::FILES.iter().map(|(name, _)| *name)
    }

    /// The shipped profile that fits what a node shows, and why it does.
    pub fn detect(signs: &Signs<'_>) -> (Self, Vec<String>) {
        detect::detect(signs)
    }

    /// The PCRs a node under this profile quotes.
    pub fn pcrs(&self) -> impl Iterator<Item = u8> {
        self.pcrs.keys().copied()
    }

    /// The PCR that IMA's list explains.
    pub fn ima_pcr(&self) -> Option<u8> {
        self.pcrs.iter().find(|(_, rules)| rules.source == Source::Ima).map(|(pcr, _)| *pcr)
    }

    /// Whether any PCR is explained by the boot log.
    pub fn needs_boot_log(&self) -> bool {
        self.pcrs.values().any(PcrProfile::has_boot_events)
    }
}

impl PcrProfile {
    /// Whether events of the boot log explain it.
    pub fn has_boot_events(&self) -> bool {
        self.source == Source::Logs && !self.events.is_empty()
    }

    /// Whether the firmware always extends it: an initial value then means that nothing measured.
    pub fn always_extended(&self) -> bool {
        self.separator || !self.required.is_empty()
    }
}
