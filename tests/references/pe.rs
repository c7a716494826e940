//! PE images and what the stub measures of them.

use leasehold::control_plane::reference::artifacts::{self, Inputs};
use leasehold::control_plane::reference::pe::Image;
use leasehold::measurements::LogHash;
use leasehold::tpm::Bank;

use crate::image::{authenticode, image, kernel, signed, uki};

fn hash(bytes: &[u8]) -> Vec<u8> {
    Image::parse(bytes, "image").unwrap().authenticode(LogHash::Sha256)
}

#[test]
fn the_hash_leaves_out_checksum_and_signature_and_nothing_else() {
    let plain = kernel(b"a kernel");
    assert_eq!(hash(&plain), authenticode(&plain, 0));
    let with_signature = signed(plain.clone(), &[7; 40]);
    assert_eq!(hash(&with_signature), hash(&plain));
    assert_eq!(hash(&signed(plain.clone(), &[8; 4000])), hash(&plain));
    // Whatever else changes, the hash does, or it is no image any more.
    let mut same = Vec::new();
    for byte in 0..with_signature.len() - 40 {
        let mut other = with_signature.clone();
        other[byte] ^= 0xFF;
        if Image::parse(&other, "image").is_ok_and(|image| image.authenticode(LogHash::Sha256) == hash(&plain)) {
            same.push(byte);
        }
    }
    // The checksum's four bytes.
    assert_eq!(same, (0x40 + 24 + 64..0x40 + 24 + 68).collect::<Vec<_>>());
}

#[test]
fn sections_are_hashed_in_the_file_s_order_and_what_follows_them_too() {
    let bytes = image(&[(".one", vec![1; 600]), (".two", vec![2; 3])]);
    assert_eq!(hash(&bytes), authenticode(&bytes, 0));
    let with_more = [bytes.as_slice(), b"overlay!"].concat();
    assert_eq!(hash(&with_more), authenticode(&with_more, 0));
    assert_ne!(hash(&with_more), hash(&bytes));
    let parsed = Image::parse(&bytes, "image").unwrap();
    assert_eq!(parsed.section(".two").unwrap().in_memory(), [2; 3]);
}

#[test]
fn what_two_readers_could_see_differently_is_refused() {
    let good = image(&[(".one", vec![1; 600]), (".two", vec![2; 3])]);
    let table = 0x40 + 24 + 112 + 128;
    let changed = |at: usize, value: &[u8]| {
        let mut bytes = good.clone();
        bytes[at..at + value.len()].copy_from_slice(value);
        Image::parse(&bytes, "image").unwrap_err().to_string()
    };
    assert!(changed(0, b"ZM").contains("byte 0"));
    assert!(changed(0x40, b"NE").contains("PE signature"));
    assert!(changed(0x46, &[0, 0]).contains("0 sections"));
    assert!(changed(0x46, &[97, 0]).contains("97 sections"));
    assert!(changed(0x40 + 24, &[0, 0]).contains("magic"));
    assert!(changed(0x40 + 24 + 60, &[0, 0, 0, 1]).contains("headers"));
    assert!(changed(0x40 + 24 + 108, &[4]).contains("4 data directories"));
    // The second section on the first, in the headers, beyond the end; of the first's name.
    assert!(changed(table + 40 + 20, &[0, 2]).contains("within another part"));
    assert!(changed(table + 20, &[0, 0]).contains("within another part"));
    assert!(changed(table + 40 + 20, &[0, 0, 1]).contains("ends at"));
    assert!(changed(table + 40, b".one").contains("stands twice"));
    assert!(changed(table + 40, &[0xFF]).contains("ASCII"));
    // A signature that doesn't end the file.
    assert!(changed(0x40 + 24 + 112 + 32, &[0, 2, 0, 0, 8]).contains("signatures"));
    for end in 0..good.len() {
        // Whatever is missing, nothing panics; only what the last section's padding lacks could pass.
        assert!(Image::parse(&good[..end], "image").is_err(), "{end} bytes");
    }
}

fn events(version: &str, inputs: impl FnOnce(Inputs) -> Inputs) -> (artifacts::Prediction, Vec<u8>) {
    let bytes = uki(version, &kernel(b"6.1.0-56"), "quiet ro", b"initrd");
    let inputs = inputs(Inputs { uki: Some(("linux.efi".to_owned(), bytes.clone())), ..Inputs::default() });
    (artifacts::predict(&inputs, Bank::Sha256).unwrap(), bytes)
}

#[test]
fn the_stub_s_events_are_those_that_real_machines_log() {
    let (prediction, bytes) = events("252.39-1~deb12u2", |inputs| inputs);
    let digests = |pcr: u8| -> Vec<String> {
        prediction.state.events[&pcr].iter().map(|event| hex::encode(&event.digest)).collect()
    };
    let sha256 = |text: &[u8]| hex::encode(LogHash::Sha256.digest(&[text]));
    // Those of x86_64/uki: the boot entry, the separator; then the image, and the kernel in it.
    assert_eq!(digests(4)[0], "3d6772b4f84ed47595d72a2c4c5ffd15f5bb72c7507fe26f2aaee2c69d5633ba");
    assert_eq!(digests(4)[1], "df3f619804a92fdb4057192dc43dd748ea778adc52bc498ce80524c014b81119");
    assert_eq!(digests(4)[2], hex::encode(authenticode(&bytes, 0)));
    assert_eq!(digests(4)[3], hex::encode(authenticode(&kernel(b"6.1.0-56"), 0)));
    // In the stub's order, not the file's; .sbat isn't measured by this version.
    let expected = [
        sha256(b".linux\0"),
        sha256(&kernel(b"6.1.0-56")),
        sha256(b".osrel\0"),
        sha256(b"ID=debian\n"),
        sha256(b".cmdline\0"),
        sha256(b"quiet ro"),
        sha256(b".initrd\0"),
        sha256(b"initrd"),
        sha256(b"enter-initrd"),
    ];
    assert_eq!(digests(11)[..9], expected);
    assert_eq!(digests(9)[0], sha256(&"quiet ro\0".encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<_>>()));
    assert_eq!(digests(9)[1], sha256(b"initrd"));
}

#[test]
fn what_can_t_be_known_is_said_and_not_predicted() {
    let (prediction, _) = events("252.39-1~deb12u2", |inputs| Inputs { secure_boot: true, ..inputs });
    assert_eq!(prediction.state.events[&4].iter().filter(|event| event.kind.ends_with("APPLICATION")).count(), 1);
    // Later stubs measure .sbat, and add files to the initrd at boot.
    let (prediction, _) = events("257.2", |inputs| inputs);
    assert!(prediction.state.events[&11].iter().any(|event| event.what.contains(".sbat")));
    assert!(!prediction.state.events.contains_key(&9) && !prediction.state.events.contains_key(&4));
    for pcr in ["PCR 4", "PCR 9", "PCR 7", "PCRs 0 to 3"] {
        assert!(prediction.notes.iter().any(|note| note.starts_with(pcr)), "{pcr}");
    }
    // Red Hat's 252 measures it, too.
    let (prediction, _) = events("252-46.el9", |inputs| inputs);
    assert!(prediction.state.events[&11].iter().any(|event| event.what.contains(".sbat")));
    let inputs = |bytes: Vec<u8>| Inputs { uki: Some(("x.efi".to_owned(), bytes)), ..Inputs::default() };
    for bytes in [kernel(b"no stub"), uki("253", b"", "", b""), uki("252", b"no image", "", b"")] {
        artifacts::predict(&inputs(bytes), Bank::Sha256).unwrap_err();
    }
}
