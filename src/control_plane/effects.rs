//! What a committed change still has to do: nodes hear of it, what is kept beside the store takes it over.

use std::pin::Pin;
use std::sync::Arc;

use super::events::Audience;
use super::policy::standing;
use super::server::Shared;
use super::store::Transaction;
use crate::codes::{self, Refusal};
use crate::protocol::Event;

/// What a committed change still has to do.
#[derive(Debug, Default)]
#[must_use = "a change that isn't carried on isn't felt"]
pub struct Effects {
    /// Events to push.
    pub push: Vec<(Audience, Event)>,
    /// The CAs changed.
    pub ca: bool,
    /// Something was taken away that a restored store would give back.
    pub taken: bool,
    /// The version of a policy bundle that is in force.
    pub policy: Option<u64>,
    /// Everything that is live must be held to the policies in force.
    pub reconsider: bool,
}

impl Effects {
    /// Adds those of a further change. A node is told once, however many changes concern it.
    pub fn join(&mut self, more: Self) {
        for event in more.push {
            if !self.push.contains(&event) {
                self.push.push(event);
            }
        }
        self.taken |= more.taken;
        self.ca |= more.ca;
        self.policy = self.policy.max(more.policy);
        self.reconsider |= more.reconsider;
    }

    /// The last thing in the transaction: a store that is older than what was taken away must be noticed.
    ///
    /// # Errors
    /// [`crate::codes::STORE_FAILED`].
    pub fn seal(self, tx: &Transaction<'_>, shared: &Shared) -> Result<Self, Refusal> {
        if self.taken {
            shared.generation.advance(tx)?;
        }
        Ok(self)
    }

    /// To be called once the transaction stands. It goes on if whoever asked for it doesn't wait.
    ///
    /// # Errors
    /// [`crate::codes::STORE_FAILED`]; what could be done was done.
    pub async fn carry_out(self, shared: &Arc<Shared>) -> Result<(), Refusal> {
        let carried = tokio::spawn(self.carried(shared.clone()));
        let failed = |e| Refusal::new(codes::STORE_FAILED, format!("BUG: it ended early: {e}"));
        carried.await.map_err(failed)?
    }

    // A type of its own: to hold what is live to new policies has effects, too.
    fn carried(self, shared: Arc<Shared>) -> Pin<Box<dyn Future<Output = Result<(), Refusal>> + Send>> {
        Box::pin(async move {
            // Nodes first: they should hear of it before anything else can fail.
            for (audience, event) in self.push {
                shared.hub.push(audience, event);
            }
            // One that fails doesn't keep the others from being done.
            let floor = self.policy.map_or(Ok(()), |version| shared.bundles.floor.raise(version));
            let ca = if self.ca { shared.ca_changed().await } else { Ok(()) };
            let witness = if self.taken { witness(&shared).await } else { Ok(()) };
            let held = if self.reconsider { standing::reconsider_all(&shared).await } else { Ok(()) };
            floor.and(ca).and(witness).and(held)
        })
    }
}

async fn witness(shared: &Arc<Shared>) -> Result<(), Refusal> {
    let of_work = shared.clone();
    shared.store.transaction(move |tx| of_work.generation.witness(tx)).await
}
