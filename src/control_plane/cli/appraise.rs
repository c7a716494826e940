//! `appraise`: a verdict on files, without a control plane: raw artefacts of any tool, or evidence that
//! `leasehold-agent evidence` wrote. It says per check what held, what didn't and what isn't proven.

use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;

use super::client::read;
use super::print::plain;
use crate::clock::WallTime;
use crate::codes::exit::{CONTRAINDICATED, DONE, FAILED, WARNING};
use crate::codes::{self, Refusal};
use crate::control_plane::settings::ek_roots;
use crate::measurements::LogHash;
use crate::output::say;
use crate::tpm::structures::{Public, Quote};
use crate::tpm::{Bank, PcrValues};
use crate::verify::appraisal::{Appraisal, Finding, ImaLog, LayerResult, LayerStanding, Logs, measured};
use crate::verify::firmware::FirmwareFloors;
use crate::verify::profile::Profile;
use crate::verify::quoted::{self, Banks};
use crate::verify::references::ReferenceSet;
use crate::verify::{AkPublic, EkRoots, EnrolledKeys, NodeKey, authenticate, endorsement};

/// What `appraise` takes.
#[derive(Clone, Debug, Args)]
#[command(group(clap::ArgGroup::new("what").required(true).args(["quote", "evidence"])))]
pub struct AppraiseArguments {
    /// The TPMS_ATTEST of a quote, as tpm2_quote's --message.
    #[arg(long, value_name = "FILE", requires_all = ["signature", "ak"])]
    quote: Option<PathBuf>,
    /// Its TPMT_SIGNATURE, as tpm2_quote's --signature.
    #[arg(long, value_name = "FILE")]
    signature: Option<PathBuf>,
    /// Evidence that `leasehold-agent evidence` wrote, instead of a quote.
    #[arg(long, value_name = "FILE", requires_all = ["node_key", "ak", "nonce"], conflicts_with = "signature")]
    evidence: Option<PathBuf>,
    /// The node key that signed the evidence: TPM2B_PUBLIC or TPMT_PUBLIC.
    #[arg(long, value_name = "FILE")]
    node_key: Option<PathBuf>,
    /// The attestation key: TPM2B_PUBLIC or TPMT_PUBLIC.
    #[arg(long, value_name = "FILE")]
    ak: Option<PathBuf>,
    /// The nonce that the quote must be over. Without it freshness isn't proven.
    #[arg(long, value_name = "HEX")]
    nonce: Option<String>,
    /// The endorsement key: TPM2B_PUBLIC or TPMT_PUBLIC.
    #[arg(long, value_name = "FILE")]
    ek: Option<PathBuf>,
    /// The endorsement key's certificate, DER.
    #[arg(long, value_name = "FILE")]
    ek_cert: Option<PathBuf>,
    /// Certificates of TPM manufacturers, files or directories, DER or PEM; may be given again.
    #[arg(long, value_name = "PATH")]
    ek_roots: Vec<PathBuf>,
    /// A floor for a manufacturer's TPM firmware, e.g. IFX=7.85; may be given again.
    #[arg(long, value_name = "MANUFACTURER=VERSION")]
    tpm_firmware: Vec<String>,
    /// PCR values as tpm2_pcrread prints them. Without it they are those that the logs lead to.
    #[arg(long, value_name = "FILE")]
    pcrs: Option<PathBuf>,
    /// The firmware's boot log (`binary_bios_measurements`).
    #[arg(long, value_name = "FILE")]
    boot_log: Option<PathBuf>,
    /// systemd's log (`tpm2-measure.log`).
    #[arg(long, value_name = "FILE")]
    userspace_log: Option<PathBuf>,
    /// IMA's list (`binary_runtime_measurements`).
    #[arg(long, value_name = "FILE")]
    ima_log: Option<PathBuf>,
    /// A shipped firmware profile, or a file of your own.
    #[arg(long, value_name = "NAME|FILE")]
    profile: String,
    /// The reference values: TOML, a document, signed or not, or a CoRIM.
    #[arg(long, value_name = "FILE")]
    references: Option<PathBuf>,
}

