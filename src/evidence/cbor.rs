//! Deterministic CBOR (RFC 8949, 4.2.1), checked on the bytes themselves.
//!
//! A decoder that takes the last of two equal keys, or two encodings for one value, lets signer and
//! verifier read different things in the same bytes. So each document is scanned before it is
//! decoded, and the scan says which byte is wrong.

use std::collections::BTreeMap;

use serde_cbor::Value;

/// How deep a document may be nested; ours need five.
const DEPTH: u8 = 8;
/// How many items a document may have. A decoded item takes many times its bytes, so without a
/// bound 4 MiB of zeros in an array would cost a hundred; ours need some eleven hundred.
const ITEMS: u32 = 4096;

/// What is wrong with a CBOR document.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FaultKind {
    /// It isn't well-formed, or uses a type that isn't used here (floats, undefined, other tags).
    Malformed,
    /// It is well-formed, but not the one deterministic encoding.
    NotDeterministic,
    /// A map has a key twice.
    DuplicateKey,
}

/// A fault and where it is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fault {
    /// Its kind.
    pub kind: FaultKind,
    /// The offset of the faulty item.
    pub offset: usize,
    /// In words.
    pub what: String,
}

/// Scans one CBOR item that must fill `bytes`. Only `tag`, if any, may stand, and only at the start.
///
/// # Errors
/// The first fault.
pub fn scan(bytes: &[u8], tag: Option<u64>) -> Result<(), Fault> {
    scan_items(bytes, tag, ITEMS)
}

/// The same for documents of up to `limit` items.
///
/// # Errors
/// The first fault.
pub fn scan_items(bytes: &[u8], tag: Option<u64>, limit: u32) -> Result<(), Fault> {
    let mut scanner = Scanner { bytes, offset: 0, items: 0, limit };
    if let Some(expected) = tag {
        let start = scanner.offset;
        let (major, value) = scanner.head()?;
        if major != 6 || value != expected {
            return Err(fault(FaultKind::Malformed, start, format!("no tag {expected}")));
        }
    }
    scanner.item(DEPTH)?;
    let left = bytes.len() - scanner.offset;
    if left > 0 {
        return Err(fault(FaultKind::Malformed, scanner.offset, format!("{left} bytes follow")));
    }
    Ok(())
}

/// Encodes a value; maps of [`Value`] are ordered, so this is the deterministic encoding.
pub fn encode(value: &Value) -> Vec<u8> {
    match serde_cbor::to_vec(value) {
        Ok(bytes) => bytes,
        // Writing a tree of integers, bytes and text into a Vec has no way to fail.
        Err(error) => unreachable!("BUG: a CBOR value can't be encoded: {error}"),
    }
}

/// The value of one CBOR item that must fill `bytes`.
///
/// # Errors
/// What is wrong, in words.
pub fn decode(bytes: &[u8]) -> Result<Value, String> {
    serde_cbor::from_slice(bytes).map_err(|error| error.to_string())
}

struct Scanner<'a> {
    bytes: &'a [u8],
    offset: usize,
    items: u32,
    limit: u32,
}

