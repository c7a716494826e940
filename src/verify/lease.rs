//! The lease: the control plane's signed attestation result for one boot of one node.

use std::collections::BTreeMap;
use std::time::Duration;

use p256::pkcs8::DecodePublicKey;
use serde_cbor::Value;
use sha2::{Digest, Sha256};

use super::keys::certificate_spki;
use super::trust::TrustVector;
use crate::clock::{BootId, BootInstant, WallTime};
use crate::codes::{self, Refusal};
use crate::evidence::cbor::{self, Claims, read};
use crate::evidence::{claims as evidence_claims, sign1};
use crate::identity::NodeId;
use crate::tpm::{PcrValues, ResetCounts};

/// The CDDL (RFC 8610) of leases.
pub const LEASE_CDDL: &str = include_str!("lease.cddl");

/// The EAT profile of leases: names the format of `lease.cddl`.
pub const LEASE_PROFILE: &str = "urn:uuid:0e6d6d0f-35f8-4f43-8f0c-5a43d4cdd0f7";

/// The largest lease, in bytes; 24 values of SHA-512 take less than 2 KiB.
const LIMIT: usize = 8 << 10;
/// A day: no lease is longer.
const TERM_LIMIT: u64 = 86_400;
/// A SHA-256 name.
const NAME: usize = 34;
/// ear.status "affirming" and "warning": there is no lease on anything less.
const ACCEPTED: [i8; 2] = [2, 32];
/// The submodule that is appraised.
const SUBMODULE: &str = "leasehold-node";

/// Claim keys, as in `lease.cddl`.
mod key {
    pub const IAT: i128 = 6;
    pub const UEID: i128 = 256;
    pub const PROFILE: i128 = 265;
    pub const SUBMODS: i128 = 266;
    pub const BOOT_SEED: i128 = 268;
    pub const STATUS: i128 = 1000;
    pub const VECTOR: i128 = 1001;
    pub const VERIFIER: i128 = 1004;
    pub const PCRS: i128 = -65_538;
    pub const REQUESTED_AT: i128 = -65_540;
    pub const AK_NAME: i128 = -65_543;
    pub const NODE_KEY_NAME: i128 = -65_544;
    pub const COUNTS: i128 = -65_545;
    pub const SEQUENCE: i128 = -65_546;
    pub const TERM: i128 = -65_547;
    pub const EPOCH: i128 = -65_548;
    pub const REFERENCES: i128 = -65_549;
    pub const RULES: i128 = -65_550;
}

/// What a lease says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LeaseClaims {
    /// The node.
    pub node: NodeId,
    /// The TPM name of its attestation key.
    pub ak_name: Vec<u8>,
    /// The TPM name of its node key.
    pub node_key_name: Vec<u8>,
    /// The one boot it is for.
    pub boot_id: BootId,
    /// The TPM's reset counts in that boot; a change ends the lease.
    pub counts: ResetCounts,
    /// The reference values it was appraised against; 1 to 64 printable ASCII characters.
    pub profile: String,
    /// Their version.
    pub reference_version: u64,
    /// Greater than that of every earlier lease of this node in this epoch.
    pub sequence: u64,
    /// The node's clock at its request: the term is counted from here.
    pub requested_at: BootInstant,
    /// How long it holds: 1 to 86 400 whole seconds.
    pub term: Duration,
    /// The values it was granted on: any other one is drift.
    pub pcrs: PcrValues,
    /// The AR4SI claims.
    pub vector: TrustVector,
    /// The control plane's clock; no term is counted from it.
    pub issued_at: WallTime,
    /// The control plane's epoch.
    pub epoch: [u8; 16],
    /// SHA-256 of the reference document whose runtime rules the node may judge new entries of IMA's
    /// list by; without it a change of PCR 10 is drift.
    pub rules: Option<[u8; 32]>,
}

/// What the agent knows about the lease it asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LeaseExpectation {
    /// Its node id.
    pub node: NodeId,
    /// Its attestation key.
    pub ak_name: Vec<u8>,
    /// Its node key.
    pub node_key_name: Vec<u8>,
    /// The running boot.
    pub boot_id: BootId,
    /// The counts of the quote it sent.
    pub counts: ResetCounts,
    /// The moment in the evidence it sent.
    pub requested_at: BootInstant,
    /// The sequence number of the last lease; 0 if there was none.
    pub after_sequence: u64,
    /// The epoch that number counts in: a control plane whose store was restored counts anew.
    pub after_epoch: [u8; 16],
}

/// A lease that was signed by the control plane for this node, boot and request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Lease(LeaseClaims);

impl LeaseClaims {
    /// The lease as it waits for the signature of the CA key with this SubjectPublicKeyInfo (DER).
    pub fn unsigned(&self, issuer_spki: &[u8]) -> sign1::Unsigned {
        sign1::Unsigned::new(self.encode(), Some(&key_id(issuer_spki)))
    }

