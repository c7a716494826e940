//! The events pushed to nodes: one hub, any number of streams.

use std::time::Duration;

use axum::body::{Body, Bytes};
use futures_util::stream;
use tokio::sync::broadcast;
use tokio::time::{Instant, MissedTickBehavior};

use crate::codes::Refusal;
use crate::identity::NodeId;
use crate::protocol::{self, Event};
use crate::shutdown::CancellationToken;

/// How often a stream says that it is alive.
pub const ALIVE: Duration = Duration::from_secs(5);

/// Whom an event is for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Audience {
    /// One node.
    Node(NodeId),
    /// Every node.
    All,
}

/// Sends events to the streams of nodes.
#[derive(Clone, Debug)]
pub struct Hub {
    sender: broadcast::Sender<(Audience, Event)>,
}

impl Default for Hub {
    fn default() -> Self {
        Self { sender: broadcast::Sender::new(1024) }
    }
}

impl Hub {
    /// Sends `event` to every open stream of `audience`. Nobody listening is no error: a node
    /// without a stream hears of it when it attests.
    pub fn push(&self, audience: Audience, event: Event) {
        let _ = self.sender.send((audience, event));
    }

    /// Subscribes; to be done before the node's state is read, so that nothing falls in between.
    pub fn subscribe(&self) -> broadcast::Receiver<(Audience, Event)> {
        self.sender.subscribe()
    }
}

/// What a stream asks when it can't tell from the events: whether the node may still be served.
pub trait Standing: Send + Sync + 'static {
    /// `Ok`, or why the node is to be dropped.
    fn check(&self) -> impl Future<Output = Result<(), Refusal>> + Send;
}

/// The body of `GET /v1/events` for a node: frames of `Event`s. It ends after [`Event::Revoked`]
/// and when `stop` is cancelled.
pub fn body(
    node: NodeId,
    receiver: broadcast::Receiver<(Audience, Event)>,
    standing: impl Standing,
    stop: CancellationToken,
) -> Body {
    let mut alive = tokio::time::interval_at(Instant::now() + ALIVE, ALIVE);
    alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The first frame goes out at once, so that the agent sees that the stream stands.
    let state = Some((receiver, alive, Some(Event::Alive)));
    let standing = std::sync::Arc::new(standing);
    Body::from_stream(stream::unfold(state, move |state| {
        let (standing, stop) = (standing.clone(), stop.clone());
        async move {
            let (mut receiver, mut alive, first) = state?;
            let event = match first {
                Some(event) => event,
                None => tokio::select! {
                    () = stop.cancelled() => return None,
                    event = next(&mut receiver, node, &*standing) => event,
                    _ = alive.tick() => Event::Alive,
                },
            };
            let last = matches!(event, Event::Revoked(_));
            let frame = frame(&event)?;
            Some((Ok::<_, std::convert::Infallible>(frame), (!last).then_some((receiver, alive, None))))
        }
    }))
}

/// The next event for this node.
async fn next(receiver: &mut broadcast::Receiver<(Audience, Event)>, node: NodeId, standing: &impl Standing) -> Event {
    loop {
        match receiver.recv().await {
            Ok((audience, event)) => {
                let ours = match &audience {
                    Audience::Node(id) => *id == node,
                    Audience::All => true,
                };
                if ours {
                    return event;
                }
            }
            // Events were lost on a slow stream: a revocation may be among them, anything else is
            // covered by attesting.
            Err(broadcast::error::RecvError::Lagged(_)) => {
                return match standing.check().await {
                    Ok(()) => Event::Attest,
                    Err(refusal) => Event::Revoked(refusal),
                };
            }
            // The hub lives as long as the server; nothing more will come.
            Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
        }
    }
}

/// An event after its length.
fn frame(event: &Event) -> Option<Bytes> {
    let body = protocol::encode(event).ok()?;
    let length = u32::try_from(body.len()).ok()?;
    Some(Bytes::from([length.to_be_bytes().as_slice(), body.as_slice()].concat()))
}
