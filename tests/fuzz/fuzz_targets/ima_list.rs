//! IMA's list, and what its entries extend.
#![no_main]

use leasehold::measurements::LogHash;
use leasehold::measurements::ima::{entry, extended};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let (mut rest, mut number) = (bytes, 0);
    while let Ok(Some((entry, length))) = entry(rest, number) {
        assert!(length > 0, "every entry has bytes");
        for bank in LogHash::ALL {
            assert_eq!(extended(&entry, bank, false).len(), bank.size());
            assert_eq!(extended(&entry, bank, true).len(), bank.size());
        }
        rest = &rest[length..];
        number += 1;
    }
});
