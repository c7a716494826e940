//! What the data of boot events says (UEFI 2.10; TCG PC Client Platform Firmware Profile 1.06,
//! section 10; Linux; GRUB; shim; systemd). Each form is read strictly, whole, or not at all.
//!
//! To read data is not to believe it: [`Vouched`] says how much of it the digest covers.

mod device_path;
mod gpt;
mod image;
mod signature;
mod summary;
mod tagged;
mod text;
mod variable;
mod vouched;

use std::fmt;

pub use gpt::Gpt;
pub use image::ImageLoad;
pub use signature::{Signature, SignatureKind, SignatureList};
pub use summary::summary;
pub use tagged::Tagged;
pub use text::printable;
pub use variable::VariableData;
pub use vouched::{PartRule, Separator, Vouched};

/// An EFI_GUID: 16 bytes, of which the first three numbers are little-endian.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Guid(pub [u8; 16]);

impl Guid {
    /// The GUID of these five numbers, as text has them.
    pub const fn new(first: u32, second: u16, third: u16, fourth: [u8; 2], fifth: [u8; 6]) -> Self {
        let (a, b, c, d, e) = (first.to_le_bytes(), second.to_le_bytes(), third.to_le_bytes(), fourth, fifth);
        Self([a[0], a[1], a[2], a[3], b[0], b[1], c[0], c[1], d[0], d[1], e[0], e[1], e[2], e[3], e[4], e[5]])
    }

    /// EFI_GLOBAL_VARIABLE: SecureBoot, PK, KEK, BootOrder and the like.
    pub const GLOBAL: Self = Self::new(0x8BE4_DF61, 0x93CA, 0x11D2, [0xAA, 0x0D], [0x00, 0xE0, 0x98, 0x03, 0x2B, 0x8C]);
    /// EFI_IMAGE_SECURITY_DATABASE: db, dbx, dbt, dbr.
    pub const SECURITY_DATABASE: Self =
        Self::new(0xD719_B2CB, 0x3D3A, 0x4596, [0xA3, 0xBC], [0xDA, 0xD0, 0x0E, 0x67, 0x65, 0x6F]);
    /// shim's variables: MokList, MokListTrusted, SbatLevel and the like.
    pub const SHIM: Self = Self::new(0x605D_AB50, 0xE046, 0x4300, [0xAB, 0xB6], [0x3D, 0xD8, 0x10, 0xDD, 0x8B, 0x23]);
}

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a0, a1, a2, a3, b0, b1, c0, c1, d0, d1, rest @ ..] = self.0;
        let (a, b, c) =
            (u32::from_le_bytes([a0, a1, a2, a3]), u16::from_le_bytes([b0, b1]), u16::from_le_bytes([c0, c1]));
        write!(f, "{a:08x}-{b:04x}-{c:04x}-{d0:02x}{d1:02x}-{}", hex::encode(rest))
    }
}

impl fmt::Debug for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guids_print_as_the_specification_writes_them() {
        assert_eq!(Guid::GLOBAL.to_string(), "8be4df61-93ca-11d2-aa0d-00e098032b8c");
        assert_eq!(Guid::SECURITY_DATABASE.to_string(), "d719b2cb-3d3a-4596-a3bc-dad00e67656f");
        assert_eq!(Guid::SHIM.to_string(), "605dab50-e046-4300-abb6-3dd810dd8b23");
    }
}
