//! Leases: from an appraisal to the agent's check.

use std::time::Duration;

use leasehold::clock::{BootId, BootInstant, WallTime};
use leasehold::codes;
use leasehold::evidence::UnverifiedEvidence;
use leasehold::tpm::{PcrValues, ResetCounts};
use leasehold::verify::{
    Appraised, Grade, LEASE_CDDL, LearntSet, Lease, LeaseClaims, LeaseExpectation, LeaseTerms, TrustVector, Verdict,
    authenticate,
};
use p256::ecdsa::SigningKey;
use p256::ecdsa::signature::hazmat::PrehashSigner;
use p256::pkcs8::EncodePublicKey;

use crate::endorsement::{Key, ca};
use crate::node::{Node, name, signing_key};

const TERMS: LeaseTerms = LeaseTerms {
    sequence: 8,
    term: Duration::from_secs(600),
    issued_at: WallTime(1_800_000_000),
    epoch: [0xE0; 16],
    grade: Grade::Certified,
};

pub fn references(node: &Node) -> LearntSet {
    let values = PcrValues::new(node.selection(), node.values.clone()).unwrap();
    LearntSet { profile: "factory-1".to_owned(), version: 4, values }
}

pub fn appraised(node: &Node, references: Option<&LearntSet>) -> Appraised {
    let keys = node.keys();
    let evidence = UnverifiedEvidence::decode(&node.evidence()).unwrap();
    authenticate(evidence, &keys, Some(keys.node_key.spki_der()))
        .unwrap()
        .fresh(&node.nonce, node.selection(), Duration::ZERO, None)
        .unwrap()
        .unlogged()
        .appraise(references)
}

fn sign(claims: &LeaseClaims, key: &SigningKey) -> Vec<u8> {
    let spki = key.verifying_key().to_public_key_der().unwrap();
    let unsigned = claims.unsigned(spki.as_bytes());
    let signature = key.sign_prehash(&unsigned.digest()).unwrap();
    unsigned.finish(signature)
}

/// A lease, the CA's certificate and what the agent expects.
pub fn good() -> (Vec<u8>, Vec<u8>, LeaseExpectation) {
    let node = Node::honest();
    let claims = appraised(&node, Some(&references(&node))).lease(&TERMS).unwrap();
    (sign(&claims, &signing_key(9)), ca(&Key(signing_key(9)), "CA").0, expectation(&node))
}

fn expectation(node: &Node) -> LeaseExpectation {
    LeaseExpectation {
        node: node.id.unwrap(),
        ak_name: name(&node.ak_public()),
        node_key_name: name(&node.node_key_public()),
        boot_id: node.boot(),
        counts: ResetCounts { reset: node.reset, restart: node.restart },
        requested_at: BootInstant::from_nanos(node.requested_at),
        after_sequence: 7,
        after_epoch: TERMS.epoch,
    }
}

#[test]
fn a_lease_says_what_was_appraised() {
    let (bytes, issuer, expected) = good();
    crate::cddl::holds(LEASE_CDDL, &bytes).unwrap();
    let other = ca(&Key(signing_key(8)), "other").0;
    let lease = Lease::verify(&bytes, &[other, issuer], &expected).unwrap();
    assert_eq!(lease.ends_at(), expected.requested_at.after(Duration::from_secs(600)));
    let claims = lease.claims();
    assert_eq!((claims.profile.as_str(), claims.reference_version), ("factory-1", 4));
    assert_eq!((claims.vector.executables, claims.vector.hardware, claims.vector.status()), (3, 2, 2));
    assert_eq!(claims.epoch, TERMS.epoch);
    assert_eq!(claims.issued_at, TERMS.issued_at);
    assert_eq!(claims.pcrs, references(&Node::honest()).values);
}

