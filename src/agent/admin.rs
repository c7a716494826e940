//! The agent's admin socket: status, liveness, readiness and metrics, for its owner and root.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};

use super::keeper::Keeper;
use super::status::Status;
use crate::gate::Standing;

/// Gives the present status.
pub type Look = Arc<dyn Fn() -> Status + Send + Sync>;

/// The routes.
pub fn routes(look: Look, keeper: Arc<Keeper>) -> Router {
    Router::new()
        .route("/v1/status", get(|State(look): State<Look>| async move { Json(look()) }))
        .route("/metrics", get(move || async move { keeper.metrics() }))
        // Live: the process answers. It stays so while the TPM or the control plane is away.
        .route("/live", get(|| async { "live\n" }))
        // Ready: something can be released.
        .route(
            "/ready",
            get(|State(look): State<Look>| async move {
                let status = look();
                let code = if status.standing == Standing::Affirming {
                    StatusCode::OK
                } else {
                    StatusCode::SERVICE_UNAVAILABLE
                };
                (code, format!("{}\n", status.standing))
            }),
        )
        .with_state(look)
}
