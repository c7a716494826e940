//! Floors for the firmware of TPMs: versions with known faults that break what a TPM is trusted for.
//!
//! The versions are those of the manufacturers' notices as far as they could be had: ST's from its own page,
//! Infineon's as others repeat them, so theirs is to be checked against a notice where it decides.
//! - Infineon, CVE-2017-15361 (ROCA, weak RSA keys): 5.61, 7.61, 133.32 and earlier of each line of TPM 2.0;
//! - Infineon, CVE-2025-2884 (read beyond a buffer in the reference code): SLB 9672/9673 before 15.23;
//! - STMicroelectronics, CVE-2019-16863 (TPM-FAIL, ECDSA keys by timing): the versions of 71, 73 and 74 in ST's list.
//!
//! Of CVE-2023-1017/-1018 and, but for the one above, CVE-2025-2884 most makers published no list of
//! versions that could be told by number; firmware TPMs are updated with the machine's firmware. An
//! operator who knows one states it as a floor of their own.

use std::collections::BTreeMap;

use crate::codes::{self, Refusal};

/// One line of a manufacturer's firmware that has a fault below a version.
#[derive(Clone, Copy, Debug)]
struct Known {
    manufacturer: &'static str,
    major: u16,
    /// The first version without the fault.
    fixed: u16,
    fault: &'static str,
}

const ROCA: &str = "CVE-2017-15361 (ROCA)";
const TPM_FAIL: &str = "CVE-2019-16863 (TPM-FAIL)";

/// The version is read as two numbers of 16 bits, then two more, as TPM_PT_FIRMWARE_VERSION_1 and _2 are written.
/// ST's lines 73 and 74 have several products, whose fixed versions are 20 and 64, 21 and 65: the
/// affected ones among them are 0, 4, 5, 8, 9 and 16, so 20 tells them apart.
const KNOWN: [Known; 7] = [
    Known { manufacturer: "IFX", major: 5, fixed: 62, fault: ROCA },
    Known { manufacturer: "IFX", major: 7, fixed: 62, fault: ROCA },
    Known { manufacturer: "IFX", major: 133, fixed: 33, fault: ROCA },
    Known { manufacturer: "IFX", major: 15, fixed: 23, fault: "CVE-2025-2884" },
    Known { manufacturer: "STM", major: 71, fixed: 16, fault: TPM_FAIL },
    Known { manufacturer: "STM", major: 73, fixed: 20, fault: TPM_FAIL },
    Known { manufacturer: "STM", major: 74, fixed: 20, fault: TPM_FAIL },
];

/// The floors in force: those known here, and an operator's own.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct FirmwareFloors {
    own: BTreeMap<String, u64>,
}

impl FirmwareFloors {
    /// Adds an operator's floor: whatever the manufacturer's TPMs have below `version` is too old.
    /// `version` is `a.b`, `a.b.c.d` or `0x…`. The floor `0.0` accepts the faults known here, too.
    ///
    /// # Errors
    /// [`codes::CONFIG_INVALID`].
    pub fn require(mut self, manufacturer: &str, version: &str) -> Result<Self, Refusal> {
        let parsed = parse_version(version).ok_or_else(|| {
            Refusal::new(codes::CONFIG_INVALID, format!("`{}`", version.escape_debug()))
                .at(format!("TPM firmware floor of {}", manufacturer.escape_debug()))
                .expected("a version like 7.85 or 7.85.17.51968, or 0x and 16 hexadecimal digits")
        })?;
        self.own.insert(name(manufacturer), parsed);
        Ok(self)
    }

    /// Holds a TPM's firmware to the floors. `manufacturer` are the characters of TPM_PT_MANUFACTURER,
    /// or the `id:XXXXXXXX` of an EK certificate.
    ///
    /// # Errors
    /// [`codes::VERIFY_TPM_FIRMWARE`] with the fault and the first version without it.
    pub fn check(&self, manufacturer: &str, version: u64) -> Result<(), Refusal> {
        let manufacturer = name(manufacturer);
        let refuse = |expected: String| {
            Err(Refusal::new(codes::VERIFY_TPM_FIRMWARE, format!("{manufacturer} {}", show_version(version)))
                .at("TPM firmware")
                .expected(expected))
        };
        let [a, b, c, d, ..] = version.to_be_bytes();
        let (major, minor) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
        if self.own.get(&manufacturer) == Some(&0) {
            return Ok(());
        }
        let known = KNOWN.iter().find(|known| known.manufacturer == manufacturer && known.major == major);
        if let Some(known) = known.filter(|known| minor < known.fixed) {
            return refuse(format!("{}.{} or later, without {}", known.major, known.fixed, known.fault));
        }
        match self.own.get(&manufacturer).filter(|floor| version < **floor) {
            Some(floor) => refuse(format!("{} or later", show_version(*floor))),
            None => Ok(()),
        }
    }
}

/// The manufacturer's characters, without what fills them up to four; of `id:XXXXXXXX` those it encodes.
fn name(manufacturer: &str) -> String {
    let decoded = manufacturer
        .strip_prefix("id:")
        .and_then(|digits| hex::decode(digits).ok())
        .and_then(|bytes| String::from_utf8(bytes).ok());
    let text = decoded.as_deref().unwrap_or(manufacturer);
    text.trim_matches(['\0', ' ']).to_ascii_uppercase()
}

/// `a.b.c.d` of 16 bits each, or `0x…`.
fn parse_version(text: &str) -> Option<u64> {
    if let Some(digits) = text.strip_prefix("0x") {
        return u64::from_str_radix(digits, 16).ok();
    }
    let parts: Vec<u16> = text.split('.').map(str::parse).collect::<Result<_, _>>().ok()?;
    if parts.len() < 2 || parts.len() > 4 {
        return None;
    }
    let part = |n: usize| u64::from(parts.get(n).copied().unwrap_or(0));
    Some(part(0) << 48 | part(1) << 32 | part(2) << 16 | part(3))
}

fn show_version(version: u64) -> String {
    let [a, b, c, d, e, f, g, h] = version.to_be_bytes();
    let part = |high, low| u16::from_be_bytes([high, low]);
    format!("{}.{}.{}.{}", part(a, b), part(c, d), part(e, f), part(g, h))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_faults_have_floors_and_an_operator_may_raise_them() {
        let floors = FirmwareFloors::default();
        let version = |text| parse_version(text).expect("a version");
        for (manufacturer, bad, good) in [
            ("IFX", "7.61.0.1", "7.62"),
            ("id:49465800", "5.61", "5.62"),
            ("STM ", "71.12", "71.16"),
            ("STM", "73.8", "73.64"),
        ] {
            let refusal = floors.check(manufacturer, version(bad)).expect_err("too old");
            assert_eq!(refusal.code, codes::VERIFY_TPM_FIRMWARE);
            assert!(refusal.expected.contains("CVE-"), "{refusal}");
            assert_eq!(floors.check(manufacturer, version(good)), Ok(()));
            let accepting = floors.clone().require(manufacturer, "0.0").expect("a floor");
            assert_eq!(accepting.check(manufacturer, version(bad)), Ok(()));
        }
        assert_eq!(floors.check("AMD", 0), Ok(()));
        let own = floors.require("AMD", "3.90").expect("a version");
        assert!(own.check("AMD\0", version("3.89.65535.65535")).is_err());
        assert_eq!(own.check("AMD", version("3.90")), Ok(()));
        assert!(FirmwareFloors::default().require("AMD", "three").is_err());
        assert_eq!(show_version(0x0007_003E_000C_F600), "7.62.12.62976");
    }
}
