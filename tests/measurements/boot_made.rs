//! What a boot log may and may not be, on logs made by hand.

use leasehold::codes;
use leasehold::measurements::boot::{BootLog, DATA_LIMIT, EVENTS_LIMIT, LIMIT};
use leasehold::measurements::uefi::{Separator, Vouched};
use leasehold::measurements::{EventType, LogHash};

use crate::made::{HCRTM, NO_ACTION, ONE, SEPARATOR, TWO, event, hashed, header, header_with, legacy, startup};

/// A header and these records.
fn log(algorithms: &[(u16, u16)], records: &[Vec<u8>]) -> Vec<u8> {
    [header(algorithms), records.concat()].concat()
}

/// The refusal's words, which name the event and the byte.
fn refused(bytes: &[u8]) -> String {
    let refusal = BootLog::parse(bytes).unwrap_err();
    assert_eq!(refusal.code, codes::MEASUREMENTS_BOOT_LOG);
    refusal.to_string().strip_prefix("measurements.boot_log: boot log, ").unwrap().to_owned()
}

fn pcr_0(bytes: &[u8]) -> Vec<u8> {
    BootLog::parse(bytes).unwrap().replay(LogHash::Sha256).unwrap().value(0).unwrap().to_vec()
}

/// PCR 0 of SHA-256 after one extension with the hash of `data`, from this locality on.
fn extended_once(locality: u8, data: &[u8]) -> Vec<u8> {
    let mut start = vec![0; 32];
    start[31] = locality;
    LogHash::Sha256.extend(&start, &LogHash::Sha256.digest(&[data]))
}

#[test]
fn a_log_is_its_events_in_order() {
    let bytes = log(TWO, &[hashed(0, 8, TWO, b"version"), hashed(7, SEPARATOR, TWO, &[0; 4])]);
    let log = BootLog::parse(&bytes).unwrap();
    assert_eq!((log.banks.as_slice(), log.sha1_only), (&[LogHash::Sha1, LogHash::Sha256][..], false));
    let places: Vec<_> = log.events.iter().map(|event| (event.number, event.offset, event.pcr, event.kind)).collect();
    let expected =
        [(0, 0, 0, EventType::NO_ACTION), (1, 69, 0, EventType::S_CRTM_VERSION), (2, 148, 7, EventType::SEPARATOR)];
    assert_eq!(places, expected);
    assert_eq!(log.events[2].separator(LogHash::Sha256), Some(Separator::Zeros));
    assert_eq!(
        (log.events[1].vouched(LogHash::Sha1), log.events[1].vouched(LogHash::Sha384)),
        (Vouched::Whole, Vouched::No)
    );
    assert_eq!(log.notes, [""; 0]);
    let steps: Vec<_> = log.steps(LogHash::Sha256).map(|step| (step.event.pcr, step.value)).collect();
    assert_eq!(steps[0], (0, extended_once(0, b"version")));
    assert_eq!(steps[1], (7, extended_once(0, &[0; 4])));
    assert_eq!((steps.len(), log.replay(LogHash::Sha384)), (2, None));
}

#[test]
fn the_dynamic_pcrs_start_with_ones() {
    let log = BootLog::parse(&header(ONE)).unwrap();
    let pcrs = log.replay(LogHash::Sha256).unwrap();
    for pcr in 0..24 {
        let start = if (17..=22).contains(&pcr) { 0xFF } else { 0 };
        assert_eq!(pcrs.value(pcr), Some([start; 32].as_slice()), "{pcr}");
        assert!(!pcrs.is_extended(pcr));
    }
    assert_eq!((pcrs.value(24), pcrs.is_extended(32), pcrs.extended().count()), (None, false, 0));
}

