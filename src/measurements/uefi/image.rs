//! UEFI_IMAGE_LOAD_EVENT (PFP 1.06, 10.4.2.3): an image that was started. Its digest is the
//! image's Authenticode hash; nothing vouches for this data.

use super::device_path::device_path;
use crate::measurements::cursor::Cursor;

/// An image that was loaded.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ImageLoad {
    /// Its length in memory, in bytes.
    pub length: u64,
    /// Where it came from, as UEFI writes device paths (UEFI 2.10, 10.6), shortened.
    pub path: String,
}

impl ImageLoad {
    /// Reads event data that is an image load and nothing else.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let mut cursor = Cursor::new(bytes);
        // Its place in memory and its link-time address.
        let (_, length, _) = (cursor.u64()?, cursor.u64()?, cursor.u64()?);
        let path_length = cursor.length()?;
        let path = device_path(cursor.take(path_length)?)?;
        cursor.is_at_end().then_some(Self { length, path })
    }
}
