//! The test bench: a private TPM per test, faults on the way to it, and an oracle of the promises.
//!
//! Included by `mod bench;` in each integration test that needs it.
#![allow(dead_code, reason = "each test binary includes the whole bench and uses its part")]

pub mod tpm;

pub use tpm::TestTpm;
