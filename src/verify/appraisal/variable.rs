//! UEFI variables and signature lists, as far as Secure Boot needs them.

/// UEFI_VARIABLE_DATA (PC Client Platform Firmware Profile 1.06, 10.4.2).
pub(super) struct Variable<'a> {
    /// The vendor GUID, as it stands in memory.
    pub owner: [u8; 16],
    /// The name.
    pub name: String,
    /// The contents.
    pub data: &'a [u8],
}

impl<'a> Variable<'a> {
    /// Reads one; every length must fit exactly.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (owner, rest) = bytes.split_first_chunk::<16>()?;
        let (name_length, rest) = rest.split_first_chunk::<8>()?;
        let (data_length, rest) = rest.split_first_chunk::<8>()?;
        let name_length = usize::try_from(u64::from_le_bytes(*name_length)).ok()?.checked_mul(2)?;
        let (name, data) = rest.split_at_checked(name_length)?;
        if u64::try_from(data.len()).ok()? != u64::from_le_bytes(*data_length) {
            return None;
        }
        let units: Vec<u16> = name.chunks_exact(2).filter_map(|unit| Some(u16::from_le_bytes(unit.try_into().ok()?))).collect();
        Some(Self { owner: *owner, name: String::from_utf16(&units).ok()?, data })
    }
}

/// The EFI_SIGNATURE_DATA of each entry of the EFI_SIGNATURE_LISTs in `bytes` (UEFI 2.10, 32.4.1): never a header.
pub(super) fn signature_lists(mut bytes: &[u8]) -> Option<Vec<&[u8]>> {
    let mut entries = Vec::new();
    while !bytes.is_empty() {
        let word = |at: usize| -> Option<usize> {
            let end = at.checked_add(4)?;
            usize::try_from(u32::from_le_bytes(bytes.get(at..end)?.try_into().ok()?)).ok()
        };
        let (list, header, entry) = (word(16)?, word(20)?, word(24)?);
        let body = bytes.get(28usize.checked_add(header)?..list)?;
        // An entry has an owner, and something behind it.
        if entry <= 16 || body.len() % entry != 0 {
            return None;
        }
        entries.extend(body.chunks_exact(entry));
        bytes = bytes.get(list..)?;
    }
    Some(entries)
}

/// Whether the list has this very entry.
pub(super) fn is_member(entries: &[&[u8]], entry: &[u8]) -> bool {
    entries.contains(&entry)
}
