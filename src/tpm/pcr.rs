//! PCR selections and values: which registers of which bank, and what they hold.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::clock::BootInstant;

/// The number of PCRs of a PC client TPM.
pub const PCR_COUNT: u8 = 24;

/// PCRs whose extension leaves `pcrUpdateCounter` as it was (PC Client Platform TPM Profile:
/// `TPM_PT_PCR_NO_INCREMENT`): their values must be read each time.
pub const NO_INCREMENT: [u8; 4] = [16, 21, 22, 23];

/// The PCR that the kernel extends with what it measures (IMA), for as long as the system runs.
pub const IMA_PCR: u8 = 10;

/// A PCR bank's hash algorithm. SHA-1 banks are not accepted anywhere, so it has no name here.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Bank {
    /// TPM_ALG_SHA256.
    Sha256,
    /// TPM_ALG_SHA384.
    Sha384,
    /// TPM_ALG_SHA512.
    Sha512,
}

impl Bank {
    /// The TPM_ALG_ID (TPM 2.0 Part 2, 6.3).
    pub const fn algorithm(self) -> u16 {
        match self {
            Self::Sha256 => 0x000B,
            Self::Sha384 => 0x000C,
            Self::Sha512 => 0x000D,
        }
    }

    /// The bank of this TPM_ALG_ID.
    pub const fn from_algorithm(algorithm: u16) -> Option<Self> {
        match algorithm {
            0x000B => Some(Self::Sha256),
            0x000C => Some(Self::Sha384),
            0x000D => Some(Self::Sha512),
            _ => None,
        }
    }

    /// The size of a value in bytes.
    pub const fn size(self) -> usize {
        match self {
            Self::Sha256 => 32,
            Self::Sha384 => 48,
            Self::Sha512 => 64,
        }
    }

    /// `sha256`, `sha384` or `sha512`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha384 => "sha384",
            Self::Sha512 => "sha512",
        }
    }
}

impl FromStr for Bank {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "sha256" => Ok(Self::Sha256),
            "sha384" => Ok(Self::Sha384),
            "sha512" => Ok(Self::Sha512),
            _ => Err(format!("`{text}` is no PCR bank: expected sha256, sha384 or sha512")),
        }
    }
}

impl fmt::Display for Bank {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One bank and at least one PCR of it. Its text form is `sha256:0-7,9`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PcrSelection {
    bank: Bank,
    /// Bit n set: PCR n selected. Never zero, never above bit 23.
    mask: u32,
}

impl PcrSelection {
    /// The selection of these PCRs.
    ///
    /// # Errors
    /// When there is none, or one above 23.
    pub fn new(bank: Bank, pcrs: impl IntoIterator<Item = u8>) -> Result<Self, String> {
        let mut mask = 0u32;
        for pcr in pcrs {
            if pcr >= PCR_COUNT {
                return Err(format!("PCR {pcr} doesn't exist: expected 0 to 23"));
            }
            mask |= 1 << pcr;
        }
        if mask == 0 {
            return Err("no PCR is selected".to_owned());
        }
        Ok(Self { bank, mask })
    }

    /// Its bank.
    pub const fn bank(self) -> Bank {
        self.bank
    }

    /// The selected PCRs, ascending.
    pub fn pcrs(self) -> impl Iterator<Item = u8> {
        (0..PCR_COUNT).filter(move |pcr| self.contains(*pcr))
    }

    /// Whether `pcr` is selected.
    pub const fn contains(self, pcr: u8) -> bool {
        pcr < PCR_COUNT && self.mask & (1 << pcr) != 0
    }

    /// Whether every PCR of `other` is in this selection, of the same bank.
    pub fn covers(self, other: Self) -> bool {
        self.bank == other.bank && self.mask & other.mask == other.mask
    }

    /// How many PCRs are selected.
    pub const fn len(self) -> usize {
        self.mask.count_ones() as usize
    }

    /// Never: a selection of nothing can't be made.
    pub const fn is_empty(self) -> bool {
        false
    }

    /// Whether an unchanged update counter proves unchanged values: not with a PCR of [`NO_INCREMENT`].
    pub fn counted(self) -> bool {
        NO_INCREMENT.iter().all(|pcr| !self.contains(*pcr))
    }

