//! A vector: one submission as a file, and the code it must be refused with.
//!
//! `manifest.toml` has the names, descriptions and codes; `NAME.toml` has the bytes, in hexadecimal.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use leasehold::clock::{BootId, WallTime};
use leasehold::codes::Refusal;
use leasehold::evidence::UnverifiedEvidence;
use leasehold::identity::NodeId;
use leasehold::tpm::ResetCounts;
use leasehold::tpm::structures::Public;
use leasehold::verify::appraisal;
use leasehold::verify::profile::Profile;
use leasehold::verify::{AkPublic, EkRoots, EnrolledKeys, NodeKey, PriorQuote, authenticate, endorsement};
use serde::Deserialize;

/// A line of the manifest.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listed {
    /// Also the file's name, without `.toml`.
    pub name: String,
    /// What is wrong, in words.
    pub description: String,
    /// The refusal's code; empty when the submission is accepted.
    pub expected: String,
    /// Set where the refusal needs a control plane's memory: how to play it against one.
    #[serde(default)]
    pub server: String,
}

#[derive(Deserialize)]
struct Manifest {
    vector: Vec<Listed>,
}

/// What the verifier gets to see.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vector {
    /// The keys of the node's row.
    pub keys: Option<Keys>,
    /// What the node sent.
    pub submission: Option<Submission>,
    /// What it was asked.
    pub question: Option<Question>,
    /// The last quote accepted from it.
    pub prior: Option<Prior>,
    /// Its endorsement.
    pub endorsement: Option<Endorsement>,
    /// Its logs.
    pub logs: Option<Logs>,
}

#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Logs {
    /// The shipped firmware profile they are read under.
    pub profile: String,
    pub boot: Hex,
}

#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Keys {
    pub node: Hex,
    pub ak_public: Hex,
    pub activated_name: Hex,
    pub node_key_public: Hex,
    pub certification_nonce: Hex,
}

#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Submission {
    /// SubjectPublicKeyInfo of the client certificate.
    pub channel: Hex,
    pub evidence: Hex,
    /// Zeros follow up to this size in bytes: a file of 4 MiB would say no more.
    #[serde(default)]
    pub padded_to: usize,
}

#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Question {
    pub nonce: Hex,
    pub selection: String,
    pub nonce_age_seconds: u64,
    /// The node the nonce was given to, where that is another one.
    #[serde(default)]
    pub nonce_of: Option<Hex>,
}

#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prior {
    pub reset: u32,
    pub restart: u32,
    pub clock_ms: u64,
    pub boot_id: Hex,
    pub elapsed_seconds: u64,
}

#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Endorsement {
    pub ek_public: Hex,
    pub certificate: Hex,
    pub root: Hex,
    /// Seconds since 1970.
    pub now: u64,
}

