//! The appraisal of logs: what they prove by replay, held against reference values.
//!
//! Pure, and apart from evidence, so that raw artefacts of other tools are appraised by the same
//! code: it takes PCR values that a verified quote covers.

mod compare;
mod events;
mod judge;
mod kernel;
mod replay;
mod runtime;
mod secure_boot;

pub use kernel::Kernel;
pub use replay::{Log, ProvenEvent};
pub use secure_boot::{Authority, AuthorityData, SecureBoot};

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::profile::{Judged, Layer, Profile};
use super::references::ReferenceSet;
use super::runtime::{Checkpoint, CompiledRules, Mode, RuntimeRules};
use super::trust::TrustVector;
use crate::clock::WallTime;
use crate::codes::{self, Refusal};
use crate::measurements::LogHash;
use crate::measurements::boot::BootLog;
use crate::measurements::userspace::UserspaceLog;
use crate::tpm::PcrValues;

/// The logs of a node, as they came.
#[derive(Clone, Copy, Debug, Default)]
pub struct Logs<'a> {
    /// The boot event log.
    pub boot: Option<&'a [u8]>,
    /// The userspace log.
    pub userspace: Option<&'a [u8]>,
    /// IMA's list.
    pub ima: Option<ImaLog<'a>>,
}

/// IMA's list, from where it was last taken in on.
#[derive(Clone, Copy, Debug)]
pub struct ImaLog<'a> {
    /// Where, and what was found till then; `None` is the start.
    pub from: Option<&'a Checkpoint>,
    /// The bytes from there on.
    pub rest: &'a [u8],
}

/// What the logs prove: made by [`measured`] alone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Measured {
    pcrs: PcrValues,
    profile: String,
    /// By PCR that logs explain: its events in order.
    events: BTreeMap<u8, Vec<ProvenEvent>>,
    secure_boot: Option<SecureBoot>,
    /// What PCR 10 and IMA's list say; how far the list was taken in.
    kernel: Kernel,
    notes: Vec<String>,
}

/// What policy reads of [`Measured`]: digests that were extended and data that they vouch for, nothing else.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Facts<'a> {
    /// The quoted values.
    pub pcrs: &'a PcrValues,
    /// By PCR: the digests of the boot log's events that measure something.
    pub boot: BTreeMap<u8, Vec<&'a [u8]>>,
    /// The same of the userspace log's records.
    pub userspace: BTreeMap<u8, Vec<&'a [u8]>>,
    /// What PCR 7 says; the numbers of events, which no digest covers, are 0.
    pub secure_boot: Option<SecureBoot>,
    /// IMA's part.
    pub kernel: &'a Kernel,
}

/// The result.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Appraisal {
    /// One for each layer.
    pub layers: Vec<LayerResult>,
    /// What was found, the worst first.
    pub findings: Vec<Finding>,
    /// The name of the state that was met.
    pub state: Option<String>,
    /// The AR4SI claims: those that logs speak of. What is known of the keys and of the TPM comes on top.
    pub vector: TrustVector,
    /// What a reader should know besides: an unproven profile, what was not looked at.
    pub notes: Vec<String>,
}

/// What is said of one layer. Schema version 1.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LayerResult {
    /// `firmware`, `boot`, `userspace` or `runtime`.
    pub layer: String,
    /// What is said.
    pub standing: LayerStanding,
    /// Why, in words.
    pub why: String,
}

/// What can be said of a layer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LayerStanding {
    /// Every measurement is as it should be.
    Affirmed,
    /// Nothing is proven: this platform, these logs or these references don't tell.
    NotProven,
    /// Something an operator should look at.
    Warned,
    /// Something is not as it should be.
    Contraindicated,
}

/// Something that was found. Schema version 1.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Finding {
    /// The layer it tells of.
    pub layer: String,
    /// How bad it is.
    pub standing: LayerStanding,
    /// The code; where: log, event number, PCR, type; what was found; the nearest accepted value.
    pub refusal: Refusal,
    /// The one command that would accept it, if that is right; empty if none would.
    pub accept: String,
}

/// Replays `logs` to `pcrs`, strictly, and reads from them what the digests vouch for. IMA's
/// entries are judged by the set's rules on the way.
///
/// `pcrs` are values that a verified quote covers. A PCR of the profile that isn't among them proves nothing,
/// and its layer says so; that all of them are quoted is for policy to ask.
///
/// # Errors
/// Why the logs prove nothing: see the `verify.*` and `measurements.*` codes, each naming the event.
pub fn measured(
    pcrs: &PcrValues,
    profile: &Profile,
    logs: &Logs<'_>,
    references: Option<&ReferenceSet>,
) -> Result<Measured, Refusal> {
    let rules = references.and_then(|set| set.runtime.as_ref()).map(RuntimeRules::compile).transpose()?;
    measured_by(pcrs, profile, logs, references, rules.as_ref())
}

