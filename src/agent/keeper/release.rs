//! Releases: who is calling, a fresh permit, the record of it on the disk, then what is held for them.

use std::collections::BTreeMap;

use futures_util::future::try_join_all;

use super::{Holdings, Keeper, Registered, denied, starting};
use crate::agent::journal::{Note, What};
use crate::clock::BootInstant;
use crate::codes::{self, Refusal};
use crate::credentials::token::Verified;
use crate::credentials::{Held, X509Svid};
use crate::delivery::workload_api::{
    Bundles, Changes, Denied, JwtAsked, JwtBundles, JwtContext, Source, Unaccepted, X509Context, X509Item,
};
use crate::gate::Released;
use crate::telemetry::ByCode;
use crate::workload::Peer;

/// So often what was noted may have changed before it could leave.
const ROUNDS: usize = 4;

impl Source for Keeper {
    async fn x509(&self, peer: &Peer, arrived: BootInstant) -> Result<Released<X509Context>, Denied> {
        self.counted(peer, self.release_x509(peer, arrived).await)
    }

    async fn bundles(&self, peer: &Peer, arrived: BootInstant) -> Result<Released<Bundles>, Denied> {
        self.counted(peer, self.release_bundles(peer, arrived).await)
    }

    async fn jwt(&self, peer: &Peer, arrived: BootInstant, asked: &JwtAsked) -> Result<Released<JwtContext>, Denied> {
        self.counted(peer, self.release_jwt(peer, arrived, asked).await)
    }

    async fn jwt_bundles(&self, peer: &Peer, arrived: BootInstant) -> Result<Released<JwtBundles>, Denied> {
        self.counted(peer, self.release_jwt_bundles(peer, arrived).await)
    }

    async fn validate(&self, peer: &Peer, audience: &str, token: &str) -> Result<Verified, Unaccepted> {
        self.judge_token(peer, audience, token).await
    }

    fn changes(&self) -> Changes {
        self.changes.follow()
    }

    fn ended(&self, peer: &Peer, refusal: &Refusal) {
        // Not waited for: a stream ends whatever the disk does.
        self.journal.say(Note { what: What::End, ..self.note(peer.described(), refusal) });
    }
}

/// A credential that is about to be released.
#[derive(Clone, PartialEq, Eq)]
struct Chosen {
    workload: String,
    hint: String,
    serial: String,
    decision: String,
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
        let mut noted = None;
        for _ in 0..ROUNDS {
            let permit = self.permit(arrived).await?;
            let lease = permit.lease_sequence();
            let matching = self.matching(peer).await?.workloads;
            let chosen = chosen(&self.holdings(), &matching, lease)?;
            if noted.as_ref() != Some(&chosen) {
                self.note_releases(peer, &chosen, lease).await?;
                noted = Some(chosen.clone());
            }
            // The disk may have taken its time: what was withdrawn meanwhile isn't released.
            let holdings = self.holdings();
            if holdings.gate.lease().map(|lease| lease.claims().sequence) != Some(lease) {
                continue;
            }
            let held: Vec<_> = chosen.iter().filter_map(|one| still_held(&holdings, one)).collect();
            if held.len() < chosen.len() {
                continue;
            }
            let bundle = holdings.store.bundle().to_vec();
            let released = match permit.release(&held, BootInstant::now()) {
                // Judged too long ago by now.
                Err(reason) if reason.refusal.code == codes::GATE_READING_OLD => continue,
                released => released.map_err(|reason| denied(&reason))?,
            };
            if released.get().len() < chosen.len() {
                // An SVID ran out while its renewal is on the way.
                return Err(starting());
            }
            return Ok(released.map(|svids| X509Context {
                svids: svids
                    .into_iter()
                    .zip(chosen)
                    .map(|(svid, chosen)| X509Item {
                        hint: chosen.hint,
                        spiffe_id: svid.id.to_string(),
                        chain: svid.chain,
                        key_pkcs8: svid.key,
                        bundle: bundle.clone(),
                    })
                    .collect(),
            }));
        }
        Err(starting())
    }

    /// Has it on the disk that these are released to `peer`.
    async fn note_releases(&self, peer: &Peer, chosen: &[Chosen], lease: u64) -> Result<(), Denied> {
        let process = peer.described();
        let notes = chosen.iter().map(|one| {
            self.journal.write(Note {
                what: What::Release,
                workload: Some(one.workload.clone()),
                credential: Some(one.serial.clone()),
                decision: Some(one.decision.clone()),
                task: None,
                lease: Some(lease),
                process: process.clone(),
                code: None,
                reason: String::new(),
            })
        });
        // Together, so that one write to the disk is enough for all.
        try_join_all(notes).await.map(drop).map_err(Denied::Unavailable)
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

    /// Counts an answer; that nothing was released is noted, too.
    fn counted<T>(&self, peer: &Peer, answer: Result<T, Denied>) -> Result<T, Denied> {
        match &answer {
            Ok(_) => drop(self.metrics.releases.inc()),
            Err(Denied::NoIdentity(refusal) | Denied::Unavailable(refusal) | Denied::Ended(refusal)) => {
                self.metrics.refusals.get_or_create(&ByCode { code: refusal.code.as_str() }).inc();
                // By user, not by process: whoever starts many of them is still one.
                self.journal.denied(self.note(format!("uid {}", peer.uid()), refusal));
            }
        }
        answer
    }

    /// A denial by `refusal`.
    fn note(&self, process: String, refusal: &Refusal) -> Note {
        Note {
            what: What::Deny,
            workload: None,
            credential: None,
            decision: None,
            task: None,
            lease: self.holdings().gate.lease().map(|lease| lease.claims().sequence),
            process,
            code: Some(refusal.code),
            reason: refusal.to_string(),
        }
    }
}

/// What is held for the workloads that match, all of it or nothing.
fn chosen(holdings: &Holdings, matching: &[Registered], lease: u64) -> Result<Vec<Chosen>, Denied> {
    if holdings.gate.lease().map(|lease| lease.claims().sequence) < Some(lease) {
        // Closed between the judgement and here.
        return Err(holdings.gate.reason().map_or_else(starting, denied));
    }
    let mut chosen = Vec::new();
    for entry in matching {
        match (holdings.store.svid(&entry.id), holdings.refused.get(&entry.id)) {
            (Some(svid), _) => chosen.push(Chosen {
                workload: entry.id.clone(),
                hint: entry.hint.clone(),
                serial: svid.value().serial.clone(),
                decision: svid.value().decision.clone(),
            }),
            // Never a partial answer for one that is merely on its way: an omission is a revocation.
            (None, None) => return Err(starting()),
            (None, Some(_)) => {}
        }
    }
    if chosen.is_empty() {
        return Err(holdings.all_refused(matching).map_or_else(starting, Denied::NoIdentity));
    }
    Ok(chosen)
}

/// The very credential that was noted, while it is held.
fn still_held<'a>(holdings: &'a Holdings, chosen: &Chosen) -> Option<&'a Held<X509Svid>> {
    holdings.store.svid(&chosen.workload).filter(|svid| svid.value().serial == chosen.serial)
}
