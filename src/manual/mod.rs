//! Prose about Leasehold, kept beside the code it explains.
//!
//! - [`threat_model`]: who is kept out, who isn't, and where the edge runs.
//! - [`protocol`]: what the two binaries say, in order, and why.
//! - [`measurements`]: logs, what of them is believed, reference values and their updates.
//! - [`administration`]: who may give which command; approvals, exceptions, reviews, reports.
//! - [`revocation`]: taking back: bounds, what an acknowledgement is worth, what relying parties can check, breaking glass.
//! - [`operations`]: setting up, what states mean, what to do when something is refused.
//! - [`tasks`]: credentials for one piece of work, from a program; what ends them.
//! - [`decisions`]: dated choices: context, choice, what would change our mind.

pub mod administration;
pub mod decisions;
pub mod measurements;
pub mod operations;
pub mod protocol;
pub mod revocation;
pub mod tasks;
pub mod threat_model;
