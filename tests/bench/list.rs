//! Entries of IMA's list, rules for them, and documents with such rules.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::collections::BTreeMap;
use std::path::Path;

use leasehold::measurements::LogHash;
use leasehold::tpm::Bank;
use leasehold::verify::references::{BootState, Document, ReferenceSet};
use leasehold::verify::runtime::RuntimeRules;
use sha1::Sha1;
use sha2::{Digest, Sha256};

/// The PCRs of the profile `swtpm-dev` that a value stands for.
pub const VALUES: [u8; 14] = [0, 1, 2, 3, 4, 5, 6, 7, 9, 11, 12, 13, 14, 15];

/// An `ima-ng` entry over SHA-256, and what it extends into that bank.
pub fn entry(path: &str, digest: &[u8]) -> (Vec<u8>, [u8; 32]) {
    let field = |bytes: &[u8]| [&u32::try_from(bytes.len()).unwrap().to_le_bytes()[..], bytes].concat();
    let digest = [&b"sha256:\0"[..], digest].concat();
    let data = [field(&digest), field(&[path.as_bytes(), b"\0"].concat())].concat();
    let head = [&10u32.to_le_bytes()[..], &Sha1::digest(&data)].concat();
    ([head, field(b"ima-ng"), field(&data)].concat(), Sha256::digest(&data).into())
}

/// PCR 10 after an entry.
pub fn extended(value: &[u8], digest: &[u8; 32]) -> [u8; 32] {
    Sha256::digest([value, digest].concat()).into()
}

/// Rules that allow these files.
pub fn rules(files: &[(&str, &[u8])]) -> RuntimeRules {
    let mut rules = RuntimeRules::default();
    for (path, contents) in files {
        rules.allow_file(path.as_bytes(), LogHash::Sha256, &Sha256::digest(contents));
    }
    rules
}

/// A document of one state with these values, and rules for what may run.
pub fn document(name: &str, version: u64, values: BTreeMap<u8, Vec<u8>>, runtime: RuntimeRules) -> Document {
    let state = BootState { name: "as-it-booted".to_owned(), values, ..BootState::default() };
    let set = ReferenceSet {
        name: name.to_owned(),
        version,
        profile: "swtpm-dev".to_owned(),
        bank: Bank::Sha256,
        states: vec![state],
        runtime: Some(runtime),
    };
    Document::unsigned(set).unwrap()
}

/// Writes a document as an operator would, to be imported.
pub fn write(directory: &Path, document: &Document) -> String {
    let path = directory.join(format!("{}-{}.toml", document.set.name, document.set.version));
    std::fs::write(&path, document.set.to_toml()).unwrap();
    path.display().to_string()
}
