//! Commands over the network: the same ones, from operators with a certificate.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};

use super::roles::{Action, Actor};
use super::{Command, LIMIT, refused};
use crate::codes::{self, Refusal};
use crate::control_plane::audit;
use crate::control_plane::authn::{self, Peer};
use crate::control_plane::bodies::Room;
use crate::control_plane::server::Shared;
use crate::control_plane::store::Transaction;

/// How long a command may take to arrive.
const BODY_TIME: Duration = Duration::from_secs(30);
/// KiB of commands in memory at once.
const BODIES: usize = 64 << 10;
/// The largest command of a role that changes nothing, in bytes.
const SMALL: usize = 64 << 10;

/// Room for the commands of all operators.
pub fn room() -> Room {
    Room::new(BODIES, BODY_TIME)
}

/// Carries out an operator's command.
pub async fn serve(shared: &Arc<Shared>, room: &Room, peer: &Arc<Peer>, request: Request) -> Response {
    match carry_out(shared, room, peer, request).await {
        Ok(facts) => Json(facts).into_response(),
        Err(refusal) => refused(&refusal),
    }
}

async fn carry_out(
    shared: &Arc<Shared>,
    room: &Room,
    peer: &Arc<Peer>,
    request: Request,
) -> Result<serde_json::Value, Refusal> {
    let actor = actor(shared, peer).await?;
    // Only who may change something has something large to say.
    let changes = shared.settings.roles.allow(&actor, Action::Operate, "").is_ok();
    let (body, _room) = room.read(request, if changes { LIMIT } else { SMALL }).await?;
    let command = Command::parse(&body)?;
    // Asked again in the command's own transaction: nothing lies between the answer and the deed.
    let peer = Arc::clone(peer);
    command.run_as(shared, actor, move |tx, shared| operator(tx, shared, &peer)).await
}

/// The operator behind `peer`; a refusal is recorded.
async fn actor(shared: &Arc<Shared>, peer: &Arc<Peer>) -> Result<Actor, Refusal> {
    let (of_work, peer, now) = (shared.clone(), peer.clone(), shared.now());
    shared
        .store
        .transaction(move |tx| match operator(tx, &of_work, &peer) {
            Err(refusal) if refusal.code != codes::STORE_FAILED => {
                if let Some(suppressed) = of_work.strangers.pass(now, refusal.code) {
                    audit::stranger_refused(tx, now, suppressed, &refusal, None, super::PATH)?;
                }
                Ok(Err(refusal))
            }
            other => other.map(Ok),
        })
        .await?
}

fn operator(tx: &Transaction<'_>, shared: &Shared, peer: &Peer) -> Result<Actor, Refusal> {
    let operator = authn::authenticate(tx, peer, &shared.settings.trust_domain, shared.now())?.operator()?;
    Ok(Actor { name: operator.id, role: operator.role, local: false })
}
