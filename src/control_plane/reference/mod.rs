//! Making reference values: from what is installed, from what a node measured, from the set before.
//!
//! ```text
//! UKI, kernel, initrd, command line ─▶ pe ─▶ stub ─┐
//! Secure Boot variables ─▶ variables ──────────────┼─▶ artifacts ─▶ ReferenceSet ─▶ update, difference, corim
//! .deb, tree, list of digests ─▶ files, deb ───────┤
//! logs of a node ─▶ learn ─────────────────────────┘
//! ```
//!
//! All of it works without a server: a set may be made and signed where neither node nor control plane is.

pub mod artifacts;
pub mod corim;
pub mod deb;
pub mod difference;
pub mod files;
pub mod key;
pub mod learn;

pub mod pe;
pub mod stub;
pub mod update;
pub mod variables;

use crate::codes::{self, Refusal};

/// The refusal of something that reference values were to be made from.
fn unusable(at: impl Into<String>, found: impl Into<String>) -> Refusal {
    Refusal::new(codes::ADMIN_INVALID, found).at(at)
}
