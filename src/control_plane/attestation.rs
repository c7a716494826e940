//! Attestation: evidence in, a lease or the reason for none out.

use std::time::Duration;

use p256::ecdsa::signature::hazmat::PrehashSigner;
use serde_bytes::ByteBuf;

use super::audit;
use super::authn::Peer;
use super::issuer;
use super::leases;
use super::nonces::{self, Purpose};
use super::references::{self, Quote};
use super::registry::nodes::{self, Node};
use super::registry::workloads::{self, Workload};
use super::server::Shared;
use super::store::Transaction;
use crate::clock::WallTime;
use crate::codes::{self, Refusal};
use crate::evidence::UnverifiedEvidence;
use crate::identity::NodeId;
use crate::protocol::{AttestAnswer, AttestRequest};
use crate::verify::{AkPublic, Appraised, EnrolledKeys, LearntSet, LeaseTerms, NodeKey, Verdict, authenticate};

/// The name of reference values that were learnt from the node itself, in its leases.
const LEARNT: &str = "learnt";

/// Verifies evidence of `node`, which came over the connection of `peer`, and answers it.
///
/// # Errors
/// The verifier's and the nonces'. A contraindicated node is no error but an answer without a lease.
pub fn attest(
    tx: &Transaction<'_>,
    shared: &Shared,
    node: &Node,
    peer: &Peer,
    request: &AttestRequest,
    now: WallTime,
) -> Result<AttestAnswer, Refusal> {
    let evidence = UnverifiedEvidence::decode(&request.evidence)?;
    // The nonce first: a replay costs no signature check.
    let nonce = *evidence.unverified_nonce();
    let age = nonces::spend(tx, &nonce, node.id, Purpose::Attest, now)?;
    let appraised = match verify(tx, shared, node, peer, evidence, &nonce, age, now) {
        Ok(appraised) => appraised,
        Err(refusal) => {
            // Evidence over a nonce of its own that doesn't verify is not a fault of the line.
            leases::end(tx, node.id, refusal.code)?;
            return Err(refusal);
        }
    };
    references::keep_quote(tx, node.id, &quote_of(&appraised, now))?;
    for note in appraised.notes() {
        audit::done(tx, now, "node.noted", Some(node.id), serde_json::json!({ "note": note.to_string() }))?;
    }
    let (lease, refusal) = match appraised.verdict() {
        Verdict::Affirming => (Some(grant(tx, shared, node, &appraised, now)?), None),
        Verdict::Contraindicated(refusal) => {
            leases::end(tx, node.id, refusal.code)?;
            audit::refused(tx, now, refusal, Some(node.id), "attestation")?;
            (None, Some(refusal.clone()))
        }
    };
    nodes::seen(tx, node.id, now, refusal.as_ref())?;
    let entries = match lease {
        // A node without a lease needs to know nothing.
        None => Vec::new(),
        Some(_) => workloads::of_node(tx, node)?.iter().map(Workload::entry).collect(),
    };
    Ok(AttestAnswer {
        lease,
        refusal,
        differences: appraised.differences().to_vec(),
        next: nonces::issue(
            tx,
            node.id,
            Purpose::Attest,
            now,
            shared.settings.lease.as_secs(),
            shared.settings.selection,
        )?,
        entries,
        bundle: shared.authority.current().bundle.clone(),
        certificate: renew(tx, shared, node, peer, now)?,
        layers: Vec::new(),
        findings: Vec::new(),
        position: None,
    })
}

/// The reference values of a node as the verifier takes them.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn references_of(tx: &Transaction<'_>, node: NodeId) -> Result<Option<LearntSet>, Refusal> {
    Ok(references::active(tx, node)?.map(|reference| LearntSet {
        profile: LEARNT.to_owned(),
        version: reference.version,
        values: reference.pcrs,
    }))
}

