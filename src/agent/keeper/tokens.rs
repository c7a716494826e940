//! JWT-SVIDs: asked for when a process asks, held until half of their life is over, released as all
//! else is; and judged, when a process shows one.

use std::collections::BTreeSet;
use std::sync::OnceLock;
use std::time::Duration;

use tokio::sync::{Semaphore, watch};

use super::matching::Matched;
use super::{Asked, Keeper, Registered, denied, starting};
use crate::agent::journal::{Note, What};
use crate::clock::{BootInstant, WallTime};
use crate::codes::{self, Refusal};
use crate::credentials::token::{Verified, jwks};
use crate::credentials::{Held, JwtSvid, TokenFor};
use crate::delivery::workload_api::{Denied, JwtAsked, JwtBundles, JwtContext, JwtItem, Unaccepted};
use crate::gate::Released;
use crate::protocol::{CallerClaims, Enrolled, Failure, GrantAnswer, GrantRequest};
use crate::secret::{Zeroizing, random};
use crate::workload::Peer;

/// How long a process waits for the control plane, before it is told to try again.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a process waits for an attestation: it brings the present lease, or the bundle with the key
/// that signed a token.
const RENEWAL: Duration = Duration::from_secs(2);
/// Requests under way at one time: local processes can't make the node flood its control plane.
const UNDER_WAY: usize = 8;

/// The way to the control plane.
#[derive(Debug)]
pub(super) struct Grants {
    client: OnceLock<watch::Receiver<Option<Enrolled>>>,
    turns: Semaphore,
}

impl Default for Grants {
    fn default() -> Self {
        Self { client: OnceLock::new(), turns: Semaphore::new(UNDER_WAY) }
    }
}

impl Keeper {
    /// Says where tokens are asked for.
    pub fn connect(&self, client: watch::Receiver<Option<Enrolled>>) {
        // Once, at the start; there is no other control plane.
        let _ = self.grants.client.set(client);
    }

    pub(super) async fn release_jwt(
        &self,
        peer: &Peer,
        arrived: BootInstant,
        asked: &JwtAsked,
    ) -> Result<Released<JwtContext>, Denied> {
        // The gate first, then who is asking, as for a certificate.
        if let Some(reason) = self.holdings().gate.reason() {
            return Err(denied(reason));
        }
        let (entitled, caller) = self.entitled(peer, asked).await?;
        let mut refused = None;
        let mut granted = BTreeSet::new();
        for entry in &entitled {
            match self.provide(&entry.id, &asked.audience, &caller).await {
                Ok(()) => drop(granted.insert(entry.id.clone())),
                Err(Denied::NoIdentity(refusal)) => drop(refused.get_or_insert(refusal)),
                Err(other) => return Err(other),
            }
        }
        if granted.is_empty() {
            return Err(refused.map_or_else(starting, Denied::NoIdentity));
        }
        // After the control plane's answer, which took its time: what is read now is what counts.
        let permit = self.permit(arrived).await?;
        let (again, caller_again) = self.entitled(peer, asked).await?;
        if caller_again != caller {
            let refusal = Refusal::new(codes::WORKLOAD_PEER_CHANGED, "it isn't what was decided about any more");
            return Err(Denied::Unavailable(refusal));
        }
        // Whoever takes something back waits for this answer, as for an open stream.
        let _follows = self.changes.follow();
        let (released, notes, asked_at) = {
            let holdings = self.holdings();
            let lease = permit.lease_sequence();
            if holdings.gate.lease().map(|lease| lease.claims().sequence) < Some(lease) {
                return Err(holdings.gate.reason().map_or_else(starting, denied));
            }
            let now = BootInstant::now();
            let again: Vec<&Registered> = again.iter().filter(|entry| granted.contains(&entry.id)).collect();
            let held: Option<Vec<_>> = again
                .iter()
                .map(|entry| holdings.store.token(&TokenFor::new(&entry.id, &asked.audience, &caller), now))
                .collect();
            // Withdrawn since it came, or not held any more.
            let held = held.filter(|held| !held.is_empty()).ok_or_else(starting)?;
            let released = permit.release(&held, now).map_err(|reason| denied(&reason))?;
            if released.get().len() < held.len() {
                return Err(starting());
            }
            let notes: Vec<Note> = released.get().iter().map(|svid| released_note(svid, lease, peer)).collect();
            let hints: Vec<String> = again.iter().map(|entry| entry.hint.clone()).collect();
            let released = released.map(|svids| JwtContext {
                svids: svids.into_iter().zip(hints).map(|(svid, hint)| item(svid, hint)).collect(),
            });
            (released, notes, holdings.asks())
        };
        for note in &notes {
            self.journal.write(note.clone()).await.map_err(Denied::Unavailable)?;
        }
        // The disk took its time, too.
        for note in &notes {
            let (workload, jti) = (note.workload.as_deref().unwrap_or_default(), note.credential.as_deref());
            self.unchanged_since(asked_at, workload, jti)?;
        }
        Ok(released)
    }

