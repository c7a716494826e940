//! A record of a journal, as a node says it. What is read is written, and read again.
#![no_main]

use leasehold::protocol::records::Record;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(record) = Record::parse(text) else { return };
    let line = record.line();
    assert!(line.bytes().all(|byte| (0x20..0x7f).contains(&byte)), "one line of printable ASCII");
    // Escapes may make a line longer than what was read; then it is no record any more.
    if let Ok(again) = Record::parse(&line) {
        assert_eq!(again, record);
    }
});
