//! Damaged logs: whatever is done to a good one, reading it ends, with a log or with a reason.

use leasehold::measurements::boot::BootLog;
use leasehold::measurements::uefi::{Gpt, ImageLoad, SignatureList, Tagged, VariableData, summary};
use leasehold::measurements::userspace::UserspaceLog;
use proptest::prelude::*;

use crate::boot::good_logs;
use crate::testdata::{read, testdata};
use crate::userspace::boot_of_systemd;

/// Reads bytes as a boot log, and all of what it says. Returns whether it was one.
fn boot_log_ends(bytes: &[u8]) -> bool {
    let log = match BootLog::parse(bytes) {
        Ok(log) => log,
        Err(refusal) => {
            assert!(refusal.at.contains("event") || refusal.at == "boot log", "{refusal}");
            return false;
        }
    };
    for bank in &log.banks {
        assert!(log.replay(*bank).is_some());
        assert_eq!(log.steps(*bank).count(), log.events.iter().filter(|event| event.extends()).count());
    }
    for event in &log.events {
        data_ends(&event.data);
        let line = summary(event);
        assert!(line.chars().count() <= 200 && !line.chars().any(char::is_control), "{line:?}");
        for (bank, _) in &event.digests {
            assert!(event.vouched(*bank).bytes(&event.data).is_none_or(|part| part.len() <= event.data.len()));
        }
    }
    true
}

/// Reads bytes as data of every kind.
fn data_ends(data: &[u8]) {
    let _ = (Gpt::parse(data), ImageLoad::parse(data), Tagged::parse(data), SignatureList::parse_all(data));
    if let Some(variable) = VariableData::parse(data) {
        let _ = SignatureList::parse_all(variable.data);
    }
}

#[test]
fn no_cut_and_no_changed_byte_of_a_good_boot_log_is_more_than_a_refusal() {
    let Some(root) = testdata() else { return };
    let (mut read_anyway, mut refused) = (0, 0);
    for file in good_logs() {
        let bytes = read(&root, &file);
        // Every place of a small log, some hundred of a large one.
        let step = bytes.len().div_ceil(300);
        for place in (0..bytes.len()).step_by(step) {
            let mut flipped = bytes.clone();
            flipped[place] ^= 1 << (place % 8);
            let mut high = bytes.clone();
            high[place] = 0xFF;
            for mutant in [&bytes[..place], &flipped, &high] {
                match boot_log_ends(mutant) {
                    true => read_anyway += 1,
                    false => refused += 1,
                }
            }
        }
    }
    println!("{read_anyway} damaged logs could be read, {refused} were refused");
    assert!(read_anyway > 1000 && refused > 1000);
}

#[test]
fn no_cut_and_no_changed_byte_of_a_good_userspace_log_is_more_than_a_refusal() {
    let bytes = boot_of_systemd();
    for place in 0..bytes.len() {
        // Between two records, a cut leaves a whole log.
        let cut = UserspaceLog::parse(&bytes[..place]);
        assert_eq!(cut.is_ok(), place == 0 || bytes[place] == 0x1E, "{place}");
        for changed in [bytes[place] ^ 1, 0, 0x1E, b'"', 0xFF] {
            let mut mutant = bytes.clone();
            mutant[place] = changed;
            if let Ok(log) = UserspaceLog::parse(&mutant) {
                for record in &log.records {
                    for (bank, _) in &record.digests {
                        record.vouched(*bank);
                    }
                }
            }
        }
    }
}

proptest! {
    #[test]
    fn any_bytes_end(bytes in prop::collection::vec(any::<u8>(), 0..2048)) {
        boot_log_ends(&bytes);
        data_ends(&bytes);
        let _ = UserspaceLog::parse(&bytes);
        boot_log_ends(&[crate::made::header(crate::made::TWO), bytes].concat());
    }
}
