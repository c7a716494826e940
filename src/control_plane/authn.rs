//! Who is on the other end of a connection: the one function every node's call goes through.

use der::{Decode, Encode};

use super::registry::nodes::{self, Node, State};
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
            not_after: WallTime(not_after),
            half_life: WallTime(not_before.midpoint(not_after)),
        })
    }
}

/// The admitted node behind `peer`, as the registry stands in this transaction: the certificate's
/// key is the node's key, its one URI is the node's id, and the node was not revoked.
///
/// # Errors
/// [`codes::PROTOCOL_CLIENT_CERTIFICATE`] or [`codes::ENROL_REVOKED`].
pub fn admitted(tx: &Transaction<'_>, peer: &Peer, trust_domain: &TrustDomain, now: WallTime) -> Result<Node, Refusal> {
    let node = known(tx, peer, trust_domain, now)?;
    match node.state {
        State::Revoked => Err(revoked(&node)),
        State::Admitted | State::Waiting => Ok(node),
    }
}

/// As [`admitted`], and a revoked node too: for the one thing it is still heard about.
///
/// # Errors
/// [`codes::PROTOCOL_CLIENT_CERTIFICATE`].
pub fn known(tx: &Transaction<'_>, peer: &Peer, trust_domain: &TrustDomain, now: WallTime) -> Result<Node, Refusal> {
    let refuse = |what: &str| {
        Refusal::new(codes::PROTOCOL_CLIENT_CERTIFICATE, what)
            .at(peer.id.to_string())
            .expected("the certificate that enrolment gave an admitted node")
    };
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

/// The refusal of a revoked node.
pub fn revoked(node: &Node) -> Refusal {
    let when = node.revoked_at.map(|at| format!(" at {at}")).unwrap_or_default();
    let why = node.revoked_reason.as_deref().unwrap_or("no reason given");
    Refusal::new(codes::ENROL_REVOKED, format!("revoked{when}: {why}")).at(format!("node {}", node.id))
}
