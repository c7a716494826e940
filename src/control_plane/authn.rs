//! Who is on the other end of a connection: [`authenticate`] is the one function that says so, for
//! nodes and operators alike. What a caller may do is asked afterwards, by its kind and role.

use der::{Decode, Encode};

use super::credentials::ledger::{self, Of};
use super::registry::nodes::{self, Node, State};
use super::registry::operators::{self, Operator};
use super::registry::owners;
use super::store::Transaction;
use crate::clock::WallTime;
use crate::codes::{self, Refusal};
use crate::identity::{self, SpiffeId, TrustDomain};

/// What a client certificate says whose path to one of our CAs was verified when it connected.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Peer {
    /// SubjectPublicKeyInfo, DER.
    pub spki: Vec<u8>,
    /// Its SPIFFE ID: its one URI name.
    pub id: SpiffeId,
    /// Its serial number, hexadecimal.
    pub serial: String,
    /// The end of its validity: a connection may outlive the certificate it was opened with.
    pub not_after: WallTime,
    /// The middle of its validity: from then on it is renewed.
    pub half_life: WallTime,
}

impl Peer {
    /// Reads a verified client certificate.
    ///
    /// # Errors
    /// [`codes::PROTOCOL_CLIENT_CERTIFICATE`] when it has not exactly one URI name, a SPIFFE ID.
    pub fn from_certificate(certificate: &[u8]) -> Result<Self, Refusal> {
        let refuse = |what: String| Refusal::new(codes::PROTOCOL_CLIENT_CERTIFICATE, what);
        let parsed = x509_cert::Certificate::from_der(certificate).map_err(|e| refuse(e.to_string()))?;
        let tbs = parsed.tbs_certificate();
        let id = identity::certified_id(&parsed).map_err(|refusal| refuse(refusal.to_string()))?;
        let not_before = tbs.validity().not_before.to_unix_duration().as_secs();
        let not_after = tbs.validity().not_after.to_unix_duration().as_secs();
        Ok(Self {
            spki: tbs.subject_public_key_info().to_der().map_err(|e| refuse(e.to_string()))?,
            id,
            serial: hex::encode(tbs.serial_number().as_bytes()),
            not_after: WallTime(not_after),
            half_life: WallTime(not_before.midpoint(not_after)),
        })
    }
}

/// Who calls.
#[derive(Clone, Debug)]
pub enum Caller {
    /// An admitted node.
    Node(Box<Node>),
    /// A person, or a program, that administers.
    Operator(Operator),
}

impl Caller {
    /// The node, if it is one.
    ///
    /// # Errors
    /// [`codes::PROTOCOL_CLIENT_CERTIFICATE`].
    pub fn node(self) -> Result<Node, Refusal> {
        match self {
            Self::Node(node) => Ok(*node),
            Self::Operator(operator) => Err(refuse(operator.id.clone(), "it is an operator's, no node's")),
        }
    }

    /// The operator, if it is one.
    ///
    /// # Errors
    /// [`codes::ADMIN_PEER`].
    pub fn operator(self) -> Result<Operator, Refusal> {
        match self {
            Self::Operator(operator) => Ok(operator),
            Self::Node(node) => Err(Refusal::new(codes::ADMIN_PEER, "it is a node's certificate")
                .at(format!("node {}", node.id))
                .expected("an operator's; see `leasehold-server operator list`")),
        }
    }
}

/// Who is behind `peer`, as the registry stands in this transaction. A node: the certificate's key is
/// the node's key, its one URI the node's id, and the node was not revoked. An operator: the URI is
/// registered as one, and the certificate is one that was issued, for this very name, and that nothing
/// has ended since.
///
/// # Errors
/// [`codes::PROTOCOL_CLIENT_CERTIFICATE`] or [`codes::ENROL_REVOKED`].
pub fn authenticate(
    tx: &Transaction<'_>,
    peer: &Peer,
    trust_domain: &TrustDomain,
    now: WallTime,
) -> Result<Caller, Refusal> {
    if let Some(operator) = operators::find(tx, &peer.id)? {
        if peer.not_after < now {
            return Err(refuse(peer.id.to_string(), "the certificate has expired"));
        }
        // A registration names an id, and whoever holds a certificate of that id: so it must be a live one.
        let issued = ledger::live(tx, Of::Credential(&peer.serial))?;
        if !issued.iter().any(|credential| credential.workload == operator.id) {
            let found = "the certificate was revoked, or isn't one that was issued to this workload";
            return Err(refuse(peer.id.to_string(), found));
        }
        if let Some(owner) = &operator.owner
            && owners::find(tx, owner)?.is_none_or(|owner| owner.retired.is_some())
        {
            return Err(refuse(peer.id.to_string(), &format!("its owner `{owner}` left")));
        }
        return Ok(Caller::Operator(operator));
    }
    let node = known(tx, peer, trust_domain, now)?;
    match node.state {
        State::Revoked => Err(revoked(&node)),
        State::Admitted | State::Waiting => Ok(Caller::Node(Box::new(node))),
    }
}

/// The admitted or revoked node behind `peer`: for the one thing that a revoked one is still heard about.
///
/// # Errors
/// [`codes::PROTOCOL_CLIENT_CERTIFICATE`].
pub fn known(tx: &Transaction<'_>, peer: &Peer, trust_domain: &TrustDomain, now: WallTime) -> Result<Node, Refusal> {
    let refuse = |what: &str| refuse(peer.id.to_string(), what);
    if peer.not_after < now {
        return Err(refuse("the certificate has expired"));
    }
    let node = nodes::find_by_key(tx, &peer.spki)?.ok_or_else(|| refuse("no admitted node has this key"))?;
    if node.id.spiffe_id(trust_domain) != peer.id {
        return Err(refuse("the certificate names another node than its key"));
    }
    match node.state {
        State::Admitted | State::Revoked => Ok(node),
        State::Waiting => Err(refuse("the node is not admitted")),
    }
}

fn refuse(id: String, what: &str) -> Refusal {
    Refusal::new(codes::PROTOCOL_CLIENT_CERTIFICATE, what)
        .at(id)
        .expected("the certificate that enrolment gave an admitted node, or an operator's")
}

/// The refusal of a revoked node.
pub fn revoked(node: &Node) -> Refusal {
    let when = node.revoked_at.map(|at| format!(" at {at}")).unwrap_or_default();
    let why = node.revoked_reason.as_deref().unwrap_or("no reason given");
    Refusal::new(codes::ENROL_REVOKED, format!("revoked{when}: {why}")).at(format!("node {}", node.id))
}
