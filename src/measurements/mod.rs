//! What the node measured. So far: PCRs, read by the watcher.

#[cfg(feature = "agent")]
mod watcher;

#[cfg(feature = "agent")]
pub use watcher::{Observation, Watcher};
