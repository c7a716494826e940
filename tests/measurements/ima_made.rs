//! Makes lists as the kernel does: entry by entry, with the PCR beside them.

use leasehold::measurements::LogHash;
use leasehold::measurements::ima::{Fold, entry};
use leasehold::verify::runtime::{HexBytes, RuntimeRules};

/// A list and what was extended.
#[derive(Clone, Debug, Default)]
pub struct List {
    pub bytes: Vec<u8>,
    /// Where each entry ends.
    pub ends: Vec<usize>,
}

/// A field: its length and its bytes.
pub fn field(bytes: &[u8]) -> Vec<u8> {
    [&u32::try_from(bytes.len()).unwrap().to_le_bytes(), bytes].concat()
}

/// Digest and name as all templates but `ima` begin.
pub fn digest_and_name(algorithm: &str, digest: &[u8], path: &[u8]) -> Vec<u8> {
    [field(&[algorithm.as_bytes(), b":\0", digest].concat()), field(&[path, b"\0"].concat())].concat()
}

/// One entry of any template but `ima`, as the list has it.
pub fn raw(pcr: u32, printed: [u8; 20], template: &str, data: &[u8]) -> Vec<u8> {
    [&pcr.to_le_bytes(), &printed[..], &field(template.as_bytes()), &field(data)].concat()
}

impl List {
    /// A list that begins as each does.
    pub fn new() -> Self {
        let mut list = Self::default();
        list.measure(b"boot_aggregate", &[0xBA; 32]);
        list
    }

    /// An `ima-sig` entry without a signature.
    pub fn measure(&mut self, path: &[u8], digest: &[u8]) -> &mut Self {
        self.signed(path, "sha256", digest, &[])
    }

    /// An `ima-sig` entry.
    pub fn signed(&mut self, path: &[u8], algorithm: &str, digest: &[u8], signature: &[u8]) -> &mut Self {
        self.entry("ima-sig", &[digest_and_name(algorithm, digest, path), field(signature)].concat())
    }

    /// An `ima-buf` entry.
    pub fn buffer(&mut self, name: &[u8], buffer: &[u8]) -> &mut Self {
        let digest = LogHash::Sha256.digest(&[buffer]);
        self.entry("ima-buf", &[digest_and_name("sha256", &digest, name), field(buffer)].concat())
    }

    /// A violation.
    pub fn violation(&mut self, path: &[u8]) -> &mut Self {
        let data = [digest_and_name("sha256", &[0; 32], path), field(&[])].concat();
        self.append(&raw(10, [0; 20], "ima-sig", &data))
    }

    /// An entry of the template `ima`.
    pub fn legacy(&mut self, path: &[u8], digest: &[u8; 20]) -> &mut Self {
        let mut padded = path.to_vec();
        padded.resize(256, 0);
        let printed = LogHash::Sha1.digest(&[digest, &padded]);
        self.append(&[&10u32.to_le_bytes(), &printed[..], &field(b"ima"), digest, &field(path)].concat())
    }

    /// An entry with this template data.
    pub fn entry(&mut self, template: &str, data: &[u8]) -> &mut Self {
        let printed = LogHash::Sha1.digest(&[data]).try_into().unwrap();
        self.append(&raw(10, printed, template, data))
    }

    /// An entry as it stands.
    pub fn append(&mut self, entry: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(entry);
        self.ends.push(self.bytes.len());
        self
    }

    /// PCR 10 in `bank` after the first `entries`.
    pub fn pcr(&self, bank: LogHash, padded: bool, entries: usize) -> Vec<u8> {
        pcr(&self.bytes, bank, padded, entries)
    }

    /// PCR 10 in the SHA-256 bank after all.
    pub fn quoted(&self) -> Vec<u8> {
        self.pcr(LogHash::Sha256, false, self.ends.len())
    }
}

/// PCR 10 after the first `entries` of a list.
pub fn pcr(list: &[u8], bank: LogHash, padded: bool, entries: usize) -> Vec<u8> {
    let mut fold = Fold::start(bank, padded);
    let mut rest = list;
    for number in 0..entries {
        let (entry, length) = entry(rest, number as u64).unwrap().unwrap();
        fold.take(&entry);
        rest = &rest[length..];
    }
    fold.value().to_vec()
}

/// A list of `count` entries, every tenth of them not in the rules, of realistic sizes.
pub fn long(count: usize) -> (List, RuntimeRules) {
    let (mut list, mut rules) = (List::new(), RuntimeRules::default());
    for number in 1..count {
        let path = format!("/usr/lib/x86_64-linux-gnu/package-{}/lib{number}.so.1.{}", number % 977, number % 13);
        let digest = LogHash::Sha256.digest(&[path.as_bytes()]);
        list.measure(path.as_bytes(), &digest);
        if number % 10 != 0 {
            rules.digests.entry("sha256".to_owned()).or_default().insert(HexBytes(digest));
        }
    }
    (list, rules)
}
