//! JWT-SVIDs as the agent holds them: each for one workload, audience and kind of caller.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use sha2::{Digest, Sha256};

use super::Held;
use crate::clock::BootInstant;
use crate::identity::SpiffeId;
use crate::protocol::{self, CallerClaims};
use crate::secret::Zeroizing;

/// A JWT-SVID. Who has its text may use it: `Debug` doesn't show it.
#[derive(Clone)]
pub struct JwtSvid {
    /// Whose it is.
    pub id: SpiffeId,
    /// The compact form; wiped on drop.
    pub token: Zeroizing<String>,
    /// Its `jti`.
    pub jti: String,
    /// The decision that it was issued by.
    pub decision: String,
}

impl fmt::Debug for JwtSvid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JwtSvid").field("id", &self.id.to_string()).field("jti", &self.jti).finish_non_exhaustive()
    }
}

/// For whom a token was asked. What was decided for one kind of caller is no answer for another.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct TokenFor {
    workload: String,
    audience: BTreeSet<String>,
    caller: [u8; 32],
}

impl TokenFor {
    /// A token of `workload` for `audience`, asked for by a process of which `caller` is true.
    pub fn new(workload: &str, audience: &[String], caller: &CallerClaims) -> Self {
        let caller = Sha256::digest(protocol::encode(caller).unwrap_or_default()).into();
        Self { workload: workload.to_owned(), audience: audience.iter().cloned().collect(), caller }
    }
}

/// The tokens held, in memory only.
#[derive(Debug, Default)]
pub struct Tokens(BTreeMap<TokenFor, Held<JwtSvid>>);

impl Tokens {
    /// The most that are held; beyond it the one that ends first goes.
    const MOST: usize = 4096;

    /// The token for `whom`, unless half of its life is over: then it is time for another.
    pub fn get(&self, whom: &TokenFor, now: BootInstant) -> Option<&Held<JwtSvid>> {
        self.0.get(whom).filter(|held| now < held.half_life())
    }

    /// Holds one.
    pub fn hold(&mut self, whom: TokenFor, token: Held<JwtSvid>, now: BootInstant) {
        if self.0.len() >= Self::MOST {
            self.0.retain(|_, held| now < held.half_life());
        }
        if self.0.len() >= Self::MOST
            && let Some(first) = self.0.iter().min_by_key(|(_, held)| held.until()).map(|(whom, _)| whom.clone())
        {
            self.0.remove(&first);
        }
        self.0.insert(whom, token);
    }

    /// Drops (and so wipes) the tokens of workloads that aren't `kept`.
    pub fn retain(&mut self, kept: impl Fn(&str) -> bool) {
        self.0.retain(|whom, _| kept(&whom.workload));
    }

    /// Drops the one with this `jti`.
    pub fn drop_token(&mut self, jti: &str) {
        self.0.retain(|_, held| held.value().jti != jti);
    }

    /// Drops all.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}