impl Scanner<'_> {
    /// The major type and argument of the next item, whose head must be the shortest.
    fn head(&mut self) -> Result<(u8, u64), Fault> {
        let start = self.offset;
        let [first] = self.array::<1>()?;
        let (value, least) = match first & 0x1F {
            small @ 0..=23 => return Ok((first >> 5, u64::from(small))),
            24 => (u64::from(u8::from_be_bytes(self.array()?)), 24),
            25 => (u64::from(u16::from_be_bytes(self.array()?)), 1 << 8),
            26 => (u64::from(u32::from_be_bytes(self.array()?)), 1 << 16),
            27 => (u64::from_be_bytes(self.array()?), 1 << 32),
            31 => return Err(fault(FaultKind::NotDeterministic, start, "indefinite length".to_owned())),
            _ => return Err(fault(FaultKind::Malformed, start, format!("reserved head {first:#04x}"))),
        };
        // Simple values and floats reuse these heads for other things; see `item`.
        if value < least && first >> 5 != 7 {
            return Err(fault(FaultKind::NotDeterministic, start, format!("{value} in too long a head")));
        }
        Ok((first >> 5, value))
    }

    fn item(&mut self, depth: u8) -> Result<(), Fault> {
        let start = self.offset;
        let Some(deeper) = depth.checked_sub(1) else {
            return Err(fault(FaultKind::Malformed, start, format!("nested deeper than {DEPTH}")));
        };
        self.items += 1;
        if self.items > self.limit {
            return Err(fault(FaultKind::Malformed, start, format!("more than {} items", self.limit)));
        }
        let (major, value) = self.head()?;
        match major {
            0 | 1 => Ok(()),
            2 => self.take(value).map(drop),
            3 => match std::str::from_utf8(self.take(value)?) {
                Ok(_) => Ok(()),
                Err(_) => Err(fault(FaultKind::Malformed, start, "text that is not UTF-8".to_owned())),
            },
            4 => {
                // Each item has at least one byte, so a lying count ends with the bytes.
                for _ in 0..value {
                    self.item(deeper)?;
                }
                Ok(())
            }
            5 => self.map(value, deeper),
            6 => Err(fault(FaultKind::Malformed, start, format!("tag {value}"))),
            _ => Err(fault(FaultKind::Malformed, start, "a float or simple value".to_owned())),
        }
    }

    fn map(&mut self, count: u64, depth: u8) -> Result<(), Fault> {
        let whole = self.bytes;
        let mut seen: BTreeMap<&[u8], usize> = BTreeMap::new();
        for _ in 0..count {
            let start = self.offset;
            self.item(depth)?;
            let key = whole.get(start..self.offset).unwrap_or_default();
            if let Some(first) = seen.get(key) {
                return Err(fault(FaultKind::DuplicateKey, start, format!("a key that stands at byte {first} too")));
            }
            if seen.last_key_value().is_some_and(|(last, _)| *last > key) {
                return Err(fault(FaultKind::NotDeterministic, start, "a key out of order".to_owned()));
            }
            seen.insert(key, start);
            self.item(depth)?;
        }
        Ok(())
    }

    fn take(&mut self, count: u64) -> Result<&[u8], Fault> {
        let rest = self.bytes.get(self.offset..).unwrap_or_default();
        let Some(taken) = usize::try_from(count).ok().and_then(|count| rest.get(..count)) else {
            return Err(fault(FaultKind::Malformed, self.offset, format!("{} of {count} bytes", rest.len())));
        };
        self.offset += taken.len();
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let rest = self.bytes.get(self.offset..).unwrap_or_default();
        let Some(taken) = rest.first_chunk::<N>() else {
            return Err(fault(FaultKind::Malformed, self.offset, "the end".to_owned()));
        };
        self.offset += N;
        Ok(*taken)
    }
}

const fn fault(kind: FaultKind, offset: usize, what: String) -> Fault {
    Fault { kind, offset, what }
}

/// A decoded map with integer keys, emptied claim by claim; what is left at the end is unknown.
pub struct Claims(BTreeMap<Value, Value>);

impl Claims {
    /// The claims of a map.
    ///
    /// # Errors
    /// What was found instead.
    pub fn of(value: Value) -> Result<Self, String> {
        match value {
            Value::Map(map) => Ok(Self(map)),
            _ => Err("no map".to_owned()),
        }
    }

    /// Takes a claim that must be there and be what `read` wants.
    ///
    /// # Errors
    /// Which claim, and that it is missing or of another form.
    pub fn take<T>(&mut self, key: i128, read: impl FnOnce(Value) -> Option<T>) -> Result<T, String> {
        self.take_optional(key, read)?.ok_or_else(|| format!("claim {key} is missing"))
    }

    /// Takes a claim that may be absent.
    ///
    /// # Errors
    /// When it is there in another form.
    pub fn take_optional<T>(&mut self, key: i128, read: impl FnOnce(Value) -> Option<T>) -> Result<Option<T>, String> {
        match self.0.remove(&Value::Integer(key)) {
            None => Ok(None),
            Some(value) => read(value).map(Some).ok_or_else(|| format!("claim {key} is not of its form")),
        }
    }

    /// Ends the reading.
    ///
    /// # Errors
    /// Names a claim that nobody took.
    pub fn end(self) -> Result<(), String> {
        match self.0.into_keys().next() {
            None => Ok(()),
            Some(Value::Integer(key)) => Err(format!("claim {key} is unknown")),
            Some(_) => Err("a claim whose key is no integer".to_owned()),
        }
    }
}

