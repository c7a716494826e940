//! Evidence: COSE and CBOR, in the one deterministic encoding.
#![no_main]

use leasehold::evidence::UnverifiedEvidence;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = UnverifiedEvidence::decode(bytes);
});
