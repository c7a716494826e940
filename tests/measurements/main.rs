//! The readers of logs from outside: on every log at hand, on made ones, and on altered ones.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod ima;
mod ima_judge;
mod ima_made;
mod ima_mutants;
mod ima_scale;
mod ima_signed;