/// The same with the set's rules as they were compiled before: of a million digests that takes longer than all
/// the rest.
///
/// # Errors
/// As [`measured`].
pub fn measured_by(
    pcrs: &PcrValues,
    profile: &Profile,
    logs: &Logs<'_>,
    references: Option<&ReferenceSet>,
    rules: Option<&CompiledRules>,
) -> Result<Measured, Refusal> {
    let bank = pcrs.selection().bank();
    check_bank(pcrs, profile, references)?;
    let hash = LogHash::from(bank);
    let boot = match logs.boot {
        _ if !profile.needs_boot_log() => None,
        None => {
            return Err(Refusal::new(codes::VERIFY_LOG_MISSING, "no boot log")
                .expected(format!("the profile `{}` reads one", profile.name)));
        }
        Some(bytes) => Some(readable(BootLog::parse(bytes)?, hash)?),
    };
    let userspace = match (&profile.userspace_log, logs.userspace) {
        (Some(_), Some(bytes)) => Some(UserspaceLog::parse(bytes)?),
        _ => None,
    };
    let replay = replay::replay(pcrs, profile, boot.as_ref(), userspace.as_ref())?;
    events::check(&replay, profile, hash)?;
    let mut secure_boot = None;
    for (pcr, rules) in &profile.pcrs {
        if let (Judged::SecureBoot, Some(events)) = (rules.judged, replay.boot.get(pcr)) {
            secure_boot = Some(SecureBoot::read(events, hash)?);
        }
    }
    let kernel = match profile.ima_pcr() {
        None => Kernel::Unquoted,
        Some(_) => kernel::take(pcrs, logs.ima.as_ref(), rules)?,
    };
    let mut notes = replay.notes.clone();
    notes.extend(boot.iter().flat_map(|log| log.notes.iter().cloned()));
    if let Kernel::Listed(at) = &kernel {
        notes.extend(kernel::check_boot(at, &replay, boot.as_ref(), pcrs)?);
    }
    let events = replay.boot.keys().map(|pcr| (*pcr, events::proven(&replay, *pcr, hash))).collect();
    Ok(Measured { pcrs: pcrs.clone(), profile: profile.name.clone(), events, secure_boot, kernel, notes })
}

/// One bank, and the same one everywhere: that of another bank may have been left to an attacker.
fn check_bank(pcrs: &PcrValues, profile: &Profile, references: Option<&ReferenceSet>) -> Result<(), Refusal> {
    let bank = pcrs.selection().bank();
    let refuse = |expected: String| {
        Err(Refusal::new(codes::VERIFY_BANK, bank.as_str())
            .at(format!("quote over {}", pcrs.selection()))
            .expected(expected))
    };
    if let Some(set) = references.filter(|set| set.bank != bank) {
        return refuse(format!("{}, as the reference set `{}` pins", set.bank, set.name));
    }
    if !profile.banks.contains(&bank) {
        let banks: Vec<&str> = profile.banks.iter().map(|bank| bank.as_str()).collect();
        return refuse(format!("{}, as the profile `{}` has them", banks.join(", "), profile.name));
    }
    Ok(())
}

/// A boot log that vouches in the quoted bank.
fn readable(log: BootLog, hash: LogHash) -> Result<BootLog, Refusal> {
    if log.sha1_only {
        return Err(Refusal::new(codes::VERIFY_SHA1_ONLY, "a log in the format of TPM 1.2")
            .at("boot log, event 0")
            .expected("a crypto-agile log (Spec ID Event03)"));
    }
    if !log.banks.contains(&hash) {
        let banks: Vec<&str> = log.banks.iter().map(|bank| bank.as_str()).collect();
        let sha1 = log.banks == [LogHash::Sha1];
        let code = if sha1 { codes::VERIFY_SHA1_ONLY } else { codes::VERIFY_BANK };
        return Err(Refusal::new(code, format!("digests of {}", banks.join(", ")))
            .at("boot log, event 0")
            .expected(format!("digests of {hash}, which was quoted")));
    }
    Ok(log)
}

impl Measured {
    /// Holds what was measured against `references`; never fails: a bad node has a verdict.
    pub fn appraise(&self, profile: &Profile, references: Option<&ReferenceSet>, now: WallTime) -> Appraisal {
        judge::appraise(self, profile, references, now)
    }