/// What `appraise` says. Schema version 1.
#[derive(Debug, Serialize)]
struct Verdict {
    schema: u32,
    /// `affirmed`, `warned`, `contraindicated` or `broken`.
    verdict: &'static str,
    profile: String,
    references: Option<String>,
    state: Option<String>,
    checks: Vec<Check>,
    layers: Vec<LayerResult>,
    findings: Vec<Finding>,
    /// The AR4SI claims 0 to 7.
    trust_vector: [i8; 8],
    notes: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Check {
    check: &'static str,
    standing: Standing,
    why: String,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Standing {
    Held,
    Failed,
    NotProven,
}

/// Everything that was read, before any of it is believed.
struct Files {
    quote: Option<(Vec<u8>, Vec<u8>)>,
    evidence: Option<(Vec<u8>, Vec<u8>)>,
    ak: Vec<u8>,
    nonce: Option<Vec<u8>>,
    pcrs: Option<Banks>,
    boot: Option<Vec<u8>>,
    userspace: Option<Vec<u8>>,
    ima: Option<Vec<u8>>,
    profile: Profile,
    references: Option<ReferenceSet>,
}

/// `leasehold-server appraise`.
pub fn appraise(arguments: &AppraiseArguments, json: bool) -> Result<u8, Refusal> {
    let files = Files::read(arguments)?;
    let mut verdict = Verdict {
        schema: 1,
        verdict: "broken",
        profile: files.profile.name.clone(),
        references: files.references.as_ref().map(|set| format!("{} version {}", set.name, set.version)),
        state: None,
        checks: Vec::new(),
        layers: Vec::new(),
        findings: Vec::new(),
        trust_vector: [0; 8],
        notes: Vec::new(),
    };
    let code = verdict.fill(arguments, &files)?;
    if json {
        let text = serde_json::to_string_pretty(&verdict).unwrap_or_default();
        say!("{text}");
    } else {
        verdict.print();
    }
    Ok(code)
}

impl Files {
    fn read(arguments: &AppraiseArguments) -> Result<Self, Refusal> {
        let optional = |path: &Option<PathBuf>| path.as_deref().map(read).transpose();
        let usage = |found: &str, at: &str, expected: &str| {
            Refusal::new(codes::ADMIN_INVALID, format!("`{}`", found.escape_debug())).at(at).expected(expected)
        };
        let nonce = arguments
            .nonce
            .as_deref()
            .map(|digits| hex::decode(digits).map_err(|_| usage(digits, "--nonce", "hexadecimal digits")))
            .transpose()?;
        let pair =
            |a: &Option<PathBuf>, b: &Option<PathBuf>| -> Result<_, Refusal> { Ok(optional(a)?.zip(optional(b)?)) };
        Ok(Self {
            quote: pair(&arguments.quote, &arguments.signature)?,
            evidence: pair(&arguments.evidence, &arguments.node_key)?,
            ak: optional(&arguments.ak)?.unwrap_or_default(),
            nonce,
            pcrs: optional(&arguments.pcrs)?
                .map(|bytes| {
                    pcrread(&String::from_utf8_lossy(&bytes))
                        .map_err(|line| usage(&line, "--pcrs", "PCR values as tpm2_pcrread prints them"))
                })
                .transpose()?,
            boot: optional(&arguments.boot_log)?,
            userspace: optional(&arguments.userspace_log)?,
            ima: optional(&arguments.ima_log)?,
            profile: profile(&arguments.profile)?,
            references: arguments.references.as_deref().map(references).transpose()?,
        })
    }

    fn logs(&self) -> Logs<'_> {
        Logs {
            boot: self.boot.as_deref(),
            userspace: self.userspace.as_deref(),
            ima: self.ima.as_deref().map(|rest| ImaLog { from: None, rest }),
        }
    }

    /// The one bank that is looked at: the references', or the profile's best of those quoted.
    fn bank(&self, quoted: &[Bank]) -> Result<Bank, Refusal> {
        match &self.references {
            Some(set) => Ok(set.bank),
            None => self
                .profile
                .banks
                .iter()
                .find(|bank| quoted.contains(bank))
                .copied()
                .ok_or_else(|| Refusal::new(codes::VERIFY_BANK, "no bank that the profile accepts").at("quote")),
        }
    }
}

impl Verdict {
    /// Makes the checks in their order; returns the exit code.
    fn fill(&mut self, arguments: &AppraiseArguments, files: &Files) -> Result<u8, Refusal> {
        let Some((pcrs, firmware_version)) = self.quote(files) else { return Ok(FAILED) };
        let manufacturer = match self.endorsement(arguments) {
            Ok(manufacturer) => manufacturer,
            Err(refusal) => {
                self.failed("endorsement", &refusal);
                return Ok(FAILED);
            }
        };
        let firmware = self.firmware(arguments, manufacturer.as_deref(), firmware_version)?;
        let pcrs = match pcrs {
            Ok(pcrs) => {
                self.held("PCR values", format!("they hash to the quote's digest: {}", pcrs.selection()));
                pcrs
            }
            Err(refusal) => {
                self.failed("PCR values", &refusal);
                self.verdict = "contraindicated";
                return Ok(CONTRAINDICATED);
            }
        };
        let measured = match measured(&pcrs, &files.profile, &files.logs(), files.references.as_ref()) {
            Ok(measured) => measured,
            Err(refusal) => {
                self.failed("logs", &refusal);
                self.verdict = "contraindicated";
                return Ok(CONTRAINDICATED);
            }
        };
        self.held("logs", format!("they replay to the quoted PCRs under the profile `{}`", files.profile.name));
        let appraisal = measured.appraise(&files.profile, files.references.as_ref(), WallTime::now());
        Ok(self.conclude(appraisal, files, firmware))
    }

