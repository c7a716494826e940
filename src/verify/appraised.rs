//! Third and fourth question: do the logs lead to these PCRs, and are they as they should be?

use std::time::Duration;

use super::appraisal::{Appraisal, Logs, Measured, measured_by};
use super::endorsement::Grade;
use super::fresh::{Fresh, Note};
use super::lease::LeaseClaims;
use super::profile::Profile;
use super::references::{Document, LearntSet, ReferenceSet};
use super::runtime::{Checkpoint, CompiledRules};
use super::trust::TrustVector;
use crate::clock::{BootId, BootInstant, WallTime};
use crate::codes::{self, Refusal};
use crate::evidence::NodeClaims;
use crate::identity::NodeId;
use crate::tpm::structures::ClockInfo;
use crate::tpm::{PcrDifference, PcrValues};

/// Fresh evidence whose logs replay to its PCRs; or without logs, and then nothing of any log is
/// believed: the values stand for themselves.
#[derive(Clone, Debug)]
pub struct Replayed {
    fresh: Fresh,
    measured: Option<Measured>,
}

/// Fresh evidence whose logs prove nothing, and why. There is no way from here to a lease.
#[derive(Clone, Debug)]
pub struct Unreplayed {
    fresh: Fresh,
    refusal: Refusal,
}

/// An attestation result: authentic, fresh, replayed and held against reference values.
#[derive(Clone, Debug)]
pub struct Appraised {
    fresh: Fresh,
    verdict: Verdict,
    differences: Vec<PcrDifference>,
    vector: TrustVector,
    reference: Option<(String, u64)>,
    /// What the logs say, where they were appraised.
    appraisal: Option<Appraisal>,
    /// How far IMA's list was taken in: to the quoted PCR 10.
    checkpoint: Option<Checkpoint>,
    /// The document whose rules the node may judge new entries by.
    rules: Option<[u8; 32]>,
}

/// What follows for the node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Every PCR has its reference value; or a layer is affirmed, and nothing speaks against another.
    Affirming,
    /// The node is not as it should be, or nobody said how it should be.
    Contraindicated(Refusal),
}

/// What the control plane adds to an appraisal to make it a lease.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LeaseTerms {
    /// Greater than that of every lease given to this node before.
    pub sequence: u64,
    /// How long the lease holds from the moment of the request; whole seconds count.
    pub term: Duration,
    /// The control plane's clock.
    pub issued_at: WallTime,
    /// The control plane's epoch: another one after a restored backup.
    pub epoch: [u8; 16],
    /// What is known of the TPM's origin.
    pub grade: Grade,
}

impl Fresh {
    /// Takes the PCRs as they are: no log is looked at.
    pub const fn unlogged(self) -> Replayed {
        Replayed { fresh: self, measured: None }
    }

    /// Replays the logs to the quoted PCRs; the set's `rules`, compiled, judge IMA's entries on the way.
    ///
    /// # Errors
    /// Those of [`measured_by`].
    pub fn replay(
        self,
        profile: &Profile,
        logs: &Logs<'_>,
        references: &ReferenceSet,
        rules: Option<&CompiledRules>,
    ) -> Result<Replayed, Box<Unreplayed>> {
        match measured_by(&self.authentic.claims.pcrs, profile, logs, Some(references), rules) {
            Ok(measured) => Ok(Replayed { fresh: self, measured: Some(measured) }),
            Err(refusal) => Err(Box::new(Unreplayed { fresh: self, refusal })),
        }
    }
}

impl Unreplayed {
    /// Why.
    pub const fn refusal(&self) -> &Refusal {
        &self.refusal
    }

    /// Back, to replay from another place of the list.
    pub fn again(self) -> Fresh {
        self.fresh
    }

    /// The result: contraindicated.
    pub fn appraised(self) -> Appraised {
        let verdict = Verdict::Contraindicated(self.refusal);
        Appraised::new(self.fresh, verdict, Vec::new(), TrustVector::known(), None)
    }
}

