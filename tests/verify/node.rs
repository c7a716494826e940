//! A node in software: fixed keys stand where the TPM's would, everything else is as a TPM makes it.
//!
//! It is written from the specifications and the CDDL, not with the crate's encoders, so that the
//! two check each other; and it can say what no honest node would.

use std::collections::BTreeMap;

use leasehold::clock::{BootId, BootInstant};
use leasehold::evidence::{NodeClaims, PROFILE, certification_binding, quote_binding, sign1};
use leasehold::identity::NodeId;
use leasehold::tpm::structures::Signature;
use leasehold::tpm::{Bank, PcrSelection, PcrValues, Signed};
use leasehold::verify::{AkPublic, EnrolledKeys, NodeKey};
use p256::ecdsa::signature::Signer;
use p256::ecdsa::signature::hazmat::PrehashSigner;
use p256::ecdsa::{Signature as Ecdsa, SigningKey};
use serde_cbor::Value;
use sha2::{Digest, Sha256};

pub const AK_ATTRIBUTES: u32 = 0x0005_0472;
pub const NODE_KEY_ATTRIBUTES: u32 = 0x0004_0472;
pub const QUOTE: u16 = 0x8018;
pub const SHA256: u16 = 0x000B;

pub fn signing_key(seed: u8) -> SigningKey {
    SigningKey::from_slice(&[seed; 32]).unwrap()
}

/// TPMT_PUBLIC of a P-256 signing key.
pub fn signing_public(key: &SigningKey, attributes: u32) -> Vec<u8> {
    let mut public = vec![0x00, 0x23, 0x00, 0x0B];
    public.extend(attributes.to_be_bytes());
    // No policy, no symmetric cipher, ECDSA with SHA-256, P-256, no key derivation.
    public.extend([0, 0, 0x00, 0x10, 0x00, 0x18, 0x00, 0x0B, 0x00, 0x03, 0x00, 0x10]);
    public.extend(point(key));
    public
}

/// TPMS_ECC_POINT.
pub fn point(key: &SigningKey) -> Vec<u8> {
    let point = key.verifying_key().to_sec1_point(false);
    [&[0, 32], &point.as_bytes()[1..33], &[0, 32], &point.as_bytes()[33..]].concat()
}

pub fn name(public: &[u8]) -> Vec<u8> {
    [&[0x00, 0x0B], &Sha256::digest(public)[..]].concat()
}

/// The qualified name under a hierarchy.
pub fn qualified_name(hierarchy: u32, name: &[u8]) -> Vec<u8> {
    [&[0x00, 0x0B], &Sha256::digest([&hierarchy.to_be_bytes()[..], name].concat())[..]].concat()
}

/// The parts of a TPMS_ATTEST.
#[derive(Clone)]
pub struct Attestation {
    pub magic: u32,
    pub kind: u16,
    pub signer: Vec<u8>,
    pub extra_data: Vec<u8>,
    pub clock_ms: u64,
    pub reset: u32,
    pub restart: u32,
    pub body: Vec<u8>,
    pub trailing: Vec<u8>,
}

impl Attestation {
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.magic.to_be_bytes().to_vec();
        bytes.extend(self.kind.to_be_bytes());
        bytes.extend(sized(&self.signer));
        bytes.extend(sized(&self.extra_data));
        bytes.extend(self.clock_ms.to_be_bytes());
        bytes.extend(self.reset.to_be_bytes());
        bytes.extend(self.restart.to_be_bytes());
        bytes.push(1);
        bytes.extend(0x2019_1023_0016_3636u64.to_be_bytes());
        bytes.extend(&self.body);
        bytes.extend(&self.trailing);
        bytes
    }
}