    /// Who made the quote, and over what. The PCR values are apart: their refusal is a verdict on the node.
    #[allow(clippy::type_complexity, reason = "two steps of one check: both may fail, each in its way")]
    fn quote(&mut self, files: &Files) -> Option<(Result<PcrValues, Refusal>, u64)> {
        let found = match (&files.quote, &files.evidence) {
            (Some((attest, signature)), _) => quoted::authentic(attest, signature, &files.ak, files.nonce.as_deref())
                .map(|quote| (by_quote(&quote, files), quote.firmware_version)),
            (None, Some((evidence, node_key))) => by_evidence(evidence, node_key, files),
            (None, None) => Err(Refusal::new(codes::ADMIN_INVALID, "neither a quote nor evidence")),
        };
        match found {
            Ok(found) => {
                self.held("quote", "signed by the attestation key, which signs only what its TPM made".to_owned());
                match &files.nonce {
                    Some(nonce) => self.held("nonce", format!("the quote is over {}", hex::encode(nonce))),
                    None => self.not_proven("nonce", "no --nonce: the quote may be an old one"),
                }
                Some(found)
            }
            Err(refusal) => {
                self.failed("quote", &refusal);
                None
            }
        }
    }

    /// Whose TPM it is. Returns the manufacturer's id if the certificate says it.
    fn endorsement(&mut self, arguments: &AppraiseArguments) -> Result<Option<String>, Refusal> {
        let Some(path) = &arguments.ek_cert else {
            self.not_proven("endorsement", "no --ek-cert: the TPM may be any program");
            return Ok(None);
        };
        let certificate = read(path)?;
        let roots = match arguments.ek_roots.as_slice() {
            [] => EkRoots::default(),
            paths => ek_roots(paths)?,
        };
        let ek = arguments.ek.as_deref().map(read).transpose()?;
        let ek = ek.map(|bytes| Public::parse_sized(&bytes).or_else(|_| Public::parse(&bytes))).transpose()?;
        endorsement::check_certificate(ek.as_ref(), &certificate, &roots, WallTime::now())?;
        let of = if ek.is_some() { "the certificate is this EK's" } else { "the certificate is an EK's" };
        match roots.is_empty() {
            true => self.not_proven("endorsement", &format!("{of}, but no --ek-roots say who may sign it")),
            false => self.held("endorsement", format!("{of}, and leads to a given root")),
        }
        self.not_proven(
            "residence",
            "that the attestation key is in the TPM of that EK: only credential activation proves it",
        );
        Ok(endorsement::manufacturer(&certificate))
    }

