//! UEFI_VARIABLE_DATA (PFP 1.06, 10.4.2.1): a variable's GUID, name and contents.

use std::ops::Range;

use super::Guid;
use super::text::utf16;
use crate::measurements::cursor::Cursor;

/// A variable, as an event has it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VariableData<'a> {
    /// Whose variable it is.
    pub guid: Guid,
    /// Its name.
    pub name: String,
    /// Its contents.
    pub data: &'a [u8],
}

impl<'a> VariableData<'a> {
    /// Reads event data that is a variable and nothing else.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (variable, length) = Self::prefix(bytes)?;
        (length == bytes.len()).then_some(variable)
    }

    /// Reads the variable that event data begins with, and its length there in bytes: an old shim
    /// logs some bytes more than the variable has.
    pub fn prefix(bytes: &'a [u8]) -> Option<(Self, usize)> {
        let (guid, name, contents) = layout(bytes)?;
        let length = contents.end;
        let name = utf16(bytes.get(name)?)?;
        Some((Self { guid, name, data: bytes.get(contents)? }, length))
    }

    /// Where the contents are, in event data that is a variable and nothing else.
    pub fn contents(bytes: &[u8]) -> Option<Range<usize>> {
        let (_, _, contents) = layout(bytes)?;
        (contents.end == bytes.len()).then_some(contents)
    }
}

/// The GUID, and where the name and the contents are. The name is counted in 16-bit units.
fn layout(bytes: &[u8]) -> Option<(Guid, Range<usize>, Range<usize>)> {
    let mut cursor = Cursor::new(bytes);
    let guid = Guid(cursor.array()?);
    let (name_units, data_length) = (cursor.length()?, cursor.length()?);
    let name_start = cursor.offset();
    cursor.take(name_units.checked_mul(2)?)?;
    let data_start = cursor.offset();
    cursor.take(data_length)?;
    Some((guid, name_start..data_start, data_start..cursor.offset()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secure_boot(on: u8) -> Vec<u8> {
        let mut bytes = Guid::GLOBAL.0.to_vec();
        bytes.extend(10_u64.to_le_bytes());
        bytes.extend(1_u64.to_le_bytes());
        bytes.extend("SecureBoot".encode_utf16().flat_map(u16::to_le_bytes));
        bytes.push(on);
        bytes
    }

    #[test]
    fn lengths_must_add_up() {
        let bytes = secure_boot(1);
        let variable = VariableData::parse(&bytes).expect("a variable");
        assert_eq!((variable.guid, variable.name.as_str(), variable.data), (Guid::GLOBAL, "SecureBoot", &[1][..]));
        for cut in 0..bytes.len() {
            assert_eq!(VariableData::parse(&bytes[..cut]), None, "{cut}");
        }
        assert_eq!(VariableData::parse(&[&bytes[..], &[0]].concat()), None);
        let mut huge = bytes.clone();
        huge[16..24].fill(0xFF);
        assert_eq!(VariableData::parse(&huge), None);
        huge[16..24].copy_from_slice(&(1_u64 << 63).to_le_bytes());
        assert_eq!(VariableData::parse(&huge), None);
    }
}
