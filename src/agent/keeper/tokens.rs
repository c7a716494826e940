//! JWT-SVIDs: asked for when a process asks, held until half of their life is over, released as all
//! else is; and judged, when a process shows one.

use std::collections::BTreeSet;

use super::granting::Wanted;
use super::matching::Matched;
use super::release::{Chosen, all};
use super::{Holdings, Keeper, Registered, denied, starting};
use crate::agent::journal::{Note, What};
use crate::clock::BootInstant;
use crate::codes::{self, Refusal};
use crate::credentials::token::{Verified, jwks};
use crate::credentials::{Held, JwtSvid, TokenFor};
use crate::delivery::workload_api::{Denied, JwtAsked, JwtBundles, JwtContext, JwtItem, Unaccepted};
use crate::gate::Released;
use crate::protocol::CallerClaims;
use crate::workload::Peer;

impl Keeper {
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
        let matched = self.matching(peer).await?;
        let caller = matched.observed.claims();
        let mut refused = None;
        let mut granted = BTreeSet::new();
        for entry in entitled(peer, &matched, asked)? {
            match self.provide(&entry.id, &asked.audience, &caller).await {
                Ok(()) => drop(granted.insert(entry.id.clone())),
                Err(Denied::NoIdentity(refusal)) => drop(refused.get_or_insert(refusal)),
                Err(other) => return Err(other),
            }
        }
        if granted.is_empty() {
            return Err(refused.map_or_else(starting, Denied::NoIdentity));
        }
        // After the control plane's answer, which took its time: what is true now is what counts. A token was
        // decided for what the process was; as something else it has none.
        let whom = |id: &str| TokenFor::new(id, &asked.audience, &caller);
        let choose = |holdings: &Holdings, matched: &Matched| {
            if matched.observed.claims() != caller {
                let refusal = Refusal::new(codes::WORKLOAD_PEER_CHANGED, "it isn't what was decided about any more");
                return Err(Denied::Unavailable(refusal));
            }
            let now = BootInstant::now();
            let entries = entitled(peer, matched, asked)?.into_iter().filter(|entry| granted.contains(&entry.id));
            let chosen = entries.map(|entry| {
                let svid = holdings.store.token(&whom(&entry.id), now)?.value();
                let (workload, credential) = (entry.id.clone(), svid.jti.clone());
                Some(Chosen { workload, credential, decision: svid.decision.clone(), task: None })
            });
            // Withdrawn since it came, or not held any more.
            chosen.collect::<Option<Vec<_>>>().filter(|chosen| !chosen.is_empty()).ok_or_else(starting)
        };
        self.release(peer, arrived, choose, |holdings, chosen, permit| {
            let now = BootInstant::now();
            let held = chosen.iter().map(|one| {
                holdings.store.token(&whom(&one.workload), now).filter(|held| held.value().jti == one.credential)
            });
            let Some(held) = held.collect::<Option<Vec<_>>>() else { return Ok(None) };
            let Some(released) = all(permit, &held)? else { return Ok(None) };
            Ok(Some(released.map(|svids| JwtContext {
                svids: svids.into_iter().map(|svid| item(holdings.hint(&svid.id.to_string()), svid)).collect(),
            })))
        })
        .await
    }

    pub(super) async fn release_jwt_bundles(
        &self,
        peer: &Peer,
        arrived: BootInstant,
    ) -> Result<Released<JwtBundles>, Denied> {
        self.matching(peer).await?;
        let permit = self.permit(arrived).await?;
        let holdings = self.holdings();
        let Some(lease) = holdings.gate.lease() else { return Err(holdings.closed()) };
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
        let (token, _) = self.verified(token, audience)?.map_err(Unaccepted::Invalid)?;
        self.standing(&token)?;
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
        // The disk may have taken its time.
        self.standing(&token)?;
        Ok(token)
    }

    /// Whether the gate is open, and the token none that was taken back of this node's own; of others' an enforcement
    /// point asks the list of denied ids.
    fn standing(&self, token: &Verified) -> Result<(), Unaccepted> {
        let holdings = self.holdings();
        if let Some(reason) = holdings.gate.reason() {
            return Err(denied(reason).into());
        }
        match holdings.denied_token(&token.id().to_string(), token.jti()) {
            None => Ok(()),
            Some(refusal) => {
                let denied = Refusal::new(codes::TOKEN_DENIED, refusal.to_string()).at(token.jti());
                Err(Unaccepted::Invalid(denied))
            }
        }
    }

    /// Sees to it that a token is held: one from before, or a new one.
    async fn provide(&self, id: &str, audience: &[String], caller: &CallerClaims) -> Result<(), Denied> {
        let whom = TokenFor::new(id, audience, caller);
        let held = || self.holdings().store.token(&whom, BootInstant::now()).is_some();
        if held() {
            return Ok(());
        }
        let turn = self.turn(caller.uid).await?;
        // Whoever was before may have asked for the same.
        if held() {
            return Ok(());
        }
        let wanted = Wanted {
            workload: id.to_owned(),
            caller: caller.clone(),
            task: None,
            x509: false,
            audience: audience.to_vec(),
            destination: None,
            details: Vec::new(),
        };
        let granted = self.grant(&wanted, turn, |holdings, granted| {
            let (issued, until) = (granted.issued(), granted.until());
            if let Some(token) = granted.value().token.clone() {
                holdings.store.hold_token(whom.clone(), Held::new(token, issued, until), BootInstant::now());
            }
        });
        granted.await.map_err(|ungiven| ungiven.why)
    }
}

/// What the process may ask for.
fn entitled<'a>(peer: &Peer, matched: &'a Matched, asked: &JwtAsked) -> Result<Vec<&'a Registered>, Denied> {
    let Some(id) = &asked.id else { return Ok(matched.workloads.iter().collect()) };
    let id = id.to_string();
    let entitled: Vec<_> = matched.workloads.iter().filter(|entry| entry.id == id).collect();
    if entitled.is_empty() {
        let refusal = Refusal::new(codes::WORKLOAD_NO_MATCH, format!("{peer} isn't {id}"))
            .expected("an identity whose selectors the process matches");
        return Err(Denied::NoIdentity(refusal));
    }
    Ok(entitled)
}

fn item(hint: String, svid: JwtSvid) -> JwtItem {
    JwtItem { spiffe_id: svid.id.to_string(), token: svid.token, hint }
}
