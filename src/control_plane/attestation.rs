//! Attestation: evidence in, a lease or the reason for none out.

use std::time::Duration;

use p256::ecdsa::signature::hazmat::PrehashSigner;
use serde_bytes::ByteBuf;
use sha2::{Digest, Sha256};

use super::audit;
use super::authn::Peer;
use super::basis::{self, Basis};
use super::effects::Effects;
use super::issuer;
use super::leases;
use super::logs::{self, Progress};
use super::nonces::{self, Purpose};
use super::policy::standing;
use super::references::{self, Quote};
use super::registry::nodes::{self, Node};
use super::registry::workloads;
use super::revocation::counts::{self, Step};
use super::revocation::words;
use super::server::Shared;
use super::store::Transaction;
use crate::clock::{BootId, BootInstant, WallTime};
use crate::codes::{self, Refusal};
use crate::evidence::{LogKind, UnverifiedEvidence};
use crate::identity::NodeId;
use crate::protocol::{AttestAnswer, AttestRequest, ListPosition, LogsHeld, LogsRequest};
use crate::tpm::PcrSelection;
use crate::verify::appraisal::{ImaLog, Logs};
use crate::verify::endorsement;
use crate::verify::references::Policy;
use crate::verify::runtime::{Checkpoint, Judge};
use crate::verify::{
    AkPublic, Appraised, EnrolledKeys, Fresh, Grade, LearntSet, LeaseTerms, NodeKey, Verdict, authenticate,
};

/// The name of reference values that were learnt from the node itself, in its leases.
const LEARNT: &str = "learnt";
/// How much of IMA's list is taken in at a time, in bytes: everybody else waits for the one writer meanwhile.
const PIECE: u64 = 4 << 20;
/// What is left of it for the attestation, in bytes: the kernel lists an entry before it extends it, so the last
/// ones may be ahead of a quote.
const MARGIN: u64 = 256 << 10;

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
    effects: &mut Effects,
) -> Result<AttestAnswer, Refusal> {
    let evidence = UnverifiedEvidence::decode(&request.evidence)?;
    // The nonce first: a replay costs no signature check.
    let nonce = *evidence.unverified_nonce();
    let age = nonces::spend(tx, &nonce, node.id, Purpose::Attest, now)?;
    let basis = match basis::of_node(tx, shared, node) {
        Ok(basis) => basis,
        Err(refusal) => {
            leases::end(tx, node.id, refusal.code)?;
            return Err(refusal);
        }
    };
    let selection = basis.as_ref().map_or(shared.settings.selection, |basis| basis.selection);
    let verified = verify(tx, node, peer, evidence, selection, &nonce, age, now)
        .and_then(|fresh| received(tx, shared, node, &fresh, request).map(|()| fresh));
    let fresh = match verified {
        Ok(fresh) => fresh,
        // About the line and who holds what, not about the node.
        Err(refusal) if matches!(refusal.code, codes::PROTOCOL_LOGS | codes::MEASUREMENTS_TOO_LARGE) => {
            return Err(refusal);
        }
        Err(refusal) => {
            // Evidence over a nonce of its own that doesn't verify is not a fault of the line.
            leases::end(tx, node.id, refusal.code)?;
            return Err(refusal);
        }
    };
    let appraised = match &basis {
        None => fresh.unlogged().appraise(references_of(tx, &shared.settings.policy, node.id)?.as_ref()),
        Some(basis) => appraise_logs(tx, node.id, basis, fresh, now)?,
    };
    let appraised = match node.ek_certificate.as_deref().and_then(endorsement::manufacturer) {
        Some(manufacturer) => {
            let version = appraised.firmware_version();
            appraised.held_to_floor(shared.settings.firmware.check(&manufacturer, version))
        }
        // Only a certificate says who made a TPM.
        None => appraised,
    };
    let profile = basis.as_ref().map_or("", |basis| basis.profile.name.as_str());
    let quote = quote_of(&appraised, grade_of(&node.grade)?, profile, &request.evidence, now);
    let before = references::latest_quote(tx, node.id)?;
    references::keep_quote(tx, node.id, &quote)?;
    logs::keep_report(tx, node.id, appraised.appraisal(), now)?;
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
    if before.is_none_or(|before| !before.says_as(&quote)) {
        // The node is told by what this answer leaves out, and with its next one.
        effects.taken |= standing::reconsider(tx, shared, node.id, now)?.taken;
    }
    nodes::seen(tx, node.id, now, refusal.as_ref())?;
    if lease.is_some() {
        for number in appraised.withdrawn() {
            words::note(tx, shared, node.id, *number, Step::Proven, BootInstant::now())?;
        }
    }
    let withdrawals = counts::outstanding(tx, node.id)?;
    for withdrawal in &withdrawals {
        words::note(tx, shared, node.id, withdrawal.number, Step::Told, BootInstant::now())?;
    }
    let entries = match lease {
        // A node without a lease needs to know nothing.
        None => Vec::new(),
        Some(_) => workloads::entries(tx, node)?,
    };
    Ok(AttestAnswer {
        lease,
        refusal,
        differences: appraised.differences().to_vec(),
        next: nonces::issue(tx, node.id, Purpose::Attest, now, shared.settings.lease.as_secs(), selection)?,
        entries,
        bundle: shared.authority.current().bundle.clone(),
        certificate: renew(tx, shared, node, peer, now)?,
        layers: appraised.appraisal().map(|said| said.layers.clone()).unwrap_or_default(),
        findings: appraised.appraisal().map(|said| said.findings.clone()).unwrap_or_default(),
        position: appraised.checkpoint().filter(|_| appraised.rules().is_some()).map(|at| ListPosition {
            entries: at.entries,
            offset: at.offset,
            padded: at.padded,
        }),
        withdrawals,
    })
}

