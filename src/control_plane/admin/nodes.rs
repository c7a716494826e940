//! Commands about nodes.

use std::collections::BTreeSet;

use serde_json::json;

use super::commands::{Outcome, only};
use super::facts::NodeFacts;
use super::registrations;
use crate::clock::WallTime;
use crate::codes::{self, Refusal};
use crate::control_plane::credentials::ledger::{self, Of};
use crate::control_plane::effects::Effects;
use crate::control_plane::events::Audience;
use crate::control_plane::references::documents;
use crate::control_plane::registry::nodes::{self, Node, State};
use crate::control_plane::registry::placement::{self, Place};
use crate::control_plane::registry::rules::Rules;
use crate::control_plane::registry::{ownership, workloads};
use crate::control_plane::revocation::{Cause, What, take_back};
use crate::control_plane::server::Shared;
use crate::control_plane::store::Transaction;
use crate::control_plane::{audit, authn, basis, leases, logs, references};
use crate::protocol::Event;
use crate::verify::appraisal::{Finding, LayerStanding};

/// All nodes.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn list(tx: &Transaction<'_>, now: WallTime) -> Result<Outcome, Refusal> {
    let nodes = nodes::all(tx)?.iter().map(|node| NodeFacts::of(tx, node, now)).collect::<Result<Vec<_>, Refusal>>()?;
    Ok(only(json!({ "schema": 1, "nodes": nodes })))
}

/// One node.
///
/// # Errors
/// As [`nodes::resolve`].
pub fn show(tx: &Transaction<'_>, node: &str, now: WallTime) -> Result<Outcome, Refusal> {
    let node = nodes::resolve(tx, node)?;
    Ok(only(facts(tx, &node, now, json!({}))?))
}

