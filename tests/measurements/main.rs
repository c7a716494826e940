//! The readers of logs, on logs that were made by others, by machines booted for this project,
//! and by hand.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod boot;
mod boot_made;
#[cfg(feature = "agent")]
mod cli;
mod expected;
mod ima;
mod ima_judge;
mod ima_made;
mod ima_mutants;
mod ima_scale;
mod ima_signed;
mod made;
mod mutants;
mod testdata;
mod userspace;
