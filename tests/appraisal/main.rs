//! Appraisal: firmware profiles, strict replay, verdicts, and logs that were tampered with.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

#[cfg(feature = "control-plane")]
mod command;
mod corpus;
mod machines;
mod mutants;
mod profiles;
mod samples;
