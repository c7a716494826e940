//! TCG_PCClientTaggedEvent (PFP 1.06, 10.4.2.7), and who uses which tag.

use crate::measurements::cursor::Cursor;

/// A tagged event.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tagged<'a> {
    /// Its tag.
    pub id: u32,
    /// Its data.
    pub data: &'a [u8],
}

impl<'a> Tagged<'a> {
    /// Linux' EFI stub: the command line as it was handed over, in UTF-16LE with its NUL.
    pub const LINUX_LOAD_OPTIONS: u32 = 0x8F3B_22ED;
    /// Linux' EFI stub: the initrd.
    pub const LINUX_INITRD: u32 = 0x8F3B_22EC;

    /// Reads event data that is one tagged event and nothing else.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let mut cursor = Cursor::new(bytes);
        let (id, size) = (cursor.u32()?, usize::try_from(cursor.u32()?).ok()?);
        let data = cursor.take(size)?;
        cursor.is_at_end().then_some(Self { id, data })
    }

    /// What is measured under this tag, in words. The data only describes it.
    pub const fn meaning(self) -> Option<&'static str> {
        Some(match self.id {
            Self::LINUX_LOAD_OPTIONS => "Linux: command line",
            Self::LINUX_INITRD => "Linux: initrd",
            0xF5BC_582A => "systemd-boot: loader.conf",
            0xD5CB_7CBC => "systemd: SMBIOS type 1",
            0xE0D4_7BC8 => "systemd: SMBIOS type 2",
            0xC0B3_BD23 => "systemd: SMBIOS type 11",
            0x6C46_F751 => "systemd-stub: devicetree",
            0x49DF_FE0F => "systemd-stub: initrd addon",
            0xDAC0_8E1A => "systemd-stub: microcode addon",
            _ => return None,
        })
    }
}
