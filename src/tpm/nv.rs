//! Certificates in the TPM's NV memory (TCG EK Credential Profile 2.5, 2.2.1).

use std::ops::RangeInclusive;

use tss_esapi::constants::PropertyTag;
use tss_esapi::handles::{NvIndexHandle, ObjectHandle};
use tss_esapi::interface_types::resource_handles::NvAuth;

use super::connection::{Connection, NONE, PASSWORD};
use super::words::Fault;

/// The first NV index (Part 2, 7.2).
const FIRST_INDEX: u32 = 0x0100_0000;
/// Where the EK certificate's chain is kept.
const CHAIN: RangeInclusive<u32> = 0x01C0_0100..=0x01C0_01FF;
/// What any TPM reads at once; TPM_PT_NV_BUFFER_MAX may allow more.
const LEAST_BUFFER: u32 = 64;
const MOST_BUFFER: u32 = 1024;

/// The NV indices that are defined, ascending.
pub(super) fn indices(connection: &mut Connection) -> Result<Vec<u32>, Fault> {
    let mut indices = connection.handles(FIRST_INDEX)?;
    indices.sort_unstable();
    Ok(indices)
}

/// The certificate in `index`, without what pads it. None if it was never written, may not be
/// read or holds something else.
pub(super) fn certificate(connection: &mut Connection, index: u32) -> Result<Option<Vec<u8>>, Fault> {
    let Some(contents) = read(connection, index)? else { return Ok(None) };
    let certificate = sequence(&contents).map(|(first, _)| first.to_vec());
    if certificate.is_none() {
        tracing::warn!(index = format!("{index:#010x}"), "an NV index for a certificate holds something else");
    }
    Ok(certificate)
}

/// The certificates of the EK's chain, in the order of their indices.
pub(super) fn chain(connection: &mut Connection, indices: &[u32]) -> Result<Vec<Vec<u8>>, Fault> {
    let mut certificates = Vec::new();
    let mut rest = Vec::new();
    for index in indices.iter().filter(|index| CHAIN.contains(index)) {
        let Some(contents) = read(connection, *index)? else { continue };
        // A certificate too large for one index goes on in the next.
        rest.extend(contents);
        while let Some((first, after)) = sequence(&rest) {
            certificates.push(first.to_vec());
            rest = after.to_vec();
        }
        if rest.first() != Some(&SEQUENCE) {
            rest.clear();
        }
    }
    Ok(certificates)
}

/// All of an index; none if the TPM refuses to show it.
fn read(connection: &mut Connection, index: u32) -> Result<Option<Vec<u8>>, Fault> {
    let resource = connection.resource(index)?;
    let contents = read_resource(connection, resource);
    connection.release(resource);
    match contents {
        Ok(contents) => Ok(Some(contents)),
        Err(fault) if fault.lost || fault.error.is_unavailable() => Err(fault),
        Err(fault) => {
            tracing::warn!(index = format!("{index:#010x}"), error = %fault.error, "an NV index can't be read");
            Ok(None)
        }
    }
}

fn read_resource(connection: &mut Connection, resource: ObjectHandle) -> Result<Vec<u8>, Fault> {
    let index = NvIndexHandle::from(resource);
    let (public, _) = connection.call("TPM2_NV_ReadPublic", NONE, |context| context.nv_read_public(index))?;
    let auth = if public.attributes().auth_read() { NvAuth::NvIndex(index) } else { NvAuth::Owner };
    let buffer = connection.property(PropertyTag::NvBufferMax)?.unwrap_or(LEAST_BUFFER);
    let buffer = usize::try_from(buffer.clamp(LEAST_BUFFER, MOST_BUFFER)).unwrap_or(64);
    let mut contents = Vec::with_capacity(public.data_size());
    while contents.len() < public.data_size() {
        let size = buffer.min(public.data_size() - contents.len());
        let (Ok(size), Ok(offset)) = (u16::try_from(size), u16::try_from(contents.len())) else {
            return Err(Fault::refused("TPM2_NV_Read", "the NV index is larger than 64 KiB"));
        };
        let part = connection.call("TPM2_NV_Read", PASSWORD, |context| context.nv_read(auth, index, size, offset))?;
        if part.is_empty() {
            return Err(Fault::lost("TPM2_NV_Read answered nothing"));
        }
        contents.extend_from_slice(part.value());
    }
    Ok(contents)
}

/// DER's SEQUENCE tag.
const SEQUENCE: u8 = 0x30;

/// The DER SEQUENCE that `bytes` begin with, and what follows it (X.690, 8.1.3: definite lengths).
fn sequence(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (&[tag, first], after) = bytes.split_first_chunk::<2>()?;
    if tag != SEQUENCE {
        return None;
    }
    let (length, header) = match first {
        0..=0x7F => (usize::from(first), 2),
        0x81..=0x83 => {
            let count = usize::from(first & 0x7F);
            let octets = after.get(..count)?;
            (octets.iter().fold(0, |length, octet| length << 8 | usize::from(*octet)), 2 + count)
        }
        _ => return None,
    };
    bytes.split_at_checked(header + length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sequence_is_cut_where_its_length_says() {
        assert_eq!(sequence(&[0x30, 2, 1, 2, 0xFF]), Some((&[0x30, 2, 1, 2][..], &[0xFF][..])));
        let mut long = vec![0x30, 0x82, 0x01, 0x00];
        long.resize(4 + 256 + 3, 0xFF);
        let (first, rest) = sequence(&long).unwrap();
        assert_eq!((first.len(), rest.len()), (260, 3));
        for bad in [&[][..], &[0x30], &[0x30, 1], &[0x30, 0x80, 0], &[0x30, 0x84, 0, 0, 0, 0], &[0x31, 0], &[0xFF; 9]] {
            assert_eq!(sequence(bad), None, "{bad:02x?}");
        }
    }
}
