//! The document: text, bytes and signatures.

use leasehold::codes;
use leasehold::verify::references::{CDDL, Document, PolicyKey, ReferenceSet};
use leasehold::verify::runtime::Mode;
use proptest::prelude::*;

use crate::made::{TEXT, any_set, key, set};

/// The CDDL's rule for a document, without the tag, which the validator doesn't know.
fn holds(rule: &str, bytes: &[u8]) -> Result<(), String> {
    let bytes = if rule == "signed" { bytes.strip_prefix(&[0xD8, 0x62]).ok_or("no tag 98")? } else { bytes };
    assert!(CDDL.contains("signed = #6.98(["));
    let cddl = CDDL.replace("signed = #6.98([", "signed = [").replace("no key twice\n])", "no key twice\n]");
    cddl_cat::validate_cbor_bytes(rule, &cddl, bytes).map_err(|e| e.to_string())
}

#[test]
fn what_people_write_is_read() {
    let set = set();
    assert_eq!((set.name.as_str(), set.version, set.states.len()), ("edge-fleet", 3, 2));
    assert_eq!(set.states[0].until.unwrap().to_string(), "2026-12-01T00:00:00Z");
    assert_eq!(set.states[0].events[&11][0].what, "UKI section .cmdline");
    assert_eq!(set.states[0].values[&0], [2; 32]);
    assert!(set.states[1].secure_boot.as_ref().unwrap().authorities.is_empty());
    assert_eq!(set.runtime.unwrap().mode, Mode::Warn);
}

