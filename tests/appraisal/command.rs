//! `leasehold-server appraise` on what machines left behind, with reference values computed from
//! their artefacts.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::samples::testdata;

const SECURE_BOOT: &str = "measured-boot/x86_64/uki-secureboot-3banks-rich";
const NONCE: &str = "d1a16b521fa0602f9057e88f2179fc49";

fn server(arguments: &[&str]) -> (i32, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_leasehold-server")).args(arguments).output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output.status.code().unwrap(), text)
}

/// The arguments for a folder of the test data; `more` may name its files as `@FILE`.
fn appraise(folder: &Path, profile: &str, more: &[&str]) -> (i32, Value) {
    let file = |name: &str| folder.join(name).display().to_string();
    let mut arguments: Vec<String> = ["appraise", "--json", "--profile", profile].map(str::to_owned).to_vec();
    for (option, name) in [
        ("--quote", "quote.msg"),
        ("--signature", "quote.sig"),
        ("--ak", "ak.tpm2b_public"),
        ("--boot-log", "binary_bios_measurements"),
        ("--ima-log", "binary_runtime_measurements"),
    ] {
        arguments.extend([option.to_owned(), file(name)]);
    }
    arguments.extend(more.iter().map(|one| one.strip_prefix('@').map_or((*one).to_owned(), &file)));
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (code, text) = server(&arguments);
    println!("{text}");
    (code, serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}")))
}

fn layer(facts: &Value, name: &str) -> String {
    let layers = facts["layers"].as_array().unwrap();
    let found = layers.iter().find(|layer| layer["layer"] == name).unwrap();
    found["standing"].as_str().unwrap().to_owned()
}

fn check(facts: &Value, name: &str) -> String {
    let checks = facts["checks"].as_array().unwrap();
    checks.iter().find(|check| check["check"] == name).unwrap()["standing"].as_str().unwrap().to_owned()
}

fn references(folder: &Path, directory: &Path) -> PathBuf {
    let out = directory.join("machines.toml");
    let file = |name: &str| folder.join(name).display().to_string();
    let (code, text) = server(&[
        "reference",
        "from-artifacts",
        "--digests",
        &file("artefacts.sha256"),
        "--ima-digests",
        &file("rootfs.sha256"),
        "--trust-measured-db",
        "--profile",
        "uefi-uki",
        "--name",
        "machines",
        "--out",
        &out.display().to_string(),
    ]);
    assert_eq!(code, 0, "{text}");
    out
}

#[test]
fn boot_is_affirmed_by_the_artefacts_and_the_two_violations_are_named() {
    let Some(testdata) = testdata() else { return };
    let directory = tempfile::tempdir().unwrap();
    let folder = testdata.join(SECURE_BOOT);
    let set = references(&folder, directory.path()).display().to_string();
    let endorsement = [
        ["--ek-cert", "@ekcert_0x01c00002.der"],
        ["--ek", "@ek.pub"],
        ["--ek-roots", "@ek-ca-root.pem"],
        ["--ek-roots", "@ek-ca-intermediate.pem"],
    ]
    .concat();
    let more = [&["--references", &set, "--nonce", NONCE], &endorsement[..]];
    let (code, facts) = appraise(&folder, "uefi-uki", &more.concat());
    assert_eq!(code, 4);
    assert_eq!(facts["verdict"], "contraindicated");
    for held in ["quote", "nonce", "endorsement", "PCR values", "logs"] {
        assert_eq!(check(&facts, held), "held", "{held}");
    }
    assert_eq!(check(&facts, "residence"), "not-proven");
    assert_eq!(layer(&facts, "boot"), "affirmed");
    assert_eq!(layer(&facts, "runtime"), "contraindicated");
    let findings = facts["findings"].as_array().unwrap();
    let violations: Vec<&str> = findings
        .iter()
        .filter(|finding| finding["refusal"]["code"] == "verify.ima_violation")
        .map(|finding| finding["refusal"]["at"].as_str().unwrap())
        .collect();
    assert_eq!(violations.len(), 2);
    assert!(violations[0].starts_with("IMA entry 17,") && violations[1].starts_with("IMA entry 20,"), "{violations:?}");

    // The values that were read beside the quote say the same.
    let (code, same) = appraise(&folder, "uefi-uki", &["--references", &set, "--pcrs", "@pcrs.yaml"]);
    assert_eq!((code, &same["layers"]), (4, &facts["layers"]));
    assert_eq!(check(&same, "nonce"), "not-proven");
    // An operator's floor for the firmware of the software TPM (IBM's id, as swtpm's certificates have it).
    let floor = [&["--tpm-firmware", "id:00001014=0xffff000000000000"], &endorsement[..]];
    let (code, old) = appraise(&folder, "uefi-uki", &floor.concat());
    assert_eq!((code, check(&old, "TPM firmware")), (4, "failed".to_owned()));
    // Nothing speaks against the machine, but nobody said what may boot: the control plane would grant no lease.
    let (code, unsaid) = appraise(&folder, "uefi-uki", &[]);
    assert_eq!((code, unsaid["verdict"].as_str(), check(&unsaid, "lease")), (3, Some("warned"), "failed".to_owned()));
    let only_runtime = directory.path().join("runtime.toml");
    let all = std::fs::read_to_string(&set).unwrap();
    let (before, rest) = all.split_once("[[state]]").unwrap();
    let runtime = &rest[rest.find("[runtime]").unwrap()..];
    let warned = runtime.replace("mode = \"enforce\"", "mode = \"warn\"");
    std::fs::write(&only_runtime, format!("{before}{warned}")).unwrap();
    let set = only_runtime.display().to_string();
    let (code, files) = appraise(&folder, "uefi-uki", &["--references", &set]);
    assert_eq!((code, layer(&files, "runtime"), check(&files, "lease")), (3, "warned".to_owned(), "failed".to_owned()));
}

