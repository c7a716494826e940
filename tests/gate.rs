//! The gate alone: every way in which it must say no, and the one in which it says yes.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::collections::BTreeMap;
use std::time::Duration;

use leasehold::clock::{BootId, BootInstant, WallTime};
use leasehold::codes;
use leasehold::codes::Refusal;
use leasehold::credentials::Held;
use leasehold::gate::{Gate, Reason, Standing};
use leasehold::identity::NodeId;
use leasehold::tpm::{PcrReading, PcrSelection, PcrValues, ResetCounts};
use leasehold::verify::{Lease, LeaseClaims, LeaseExpectation, TrustVector};
use p256::ecdsa::SigningKey;
use p256::ecdsa::signature::hazmat::PrehashSigner;
use p256::pkcs8::{DecodePrivateKey, EncodePublicKey};

const COUNTS: ResetCounts = ResetCounts { reset: 3, restart: 1 };

/// A CA and what it signs.
struct Issuer {
    key: SigningKey,
    certificate: Vec<u8>,
}

impl Issuer {
    fn new() -> Self {
        let pair = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&pair).unwrap().der().to_vec();
        Self { key: SigningKey::from_pkcs8_der(&pair.serialize_der()).unwrap(), certificate }
    }

    fn lease(&self, sequence: u64, epoch: [u8; 16], requested_at: BootInstant, term: u64) -> Lease {
        let claims = LeaseClaims {
            node: NodeId::from_bytes([1; 32]),
            ak_name: vec![0x0B; 34],
            node_key_name: vec![0x0B; 34],
            boot_id: BootId::from_bytes([2; 16]),
            counts: COUNTS,
            profile: "test".to_owned(),
            reference_version: 1,
            sequence,
            requested_at,
            term: Duration::from_secs(term),
            pcrs: values(7, 7),
            vector: TrustVector { instance_identity: 2, executables: 3, ..TrustVector::default() },
            issued_at: WallTime(0),
            epoch,
            rules: None,
        };
        let spki = self.key.verifying_key().to_public_key_der().unwrap();
        let unsigned = claims.unsigned(spki.as_bytes());
        let signature: p256::ecdsa::Signature = self.key.sign_prehash(&unsigned.digest()).unwrap();
        let expected = LeaseExpectation {
            node: claims.node,
            ak_name: claims.ak_name.clone(),
            node_key_name: claims.node_key_name.clone(),
            boot_id: claims.boot_id,
            counts: COUNTS,
            requested_at,
            after_sequence: 0,
            after_epoch: epoch,
        };
        Lease::verify(&unsigned.finish(signature), &[&self.certificate], &expected).unwrap()
    }
}

fn values(pcr: u8, fill: u8) -> PcrValues {
    let selection = PcrSelection::new(leasehold::tpm::Bank::Sha256, [4, pcr]).unwrap();
    PcrValues::new(selection, BTreeMap::from([(4, vec![4; 32]), (pcr, vec![fill; 32])])).unwrap()
}

fn reading(started_at: BootInstant, values: PcrValues, counts: ResetCounts) -> PcrReading {
    PcrReading { started_at, finished_at: started_at, values, update_counter: 9, counts }
}

fn at(seconds: u64) -> BootInstant {
    BootInstant::from_nanos(seconds * 1_000_000_000)
}

/// A gate open since second 100 under a lease of 60 s.
fn open() -> Gate {
    let mut gate = Gate::default();
    gate.open(Issuer::new().lease(5, [0; 16], at(100), 60), &reading(at(101), values(7, 7), COUNTS), at(102)).unwrap();
    gate
}

#[test]
fn it_starts_closed() {
    let mut gate = Gate::default();
    let reason = gate.judge(&reading(at(2), values(7, 7), COUNTS), None, at(1), at(3)).unwrap_err();
    assert_eq!((reason.standing, reason.refusal.code), (Standing::Stale, codes::GATE_STARTING));
}

#[test]
fn it_releases_what_is_held_and_has_not_expired() {
    let mut gate = open();
    let now = at(110);
    let held = [Held::new("alive", at(100), at(120)), Held::new("over", at(90), at(110))];
    let permit = gate.judge(&reading(at(109), values(7, 7), COUNTS), None, at(109), now).unwrap();
    assert_eq!(permit.lease_sequence(), 5);
    let released = permit.release(&held.iter().collect::<Vec<_>>(), now).unwrap();
    assert_eq!(released.get(), &["alive"]);
    assert!(!format!("{released:?}").contains("alive"), "Debug shows no value");
}

#[test]
fn a_permit_grows_old_and_ends_with_the_lease() {
    let held = [Held::new("alive", at(100), at(1_000))];
    let held: Vec<_> = held.iter().collect();
    let permit = open().judge(&reading(at(109), values(7, 7), COUNTS), None, at(109), at(110)).unwrap();
    assert!(permit.release(&held, at(112)).is_err());
    let permit = open().judge(&reading(at(159), values(7, 7), COUNTS), None, at(159), at(159)).unwrap();
    assert!(permit.release(&held, at(160)).is_err());
}

