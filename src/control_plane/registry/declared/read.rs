//! Files in, a declaration out; each mistake with file, line and key.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use toml::Spanned;

use crate::codes::{self, Refusal};
use crate::config;
use crate::control_plane::registry::owners::Kind;
use crate::control_plane::registry::workloads::Stated;

/// The most files of a declaration, and the most bytes in them.
const LIMITS: (usize, usize) = (256, 1 << 20);

/// A file of a declaration.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceFile {
    /// Its name in messages.
    pub name: String,
    /// What stands in it.
    pub text: String,
}

/// What there should be.
#[derive(Clone, Debug, Default)]
pub struct Declaration {
    /// Owners.
    pub owners: Vec<Placed<OwnerText>>,
    /// Destinations.
    pub destinations: Vec<Placed<DestinationText>>,
    /// Named EKs.
    pub eks: Vec<Placed<EkText>>,
    /// Where nodes are. They prove themselves: nothing here makes one.
    pub nodes: Vec<Placed<NodeText>>,
    /// Workloads.
    pub workloads: Vec<Placed<WorkloadText>>,
}

/// Something, and where it was declared.
#[derive(Clone, Debug)]
pub struct Placed<T> {
    /// What.
    pub what: T,
    /// Where.
    pub place: Place,
}

/// Where something was declared.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    file: String,
    line: usize,
    /// The lines of its keys.
    keys: BTreeMap<String, usize>,
}

/// `[[owner]]`.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OwnerText {
    pub name: String,
    #[serde(default)]
    pub contact: String,
    #[serde(default)]
    pub kind: Kind,
    /// Left, or back; unsaid, it stays as it is.
    pub retired: Option<bool>,
}

/// `[[destination]]`.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DestinationText {
    pub name: String,
    #[serde(default)]
    pub environment: String,
    #[serde(default)]
    pub description: String,
}

/// `[[ek]]`: by its TPM name, or by the SHA-256 of its public key.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EkText {
    pub name: Option<String>,
    pub key: Option<String>,
    pub label: String,
    pub group: Option<String>,
    #[serde(default)]
    pub environment: String,
}

/// `[[node]]`: what isn't said stays as it is.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeText {
    pub id: String,
    pub group: Option<String>,
    pub environment: Option<String>,
}

/// `[[workload]]`: all of it but for the suspension, which stays as it is if nothing is said.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkloadText {
    pub id: String,
    pub owner: String,
    pub purpose: String,
    #[serde(default)]
    pub description: String,
    pub tier: Option<u8>,
    pub node: Option<String>,
    pub node_group: Option<String>,
    pub selectors: Vec<String>,
    pub ttl_seconds: Option<u64>,
    #[serde(default)]
    pub audiences: Vec<String>,
    #[serde(default)]
    pub destinations: Vec<String>,
    #[serde(default)]
    pub roles: Vec<String>,
    #[serde(default)]
    pub third_party: bool,
    #[serde(default)]
    pub interactive: bool,
    #[serde(default)]
    pub hint: String,
    pub suspended: Option<Suspended>,
}

/// `suspended = "why"`, or `suspended = false`, which resumes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Suspended {
    /// Suspended, and why.
    For(String),
    /// Not suspended.
    No,
}

