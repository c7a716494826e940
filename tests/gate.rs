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
use leasehold::measurements::LogHash;
use leasehold::measurements::ima::{Entries, Fold};
use leasehold::tpm::{Bank, PcrReading, PcrSelection, PcrValues, ResetCounts};
use leasehold::verify::runtime::{Advanced, Checkpoint, Judge, RuntimeRules};
use leasehold::verify::{Lease, LeaseClaims, LeaseExpectation, TrustVector};
use p256::ecdsa::SigningKey;
use p256::ecdsa::signature::hazmat::PrehashSigner;
use p256::pkcs8::{DecodePrivateKey, EncodePublicKey};
use sha1::Sha1;
use sha2::{Digest, Sha256};

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
        self.lease_with(sequence, epoch, requested_at, term, values(7, 7), None)
    }

    fn lease_with(
        &self,
        sequence: u64,
        epoch: [u8; 16],
        requested_at: BootInstant,
        term: u64,
        pcrs: PcrValues,
        rules: Option<[u8; 32]>,
    ) -> Lease {
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
            pcrs,
            vector: TrustVector { instance_identity: 2, executables: 3, ..TrustVector::default() },
            issued_at: WallTime(0),
            epoch,
            rules,
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
    let selection = PcrSelection::new(Bank::Sha256, [4, pcr]).unwrap();
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

/// IMA's list of one `ima-ng` entry per file: path and what it contains.
fn list(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut list = Vec::new();
    for (path, contents) in files {
        let field = |bytes: &[u8]| [&u32::try_from(bytes.len()).unwrap().to_le_bytes()[..], bytes].concat();
        let digest = [&b"sha256:\0"[..], &Sha256::digest(contents)].concat();
        let data = [field(&digest), field(&[path.as_bytes(), b"\0"].concat())].concat();
        list.extend(10u32.to_le_bytes());
        list.extend(Sha1::digest(&data));
        list.extend(field(b"ima-ng"));
        list.extend(field(&data));
    }
    list
}

/// The value of PCR 10 after every entry of the list.
fn folded(from: &[u8], list: &[u8]) -> Vec<u8> {
    let mut fold = Fold::from(LogHash::Sha256, false, from).unwrap();
    Entries::new(list, 0, 0).for_each(|entry| fold.take(&entry.unwrap()));
    fold.value().to_vec()
}

fn advanced(rules: &RuntimeRules, from: &[u8], list: &[u8]) -> Option<Advanced> {
    let at = Checkpoint { entries: 5, offset: 700, value: from.to_vec(), ..Checkpoint::start(Bank::Sha256) };
    Judge::new(Some(&rules.compile().unwrap()), at).advance(list, &folded(from, list)).ok().flatten()
}

#[test]
fn pcr_10_may_go_on_by_what_the_rules_allow_and_in_no_other_way() {
    let mut rules = RuntimeRules::default();
    rules.allow_file(b"/bin/a", LogHash::Sha256, &Sha256::digest(b"a"));
    let one = list(&[("/bin/a", b"a")]);
    let two = list(&[("/bin/a", b"a"), ("/bin/a", b"a")]);
    let start = vec![7; 32];
    let (first, second) = (folded(&start, &one), folded(&start, &two));
    let ten = |value: &[u8]| values(10, 7).with(10, value).unwrap();
    let open = |rules: Option<[u8; 32]>| {
        let mut gate = Gate::default();
        let lease = Issuer::new().lease_with(5, [0; 16], at(100), 60, values(10, 7), rules);
        gate.open(lease, &reading(at(101), values(10, 7), COUNTS), at(102)).unwrap();
        gate
    };
    let now = at(110);
    let judge = |gate: &mut Gate, value: &[u8], proof: Option<&Advanced>| {
        gate.judge(&reading(now, ten(value), COUNTS), proof, now, now)
    };

    let mut gate = open(Some([1; 32]));
    let moved = gate.moved(&reading(now, ten(&first), COUNTS)).unwrap();
    assert_eq!((moved.lease_sequence, moved.rules, &moved.from, &moved.to), (5, [1; 32], &start, &first));
    let proof = advanced(&rules, &start, &one).unwrap();
    judge(&mut gate, &first, Some(&proof)).unwrap();
    // What was followed is what is expected from now on, without a proof; the proof is good only from where it began.
    assert_eq!(gate.moved(&reading(now, ten(&first), COUNTS)), None);
    judge(&mut gate, &first, None).unwrap();
    judge(&mut gate, &first, Some(&proof)).unwrap();
    let next = advanced(&rules, &first, &one).unwrap();
    judge(&mut gate, &second, Some(&next)).unwrap();
    assert_eq!(judge(&mut gate, &start, Some(&proof)).unwrap_err().refusal.code, codes::GATE_DRIFT, "it went back");

    // A proof of another value, from another value, or none; and a lease without rules.
    let from_elsewhere = advanced(&rules, &[9; 32], &one).unwrap();
    for (gate_rules, value, proof) in [
        (Some([1; 32]), &second, Some(&proof)),
        (Some([1; 32]), &second, Some(&next)),
        (Some([1; 32]), &first, Some(&from_elsewhere)),
        (Some([1; 32]), &first, None),
        (None, &first, Some(&proof)),
    ] {
        let mut gate = open(gate_rules);
        let reason = judge(&mut gate, value, proof).unwrap_err();
        assert_eq!((reason.standing, reason.refusal.code), (Standing::Contraindicated, codes::GATE_DRIFT));
        assert!(reason.refusal.at.contains("PCR 10"), "{reason}");
        assert!(gate.lease().is_none());
    }

    // The proof covers no other PCR …
    let mut gate = open(Some([1; 32]));
    let both = ten(&first).with(4, &[5; 32]).unwrap();
    let reason = gate.judge(&reading(now, both, COUNTS), Some(&proof), now, now).unwrap_err();
    assert!(reason.refusal.at.contains("PCR 4"), "{reason}");
    // … and moves nothing on an old reading.
    let mut gate = open(Some([1; 32]));
    let old = gate.judge(&reading(at(105), ten(&first), COUNTS), Some(&proof), now, now).unwrap_err();
    assert_eq!(old.refusal.code, codes::GATE_READING_OLD);
    assert!(gate.moved(&reading(now, ten(&first), COUNTS)).is_some());

    // What no rule allows has no proof.
    assert!(advanced(&rules, &start, &list(&[("/bin/a", b"b")])).is_none());
    assert!(advanced(&rules, &start, &list(&[("/bin/b", b"a")])).is_none());
}