    /// The three bytes of TPMS_PCR_SELECTION's pcrSelect (Part 2, 10.5), bit 0 of byte 0 first.
    pub const fn bitmap(self) -> [u8; 3] {
        let [a, b, c, _] = self.mask.to_le_bytes();
        [a, b, c]
    }
}

impl FromStr for PcrSelection {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let explain = |what: String| format!("`{text}` is no PCR selection: {what} (expected e.g. sha256:0-7,9)");
        let (bank, list) = text.split_once(':').ok_or_else(|| explain("a bank and a colon are missing".to_owned()))?;
        let bank = bank.parse().map_err(explain)?;
        let mut pcrs = Vec::new();
        for part in list.split(',') {
            let number =
                |digits: &str| digits.parse::<u8>().map_err(|_| explain(format!("`{digits}` is no PCR number")));
            match part.split_once('-') {
                Some((first, last)) => pcrs.extend(number(first)?..=number(last)?.min(PCR_COUNT)),
                None => pcrs.push(number(part)?),
            }
        }
        Self::new(bank, pcrs).map_err(explain)
    }
}

impl fmt::Display for PcrSelection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.bank)?;
        let mut first = true;
        let mut pcr = 0;
        while pcr < PCR_COUNT {
            if !self.contains(pcr) {
                pcr += 1;
                continue;
            }
            let start = pcr;
            while self.contains(pcr + 1) {
                pcr += 1;
            }
            if !first {
                f.write_str(",")?;
            }
            first = false;
            if start == pcr {
                write!(f, "{start}")?
            } else {
                write!(f, "{start}-{pcr}")?
            }
            pcr += 1;
        }
        Ok(())
    }
}

impl fmt::Debug for PcrSelection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for PcrSelection {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PcrSelection {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A value for each PCR of a selection, no more and no fewer, each of the bank's size.
#[derive(Clone, PartialEq, Eq)]
pub struct PcrValues {
    selection: PcrSelection,
    values: BTreeMap<u8, Vec<u8>>,
}

impl PcrValues {
    /// Values for exactly the PCRs of `selection`.
    ///
    /// # Errors
    /// When one is missing, superfluous or of the wrong size.
    pub fn new(selection: PcrSelection, values: BTreeMap<u8, Vec<u8>>) -> Result<Self, String> {
        if let Some(missing) = selection.pcrs().find(|pcr| !values.contains_key(pcr)) {
            return Err(format!("PCR {missing} has no value"));
        }
        for (pcr, value) in &values {
            if !selection.contains(*pcr) {
                return Err(format!("PCR {pcr} is not in the selection {selection}"));
            }
            if value.len() != selection.bank().size() {
                return Err(format!(
                    "PCR {pcr} has {} bytes, a {} value has {}",
                    value.len(),
                    selection.bank(),
                    selection.bank().size()
                ));
            }
        }
        Ok(Self { selection, values })
    }

    /// Which PCRs these are.
    pub const fn selection(&self) -> PcrSelection {
        self.selection
    }

    /// The value of `pcr`, if selected.
    pub fn get(&self, pcr: u8) -> Option<&[u8]> {
        self.values.get(&pcr).map(Vec::as_slice)
    }

    /// The same with another value of `pcr`; `None` if it isn't selected or the size is another.
    #[must_use]
    pub fn with(&self, pcr: u8, value: &[u8]) -> Option<Self> {
        let mut values = self.values.clone();
        let present = values.get_mut(&pcr).filter(|present| present.len() == value.len())?;
        *present = value.to_vec();
        Some(Self { selection: self.selection, values })
    }

    /// PCR numbers and values, ascending.
    pub fn iter(&self) -> impl Iterator<Item = (u8, &[u8])> {
        self.values.iter().map(|(pcr, value)| (*pcr, value.as_slice()))
    }

    /// SHA-256 over the values in ascending order: a quote's pcrDigest when its signature scheme
    /// hashes with SHA-256 (Part 2, 10.12.1: the hash is the signature's, not the bank's).
    pub fn digest(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        for value in self.values.values() {
            hash.update(value);
        }
        hash.finalize().into()
    }

