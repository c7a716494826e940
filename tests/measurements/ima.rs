//! IMA's list: every one at hand, and the forms that none of them has.

use std::collections::BTreeMap;
use std::path::Path;

use leasehold::codes;
use leasehold::measurements::LogHash;
use leasehold::measurements::ima::{Entries, ImaEntry, entry, extended};
use leasehold::tpm::Bank;
use leasehold::verify::runtime::{Checkpoint, Judge};
use proptest::prelude::*;

use crate::ima_made::{List, digest_and_name, field, pcr, raw};
use crate::testdata::{files, read, testdata};

/// What a list must do.
enum Expected {
    /// Entries, violations, bytes of an entry that isn't all there; the kernel's own template digests must recompute.
    Read { entries: usize, violations: usize, left: usize },
    /// The same, and lead to PCR 10 of the `pcrs_banks.yaml` beside it in each bank, in some with padded SHA-1.
    Quoted { entries: usize, violations: usize, padded: &'static [LogHash] },
    /// Be read, and lead to no PCR: the kernel didn't extend the TPM.
    Bypass { entries: usize },
    /// Be refused with words that contain these.
    Refused(&'static str),
    /// Hold nothing.
    Empty,
}

const TSS: &str = "tpm2-tss/test/data/fapi/eventlog";
const BOOTED: &str = "measured-boot";

/// Every list in the samples.
const LISTS: &[(&str, &str, Expected)] = {
    use Expected::*;
    &[
        (TSS, "sml-ima-sha1.b64", Read { entries: 12, violations: 0, left: 1 }),
        (TSS, "sml-ima-sha1-invalidated.b64", Read { entries: 1, violations: 1, left: 0 }),
        (TSS, "sml-ima-ng-sha1.b64", Read { entries: 6, violations: 0, left: 1 }),
        // Its last byte, the NUL of the name, is missing: an entry that isn't all there.
        (TSS, "sml-ima-ng-sha1-invalidated.b64", Read { entries: 0, violations: 0, left: 86 }),
        (TSS, "sml-ima-sig-sha256.b64", Read { entries: 9, violations: 0, left: 6 }),
        (TSS, "sml-ima-sig-sha256-invalidated.b64", Read { entries: 2, violations: 1, left: 0 }),
        (BOOTED, "x86_64/uki/binary_runtime_measurements", Quoted { entries: 55, violations: 0, padded: &[] }),
        (
            BOOTED,
            "x86_64/uki-secureboot-3banks-rich/binary_runtime_measurements",
            Quoted { entries: 62, violations: 2, padded: &[LogHash::Sha384] },
        ),
        (
            BOOTED,
            "aarch64/uki-2banks-rich/binary_runtime_measurements",
            Quoted { entries: 49, violations: 2, padded: &[] },
        ),
        (BOOTED, "aarch64/direct-debian-tpm-bypass/binary_runtime_measurements", Bypass { entries: 56 }),
        (BOOTED, "x86_64/uki/ascii_runtime_measurements", Refused("text")),
        (BOOTED, "x86_64/uki-secureboot-3banks-rich/ascii_runtime_measurements", Refused("text")),
        (BOOTED, "aarch64/uki-2banks-rich/ascii_runtime_measurements", Refused("text")),
        (BOOTED, "aarch64/direct-debian-tpm-bypass/ascii_runtime_measurements", Refused("text")),
        ("rust-keylime/keylime/test-data", "ima_log.txt", Refused("text")),
        ("rust-keylime/keylime/test-data", "invalid_ima_log.txt", Refused("text")),
        ("rust-keylime/keylime/test-data", "empty_ima_log.txt", Empty),
    ]
};

#[test]
fn every_list_at_hand_is_read_or_refused_as_it_must_be() {
    let Some(root) = testdata() else { return };
    for (folder, file, expected) in LISTS {
        let path = root.join(folder).join(file);
        let bytes = read(&root, &format!("{folder}/{file}"));
        let (entries, rest) = match all(&bytes) {
            Ok(read) => read,
            Err(refusal) => {
                let Expected::Refused(words) = expected else { panic!("{file}: {refusal}") };
                assert_eq!(refusal.code, codes::MEASUREMENTS_IMA_LIST, "{file}");
                assert!(refusal.found.contains(words) && refusal.at.contains("IMA entry 0"), "{file}: {refusal}");
                assert!(refusal.expected.contains("binary"), "{file}: {refusal}");
                continue;
            }
        };
        for entry in entries.iter().filter(|entry| !entry.violation) {
            assert_eq!(extended(entry, LogHash::Sha1, false), entry.printed, "{file}, entry {}", entry.number);
        }
        let count = (entries.len(), entries.iter().filter(|entry| entry.violation).count(), rest.len());
        match *expected {
            Expected::Read { entries, violations, left } => assert_eq!(count, (entries, violations, left), "{file}"),
            Expected::Quoted { entries, violations, padded } => {
                assert_eq!(count, (entries, violations, 0), "{file}");
                leads_to_the_quoted_pcr(&path, &bytes, entries, padded);
            }
            Expected::Bypass { entries } => {
                assert_eq!(count, (entries, 0, 0), "{file}");
                for quoted in quoted(&path).values() {
                    assert!(quoted.iter().all(|byte| *byte == 0), "{file}");
                    let mut judge = Judge::new(None, Checkpoint::start(Bank::Sha256));
                    assert_eq!(judge.take(&bytes, Some(quoted)), Ok(false), "{file}");
                    assert_eq!(judge.at.entries, entries as u64, "{file}");
                }
            }
            Expected::Refused(_) => panic!("{file} was read"),
            Expected::Empty => assert_eq!(count, (0, 0, 0), "{file}"),
        }
        println!("{folder}/{file}: {} entries, {} violations, {} bytes left", count.0, count.1, count.2);
    }
}

/// A list that nobody thought of is a list that nobody tests.
#[test]
fn the_table_names_every_list_at_hand() {
    let Some(root) = testdata() else { return };
    let is_list = |file: &String| ["sml-ima", "ima_log", "runtime_measurements"].iter().any(|name| file.contains(name));
    let named: Vec<_> = LISTS.iter().map(|(folder, file, _)| format!("{folder}/{file}")).collect();
    let missing: Vec<_> = files(&root).into_iter().filter(is_list).filter(|file| !named.contains(file)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

/// What a text list of another tool's tests prints, brought into the binary form, prints the same.
#[test]
fn the_template_digests_of_a_printed_list_recompute() {
    let Some(root) = testdata() else { return };
    let text = std::fs::read_to_string(root.join("rust-keylime/keylime/test-data/ima_log.txt")).unwrap();
    let mut list = List::default();
    for line in text.lines() {
        let mut words = line.splitn(5, ' ');
        let mut word = || words.next().unwrap();
        let (pcr, printed, template) = (word(), word(), word());
        assert_eq!(template, "ima-ng");
        let (algorithm, digest) = word().split_once(':').unwrap();
        let printed = hex::decode(printed).unwrap().try_into().unwrap();
        let data = digest_and_name(algorithm, &hex::decode(digest).unwrap(), word().as_bytes());
        list.append(&raw(pcr.parse().unwrap(), printed, template, &data));
    }
    let (entries, rest) = all(&list.bytes).unwrap();
    let right = entries.iter().filter(|entry| extended(entry, LogHash::Sha1, false) == entry.printed).count();
    println!("{right} of {} template digests recompute", entries.len());
    assert_eq!((entries.len(), right, rest.len()), (text.lines().count(), entries.len(), 0));
    assert!(right > 0);
}

/// The kernel prints each list twice: in both is the same.
#[test]
fn the_binary_list_says_what_the_text_beside_it_says() {
    let Some(root) = testdata() else { return };
    let mut compared = 0;
    for (folder, file, _) in LISTS.iter().filter(|(folder, file, _)| *folder == BOOTED && file.contains("binary")) {
        let path = root.join(folder).join(file);
        let text = std::fs::read(path.with_file_name("ascii_runtime_measurements")).unwrap();
        let lines: Vec<_> = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).collect();
        let bytes = std::fs::read(&path).unwrap();
        let (entries, _) = all(&bytes).unwrap();
        assert_eq!(entries.len(), lines.len(), "{file}");
        for (entry, line) in entries.iter().zip(lines) {
            let fields = &entry.fields;
            let begin = format!(
                "{} {} {} {}:{} ",
                entry.pcr,
                hex::encode(entry.printed),
                entry.template,
                fields.algorithm,
                hex::encode(fields.digest)
            );
            // Blanks in names are printed as `_`.
            let path: Vec<_> = fields.path.iter().map(|byte| if *byte == b' ' { b'_' } else { *byte }).collect();
            let rest = line.strip_prefix(begin.as_bytes()).unwrap_or_else(|| panic!("{file}: {begin}"));
            assert!(rest.starts_with(&path), "{file}: {begin}");
            compared += 1;
        }
    }
    println!("{compared} entries compared");
    assert!(compared > 200);
}

fn leads_to_the_quoted_pcr(path: &Path, bytes: &[u8], entries: usize, padded: &[LogHash]) {
    let quoted = quoted(path);
    assert!(!quoted.is_empty(), "{}", path.display());
    for (bank, value) in &quoted {
        let is_padded = padded.contains(bank);
        assert_eq!(&pcr(bytes, *bank, is_padded, entries), value, "{} in {bank}", path.display());
        if *bank != LogHash::Sha1 {
            assert_ne!(&pcr(bytes, *bank, !is_padded, entries), value, "{} in {bank}", path.display());
        }
        println!("  PCR 10 in {bank}{}: as quoted", if is_padded { ", padded SHA-1" } else { "" });
        let Some(bank) = Bank::from_algorithm(bank.algorithm()) else { continue };
        let mut judge = Judge::new(None, Checkpoint::start(bank));
        assert_eq!(judge.take(bytes, Some(value)), Ok(true));
        assert_eq!((judge.at.padded, judge.at.entries, &judge.at.value), (is_padded, entries as u64, value));
        assert_eq!(judge.at.offset, bytes.len() as u64);
    }
    for bank in padded {
        assert!(quoted.contains_key(bank), "{} has no bank {bank}", path.display());
    }
}

/// PCR 10 by bank, as `tpm2_pcrread` printed it beside the list.
fn quoted(list: &Path) -> BTreeMap<LogHash, Vec<u8>> {
    let text = std::fs::read_to_string(list.with_file_name("pcrs.yaml")).unwrap();
    let mut bank = None;
    let mut found = BTreeMap::new();
    for line in text.lines().map(str::trim) {
        if let Some((key, value)) = line.split_once(':') {
            if let Some(hash) = LogHash::from_name(key.trim()) {
                bank = Some(hash);
            } else if key.trim() == "10" {
                found.insert(bank.unwrap(), hex::decode(value.trim().trim_start_matches("0x")).unwrap());
            }
        }
    }
    found
}

/// All entries, and what is left.
fn all(bytes: &[u8]) -> Result<(Vec<ImaEntry<'_>>, &[u8]), codes::Refusal> {
    let mut entries = Entries::new(bytes, 0, 0);
    let read = entries.by_ref().collect::<Result<Vec<_>, _>>()?;
    Ok((read, entries.rest()))
}

#[test]
fn fields_are_what_was_written() {
    let mut list = List::new();
    list.legacy(b"/init", &[7; 20])
        .signed(b"/bin/caf\xe9 \xff", "sha512", &[8; 64], b"signature")
        .buffer(b"kernel_version", b"6.1")
        .violation(b"/root/f")
        .entry("ima-ngv2", &digest_and_name("ima:sha384", &[9; 48], b"/v2"))
        .entry("ima-sigv2", &[digest_and_name("verity:sha256", &[1; 32], b"/verity"), field(b"s")].concat())
        .entry("evm-sig", b"whatever");
    let (entries, rest) = all(&list.bytes).unwrap();
    assert!(rest.is_empty());
    let of = |number: usize| {
        let fields = &entries[number].fields;
        (fields.algorithm, fields.digest, fields.path, fields.signature, fields.buffer)
    };
    let none: &[u8] = &[];
    assert_eq!(of(0), ("sha256", &[0xBA; 32][..], &b"boot_aggregate"[..], none, none));
    assert_eq!(of(1), ("sha1", &[7; 20][..], &b"/init"[..], none, none));
    assert_eq!(of(2), ("sha512", &[8; 64][..], &b"/bin/caf\xe9 \xff"[..], &b"signature"[..], none));
    assert_eq!((of(3).2, of(3).4), (&b"kernel_version"[..], &b"6.1"[..]));
    assert!(entries[4].violation && !entries[3].violation);
    assert_eq!(of(5).0, "sha384");
    assert_eq!((of(6).0, of(6).3), ("verity:sha256", &b"s"[..]));
    assert_eq!(of(7), ("", none, none, none, none));
    assert_eq!((entries[7].template, entries[7].data), ("evm-sig", &b"whatever"[..]));
}

#[test]
fn what_can_not_be_an_entry_is_refused_with_its_number() {
    let good = digest_and_name("sha256", &[1; 32], b"/x");
    let with = |data: &[u8]| raw(10, [1; 20], "ima-ng", data);
    let mut big_endian = raw(10, [1; 20], "ima-ng", &good);
    big_endian[..4].copy_from_slice(&10u32.to_be_bytes());
    let header =
        |length: u32, after: &[u8]| [&10u32.to_le_bytes(), &[1; 20][..], &length.to_le_bytes(), after].concat();
    let huge = [field(b"ima-ng"), (1u32 << 20).wrapping_add(1).to_le_bytes().to_vec()].concat();
    for (what, bytes, words) in [
        ("a PCR above 23", raw(24, [1; 20], "ima-ng", &good), "PCR 24"),
        ("big endian", big_endian, "big-endian"),
        ("no template name", header(0, &[]), "0 bytes"),
        ("a long template name", header(65, &[]), "65 bytes"),
        ("a template name of controls", header(2, &[0x1b, 0x5b]), "0x1b5b"),
        ("data beyond the bound", [&header(6, &huge[4..])[..], &[]].concat(), "1048577 bytes"),
        ("a legacy path of 256", [&header(3, b"ima")[..], &[0; 20], &256u32.to_le_bytes()].concat(), "256 bytes"),
        ("a NUL in a legacy path", [&header(3, b"ima")[..], &[0; 20], &field(b"/a\0b")].concat(), "NUL"),
        ("a byte too many", with(&[&good[..], &[0]].concat()), "1 bytes after"),
        ("a missing signature", raw(10, [1; 20], "ima-sig", &good), "field signature"),
        ("a field beyond the data", with(&[&good[..44], &[9, 0, 0, 0], &good[48..]].concat()), "field name"),
        ("no NUL after the name", with(&[&good[..good.len() - 1], b"x"].concat()), "field name"),
        ("two NULs", with(&digest_and_name("sha256", &[1; 32], b"/x\0")), "field name"),
        ("no algorithm", with(&digest_and_name("", &[1; 32], b"/x")), "field digest"),
        ("no colon", with(&[field(b"sha256\0abc"), field(b"/x\0")].concat()), "field digest"),
        ("a digest of 65 bytes", with(&digest_and_name("sha512", &[1; 65], b"/x")), "65 bytes"),
        ("version 2 without type", raw(10, [1; 20], "ima-ngv2", &good), "field digest"),
    ] {
        let refusal = entry(&bytes, 41).expect_err(what);
        assert_eq!(refusal.code, codes::MEASUREMENTS_IMA_LIST, "{what}");
        assert!(refusal.at.contains("IMA entry 41") && refusal.found.contains(words), "{what}: {refusal}");
        assert!(!refusal.expected.is_empty(), "{what}: {refusal}");
    }
}

#[test]
fn an_entry_that_is_there_in_part_is_waited_for() {
    let mut list = List::new();
    list.legacy(b"/init", &[7; 20]).measure(b"/bin/sh", &[1; 32]).entry("own", b"x");
    for end in 0..=list.bytes.len() {
        let (entries, rest) = all(&list.bytes[..end]).unwrap();
        let whole = list.ends.iter().filter(|one| **one <= end).count();
        let begin = whole.checked_sub(1).map_or(0, |last| list.ends[last]);
        assert_eq!((entries.len(), rest.len()), (whole, end - begin));
    }
}

proptest! {
    #[test]
    fn no_bytes_make_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = all(&bytes);
    }

    #[test]
    fn no_change_makes_the_reader_panic(at in 0usize..600, to in any::<u8>(), cut in 0usize..600) {
        let mut list = List::new();
        list.legacy(b"/init", &[7; 20]).measure(b"/bin/sh", &[1; 32]).buffer(b"b", b"buffer").violation(b"/f");
        let mut bytes = list.bytes;
        let length = bytes.len();
        bytes[at % length] = to;
        bytes.truncate(cut);
        let _ = all(&bytes);
    }
}
