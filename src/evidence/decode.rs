//! From bytes to [`UnverifiedEvidence`].

use p256::ecdsa::VerifyingKey;

use super::cbor::{Fault, FaultKind};
use super::{LIMIT, NodeClaims, sign1};
use crate::codes::{self, Refusal};
use crate::identity::NodeId;

/// Evidence that was decoded and not verified: anybody may have made it.
///
/// It gives out only what is needed to look up whom it claims to be from; `verify::authenticate`
/// turns it into something believed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UnverifiedEvidence {
    envelope: sign1::Unverified,
    claims: NodeClaims,
}

impl UnverifiedEvidence {
    /// Decodes evidence of at most 4 MiB.
    ///
    /// # Errors
    /// [`codes::EVIDENCE_TOO_LARGE`], [`codes::EVIDENCE_DUPLICATE_KEY`],
    /// [`codes::EVIDENCE_NOT_DETERMINISTIC`], [`codes::EVIDENCE_PROFILE`] for another format, and
    /// [`codes::EVIDENCE_MALFORMED`] for the rest, an unknown claim included.
    pub fn decode(bytes: &[u8]) -> Result<Self, Refusal> {
        if bytes.len() > LIMIT {
            return Err(Refusal::new(codes::EVIDENCE_TOO_LARGE, format!("{} bytes", bytes.len()))
                .expected(format!("at most {LIMIT}")));
        }
        let envelope = sign1::Unverified::decode(bytes, false).map_err(refuse)?;
        let claims = NodeClaims::decode(envelope.payload())?;
        Ok(Self { envelope, claims })
    }

    /// The nonce it says it is over: good for finding that nonce's row, no more.
    pub const fn unverified_nonce(&self) -> &[u8; 32] {
        &self.claims.nonce
    }

    /// The node it says it is from: good for finding that node's keys, no more.
    pub const fn unverified_node(&self) -> Option<NodeId> {
        self.claims.node
    }

    /// The nonce it says its node key was certified over: good for choosing among the enrolments of
    /// that node, no more.
    pub const fn unverified_certification_nonce(&self) -> &[u8; 32] {
        &self.claims.certification_nonce
    }

    /// The claims, once `key` is found to have signed them.
    ///
    /// # Errors
    /// [`codes::VERIFY_EVIDENCE_SIGNATURE`].
    pub fn signed_by(self, key: &VerifyingKey) -> Result<NodeClaims, Refusal> {
        if !self.envelope.signed_by(key) {
            return Err(Refusal::new(codes::VERIFY_EVIDENCE_SIGNATURE, "a signature by another key"));
        }
        Ok(self.claims)
    }
}

fn refuse(fault: Fault) -> Refusal {
    let code = match fault.kind {
        FaultKind::Malformed => codes::EVIDENCE_MALFORMED,
        FaultKind::NotDeterministic => codes::EVIDENCE_NOT_DETERMINISTIC,
        FaultKind::DuplicateKey => codes::EVIDENCE_DUPLICATE_KEY,
    };
    Refusal::new(code, fault.what).at(format!("byte {}", fault.offset))
}
