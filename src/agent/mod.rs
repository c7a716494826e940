//! The agent: the wiring of the rooms, and its command line.
//!
//! ```text
//!  tenancy ── enrols, attests, renews ──▶ keeper ◀── judges each reading ── watcher
//!     ▲  │ events                          │  ▲
//!     └──┘                                 │  └── Workload API: peer, arrival
//!                                          ▼
//!                                       gate + store
//! ```

mod admin;
mod attester;
pub mod cli;
mod events;
mod follower;
mod journal;
mod keeper;
mod measured;
mod quoted;
mod reporter;
mod rules;
mod run;
mod sources;
mod state;
mod status;
mod tasks;
mod tenancy;
mod withdrawals;

pub use keeper::Keeper;
pub use run::{Agent, start};
pub use status::Status;
pub use tasks::Tasks;
