//! Evidence: EAT claims (RFC 9711) in COSE_Sign1 (RFC 9052), built from one quote.
//!
//! `evidence.cddl` beside this file describes the format; a test holds encoded evidence against it.
//! Decoding gives [`UnverifiedEvidence`], which `verify` alone turns into something believed.

mod binding;
pub mod cbor;
pub(crate) mod claims;
mod decode;
pub mod logs;
pub mod sign1;

pub use binding::{certification_binding, quote_binding};
pub use claims::{NodeClaims, PROFILE, Unsigned, WITHDRAWN_LIMIT};
pub use decode::UnverifiedEvidence;
pub use logs::{LogChain, LogKind};

/// The CDDL (RFC 8610) of evidence.
pub const CDDL: &str = include_str!("evidence.cddl");

/// The largest evidence, in bytes: 4 MiB.
pub const LIMIT: usize = 4 << 20;
