//! The control plane from outside: a server in this process on a port of its own, real TLS
//! clients, and nodes whose keys are in software.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod attestation;
mod authorities;
mod bench;
mod command_line;
mod credentials;
mod declared;
mod enrolment;
mod governance;
mod grants;
#[path = "../bench/list.rs"]
mod list;
mod lists;
mod logs;
#[path = "../verify/node.rs"]
#[allow(dead_code, reason = "shared with the verifier's tests, which use all of it")]
mod node;
mod operators;
mod policy;
mod pushed;
mod records;
mod registry;
mod routes;
mod sets;
mod start;
