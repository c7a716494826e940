//! `leasehold-agent log boot|userspace`, as scripts meet it.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use crate::expected::yaml;
use crate::made::{ONE, event, hashed, header};
use crate::testdata::testdata;
use crate::userspace::boot_of_systemd;

fn log(arguments: &[&str], file: &Path) -> Output {
    let agent = env!("CARGO_BIN_EXE_leasehold-agent");
    Command::new(agent).arg("log").args(arguments).arg(file).output().unwrap()
}

fn json(arguments: &[&str], file: &Path) -> Value {
    let output = log(arguments, file);
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn a_boot_log_as_json_has_the_promised_names() {
    let Some(root) = testdata() else { return };
    let folder = root.join("measured-boot/x86_64/uki-secureboot-3banks-rich");
    let shown = json(&["boot", "--json"], &folder.join("binary_bios_measurements"));
    assert_eq!(shown["schema"], 1);
    let tpm = yaml(&std::fs::read_to_string(folder.join("pcrs.yaml")).unwrap());
    for bank in ["sha1", "sha256", "sha384"] {
        let pcrs = shown["banks"][bank].as_object().unwrap();
        let numbers: Vec<_> = pcrs.keys().map(String::as_str).collect();
        assert_eq!(pcrs.len(), 10, "{numbers:?}");
        for (pcr, value) in pcrs {
            assert_eq!(value.as_str(), tpm[bank].get(&pcr.parse().unwrap()).map(String::as_str), "{bank}:{pcr}");
        }
    }
    let events = shown["events"].as_array().unwrap();
    assert_eq!(events.len(), 37);
    let secure_boot = &events[4];
    assert_eq!(secure_boot["number"], 4);
    assert_eq!(secure_boot["pcr"], 7);
    assert_eq!(secure_boot["type"], "EV_EFI_VARIABLE_DRIVER_CONFIG");
    assert_eq!(secure_boot["data_verified"], true);
    assert_eq!(secure_boot["summary"], "SecureBoot: on");
    assert_eq!(secure_boot["digests"]["sha1"], "d4fdd1f14d4041494deb8fc990c45343d2277d08");
    assert_eq!((&events[2]["data_verified"], &events[10]["data_verified"]), (&false.into(), &false.into()));
    assert_eq!(events[10]["verified_part"]["rule"], "variable-contents");
    assert_eq!(shown["notes"], Value::Array(Vec::new()));
    let one = json(&["boot", "--bank", "sha384", "--json"], &folder.join("binary_bios_measurements"));
    assert_eq!(one["banks"].as_object().unwrap().len(), 1);
}

#[test]
fn banks_that_disagree_vouch_for_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("log");
    let right = leasehold::measurements::LogHash::Sha256.digest(&[b"data"]);
    let two = crate::made::TWO;
    std::fs::write(&file, [header(two), event(0, 8, &[(4, vec![0; 20]), (11, right)], b"data")].concat()).unwrap();
    assert_eq!(json(&["boot", "--json"], &file)["events"][1]["data_verified"], false);
    assert_eq!(json(&["boot", "--json", "--bank", "sha256"], &file)["events"][1]["data_verified"], true);
}

#[test]
fn what_a_log_says_does_not_reach_the_terminal_as_control() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("log");
    let nasty = "\u{1b}]0;owned\u{7}\r\nEVENT\u{202e}".as_bytes();
    std::fs::write(&file, [header(ONE), hashed(8, 13, ONE, nasty), hashed(8, 5, ONE, nasty)].concat()).unwrap();
    let output = log(&["boot"], &file);
    assert!(output.status.success());
    let printed = text(&output.stdout);
    assert!(!printed.contains(['\u{1b}', '\u{7}', '\r', '\u{202e}']), "{printed:?}");
}

#[test]
fn a_bad_log_fails_with_event_and_byte_and_an_absent_one_with_its_path() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("log");
    for (bytes, reason) in [
        (Vec::new(), "event 0, byte 0: an empty file"),
        ([header(ONE), hashed(0, 8, ONE, b"v")].concat()[..90].to_vec(), "event 1, byte 65: the log ends within"),
        (b"AAAAAAMAAAAAAAAAAAAAAAAAAAAAAAAAAAAAACEAAABTcGVj".to_vec(), "event 0, byte 0: PCR "),
    ] {
        std::fs::write(&file, bytes).unwrap();
        for form in [&["boot"][..], &["boot", "--json"]] {
            let output = log(form, &file);
            assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0));
            let words = text(&output.stderr);
            assert!(words.contains("measurements.boot_log: ") && words.contains(reason), "{words}");
        }
    }
    let absent = log(&["boot"], &directory.path().join("absent"));
    assert_eq!(absent.status.code(), Some(1));
    assert!(text(&absent.stderr).contains("absent: No such file"));
    assert_eq!(log(&["boot", "--bank", "md5"], &file).status.code(), Some(2));
}

#[test]
fn a_userspace_log_is_shown_and_an_incomplete_one_refused() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("tpm2-measure.log");
    std::fs::write(&file, boot_of_systemd()).unwrap();
    let shown = json(&["userspace", "--json"], &file);
    assert_eq!(shown["schema"], 1);
    let records = shown["records"].as_array().unwrap();
    assert_eq!(records.len(), 12);
    assert_eq!((&records[6]["pcr"], &records[6]["type"]), (&11.into(), &"phase".into()));
    assert_eq!((&records[6]["string"], &records[6]["data_verified"]), (&"enter-initrd".into(), &true.into()));
    assert_eq!((&records[8]["nvpcr"], &records[8]["pcr"]), (&"hardware".into(), &Value::Null));
    assert_eq!((&records[10]["type"], &records[10]["data_verified"]), (&"volume-key".into(), &false.into()));
    assert!(text(&log(&["userspace"], &file).stdout).contains("11 = phase            enter-initrd"));
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o1600)).unwrap();
    let output = log(&["userspace"], &file);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("measurements.incomplete: "));
}