/// What is kept of a verified quote.
pub fn quote_of(appraised: &Appraised, now: WallTime) -> Quote {
    let clock = appraised.clock_info();
    Quote {
        received_at: now,
        pcrs: appraised.pcrs().clone(),
        counts: clock.counts,
        clock_ms: clock.clock_ms,
        boot_id: appraised.boot_id(),
        requested_at: appraised.requested_at(),
        verdict: match appraised.verdict() {
            Verdict::Affirming => "affirming".to_owned(),
            Verdict::Contraindicated(refusal) => refusal.code.to_string(),
        },
        differences: appraised.differences().to_vec(),
    }
}

/// A short text an agent says of itself.
///
/// # Errors
/// [`codes::PROTOCOL_MALFORMED`].
pub fn printable(text: &str) -> Result<String, Refusal> {
    match text.len() <= 64 && text.bytes().all(|byte| byte.is_ascii_graphic()) {
        true => Ok(text.to_owned()),
        false => Err(Refusal::new(codes::PROTOCOL_MALFORMED, "it is too long or not plain")
            .at("agent_version")
            .expected("at most 64 printable ASCII characters")),
    }
}

#[expect(clippy::too_many_arguments, reason = "the inputs of one verification, each of another kind")]
fn verify(
    tx: &Transaction<'_>,
    shared: &Shared,
    node: &Node,
    peer: &Peer,
    evidence: UnverifiedEvidence,
    nonce: &[u8; 32],
    age: Duration,
    now: WallTime,
) -> Result<Appraised, Refusal> {
    let keys = EnrolledKeys {
        node: Some(node.id),
        ak: AkPublic::parse(&node.ak_public)?,
        node_key: NodeKey::parse(&node.node_key_public)?,
        certification_nonce: node.certification(evidence.unverified_certification_nonce()),
    };
    let prior = references::high_water(tx, node.id, now)?;
    let fresh = authenticate(evidence, &keys, Some(&peer.spki))?.fresh(
        nonce,
        shared.settings.selection,
        age,
        prior.as_ref(),
    )?;
    nodes::attested_with(tx, node, keys.certification_nonce)?;
    Ok(fresh.replay(()).appraise(references_of(tx, node.id)?.as_ref()))
}

/// Begins a lease and signs it.
fn grant(
    tx: &Transaction<'_>,
    shared: &Shared,
    node: &Node,
    appraised: &Appraised,
    now: WallTime,
) -> Result<Vec<u8>, Refusal> {
    let sequence = leases::grant(tx, node.id, now, shared.settings.lease)?;
    let grade = node.grade.parse().map_err(|_| super::store::damaged("a node's grade"))?;
    let terms = LeaseTerms { sequence, term: shared.settings.lease, issued_at: now, epoch: shared.epoch, grade };
    let claims = appraised.lease(&terms)?;
    let issuing = shared.authority.current();
    let unsigned = claims.unsigned(&issuer::spki_of_key(issuing.ca.signing_key())?);
    let signature = issuing
        .ca
        .signing_key()
        .sign_prehash(&unsigned.digest())
        .map_err(|e| Refusal::new(codes::STORE_FAILED, format!("BUG: a lease can't be signed: {e}")))?;
    let detail = serde_json::json!({
        "sequence": sequence, "term_seconds": shared.settings.lease.as_secs(), "reference": claims.reference_version,
        "reset_count": claims.counts.reset, "restart_count": claims.counts.restart,
    });
    audit::done(tx, now, "lease.granted", Some(node.id), detail)?;
    Ok(unsigned.finish(signature))
}

/// A new node certificate, once the present one is past half its life.
fn renew(
    tx: &Transaction<'_>,
    shared: &Shared,
    node: &Node,
    peer: &Peer,
    now: WallTime,
) -> Result<Option<Vec<ByteBuf>>, Refusal> {
    if now < peer.half_life {
        return Ok(None);
    }
    let issuing = shared.authority.current();
    let id = node.id.spiffe_id(&shared.settings.trust_domain);
    let leaf = issuing.issue(tx, &id, &node.node_key_spki, now, shared.settings.own_certificates)?;
    let detail = serde_json::json!({ "serial": hex::encode(&leaf.serial), "until": leaf.not_after.to_string() });
    audit::done(tx, now, "node.certificate_renewed", Some(node.id), detail)?;
    Ok(Some(issuing.chain(&leaf)))
}