#[test]
fn a_mistake_is_named() {
    let changed = |from: &str, to: &str| {
        assert!(TEXT.contains(from), "{from}");
        ReferenceSet::from_toml(&TEXT.replacen(from, to, 1), "edge.toml").unwrap_err()
    };
    let refusal = changed("what = ", "waht = ");
    assert_eq!((refusal.code, refusal.at.as_str()), (codes::CONFIG_INVALID, "edge.toml:15"));
    assert_eq!(refusal.expected, "perhaps `what`");
    for (from, to, at) in [
        ("schema = 1", "schema = 2", "schema"),
        ("edge-fleet", "edge fleet", "name"),
        ("version = 3", "version = 0", "version"),
        ("\"sha256\"", "\"sha1\"", "bank"),
        ("pcr = 11", "pcr = 24", "state `6.1.0-56` event pcr 24"),
        ("pcr = 11", "pcr = 0", "state `6.1.0-56` value 0"),
        ("EV_IPL", "EV_INVENTED", "state `6.1.0-56` PCR 11 event 0"),
        ("UKI section .cmdline", "a\\u001Bb", "state `6.1.0-56` PCR 11 event 0"),
        ("0 = \"02", "00 = \"02", "state `6.1.0-56` value 00"),
        ("0 = \"02", "0 = \"", "state `6.1.0-56` value 0"),
        ("2026-12-01T00:00:00Z", "2026-12-01", "state `6.1.0-56` until"),
        ("authorities = [\"03", "authorities = [\"", "state `6.1.0-56` secure_boot.authorities"),
        ("db = ", "Boot0000 = ", "state `6.1.0-56` secure_boot.variables.Boot0000"),
        ("6.1.0-57", "6.1.0-56", "state.name"),
        ("sha256 = [\"05", "sha1 = [\"05", "runtime.digests.sha1"),
        ("sha256 = [\"05", "sha256 = [\"", "runtime.digests.sha256"),
        ("sha256:06", "md5:06", "runtime.files./bin/x"),
        ("sha256:06", "sha256:0", "runtime.files./bin/x"),
        ("sha256:06", "sha256:A6", "runtime.files./bin/x"),
        ("/var/lib/containers/", "/", "runtime.exclude"),
        ("layers are judged by their own digests", "", "runtime.exclude"),
        ("login writes it while it is read", "", "runtime.waive"),
    ] {
        let refusal = changed(from, to);
        assert_eq!((refusal.code, refusal.at.as_str()), (codes::VERIFY_REFERENCE_MALFORMED, at), "{from} -> {to}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn text_and_bytes_say_the_same(set in any_set()) {
        let text = set.to_toml();
        let read = ReferenceSet::from_toml(&text, "set.toml").unwrap();
        prop_assert_eq!(&read, &set);
        let document = Document::unsigned(read).unwrap();
        let again = Document::read(&document.bytes, &[], 1).unwrap();
        prop_assert_eq!(&again, &document);
        prop_assert_eq!(again.set.to_toml(), text);
    }
}

#[test]
fn documents_are_as_their_cddl_says() {
    let document = Document::unsigned(set()).unwrap();
    holds("set", &document.bytes).unwrap();
    let signed = document.signed_by(&key(1)).unwrap().signed_by(&key(2)).unwrap();
    holds("signed", &signed.bytes).unwrap();
    assert!(holds("set", &document.bytes[1..]).is_err());
}

#[test]
fn no_byte_of_a_set_has_a_second_encoding() {
    let good = Document::unsigned(set()).unwrap().bytes;
    for bit in 0..good.len() * 8 {
        let mut bytes = good.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        // What is read at all is another set, which encodes to the bytes it was read from.
        if let Ok(document) = Document::read(&bytes, &[], 1) {
            assert_ne!(document.set, set(), "bit {bit}");
            assert_eq!(document.set.to_cbor(), bytes, "bit {bit}");
        }
    }
}

#[test]
fn a_signed_document_needs_the_keys_that_policy_names() {
    let [one, two, stranger] = [1, 2, 3].map(key);
    let keys = [&one, &two].map(|key| PolicyKey::of(key).unwrap());
    let unsigned = Document::unsigned(set()).unwrap();
    let once = unsigned.signed_by(&one).unwrap();
    let twice = once.signed_by(&two).unwrap();

    let read = |document: &Document, threshold| Document::read(&document.bytes, &keys, threshold);
    assert_eq!(read(&once, 1).unwrap().signers, [keys[0].id()]);
    assert_eq!(read(&twice, 2).unwrap().signers, [keys[0].id(), keys[1].id()]);
    assert_eq!(read(&twice, 2).unwrap(), twice);
    // Without keys a signature is a claim.
    let unverified = Document::read(&twice.bytes, &[], 2).unwrap();
    assert_eq!((unverified.signers.len(), unverified.claimed), (0, twice.claimed.clone()));
    // A further signature by a key that isn't known (any more, or yet) neither counts nor hurts.
    let with_stranger = once.signed_by(&stranger).unwrap();
    assert_eq!(read(&with_stranger, 1).unwrap().signers, [keys[0].id()]);

    for (document, threshold) in [
        (&unsigned, 1),
        // One's approval of one's own set counts once.
        (&once, 2),
        (&with_stranger, 2),
        (&unsigned.signed_by(&stranger).unwrap(), 1),
        // Whoever wrote it must be known, however many approve.
        (&unsigned.signed_by(&stranger).unwrap().signed_by(&one).unwrap().signed_by(&two).unwrap(), 2),
    ] {
        assert_eq!(read(document, threshold).unwrap_err().code, codes::VERIFY_REFERENCE_SIGNATURE);
    }
    assert_eq!(once.signed_by(&one).unwrap_err().code, codes::VERIFY_REFERENCE_SIGNATURE);
}

#[test]
fn every_single_bit_of_a_signed_document_counts() {
    let keys = [key(1), key(2)];
    let public = [&keys[0], &keys[1]].map(|key| PolicyKey::of(key).unwrap());
    let signed = Document::unsigned(set()).unwrap().signed_by(&keys[0]).unwrap().signed_by(&keys[1]).unwrap().bytes;
    Document::read(&signed, &public, 2).unwrap();
    for bit in 0..signed.len() * 8 {
        let mut flipped = signed.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(Document::read(&flipped, &public, 2).is_err(), "bit {bit} can be flipped");
    }
    for end in 0..signed.len() {
        assert!(Document::read(&signed[..end], &public, 2).is_err(), "{end} bytes");
    }
}

#[test]
fn the_author_is_who_signed_first() {
    let [one, two] = [1, 2].map(key);
    let signed = Document::unsigned(set()).unwrap().signed_by(&one).unwrap().signed_by(&two).unwrap();
    // The two signatures, swapped: each is still right, but the author's isn't the first any more.
    let length = signed.bytes.len();
    let signature = length - Document::unsigned(set()).unwrap().signed_by(&one).unwrap().bytes.len();
    let (head, signatures) = signed.bytes.split_at(length - 2 * signature);
    let (first, second) = signatures.split_at(signature);
    let swapped = [head, second, first].concat();
    assert_eq!(Document::read(&swapped, &[], 1).unwrap_err().code, codes::VERIFY_REFERENCE_MALFORMED);
}

#[test]
fn a_lying_count_costs_nothing() {
    // A million empty lists, a deep nest, and a document over its limit.
    let many = [&[0x9A, 0x00, 0x20, 0x00, 0x00][..], &[0x80; 0x20_0000]].concat();
    let deep = vec![0x81; 1000];
    let large = vec![0; (16 << 20) + 1];
    for bytes in [many, deep, large, Vec::new(), vec![0xD8, 0x62, 0x84]] {
        assert_eq!(Document::read(&bytes, &[], 1).unwrap_err().code, codes::VERIFY_REFERENCE_MALFORMED);
    }
}
