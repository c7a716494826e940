//! Freshness beyond the vectors: the TPM's counters over time, and who asks.

use std::time::Duration;

use leasehold::clock::BootId;
use leasehold::codes::{self, Code};
use leasehold::evidence::{Unsigned, UnverifiedEvidence};
use leasehold::tpm::ResetCounts;
use leasehold::verify::{Note, PriorQuote, authenticate};

use crate::node::{Node, name};

/// The notes on a quote with `counts` and `clock_ms` in the boot `boot`, 300 s after one with the
/// counts 3/1 and a clock of 1 000 s in the boot 0xB0.
fn after(reset: u32, restart: u32, clock_ms: u64, boot: u8, nonce_age: u64) -> Result<Vec<Note>, Code> {
    let node = Node { reset, restart, clock_ms, boot_id: [boot; 16], ..Node::honest() };
    let prior = PriorQuote {
        counts: ResetCounts { reset: 3, restart: 1 },
        clock_ms: 1_000_000,
        boot_id: BootId::from_bytes([0xB0; 16]),
        elapsed: Duration::from_secs(300),
    };
    let keys = node.keys();
    authenticate(UnverifiedEvidence::decode(&node.evidence()).unwrap(), &keys, Some(keys.node_key.spki_der()))
        .unwrap()
        .fresh(&node.nonce, node.selection(), Duration::from_secs(nonce_age), Some(&prior))
        .map(|fresh| fresh.unlogged().appraise(None).notes().to_vec())
        .map_err(|refusal| refusal.code)
}

#[test]
fn counters_only_go_forward() {
    // Nothing happened but time.
    assert_eq!(after(3, 1, 1_300_000, 0xB0, 300), Ok(vec![]));
    // A reboot: the clock may have fallen back to what was saved.
    assert_eq!(after(4, 0, 900_000, 0xB1, 300), Ok(vec![]));
    // A new kernel without a reset.
    assert_eq!(after(3, 1, 1_300_000, 0xB1, 300), Ok(vec![]));
    // Back: an older state or a copy.
    assert_eq!(after(2, 9, 1_300_000, 0xB0, 300), Err(codes::VERIFY_RESET_COUNT));
    assert_eq!(after(3, 0, 1_300_000, 0xB1, 300), Err(codes::VERIFY_RESET_COUNT));
    assert_eq!(after(3, 1, 999_999, 0xB0, 300), Err(codes::VERIFY_CLOCK));
    assert_eq!(after(3, 2, 999_999, 0xB1, 300), Err(codes::VERIFY_CLOCK));
}

#[test]
fn a_reset_under_a_running_system_is_noted() {
    let before = ResetCounts { reset: 3, restart: 1 };
    for (reset, restart) in [(4, 0), (3, 2)] {
        let note = Note::ResetWithinBoot { before, after: ResetCounts { reset, restart } };
        assert_eq!(after(reset, restart, 1_300_000, 0xB0, 300), Ok(vec![note]));
    }
    let text = Note::ResetWithinBoot { before, after: ResetCounts { reset: 4, restart: 0 } }.to_string();
    assert_eq!(text, "the TPM was reset under a running system: counts 3/1 before, 4/0 now");
}

#[test]
fn a_quote_kept_back_is_found_by_the_tpms_clock() {
    // 300 s passed; three quarters less ten seconds are 215.
    assert_eq!(after(3, 1, 1_215_000, 0xB0, 300), Ok(vec![]));
    assert_eq!(after(3, 1, 1_214_999, 0xB0, 300), Err(codes::VERIFY_QUOTE_STALE));
    // A young nonce can't have been answered early; a restarted TPM wasn't powered all the time.
    assert_eq!(after(3, 1, 1_000_000, 0xB0, 60), Ok(vec![]));
    assert_eq!(after(3, 1, 1_000_000, 0xB0, 61), Err(codes::VERIFY_QUOTE_STALE));
    assert_eq!(after(3, 2, 1_000_000, 0xB1, 300), Ok(vec![]));
}

#[test]
fn only_an_enrolling_node_comes_without_a_certificate() {
    let node = Node::honest();
    let keys = node.keys();
    let decode = |node: &Node| UnverifiedEvidence::decode(&node.evidence()).unwrap();
    let code = |result: Result<_, leasehold::codes::Refusal>| result.map(drop).unwrap_err().code;
    assert_eq!(code(authenticate(decode(&node), &keys, None)), codes::VERIFY_CHANNEL);
    let enrolling = Node { id: None, ..node.clone() };
    assert!(authenticate(decode(&enrolling), &enrolling.keys(), None).is_ok());
    // Evidence of enrolment doesn't serve an enrolled node, nor the other way round.
    let spki = keys.node_key.spki_der();
    assert_eq!(code(authenticate(decode(&enrolling), &keys, Some(spki))), codes::VERIFY_NODE);
    assert_eq!(code(authenticate(decode(&node), &enrolling.keys(), None)), codes::VERIFY_NODE);
}

#[test]
fn an_honest_agent_does_not_send_what_would_be_refused() {
    let node = Node::honest();
    let name = name(&node.node_key_public());
    let good = node.node_claims();
    let code = |claims, name: &[u8]| Unsigned::new(&claims, name).unwrap_err().code;
    let mut claims = good.clone();
    claims.nonce = [0; 32];
    assert_eq!(code(claims, &name), codes::VERIFY_QUOTE_BINDING);
    assert_eq!(code(good.clone(), b"other"), codes::VERIFY_QUOTE_BINDING);
    let mut claims = good.clone();
    claims.pcrs = Node { values: [(1, vec![0; 32])].into(), ..node.clone() }.node_claims().pcrs;
    assert_eq!(code(claims, &name), codes::VERIFY_SELECTION);
    let mut claims = good.clone();
    claims.agent_version = "with a\nnewline".to_owned();
    assert_eq!(code(claims, &name), codes::EVIDENCE_MALFORMED);
    let logs = vec![[0; 32]; 1024];
    let full = Node { logs, ..node.clone() };
    let unsigned = Unsigned::new(&full.node_claims(), &name).unwrap();
    assert_eq!(unsigned.digest().len(), 32);
    assert!(UnverifiedEvidence::decode(&full.evidence()).is_ok());
    let more = Node { logs: vec![[0; 32]; 1025], ..node };
    assert_eq!(code(more.node_claims(), &name), codes::EVIDENCE_MALFORMED);
}
