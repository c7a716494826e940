//! What `status` says, as a value with a versioned JSON form.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::journal::Standing as JournalStanding;
use super::keeper::{Keeper, Said};
use crate::clock::BootInstant;
use crate::codes::Refusal;
use crate::gate::Standing;
use crate::tpm::PcrDifference;
use crate::verify::appraisal::{Finding, LayerResult, LayerStanding};

/// The node as its agent sees it. Schema version 1; names stay.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Status {
    /// 1.
    pub schema: u32,
    /// The agent's version.
    pub version: String,
    /// The trust domain.
    pub trust_domain: String,
    /// The node id, once the control plane has told it.
    pub node: Option<String>,
    /// affirming, stale, unreachable or contraindicated.
    pub standing: Standing,
    /// Why it isn't affirming.
    pub reason: Option<Refusal>,
    /// Every PCR that differs from the lease or from its reference value.
    pub differences: Vec<PcrDifference>,
    /// The lease, if there is one.
    pub lease: Option<LeaseStatus>,
    /// What the control plane last said of each layer of the node, where its logs are appraised.
    #[serde(default)]
    pub layers: Vec<LayerResult>,
    /// What it found there, the worst first.
    #[serde(default)]
    pub findings: Vec<Finding>,
    /// The workloads registered for this node.
    pub workloads: Vec<WorkloadStatus>,
    /// What the agent is waiting for or failing at, if anything.
    pub trouble: Option<Refusal>,
    /// The record of what was released, and how far the control plane has it.
    #[serde(default)]
    pub journal: JournalStanding,
}

/// The lease in force.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LeaseStatus {
    /// Its sequence number.
    pub sequence: u64,
    /// Whole seconds until its term ends.
    pub seconds_left: u64,
    /// The PCRs it stands on.
    pub selection: String,
    /// The version of the reference values it was granted on.
    pub reference_version: u64,
    /// TPM resets and restarts it is bound to.
    pub reset_count: u32,
    /// See `reset_count`.
    pub restart_count: u32,
    /// SHA-256 of the reference document whose rules new entries of IMA's list are judged by; without it
    /// PCR 10 may not change.
    #[serde(default)]
    pub rules: Option<String>,
    /// Entries that came since the lease was granted, all allowed.
    #[serde(default)]
    pub new_entries: u64,
}

/// A registered workload.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct WorkloadStatus {
    /// Its SPIFFE ID.
    pub id: String,
    /// Who answers for it.
    pub owner: String,
    /// What it is for.
    pub purpose: String,
    /// What a caller must match.
    pub selectors: Vec<String>,
    /// Whole seconds until the held SVID ends; `None` if none is held.
    pub svid_seconds_left: Option<u64>,
    /// Why nothing is issued for it now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub withheld: Option<Refusal>,
}

impl Status {
    /// The present status.
    pub(super) fn of(
        keeper: &Keeper,
        trust_domain: String,
        node: Option<String>,
        trouble: Option<Refusal>,
        journal: JournalStanding,
    ) -> Self {
        let now = BootInstant::now();
        let (Said { layers, findings }, new_entries) = keeper.log_standing();
        keeper.with_gate(|gate, tpm_trouble, store| {
            // An open gate that can't be judged releases nothing: stale, and the TPM is why.
            let (standing, reason) = match (gate.reason(), tpm_trouble) {
                (Some(reason), _) => (reason.standing, Some(reason.refusal.clone())),
                (None, Some(error)) => (Standing::Stale, Some(error.clone().into())),
                (None, None) => (Standing::Affirming, None),
            };
            Self {
                schema: 1,
                version: env!("CARGO_PKG_VERSION").to_owned(),
                trust_domain,
                node,
                standing,
                reason,
                differences: gate.reason().map(|reason| reason.differences.clone()).unwrap_or_default(),
                lease: gate.lease().map(|lease| {
                    let claims = lease.claims();
                    LeaseStatus {
                        sequence: claims.sequence,
                        seconds_left: lease.ends_at().since(now).as_secs(),
                        selection: claims.pcrs.selection().to_string(),
                        reference_version: claims.reference_version,
                        reset_count: claims.counts.reset,
                        restart_count: claims.counts.restart,
                        rules: claims.rules.map(hex::encode),
                        new_entries,
                    }
                }),
                layers,
                findings,
                workloads: store
                    .entries()
                    .iter()
                    .map(|entry| WorkloadStatus {
                        id: entry.id.clone(),
                        owner: entry.owner.clone(),
                        purpose: entry.purpose.clone(),
                        selectors: entry.selectors.clone(),
                        svid_seconds_left: store.svid(&entry.id).map(|held| held.until().since(now).as_secs()),
                        withheld: entry.withheld.clone(),
                    })
                    .collect(),
                trouble,
                journal,
            }
        })
    }

