//! What the two binaries say to each other: messages, and the agent's side as a client whose
//! types follow the order of the protocol.

pub mod grants;
pub mod messages;
pub mod records;

#[cfg(feature = "agent")]
mod client;
mod tls;

#[cfg(feature = "agent")]
pub use client::{Answer, Enrolled, Enrolment, Events, Failure, Leased, Membership, Unenrolled, Ungranted};
pub use grants::*;
pub use messages::*;
pub use records::{Chain, Head, Record, RecordsAnswer, RecordsRequest, SignedHead, Writer};
pub use tls::{TrustAnchors, client_config};
