//! Messages of protocol version 1, as CBOR maps with text keys over HTTP/2 and TLS 1.3.
//!
//! | route | client certificate | request → answer |
//! |---|---|---|
//! | `POST /v1/enrol` | none | [`EnrolRequest`] → [`EnrolChallenge`] |
//! | `POST /v1/enrol/answer` | none | [`EnrolAnswer`] → [`EnrolResult`] |
//! | `GET /v1/nonce` | node | → [`FreshNonce`] |
//! | `POST /v1/logs` | node | [`LogsRequest`] → [`LogsHeld`] |
//! | `POST /v1/attest` | node | [`AttestRequest`] → [`AttestAnswer`] |
//! | `GET /v1/references` | node | → the reference document that the lease names, as it was signed |
//! | `POST /v1/credentials` | node | [`CredentialRequest`] → [`CredentialAnswer`] |
//! | `GET /v1/events` | node | → stream of [`Event`], each after its length (u32, big-endian) |
//!
//! Every answer that isn't 200 carries a [`Refused`].

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::codes::{self, Refusal};
use crate::evidence::{LogChain, LogKind};
use crate::tpm::{PcrDifference, PcrSelection};
use crate::verify::appraisal::{Finding, LayerResult};

use super::grants::Withdrawal;

/// The protocol version in every path.
pub const VERSION: u32 = 1;

/// The media type of every body.
pub const MEDIA_TYPE: &str = "application/cbor";

/// The largest body either side reads, in bytes: 4 MiB of evidence and its frame.
pub const BODY_LIMIT: usize = (4 << 20) + (64 << 10);

/// An EK as a node presents it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PresentedEk {
    /// TPMT_PUBLIC.
    #[serde(with = "serde_bytes")]
    pub public: Vec<u8>,
    /// DER of the EK certificate, if the TPM has one.
    #[serde(with = "serde_bytes")]
    pub certificate: Option<Vec<u8>>,
}

/// First step of enrolment: the node's public keys.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnrolRequest {
    /// The endorsement key the challenge will be made for.
    pub ek: PresentedEk,
    /// The TPM's other EKs with a certificate; recorded as aliases.
    pub aliases: Vec<PresentedEk>,
    /// Intermediate certificates from the TPM's NV, DER.
    pub chain: Vec<serde_bytes::ByteBuf>,
    /// TPMT_PUBLIC of the attestation key.
    #[serde(with = "serde_bytes")]
    pub ak_public: Vec<u8>,
    /// TPMT_PUBLIC of the node key.
    #[serde(with = "serde_bytes")]
    pub node_key_public: Vec<u8>,
    /// The agent's version.
    pub agent_version: String,
}

/// The credential-activation challenge (TPM 2.0 Part 1, 24 "Credential Protection").
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnrolChallenge {
    /// Names this enrolment.
    #[serde(with = "serde_bytes")]
    pub enrolment: [u8; 16],
    /// The nonce for the quote and the node key's certification.
    #[serde(with = "serde_bytes")]
    pub nonce: [u8; 32],
    /// TPM2B_ID_OBJECT's content.
    #[serde(with = "serde_bytes")]
    pub credential: Vec<u8>,
    /// TPM2B_ENCRYPTED_SECRET's content.
    #[serde(with = "serde_bytes")]
    pub encrypted_secret: Vec<u8>,
    /// The PCRs to quote.
    pub selection: PcrSelection,
}

/// Second step of enrolment.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnrolAnswer {
    /// From the challenge.
    #[serde(with = "serde_bytes")]
    pub enrolment: [u8; 16],
    /// HMAC-SHA-256 under the activated secret over `leasehold-enrol-v1`, a NUL and the evidence:
    /// proves the activation without sending the secret.
    #[serde(with = "serde_bytes")]
    pub proof: [u8; 32],
    /// Evidence over the challenge's nonce, with the node key's certification over the same.
    #[serde(with = "serde_bytes")]
    pub evidence: Vec<u8>,
}

/// How an enrolment ended.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnrolResult {
    /// The node id the control plane computed.
    #[serde(with = "serde_bytes")]
    pub node: [u8; 32],
    /// What is known of the TPM's origin: `certified`, `listed` or `unknown`.
    pub grade: String,
    /// Set if the node is admitted.
    pub admitted: Option<Admitted>,
    /// Set if it waits: why, and who can change that.
    pub waiting: Option<Refusal>,
    /// When waiting: seconds until it is worth asking again.
    pub retry_after_seconds: u64,
}

/// What an admitted node starts with.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Admitted {
    /// The node certificate's chain, DER, leaf first; an X.509-SVID over the node key.
    pub certificate: Vec<serde_bytes::ByteBuf>,
    /// The trust domain's CA certificates.
    pub bundle: Bundle,
    /// The nonce for the first attestation.
    pub nonce: FreshNonce,
}

/// What the trust domain's SVIDs are verified with.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bundle {
    /// DER, one self-signed CA certificate each.
    pub certificates: Vec<serde_bytes::ByteBuf>,
    /// Grows with every change (SPIFFE Trust Domain and Bundle, 4.1.1).
    pub sequence: u64,
    /// The keys that sign its JWT-SVIDs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub jwt_keys: Vec<JwtKey>,
}

