//! Submissions made from the honest node's, each changed in one place.

use std::collections::BTreeMap;

use leasehold::tpm::Signed;
use p256::ecdsa::SigningKey;
use p256::pkcs8::EncodePublicKey;
use serde_cbor::Value;

use crate::endorsement::{EkCertificate, Key, NOW, ca, ek_public};
use crate::node::{Attestation, Node, name, signing_key};
use crate::vector::{Endorsement, Hex, Keys, Prior, Question, Submission, Vector};

/// A submission of this node with this evidence.
pub fn submit(node: &Node, evidence: Vec<u8>) -> Vector {
    Vector {
        keys: Some(Keys {
            node: Hex(node.id.unwrap().as_bytes().to_vec()),
            ak_public: Hex(node.ak_public()),
            activated_name: Hex(name(&node.ak_public())),
            node_key_public: Hex(node.node_key_public()),
            certification_nonce: Hex(node.certification_nonce.to_vec()),
        }),
        submission: Some(Submission { channel: Hex(spki(&node.node_key)), evidence: Hex(evidence), padded_to: 0 }),
        question: Some(Question {
            nonce: Hex(node.nonce.to_vec()),
            selection: node.selection().to_string(),
            nonce_age_seconds: 300,
            nonce_of: None,
        }),
        prior: Some(Prior {
            reset: node.reset,
            restart: node.restart,
            clock_ms: node.clock_ms - 300_000,
            boot_id: Hex(node.boot_id.to_vec()),
            elapsed_seconds: 300,
        }),
        endorsement: Some(Endorsement {
            ek_public: Hex(ek_public(&signing_key(3), 0x0003_00B2)),
            certificate: Hex(EkCertificate::default().signed(4)),
            root: Hex(ca(&Key(signing_key(4)), "TPM manufacturer").0),
            now: NOW.0,
        }),
        logs: None,
    }
}

pub fn spki(key: &SigningKey) -> Vec<u8> {
    key.verifying_key().to_public_key_der().unwrap().into_vec()
}

/// The honest node's submission with this attestation, signed by the AK.
pub fn quoted(change: impl FnOnce(&mut Attestation)) -> Vector {
    let node = Node::honest();
    let mut attestation = node.quote();
    change(&mut attestation);
    submit(&node, node.evidence_with(&node.attest(&attestation)))
}

/// The honest node's submission with this TPMT_SIGNATURE of its quote.
pub fn signed(signature: impl FnOnce(Vec<u8>) -> Vec<u8>) -> Vector {
    let node = Node::honest();
    let Signed { attest, signature: good } = node.attest(&node.quote());
    submit(&node, node.evidence_with(&Signed { attest, signature: signature(good) }))
}

/// The honest node's submission with these claims, signed by the node key.
pub fn claimed(change: impl FnOnce(&mut BTreeMap<Value, Value>)) -> Vector {
    let node = Node::honest();
    let mut claims = node.claims(&node.attest(&node.quote()), &node.attest(&node.certification()));
    change(&mut claims);
    let evidence = node.envelope(&Value::Map(claims));
    submit(&node, evidence)
}

/// The honest node's submission with this payload, signed by the node key.
pub fn encoded(change: impl FnOnce(&mut Vec<u8>)) -> Vector {
    let node = Node::honest();
    let claims = node.claims(&node.attest(&node.quote()), &node.attest(&node.certification()));
    let mut payload = serde_cbor::to_vec(&Value::Map(claims)).unwrap();
    change(&mut payload);
    submit(&node, node.sign(payload))
}

/// The submission of another node than the honest one.
pub fn node(change: impl FnOnce(&mut Node)) -> Vector {
    let mut node = Node::honest();
    change(&mut node);
    submit(&node, node.evidence())
}

/// The accepted submission, changed.
pub fn changed(change: impl FnOnce(&mut Vector)) -> Vector {
    let mut vector = node(|_| ());
    change(&mut vector);
    vector
}

pub fn ek(change: impl FnOnce(&mut Endorsement)) -> Vector {
    changed(|vector| change(vector.endorsement.as_mut().unwrap()))
}
