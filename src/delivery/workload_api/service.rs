//! The calls: a first answer, then a new one whenever the content changes.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::Stream;
use futures_util::stream::unfold;
use prost::Message;
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use super::generated::spiffe_workload_api_server::SpiffeWorkloadApi;
use super::generated::{
    JwtBundlesRequest, JwtBundlesResponse, JwtsvidRequest, JwtsvidResponse, ValidateJwtsvidRequest,
    ValidateJwtsvidResponse, X509BundlesRequest, X509BundlesResponse, X509svidRequest, X509svidResponse,
};
use super::limits::Slot;
use super::repeats::Repeats;
use super::{CODE_METADATA, Changes, Denied, NO_IDENTITY, Source, messages};
use crate::clock::BootInstant;
use crate::codes::{self, Refusal};
use crate::shutdown::CancellationToken;
use crate::workload::Peer;

/// A first answer older than this when it is taken is asked for anew.
pub(super) const OLD: Duration = Duration::from_millis(250);

/// Who makes a call, attached to each request by the connection it came over.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    pub(super) peer: Peer,
    pub(super) arrived: BootInstant,
    /// Set once the peer has ended or is no longer what it was.
    pub(super) lost: watch::Receiver<Option<Refusal>>,
    pub(super) stopping: CancellationToken,
    /// Given back when the call ends.
    pub(super) _slot: Arc<Slot>,
}

impl Caller {
    /// Who made this request.
    pub(super) fn of<R>(request: &Request<R>) -> Result<Self, Status> {
        let caller = request.extensions().get::<Self>().cloned();
        caller.ok_or_else(|| Status::internal("BUG: a request without its connection's caller"))
    }

    /// Waits for what ends every call of this caller.
    pub(super) async fn over(&mut self) -> Status {
        self.end().await.status()
    }

    async fn end(&mut self) -> End {
        tokio::select! {
            biased;
            () = self.stopping.cancelled() => stopping(),
            lost = self.lost.wait_for(Option::is_some) => {
                let refusal = lost.ok().and_then(|refusal| refusal.clone());
                let refusal = refusal.unwrap_or_else(|| Refusal::new(codes::WORKLOAD_PEER_GONE, "not connected"));
                End { refusal, status: no_identity }
            }
        }
    }
}

/// How a call ends.
struct End {
    refusal: Refusal,
    status: fn(&Refusal) -> Status,
}

impl End {
    fn status(&self) -> Status {
        (self.status)(&self.refusal)
    }
}

fn stopping() -> End {
    End { refusal: Refusal::new(codes::DELIVERY_STOPPING, "the agent is stopping"), status: unavailable }
}

/// The Workload API over `source`.
#[derive(Debug)]
pub(super) struct Service<S> {
    pub(super) source: Arc<S>,
    pub(super) retry: Duration,
    pub(super) repeats: Arc<Repeats>,
}

type Answers<M> = Pin<Box<dyn Stream<Item = Result<M, Status>> + Send>>;

#[tonic::async_trait]
impl<S: Source> SpiffeWorkloadApi for Service<S> {
    type FetchX509SVIDStream = Answers<X509svidResponse>;
    type FetchX509BundlesStream = Answers<X509BundlesResponse>;
    type FetchJWTBundlesStream = Answers<JwtBundlesResponse>;

    async fn fetch_x509svid(
        &self,
        request: Request<X509svidRequest>,
    ) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        self.open::<X509, _>(&request).await
    }

    async fn fetch_x509_bundles(
        &self,
        request: Request<X509BundlesRequest>,
    ) -> Result<Response<Self::FetchX509BundlesStream>, Status> {
        self.open::<X509Bundles, _>(&request).await
    }

    async fn fetch_jwtsvid(&self, request: Request<JwtsvidRequest>) -> Result<Response<JwtsvidResponse>, Status> {
        self.jwt(request).await
    }

    async fn fetch_jwt_bundles(
        &self,
        request: Request<JwtBundlesRequest>,
    ) -> Result<Response<Self::FetchJWTBundlesStream>, Status> {
        self.open::<JwtBundles, _>(&request).await
    }

    async fn validate_jwtsvid(
        &self,
        request: Request<ValidateJwtsvidRequest>,
    ) -> Result<Response<ValidateJwtsvidResponse>, Status> {
        self.validate(request).await
    }
}

