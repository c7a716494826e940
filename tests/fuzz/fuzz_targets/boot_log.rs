//! The boot log, its replay, and the data of its events.
#![no_main]

use leasehold::measurements::boot::BootLog;
use leasehold::measurements::uefi::{Gpt, ImageLoad, SignatureList, Tagged, VariableData, summary};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(log) = BootLog::parse(bytes) else { return };
    for bank in &log.banks {
        assert!(log.replay(*bank).is_some(), "a bank is whole");
    }
    for event in &log.events {
        assert!(summary(event).chars().count() <= 200);
        for (bank, _) in &event.digests {
            let _ = (event.vouched(*bank).bytes(&event.data), event.separator(*bank));
        }
        let _ = (Gpt::parse(&event.data), ImageLoad::parse(&event.data), Tagged::parse(&event.data));
        let _ = SignatureList::parse_all(VariableData::parse(&event.data).map_or(&event.data, |v| v.data));
    }
});
