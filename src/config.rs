//! Configuration files: TOML, every key known, every mistake named with file and line.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::codes::{self, Refusal};
use crate::identity::TrustDomain;

/// Reads and checks a configuration file.
///
/// # Errors
/// [`codes::CONFIG_INVALID`], with the file, the line and, for an unknown key, the nearest known one.
pub fn load<T: DeserializeOwned>(path: &Path) -> Result<T, Refusal> {
    let text = std::fs::read_to_string(path).map_err(|e| {
        let refusal = Refusal::new(codes::CONFIG_INVALID, e.to_string()).at(path.display().to_string());
        match e.kind() {
            std::io::ErrorKind::NotFound => refusal.expected("a configuration file; `--help` explains a first one"),
            _ => refusal,
        }
    })?;
    parse(&text, &path.display().to_string())
}

/// Parses the text of a configuration file called `name` in messages.
///
/// # Errors
/// As [`load`].
pub fn parse<T: DeserializeOwned>(text: &str, name: &str) -> Result<T, Refusal> {
    toml::from_str(text).map_err(|error| {
        let line = error
            .span()
            .map_or(1, |span| 1 + text.as_bytes().iter().take(span.start).filter(|byte| **byte == b'\n').count());
        let refusal = Refusal::new(codes::CONFIG_INVALID, error.message().to_owned()).at(format!("{name}:{line}"));
        match nearest_known(error.message()) {
            Some(known) => refusal.expected(format!("perhaps `{known}`")),
            None => refusal,
        }
    })
}

/// The texts of the files that `key` names, each with its file's name.
///
/// # Errors
/// [`codes::CONFIG_INVALID`], naming the key and the file.
pub fn texts(files: &[PathBuf], key: &str) -> Result<Vec<(String, String)>, Refusal> {
    let read = |file: &PathBuf| {
        let name = file.display().to_string();
        let failed = |e: std::io::Error| Refusal::new(codes::CONFIG_INVALID, e.to_string()).at(format!("{key} {name}"));
        std::fs::read_to_string(file).map_err(failed).map(|text| (name.clone(), text))
    };
    files.iter().map(read).collect()
}

/// A basic string of TOML, as it is written.
pub fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for character in text.chars() {
        match character {
            '"' | '\\' => out.extend(['\\', character]),
            control if control.is_control() => {
                let _ = write!(out, "\\u{:04X}", u32::from(control));
            }
            plain => out.push(plain),
        }
    }
    out.push('"');
    out
}

/// The known key nearest to the unknown one in serde's message, which quotes the unknown key
/// first and the known ones after it.
fn nearest_known(message: &str) -> Option<&str> {
    let mut quoted = message.strip_prefix("unknown field ")?.split('`').skip(1).step_by(2);
    let unknown = quoted.next()?;
    quoted
        .map(|known| (strsim::damerau_levenshtein(unknown, known), known))
        .min()
        .filter(|(distance, known)| *distance <= known.len().max(3) / 2)
        .map(|(_, known)| known)
}

/// The agent's configuration file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentConfig {
    /// The trust domain the node belongs to, e.g. `example.org`.
    #[serde(deserialize_with = "trust_domain")]
    pub trust_domain: TrustDomain,
    /// Where enrolment is kept (mode 0700): no private key, no credential.
    #[serde(default = "default_agent_state")]
    pub state_dir: PathBuf,
    /// The control plane and how it is known.
    pub control_plane: ControlPlaneConfig,
    /// The TPM.
    #[serde(default)]
    pub tpm: TpmConfig,
    /// Sockets this agent serves.
    #[serde(default)]
    pub sockets: AgentSockets,
    /// The watcher.
    #[serde(default)]
    pub watch: WatchConfig,
    /// The logs of what was measured.
    #[serde(default)]
    pub logs: AgentLogs,
    /// The record of what was released.
    #[serde(default)]
    pub journal: JournalConfig,
}

/// The agent's own record, in the state directory.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct JournalConfig {
    /// The most that may wait for the control plane, in MiB, 1 to 16 384; then nothing is released until it was
    /// delivered. A process that fetches without end takes about 8 MiB a day.
    pub max_mib: u64,
}

impl Default for JournalConfig {
    fn default() -> Self {
        Self { max_mib: 256 }
    }
}

impl JournalConfig {
    /// The limit in bytes, kept within its range.
    pub fn limit(&self) -> u64 {
        self.max_mib.clamp(1, 16_384) << 20
    }
}