impl<S: Source> Service<S> {
    async fn open<F: Feed, R>(&self, request: &Request<R>) -> Result<Response<Answers<F::Message>>, Status> {
        let caller = Caller::of(request)?;
        let arrived = caller.arrived;
        let mut open = Open {
            // Before the first question: a change while it is answered must be seen afterwards.
            changes: self.source.changes(),
            source: Arc::clone(&self.source),
            caller,
            retry: self.retry,
            repeats: Arc::clone(&self.repeats),
            waiting: false,
            at_once: false,
            sent: [0; 32],
        };
        let asked = BootInstant::now();
        let first = match open.ask::<F>(arrived).await.map_err(|end| end.status())? {
            Ok(message) => message,
            Err(Denied::NoIdentity(refusal)) => return Err(open.refuse(&refusal, no_identity)),
            Err(Denied::Unavailable(refusal) | Denied::Ended(refusal)) => {
                return Err(open.refuse(&refusal, unavailable));
            }
        };
        let state = Some((open, Some((first, asked))));
        Ok(Response::new(Box::pin(unfold(state, async |state| {
            let (mut open, first) = state?;
            let answer = match first {
                Some((first, asked)) if open.holds(asked) => {
                    open.sent = messages::fingerprint(&first);
                    Ok(first)
                }
                Some(_) => {
                    open.at_once = true;
                    open.next::<F>().await
                }
                None => open.next::<F>().await,
            };
            // A status is the last thing on a stream.
            let state = answer.is_ok().then_some((open, None));
            Some((answer, state))
        }))))
    }
}

/// What a stream is of.
trait Feed: Send + Sync + 'static {
    type Message: Message + Send + 'static;

    /// Whether what is released on it is recorded, and so its end.
    const RECORDED: bool;

    fn ask<S: Source>(
        source: &S,
        peer: &Peer,
        arrived: BootInstant,
    ) -> impl Future<Output = Result<Self::Message, Denied>> + Send;
}

struct X509;

impl Feed for X509 {
    type Message = X509svidResponse;
    const RECORDED: bool = true;

    async fn ask<S: Source>(source: &S, peer: &Peer, arrived: BootInstant) -> Result<Self::Message, Denied> {
        messages::x509(source.x509(peer, arrived).await?)
    }
}

struct X509Bundles;

impl Feed for X509Bundles {
    type Message = X509BundlesResponse;
    const RECORDED: bool = false;

    async fn ask<S: Source>(source: &S, peer: &Peer, arrived: BootInstant) -> Result<Self::Message, Denied> {
        messages::bundles(source.bundles(peer, arrived).await?)
    }
}

struct JwtBundles;

impl Feed for JwtBundles {
    type Message = JwtBundlesResponse;
    const RECORDED: bool = false;

    async fn ask<S: Source>(source: &S, peer: &Peer, arrived: BootInstant) -> Result<Self::Message, Denied> {
        messages::jwt_bundles(source.jwt_bundles(peer, arrived).await?)
    }
}

/// An open stream.
///
/// It is polled as soon as its last answer has left it for the HTTP library, and hands over what it
/// was just told, nothing older. How long the library may keep that is the matter of [`super::flight`].
struct Open<S> {
    source: Arc<S>,
    caller: Caller,
    changes: Changes,
    retry: Duration,
    repeats: Arc<Repeats>,
    /// The last question had no answer: ask again without a change, too.
    waiting: bool,
    /// Ask without waiting for anything.
    at_once: bool,
    /// The fingerprint of the last message.
    sent: [u8; 32],
}

impl<S: Source> Open<S> {
    /// The next message that differs from the last one, or how the stream ends.
    async fn next<F: Feed>(&mut self) -> Result<F::Message, Status> {
        match self.following::<F>().await {
            Ok(message) => Ok(message),
            Err(end) => {
                if F::RECORDED && self.sent != [0; 32] {
                    self.source.ended(&self.caller.peer, &end.refusal);
                }
                Err(end.status())
            }
        }
    }

