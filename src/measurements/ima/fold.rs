//! The replay: what the entries made of a PCR.

use sha2::Digest;

use super::ImaEntry;
use crate::measurements::LogHash;

/// The size of the path as the template `ima` hashes it (IMA_EVENT_NAME_LEN_MAX and a NUL).
const LEGACY_PATH: usize = 256;

/// A PCR's value, from entry to entry, in one bank. Takes nothing from the heap: lists have
/// millions of entries.
#[derive(Clone, Debug)]
pub struct Fold {
    bank: LogHash,
    padded: bool,
    value: Value,
}

impl Fold {
    /// Before the first entry. `padded`: the kernel couldn't hash for this bank, and extended the
    /// SHA-1 digest with zeros behind it.
    pub const fn start(bank: LogHash, padded: bool) -> Self {
        Self { bank, padded, value: Value { bytes: [0; 64], size: bank.size() } }
    }

    /// Behind the entry that made `value`; `None` if that is no value of this bank.
    pub fn from(bank: LogHash, padded: bool, value: &[u8]) -> Option<Self> {
        let mut fold = Self::start(bank, padded);
        let place = fold.value.bytes.get_mut(..bank.size())?;
        if value.len() != place.len() {
            return None;
        }
        place.copy_from_slice(value);
        Some(fold)
    }

    /// Takes in the next entry.
    pub fn take(&mut self, entry: &ImaEntry<'_>) {
        let digest = digest(entry, self.bank, self.padded);
        self.value = hash(self.bank, &[self.value.as_slice(), digest.as_slice()]);
    }

    /// The PCR's value.
    pub fn value(&self) -> &[u8] {
        self.value.as_slice()
    }
}

/// What the kernel extended into one bank for an entry. `padded`: it couldn't hash for this bank
/// (before 5.8, for none but SHA-1), and extended the SHA-1 digest with zeros behind it.
pub fn extended(entry: &ImaEntry<'_>, bank: LogHash, padded: bool) -> Vec<u8> {
    digest(entry, bank, padded).as_slice().to_vec()
}

fn digest(entry: &ImaEntry<'_>, bank: LogHash, padded: bool) -> Value {
    if entry.violation {
        return Value { bytes: [0xFF; 64], size: bank.size() };
    }
    let by = if padded { LogHash::Sha1 } else { bank };
    let mut digest = if entry.template == "ima" {
        let mut path = [0; LEGACY_PATH];
        for (place, byte) in path.iter_mut().zip(entry.fields.path) {
            *place = *byte;
        }
        hash(by, &[entry.fields.digest, &path])
    } else {
        hash(by, &[entry.data])
    };
    // The bytes behind a digest are zero: that is the padding.
    digest.size = bank.size();
    digest
}

/// A digest of any bank: `size` bytes, and zeros behind them.
#[derive(Clone, Copy, Debug)]
struct Value {
    bytes: [u8; 64],
    size: usize,
}

impl Value {
    fn as_slice(&self) -> &[u8] {
        self.bytes.get(..self.size).unwrap_or_default()
    }
}

fn hash(by: LogHash, parts: &[&[u8]]) -> Value {
    fn of<D: Digest>(parts: &[&[u8]], size: usize) -> Value {
        let mut state = D::new();
        for part in parts {
            state.update(part);
        }
        let mut bytes = [0; 64];
        for (place, byte) in bytes.iter_mut().zip(state.finalize()) {
            *place = byte;
        }
        Value { bytes, size }
    }
    match by {
        LogHash::Sha1 => of::<sha1::Sha1>(parts, by.size()),
        LogHash::Sha256 => of::<sha2::Sha256>(parts, by.size()),
        LogHash::Sha384 => of::<sha2::Sha384>(parts, by.size()),
        LogHash::Sha512 => of::<sha2::Sha512>(parts, by.size()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::ImaFields;
    use super::*;

    fn entry(violation: bool) -> ImaEntry<'static> {
        let data = b"\x0c\0\0\0sha1:\0abcdef\x02\0\0\0/\0";
        ImaEntry {
            number: 0,
            pcr: 10,
            printed: [u8::from(!violation); 20],
            template: "ima-ng",
            data,
            fields: ImaFields::default(),
            violation,
        }
    }

    #[test]
    fn each_bank_has_its_own_hash_and_a_padded_one_sha1s() {
        for bank in LogHash::ALL {
            let entry = entry(false);
            assert_eq!(extended(&entry, bank, false), bank.digest(&[entry.data]));
            let mut padded = LogHash::Sha1.digest(&[entry.data]);
            padded.resize(bank.size(), 0);
            assert_eq!(extended(&entry, bank, true), padded);
        }
    }

    #[test]
    fn a_violation_extends_ones() {
        assert_eq!(extended(&entry(true), LogHash::Sha384, true), [0xFF; 48]);
        let mut fold = Fold::start(LogHash::Sha256, false);
        fold.take(&entry(true));
        assert_eq!(fold.value(), LogHash::Sha256.extend(&[0; 32], &[0xFF; 32]));
    }

    #[test]
    fn a_fold_goes_on_only_from_a_value_of_its_bank() {
        assert!(Fold::from(LogHash::Sha256, false, &[1; 20]).is_none());
        assert_eq!(Fold::from(LogHash::Sha256, false, &[1; 32]).unwrap().value(), [1; 32]);
    }
}
