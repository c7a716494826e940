//! The calls of `tasks.proto`.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::Stream;
use futures_util::stream::unfold;
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use super::super::repeats::Repeats;
use super::super::service::{Caller, OLD, no_identity, unavailable, with_code};
use super::super::{Changes, Denied};
use super::messages::tasks_server::{self, TasksServer};
use super::messages::{
    BeginRequest, EndRequest, EndResponse, HeartbeatRequest, HeartbeatResponse, Jwt, Outcome, TaskUpdate, X509,
};
use super::{Begun, Desk, Over, Progress, Stated, TaskCredentials};
use crate::clock::BootInstant;
use crate::codes::{self, Refusal};
use crate::gate::Released;
use crate::protocol::AuthorizationDetail;

/// The start of the paths of these calls.
pub(in super::super) const METHODS: &str = "/leasehold.task.v1.Tasks/";

/// Bytes of the authorization details that a request may have.
const DETAILS: usize = 16 << 10;

/// Bytes of a note on a task's end.
const NOTE: usize = 256;

/// When a connection is lost, its process may have ended, and then the desk knows how: it is waited for
/// so long.
const LAST_WORD: Duration = Duration::from_millis(500);

/// Tasks over `desk`.
#[derive(Debug)]
pub(in super::super) struct Service<D> {
    pub(in super::super) desk: Arc<D>,
    pub(in super::super) retry: Duration,
    pub(in super::super) repeats: Arc<Repeats>,
}

/// The service, for requests of at most `limit` bytes.
pub(in super::super) fn server<D: Desk>(service: Service<D>, limit: usize) -> TasksServer<Service<D>> {
    TasksServer::new(service).max_decoding_message_size(limit)
}

type Updates = Pin<Box<dyn Stream<Item = Result<TaskUpdate, Status>> + Send>>;

#[tonic::async_trait]
impl<D: Desk> tasks_server::Tasks for Service<D> {
    type BeginStream = Updates;

    async fn begin(&self, request: Request<BeginRequest>) -> Result<Response<Updates>, Status> {
        let mut caller = caller(&request)?;
        let stated = stated(request.into_inner()).map_err(|refusal| self.refuse(&caller, &refusal))?;
        let (peer, arrived) = (caller.peer.clone(), caller.arrived);
        let begun = tokio::select! {
            biased;
            status = caller.over() => return Err(status),
            begun = self.desk.begin(&peer, stated, arrived) => begun,
        };
        let begun = begun.map_err(|denied| self.denied(&caller, denied))?;
        // Before the first release: a change while it is on its way must be seen afterwards.
        let changes = self.desk.changes();
        let mut open = Open { desk: self.desk.clone(), caller, begun, changes, retry: self.retry, sent: None };
        let asked = BootInstant::now();
        let first = open.release().await?.map_err(|denied| self.denied(&open.caller, denied))?;
        let state = Some((open, Some((first, asked))));
        Ok(Response::new(Box::pin(unfold(state, async |state| {
            let (mut open, first) = state?;
            let answer = match first {
                Some((first, asked)) if BootInstant::now().since(asked) <= OLD && open.lives() => Some(Ok(first)),
                Some(_) => {
                    open.sent = None;
                    open.next().await
                }
                None => open.next().await,
            };
            // A status is the last thing on a stream.
            let answer = answer?;
            let state = answer.is_ok().then_some((open, None));
            Some((answer, state))
        }))))
    }

    async fn heartbeat(&self, request: Request<HeartbeatRequest>) -> Result<Response<HeartbeatResponse>, Status> {
        let caller = caller(&request)?;
        let task = request.into_inner().task_id;
        let within_seconds = self.desk.heartbeat(&caller.peer, &task).await;
        let within_seconds = within_seconds.map_err(|denied| self.denied(&caller, denied))?;
        Ok(Response::new(HeartbeatResponse { within_seconds }))
    }