    pub(super) async fn release_jwt_bundles(
        &self,
        peer: &Peer,
        arrived: BootInstant,
    ) -> Result<Released<JwtBundles>, Denied> {
        self.matching(peer).await?;
        let permit = self.permit(arrived).await?;
        let holdings = self.holdings();
        let Some(lease) = holdings.gate.lease() else {
            return Err(holdings.gate.reason().map_or_else(starting, denied));
        };
        let keys = Held::new(jwks(holdings.store.jwt_keys()), arrived, lease.ends_at());
        let trust_domain = self.trust_domain.id_string();
        let released = permit.release(&[&keys], BootInstant::now()).map_err(|reason| denied(&reason))?;
        Ok(released.map(|mut keys| JwtBundles(keys.pop().map(|keys| (trust_domain, keys)).into_iter().collect())))
    }

    /// Judges a token that a process shows. Nothing secret leaves by that, so the gate's standing is
    /// enough, without a reading of its own.
    pub(super) async fn judge_token(&self, peer: &Peer, audience: &str, token: &str) -> Result<Verified, Unaccepted> {
        if let Some(reason) = self.holdings().gate.reason() {
            return Err(denied(reason).into());
        }
        self.matching(peer).await?;
        let token = self.verified(token, audience)?.map_err(Unaccepted::Invalid)?;
        // What was taken back of this node's own; of others' an enforcement point asks the list of denied ids.
        if let Some(refusal) = self.crossed(self.mark(), "", Some(token.jti()), None) {
            let denied = Refusal::new(codes::TOKEN_DENIED, refusal.to_string()).at(token.jti());
            return Err(Unaccepted::Invalid(denied));
        }
        let text = |name: &str| token.claims().get(name).and_then(|value| value.as_str()).map(str::to_owned);
        let note = Note {
            what: What::Use { uid: peer.uid() },
            workload: Some(token.id().to_string()),
            credential: Some(token.jti().to_owned()),
            decision: text("decision"),
            task: token.task().map(str::to_owned),
            lease: self.sequence().map(|(sequence, _)| sequence),
            process: peer.described(),
            code: None,
            reason: format!("shown to {audience}"),
        };
        self.journal.write(note).await.map_err(Denied::Unavailable)?;
        Ok(token)
    }

    /// What the process may ask for, and what is known of it.
    async fn entitled(&self, peer: &Peer, asked: &JwtAsked) -> Result<(Vec<Registered>, CallerClaims), Denied> {
        let Matched { workloads: mut matching, observed } = self.matching(peer).await?;
        if let Some(id) = &asked.id {
            let id = id.to_string();
            matching.retain(|entry| entry.id == id);
            if matching.is_empty() {
                let refusal = Refusal::new(codes::WORKLOAD_NO_MATCH, format!("{peer} isn't {id}"))
                    .expected("an identity whose selectors the process matches");
                return Err(Denied::NoIdentity(refusal));
            }
        }
        Ok((matching, observed.claims()))
    }

