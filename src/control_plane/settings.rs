//! The configuration, checked: every mistake is found before a port is bound.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::admin::roles::Roles;
use super::ca::CaTerms;
use super::governance::Governance;
use super::keys;
use super::registry::names;
use super::registry::rules::Rules;
use crate::codes::{self, Refusal};
use crate::config::{AdmissionConfig, JoinRule, PolicyDefault, ServerConfig, TermsConfig, texts};
use crate::identity::TrustDomain;
use crate::tpm::PcrSelection;
use crate::tpm::structures::Public;
use crate::verify::firmware::FirmwareFloors;
use crate::verify::profile::Profile;
use crate::verify::references::Policy;
use crate::verify::{EkRoots, Grade};

/// A day in seconds.
const DAY: u64 = 86_400;

/// Where the configuration states who must have signed reference sets.
const POLICY: [&str; 2] = ["policy.keys", "policy.threshold"];

/// The kinds of EK that a join rule can name.
const EK_KINDS: [&str; 3] = ["rsa-2048", "p-256", "p-384"];

/// What the configuration says, in the types that the server works with.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The trust domain.
    pub trust_domain: TrustDomain,
    /// The PCRs every node quotes.
    pub selection: PcrSelection,
    /// Manufacturers' roots and intermediates.
    pub roots: EkRoots,
    /// Floors for TPM firmware.
    pub firmware: FirmwareFloors,
    /// Firmware profiles beside the shipped ones, by name.
    pub profiles: BTreeMap<String, Profile>,
    /// Rules by which a node joins without an operator.
    pub rules: Vec<Rule>,
    /// What registrations must keep to.
    pub registry: Rules,
    /// Who must have signed a reference set.
    pub policy: Policy,
    /// Whether what is registered is permitted as long as no policy bundle was ever applied.
    pub permit_registered: bool,
    /// How long decisions are kept.
    pub keep_decisions: Duration,
    /// A lease's online term.
    pub lease: Duration,
    /// The longest lifetime of a workload's SVID.
    pub svid: Duration,
    /// How long a fetched nonce can be used, in seconds.
    pub nonce_seconds: u64,
    /// How long a CA lasts.
    pub ca: CaTerms,
    /// How long a node's and the server's certificate last.
    pub own_certificates: Duration,
    /// The most bytes of logs that are kept of one node.
    pub node_logs: u64,
    /// The most bytes that one node can have recorded within an hour.
    pub node_records: u64,
    /// Which operator may give which command.
    pub roles: Roles,
    /// Bounds of approvals, exceptions and reviews.
    pub governance: Governance,
    /// Where relying parties reach the CRLs, without a path.
    pub published: Option<String>,
}

/// A join rule.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Shown in explanations.
    pub name: String,
    /// The least grade.
    pub grade: Grade,
    /// The one kind of EK it admits, one of [`EK_KINDS`].
    pub ek: Option<String>,
    /// The group a joining node is put in.
    pub group: Option<String>,
    /// The environment it belongs to; empty for none.
    pub environment: String,
}