pub fn sized(bytes: &[u8]) -> Vec<u8> {
    [&u16::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat()
}

/// TPMS_QUOTE_INFO.
pub fn quote_info(banks: &[(u16, [u8; 3])], values: &BTreeMap<u8, Vec<u8>>) -> Vec<u8> {
    let mut body = u32::try_from(banks.len()).unwrap().to_be_bytes().to_vec();
    for (bank, bitmap) in banks {
        body.extend(bank.to_be_bytes());
        body.push(3);
        body.extend(bitmap);
    }
    body.extend(sized(&Sha256::digest(values.values().flatten().copied().collect::<Vec<u8>>())));
    body
}

/// Everything a submission is made of. `Node::honest` is accepted; tests change one thing.
#[derive(Clone)]
pub struct Node {
    pub ak: SigningKey,
    pub ak_attributes: u32,
    pub node_key: SigningKey,
    pub id: Option<NodeId>,
    pub nonce: [u8; 32],
    pub boot_id: [u8; 16],
    pub requested_at: u64,
    pub values: BTreeMap<u8, Vec<u8>>,
    pub logs: Vec<[u8; 32]>,
    pub withdrawn: Vec<u64>,
    pub certification_nonce: [u8; 32],
    pub clock_ms: u64,
    pub reset: u32,
    pub restart: u32,
}

impl Node {
    pub fn honest() -> Self {
        Self {
            ak: signing_key(1),
            ak_attributes: AK_ATTRIBUTES,
            node_key: signing_key(2),
            id: Some(NodeId::from_bytes([0x1D; 32])),
            nonce: [0xA0; 32],
            boot_id: [0xB0; 16],
            requested_at: 90_000_000_000,
            values: [0, 1, 2, 3, 4, 5, 6, 7].map(|pcr| (pcr, vec![pcr + 1; 32])).into(),
            logs: Vec::new(),
            withdrawn: Vec::new(),
            certification_nonce: [0xC0; 32],
            clock_ms: 1_000_000,
            reset: 3,
            restart: 0,
        }
    }

    pub fn ak_public(&self) -> Vec<u8> {
        signing_public(&self.ak, self.ak_attributes)
    }

    pub fn node_key_public(&self) -> Vec<u8> {
        signing_public(&self.node_key, NODE_KEY_ATTRIBUTES)
    }

    pub fn bitmap(&self) -> [u8; 3] {
        let mask = self.values.keys().fold(0u32, |mask, pcr| mask | 1 << pcr);
        mask.to_le_bytes()[..3].try_into().unwrap()
    }

    pub fn selection(&self) -> PcrSelection {
        PcrSelection::new(Bank::Sha256, self.values.keys().copied()).unwrap()
    }

    pub fn boot(&self) -> BootId {
        BootId::from_bytes(self.boot_id)
    }

    /// What the AK's quote says.
    pub fn quote(&self) -> Attestation {
        let name = name(&self.node_key_public());
        Attestation {
            magic: 0xFF54_4347,
            kind: QUOTE,
            signer: qualified_name(0x4000_000B, &self::name(&self.ak_public())),
            extra_data: quote_binding(&self.nonce, &name, &self.boot(), &self.logs).to_vec(),
            clock_ms: self.clock_ms,
            reset: self.reset,
            restart: self.restart,
            body: quote_info(&[(SHA256, self.bitmap())], &self.values),
            trailing: Vec::new(),
        }
    }

    /// What the AK's certification of the node key says.
    pub fn certification(&self) -> Attestation {
        let name = name(&self.node_key_public());
        Attestation {
            kind: 0x8017,
            extra_data: certification_binding(&self.certification_nonce, &name).to_vec(),
            body: [sized(&name), sized(&qualified_name(0x4000_000B, &name))].concat(),
            ..self.quote()
        }
    }

    /// The AK's signature over any bytes.
    pub fn attest(&self, attestation: &Attestation) -> Signed {
        let attest = attestation.bytes();
        let signature: Ecdsa = self.ak.sign(&attest);
        Signed { attest, signature: Signature::ecdsa_sha256_bytes(&signature) }
    }

    /// The claims as a map, for tests that change it.
    pub fn claims(&self, quote: &Signed, certification: &Signed) -> BTreeMap<Value, Value> {
        let bytes = |bytes: &[u8]| Value::Bytes(bytes.to_vec());
        let text = |text: &str| Value::Text(text.to_owned());
        let signed = |signed: &Signed| Value::Array(vec![bytes(&signed.attest), bytes(&signed.signature)]);
        let values = self.values.iter().map(|(pcr, value)| (Value::Integer((*pcr).into()), bytes(value))).collect();
        let mut claims = BTreeMap::from([
            (Value::Integer(10), bytes(&self.nonce)),
            (Value::Integer(265), text(PROFILE)),
            (Value::Integer(268), bytes(&self.boot_id)),
            (Value::Integer(270), text("leasehold-agent")),
            (Value::Integer(271), Value::Array(vec![text("0.1.0")])),
            (Value::Integer(-65_537), signed(quote)),
            (Value::Integer(-65_538), Value::Array(vec![Value::Integer(SHA256.into()), Value::Map(values)])),
            (Value::Integer(-65_539), Value::Array(vec![bytes(&self.certification_nonce), signed(certification)])),
            (Value::Integer(-65_540), Value::Integer(self.requested_at.into())),
            (Value::Integer(-65_541), bytes(&[0xD0; 32])),
            (Value::Integer(-65_542), Value::Array(self.logs.iter().map(|digest| bytes(digest)).collect())),
        ]);
        if !self.withdrawn.is_empty() {
            let numbers = self.withdrawn.iter().map(|number| Value::Integer((*number).into())).collect();
            claims.insert(Value::Integer(-65_543), Value::Array(numbers));
        }
        if let Some(id) = self.id {
            claims.insert(Value::Integer(256), bytes(&[&[1][..], id.as_bytes()].concat()));
        }
        claims
    }

    /// Evidence over this quote.
    pub fn evidence_with(&self, quote: &Signed) -> Vec<u8> {
        self.envelope(&Value::Map(self.claims(quote, &self.attest(&self.certification()))))
    }

    pub fn evidence(&self) -> Vec<u8> {
        self.evidence_with(&self.attest(&self.quote()))
    }

    /// Any claims, signed by the node key.
    pub fn envelope(&self, claims: &Value) -> Vec<u8> {
        self.sign(serde_cbor::to_vec(claims).unwrap())
    }

    /// Any payload, signed by the node key.
    pub fn sign(&self, payload: Vec<u8>) -> Vec<u8> {
        let unsigned = sign1::Unsigned::new(payload, None);
        let signature = self.node_key.sign_prehash(&unsigned.digest()).unwrap();
        unsigned.finish(signature)
    }

    /// The same claims for the crate's own encoder.
    pub fn node_claims(&self) -> NodeClaims {
        NodeClaims {
            nonce: self.nonce,
            node: self.id,
            boot_id: self.boot(),
            requested_at: BootInstant::from_nanos(self.requested_at),
            quote: self.attest(&self.quote()),
            pcrs: PcrValues::new(self.selection(), self.values.clone()).unwrap(),
            node_key_certification: self.attest(&self.certification()),
            certification_nonce: self.certification_nonce,
            agent_version: "0.1.0".to_owned(),
            agent_digest: [0xD0; 32],
            log_digests: self.logs.clone(),
            withdrawn: self.withdrawn.clone(),
        }
    }

    pub fn keys(&self) -> EnrolledKeys {
        EnrolledKeys {
            node: self.id,
            ak: AkPublic::parse(&self.ak_public()).unwrap(),
            node_key: NodeKey::parse(&self.node_key_public()).unwrap(),
            certification_nonce: self.certification_nonce,
        }
    }
}
