//! The log's header: TCG_EfiSpecIDEvent (PFP 1.06, 10.4.5.1), which says how long digests are.

use crate::measurements::LogHash;
use crate::measurements::cursor::Cursor;

/// How the header's data begins.
pub const SIGNATURE: &[u8; 16] = b"Spec ID Event03\0";
/// The most algorithms of one log. The registry has fewer hashes.
const ALGORITHMS_LIMIT: u32 = 16;
/// The longest digest of an algorithm nobody here knows, in bytes.
const SIZE_LIMIT: u16 = 128;

/// What the header says.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Header {
    /// Each algorithm's TPM_ALG_ID and digest size in bytes, in the header's order.
    pub algorithms: Vec<(u16, usize)>,
    /// The vendor's own information.
    pub vendor: Vec<u8>,
}

impl Header {
    /// Reads the header event's data. `rest` is what follows the record: one writer of test logs
    /// leaves the vendor's information out of the record's size. Returns the header with how many
    /// bytes of `rest` belong to it.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn parse(data: &[u8], rest: &[u8]) -> Result<(Self, usize), String> {
        let mut cursor = Cursor::new(data);
        let short = || "a header that ends too early".to_owned();
        if cursor.array::<16>().as_ref() != Some(SIGNATURE) {
            return Err("a header without `Spec ID Event03`".to_owned());
        }
        // platformClass, specVersionMinor, specVersionMajor, specErrata, uintnSize: nothing follows from them.
        cursor.take(8).ok_or_else(short)?;
        let count = cursor.u32().ok_or_else(short)?;
        if count == 0 || count > ALGORITHMS_LIMIT {
            return Err(format!("a header of {count} algorithms, where 1 to {ALGORITHMS_LIMIT} may be"));
        }
        let mut header = Self::default();
        for _ in 0..count {
            let (algorithm, size) = cursor.u16().zip(cursor.u16()).ok_or_else(short)?;
            header.add(algorithm, size)?;
        }
        let vendor_size = usize::from(cursor.u8().ok_or_else(short)?);
        let outside = match cursor.is_at_end() {
            true => vendor_size,
            false => 0,
        };
        let mut following = Cursor::new(rest);
        let vendor = match outside {
            0 => cursor.take(vendor_size),
            _ => following.take(vendor_size),
        };
        header.vendor = vendor.ok_or_else(short)?.to_vec();
        match cursor.is_at_end() {
            true => Ok((header, outside)),
            false => Err(format!("{} bytes behind the header's vendor information", cursor.rest().len())),
        }
    }

    /// The digest size of this algorithm in bytes.
    pub fn size(&self, algorithm: u16) -> Option<usize> {
        self.algorithms.iter().find(|(known, _)| *known == algorithm).map(|(_, size)| *size)
    }

    fn add(&mut self, algorithm: u16, size: u16) -> Result<(), String> {
        if self.size(algorithm).is_some() {
            return Err(format!("a header with algorithm {algorithm:#06x} twice"));
        }
        let right = match LogHash::from_algorithm(algorithm) {
            Some(hash) => usize::from(size) == hash.size(),
            None => (1..=SIZE_LIMIT).contains(&size),
        };
        if !right {
            return Err(format!("a header that gives algorithm {algorithm:#06x} digests of {size} bytes"));
        }
        self.algorithms.push((algorithm, usize::from(size)));
        Ok(())
    }
}
