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

/// Puts a document in force for a node.
pub fn assign(store: &Path, node: &str, document: &Document) {
    let store = rusqlite::Connection::open(store).unwrap();
    store.busy_timeout(std::time::Duration::from_secs(20)).unwrap();
    let set = &document.set;
    store
        .execute("UPDATE reference_documents SET retired_at = 1 WHERE name = ?1 AND retired_at IS NULL", [&set.name])
        .unwrap();
    store
        .execute(
            "INSERT INTO reference_documents(name, version, digest, document, facts, imported_at)
             VALUES (?1, ?2, ?3, ?4, '{}', 0)",
            rusqlite::params![set.name, i64::try_from(set.version).unwrap(), document.digest, document.bytes],
        )
        .unwrap();
    store
        .execute(
            "INSERT INTO reference_assignments(node, name, assigned_at) VALUES (?1, ?2, 0)
             ON CONFLICT(node) DO UPDATE SET name = ?2",
            rusqlite::params![hex::decode(node).unwrap(), set.name],
        )
        .unwrap();
}
