//! Appraisal: firmware profiles, strict replay, verdicts, and logs that were tampered with.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod corpus;
mod machines;
mod profiles;
mod samples;
