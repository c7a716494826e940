//! (room)

pub mod dev;