/// The reference values of a node as the verifier takes them. Nobody signs what is learnt from a node: where
/// sets must be signed, it is none.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn references_of(tx: &Transaction<'_>, policy: &Policy, node: NodeId) -> Result<Option<LearntSet>, Refusal> {
    if !policy.is_empty() {
        return Ok(None);
    }
    Ok(references::active(tx, node)?.map(|reference| LearntSet {
        profile: LEARNT.to_owned(),
        version: reference.version,
        values: reference.pcrs,
    }))
}

/// What is kept of a verified quote, which came in `evidence` and was appraised under this firmware profile.
pub fn quote_of(appraised: &Appraised, grade: Grade, profile: &str, evidence: &[u8], now: WallTime) -> Quote {
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
        evidence: Some(Sha256::digest(evidence).into()),
        vector: appraised.vector_of(grade),
        profile: profile.to_owned(),
        references: appraised.reference().map(|(name, _)| name.to_owned()).unwrap_or_default(),
        firmware: format!("{:016x}", appraised.firmware_version()),
    }
}

/// A grade as the store has it.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn grade_of(text: &str) -> Result<Grade, Refusal> {
    text.parse().map_err(|_| super::store::damaged("a node's grade"))
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

/// Takes in a piece of what is held of the node's list; says whether there is more. To be repeated before its
/// attestation, which then has little left to do: the whole list is taken in anew under another document.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn catch_up(tx: &Transaction<'_>, shared: &Shared, node: &Node) -> Result<bool, Refusal> {
    match logs::boot(tx, node.id)? {
        Some(boot) => take_in(tx, shared, node, boot),
        None => Ok(false),
    }
}

