//! Firmware profiles as people write them.
#![no_main]

use leasehold::verify::profile::Profile;

libfuzzer_sys::fuzz_target!(|text: &str| {
    let _ = Profile::parse("fuzzed", text);
});