#[test]
fn a_lease_for_anything_else_is_refused() {
    let (bytes, issuer, good) = good();
    type Change = fn(&mut LeaseExpectation);
    let changes: [(&str, Change); 7] = [
        ("node", |e| e.node = leasehold::identity::NodeId::from_bytes([0; 32])),
        ("attestation key", |e| e.ak_name[5] ^= 1),
        ("node key", |e| e.node_key_name[5] ^= 1),
        ("boot id", |e| e.boot_id = BootId::from_bytes([0; 16])),
        ("reset counts", |e| e.counts.restart += 1),
        ("requested at", |e| e.requested_at = BootInstant::from_nanos(1)),
        ("sequence", |e| e.after_sequence = 8),
    ];
    for (at, change) in changes {
        let mut expected = good.clone();
        change(&mut expected);
        let refusal = Lease::verify(&bytes, &[&issuer], &expected).unwrap_err();
        assert_eq!((refusal.code, refusal.at.as_str()), (codes::VERIFY_LEASE, at));
    }
    // An older number of another epoch says nothing.
    let anew = LeaseExpectation { after_sequence: 8, after_epoch: [0xEE; 16], ..good.clone() };
    Lease::verify(&bytes, &[&issuer], &anew).unwrap();
    // Another CA, none, and the right CA's name under another CA's signature.
    let other = ca(&Key(signing_key(8)), "other").0;
    assert!(Lease::verify(&bytes, &[other], &good).is_err());
    assert!(Lease::verify(&bytes, &[] as &[Vec<u8>], &good).is_err());
    let claims = Lease::verify(&bytes, &[&issuer], &good).unwrap().claims().clone();
    let unsigned = claims.unsigned(signing_key(9).verifying_key().to_public_key_der().unwrap().as_bytes());
    let signature = signing_key(8).sign_prehash(&unsigned.digest()).unwrap();
    assert!(Lease::verify(&unsigned.finish(signature), &[&issuer], &good).is_err());
    // Terms nobody may have.
    for term in [0, 86_401] {
        let claims = LeaseClaims { term: Duration::from_secs(term), ..claims.clone() };
        assert!(Lease::verify(&sign(&claims, &signing_key(9)), &[&issuer], &good).is_err());
    }
    // A lease on a warning says so; on a contraindicated claim there is none.
    let vector = |executables| TrustVector { instance_identity: 2, executables, ..TrustVector::default() };
    let warned = LeaseClaims { vector: vector(33), rules: Some([7; 32]), ..claims.clone() };
    let signed = sign(&warned, &signing_key(9));
    crate::cddl::holds(LEASE_CDDL, &signed).unwrap();
    assert_eq!(*Lease::verify(&signed, &[&issuer], &good).unwrap().claims(), warned);
    let bad = LeaseClaims { vector: vector(96), ..claims.clone() };
    assert!(Lease::verify(&sign(&bad, &signing_key(9)), &[&issuer], &good).is_err());
    let node = Node::honest();
    let appraised = appraised(&node, Some(&references(&node)));
    let day_and_more = LeaseTerms { term: Duration::from_secs(86_401), ..TERMS };
    assert_eq!(appraised.lease(&day_and_more).unwrap_err().code, codes::VERIFY_LEASE);
    // Evidence is no lease, and a lease no evidence.
    assert!(Lease::verify(&Node::honest().evidence(), &[&issuer], &good).is_err());
    assert!(UnverifiedEvidence::decode(&bytes).is_err());
}

#[test]
fn only_reference_values_affirm() {
    let node = Node::honest();
    let verdict = |references: Option<&LearntSet>| {
        let appraised = appraised(&node, references);
        let refusal = match appraised.verdict() {
            Verdict::Affirming => return None,
            Verdict::Contraindicated(refusal) => refusal.clone(),
        };
        assert_eq!(appraised.lease(&TERMS).unwrap_err(), refusal);
        Some((refusal.code, refusal.at, appraised.differences().len()))
    };
    let good = references(&node);
    assert_eq!(verdict(Some(&good)), None);
    assert_eq!(verdict(None), Some((codes::VERIFY_NO_REFERENCE, String::new(), 0)));

    let with = |values: std::collections::BTreeMap<u8, Vec<u8>>| {
        let values = PcrValues::new(
            leasehold::tpm::PcrSelection::new(leasehold::tpm::Bank::Sha256, values.keys().copied()).unwrap(),
            values,
        );
        LearntSet { values: values.unwrap(), ..good.clone() }
    };
    let mut drifted = node.values.clone();
    drifted.insert(4, vec![0xFF; 32]);
    drifted.insert(7, vec![0xFF; 32]);
    let drifted = with(drifted);
    assert_eq!(verdict(Some(&drifted)), Some((codes::VERIFY_PCR_MISMATCH, "PCR 4 (sha256)".to_owned(), 2)));
    // A reference PCR that wasn't quoted differs; a quoted one without reference isn't waved through.
    let mut more = node.values.clone();
    more.insert(11, vec![0; 32]);
    assert_eq!(verdict(Some(&with(more))).unwrap().0, codes::VERIFY_PCR_MISMATCH);
    let mut fewer = node.values.clone();
    fewer.remove(&3);
    let fewer = with(fewer);
    assert_eq!(verdict(Some(&fewer)), Some((codes::VERIFY_NO_REFERENCE, "PCR 3".to_owned(), 0)));
}

#[test]
fn an_enrolling_node_has_no_lease() {
    let node = Node { id: None, ..Node::honest() };
    let evidence = UnverifiedEvidence::decode(&node.evidence()).unwrap();
    let references = references(&node);
    let appraised = authenticate(evidence, &node.keys(), None)
        .unwrap()
        .fresh(&node.nonce, node.selection(), Duration::ZERO, None)
        .unwrap()
        .unlogged()
        .appraise(Some(&references));
    assert!(appraised.is_affirming());
    assert_eq!(appraised.lease(&TERMS).unwrap_err().code, codes::VERIFY_NODE);
}
