//! The routes of protocol version 1, from one table: what each needs and how much it reads.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, on};
use tokio::sync::Semaphore;

use super::authn::{self, Peer};
use super::bodies::Room;
use super::effects::Effects;
use super::events::{self, Standing};
use super::nonces::{self, Purpose};
use super::published::{self, Topic};
use super::quota::Mark;
use super::registry::nodes::{self, Node};
use super::replay;
use super::revocation::{counts, words};
use super::server::Shared;
use super::store::Transaction;
use super::tls::Channel;
use super::{admin, attestation, audit, basis, credentials, enrolment, tasks, tokens};
use crate::clock::{BootInstant, WallTime};
use crate::codes::{self, Code, Refusal};
use crate::identity::NodeId;
use crate::protocol::{
    self, AttestRequest, CredentialRequest, Event, FreshNonce, GrantRequest, MEDIA_TYPE, Noted, Refused,
};
use crate::shutdown::CancellationToken;
use crate::telemetry::ByRoute;

mod table;

use table::Call;
pub use table::{Access, ROUTES, Route};

/// From a body to the answer's.
type StrangersWork = fn(&Transaction<'_>, &Shared, &[u8], WallTime) -> Result<Vec<u8>, Refusal>;
/// The same for a node whose standing was checked in this transaction, with what is to be done after it.
type NodesWork = fn(&Transaction<'_>, &Shared, &Node, &Peer, &[u8], WallTime, &mut Effects) -> Result<Vec<u8>, Refusal>;

/// How long a body of a node may take to arrive, and a stranger's, which is small.
const NODES_BODY_TIME: Duration = Duration::from_secs(30);
const STRANGERS_BODY_TIME: Duration = Duration::from_secs(5);
/// Strangers' calls at work at once: each waits for the one writer, nodes must not wait behind many.
const STRANGERS: usize = 4;
/// KiB of strangers' bodies in memory at once, and of nodes': who sends much waits, not the server.
const STRANGERS_BODIES: usize = 64 << 10;
const NODES_BODIES: usize = 256 << 10;
/// How long a stranger waits for its turn.
const TURN: Duration = Duration::from_secs(5);

/// The router over [`ROUTES`].
pub fn router(shared: Arc<Shared>, stop: CancellationToken) -> Router {
    let server = Server {
        shared,
        stop,
        strangers: Arc::new(Semaphore::new(STRANGERS)),
        strangers_bodies: Room::new(STRANGERS_BODIES, STRANGERS_BODY_TIME),
        nodes_bodies: Room::new(NODES_BODIES, NODES_BODY_TIME),
        commands: admin::remote::room(),
    };
    let mut router = Router::new();
    for route in ROUTES {
        let server = server.clone();
        let filter = if route.method == Method::GET { MethodFilter::GET } else { MethodFilter::POST };
        router = router.route(
            route.path,
            on(filter, move |request: Request| async move {
                server.shared.metrics.requests.get_or_create(&ByRoute { route: route.path.to_owned() }).inc();
                match server.serve(route, request).await {
                    Ok(response) => response,
                    Err(refused) => refuse(&refused),
                }
            }),
        );
    }
    router.fallback(unknown).method_not_allowed_fallback(unknown)
}

/// The answer to whatever isn't in [`ROUTES`].
async fn unknown(request: Request) -> Response {
    let found = format!("{} {}", request.method(), request.uri().path());
    let refusal = Refusal::new(codes::PROTOCOL_MALFORMED, audit::clipped(&found)).expected("a route of version 1");
    refuse(&Refused { refusal, next: None })
}

#[derive(Clone)]
struct Server {
    shared: Arc<Shared>,
    stop: CancellationToken,
    strangers: Arc<Semaphore>,
    strangers_bodies: Room,
    nodes_bodies: Room,
    commands: Room,
}

impl Server {
    /// Who calls, then what is sent, then the work: in this order for every route.
    async fn serve(&self, route: &'static Route, request: Request) -> Result<Response, Refused> {
        if let Call::Published(topic) = route.call {
            let key = request.uri().path().strip_prefix("/v1/crl/").map(str::to_owned);
            let known = request.headers().get(header::IF_NONE_MATCH).cloned();
            return self.published(topic, key, known, route.path).await;
        }
        let peer = match (route.access, request.extensions().get::<Channel>()) {
            (Access::Anyone, _) => None,
            (Access::Operator, channel) => {
                let channel = channel.cloned();
                return Ok(self.command(channel, request, route.path).await);
            }
            (Access::Node, Some(Channel::Certified(peer))) => {
                // Before the body: a revoked node sends no four megabytes.
                if route.call != Call::Withdrawals {
                    self.standing(peer.clone(), route.path).await?;
                }
                Some(peer.clone())
            }
            (Access::Node, Some(Channel::Refused(why))) => {
                return Err(self.stranger((**why).clone(), route.path).await);
            }
            (Access::Node, Some(Channel::Stranger) | None) => {
                return Err(self.stranger(no_certificate(), route.path).await);
            }
        };
        let room = if peer.is_some() { &self.nodes_bodies } else { &self.strangers_bodies };
        let (body, _room) = match room.read(request, route.limit).await {
            Ok(body) => body,
            Err(refusal) => return Err(self.stranger(refusal, route.path).await),
        };
        match (route.call, peer) {
            (Call::Enrol, _) => {
                self.for_stranger(route, body, |tx, shared, body, now| {
                    protocol::encode(&enrolment::begin(tx, shared, protocol::decode(body)?, now)?)
                })
                .await
            }
            (Call::Answer, _) => {
                self.for_stranger(route, body, |tx, shared, body, now| {
                    protocol::encode(&enrolment::finish(tx, shared, &protocol::decode(body)?, now)?)
                })
                .await
            }
            (Call::Nonce, Some(peer)) => {
                self.for_node(route, peer, body, |tx, shared, node, _, _, now, _| {
                    protocol::encode(&short_nonce(tx, shared, node, now)?)
                })
                .await
            }
            (Call::Logs, Some(peer)) => {
                self.for_node(route, peer, body, |tx, shared, node, _, body, _, _| {
                    protocol::encode(&attestation::receive_ahead(tx, shared, node, &protocol::decode(body)?)?)
                })
                .await
            }
            (Call::References, Some(peer)) => {
                self.for_node(route, peer, body, |tx, shared, node, _, _, _, _| attestation::document(tx, shared, node))
                    .await
            }
            (Call::Attest, Some(peer)) => {
                self.catch_up(&peer).await?;
                self.for_node(route, peer, body, |tx, shared, node, peer, body, now, effects| {
                    let request: AttestRequest = protocol::decode(body)?;
                    replay::Request::new(node.id, "attest", request.request_id, body).once(tx, now, || {
                        protocol::encode(&attestation::attest(tx, shared, node, peer, &request, now, effects)?)
                    })
                })
                .await
            }
            (Call::Credentials, Some(peer)) => {
                self.for_node(route, peer, body, |tx, shared, node, _, body, now, _| {
                    let request: CredentialRequest = protocol::decode(body)?;
                    replay::Request::new(node.id, "credentials", request.request_id, body)
                        .once(tx, now, || protocol::encode(&credentials::issue(tx, shared, node, &request, now)?))
                })
                .await
            }
            (Call::Grants, Some(peer)) => {
                self.for_node(route, peer, body, |tx, shared, node, _, body, now, _| {
                    let request: GrantRequest = protocol::decode(body)?;
                    let kept = replay::Request::new(node.id, "grants", request.request_id, body);
                    kept.once_sealed(tx, &shared.sealing, now, || {
                        protocol::encode(&tokens::grants::grant(tx, shared, node, &request, now)?)
                    })
                })
                .await
            }
            (Call::TasksEnd, Some(peer)) => {
                self.for_node(route, peer, body, |tx, _, node, _, body, now, _| {
                    tasks::ended(tx, node.id, &protocol::decode(body)?, now)?;
                    protocol::encode(&Noted {})
                })
                .await
            }
            (Call::Records, Some(peer)) => {
                self.for_node(route, peer, body, |tx, shared, node, _, body, now, effects| {
                    let request = protocol::decode(body)?;
                    protocol::encode(&audit::journals::receive(tx, shared, node, &request, now, effects)?)
                })
                .await
            }
            (Call::Events, Some(peer)) => self.events(peer, route.path).await,
            (Call::Withdrawals, Some(peer)) => self.withdrawals(peer, &body, route.path).await,
            // `access` and the calls are of one table; a route wrongly marked stays closed.
            (_, None) | (Call::Admin | Call::Published(_), _) => Err(self.stranger(no_certificate(), route.path).await),
        }
    }

    /// An operator's command; its answers are JSON.
    async fn command(&self, channel: Option<Channel>, request: Request, path: &'static str) -> Response {
        let refusal = match channel {
            Some(Channel::Certified(peer)) => {
                return admin::remote::serve(&self.shared, &self.commands, &peer, request).await;
            }
            Some(Channel::Refused(why)) => (*why).clone(),
            Some(Channel::Stranger) | None => {
                no_certificate().expected("an operator's certificate; see `leasehold-server operator list`")
            }
        };
        admin::refused(&self.stranger(refusal, path).await.refusal)
    }

    /// Runs a stranger's call in one transaction.
    async fn for_stranger(
        &self,
        route: &'static Route,
        body: Vec<u8>,
        work: StrangersWork,
    ) -> Result<Response, Refused> {
        let Ok(Ok(_turn)) = tokio::time::timeout(TURN, self.strangers.acquire()).await else {
            let refusal = Refusal::new(codes::PROTOCOL_BUSY, "too many enrolments at once");
            return Err(Refused { refusal, next: None });
        };
        let (shared, now) = (self.shared.clone(), self.shared.now());
        let done = self.shared.store.transaction(move |tx| settled(work(tx, &shared, &body, now))).await;
        match done.and_then(|done| done) {
            Ok(answer) => Ok(answered(answer)),
            Err(refusal) => Err(self.stranger(refusal, route.path).await),
        }
    }

    /// Runs a node's call in one transaction, after asking in it whether the node may call at all.
    async fn for_node(
        &self,
        route: &'static Route,
        peer: Arc<Peer>,
        body: Vec<u8>,
        work: NodesWork,
    ) -> Result<Response, Refused> {
        let (shared, now) = (self.shared.clone(), self.shared.now());
        let done = self.shared.store.transaction(move |tx| {
            let node = match node_of(tx, &shared, &peer, now) {
                Ok(node) => node,
                Err(refusal) if refusal.code == codes::STORE_FAILED => return Err(refusal),
                // Revoked since it was let in.
                Err(refusal) => {
                    if let Some(suppressed) = shared.strangers.pass(now, refusal.code) {
                        audit::stranger_refused(tx, now, suppressed, &refusal, None, route.path)?;
                    }
                    return Ok((Effects::default(), Err(Refused { refusal, next: None })));
                }
            };
            let account = route.call.account();
            if let Err(full) = shared.quota.admit(node.id, account, BootInstant::now()) {
                if full.record {
                    audit::refused(tx, now, &full.refusal, Some(node.id), route.path)?;
                }
                return Ok((Effects::default(), Err(Refused { refusal: full.refusal, next: None })));
            }
            let (before, mut effects) = (Mark::of(tx)?, Effects::default());
            let done = match settled(work(tx, &shared, &node, &peer, &body, now, &mut effects))? {
                Ok(answer) => Ok(answer),
                Err(refusal) => {
                    audit::refused(tx, now, &refusal, Some(node.id), route.path)?;
                    nodes::seen(tx, node.id, now, Some(&refusal))?;
                    let next = next_nonce(tx, &shared, route.call, &node, now)?;
                    Err(Refused { refusal, next })
                }
            };
            shared.quota.charge(node.id, account, before.added(tx)?, BootInstant::now());
            Ok((effects.seal(tx, &shared)?, done))
        });
        let unheard = |refusal| Refused { refusal, next: None };
        let (effects, done) = done.await.map_err(unheard)?;
        effects.carry_out(&self.shared).await.map_err(unheard)?;
        done.map(answered)
    }

    /// Takes in what is held of the node's list, the others having their turns in between.
    async fn catch_up(&self, peer: &Arc<Peer>) -> Result<(), Refused> {
        loop {
            let (shared, peer, now) = (self.shared.clone(), peer.clone(), self.shared.now());
            let piece = self.shared.store.transaction(move |tx| {
                match settled(node_of(tx, &shared, &peer, now))? {
                    Ok(node) => attestation::catch_up(tx, &shared, &node),
                    // Said by the call itself.
                    Err(_) => Ok(false),
                }
            });
            match piece.await {
                Ok(true) => {}
                Ok(false) => return Ok(()),
                Err(refusal) => return Err(Refused { refusal, next: None }),
            }
        }
    }

    async fn events(&self, peer: Arc<Peer>, path: &'static str) -> Result<Response, Refused> {
        // The node first, for its queue. Subscribed second, asked third: a revocation in between is in the queue.
        let node = self.standing(peer.clone(), path).await?;
        let receiver = self.shared.hub.subscribe(node.id);
        let standing = Ask { shared: self.shared.clone(), peer, node: node.id };
        let first = match standing.check().await {
            Ok(first) => first,
            Err(refusal) => return Err(self.stranger(refusal, path).await),
        };
        let body = events::body(receiver, first, standing, self.stop.clone());
        Ok(([(header::CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE))], body).into_response())
    }

    /// What relying parties may have, whoever they are. Few at a time look at the store.
    async fn published(
        &self,
        topic: Topic,
        key: Option<String>,
        known: Option<HeaderValue>,
        path: &'static str,
    ) -> Result<Response, Refused> {
        let Ok(Ok(_turn)) = tokio::time::timeout(TURN, self.strangers.acquire()).await else {
            let refusal = Refusal::new(codes::PROTOCOL_BUSY, "too many calls at once");
            return Err(Refused { refusal, next: None });
        };
        match published::document(&self.shared, topic, key.as_deref()).await {
            Ok(document) => Ok(document.answer(known.as_ref())),
            Err(refusal) => Err(self.stranger(refusal, path).await),
        }
    }

    /// Takes down which withdrawals a node says it applied; a revoked one says it too.
    async fn withdrawals(&self, peer: Arc<Peer>, body: &[u8], path: &'static str) -> Result<Response, Refused> {
        match words::hear(&self.shared, peer, body).await {
            Ok(answer) => Ok(answered(answer)),
            Err(refusal) => Err(self.stranger(refusal, path).await),
        }
    }

    /// The admitted node behind `peer`, now.
    async fn standing(&self, peer: Arc<Peer>, path: &'static str) -> Result<Node, Refused> {
        let shared = self.shared.clone();
        let now = self.shared.now();
        let standing = self.shared.store.transaction(move |tx| settled(node_of(tx, &shared, &peer, now)));
        match standing.await.and_then(|standing| standing) {
            Ok(node) => Ok(node),
            Err(refusal) => Err(self.stranger(refusal, path).await),
        }
    }

    /// Records the refusal of somebody who is no admitted node, so many a minute.
    async fn stranger(&self, refusal: Refusal, path: &'static str) -> Refused {
        let now = self.shared.now();
        if refusal.code != codes::STORE_FAILED
            && let Some(suppressed) = self.shared.strangers.pass(now, refusal.code)
        {
            let recorded = refusal.clone();
            let written = self
                .shared
                .store
                .transaction(move |tx| audit::stranger_refused(tx, now, suppressed, &recorded, None, path));
            if let Err(error) = written.await {
                tracing::error!(%error, %refusal, "a refusal can't be recorded");
            }
        }
        Refused { refusal, next: None }
    }
}

/// The admitted node behind `peer`, now.
fn node_of(tx: &Transaction<'_>, shared: &Shared, peer: &Peer, now: WallTime) -> Result<Node, Refusal> {
    authn::authenticate(tx, peer, &shared.settings.trust_domain, now)?.node()
}

/// Whether a node may still be served and what it must be told, asked by its stream of events.
struct Ask {
    shared: Arc<Shared>,
    peer: Arc<Peer>,
    node: NodeId,
}

impl Standing for Ask {
    async fn check(&self) -> Result<Vec<Event>, Refusal> {
        let (shared, peer, now) = (self.shared.clone(), self.peer.clone(), self.shared.now());
        let outstanding = self.shared.store.transaction(move |tx| {
            let node = node_of(tx, &shared, &peer, now)?;
            counts::outstanding(tx, node.id)
        });
        Ok(outstanding.await?.into_iter().map(Event::Withdraw).collect())
    }

    fn written(&self, event: &Event) {
        if let Event::Withdraw(withdrawal) = event {
            self.shared.words.told(self.node, withdrawal.number);
        }
    }
}

/// A refusal is a result that is kept, with what was spent on the way to it; a failed store is not.
fn settled<T>(result: Result<T, Refusal>) -> Result<Result<T, Refusal>, Refusal> {
    match result {
        Err(refusal) if refusal.code == codes::STORE_FAILED => Err(refusal),
        result => Ok(result),
    }
}

/// An attestation that was refused can be tried again at once with this.
fn next_nonce(
    tx: &Transaction<'_>,
    shared: &Shared,
    call: Call,
    node: &Node,
    now: WallTime,
) -> Result<Option<FreshNonce>, Refusal> {
    if call != Call::Attest {
        return Ok(None);
    }
    // What is wrong with the node's reference document is refused at its attestation, not here.
    Ok(short_nonce(tx, shared, node, now).ok())
}

/// A nonce that wasn't part of an answer: it holds for a short time.
fn short_nonce(tx: &Transaction<'_>, shared: &Shared, node: &Node, now: WallTime) -> Result<FreshNonce, Refusal> {
    let selection = basis::selection_of(tx, shared, node)?;
    nonces::issue(tx, node.id, Purpose::Attest, now, shared.settings.nonce_seconds, selection)
}

fn no_certificate() -> Refusal {
    Refusal::new(codes::PROTOCOL_CLIENT_CERTIFICATE, "no client certificate")
        .expected("the certificate that enrolment gave an admitted node")
}

fn answered(body: Vec<u8>) -> Response {
    ([(header::CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE))], Body::from(body)).into_response()
}

fn refuse(refused: &Refused) -> Response {
    let body = protocol::encode(refused).unwrap_or_default();
    (status(refused.refusal.code), [(header::CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE))], body).into_response()
}

/// The HTTP status of a refusal; agents go by the code.
fn status(code: Code) -> StatusCode {
    match code {
        codes::PROTOCOL_CLIENT_CERTIFICATE => StatusCode::UNAUTHORIZED,
        codes::PROTOCOL_TOO_LARGE | codes::EVIDENCE_TOO_LARGE => StatusCode::PAYLOAD_TOO_LARGE,
        codes::PROTOCOL_REPLAYED => StatusCode::CONFLICT,
        codes::PROTOCOL_BUSY | codes::STORE_FAILED => StatusCode::SERVICE_UNAVAILABLE,
        code if code.as_str().starts_with("protocol.") || code.as_str().starts_with("evidence.") => {
            StatusCode::BAD_REQUEST
        }
        _ => StatusCode::FORBIDDEN,
    }
}