    async fn end(&self, request: Request<EndRequest>) -> Result<Response<EndResponse>, Status> {
        let caller = caller(&request)?;
        let EndRequest { task_id, outcome, note } = request.into_inner();
        let invalid = |field: &str, found: String, expected: String| {
            Refusal::new(codes::TASK_INVALID, found).at(field).expected(expected)
        };
        if note.len() > NOTE || note.chars().any(char::is_control) {
            let refusal =
                invalid("note", format!("{} bytes", note.len()), format!("at most {NOTE}, no control characters"));
            return Err(self.refuse(&caller, &refusal));
        }
        let outcome = match Outcome::try_from(outcome) {
            Ok(Outcome::Ok) => Ok(note),
            Ok(Outcome::Failed) => Err(note),
            Err(_) => {
                let refusal = invalid("outcome", outcome.to_string(), "OUTCOME_OK or OUTCOME_FAILED".to_owned());
                return Err(self.refuse(&caller, &refusal));
            }
        };
        let ended = self.desk.end(&caller.peer, &task_id, outcome).await;
        ended.map_err(|denied| self.denied(&caller, denied))?;
        Ok(Response::new(EndResponse {}))
    }
}

impl<D> Service<D> {
    fn denied(&self, caller: &Caller, denied: Denied) -> Status {
        match denied {
            Denied::NoIdentity(refusal) => self.refuse(caller, &refusal),
            Denied::Unavailable(refusal) | Denied::Ended(refusal) => {
                self.say(caller, &refusal);
                unavailable(&refusal)
            }
        }
    }

    /// What is wrong with a statement is the caller's own words, and it may hear of it in full.
    fn refuse(&self, caller: &Caller, refusal: &Refusal) -> Status {
        self.say(caller, refusal);
        match refusal.code {
            codes::TASK_INVALID => with_code(Status::invalid_argument(refusal.to_string()), refusal),
            codes::TASK_UNKNOWN => with_code(Status::not_found(refusal.code.meaning()), refusal),
            _ => no_identity(refusal),
        }
    }

    fn say(&self, caller: &Caller, refusal: &Refusal) {
        self.repeats.say(caller.peer.uid(), refusal, "no task");
    }
}

/// A task's stream.
struct Open<D> {
    desk: Arc<D>,
    caller: Caller,
    begun: Begun,
    /// Whoever takes something back waits until this stream has dealt with it.
    changes: Changes,
    retry: Duration,
    /// The renewal that was sent last.
    sent: Option<u64>,
}

impl<D: Desk> Open<D> {
    /// The next message, or how the stream ends; nothing for an orderly end.
    async fn next(&mut self) -> Option<Result<TaskUpdate, Status>> {
        let mut again_at = None;
        loop {
            if let Some(over) = self.begun.progress.borrow().over.clone() {
                return ended(over);
            }
            // What was released before has been taken, and nothing speaks against the task; or the next
            // release finds what does.
            self.changes.dealt_with();
            let sent = self.sent;
            let mut progress = self.begun.progress.clone();
            tokio::select! {
                biased;
                over = over(&mut progress) => return ended(over),
                status = self.caller.over() => {
                    let last = tokio::time::timeout(LAST_WORD, over(&mut self.begun.progress)).await;
                    return last.map_or(Some(Err(status)), ended);
                }
                true = self.changes.changed() => continue,
                () = until(again_at), if again_at.is_some() => {}
                () = renewed(self.begun.progress.clone(), sent), if again_at.is_none() => {}
            }
            match self.release().await {
                Ok(Ok(update)) => return Some(Ok(update)),
                // The task goes on: what it was given before holds for a while yet.
                Ok(Err(Denied::Unavailable(refusal))) => {
                    tracing::debug!(peer = %self.caller.peer, code = %refusal.code, "a task's stream waits");
                    again_at = Some(tokio::time::Instant::now() + self.retry);
                }
                Ok(Err(Denied::NoIdentity(refusal))) => return self.last_word(no_identity(&refusal)).await,
                Ok(Err(Denied::Ended(refusal))) => return self.last_word(unavailable(&refusal)).await,
                Err(status) => return self.last_word(status).await,
            }
        }
    }

    /// What the desk says of the end, which it finds out by itself, or else this.
    async fn last_word(&mut self, status: Status) -> Option<Result<TaskUpdate, Status>> {
        let last = tokio::time::timeout(LAST_WORD, over(&mut self.begun.progress)).await;
        last.map_or(Some(Err(status)), ended)
    }

