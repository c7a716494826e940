//! Issuing X.509-SVIDs: under a live lease, for a workload of this node, over a key whose
//! possession is proven. Each is a decision.

pub mod ledger;

use std::time::Duration;

use super::audit::{self, Subject};
use super::ca::Issuing;
use super::issuer::{self, Leaf};
use super::leases::{self, LeaseRow};
use super::policy::{self, Action, Question};
use super::registry::keys;
use super::registry::nodes::Node;
use super::registry::workloads::{self, Workload};
use super::server::Shared;
use super::store::Transaction;
use crate::clock::WallTime;
use crate::codes::{self, Refusal};
use crate::identity::exact_id;
use crate::protocol::{CredentialAnswer, CredentialRequest, Issued, Wanted};

use ledger::{Credential, Kind};

/// The most identities of one request.
const WANTED: usize = 256;

/// Answers a node's request, one decision for each identity.
///
/// # Errors
/// [`codes::ISSUER_NO_LEASE`] and [`codes::PROTOCOL_BUSY`] for the request as a whole; what is wrong with one identity
/// stands in its own answer.
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
    ledger::room(tx, node.id, false, now)?;
    let lease = leases::find(tx, node.id)?
        .ok_or_else(|| Refusal::new(codes::ISSUER_NO_LEASE, "the node has attested to nothing yet"))?;
    let mut answers = Vec::with_capacity(request.wanted.len());
    for wanted in &request.wanted {
        let issued = match one(tx, shared, node, &lease, wanted, left, now) {
            Ok(issued) => issued,
            Err(refusal) if refusal.code == codes::STORE_FAILED => return Err(refusal),
            Err(refusal) => {
                // Refused before there was anything to decide.
                let detail = serde_json::json!({
                    "during": "credentials", "workload": audit::clipped(&wanted.id),
                    "found": audit::clipped(&refusal.found), "at": audit::clipped(&refusal.at),
                });
                let decision = policy::fresh_id()?;
                let subject = Subject { node: Some(node.id), decision: Some(&decision), ..Subject::default() };
                audit::about(tx, now, refusal.code.as_str(), &subject, detail)?;
                refused(wanted, decision, refusal)
            }
        };
        answers.push(issued);
    }
    Ok(CredentialAnswer { answers })
}

fn one(
    tx: &Transaction<'_>,
    shared: &Shared,
    node: &Node,
    lease: &LeaseRow,
    wanted: &Wanted,
    left: Duration,
    now: WallTime,
) -> Result<Issued, Refusal> {
    let workload = registered(tx, &wanted.id)?;
    let spki = issuer::read_request(&wanted.csr)?;
    if spki == node.node_key_spki {
        return Err(Refusal::new(codes::ISSUER_REQUEST, "its key is the node's own").at(wanted.id.clone()));
    }
    let question = Question {
        action: Action::X509,
        node,
        lease,
        workload: &workload,
        caller: None,
        task: None,
        audience: &[],
        destination: None,
        details: &[],
    };
    let decision = policy::decide(tx, shared, &question, now)?;
    let grant = match decision.outcome {
        Ok(grant) => grant,
        Err(refusal) => {
            denied(tx, &question, &decision.id, &refusal, now)?;
            return Ok(refused(wanted, decision.id, refusal));
        }
    };
    let term = grant.ttl.min(shared.settings.svid).min(left);
    let leaf = issue_leaf(tx, &shared.authority.current(), &question, &decision.id, &spki, term, now)?;
    // The CA is in the bundle; a workload's chain is the leaf alone.
    Ok(Issued {
        id: wanted.id.clone(),
        decision: decision.id,
        term_seconds: leaf.not_after.0.saturating_sub(now.0),
        chain: vec![serde_bytes::ByteBuf::from(leaf.certificate)],
        refusal: None,
    })
}

/// Issues the X.509-SVID that `question` asked for and `decision` grants, and enters it in the ledger.
///
/// # Errors
/// As [`Issuing::issue`] and [`keys::claim`].
pub fn issue_leaf(
    tx: &Transaction<'_>,
    issuing: &Issuing,
    question: &Question<'_>,
    decision: &str,
    spki: &[u8],
    term: Duration,
    now: WallTime,
) -> Result<Leaf, Refusal> {
    let Question { workload, task, .. } = *question;
    let leaf = issuing.issue(tx, &workload.id, spki, now, term)?;
    keys::claim(tx, spki, &workload.id.to_string(), now, leaf.not_after)?;
    let credential = Credential {
        id: hex::encode(&leaf.serial),
        kind: Kind::X509,
        decision: decision.to_owned(),
        node: question.node.id,
        workload: workload.id.to_string(),
        task: task.map(|task| task.id.clone()),
        audience: Vec::new(),
        signer: issuing.id,
        lease_sequence: question.lease.sequence,
        issued_at: now,
        not_after: leaf.not_after,
    };
    let detail = serde_json::json!({
        "kind": "x509", "owner": workload.owner, "purpose": workload.purpose, "until": leaf.not_after.to_string(),
    });
    ledger::issued(tx, &credential, detail)?;
    Ok(leaf)
}

/// The workload of this id.
///
/// # Errors
/// [`codes::ISSUER_UNKNOWN_WORKLOAD`].
pub fn registered(tx: &Transaction<'_>, id: &str) -> Result<Workload, Refusal> {
    let unknown = || {
        Refusal::new(codes::ISSUER_UNKNOWN_WORKLOAD, audit::clipped(id))
            .expected("an id that `leasehold-server workload list` shows")
    };
    let id = exact_id(id).map_err(|_| unknown())?;
    workloads::find(tx, &id)?.ok_or_else(unknown)
}

/// Records a denial.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn denied(
    tx: &Transaction<'_>,
    question: &Question<'_>,
    decision: &str,
    refusal: &Refusal,
    now: WallTime,
) -> Result<(), Refusal> {
    let workload = question.workload.id.to_string();
    let subject = Subject {
        node: Some(question.node.id),
        workload: Some(&workload),
        lease: Some(question.lease.sequence),
        decision: Some(decision),
        credential: None,
        task: question.task.map(|task| task.id.as_str()),
    };
    let detail = serde_json::json!({
        "during": "credentials", "found": audit::clipped(&refusal.found), "at": audit::clipped(&refusal.at),
    });
    audit::about(tx, now, refusal.code.as_str(), &subject, detail)
}

fn refused(wanted: &Wanted, decision: String, refusal: Refusal) -> Issued {
    Issued { id: wanted.id.clone(), decision, chain: Vec::new(), term_seconds: 0, refusal: Some(refusal) }
}
