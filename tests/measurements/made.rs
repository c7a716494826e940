//! Boot logs made by hand, byte by byte.

use leasehold::measurements::LogHash;

/// EV_NO_ACTION.
pub const NO_ACTION: u32 = 3;
/// EV_SEPARATOR.
pub const SEPARATOR: u32 = 4;
/// EV_EFI_HCRTM_EVENT.
pub const HCRTM: u32 = 0x8000_0010;
/// SHA-1 and SHA-256, with their digest sizes.
pub const TWO: &[(u16, u16)] = &[(0x0004, 20), (0x000B, 32)];
/// SHA-256 alone.
pub const ONE: &[(u16, u16)] = &[(0x000B, 32)];

/// A log that begins with a header of these algorithms.
pub fn header(algorithms: &[(u16, u16)]) -> Vec<u8> {
    header_with(algorithms, &[])
}

/// The same with the vendor's information.
pub fn header_with(algorithms: &[(u16, u16)], vendor: &[u8]) -> Vec<u8> {
    let mut data = b"Spec ID Event03\0".to_vec();
    data.extend([0, 0, 0, 0, 0, 2, 0, 2]);
    data.extend((algorithms.len() as u32).to_le_bytes());
    for (algorithm, size) in algorithms {
        data.extend(algorithm.to_le_bytes());
        data.extend(size.to_le_bytes());
    }
    data.push(vendor.len() as u8);
    data.extend(vendor);
    legacy(0, NO_ACTION, &[0; 20], &data)
}

/// A TCG_PCR_EVENT.
pub fn legacy(pcr: u32, kind: u32, digest: &[u8; 20], data: &[u8]) -> Vec<u8> {
    let mut bytes = [pcr.to_le_bytes(), kind.to_le_bytes()].concat();
    bytes.extend(digest);
    bytes.extend((data.len() as u32).to_le_bytes());
    bytes.extend(data);
    bytes
}

/// A TCG_PCR_EVENT2 with these digests.
pub fn event(pcr: u32, kind: u32, digests: &[(u16, Vec<u8>)], data: &[u8]) -> Vec<u8> {
    let mut bytes = [pcr.to_le_bytes(), kind.to_le_bytes(), (digests.len() as u32).to_le_bytes()].concat();
    for (algorithm, digest) in digests {
        bytes.extend(algorithm.to_le_bytes());
        bytes.extend(digest);
    }
    bytes.extend((data.len() as u32).to_le_bytes());
    bytes.extend(data);
    bytes
}

/// A TCG_PCR_EVENT2 whose digests are the hashes of its data.
pub fn hashed(pcr: u32, kind: u32, algorithms: &[(u16, u16)], data: &[u8]) -> Vec<u8> {
    let digest = |(id, size): &(u16, u16)| match LogHash::from_algorithm(*id) {
        Some(hash) => (*id, hash.digest(&[data])),
        None => (*id, vec![0x5A; usize::from(*size)]),
    };
    event(pcr, kind, &algorithms.iter().map(digest).collect::<Vec<_>>(), data)
}

/// The data of the event that states TPM2_Startup's locality.
pub fn startup(locality: u8) -> Vec<u8> {
    [b"StartupLocality\0".as_slice(), &[locality]].concat()
}
