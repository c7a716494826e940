//! Reference values: what a node should be (RFC 9334).
//!
//! A set names the states a node may have booted into, any *one* of which must be met as a whole,
//! and the rules for what may run. It is versioned, and where the trust domain has a policy key,
//! signed by it.
//!
//! ```text
//! TOML (people) ─▶ ReferenceSet ─▶ CBOR (wire) ─▶ COSE_Sign (signed, once or more) ─▶ Document
//!       text          check           wire              document
//! ```

mod check;
mod document;
mod envelope;
mod learnt;
mod policy;
mod text;
mod wire;

pub use check::{DIGESTS_LIMIT, EVENTS_LIMIT, STATES_LIMIT};
pub use document::{Document, LIMIT, PolicyKey};
#[cfg(feature = "control-plane")]
pub(crate) use envelope::Envelope;
pub use learnt::LearntSet;
pub use policy::Policy;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::runtime::RuntimeRules;
use crate::clock::WallTime;
use crate::tpm::Bank;

/// The CDDL (RFC 8610) of documents.
pub const CDDL: &str = include_str!("references.cddl");

/// A set of reference values.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReferenceSet {
    /// The name it goes by, 1 to 64 printable ASCII characters; it stands in leases.
    pub name: String,
    /// Grows with every change.
    pub version: u64,
    /// The firmware profile that its states are read under.
    pub profile: String,
    /// The one bank that is quoted: another one is a downgrade.
    pub bank: Bank,
    /// The accepted states; evidence must meet one of them as a whole.
    pub states: Vec<BootState>,
    /// What may run; `None` says nothing of the runtime layer, which then isn't proven.
    pub runtime: Option<RuntimeRules>,
}

/// One state a node may have booted into.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct BootState {
    /// Its name, e.g. `6.1.0-56`; shown in verdicts.
    pub name: String,
    /// From then on it is no longer accepted.
    pub until: Option<WallTime>,
    /// The events of a PCR, in order: those of the boot log first, then those of the userspace log,
    /// of which the node may have come only part of the way.
    pub events: BTreeMap<u8, Vec<EventReference>>,
    /// The value of a PCR, where no log explains it or none is wanted to.
    pub values: BTreeMap<u8, Vec<u8>>,
    /// What Secure Boot must have been.
    pub secure_boot: Option<SecureBootReference>,
}

/// One event that is expected.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EventReference {
    /// `EV_…` of the boot log, or `systemd:` and the kind of the userspace log. For people: the
    /// digest decides.
    #[serde(rename = "type")]
    pub kind: String,
    /// What was extended, in the set's bank. Empty for a part (type EV_IPL) whose contents nobody knew:
    /// it stands in its place and isn't judged.
    #[serde(with = "hex::serde")]
    pub digest: Vec<u8>,
    /// What it is, in words, e.g. `UKI section .cmdline`.
    pub what: String,
}

impl EventReference {
    /// Whether an event of this digest is the one that is expected.
    pub fn accepts(&self, digest: &[u8]) -> bool {
        self.digest.is_empty() || self.digest == digest
    }
}

/// What Secure Boot must have been. Its presence also accepts images (PCR 4) for which the state has
/// no events: the firmware verified them under these authorities.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SecureBootReference {
    /// SHA-256 of the data of each accepted EV_EFI_VARIABLE_AUTHORITY event's signature (the
    /// EFI_SIGNATURE_DATA: owner and certificate); empty: whatever the measured db allows.
    #[serde(with = "hex_list", skip_serializing_if = "Vec::is_empty")]
    pub authorities: Vec<Vec<u8>>,
    /// SHA-256 of the variable data of PK, KEK, db and dbx that are accepted, by variable name; a
    /// variable without an entry may be anything.
    #[serde(with = "hex_lists", skip_serializing_if = "BTreeMap::is_empty")]
    pub variables: BTreeMap<String, Vec<Vec<u8>>>,
}

/// A list of byte strings as hexadecimal text.
pub(crate) mod hex_list {
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    pub fn serialize<S: Serializer>(list: &[Vec<u8>], serializer: S) -> Result<S::Ok, S::Error> {
        list.iter().map(hex::encode).collect::<Vec<_>>().serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Vec<u8>>, D::Error> {
        let texts = Vec::<String>::deserialize(deserializer)?;
        texts.iter().map(|text| hex::decode(text).map_err(D::Error::custom)).collect()
    }
}

/// Such lists by name.
pub(crate) mod hex_lists {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    type Lists = BTreeMap<String, Vec<Vec<u8>>>;

    pub fn serialize<S: Serializer>(lists: &Lists, serializer: S) -> Result<S::Ok, S::Error> {
        let texts: BTreeMap<&str, Vec<String>> =
            lists.iter().map(|(name, list)| (name.as_str(), list.iter().map(hex::encode).collect())).collect();
        texts.serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Lists, D::Error> {
        let texts = BTreeMap::<String, Vec<String>>::deserialize(deserializer)?;
        let list =
            |texts: Vec<String>| texts.iter().map(hex::decode).collect::<Result<_, _>>().map_err(D::Error::custom);
        texts.into_iter().map(|(name, texts)| Ok((name, list(texts)?))).collect()
    }
}