#[test]
fn a_reading_from_before_the_request_is_refused_and_changes_nothing() {
    let mut gate = open();
    let reason = gate.judge(&reading(at(109), values(7, 7), COUNTS), None, at(110), at(111)).unwrap_err();
    assert_eq!(reason.refusal.code, codes::GATE_READING_OLD);
    assert_eq!(gate.standing(), Standing::Affirming);
    // One of other PCRs says nothing about those of the lease.
    let reason = gate.judge(&reading(at(111), values(8, 7), COUNTS), None, at(110), at(112)).unwrap_err();
    assert_eq!(reason.refusal.code, codes::GATE_READING_OLD);
    assert_eq!(gate.standing(), Standing::Affirming);
}

#[test]
fn a_drift_closes_it_for_good_and_names_the_pcr_and_both_values() {
    let mut gate = open();
    let reason = gate.judge(&reading(at(110), values(7, 8), COUNTS), None, at(110), at(111)).unwrap_err();
    assert_eq!((reason.standing, reason.refusal.code), (Standing::Contraindicated, codes::GATE_DRIFT));
    assert_eq!(reason.differences.len(), 1);
    assert_eq!(reason.differences[0].pcr, 7);
    assert_eq!(reason.differences[0].found, "08".repeat(32));
    assert_eq!(reason.differences[0].expected, "07".repeat(32));
    // A PCR can't go back; a reading that says so opens nothing.
    assert!(gate.judge(&reading(at(112), values(7, 7), COUNTS), None, at(112), at(113)).is_err());
}

#[test]
fn a_reset_or_restart_closes_it_though_every_value_is_the_same() {
    for counts in [
        ResetCounts { reset: 4, restart: 0 },
        ResetCounts { reset: 3, restart: 2 },
        ResetCounts { reset: 2, restart: 1 },
    ] {
        let mut gate = open();
        let reason = gate.judge(&reading(at(110), values(7, 7), counts), None, at(110), at(111)).unwrap_err();
        assert_eq!((reason.standing, reason.refusal.code), (Standing::Contraindicated, codes::GATE_TPM_RESET));
    }
}

#[test]
fn the_term_counts_from_the_request() {
    let mut gate = open();
    assert!(gate.judge(&reading(at(159), values(7, 7), COUNTS), None, at(159), at(159)).is_ok());
    let reason = gate.judge(&reading(at(160), values(7, 7), COUNTS), None, at(160), at(160)).unwrap_err();
    assert_eq!((reason.standing, reason.refusal.code), (Standing::Stale, codes::GATE_STALE));

    let mut gate = open();
    assert!(!gate.expire(at(159), false));
    assert!(gate.expire(at(160), false));
    assert_eq!(gate.standing(), Standing::Unreachable);
    let mut gate = open();
    assert!(gate.expire(at(1_000), true));
    assert_eq!(gate.standing(), Standing::Stale);
}

#[test]
fn an_older_lease_does_not_come_back_but_a_new_epoch_counts_anew() {
    let issuer = Issuer::new();
    let mut gate = open();
    let fresh = reading(at(111), values(7, 7), COUNTS);
    for sequence in [4, 5] {
        let reason = gate.open(issuer.lease(sequence, [0; 16], at(110), 60), &fresh, at(112)).unwrap_err();
        assert_eq!(reason.refusal.code, codes::GATE_LEASE_ORDER);
    }
    assert_eq!(gate.lease().unwrap().claims().sequence, 5, "the present lease stays");
    gate.open(issuer.lease(1, [1; 16], at(110), 60), &fresh, at(112)).unwrap();
}

#[test]
fn it_does_not_open_on_a_state_that_is_gone() {
    let issuer = Issuer::new();
    let mut gate = Gate::default();
    assert!(gate.open(issuer.lease(1, [0; 16], at(100), 60), &reading(at(99), values(7, 7), COUNTS), at(101)).is_err());
    assert!(gate.lease().is_none(), "it stays closed on an old reading, too");
    let mut gate = Gate::default();
    assert!(
        gate.open(issuer.lease(1, [0; 16], at(100), 60), &reading(at(101), values(7, 9), COUNTS), at(102)).is_err()
    );
    assert_eq!(gate.standing(), Standing::Contraindicated);
    let mut gate = Gate::default();
    assert!(
        gate.open(issuer.lease(1, [0; 16], at(100), 60), &reading(at(101), values(7, 7), COUNTS), at(160)).is_err()
    );
}

#[test]
fn unreachable_does_not_hide_contraindicated() {
    let mut gate = open();
    let reason = |standing, code| Reason::new(standing, Refusal::new(code, "test"));
    gate.close(reason(Standing::Contraindicated, codes::GATE_REVOKED));
    gate.close(reason(Standing::Unreachable, codes::GATE_UNREACHABLE));
    assert_eq!(gate.reason().unwrap().refusal.code, codes::GATE_REVOKED);
}
