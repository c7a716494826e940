//! A boot log as firmware writes it, made from the specification: Secure Boot off, one application.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

use crate::made::submit;
use crate::node::Node;
use crate::vector::{Hex, Logs, Vector};

pub const NO_ACTION: u32 = 3;
pub const IPL: u32 = 0xD;
const SEPARATOR: u32 = 4;
const S_CRTM_VERSION: u32 = 8;
const VARIABLE: u32 = 0x8000_0001;
const APPLICATION: u32 = 0x8000_0003;
/// EFI_GLOBAL_VARIABLE and EFI_IMAGE_SECURITY_DATABASE_GUID.
const GLOBAL: &str = "61dfe48bca93d211aa0d00e098032b8c";
const DATABASE: &str = "cbb219d73a3d9645a3bcdad00e67656f";

/// PCR, type, digest, data.
pub type Event = (u32, u32, Vec<u8>, Vec<u8>);

fn hashed(pcr: u32, kind: u32, data: &[u8]) -> Event {
    (pcr, kind, Sha256::digest(data).to_vec(), data.to_vec())
}

fn variable(name: &str, owner: &str, contents: &[u8]) -> Event {
    let units: Vec<u8> = name.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let mut data = hex::decode(owner).unwrap();
    data.extend((name.len() as u64).to_le_bytes());
    data.extend((contents.len() as u64).to_le_bytes());
    data.extend(units);
    data.extend(contents);
    hashed(7, VARIABLE, &data)
}

pub fn events() -> Vec<Event> {
    let mut events = vec![
        hashed(0, S_CRTM_VERSION, &[0, 0]),
        variable("SecureBoot", GLOBAL, &[0]),
        variable("PK", GLOBAL, &[]),
        variable("KEK", GLOBAL, &[]),
        variable("db", DATABASE, &[]),
        variable("dbx", DATABASE, &[]),
    ];
    events.extend((0..8).map(|pcr| hashed(pcr, SEPARATOR, &[0; 4])));
    // An application's digest is that of its image, not of its data.
    events.push((4, APPLICATION, vec![0x44; 32], vec![0; 32]));
    events
}

/// The log in the crypto-agile format, one bank: SHA-256.
pub fn agile(events: &[Event]) -> Vec<u8> {
    let mut header = b"Spec ID Event03\0".to_vec();
    header.extend([0, 0, 0, 0, 0, 2, 0, 2, 1, 0, 0, 0, 0x0B, 0, 32, 0, 0]);
    let mut log = record(0, NO_ACTION, &[0; 20], &header);
    for (pcr, kind, digest, data) in events {
        log.extend(record(*pcr, *kind, &[&[1, 0, 0, 0, 0x0B, 0][..], digest].concat(), data));
    }
    log
}

/// The same in the format of TPM 1.2, with SHA-1 digests.
pub fn sha1_only(events: &[Event]) -> Vec<u8> {
    events.iter().flat_map(|(pcr, kind, digest, data)| record(*pcr, *kind, &digest[..20], data)).collect()
}

fn record(pcr: u32, kind: u32, digests: &[u8], data: &[u8]) -> Vec<u8> {
    let size = u32::try_from(data.len()).unwrap().to_le_bytes();
    [&pcr.to_le_bytes(), &kind.to_le_bytes(), digests, &size, data].concat()
}

/// The PCRs that the events lead to.
pub fn values(events: &[Event]) -> BTreeMap<u8, Vec<u8>> {
    let mut values: BTreeMap<u8, Vec<u8>> = (0..8).map(|pcr| (pcr, vec![0; 32])).collect();
    for (pcr, _, digest, _) in events {
        let value = values.get_mut(&u8::try_from(*pcr).unwrap()).unwrap();
        *value = Sha256::digest([value.as_slice(), digest].concat()).to_vec();
    }
    values
}

/// The honest node's submission, quoting `values`, with this boot log.
pub fn with_log(values: BTreeMap<u8, Vec<u8>>, boot: Vec<u8>) -> Vector {
    let node = Node { values, ..Node::honest() };
    let logs = Logs { profile: "qemu-ovmf".to_owned(), boot: Hex(boot) };
    Vector { logs: Some(logs), ..submit(&node, node.evidence()) }
}
