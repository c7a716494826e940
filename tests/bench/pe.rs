//! Miniature PE images: headers, sections, nothing that runs.

use sha2::{Digest, Sha256};

/// Where the checksum and the certificate table's entry stand in what [`image`] makes.
const CHECKSUM: usize = 64 + 24 + 64;
const CERTIFICATES: usize = 64 + 24 + 112 + 8 * 4;
/// FileAlignment.
const ALIGNMENT: usize = 512;

/// A PE32+ image with these sections, in this order.
pub fn image(sections: &[(&str, &[u8])]) -> Vec<u8> {
    let mut bytes = vec![0; 64];
    bytes[..2].copy_from_slice(b"MZ");
    bytes[0x3C] = 64;
    bytes.extend(b"PE\0\0");
    bytes.extend(0x8664u16.to_le_bytes());
    bytes.extend(u16::try_from(sections.len()).unwrap().to_le_bytes());
    bytes.extend([0; 12]);
    bytes.extend(240u16.to_le_bytes());
    bytes.extend([0; 2]);
    let headers = (64 + 24 + 240 + 40 * sections.len()).next_multiple_of(ALIGNMENT);
    let mut optional = vec![0; 240];
    optional[..2].copy_from_slice(&0x20Bu16.to_le_bytes());
    optional[60..64].copy_from_slice(&u32::try_from(headers).unwrap().to_le_bytes());
    optional[108..112].copy_from_slice(&16u32.to_le_bytes());
    bytes.extend(optional);
    let mut offset = headers;
    for (name, content) in sections {
        let size = content.len().next_multiple_of(ALIGNMENT);
        let mut header = [0; 40];
        header[..name.len()].copy_from_slice(name.as_bytes());
        let word = |value: usize| u32::try_from(value).unwrap().to_le_bytes();
        header[8..12].copy_from_slice(&word(content.len()));
        header[12..16].copy_from_slice(&word(offset));
        header[16..20].copy_from_slice(&word(size));
        header[20..24].copy_from_slice(&word(offset));
        bytes.extend(header);
        offset += size;
    }
    bytes.resize(headers, 0);
    for (_, content) in sections {
        bytes.extend(*content);
        bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
    }
    bytes
}

/// Its Authenticode hash. The images here are unsigned and have no gaps, so that it is simply that
/// of all bytes but the checksum and the certificate table's entry.
pub fn authenticode(image: &[u8]) -> [u8; 32] {
    Sha256::new()
        .chain_update(&image[..CHECKSUM])
        .chain_update(&image[CHECKSUM + 4..CERTIFICATES])
        .chain_update(&image[CERTIFICATES + 8..])
        .finalize()
        .into()
}
