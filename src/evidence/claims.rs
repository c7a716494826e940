//! The claims of a node and their encoding.

use std::collections::BTreeMap;

use p256::ecdsa::Signature;
use serde_cbor::Value;

use super::cbor::{self, Claims, read};
use super::{LIMIT, quote_binding, sign1};
use crate::clock::{BootId, BootInstant};
use crate::codes::{self, Refusal};
use crate::identity::NodeId;
use crate::tpm::structures::Attest;
use crate::tpm::{Bank, PcrSelection, PcrValues, Signed};

/// The EAT profile: names the format of `evidence.cddl`.
pub const PROFILE: &str = "urn:uuid:4b9d21c1-9a36-4ac2-9d2b-6c20b0b3f2a1";
/// The `swname` of every evidence.
const SOFTWARE: &str = "leasehold-agent";
/// UEID type RAND (RFC 9711, 4.2.1.1): 32 bytes that are a hash over enough randomness.
const UEID_RAND: u8 = 1;
/// The largest TPMS_ATTEST or TPMT_SIGNATURE, in bytes; real ones have less than 200.
const SIGNED_LIMIT: usize = 1024;
/// The most logs one quote is bound to.
const LOGS_LIMIT: usize = 1024;
/// The most withdrawals one evidence names.
pub const WITHDRAWN_LIMIT: usize = 256;

/// Claim keys (RFC 9711, 10.2; private use below -65536, RFC 8392, 9.1).
mod key {
    pub const NONCE: i128 = 10;
    pub const UEID: i128 = 256;
    pub const PROFILE: i128 = 265;
    pub const BOOT_SEED: i128 = 268;
    pub const SOFTWARE_NAME: i128 = 270;
    pub const SOFTWARE_VERSION: i128 = 271;
    pub const QUOTE: i128 = -65_537;
    pub const PCRS: i128 = -65_538;
    pub const CERTIFICATION: i128 = -65_539;
    pub const REQUESTED_AT: i128 = -65_540;
    pub const AGENT_DIGEST: i128 = -65_541;
    pub const LOG_DIGESTS: i128 = -65_542;
    pub const WITHDRAWN: i128 = -65_543;
}

/// What a node says about itself. Nothing in it is believed before `verify` has seen it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeClaims {
    /// The verifier's nonce.
    pub nonce: [u8; 32],
    /// The node's id; `None` while it enrols.
    pub node: Option<NodeId>,
    /// The kernel's boot id.
    pub boot_id: BootId,
    /// When the agent began the request: the lease's term is counted from here.
    pub requested_at: BootInstant,
    /// The AK's quote over `pcrs`, bound by [`quote_binding`].
    pub quote: Signed,
    /// The values the quote covers.
    pub pcrs: PcrValues,
    /// The AK's certification of the node key.
    pub node_key_certification: Signed,
    /// The enrolment's nonce, which the certification is over.
    pub certification_nonce: [u8; 32],
    /// The agent's version: 1 to 64 printable ASCII characters, no space.
    pub agent_version: String,
    /// SHA-256 of the agent's binary, as it says itself.
    pub agent_digest: [u8; 32],
    /// The digest of each log sent so far ([`super::logs::log_digests`]); at most 1024.
    pub log_digests: Vec<[u8; 32]>,
    /// The withdrawals that the agent applied and hasn't proven yet, by their numbers: at most 256, ascending.
    /// Signed by the node key; the quote beside it shows the measured state of the code that says so.
    pub withdrawn: Vec<u64>,
}

/// Evidence that waits for the node key's signature.
#[derive(Clone, PartialEq, Debug)]
pub struct Unsigned(sign1::Unsigned);

