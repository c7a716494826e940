//! What comes in while many nodes are told at once, written a batch at a time.
//!
//! Each acknowledgement is answered after it is on the disk; a hundred that arrive together cost one
//! transaction, not a hundred.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{mpsc, oneshot};

use super::counts::{self, Step};
use crate::clock::BootInstant;
use crate::codes::{self, Refusal};
use crate::control_plane::audit;
use crate::control_plane::authn::{self, Peer};
use crate::control_plane::server::Shared;
use crate::control_plane::store::Transaction;
use crate::identity::NodeId;
use crate::protocol::{self, Noted, WithdrawalsApplied};
use crate::shutdown::CancellationToken;

/// Revocations whose beginning is remembered, to say how long after it each node came.
const REMEMBERED: usize = 256;
/// The most words of one transaction.
const BATCH: usize = 1024;

/// A word of a node, or to one.
#[derive(Debug)]
struct Word {
    node: NodeId,
    numbers: Vec<u64>,
    at: BootInstant,
    /// Who waits for an acknowledgement to be written; `None` for what was told.
    done: Option<oneshot::Sender<Result<(), Refusal>>>,
}

/// Takes words in.
#[derive(Debug)]
pub struct Words {
    sender: mpsc::UnboundedSender<Word>,
    receiver: Mutex<Option<mpsc::UnboundedReceiver<Word>>>,
    began: Mutex<BTreeMap<u64, BootInstant>>,
}

impl Default for Words {
    fn default() -> Self {
        // As many words as nodes are told something: bounded by the streams' queues and by the requests at work.
        let (sender, receiver) = mpsc::unbounded_channel();
        Self { sender, receiver: Mutex::new(Some(receiver)), began: Mutex::default() }
    }
}

impl Words {
    /// Remembers when the command of this revocation came.
    pub fn began(&self, number: u64, at: BootInstant) {
        let mut began = self.began.lock().unwrap_or_else(PoisonError::into_inner);
        began.insert(number, at);
        while began.len() > REMEMBERED {
            began.pop_first();
        }
    }

    /// Milliseconds from the command to `at`, if this process saw it.
    pub fn elapsed(&self, number: u64, at: BootInstant) -> Option<u64> {
        let began = self.began.lock().unwrap_or_else(PoisonError::into_inner);
        began.get(&number).map(|began| u64::try_from(at.since(*began).as_millis()).unwrap_or(u64::MAX))
    }

    /// A withdrawal was written to the node's stream.
    pub fn told(&self, node: NodeId, number: u64) {
        // Nobody writes any more once the server stops; then it is told again after its start.
        let _ = self.sender.send(Word { node, numbers: vec![number], at: BootInstant::now(), done: None });
    }

    /// The node says that it applied these; returns once that is written down.
    ///
    /// # Errors
    /// [`codes::STORE_FAILED`].
    pub async fn acknowledged(&self, node: NodeId, numbers: Vec<u64>) -> Result<(), Refusal> {
        let stopping = || Refusal::new(codes::STORE_FAILED, "the server is stopping");
        let (done, written) = oneshot::channel();
        let word = Word { node, numbers, at: BootInstant::now(), done: Some(done) };
        self.sender.send(word).map_err(|_| stopping())?;
        written.await.unwrap_or_else(|_| Err(stopping()))
    }
}

/// Writes words down until `stop`.
pub async fn write(shared: Arc<Shared>, stop: CancellationToken) {
    let Some(mut receiver) = shared.words.receiver.lock().unwrap_or_else(PoisonError::into_inner).take() else {
        return;
    };
    let mut batch = Vec::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            count = receiver.recv_many(&mut batch, BATCH) => if count == 0 { return },
        }
        let words: Vec<_> =
            batch.iter().map(|word: &Word| (word.node, word.numbers.clone(), word.at, word.done.is_some())).collect();
        let of_work = shared.clone();
        let written = shared.store.transaction(move |tx| {
            words.into_iter().try_for_each(|(node, numbers, at, acknowledged)| {
                let step = if acknowledged { Step::Acknowledged } else { Step::Told };
                numbers.into_iter().try_for_each(|number| note(tx, &of_work, node, number, step, at))
            })
        });
        let written = written.await;
        if let Err(refusal) = &written {
            tracing::error!(%refusal, "what nodes said of withdrawals can't be written");
        }
        for done in batch.drain(..).filter_map(|word| word.done) {
            let _ = done.send(written.clone());
        }
    }
}

/// Takes down what a node says it applied, in the body of its call; a revoked node is heard too.
///
/// # Errors
/// [`codes::PROTOCOL_CLIENT_CERTIFICATE`], [`codes::PROTOCOL_MALFORMED`], [`codes::STORE_FAILED`].
pub async fn hear(shared: &Arc<Shared>, peer: Arc<Peer>, body: &[u8]) -> Result<Vec<u8>, Refusal> {
    /// The most numbers of one call.
    const NUMBERS: usize = 1024;
    let (of_work, now) = (shared.clone(), shared.now());
    let known = shared.store.transaction(move |tx| authn::known(tx, &peer, &of_work.settings.trust_domain, now));
    let node = known.await?;
    let applied: WithdrawalsApplied = protocol::decode(body)?;
    if applied.numbers.len() > NUMBERS {
        let found = format!("{} numbers", applied.numbers.len());
        return Err(Refusal::new(codes::PROTOCOL_MALFORMED, found).expected(format!("at most {NUMBERS}")));
    }
    shared.words.acknowledged(node.id, applied.numbers).await?;
    protocol::encode(&Noted {})
}

/// Notes a step, with a record of what a node claims or has proven.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn note(
    tx: &Transaction<'_>,
    shared: &Shared,
    node: NodeId,
    number: u64,
    step: Step,
    at: BootInstant,
) -> Result<(), Refusal> {
    let now = shared.now();
    let new = counts::note(tx, node, number, step, now, shared.words.elapsed(number, at))?;
    let what = match step {
        Step::Told => return Ok(()),
        Step::Acknowledged => "withdrawal.acknowledged",
        Step::Proven => "withdrawal.proven",
    };
    match new {
        true => audit::done(tx, now, what, Some(node), serde_json::json!({ "revocation": number })),
        false => Ok(()),
    }
}