    fn encode(&self) -> Vec<u8> {
        let mut map = BTreeMap::new();
        let mut put = |key: i128, value: Value| drop(map.insert(Value::Integer(key), value));
        put(key::IAT, Value::Integer(self.issued_at.0.into()));
        put(key::UEID, evidence_claims::encode_node(&self.node));
        put(key::PROFILE, Value::Text(LEASE_PROFILE.to_owned()));
        put(key::SUBMODS, encode_appraisal(self.vector));
        put(key::BOOT_SEED, Value::Bytes(self.boot_id.as_bytes().to_vec()));
        put(
            key::VERIFIER,
            integers([
                (0, Value::Text("leasehold".to_owned())),
                (1, Value::Text(env!("CARGO_PKG_VERSION").to_owned())),
            ]),
        );
        put(key::PCRS, evidence_claims::encode_pcrs(&self.pcrs));
        put(key::REQUESTED_AT, Value::Integer(self.requested_at.as_nanos().into()));
        put(key::AK_NAME, Value::Bytes(self.ak_name.clone()));
        put(key::NODE_KEY_NAME, Value::Bytes(self.node_key_name.clone()));
        let ResetCounts { reset, restart } = self.counts;
        put(key::COUNTS, Value::Array(vec![Value::Integer(reset.into()), Value::Integer(restart.into())]));
        put(key::SEQUENCE, Value::Integer(self.sequence.into()));
        put(key::TERM, Value::Integer(self.term.as_secs().into()));
        put(key::EPOCH, Value::Bytes(self.epoch.to_vec()));
        put(
            key::REFERENCES,
            Value::Array(vec![Value::Text(self.profile.clone()), Value::Integer(self.reference_version.into())]),
        );
        if let Some(rules) = &self.rules {
            put(key::RULES, Value::Bytes(rules.to_vec()));
        }
        cbor::encode(&Value::Map(map))
    }

    /// Whether a lease of these claims can be read again: every value within its bounds.
    pub(super) fn check(&self) -> Result<(), Refusal> {
        Self::decode(&self.encode()).map(drop).map_err(|what| Refusal::new(codes::VERIFY_LEASE, what))
    }

    fn decode(payload: &[u8]) -> Result<Self, String> {
        let mut claims = Claims::of(cbor::decode(payload)?)?;
        claims.take(key::PROFILE, |value| (read::text(value)? == LEASE_PROFILE).then_some(()))?;
        // The verifier's name and version are for people; any will do.
        claims.take(key::VERIFIER, |value| matches!(value, Value::Map(_)).then_some(()))?;
        let (profile, reference_version) = claims.take(key::REFERENCES, |value| {
            let [profile, version] = read::tuple(value)?;
            Some((read::text(profile).filter(|text| is_name(text))?, read::integer(version)?))
        })?;
        let name = |value| read::fixed::<NAME>(value).map(Vec::from);
        let decoded = Self {
            node: claims.take(key::UEID, evidence_claims::decode_node)?,
            ak_name: claims.take(key::AK_NAME, name)?,
            node_key_name: claims.take(key::NODE_KEY_NAME, name)?,
            boot_id: BootId::from_bytes(claims.take(key::BOOT_SEED, read::fixed)?),
            counts: claims.take(key::COUNTS, |value| {
                let [reset, restart] = read::tuple(value)?;
                Some(ResetCounts { reset: read::integer(reset)?, restart: read::integer(restart)? })
            })?,
            profile,
            reference_version,
            sequence: claims.take(key::SEQUENCE, read::integer)?,
            requested_at: BootInstant::from_nanos(claims.take(key::REQUESTED_AT, read::integer)?),
            term: claims.take(key::TERM, |value| {
                read::integer(value).filter(|term| (1..=TERM_LIMIT).contains(term)).map(Duration::from_secs)
            })?,
            pcrs: claims.take(key::PCRS, evidence_claims::decode_pcrs)?,
            vector: claims.take(key::SUBMODS, decode_appraisal)?,
            issued_at: WallTime(claims.take(key::IAT, read::integer)?),
            rules: claims.take_optional(key::RULES, read::fixed)?,
            epoch: claims.take(key::EPOCH, read::fixed)?,
        };
        claims.end()?;
        Ok(decoded)
    }
}