    async fn following<F: Feed>(&mut self) -> Result<F::Message, End> {
        loop {
            // What was answered before has been taken, or there was nothing to take.
            self.changes.dealt_with();
            let at_once = std::mem::take(&mut self.at_once);
            let pause = if at_once { Duration::ZERO } else { self.retry_after() };
            tokio::select! {
                biased;
                end = self.caller.end() => return Err(end),
                changed = self.changes.changed() => if !changed { return Err(stopping()) },
                () = tokio::time::sleep(pause), if self.waiting || at_once => {}
            }
            let asked = self.ask::<F>(BootInstant::now()).await?;
            self.waiting = matches!(asked, Err(Denied::Unavailable(_)));
            match asked {
                Ok(message) => {
                    let content = messages::fingerprint(&message);
                    if content != self.sent {
                        self.sent = content;
                        return Ok(message);
                    }
                }
                Err(Denied::Unavailable(refusal)) => {
                    tracing::debug!(peer = %self.caller.peer, code = %refusal.code, "an open stream waits");
                }
                Err(Denied::NoIdentity(refusal)) => {
                    self.refuse(&refusal, no_identity);
                    return Err(End { refusal, status: no_identity });
                }
                Err(Denied::Ended(refusal)) => {
                    self.refuse(&refusal, unavailable);
                    return Err(End { refusal, status: unavailable });
                }
            }
        }
    }

    /// Whether nothing has happened since `asked` that the answer of then may not show.
    fn holds(&self, asked: BootInstant) -> bool {
        !self.caller.stopping.is_cancelled()
            && self.caller.lost.borrow().is_none()
            && self.changes.unchanged()
            && BootInstant::now().since(asked) <= OLD
    }

    async fn ask<F: Feed>(&mut self, arrived: BootInstant) -> Result<Result<F::Message, Denied>, End> {
        let peer = self.caller.peer.clone();
        tokio::select! {
            biased;
            end = self.caller.end() => Err(end),
            answer = F::ask(&*self.source, &peer, arrived) => Ok(answer),
        }
    }

    fn refuse(&self, refusal: &Refusal, status: fn(&Refusal) -> Status) -> Status {
        refused(&self.repeats, &self.caller.peer, refusal, status)
    }

    /// Between half and the whole of the retry time, so that waiting streams don't ask as one.
    fn retry_after(&self) -> Duration {
        let random = crate::secret::random::<1>().map_or(255, |[byte]| byte);
        self.retry.mul_f64(0.5 + f64::from(random) / 512.0)
    }
}

/// `PermissionDenied`, with the words that clients compare (Workload API, 5.2.1). The reason is in
/// the log; the caller, who may be anybody, gets its code.
pub(super) fn no_identity(refusal: &Refusal) -> Status {
    with_code(Status::permission_denied(NO_IDENTITY), refusal)
}

/// `Unavailable`, with what its code means (Workload Endpoint, 6). The reason in full may hold the
/// lease's times, the TPM's address or an operator's words; it is in the log.
pub(super) fn unavailable(refusal: &Refusal) -> Status {
    with_code(Status::unavailable(refusal.code.meaning()), refusal)
}

/// `InvalidArgument` (Workload Endpoint, 6).
pub(super) fn header_missing() -> Status {
    let refusal = Refusal::new(codes::DELIVERY_HEADER, "workload.spiffe.io");
    with_code(Status::invalid_argument("security header missing from request"), &refusal)
}

/// `InvalidArgument` for a request that can't be answered, or a token that isn't valid; with what its
/// code means, for the token itself is nobody's to repeat.
pub(super) fn invalid(refusal: &Refusal) -> Status {
    with_code(Status::invalid_argument(refusal.code.meaning()), refusal)
}

/// Logs why a caller gets nothing, now and then, and says it to them.
pub(super) fn refused(repeats: &Repeats, peer: &Peer, refusal: &Refusal, status: fn(&Refusal) -> Status) -> Status {
    if let Some(before) = repeats.due(peer.uid(), refusal.code, BootInstant::now()) {
        tracing::info!(%peer, code = %refusal.code, %refusal, held_back = before, "nothing released");
    }
    status(refusal)
}

pub(super) fn with_code(mut status: Status, refusal: &Refusal) -> Status {
    if let Ok(code) = refusal.code.as_str().parse() {
        status.metadata_mut().insert(CODE_METADATA, code);
    }
    status
}