/// Why a node has, or has not, a lease: one step after the other, up to the first that doesn't hold.
///
/// # Errors
/// As [`nodes::resolve`].
pub fn explain(tx: &Transaction<'_>, shared: &Shared, node: &str, now: WallTime) -> Result<Outcome, Refusal> {
    let node = nodes::resolve(tx, node)?;
    let mut steps = vec![step(
        "its TPM proved that its keys are in it",
        true,
        format!("EK {}, grade `{}`", hex::encode(&node.ek_name), node.grade),
        None,
    )];
    steps.push(match node.state {
        State::Admitted => {
            let by = node.admitted_by.as_deref().unwrap_or("somebody");
            step("it is admitted", true, format!("by {by}"), None)
        }
        State::Waiting => step(
            "it is admitted",
            false,
            "nobody has named its EK, no join rule covers its grade, no operator approved it".to_owned(),
            Some(format!("leasehold-server node approve {}", node.id)),
        ),
        State::Revoked => step("it is admitted", false, authn::revoked(&node).found, None),
    });
    let assigned = documents::assigned(tx, &node)?;
    // With a document assigned, values that were learnt before it count no more; nor do they where sets are signed.
    let must_sign = !shared.settings.policy.is_empty();
    let reference = if assigned.is_some() || must_sign { None } else { references::active(tx, node.id)? };
    let report = logs::report(tx, node.id)?;
    steps.push(match &reference {
        _ if assigned.is_some() => match basis::of_node(tx, shared, &node) {
            Err(refusal) if refusal.code == codes::STORE_FAILED => return Err(refusal),
            Err(refusal) => step("it has reference values", false, refusal.to_string(), None),
            Ok(_) => {
                let name = assigned.unwrap_or_default();
                step("it has reference values", true, format!("the reference set `{name}`"), None)
            }
        },
        None if must_sign => step(
            "it has reference values",
            false,
            "none that a policy key signed".to_owned(),
            Some(format!("leasehold-server reference learn --node {} --profile …, then sign, import, assign", node.id)),
        ),
        Some(reference) => step("it has reference values", true, format!("version {}", reference.version), None),
        None => step(
            "it has reference values",
            false,
            "none".to_owned(),
            Some(format!("leasehold-server reference learn --node {}", node.id)),
        ),
    });
    let quote = references::latest_quote(tx, node.id)?;
    steps.push(match &quote {
        None => step("its latest verified quote is as it should be", false, "there is none yet".to_owned(), None),
        // A change of the reference values since then counts at the node's next attestation.
        Some(quote) => {
            let differences = reference.map(|reference| quote.pcrs.differences(&reference.pcrs)).unwrap_or_default();
            let what = match differences.first() {
                None => format!("received {}, verdict `{}`", quote.received_at, quote.verdict),
                Some(_) => differences.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "),
            };
            step(
                "its latest verified quote is as it should be",
                quote.verdict == "affirming" && differences.is_empty(),
                what,
                (!differences.is_empty()).then(|| {
                    format!("if that is how it should be: leasehold-server reference learn --node {}", node.id)
                }),
            )
        }
    });
    for layer in &report.layers {
        let about = |finding: &&Finding| finding.layer == layer.layer;
        let found: Vec<String> =
            report.findings.iter().filter(about).map(|finding| finding.refusal.to_string()).collect();
        let accept = report.findings.iter().filter(about).map(|finding| &finding.accept).find(|way| !way.is_empty());
        let mut said = step(
            match layer.layer.as_str() {
                "firmware" => "its firmware is as it should be",
                "boot" => "what it booted is as it should be",
                "userspace" => "its userspace came up as it should",
                _ => "what runs on it is allowed",
            },
            layer.standing != LayerStanding::Contraindicated,
            layer.why.clone(),
            accept.map(|way| format!("if that is how it should be: {}", way.replace("NODE", &node.id.to_string()))),
        );
        if let Some(said) = said.as_object_mut() {
            // Not proven is neither yes nor no.
            said.insert("standing".to_owned(), json!(layer.standing));
            said.insert("details".to_owned(), json!(found));
        }
        steps.push(said);
    }
    let lease = leases::find(tx, node.id)?;
    steps.push(match lease {
        None => step("it has a live lease", false, "it never had one".to_owned(), None),
        Some(lease) => {
            let ended = lease.ended.as_ref().map(|why| format!(", ended: {why}")).unwrap_or_default();
            let what = format!("lease {}, term to {}{ended}", lease.sequence, lease.ends_at);
            step("it has a live lease", lease.is_live(now), what, None)
        }
    });
    let workloads = workloads::of_node(tx, &node)?.len();
    // Nobody has said yet how it should be: that is a missing step, not a bad node.
    let fine = ["affirming", codes::VERIFY_NO_REFERENCE.as_str()];
    let contraindicated = quote.is_some_and(|quote| !fine.contains(&quote.verdict.as_str()));
    let more = json!({
        "steps": steps, "contraindicated": contraindicated, "workloads": workloads, "appraisal": report,
    });
    Ok(only(facts(tx, &node, now, more)?))
}

/// Changes a node's group or environment; what it may not hold there any more ends.
///
/// # Errors
/// [`codes::ADMIN_CONFLICT`] for a revoked node, and where its workloads can't be there.
pub fn set(tx: &Transaction<'_>, node: &str, place: Place, rules: &Rules, now: WallTime) -> Result<Outcome, Refusal> {
    let before = nodes::resolve(tx, node)?;
    if before.state == State::Revoked {
        return Err(Refusal::new(codes::ADMIN_CONFLICT, "it was revoked").at(format!("node {}", before.id)));
    }
    let node = place.of(before.clone(), rules)?;
    placement::check(tx, &node)?;
    let changed = node.group != before.group || node.environment != before.environment;
    let mut effects = Effects::default();
    if changed {
        nodes::put(tx, &node)?;
        effects = moved(tx, &before, &node, now)?;
    }
    Ok((facts(tx, &node, now, json!({ "changed": changed }))?, effects))
}

