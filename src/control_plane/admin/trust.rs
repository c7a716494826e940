//! Commands about what is trusted: reference values, CAs, and the record of it all.

use serde_json::json;

use super::commands::{Outcome, only};
use super::facts::QuoteFacts;
use crate::clock::WallTime;
use crate::codes::{self, Refusal};
use crate::control_plane::ca::{self, Authority};
use crate::control_plane::credentials::ledger::{self, Kind, Of};
use crate::control_plane::effects::Effects;
use crate::control_plane::events::Audience;
use crate::control_plane::registry::{names, nodes};
use crate::control_plane::revocation::{self, Cause};
use crate::control_plane::server::Shared;
use crate::control_plane::store::{Transaction, meta};
use crate::control_plane::{audit, leases, published, references, replay};
use crate::protocol::Event;
use crate::verify::references::Policy;

/// What `reference learn` would learn: to be shown before it is confirmed.
///
/// # Errors
/// [`codes::ADMIN_UNKNOWN`] when no quote of the node was verified yet, [`codes::VERIFY_REFERENCE_SIGNATURE`]
/// where reference values must be signed.
pub fn reference_preview(tx: &Transaction<'_>, policy: &Policy, node: &str) -> Result<Outcome, Refusal> {
    unsigned(policy)?;
    let node = nodes::resolve(tx, node)?;
    let quote = references::latest_quote(tx, node.id)?.ok_or_else(|| references::no_quote(node.id))?;
    let before = references::active(tx, node.id)?;
    let differences = before.as_ref().map(|before| quote.pcrs.differences(&before.pcrs)).unwrap_or_default();
    Ok(only(json!({
        "schema": 1,
        "node": node.id.to_string(),
        "state": node.state,
        "grade": node.grade,
        "quote": QuoteFacts::of(&quote),
        "fingerprint": references::fingerprint(&quote.pcrs),
        "replaces_version": before.map(|before| before.version),
        "differences": differences,
    })))
}

/// Makes the PCRs of the node's latest verified quote its reference values.
///
/// # Errors
/// As [`references::learn`] and [`reference_preview`].
pub fn reference_learn(
    tx: &Transaction<'_>,
    policy: &Policy,
    node: &str,
    fingerprint: &str,
    now: WallTime,
) -> Result<Outcome, Refusal> {
    unsigned(policy)?;
    let node = nodes::resolve(tx, node)?;
    let (reference, changed) = references::learn(tx, node.id, fingerprint, now)?;
    let mut effects = Effects::default();
    if changed {
        // A lease on the values before ends with them.
        leases::end(tx, node.id, codes::VERIFY_NO_REFERENCE)?;
        let detail = json!({ "version": reference.version, "pcrs": reference.pcrs.to_hex() });
        audit::done(tx, now, "reference.learnt", Some(node.id), detail)?;
        effects = Effects { push: vec![(Audience::Node(node.id), Event::Attest)], taken: true, ..Effects::default() };
    }
    let facts = json!({
        "schema": 1, "changed": changed, "node": node.id.to_string(),
        "version": reference.version, "selection": reference.pcrs.selection(), "pcrs": reference.pcrs.to_hex(),
    });
    Ok((facts, effects))
}

/// All reference values.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn reference_list(tx: &Transaction<'_>) -> Result<Outcome, Refusal> {
    let sets = references::documents::all(tx)?;
    Ok(only(json!({ "schema": 1, "references": references::all(tx)?, "sets": sets })))
}

/// Retires a node's reference values: its lease ends and it gets none until it has others.
///
/// # Errors
/// [`codes::ADMIN_UNKNOWN`].
pub fn reference_retire(tx: &Transaction<'_>, node: &str, now: WallTime) -> Result<Outcome, Refusal> {
    let node = nodes::resolve(tx, node)?;
    references::retire(tx, node.id, now)?;
    leases::end(tx, node.id, codes::VERIFY_NO_REFERENCE)?;
    audit::done(tx, now, "reference.retired", Some(node.id), json!({}))?;
    let facts = json!({ "schema": 1, "changed": true, "node": node.id.to_string() });
    Ok((facts, Effects { push: vec![(Audience::Node(node.id), Event::Attest)], taken: true, ..Effects::default() }))
}

