//! The registry as files: TOML that says what there should be.
//!
//! ```text
//!  DIR/*.toml ─▶ Declaration::read ─▶ carry_out ─▶ steps ─▶ shown, rolled back      (the plan)
//!                                         │           └───▶ fingerprint as shown ─▶ committed
//!  export ◀───────────────────────────────┴─ the store
//! ```
//!
//! A plan is made by doing it and undoing it: what is shown is what is done.

mod export;
mod read;
mod steps;

pub use export::export;
pub use read::{Declaration, SourceFile};
pub use steps::{Carried, Step, carry_out};

#[cfg(test)]
mod tests;
