//! Encoded evidence and leases against the CDDL that describes them.

use cddl_cat::validate_cbor_bytes;
use leasehold::codes;
use leasehold::evidence::{CDDL, Unsigned, UnverifiedEvidence};
use p256::ecdsa::signature::hazmat::PrehashSigner;
use serde_cbor::Value;

use crate::node::{Node, name};

/// Holds a tagged COSE_Sign1 against a rule. The validator knows no tags, so that one byte is
/// compared here and the rule beneath it is used.
pub fn holds(cddl: &str, bytes: &[u8]) -> Result<(), String> {
    assert!(cddl.contains("= #6.18(sign1)\n"));
    let untagged = bytes.strip_prefix(&[0xD2]).ok_or("no tag 18")?;
    let cddl: String = cddl.lines().filter(|line| !line.contains("#6.18")).map(|line| format!("{line}\n")).collect();
    validate_cbor_bytes("sign1", &cddl, untagged).map_err(|e| e.to_string())
}

#[test]
fn evidence_is_as_its_cddl_says() {
    let node = Node { logs: vec![[7; 32]; 3], withdrawn: vec![3, 300, u64::MAX], ..Node::honest() };
    let unsigned = Unsigned::new(&node.node_claims(), &name(&node.node_key_public())).unwrap();
    let signature = node.node_key.sign_prehash(&unsigned.digest()).unwrap();
    let evidence = unsigned.finish(signature);
    holds(CDDL, &evidence).unwrap();
    // The encoder written from the CDDL alone makes the same bytes.
    assert_eq!(evidence, node.evidence());
    holds(CDDL, &Node { id: None, ..node }.evidence()).unwrap();
}

#[test]
fn what_the_cddl_refuses_the_decoder_refuses() {
    let node = Node::honest();
    let good = node.claims(&node.attest(&node.quote()), &node.attest(&node.certification()));
    let replaced: [(i128, Value); 11] = [
        (10, Value::Bytes(vec![0; 31])),
        (256, Value::Bytes(vec![1; 32])),
        (265, Value::Text("urn:uuid:00000000-0000-0000-0000-000000000000".to_owned())),
        (268, Value::Text("b0".to_owned())),
        (271, Value::Array(vec![Value::Text(" ".to_owned())])),
        (-65_537, Value::Array(vec![Value::Bytes(vec![0; 10])])),
        (-65_538, Value::Array(vec![Value::Integer(4), Value::Map([].into())])),
        (-65_540, Value::Integer(-1)),
        (-65_543, Value::Array(Vec::new())),
        (-65_543, Value::Array(vec![Value::Integer(-1)])),
        (-1, Value::Integer(0)),
    ];
    for (key, value) in replaced {
        let mut claims = good.clone();
        claims.insert(Value::Integer(key), value);
        refused_by_both(&node, claims, key);
    }
    for key in good.keys().filter(|key| **key != Value::Integer(256)) {
        let mut claims = good.clone();
        claims.remove(key);
        refused_by_both(&node, claims, 0);
    }
}

/// The CDDL can't say it: each number once, ascending.
#[test]
fn applied_withdrawals_have_one_form() {
    for numbers in [vec![2, 1], vec![1, 1], (0..257).collect()] {
        let evidence = Node { withdrawn: numbers, ..Node::honest() }.evidence();
        assert_eq!(UnverifiedEvidence::decode(&evidence).unwrap_err().code, codes::EVIDENCE_MALFORMED);
    }
    UnverifiedEvidence::decode(&Node { withdrawn: (0..256).collect(), ..Node::honest() }.evidence()).unwrap();
}

fn refused_by_both(node: &Node, claims: std::collections::BTreeMap<Value, Value>, key: i128) {
    let evidence = node.envelope(&Value::Map(claims));
    assert!(holds(CDDL, &evidence).is_err(), "the CDDL takes claim {key}");
    let code = UnverifiedEvidence::decode(&evidence).unwrap_err().code;
    assert_eq!(code, if key == 265 { codes::EVIDENCE_PROFILE } else { codes::EVIDENCE_MALFORMED }, "claim {key}");
}
