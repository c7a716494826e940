//! Surfaces: how released credentials reach a workload, one directory for each.

pub mod socket;

#[cfg(feature = "agent")]
pub mod workload_api;
