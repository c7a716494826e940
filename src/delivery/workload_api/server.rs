//! Accepts connections, knows their processes, and speaks HTTP/2 with them.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Service as _;
use tonic::codegen::http::{Request, Response};
use tonic::service::Routes;

use super::authority::Readable;
use super::flight::{Flight, Flushed};
use super::generated::spiffe_workload_api_server::SpiffeWorkloadApiServer;
use super::limits::{Counts, Limits, Slot};
use super::repeats::Repeats;
use super::service::{self, Caller, Service};
use super::tasks::{self, Desk, NoTasks};
use super::{Source, service::unavailable};
use crate::clock::BootInstant;
use crate::codes::{self, Refusal};
use crate::shutdown::{CancellationToken, Shutdown};
use crate::workload::{Caught, Peer, Peers};

/// Descriptors of `workload.proto`, for reflection.
const DESCRIPTORS: &[u8] = include_bytes!("workload.fds");

/// Stands for the user of a caller that can't be identified: no user has this number.
const NOBODY: u32 = u32::MAX;

/// The calls that carry the security header.
const METHODS: [&str; 2] = ["/SpiffeWorkloadAPI/", tasks::METHODS];

/// Requests are empty, or hold a token or the statement of a task.
const LARGEST_REQUEST: usize = 64 << 10;

/// The time in which the last statuses of a connection may go out once it is over.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// The Workload API's server.
#[derive(Debug)]
pub struct Server<S, D = NoTasks> {
    source: Arc<S>,
    desk: Arc<D>,
    peers: Peers,
    limits: Limits,
}

impl<S: Source> Server<S> {
    /// A server that answers what `source` says to whom `peers` identifies.
    pub fn new(source: Arc<S>, peers: Peers, limits: Limits) -> Self {
        Self { source, desk: Arc::new(NoTasks), peers, limits }
    }

    /// The same, where `desk` begins tasks.
    pub fn with_tasks<D: Desk>(self, desk: Arc<D>) -> Server<S, D> {
        Server { source: self.source, desk, peers: self.peers, limits: self.limits }
    }
}

impl<S: Source, D: Desk> Server<S, D> {
    /// Serves `listener` until `shutdown`; connections are tasks of its tracker.
    ///
    /// # Errors
    /// When reflection can't read the built-in descriptors.
    pub async fn serve(self, listener: UnixListener, shutdown: Shutdown) -> io::Result<()> {
        let counts = Counts::new(self.limits);
        // One for all: else each connection could say everything once more.
        let repeats = Arc::<Repeats>::default();
        let routes = self.routes(&repeats)?;
        loop {
            let stream = tokio::select! {
                biased;
                () = shutdown.token.cancelled() => return Ok(()),
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        // Out of descriptors or memory: connections that end will give some back.
                        tracing::warn!(%error, "a Workload API connection can't be accepted");
                        tokio::time::sleep(Duration::from_millis(50)).await;
                        continue;
                    }
                },
            };
            // Nothing here waits: one caller's connection is never behind another's.
            let caught = match self.peers.catch(&stream) {
                Ok(caught) => caught,
                Err(refusal) => {
                    repeats.say(NOBODY, &refusal, "a caller can't be identified");
                    continue;
                }
            };
            let slot = match counts.connection(caught.uid()) {
                Ok(slot) => slot,
                Err(report) => {
                    if let Some(refused) = report {
                        let (uid, code) = (caught.uid(), codes::DELIVERY_BUSY);
                        tracing::warn!(uid, refused, %code, "too many connections");
                    }
                    continue;
                }
            };
            let connection = Connection {
                routes: routes.clone(),
                counts: counts.clone(),
                repeats: Arc::clone(&repeats),
                limits: self.limits,
                stopping: shutdown.token.clone(),
                _slot: slot,
            };
            shutdown.tasks.spawn(connection.run(stream, caught));
        }
    }

    fn routes(&self, repeats: &Arc<Repeats>) -> io::Result<Routes> {
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(DESCRIPTORS)
                .register_encoded_file_descriptor_set(tasks::DESCRIPTORS)
        };
        let (source, repeats) = (Arc::clone(&self.source), Arc::clone(repeats));
        let retry = self.limits.retry;
        let tasks = tasks::Service { desk: Arc::clone(&self.desk), retry, repeats: Arc::clone(&repeats) };
        let service = Service { source, retry, repeats };
        Ok(Routes::new(SpiffeWorkloadApiServer::new(service).max_decoding_message_size(LARGEST_REQUEST))
            .add_service(tasks::server(tasks, LARGEST_REQUEST))
            .add_service(reflection().build_v1().map_err(io::Error::other)?)
            .add_service(reflection().build_v1alpha().map_err(io::Error::other)?)
            .prepare())
    }
}

