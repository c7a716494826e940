//! The judge of IMA's list: real lists under rules made from what was on those systems, each rule,
//! and what it takes to go on from where one stood.

use std::collections::{BTreeMap, BTreeSet};

use leasehold::codes::{self, Code};
use leasehold::measurements::LogHash;
use leasehold::measurements::ima::{Entries, escaped};
use leasehold::tpm::Bank;
use leasehold::verify::runtime::{
    Checkpoint, CompiledRules, Exclusion, FINDINGS_LIMIT, HexBytes, Judge, Mode, RuntimeRules, boot_aggregate,
};
use proptest::prelude::*;

use crate::ima_made::{List, digest_and_name, field, raw};
use crate::testdata::testdata;

const SH: [u8; 32] = [0x51; 32];
const EVIL: [u8; 32] = [0xE7; 32];

fn exclusion(path: &str) -> Exclusion {
    Exclusion { path: path.to_owned(), reason: "written anew at each boot".to_owned() }
}

fn hex_of(digest: &[u8]) -> String {
    format!("sha256:{}", hex::encode(digest))
}

/// Some of every kind of rule; `SH` is allowed under `/bin/sh`.
pub fn rules() -> RuntimeRules {
    let mut rules = RuntimeRules {
        digests: [("sha512".to_owned(), BTreeSet::from([HexBytes(vec![5; 64])]))].into(),
        exclusions: vec![exclusion("/var/lib/"), exclusion("/etc/machine-id")],
        waivers: vec![exclusion("/var/log/wtmp")],
        buffers: [("kernel_version".to_owned(), vec![hex_of(&LogHash::Sha256.digest(&[b"6.1"]))])].into(),
        ..RuntimeRules::default()
    };
    rules.allow_file(b"/bin/sh", LogHash::Sha256, &SH);
    rules.allow_file(b"/bin/caf\xe9", LogHash::Sha256, &SH);
    rules
}

fn compiled() -> CompiledRules {
    rules().compile().unwrap()
}

fn start<'a>(rules: impl Into<Option<&'a CompiledRules>>) -> Judge<'a> {
    Judge::new(rules.into(), Checkpoint::start(Bank::Sha256))
}

/// The digests in `rootfs.sha256`, in the format of sha256sum, as rules.
fn rules_of(text: &str) -> RuntimeRules {
    let mut rules = RuntimeRules::default();
    let mut digests = BTreeSet::new();
    for line in text.lines() {
        let (digest, _) = line.split_once("  ").unwrap();
        digests.insert(HexBytes(hex::decode(digest).unwrap()));
    }
    rules.digests.insert("sha256".to_owned(), digests);
    let kernel = LogHash::Sha256.digest(&[b"6.1.0-56-cloud-amd64"]);
    rules.buffers.insert("kernel_version".to_owned(), vec![hex_of(&kernel)]);
    rules
}

#[test]
fn real_lists_are_judged_by_what_was_on_the_system() {
    let Some(root) = testdata() else { return };
    let written = ["/root/f", "/root/g", "/root/a_script.sh", "/root/a_script.sh", "/root/café"];
    for (folder, entries, unlisted, violations) in [
        ("x86_64/uki", 55, 0, 0),
        ("x86_64/uki-secureboot-3banks-rich", 62, written.len(), 2),
        ("aarch64/uki-2banks-rich", 49, written.len(), 2),
    ] {
        let folder = root.join("measured-boot").join(folder);
        let list = std::fs::read(folder.join("binary_runtime_measurements")).unwrap();
        let rules = rules_of(&std::fs::read_to_string(folder.join("rootfs.sha256")).unwrap()).compile().unwrap();
        let mut judge = start(&rules);
        assert_eq!(judge.take(&list, None), Ok(false));
        let at = &judge.at;
        let paths: Vec<_> = at.unlisted.iter().map(|finding| finding.path.as_str()).collect();
        println!("{}: unlisted {paths:?}", folder.display());
        assert_eq!((at.entries, at.unlisted_count, at.violations_count), (entries, unlisted as u64, violations));
        assert!(paths.is_empty() || paths == written, "{paths:?}");
        let violations: Vec<_> = at.violations.iter().map(|finding| finding.path.as_str()).collect();
        assert!(violations.is_empty() || violations == ["/root/f", "/root/g"], "{violations:?}");
        assert_eq!(at.boot_aggregates.len(), 1);

        // The firmware's PCRs stayed as they were until the quote.
        let pcrs = std::fs::read_to_string(folder.join("pcrs.yaml")).unwrap();
        let values = of_bank(&pcrs, "sha256");
        let expected = boot_aggregate((0..10).map(|pcr| values[&pcr].as_slice()), LogHash::Sha256);
        assert_eq!(at.boot_aggregates[0].digest, hex_of(&expected));
    }
}

