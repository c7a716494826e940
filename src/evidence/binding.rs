//! What a quote and a certification are bound to: their qualifying data.

use serde_cbor::Value;
use sha2::{Digest, Sha256};

use super::cbor;
use crate::clock::BootId;

/// A quote's qualifying data: SHA-256 over the deterministic CBOR of
/// `["leasehold-quote-v1", nonce, node key's name, boot id, [log digests]]`.
///
/// Thus a quote speaks for one question, one node key, one boot and these logs, and can't be
/// carried into evidence about another.
pub fn quote_binding(nonce: &[u8; 32], node_key_name: &[u8], boot_id: &BootId, log_digests: &[[u8; 32]]) -> [u8; 32] {
    bind(vec![
        Value::Text("leasehold-quote-v1".to_owned()),
        Value::Bytes(nonce.to_vec()),
        Value::Bytes(node_key_name.to_vec()),
        Value::Bytes(boot_id.as_bytes().to_vec()),
        Value::Array(log_digests.iter().map(|digest| Value::Bytes(digest.to_vec())).collect()),
    ])
}

/// The qualifying data of the AK's certification of the node key: SHA-256 over the deterministic
/// CBOR of `["leasehold-node-key-v1", nonce, node key's name]`.
pub fn certification_binding(nonce: &[u8; 32], node_key_name: &[u8]) -> [u8; 32] {
    bind(vec![
        Value::Text("leasehold-node-key-v1".to_owned()),
        Value::Bytes(nonce.to_vec()),
        Value::Bytes(node_key_name.to_vec()),
    ])
}

fn bind(parts: Vec<Value>) -> [u8; 32] {
    Sha256::digest(cbor::encode(&Value::Array(parts))).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bindings_are_the_documented_bytes() {
        // 0x83, the label of 21 bytes, the nonce of 32 and the name of 2.
        let mut bytes = vec![0x83, 0x75];
        bytes.extend(b"leasehold-node-key-v1");
        bytes.extend([0x58, 32]);
        bytes.extend([7; 32]);
        bytes.extend([0x42, 1, 2]);
        assert_eq!(certification_binding(&[7; 32], &[1, 2]), <[u8; 32]>::from(Sha256::digest(&bytes)));
    }

    #[test]
    fn each_part_changes_the_binding() {
        let boot = BootId::from_bytes([1; 16]);
        let base = quote_binding(&[0; 32], b"name", &boot, &[]);
        assert_ne!(base, quote_binding(&[1; 32], b"name", &boot, &[]));
        assert_ne!(base, quote_binding(&[0; 32], b"eman", &boot, &[]));
        assert_ne!(base, quote_binding(&[0; 32], b"name", &BootId::from_bytes([2; 16]), &[]));
        assert_ne!(base, quote_binding(&[0; 32], b"name", &boot, &[[0; 32]]));
    }
}