#[test]
fn a_bypassed_kernel_is_contraindicated_for_the_runtime_layer() {
    let Some(testdata) = testdata() else { return };
    let folder = testdata.join("measured-boot/aarch64/direct-debian-tpm-bypass");
    let (code, facts) = appraise(&folder, "qemu-ovmf", &["--nonce", "5f5221313ad59b2eaf897d4205404cbd"]);
    assert_eq!((code, layer(&facts, "runtime")), (4, "contraindicated".to_owned()));
    assert_eq!(facts["findings"][0]["refusal"]["code"], "verify.ima_bypass");
}

#[test]
fn what_is_no_quote_is_broken_and_what_is_no_log_contraindicated() {
    let Some(testdata) = testdata() else { return };
    let folder = testdata.join(SECURE_BOOT);
    let broken = |more: &[&str], code: &str| {
        let (exit, facts) = appraise(&folder, "uefi-uki", more);
        assert_eq!((exit, facts["verdict"].as_str().unwrap()), (1, "broken"));
        assert!(facts["checks"].to_string().contains(code), "{code}");
    };
    broken(&["--nonce", "00"], "verify.nonce");
    let other = testdata.join("measured-boot/x86_64/uki");
    // The other machine's own files under this one's key.
    let (exit, facts) = {
        let file = |name: &str| other.join(name).display().to_string();
        let ak = folder.join("ak.tpm2b_public").display().to_string();
        let (quote, signature) = (file("quote.msg"), file("quote.sig"));
        let arguments =
            ["appraise", "--json", "--profile", "uefi-uki", "--quote", &quote, "--signature", &signature, "--ak", &ak];
        let (exit, text) = server(&arguments);
        (exit, serde_json::from_str::<Value>(&text).unwrap())
    };
    assert_eq!(exit, 1);
    assert!(facts["checks"].to_string().contains("verify.quote_signature"));
    // A log that was cut: the rest doesn't lead to the quote.
    let directory = tempfile::tempdir().unwrap();
    let ima = std::fs::read(folder.join("binary_runtime_measurements")).unwrap();
    let cut = directory.path().join("list");
    std::fs::write(&cut, &ima[..ima.len() / 2]).unwrap();
    let file = |name: &str| folder.join(name).display().to_string();
    let (exit, text) = server(&[
        "appraise",
        "--profile",
        "uefi-uki",
        "--quote",
        &file("quote.msg"),
        "--signature",
        &file("quote.sig"),
        "--ak",
        &file("ak.tpm2b_public"),
        "--boot-log",
        &file("binary_bios_measurements"),
        "--ima-log",
        &cut.display().to_string(),
        "--pcrs",
        &file("pcrs.yaml"),
    ]);
    assert_eq!(exit, 4, "{text}");
    assert!(text.contains("PCR 10 (sha256)"), "{text}");
    // Usage is named as such.
    assert_eq!(server(&["appraise", "--profile", "uefi-uki"]).0, 2);
    let (exit, text) = server(&["appraise", "--profile", "uefi-ukj", "--quote", "q", "--signature", "s", "--ak", "a"]);
    assert_eq!(exit, 2, "{text}");
}
