//! (room)
pub mod audit;
pub mod ca;
pub mod events;
pub mod issuer;
pub mod keys;
pub mod nonces;
pub mod registry;
pub mod store;
