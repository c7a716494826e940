//! The SPIFFE Workload API over a Unix socket.
//!
//! ```text
//! accept ─▶ caps per user ─▶ Peer ─▶ authority ─▶ HTTP/2 ─▶ header rule ─▶ stream
//!                              │                                             │ first, and on each change:
//!                              └─ ends or changes: its streams end           └─▶ Source ─▶ Released<…>
//! ```
//!
//! Nothing is decided here. A [`Source`] says what a caller gets, each time anew, and what it
//! hands over has passed the gate: a [`Released`] can't be made anywhere else. Whatever isn't X.509 or
//! JWT answers `Unimplemented`.
//!
//! From the specification (SPIFFE Workload Endpoint and Workload API): sections are named where a
//! rule is kept.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;

use crate::clock::BootInstant;
use crate::codes::Refusal;
use crate::credentials::token::Verified;
use crate::gate::Released;
use crate::identity::SpiffeId;
use crate::secret::Zeroizing;
use crate::workload::Peer;

mod authority;

mod changes;

pub mod client;

mod flight;

mod limits;

mod messages;
mod repeats;

mod server;

mod service;

pub mod tasks;

mod tokens;

#[rustfmt::skip]
#[allow(clippy::all, clippy::pedantic, clippy::allow_attributes_without_reason, missing_docs, reason = "generated")]
mod generated;

pub use changes::{Changes, Signal};
pub use limits::Limits;
pub use server::Server;

/// The text that tells a SPIFFE client that it has no identity, as opposed to any other denial:
/// clients compare it.
pub const NO_IDENTITY: &str = "no identity issued";

/// The most audiences of one token.
pub const MOST_AUDIENCES: usize = 16;

/// The metadata of a refusal that carries its code.
pub const CODE_METADATA: &str = "leasehold-code";

/// What a workload may have, as the registrations and the gate see it at the time of the call.
///
/// Dropping a future of these cancels the question: the caller has gone.
pub trait Source: Send + Sync + 'static {
    /// The X.509-SVIDs of `peer`, for a request that arrived at `arrived`. Called for the first
    /// answer of a stream, and with a later `arrived` whenever [`Self::changes`] has moved; each
    /// time the peer, the gate and the measurements are to be looked at afresh.
    fn x509(
        &self,
        peer: &Peer,
        arrived: BootInstant,
    ) -> impl Future<Output = Result<Released<X509Context>, Denied>> + Send;

    /// The trust bundles for `peer`, in the same manner.
    fn bundles(
        &self,
        peer: &Peer,
        arrived: BootInstant,
    ) -> impl Future<Output = Result<Released<Bundles>, Denied>> + Send;

    /// The JWT-SVIDs of `peer` for an audience: one for each of its identities, or of the one asked for.
    fn jwt(
        &self,
        peer: &Peer,
        arrived: BootInstant,
        asked: &JwtAsked,
    ) -> impl Future<Output = Result<Released<JwtContext>, Denied>> + Send;

    /// The keys that JWT-SVIDs are verified with, for `peer`, as [`Self::bundles`].
    fn jwt_bundles(
        &self,
        peer: &Peer,
        arrived: BootInstant,
    ) -> impl Future<Output = Result<Released<JwtBundles>, Denied>> + Send;

    /// Judges a token that `peer` shows, for this audience.
    fn validate(
        &self,
        peer: &Peer,
        audience: &str,
        token: &str,
    ) -> impl Future<Output = Result<Verified, Unaccepted>> + Send;

    /// What moves whenever an answer may have become another one: rotation, drift,
    /// recovery, registrations, the lease's end.
    fn changes(&self) -> Changes;

    /// A stream on which SVIDs were released to `peer` ends by `refusal`.
    fn ended(&self, _peer: &Peer, _refusal: &Refusal) {}
}

/// Everything a workload gets by `FetchX509SVID`; at least one item, the default identity first.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct X509Context {
    /// One for each identity.
    pub svids: Vec<X509Item>,
}

/// An X.509-SVID with its key.
#[derive(Clone, PartialEq, Eq)]
pub struct X509Item {
    /// The SPIFFE ID, as in the certificate.
    pub spiffe_id: String,
    /// DER certificates, the leaf first.
    pub chain: Vec<Vec<u8>>,
    /// The leaf's private key: PKCS#8, DER, not encrypted, because SPIFFE asks so.
    pub key_pkcs8: Zeroizing<Vec<u8>>,
    /// DER CA certificates of its trust domain.
    pub bundle: Vec<Vec<u8>>,
    /// For the workload's choice among several; may be empty, at most 1024 bytes.
    pub hint: String,
}

impl fmt::Debug for X509Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("X509Item").field("spiffe_id", &self.spiffe_id).field("hint", &self.hint).finish_non_exhaustive()
    }
}

/// DER CA certificates by trust domain (`spiffe://NAME`), the node's own among them.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Bundles(pub BTreeMap<String, Vec<Vec<u8>>>);

/// What a workload asks for by `FetchJWTSVID`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct JwtAsked {
    /// 1 to [`MOST_AUDIENCES`] texts, none empty or twice.
    pub audience: Vec<String>,
    /// The one identity wanted; `None` for all.
    pub id: Option<SpiffeId>,
}

/// Everything a workload gets by `FetchJWTSVID`; at least one item, the default identity first.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct JwtContext {
    /// One for each identity.
    pub svids: Vec<JwtItem>,
}

/// A JWT-SVID.
#[derive(Clone, PartialEq, Eq)]
pub struct JwtItem {
    /// The SPIFFE ID, as in the token.
    pub spiffe_id: String,
    /// The compact form.
    pub token: Zeroizing<String>,
    /// As in [`X509Item`].
    pub hint: String,
}

impl fmt::Debug for JwtItem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JwtItem").field("spiffe_id", &self.spiffe_id).field("hint", &self.hint).finish_non_exhaustive()
    }
}

/// JWK Sets by trust domain (`spiffe://NAME`), the node's own among them.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct JwtBundles(pub BTreeMap<String, Vec<u8>>);

/// Why a token isn't accepted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Unaccepted {
    /// The one who shows it gets no answer.
    Denied(Denied),
    /// It isn't valid: `InvalidArgument`.
    Invalid(Refusal),
}

impl From<Denied> for Unaccepted {
    fn from(denied: Denied) -> Self {
        Self::Denied(denied)
    }
}

/// Why a workload gets nothing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Denied {
    /// It has no identity, or no longer: `PermissionDenied`, and an open stream ends.
    NoIdentity(Refusal),
    /// Nothing can be said now: `Unavailable` to a first request. An open stream stays and gets
    /// nothing until the next answer.
    Unavailable(Refusal),
    /// What was held has run out: `Unavailable`, and an open stream ends too.
    Ended(Refusal),
}

#[cfg(test)]
mod tests;
