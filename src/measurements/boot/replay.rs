//! Replay: the PCR values that a log's digests lead to (TPM 2.0 Part 1, 17.2).

use super::{BootEvent, BootLog};
use crate::measurements::{EventType, LogHash};

/// How many PCRs a bank has.
const PCRS: usize = 24;
/// The PCRs that start with ones: those of a dynamic launch, until there is one.
const DYNAMIC: std::ops::RangeInclusive<u8> = 17..=22;

/// One bank of PCRs, as a replay leaves it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PcrBank {
    hash: LogHash,
    values: [Vec<u8>; PCRS],
    /// A bit for each PCR that was extended.
    extended: u32,
}

/// One step of a replay: an event, and its PCR's value after it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Step<'a> {
    /// The event.
    pub event: &'a BootEvent,
    /// The value of its PCR after it.
    pub value: Vec<u8>,
}

impl PcrBank {
    /// A bank after TPM2_Startup from `locality`, 0 on most machines.
    pub fn new(hash: LogHash, locality: u8) -> Self {
        let mut values = std::array::from_fn(|_| vec![0; hash.size()]);
        for (pcr, value) in (0_u8..).zip(values.iter_mut()) {
            if DYNAMIC.contains(&pcr) {
                value.fill(0xFF);
            }
            if let (0, Some(last)) = (pcr, value.last_mut()) {
                *last = locality;
            }
        }
        Self { hash, values, extended: 0 }
    }

    /// The bank's hash.
    pub const fn hash(&self) -> LogHash {
        self.hash
    }

    /// The value of a PCR, 0 to 23.
    pub fn value(&self, pcr: u8) -> Option<&[u8]> {
        self.values.get(usize::from(pcr)).map(Vec::as_slice)
    }

    /// Whether this PCR was extended.
    pub fn is_extended(&self, pcr: u8) -> bool {
        self.extended & 1_u32.checked_shl(u32::from(pcr)).unwrap_or(0) != 0
    }

    /// The PCRs that were extended, with their values.
    pub fn extended(&self) -> impl Iterator<Item = (u8, &[u8])> {
        (0_u8..).zip(&self.values).filter(|(pcr, _)| self.is_extended(*pcr)).map(|(pcr, value)| (pcr, value.as_slice()))
    }

    /// Extends a PCR and returns its new value; `None` if there is no such PCR.
    pub fn extend(&mut self, pcr: u8, digest: &[u8]) -> Option<&[u8]> {
        let value = self.values.get_mut(usize::from(pcr))?;
        *value = self.hash.extend(value, digest);
        self.extended |= 1_u32.checked_shl(u32::from(pcr)).unwrap_or(0);
        Some(value)
    }
}

impl BootLog {
    /// The bank as the log says it was before its first event.
    pub fn start(&self, bank: LogHash) -> PcrBank {
        let first = self.events.iter().find(|event| event.pcr == 0 && event.extends());
        let locality = match first.map(|event| event.kind) {
            Some(EventType::EFI_HCRTM_EVENT) => 4,
            _ => self.startup_locality.unwrap_or(0),
        };
        PcrBank::new(bank, locality)
    }

    /// The values that the whole log leads to; `None` if an event has no digest for this bank.
    pub fn replay(&self, bank: LogHash) -> Option<PcrBank> {
        if !self.banks.contains(&bank) {
            return None;
        }
        let mut pcrs = self.start(bank);
        for event in self.events.iter().filter(|event| event.extends()) {
            pcrs.extend(event.pcr, event.digest(bank)?)?;
        }
        Some(pcrs)
    }

    /// The extending events one by one, each with its PCR's value after it. It ends early at an
    /// event without a digest for this bank: look at [`BootLog::banks`] first.
    pub fn steps(&self, bank: LogHash) -> impl Iterator<Item = Step<'_>> {
        let mut pcrs = self.start(bank);
        self.events.iter().filter(|event| event.extends()).map_while(move |event| {
            let value = pcrs.extend(event.pcr, event.digest(bank)?)?.to_vec();
            Some(Step { event, value })
        })
    }
}
