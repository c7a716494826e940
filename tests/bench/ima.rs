//! A machine whose kernel measures: IMA's list is a file that grows while PCR 10 of the test's TPM is
//! extended, the list first, as the kernel does it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use leasehold::clock::BootInstant;
use leasehold::measurements::LogHash;
use leasehold::tpm::{Bank, PcrSelection};
use leasehold::verify::references::{BootState, Document, ReferenceSet};
use leasehold::verify::runtime::RuntimeRules;
use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::world::{Node, Server};

/// The PCRs of the profile `swtpm-dev` that a value stands for.
const VALUES: [u8; 14] = [0, 1, 2, 3, 4, 5, 6, 7, 9, 11, 12, 13, 14, 15];

/// An `ima-ng` entry over SHA-256.
pub fn entry(path: &str, digest: &[u8]) -> (Vec<u8>, [u8; 32]) {
    let field = |bytes: &[u8]| [&u32::try_from(bytes.len()).unwrap().to_le_bytes()[..], bytes].concat();
    let digest = [&b"sha256:\0"[..], digest].concat();
    let data = [field(&digest), field(&[path.as_bytes(), b"\0"].concat())].concat();
    let head = [&10u32.to_le_bytes()[..], &Sha1::digest(&data)].concat();
    ([head, field(b"ima-ng"), field(&data)].concat(), Sha256::digest(&data).into())
}

/// The kernel's list, and PCR 10 beside it.
pub struct Kernel {
    pub path: PathBuf,
    list: File,
    /// The value of PCR 10, as the entries make it.
    pub value: [u8; 32],
}

impl Kernel {
    /// A list that begins with this TPM's `boot_aggregate`.
    pub async fn start(node: &Node) -> Self {
        let path = node.path("ima");
        let list = File::options().create(true).append(true).open(&path).unwrap();
        let mut kernel = Self { path, list, value: [0; 32] };
        let mut aggregate = Sha256::new();
        for pcr in 0..8 {
            aggregate.update(node.tpm.read(pcr).await.1);
        }
        kernel.measure(node, "boot_aggregate", &aggregate.finalize()).await;
        kernel
    }

    /// Something ran: the list grows, then PCR 10 is extended. When that was answered.
    pub async fn run(&mut self, node: &Node, path: &str, contents: &[u8]) -> BootInstant {
        self.measure(node, path, &Sha256::digest(contents)).await
    }

    async fn measure(&mut self, node: &Node, path: &str, digest: &[u8]) -> BootInstant {
        let (bytes, extended) = entry(path, digest);
        self.list.write_all(&bytes).unwrap();
        self.value = Sha256::digest([self.value, extended].concat()).into();
        node.tpm.extend(10, extended).await
    }
}

/// `[logs]` of an agent that reads this list.
pub fn logs_config(ima: &Path) -> String {
    format!("[logs]\nboot = \"\"\nuserspace = \"\"\nima = \"{}\"\n", ima.display())
}

/// Rules that allow these files.
pub fn rules(files: &[(&str, &[u8])]) -> RuntimeRules {
    let mut rules = RuntimeRules::default();
    for (path, contents) in files {
        rules.allow_file(path.as_bytes(), LogHash::Sha256, &Sha256::digest(contents));
    }
    rules
}

/// The document of a node as it is now: PCR values whole, and rules for what may run.
pub async fn document(node: &Node, name: &str, version: u64, runtime: RuntimeRules) -> Document {
    let mut values = BTreeMap::new();
    for pcr in VALUES {
        values.insert(pcr, node.tpm.read(pcr).await.1);
    }
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
pub fn assign(server: &Server, node: &str, document: &Document) {
    let store = rusqlite::Connection::open(server.path("state/store.db")).unwrap();
    store.busy_timeout(std::time::Duration::from_secs(20)).unwrap();
    let set = &document.set;
    store
        .execute("UPDATE reference_documents SET retired_at = 1 WHERE name = ?1 AND retired_at IS NULL", [&set.name])
        .unwrap();
    store
        .execute(
            "INSERT INTO reference_documents(name, version, digest, document, imported_at) VALUES (?1, ?2, ?3, ?4, 0)",
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

/// The selection that nodes under `swtpm-dev` quote.
pub fn selection() -> PcrSelection {
    PcrSelection::new(Bank::Sha256, VALUES.into_iter().chain([10])).unwrap()
}
