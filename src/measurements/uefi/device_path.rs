//! Device paths (UEFI 2.10, 10.3) as text: the nodes that tell where an image came from.

use std::fmt::Write;

use super::Guid;
use super::text::utf16;
use crate::measurements::cursor::Cursor;

/// The most nodes of a path. Real ones have less than ten.
const NODES_LIMIT: usize = 64;

/// Device paths, one after the other, as text; `None` if lengths don't add up. No bytes are no
/// path: empty text.
pub fn device_path(bytes: &[u8]) -> Option<String> {
    let mut cursor = Cursor::new(bytes);
    let mut text = String::new();
    for _ in 0..NODES_LIMIT {
        if cursor.is_at_end() {
            return Some(text);
        }
        let (kind, sub) = (cursor.u8()?, cursor.u8()?);
        let length = usize::from(cursor.u16()?);
        let body = cursor.take(length.checked_sub(4)?)?;
        // The end of a path, or of one instance of it.
        if kind == 0x7F {
            if !cursor.is_at_end() {
                text.push(',');
            }
            continue;
        }
        if !text.is_empty() && !text.ends_with(',') {
            text.push('/');
        }
        // Writing to a string never fails.
        let _ = match node(kind, sub, body) {
            Some(words) => write!(text, "{words}"),
            None => write!(text, "Path({kind},{sub},{} bytes)", body.len()),
        };
    }
    None
}

/// A node as UEFI writes it, if it is one of those people meet.
fn node(kind: u8, sub: u8, body: &[u8]) -> Option<String> {
    let mut cursor = Cursor::new(body);
    Some(match (kind, sub) {
        (1, 1) => {
            let (function, device) = (cursor.u8()?, cursor.u8()?);
            format!("Pci({device:#x},{function:#x})")
        }
        (1, 4) => format!("VenHw({})", Guid(cursor.array()?)),
        (2, 1) => {
            let (id, uid) = (cursor.u32()?, cursor.u32()?);
            match id {
                0x0A03_41D0 => format!("PciRoot({uid:#x})"),
                0x0A08_41D0 => format!("PcieRoot({uid:#x})"),
                _ => format!("Acpi({id:#x},{uid:#x})"),
            }
        }
        (3, 2) => format!("Scsi({:#x},{:#x})", cursor.u16()?, cursor.u16()?),
        (3, 5) => format!("USB({:#x},{:#x})", cursor.u8()?, cursor.u8()?),
        (3, 11) => format!("MAC({})", hex::encode(cursor.take(6)?)),
        (3, 18) => format!("Sata({:#x})", cursor.u16()?),
        (3, 23) => format!("NVMe({:#x})", cursor.u32()?),
        (4, 1) => hard_drive(&mut cursor)?,
        (4, 4) => utf16(body)?,
        (4, 6) => format!("FvFile({})", Guid(cursor.array()?)),
        (4, 7) => format!("Fv({})", Guid(cursor.array()?)),
        _ => return None,
    })
}

/// A partition: its number and, of a GPT, its GUID.
fn hard_drive(cursor: &mut Cursor<'_>) -> Option<String> {
    let number = cursor.u32()?;
    cursor.take(16)?;
    let signature = cursor.array()?;
    cursor.u8()?;
    Some(match cursor.u8()? {
        2 => format!("HD({number},GPT,{})", Guid(signature)),
        _ => format!("HD({number},MBR)"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_that_do_not_add_up_are_no_path() {
        let end = [0x7F, 0xFF, 4, 0];
        assert_eq!(device_path(&end), Some(String::new()));
        assert_eq!(device_path(&[]), Some(String::new()));
        assert_eq!(device_path(&[1, 1, 6, 0, 2, 1, 0x7F, 0xFF, 4, 0]), Some("Pci(0x1,0x2)".to_owned()));
        assert_eq!(device_path(&[1, 1, 3, 0]), None);
        assert_eq!(device_path(&[1, 1, 0, 0]), None);
        assert_eq!(device_path(&[1, 1, 7, 0, 2, 1]), None);
        assert_eq!(device_path(&[&end[..], &[0]].concat()), None);
        assert_eq!(device_path(&[1, 1, 6, 0, 2, 1].repeat(2)), Some("Pci(0x1,0x2)/Pci(0x1,0x2)".to_owned()));
        assert_eq!(device_path(&[1, 1, 4, 0].repeat(65)), None);
    }
}
