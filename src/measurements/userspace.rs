//! systemd's log of what userspace measured, `/run/log/systemd/tpm2-measure.log`: JSON text
//! sequences (RFC 7464), one record for each extension, close to the TCG's CEL-JSON.

use serde::Deserialize;

use super::LogHash;
use crate::codes::{self, Refusal};
use crate::tpm::PCR_COUNT;

/// The largest userspace log that is read, in bytes: 1 MiB.
pub const LIMIT: usize = 1 << 20;
/// The most records of one log. A boot makes some tens.
pub const RECORDS_LIMIT: usize = 10_000;

/// The boot phases that systemd-pcrphase extends into PCR 11, in their order.
pub const PHASES: [&str; 6] = ["enter-initrd", "leave-initrd", "sysinit", "ready", "shutdown", "final"];
/// What systemd's initrd extends into PCRs 0 to 7, 9 and 12 to 14 from version 261 on.
pub const OS_SEPARATOR: &str = "os-separator";

/// What stands before each record (RFC 7464, 2.2); a line feed stands after it.
const RECORD_SEPARATOR: u8 = 0x1E;

/// The log, read whole.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct UserspaceLog {
    /// The records in the log's order.
    pub records: Vec<UserspaceRecord>,
}

/// One record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UserspaceRecord {
    /// Its number, from 0.
    pub number: u32,
    /// What was extended.
    pub target: Target,
    /// The digests of the banks we know, one for each. There may be none.
    pub digests: Vec<(LogHash, Vec<u8>)>,
    /// `phase`, `filesystem`, `machine-id`, `os-separator`, …; nothing vouches for it.
    pub kind: String,
    /// What was measured. Only a recomputed digest vouches for it; for `volume-key` none can.
    pub string: Option<String>,
    /// The boot it says it is of, 32 hexadecimal digits.
    pub boot_id: Option<String>,
}

/// What a record says was extended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Target {
    /// A PCR.
    Pcr(u8),
    /// An NV index used as a PCR, by name.
    NvPcr(String),
}

impl UserspaceRecord {
    /// The digest in this bank.
    pub fn digest(&self, bank: LogHash) -> Option<&[u8]> {
        self.digests.iter().find(|(hash, _)| *hash == bank).map(|(_, digest)| digest.as_slice())
    }

    /// Whether this bank's digest is the hash of [`Self::string`]: then, once the digest is
    /// replayed, the string is what was measured. It never is for `volume-key` and `credential`,
    /// whose digests are HMACs under a secret.
    pub fn vouched(&self, bank: LogHash) -> bool {
        match (&self.string, self.digest(bank)) {
            (Some(string), Some(digest)) => bank.digest(&[string.as_bytes()]) == digest,
            _ => false,
        }
    }
}

impl UserspaceLog {
    /// Reads a log. Whether it was complete is not in its bytes but in the file's sticky bit: the
    /// source looks there.
    ///
    /// # Errors
    /// [`crate::codes::MEASUREMENTS_USERSPACE_LOG`] naming the record, and
    /// [`crate::codes::MEASUREMENTS_TOO_LARGE`].
    pub fn parse(bytes: &[u8]) -> Result<Self, Refusal> {
        if bytes.len() > LIMIT {
            return Err(too_large(&format!("{} bytes", bytes.len()), LIMIT));
        }
        let mut parts = bytes.split(|byte| *byte == RECORD_SEPARATOR);
        let before = parts.next().unwrap_or_default();
        if !before.is_empty() {
            return Err(refusal(0, 0, "bytes before the first record").expected("0x1e, then a JSON object"));
        }
        let mut log = Self::default();
        let mut offset = 0_usize;
        for (number, part) in (0_u32..).zip(parts) {
            if log.records.len() >= RECORDS_LIMIT {
                return Err(too_large(&format!("more than {RECORDS_LIMIT} records"), RECORDS_LIMIT));
            }
            log.records.push(record(number, part).map_err(|(found, expected)| {
                let refusal = refusal(number, offset, &found);
                if expected.is_empty() { refusal } else { refusal.expected(expected) }
            })?);
            // No overflow: both are within the bytes.
            offset = offset.saturating_add(part.len()).saturating_add(1);
        }
        Ok(log)
    }
}

/// A record as it is written. Members that are not named here are tolerated.
#[derive(Deserialize)]
struct Written {
    pcr: Option<u8>,
    /// An NvPCR's name.
    nvpcr: Option<String>,
    /// An NvPCR's handle, as CEL has it; systemd puts its name into `content`.
    nv_index: Option<u32>,
    digests: Vec<WrittenDigest>,
    #[serde(default)]
    content_type: Option<String>,
    #[serde(default)]
    content: Option<Content>,
}

#[derive(Deserialize)]
struct WrittenDigest {
    #[serde(rename = "hashAlg")]
    algorithm: String,
    digest: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Content {
    string: Option<String>,
    boot_id: Option<String>,
    event_type: Option<String>,
    nv_index_name: Option<String>,
}

/// What was found, and what was expected instead.
type Fault = (String, &'static str);

fn record(number: u32, part: &[u8]) -> Result<UserspaceRecord, Fault> {
    if part.last() != Some(&b'\n') {
        return Err(("a record without its line feed".to_owned(), "a log that ends with a whole record"));
    }
    let written: Written =
        serde_json::from_slice(part).map_err(|error| (error.to_string(), "a record as systemd writes it"))?;
    let Written { pcr, nvpcr, nv_index, digests, content_type, content } = written;
    let content = content.unwrap_or_default();
    let nv_name = nvpcr.or(content.nv_index_name).or(nv_index.map(|index| format!("{index:#010x}")));
    let target = match (pcr, nv_name) {
        (Some(pcr), None) if pcr < PCR_COUNT => Target::Pcr(pcr),
        (Some(pcr), None) => return Err((format!("PCR {pcr}"), "a PCR from 0 to 23")),
        (None, Some(name)) => Target::NvPcr(name),
        (Some(_), Some(_)) => return Err(("a PCR and an NvPCR".to_owned(), "one of them")),
        (None, None) => return Err(("neither a PCR nor an NvPCR".to_owned(), "what was extended")),
    };
    Ok(UserspaceRecord {
        number,
        target,
        digests: read_digests(&digests)?,
        kind: content.event_type.or(content_type).unwrap_or_default(),
        string: content.string,
        boot_id: content.boot_id,
    })
}

/// The digests of the banks we know, none twice.
fn read_digests(written: &[WrittenDigest]) -> Result<Vec<(LogHash, Vec<u8>)>, Fault> {
    let mut digests: Vec<(LogHash, Vec<u8>)> = Vec::new();
    for WrittenDigest { algorithm, digest } in written {
        let Some(hash) = LogHash::from_name(algorithm) else { continue };
        let bytes = hex::decode(digest).ok().filter(|bytes| bytes.len() == hash.size());
        let bytes = bytes.ok_or_else(|| (format!("a {hash} digest that is none"), "hexadecimal digits of its size"))?;
        if digests.iter().any(|(known, _)| *known == hash) {
            return Err((format!("two {hash} digests"), "one for each bank"));
        }
        digests.push((hash, bytes));
    }
    Ok(digests)
}

fn too_large(found: &str, limit: usize) -> Refusal {
    Refusal::new(codes::MEASUREMENTS_TOO_LARGE, found).at("userspace log").expected(format!("at most {limit}"))
}

fn refusal(number: u32, offset: usize, found: &str) -> Refusal {
    Refusal::new(codes::MEASUREMENTS_USERSPACE_LOG, found).at(format!("userspace log, record {number}, byte {offset}"))
}
