//! Who is who and who answers for it: nodes, the EKs an operator named, operators, owners, workloads
//! and what they may reach.

pub mod destinations;
pub mod eks;
pub mod keys;
pub mod names;
pub mod nodes;
pub mod operators;
pub mod owners;
pub mod ownership;
pub mod rules;
pub mod workloads;
