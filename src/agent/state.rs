//! What the agent keeps between starts: its membership, and the floor under lease sequences.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

use serde::{Deserialize, Serialize};

use super::attester::{Attester, Certification};
use super::reporter::Sent;
use crate::codes::{self, Refusal};
use crate::identity::TrustDomain;
use crate::protocol::Membership;
use crate::secret::{private_directory, sweep_leftovers, write_atomically};

/// The reference document whose rules new entries of IMA's list are judged by.
const DOCUMENT: &str = "references.cose";

/// The file that what is remembered is kept in.
const ENROLMENT: &str = "enrolment.cbor";

/// The file's version; another one is put aside and the node enrols again.
const VERSION: u32 = 1;

/// The contents of `enrolment.cbor` in the state directory. Nothing in it is secret: the node
/// key is in the TPM, and without that TPM the file is worth nothing.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Remembered {
    version: u32,
    trust_domain: String,
    /// The TPM name of the node key the membership is for.
    #[serde(with = "serde_bytes")]
    pub node_key_name: Vec<u8>,
    /// The TPM name of the EK that activated the enrolment's credential. A reading is believed only
    /// in a session salted to it: an EK that merely answers on the bus may be anybody's.
    #[serde(with = "serde_bytes")]
    pub ek_name: Vec<u8>,
    /// The membership.
    pub membership: Membership,
    /// The AK's certification of the node key, from the enrolment.
    pub certification: Certification,
    /// The control plane's epoch of the last lease.
    #[serde(with = "serde_bytes")]
    pub epoch: [u8; 16],
    /// The highest lease sequence seen in it: an older lease is never accepted.
    pub last_sequence: u64,
    /// What was sent of this boot's logs.
    #[serde(default)]
    pub sent: Sent,
    /// The highest version seen of each reference set: rules of an older one are never taken up again.
    #[serde(default)]
    pub versions: BTreeMap<String, u64>,
}

impl Remembered {
    /// A fresh membership.
    ///
    /// # Errors
    /// When the EK's public area can't be read.
    pub fn new(
        trust_domain: &TrustDomain,
        attester: &Attester,
        membership: Membership,
        certification: Certification,
    ) -> Result<Self, Refusal> {
        let ek_name = attester.ek_name()?;
        Ok(Self::of(trust_domain, attester.node_key.name(), ek_name, membership, certification))
    }

    /// A fresh membership of the keys with these TPM names.
    pub(super) fn of(
        trust_domain: &TrustDomain,
        node_key_name: Vec<u8>,
        ek_name: Vec<u8>,
        membership: Membership,
        certification: Certification,
    ) -> Self {
        Self {
            version: VERSION,
            trust_domain: trust_domain.to_string(),
            node_key_name,
            ek_name,
            membership,
            certification,
            epoch: [0; 16],
            last_sequence: 0,
            sent: Sent::default(),
            versions: BTreeMap::new(),
        }
    }

    /// Whether there is a node certificate: it goes when the control plane refuses it.
    pub fn is_member(&self) -> bool {
        !self.membership.certificate.is_empty()
    }
}

/// The membership that an agent with this state directory has, whether or not it runs.
pub fn membership(state_dir: &Path) -> Option<Membership> {
    let bytes = std::fs::read(state_dir.join(ENROLMENT)).ok()?;
    serde_cbor::from_slice::<Remembered>(&bytes).ok().map(|remembered| remembered.membership)
}

/// The file the memory is kept in, and the lock that keeps a second agent away from it.
#[derive(Debug)]
pub struct Memory {
    path: PathBuf,
    _lock: File,
}

impl Memory {
    /// The memory in `state_dir`, which is created (0700) if missing.
    ///
    /// # Errors
    /// When the directory can't be made, or another process, `run` or `join`, uses it: two would
    /// enrol against each other.
    pub fn in_directory(state_dir: &Path) -> Result<Self, Refusal> {
        let refuse = |found: String| Refusal::new(codes::CONFIG_INVALID, found).at(state_dir.display().to_string());
        let directory = private_directory(state_dir).map_err(|e| refuse(e.to_string()))?;
        let lock = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(directory.join("lock"))
            .map_err(|e| refuse(e.to_string()))?;
        // The kernel lets go of it when the process ends, however it ends.
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|_| {
            refuse("another leasehold-agent uses this state directory".to_owned())
                .expected("`leasehold-agent status`, if it runs: it enrols by itself")
        })?;
        let path = directory.join(ENROLMENT);
        sweep_leftovers(&path);
        Ok(Self { path, _lock: lock })
    }

    /// What is remembered for this trust domain and this TPM's node key and EK. A file that can't be used is put
    /// aside as `enrolment.cbor.unusable`: enrolling again needs no operator, so nothing is lost.
    pub fn recall(&self, trust_domain: &TrustDomain, attester: &Attester) -> Option<Remembered> {
        let ek_name = attester.ek_name().ok()?;
        let bytes = match std::fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::warn!(path = %self.path.display(), %error, "the enrolment can't be read; enrolling again");
                return None;
            }
        };
        let why = match serde_cbor::from_slice::<Remembered>(&bytes) {
            Err(error) => format!("it can't be read: {error}"),
            Ok(remembered) if remembered.version != VERSION => format!("it is of version {}", remembered.version),
            Ok(remembered) if remembered.trust_domain != trust_domain.as_str() => {
                format!("it is for the trust domain {}", remembered.trust_domain)
            }
            Ok(remembered) if remembered.node_key_name != attester.node_key.name() || remembered.ek_name != ek_name => {
                "it is for another TPM".to_owned()
            }
            Ok(remembered) => return Some(remembered),
        };
        tracing::warn!(path = %self.path.display(), why, "the enrolment is put aside; enrolling again");
        let _ = std::fs::rename(&self.path, self.path.with_extension("cbor.unusable"));
        None
    }

    /// A file of this name beside it.
    pub fn beside(&self, name: &str) -> PathBuf {
        self.path.with_file_name(name)
    }

    /// The reference document that was kept, if there is one; nothing is believed of it yet.
    pub fn document(&self) -> Option<Vec<u8>> {
        std::fs::read(self.path.with_file_name(DOCUMENT)).ok()
    }

    /// Keeps a reference document.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn keep_document(&self, bytes: &[u8]) -> std::io::Result<()> {
        write_atomically(&self.path.with_file_name(DOCUMENT), bytes)
    }

    /// Keeps `remembered`, whole or not at all.
    ///
    /// # Errors
    /// When the file can't be written; the old one then stands.
    pub fn keep(&self, remembered: &Remembered) -> std::io::Result<()> {
        let bytes = serde_cbor::to_vec(remembered).map_err(std::io::Error::other)?;
        write_atomically(&self.path, &bytes)
    }
}
