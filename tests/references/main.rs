//! Reference values from outside: the document, its signatures, and what makes sets.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod document;
#[cfg(feature = "control-plane")]
mod image;
mod made;
#[cfg(feature = "control-plane")]
mod measured;
#[cfg(feature = "control-plane")]
mod pe;
#[cfg(feature = "control-plane")]
mod real_stub;
#[cfg(feature = "control-plane")]
mod reboot;
mod seeds;
#[cfg(feature = "control-plane")]
mod sources;
#[cfg(feature = "control-plane")]
mod update;
