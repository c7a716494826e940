//! Revocation as a fleet lives through it: real agents with a TPM each, and real clients of the protocol with
//! keys in software, against the built server.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

#[path = "../bench/mod.rs"]
mod bench;
mod faults;
mod fleet;
mod hundred;
#[path = "../verify/node.rs"]
#[allow(dead_code, reason = "shared with the verifier's tests, which use all of it")]
mod node;
mod parties;
mod repeated;
#[path = "../control_plane/bench.rs"]
#[allow(dead_code, reason = "shared with the control plane's tests, which use all of it")]
mod soft;
mod wire;
