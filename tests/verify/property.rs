//! Properties: decoders never panic, and no bit of evidence can change.

use leasehold::clock::WallTime;
use leasehold::evidence::{UnverifiedEvidence, cbor};
use leasehold::tpm::structures::{Attest, Public, Signature};
use leasehold::verify::{AkPublic, EkRoots, EnrolledKeys, Lease, LeaseExpectation, NodeKey, authenticate, endorsement};
use proptest::prelude::*;

use crate::lease;
use crate::node::Node;

/// The whole way of a submission, from bytes to freshness.
fn accepted(node: &Node, keys: &EnrolledKeys, evidence: &[u8]) -> bool {
    UnverifiedEvidence::decode(evidence)
        .and_then(|evidence| authenticate(evidence, keys, Some(keys.node_key.spki_der())))
        .and_then(|authentic| authentic.fresh(&node.nonce, node.selection(), std::time::Duration::ZERO, None))
        .is_ok()
}

#[test]
fn every_single_bit_counts() {
    let node = Node::honest();
    let (keys, evidence) = (node.keys(), node.evidence());
    assert!(accepted(&node, &keys, &evidence));
    for bit in 0..evidence.len() * 8 {
        let mut flipped = evidence.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(!accepted(&node, &keys, &flipped), "bit {bit} can be flipped");
    }
}

#[test]
fn every_single_bit_of_a_lease_counts() {
    let (bytes, issuer, expected) = lease::good();
    assert!(Lease::verify(&bytes, &[&issuer], &expected).is_ok());
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(Lease::verify(&flipped, &[&issuer], &expected).is_err(), "bit {bit} can be flipped");
    }
}

#[test]
fn no_prefix_is_accepted() {
    let node = Node::honest();
    let (keys, evidence) = (node.keys(), node.evidence());
    for length in 0..evidence.len() {
        assert!(!accepted(&node, &keys, &evidence[..length]));
    }
}

/// Gives arbitrary bytes to everything that reads any.
fn read_all(bytes: &[u8], expected: &LeaseExpectation, issuer: &[u8]) {
    let _ = cbor::scan(bytes, None);
    let _ = cbor::decode(bytes);
    let _ = UnverifiedEvidence::decode(bytes);
    let _ = Attest::parse(bytes);
    let _ = Signature::parse(bytes).and_then(|signature| signature.ecdsa_p256_sha256());
    let _ = Public::parse_sized(bytes);
    if let Ok(public) = Public::parse(bytes) {
        let _ = (public.name(), public.spki_der(), public.p256_key());
        let _ = endorsement::grade(&public, Some(bytes), &[], &EkRoots::default(), false, WallTime(0));
    }
    let _ = (AkPublic::parse(bytes), NodeKey::parse(bytes));
    let _ = EkRoots::from_der(vec![bytes.to_vec()]);
    let _ = Lease::verify(bytes, &[issuer], expected);
}

proptest! {
    #[test]
    fn arbitrary_bytes_do_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
        let (_, issuer, expected) = lease::good();
        read_all(&bytes, &expected, &issuer);
    }

    #[test]
    fn mutated_structures_do_no_harm(
        which in 0usize..5,
        edits in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<proptest::sample::Index>(),
    ) {
        let node = Node::honest();
        let (lease, issuer, expected) = lease::good();
        let signed = node.attest(&node.quote());
        let mut bytes = [node.evidence(), signed.attest, signed.signature, node.ak_public(), lease][which].clone();
        for (index, value) in edits {
            let index = index.index(bytes.len());
            bytes[index] = value;
        }
        read_all(&bytes, &expected, &issuer);
        bytes.truncate(cut.index(bytes.len()));
        read_all(&bytes, &expected, &issuer);
    }

    #[test]
    fn cbor_that_passes_the_scan_is_the_one_encoding(bytes in proptest::collection::vec(any::<u8>(), 0..24)) {
        if cbor::scan(&bytes, None).is_ok() {
            let value = cbor::decode(&bytes).unwrap();
            prop_assert_eq!(cbor::encode(&value), bytes);
        }
    }
}
