//! Prose about Leasehold, kept beside the code it explains.
//!
//! - [`audit`]: what is recorded, its chain, what isn't protected, how to verify.
//! - [`threat_model`]: who is kept out, who isn't, and where the edge runs.
//! - [`protocol`]: what the two binaries say, in order, and why.
//! - [`measurements`]: logs, what of them is believed, reference values and their updates.
//! - [`administration`]: who may give which command; approvals, exceptions, reviews, reports.
//! - [`callers`]: selectors, login sessions, and what a process must stay.
//! - [`policy`]: what is decided from what, how to write, test, sign and explain it.
//! - [`registry`]: owners, workloads, environments, who leaves, the inventory, the registry as files.
//! - [`tokens`]: JWT-SVIDs, what one says, how a service judges one, and tokens outside their job.
//! - [`revocation`]: taking back: bounds, what an acknowledgement is worth, what relying parties can check, breaking glass.
//! - [`operations`]: setting up, what states mean, what to do when something is refused.
//! - [`tasks`]: credentials for one piece of work, from a program; what ends them.
//! - [`capabilities`]: what governed workload identity needs, and the test that shows each.
//! - [`decisions`]: dated choices: context, choice, what would change our mind.

pub mod administration;
pub mod audit;
pub mod callers;
pub mod capabilities;
pub mod decisions;
pub mod measurements;
pub mod operations;
pub mod policy;
pub mod protocol;
pub mod registry;
pub mod revocation;
pub mod tasks;
pub mod threat_model;
pub mod tokens;
