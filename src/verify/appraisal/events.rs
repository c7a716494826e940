//! The rules for events that replay: which types may stand where, and whose data may be read.

use super::replay::{Log, ProvenEvent, Replay};
use crate::codes::{self, Refusal};
use crate::measurements::boot::BootEvent;
use crate::measurements::uefi::{Separator, Vouched, printable, summary};
use crate::measurements::userspace::{OS_SEPARATOR, PHASES, UserspaceRecord};
use crate::measurements::{EventType, LogHash};
use crate::verify::profile::{Judged, PcrProfile, Profile};

/// What a separator may measure. Firmware writes the first before it hands over, some the second (PC Client
/// Platform Firmware Profile 1.06, 3.3.2); the others signal an error, or end something else.
const VALID: [Separator; 2] = [Separator::Zeros, Separator::Ones];
/// Strings of EV_EFI_ACTION that mark a place in the boot and measure nothing (ibid., 10.4.4). Others,
/// `UEFI Debug Mode` for one, say something of the machine.
const ACTIONS: [&str; 5] = [
    "Calling EFI Application from Boot Option",
    "Returning from EFI Application from Boot Option",
    "Exit Boot Services Invocation",
    "Exit Boot Services Returned with Failure",
    "Exit Boot Services Returned with Success",
];

/// Where an event is, for refusals.
pub(super) fn place(event: &BootEvent) -> String {
    format!("{} {}, PCR {}, {}, byte {}", Log::Boot, event.number, event.pcr, event.kind, event.offset)
}

/// Where a record is.
pub(super) fn record_place(record: &UserspaceRecord, pcr: u8) -> String {
    format!("{} {}, PCR {pcr}, {}", Log::Userspace, record.number, record.kind.escape_debug())
}

/// Holds what replayed to the profile's rules.
///
/// # Errors
/// [`codes::VERIFY_EVENT_TYPE`], [`codes::VERIFY_EVENT_DATA`], [`codes::VERIFY_SEPARATOR`] and
/// [`codes::VERIFY_EVENT_MISSING`].
pub(super) fn check(replay: &Replay<'_>, profile: &Profile, bank: LogHash) -> Result<(), Refusal> {
    for (pcr, events) in &replay.boot {
        let Some(rules) = profile.pcrs.get(pcr) else { continue };
        for event in events {
            allowed(event, rules)?;
            vouched_data(event, bank)?;
        }
        separators(*pcr, events, rules, bank)?;
        if let Some(missing) = rules.required.iter().find(|kind| !events.iter().any(|event| event.kind == **kind)) {
            return Err(Refusal::new(codes::VERIFY_EVENT_MISSING, format!("no {missing}"))
                .at(format!("PCR {pcr}"))
                .expected(format!("the profile `{}` asks for one", profile.name)));
        }
    }
    for (pcr, records) in &replay.userspace {
        let Some(rules) = profile.pcrs.get(pcr) else { continue };
        for record in records {
            allowed_record(record, *pcr, rules, bank)?;
        }
    }
    Ok(())
}

/// What replayed, as events that references are held against.
pub(super) fn proven(replay: &Replay<'_>, pcr: u8, bank: LogHash) -> Vec<ProvenEvent> {
    let boot = replay.boot.get(&pcr).into_iter().flatten().map(|event| {
        let digest = event.digest(bank).unwrap_or_default().to_vec();
        ProvenEvent {
            log: Log::Boot,
            number: event.number,
            kind: event.kind.to_string(),
            mark: is_mark(&digest, bank),
            words: words(event, bank),
            digest,
        }
    });
    let userspace = replay.userspace.get(&pcr).into_iter().flatten().map(|record| {
        let digest = record.digest(bank).unwrap_or_default().to_vec();
        let kind = format!("systemd:{}", record.kind.escape_debug());
        let words = match &record.string {
            Some(string) if record.vouched(bank) => printable(string, 120),
            _ => "its digest doesn't tell what".to_owned(),
        };
        ProvenEvent { log: Log::Userspace, number: record.number, mark: is_mark(&digest, bank), kind, digest, words }
    });
    boot.chain(userspace).collect()
}

/// Whether an event of this digest marks a place and measures nothing. Its type doesn't matter: anything
/// could be called a separator, and a separator anything.
pub(super) fn is_mark(digest: &[u8], bank: LogHash) -> bool {
    let is = |data: &[u8]| bank.digest(&[data]) == digest;
    is_separator(digest, bank) || ACTIONS.iter().any(|action| is(action.as_bytes())) || is(OS_SEPARATOR.as_bytes())
}

/// Whether an event of this digest is a valid separator of the firmware's.
pub(super) fn is_separator(digest: &[u8], bank: LogHash) -> bool {
    VALID.iter().any(|separator| bank.digest(&[separator.data()]) == digest)
}

