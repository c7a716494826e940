//! Tasks over the Workload API's socket: credentials of their own for work that has a name, for as
//! long as it lasts.
//!
//! ```text
//! Begin ─▶ Desk::begin ─▶ Begun { progress } ─▶ stream: Desk::release, and again when it was renewed
//!             │                 └─ dropped with its stream: the task is over
//!             └─ watches the process; says in `progress` when, and why, it is over
//! ```
//!
//! As with the Workload API, nothing is decided here, and what leaves has passed the gate. The callers
//! are held to the same rules, and a stream ends in the same way.

pub mod messages;
mod service;

use std::fmt;
use std::future::Future;

use tokio::sync::{oneshot, watch};

use super::{Changes, Denied, Signal};
use crate::clock::BootInstant;
use crate::codes::{self, Refusal};
use crate::gate::Released;
use crate::protocol::AuthorizationDetail;
use crate::secret::Zeroizing;
use crate::workload::Peer;

pub(super) use service::{METHODS, Service, server};

/// Descriptors of `tasks.proto`, for reflection.
pub(super) const DESCRIPTORS: &[u8] = include_bytes!("tasks.fds");

/// Begins tasks, and knows what they hold.
///
/// Dropping a future of these gives the question up: the caller has gone.
pub trait Desk: Send + Sync + 'static {
    /// Begins a task of `peer`, which asked at `arrived`. Its first credentials are then at hand.
    fn begin(
        &self,
        peer: &Peer,
        stated: Stated,
        arrived: BootInstant,
    ) -> impl Future<Output = Result<Begun, Denied>> + Send;

    /// What the task holds, for an answer that is due since `arrived`; each time the peer, the gate and the
    /// measurements are to be looked at afresh.
    fn release(
        &self,
        task: &Begun,
        arrived: BootInstant,
    ) -> impl Future<Output = Result<Released<TaskCredentials>, Denied>> + Send;

    /// What moves whenever a release may have become another one, or none.
    fn changes(&self) -> Changes;

    /// Notes that a task of `peer` is alive; gives back within how many seconds it must be heard of again,
    /// 0 for never.
    ///
    /// # Errors
    /// [`codes::TASK_UNKNOWN`], also for another process's.
    fn heartbeat(&self, peer: &Peer, task: &str) -> impl Future<Output = Result<u64, Denied>> + Send;

    /// Ends a task of `peer`: in order, or failed for this reason.
    ///
    /// # Errors
    /// As [`Self::heartbeat`].
    fn end(
        &self,
        peer: &Peer,
        task: &str,
        outcome: Result<String, String>,
    ) -> impl Future<Output = Result<(), Denied>> + Send;
}

/// What a caller states. Its own words, checked for nothing but their size.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Stated {
    /// The task's id; empty for one that is made up.
    pub task_id: String,
    /// The workload, where several match.
    pub spiffe_id: String,
    /// What it means to do.
    pub intent: String,
    /// A purpose narrower than the registered one.
    pub purpose: String,
    /// Whom a token is for; none wants no token.
    pub audience: Vec<String>,
    /// Towards what.
    pub destination: Option<String>,
    /// What it may need to do (RFC 9396).
    pub details: Vec<AuthorizationDetail>,
    /// Seconds within which it will be heard of; 0 for never.
    pub heartbeat_seconds: u64,
    /// The longest lifetime of one credential in seconds; 0 for what policy allows.
    pub term_seconds: u64,
    /// Whether an X.509-SVID is wanted.
    pub x509: bool,
}

/// A live task, as its stream holds it. Dropped, it is over.
#[derive(Debug)]
pub struct Begun {
    /// Which one, for the desk.
    pub number: u64,
    /// How it goes.
    pub progress: watch::Receiver<Progress>,
    /// Tells the desk, by being dropped, that nobody listens any more.
    pub listening: oneshot::Sender<()>,
}

/// How a task goes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Progress {
    /// Moves when there are other credentials to release.
    pub renewals: u64,
    /// Set once it is over.
    pub over: Option<Over>,
}

/// How a task's stream ends.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Over {
    /// Its process ended it: `OK`.
    Orderly,
    /// `PermissionDenied`, with the code.
    Denied(Refusal),
    /// `Unavailable`, with the code: what it held ran out, and nothing speaks against it.
    Unavailable(Refusal),
}

/// What a task gets.
#[derive(Clone)]
pub struct TaskCredentials {
    /// The task's id.
    pub task_id: String,
    /// The workload's SPIFFE ID.
    pub spiffe_id: String,
    /// The decision that these were issued by.
    pub decision: String,
    /// What was granted of the authorization details.
    pub details: Vec<AuthorizationDetail>,
    /// The X.509-SVID, if one was asked for.
    pub x509: Option<TaskX509>,
    /// The JWT-SVID in compact form, if one was asked for.
    pub token: Option<Zeroizing<String>>,
}

/// An X.509-SVID of a task.
#[derive(Clone)]
pub struct TaskX509 {
    /// DER certificates, the leaf first.
    pub chain: Vec<Vec<u8>>,
    /// The leaf's private key: PKCS#8, DER.
    pub key_pkcs8: Zeroizing<Vec<u8>>,
    /// DER CA certificates of its trust domain.
    pub bundle: Vec<Vec<u8>>,
}

impl fmt::Debug for TaskCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskCredentials").field("task_id", &self.task_id).finish_non_exhaustive()
    }
}

impl fmt::Debug for TaskX509 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskX509").finish_non_exhaustive()
    }
}

/// A server without tasks: nobody can begin one.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoTasks;

impl NoTasks {
    fn denied() -> Denied {
        Denied::NoIdentity(Refusal::new(codes::TASK_UNKNOWN, "this agent has no tasks"))
    }
}

impl Desk for NoTasks {
    async fn begin(&self, _: &Peer, _: Stated, _: BootInstant) -> Result<Begun, Denied> {
        Err(Self::denied())
    }

    async fn release(&self, _: &Begun, _: BootInstant) -> Result<Released<TaskCredentials>, Denied> {
        Err(Self::denied())
    }

    fn changes(&self) -> Changes {
        Signal::default().follow()
    }

    async fn heartbeat(&self, _: &Peer, _: &str) -> Result<u64, Denied> {
        Err(Self::denied())
    }

    async fn end(&self, _: &Peer, _: &str, _: Result<String, String>) -> Result<(), Denied> {
        Err(Self::denied())
    }
}
