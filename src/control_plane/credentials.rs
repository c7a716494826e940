//! Issuing X.509-SVIDs: under a live lease, for a workload of this node, over a key whose
//! possession is proven.

use std::time::Duration;

use super::audit;
use super::issuer;
use super::leases;
use super::registry::nodes::Node;
use super::registry::workloads;
use super::server::Shared;
use super::store::{Transaction, params, signed};
use crate::clock::WallTime;
use crate::codes::{self, Refusal};
use crate::identity::SpiffeId;
use crate::protocol::{CredentialAnswer, CredentialRequest, Issued, Wanted};
use crate::secret;

/// The most identities of one request.
const WANTED: usize = 256;

/// Answers a node's request, one decision for each identity.
///
/// # Errors
/// [`codes::ISSUER_NO_LEASE`] for the request as a whole; what is wrong with one identity stands
/// in its own answer.
pub fn issue(
    tx: &Transaction<'_>,
    shared: &Shared,
    node: &Node,
    request: &CredentialRequest,
    now: WallTime,
) -> Result<CredentialAnswer, Refusal> {
    if request.wanted.is_empty() || request.wanted.len() > WANTED {
        return Err(Refusal::new(codes::PROTOCOL_MALFORMED, format!("{} identities", request.wanted.len()))
            .at("wanted")
            .expected(format!("1 to {WANTED}")));
    }
    let left = leases::live(tx, node.id, request.lease_sequence, now)?;
    let mut answers = Vec::with_capacity(request.wanted.len());
    for wanted in &request.wanted {
        let decision =
            hex::encode(secret::random::<16>().map_err(|e| Refusal::new(codes::STORE_FAILED, e.to_string()))?);
        let issued = match decide(tx, shared, node, request.lease_sequence, wanted, &decision, left, now) {
            Ok(issued) => issued,
            Err(refusal) if refusal.code == codes::STORE_FAILED => return Err(refusal),
            Err(refusal) => {
                let detail = serde_json::json!({
                    "during": "credentials", "workload": audit::clipped(&wanted.id),
                    "found": audit::clipped(&refusal.found), "at": audit::clipped(&refusal.at),
                });
                audit::decided(tx, now, refusal.code.as_str(), node.id, &decision, detail)?;
                Issued { id: wanted.id.clone(), decision, chain: Vec::new(), term_seconds: 0, refusal: Some(refusal) }
            }
        };
        answers.push(issued);
    }
    Ok(CredentialAnswer { answers })
}

#[expect(clippy::too_many_arguments, reason = "the inputs of one decision, each of another kind")]
fn decide(
    tx: &Transaction<'_>,
    shared: &Shared,
    node: &Node,
    lease_sequence: u64,
    wanted: &Wanted,
    decision: &str,
    left: Duration,
    now: WallTime,
) -> Result<Issued, Refusal> {
    let unknown = || {
        Refusal::new(codes::ISSUER_UNKNOWN_WORKLOAD, audit::clipped(&wanted.id))
            .expected("an id that `leasehold-server workload list` shows")
    };
    let id = SpiffeId::new(&wanted.id).map_err(|_| unknown())?;
    let workload = workloads::find(tx, &id)?.ok_or_else(unknown)?;
    // A node's claims play no part: what it may hold is what an operator registered for it.
    if !workload.is_for(node) {
        return Err(Refusal::new(codes::ISSUER_NOT_THIS_NODE, id.to_string()).at(format!("node {}", node.id)));
    }
    let spki = issuer::read_request(&wanted.csr)?;
    if spki == node.node_key_spki {
        return Err(Refusal::new(codes::ISSUER_REQUEST, "its key is the node's own").at(id.to_string()));
    }
    let own = workload.ttl_seconds.map_or(Duration::MAX, Duration::from_secs);
    let issuing = shared.authority.current();
    let leaf = issuing.issue(tx, &id, &spki, now, own.min(shared.settings.svid).min(left))?;
    let term_seconds = leaf.not_after.0.saturating_sub(now.0);
    tx.prepare_cached(
        "INSERT INTO issuances(decision, node, workload, serial, ca, lease_sequence, issued_at, not_after)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
    )?
    .execute(params![
        decision,
        node.id.as_bytes(),
        id.to_string(),
        leaf.serial,
        issuing.id,
        signed(lease_sequence),
        signed(now.0),
        signed(leaf.not_after.0),
    ])?;
    let detail = serde_json::json!({
        "workload": id.to_string(), "owner": workload.owner, "purpose": workload.purpose,
        "serial": hex::encode(&leaf.serial), "until": leaf.not_after.to_string(), "lease": lease_sequence,
    });
    audit::decided(tx, now, "svid.issued", node.id, decision, detail)?;
    // The CA is in the bundle; a workload's chain is the leaf alone.
    Ok(Issued {
        id: id.to_string(),
        decision: decision.to_owned(),
        chain: vec![serde_bytes::ByteBuf::from(leaf.certificate)],
        term_seconds,
        refusal: None,
    })
}