/// Reads of single values; `None` for anything else.
pub mod read {
    use serde_cbor::Value;

    /// A byte string of `N` bytes.
    pub fn fixed<const N: usize>(value: Value) -> Option<[u8; N]> {
        bytes(value)?.try_into().ok()
    }

    /// A byte string.
    pub fn bytes(value: Value) -> Option<Vec<u8>> {
        if let Value::Bytes(bytes) = value { Some(bytes) } else { None }
    }

    /// An integer that fits in `T`.
    pub fn integer<T: TryFrom<i128>>(value: Value) -> Option<T> {
        if let Value::Integer(number) = value { T::try_from(number).ok() } else { None }
    }

    /// A text.
    pub fn text(value: Value) -> Option<String> {
        if let Value::Text(text) = value { Some(text) } else { None }
    }

    /// An array of exactly `N` items.
    pub fn tuple<const N: usize>(value: Value) -> Option<[Value; N]> {
        if let Value::Array(items) = value { items.try_into().ok() } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(bytes: &[u8]) -> Option<FaultKind> {
        scan(bytes, None).err().map(|fault| fault.kind)
    }

    #[test]
    fn faults_are_told_apart() {
        assert_eq!(kind(&[0xA2, 0x01, 0x00, 0x20, 0x00]), None);
        assert_eq!(kind(&[0xA2, 0x01, 0x00, 0x01, 0x00]), Some(FaultKind::DuplicateKey));
        assert_eq!(kind(&[0xA3, 0x01, 0x00, 0x02, 0x00, 0x01, 0x00]), Some(FaultKind::DuplicateKey));
        assert_eq!(kind(&[0xA2, 0x20, 0x00, 0x01, 0x00]), Some(FaultKind::NotDeterministic));
        assert_eq!(kind(&[0x18, 0x17]), Some(FaultKind::NotDeterministic));
        assert_eq!(kind(&[0x19, 0x00, 0xFF]), Some(FaultKind::NotDeterministic));
        assert_eq!(kind(&[0x9F, 0xFF]), Some(FaultKind::NotDeterministic));
        assert_eq!(kind(&[0x5F, 0x41, 0x00, 0xFF]), Some(FaultKind::NotDeterministic));
        assert_eq!(kind(&[0x1C]), Some(FaultKind::Malformed));
        assert_eq!(kind(&[0x61, 0xFF]), Some(FaultKind::Malformed));
        assert_eq!(kind(&[0xF9, 0x00, 0x00]), Some(FaultKind::Malformed));
        assert_eq!(kind(&[0xF6]), Some(FaultKind::Malformed));
        assert_eq!(kind(&[0xC1, 0x00]), Some(FaultKind::Malformed));
        assert_eq!(kind(&[0x00, 0x00]), Some(FaultKind::Malformed));
        assert_eq!(kind(&[]), Some(FaultKind::Malformed));
        // Lengths that lie, up to the largest, cost nothing.
        for major in [0x5B, 0x7B, 0x9B, 0xBB] {
            assert_eq!(kind(&[major, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF]), Some(FaultKind::Malformed));
        }
        assert_eq!(kind(&[0x81; 1000]), Some(FaultKind::Malformed));
        assert_eq!(kind(&[&[0x99, 0x0F, 0xFF][..], &[0; 0x0FFF]].concat()), None);
        assert_eq!(kind(&[&[0x99, 0x10, 0x00][..], &[0; 0x1000]].concat()), Some(FaultKind::Malformed));
    }

    #[test]
    fn a_fault_names_its_byte() {
        assert_eq!(scan(&[0xA2, 0x01, 0x00, 0x01, 0x00], None).unwrap_err().offset, 3);
        assert_eq!(scan(&[0x82, 0x00, 0x18, 0x01], None).unwrap_err().offset, 2);
        assert!(scan(&[0xD2, 0x00], Some(18)).is_ok());
        assert_eq!(scan(&[0x00], Some(18)).unwrap_err().kind, FaultKind::Malformed);
    }

    #[test]
    fn encoded_maps_are_deterministic() {
        let map =
            Value::Map((-66_000..-65_000).chain(0..300).map(|n| (Value::Integer(n), Value::Integer(n))).collect());
        assert_eq!(scan(&encode(&map), None), Ok(()));
    }
}