    /// How far IMA's list was taken in.
    pub const fn ima(&self) -> Option<&Checkpoint> {
        match &self.kernel {
            Kernel::Listed(at) => Some(at),
            _ => None,
        }
    }

    /// What PCR 10 and IMA's list say together.
    pub const fn kernel(&self) -> &Kernel {
        &self.kernel
    }

    /// The quoted values.
    pub const fn pcrs(&self) -> &PcrValues {
        &self.pcrs
    }

    /// What PCR 7 says, where the profile reads it.
    pub const fn secure_boot(&self) -> Option<&SecureBoot> {
        self.secure_boot.as_ref()
    }

    /// By PCR that logs explain: its events in order.
    pub const fn events(&self) -> &BTreeMap<u8, Vec<ProvenEvent>> {
        &self.events
    }

    /// What policy reads.
    pub fn facts(&self) -> Facts<'_> {
        let of = |log: Log| {
            self.events
                .iter()
                .map(|(pcr, events)| {
                    let counted = events.iter().filter(|event| event.log == log && !event.mark);
                    (*pcr, counted.map(|event| event.digest.as_slice()).collect())
                })
                .collect()
        };
        Facts {
            pcrs: &self.pcrs,
            boot: of(Log::Boot),
            userspace: of(Log::Userspace),
            secure_boot: self.secure_boot.clone().map(SecureBoot::unnumbered),
            kernel: &self.kernel,
        }
    }
}

impl Appraisal {
    /// What is said of `layer`.
    pub fn layer(&self, layer: Layer) -> Option<&LayerResult> {
        self.layers.iter().find(|result| result.layer == layer.as_str())
    }

    /// The worst finding, if any layer is contraindicated: why there is no lease.
    pub fn contraindication(&self) -> Option<&Finding> {
        self.findings.iter().find(|finding| finding.standing == LayerStanding::Contraindicated)
    }

    /// Whether it is enough for a lease. Not where a layer is contraindicated, nor where it isn't proven what was
    /// booted: what a kernel says of the files it runs is worth what is known of the kernel. Only on a platform
    /// that can't prove its boot at all, as its profile says, another layer is enough. Where `references` have rules
    /// for what may run, and enforce them, it must be proven what runs: else IMA would only have to be left off.
    ///
    /// # Errors
    /// The worst finding's refusal; [`codes::VERIFY_RUNTIME_UNPROVEN`]; [`codes::VERIFY_NO_REFERENCE`] where too
    /// little is proven.
    pub fn suffices(&self, profile: &Profile, references: Option<&ReferenceSet>) -> Result<(), Refusal> {
        if let Some(worst) = self.contraindication() {
            return Err(worst.refusal.clone());
        }
        // Not to be expected: every contraindicated layer has its finding.
        if let Some(bad) = self.layers.iter().find(|layer| layer.standing == LayerStanding::Contraindicated) {
            return Err(Refusal::new(codes::GATE_CONTRAINDICATED, bad.why.clone()).at(format!("layer {}", bad.layer)));
        }
        let enforced = references.and_then(|set| set.runtime.as_ref()).is_some_and(|rules| rules.mode == Mode::Enforce);
        let runtime = self.layer(Layer::Runtime).filter(|layer| layer.standing == LayerStanding::NotProven);
        if let Some(unproven) = runtime.filter(|_| enforced) {
            return Err(Refusal::new(codes::VERIFY_RUNTIME_UNPROVEN, unproven.why.clone())
                .at("layer runtime")
                .expected("IMA's list, with an IMA policy: the reference set enforces rules for what may run"));
        }
        let can_prove_boot = !profile.not_proven.contains_key(&Layer::Boot);
        // Warned is no refusal: enforcing is what refuses.
        let proven = |layer: &&LayerResult| matches!(layer.standing, LayerStanding::Affirmed | LayerStanding::Warned);
        let counts = |layer: &&LayerResult| !can_prove_boot || layer.layer == Layer::Boot.as_str();
        if self.layers.iter().filter(counts).any(|layer| proven(&layer)) {
            return Ok(());
        }
        let why = self.layers.iter().filter(counts).map(|layer| format!("{}: {}", layer.layer, layer.why));
        let refusal =
            Refusal::new(codes::VERIFY_NO_REFERENCE, format!("not proven: {}", why.collect::<Vec<_>>().join("; ")));
        Err(refusal.expected(match can_prove_boot {
            true => "reference values for what is booted (layer boot)",
            false => "at least one layer with reference values that are met",
        }))
    }
}