#[test]
fn the_startup_locality_is_where_pcr_0_begins_and_comes_first_and_once() {
    let state = |locality| event(0, NO_ACTION, &[], &startup(locality));
    let version = || hashed(0, 8, ONE, b"v");
    for locality in [0, 3, 4] {
        let bytes = log(ONE, &[state(locality), version()]);
        assert_eq!(BootLog::parse(&bytes).unwrap().startup_locality, Some(locality));
        assert_eq!(pcr_0(&bytes), extended_once(locality, b"v"));
    }
    assert_eq!(pcr_0(&log(ONE, &[hashed(7, 8, ONE, b"x"), state(3), version()])), extended_once(3, b"v"));
    assert!(refused(&log(ONE, &[state(3), state(3)])).starts_with("event 2, byte 98: a second StartupLocality"));
    assert!(refused(&log(ONE, &[version(), state(3)])).contains("after PCR 0 was extended"));
    assert!(refused(&log(ONE, &[state(1)])).contains("StartupLocality 1 "));
    assert!(
        refused(&log(ONE, &[event(0, NO_ACTION, &[], &startup(3)[..16])]))
            .contains("a StartupLocality event of 16 bytes")
    );
    assert!(refused(&log(ONE, &[event(1, NO_ACTION, &[], &startup(3))])).contains("beside PCR 1"));
    // Another type with the same data says nothing.
    assert_eq!(BootLog::parse(&log(ONE, &[hashed(0, 8, ONE, &startup(3))])).unwrap().startup_locality, None);
}

#[test]
fn an_h_crtm_begins_pcr_0_with_locality_4() {
    let hcrtm = || hashed(0, HCRTM, ONE, b"HCRTM");
    assert_eq!(pcr_0(&log(ONE, &[hcrtm()])), extended_once(4, b"HCRTM"));
    assert_eq!(pcr_0(&log(ONE, &[event(0, NO_ACTION, &[], &startup(4)), hcrtm()])), extended_once(4, b"HCRTM"));
    assert!(refused(&log(ONE, &[event(0, NO_ACTION, &[], &startup(3)), hcrtm()])).contains("after StartupLocality 3"));
    assert!(refused(&log(ONE, &[hashed(0, 8, ONE, b"v"), hcrtm()])).contains("after PCR 0 was extended"));
    assert!(refused(&log(ONE, &[hcrtm(), hcrtm()])).contains("after PCR 0 was extended"));
}

#[test]
fn no_action_extends_nothing_whatever_digests_it_has() {
    let bytes = log(ONE, &[hashed(0, NO_ACTION, ONE, b"nothing"), hashed(0, 8, ONE, b"v")]);
    assert_eq!(pcr_0(&bytes), extended_once(0, b"v"));
    let log = BootLog::parse(&bytes).unwrap();
    assert_eq!((log.events[1].digests.len(), log.events[1].vouched(LogHash::Sha256)), (0, Vouched::No));
}

#[test]
fn a_record_beside_no_pcr_is_left_out_if_it_is_no_action() {
    let none = u32::MAX;
    let parsed = BootLog::parse(&log(ONE, &[event(none, NO_ACTION, &[], b"WBCL"), hashed(0, 8, ONE, b"v")])).unwrap();
    assert_eq!(parsed.events.iter().map(|event| event.number).collect::<Vec<_>>(), [0, 2]);
    assert_eq!(parsed.notes, ["event 1 (EV_NO_ACTION beside no PCR) was left out"]);
    assert!(refused(&log(ONE, &[hashed(none, 8, ONE, b"v")])).contains("PCR 4294967295"));
    assert!(refused(&log(ONE, &[hashed(24, 8, ONE, b"v")])).starts_with("event 1, byte 65: PCR 24"));
}

#[test]
fn an_algorithm_nobody_knows_is_skipped_by_its_size() {
    const SM3: &[(u16, u16)] = &[(0x0012, 32), (0x000B, 32), (0x7777, 5)];
    let parsed = BootLog::parse(&log(SM3, &[hashed(0, 8, SM3, b"v")])).unwrap();
    assert_eq!(parsed.banks, [LogHash::Sha256]);
    assert_eq!(parsed.events[1].digests.len(), 1);
    let notes =
        ["the bank of algorithm 0x0012 (32 bytes) is not read", "the bank of algorithm 0x7777 (5 bytes) is not read"];
    assert_eq!(parsed.notes, notes);
}

