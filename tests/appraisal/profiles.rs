//! The shipped profiles, and the schema that refuses others.

use std::collections::BTreeSet;
use std::path::Path;

use leasehold::codes;
use leasehold::verify::profile::{Judged, Layer, Profile, Source, Status};

fn files() -> BTreeSet<String> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("firmware-profiles");
    std::fs::read_dir(directory)
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().into_string().unwrap().strip_suffix(".toml").map(str::to_owned))
        .collect()
}

#[test]
fn every_file_is_shipped_and_parses() {
    let shipped: BTreeSet<String> = Profile::shipped_names().map(str::to_owned).collect();
    assert_eq!(files(), shipped);
    let readme =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("firmware-profiles/README.md")).unwrap();
    for name in shipped {
        let text = std::fs::read_to_string(
            Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("firmware-profiles/{name}.toml")),
        )
        .unwrap();
        let profile = Profile::parse(&name, &text).unwrap_or_else(|refusal| panic!("{refusal}"));
        assert_eq!(Profile::shipped(&name).as_ref(), Some(&profile));
        assert_eq!(profile.name, name);
        let status = if profile.status == Status::Proven { "proven" } else { "unproven" };
        assert!(readme.contains(&format!("| `{name}` | {status} |")), "{name} as README has it");
        // What is judged by an unreadable source, or by nothing, is said to be unproven.
        for (pcr, rules) in &profile.pcrs {
            assert!(rules.source != Source::Ima || *pcr == 10, "{name}");
            assert!(rules.judged != Judged::SecureBoot || *pcr == 7, "{name}");
            assert!(rules.layer != Layer::Runtime || rules.source == Source::Ima, "{name}");
        }
    }
    assert!(Profile::shipped("windows").is_none());
}

#[test]
fn the_proven_ones_are_those_the_issue_names() {
    let proven: BTreeSet<&str> =
        Profile::shipped_names().filter(|name| Profile::shipped(name).unwrap().status == Status::Proven).collect();
    assert_eq!(proven, BTreeSet::from(["swtpm-dev", "qemu-ovmf", "uefi-secureboot", "uefi-uki", "uefi-shim-grub"]));
}

const GOOD: &str = r#"
schema = 1
status = "unproven"
summary = "A board"
banks = ["sha256"]
boot_log = "/log"
seal = [4]
[pcr.4]
layer = "boot"
events = ["EV_EFI_BOOT_SERVICES_APPLICATION", "EV_SEPARATOR", "0x8000000F"]
separator = true
"#;

#[test]
fn a_mistake_is_named_with_file_and_place() {
    assert!(Profile::parse("board", GOOD).is_ok());
    let cases = [
        ("status = \"unproven\"", "status = \"maybe\"", "board.toml:3", ""),
        ("boot_log", "boot_logg", "board.toml:6", "perhaps `boot_log`"),
        ("separator = true", "seperator = true", "board.toml:11", "perhaps `separator`"),
        ("schema = 1", "schema = 2", "board.toml: schema", "1"),
        ("[\"sha256\"]", "[\"sha1\"]", "board.toml: banks", ""),
        ("[\"sha256\"]", "[\"sha256\", \"sha256\"]", "board.toml: banks", ""),
        ("[\"sha256\"]", "[]", "board.toml: banks", "sha256"),
        ("summary = \"A board\"", "summary = \" \"", "board.toml: summary", "sentence"),
        ("[pcr.4]", "[pcr.24]", "board.toml: pcr.24", "0 to 23"),
        ("[pcr.4]", "[pcr.04]", "board.toml: pcr.04", "0 to 23"),
        ("EV_SEPARATOR", "EV_SEPARATER", "board.toml: pcr.4", "EV_SEPARATOR"),
        ("0x8000000F", "0x80000007", "board.toml: pcr.4", "EV_SEPARATOR"),
        ("\"EV_SEPARATOR\", ", "", "board.toml: pcr.4", "both or neither"),
        ("\"EV_SEPARATOR\", ", "\"EV_SEPARATOR\", \"EV_NO_ACTION\", ", "board.toml: pcr.4", "types that extend"),
        ("seal = [4]", "seal = [5]", "board.toml: seal", "pcr.5"),
        ("boot_log = \"/log\"", "", "board.toml: boot_log", "a path"),
        ("layer = \"boot\"", "layer = \"boot\"\nsource = \"value\"", "board.toml: pcr.4", "no `events`"),
        ("layer = \"boot\"", "layer = \"boot\"\njudged = \"secure-boot\"", "board.toml: pcr.4", "DRIVER_CONFIG"),
        ("layer = \"boot\"", "layer = \"boot\"\nuserspace = [\"Phase\"]", "board.toml: pcr.4", "phase"),
        ("layer = \"boot\"", "layer = \"boot\"\nuserspace = [\"phase\"]", "board.toml: userspace_log", "a path"),
        ("layer = \"boot\"", "layer = \"boot\"\nrequired = [\"EV_IPL\"]", "board.toml: pcr.4", "events"),
    ];
    for (from, to, at, expected) in cases {
        let text = GOOD.replacen(from, to, 1);
        assert_ne!(text, GOOD, "{from}");
        let refusal = Profile::parse("board", &text).unwrap_err();
        assert_eq!(refusal.code, codes::CONFIG_INVALID, "{refusal}");
        assert!(refusal.at.starts_with(at), "{refusal}: expected at {at}");
        assert!(refusal.expected.contains(expected), "{refusal}: expected {expected}");
    }
    let ima = "[pcr.11]\nlayer = \"runtime\"\nsource = \"ima\"\n";
    let refusal = Profile::parse("board", &format!("{GOOD}{ima}")).unwrap_err();
    assert!(refusal.at.contains("ima_list"), "{refusal}");
    let refusal = Profile::parse("board", &format!("ima_list = \"/list\"{GOOD}{ima}")).unwrap_err();
    assert!(refusal.expected.contains("PCR 10"), "{refusal}");
    assert!(Profile::parse("Board.x", GOOD).is_err());
    assert!(Profile::parse("board", "schema = 1").is_err());
}