/// A key that signs JWT-SVIDs: ECDSA on P-256, with SHA-256 (ES256).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JwtKey {
    /// Its name in tokens: the thumbprint of the key as a JWK (RFC 7638), base64url.
    pub kid: String,
    /// The point, uncompressed (SEC 1, 2.3.3): 65 bytes.
    #[serde(with = "serde_bytes")]
    pub public: Vec<u8>,
}

/// What to attest with next: a single-use nonce of 32 bytes, and the PCRs to quote over it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FreshNonce {
    /// The nonce.
    #[serde(with = "serde_bytes")]
    pub nonce: [u8; 32],
    /// Seconds for which it can be used.
    pub term_seconds: u64,
    /// The PCRs to quote. It comes with the nonce, so that an agent that was just started, or one
    /// whose control plane asks for other PCRs since, quotes the right ones.
    pub selection: PcrSelection,
}

/// Attestation: one round trip.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttestRequest {
    /// Chosen by the agent; a retry of the same request has the same id and gets the same answer.
    #[serde(with = "serde_bytes")]
    pub request_id: [u8; 16],
    /// COSE_Sign1 of an EAT.
    #[serde(with = "serde_bytes")]
    pub evidence: Vec<u8>,
    /// What is new in the logs up to just before the quote, which is bound to it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub logs: Vec<LogPart>,
    /// What was read after the quote, so that every entry the quote covers is there. Only replay
    /// vouches for it; the next quote is bound to it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tail: Vec<LogPart>,
}

impl AttestRequest {
    /// A request without logs.
    pub const fn new(request_id: [u8; 16], evidence: Vec<u8>) -> Self {
        Self { request_id, evidence, logs: Vec::new(), tail: Vec::new() }
    }
}

/// A part of a log.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogPart {
    /// Of which log.
    pub kind: LogKind,
    /// Where it begins; 0 begins the log anew.
    pub offset: u64,
    /// At most [`crate::evidence::logs::SEGMENT_LIMIT`] bytes, at least one.
    #[serde(with = "serde_bytes")]
    pub bytes: Vec<u8>,
}

/// Sends a part of a log ahead of an attestation, or asks what is held. Sending the same again is
/// harmless: a part that isn't the next one changes nothing.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogsRequest {
    /// The boot whose logs these are; those of another boot are forgotten when the first part comes.
    #[serde(with = "serde_bytes")]
    pub boot_id: [u8; 16],
    /// The part; `None` only asks.
    pub part: Option<LogPart>,
}

/// What the control plane holds of a node's logs of this boot.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogsHeld {
    /// By kind; one that isn't there is held to no length.
    pub held: Vec<HeldLog>,
}

impl LogsHeld {
    /// What is held of `kind`.
    pub fn of(&self, kind: LogKind) -> LogChain {
        self.held.iter().find(|held| held.kind == kind).map_or_else(LogChain::default, |held| held.chain)
    }
}

/// One log of [`LogsHeld`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeldLog {
    /// Which.
    pub kind: LogKind,
    /// How far, and by which parts.
    pub chain: LogChain,
}

/// Where in IMA's list the quoted PCR 10 stands. The agent goes on from here; were it wrong, its own
/// reading wouldn't be reached and the gate would close.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListPosition {
    /// Entries up to there.
    pub entries: u64,
    /// Bytes up to there.
    pub offset: u64,
    /// Whether the kernel couldn't hash for the bank and extends padded SHA-1 digests.
    pub padded: bool,
}

/// The verdict and what follows from it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttestAnswer {
    /// COSE_Sign1 of an EAR: the lease. Absent when the node is contraindicated.
    #[serde(with = "serde_bytes")]
    pub lease: Option<Vec<u8>>,
    /// Why there is no lease.
    pub refusal: Option<Refusal>,
    /// The PCRs that differ from their reference values.
    pub differences: Vec<PcrDifference>,
    /// The nonce for the next attestation.
    pub next: FreshNonce,
    /// The workloads registered for this node; complete, never a delta.
    pub entries: Vec<Entry>,
    /// The trust domain's CA certificates.
    pub bundle: Bundle,
    /// A renewed node certificate, when the present one is past half its life.
    pub certificate: Option<Vec<serde_bytes::ByteBuf>>,
    /// What is said of each layer, where logs were appraised.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<LayerResult>,
    /// What was found, the worst first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub findings: Vec<Finding>,
    /// Where the quote stands in IMA's list, where the lease names rules for what comes after.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<ListPosition>,
    /// What the node must stop releasing and hasn't acknowledged; at most 256.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub withdrawals: Vec<Withdrawal>,
}

