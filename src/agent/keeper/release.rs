//! Releases: who is calling, a fresh permit, the record of it on the disk, then what is held for them.

use std::collections::BTreeMap;

use futures_util::future::try_join_all;

use super::matching::Matched;
use super::{Holdings, Keeper, Registered, denied, starting};
use crate::agent::journal::{Note, What};
use crate::clock::BootInstant;
use crate::codes::{self, Refusal};
use crate::credentials::token::Verified;
use crate::credentials::{Held, X509Svid};
use crate::delivery::workload_api::{
    Bundles, Changes, Denied, JwtAsked, JwtBundles, JwtContext, Source, Unaccepted, X509Context, X509Item,
};
use crate::gate::{Permit, Released};
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
        let judged = self.judge_token(peer, audience, token).await;
        if let Err(
            Unaccepted::Invalid(refusal)
            | Unaccepted::Denied(Denied::NoIdentity(refusal) | Denied::Unavailable(refusal) | Denied::Ended(refusal)),
        ) = &judged
        {
            self.note_denial(peer, refusal);
        }
        judged
    }

    fn changes(&self) -> Changes {
        self.changes.follow()
    }

    fn ended(&self, peer: &Peer, refusal: &Refusal) {
        // Not waited for: a stream ends whatever the disk does.
        self.journal.say(Note { what: What::End, ..self.note(peer.described(), refusal) });
    }
}

/// A credential that is about to be released, as the record of that names it.
#[derive(Clone, PartialEq, Eq)]
pub(in crate::agent) struct Chosen {
    /// The workload's SPIFFE ID.
    pub(in crate::agent) workload: String,
    /// The serial number or `jti`.
    pub(in crate::agent) credential: String,
    /// The decision it was issued by.
    pub(in crate::agent) decision: String,
    /// The task it is of.
    pub(in crate::agent) task: Option<String>,
}

impl Keeper {
    /// Releases to `peer` what is held for it: the one order in which anything secret leaves. A permit from a
    /// reading that began after `arrived`; who is asking now; what is held, chosen; the record of that, on the
    /// disk; and then `take`, which releases by the permit what was chosen, if it is still held. Nothing can be
    /// taken back while `choose` or `take` run, and neither may block.
    ///
    /// Whatever changed before it could leave is looked at again, a few times: `take` says so by `None`.
    pub(in crate::agent) async fn release<R>(
        &self,
        peer: &Peer,
        arrived: BootInstant,
        choose: impl Fn(&Holdings, &Matched) -> Result<Vec<Chosen>, Denied> + Send + Sync,
        take: impl Fn(&Holdings, &[Chosen], Permit) -> Result<Option<R>, Denied> + Send + Sync,
    ) -> Result<R, Denied> {
        let mut noted = None;
        for _ in 0..ROUNDS {
            let permit = self.permit(arrived).await?;
            let lease = permit.lease_sequence();
            // The caller may have become another program while the TPM answered.
            let matched = self.matching(peer).await?;
            let chosen = {
                let holdings = self.holdings();
                // Closed between the judgement and here.
                holdings.sequence().ok_or_else(|| holdings.closed())?;
                choose(&holdings, &matched)?
            };
            let now = (lease, chosen);
            if noted.as_ref() != Some(&now) {
                self.note_releases(peer, &now.1, lease).await?;
                noted = Some(now.clone());
            }
            let (_, chosen) = now;
            // The disk may have taken its time: what was withdrawn meanwhile isn't released.
            let holdings = self.holdings();
            if holdings.sequence() != Some(lease) {
                continue;
            }
            if let Some(released) = take(&holdings, &chosen, permit)? {
                return Ok(released);
            }
        }
        Err(starting())
    }

    /// Has it on the disk that these are released to `peer`.
    async fn note_releases(&self, peer: &Peer, chosen: &[Chosen], lease: u64) -> Result<(), Denied> {
        let process = peer.described();
        let notes = chosen.iter().map(|one| {
            self.journal.write(Note {
                what: What::Release { uid: peer.uid() },
                workload: Some(one.workload.clone()),
                credential: Some(one.credential.clone()),
                decision: Some(one.decision.clone()),
                task: one.task.clone(),
                lease: Some(lease),
                process: process.clone(),
                code: None,
                reason: String::new(),
            })
        });
        // Together, so that one write to the disk is enough for all.
        try_join_all(notes).await.map(drop).map_err(Denied::Unavailable)
    }