/// Takes a part of a log ahead of an attestation, and says what is held. What came of IMA's list is
/// taken in at once, so that the attestation itself has little left to do.
///
/// # Errors
/// [`codes::MEASUREMENTS_TOO_LARGE`], [`codes::PROTOCOL_MALFORMED`].
pub fn receive_ahead(
    tx: &Transaction<'_>,
    shared: &Shared,
    node: &Node,
    request: &LogsRequest,
) -> Result<LogsHeld, Refusal> {
    let boot = BootId::from_bytes(request.boot_id);
    if let Some(part) = &request.part {
        match logs::append(tx, node.id, boot, part, shared.settings.node_logs) {
            Ok(()) if part.kind == LogKind::Ima => drop(take_in(tx, shared, node, boot)?),
            // Sent again, or out of step: what is held says where to go on.
            Ok(()) => {}
            Err(refusal) if refusal.code == codes::PROTOCOL_LOGS => {}
            Err(refusal) => return Err(refusal),
        }
    }
    logs::held(tx, node.id, boot)
}

/// The document that is assigned to the node, as it was signed.
///
/// # Errors
/// [`codes::VERIFY_NO_REFERENCE`] when there is none.
pub fn document(tx: &Transaction<'_>, shared: &Shared, node: &Node) -> Result<Vec<u8>, Refusal> {
    let basis = basis::of_node(tx, shared, node)?
        .ok_or_else(|| Refusal::new(codes::VERIFY_NO_REFERENCE, "no reference document is assigned to this node"))?;
    Ok(basis.document.bytes.clone())
}

#[expect(clippy::too_many_arguments, reason = "the inputs of one verification, each of another kind")]
fn verify(
    tx: &Transaction<'_>,
    node: &Node,
    peer: &Peer,
    evidence: UnverifiedEvidence,
    selection: PcrSelection,
    nonce: &[u8; 32],
    age: Duration,
    now: WallTime,
) -> Result<Fresh, Refusal> {
    let keys = EnrolledKeys {
        node: Some(node.id),
        ak: AkPublic::parse(&node.ak_public)?,
        node_key: NodeKey::parse(&node.node_key_public)?,
        certification_nonce: node.certification(evidence.unverified_certification_nonce()),
    };
    let prior = references::high_water(tx, node.id, now)?;
    let fresh = authenticate(evidence, &keys, Some(&peer.spki))?.fresh(nonce, selection, age, prior.as_ref())?;
    nodes::attested_with(tx, node, keys.certification_nonce)?;
    Ok(fresh)
}

/// Takes in what came with verified evidence: first what the quote is bound to, then what was read
/// after it.
fn received(
    tx: &Transaction<'_>,
    shared: &Shared,
    node: &Node,
    fresh: &Fresh,
    request: &AttestRequest,
) -> Result<(), Refusal> {
    let (boot, most) = (fresh.boot_id(), shared.settings.node_logs);
    for part in &request.logs {
        logs::append(tx, node.id, boot, part, most)?;
    }
    let bound = fresh.log_digests();
    // An agent of the version before sends no logs, and is appraised without.
    if !bound.is_empty() || !request.logs.is_empty() {
        let held = logs::digests(&logs::held(tx, node.id, boot)?);
        if held != bound {
            let words = |digests: &[[u8; 32]]| digests.iter().map(hex::encode).collect::<Vec<_>>().join(" ");
            return Err(Refusal::new(codes::VERIFY_LOGS, words(bound)).at("claim -65542").expected(words(&held)));
        }
    }
    for part in &request.tail {
        logs::append(tx, node.id, boot, part, most)?;
    }
    Ok(())
}

