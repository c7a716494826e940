//! JWT-SVIDs: what is no token, what one permits, and their way through real agents to stock clients.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

#[path = "../bench/mod.rs"]
mod bench;
mod corpus;
mod enforcement;
mod released;
mod signer;
