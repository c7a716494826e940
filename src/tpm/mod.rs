//! The TPM: the only code that talks to the device, and the structures it signs.
//!
//! [`pcr`], [`structures`] and [`Sealed`] need no device. With the feature `tpm-device`, [`Tpm`] is a
//! cloneable handle to one named thread that owns the TSS context, and [`Vault`] seals secrets to
//! the TPM of this machine; every request has a deadline.

pub mod pcr;

pub mod structures;

mod sealed;

#[cfg(feature = "tpm-device")]
mod connection;
#[cfg(feature = "tpm-device")]
mod device;
#[cfg(feature = "tpm-device")]
mod endorsement;
#[cfg(feature = "tpm-device")]
mod handle;
#[cfg(feature = "tpm-device")]
mod nv;
#[cfg(feature = "tpm-device")]
mod quiet;
#[cfg(feature = "tpm-device")]
mod reading;
#[cfg(feature = "tpm-device")]
mod session;
#[cfg(feature = "tpm-device")]
mod templates;
#[cfg(feature = "tpm-device")]
mod vault;
#[cfg(feature = "tpm-device")]
mod words;

#[cfg(feature = "tpm-device")]
pub use handle::{Tpm, TpmAddress, TpmThread};
pub use pcr::{Bank, IMA_PCR, PCR_COUNT, PcrDifference, PcrReading, PcrSelection, PcrValues, ResetCounts};
#[cfg(feature = "tpm-device")]
pub use quiet::quiet_libtss2;
pub use sealed::Sealed;
#[cfg(feature = "tpm-device")]
pub use vault::Vault;

use crate::codes::{self, Refusal};

/// A signed attestation: the exact bytes of a TPMS_ATTEST and of the TPMT_SIGNATURE over them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Signed {
    /// TPMS_ATTEST (Part 2, 10.12.8), as the TPM returned it.
    pub attest: Vec<u8>,
    /// TPMT_SIGNATURE (Part 2, 11.3.4).
    pub signature: Vec<u8>,
}

/// An endorsement key: its public area and, where the TPM's NV has one, its certificate.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EkPublic {
    /// TPMT_PUBLIC (Part 2, 12.2.4).
    pub public: Vec<u8>,
    /// DER of the certificate, padding after it cut off.
    pub certificate: Option<Vec<u8>>,
}

/// What a TPM is: the keys this agent uses in it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TpmIdentity {
    /// The EK that is used: activates credentials, salts sessions.
    pub ek: EkPublic,
    /// Other EKs of this TPM for which NV has a certificate.
    pub aliases: Vec<EkPublic>,
    /// Certificates of the EK's chain from NV 0x01C00100 on; DER, possibly none.
    pub chain: Vec<Vec<u8>>,
    /// TPMT_PUBLIC of the attestation key.
    pub ak_public: Vec<u8>,
    /// TPMT_PUBLIC of the node key.
    pub node_key_public: Vec<u8>,
    /// TPM_PT_MANUFACTURER as text, e.g. `IBM`.
    pub manufacturer: String,
    /// TPM_PT_FIRMWARE_VERSION_1 and _2.
    pub firmware_version: u64,
}

/// Why a TPM request has no answer.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TpmError {
    /// The device is gone, busy or silent. Nothing is concluded from that.
    #[error("the TPM doesn't answer: {0}")]
    Unavailable(String),
    /// Dictionary-attack lockout. Our keys are `noDA`; somebody else's failures can still cause it.
    #[error("the TPM is in lockout for another {seconds} s")]
    Lockout {
        /// Seconds until the TPM heals one failure (TPM_PT_LOCKOUT_INTERVAL).
        seconds: u32,
    },
    /// The standing session is dead because the TPM was reset.
    #[error("the TPM was reset")]
    Reset,
    /// Another TPM than at the start.
    #[error("another TPM answers than before: EK name {found}, expected {expected}")]
    Swapped {
        /// Hexadecimal name found.
        found: String,
        /// Hexadecimal name expected.
        expected: String,
    },
    /// The secret was sealed by another TPM, or by this one before it was cleared.
    #[error(
        "it is sealed to the TPM with the SRK name {expected}, this one's is {found}: another TPM, or one that was cleared"
    )]
    SealedElsewhere {
        /// Hexadecimal name found.
        found: String,
        /// Hexadecimal name expected.
        expected: String,
    },
    /// The TPM understood and refused.
    #[error("{command} was refused: {reason}")]
    Refused {
        /// The command, e.g. `TPM2_Quote`.
        command: String,
        /// The response code in words.
        reason: String,
    },
}

impl TpmError {
    /// Whether waiting may help: then nothing counts against the node.
    pub const fn is_unavailable(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Lockout { .. })
    }
}

impl From<TpmError> for Refusal {
    fn from(error: TpmError) -> Self {
        let code = match &error {
            TpmError::Unavailable(_) => codes::TPM_UNAVAILABLE,
            TpmError::Lockout { .. } => codes::TPM_LOCKOUT,
            TpmError::Reset => codes::TPM_RESET,
            TpmError::Swapped { .. } => codes::TPM_SWAPPED,
            TpmError::SealedElsewhere { .. } => codes::TPM_SEALED_ELSEWHERE,
            TpmError::Refused { .. } => codes::TPM_REFUSED,
        };
        Self::new(code, error.to_string())
    }
}