#[test]
fn a_bank_that_an_event_lacks_is_no_bank() {
    let parsed = BootLog::parse(&log(TWO, &[hashed(0, 8, TWO, b"v"), hashed(7, SEPARATOR, ONE, &[0; 4])])).unwrap();
    assert_eq!((parsed.banks.as_slice(), parsed.replay(LogHash::Sha1)), (&[LogHash::Sha256][..], None));
    assert_eq!(parsed.notes, ["the bank sha1 is not whole: event 2 has no digest for it"]);
    // The digests come in the banks' order, whatever order the event has.
    let digest = |hash: LogHash| (hash.algorithm(), hash.digest(&[b"v"]));
    let swapped = event(0, 8, &[digest(LogHash::Sha256), digest(LogHash::Sha1)], b"v");
    let parsed = BootLog::parse(&log(TWO, &[swapped])).unwrap();
    assert_eq!(parsed.events[1].digests.iter().map(|(hash, _)| *hash).collect::<Vec<_>>(), parsed.banks);
}

#[test]
fn digests_must_be_of_the_headers_algorithms_each_once() {
    let digest = || (0x000B, vec![0; 32]);
    let said = |digests: &[(u16, Vec<u8>)]| refused(&log(TWO, &[event(0, 8, digests, b"")]));
    assert!(said(&[digest(), digest()]).starts_with("event 1, byte 69: two digests of algorithm 0x000b"));
    assert!(said(&[(0x000C, vec![0; 48])]).contains("a digest of algorithm 0x000c"));
    assert!(said(&[digest(), (4, vec![0; 20]), digest()]).contains("3 digests (expected 1 to 2"));
    assert!(said(&[]).contains("0 digests"));
    let mut huge = log(TWO, &[event(0, 8, &[digest()], b"")]);
    huge[69 + 8..69 + 12].fill(0xFF);
    assert!(refused(&huge).contains("4294967295 digests"));
}

#[test]
fn headers_that_contradict_themselves_are_refused() {
    for (algorithms, reason) in [
        (&[][..], "a header of 0 algorithms"),
        (&[(11, 32); 17][..], "a header of 17 algorithms"),
        (&[(11, 32), (11, 32)][..], "algorithm 0x000b twice"),
        (&[(11, 20)][..], "digests of 20 bytes"),
        (&[(0x12, 0)][..], "digests of 0 bytes"),
        (&[(0x12, 129)][..], "digests of 129 bytes"),
    ] {
        let words = refused(&header(algorithms));
        assert!(words.starts_with("event 0, byte 0: ") && words.contains(reason), "{words}");
    }
    let data = &header(TWO)[32..];
    for cut in 16..data.len() {
        assert!(refused(&legacy(0, NO_ACTION, &[0; 20], &data[..cut])).contains("ends too early"), "{cut}");
    }
    let longer = [data, &[0]].concat();
    assert!(refused(&legacy(0, NO_ACTION, &[0; 20], &longer)).contains("1 bytes behind"));
    // The vendor's information may be any bytes, and one writer counts it outside of the record.
    let with = header_with(TWO, &[0xDE, 0xAD, 0xBE, 0xEF]);
    assert_eq!(BootLog::parse(&with).unwrap().notes, [""; 0]);
    let mut outside = with.clone();
    outside[28] -= 4;
    assert_eq!(BootLog::parse(&outside).unwrap().notes, ["the header's size leaves out the vendor's information"]);
    assert!(refused(&outside[..72]).contains("ends too early"));
}

#[test]
fn padding_at_the_end_is_cut_and_said_and_nothing_else_is() {
    let whole = log(ONE, &[hashed(0, 8, ONE, b"v")]);
    let plain = BootLog::parse(&whole).unwrap();
    for byte in [0, 0xFF] {
        for count in [1, 4, 31, 4096] {
            let padded = BootLog::parse(&[whole.clone(), vec![byte; count]].concat()).unwrap();
            assert_eq!((&padded.events, padded.notes.len()), (&plain.events, 1));
            assert!(
                padded.notes[0].starts_with(&format!("{count} bytes of padding ({byte:#04x})")),
                "{:?}",
                padded.notes
            );
        }
        let broken = [whole.clone(), vec![byte; 64], vec![7]].concat();
        assert!(refused(&broken).starts_with(&format!("event 2, byte {}: ", whole.len())));
    }
    assert!(refused(&[]).starts_with("event 0, byte 0: an empty file"));
    assert!(refused(&[0; 64]).contains("nothing but padding"));
    assert!(refused(&[0xFF; 3]).contains("nothing but padding"));
}

