//! The logs of the test data, and what they are appraised with.

use std::collections::BTreeMap;
use std::path::PathBuf;

use leasehold::measurements::LogHash;
use leasehold::measurements::boot::BootLog;
use leasehold::tpm::{Bank, PcrSelection, PcrValues};
use leasehold::verify::profile::Profile;

/// The public samples beside the checkout, or where `LEASEHOLD_TESTDATA` points; says so if absent.
pub fn testdata() -> Option<PathBuf> {
    let path = std::env::var_os("LEASEHOLD_TESTDATA")
        .map_or_else(|| std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/testdata"), Into::into);
    if path.is_dir() {
        return Some(path);
    }
    eprintln!("SKIPPED: no samples at {}; set LEASEHOLD_TESTDATA", path.display());
    None
}

/// A file of the test data; one that ends in `b64` is decoded.
pub fn read(name: &str) -> Option<Vec<u8>> {
    let bytes = std::fs::read(testdata()?.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
    Some(if name.ends_with(".b64") { base64(&bytes) } else { bytes })
}

fn base64(text: &[u8]) -> Vec<u8> {
    let (mut bytes, mut bits, mut count) = (Vec::new(), 0_u32, 0);
    for character in text.iter().filter(|c| !c.is_ascii_whitespace() && **c != b'=') {
        let value = match character {
            b'A'..=b'Z' => character - b'A',
            b'a'..=b'z' => character - b'a' + 26,
            b'0'..=b'9' => character - b'0' + 52,
            b'+' => 62,
            _ => 63,
        };
        bits = (bits << 6) | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    bytes
}

/// The values that a log leads to, for the PCRs of a profile: as if they were quoted.
pub fn replayed(log: &BootLog, bank: Bank, profile: &Profile) -> PcrValues {
    let pcrs = log.replay(LogHash::from(bank)).expect("the log has the bank");
    let selection = PcrSelection::new(bank, profile.pcrs()).unwrap();
    let values = profile.pcrs().map(|pcr| (pcr, pcrs.value(pcr).unwrap().to_vec())).collect();
    PcrValues::new(selection, values).unwrap()
}

/// The values of a bank in tpm2_pcrread's YAML, those of `selection`.
pub fn pcrs_of_yaml(text: &str, selection: &str) -> PcrValues {
    let selection: PcrSelection = selection.parse().unwrap();
    let mut bank = String::new();
    let mut values = BTreeMap::new();
    for line in text.lines().map(str::trim) {
        match line.split_once(':') {
            Some((name, "")) => name.clone_into(&mut bank),
            Some((pcr, value)) if bank == selection.bank().as_str() => {
                let pcr: u8 = pcr.trim().parse().unwrap();
                let value = hex::decode(value.trim().strip_prefix("0x").unwrap()).unwrap();
                values.insert(pcr, value);
            }
            _ => {}
        }
    }
    values.retain(|pcr, _| selection.contains(*pcr));
    PcrValues::new(selection, values).unwrap()
}
