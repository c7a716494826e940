//! What the node measured: PCRs, read by the watcher, and the logs that explain them. Pure,
//! bounded readers; what a log says is judged by `verify`.

pub mod boot;
mod cursor;
mod event_type;
mod hash;
pub mod ima;
pub mod sources;
pub mod uefi;
pub mod userspace;

pub use event_type::EventType;
pub use hash::LogHash;

#[cfg(feature = "agent")]
mod watcher;

#[cfg(feature = "agent")]
pub use watcher::{Observation, Watcher};