    /// Whether the TPM's firmware is old enough to be known as faulty.
    fn firmware(
        &mut self,
        arguments: &AppraiseArguments,
        manufacturer: Option<&str>,
        version: u64,
    ) -> Result<bool, Refusal> {
        let mut floors = FirmwareFloors::default();
        for floor in &arguments.tpm_firmware {
            let (manufacturer, version) = floor.split_once('=').unwrap_or((floor, ""));
            floors = floors.require(manufacturer, version)?;
        }
        let Some(manufacturer) = manufacturer else {
            self.not_proven("TPM firmware", "no EK certificate says who made the TPM");
            return Ok(true);
        };
        Ok(match floors.check(manufacturer, version) {
            Ok(()) => {
                self.held("TPM firmware", format!("{manufacturer}, version {version:#018x}: no floor is above it"));
                true
            }
            Err(refusal) => {
                self.failed("TPM firmware", &refusal);
                false
            }
        })
    }

    /// What the control plane would say: contraindicated if anything is, or the TPM's firmware is below a floor;
    /// affirmed if it would grant a lease and nothing warns; else a warning, with why there is no lease.
    fn conclude(&mut self, appraisal: Appraisal, files: &Files, firmware: bool) -> u8 {
        let worst = appraisal.layers.iter().map(|layer| layer.standing).max();
        let lease = appraisal.suffices(&files.profile, files.references.as_ref());
        let (verdict, code) = match worst {
            Some(LayerStanding::Contraindicated) => ("contraindicated", CONTRAINDICATED),
            _ if !firmware => ("contraindicated", CONTRAINDICATED),
            Some(LayerStanding::Warned) => ("warned", WARNING),
            _ if lease.is_err() => ("warned", WARNING),
            _ => ("affirmed", DONE),
        };
        if let (Err(refusal), WARNING) = (&lease, code) {
            self.failed("lease", refusal);
        }
        self.verdict = verdict;
        self.state = appraisal.state;
        self.trust_vector = appraisal.vector.claims();
        self.layers = appraisal.layers;
        self.findings = appraisal.findings;
        self.notes = appraisal.notes;
        code
    }

    fn held(&mut self, check: &'static str, why: String) {
        self.checks.push(Check { check, standing: Standing::Held, why });
    }

    fn not_proven(&mut self, check: &'static str, why: &str) {
        self.checks.push(Check { check, standing: Standing::NotProven, why: why.to_owned() });
    }

    fn failed(&mut self, check: &'static str, refusal: &Refusal) {
        self.checks.push(Check { check, standing: Standing::Failed, why: refusal.to_string() });
    }

