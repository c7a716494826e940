//! The AR4SI trustworthiness vector (draft-ietf-rats-ar4si) of an attestation result.

use serde::{Deserialize, Serialize};

use super::appraisal::{LayerResult, LayerStanding};
use super::profile::Layer;
use crate::tpm::PcrDifference;

/// PCRs that hold what was executed rather than how it was set up (PC Client Platform Firmware
/// Profile, 3.3.4; the boot stub measures the kernel image into 11, extensions into 13).
const CODE: [u8; 7] = [0, 2, 4, 8, 9, 11, 13];

/// AR4SI claims: 0 says nothing, 2 to 31 affirms, 32 to 95 warns, 96 to 127 contraindicates.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrustVector {
    /// Claim 0.
    pub instance_identity: i8,
    /// Claim 1.
    pub configuration: i8,
    /// Claim 2.
    pub executables: i8,
    /// Claim 3.
    pub file_system: i8,
    /// Claim 4.
    pub hardware: i8,
    /// Claim 5.
    pub runtime_opaque: i8,
    /// Claim 6.
    pub storage_opaque: i8,
    /// Claim 7.
    pub sourced_data: i8,
}

impl TrustVector {
    /// Known and not known to be compromised; configuration approved; hardware genuine.
    const GOOD: i8 = 2;
    /// Executables recognized as approved during boot; nothing is said of what came after.
    const BOOT: i8 = 3;
    /// Executables that nobody approved were loaded, and policy only warns of it.
    const WARNING: i8 = 32;
    /// Not acceptable.
    const BAD: i8 = 96;

    /// The keys are the enrolled ones; nothing is said of what was measured.
    pub(super) const fn known() -> Self {
        Self {
            instance_identity: Self::GOOD,
            configuration: 0,
            executables: 0,
            file_system: 0,
            hardware: 0,
            runtime_opaque: 0,
            storage_opaque: 0,
            sourced_data: 0,
        }
    }

    /// The same after the PCRs were held against reference values.
    pub(super) fn measured(self, differences: &[PcrDifference]) -> Self {
        let (code, setup): (Vec<_>, Vec<_>) = differences.iter().partition(|it| CODE.contains(&it.pcr));
        Self {
            configuration: if setup.is_empty() { Self::GOOD } else { Self::BAD },
            executables: if code.is_empty() { Self::BOOT } else { Self::BAD },
            ..self
        }
    }

    /// What the layers of an appraisal say. Firmware and boot are executables and their configuration: what
    /// differs in a PCR of [`CODE`] is an executable, in another a setting. Userspace says how the system was
    /// set up. The runtime layer is what was executed since: with it affirmed only approved executables
    /// were loaded, without it only those of the boot. Nothing is claimed of file systems as such (IMA sees
    /// what is used, not what is there), of memory encryption, storage or data.
    pub(super) fn of_layers(layers: &[LayerResult], differing: &[u8]) -> Self {
        use LayerStanding::{Affirmed, Contraindicated, NotProven, Warned};
        let of = |layer: Layer| {
            layers.iter().find(|result| result.layer == layer.as_str()).map_or(NotProven, |result| result.standing)
        };
        let (boot, runtime) = (of(Layer::Boot), of(Layer::Runtime));
        let booted = [of(Layer::Firmware), boot, of(Layer::Userspace)];
        let contraindicated = booted.contains(&Contraindicated);
        let code = differing.iter().any(|pcr| CODE.contains(pcr));
        let executables = match runtime {
            _ if contraindicated && (code || differing.is_empty()) => Self::BAD,
            Contraindicated => Self::BAD,
            Warned => Self::WARNING,
            Affirmed if boot == Affirmed => Self::GOOD,
            _ if boot == Affirmed => Self::BOOT,
            _ => 0,
        };
        let configuration = match boot {
            _ if contraindicated && differing.iter().any(|pcr| !CODE.contains(pcr)) => Self::BAD,
            Affirmed => Self::GOOD,
            _ => 0,
        };
        Self { executables, configuration, ..Self::default() }
    }

    /// The same where the keys are the enrolled ones.
    pub const fn identified(self) -> Self {
        Self { instance_identity: Self::GOOD, ..self }
    }

    /// The same where the manufacturer vouches for the TPM.
    pub(super) const fn genuine(self) -> Self {
        Self { hardware: Self::GOOD, ..self }
    }

    /// The same where the TPM's firmware has a known fault.
    pub(super) const fn faulty(self) -> Self {
        Self { hardware: Self::BAD, ..self }
    }

    /// The overall status: the tier of the worst claim made; 0 when none is.
    pub fn status(self) -> i8 {
        match self.claims().into_iter().max().unwrap_or(0) {
            i8::MIN..2 => 0,
            2..32 => 2,
            32..96 => 32,
            96..=i8::MAX => 96,
        }
    }

    /// The claims in the order of their numbers.
    pub const fn claims(self) -> [i8; 8] {
        [
            self.instance_identity,
            self.configuration,
            self.executables,
            self.file_system,
            self.hardware,
            self.runtime_opaque,
            self.storage_opaque,
            self.sourced_data,
        ]
    }

    /// The vector of claims in the order of their numbers.
    pub const fn from_claims(claims: [i8; 8]) -> Self {
        let [
            instance_identity,
            configuration,
            executables,
            file_system,
            hardware,
            runtime_opaque,
            storage_opaque,
            sourced_data,
        ] = claims;
        Self {
            instance_identity,
            configuration,
            executables,
            file_system,
            hardware,
            runtime_opaque,
            storage_opaque,
            sourced_data,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_claim_decides() {
        let difference =
            |pcr| PcrDifference { bank: String::new(), pcr, found: String::new(), expected: String::new() };
        assert_eq!(TrustVector::default().status(), 0);
        assert_eq!(TrustVector::known().measured(&[]).status(), 2);
        assert_eq!(TrustVector::known().measured(&[difference(7)]).configuration, 96);
        assert_eq!(TrustVector::known().measured(&[difference(4)]).executables, 96);
        assert_eq!(TrustVector::known().measured(&[difference(4)]).status(), 96);
        let vector = TrustVector::known().measured(&[]).genuine();
        assert_eq!(TrustVector::from_claims(vector.claims()), vector);
    }
}
