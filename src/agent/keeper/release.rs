//! Releases: who is calling, a fresh permit, then what is held for them.

use std::collections::BTreeMap;

use super::{Keeper, denied, starting};
use crate::clock::BootInstant;
use crate::credentials::Held;
use crate::credentials::token::Verified;
use crate::delivery::workload_api::{
    Bundles, Changes, Denied, JwtAsked, JwtBundles, JwtContext, Source, Unaccepted, X509Context, X509Item,
};
use crate::gate::Released;
use crate::telemetry::ByCode;
use crate::workload::Peer;

impl Source for Keeper {
    async fn x509(&self, peer: &Peer, arrived: BootInstant) -> Result<Released<X509Context>, Denied> {
        self.counted(self.release_x509(peer, arrived).await)
    }

    async fn bundles(&self, peer: &Peer, arrived: BootInstant) -> Result<Released<Bundles>, Denied> {
        self.counted(self.release_bundles(peer, arrived).await)
    }

    async fn jwt(&self, peer: &Peer, arrived: BootInstant, asked: &JwtAsked) -> Result<Released<JwtContext>, Denied> {
        self.counted(self.release_jwt(peer, arrived, asked).await)
    }

    async fn jwt_bundles(&self, peer: &Peer, arrived: BootInstant) -> Result<Released<JwtBundles>, Denied> {
        self.counted(self.release_jwt_bundles(peer, arrived).await)
    }

    async fn validate(&self, peer: &Peer, audience: &str, token: &str) -> Result<Verified, Unaccepted> {
        self.judge_token(peer, audience, token).await
    }

    fn changes(&self) -> Changes {
        self.changes.follow()
    }
}

impl Keeper {
    async fn release_x509(&self, peer: &Peer, arrived: BootInstant) -> Result<Released<X509Context>, Denied> {
        // The gate first: while it is closed, that is the answer for everybody.
        if let Some(reason) = self.holdings().gate.reason() {
            return Err(denied(reason));
        }
        // Who is asking, before the TPM is troubled; and again after it answered, since the caller
        // may have become another program meanwhile.
        let matching = self.matching(peer).await?;
        // What is refused needs no reading: a withdrawal ends streams also while the TPM is away.
        if let Some(refusal) = self.holdings().all_refused(&matching.workloads) {
            return Err(Denied::NoIdentity(refusal));
        }
        let permit = self.permit(arrived).await?;
        let matching = self.matching(peer).await?.workloads;
        let holdings = self.holdings();
        if holdings.gate.lease().map(|lease| lease.claims().sequence) < Some(permit.lease_sequence()) {
            // Closed between the judgement and here.
            return Err(holdings.gate.reason().map_or_else(starting, denied));
        }
        let mut held = Vec::new();
        for entry in &matching {
            match (holdings.store.svid(&entry.id), holdings.refused.get(&entry.id)) {
                (Some(svid), _) => held.push(svid),
                // Never a partial answer for one that is merely on its way: an omission is a revocation.
                (None, None) => return Err(starting()),
                (None, Some(_)) => {}
            }
        }
        if held.is_empty() {
            return Err(holdings.all_refused(&matching).map_or_else(starting, Denied::NoIdentity));
        }
        let bundle = holdings.store.bundle().to_vec();
        let hints: BTreeMap<&str, &str> =
            matching.iter().map(|entry| (entry.id.as_str(), entry.hint.as_str())).collect();
        let wanted = held.len();
        let released = permit.release(&held, BootInstant::now()).map_err(|reason| denied(&reason))?;
        if released.get().len() < wanted {
            // An SVID ran out while its renewal is on the way.
            return Err(starting());
        }
        Ok(released.map(|svids| X509Context {
            svids: svids
                .into_iter()
                .map(|svid| X509Item {
                    hint: hints.get(svid.id.to_string().as_str()).copied().unwrap_or_default().to_owned(),
                    spiffe_id: svid.id.to_string(),
                    chain: svid.chain,
                    key_pkcs8: svid.key,
                    bundle: bundle.clone(),
                })
                .collect(),
        }))
    }

    async fn release_bundles(&self, peer: &Peer, arrived: BootInstant) -> Result<Released<Bundles>, Denied> {
        self.matching(peer).await?;
        let permit = self.permit(arrived).await?;
        let holdings = self.holdings();
        let Some(lease) = holdings.gate.lease() else {
            return Err(holdings.gate.reason().map_or_else(starting, denied));
        };
        let bundle = Held::new(holdings.store.bundle().to_vec(), arrived, lease.ends_at());
        let trust_domain = self.trust_domain.id_string();
        let released = permit.release(&[&bundle], BootInstant::now()).map_err(|reason| denied(&reason))?;
        Ok(released.map(|mut bundles| {
            Bundles(bundles.pop().map(|bundle| BTreeMap::from([(trust_domain, bundle)])).unwrap_or_default())
        }))
    }

    fn counted<T>(&self, answer: Result<T, Denied>) -> Result<T, Denied> {
        match &answer {
            Ok(_) => drop(self.metrics.releases.inc()),
            Err(Denied::NoIdentity(refusal) | Denied::Unavailable(refusal) | Denied::Ended(refusal)) => {
                self.metrics.refusals.get_or_create(&ByCode { code: refusal.code.as_str() }).inc();
            }
        }
        answer
    }
}
