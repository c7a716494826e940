//! Attacks from outside on a control plane that runs as users run it: real TPMs, the wire protocol
//! spoken by hand where no honest client would say such a thing. Each attack must be refused, and
//! the refusal must stand in the server's record under a code of its own.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod admission;
#[path = "../bench/mod.rs"]
mod bench;
mod channel;
mod clocked;
mod identity;
#[path = "../verify/node.rs"]
#[allow(dead_code, reason = "shared with the verifier's tests, which use all of it")]
mod node;
mod races;
mod replay;
mod rogue;
mod time;
mod workloads;
