//! The test bench: a private TPM per test, faults on the way to it, and an oracle of the promises.
//!
//! Included by `mod bench;` in each integration test that needs it.
#![allow(dead_code, unused_imports, reason = "each test binary includes the whole bench and uses its part")]

pub mod caller;
pub mod check;
pub mod faults;
pub mod ima;
pub mod list;
pub mod machine;
pub mod oracle;
pub mod pe;
pub mod tpm;
pub mod world;

pub use check::{Cause, Rules, Violation, check, stream_end_delays};
pub use faults::{ExtendDuringRead, Fault, Order, Script};
pub use machine::{Image, Machine};
pub use oracle::{Event, Oracle, Status, What};
pub use tpm::TestTpm;
