//! Reads big-endian TPM structures; knows where it is.

use crate::codes::{Code, Refusal};

/// Bytes not yet read, with the offset of the next one.
///
/// Running out of bytes is refused with the code the reader was made with, at the byte.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
    offset: usize,
    code: Code,
}

impl<'a> Reader<'a> {
    /// Reads `bytes`; refuses with `code`.
    pub const fn new(bytes: &'a [u8], code: Code) -> Self {
        Self { rest: bytes, offset: 0, code }
    }

    /// Takes `count` bytes, called `what` in refusals.
    ///
    /// # Errors
    /// When fewer are left.
    pub fn take(&mut self, count: usize, what: &str) -> Result<&'a [u8], Refusal> {
        let Some((taken, rest)) = self.rest.split_at_checked(count) else {
            return Err(self.refuse(format!("{what}: {} bytes left", self.rest.len())).expected(format!("{count}")));
        };
        self.rest = rest;
        self.offset += count;
        Ok(taken)
    }

    /// A UINT8.
    ///
    /// # Errors
    /// When no byte is left.
    pub fn u8(&mut self, what: &str) -> Result<u8, Refusal> {
        self.array::<1>(what).map(|[byte]| byte)
    }

    /// A UINT16.
    ///
    /// # Errors
    /// When too few bytes are left.
    pub fn u16(&mut self, what: &str) -> Result<u16, Refusal> {
        self.array(what).map(u16::from_be_bytes)
    }

    /// A UINT32.
    ///
    /// # Errors
    /// When too few bytes are left.
    pub fn u32(&mut self, what: &str) -> Result<u32, Refusal> {
        self.array(what).map(u32::from_be_bytes)
    }

    /// A UINT64.
    ///
    /// # Errors
    /// When too few bytes are left.
    pub fn u64(&mut self, what: &str) -> Result<u64, Refusal> {
        self.array(what).map(u64::from_be_bytes)
    }

    /// A TPM2B: a UINT16 size and as many bytes, at most `limit`.
    ///
    /// # Errors
    /// When it is longer than `limit` or than what is left.
    pub fn sized(&mut self, limit: usize, what: &str) -> Result<&'a [u8], Refusal> {
        let size = usize::from(self.u16(what)?);
        if size > limit {
            return Err(self.refuse(format!("{what} has {size} bytes")).expected(format!("at most {limit}")));
        }
        self.take(size, what)
    }

    /// How many bytes are left.
    pub const fn left(&self) -> usize {
        self.rest.len()
    }

    /// The offset of the next byte.
    pub const fn offset(&self) -> usize {
        self.offset
    }

    /// A refusal at the present offset.
    pub fn refuse(&self, found: impl Into<String>) -> Refusal {
        Refusal::new(self.code, found).at(format!("byte {}", self.offset))
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], Refusal> {
        let Some((taken, rest)) = self.rest.split_first_chunk::<N>() else {
            return Err(self.refuse(format!("{what}: {} bytes left", self.rest.len())).expected(format!("{N}")));
        };
        self.rest = rest;
        self.offset += N;
        Ok(*taken)
    }
}
