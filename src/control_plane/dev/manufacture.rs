//! TPMs with an endorsement certificate, as a manufacturer would deliver them.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::swtpm::{Options, Swtpm};
use super::wire;
use crate::secret;

/// The EK certificates a TPM is delivered with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EkCert {
    /// RSA-2048 in the low range: NV 0x01C00002, template L-1, key persistent at 0x81010001.
    Rsa2048,
    /// ECC P-384 in the high range: NV 0x01C00016, template H-3, key persistent at 0x81010016.
    P384,
    /// ECC P-256 in the low range: NV 0x01C0000A, template L-2, no persistent key.
    P256,
    /// RSA-2048 and P-384, as most parts have more than one.
    Both,
    /// None: a blank TPM.
    None,
}

/// A manufacturer's certificate authority, made by the swtpm tools on first use.
#[derive(Clone, Debug)]
pub struct EkCa {
    directory: PathBuf,
}

impl EkCa {
    /// The CA in `directory`, which is made if missing. TPMs of one CA share the directory.
    ///
    /// # Errors
    /// When the directory or its configuration files can't be written.
    pub fn open(directory: &Path) -> io::Result<Self> {
        let ca = Self { directory: secret::private_directory(directory)? };
        let file = |name: &str| ca.directory.join(name).display().to_string();
        let settings = [
            (
                "localca.conf",
                format!(
                    "statedir = {}\nsigningkey = {}\nissuercert = {}\ncertserial = {}\n",
                    ca.directory.display(),
                    file("signkey.pem"),
                    file("issuercert.pem"),
                    file("certserial")
                ),
            ),
            (
                "localca.options",
                "--platform-manufacturer Leasehold\n--platform-version 1\n--platform-model dev\n".into(),
            ),
            (
                "setup.conf",
                format!(
                    "create_certs_tool = swtpm_localca\ncreate_certs_tool_config = {}\n\
                     create_certs_tool_options = {}\nactive_pcr_banks = sha256\n",
                    file("localca.conf"),
                    file("localca.options")
                ),
            ),
        ];
        for (name, text) in settings {
            secret::write_atomically(&ca.directory.join(name), text.as_bytes())?;
        }
        Ok(ca)
    }

    /// PEM of the root; there once a TPM was manufactured.
    pub fn root(&self) -> PathBuf {
        self.directory.join("swtpm-localca-rootca-cert.pem")
    }

    /// PEM of the intermediate that signs EK certificates; there once a TPM was manufactured.
    pub fn intermediate(&self) -> PathBuf {
        self.directory.join("issuercert.pem")
    }

    fn setup(&self, state: &Path) -> io::Result<()> {
        run(Command::new("swtpm_setup")
            .args(["--tpm2", "--create-ek-cert", "--overwrite", "--tpm-state"])
            .arg(state)
            .arg("--config")
            .arg(self.directory.join("setup.conf")))
    }

    /// DER of a certificate for the P-256 EK with this point. swtpm_setup makes none of these.
    fn certify_p256(&self, x: &[u8], y: &[u8], work: &Path) -> io::Result<Vec<u8>> {
        run(Command::new("swtpm_localca")
            .args(["--type", "ek", "--tpm2", "--ek"])
            .arg(format!("x={},y={},id=secp256r1", hex::encode(x), hex::encode(y)))
            .arg("--dir")
            .arg(work)
            .args(["--tpm-spec-family", "2.0", "--tpm-spec-level", "0", "--tpm-spec-revision", "164"])
            .args(["--tpm-manufacturer", "id:00001014", "--tpm-model", "swtpm", "--tpm-version", "id:20191023"])
            .arg("--configfile")
            .arg(self.directory.join("localca.conf"))
            .arg("--optsfile")
            .arg(self.directory.join("localca.options")))?;
        std::fs::read(work.join("ek.cert"))
    }
}

impl Swtpm {
    /// Makes a TPM in `directory` with these certificates, under a CA of its own in
    /// `directory/ca`, and starts it.
    ///
    /// # Errors
    /// When the swtpm tools are missing or fail, with what they said.
    pub fn manufacture(directory: &Path, certificates: EkCert) -> io::Result<(Self, EkCa)> {
        let ca = EkCa::open(&directory.join("ca"))?;
        Ok((Self::manufacture_under(directory, certificates, &ca)?, ca))
    }