    /// Sees to it that a token is held: one from before, or a new one.
    async fn provide(&self, id: &str, audience: &[String], caller: &CallerClaims) -> Result<(), Denied> {
        let whom = TokenFor::new(id, audience, caller);
        let held = || self.holdings().store.token(&whom, BootInstant::now()).is_some();
        if held() {
            return Ok(());
        }
        let Ok(Ok(_turn)) = tokio::time::timeout(PATIENCE, self.grants.turns.acquire()).await else {
            return Err(away("too many requests wait for the control plane"));
        };
        // Whoever was before may have asked for the same.
        if held() {
            return Ok(());
        }
        let asks = self.asks();
        let (answer, asked_at, lease_end) = self.ask(id, audience, caller).await?;
        if let Some(refusal) = answer.refusal {
            return Err(Denied::NoIdentity(refusal));
        }
        let until = asked_at.after(Duration::from_secs(answer.term_seconds)).min(lease_end);
        let svid = self.accepted(answer, id, audience).await?;
        // It may have crossed on its way what takes it back.
        self.unchanged_since(asks, id, Some(&svid.jti))?;
        let mut holdings = self.holdings();
        holdings.store.hold_token(whom, Held::new(svid, asked_at, until), BootInstant::now());
        Ok(())
    }

    /// Asks the control plane for a token, under the present lease, and says when and until when that is. A
    /// lease that is renewed on its way is waited for.
    async fn ask(
        &self,
        id: &str,
        audience: &[String],
        caller: &CallerClaims,
    ) -> Result<(GrantAnswer, BootInstant, BootInstant), Denied> {
        let client = self.grants.client.get().and_then(|client| client.borrow().clone());
        let client = client.ok_or_else(|| away("the node isn't connected yet"))?;
        let since = BootInstant::now();
        let mut changes = self.changes.follow();
        loop {
            changes.dealt_with();
            let Some((sequence, lease_end)) = self.sequence() else {
                return Err(self.holdings().gate.reason().map_or_else(starting, denied));
            };
            let request_id = random().map_err(|e| away(&e.to_string()))?;
            let request = GrantRequest {
                request_id,
                lease_sequence: sequence,
                workload: id.to_owned(),
                caller: caller.clone(),
                task: None,
                csr: None,
                audience: audience.to_vec(),
                destination: None,
                details: Vec::new(),
            };
            let asked_at = BootInstant::now();
            let failure = match tokio::time::timeout(PATIENCE, client.leased(sequence).grant(&request)).await {
                Ok(Ok(answer)) => return Ok((answer, asked_at, lease_end)),
                Ok(Err(failure)) => failure,
                Err(_) => return Err(away("the control plane doesn't answer in time")),
            };
            let refused = ungranted(&failure);
            if !lease_is_over(&failure) {
                return Err(refused);
            }
            // Another lease was granted meanwhile, or only an attestation brings one.
            self.grown.notify_one();
            while self.sequence().is_none_or(|(present, _)| present == sequence) {
                let left = RENEWAL.saturating_sub(BootInstant::now().since(since));
                if left.is_zero() || tokio::time::timeout(left, changes.changed()).await.is_err() {
                    return Err(refused);
                }
                changes.dealt_with();
            }
        }
    }