/// Whether a record of this digest is a boot phase that systemd knows.
pub(super) fn is_phase(digest: &[u8], bank: LogHash) -> bool {
    PHASES.iter().any(|phase| bank.digest(&[phase.as_bytes()]) == digest)
}

/// An event of this type may stand in this PCR.
fn allowed(event: &BootEvent, rules: &PcrProfile) -> Result<(), Refusal> {
    if rules.events.contains(&event.kind) {
        return Ok(());
    }
    let kinds: Vec<String> = rules.events.iter().map(ToString::to_string).collect();
    Err(Refusal::new(codes::VERIFY_EVENT_TYPE, event.kind.to_string()).at(place(event)).expected(if kinds.is_empty() {
        "no event".to_owned()
    } else {
        kinds.join(", ")
    }))
}

/// A record of this kind may stand in this PCR. Its kind is only what the log says: whoever moves an event of
/// the firmware's over to systemd's log must find it judged there, too.
fn allowed_record(record: &UserspaceRecord, pcr: u8, rules: &PcrProfile, bank: LogHash) -> Result<(), Refusal> {
    if !rules.userspace.contains(&record.kind) {
        let kinds: Vec<&str> = rules.userspace.iter().map(String::as_str).collect();
        return Err(Refusal::new(codes::VERIFY_EVENT_TYPE, format!("`{}`", record.kind.escape_debug()))
            .at(record_place(record, pcr))
            .expected(if kinds.is_empty() { "no record".to_owned() } else { kinds.join(", ") }));
    }
    let digest = record.digest(bank).unwrap_or_default();
    let separator = bank.digest(&[OS_SEPARATOR.as_bytes()]);
    // What vouched for an image is read from the firmware's log alone.
    let only_separators = record.kind == OS_SEPARATOR || rules.judged == Judged::SecureBoot;
    if only_separators && digest != separator {
        return Err(Refusal::new(codes::VERIFY_EVENT_DATA, format!("the digest {}", hex::encode(digest)))
            .at(record_place(record, pcr))
            .expected(format!("{}, that of `{OS_SEPARATOR}`", hex::encode(separator))));
    }
    Ok(())
}

/// The types whose digest is always that of their data: 1,107 of 1,107 in 51 public logs. Where it
/// isn't, somebody changed the type or the data, so nothing that reads either is misled.
fn vouched_data(event: &BootEvent, bank: LogHash) -> Result<(), Refusal> {
    let whole = [EventType::EFI_VARIABLE_DRIVER_CONFIG, EventType::EFI_ACTION, EventType::EFI_GPT_EVENT];
    if !whole.contains(&event.kind) || event.vouched(bank) == Vouched::Whole {
        return Ok(());
    }
    Err(unvouched(event, bank))
}

/// The refusal of an event whose data isn't what was measured.
pub(super) fn unvouched(event: &BootEvent, bank: LogHash) -> Refusal {
    Refusal::new(codes::VERIFY_EVENT_DATA, format!("data with the digest {}", hex::encode(bank.digest(&[&event.data]))))
        .at(place(event))
        .expected(hex::encode(event.digest(bank).unwrap_or_default()))
}

/// Exactly one separator where the profile wants one, and none but valid ones anywhere: before it
/// the firmware speaks, after it what the firmware started.
fn separators(pcr: u8, events: &[&BootEvent], rules: &PcrProfile, bank: LogHash) -> Result<(), Refusal> {
    let refuse = |what: &str, at: String| {
        Err(Refusal::new(codes::VERIFY_SEPARATOR, what).at(at).expected("one EV_SEPARATOR of 00000000 or FFFFFFFF"))
    };
    let mut found = 0_u32;
    for event in events.iter().filter(|event| event.kind == EventType::SEPARATOR) {
        found = found.saturating_add(1);
        match event.separator(bank) {
            Some(separator) if VALID.contains(&separator) && event.data == separator.data() => {}
            Some(separator) if VALID.contains(&separator) => return Err(unvouched(event, bank)),
            Some(Separator::Error) => return refuse("it signals that a measurement failed", place(event)),
            _ => return refuse("another value", place(event)),
        }
        if found > 1 && rules.separator {
            return refuse("a second one", place(event));
        }
    }
    if rules.separator && found == 0 {
        return refuse("none", format!("PCR {pcr}"));
    }
    Ok(())
}

/// What an event says. Where its digest doesn't vouch for that, the words are the log's own, and said to be.
fn words(event: &BootEvent, bank: LogHash) -> String {
    match event.vouched(bank) {
        Vouched::Whole | Vouched::Part { .. } => summary(event),
        Vouched::No => format!("in the log's own words: {}", summary(event)),
    }
}