    /// What the task holds now, as a message.
    async fn release(&mut self) -> Result<Result<TaskUpdate, Denied>, Status> {
        let arrived = BootInstant::now();
        let renewals = self.begun.progress.borrow_and_update().renewals;
        let released = tokio::select! {
            biased;
            status = self.caller.over() => return Err(status),
            released = self.desk.release(&self.begun, arrived) => released,
        };
        Ok(released.map(|released| {
            self.sent = Some(renewals);
            update(released)
        }))
    }

    /// Whether nothing has happened that a message from before may not show.
    fn lives(&self) -> bool {
        let progress = self.begun.progress.borrow();
        progress.over.is_none()
            && Some(progress.renewals) == self.sent
            && !self.caller.stopping.is_cancelled()
            && self.caller.lost.borrow().is_none()
            && self.changes.unchanged()
    }
}

/// Sleeps until then.
async fn until(moment: Option<tokio::time::Instant>) {
    if let Some(moment) = moment {
        tokio::time::sleep_until(moment).await;
    }
}

/// Waits until the task is over.
async fn over(progress: &mut watch::Receiver<Progress>) -> Over {
    let gone = || Over::Unavailable(Refusal::new(codes::DELIVERY_STOPPING, "the agent is stopping"));
    let over = progress.wait_for(|progress| progress.over.is_some()).await.map(|progress| progress.over.clone());
    over.ok().flatten().unwrap_or_else(gone)
}

/// Waits until there is something else to send than `sent`.
async fn renewed(mut progress: watch::Receiver<Progress>, sent: Option<u64>) {
    if progress.wait_for(|progress| Some(progress.renewals) != sent).await.is_err() {
        // Then the task is over, and somebody else says so.
        std::future::pending::<()>().await;
    }
}

fn ended(over: Over) -> Option<Result<TaskUpdate, Status>> {
    match over {
        Over::Orderly => None,
        Over::Denied(refusal) => Some(Err(no_identity(&refusal))),
        Over::Unavailable(refusal) => Some(Err(unavailable(&refusal))),
    }
}

fn caller<R>(request: &Request<R>) -> Result<Caller, Status> {
    let caller = request.extensions().get::<Caller>().cloned();
    caller.ok_or_else(|| Status::internal("BUG: a request without its connection's caller"))
}

fn stated(request: BeginRequest) -> Result<Stated, Refusal> {
    let details = request.authorization_details;
    let details: Vec<AuthorizationDetail> = match details.len() {
        0 => Vec::new(),
        1..=DETAILS => serde_json::from_str(&details).map_err(|error| {
            Refusal::new(codes::TASK_INVALID, error.to_string())
                .at("authorization_details")
                .expected("a JSON array of objects with `type`, `actions` and `locations`")
        })?,
        length => {
            return Err(Refusal::new(codes::TASK_INVALID, format!("{length} bytes"))
                .at("authorization_details")
                .expected(format!("at most {DETAILS}")));
        }
    };
    Ok(Stated {
        task_id: request.task_id,
        spiffe_id: request.spiffe_id,
        intent: request.intent,
        purpose: request.purpose,
        audience: request.audience,
        destination: Some(request.destination).filter(|destination| !destination.is_empty()),
        details,
        heartbeat_seconds: request.heartbeat_seconds,
        term_seconds: request.term_seconds,
        x509: request.x509,
    })
}

fn update(released: Released<TaskCredentials>) -> TaskUpdate {
    let term = released.until().since(BootInstant::now());
    let credentials = released.into_inner();
    TaskUpdate {
        task_id: credentials.task_id,
        spiffe_id: credentials.spiffe_id,
        decision_id: credentials.decision,
        term_seconds: term.as_secs(),
        authorization_details: serde_json::to_string(&credentials.details).unwrap_or_default(),
        x509: credentials.x509.map(|mut x509| X509 {
            svid: x509.chain.concat(),
            key: std::mem::take(&mut *x509.key_pkcs8),
            bundle: x509.bundle.concat(),
        }),
        jwt: credentials.token.map(|mut token| Jwt { token: std::mem::take(&mut *token) }),
    }
}
