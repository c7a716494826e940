//! Development mode: a software TPM, and a relay in front of it that several programs can share.
//!
//! `leasehold-server dev` and the tests stand on the same parts: [`Swtpm`] is one TPM emulator,
//! [`Relay`] is where its users connect, and [`wire`] builds the few raw commands needed beside
//! the agent's own. The TPM here is software: its keys are as safe as the directory they lie in.

pub mod command;
mod household;
mod journal;
mod manufacture;
mod process;
mod relay;
mod swtpm;
mod tap;
pub mod wire;

pub use journal::{Direction, Entry, Recording};
pub use manufacture::{EkCa, EkCert};
pub use relay::{Answered, Presence, Relay, RelayHandle};
pub use swtpm::{Options, Sockets, Swtpm};
pub use tap::{Frame, OnResponse, Tap, Verdict};
