//! Administration: a command in, facts or a refusal out, over the local socket or from an operator with
//! a certificate; on the socket liveness, readiness and metrics beside it.

pub mod commands;
mod declared;
pub mod facts;
pub mod governance;
mod nodes;
mod operators;
mod policy;
mod references;
pub mod registrations;
pub mod remote;
pub mod revocations;
pub mod roles;
pub mod socket;
mod tasks;
mod trust;

use std::sync::Arc;

use axum::extract::{ConnectInfo, DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use tokio::net::UnixListener;

use super::server::Shared;
use crate::codes::{self, Refusal};
use crate::shutdown::CancellationToken;
pub use commands::Command;
use roles::Actor;
use socket::LocalUser;

/// The path of commands.
pub const PATH: &str = "/v1/command";
/// The largest command, in bytes: a reference document in hexadecimal.
pub const LIMIT: usize = 2 * crate::verify::references::LIMIT + 1024;

/// Serves the admin socket until `stop`.
pub async fn serve(listener: UnixListener, shared: Arc<Shared>, stop: CancellationToken) {
    let router = Router::new()
        .route(PATH, post(command).layer(DefaultBodyLimit::max(LIMIT)))
        .route("/live", get(|| async { "live\n" }))
        .route("/ready", get(ready))
        .route("/metrics", get(|State(shared): State<Arc<Shared>>| async move { shared.metrics.render() }))
        .with_state(shared);
    let router = router.into_make_service_with_connect_info::<LocalUser>();
    let served = axum::serve(socket::Guarded(listener), router).with_graceful_shutdown(stop.cancelled_owned()).await;
    if let Err(error) = served {
        tracing::error!(%error, "the admin socket failed");
    }
}

async fn command(
    State(shared): State<Arc<Shared>>,
    ConnectInfo(user): ConnectInfo<LocalUser>,
    body: axum::body::Bytes,
) -> Response {
    let done = match Command::parse(&body) {
        Ok(command) => {
            let actor = Actor::local(user.0);
            command.run_as(&shared, actor.clone(), |_, _| Ok(actor)).await
        }
        Err(refusal) => Err(refusal),
    };
    match done {
        Ok(facts) => Json(facts).into_response(),
        Err(refusal) => refused(&refusal),
    }
}

/// Ready means that the store can be written.
async fn ready(State(shared): State<Arc<Shared>>) -> Response {
    match shared.store.transaction(|_| Ok(())).await {
        Ok(()) => "ready\n".into_response(),
        Err(refusal) => refused(&refusal),
    }
}

/// The answer that says why not.
pub fn refused(refusal: &Refusal) -> Response {
    let status = match refusal.code {
        codes::ADMIN_UNKNOWN => StatusCode::NOT_FOUND,
        codes::ADMIN_CONFLICT => StatusCode::CONFLICT,
        codes::ADMIN_ROLE | codes::ADMIN_PEER | codes::PROTOCOL_CLIENT_CERTIFICATE => StatusCode::FORBIDDEN,
        codes::STORE_FAILED => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::BAD_REQUEST,
    };
    (status, Json(refusal)).into_response()
}
