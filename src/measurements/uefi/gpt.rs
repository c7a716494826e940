//! UEFI_GPT_DATA (PFP 1.06, 10.4.2.5): the partition table that was booted from.

use super::Guid;
use super::text::utf16;
use crate::measurements::cursor::Cursor;

/// A partition table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Gpt {
    /// The disk's GUID.
    pub disk: Guid,
    /// The partitions' GUIDs and names.
    pub partitions: Vec<(Guid, String)>,
}

impl Gpt {
    /// Reads event data that is a partition table and nothing else.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let mut cursor = Cursor::new(bytes);
        // EFI_PARTITION_TABLE_HEADER (UEFI 2.10, 5.3.2) without the rest of its block.
        let mut header = Cursor::new(cursor.take(92)?);
        if header.take(8)? != b"EFI PART" {
            return None;
        }
        header.take(48)?;
        let disk = Guid(header.array()?);
        header.take(12)?;
        let entry_size = usize::try_from(header.u32()?).ok()?;
        let count = cursor.u64()?;
        let mut partitions = Vec::new();
        for _ in 0..count {
            let mut entry = Cursor::new(cursor.take(entry_size)?);
            entry.take(16)?;
            let partition = Guid(entry.array()?);
            entry.take(24)?;
            partitions.push((partition, utf16(entry.take(72)?).unwrap_or_default()));
        }
        cursor.is_at_end().then_some(Self { disk, partitions })
    }
}
