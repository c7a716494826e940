//! The verifier from outside: a node in software, real TPMs, and the vectors.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod boot_log;
mod cddl;
mod endorsement;
mod fresh;
mod lease;
mod listed;
mod made;
mod node;
mod property;
mod real_tpm;
mod swtpm;
mod vector;
mod vectors;
