//! The userspace log. There is no public one, so these are made here as systemd writes them
//! (src/shared/tpm2-util.c, docs/TPM2_PCR_MEASUREMENTS.md).

use std::path::Path;

use leasehold::codes;
use leasehold::measurements::LogHash;
use leasehold::measurements::boot::PcrBank;
use leasehold::measurements::userspace::{LIMIT, RECORDS_LIMIT, Target, UserspaceLog};
use serde_json::{Value, json};

/// The boot that the records say they are of.
const BOOT: &str = "0e5d3bf6b1c54d1b8d5c0f2a4b6c8d9e";

/// A record's text: separator, JSON, line feed.
fn framed(record: &Value) -> Vec<u8> {
    [&[0x1E], record.to_string().as_bytes(), b"\n"].concat()
}

/// A record of an extension of a PCR with the hash of `string` in two banks.
fn record(pcr: u8, kind: &str, string: &str) -> Value {
    json!({
        "pcr": pcr,
        "digests": digests(string.as_bytes()),
        "content_type": "systemd",
        "content": {"string": string, "bootId": BOOT, "timestamp": 2_345_678, "eventType": kind},
    })
}

fn digests(bytes: &[u8]) -> Value {
    let digest = |hash: LogHash| json!({"hashAlg": hash.as_str(), "digest": hex::encode(hash.digest(&[bytes]))});
    json!([digest(LogHash::Sha1), digest(LogHash::Sha256)])
}

/// What a UKI boot of systemd 261 measures from userspace, in short.
pub fn boot_of_systemd() -> Vec<u8> {
    let mut records: Vec<Value> =
        [0, 1, 7, 9, 12, 14].into_iter().map(|pcr| record(pcr, "os-separator", "os-separator")).collect();
    records.push(record(11, "phase", "enter-initrd"));
    records.push(record(9, "nvpcr-init", "nvpcr-init:hardware:0x1d10200:000bff27bc66"));
    let mut product = record(0, "product-id", "product-id:missing");
    let object = product.as_object_mut().unwrap();
    object.remove("pcr");
    object.insert("nv_index".to_owned(), json!(0x01D1_0200));
    object["content"]["nvIndexName"] = json!("hardware");
    records.push(product);
    records.push(record(11, "phase", "leave-initrd"));
    let mut volume = record(15, "volume-key", "cryptsetup:root:5f1c");
    // An HMAC under the volume's key, which nobody here has.
    volume["digests"] = digests(b"another thing");
    records.push(volume);
    records.push(record(15, "machine-id", "machine-id:8c4c12fd2b2a4b8a9a4f5a0e7d7b6c5d"));
    records.iter().flat_map(framed).collect()
}

fn refused(bytes: &[u8]) -> String {
    let refusal = UserspaceLog::parse(bytes).unwrap_err();
    assert_eq!(refusal.code, codes::MEASUREMENTS_USERSPACE_LOG);
    refusal.to_string().strip_prefix("measurements.userspace_log: userspace log, ").unwrap().to_owned()
}

#[test]
fn a_log_as_systemd_writes_it_is_its_records() {
    let log = UserspaceLog::parse(&boot_of_systemd()).unwrap();
    let kinds: Vec<_> = log.records.iter().skip(6).map(|record| record.kind.as_str()).collect();
    assert_eq!(kinds, ["phase", "nvpcr-init", "product-id", "phase", "volume-key", "machine-id"]);
    assert_eq!(log.records[8].target, Target::NvPcr("hardware".to_owned()));
    assert_eq!(log.records[6].target, Target::Pcr(11));
    assert_eq!(
        (log.records[6].string.as_deref(), log.records[6].boot_id.as_deref()),
        (Some("enter-initrd"), Some(BOOT))
    );
    // Facts: what systemd puts into a PCR 12 that nothing else was put into.
    let mut pcrs = PcrBank::new(LogHash::Sha256, 0);
    let separator = &log.records[4];
    assert_eq!(separator.target, Target::Pcr(12));
    let value = pcrs.extend(12, separator.digest(LogHash::Sha256).unwrap()).unwrap();
    assert_eq!(hex::encode(value), "3345a4e7857aa5ae65e97702ade84a3755fd6144724779536b5773128676c99c");
}

#[test]
fn a_string_is_vouched_for_where_its_hash_is_the_digest() {
    let log = UserspaceLog::parse(&boot_of_systemd()).unwrap();
    for record in &log.records {
        for bank in [LogHash::Sha1, LogHash::Sha256] {
            assert_eq!(record.vouched(bank), record.kind != "volume-key", "{record:?}");
        }
        assert!(!record.vouched(LogHash::Sha384));
    }
    let mut bare = record(11, "phase", "ready");
    bare["content"].as_object_mut().unwrap().remove("string");
    assert!(!UserspaceLog::parse(&framed(&bare)).unwrap().records[0].vouched(LogHash::Sha256));
}

