//! Rules checked and compiled: a digest, path or name is found in constant time, however many the
//! rules name.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use super::signature::{self, Signer};
use super::{Exclusion, HexBytes, Mode, RuntimeRules};
use crate::codes::{self, Refusal};
use crate::measurements::LogHash;
use crate::measurements::ima::{ImaEntry, escaped, unescaped};

/// [`RuntimeRules`] that were checked, for looking up.
#[derive(Clone, Debug)]
pub struct CompiledRules {
    mode: Mode,
    digests: Digests,
    files: HashMap<Vec<u8>, Vec<Digest>>,
    signers: Vec<Signer>,
    exclusions: Paths,
    waivers: Paths,
    buffers: HashMap<Vec<u8>, Vec<Digest>>,
}

/// Why no rule allows an entry, in words.
pub(super) type Why = Cow<'static, str>;

impl RuntimeRules {
    /// Checks every rule: known algorithms, digests of their size, absolute paths, certificates that can be
    /// read, exclusions and waivers with an argument.
    ///
    /// # Errors
    /// [`codes::VERIFY_REFERENCE_MALFORMED`] naming the rule by its key.
    pub fn check(&self) -> Result<(), Refusal> {
        self.compile().map(drop)
    }

    /// The same rules, checked as by [`Self::check`], for a [`super::Judge`].
    ///
    /// # Errors
    /// As [`Self::check`].
    pub fn compile(&self) -> Result<CompiledRules, Refusal> {
        let mut digests = Digests::default();
        for (name, list) in &self.digests {
            for HexBytes(bytes) in list {
                let at = || format!("runtime.digests.{name}");
                digests.insert(Digest::new(name, bytes).map_err(|wrong| wrong.refusal(at()))?);
            }
        }
        let mut signers = Vec::new();
        for (number, certificate) in self.signers.iter().enumerate() {
            signers.push(Signer::parse(certificate).map_err(|what| {
                malformed(what).at(format!("runtime.signers, number {number}")).expected(
                    "a certificate (DER) of an RSA key of 2048 to 8192 bits, or a key on P-256, P-384 or P-521",
                )
            })?);
        }
        Ok(CompiledRules {
            mode: self.mode,
            digests,
            files: compile_names("files", &self.files, is_normal)?,
            signers,
            exclusions: Paths::compile("exclusions", &self.exclusions)?,
            waivers: Paths::compile("waivers", &self.waivers)?,
            buffers: compile_names("buffers", &self.buffers, |name| !name.is_empty())?,
        })
    }

    /// Adds the rule that allows this digest under this path.
    pub fn allow_file(&mut self, path: &[u8], hash: LogHash, digest: &[u8]) {
        let digest = format!("{hash}:{}", hex::encode(digest));
        let accepted = self.files.entry(escaped(path)).or_default();
        if !accepted.contains(&digest) {
            accepted.push(digest);
        }
    }
}

impl CompiledRules {
    /// Whether rules refuse.
    pub const fn mode(&self) -> Mode {
        self.mode
    }

    /// Whether a violation under this path is waived.
    pub(super) fn waives(&self, path: &[u8]) -> bool {
        self.waivers.cover(path)
    }

    /// Judges an entry that is neither a violation nor a `boot_aggregate`.
    ///
    /// # Errors
    /// Why no rule allows it.
    pub(super) fn allow(&self, entry: &ImaEntry<'_>) -> Result<(), Why> {
        let fields = &entry.fields;
        match entry.template {
            "ima-ng" | "ima-sig" | "ima-ngv2" | "ima-sigv2" => {}
            "ima-buf" => return self.allow_buffer(entry),
            "ima" => return Err("the template `ima` has no digest stronger than SHA-1".into()),
            template => return Err(format!("the template `{template}` is not known here").into()),
        }
        if fields.digest.iter().all(|byte| *byte == 0) {
            return Err("it has no digest".into());
        }
        let Some(hash) = strong(fields.algorithm).filter(|hash| hash.size() == fields.digest.len()) else {
            // Its path may be excluded all the same: that rests on no digest.
            return match self.exclusions.cover(fields.path) {
                true => Ok(()),
                false => Err(format!("a {} digest is not believed", weak_name(fields.algorithm)).into()),
            };
        };
        let listed = self.digests.contains(hash, fields.digest)
            || self.files.get(fields.path).is_some_and(|list| list.iter().any(|one| one.is(hash, fields.digest)))
            || self.exclusions.cover(fields.path);
        if listed {
            return Ok(());
        }
        signature::signed_by(&self.signers, hash, fields.digest, fields.signature)
    }

