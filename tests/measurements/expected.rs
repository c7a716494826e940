//! What others say the PCRs are: three formats, read by hand.

use std::collections::BTreeMap;
use std::path::Path;

/// PCR values by bank and number, hexadecimal, lower case.
pub type Pcrs = BTreeMap<String, BTreeMap<u8, String>>;

/// The `pcrs:` part of tpm2_eventlog's YAML, or all of tpm2_pcrread's.
pub fn yaml(text: &str) -> Pcrs {
    let lines = match text.split_once("\npcrs:") {
        Some((_, pcrs)) => pcrs,
        None => text,
    };
    let mut pcrs = Pcrs::new();
    let mut bank = String::new();
    for line in lines.lines().map(str::trim_end) {
        let Some((name, value)) = line.trim_start().split_once(':') else { continue };
        if !line.starts_with(' ') {
            break;
        }
        match (name.trim().parse::<u8>(), value.trim().strip_prefix("0x")) {
            (Ok(pcr), Some(value)) => {
                pcrs.get_mut(&bank).expect("a bank before its PCRs").insert(pcr, value.to_lowercase());
            }
            _ => {
                assert!(name.starts_with("sha"), "{line}");
                bank = name.to_owned();
                pcrs.insert(bank.clone(), BTreeMap::new());
            }
        }
    }
    pcrs
}

/// The entry of `file` in `replayed_pcrs.json`.
pub fn replayed(root: &Path, file: &str) -> Pcrs {
    let text = std::fs::read(root.join("replayed_pcrs.json")).unwrap();
    let all: serde_json::Value = serde_json::from_slice(&text).unwrap();
    let pcrs = all[file]["pcrs"].as_object().unwrap_or_else(|| panic!("replayed_pcrs.json lacks {file}"));
    let values = |bank: &serde_json::Value| {
        let bank = bank.as_object().unwrap();
        bank.iter().map(|(pcr, value)| (pcr.parse().unwrap(), value.as_str().unwrap().to_owned())).collect()
    };
    pcrs.iter().map(|(bank, pcrs)| (bank.clone(), values(pcrs))).collect()
}

/// By event type, how many digests of `file` are the hash of their event's data and how many are
/// not, as `replayed_pcrs.json` has it.
pub fn hashes_of_data(root: &Path, file: &str) -> Option<BTreeMap<u32, (u64, u64)>> {
    let text = std::fs::read(root.join("replayed_pcrs.json")).unwrap();
    let all: serde_json::Value = serde_json::from_slice(&text).unwrap();
    let types = all[file]["digest_equals_hash_of_data"].as_object()?;
    let number = |kind: &str| u32::from_str_radix(kind.strip_prefix("0x").unwrap(), 16).unwrap();
    let counts = |count: &serde_json::Value| (count["yes"].as_u64().unwrap(), count["no"].as_u64().unwrap());
    Some(types.iter().map(|(kind, count)| (number(kind), counts(count))).collect())
}