    /// As [`manufacture`](Self::manufacture), under a CA that several TPMs share.
    ///
    /// # Errors
    /// As [`manufacture`](Self::manufacture).
    pub fn manufacture_under(directory: &Path, certificates: EkCert, ca: &EkCa) -> io::Result<Self> {
        if certificates == EkCert::None {
            return Self::start(directory, Options::default());
        }
        let state = secret::private_directory(&directory.join("state"))?;
        ca.setup(&state)?;
        let swtpm = Self::start(directory, Options::default())?;
        // swtpm_setup always makes both certificates; a part that has only one is what is wanted.
        if matches!(certificates, EkCert::P384 | EkCert::P256) {
            swtpm.run("TPM2_NV_UndefineSpace", &wire::nv_undefine(0x01C0_0002))?;
            swtpm.run("TPM2_EvictControl", &wire::evict(0x8101_0001))?;
        }
        if matches!(certificates, EkCert::Rsa2048 | EkCert::P256) {
            swtpm.run("TPM2_NV_UndefineSpace", &wire::nv_undefine(0x01C0_0016))?;
            swtpm.run("TPM2_EvictControl", &wire::evict(0x8101_0016))?;
        }
        if certificates == EkCert::P256 {
            swtpm.add_p256(ca)?;
        }
        Ok(swtpm)
    }

    fn add_p256(&self, ca: &EkCa) -> io::Result<()> {
        const INDEX: u32 = 0x01C0_000A;
        // PLATFORMCREATE, NO_DA, AUTHREAD, OWNERREAD, PPREAD, WRITEDEFINE, PPWRITE: as swtpm_setup
        // defines the others.
        const ATTRIBUTES: u32 = 0x4207_2001;
        let answer = self.exchange(&wire::create_primary(wire::ENDORSEMENT, &p256_ek_template()))?;
        let (handle, public) = wire::parse_create_primary(&answer).map_err(io::Error::other)?;
        self.run("TPM2_FlushContext", &wire::flush_context(handle))?;
        let (x, y) = p256_point(&public).ok_or_else(|| io::Error::other("the EK's public area has no P-256 point"))?;
        let certificate = ca.certify_p256(x, y, &self.directory)?;
        let size = u16::try_from(certificate.len()).map_err(io::Error::other)?;
        self.run("TPM2_NV_DefineSpace", &wire::nv_define(INDEX, ATTRIBUTES, size))?;
        let mut offset = 0u16;
        for part in certificate.chunks(512) {
            self.run("TPM2_NV_Write", &wire::nv_write(INDEX, offset, part))?;
            offset = offset.saturating_add(512);
        }
        Ok(())
    }

    fn run(&self, name: &str, command: &[u8]) -> io::Result<()> {
        wire::check(&self.exchange(command)?, name).map_err(io::Error::other)
    }
}

/// TPMT_PUBLIC of template L-2 (TCG EK Credential Profile 2.5, B.3.4).
fn p256_ek_template() -> Vec<u8> {
    // PolicySecret(TPM_RH_ENDORSEMENT), "PolicyA" for SHA-256 (B.6.2).
    const POLICY_A: [u8; 32] = [
        0x83, 0x71, 0x97, 0x67, 0x44, 0x84, 0xb3, 0xf8, 0x1a, 0x90, 0xcc, 0x8d, 0x46, 0xa5, 0xd7, 0x24, 0xfd, 0x52,
        0xd7, 0x6e, 0x06, 0x52, 0x0b, 0x64, 0xf2, 0xa1, 0xda, 0x1b, 0x33, 0x14, 0x69, 0xaa,
    ];
    let head = [
        0x00, 0x23, // TPM_ALG_ECC
        0x00, 0x0B, // nameAlg SHA-256
        0x00, 0x03, 0x00,
        0xB2, // fixedTPM, fixedParent, sensitiveDataOrigin, adminWithPolicy, restricted, decrypt
        0x00, 0x20, // authPolicy's size
    ];
    let parameters = [
        0x00, 0x06, 0x00, 0x80, 0x00, 0x43, // AES, 128 bits, CFB
        0x00, 0x10, // no signing scheme
        0x00, 0x03, // NIST P-256
        0x00, 0x10, // no KDF
    ];
    let coordinate = [&[0x00, 0x20][..], &[0; 32]].concat();
    [&head[..], &POLICY_A, &parameters, &coordinate, &coordinate].concat()
}

/// The coordinates at the end of a P-256 TPMT_PUBLIC of template L-2.
fn p256_point(public: &[u8]) -> Option<(&[u8], &[u8])> {
    let unique = public.get(10 + 32 + 12..)?;
    let (x, rest) = unique.strip_prefix(&[0, 32])?.split_at_checked(32)?;
    let y = rest.strip_prefix(&[0, 32])?;
    (y.len() == 32).then_some((x, y))
}

/// Runs a tool of the swtpm family; its output is in the error if it fails.
fn run(command: &mut Command) -> io::Result<()> {
    let tool = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|e| io::Error::new(e.kind(), format!("{tool}: {e} (Debian packages: swtpm-tools, gnutls-bin)")))?;
    if output.status.success() {
        return Ok(());
    }
    let said = [output.stdout, output.stderr].concat();
    Err(io::Error::other(format!("{tool} failed with {}: {}", output.status, String::from_utf8_lossy(&said).trim())))
}