    async fn release_x509(&self, peer: &Peer, arrived: BootInstant) -> Result<Released<X509Context>, Denied> {
        // The gate first: while it is closed, that is the answer for everybody.
        if let Some(reason) = self.holdings().gate.reason() {
            return Err(denied(reason));
        }
        // Who is asking, before the TPM is troubled.
        let matched = self.matching(peer).await?;
        // What is refused needs no reading: a withdrawal ends streams also while the TPM is away.
        if let Some(refusal) = self.holdings().all_refused(&matched.workloads) {
            return Err(Denied::NoIdentity(refusal));
        }
        let choose = |holdings: &Holdings, matched: &Matched| svids(holdings, &matched.workloads);
        self.release(peer, arrived, choose, |holdings, chosen, permit| {
            let held: Vec<_> = chosen.iter().filter_map(|one| still_held(holdings, one)).collect();
            if held.len() < chosen.len() {
                return Ok(None);
            }
            let Some(released) = all(permit, &held)? else { return Ok(None) };
            let bundle = holdings.store.bundle().to_vec();
            Ok(Some(released.map(|svids| {
                X509Context {
                    svids: svids
                        .into_iter()
                        .zip(chosen)
                        .map(|(svid, chosen)| X509Item {
                            hint: holdings.hint(&chosen.workload),
                            spiffe_id: svid.id.to_string(),
                            chain: svid.chain,
                            key_pkcs8: svid.key,
                            bundle: bundle.clone(),
                        })
                        .collect(),
                }
            })))
        })
        .await
    }

    async fn release_bundles(&self, peer: &Peer, arrived: BootInstant) -> Result<Released<Bundles>, Denied> {
        self.matching(peer).await?;
        let permit = self.permit(arrived).await?;
        let holdings = self.holdings();
        let Some(lease) = holdings.gate.lease() else { return Err(holdings.closed()) };
        let bundle = Held::new(holdings.store.bundle().to_vec(), arrived, lease.ends_at());
        let trust_domain = self.trust_domain.id_string();
        let released = permit.release(&[&bundle], BootInstant::now()).map_err(|reason| denied(&reason))?;
        Ok(released.map(|mut bundles| {
            Bundles(bundles.pop().map(|bundle| BTreeMap::from([(trust_domain, bundle)])).unwrap_or_default())
        }))
    }

    /// Counts an answer; that nothing was released is noted, too.
    pub(in crate::agent) fn counted<T>(&self, peer: &Peer, answer: Result<T, Denied>) -> Result<T, Denied> {
        if answer.is_ok() {
            self.metrics.releases.inc();
        }
        self.noted(peer, answer)
    }

    /// Notes that a process was denied something, whatever it asked for.
    pub(in crate::agent) fn noted<T>(&self, peer: &Peer, answer: Result<T, Denied>) -> Result<T, Denied> {
        if let Err(Denied::NoIdentity(refusal) | Denied::Unavailable(refusal) | Denied::Ended(refusal)) = &answer {
            self.note_denial(peer, refusal);
        }
        answer
    }

    pub(super) fn note_denial(&self, peer: &Peer, refusal: &Refusal) {
        self.metrics.refusals.get_or_create(&ByCode { code: refusal.code.as_str() }).inc();
        // By user, not by process: whoever starts many of them is still one.
        self.journal.denied(self.note(format!("uid {}", peer.uid()), refusal));
    }

    /// A denial by `refusal`.
    fn note(&self, process: String, refusal: &Refusal) -> Note {
        Note {
            what: What::Deny,
            workload: None,
            credential: None,
            decision: None,
            task: None,
            lease: self.holdings().sequence(),
            process,
            code: Some(refusal.code),
            reason: refusal.to_string(),
        }
    }
}

/// What is held for the workloads that match, all of it or nothing.
fn svids(holdings: &Holdings, matching: &[Registered]) -> Result<Vec<Chosen>, Denied> {
    let mut chosen = Vec::new();
    for entry in matching {
        match (holdings.store.svid(&entry.id), holdings.refused.get(&entry.id)) {
            (Some(svid), _) => chosen.push(Chosen {
                workload: entry.id.clone(),
                credential: svid.value().serial.clone(),
                decision: svid.value().decision.clone(),
                task: None,
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
    holdings.store.svid(&chosen.workload).filter(|svid| svid.value().serial == chosen.credential)
}

/// All of these by the permit, or nothing while the permit is too old: then another one is needed.
pub(in crate::agent) fn all<T: Clone>(permit: Permit, held: &[&Held<T>]) -> Result<Option<Released<Vec<T>>>, Denied> {
    match permit.release(held, BootInstant::now()) {
        Err(reason) if reason.refusal.code == codes::GATE_READING_OLD => Ok(None),
        Err(reason) => Err(denied(&reason)),
        // One ran out while its renewal is on the way.
        Ok(released) if released.get().len() < held.len() => Err(starting()),
        Ok(released) => Ok(Some(released)),
    }
}
