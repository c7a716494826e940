//! (room)
pub mod issuer;
pub mod keys;
pub mod store;
