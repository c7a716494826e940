//! Leasehold: a workload credential is held for a term, and only while its conditions are kept.
//!
//! ```text
//!         this node (leasehold-agent)                           │  control plane (leasehold-server)
//!  tpm ─▶ measurements ─▶ evidence ─▶ verify* ─▶ protocol ──────┼─▶ control_plane ─▶ verify
//!                 │ drift                          │ ◀─ lease, ─┼──      │
//!                 │                                ▼   SVIDs    │        ├─▶ registry, issuer
//!                 │                           credentials       │        └─▶ store
//!                 └───────────────────▶ gate ◀── workload       │
//!                                        │ Released<T>          │  * the agent appraises its own evidence first
//!                                        ▼
//!                                    delivery ─▶ Workload API
//! ```
//!
//! The modules below stand in the order of the diagram. A room uses only rooms above it (the
//! corridor stands first); `tests/house.rs` reads the `use crate::` lines and holds that.
#![forbid(unsafe_code)]

// The corridor: small files without opinions, open to every room.
pub mod clock;
pub mod codes;
pub mod config;
pub mod identity;
pub mod output;
pub mod secret;
pub mod shutdown;
pub mod telemetry;

// The rooms.
pub mod tpm;

pub mod measurements;

pub mod evidence;

pub mod verify;

pub mod protocol;

pub mod credentials;

pub mod workload;

pub mod gate;

pub mod delivery;

#[cfg(feature = "agent")]
pub mod agent;

#[cfg(feature = "control-plane")]
pub mod control_plane;

pub mod manual;