/// Bytes, in hexadecimal.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(transparent)]
pub struct Hex(#[serde(with = "hex")] pub Vec<u8>);

impl Hex {
    fn array<const N: usize>(&self) -> [u8; N] {
        self.0.as_slice().try_into().unwrap()
    }
}

impl Vector {
    /// Gives the verifier everything there is, in the order a control plane does.
    pub fn play(&self) -> Result<(), Refusal> {
        if let Some(it) = &self.endorsement {
            let ek = Public::parse(&it.ek_public.0)?;
            let roots = EkRoots::from_der(vec![it.root.0.clone()])?;
            endorsement::grade(&ek, Some(&it.certificate.0), &[], &roots, false, WallTime(it.now))?;
        }
        let (Some(keys), Some(submission), Some(question)) = (&self.keys, &self.submission, &self.question) else {
            return Ok(());
        };
        let mut evidence = submission.evidence.0.clone();
        evidence.resize(evidence.len().max(submission.padded_to), 0);
        let evidence = UnverifiedEvidence::decode(&evidence)?;
        let keys = EnrolledKeys {
            node: Some(NodeId::from_bytes(keys.node.array())),
            ak: AkPublic::parse_activated(&keys.ak_public.0, &keys.activated_name.0)?,
            node_key: NodeKey::parse(&keys.node_key_public.0)?,
            certification_nonce: keys.certification_nonce.array(),
        };
        let prior = self.prior.as_ref().map(|prior| PriorQuote {
            counts: ResetCounts { reset: prior.reset, restart: prior.restart },
            clock_ms: prior.clock_ms,
            boot_id: BootId::from_bytes(prior.boot_id.array()),
            elapsed: Duration::from_secs(prior.elapsed_seconds),
        });
        let authentic = authenticate(evidence, &keys, Some(&submission.channel.0))?;
        let pcrs = authentic.pcrs().clone();
        authentic.fresh(
            &question.nonce.array(),
            question.selection.parse().unwrap(),
            Duration::from_secs(question.nonce_age_seconds),
            prior.as_ref(),
        )?;
        if let Some(it) = &self.logs {
            let profile = Profile::shipped(&it.profile).unwrap();
            let logs = appraisal::Logs { boot: Some(&it.boot.0), ..appraisal::Logs::default() };
            appraisal::measured(&pcrs, &profile, &logs, None)?;
        }
        Ok(())
    }

    /// The file.
    pub fn to_toml(&self) -> String {
        let mut text = String::new();
        let mut table = |name: &str, entries: &[(&str, String)]| {
            let separator = if text.is_empty() { "" } else { "\n" };
            writeln!(text, "{separator}[{name}]").unwrap();
            for (key, value) in entries {
                writeln!(text, "{key} = {value}").unwrap();
            }
        };
        let hex = |bytes: &Hex| format!("\"{}\"", hex::encode(&bytes.0));
        if let Some(it) = &self.keys {
            table(
                "keys",
                &[
                    ("node", hex(&it.node)),
                    ("ak_public", hex(&it.ak_public)),
                    ("activated_name", hex(&it.activated_name)),
                    ("node_key_public", hex(&it.node_key_public)),
                    ("certification_nonce", hex(&it.certification_nonce)),
                ],
            );
        }
        if let Some(it) = &self.submission {
            let mut entries = vec![("channel", hex(&it.channel)), ("evidence", hex(&it.evidence))];
            if it.padded_to > 0 {
                entries.push(("padded_to", it.padded_to.to_string()));
            }
            table("submission", &entries);
        }
        if let Some(it) = &self.question {
            let mut entries = vec![
                ("nonce", hex(&it.nonce)),
                ("selection", format!("\"{}\"", it.selection)),
                ("nonce_age_seconds", it.nonce_age_seconds.to_string()),
            ];
            if let Some(node) = &it.nonce_of {
                entries.push(("nonce_of", hex(node)));
            }
            table("question", &entries);
        }
        if let Some(it) = &self.prior {
            table(
                "prior",
                &[
                    ("reset", it.reset.to_string()),
                    ("restart", it.restart.to_string()),
                    ("clock_ms", it.clock_ms.to_string()),
                    ("boot_id", hex(&it.boot_id)),
                    ("elapsed_seconds", it.elapsed_seconds.to_string()),
                ],
            );
        }
        if let Some(it) = &self.endorsement {
            table(
                "endorsement",
                &[
                    ("ek_public", hex(&it.ek_public)),
                    ("certificate", hex(&it.certificate)),
                    ("root", hex(&it.root)),
                    ("now", it.now.to_string()),
                ],
            );
        }
        if let Some(it) = &self.logs {
            table("logs", &[("profile", format!("\"{}\"", it.profile)), ("boot", hex(&it.boot))]);
        }
        text
    }
}

/// The manifest's file.
pub fn manifest_to_toml(listed: &[Listed]) -> String {
    let mut text = "# Submissions and the refusal each must meet; see the file of the same name.\n".to_owned();
    for it in listed {
        writeln!(text, "\n[[vector]]\nname = \"{}\"\ndescription = \"{}\"", it.name, it.description).unwrap();
        writeln!(text, "expected = \"{}\"", it.expected).unwrap();
        if !it.server.is_empty() {
            writeln!(text, "server = \"{}\"", it.server).unwrap();
        }
    }
    text
}

pub fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/vectors")
}

/// Reads what is checked in.
pub fn read_all() -> Vec<(Listed, Vector)> {
    let read = |name: &str| std::fs::read_to_string(directory().join(name)).unwrap();
    let manifest: Manifest = toml::from_str(&read("manifest.toml")).unwrap();
    manifest
        .vector
        .into_iter()
        .map(|listed| {
            let vector = toml::from_str(&read(&format!("{}.toml", listed.name))).unwrap();
            (listed, vector)
        })
        .collect()
}

/// The files, by name.
pub fn files(vectors: &[(Listed, Vector)]) -> BTreeMap<String, String> {
    let listed: Vec<_> = vectors.iter().map(|(listed, _)| listed.clone()).collect();
    let mut files = BTreeMap::from([("manifest.toml".to_owned(), manifest_to_toml(&listed))]);
    files.extend(vectors.iter().map(|(listed, vector)| (format!("{}.toml", listed.name), vector.to_toml())));
    files
}