struct Connection {
    routes: Routes,
    counts: Counts,
    repeats: Arc<Repeats>,
    limits: Limits,
    stopping: CancellationToken,
    _slot: Slot,
}

impl Connection {
    async fn run(self, stream: UnixStream, caught: Caught) {
        let uid = caught.uid();
        let peer = tokio::select! {
            () = self.stopping.cancelled() => return,
            identified = caught.identify() => match identified {
                Ok(peer) => peer,
                Err(refusal) => {
                    self.repeats.say(uid, &refusal, "a caller can't be identified");
                    return;
                }
            },
        };
        let (lost, caller_lost) = watch::channel(None);
        let flight = Flight::new(self.limits.delivery);
        let service = service_fn(|request| {
            let (answer, flight) = (self.answer(&peer, &caller_lost, request), Arc::clone(&flight));
            async move { answer.await.map(|answer| answer.map(|body| flight.follow(body))) }
        });
        let mut http = http2::Builder::new(TokioExecutor::new());
        http.timer(TokioTimer::new())
            .max_concurrent_streams(self.limits.streams_per_connection)
            .max_header_list_size(16 << 10)
            .keep_alive_interval(self.limits.ping)
            .keep_alive_timeout(self.limits.ping / 3);
        let io = Flushed::new(Readable::new(stream, self.limits.greeting), Arc::clone(&flight));
        let mut connection = std::pin::pin!(http.serve_connection(TokioIo::new(io), service));
        let ended = tokio::select! {
            ended = &mut connection => Some(ended),
            refusal = self.loss(&peer) => {
                self.repeats.say(uid, &refusal, "a caller's streams end");
                lost.send_replace(Some(refusal));
                None
            }
            () = flight.stuck() => {
                // Dropped with all it holds: nothing of it may be sent any more.
                let refusal = Refusal::new(codes::DELIVERY_STUCK, format!("an answer waited {:?}", self.limits.delivery))
                    .expected("a client that opens its HTTP/2 windows and reads");
                self.repeats.say(uid, &refusal, "a connection is cut");
                return;
            }
            () = self.stopping.cancelled() => None,
        };
        let ended = match ended {
            Some(ended) => ended,
            None => {
                connection.as_mut().graceful_shutdown();
                tokio::time::timeout(LAST_WORDS, connection).await.unwrap_or(Ok(()))
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%peer, error = &error as &dyn std::error::Error, "a connection broke");
        }
    }

    /// Waits until the peer has ended or changed.
    async fn loss(&self, peer: &Peer) -> Refusal {
        loop {
            tokio::select! {
                () = peer.exited() => {
                    return Refusal::new(codes::WORKLOAD_PEER_GONE, format!("process {} has ended", peer.pid()));
                }
                () = tokio::time::sleep(self.limits.look) => {}
            }
            match peer.check().await {
                Ok(()) => {}
                // Nothing is released meanwhile: a release looks at the peer, too.
                Err(refusal) if refusal.code == codes::WORKLOAD_UNSEEN => {
                    self.repeats.say(peer.uid(), &refusal, "a caller can't be looked at now");
                }
                Err(refusal) => return refusal,
            }
        }
    }

    fn answer(
        &self,
        peer: &Peer,
        lost: &watch::Receiver<Option<Refusal>>,
        mut request: Request<Incoming>,
    ) -> impl Future<Output = Result<Response<Body>, Infallible>> + Send + use<> {
        let arrived = BootInstant::now();
        let mut routes = self.routes.clone();
        let admitted = self.admit(peer, &request).map(|slot| {
            request.extensions_mut().insert(Caller {
                peer: peer.clone(),
                arrived,
                lost: lost.clone(),
                stopping: self.stopping.clone(),
                _slot: Arc::new(slot),
            });
        });
        async move {
            match admitted {
                Ok(()) => routes.call(request).await,
                Err(status) => Ok(status.into_http()),
            }
        }
    }

    fn admit(&self, peer: &Peer, request: &Request<Incoming>) -> Result<Slot, Status> {
        // Reflection is no part of the Workload API and its clients don't know the header.
        if METHODS.iter().any(|methods| request.uri().path().starts_with(methods)) {
            let mut values = request.headers().get_all("workload.spiffe.io").iter();
            // Case matters in the value (Workload Endpoint, 3).
            if values.next().is_none_or(|value| value != "true") || values.next().is_some() {
                let refusal = Refusal::new(codes::DELIVERY_HEADER, "workload.spiffe.io").at(peer.to_string());
                self.repeats.say(peer.uid(), &refusal, "a call without the security header");
                return Err(service::header_missing());
            }
        }
        self.counts.stream(peer.uid()).ok_or_else(|| {
            let refusal = Refusal::new(codes::DELIVERY_BUSY, "too many calls at one time");
            self.repeats.say(peer.uid(), &refusal, "too many calls");
            unavailable(&refusal)
        })
    }
}
