//! Tokens that are used outside their job, for who enforces policy on them.

use std::collections::BTreeMap;

use super::{Verified, refuse};
use crate::clock::WallTime;
use crate::codes::{self, Refusal};

/// Who shows a token: a user of a node, by whatever names them there.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Presenter {
    /// The node.
    pub node: String,
    /// The user on it.
    pub uid: u32,
}

/// Remembers who showed each token that is bound to one task, until the token's end. A task runs as one
/// user on one node, so whoever else shows its token has it from somewhere it shouldn't be.
#[derive(Debug, Default)]
pub struct ReuseWatch {
    seen: BTreeMap<String, (Presenter, WallTime)>,
}

impl ReuseWatch {
    /// The most tokens that are remembered; beyond it those that end first are forgotten.
    const MOST: usize = 65_536;

    /// Notes that `by` shows `token`. Tokens without a task may be shown by all of a workload's processes.
    ///
    /// # Errors
    /// [`codes::TOKEN_REUSED`] when somebody else showed it before.
    pub fn seen(&mut self, token: &Verified, by: &Presenter, now: WallTime) -> Result<(), Refusal> {
        if token.task().is_none() {
            return Ok(());
        }
        if let Some((first, _)) = self.seen.get(token.jti()) {
            if first == by {
                return Ok(());
            }
            return Err(refuse(codes::TOKEN_REUSED, format!("uid {} of node {}", by.uid, by.node))
                .at(token.jti())
                .expected(format!("uid {} of node {}, as before", first.uid, first.node)));
        }
        if self.seen.len() >= Self::MOST {
            self.seen.retain(|_, (_, until)| *until > now);
        }
        if self.seen.len() >= Self::MOST
            && let Some(first) = self.seen.iter().min_by_key(|(_, (_, until))| *until).map(|(jti, _)| jti.clone())
        {
            self.seen.remove(&first);
        }
        self.seen.insert(token.jti().to_owned(), (by.clone(), token.expires()));
        Ok(())
    }
}