    fn allow_buffer(&self, entry: &ImaEntry<'_>) -> Result<(), Why> {
        let fields = &entry.fields;
        let listed = self.buffers.get(fields.path).is_some_and(|list| {
            // The template data, buffer and all, was extended: the buffer's own hash decides.
            list.iter().any(|one| one.is(one.hash, &one.hash.digest(&[fields.buffer])))
        });
        if listed { Ok(()) } else { Err("no rule for this buffer".into()) }
    }

    /// The nearest that would have been accepted: the digest for that very path, else the path for
    /// that digest. Searches; for those few entries that are shown.
    pub(super) fn nearest(&self, entry: &ImaEntry<'_>) -> String {
        let fields = &entry.fields;
        let by_name = if entry.template == "ima-buf" { &self.buffers } else { &self.files };
        if let Some(digest) = by_name.get(fields.path).and_then(|list| list.last()) {
            return format!("{}:{}", digest.hash, hex::encode(&digest.bytes));
        }
        let Some(hash) = strong(fields.algorithm) else { return String::new() };
        let same = |list: &[Digest]| list.iter().any(|one| one.is(hash, fields.digest));
        // The least of them: the order of a map is not the same twice.
        let path = by_name.iter().filter(|(_, list)| same(list)).map(|(path, _)| path).min();
        path.map_or(String::new(), |path| format!("the same digest as {}", escaped(path)))
    }
}

/// The hash of this name, if its digests are believed.
fn strong(name: &str) -> Option<LogHash> {
    LogHash::from_name(name).filter(|hash| *hash != LogHash::Sha1)
}

fn weak_name(algorithm: &str) -> &str {
    if algorithm.is_empty() { "nameless" } else { algorithm }
}

fn malformed(what: impl Into<String>) -> Refusal {
    Refusal::new(codes::VERIFY_REFERENCE_MALFORMED, what)
}

/// A digest that a rule names.
#[derive(Clone, Debug)]
struct Digest {
    hash: LogHash,
    bytes: Vec<u8>,
}

