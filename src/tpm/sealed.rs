//! A secret sealed to a TPM, as it lies in a file. It opens on that TPM only.
//!
//! The file is deterministic CBOR: `["leasehold-sealed-v1", SRK name, TPM2B_PUBLIC, TPM2B_PRIVATE]`,
//! the last three as byte strings, so that other tools can load them under the same SRK.

use serde_bytes::ByteBuf;

use crate::codes::{self, Refusal};

/// What every version of the file begins with, after the two bytes of array and text.
const FAMILY: &[u8] = b"leasehold-sealed-";
const LABEL: &str = "leasehold-sealed-v1";

/// The largest field: no TPM makes a larger TPM2B_PRIVATE for a secret of at most 128 bytes.
const LARGEST: usize = 2048;

/// A sealed secret and the name of the storage root key that it is sealed under.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sealed {
    /// TPM name: u16 nameAlg ‖ hash.
    pub(super) srk_name: Vec<u8>,
    /// TPMT_PUBLIC (Part 2, 12.2.4).
    pub(super) public: Vec<u8>,
    /// The contents of TPM2B_PRIVATE (Part 2, 12.3.7): encrypted by the TPM.
    pub(super) private: Vec<u8>,
}

impl Sealed {
    /// Whether these bytes are meant as a sealed secret, of whatever version.
    pub fn looks_like(bytes: &[u8]) -> bool {
        bytes.get(2..).is_some_and(|rest| rest.starts_with(FAMILY))
    }

    /// Reads a file.
    ///
    /// # Errors
    /// [`codes::TPM_STRUCTURE`], also for a file of another version.
    pub fn decode(bytes: &[u8]) -> Result<Self, Refusal> {
        let refuse = |found: String| {
            Refusal::new(codes::TPM_STRUCTURE, found).expected(format!("a secret sealed to a TPM, `{LABEL}`"))
        };
        let (label, srk_name, public, private): (String, ByteBuf, ByteBuf, ByteBuf) =
            serde_cbor::from_slice(bytes).map_err(|e| refuse(e.to_string()))?;
        if label != LABEL {
            return Err(refuse(format!("the label `{label}`")));
        }
        let field = |name: &str, sized: &[u8]| {
            unsized_bytes(sized).map(<[u8]>::to_vec).ok_or_else(|| refuse(format!("{name} has a wrong size")))
        };
        let sealed = Self {
            srk_name: srk_name.into_vec(),
            public: field("TPM2B_PUBLIC", &public)?,
            private: field("TPM2B_PRIVATE", &private)?,
        };
        // One encoding only: then the file is the value, and no byte of it goes unread.
        match sealed.encode() {
            encoded if encoded == bytes => Ok(sealed),
            _ => Err(refuse("another encoding of the same".to_owned())),
        }
    }

    /// The file's contents.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![0x84];
        head(&mut out, 3, LABEL.len());
        out.extend_from_slice(LABEL.as_bytes());
        for field in [self.srk_name.clone(), sized(&self.public), sized(&self.private)] {
            head(&mut out, 2, field.len());
            out.extend_from_slice(&field);
        }
        out
    }

    /// Name of the storage root key that it is sealed under, hexadecimal.
    pub fn srk_name(&self) -> String {
        hex::encode(&self.srk_name)
    }
}

/// The head of a CBOR item in its shortest form (RFC 8949, 4.2.1); fields here are below 64 KiB.
fn head(out: &mut Vec<u8>, major: u8, length: usize) {
    let [.., high, low] = length.to_be_bytes();
    match length {
        0..24 => out.push(major << 5 | low),
        24..256 => out.extend_from_slice(&[major << 5 | 24, low]),
        _ => out.extend_from_slice(&[major << 5 | 25, high, low]),
    }
}

/// A TPM2B: u16 big-endian size, then the bytes.
fn sized(bytes: &[u8]) -> Vec<u8> {
    let [.., high, low] = bytes.len().to_be_bytes();
    [&[high, low], bytes].concat()
}

fn unsized_bytes(sized: &[u8]) -> Option<&[u8]> {
    let (size, bytes) = sized.split_first_chunk::<2>()?;
    let length = usize::from(u16::from_be_bytes(*size));
    (length == bytes.len() && (1..=LARGEST).contains(&length)).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed() -> Sealed {
        Sealed { srk_name: vec![7; 34], public: vec![8; 46], private: vec![9; 300] }
    }

    #[test]
    fn files_read_back_and_nothing_else_reads() {
        let bytes = sealed().encode();
        assert!(Sealed::looks_like(&bytes));
        assert_eq!(Sealed::decode(&bytes).unwrap(), sealed());
        for cut in 0..bytes.len() {
            assert_eq!(Sealed::decode(&bytes[..cut]).unwrap_err().code, codes::TPM_STRUCTURE, "cut at {cut}");
        }
        assert!(Sealed::decode(&[&bytes[..], &[0]].concat()).is_err());
        for secret in [&[0; 32][..], &[0x84; 32], b""] {
            assert!(!Sealed::looks_like(secret));
        }
    }

    #[test]
    fn another_version_is_named() {
        let mut bytes = sealed().encode();
        bytes[20] = b'2';
        assert!(Sealed::looks_like(&bytes));
        assert!(Sealed::decode(&bytes).unwrap_err().found.contains("leasehold-sealed-v2"));
    }

    #[test]
    fn sizes_inside_must_agree() {
        let bytes = sealed().encode();
        let position = bytes.windows(3).position(|part| part == [0, 46, 8]).unwrap();
        let mut wrong = bytes.clone();
        wrong[position + 1] = 45;
        assert!(Sealed::decode(&wrong).unwrap_err().found.contains("TPM2B_PUBLIC"));
    }
}
