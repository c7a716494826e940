//! Pure parsers of the TPM structures that are read without a device (TPM 2.0 Library, Part 2).
//!
//! Every one takes bytes of any origin, reads them to the last one and refuses what it doesn't
//! know: nothing here has been checked against a key yet.

mod attest;
mod public;
mod reader;
mod signature;

pub use attest::{Attest, AttestBody, ClockInfo, Quote};
pub use public::{HashAlgorithm, Kind, Public, SymmetricKey, attributes, qualified_name};
pub use reader::Reader;
pub use signature::Signature;
