//! The control plane: who may join, what is a good node, who gets which credential.
//!
//! ```text
//!  tls ─▶ routes ─▶ authn ─▶ enrolment    ─▶ verify            admin ◀─ cli
//!                            attestation  ─▶ verify ─▶ leases    │
//!                               └ logs ─▶ what is new of them     │
//!                            credentials  ─▶ policy ─▶ issuer    │
//!                            tokens       ─▶ policy ─▶ JWT keys  ▼
//!                            events ◀──────── revocation ◀─── registry, references
//!                               all of it in one transaction each ─▶ store, audit
//! ```
//!
//! [`server::start`] wires it and gives back a [`server::Bound`].

mod admin;
mod attestation;
mod audit;
mod authn;
mod basis;
mod bodies;
mod ca;
pub mod cli;
mod credentials;
pub mod dev;
mod effects;
mod enrolment;
mod events;
mod governance;
mod issuer;
mod keys;
mod leases;
mod limiter;
mod logs;
mod nonces;
mod policy;
mod published;
mod quota;
pub mod reference;
mod references;
mod registry;
mod replay;
mod revocation;
pub mod routes;
pub mod server;
mod settings;
mod sources;
mod steady;
mod store;
mod tasks;
mod tls;
mod tokens;