impl Settings {
    /// Checks a configuration and reads the files it names.
    ///
    /// # Errors
    /// [`codes::CONFIG_INVALID`], naming the key.
    pub fn check(config: &ServerConfig) -> Result<Self, Refusal> {
        if let Some(address) = &config.keys.tpm {
            keys::check_address(address)?;
        }
        let selection = config.pcrs.parse().map_err(|what: String| invalid("pcrs", what))?;
        let TermsConfig { lease_seconds, svid_seconds, nonce_seconds, ca_days } = config.terms;
        within("terms.lease_seconds", lease_seconds, 2, DAY)?;
        within("terms.svid_seconds", svid_seconds, 1, DAY)?;
        within("terms.nonce_seconds", nonce_seconds, 5, 3600)?;
        within("terms.ca_days", ca_days, 1, 3650)?;
        within("policy.keep_days", config.policy.keep_days, 1, 3650)?;
        within("logs.node_mib", config.logs.node_mib, 1, 16_384)?;
        within("audit.node_mib_an_hour", config.audit.node_mib_an_hour, 1, 65_536)?;
        let lifetime = Duration::from_secs(ca_days * DAY);
        let registry = Rules::check(&config.trust_domain, &config.registry)?;
        Ok(Self {
            trust_domain: config.trust_domain.clone(),
            selection,
            roots: ek_roots(&config.admission.ek_roots)?,
            firmware: floors(&config.admission)?,
            profiles: profiles(&config.firmware_profiles)?,
            rules: config.admission.join.iter().map(|rule| Rule::check(rule, &registry)).collect::<Result<_, _>>()?,
            registry,
            policy: Policy::new(&texts(&config.policy.keys, POLICY[0])?, config.policy.threshold, POLICY)?,
            keep_decisions: Duration::from_secs(config.policy.keep_days * DAY),
            permit_registered: config.policy.default == PolicyDefault::Registered,
            lease: Duration::from_secs(lease_seconds),
            svid: Duration::from_secs(svid_seconds),
            nonce_seconds,
            ca: CaTerms { lifetime, published: Duration::from_secs(lease_seconds) },
            // A quarter of a CA's life is what it has left when the next one takes over.
            own_certificates: (lifetime / 4).min(Duration::from_secs(7 * DAY)),
            node_logs: config.logs.node_mib << 20,
            node_records: config.audit.node_mib_an_hour << 20,
            roles: Roles::shipped()?,
            governance: governance(config)?,
            published: config.published.url.as_deref().map(published).transpose()?,
        })
    }
}

/// A URL without a path, which is to be continued by ours.
fn published(url: &str) -> Result<String, Refusal> {
    let wrong = |found: &str| {
        invalid("published.url", format!("`{}`: {found}", url.escape_debug())).expected("e.g. http://pki.example.org")
    };
    let parsed: axum::http::Uri = url.parse().map_err(|_| wrong("no URL"))?;
    if !matches!(parsed.scheme_str(), Some("http" | "https")) {
        return Err(wrong("its scheme is neither http nor https"));
    }
    match parsed.path() == "/" && parsed.query().is_none() && url.len() <= 256 {
        true => Ok(url.trim_end_matches('/').to_owned()),
        false => Err(wrong("it has a path or a query, or is longer than 256 bytes")),
    }
}

impl Rule {
    fn check(rule: &JoinRule, registry: &Rules) -> Result<Self, Refusal> {
        let at = format!("admission.join `{}`", rule.name);
        let configured = |refusal| Refusal { code: codes::CONFIG_INVALID, ..refusal };
        let grade = match rule.grade.as_str() {
            "certified" => Grade::Certified,
            "listed" => Grade::Listed,
            // A TPM of unknown origin may be a program: only an operator can admit it.
            other => return Err(invalid(&at, format!("grade `{other}`")).expected("`certified` or `listed`")),
        };
        if let Some(ek) = rule.ek.as_ref().filter(|ek| !EK_KINDS.contains(&ek.as_str())) {
            return Err(invalid(&at, format!("ek `{ek}`")).expected(EK_KINDS.join(", ")));
        }
        if let Some(group) = &rule.group {
            names::plain(&at, group).map_err(configured)?;
        }
        registry.environment(&at, &rule.environment).map_err(configured)?;
        Ok(Self {
            name: rule.name.clone(),
            grade,
            ek: rule.ek.clone(),
            group: rule.group.clone(),
            environment: rule.environment.clone(),
        })
    }

    /// Whether a TPM of this grade joins by this rule under this EK.
    pub fn admits(&self, grade: Grade, ek: &Public) -> bool {
        let kind = ek.kind.to_string().to_ascii_lowercase();
        grade > Grade::Unknown && grade >= self.grade && self.ek.as_ref().is_none_or(|wanted| *wanted == kind)
    }
}