/// How the agent reaches and knows its control plane: no trust on first use.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ControlPlaneConfig {
    /// `host:port`.
    pub address: String,
    /// SHA-256 of the CA certificate's DER, in hexadecimal, as `leasehold-server ca show` prints it.
    #[serde(default)]
    pub ca_hash: Option<String>,
    /// A PEM file of CA certificates, instead of `ca_hash`.
    #[serde(default)]
    pub ca_bundle: Option<PathBuf>,
    /// PEM files of policy keys (public halves). With any, rules for what may run are taken from the
    /// control plane only if so many of them signed.
    #[serde(default)]
    pub policy_keys: Vec<PathBuf>,
    /// How many different ones: 1 unless it says otherwise.
    #[serde(default = "one")]
    pub policy_threshold: usize,
}

/// Where the TPM is and how long to wait for it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TpmConfig {
    /// `device:PATH` or `swtpm:host=HOST,port=PORT`.
    pub address: String,
    /// Seconds after which a caller stops waiting for one request.
    pub deadline_seconds: u64,
}

impl Default for TpmConfig {
    fn default() -> Self {
        Self { address: "device:/dev/tpmrm0".to_owned(), deadline_seconds: 10 }
    }
}

/// The agent's Unix sockets.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AgentSockets {
    /// The SPIFFE Workload API; mode 0666, since callers are told apart by the kernel.
    pub workload: PathBuf,
    /// `status` and its kin; mode 0600.
    pub admin: PathBuf,
}

impl Default for AgentSockets {
    fn default() -> Self {
        Self { workload: "/run/leasehold/workload.sock".into(), admin: "/run/leasehold/admin.sock".into() }
    }
}

/// Where the logs are. One that isn't there is not sent; an empty path says that there is none.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AgentLogs {
    /// The firmware's boot event log.
    pub boot: PathBuf,
    /// systemd's log of what userspace measured.
    pub userspace: PathBuf,
    /// IMA's list, binary.
    pub ima: PathBuf,
}

impl Default for AgentLogs {
    fn default() -> Self {
        Self {
            // As `measurements::sources` has them; a test holds them together.
            boot: "/sys/kernel/security/tpm0/binary_bios_measurements".into(),
            userspace: "/run/log/systemd/tpm2-measure.log".into(),
            ima: "/sys/kernel/security/ima/binary_runtime_measurements".into(),
        }
    }
}

impl AgentLogs {
    /// The path, unless it is empty.
    pub fn given(path: &Path) -> Option<&Path> {
        (!path.as_os_str().is_empty()).then_some(path)
    }
}

/// The PCR watcher.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WatchConfig {
    /// Milliseconds between two readings, 10 to 60 000. Each release reads afresh besides.
    pub interval_ms: u64,
}

impl Default for WatchConfig {
    fn default() -> Self {
        Self { interval_ms: 250 }
    }
}

impl WatchConfig {
    /// The interval, kept within its range.
    pub fn interval(&self) -> Duration {
        Duration::from_millis(self.interval_ms.clamp(10, 60_000))
    }
}

/// The control plane's configuration file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerConfig {
    /// The trust domain this control plane issues for.
    #[serde(deserialize_with = "trust_domain")]
    pub trust_domain: TrustDomain,
    /// Store, keys and CA (mode 0700).
    #[serde(default = "default_server_state")]
    pub state_dir: PathBuf,
    /// The TLS listener.
    #[serde(default = "default_listen")]
    pub listen: std::net::SocketAddr,
    /// The admin socket; mode 0600.
    #[serde(default = "default_server_admin")]
    pub admin_socket: PathBuf,
    /// Keys at rest.
    #[serde(default)]
    pub keys: KeysConfig,
    /// Which TPMs are known and which nodes may join.
    #[serde(default)]
    pub admission: AdmissionConfig,
    /// What registrations must keep to.
    #[serde(default)]
    pub registry: RegistryConfig,
    /// Who approves reference sets.
    #[serde(default)]
    pub policy: PolicyConfig,
    /// Terms.
    #[serde(default)]
    pub terms: TermsConfig,
    /// Logs of nodes.
    #[serde(default)]
    pub logs: ServerLogs,
    /// What is recorded.
    #[serde(default)]
    pub audit: AuditConfig,
    /// Approvals, exceptions and reviews.
    #[serde(default)]
    pub governance: GovernanceConfig,
    /// What relying parties are given.
    #[serde(default)]
    pub published: PublishedConfig,
    /// Firmware profiles of your own: TOML files, or directories of them, beside the shipped ones.
    #[serde(default)]
    pub firmware_profiles: Vec<PathBuf>,
    /// The PCRs every node quotes that has no reference document, as `BANK:LIST`.
    #[serde(default = "default_selection")]
    pub pcrs: String,
    /// `run --accept-clock`: the wall clock is right now, though an earlier run had seen a later time.
    #[serde(skip)]
    pub accept_clock: bool,
}

