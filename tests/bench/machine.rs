//! A machine that boots a unified kernel image: what its firmware, its boot stub, its kernel and its
//! systemd would measure, into a TPM and into the log files that an agent reads.
//!
//! The shape of the log is that of OVMF with systemd's stub and Secure Boot off; its contents are
//! made up.

use std::fs::{File, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use leasehold::control_plane::dev::wire;
use leasehold::tpm::Bank;
use sha2::{Digest, Sha256};

use super::{TestTpm, ima, pe};

/// A unified kernel image, with what is measured of it.
#[derive(Clone, Debug)]
pub struct Image {
    /// The file.
    pub bytes: Vec<u8>,
    kernel: Vec<u8>,
    /// Its sections in the stub's order.
    sections: Vec<(&'static str, Vec<u8>)>,
}

impl Image {
    /// An image of this kernel version.
    pub fn new(version: &str) -> Self {
        let kernel = pe::image(&[(".text", format!("kernel {version}").as_bytes())]);
        let sections = vec![
            (".linux", kernel.clone()),
            (".osrel", b"ID=test\n".to_vec()),
            (".cmdline", b"console=ttyS0 quiet".to_vec()),
            (".initrd", format!("initrd {version}").into_bytes()),
        ];
        let mut parts: Vec<(&str, &[u8])> = vec![(".sdmagic", b"#### LoaderInfo: systemd-stub 252.39 ####\0")];
        parts.extend(sections.iter().map(|(name, content)| (*name, content.as_slice())));
        Self { bytes: pe::image(&parts), kernel, sections }
    }
}

/// The log files of a machine.
#[derive(Debug)]
pub struct Machine {
    pub boot_log: PathBuf,
    pub userspace_log: PathBuf,
    pub ima_list: PathBuf,
}

/// The phases that systemd measures into PCR 11 until the system is up (systemd-pcrphase).
const PHASES: [&str; 4] = ["enter-initrd", "leave-initrd", "sysinit", "ready"];
/// The sticky bit: systemd sets it on its log before it extends and clears it once the record is written.
const STICKY: u32 = 0o1000;

/// A log as it is written.
struct Log {
    bytes: Vec<u8>,
    extends: Vec<Vec<u8>>,
    values: [[u8; 32]; 24],
}

/// EFI_GLOBAL_VARIABLE and EFI_IMAGE_SECURITY_DATABASE_GUID.
const GLOBAL: [u8; 16] =
    [0x61, 0xdf, 0xe4, 0x8b, 0xca, 0x93, 0xd2, 0x11, 0xaa, 0x0d, 0x00, 0xe0, 0x98, 0x03, 0x2b, 0x8c];
const SECURITY: [u8; 16] =
    [0xcb, 0xb2, 0x19, 0xd7, 0x3a, 0x3d, 0x96, 0x45, 0xa3, 0xbc, 0xda, 0xd0, 0x0e, 0x67, 0x65, 0x6f];

impl Machine {
    /// A machine whose logs lie in `directory`.
    pub fn new(directory: &Path) -> Self {
        let file = |name: &str| directory.join(name);
        Self { boot_log: file("boot.log"), userspace_log: file("tpm2-measure.log"), ima_list: file("ima.list") }
    }

    /// `[logs]` for the agent's configuration.
    pub fn configuration(&self) -> String {
        let [boot, userspace, ima] = [&self.boot_log, &self.userspace_log, &self.ima_list].map(|path| path.display());
        format!("[logs]\nboot = \"{boot}\"\nuserspace = \"{userspace}\"\nima = \"{ima}\"\n")
    }

    /// Switches the machine off and on and boots `image`: a TPM reset, then what firmware, stub and kernel measure.
    pub async fn boot(&self, tpm: &TestTpm, image: &Image) {
        let mut log = Log::start();
        log.firmware();
        log.image(image);
        let aggregate = log.boot_aggregate();
        let (ima, digest) = ima::entry("boot_aggregate", &aggregate);
        log.extends.push(wire::pcr_extend(10, Bank::Sha256, &digest));
        // The files first: whoever looks meanwhile finds a log that goes beyond the PCRs, never PCRs without a log.
        std::fs::write(&self.boot_log, &log.bytes).unwrap();
        std::fs::write(&self.ima_list, &ima).unwrap();
        // In memory, so each boot begins without one.
        let _ = std::fs::remove_file(&self.userspace_log);
        tpm.relay.reset(log.extends).await.unwrap();
    }

    /// systemd brings the system up: its phases, and what the machine is.
    pub async fn come_up(&self, tpm: &TestTpm) {
        for phase in PHASES {
            self.measure(tpm, 11, "phase", phase).await;
            if phase == "leave-initrd" {
                self.measure(tpm, 15, "machine-id", "machine-id:0123456789abcdef0123456789abcdef").await;
            }
        }
    }

    /// systemd measures a string: the log is marked, the PCR extended, the record written, the mark cleared.
    pub async fn measure(&self, tpm: &TestTpm, pcr: u8, kind: &str, string: &str) {
        self.mark(true);
        self.extend(tpm, pcr, string).await;
        self.record(pcr, kind, string);
        self.mark(false);
    }

    /// Sets or clears the mark of a log that lacks a record.
    pub fn mark(&self, incomplete: bool) {
        let log = File::options().create(true).append(true).open(&self.userspace_log).unwrap();
        log.set_permissions(Permissions::from_mode(if incomplete { 0o600 | STICKY } else { 0o600 })).unwrap();
    }

    /// The PCR's part of a measurement.
    pub async fn extend(&self, tpm: &TestTpm, pcr: u8, string: &str) {
        tpm.extend(pcr, Sha256::digest(string).into()).await;
    }

    /// The log's part of it: a record of JSON text sequences.
    pub fn record(&self, pcr: u8, kind: &str, string: &str) {
        let record = serde_json::json!({
            "pcr": pcr,
            "digests": [{ "hashAlg": "sha256", "digest": hex::encode(Sha256::digest(string)) }],
            "content_type": "systemd",
            "content": { "string": string, "bootId": "0123456789abcdef0123456789abcdef", "eventType": kind },
        });
        let mut log = File::options().append(true).open(&self.userspace_log).unwrap();
        log.write_all(format!("\u{1e}{record}\n").as_bytes()).unwrap();
    }

    /// The kernel measures a file that is executed: into its list, then into PCR 10.
    pub async fn execute(&self, tpm: &TestTpm, path: &str, digest: &[u8; 32]) -> leasehold::clock::BootInstant {
        let (entry, digest) = ima::entry(path, digest);
        let mut list = File::options().append(true).open(&self.ima_list).unwrap();
        list.write_all(&entry).unwrap();
        tpm.extend(10, digest).await
    }
}

impl Log {
    /// TCG_EfiSpecIDEvent with the SHA-256 bank alone (Platform Firmware Profile 1.06, 10.4.5.1).
    fn start() -> Self {
        let mut bytes = Vec::new();
        bytes.extend(0u32.to_le_bytes());
        bytes.extend(3u32.to_le_bytes());
        bytes.extend([0; 20]);
        let mut data = b"Spec ID Event03\0".to_vec();
        data.extend(0u32.to_le_bytes());
        data.extend([0, 2, 0, 2]);
        data.extend(1u32.to_le_bytes());
        data.extend(0x000Bu16.to_le_bytes());
        data.extend(32u16.to_le_bytes());
        data.push(0);
        bytes.extend(u32::try_from(data.len()).unwrap().to_le_bytes());
        bytes.extend(data);
        Self { bytes, extends: Vec::new(), values: [[0; 32]; 24] }
    }

    /// TCG_PCR_EVENT2, and the extension it tells of.
    fn event(&mut self, pcr: u8, kind: u32, digest: [u8; 32], data: &[u8]) {
        self.bytes.extend(u32::from(pcr).to_le_bytes());
        self.bytes.extend(kind.to_le_bytes());
        self.bytes.extend(1u32.to_le_bytes());
        self.bytes.extend(0x000Bu16.to_le_bytes());
        self.bytes.extend(digest);
        self.bytes.extend(u32::try_from(data.len()).unwrap().to_le_bytes());
        self.bytes.extend(data);
        self.extends.push(wire::pcr_extend(pcr, Bank::Sha256, &digest));
        let value = &mut self.values[usize::from(pcr)];
        *value = Sha256::new().chain_update(*value).chain_update(digest).finalize().into();
    }

    /// An event whose digest is that of its data.
    fn plain(&mut self, pcr: u8, kind: u32, data: &[u8]) {
        self.event(pcr, kind, Sha256::digest(data).into(), data);
    }

    fn firmware(&mut self) {
        self.plain(0, 0x8, &[0, 0]);
        self.event(0, 0x8000_0008, [0xf1; 32], &[0; 16]);
        for (guid, name, value) in [
            (GLOBAL, "SecureBoot", &[0u8][..]),
            (GLOBAL, "PK", &[]),
            (GLOBAL, "KEK", &[]),
            (SECURITY, "db", &[]),
            (SECURITY, "dbx", &[]),
        ] {
            self.plain(7, 0x8000_0001, &variable(guid, name, value));
        }
        self.plain(7, 0x4, &[0; 4]);
        let order = [1, 0, 0, 0];
        self.plain(1, 0x8000_0002, &variable(GLOBAL, "BootOrder", &order));
        self.plain(4, 0x8000_0007, b"Calling EFI Application from Boot Option");
        for pcr in 0..7 {
            self.plain(pcr, 0x4, &[0; 4]);
        }
    }

    fn image(&mut self, image: &Image) {
        self.event(4, 0x8000_0003, pe::authenticode(&image.bytes), &load_event());
        for (name, content) in &image.sections {
            let words: Vec<u8> = name.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect();
            let measured_name = [name.as_bytes(), b"\0"].concat();
            self.event(11, 0xD, Sha256::digest(measured_name).into(), &words);
            self.event(11, 0xD, Sha256::digest(content).into(), &words);
        }
        self.event(4, 0x8000_0003, pe::authenticode(&image.kernel), &load_event());
        let content =
            |name: &str| image.sections.iter().find(|(found, _)| *found == name).map(|(_, bytes)| bytes.clone());
        let options: Vec<u8> = content(".cmdline").map_or_else(Vec::new, |line| {
            let line = String::from_utf8(line).unwrap();
            line.trim_end_matches(['\0', '\n']).encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect()
        });
        self.event(9, 0x6, Sha256::digest(options).into(), &tagged(0x8f3b_22ed, b"LOADED_IMAGE::LoadOptions\0"));
        if let Some(initrd) = content(".initrd") {
            self.event(9, 0x6, Sha256::digest(initrd).into(), &tagged(0x8f3b_22ec, b"Linux initrd\0"));
        }
        self.plain(5, 0x8000_0007, b"Exit Boot Services Invocation");
        self.plain(5, 0x8000_0007, b"Exit Boot Services Returned with Success");
    }

    /// SHA-256 over PCRs 0 to 9, as the kernel makes it for its first entry.
    fn boot_aggregate(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        for value in &self.values[..10] {
            hash.update(value);
        }
        hash.finalize().into()
    }
}

/// UEFI_VARIABLE_DATA.
fn variable(guid: [u8; 16], name: &str, value: &[u8]) -> Vec<u8> {
    let name: Vec<u8> = name.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let mut data = guid.to_vec();
    data.extend(u64::try_from(name.len() / 2).unwrap().to_le_bytes());
    data.extend(u64::try_from(value.len()).unwrap().to_le_bytes());
    data.extend(name);
    data.extend(value);
    data
}

/// UEFI_IMAGE_LOAD_EVENT with an end-of-path device path.
fn load_event() -> Vec<u8> {
    let mut data = vec![0; 24];
    data.extend(4u64.to_le_bytes());
    data.extend([0x7f, 0xff, 4, 0]);
    data
}

/// TCG_PCClientTaggedEvent.
fn tagged(id: u32, what: &[u8]) -> Vec<u8> {
    let mut data = id.to_le_bytes().to_vec();
    data.extend(u32::try_from(what.len()).unwrap().to_le_bytes());
    data.extend(what);
    data
}
