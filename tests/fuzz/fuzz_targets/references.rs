//! Reference sets: as documents, and as people write them. What is read is written and read again.
#![no_main]

use leasehold::verify::references::{Document, ReferenceSet};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = Document::read(bytes, &[], 0);
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(set) = ReferenceSet::from_toml(text, "fuzzed.toml") else { return };
    assert_eq!(ReferenceSet::from_toml(&set.to_toml(), "written.toml").as_ref(), Ok(&set));
    if let Ok(document) = Document::unsigned(set) {
        assert_eq!(Document::read(&document.bytes, &[], 0), Ok(document));
    }
});
