//! The events pushed to nodes: one hub, any number of streams.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::{Body, Bytes};
use futures_util::stream;
use tokio::sync::mpsc;
use tokio::time::{Instant, Interval, MissedTickBehavior};

use crate::codes::Refusal;
use crate::identity::NodeId;
use crate::protocol::{self, Event};
use crate::shutdown::CancellationToken;

/// How often a stream says that it is alive.
pub const ALIVE: Duration = Duration::from_secs(5);
/// Events that wait for one stream; a slower one is told afresh.
const WAITING: usize = 64;

/// Whom an event is for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Audience {
    /// One node.
    Node(NodeId),
    /// Every node.
    All,
}

/// Sends events to the streams of nodes. An event goes to the queues of its node's streams and no others, so
/// that telling a thousand nodes something each costs a thousand times one.
#[derive(Clone, Debug, Default)]
pub struct Hub {
    streams: Arc<Mutex<BTreeMap<NodeId, Vec<Line>>>>,
    last: Arc<AtomicU64>,
}

/// The near end of one stream.
#[derive(Debug)]
struct Line {
    id: u64,
    sender: mpsc::Sender<Event>,
    lost: Arc<AtomicBool>,
}

/// The far end: what one stream reads.
#[derive(Debug)]
pub struct Receiver {
    hub: Hub,
    node: NodeId,
    id: u64,
    events: mpsc::Receiver<Event>,
    lost: Arc<AtomicBool>,
}

impl Hub {
    /// Sends `event` to every open stream of `audience`. Nobody listening is no error: a node
    /// without a stream hears of it when it attests.
    pub fn push(&self, audience: Audience, event: Event) {
        let streams = self.streams();
        let lines: Vec<&Line> = match &audience {
            Audience::Node(node) => streams.get(node).into_iter().flatten().collect(),
            Audience::All => streams.values().flatten().collect(),
        };
        for line in lines {
            if line.sender.try_send(event.clone()).is_err() {
                line.lost.store(true, Ordering::Release);
            }
        }
    }

    /// Subscribes for a node; to be done before the node's state is read, so that nothing falls in between.
    pub fn subscribe(&self, node: NodeId) -> Receiver {
        let (sender, events) = mpsc::channel(WAITING);
        let (id, lost) = (self.last.fetch_add(1, Ordering::Relaxed), Arc::new(AtomicBool::new(false)));
        self.streams().entry(node).or_default().push(Line { id, sender, lost: lost.clone() });
        Receiver { hub: self.clone(), node, id, events, lost }
    }

    /// Whether the node has an open stream. A connection that broke without a word counts for up to 30 s more.
    pub fn is_open(&self, node: NodeId) -> bool {
        self.streams().contains_key(&node)
    }

    fn streams(&self) -> MutexGuard<'_, BTreeMap<NodeId, Vec<Line>>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let mut streams = self.hub.streams();
        if let Some(lines) = streams.get_mut(&self.node) {
            lines.retain(|line| line.id != self.id);
            if lines.is_empty() {
                streams.remove(&self.node);
            }
        }
    }
}

/// What a stream asks, and whom it tells what it wrote.
pub trait Standing: Send + Sync + 'static {
    /// What the node must be told now, whatever was pushed before; or why it is to be dropped.
    fn check(&self) -> impl Future<Output = Result<Vec<Event>, Refusal>> + Send;

    /// An event was written to the stream.
    fn written(&self, event: &Event);
}

/// The body of `GET /v1/events` for a node: frames of `Event`s, `first` before all others. It ends after
/// [`Event::Revoked`] and when `stop` is cancelled.
pub fn body(receiver: Receiver, first: Vec<Event>, standing: impl Standing, stop: CancellationToken) -> Body {
    let mut alive = tokio::time::interval_at(Instant::now() + ALIVE, ALIVE);
    alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The first frame goes out at once, so that the agent sees that the stream stands.
    let waiting = std::iter::once(Event::Alive).chain(first).collect();
    let open = Open { receiver, alive, waiting, standing, stop };
    Body::from_stream(stream::unfold(Some(open), async |open| {
        let mut open = open?;
        let event = open.next().await?;
        let last = matches!(event, Event::Revoked(_));
        let frame = frame(&event)?;
        open.standing.written(&event);
        Some((Ok::<_, std::convert::Infallible>(frame), (!last).then_some(open)))
    }))
}

struct Open<S> {
    receiver: Receiver,
    alive: Interval,
    /// What goes out before anything that is pushed.
    waiting: VecDeque<Event>,
    standing: S,
    stop: CancellationToken,
}

impl<S: Standing> Open<S> {
    /// The next event; none when the server stops.
    async fn next(&mut self) -> Option<Event> {
        // Events were lost on a slow stream: what the node must be told is read afresh, and anything
        // else is covered by attesting.
        if self.receiver.lost.swap(false, Ordering::AcqRel) {
            match self.standing.check().await {
                Ok(events) => self.waiting.extend(events.into_iter().chain([Event::Attest])),
                Err(refusal) => self.waiting.push_front(Event::Revoked(refusal)),
            }
        }
        if let Some(event) = self.waiting.pop_front() {
            return Some(event);
        }
        tokio::select! {
            () = self.stop.cancelled() => None,
            event = self.receiver.events.recv() => event,
            _ = self.alive.tick() => Some(Event::Alive),
        }
    }
}

/// An event after its length.
fn frame(event: &Event) -> Option<Bytes> {
    let body = protocol::encode(event).ok()?;
    let length = u32::try_from(body.len()).ok()?;
    Some(Bytes::from([length.to_be_bytes().as_slice(), body.as_slice()].concat()))
}
