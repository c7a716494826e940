//! What a committed change still has to do: nodes hear of it, what is kept beside the store takes it over.

use std::sync::Arc;

use super::events::Audience;
use super::server::Shared;
use super::store::Transaction;
use crate::codes::Refusal;
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
    /// The version of a policy bundle that came into force.
    pub policy: Option<u64>,
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

    /// To be called once the transaction stands.
    ///
    /// # Errors
    /// [`crate::codes::STORE_FAILED`]; what could be done was done.
    pub async fn carry_out(self, shared: &Arc<Shared>) -> Result<(), Refusal> {
        // Nodes first: they should hear of it before anything else can fail.
        for (audience, event) in self.push {
            shared.hub.push(audience, event);
        }
        if let Some(version) = self.policy {
            shared.bundles.floor.raise(version)?;
        }
        if self.ca {
            shared.ca_changed().await?;
        }
        if self.taken {
            let of_work = shared.clone();
            shared.store.transaction(move |tx| of_work.generation.witness(tx)).await?;
        }
        Ok(())
    }
}
