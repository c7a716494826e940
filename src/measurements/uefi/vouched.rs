//! How much of an event's data its digest vouches for, once the digest is replayed.
//!
//! The digests of 51 public logs were compared with their data to find these rules; a digest that
//! fits none of them is the hash of something that is not in the log.

use std::ops::Range;

use super::text::utf16;
use super::variable::VariableData;
use crate::measurements::boot::BootEvent;
use crate::measurements::{EventType, LogHash};

/// What GRUB puts before the string it measured (grub-core/kern/tpm.c).
const GRUB_PREFIXES: [&[u8]; 3] = [b"grub_cmd: ", b"kernel_cmdline: ", b"module_cmdline: "];

/// What of an event's data the digest is the hash of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Vouched {
    /// All of it.
    Whole,
    /// A part of it: these bytes. Nothing vouches for the others.
    Part {
        /// Why that part.
        rule: PartRule,
        /// Which bytes of the data.
        range: Range<usize>,
    },
    /// None of it: the data describes what was measured, or pretends to.
    No,
}

/// Who hashes a part.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PartRule {
    /// EV_EFI_VARIABLE_BOOT of most firmware: the variable's contents, not its name.
    VariableContents,
    /// EV_EFI_VARIABLE_AUTHORITY of an old shim: all but the last byte.
    AllButLastByte,
    /// EV_IPL of GRUB: the string behind `grub_cmd: ` and the like, without its NUL.
    GrubString,
    /// EV_IPL of systemd-boot and systemd-stub: UTF-16 text without its NUL.
    Utf16Text,
    /// EV_IPL of systemd-stub: a section's name; what was hashed is its ASCII with a NUL.
    SectionName,
}

impl Vouched {
    /// What the event's digest in `bank` vouches for. Nothing, where it has none there.
    pub fn of(event: &BootEvent, bank: LogHash) -> Self {
        let data = event.data.as_slice();
        let Some(digest) = event.digest(bank).filter(|_| event.extends()) else { return Self::No };
        let is_hash_of = |parts: &[&[u8]]| bank.digest(parts) == digest;
        if is_hash_of(&[data]) {
            return Self::Whole;
        }
        let part = |rule, range: Range<usize>| {
            let bytes = data.get(range.clone())?;
            is_hash_of(&[bytes]).then_some(Self::Part { rule, range })
        };
        let found = match event.kind {
            EventType::EFI_VARIABLE_BOOT | EventType::EFI_VARIABLE_BOOT2 => {
                VariableData::contents(data).and_then(|range| part(PartRule::VariableContents, range))
            }
            EventType::EFI_VARIABLE_AUTHORITY => {
                data.len().checked_sub(1).and_then(|end| part(PartRule::AllButLastByte, 0..end))
            }
            EventType::IPL => grub_string(data)
                .and_then(|range| part(PartRule::GrubString, range))
                .or_else(|| utf16_text(data).and_then(|range| part(PartRule::Utf16Text, range)))
                .or_else(|| {
                    let name = utf16(data).filter(|name| name.is_ascii())?;
                    let range = 0..data.len();
                    is_hash_of(&[name.as_bytes(), b"\0"]).then_some(Self::Part { rule: PartRule::SectionName, range })
                }),
            _ => None,
        };
        found.unwrap_or(Self::No)
    }

    /// The bytes of `data` that are vouched for.
    pub fn bytes<'a>(&self, data: &'a [u8]) -> Option<&'a [u8]> {
        match self {
            Self::Whole => Some(data),
            Self::Part { range, .. } => data.get(range.clone()),
            Self::No => None,
        }
    }
}

impl BootEvent {
    /// What of the data this bank's digest vouches for, once it is replayed.
    pub fn vouched(&self, bank: LogHash) -> Vouched {
        Vouched::of(self, bank)
    }

    /// Which separator was extended, whatever the data says; `None` if it was none.
    pub fn separator(&self, bank: LogHash) -> Option<Separator> {
        let digest = self.digest(bank)?;
        Separator::ALL.into_iter().find(|separator| bank.digest(&[separator.data()]) == digest)
    }
}

/// What a separator measures: the end of the firmware's part (PFP 1.06, 3.3.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Separator {
    /// Four bytes of zero: all went well.
    Zeros,
    /// Four bytes of 0xFF: all went well, too.
    Ones,
    /// The number 1: the firmware failed. The event's data says how, and nothing vouches for it.
    Error,
    /// `WBCL`: Windows' boot manager closes PCRs 12 to 14 so.
    Windows,
}

impl Separator {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Zeros, Self::Ones, Self::Error, Self::Windows];

    /// What is hashed.
    pub const fn data(self) -> &'static [u8] {
        match self {
            Self::Zeros => &[0; 4],
            Self::Ones => &[0xFF; 4],
            Self::Error => &[1, 0, 0, 0],
            Self::Windows => b"WBCL",
        }
    }
}

/// Where GRUB's string is: behind its prefix, without trailing NULs.
fn grub_string(data: &[u8]) -> Option<Range<usize>> {
    let start = GRUB_PREFIXES.iter().find(|prefix| data.starts_with(prefix))?.len();
    let string = data.get(start..)?;
    let length = string.iter().rposition(|byte| *byte != 0).map_or(0, |last| last.saturating_add(1));
    Some(start..start.saturating_add(length))
}

/// Where UTF-16 text is, without trailing NULs.
fn utf16_text(data: &[u8]) -> Option<Range<usize>> {
    let (units, odd) = data.as_chunks::<2>();
    if !odd.is_empty() {
        return None;
    }
    let length = units.iter().rposition(|unit| *unit != [0, 0]).map_or(0, |last| last.saturating_add(1));
    Some(0..length.saturating_mul(2))
}