impl Settings {
    /// The firmware profile of this name, shipped or the operator's own.
    ///
    /// # Errors
    /// [`codes::VERIFY_PROFILE`].
    pub fn profile(&self, name: &str) -> Result<Profile, Refusal> {
        Profile::shipped(name).or_else(|| self.profiles.get(name).cloned()).ok_or_else(|| {
            let known: Vec<String> =
                Profile::shipped_names().map(str::to_owned).chain(self.profiles.keys().cloned()).collect();
            Refusal::new(codes::VERIFY_PROFILE, format!("profile `{}`", name.escape_debug()))
                .expected(format!("one of {}, or a file in `firmware_profiles`", known.join(", ")))
        })
    }
}

/// The operator's own firmware profiles.
fn profiles(paths: &[PathBuf]) -> Result<BTreeMap<String, Profile>, Refusal> {
    let mut profiles = BTreeMap::new();
    for path in paths {
        for file in files(path).map_err(|what| invalid("firmware_profiles", what).at(path.display().to_string()))? {
            if file.extension().is_none_or(|extension| extension != "toml") {
                continue;
            }
            let at = file.display().to_string();
            let name = file.file_stem().and_then(std::ffi::OsStr::to_str).unwrap_or_default().to_owned();
            let text =
                std::fs::read_to_string(&file).map_err(|e| invalid("firmware_profiles", e.to_string()).at(&at))?;
            let profile = Profile::parse(&name, &text)?;
            // One name, one meaning: a set that names it must not depend on the machine it is read on.
            if Profile::shipped(&name).is_some() || profiles.insert(name.clone(), profile).is_some() {
                return Err(invalid("firmware_profiles", format!("there is a profile `{name}` already")).at(&at));
            }
        }
    }
    Ok(profiles)
}

/// The file itself, or the files in a directory, in the order of their names.
fn files(path: &Path) -> Result<Vec<PathBuf>, String> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let entries =
        std::fs::read_dir(path).and_then(|entries| entries.map(|entry| entry.map(|entry| entry.path())).collect());
    let mut files: Vec<PathBuf> = entries.map_err(|e: std::io::Error| e.to_string())?;
    files.retain(|file| file.is_file());
    files.sort();
    Ok(files)
}

fn floors(config: &AdmissionConfig) -> Result<FirmwareFloors, Refusal> {
    config
        .tpm_firmware
        .iter()
        .try_fold(FirmwareFloors::default(), |floors, (manufacturer, version)| floors.require(manufacturer, version))
}

/// The TPM manufacturers' certificates in these files and directories.
///
/// # Errors
/// [`codes::CONFIG_INVALID`] naming the file.
pub fn ek_roots(paths: &[PathBuf]) -> Result<EkRoots, Refusal> {
    let mut certificates = Vec::new();
    for path in paths {
        let failed = |what: String| invalid("admission.ek_roots", what).at(path.display().to_string());
        for file in files(path).map_err(failed)? {
            read_certificates(&file, &mut certificates)?;
        }
    }
    EkRoots::from_der(certificates)
        .map_err(|refusal| Refusal { code: codes::CONFIG_INVALID, ..refusal }.at("admission.ek_roots"))
}

fn read_certificates(file: &Path, certificates: &mut Vec<Vec<u8>>) -> Result<(), Refusal> {
    let failed =
        |what: String| Refusal::new(codes::CONFIG_INVALID, what).at(format!("admission.ek_roots {}", file.display()));
    let before = certificates.len();
    for certificate in CertificateDer::pem_file_iter(file).map_err(|e| failed(e.to_string()))? {
        certificates.push(certificate.map_err(|e| failed(e.to_string()))?.to_vec());
    }
    if certificates.len() == before {
        return Err(failed("no certificate is in it".to_owned()).expected("PEM certificates"));
    }
    Ok(())
}

fn governance(config: &ServerConfig) -> Result<Governance, Refusal> {
    let stated = &config.governance;
    within("governance.exception_days", stated.exception_days, 1, 366)?;
    within("governance.approval_hours", stated.approval_hours, 1, 720)?;
    within("governance.review_days", stated.review_days, 1, 1_000)?;
    within("governance.unused_days", stated.unused_days, 1, 1_000)?;
    if let Some(days) = stated.suspend_overdue_days {
        within("governance.suspend_overdue_days", days, 0, 1_000)?;
    }
    Ok(Governance {
        exception: stated.exception_days * DAY,
        approval: stated.approval_hours * 3_600,
        review: stated.review_days * DAY,
        unused: stated.unused_days * DAY,
        suspend_overdue: stated.suspend_overdue_days.map(|days| days * DAY),
    })
}