/// Replays what is held to the quote, IMA's list from the furthest place that leads to it, and holds the
/// result against the document.
fn appraise_logs(
    tx: &Transaction<'_>,
    node: NodeId,
    basis: &Basis,
    fresh: Fresh,
    now: WallTime,
) -> Result<Appraised, Refusal> {
    let (boot, digest) = (fresh.boot_id(), &basis.document.digest);
    // Evidence that is bound to no log has none, whatever another one brought.
    let sent = !fresh.log_digests().is_empty();
    let held = logs::held(tx, node, boot)?;
    let whole = |kind: LogKind| match sent && held.of(kind).length > 0 {
        true => logs::rest(tx, node, kind, 0).map(Some),
        false => Ok(None),
    };
    let (boot_log, userspace) = (whole(LogKind::Boot)?, whole(LogKind::Userspace)?);
    let has_list = sent && held.of(LogKind::Ima).length > 0;
    let Progress { matched, folded } = logs::progress(tx, node, boot, digest)?;
    // No quote is before the last one that was reached, so from there is as good as from the start. What was taken
    // in since is tried once more only where that isn't far: it would come to the same.
    let offset_of = |at: &Option<Checkpoint>| at.as_ref().map_or(0, |at| at.offset);
    let near = held.of(LogKind::Ima).length.saturating_sub(offset_of(&matched)) <= PIECE;
    let starts = match (folded.is_some(), near) {
        (true, true) => vec![folded, matched],
        (true, false) => vec![folded],
        (false, _) => vec![matched],
    };
    let mut fresh = fresh;
    let mut starts = starts.iter().peekable();
    while let Some(from) = starts.next() {
        let offset = from.as_ref().map_or(0, |from| from.offset);
        let rest = if has_list { logs::rest(tx, node, LogKind::Ima, offset)? } else { Vec::new() };
        let ima = has_list.then_some(ImaLog { from: from.as_ref(), rest: &rest });
        let logs = Logs { boot: boot_log.as_deref(), userspace: userspace.as_deref(), ima };
        match fresh.replay(&basis.profile, &logs, &basis.document.set, basis.rules.as_ref()) {
            Ok(replayed) => {
                let appraised = replayed.appraise_logs(&basis.profile, &basis.document, now);
                if let Some(matched) = appraised.checkpoint().cloned() {
                    let progress = Progress { matched: Some(matched), folded: None };
                    logs::keep_progress(tx, node, boot, digest, &progress)?;
                }
                return Ok(appraised);
            }
            Err(unreplayed) => {
                let astray = matches!(unreplayed.refusal().code, codes::VERIFY_LOG_REPLAY | codes::VERIFY_LOG_EXTENDED);
                if !astray || starts.peek().is_none() {
                    return Ok(unreplayed.appraised());
                }
                fresh = unreplayed.again();
            }
        }
    }
    // Not reached: there is always one start.
    Ok(fresh.unlogged().appraise(None))
}

/// Takes in a piece of IMA's list, and says whether there is more. What can't be read is for the attestation
/// to say, and so is what is wrong with the node's document.
fn take_in(tx: &Transaction<'_>, shared: &Shared, node: &Node, boot: BootId) -> Result<bool, Refusal> {
    let basis = match basis::of_node(tx, shared, node) {
        Ok(Some(basis)) => basis,
        Err(refusal) if refusal.code == codes::STORE_FAILED => return Err(refusal),
        Ok(None) | Err(_) => return Ok(false),
    };
    let digest = &basis.document.digest;
    let Progress { matched, folded } = logs::progress(tx, node.id, boot, digest)?;
    let at = folded.or_else(|| matched.clone()).unwrap_or_else(|| Checkpoint::start(basis.document.set.bank));
    let offset = at.offset;
    let left = |offset: u64, held: &LogsHeld| {
        held.of(LogKind::Ima).length.saturating_sub(offset).saturating_sub(MARGIN).min(PIECE)
    };
    let held = logs::held(tx, node.id, boot)?;
    let limit = usize::try_from(left(offset, &held)).unwrap_or(usize::MAX);
    if limit == 0 {
        return Ok(false);
    }
    let piece = logs::piece(tx, node.id, LogKind::Ima, offset, limit)?;
    let mut judge = Judge::new(basis.rules.as_ref(), at);
    let taken = judge.take(&piece, None);
    if judge.at.offset == offset {
        return Ok(false);
    }
    let more = taken.is_ok() && left(judge.at.offset, &held) > 0;
    logs::keep_progress(tx, node.id, boot, digest, &Progress { matched, folded: Some(judge.at) })?;
    Ok(more)
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
    let grade = grade_of(&node.grade)?;
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
