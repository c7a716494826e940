//! The runtime layer's measurements: IMA's list, replayed to PCR 10 and judged on the way.

use super::ImaLog;
use super::replay::Replay;
use crate::codes::{self, Refusal};
use crate::measurements::LogHash;
use crate::measurements::boot::BootLog;
use crate::tpm::{IMA_PCR, PcrValues};
use crate::verify::runtime::{Checkpoint, CompiledRules, Finding, Judge, boot_aggregate};

/// What PCR 10 and IMA's list say together.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Kernel {
    /// The profile doesn't speak of IMA, or the quote doesn't cover PCR 10.
    Unquoted,
    /// PCR 10 was never extended, and no list says that it should have been.
    Off,
    /// The kernel has a list, but PCR 10 was never extended: it found no TPM when IMA started.
    Bypass,
    /// The list leads to PCR 10.
    Listed(Checkpoint),
}

/// Takes in the list until PCR 10 has the quoted value.
///
/// # Errors
/// [`codes::VERIFY_LOG_MISSING`], [`codes::VERIFY_LOG_REPLAY`], [`codes::VERIFY_BANK`], those of
/// [`Judge::take`].
pub(super) fn take(
    pcrs: &PcrValues,
    log: Option<&ImaLog<'_>>,
    rules: Option<&CompiledRules>,
) -> Result<Kernel, Refusal> {
    let Some(quoted) = pcrs.get(IMA_PCR) else { return Ok(Kernel::Unquoted) };
    let bank = pcrs.selection().bank();
    if quoted.iter().all(|byte| *byte == 0) {
        let listed = log.is_some_and(|log| !log.rest.is_empty() || log.from.is_some_and(|from| from.entries > 0));
        return Ok(if listed { Kernel::Bypass } else { Kernel::Off });
    }
    let Some(log) = log else {
        return Err(Refusal::new(codes::VERIFY_LOG_MISSING, "no IMA list, though PCR 10 was extended")
            .at(format!("PCR {IMA_PCR} ({bank})"))
            .expected("the list that leads to it"));
    };
    let from = log.from.cloned().unwrap_or_else(|| Checkpoint::start(bank));
    if from.bank != bank.as_str() {
        return Err(Refusal::new(codes::VERIFY_BANK, format!("a checkpoint of the bank {}", from.bank))
            .at(format!("PCR {IMA_PCR}"))
            .expected(bank.as_str()));
    }
    let mut judge = Judge::new(rules, from);
    if judge.take(log.rest, Some(quoted))? {
        return Ok(Kernel::Listed(judge.at));
    }
    Err(Refusal::new(
        codes::VERIFY_LOG_REPLAY,
        format!("none of {} entries of IMA's list leads to it", judge.at.entries),
    )
    .at(format!("PCR {IMA_PCR} ({bank})"))
    .expected(format!("the quoted {}", hex::encode(quoted))))
}

/// Holds the list's `boot_aggregate`s against this boot's PCRs. The kernel computes the first one before
/// any process runs, from what the firmware left; one after a kexec may also see what userspace
/// extended till then. Returns a note where there is nothing to compute it from.
///
/// # Errors
/// [`codes::VERIFY_BOOT_AGGREGATE`] naming the entry: the list is another boot's.
pub(super) fn check_boot(
    at: &Checkpoint,
    replay: &Replay<'_>,
    boot: Option<&BootLog>,
    pcrs: &PcrValues,
) -> Result<Option<String>, Refusal> {
    if at.entries > 0 && at.boot_aggregates.first().is_none_or(|first| first.entry != 0) {
        return Err(Refusal::new(codes::VERIFY_BOOT_AGGREGATE, "the list doesn't begin with one")
            .at("IMA entry 0, PCR 10")
            .expected("boot_aggregate"));
    }
    let mut note = None;
    let first = at.boot_aggregates.first().map(|first| first.digest.as_str());
    for (number, found) in at.boot_aggregates.iter().enumerate() {
        let read = read(found);
        let candidates = match &read {
            Some((hash, _)) => expected(*hash, number > 0, replay, boot, pcrs),
            None => Vec::new(),
        };
        match (read, candidates.first()) {
            (Some((_, digest)), Some(_)) if candidates.contains(&digest) => {}
            (Some((hash, _)), Some(wanted)) => return Err(refuse(found, format!("{hash}:{}", hex::encode(wanted)))),
            // The kernel writes entry 0 before any process runs. Any later one may be a file of that name, so it
            // counts only as what the kernel said before.
            (Some((hash, _)), None) if number == 0 => {
                note = Some(format!("boot_aggregate ({hash}) can't be recomputed: its PCRs aren't known"));
            }
            (Some(_), None) if first == Some(found.digest.as_str()) => {}
            (Some((hash, _)), None) => {
                return Err(refuse(
                    found,
                    format!("entry 0's, for PCRs of {hash} that the boot log or the quote tells"),
                ));
            }
            (None, _) => return Err(refuse(found, "sha256:… or sha1:…".to_owned())),
        }
    }
    Ok(note)
}

fn refuse(found: &Finding, expected: String) -> Refusal {
    Refusal::new(codes::VERIFY_BOOT_AGGREGATE, found.digest.clone())
        .at(format!("IMA entry {}, PCR {IMA_PCR}, byte {} of the list", found.entry, found.offset))
        .expected(expected)
}

fn read(found: &Finding) -> Option<(LogHash, Vec<u8>)> {
    let (name, digest) = found.digest.split_once(':')?;
    Some((LogHash::from_name(name)?, hex::decode(digest).ok()?))
}

/// What a kernel could have computed: over PCRs 0 to 9, or 0 to 7 as before 5.8 and for SHA-1.
fn expected(hash: LogHash, later: bool, replay: &Replay<'_>, boot: Option<&BootLog>, pcrs: &PcrValues) -> Vec<Vec<u8>> {
    let quoted_bank = LogHash::from(pcrs.selection().bank()) == hash;
    let quoted = |last: u8| (0..=last).map(|pcr| pcrs.get(pcr).map(<[u8]>::to_vec)).collect::<Option<Vec<_>>>();
    // What the firmware left: as replayed to the quote where the bank is the quoted one. Of another
    // bank, and of a PCR that the profile doesn't quote, as the log says, which only ties the list to
    // this log: that it is this boot's, the quoted PCR 10 says.
    let log = boot.and_then(|log| log.replay(hash));
    let said = |pcr: u8| log.as_ref()?.value(pcr).map(<[u8]>::to_vec);
    let proven = |pcr: u8| replay.firmware.get(&pcr).cloned().or_else(|| pcrs.get(pcr).map(<[u8]>::to_vec));
    let firmware = |last: u8| -> Option<Vec<Vec<u8>>> {
        (0..=last).map(|pcr| if quoted_bank { proven(pcr).or_else(|| said(pcr)) } else { said(pcr) }).collect()
    };
    let mut sets = vec![firmware(9), firmware(7)];
    if later && quoted_bank {
        sets.extend([quoted(9), quoted(7)]);
    }
    sets.into_iter().flatten().map(|values| boot_aggregate(values.iter().map(Vec::as_slice), hash)).collect()
}
