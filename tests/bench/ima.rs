//! A machine whose kernel measures: IMA's list is a file that grows while PCR 10 of the test's TPM is
//! extended, the list first, as the kernel does it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use leasehold::clock::BootInstant;
use leasehold::measurements::LogHash;
use leasehold::verify::references::Document;
use leasehold::verify::runtime::RuntimeRules;
use sha2::{Digest, Sha256};

pub use super::list::{VALUES, entry};
use super::world::{Node, Server};

/// This test's program: callers of the agent must have been measured like all that runs.
pub fn own() -> &'static (String, [u8; 32]) {
    static OWN: std::sync::LazyLock<(String, [u8; 32])> = std::sync::LazyLock::new(|| {
        let path = std::env::current_exe().unwrap().canonicalize().unwrap();
        let digest = Sha256::digest(std::fs::read(&path).unwrap()).into();
        (path.display().to_string(), digest)
    });
    &OWN
}

/// Rules that allow these files, and the program of this test.
pub fn rules(files: &[(&str, &[u8])]) -> RuntimeRules {
    let mut rules = super::list::rules(files);
    let (path, digest) = own();
    rules.allow_file(path.as_bytes(), LogHash::Sha256, digest);
    rules
}

/// The kernel's list, and PCR 10 beside it.
pub struct Kernel {
    pub path: PathBuf,
    list: File,
    /// The value of PCR 10, as the entries make it.
    pub value: [u8; 32],
}

impl Kernel {
    /// A list that begins with this TPM's `boot_aggregate`, and has this test's program.
    pub async fn start(node: &Node) -> Self {
        let mut kernel = Self::boot(node).await;
        let (path, digest) = own();
        kernel.measure(node, path, digest).await;
        kernel
    }

    /// A list with the `boot_aggregate` alone.
    pub async fn boot(node: &Node) -> Self {
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

    /// The first half of it: the list grows. What is to be extended now.
    pub fn list(&mut self, path: &str, contents: &[u8]) -> [u8; 32] {
        self.append(path, &Sha256::digest(contents))
    }

    /// The same of a file with this digest.
    pub fn list_digest(&mut self, path: &str, digest: &[u8; 32]) -> [u8; 32] {
        self.append(path, digest)
    }

    async fn measure(&mut self, node: &Node, path: &str, digest: &[u8]) -> BootInstant {
        let extended = self.append(path, digest);
        node.tpm.extend(10, extended).await
    }

    fn append(&mut self, path: &str, digest: &[u8]) -> [u8; 32] {
        let (bytes, extended) = entry(path, digest);
        self.list.write_all(&bytes).unwrap();
        self.value = super::list::extended(&self.value, &extended);
        extended
    }
}

/// `[logs]` of an agent that reads this list.
pub fn logs_config(ima: &Path) -> String {
    format!("[logs]\nboot = \"\"\nuserspace = \"\"\nima = \"{}\"\n", ima.display())
}

/// The document of a node as it is now: PCR values whole, and rules for what may run.
pub async fn document(node: &Node, name: &str, version: u64, runtime: RuntimeRules) -> Document {
    let mut values = BTreeMap::new();
    for pcr in VALUES {
        values.insert(pcr, node.tpm.read(pcr).await.1);
    }
    super::list::document(name, version, values, runtime)
}

/// Puts a document in force for a node.
pub fn assign(server: &Server, node: &str, document: &Document) {
    server.admin(&["reference", "import", &super::list::write(server.dir.path(), document)]);
    server.admin(&["reference", "assign", "--name", &document.set.name, "--node", node]);
}