/// A node was put elsewhere: what it holds and may not hold there ends.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn moved(tx: &Transaction<'_>, before: &Node, node: &Node, now: WallTime) -> Result<Effects, Refusal> {
    let detail = json!({
        "before": { "group": before.group, "environment": before.environment },
        "after": { "group": node.group, "environment": node.environment },
    });
    audit::done(tx, now, "node.changed", Some(node.id), detail)?;
    let stays: BTreeSet<String> =
        workloads::of_node(tx, node)?.iter().map(|workload| workload.id.to_string()).collect();
    let mut effects = registrations::attest(tx, BTreeSet::from([node.id]))?;
    for credential in ledger::live(tx, Of::Node(node.id))? {
        if !stays.contains(&credential.workload) {
            let reason = "its node was put elsewhere";
            let id = credential.id.clone();
            let cause = Cause { kind: "credential", target: &id, reason, code: codes::POLICY_SCOPE };
            effects.join(take_back(tx, &What::Credential(credential), &cause, now)?.effects());
        }
    }
    Ok(effects)
}

/// Admits a waiting node. For one that is admitted already it changes its place, if one is given.
///
/// # Errors
/// [`codes::ADMIN_CONFLICT`] for a revoked node, and where its workloads can't be there; [`codes::ENROL_ID_TAKEN`] and
/// [`codes::ENROL_REVOKED`] when another node holds its keys or proved one of its EKs.
pub fn approve(
    tx: &Transaction<'_>,
    node: &str,
    place: Place,
    accept_counts: bool,
    rules: &Rules,
    now: WallTime,
) -> Result<Outcome, Refusal> {
    let before = nodes::resolve(tx, node)?;
    if before.state == State::Revoked {
        return Err(
            Refusal::new(codes::ADMIN_CONFLICT, "a revoked node doesn't come back").at(format!("node {}", before.id))
        );
    }
    let put = place.of(before.clone(), rules)?;
    placement::check(tx, &put)?;
    if accept_counts {
        references::forget_high_water(tx, before.id)?;
        audit::done(tx, now, "node.counts_accepted", Some(before.id), json!({}))?;
    }
    if before.state == State::Admitted {
        let mut effects = Effects::default();
        let moves = put.group != before.group || put.environment != before.environment;
        if moves {
            nodes::put(tx, &put)?;
            effects = moved(tx, &before, &put, now)?;
        } else if accept_counts {
            effects = registrations::attest(tx, BTreeSet::from([put.id]))?;
        }
        return Ok((facts(tx, &put, now, json!({ "changed": moves || accept_counts }))?, effects));
    }
    let node = Node {
        state: State::Admitted,
        admitted_by: Some("operator".to_owned()),
        admitted_at: Some(now),
        last_refusal: None,
        ..put
    };
    ownership::check_keys(tx, node.id, &node.ak_public, &node.node_key_spki)?;
    nodes::put(tx, &node)?;
    audit::claimed_eks(tx, now, &node, &ownership::claim_eks(tx, &node)?)?;
    let detail = json!({
        "grade": node.grade, "group": node.group, "environment": node.environment, "by": node.admitted_by,
    });
    audit::done(tx, now, "node.approved", Some(node.id), detail)?;
    let facts = facts(tx, &node, now, json!({ "changed": true }))?;
    Ok((facts, Effects { push: vec![(Audience::Node(node.id), Event::Attest)], ..Effects::default() }))
}

/// The facts about a node, and what a command adds to them.
fn facts(
    tx: &Transaction<'_>,
    node: &Node,
    now: WallTime,
    more: serde_json::Value,
) -> Result<serde_json::Value, Refusal> {
    let mut facts = json!({ "schema": 1 });
    for part in [json!(NodeFacts::of(tx, node, now)?), more] {
        if let (Some(facts), serde_json::Value::Object(part)) = (facts.as_object_mut(), part) {
            facts.extend(part);
        }
    }
    Ok(facts)
}

fn step(question: &str, holds: bool, found: String, next: Option<String>) -> serde_json::Value {
    json!({ "step": question, "holds": holds, "found": found, "next": next })
}
