//! The profiles of `firmware-profiles/`, in both binaries.

macro_rules! files {
    ($($name:literal)*) => {
        /// Name and text of each.
        pub(super) const FILES: &[(&str, &str)] =
            &[$(($name, include_str!(concat!("../../../firmware-profiles/", $name, ".toml")))),*];
    };
}

files! {
    "swtpm-dev"
    "qemu-ovmf"
    "uefi-secureboot"
    "uefi-uki"
    "uefi-shim-grub"
    "uboot-measured"
    "raspberry-pi"
    "vtpm-no-log"
    "amd-ftpm"
    "intel-ptt"
}

/// The text of a shipped profile.
pub(super) fn text(name: &str) -> Option<&'static str> {
    FILES.iter().find(|(known, _)| *known == name).map(|(_, text)| *text)
}