/// What is wrong with a digest, and what was expected.
struct Wrong(String, &'static str);

impl Wrong {
    fn refusal(self, at: String) -> Refusal {
        malformed(self.0).at(at).expected(self.1)
    }
}

impl Digest {
    fn new(algorithm: &str, bytes: &[u8]) -> Result<Self, Wrong> {
        let hash =
            strong(algorithm).ok_or_else(|| Wrong(format!("algorithm `{algorithm}`"), "sha256, sha384 or sha512"))?;
        if bytes.len() != hash.size() {
            return Err(Wrong(format!("{} bytes for {hash}", bytes.len()), "32, 48 or 64 bytes, by the algorithm"));
        }
        if bytes.iter().all(|byte| *byte == 0) {
            return Err(Wrong("a digest of zeros".to_owned(), "a digest: zeros stand for what wasn't measured"));
        }
        Ok(Self { hash, bytes: bytes.to_vec() })
    }

    /// Reads `sha256:…`.
    fn parse(text: &str) -> Result<Self, Wrong> {
        let wrong = || Wrong(format!("`{text}`"), "an algorithm, a colon and hexadecimal digits, e.g. sha256:3d9f…");
        let (algorithm, digits) = text.split_once(':').ok_or_else(wrong)?;
        Self::new(algorithm, &hex::decode(digits).map_err(|_| wrong())?)
    }

    fn is(&self, hash: LogHash, bytes: &[u8]) -> bool {
        self.hash == hash && self.bytes == bytes
    }
}

/// Digests that are allowed wherever they are found.
#[derive(Clone, Debug, Default)]
struct Digests {
    sha256: HashSet<[u8; 32]>,
    sha384: HashSet<[u8; 48]>,
    sha512: HashSet<[u8; 64]>,
}

impl Digests {
    fn insert(&mut self, digest: Digest) {
        let bytes = digest.bytes.as_slice();
        // A digest has its algorithm's size: `Digest::new` saw to it.
        match digest.hash {
            LogHash::Sha256 => self.sha256.extend(<[u8; 32]>::try_from(bytes)),
            LogHash::Sha384 => self.sha384.extend(<[u8; 48]>::try_from(bytes)),
            LogHash::Sha512 => self.sha512.extend(<[u8; 64]>::try_from(bytes)),
            LogHash::Sha1 => {}
        }
    }

    fn contains(&self, hash: LogHash, digest: &[u8]) -> bool {
        match hash {
            LogHash::Sha256 => <&[u8; 32]>::try_from(digest).is_ok_and(|digest| self.sha256.contains(digest)),
            LogHash::Sha384 => <&[u8; 48]>::try_from(digest).is_ok_and(|digest| self.sha384.contains(digest)),
            LogHash::Sha512 => <&[u8; 64]>::try_from(digest).is_ok_and(|digest| self.sha512.contains(digest)),
            LogHash::Sha1 => false,
        }
    }
}

fn compile_names<'a>(
    key: &str,
    rules: impl IntoIterator<Item = (&'a String, &'a Vec<String>)>,
    is_right: fn(&[u8]) -> bool,
) -> Result<HashMap<Vec<u8>, Vec<Digest>>, Refusal> {
    let mut names = HashMap::new();
    for (text, digests) in rules {
        let at = || format!("runtime.{key}, {text:?}");
        let name = unescaped(text);
        if !is_right(&name) {
            return Err(malformed(format!("`{text}`"))
                .at(at())
                .expected("an absolute path without `.`, `..` and `//`"));
        }
        let digests = digests.iter().map(|digest| Digest::parse(digest)).collect::<Result<Vec<_>, _>>();
        let digests = digests.map_err(|wrong| wrong.refusal(at()))?;
        // Two spellings of one name are one rule.
        names.entry(name).or_insert_with(Vec::new).extend(digests);
    }
    Ok(names)
}

/// Paths, and directories with all below them.
#[derive(Clone, Debug, Default)]
struct Paths {
    exact: HashSet<Vec<u8>>,
    /// Each with the `/` at its end.
    below: Vec<Vec<u8>>,
}

impl Paths {
    fn compile(key: &str, rules: &[Exclusion]) -> Result<Self, Refusal> {
        let mut paths = Self::default();
        for Exclusion { path: text, reason } in rules {
            let at = format!("runtime.{key}, {text:?}");
            if reason.trim().is_empty() {
                return Err(malformed("no reason").at(at).expected("why this isn't judged"));
            }
            let path = unescaped(text);
            if !is_normal(path.strip_suffix(b"/").unwrap_or(&path)) {
                return Err(malformed(format!("`{text}`")).at(at).expected(
                    "an absolute path below `/`, without `.`, `..` and `//`; with a `/` at its end: all below it",
                ));
            }
            if path.ends_with(b"/") {
                paths.below.push(path);
            } else {
                paths.exact.insert(path);
            }
        }
        Ok(paths)
    }

    fn cover(&self, path: &[u8]) -> bool {
        if self.exact.is_empty() && self.below.is_empty() {
            return false;
        }
        // `/var/log/../../bin/sh` is not below `/var/log/`.
        is_normal(path) && (self.exact.contains(path) || self.below.iter().any(|directory| path.starts_with(directory)))
    }
}

/// Whether a path is absolute, and says where it leads: without empty parts, `.` and `..`.
fn is_normal(path: &[u8]) -> bool {
    path.strip_prefix(b"/").is_some_and(|path| {
        path.split(|byte| *byte == b'/').all(|part| !part.is_empty() && part != b"." && part != b"..")
    })
}