/// All CAs and the bundle's sequence number.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn ca_show(tx: &Transaction<'_>) -> Result<Outcome, Refusal> {
    Ok(only(ca_facts(tx, None)?))
}

/// Publishes the next CA.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn ca_prepare(tx: &Transaction<'_>, authority: &Authority, now: WallTime) -> Result<Outcome, Refusal> {
    let changed = authority.prepare(tx, now)?;
    if changed {
        replay::forget(tx, None)?;
        audit::done(tx, now, "ca.prepared", None, json!({}))?;
    }
    Ok((ca_facts(tx, Some(changed))?, Effects { ca: changed, ..Effects::default() }))
}

/// Makes the prepared CA the active one.
///
/// # Errors
/// As [`Authority::rotate`].
pub fn ca_rotate(tx: &Transaction<'_>, authority: &Authority, early: bool, now: WallTime) -> Result<Outcome, Refusal> {
    authority.rotate(tx, now, early)?;
    replay::forget(tx, None)?;
    audit::done(tx, now, "ca.rotated", None, json!({ "early": early }))?;
    Ok((ca_facts(tx, Some(true))?, Effects { ca: true, taken: true, ..Effects::default() }))
}

/// Breaks glass: takes a CA out of the bundle now, with everything that it signed.
///
/// # Errors
/// As [`Authority::remove`].
pub fn ca_remove(
    tx: &Transaction<'_>,
    authority: &Authority,
    named: &str,
    reason: &str,
    now: WallTime,
) -> Result<Outcome, Refusal> {
    names::text("--reason", reason)?;
    let removed = authority.remove(tx, named, reason, now)?;
    let mut ended = ledger::end(tx, Of::Signer(Kind::X509, removed.id), codes::GATE_REVOKED, reason, now)?.len();
    for signer in &removed.signers {
        ended += ledger::end(tx, Of::Signer(Kind::Jwt, *signer), codes::GATE_REVOKED, reason, now)?.len();
    }
    let cause = Cause { kind: "ca", target: &removed.hash, reason, code: codes::GATE_REVOKED };
    let number = revocation::numbered(tx, &cause, ended, now)?;
    replay::forget(tx, None)?;
    let detail = json!({ "ca": removed.hash, "reason": reason, "credentials": ended, "revocation": number });
    audit::done(tx, now, "ca.removed", None, detail)?;
    let mut facts = ca_facts(tx, Some(true))?;
    if let Some(facts) = facts.as_object_mut() {
        facts.insert("removed".to_owned(), json!(removed.hash));
        facts.insert("revocation".to_owned(), json!(number));
        facts.insert("credentials".to_owned(), json!(ended));
    }
    Ok((facts, Effects { ca: true, taken: true, ..Effects::default() }))
}

/// A CA's revocation list.
///
/// # Errors
/// As [`published::crl`].
pub fn ca_crl(tx: &Transaction<'_>, shared: &Shared, named: Option<&str>, now: WallTime) -> Result<Outcome, Refusal> {
    let crl = published::crl(tx, shared, named, now)?;
    Ok(only(json!({
        "schema": 1,
        "key_id": crl.key_id,
        "number": crl.number,
        "this_update": crl.this_update.to_string(),
        "next_update": crl.next_update.to_string(),
        "revoked": crl.revoked.len(),
        "crl": hex::encode(crl.der.as_slice()),
    })))
}

/// Whether values that nobody signed may come into force.
fn unsigned(policy: &Policy) -> Result<(), Refusal> {
    match policy.is_empty() {
        true => Ok(()),
        false => Err(Refusal::new(codes::VERIFY_REFERENCE_SIGNATURE, "nobody signs values learnt from a node")
            .at("policy.keys")
            .expected("`reference learn --profile`, then `sign`, `import` and `assign`")),
    }
}

fn ca_facts(tx: &Transaction<'_>, changed: Option<bool>) -> Result<serde_json::Value, Refusal> {
    let cas = ca::facts(tx)?;
    Ok(json!({
        "schema": 1,
        "changed": changed,
        "ca_hash": cas.iter().find(|ca| ca.state == "active").map(|ca| ca.hash.clone()),
        "bundle_sequence": meta::number(tx, "bundle_sequence")?,
        "cas": cas,
    }))
}
