//! Development mode: a software TPM, and a relay in front of it that several programs can share.
//!
//! `leasehold-server dev` and the tests stand on the same parts: [`Swtpm`] is one TPM emulator,
//! [`Relay`] is where its users connect, and [`wire`] builds the few raw commands needed beside
//! the agent's own. The TPM here is software: its keys are as safe as the directory they lie in.

mod manufacture;
mod relay;
mod swtpm;
pub mod wire;

pub use manufacture::{EkCa, EkCert};
pub use relay::{Answered, Direction, Entry, Frame, OnResponse, Presence, Recording, Relay, RelayHandle, Tap, Verdict};
pub use swtpm::{Options, Sockets, Swtpm};
