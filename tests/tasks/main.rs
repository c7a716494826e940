//! Tasks as programs live through them: real processes that end, fail, are killed, change what they are,
//! or whose node does; and what the control plane's record says of each.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]
#![cfg(all(feature = "agent", feature = "control-plane"))]

#[path = "../bench/mod.rs"]
mod bench;

mod client;
mod ends;
mod helper;
mod life;
mod withdrawn;