impl Lease {
    /// Checks that `bytes` are a lease, signed by one of the CA certificates `issuers` (DER) of the
    /// pinned bundle, and that it is the answer to this agent's request.
    ///
    /// # Errors
    /// [`codes::VERIFY_LEASE`], naming the part that is wrong.
    pub fn verify(bytes: &[u8], issuers: &[impl AsRef<[u8]>], expected: &LeaseExpectation) -> Result<Self, Refusal> {
        let refuse = |what: String| Refusal::new(codes::VERIFY_LEASE, what);
        if bytes.len() > LIMIT {
            return Err(refuse(format!("{} bytes", bytes.len())).expected(format!("at most {LIMIT}")));
        }
        let envelope = sign1::Unverified::decode(bytes, true)
            .map_err(|fault| refuse(fault.what).at(format!("byte {}", fault.offset)))?;
        let key =
            issuers.iter().find_map(|issuer| issuer_key(issuer.as_ref(), envelope.key_id()?)).ok_or_else(|| {
                refuse(envelope.key_id().map(hex::encode).unwrap_or_default())
                    .at("key id")
                    .expected("a CA of the pinned bundle")
            })?;
        if !envelope.signed_by(&key) {
            return Err(refuse("a signature by another key".to_owned()));
        }
        let claims = LeaseClaims::decode(envelope.payload()).map_err(refuse)?;
        expected.check(&claims)?;
        Ok(Self(claims))
    }

    /// What it says.
    pub const fn claims(&self) -> &LeaseClaims {
        &self.0
    }

    /// The end of its term, on the node's own clock.
    pub fn ends_at(&self) -> BootInstant {
        self.0.requested_at.after(self.0.term)
    }
}

#[cfg(test)]
impl Lease {
    /// For unit tests of what holds a lease.
    pub(crate) const fn for_test(claims: LeaseClaims) -> Self {
        Self(claims)
    }
}

impl LeaseExpectation {
    fn check(&self, found: &LeaseClaims) -> Result<(), Refusal> {
        let differs = |at: &str, found: String, expected: String| {
            if found == expected {
                return Ok(());
            }
            Err(Refusal::new(codes::VERIFY_LEASE, found).at(at).expected(expected))
        };
        let counts = |counts: ResetCounts| format!("reset {} restart {}", counts.reset, counts.restart);
        differs("node", found.node.to_string(), self.node.to_string())?;
        differs("attestation key", hex::encode(&found.ak_name), hex::encode(&self.ak_name))?;
        differs("node key", hex::encode(&found.node_key_name), hex::encode(&self.node_key_name))?;
        differs("boot id", found.boot_id.to_string(), self.boot_id.to_string())?;
        differs("reset counts", counts(found.counts), counts(self.counts))?;
        let nanos = |instant: BootInstant| format!("{} ns", instant.as_nanos());
        differs("requested at", nanos(found.requested_at), nanos(self.requested_at))?;
        if found.epoch == self.after_epoch && found.sequence <= self.after_sequence {
            return Err(Refusal::new(codes::VERIFY_LEASE, found.sequence.to_string())
                .at("sequence")
                .expected(format!("more than {}", self.after_sequence)));
        }
        Ok(())
    }
}

/// RFC 7638 in spirit: the key's own hash names it.
fn key_id(spki: &[u8]) -> [u8; 32] {
    Sha256::digest(spki).into()
}

/// The key of a CA certificate, if it is the one that is meant.
fn issuer_key(certificate: &[u8], wanted: &[u8; 32]) -> Option<p256::ecdsa::VerifyingKey> {
    let spki = certificate_spki(certificate).ok()?;
    if key_id(&spki) != *wanted {
        return None;
    }
    p256::ecdsa::VerifyingKey::from_public_key_der(&spki).ok()
}

fn encode_appraisal(vector: TrustVector) -> Value {
    let claims = (0i128..).zip(vector.claims()).filter(|(_, claim)| *claim != 0);
    let appraisal = integers([
        (key::STATUS, Value::Integer(vector.status().into())),
        (key::VECTOR, integers(claims.map(|(number, claim)| (number, Value::Integer(claim.into()))))),
    ]);
    Value::Map(BTreeMap::from([(Value::Text(SUBMODULE.to_owned()), appraisal)]))
}

fn decode_appraisal(value: Value) -> Option<TrustVector> {
    let Value::Map(mut submodules) = value else { return None };
    let mut appraisal = Claims::of(submodules.remove(&Value::Text(SUBMODULE.to_owned()))?).ok()?;
    let status: i8 = appraisal.take(key::STATUS, read::integer).ok()?;
    let mut vector = Claims::of(appraisal.take(key::VECTOR, Some).ok()?).ok()?;
    let mut claims = [0; 8];
    for (number, claim) in (0i128..).zip(&mut claims) {
        *claim = vector.take_optional(number, read::integer).ok()?.unwrap_or(0);
    }
    let vector = vector.end().is_ok().then(|| TrustVector::from_claims(claims))?;
    let whole = submodules.is_empty() && appraisal.end().is_ok();
    (whole && ACCEPTED.contains(&status) && vector.status() == status).then_some(vector)
}

fn integers(entries: impl IntoIterator<Item = (i128, Value)>) -> Value {
    Value::Map(entries.into_iter().map(|(key, value)| (Value::Integer(key), value)).collect())
}

fn is_name(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}