    /// The PCRs of `expected` whose value here differs or is absent, ascending.
    pub fn differences(&self, expected: &Self) -> Vec<PcrDifference> {
        expected
            .iter()
            .filter(|(pcr, value)| self.get(*pcr) != Some(*value))
            .map(|(pcr, value)| PcrDifference {
                bank: expected.selection.bank().as_str().to_owned(),
                pcr,
                found: self.get(pcr).map(hex::encode).unwrap_or_default(),
                expected: hex::encode(value),
            })
            .collect()
    }

    /// `(number, value)` pairs as hexadecimal text, for output and stores.
    pub fn to_hex(&self) -> BTreeMap<u8, String> {
        self.iter().map(|(pcr, value)| (pcr, hex::encode(value))).collect()
    }
}

impl fmt::Debug for PcrValues {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.to_hex()).finish()
    }
}

/// A PCR whose value is not the expected one; values in hexadecimal, `found` empty if unread.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PcrDifference {
    /// The bank, e.g. `sha256`.
    pub bank: String,
    /// The PCR's number.
    pub pcr: u8,
    /// The value read.
    pub found: String,
    /// The value expected.
    pub expected: String,
}

impl fmt::Display for PcrDifference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PCR {} ({}): found {}, expected {}", self.pcr, self.bank, self.found, self.expected)
    }
}

/// How often the TPM was reset and restarted: TPMS_CLOCK_INFO's two counts (Part 2, 10.11.1).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResetCounts {
    /// TPM Resets since the TPM was made or cleared.
    pub reset: u32,
    /// TPM Restarts and Resumes since the last Reset.
    pub restart: u32,
}

/// One authentic reading of PCRs.
///
/// The values came in a standing HMAC session, salted to the pinned EK, with the audit attribute;
/// `counts` were vouched for by the AK inside the life of that session. A reset kills the session,
/// so a reading with these counts proves that none has happened since.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PcrReading {
    /// Taken before the first command was sent: whatever was extended earlier is in `values`.
    pub started_at: BootInstant,
    /// Taken after the last answer came.
    pub finished_at: BootInstant,
    /// The PCRs.
    pub values: PcrValues,
    /// pcrUpdateCounter of the last answer.
    pub update_counter: u32,
    /// The reset counts in force during the reading.
    pub counts: ResetCounts,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selections_read_and_print_the_same() {
        for text in ["sha256:0-7,9,11-15", "sha384:23", "sha512:0,2,4-5"] {
            let selection: PcrSelection = text.parse().unwrap();
            assert_eq!(selection.to_string(), text);
        }
        for text in ["", "sha1:0", "sha256:", "sha256:24", "sha256:0-24", "sha256:3-2", "sha256:x", "sha256:0-255"] {
            assert!(text.parse::<PcrSelection>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_bitmap_is_least_significant_bit_first() {
        let selection = PcrSelection::new(Bank::Sha256, [0, 9, 23]).unwrap();
        assert_eq!(selection.bitmap(), [0x01, 0x02, 0x80]);
        assert!(!selection.counted());
        assert!(PcrSelection::new(Bank::Sha256, [0, 9]).unwrap().counted());
    }

    #[test]
    fn values_fit_their_selection_exactly() {
        let selection = PcrSelection::new(Bank::Sha256, [1, 2]).unwrap();
        let good = BTreeMap::from([(1, vec![1; 32]), (2, vec![2; 32])]);
        let values = PcrValues::new(selection, good.clone()).unwrap();
        assert!(PcrValues::new(selection, BTreeMap::from([(1, vec![1; 32])])).is_err());
        let mut more = good.clone();
        more.insert(3, vec![3; 32]);
        assert!(PcrValues::new(selection, more).is_err());
        let mut short = good.clone();
        short.insert(2, vec![2; 20]);
        assert!(PcrValues::new(selection, short).is_err());
        let mut other = good;
        other.insert(2, vec![9; 32]);
        let other = PcrValues::new(selection, other).unwrap();
        let differences = other.differences(&values);
        assert_eq!(differences.len(), 1);
        assert_eq!(differences[0].pcr, 2);
        assert_eq!(differences[0].expected, "02".repeat(32));
    }
}
