//! Third and fourth question: do the logs lead to these PCRs, and are they as they should be?

use std::time::Duration;

use super::endorsement::Grade;
use super::fresh::{Fresh, Note};
use super::lease::LeaseClaims;
use super::references::LearntSet;
use super::trust::TrustVector;
use crate::clock::{BootId, BootInstant, WallTime};
use crate::codes::{self, Refusal};
use crate::evidence::NodeClaims;
use crate::identity::NodeId;
use crate::tpm::structures::ClockInfo;
use crate::tpm::{PcrDifference, PcrValues};

/// Fresh evidence whose logs replay to its PCRs. Evidence has no logs yet, so nothing of any log
/// is believed: the values stand for themselves.
#[derive(Clone, Debug)]
pub struct Replayed(Fresh);

/// An attestation result: authentic, fresh, replayed and held against reference values.
#[derive(Clone, Debug)]
pub struct Appraised {
    replayed: Replayed,
    verdict: Verdict,
    differences: Vec<PcrDifference>,
    vector: TrustVector,
    reference: Option<(String, u64)>,
}

/// What follows for the node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Every PCR has its reference value.
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
    /// Replays the logs. There are none in this version of the evidence.
    pub fn replay(self, _logs: ()) -> Replayed {
        Replayed(self)
    }
}

impl Replayed {
    /// Holds the PCRs against `references`; `None` if the node has none.
    ///
    /// This never fails: a bad node has a verdict, with what is wrong:
    /// [`codes::VERIFY_NO_REFERENCE`] when the node, or a PCR it quoted, has no reference value,
    /// [`codes::VERIFY_PCR_MISMATCH`] naming the first PCR that differs.
    pub fn appraise(self, references: Option<&LearntSet>) -> Appraised {
        let pcrs = &self.0.authentic.claims.pcrs;
        let Some(references) = references else {
            let refusal = Refusal::new(codes::VERIFY_NO_REFERENCE, "no reference values for this node");
            return Appraised {
                replayed: self,
                verdict: Verdict::Contraindicated(refusal),
                differences: Vec::new(),
                vector: TrustVector::known(),
                reference: None,
            };
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
        Appraised { replayed: self, verdict, differences, vector, reference }
    }
}

impl Appraised {
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
        let certified = terms.grade == Grade::Certified;
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
            vector: if certified { self.vector.genuine() } else { self.vector },
            issued_at: terms.issued_at,
            epoch: terms.epoch,
            rules: None,
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

    /// The AR4SI claims.
    pub const fn vector(&self) -> TrustVector {
        self.vector
    }

    /// What an operator should see besides the verdict.
    pub fn notes(&self) -> &[Note] {
        &self.replayed.0.notes
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
        self.replayed.0.authentic.quote.clock_info
    }

    /// The TPM's firmware version.
    pub const fn firmware_version(&self) -> u64 {
        self.replayed.0.authentic.quote.firmware_version
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
        self.replayed.0.authentic.keys.ak.name()
    }

    /// The node key's name.
    pub fn node_key_name(&self) -> Vec<u8> {
        self.replayed.0.authentic.keys.node_key.name()
    }

    /// The agent's version, as it says itself.
    pub fn agent_version(&self) -> &str {
        &self.claims().agent_version
    }

    /// SHA-256 of the agent's binary, as it says itself.
    pub const fn agent_digest(&self) -> &[u8; 32] {
        &self.claims().agent_digest
    }

    /// SHA-256 of each log segment the quote is bound to.
    pub fn log_digests(&self) -> &[[u8; 32]] {
        &self.claims().log_digests
    }

    const fn claims(&self) -> &NodeClaims {
        &self.replayed.0.authentic.claims
    }
}
