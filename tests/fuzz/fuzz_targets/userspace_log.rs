//! The userspace log.
#![no_main]

use leasehold::measurements::userspace::UserspaceLog;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(log) = UserspaceLog::parse(bytes) else { return };
    for record in &log.records {
        for (bank, digest) in &record.digests {
            assert_eq!(digest.len(), bank.size());
            let _ = record.vouched(*bank);
        }
    }
});
