//! Who is who and who answers for it: nodes, the EKs an operator named, operators, owners, workloads
//! and what they may reach.

pub mod declared;
pub mod destinations;
pub mod eks;
pub mod inventory;
pub mod keys;
pub mod names;
pub mod nodes;
pub mod operators;
pub mod owners;
pub mod ownership;
pub mod placement;
pub mod rules;
#[cfg(test)]
pub mod sample;
pub mod workloads;