    fn print(&self) {
        say!("{}", self.verdict);
        for check in &self.checks {
            let standing = match check.standing {
                Standing::Held => "held",
                Standing::Failed => "FAILED",
                Standing::NotProven => "not proven",
            };
            say!("  {standing:15} {}: {}", check.check, plain(&check.why));
        }
        for layer in &self.layers {
            let standing = match layer.standing {
                LayerStanding::Affirmed => "affirmed",
                LayerStanding::NotProven => "not proven",
                LayerStanding::Warned => "WARNED",
                LayerStanding::Contraindicated => "CONTRAINDICATED",
            };
            say!("  {standing:15} layer {}: {}", layer.layer, plain(&layer.why));
        }
        for finding in &self.findings {
            say!("{}", plain(&finding.refusal.to_string()));
            if !finding.accept.is_empty() {
                say!("  if that is right: {}", finding.accept);
            }
        }
        for note in &self.notes {
            say!("note: {}", plain(note));
        }
    }
}

fn by_quote(quote: &Quote, files: &Files) -> Result<PcrValues, Refusal> {
    let bank = files.bank(&quoted::banks(quote))?;
    match &files.pcrs {
        Some(values) => quoted::covered(quote, values, bank),
        None => quoted::by_replay(quote, &files.logs(), &files.profile, bank),
    }
}

/// Evidence has its PCR values in itself.
#[allow(clippy::type_complexity, reason = "as its caller's")]
fn by_evidence(evidence: &[u8], node_key: &[u8], files: &Files) -> Result<(Result<PcrValues, Refusal>, u64), Refusal> {
    let unsized_public = |bytes: &[u8]| match Public::parse_sized(bytes) {
        Ok(public) => public.as_bytes().to_vec(),
        Err(_) => bytes.to_vec(),
    };
    let evidence = crate::evidence::UnverifiedEvidence::decode(evidence)?;
    let node_key = NodeKey::parse(&unsized_public(node_key))?;
    let channel = node_key.spki_der().to_vec();
    let keys = EnrolledKeys {
        node: evidence.unverified_node(),
        ak: AkPublic::parse(&unsized_public(&files.ak))?,
        node_key,
        certification_nonce: *evidence.unverified_certification_nonce(),
    };
    let authentic = authenticate(evidence, &keys, Some(&channel))?;
    let nonce = files.nonce.as_deref().and_then(|nonce| <[u8; 32]>::try_from(nonce).ok());
    let nonce = nonce.ok_or_else(|| {
        Refusal::new(codes::ADMIN_INVALID, "a nonce of another size").at("--nonce").expected("64 hexadecimal digits")
    })?;
    let (pcrs, firmware_version) = (authentic.pcrs().clone(), authentic.firmware_version());
    authentic.fresh(&nonce, pcrs.selection(), std::time::Duration::ZERO, None)?;
    Ok((Ok(pcrs), firmware_version))
}

/// A shipped profile by name, or one of a file.
fn profile(text: &str) -> Result<Profile, Refusal> {
    if let Some(profile) = Profile::shipped(text) {
        return Ok(profile);
    }
    let path = Path::new(text);
    if !path.exists() {
        let names: Vec<&str> = Profile::shipped_names().collect();
        return Err(Refusal::new(codes::ADMIN_INVALID, format!("`{}`", text.escape_debug()))
            .at("--profile")
            .expected(format!("a file, or one of {}", names.join(", "))));
    }
    let name = path.file_stem().and_then(std::ffi::OsStr::to_str).unwrap_or_default();
    Profile::parse(name, &String::from_utf8_lossy(&read(path)?))
}

/// A set in any form, signed or not: who signed it is not asked here.
fn references(path: &Path) -> Result<ReferenceSet, Refusal> {
    Ok(super::reference::read_document(path)?.set)
}

/// `sha256:` and `0 : 0x…` lines; or the line that is neither.
fn pcrread(text: &str) -> Result<Banks, String> {
    let mut banks = Banks::new();
    let mut bank = None;
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let wrong = || line.to_owned();
        let (name, value) = line.split_once(':').ok_or_else(wrong)?;
        let (name, value) = (name.trim(), value.trim());
        if value.is_empty() {
            bank = LogHash::from_name(name);
            continue;
        }
        // The values of a bank that isn't known are not looked at; nor could a quote over it be.
        let Some(hash) = bank else { continue };
        let pcr: u8 = name.parse().ok().filter(|pcr| *pcr < 24).ok_or_else(wrong)?;
        let digits = value.strip_prefix("0x").or_else(|| value.strip_prefix("0X")).ok_or_else(wrong)?;
        let bytes = hex::decode(digits).ok().filter(|bytes| bytes.len() == hash.size()).ok_or_else(wrong)?;
        banks.entry(hash).or_default().insert(pcr, bytes);
    }
    Ok(banks)
}