/// The PCRs of one bank, as tpm2_pcrread prints them.
fn of_bank(text: &str, bank: &str) -> BTreeMap<u8, Vec<u8>> {
    let from = text.split_once(&format!("{bank}:\n")).unwrap().1;
    let lines = from.lines().map_while(|line| line.split_once(": 0x"));
    lines.map(|(pcr, value)| (pcr.trim().parse().unwrap(), hex::decode(value).unwrap())).collect()
}

#[test]
fn each_rule_allows_what_it_says_and_no_more() {
    type Add<'a> = &'a dyn Fn(&mut List) -> &mut List;
    let data = |algorithm: &str, digest: &[u8], path: &[u8]| digest_and_name(algorithm, digest, path);
    let cases: &[(&str, Add<'_>, Option<&str>)] = &[
        ("a file by path and digest", &|l| l.measure(b"/bin/sh", &SH), None),
        ("a name that isn't UTF-8", &|l| l.measure(b"/bin/caf\xe9", &SH), None),
        ("a digest anywhere", &|l| l.signed(b"/tmp/x", "sha512", &[5; 64], &[]), None),
        ("below an excluded directory", &|l| l.measure(b"/var/lib/a/b", &EVIL), None),
        ("an excluded path", &|l| l.measure(b"/etc/machine-id", &EVIL), None),
        ("an excluded path, by SHA-1", &|l| l.signed(b"/var/lib/a", "sha1", &[1; 20], &[]), None),
        ("a buffer", &|l| l.buffer(b"kernel_version", b"6.1"), None),
        ("ima-ng", &|l| l.entry("ima-ng", &data("sha256", &SH, b"/bin/sh")), None),
        ("ima-ngv2", &|l| l.entry("ima-ngv2", &data("ima:sha256", &SH, b"/bin/sh")), None),
        ("the digest under another path", &|l| l.measure(b"/tmp/sh", &SH), Some("no rule allows it")),
        ("another digest there", &|l| l.measure(b"/bin/sh", &EVIL), Some("no rule allows it")),
        ("the digest by another algorithm", &|l| l.signed(b"/bin/sh", "sm3", &SH, &[]), Some("sm3 digest")),
        ("verity's digest", &|l| l.entry("ima-ngv2", &data("verity:sha256", &SH, b"/bin/sh")), Some("verity")),
        ("a digest of another size", &|l| l.signed(b"/bin/sh", "sha384", &SH, &[]), Some("sha384 digest")),
        ("a SHA-1 digest", &|l| l.signed(b"/bin/sh", "sha1", &[1; 20], &[]), Some("sha1 digest")),
        ("the template ima", &|l| l.legacy(b"/var/lib/x", &[1; 20]), Some("template `ima`")),
        ("an unknown template", &|l| l.entry("own", &data("sha256", &SH, b"/bin/sh")), Some("`own`")),
        ("a digest of zeros", &|l| l.measure(b"/var/lib/x", &[0; 32]), Some("no digest")),
        ("no digest", &|l| l.measure(b"/var/lib/x", &[]), Some("no digest")),
        ("the excluded directory itself", &|l| l.measure(b"/var/lib", &EVIL), Some("no rule")),
        ("out of an excluded directory", &|l| l.measure(b"/var/lib/../../bin/x", &EVIL), Some("no rule")),
        ("an empty part", &|l| l.measure(b"/var/lib//x", &EVIL), Some("no rule")),
        ("a name that begins like it", &|l| l.measure(b"/etc/machine-id2", &EVIL), Some("no rule")),
        ("a relative path", &|l| l.measure(b"var/lib/x", &EVIL), Some("no rule")),
        ("another buffer", &|l| l.buffer(b"kernel_version", b"6.2"), Some("no rule for this buffer")),
        ("a buffer of another name", &|l| l.buffer(b"kernel", b"6.1"), Some("no rule for this buffer")),
    ];
    let rules = compiled();
    for (what, add, why) in cases {
        let mut list = List::new();
        add(&mut list);
        let mut judge = start(&rules);
        assert_eq!(judge.take(&list.bytes, Some(&list.quoted())), Ok(true), "{what}");
        assert_eq!(judge.at.unlisted_count, u64::from(why.is_some()), "{what}: {:?}", judge.at.unlisted);
        let mut node = start(&rules);
        let first = list.ends[0];
        node.take(&list.bytes[..first], None).unwrap();
        let advanced = node.advance(&list.bytes[first..], &list.quoted());
        match why {
            None => assert_eq!(advanced.unwrap().unwrap().entries(), 1, "{what}"),
            Some(why) => {
                assert!(judge.at.unlisted[0].why.contains(why), "{what}: {:?}", judge.at.unlisted[0]);
                let refusal = advanced.expect_err(what);
                assert_eq!(refusal.code, codes::VERIFY_IMA_UNLISTED, "{what}");
                assert!(refusal.found.contains(why), "{what}: {refusal}");
                assert!(refusal.at.contains(&format!("IMA entry 1, PCR 10, byte {first} ")), "{what}: {refusal}");
                assert!(!refusal.expected.is_empty(), "{what}: {refusal}");
            }
        }
    }
}

/// Nothing vouches for a template's name, but what an entry holds tells.
#[test]
fn an_entry_under_another_templates_name_is_refused() {
    let kernel = LogHash::Sha256.digest(&[b"6.1"]);
    let rules = compiled();
    for (what, template, name, digest, last) in [
        ("a buffer as a file", "ima-sig", &b"kernel_version"[..], &kernel[..], &b"6.1"[..]),
        ("a file as a buffer", "ima-buf", b"kernel_version", &SH, b"6.1"),
        ("a file without signature as a buffer", "ima-buf", b"/bin/sh", &SH, b""),
        ("an empty file as a buffer", "ima-buf", b"/bin/sh", &LogHash::Sha256.digest(&[]), b""),
    ] {
        let mut list = List::new();
        list.entry(template, &[digest_and_name("sha256", digest, name), field(last)].concat());
        let refusal = start(&rules).take(&list.bytes, Some(&list.quoted())).expect_err(what);
        assert_eq!(refusal.code, codes::MEASUREMENTS_IMA_LIST, "{what}");
        assert!(
            refusal.found.contains("under the name of") && refusal.at.contains("IMA entry 1,"),
            "{what}: {refusal}"
        );
    }
}

/// A digest may stand in the rules for a file: a `boot_aggregate` isn't one.
#[test]
fn a_boot_aggregate_is_never_judged_as_a_file() {
    let mut rules = rules();
    rules.digests.insert("sha256".to_owned(), BTreeSet::from([HexBytes(vec![0xBA; 32])]));
    let rules = rules.compile().unwrap();
    let mut list = List::new();
    for _ in 0..FINDINGS_LIMIT {
        list.measure(b"boot_aggregate", &[0xBA; 32]);
    }
    let mut judge = start(&rules);
    assert_eq!(judge.take(&list.bytes, Some(&list.quoted())), Ok(true));
    assert_eq!((judge.at.boot_aggregates.len(), judge.at.unlisted_count), (FINDINGS_LIMIT, 1));
    assert_eq!(judge.at.boot_aggregates[3].entry, 3);

    // A second one while a lease runs is another boot.
    let mut node = start(&rules);
    node.take(&list.bytes[..list.ends[0]], None).unwrap();
    let refusal = node.advance(&list.bytes[list.ends[0]..], &list.pcr(LogHash::Sha256, false, 2)).unwrap_err();
    assert_eq!(refusal.code, codes::VERIFY_BOOT_AGGREGATE);
}

#[test]
fn a_refusal_names_the_nearest_that_is_accepted() {
    let rules = compiled();
    let mut list = List::new();
    list.measure(b"/bin/sh", &EVIL)
        .measure(b"/tmp/\x1b[2Jsh", &SH)
        .measure(b"/tmp/x", &EVIL)
        .buffer(b"kernel_version", b"6.2");
    let mut judge = start(&rules);
    judge.take(&list.bytes, None).unwrap();
    let nearest: Vec<_> = judge.at.unlisted.iter().map(|finding| finding.nearest.as_str()).collect();
    let buffer = hex_of(&LogHash::Sha256.digest(&[b"6.1"]));
    assert_eq!(nearest, [&hex_of(&SH), "the same digest as /bin/caf\\xe9", "", &buffer]);
    assert_eq!(judge.at.unlisted[1].path, "/tmp/\\x1b[2Jsh");
    let refusal = judge.at.unlisted[0].refusal(codes::VERIFY_IMA_UNLISTED);
    assert_eq!(refusal.expected, hex_of(&SH));
    assert!(refusal.found.starts_with(&format!("/bin/sh with {}", hex_of(&EVIL))), "{refusal}");
}

#[test]
fn a_list_is_taken_in_as_far_as_the_quote_and_no_further() {
    let rules = compiled();
    let mut list = List::new();
    list.measure(b"/bin/sh", &SH).measure(b"/x", &EVIL).violation(b"/f").measure(b"/y", &EVIL);
    for entries in 1..=list.ends.len() {
        let mut judge = start(&rules);
        let target = list.pcr(LogHash::Sha256, false, entries);
        assert_eq!(judge.take(&list.bytes, Some(&target)), Ok(true));
        assert_eq!((judge.at.entries, judge.at.offset), (entries as u64, list.ends[entries - 1] as u64));
        assert_eq!(judge.at.value, target);
        assert_eq!(judge.at.unlisted_count, [0, 0, 0, 1, 1, 2][entries]);
        // There already: nothing is read.
        assert_eq!(judge.take(b"no list at all", Some(&target)), Ok(true));
    }
    // Not there yet, and then there.
    let mut judge = start(&rules);
    assert_eq!(judge.take(&list.bytes[..list.ends[1] + 7], Some(&list.quoted())), Ok(false));
    assert_eq!(judge.at.offset, list.ends[1] as u64);
    assert_eq!(judge.take(&list.bytes[list.ends[1]..], Some(&list.quoted())), Ok(true));
}

#[test]
fn a_pcr_of_zeros_is_led_to_by_no_list() {
    for list in [Vec::new(), List::new().bytes] {
        let mut judge = start(None);
        assert_eq!(judge.take(&list, Some(&[0; 32])), Ok(false));
        assert_eq!(judge.at.offset, list.len() as u64);
        assert_eq!(start(None).advance(&list, &[0; 32]).ok().flatten(), None);
    }
}

#[test]
fn an_entry_for_another_pcr_is_refused() {
    let mut list = List::new();
    list.append(&raw(12, [1; 20], "ima-ng", &digest_and_name("sha256", &SH, b"/bin/sh")));
    let mut judge = start(None);
    let refusal = judge.take(&list.bytes, None).unwrap_err();
    assert_eq!((refusal.code, judge.at.entries), (codes::VERIFY_IMA_PCR, 1));
    assert!(refusal.at.contains("IMA entry 1") && refusal.found.contains("PCR 12"), "{refusal}");
}

#[test]
fn a_malformed_entry_is_refused_where_it_stands() {
    let mut list = List::new();
    let whole = list.bytes.len();
    list.append(&raw(10, [1; 20], "ima-ng", b"no fields"));
    let mut judge = start(None);
    let refusal = judge.take(&list.bytes, None).unwrap_err();
    assert_eq!(refusal.code, codes::MEASUREMENTS_IMA_LIST);
    assert!(refusal.at.contains("IMA entry 1") && refusal.at.contains(&format!("byte {whole} ")), "{refusal}");
    assert_eq!(judge.at.offset, whole as u64);
}

#[test]
fn values_of_another_bank_are_refused() {
    let list = List::new();
    assert_eq!(start(None).take(&list.bytes, Some(&[1; 48])).unwrap_err().code, codes::VERIFY_BANK);
    for bank in ["sha384", "sha1", ""] {
        let at = Checkpoint { bank: bank.to_owned(), ..Checkpoint::start(Bank::Sha256) };
        assert_eq!(Judge::new(None, at).take(&list.bytes, None).unwrap_err().code, codes::VERIFY_BANK);
    }
}

#[test]
fn padded_sha1_is_found_from_the_start_and_remembered() {
    let mut list = List::new();
    list.measure(b"/bin/sh", &SH).violation(b"/f").measure(b"/x", &EVIL);
    let rules = compiled();
    let bank = LogHash::Sha384;
    let mut judge = Judge::new(Some(&rules), Checkpoint::start(Bank::Sha384));
    assert_eq!(judge.take(&list.bytes, Some(&list.pcr(bank, true, 2))), Ok(true));
    assert!(judge.at.padded && judge.at.entries == 2 && judge.at.unlisted_count == 0);
    let after = list.ends[1];
    assert_eq!(judge.take(&list.bytes[after..], Some(&list.pcr(bank, true, 4))), Ok(true));
    assert_eq!((judge.at.unlisted_count, judge.at.violations_count), (1, 1));
    // The other way round nothing is tried: one bank is hashed in one way.
    let mut judge = Judge::new(Some(&rules), Checkpoint::start_padded(Bank::Sha384));
    assert_eq!(judge.take(&list.bytes, Some(&list.pcr(bank, false, 4))), Ok(false));
}

#[test]
fn a_node_goes_on_by_proofs_without_a_gap() {
    let rules = compiled();
    let mut list = List::new();
    list.measure(b"/bin/sh", &SH);
    let mut node = start(&rules);
    node.take(&list.bytes, None).unwrap();
    let lease = list.quoted();
    // Nothing new.
    let none = node.advance(&[], &lease).unwrap().unwrap();
    assert_eq!((none.from(), none.to(), none.entries(), none.bank()), (&lease[..], &lease[..], 0, Bank::Sha256));

    list.buffer(b"kernel_version", b"6.1").violation(b"/var/log/wtmp").measure(b"/var/lib/x", &EVIL);
    let rest = |list: &List, node: &Judge<'_>| list.bytes[usize::try_from(node.at.offset).unwrap()..].to_vec();
    // The list lags behind the PCR: nothing moves, and the same call later succeeds.
    let short = list.bytes[list.ends[1]..list.ends[2]].to_vec();
    assert_eq!(node.advance(&short, &list.quoted()), Ok(None));
    assert_eq!(node.at.value, lease);
    let some = node.advance(&rest(&list, &node), &list.quoted()).unwrap().unwrap();
    assert_eq!((some.from(), some.to(), some.entries()), (&lease[..], &list.quoted()[..], 3));
    assert_eq!((node.at.waived_count, node.at.violations_count), (1, 0));

    // Not allowed: refused at once, whether or not the PCR is there; and nothing moves.
    let before = node.at.clone();
    list.measure(b"/tmp/evil", &EVIL).measure(b"/bin/sh", &SH);
    for target in [list.quoted(), vec![1; 32]] {
        let refusal = node.advance(&rest(&list, &node), &target).unwrap_err();
        assert_eq!(refusal.code, codes::VERIFY_IMA_UNLISTED);
        assert!(refusal.found.starts_with("/tmp/evil") && refusal.at.contains("IMA entry 5,"), "{refusal}");
    }
    assert_eq!(node.at, before);
}

#[test]
fn violations_and_lists_without_rules_do_not_pass_on_a_node() {
    let rules = compiled();
    let mut list = List::new();
    list.violation(b"/root/f");
    let first = list.ends[0];
    let advance = |rules: Option<&CompiledRules>| {
        let mut node = start(rules);
        node.take(&list.bytes[..first], None).unwrap();
        node.advance(&list.bytes[first..], &list.quoted())
    };
    for rules in [Some(&rules), None] {
        let refusal = advance(rules).unwrap_err();
        assert_eq!(refusal.code, codes::VERIFY_IMA_VIOLATION);
        assert!(refusal.found.contains("/root/f"), "{refusal}");
    }
    let mut list = List::new();
    list.measure(b"/bin/sh", &SH);
    let mut node = start(None);
    node.take(&list.bytes[..list.ends[0]], None).unwrap();
    let refusal = node.advance(&list.bytes[list.ends[0]..], &list.quoted()).unwrap_err();
    assert_eq!(refusal.code, codes::VERIFY_IMA_UNLISTED);
    assert!(refusal.found.contains("no rules"), "{refusal}");
}

#[test]
fn warning_refuses_nothing_and_counts_all() {
    let rules = RuntimeRules { mode: Mode::Warn, ..rules() }.compile().unwrap();
    let mut list = List::new();
    for number in 0..100 {
        list.measure(format!("/tmp/{number}").as_bytes(), &EVIL).violation(b"/root/f");
    }
    let mut node = start(&rules);
    assert_eq!(node.advance(&list.bytes, &list.quoted()).unwrap().unwrap().entries(), 201);
    assert_eq!((node.at.unlisted_count, node.at.violations_count), (100, 100));
    assert_eq!((node.at.unlisted.len(), node.at.violations.len()), (FINDINGS_LIMIT, FINDINGS_LIMIT));
    assert_eq!((node.at.unlisted[63].path.as_str(), node.at.unlisted[63].entry), ("/tmp/63", 127));
}

/// What the TPM vouches for in a violation is that there was one. Who alters the list can name any
/// file; so a waiver is an argument about all of them.
#[test]
fn the_path_of_a_violation_is_not_vouched_for() {
    let (mut honest, mut altered) = (List::new(), List::new());
    honest.violation(b"/usr/bin/sudo");
    altered.violation(b"/var/log/wtmp");
    assert_eq!(honest.quoted(), altered.quoted());
    let rules = compiled();
    for (list, counts) in [(honest, (1, 0)), (altered, (0, 1))] {
        let mut judge = start(&rules);
        assert_eq!(judge.take(&list.bytes, Some(&list.quoted())), Ok(true));
        assert_eq!((judge.at.violations_count, judge.at.waived_count), counts);
    }
}

#[test]
fn rules_that_can_not_be_meant_are_refused_by_their_key() {
    type Spoil<'a> = &'a dyn Fn(&mut RuntimeRules);
    let digests = |algorithm: &str, digest: Vec<u8>| {
        [(algorithm.to_owned(), BTreeSet::from([HexBytes(digest)]))].into_iter().collect()
    };
    let file = |path: &str, digest: &str| [(path.to_owned(), vec![digest.to_owned()])].into_iter().collect();
    let good = hex_of(&SH);
    let cases: &[(Spoil<'_>, &str, &str)] = &[
        (&|r| r.digests = digests("sha1", vec![1; 20]), "runtime.digests.sha1", "sha1"),
        (&|r| r.digests = digests("md5", vec![1; 16]), "runtime.digests.md5", "md5"),
        (&|r| r.digests = digests("sha256", vec![1; 31]), "runtime.digests.sha256", "31 bytes"),
        (&|r| r.digests = digests("sha256", vec![0; 32]), "runtime.digests.sha256", "zeros"),
        (&|r| r.files = file("bin/sh", &good), "runtime.files", "bin/sh"),
        (&|r| r.files = file("/bin/../sh", &good), "runtime.files", "/bin/../sh"),
        (&|r| r.files = file("boot_aggregate", &good), "runtime.files", "boot_aggregate"),
        (&|r| r.files = file("/bin/sh", "sha1:00"), "/bin/sh", "sha1"),
        (&|r| r.files = file("/bin/sh", "51515151"), "/bin/sh", "51515151"),
        (&|r| r.files = file("/bin/sh", "sha256:xy"), "/bin/sh", "sha256:xy"),
        (&|r| r.buffers = file("", &good), "runtime.buffers", "``"),
        (&|r| r.exclusions[0].reason = " ".to_owned(), "runtime.exclusions", "no reason"),
        (&|r| r.waivers[0].reason = String::new(), "runtime.waivers", "no reason"),
        (&|r| r.exclusions[0].path = "/".to_owned(), "runtime.exclusions", "/"),
        (&|r| r.exclusions[0].path = "/var/../".to_owned(), "runtime.exclusions", "/var/../"),
        (&|r| r.exclusions[0].path = "var/".to_owned(), "runtime.exclusions", "var/"),
        (&|r| r.signers.push(b"no certificate".to_vec()), "runtime.signers, number 0", "no certificate"),
    ];
    assert_eq!(rules().check(), Ok(()));
    for (spoil, at, found) in cases {
        let mut rules = rules();
        spoil(&mut rules);
        let refusal = rules.check().unwrap_err();
        assert_eq!(refusal.code, codes::VERIFY_REFERENCE_MALFORMED);
        assert!(refusal.at.contains(at) && refusal.found.contains(found), "{at}, {found}: {refusal}");
        assert!(!refusal.expected.is_empty(), "{refusal}");
    }
}

/// What one entry of a made list may be.
#[derive(Clone, Debug)]
enum Made {
    File,
    Evil(u8),
    Buffer,
    Violation,
    Waived,
    Aggregate,
    Legacy,
    Unknown,
}

fn made() -> impl Strategy<Value = Vec<Made>> {
    let one = prop_oneof![
        4 => Just(Made::File),
        4 => any::<u8>().prop_map(Made::Evil),
        1 => Just(Made::Buffer),
        1 => Just(Made::Violation),
        1 => Just(Made::Waived),
        1 => Just(Made::Aggregate),
        1 => Just(Made::Legacy),
        1 => Just(Made::Unknown),
    ];
    prop::collection::vec(one, 0..120)
}

fn list_of(made: &[Made]) -> List {
    let mut list = List::new();
    for one in made {
        match one {
            Made::File => list.measure(b"/bin/sh", &SH),
            Made::Evil(number) => list.measure(&[b"/tmp/", &[*number | 1][..]].concat(), &EVIL),
            Made::Buffer => list.buffer(b"kernel_version", b"6.1"),
            Made::Violation => list.violation(b"/root/f"),
            Made::Waived => list.violation(b"/var/log/wtmp"),
            Made::Aggregate => list.measure(b"boot_aggregate", &[0xBB; 32]),
            Made::Legacy => list.legacy(b"/init", &[1; 20]),
            Made::Unknown => list.entry("own", b"?"),
        };
    }
    list
}

proptest! {
    /// However a list is cut, the checkpoint is the same: also when it was stored in between, and
    /// when a quote was reached on the way.
    #[test]
    fn increments_are_exact(made in made(), cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12), quoted in any::<prop::sample::Index>()) {
        let rules = compiled();
        let list = list_of(&made);
        let target = list.pcr(LogHash::Sha256, false, quoted.index(list.ends.len()) + 1);
        let mut ends: Vec<_> = cuts.iter().map(|cut| cut.index(list.bytes.len() + 1)).collect();
        ends.sort_unstable();
        ends.push(list.bytes.len());
        for target in [None, Some(&target[..])] {
            let mut whole = start(&rules);
            let reached = whole.take(&list.bytes, target).unwrap();
            prop_assert_eq!(reached, target.is_some());

            let mut part = start(&rules);
            let mut reached = false;
            for end in &ends {
                let stored = serde_cbor::to_vec(&part.at).unwrap();
                part = Judge::new(Some(&rules), serde_cbor::from_slice(&stored).unwrap());
                let from = usize::try_from(part.at.offset).unwrap();
                if !reached && from <= *end {
                    reached = part.take(&list.bytes[from..*end], target).unwrap();
                }
            }
            prop_assert_eq!(reached, target.is_some());
            prop_assert_eq!(part.at, whole.at);
        }
    }

    /// A proof is had if every entry is allowed and the list leads to the value, and not otherwise.
    #[test]
    fn a_proof_needs_every_entry_allowed(made in made(), missing in 0usize..3, other in any::<bool>()) {
        let rules = compiled();
        let list = list_of(&made);
        let mut node = start(&rules);
        node.take(&list.bytes[..list.ends[0]], None).unwrap();
        let before = node.at.clone();
        let there = list.ends.len().saturating_sub(missing).max(1);
        let target = if other { vec![1; 32] } else { list.quoted() };
        let allowed = |one: &Made| matches!(one, Made::File | Made::Buffer | Made::Waived);
        match node.advance(&list.bytes[list.ends[0]..list.ends[there - 1]], &target) {
            Ok(Some(advanced)) => {
                prop_assert!(!other && there == list.ends.len() && made.iter().all(allowed));
                prop_assert_eq!((advanced.from(), advanced.to()), (&before.value[..], &target[..]));
                prop_assert_eq!(advanced.entries(), made.len() as u64);
            }
            Ok(None) => {
                prop_assert!((other || there < list.ends.len()) && made[..there - 1].iter().all(allowed));
                prop_assert_eq!(node.at, before);
            }
            Err(refusal) => {
                // The first that isn't allowed, by its number: the made ones come after boot_aggregate.
                let first = made[..there - 1].iter().position(|one| !allowed(one)).unwrap() + 1;
                prop_assert!(refusal.at.starts_with(&format!("IMA entry {first},")), "{}", refusal);
                prop_assert_eq!(node.at, before);
            }
        }
    }

    /// The counts are those of a judgement entry by entry.
    #[test]
    fn counts_are_exact(made in made()) {
        let rules = compiled();
        let list = list_of(&made);
        let mut judge = start(&rules);
        judge.take(&list.bytes, None).unwrap();
        let count = |which: fn(&Made) -> bool| made.iter().filter(|one| which(one)).count() as u64;
        let aggregates = count(|one| matches!(one, Made::Aggregate)) + 1;
        let kept = aggregates.min(FINDINGS_LIMIT as u64);
        prop_assert_eq!(judge.at.boot_aggregates.len() as u64, kept);
        let unlisted = count(|one| matches!(one, Made::Evil(_) | Made::Legacy | Made::Unknown)) + aggregates - kept;
        prop_assert_eq!(judge.at.unlisted_count, unlisted);
        prop_assert_eq!(judge.at.violations_count, count(|one| matches!(one, Made::Violation)));
        prop_assert_eq!(judge.at.waived_count, count(|one| matches!(one, Made::Waived)));
        prop_assert_eq!(judge.at.entries, list.ends.len() as u64);
    }
}

#[test]
fn a_long_name_is_shown_in_part() {
    let mut list = List::new();
    list.measure(&vec![0xFF; 4000], &EVIL);
    let rules = compiled();
    let mut judge = start(&rules);
    judge.take(&list.bytes, None).unwrap();
    let path = &judge.at.unlisted[0].path;
    assert!(path.chars().count() == 1025 && path.ends_with('…'));
}

/// The code that each kind of finding is refused with.
#[test]
fn findings_have_the_code_of_their_kind() {
    let code: Code = codes::VERIFY_IMA_VIOLATION;
    let mut list = List::new();
    list.violation(b"/root/f");
    let mut judge = start(None);
    judge.take(&list.bytes, None).unwrap();
    let refusal = judge.at.violations[0].refusal(code);
    assert_eq!(refusal.code, code);
    let entry = Entries::new(&list.bytes, 0, 0).nth(1).unwrap().unwrap();
    assert!(refusal.found.contains(&escaped(entry.fields.path)));
}
