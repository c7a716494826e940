//! EFI_SIGNATURE_LIST (UEFI 2.10, 32.4.1): what PK, KEK, db and dbx are made of.

use super::Guid;
use crate::measurements::cursor::Cursor;

/// The bytes of a list before its header: type, three sizes.
const FIXED: usize = 28;

/// What kind of entries a list has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SignatureKind {
    /// EFI_CERT_SHA256: hashes of images.
    Sha256,
    /// EFI_CERT_X509: certificates.
    X509,
    /// Another type. Nothing is read from its entries.
    Other(Guid),
}

impl SignatureKind {
    const SHA256_LIST: Guid =
        Guid::new(0xC1C4_1626, 0x504C, 0x4092, [0xAC, 0xA9], [0x41, 0xF9, 0x36, 0x93, 0x43, 0x28]);
    const X509_LIST: Guid = Guid::new(0xA5C0_59A1, 0x94E4, 0x4AA7, [0x87, 0xB5], [0xAB, 0x15, 0x5C, 0x2B, 0xF0, 0x72]);

    fn of(guid: Guid) -> Self {
        match guid {
            Self::SHA256_LIST => Self::Sha256,
            Self::X509_LIST => Self::X509,
            other => Self::Other(other),
        }
    }
}

/// One list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SignatureList<'a> {
    /// What its entries are.
    pub kind: SignatureKind,
    /// Its entries.
    pub signatures: Vec<Signature<'a>>,
}

/// One entry: an EFI_SIGNATURE_DATA.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Signature<'a> {
    /// Who put it there.
    pub owner: Guid,
    /// The hash or certificate.
    pub data: &'a [u8],
}

impl<'a> SignatureList<'a> {
    /// Reads a variable's contents: lists one after the other, to the end. No contents, no lists.
    ///
    /// Every size must add up, and lists of hashes or certificates have no header: a reader that
    /// takes header bytes for entries trusts what nobody enrolled.
    pub fn parse_all(bytes: &'a [u8]) -> Option<Vec<Self>> {
        let mut cursor = Cursor::new(bytes);
        let mut lists = Vec::new();
        while !cursor.is_at_end() {
            lists.push(Self::next(&mut cursor)?);
        }
        Some(lists)
    }

    /// Reads an entry that stands by itself, as EV_EFI_VARIABLE_AUTHORITY has it: an owner and a
    /// certificate or hash.
    pub fn entry(bytes: &'a [u8]) -> Option<Signature<'a>> {
        let mut cursor = Cursor::new(bytes);
        let owner = Guid(cursor.array()?);
        let data = cursor.rest();
        (!data.is_empty()).then_some(Signature { owner, data })
    }

    fn next(cursor: &mut Cursor<'a>) -> Option<Self> {
        let kind = SignatureKind::of(Guid(cursor.array()?));
        let [list, header, size] = [cursor.u32()?, cursor.u32()?, cursor.u32()?].map(usize::try_from);
        let (list, header, size) = (list.ok()?, header.ok()?, size.ok()?);
        let mut entries = Cursor::new(cursor.take(list.checked_sub(FIXED)?)?);
        let well_formed = match kind {
            // An owner's GUID and 32 bytes.
            SignatureKind::Sha256 => header == 0 && size == 48,
            SignatureKind::X509 => header == 0 && size > 16,
            SignatureKind::Other(_) => size > 16,
        };
        if !well_formed {
            return None;
        }
        entries.take(header)?;
        let mut signatures = Vec::new();
        while !entries.is_at_end() {
            signatures.push(Self::entry(entries.take(size)?)?);
        }
        Some(Self { kind, signatures })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(kind: Guid, header: &[u8], size: u32, entries: &[&[u8]]) -> Vec<u8> {
        let body: usize = header.len() + entries.iter().map(|entry| entry.len()).sum::<usize>();
        let mut bytes = kind.0.to_vec();
        bytes.extend(u32::try_from(FIXED + body).expect("small").to_le_bytes());
        bytes.extend(u32::try_from(header.len()).expect("small").to_le_bytes());
        bytes.extend(size.to_le_bytes());
        bytes.extend(header);
        bytes.extend(entries.concat());
        bytes
    }

    #[test]
    fn entries_are_what_the_sizes_say() {
        let hash = [7; 48];
        let bytes = list(SignatureKind::SHA256_LIST, &[], 48, &[&hash, &hash]);
        let lists = SignatureList::parse_all(&bytes).expect("a list");
        assert_eq!(lists.len(), 1);
        assert_eq!(lists[0].signatures, [Signature { owner: Guid([7; 16]), data: &[7; 32] }; 2]);
        assert_eq!(SignatureList::parse_all(&[]), Some(Vec::new()));
        for cut in 1..bytes.len() {
            assert_eq!(SignatureList::parse_all(&bytes[..cut]), None, "{cut}");
        }
    }

    #[test]
    fn a_lists_header_never_becomes_an_entry() {
        let (header, hash) = ([9; 48], [7; 48]);
        assert_eq!(SignatureList::parse_all(&list(SignatureKind::SHA256_LIST, &header, 48, &[&hash])), None);
        assert_eq!(SignatureList::parse_all(&list(SignatureKind::X509_LIST, &header, 48, &[&hash])), None);
        let other = list(Guid([1; 16]), &header, 48, &[&hash]);
        let lists = SignatureList::parse_all(&other).expect("a list");
        assert_eq!(lists[0].signatures, [Signature { owner: Guid([7; 16]), data: &[7; 32] }]);
        // A header that fills the list, or goes beyond it.
        assert_eq!(
            SignatureList::parse_all(&list(Guid([1; 16]), &header, 48, &[])).map(|l| l[0].signatures.len()),
            Some(0)
        );
        let mut beyond = other.clone();
        beyond[20..24].fill(0xFF);
        assert_eq!(SignatureList::parse_all(&beyond), None);
    }

    #[test]
    fn sizes_that_fit_no_entry_are_refused() {
        let hash = [7; 48];
        for size in [0, 16, 47, 49, u32::MAX] {
            assert_eq!(
                SignatureList::parse_all(&list(SignatureKind::SHA256_LIST, &[], size, &[&hash])),
                None,
                "{size}"
            );
        }
        let mut short = list(SignatureKind::SHA256_LIST, &[], 48, &[&hash]);
        short[16..20].copy_from_slice(&27_u32.to_le_bytes());
        assert_eq!(SignatureList::parse_all(&short), None);
    }
}