impl Replayed {
    /// Holds the PCRs against whole values; `None` if the node has none.
    ///
    /// This never fails: a bad node has a verdict, with what is wrong:
    /// [`codes::VERIFY_NO_REFERENCE`] when the node, or a PCR it quoted, has no reference value,
    /// [`codes::VERIFY_PCR_MISMATCH`] naming the first PCR that differs.
    pub fn appraise(self, references: Option<&LearntSet>) -> Appraised {
        let pcrs = &self.fresh.authentic.claims.pcrs;
        let Some(references) = references else {
            let refusal = Refusal::new(codes::VERIFY_NO_REFERENCE, "no reference values for this node");
            let verdict = Verdict::Contraindicated(refusal);
            return Appraised::new(self.fresh, verdict, Vec::new(), TrustVector::known(), None);
        };
        let differences = references.differences(pcrs);
        let vector = TrustVector::known().measured(&differences);
        let verdict = if let Some(pcr) = references.unreferenced(pcrs) {
            Verdict::Contraindicated(
                Refusal::new(codes::VERIFY_NO_REFERENCE, format!("quoted over {}", pcrs.selection()))
                    .at(format!("PCR {pcr}"))
                    .expected(references.values.selection().to_string()),
            )
        } else if let Some(first) = differences.first() {
            Verdict::Contraindicated(
                Refusal::new(codes::VERIFY_PCR_MISMATCH, first.found.clone())
                    .at(format!("PCR {} ({})", first.pcr, first.bank))
                    .expected(first.expected.clone()),
            )
        } else {
            Verdict::Affirming
        };
        let reference = Some((references.profile.clone(), references.version));
        Appraised::new(self.fresh, verdict, differences, vector, reference)
    }

    /// Holds what the logs prove against the reference document of the node. Never fails either.
    pub fn appraise_logs(self, profile: &Profile, document: &Document, now: WallTime) -> Appraised {
        let Some(measured) = &self.measured else {
            let refusal = Refusal::new(codes::VERIFY_LOG_MISSING, "the logs were not replayed");
            return Unreplayed { fresh: self.fresh, refusal }.appraised();
        };
        let set = &document.set;
        let appraisal = measured.appraise(profile, Some(set), now);
        let checkpoint = measured.ima().cloned();
        let rules = (set.runtime.is_some() && checkpoint.is_some()).then_some(document.digest);
        let reference = Some((set.name.clone(), set.version));
        let verdict =
            appraisal.suffices(profile, Some(set)).map_or_else(Verdict::Contraindicated, |()| Verdict::Affirming);
        let vector = appraisal.vector.identified();
        let appraised = Appraised::new(self.fresh, verdict, Vec::new(), vector, reference);
        Appraised { appraisal: Some(appraisal), checkpoint, rules, ..appraised }
    }
}

impl Appraised {
    fn new(
        fresh: Fresh,
        verdict: Verdict,
        differences: Vec<PcrDifference>,
        vector: TrustVector,
        reference: Option<(String, u64)>,
    ) -> Self {
        Self { fresh, verdict, differences, vector, reference, appraisal: None, checkpoint: None, rules: None }
    }

    /// The same, held to a floor for the TPM's firmware: below it nothing that the TPM says is enough.
    #[must_use]
    pub fn held_to_floor(self, floor: Result<(), Refusal>) -> Self {
        let Err(refusal) = floor else { return self };
        let verdict = match self.verdict {
            Verdict::Affirming => Verdict::Contraindicated(refusal),
            other => other,
        };
        Self { verdict, vector: self.vector.faulty(), ..self }
    }

    /// The claims of a lease on this result.
    ///
    /// # Errors
    /// The verdict's refusal if it isn't affirming; [`codes::VERIFY_NODE`] while the node enrols;
    /// [`codes::VERIFY_LEASE`] for a term or profile out of its bounds, see [`LeaseClaims`].
    pub fn lease(&self, terms: &LeaseTerms) -> Result<LeaseClaims, Refusal> {
        if let Verdict::Contraindicated(refusal) = &self.verdict {
            return Err(refusal.clone());
        }
        let node = self.node().ok_or_else(|| Refusal::new(codes::VERIFY_NODE, "no node id yet"))?;
        let (profile, reference_version) = self
            .reference
            .clone()
            .ok_or_else(|| Refusal::new(codes::VERIFY_NO_REFERENCE, "no reference values for this node"))?;
        let claims = LeaseClaims {
            node,
            ak_name: self.ak_name(),
            node_key_name: self.node_key_name(),
            boot_id: self.boot_id(),
            counts: self.clock_info().counts,
            profile,
            reference_version,
            sequence: terms.sequence,
            requested_at: self.requested_at(),
            term: Duration::from_secs(terms.term.as_secs()),
            pcrs: self.pcrs().clone(),
            vector: self.vector_of(terms.grade),
            issued_at: terms.issued_at,
            epoch: terms.epoch,
            rules: self.rules,
        };
        claims.check()?;
        Ok(claims)
    }