/// How the control plane's private keys are kept.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KeysConfig {
    /// The file of the 32-byte wrapping key, 0600; made at the first start. Default: `wrapping.key`
    /// in the state directory. Put it on other storage than the backups of the state directory.
    pub wrapping_key: Option<PathBuf>,
    /// Seals the wrapping key to this TPM (`device:PATH` or `swtpm:…`): the file then opens on it
    /// only. A key that already lies in the file is sealed at the next start.
    pub tpm: Option<String>,
}

/// Grade and admission: two things. A genuine TPM alone admits nobody.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdmissionConfig {
    /// PEM files, or directories of them, with the roots (and intermediates) of TPM manufacturers.
    pub ek_roots: Vec<PathBuf>,
    /// Rules by which a node joins without an operator.
    pub join: Vec<JoinRule>,
    /// Floors for TPM firmware by manufacturer, as EK certificates name it: `IFX = "7.85"`. TPMs below get no lease;
    /// known faults have floors already, which `"0.0"` lifts.
    pub tpm_firmware: BTreeMap<String, String>,
}

/// A join rule: every condition it names must hold.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinRule {
    /// Shown in explanations.
    pub name: String,
    /// The least grade: `certified` or `listed`. A rule can't admit an `unknown` TPM.
    pub grade: String,
    /// The one kind of EK that may join: `rsa-2048`, `p-256` or `p-384`; default: any. A TPM often has
    /// certificates for several EKs, and is told apart from another by the one it comes with.
    #[serde(default)]
    pub ek: Option<String>,
    /// The group a joining node is put in.
    #[serde(default)]
    pub group: Option<String>,
    /// The environment a joining node belongs to, one of `registry.environments`.
    #[serde(default)]
    pub environment: String,
}

/// What registrations must keep to.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RegistryConfig {
    /// The environments, e.g. `["prod", "staging"]`: with any, each workload's id begins its path with one, and
    /// nodes and destinations belong to one. Nothing crosses from one to another.
    pub environments: Vec<String>,
    /// The purposes a workload may have; with none, any text.
    pub purposes: Vec<String>,
    /// The longest lifetime of credentials of third-party programs in seconds, 1 to 3600.
    pub third_party_ttl_seconds: u64,
}

impl Default for RegistryConfig {
    fn default() -> Self {
        Self { environments: Vec::new(), purposes: Vec::new(), third_party_ttl_seconds: 900 }
    }
}

/// What relying parties are given.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PublishedConfig {
    /// Where relying parties reach `/v1/crl`, without a path, e.g. `http://pki.example.org`: certificates of workloads
    /// then name their CRL (RFC 5280, 4.2.1.13). Most relying parties fetch CRLs over http only, for a CRL is signed
    /// itself; this server speaks TLS alone, so something that passes the path on has to answer there.
    pub url: Option<String>,
}

/// What is kept of nodes' logs.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServerLogs {
    /// The most that the logs of one node's boot may take, in MiB, 1 to 16 384. A million entries of IMA's
    /// list are about 100 MiB.
    pub node_mib: u64,
}

impl Default for ServerLogs {
    fn default() -> Self {
        Self { node_mib: 256 }
    }
}

/// What is recorded of nodes' doings.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AuditConfig {
    /// The most that one node can have recorded within an hour, in MiB, 1 to 65 536: so much each for attestations, for
    /// SVIDs, for grants, and for what it delivers. Beyond it the node waits, and nobody else.
    pub node_mib_an_hour: u64,
}

impl Default for AuditConfig {
    fn default() -> Self {
        Self { node_mib_an_hour: 64 }
    }
}

/// The keys that must sign a reference set, and a policy bundle, before this server takes it. Their private halves need
/// not be here: `leasehold-server reference sign` works anywhere.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PolicyConfig {
    /// PEM files of the public keys (P-256). Without any, a set needs no signature.
    pub keys: Vec<PathBuf>,
    /// How many different ones of them must have signed, 1 to as many as there are. With 2 nobody's set counts by their
    /// own approval alone.
    pub threshold: usize,
    /// What holds as long as no policy bundle was ever applied: `registered` permits what is registered, within
    /// the guardrails; `deny` permits nothing.
    pub default: PolicyDefault,
    /// How many days decisions are kept, 1 to 3650; those of live credentials longer.
    pub keep_days: u64,
}

/// What holds without a policy bundle.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PolicyDefault {
    /// What is registered is permitted.
    #[default]
    Registered,
    /// Nothing is.
    Deny,
}

