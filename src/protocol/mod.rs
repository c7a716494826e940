//! What the two binaries say to each other.

pub mod messages;

pub use messages::*;
