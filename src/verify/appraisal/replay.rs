//! The strict replay: each PCR that logs explain, from its initial value to the quoted one, by the
//! events of the boot log first and the records of the userspace log after them.

use std::collections::BTreeMap;

use super::events;
use crate::codes::{self, Refusal};
use crate::measurements::LogHash;
use crate::measurements::boot::{BootEvent, BootLog, PcrBank};
use crate::measurements::userspace::{Target, UserspaceLog, UserspaceRecord};
use crate::tpm::PcrValues;
use crate::verify::profile::{PcrProfile, Profile, Source};

/// An event that a quote proves: this digest was extended, at this place among its PCR's. Its type
/// and its words are only for people, but where the digest vouches for them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ProvenEvent {
    /// Which log it stands in.
    pub log: Log,
    /// Its number there.
    pub number: u32,
    /// `EV_…`, or `systemd:` and the kind.
    pub kind: String,
    /// What was extended, in the quoted bank.
    pub digest: Vec<u8>,
    /// What it says, in words.
    pub words: String,
    /// It marks a place and measures nothing: a separator, a known action. References needn't list it.
    pub mark: bool,
}

/// A log with events.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Log {
    /// The firmware's.
    Boot,
    /// systemd's.
    Userspace,
}

impl std::fmt::Display for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Boot => "boot log, event",
            Self::Userspace => "userspace log, record",
        })
    }
}

/// What a replay leads to.
#[derive(Debug, Default)]
pub(super) struct Replay<'a> {
    /// By PCR: the boot log's events.
    pub boot: BTreeMap<u8, Vec<&'a BootEvent>>,
    /// By PCR: the userspace log's records up to the quote.
    pub userspace: BTreeMap<u8, Vec<&'a UserspaceRecord>>,
    /// By PCR: what the firmware left, before userspace extended anything.
    pub firmware: BTreeMap<u8, Vec<u8>>,
    /// What a reader should know.
    pub notes: Vec<String>,
}

/// Replays both logs to the quoted values.
///
/// Trailing records of the userspace log are pending: a quote may be older than that log, which
/// grows while the system runs. Trailing events of the boot log are not tolerated in any PCR: it
/// is complete when the firmware hands over (the kernel appends the events of ExitBootServices before any
/// process could ask for a quote), so what follows the quoted value was never extended.
pub(super) fn replay<'a>(
    pcrs: &PcrValues,
    profile: &Profile,
    boot: Option<&'a BootLog>,
    userspace: Option<&'a UserspaceLog>,
) -> Result<Replay<'a>, Refusal> {
    let bank = LogHash::from(pcrs.selection().bank());
    let start = boot.map_or_else(|| PcrBank::new(bank, 0), |log| log.start(bank));
    let mut replay = Replay::default();
    for (pcr, rules) in explained(pcrs, profile) {
        let quoted = pcrs.get(pcr).unwrap_or_default();
        let events = boot_events(boot, pcr, bank)?;
        let records = userspace_records(userspace, pcr, bank)?;
        let initial = start.value(pcr).unwrap_or_default();
        let one = One { bank, pcr, rules, quoted, initial, events: &events, records: &records };
        let (firmware, taken) = one.replay()?;
        if records.len() > taken {
            replay.notes.push(format!(
                "PCR {pcr}: {} records of the userspace log are newer than the quote",
                records.len().saturating_sub(taken)
            ));
        }
        replay.firmware.insert(pcr, firmware);
        replay.userspace.insert(pcr, records.into_iter().take(taken).map(|(record, _)| record).collect());
        replay.boot.insert(pcr, events.into_iter().map(|(event, _)| event).collect());
    }
    Ok(replay)
}

/// The quoted PCRs that logs explain.
fn explained<'a>(pcrs: &'a PcrValues, profile: &'a Profile) -> impl Iterator<Item = (u8, &'a PcrProfile)> {
    profile
        .pcrs
        .iter()
        .filter(|(pcr, rules)| rules.source == Source::Logs && pcrs.selection().contains(**pcr))
        .map(|(pcr, rules)| (*pcr, rules))
}

