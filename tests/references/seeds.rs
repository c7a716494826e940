//! Seeds of the fuzzer that reads reference sets: one as text, unsigned and signed.

use std::path::Path;

use leasehold::verify::references::Document;

use crate::made::{TEXT, key, set};

#[test]
fn the_fuzzers_seeds_are_what_is_made_here() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/seeds/references");
    let unsigned = Document::unsigned(set()).unwrap();
    let signed = unsigned.signed_by(&key(1)).unwrap();
    for (name, bytes) in [("text", TEXT.as_bytes()), ("unsigned", &unsigned.bytes), ("signed", &signed.bytes)] {
        if std::env::var_os("LEASEHOLD_BLESS").is_some() {
            std::fs::write(folder.join(name), bytes).unwrap();
        }
        let found = std::fs::read(folder.join(name)).unwrap_or_default();
        assert!(found == bytes, "{name} differs from what is made; LEASEHOLD_BLESS=1 writes it anew");
    }
}