#[test]
fn what_is_not_known_is_tolerated() {
    assert_eq!(UserspaceLog::parse(&[]).unwrap().records, []);
    let mut odd = record(11, "from-the-future", "x");
    odd["more"] = json!({"deep": [1, 2, {"er": null}]});
    odd["content"]["more"] = json!(1.5);
    odd["digests"].as_array_mut().unwrap().push(json!({"hashAlg": "sm3_256", "digest": "zz"}));
    let log = UserspaceLog::parse(&framed(&odd)).unwrap();
    assert_eq!((log.records[0].kind.as_str(), log.records[0].digests.len()), ("from-the-future", 2));
    let bare = UserspaceLog::parse(&framed(&json!({"pcr": 23, "digests": []}))).unwrap();
    assert_eq!((bare.records[0].kind.as_str(), bare.records[0].digests.len()), ("", 0));
    let other = UserspaceLog::parse(&framed(&json!({"nv_index": 0x01D1_0203, "digests": [], "content_type": "cel"})));
    assert_eq!(other.unwrap().records[0].target, Target::NvPcr("0x01d10203".to_owned()));
    // JSON may be spread over lines; a record ends at the next separator.
    let spread =
        [&[0x1E], serde_json::to_string_pretty(&record(11, "phase", "ready")).unwrap().as_bytes(), b"\n"].concat();
    assert_eq!(UserspaceLog::parse(&spread).unwrap().records.len(), 1);
}

#[test]
fn what_is_wrong_is_refused_by_record_and_byte() {
    let good = framed(&record(11, "phase", "ready"));
    let second = |bytes: &[u8]| refused(&[&good, bytes].concat());
    let at = format!("record 1, byte {}: ", good.len());
    let edited = |edit: &dyn Fn(&mut Value)| {
        let mut value = record(11, "phase", "ready");
        edit(&mut value);
        second(&framed(&value))
    };
    for (words, reason) in [
        (edited(&|r| r["pcr"] = json!(24)), "PCR 24"),
        (edited(&|r| r["pcr"] = json!(256)), "256"),
        (edited(&|r| r["pcr"] = json!("11")), "string"),
        (edited(&|r| r["pcr"] = json!(null)), "neither a PCR nor an NvPCR"),
        (edited(&|r| r["nvpcr"] = json!("hardware")), "a PCR and an NvPCR"),
        (edited(&|r| r["content"]["nvIndexName"] = json!("hardware")), "a PCR and an NvPCR"),
        (edited(&|r| r["digests"] = json!({})), "sequence"),
        (edited(&|r| r["digests"][1]["digest"] = json!("00")), "a sha256 digest that is none"),
        (edited(&|r| r["digests"][1]["digest"] = json!("g".repeat(64))), "a sha256 digest that is none"),
        (edited(&|r| r["digests"][1]["hashAlg"] = json!("sha1")), "sha1 digest"),
        (edited(&|r| r["content"]["string"] = json!(7)), "7"),
        (edited(&|r| r["content"] = json!([])), ""),
        (second(&good[..good.len() - 1]), "without its line feed"),
        (second(&[0x1E]), "without its line feed"),
        (second(&[0x1E, b'\n']), "EOF"),
        (second(b"\x1e{} {}\n"), ""),
        (second(&[&b"\x1e"[..], "[".repeat(5000).as_bytes(), b"\n"].concat()), ""),
        (second(b"\x1e{\"pcr\":1,\"pcr\":2,\"digests\":[]}\n"), "duplicate"),
    ] {
        assert!(words.starts_with(&at) && words.contains(reason), "{words}");
    }
    assert!(refused(b"{}\n").starts_with("record 0, byte 0: bytes before the first record"));
}

#[test]
fn what_is_too_large_is_refused() {
    assert_eq!(UserspaceLog::parse(&vec![b' '; LIMIT + 1]).unwrap_err().code, codes::MEASUREMENTS_TOO_LARGE);
    let many = framed(&json!({"pcr": 1, "digests": []})).repeat(RECORDS_LIMIT);
    assert_eq!(UserspaceLog::parse(&many).unwrap().records.len(), RECORDS_LIMIT);
    let more = [many, framed(&json!({"pcr": 1, "digests": []}))].concat();
    assert_eq!(UserspaceLog::parse(&more).unwrap_err().code, codes::MEASUREMENTS_TOO_LARGE);
}

#[test]
fn the_fuzzers_seed_is_what_is_made_here() {
    let seed = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/seeds/userspace_log/systemd");
    if std::env::var_os("LEASEHOLD_BLESS").is_some() {
        std::fs::write(&seed, boot_of_systemd()).unwrap();
    }
    let found = std::fs::read(&seed).unwrap_or_default();
    assert!(found == boot_of_systemd(), "the seed differs from what is made; LEASEHOLD_BLESS=1 writes it anew");
}