fn within(key: &str, value: u64, least: u64, most: u64) -> Result<(), Refusal> {
    match (least..=most).contains(&value) {
        true => Ok(()),
        false => Err(invalid(key, value.to_string()).expected(format!("{least} to {most}"))),
    }
}

fn invalid(key: &str, found: String) -> Refusal {
    Refusal::new(codes::CONFIG_INVALID, found).at(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> Result<Settings, Refusal> {
        Settings::check(&crate::config::parse(&format!("trust_domain = \"example.org\"\n{text}"), "server.toml")?)
    }

    #[test]
    fn a_profile_of_ones_own_is_known_by_its_files_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("board.toml");
        let shipped = concat!(env!("CARGO_MANIFEST_DIR"), "/firmware-profiles/uboot-measured.toml");
        std::fs::copy(shipped, &path).unwrap();
        let config = format!("firmware_profiles = [\"{}\"]", directory.path().display());
        let settings = check(&config).unwrap();
        assert_eq!(settings.profile("board").unwrap().name, "board");
        assert_eq!(settings.profile("uefi-uki").unwrap().name, "uefi-uki");
        assert_eq!(settings.profile("other").unwrap_err().code, codes::VERIFY_PROFILE);
        // A shipped name has one meaning, and a mistake is named with its file.
        std::fs::rename(&path, directory.path().join("uefi-uki.toml")).unwrap();
        assert!(check(&config).unwrap_err().found.contains("already"));
        std::fs::rename(directory.path().join("uefi-uki.toml"), &path).unwrap();
        std::fs::write(&path, "schema = 1\nbanc = []\n").unwrap();
        assert_eq!(check(&config).unwrap_err().code, codes::CONFIG_INVALID);
    }

    #[test]
    fn mistakes_are_named() {
        check("").unwrap();
        for (text, at) in [
            ("[keys]\ntpm = \"/dev/tpmrm0\"", "keys.tpm"),
            ("pcrs = \"sha1:0\"", "pcrs"),
            ("[terms]\nlease_seconds = 1", "terms.lease_seconds"),
            ("[terms]\nca_days = 0", "terms.ca_days"),
            ("[logs]\nnode_mib = 0", "logs.node_mib"),
            ("[audit]\nnode_mib_an_hour = 0", "audit.node_mib_an_hour"),
            ("[policy]\nkeep_days = 0", "policy.keep_days"),
            ("[[admission.join]]\nname = \"all\"\ngrade = \"unknown\"", "admission.join `all`"),
            ("[[admission.join]]\nname = \"all\"\ngrade = \"listed\"\ngroup = \"a b\"", "admission.join `all`"),
            ("[[admission.join]]\nname = \"all\"\ngrade = \"listed\"\nek = \"rsa\"", "admission.join `all`"),
            ("[[admission.join]]\nname = \"all\"\ngrade = \"listed\"\nenvironment = \"prod\"", "admission.join `all`"),
            ("[registry]\nenvironments = [\"a/b\"]", "registry.environments"),
            ("[registry]\nenvironments = [\"a\", \"a\"]", "registry.environments"),
            ("[registry]\npurposes = [\"\"]", "registry.purposes"),
            ("[registry]\nthird_party_ttl_seconds = 0", "registry.third_party_ttl_seconds"),
            ("[admission]\nek_roots = [\"/nowhere\"]", "admission.ek_roots /nowhere"),
            ("[policy]\nkeys = [\"/nowhere\"]", "policy.keys /nowhere"),
            ("[policy]\nthreshold = 3", "policy.threshold"),
            ("[policy]\nthreshold = 2", "policy.threshold"),
        ] {
            let refusal = check(text).unwrap_err();
            assert_eq!((refusal.code, refusal.at.as_str()), (codes::CONFIG_INVALID, at));
        }
    }
}