impl Unsigned {
    /// Encodes `claims`.
    ///
    /// # Errors
    /// When the quote isn't bound to these claims and the node key of this name, or doesn't cover
    /// these PCRs: it would be refused, and the agent learns so before it is sent. Also
    /// [`codes::EVIDENCE_TOO_LARGE`] and [`codes::EVIDENCE_MALFORMED`] for claims out of their bounds.
    pub fn new(claims: &NodeClaims, node_key_name: &[u8]) -> Result<Self, Refusal> {
        let quote = Attest::parse(&claims.quote.attest)?;
        let (selection, digest) = quote.quoted()?;
        if quote.extra_data != quote_binding(&claims.nonce, node_key_name, &claims.boot_id, &claims.log_digests) {
            return Err(Refusal::new(codes::VERIFY_QUOTE_BINDING, "a quote over other qualifying data"));
        }
        if selection != claims.pcrs.selection() {
            return Err(Refusal::new(codes::VERIFY_SELECTION, selection.to_string())
                .expected(claims.pcrs.selection().to_string()));
        }
        if digest != claims.pcrs.digest() {
            return Err(
                Refusal::new(codes::VERIFY_PCR_DIGEST, hex::encode(claims.pcrs.digest())).expected(hex::encode(digest))
            );
        }
        let payload = claims.encode();
        // What can't be decoded again must not be sent; this also checks every bound in one place.
        NodeClaims::decode(&payload)?;
        /// Room for the COSE framing around the payload.
        const FRAME: usize = 256;
        if payload.len() > LIMIT - FRAME {
            return Err(Refusal::new(codes::EVIDENCE_TOO_LARGE, format!("{} bytes", payload.len()))
                .expected(format!("at most {}", LIMIT - FRAME)));
        }
        Ok(Self(sign1::Unsigned::new(payload, None)))
    }

    /// What the node key signs: SHA-256 of the Sig_structure.
    pub fn digest(&self) -> [u8; 32] {
        self.0.digest()
    }

    /// The evidence.
    pub fn finish(self, signature: Signature) -> Vec<u8> {
        self.0.finish(signature)
    }
}

impl NodeClaims {
    /// The claims as deterministic CBOR, unchecked.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut map = BTreeMap::new();
        let mut put = |key: i128, value: Value| drop(map.insert(Value::Integer(key), value));
        put(key::NONCE, bytes(&self.nonce));
        if let Some(node) = &self.node {
            put(key::UEID, encode_node(node));
        }
        put(key::PROFILE, Value::Text(PROFILE.to_owned()));
        put(key::BOOT_SEED, bytes(self.boot_id.as_bytes()));
        put(key::SOFTWARE_NAME, Value::Text(SOFTWARE.to_owned()));
        put(key::SOFTWARE_VERSION, Value::Array(vec![Value::Text(self.agent_version.clone())]));
        put(key::QUOTE, encode_signed(&self.quote));
        put(key::PCRS, encode_pcrs(&self.pcrs));
        put(
            key::CERTIFICATION,
            Value::Array(vec![bytes(&self.certification_nonce), encode_signed(&self.node_key_certification)]),
        );
        put(key::REQUESTED_AT, Value::Integer(self.requested_at.as_nanos().into()));
        put(key::AGENT_DIGEST, bytes(&self.agent_digest));
        put(key::LOG_DIGESTS, Value::Array(self.log_digests.iter().map(|digest| bytes(digest)).collect()));
        if !self.withdrawn.is_empty() {
            let numbers = self.withdrawn.iter().map(|number| Value::Integer((*number).into()));
            put(key::WITHDRAWN, Value::Array(numbers.collect()));
        }
        cbor::encode(&Value::Map(map))
    }

    /// The claims of a payload; every claim known, every value of its form, one encoding.
    pub(super) fn decode(payload: &[u8]) -> Result<Self, Refusal> {
        let malformed = |what: String| Refusal::new(codes::EVIDENCE_MALFORMED, what).at("claims");
        let value = cbor::decode(payload).map_err(malformed)?;
        let mut claims = Claims::of(value).map_err(malformed)?;
        let profile = claims.take(key::PROFILE, read::text).map_err(malformed)?;
        if profile != PROFILE {
            return Err(Refusal::new(codes::EVIDENCE_PROFILE, format!("`{}`", profile.escape_default()))
                .at("claim 265")
                .expected(PROFILE));
        }
        let decoded = Self::take_from(&mut claims).map_err(malformed)?;
        claims.end().map_err(malformed)?;
        if decoded.encode() != payload {
            return Err(Refusal::new(codes::EVIDENCE_NOT_DETERMINISTIC, "the claims encode differently again"));
        }
        Ok(decoded)
    }

    fn take_from(claims: &mut Claims) -> Result<Self, String> {
        claims.take(key::SOFTWARE_NAME, |name| (read::text(name)? == SOFTWARE).then_some(()))?;
        let (certification_nonce, node_key_certification) = claims.take(key::CERTIFICATION, |value| {
            let [nonce, signed] = read::tuple(value)?;
            Some((read::fixed(nonce)?, decode_signed(signed)?))
        })?;
        Ok(Self {
            nonce: claims.take(key::NONCE, read::fixed)?,
            node: claims.take_optional(key::UEID, decode_node)?,
            boot_id: BootId::from_bytes(claims.take(key::BOOT_SEED, read::fixed)?),
            requested_at: BootInstant::from_nanos(claims.take(key::REQUESTED_AT, read::integer)?),
            quote: claims.take(key::QUOTE, decode_signed)?,
            pcrs: claims.take(key::PCRS, decode_pcrs)?,
            node_key_certification,
            certification_nonce,
            agent_version: claims.take(key::SOFTWARE_VERSION, decode_version)?,
            agent_digest: claims.take(key::AGENT_DIGEST, read::fixed)?,
            log_digests: claims.take(key::LOG_DIGESTS, |value| match value {
                Value::Array(items) if items.len() <= LOGS_LIMIT => items.into_iter().map(read::fixed).collect(),
                _ => None,
            })?,
            withdrawn: claims.take_optional(key::WITHDRAWN, decode_withdrawn)?.unwrap_or_default(),
        })
    }
}