    /// The verdict.
    pub const fn verdict(&self) -> &Verdict {
        &self.verdict
    }

    /// Whether the verdict is affirming.
    pub const fn is_affirming(&self) -> bool {
        matches!(self.verdict, Verdict::Affirming)
    }

    /// The PCRs that differ from their reference values.
    pub fn differences(&self) -> &[PcrDifference] {
        &self.differences
    }

    /// What the logs say, where they were appraised.
    pub const fn appraisal(&self) -> Option<&Appraisal> {
        self.appraisal.as_ref()
    }

    /// How far IMA's list was taken in: what the next increment goes on from.
    pub const fn checkpoint(&self) -> Option<&Checkpoint> {
        self.checkpoint.as_ref()
    }

    /// The document whose rules the node may judge new entries by.
    pub const fn rules(&self) -> Option<&[u8; 32]> {
        self.rules.as_ref()
    }

    /// The AR4SI claims.
    pub const fn vector(&self) -> TrustVector {
        self.vector
    }

    /// The AR4SI claims for a TPM of this grade: of a certified one the hardware is known to be genuine.
    pub fn vector_of(&self, grade: Grade) -> TrustVector {
        if grade == Grade::Certified { self.vector.genuine() } else { self.vector }
    }

    /// The reference values it was held against, by name and version.
    pub fn reference(&self) -> Option<(&str, u64)> {
        self.reference.as_ref().map(|(name, version)| (name.as_str(), *version))
    }

    /// What an operator should see besides the verdict.
    pub fn notes(&self) -> &[Note] {
        &self.fresh.notes
    }

    /// The node; `None` while it enrols.
    pub const fn node(&self) -> Option<NodeId> {
        self.claims().node
    }

    /// The nonce it answered.
    pub const fn nonce(&self) -> &[u8; 32] {
        &self.claims().nonce
    }

    /// The quoted PCRs.
    pub const fn pcrs(&self) -> &PcrValues {
        &self.claims().pcrs
    }

    /// The TPM's clock and reset counts.
    pub const fn clock_info(&self) -> ClockInfo {
        self.fresh.authentic.quote.clock_info
    }

    /// The TPM's firmware version.
    pub const fn firmware_version(&self) -> u64 {
        self.fresh.authentic.quote.firmware_version
    }

    /// The boot it speaks for.
    pub const fn boot_id(&self) -> BootId {
        self.claims().boot_id
    }

    /// When the agent began its request, on its own clock.
    pub const fn requested_at(&self) -> BootInstant {
        self.claims().requested_at
    }

    /// The attestation key's name.
    pub fn ak_name(&self) -> Vec<u8> {
        self.fresh.authentic.keys.ak.name()
    }

    /// The node key's name.
    pub fn node_key_name(&self) -> Vec<u8> {
        self.fresh.authentic.keys.node_key.name()
    }

    /// The agent's version, as it says itself.
    pub fn agent_version(&self) -> &str {
        &self.claims().agent_version
    }

    /// SHA-256 of the agent's binary, as it says itself.
    pub const fn agent_digest(&self) -> &[u8; 32] {
        &self.claims().agent_digest
    }

    /// The digest of each log the quote is bound to.
    pub fn log_digests(&self) -> &[[u8; 32]] {
        &self.claims().log_digests
    }

    /// The withdrawals that the node applied, as it says itself.
    pub fn withdrawn(&self) -> &[u64] {
        &self.claims().withdrawn
    }

    const fn claims(&self) -> &NodeClaims {
        &self.fresh.authentic.claims
    }
}