/// A workload that may run on this node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Its SPIFFE ID.
    pub id: String,
    /// All of these must match the caller, e.g. `unix:uid:1000`.
    pub selectors: Vec<String>,
    /// Who answers for it.
    pub owner: String,
    /// What it is for.
    pub purpose: String,
    /// Optional hint for clients with several identities, at most 1024 bytes.
    pub hint: String,
    /// Whether processes of login sessions may have it, too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub interactive: bool,
    /// Why nothing is issued for it now: what its callers are told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub withheld: Option<Refusal>,
}

/// Asks for X.509-SVIDs.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CredentialRequest {
    /// As in [`AttestRequest`].
    #[serde(with = "serde_bytes")]
    pub request_id: [u8; 16],
    /// The sequence number of the lease these are asked for under.
    pub lease_sequence: u64,
    /// One for each identity; at most 256.
    pub wanted: Vec<Wanted>,
}

/// One identity and the key it is for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wanted {
    /// The workload's SPIFFE ID.
    pub id: String,
    /// PKCS#10 request, DER: the public key and proof of its possession.
    #[serde(with = "serde_bytes")]
    pub csr: Vec<u8>,
}

/// The answers, in the order asked.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CredentialAnswer {
    /// One for each [`Wanted`].
    pub answers: Vec<Issued>,
}

/// An X.509-SVID, or why there is none.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Issued {
    /// The SPIFFE ID asked for.
    pub id: String,
    /// The decision's id.
    pub decision: String,
    /// The chain, DER, leaf first; empty when refused.
    pub chain: Vec<serde_bytes::ByteBuf>,
    /// Seconds the SVID holds, from issue.
    pub term_seconds: u64,
    /// Set when refused.
    pub refusal: Option<Refusal>,
}

/// What the control plane pushes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Event {
    /// Nothing new: the stream is alive. Sent every few seconds.
    Alive,
    /// Attest now: references, registrations or the bundle changed.
    Attest,
    /// The node was revoked: close now.
    Revoked(Refusal),
    /// This must not be released any more.
    Withdraw(Withdrawal),
}

/// The body of every answer that isn't 200.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Refused {
    /// Why.
    pub refusal: Refusal,
    /// A fresh nonce, where a fresh one would help.
    pub next: Option<FreshNonce>,
}

/// Encodes a message.
///
/// # Errors
/// Never for the messages above; serde's signature has one.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, Refusal> {
    serde_cbor::to_vec(message).map_err(|e| Refusal::new(codes::PROTOCOL_MALFORMED, e.to_string()))
}

/// Decodes a message of at most [`BODY_LIMIT`] bytes.
///
/// # Errors
/// [`codes::PROTOCOL_TOO_LARGE`] or [`codes::PROTOCOL_MALFORMED`], naming the byte offset or key.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Refusal> {
    if bytes.len() > BODY_LIMIT {
        return Err(Refusal::new(codes::PROTOCOL_TOO_LARGE, format!("{} bytes", bytes.len()))
            .expected(format!("at most {BODY_LIMIT}")));
    }
    serde_cbor::from_slice(bytes).map_err(|e| Refusal::new(codes::PROTOCOL_MALFORMED, e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_the_wire_and_unknown_fields_do_not() {
        let selection = "sha256:0-7".parse().unwrap();
        let nonce = FreshNonce { nonce: [7; 32], term_seconds: 60, selection };
        let bytes = encode(&nonce).unwrap();
        assert_eq!(decode::<FreshNonce>(&bytes).unwrap(), nonce);
        assert_eq!(decode::<Wanted>(&bytes).unwrap_err().code, codes::PROTOCOL_MALFORMED);
        let mut trailing = bytes;
        trailing.push(0);
        assert_eq!(decode::<FreshNonce>(&trailing).unwrap_err().code, codes::PROTOCOL_MALFORMED);
        assert_eq!(decode::<FreshNonce>(&vec![0; BODY_LIMIT + 1]).unwrap_err().code, codes::PROTOCOL_TOO_LARGE);
    }

    #[test]
    fn a_request_without_logs_is_that_of_the_version_before() {
        #[derive(Serialize, Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Before {
            #[serde(with = "serde_bytes")]
            request_id: [u8; 16],
            #[serde(with = "serde_bytes")]
            evidence: Vec<u8>,
        }
        let request = AttestRequest::new([1; 16], vec![2; 3]);
        let bytes = encode(&request).unwrap();
        assert_eq!(encode(&Before { request_id: [1; 16], evidence: vec![2; 3] }).unwrap(), bytes);
        assert_eq!(decode::<AttestRequest>(&bytes).unwrap(), request);
        let part = LogPart { kind: LogKind::Ima, offset: 7, bytes: vec![3; 4] };
        let request = AttestRequest { logs: vec![part.clone()], tail: vec![part], ..request };
        assert_eq!(decode::<AttestRequest>(&encode(&request).unwrap()).unwrap(), request);
    }

    #[test]
    fn events_and_refusals_survive_the_wire() {
        for event in [Event::Alive, Event::Attest, Event::Revoked(Refusal::new(codes::GATE_REVOKED, "by op"))] {
            assert_eq!(decode::<Event>(&encode(&event).unwrap()).unwrap(), event);
        }
    }
}
