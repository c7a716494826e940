//! `probe` and `join`: what this TPM is, and whether the control plane admits it.

use std::time::Duration;

use serde::Serialize;

use super::print_json;
use super::profile::{self, ProbedProfile};
use crate::agent::attester::Attester;
use crate::agent::run::anchors;
use crate::agent::state::{Memory, Remembered};
use crate::codes::{Refusal, exit};
use crate::config::AgentConfig;
use crate::identity::{NodeId, TrustDomain};
use crate::output::say;
use crate::protocol::{Enrolment, Unenrolled};
use crate::tpm::structures::Public;
use crate::tpm::{EkPublic, Tpm, TpmAddress};

/// What `probe` found. Schema version 1.
#[derive(Debug, Serialize)]
struct Probe {
    schema: u32,
    manufacturer: String,
    firmware_version: String,
    endorsement_keys: Vec<ProbedEk>,
    attestation_key_name: String,
    node_key_name: String,
    profile: ProbedProfile,
    notes: Vec<String>,
}

#[derive(Debug, Serialize)]
struct ProbedEk {
    name: String,
    key: String,
    certificate: bool,
    used: bool,
}

/// `leasehold-agent probe`.
pub async fn probe(address: &str, json: bool) -> anyhow::Result<u8> {
    // Names don't depend on the trust domain but for the node key's, and probing needs none.
    let trust_domain = TrustDomain::new("probe.invalid")?;
    let (tpm, thread) = Tpm::spawn(TpmAddress::parse(address)?, Duration::from_secs(120), &trust_domain)?;
    let attester = Attester::new(tpm).await;
    let found = attester.map(|attester| describe(&attester));
    thread.stop(Duration::from_secs(5))?;
    let found = found??;
    if json {
        print_json(&found)?;
        return Ok(exit::DONE);
    }
    say!("manufacturer     {} (firmware {})", found.manufacturer, found.firmware_version);
    for ek in &found.endorsement_keys {
        let used = if ek.used { ", used" } else { "" };
        let certificate = if ek.certificate { "with certificate" } else { "without certificate" };
        say!("endorsement key  {} {certificate}{used}\n                 name {}", ek.key, ek.name);
    }
    say!("attestation key  P-256, restricted, name {}", found.attestation_key_name);
    found.profile.print();
    for note in &found.notes {
        say!("note             {note}");
    }
    Ok(exit::DONE)
}

fn describe(attester: &Attester) -> Result<Probe, Refusal> {
    let identity = attester.identity();
    let describe_ek = |ek: &EkPublic, used: bool| -> Result<ProbedEk, Refusal> {
        let public = Public::parse(&ek.public)?;
        let name = hex::encode(public.name());
        Ok(ProbedEk { name, key: public.kind.to_string(), certificate: ek.certificate.is_some(), used })
    };
    let mut endorsement_keys = vec![describe_ek(&identity.ek, true)?];
    for alias in &identity.aliases {
        endorsement_keys.push(describe_ek(alias, false)?);
    }
    let mut notes = Vec::new();
    if identity.ek.certificate.is_none() {
        notes.push(
            "no EK certificate in the TPM: its grade is `unknown`, or `listed` where an operator imports the EK's name"
                .to_owned(),
        );
    }
    Ok(Probe {
        schema: 1,
        manufacturer: identity.manufacturer.clone(),
        firmware_version: format!("{:#018x}", identity.firmware_version),
        endorsement_keys,
        attestation_key_name: hex::encode(attester.ak.name()),
        node_key_name: hex::encode(attester.node_key.name()),
        profile: profile::detect(&identity.manufacturer),
        notes,
    })
}

/// What `join` says. Schema version 1.
#[derive(Debug, Serialize)]
struct Joined {
    schema: u32,
    node: String,
    admitted: bool,
    waiting: Option<Refusal>,
}

/// `leasehold-agent join`.
pub async fn join(config: AgentConfig, json: bool) -> anyhow::Result<u8> {
    let unenrolled =
        Unenrolled::new(&config.control_plane.address, config.trust_domain.clone(), anchors(&config.control_plane)?);
    let memory = Memory::in_directory(&config.state_dir)?;
    let (tpm, thread) =
        Tpm::spawn(TpmAddress::parse(&config.tpm.address)?, Duration::from_secs(120), &config.trust_domain)?;
    let outcome = enrol(&config.trust_domain, &unenrolled, &memory, tpm).await;
    thread.stop(Duration::from_secs(5))?;
    let joined = outcome?;
    if json {
        print_json(&joined)?;
    } else if let Some(waiting) = &joined.waiting {
        say!("node {} is not admitted yet\n{waiting}", joined.node);
    } else {
        say!("node {} is admitted; start it with `leasehold-agent run`", joined.node);
    }
    Ok(if joined.admitted { exit::DONE } else { exit::UNAVAILABLE })
}

async fn enrol(
    trust_domain: &TrustDomain,
    unenrolled: &Unenrolled,
    memory: &Memory,
    tpm: Tpm,
) -> anyhow::Result<Joined> {
    let attester = Attester::new(tpm).await?;
    let refusal = |failure: crate::protocol::Failure| failure.refusal().clone();
    let challenge = unenrolled.begin(&attester.presentation()).await.map_err(refusal)?;
    let (answer, certification) = attester.answer(&challenge).await?;
    Ok(match unenrolled.answer(&answer).await.map_err(refusal)? {
        Enrolment::Admitted(membership, _) => {
            let node = NodeId::from_bytes(membership.node).to_string();
            let mut remembered = Remembered::new(trust_domain, &attester, membership, certification)?;
            // The sequence floor of an earlier membership of this TPM stays.
            if let Some(old) = memory.recall(trust_domain, &attester) {
                (remembered.epoch, remembered.last_sequence) = (old.epoch, old.last_sequence);
            }
            memory.keep(&remembered)?;
            Joined { schema: 1, node, admitted: true, waiting: None }
        }
        Enrolment::Waiting { node, refusal, .. } => {
            Joined { schema: 1, node: node.to_string(), admitted: false, waiting: Some(refusal) }
        }
    })
}
