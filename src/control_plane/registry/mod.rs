//! Who is who: nodes, the EKs an operator named, owners and workloads.

pub mod eks;
pub mod nodes;
pub mod owners;
pub mod ownership;
pub mod workloads;