#[test]
fn a_log_that_ends_within_an_event_is_refused_at_it() {
    let first = log(TWO, &[hashed(0, 8, TWO, b"v")]);
    let whole = [first.clone(), hashed(7, SEPARATOR, TWO, &[1, 2, 3, 4])].concat();
    for cut in first.len() + 1..whole.len() {
        let words = refused(&whole[..cut]);
        assert!(words.starts_with(&format!("event 2, byte {}: ", first.len())), "{cut}: {words}");
    }
    assert_eq!(BootLog::parse(&first).unwrap().events.len(), 2);
}

#[test]
fn the_format_of_tpm_1_2_is_readable_and_says_what_it_is() {
    let record = |pcr, data: &[u8]| legacy(pcr, 8, &LogHash::Sha1.digest(&[data]).try_into().unwrap(), data);
    let bytes = [record(0, b"v"), legacy(0, NO_ACTION, &[9; 20], b"x"), record(4, b"w")].concat();
    let log = BootLog::parse(&bytes).unwrap();
    assert_eq!((log.sha1_only, log.banks.as_slice(), log.events.len()), (true, &[LogHash::Sha1][..], 3));
    assert_eq!(log.notes, ["SHA-1 only: the log has the format of TPM 1.2"]);
    let pcrs = log.replay(LogHash::Sha1).unwrap();
    assert_eq!(pcrs.extended().map(|(pcr, _)| pcr).collect::<Vec<_>>(), [0, 4]);
    assert_eq!(pcrs.value(4).unwrap(), LogHash::Sha1.extend(&[0; 20], &LogHash::Sha1.digest(&[b"w"])));
    assert!(refused(&bytes[..bytes.len() - 1]).starts_with("event 2, "));
}

#[test]
fn what_is_too_large_is_refused_before_it_is_read() {
    let refusal = BootLog::parse(&vec![0; LIMIT + 1]).unwrap_err();
    assert_eq!(refusal.code, codes::MEASUREMENTS_TOO_LARGE);
    let mut long = log(ONE, &[hashed(0, 8, ONE, b"")]);
    let end = long.len();
    long[end - 4..].copy_from_slice(&(DATA_LIMIT as u32 + 1).to_le_bytes());
    assert!(refused(&long).contains("1048577 bytes of data"));
    long[end - 4..].copy_from_slice(&9_u32.to_le_bytes());
    assert!(refused(&long).contains("9 bytes of data, of which 0 are there"));
    // A record has 32 bytes at least, so 4 MiB hold more of them than may be.
    let many = legacy(1, NO_ACTION, &[0; 20], &[]).repeat(EVENTS_LIMIT + 1);
    assert_eq!(BootLog::parse(&many).unwrap_err().code, codes::MEASUREMENTS_TOO_LARGE);
    assert_eq!(BootLog::parse(&many[..32 * EVENTS_LIMIT]).unwrap().events.len(), EVENTS_LIMIT);
}

#[test]
fn separators_are_told_by_their_digest() {
    for (data, expected) in [
        (&[0; 4][..], Some(Separator::Zeros)),
        (&[0xFF; 4][..], Some(Separator::Ones)),
        (&[1, 0, 0, 0][..], Some(Separator::Error)),
        (&b"WBCL"[..], Some(Separator::Windows)),
        (&[0; 5][..], None),
    ] {
        let mut bytes = log(ONE, &[hashed(0, SEPARATOR, ONE, data)]);
        let end = bytes.len();
        assert_eq!(BootLog::parse(&bytes).unwrap().events[1].separator(LogHash::Sha256), expected);
        // Its data may say what it likes.
        bytes[end - 1] ^= 0x55;
        assert_eq!(BootLog::parse(&bytes).unwrap().events[1].separator(LogHash::Sha256), expected);
    }
}
