//! Miniature PE images: as much of one as the firmware looks at.

/// Where the optional header begins.
const OPTIONAL: usize = 0x40 + 24;
/// The file's alignment.
const ALIGNMENT: usize = 512;

/// A PE32+ image of these sections, unsigned. A section's size in memory is its contents'.
pub fn image(sections: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let table = OPTIONAL + 112 + 16 * 8;
    let headers = (table + 40 * sections.len()).next_multiple_of(ALIGNMENT);
    let mut bytes = vec![0; headers];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(0, b"MZ");
    put(0x3C, &0x40u32.to_le_bytes());
    put(0x40, b"PE\0\0");
    put(0x44, &0x8664u16.to_le_bytes());
    put(0x46, &(sections.len() as u16).to_le_bytes());
    put(0x54, &(112u16 + 128).to_le_bytes());
    put(OPTIONAL, &0x20Bu16.to_le_bytes());
    put(OPTIONAL + 60, &(headers as u32).to_le_bytes());
    put(OPTIONAL + 64, b"SUMS");
    put(OPTIONAL + 108, &16u32.to_le_bytes());
    let mut offset = headers;
    for (number, (name, contents)) in sections.iter().enumerate() {
        let at = table + 40 * number;
        put(at, name.as_bytes());
        put(at + 8, &(contents.len() as u32).to_le_bytes());
        put(at + 16, &(contents.len().next_multiple_of(ALIGNMENT) as u32).to_le_bytes());
        put(at + 20, &(offset as u32).to_le_bytes());
        offset += contents.len().next_multiple_of(ALIGNMENT);
    }
    for (_, contents) in sections {
        bytes.extend(contents);
        bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
    }
    bytes
}

/// The image with something in the place of a signature behind it.
pub fn signed(mut bytes: Vec<u8>, signature: &[u8]) -> Vec<u8> {
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    let at = OPTIONAL + 112 + 4 * 8;
    let offset = bytes.len() as u32;
    bytes[at..at + 4].copy_from_slice(&offset.to_le_bytes());
    bytes[at + 4..at + 8].copy_from_slice(&(signature.len() as u32).to_le_bytes());
    bytes.extend(signature);
    bytes
}

/// The hash that the firmware makes, from its definition, for an image of [`image`].
pub fn authenticode(bytes: &[u8], signature: usize) -> Vec<u8> {
    use sha2::Digest;
    let directory = OPTIONAL + 112 + 32;
    let parts =
        [&bytes[..OPTIONAL + 64], &bytes[OPTIONAL + 68..directory], &bytes[directory + 8..bytes.len() - signature]];
    sha2::Sha256::digest(parts.concat()).to_vec()
}

/// A unified kernel image of a stub of this version.
pub fn uki(version: &str, kernel: &[u8], cmdline: &str, initrd: &[u8]) -> Vec<u8> {
    image(&[
        (".text", vec![0x90; 700]),
        (".sdmagic", format!("#### LoaderInfo: systemd-stub {version} ####\0").into_bytes()),
        (".sbat", b"sbat,1\n".to_vec()),
        (".initrd", initrd.to_vec()),
        (".cmdline", cmdline.as_bytes().to_vec()),
        (".osrel", b"ID=debian\n".to_vec()),
        (".linux", kernel.to_vec()),
    ])
}

/// A kernel that is started like any image.
pub fn kernel(contents: &[u8]) -> Vec<u8> {
    image(&[(".text", contents.to_vec())])
}
