//! What the agent holds, by SPIFFE ID. In memory only.

use std::collections::BTreeMap;

use super::{Held, JwtSvid, TokenFor, Tokens, X509Svid};
use crate::clock::BootInstant;
use crate::protocol::{Entry, JwtKey};

/// The workloads registered for this node and the SVIDs held for them.
#[derive(Debug, Default)]
pub struct Store {
    entries: Vec<Entry>,
    svids: BTreeMap<String, Held<X509Svid>>,
    tokens: Tokens,
    bundle: Vec<Vec<u8>>,
    jwt_keys: Vec<JwtKey>,
}

impl Store {
    /// Replaces the registrations. What is no longer registered, or for another owner, purpose or
    /// process than it was issued for, is dropped (and so wiped) at once. Returns whether anything changed.
    pub fn register(&mut self, entries: Vec<Entry>) -> bool {
        if self.entries == entries {
            return false;
        }
        let before = &self.entries;
        let stands = |id: &str| {
            let of = |all: &[Entry]| all.iter().find(|entry| entry.id == id).map(scope);
            of(&entries).is_some_and(|now| of(before) == Some(now))
        };
        self.svids.retain(|id, _| stands(id));
        // A registration that changed in anything is decided about anew.
        let before = std::mem::take(&mut self.entries);
        self.tokens.retain(|id| entries.iter().any(|entry| entry.id == id && before.contains(entry)));
        self.entries = entries;
        true
    }

    /// Replaces the trust domain's CA certificates (DER). Returns whether they changed.
    pub fn trust(&mut self, bundle: Vec<Vec<u8>>) -> bool {
        let changed = self.bundle != bundle;
        if changed {
            // A CA that left the bundle takes along what it signed.
            self.svids.retain(|_, held| held.value().leads_to(&bundle));
        }
        self.bundle = bundle;
        changed
    }

    /// Replaces the keys for JWT-SVIDs. Returns whether they changed.
    pub fn trust_tokens(&mut self, keys: Vec<JwtKey>) -> bool {
        let changed = self.jwt_keys != keys;
        if self.jwt_keys.iter().any(|key| !keys.contains(key)) {
            // So does a key for tokens; they are asked for again by whoever needs one.
            self.tokens.clear();
        }
        self.jwt_keys = keys;
        changed
    }

    /// Holds `svid`, if its workload is still registered.
    pub fn hold(&mut self, svid: Held<X509Svid>) {
        let id = svid.value().id.to_string();
        if self.entries.iter().any(|entry| entry.id == id) {
            self.svids.insert(id, svid);
        }
    }

    /// Drops one SVID; gives back its serial number.
    pub fn drop_svid(&mut self, id: &str) -> Option<String> {
        self.svids.remove(id).map(|held| held.value().serial.clone())
    }

    /// The workloads with an SVID, and its serial number.
    pub fn serials(&self) -> Vec<(String, String)> {
        self.svids.iter().map(|(id, held)| (id.clone(), held.value().serial.clone())).collect()
    }

    /// Holds a token, if its workload is still registered.
    pub fn hold_token(&mut self, whom: TokenFor, token: Held<JwtSvid>, now: BootInstant) {
        let id = token.value().id.to_string();
        if self.entries.iter().any(|entry| entry.id == id) {
            self.tokens.hold(whom, token, now);
        }
    }

    /// The token for `whom`, before half of its life is over.
    pub fn token(&self, whom: &TokenFor, now: BootInstant) -> Option<&Held<JwtSvid>> {
        self.tokens.get(whom, now)
    }

    /// Drops the tokens of a workload.
    pub fn drop_tokens(&mut self, id: &str) {
        self.tokens.retain(|workload| workload != id);
    }

    /// Drops the token with this `jti`.
    pub fn drop_token(&mut self, jti: &str) {
        self.tokens.drop_token(jti);
    }

    /// Drops every SVID and every token.
    pub fn clear(&mut self) {
        self.svids.clear();
        self.tokens.clear();
    }

    /// The registered workloads.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The CA certificates, DER.
    pub fn bundle(&self) -> &[Vec<u8>] {
        &self.bundle
    }

    /// The keys for JWT-SVIDs.
    pub fn jwt_keys(&self) -> &[JwtKey] {
        &self.jwt_keys
    }

    /// The SVID held for `id`.
    pub fn svid(&self, id: &str) -> Option<&Held<X509Svid>> {
        self.svids.get(id)
    }

    /// The workloads without an SVID, or with one past half its life at `now`.
    pub fn due(&self, now: BootInstant) -> Vec<String> {
        self.entries
            .iter()
            .filter(|entry| self.svids.get(&entry.id).is_none_or(|held| held.half_life() <= now))
            .map(|entry| entry.id.clone())
            .collect()
    }

    /// When the next SVID is due.
    pub fn next_due(&self) -> Option<BootInstant> {
        self.svids.values().map(Held::half_life).min()
    }
}

/// What a credential is issued for. A hint is none of it.
fn scope(entry: &Entry) -> (String, String, Vec<String>) {
    (entry.owner.clone(), entry.purpose.clone(), entry.selectors.clone())
}