impl Default for PolicyConfig {
    fn default() -> Self {
        Self { keys: Vec::new(), threshold: 1, default: PolicyDefault::default(), keep_days: 90 }
    }
}

/// How long what deviates may hold, and how often somebody looks.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GovernanceConfig {
    /// The longest exception, in days, 1 to 366.
    pub exception_days: u64,
    /// The longest approval, in hours, 1 to 720.
    pub approval_hours: u64,
    /// Days after which a workload is to be reviewed again, 1 to 1 000.
    pub review_days: u64,
    /// Days without a release after which a workload counts as unused, 1 to 1 000.
    pub unused_days: u64,
    /// Days after a review was due from which on the workload is suspended; without it none is.
    pub suspend_overdue_days: Option<u64>,
}

impl Default for GovernanceConfig {
    fn default() -> Self {
        Self { exception_days: 90, approval_hours: 24, review_days: 90, unused_days: 30, suspend_overdue_days: None }
    }
}

/// How long things hold.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TermsConfig {
    /// A lease's online term in seconds, 2 to 86 400.
    pub lease_seconds: u64,
    /// The longest X.509-SVID lifetime in seconds; one never outlives its lease.
    pub svid_seconds: u64,
    /// How long a nonce from an enrolment or `GET /v1/nonce` can be used, in seconds.
    pub nonce_seconds: u64,
    /// A CA key's lifetime in days; the next one is published before it is used.
    pub ca_days: u64,
}

impl Default for TermsConfig {
    fn default() -> Self {
        Self { lease_seconds: 600, svid_seconds: 600, nonce_seconds: 60, ca_days: 90 }
    }
}

const fn one() -> usize {
    1
}

fn default_agent_state() -> PathBuf {
    "/var/lib/leasehold".into()
}

fn default_server_state() -> PathBuf {
    "/var/lib/leasehold-server".into()
}

fn default_listen() -> std::net::SocketAddr {
    std::net::SocketAddr::from(([0, 0, 0, 0], 8443))
}

fn default_server_admin() -> PathBuf {
    "/run/leasehold-server/admin.sock".into()
}

fn default_selection() -> String {
    "sha256:0-7,9,11-15".to_owned()
}

fn trust_domain<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<TrustDomain, D::Error> {
    let text = String::deserialize(deserializer)?;
    // `TrustDomain::new` also takes a whole SPIFFE ID; a configuration says the name.
    if text.contains('/') {
        return Err(serde::de::Error::custom(format!(
            "`{text}` is no trust domain: expected a name such as example.org"
        )));
    }
    TrustDomain::new(&text).map_err(|e| serde::de::Error::custom(format!("`{text}` is no trust domain: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_key_is_named_with_its_line_and_the_nearest_known_one() {
        let text = "trust_domain = \"example.org\"\nstate_dirs = \"/x\"\n";
        let error = parse::<AgentConfig>(text, "agent.toml").unwrap_err();
        assert_eq!((error.at.as_str(), error.expected.as_str()), ("agent.toml:2", "perhaps `state_dir`"));
        let text = "trust_domain = \"example.org\"\n[control_plane]\nadress = \"localhost:1\"\n";
        let error = parse::<AgentConfig>(text, "agent.toml").unwrap_err();
        assert_eq!(error.at, "agent.toml:3");
        assert_eq!(error.expected, "perhaps `address`");
    }

    #[test]
    fn a_bad_trust_domain_is_refused() {
        let text = "trust_domain = \"EXAMPLE org\"\n[control_plane]\naddress = \"localhost:1\"\n";
        assert!(parse::<AgentConfig>(text, "agent.toml").unwrap_err().found.contains("no trust domain"));
    }

    #[test]
    fn defaults_are_the_documented_ones() {
        let config: AgentConfig =
            parse("trust_domain = \"example.org\"\n[control_plane]\naddress = \"localhost:1\"\n", "agent.toml")
                .unwrap();
        assert_eq!(config.watch.interval(), Duration::from_millis(250));
        assert_eq!(config.tpm.address, "device:/dev/tpmrm0");
        use crate::measurements::sources::{BOOT_LOG, IMA_LIST, USERSPACE_LOG};
        let paths = [&config.logs.boot, &config.logs.userspace, &config.logs.ima];
        assert_eq!(paths.map(|path| path.to_str().unwrap()), [BOOT_LOG, USERSPACE_LOG, IMA_LIST]);
        let config: ServerConfig = parse("trust_domain = \"example.org\"\n", "server.toml").unwrap();
        assert_eq!(config.terms.lease_seconds, 600);
    }
}
