//! Who is who: nodes, the EKs an operator named, operators, owners and workloads.

pub mod eks;
pub mod nodes;
pub mod operators;
pub mod owners;
pub mod ownership;
pub mod workloads;
