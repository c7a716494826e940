//! A unified kernel image made of systemd's own stub, its hash held against another tool's.

use std::path::{Path, PathBuf};
use std::process::Command;

use leasehold::control_plane::reference::pe::Image;
use leasehold::control_plane::reference::stub;
use leasehold::measurements::LogHash;

use crate::image::kernel;

/// Debian's package systemd-boot-efi; elsewhere, where `LEASEHOLD_EFI_STUB` points.
fn stub_file() -> PathBuf {
    std::env::var_os("LEASEHOLD_EFI_STUB")
        .map_or_else(|| "/usr/lib/systemd/boot/efi/linuxx64.efi.stub".into(), PathBuf::from)
}

fn run(directory: &Path, program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).current_dir(directory).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    String::from_utf8_lossy(&text).into_owned()
}

#[test]
fn another_tool_finds_the_same_hash() {
    let installed = |program: &str| Command::new(program).arg("--version").output().is_ok();
    if !stub_file().is_file() || !["objcopy", "osslsigncode", "openssl"].iter().all(|program| installed(program)) {
        eprintln!("SKIPPED: systemd's EFI stub, objcopy, osslsigncode and openssl are not all installed");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    std::fs::copy(stub_file(), at("stub.efi")).unwrap();
    std::fs::write(at("linux"), kernel(b"a kernel")).unwrap();
    std::fs::write(at("cmdline"), b"quiet").unwrap();
    // A size that no alignment fits.
    std::fs::write(at("initrd"), vec![7; 100_001]).unwrap();
    let arguments = [
        "--add-section=.cmdline=cmdline",
        "--change-section-vma=.cmdline=0x30000",
        "--add-section=.linux=linux",
        "--change-section-vma=.linux=0x2000000",
        "--add-section=.initrd=initrd",
        "--change-section-vma=.initrd=0x3000000",
        "stub.efi",
        "uki.efi",
    ];
    run(directory.path(), "objcopy", &arguments);
    let request = "req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out cert.pem -subj /CN=t -days 9";
    run(directory.path(), "openssl", &request.split(' ').collect::<Vec<_>>());
    let sign = "sign -certs cert.pem -key key.pem -h sha256 -in uki.efi -out signed.efi";
    run(directory.path(), "osslsigncode", &sign.split(' ').collect::<Vec<_>>());
    let told = run(directory.path(), "osslsigncode", &["verify", "-CAfile", "cert.pem", "-in", "signed.efi"]);
    let digest = told.lines().find_map(|line| line.strip_prefix("Calculated message digest")?.split(' ').nth(2));
    let digest = digest.unwrap_or_else(|| panic!("{told}")).to_lowercase();

    let bytes = std::fs::read(at("signed.efi")).unwrap();
    let image = Image::parse(&bytes, "signed.efi").unwrap();
    assert_eq!(hex::encode(image.authenticode(LogHash::Sha256)), digest);
    let version = stub::version(&image, "signed.efi").unwrap();
    let sections = stub::sections(&image, version, "signed.efi").unwrap();
    assert!(version >= 250, "{version}");
    let contents = |name: &str| sections.iter().find(|(section, _)| *section == name).map(|(_, bytes)| bytes.clone());
    assert_eq!(contents(".cmdline").unwrap(), b"quiet");
    assert_eq!(contents(".initrd").unwrap(), vec![7; 100_001]);
}