impl WorkloadText {
    /// As an operator would state it.
    pub fn stated(&self) -> Stated {
        let all = self.clone();
        Stated {
            id: all.id,
            owner: all.owner,
            purpose: all.purpose,
            hint: all.hint,
            ttl_seconds: all.ttl_seconds,
            node: all.node,
            node_group: all.node_group,
            selectors: all.selectors,
            description: all.description,
            tier: all.tier,
            audiences: all.audiences,
            destinations: all.destinations,
            roles: all.roles,
            third_party: all.third_party,
            interactive: all.interactive,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileText {
    #[serde(default)]
    owner: Vec<Spanned<OwnerText>>,
    #[serde(default)]
    destination: Vec<Spanned<DestinationText>>,
    #[serde(default)]
    ek: Vec<Spanned<EkText>>,
    #[serde(default)]
    node: Vec<Spanned<NodeText>>,
    #[serde(default)]
    workload: Vec<Spanned<WorkloadText>>,
}

impl Declaration {
    /// Reads files.
    ///
    /// # Errors
    /// [`codes::CONFIG_INVALID`] with file and line, and the nearest known key for an unknown one;
    /// [`codes::ADMIN_INVALID`] for something that is declared twice.
    pub fn read(files: &[SourceFile]) -> Result<Self, Refusal> {
        let bytes: usize = files.iter().map(|file| file.text.len()).sum();
        if files.len() > LIMITS.0 || bytes > LIMITS.1 {
            return Err(Refusal::new(codes::ADMIN_INVALID, format!("{} files of {bytes} bytes", files.len()))
                .expected(format!("at most {} of {} bytes", LIMITS.0, LIMITS.1)));
        }
        let mut all = Self::default();
        for file in files {
            let text: FileText = config::parse(&file.text, &file.name)?;
            all.owners.extend(text.owner.into_iter().map(|one| placed(one, file)));
            all.destinations.extend(text.destination.into_iter().map(|one| placed(one, file)));
            all.eks.extend(text.ek.into_iter().map(|one| placed(one, file)));
            all.nodes.extend(text.node.into_iter().map(|one| placed(one, file)));
            all.workloads.extend(text.workload.into_iter().map(|one| placed(one, file)));
        }
        once(&all.owners, "name", |owner| owner.name.clone())?;
        once(&all.destinations, "name", |destination| destination.name.clone())?;
        once(&all.eks, "label", |ek| format!("{:?} {:?}", ek.name, ek.key).to_ascii_lowercase())?;
        once(&all.nodes, "id", |node| node.id.to_ascii_lowercase())?;
        once(&all.workloads, "id", |workload| workload.id.clone())?;
        Ok(all)
    }
}

impl Place {
    /// `refusal`, which names what an option of the command line would be, at the line of its key.
    pub fn refused(&self, refusal: Refusal) -> Refusal {
        if refusal.code == codes::STORE_FAILED {
            return refusal;
        }
        let key = match refusal.at.as_str() {
            "--ttl" => "ttl_seconds",
            "--selector" => "selectors",
            "--audience" => "audiences",
            "--destination" => "destinations",
            "--role" => "roles",
            "the owner's name" | "the destination's name" => "name",
            option => option.strip_prefix("--").unwrap_or_default(),
        }
        .replace('-', "_");
        let at = match self.keys.get(&key) {
            Some(line) => format!("{}:{line}: {key}", self.file),
            None if key.is_empty() && !refusal.at.is_empty() => format!("{self}: {}", refusal.at),
            None if key.is_empty() => self.to_string(),
            None => format!("{self}: {key}"),
        };
        Refusal { at, ..refusal }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

fn placed<T>(spanned: Spanned<T>, file: &SourceFile) -> Placed<T> {
    let start = spanned.span().start.min(file.text.len());
    let before = file.text.get(..start).unwrap_or_default();
    let line = 1 + before.bytes().filter(|byte| *byte == b'\n').count();
    let rest = file.text.get(start..).unwrap_or_default();
    let mut keys = BTreeMap::new();
    for (number, text) in rest.lines().enumerate() {
        // The next table ends it.
        if number > 0 && text.starts_with('[') {
            break;
        }
        if let Some((key, _)) = text.split_once('=') {
            keys.entry(key.trim().to_owned()).or_insert(line + number);
        }
    }
    Placed { what: spanned.into_inner(), place: Place { file: file.name.clone(), line, keys } }
}

/// Refuses what is declared twice: nobody could say which counts.
fn once<T>(all: &[Placed<T>], key: &str, name: impl Fn(&T) -> String) -> Result<(), Refusal> {
    let mut seen: BTreeMap<String, &Place> = BTreeMap::new();
    for one in all {
        if let Some(first) = seen.insert(name(&one.what), &one.place) {
            let refusal = Refusal::new(codes::ADMIN_INVALID, format!("it is declared at {first}, too"));
            return Err(one.place.refused(refusal.at(format!("--{key}"))));
        }
    }
    Ok(())
}

impl<'de> Deserialize<'de> for Suspended {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Why;
        impl Visitor<'_> for Why {
            type Value = Suspended;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the reason, or false")
            }

            fn visit_str<E: de::Error>(self, reason: &str) -> Result<Suspended, E> {
                Ok(Suspended::For(reason.to_owned()))
            }

            fn visit_bool<E: de::Error>(self, suspended: bool) -> Result<Suspended, E> {
                if suspended { Err(E::invalid_value(de::Unexpected::Bool(true), &self)) } else { Ok(Suspended::No) }
            }
        }
        deserializer.deserialize_any(Why)
    }
}