    /// The token of an answer, if it is the one asked for and whoever has our bundle can verify it.
    async fn accepted(&self, answer: GrantAnswer, id: &str, audience: &[String]) -> Result<JwtSvid, Denied> {
        let token = Zeroizing::new(answer.token);
        let first = audience.first().map_or("", String::as_str);
        let mut changes = self.changes.follow();
        let since = BootInstant::now();
        loop {
            changes.dealt_with();
            match self.verified(&token, first)? {
                Ok(read) => {
                    let asked: BTreeSet<&String> = audience.iter().collect();
                    if read.id().to_string() != id || read.audience().iter().collect::<BTreeSet<_>>() != asked {
                        let refusal = Refusal::new(codes::TOKEN_MALFORMED, "the token isn't the one asked for");
                        return Err(Denied::Unavailable(refusal.at(id)));
                    }
                    let decision = read.claims().get("decision").and_then(|value| value.as_str());
                    let decision = decision.unwrap_or(&answer.decision).to_owned();
                    return Ok(JwtSvid { id: read.id().clone(), token, jti: read.jti().to_owned(), decision });
                }
                // Signed by a key that was rotated in since the last attestation: the next one brings it.
                Err(refusal) if refusal.code == codes::TOKEN_SIGNATURE => {
                    self.grown.notify_one();
                    let left = RENEWAL.saturating_sub(BootInstant::now().since(since));
                    if left.is_zero() || tokio::time::timeout(left, changes.changed()).await.is_err() {
                        let refusal = Refusal { code: codes::ISSUER_BUNDLE, ..refusal };
                        return Err(Denied::Unavailable(refusal));
                    }
                }
                Err(refusal) => return Err(Denied::Unavailable(refusal)),
            }
        }
    }

    /// Reads a token by the bundle and the time of the present lease. The time is the control plane's,
    /// counted on from the lease: a node's own wall clock may say anything.
    fn verified(&self, token: &str, audience: &str) -> Result<Result<Verified, Refusal>, Denied> {
        let holdings = self.holdings();
        let Some(lease) = holdings.gate.lease() else {
            return Err(holdings.gate.reason().map_or_else(starting, denied));
        };
        let claims = lease.claims();
        // Rounded up: rather a second early than a second late.
        let passed = BootInstant::now().since(claims.requested_at) + Duration::from_millis(999);
        let now: WallTime = claims.issued_at.after(passed);
        Ok(Verified::read(token, audience, &holdings.token_keys, &self.trust_domain, now))
    }

    /// Whether a credential that was asked for, or found, at `asked` may still be had.
    fn unchanged_since(&self, asked: Asked, workload: &str, credential: Option<&str>) -> Result<(), Denied> {
        let holdings = self.holdings();
        if let Some(reason) = holdings.gate.reason() {
            return Err(denied(reason));
        }
        match holdings.taken.crossed(asked.mark, workload, credential, None) {
            Some(refusal) => Err(Denied::NoIdentity(refusal)),
            None if holdings.withdrawals != asked.withdrawals => Err(starting()),
            None => Ok(()),
        }
    }
}

/// Whether the control plane says that the lease isn't the present one any more.
fn lease_is_over(failure: &Failure) -> bool {
    let over = matches!(failure.refusal().code, codes::ISSUER_NO_LEASE | codes::PROTOCOL_EPOCH);
    over && matches!(failure, Failure::Refused(_))
}

/// What it means for a process that the control plane gave no answer to its request.
fn ungranted(failure: &Failure) -> Denied {
    let refusal = failure.refusal().clone();
    match (failure, refusal.code) {
        (Failure::Refused(_), codes::ENROL_REVOKED | codes::GATE_REVOKED) => Denied::NoIdentity(refusal),
        _ => Denied::Unavailable(refusal),
    }
}

fn away(found: &str) -> Denied {
    Denied::Unavailable(Refusal::new(codes::PROTOCOL_UNREACHABLE, found))
}

fn released_note(svid: &JwtSvid, lease: u64, peer: &Peer) -> Note {
    Note {
        what: What::Release,
        workload: Some(svid.id.to_string()),
        credential: Some(svid.jti.clone()),
        decision: Some(svid.decision.clone()),
        task: None,
        lease: Some(lease),
        process: peer.described(),
        code: None,
        reason: String::new(),
    }
}

fn item(svid: JwtSvid, hint: String) -> JwtItem {
    JwtItem { spiffe_id: svid.id.to_string(), token: svid.token, hint }
}