    /// The exit code that tells a script: 0, 4 contraindicated, 5 unavailable.
    pub const fn exit_code(&self) -> u8 {
        match self.standing {
            // Nothing is released that can't be recorded.
            Standing::Affirming if self.journal.trouble.is_some() => 5,
            Standing::Affirming => 0,
            Standing::Contraindicated => 4,
            Standing::Stale | Standing::Unreachable => 5,
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "standing      {}", self.standing)?;
        writeln!(f, "trust domain  {}", self.trust_domain)?;
        writeln!(f, "node          {}", self.node.as_deref().unwrap_or("not known yet"))?;
        if let Some(lease) = &self.lease {
            writeln!(
                f,
                "lease         {}, {} s left, on {}, references version {}",
                lease.sequence, lease.seconds_left, lease.selection, lease.reference_version
            )?;
        }
        if let Some(lease) = self.lease.as_ref().filter(|lease| lease.rules.is_some()) {
            writeln!(f, "since then    {} new entries in IMA's list, all allowed", lease.new_entries)?;
        }
        for layer in &self.layers {
            writeln!(f, "layer         {}", words_of(layer))?;
        }
        for finding in &self.findings {
            writeln!(f, "found         {}: {}", finding.layer, finding.refusal)?;
            if !finding.accept.is_empty() {
                writeln!(f, "              if that is right: {}", finding.accept)?;
            }
        }
        if let Some(reason) = &self.reason {
            writeln!(f, "reason        {reason}")?;
        }
        for difference in &self.differences {
            writeln!(f, "difference    {difference}")?;
        }
        if let Some(trouble) = self.trouble.as_ref().filter(|trouble| Some(*trouble) != self.reason.as_ref()) {
            writeln!(f, "trouble       {trouble}")?;
        }
        let journal = &self.journal;
        writeln!(
            f,
            "journal       {} records, {} delivered, {} of {} KiB used",
            journal.number,
            journal.acknowledged,
            journal.waiting_bytes >> 10,
            journal.limit_bytes >> 10
        )?;
        if let Some(trouble) = &journal.trouble {
            writeln!(f, "journal       nothing is released: {trouble}")?;
        }
        for workload in &self.workloads {
            let held = workload
                .svid_seconds_left
                .map_or_else(|| "no SVID held".to_owned(), |seconds| format!("SVID for another {seconds} s"));
            writeln!(f, "workload      {} ({}; {held})", workload.id, workload.selectors.join(" "))?;
            if let Some(withheld) = &workload.withheld {
                writeln!(f, "  withheld    {withheld}")?;
            }
        }
        Ok(())
    }
}

/// A layer in one line.
fn words_of(layer: &LayerResult) -> String {
    let standing = match layer.standing {
        LayerStanding::Affirmed => "affirmed",
        LayerStanding::NotProven => "not proven",
        LayerStanding::Warned => "warned",
        LayerStanding::Contraindicated => "contraindicated",
    };
    format!("{} {standing}: {}", layer.layer, layer.why)
}