fn boot_events(log: Option<&BootLog>, pcr: u8, bank: LogHash) -> Result<Vec<(&BootEvent, &[u8])>, Refusal> {
    let of_pcr = log.into_iter().flat_map(|log| &log.events).filter(|event| event.pcr == pcr && event.extends());
    of_pcr
        .map(|event| {
            let digest = event.digest(bank).ok_or_else(|| {
                Refusal::new(codes::VERIFY_BANK, format!("no {bank} digest")).at(events::place(event))
            })?;
            Ok((event, digest))
        })
        .collect()
}

fn userspace_records(
    log: Option<&UserspaceLog>,
    pcr: u8,
    bank: LogHash,
) -> Result<Vec<(&UserspaceRecord, &[u8])>, Refusal> {
    let of_pcr = log.into_iter().flat_map(|log| &log.records).filter(|record| record.target == Target::Pcr(pcr));
    of_pcr
        .map(|record| {
            let digest = record.digest(bank).ok_or_else(|| {
                Refusal::new(codes::VERIFY_BANK, format!("no {bank} digest")).at(events::record_place(record, pcr))
            })?;
            Ok((record, digest))
        })
        .collect()
}

/// One PCR with what should explain it.
struct One<'a> {
    bank: LogHash,
    pcr: u8,
    rules: &'a PcrProfile,
    quoted: &'a [u8],
    initial: &'a [u8],
    events: &'a [(&'a BootEvent, &'a [u8])],
    records: &'a [(&'a UserspaceRecord, &'a [u8])],
}

impl One<'_> {
    /// The value after the boot log, and how many records lead on to the quoted one.
    fn replay(&self) -> Result<(Vec<u8>, usize), Refusal> {
        let zero = self.quoted.iter().all(|byte| *byte == 0);
        if self.rules.always_extended() && (zero || self.quoted == self.initial) {
            return Err(Refusal::new(codes::VERIFY_PCR_UNEXTENDED, "its initial value: nothing was measured")
                .at(format!("PCR {} ({})", self.pcr, self.bank))
                .expected("a value that the firmware's measurements lead to"));
        }
        let mut value = self.initial.to_vec();
        // The first event behind the quoted value, if it is met on the way.
        let mut surplus = None;
        for (event, digest) in self.events {
            if surplus.is_none() && value == self.quoted {
                surplus = Some(*event);
            }
            value = self.bank.extend(&value, digest);
        }
        let firmware = value.clone();
        let mut taken = 0_usize;
        while value != self.quoted {
            let Some((_, digest)) = self.records.get(taken) else {
                return Err(match surplus {
                    Some(event) => {
                        Refusal::new(codes::VERIFY_LOG_EXTENDED, format!("{} was never extended", event.kind))
                            .at(events::place(event))
                            .expected("a log that ends with what the TPM vouches for")
                    }
                    None => self.unexplained(&value),
                });
            };
            value = self.bank.extend(&value, digest);
            taken = taken.saturating_add(1);
        }
        Ok((firmware, taken))
    }

    fn unexplained(&self, value: &[u8]) -> Refusal {
        let last = self.events.last().map(|(event, _)| event);
        let found = match (last, self.events.len(), self.records.len()) {
            (Some(last), events, 0) => {
                format!("{events} events, the last of them number {}, lead to {}", last.number, hex::encode(value))
            }
            (_, 0, 0) => "no event explains it".to_owned(),
            (_, events, records) => format!("{events} events and {records} records lead to {}", hex::encode(value)),
        };
        Refusal::new(codes::VERIFY_LOG_REPLAY, found)
            .at(format!("PCR {} ({})", self.pcr, self.bank))
            .expected(format!("the quoted {}", hex::encode(self.quoted)))
    }
}