/// A node id as a UEID.
pub fn encode_node(node: &NodeId) -> Value {
    Value::Bytes([&[UEID_RAND][..], node.as_bytes()].concat())
}

/// The node id of a UEID.
pub fn decode_node(value: Value) -> Option<NodeId> {
    match read::fixed::<33>(value)? {
        [UEID_RAND, id @ ..] => Some(NodeId::from_bytes(id)),
        _ => None,
    }
}

/// PCR values as `[TPM_ALG_ID, {PCR => value}]`.
pub fn encode_pcrs(pcrs: &PcrValues) -> Value {
    let values = pcrs.iter().map(|(pcr, value)| (Value::Integer(pcr.into()), bytes(value))).collect();
    Value::Array(vec![Value::Integer(pcrs.selection().bank().algorithm().into()), Value::Map(values)])
}

/// The PCR values of [`encode_pcrs`].
pub fn decode_pcrs(value: Value) -> Option<PcrValues> {
    let [algorithm, values] = read::tuple(value)?;
    let bank = Bank::from_algorithm(read::integer(algorithm)?)?;
    let Value::Map(map) = values else { return None };
    let values: BTreeMap<u8, Vec<u8>> =
        map.into_iter().map(|(pcr, value)| Some((read::integer(pcr)?, read::bytes(value)?))).collect::<Option<_>>()?;
    PcrValues::new(PcrSelection::new(bank, values.keys().copied()).ok()?, values).ok()
}

fn bytes(bytes: &[u8]) -> Value {
    Value::Bytes(bytes.to_vec())
}

fn encode_signed(signed: &Signed) -> Value {
    Value::Array(vec![bytes(&signed.attest), bytes(&signed.signature)])
}

fn decode_signed(value: Value) -> Option<Signed> {
    let [attest, signature] = read::tuple(value)?;
    let part = |value| read::bytes(value).filter(|part| (1..=SIGNED_LIMIT).contains(&part.len()));
    Some(Signed { attest: part(attest)?, signature: part(signature)? })
}

/// Numbers in one form: each once, ascending, and none at all is no claim.
fn decode_withdrawn(value: Value) -> Option<Vec<u64>> {
    let Value::Array(items) = value else { return None };
    if !(1..=WITHDRAWN_LIMIT).contains(&items.len()) {
        return None;
    }
    let numbers: Vec<u64> = items.into_iter().map(read::integer).collect::<Option<_>>()?;
    numbers.is_sorted_by(|one, next| one < next).then_some(numbers)
}

fn decode_version(value: Value) -> Option<String> {
    let [version] = read::tuple(value)?;
    // Printable and short: it ends up in logs and tables.
    read::text(version).filter(|text| (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic()))
}
