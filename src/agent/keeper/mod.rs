//! The keeper: holds the gate and the credentials, and answers the Workload API from both.

mod granting;
mod holdings;
mod issued;
mod judging;
mod matching;
mod release;
mod tokens;
mod withdrawal;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, broadcast};

use super::follower::Follower;
use super::journal::Journal;
use super::measured::Measured;
use super::sources::Sources;
use crate::clock::BootInstant;
use crate::codes::{self, Refusal};
use crate::credentials::token::TokenKeys;
use crate::credentials::{Held, Store, X509Svid};
use crate::delivery::workload_api::{Denied, Signal};
use crate::gate::{Gate, Permit, Reason, Standing};
use crate::identity::TrustDomain;
use crate::measurements::Watcher;
use crate::protocol::{Bundle, Entry, ListPosition, Withdrawal};
use crate::shutdown::CancellationToken;
use crate::telemetry::AgentMetrics;
use crate::tpm::{Bank, PcrReading, TpmError};
use crate::verify::Lease;
use crate::verify::runtime::{Checkpoint, CompiledRules};
use granting::Grants;
use holdings::Registered;

pub(in crate::agent) use granting::{Granted, There, Ungiven, Wanted};
pub(in crate::agent) use holdings::Holdings;
pub use holdings::{Asked, Said};
pub(in crate::agent) use matching::{Matched, unlooked};
pub(in crate::agent) use release::{Chosen, all};
pub use withdrawal::{Applied, Observer};

/// Who is told of withdrawals.
#[derive(Default)]
struct Observers(Mutex<Vec<Observer>>);

impl std::fmt::Debug for Observers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Observers")
    }
}

/// See the module.
#[derive(Debug)]
pub struct Keeper {
    trust_domain: TrustDomain,
    watcher: Watcher,
    holdings: Mutex<Holdings>,
    /// Grows when anything changed that an open stream must look at again.
    changes: Signal,
    /// Who drops what he holds himself.
    observers: Observers,
    /// For those who may lag behind.
    withdrawn: broadcast::Sender<Withdrawal>,
    /// Wakes the tenancy: the node drifted, or its TPM was reset.
    drifted: Notify,
    /// Wakes it, too: IMA's list grew, by what is allowed.
    grown: Notify,
    follower: Follower,
    grants: Grants,
    /// Written before anything leaves.
    journal: Journal,
    measured: Measured,
    metrics: AgentMetrics,
}

impl Keeper {
    /// A keeper whose gate is closed.
    pub(super) fn new(trust_domain: TrustDomain, watcher: Watcher, sources: Arc<Sources>, journal: Journal) -> Self {
        Self {
            trust_domain,
            watcher,
            holdings: Mutex::default(),
            changes: Signal::default(),
            observers: Observers::default(),
            withdrawn: broadcast::Sender::new(64),
            drifted: Notify::new(),
            grown: Notify::new(),
            grants: Grants::default(),
            follower: Follower::new(Arc::clone(&sources)),
            measured: Measured::new(sources),
            journal,
            metrics: AgentMetrics::default(),
        }
    }

    /// To be taken before credentials are asked for.
    pub fn asks(&self) -> Asked {
        self.holdings().asks()
    }

    /// How often something spoke against the node so far; to be taken before a lease is asked for.
    pub fn withdrawals(&self) -> u64 {
        self.holdings().withdrawals
    }

    /// Opens the gate under a lease that was asked for when [`Self::withdrawals`] said this number.
    ///
    /// # Errors
    /// The gate's.
    pub async fn open(
        &self,
        lease: Lease,
        reading: &PcrReading,
        position: Option<ListPosition>,
        withdrawals: u64,
    ) -> Result<(), Reason> {
        // Nobody follows the list meanwhile: the gate and its place in the list change together.
        let mut place = self.follower.lock().await;
        let (opened, ended) = {
            let mut holdings = self.holdings();
            if holdings.withdrawals != withdrawals {
                let refusal = Refusal::new(
                    codes::GATE_LEASE_ORDER,
                    "the node was refused or changed while this lease was asked for",
                )
                .expected("a lease asked for since");
                return Err(Reason::new(Standing::Stale, refusal));
            }
            // What the issuer refused under the old lease is asked for again under the new one.
            holdings.refused.clear();
            holdings.withhold();
            let (opened, ended) = holdings.step(|gate, now| gate.open(lease, reading, now));
            if opened.is_ok() {
                holdings.new_entries = 0;
                holdings.leased_at = reading.finished_at;
                if let Some(lease) = holdings.gate.lease() {
                    place.begin(lease, position);
                }
            }
            (opened, ended)
        };
        drop(place);
        self.ended(ended);
        self.changed();
        opened
    }

    /// Closes the gate. What speaks against the node counts as a withdrawal also while it is closed:
    /// a lease may be on its way.
    pub fn close(&self, reason: Reason) {
        let ended = {
            let mut holdings = self.holdings();
            let against = reason.standing == Standing::Contraindicated;
            let ((), ended) = holdings.step(|gate, _| gate.close(reason));
            if against && ended.is_none() {
                holdings.withdraw();
            }
            ended
        };
        self.ended(ended);
        self.changed();
    }

    /// Whether the rules of the document with this digest are at hand.
    pub async fn has_rules(&self, digest: &[u8; 32]) -> bool {
        self.follower.lock().await.has(digest)
    }

    /// The place in IMA's list up to which it was followed, if that is known for this bank.
    pub async fn place(&self, bank: Bank) -> Option<Checkpoint> {
        self.follower.lock().await.at().filter(|at| at.bank == bank.as_str()).cloned()
    }

    /// Takes up the rules for new entries of IMA's list.
    pub async fn rule(&self, digest: [u8; 32], rules: CompiledRules) {
        self.follower.lock().await.rule(digest, rules);
    }

    /// Notes what the control plane said of the logs.
    pub fn said(&self, said: Said) {
        self.holdings().said = said;
    }

    /// Notes whether the control plane answered.
    pub fn reachable(&self, reachable: bool) {
        self.holdings().control_plane_reachable = reachable;
    }

    /// Takes over the registrations and the bundle of an answer.
    pub fn provision(&self, entries: Vec<Entry>, bundle: &Bundle) {
        let changed = {
            let mut holdings = self.holdings();
            let trusted = holdings.store.trust(bundle.certificates.iter().map(|der| der.to_vec()).collect());
            let keys = holdings.store.trust_tokens(bundle.jwt_keys.clone());
            if keys {
                holdings.token_keys = TokenKeys::new(&bundle.jwt_keys).unwrap_or_else(|refusal| {
                    // None at all is the safe reading: no token is accepted.
                    tracing::warn!(%refusal, "the bundle's keys for tokens can't be used");
                    TokenKeys::default()
                });
            }
            let registered = holdings.register(entries);
            trusted || keys || registered
        };
        if changed {
            self.changed();
        }
    }

    /// Holds what was issued and drops what was refused, asked for when [`Self::asks`] and [`Self::withdrawals`]
    /// said these numbers: of what was withdrawn since then nothing is held.
    pub fn hold(&self, issued: Vec<Held<X509Svid>>, refused: Vec<(String, Refusal)>, asked: Asked) {
        {
            let mut holdings = self.holdings();
            if holdings.withdrawals != asked.withdrawals {
                tracing::info!("what was issued crossed what spoke against this node; it isn't held");
                return;
            }
            for svid in issued {
                let id = svid.value().id.to_string();
                if let Some(why) = holdings.taken.crossed(asked.mark, &id, &[&svid.value().serial]) {
                    tracing::info!(id, "issued and withdrawn meanwhile: {why}");
                    continue;
                }
                holdings.refused.remove(&id);
                holdings.store.hold(svid);
            }
            for (id, refusal) in refused {
                holdings.store.drop_svid(&id);
                holdings.refused.insert(id, refusal);
            }
        }
        self.changed();
    }

    /// The CA certificates of the last answer, DER.
    pub fn bundle(&self) -> Vec<Vec<u8>> {
        self.holdings().store.bundle().to_vec()
    }

    /// The workloads whose SVIDs are due, unless the issuer refused them before.
    pub fn due(&self) -> Vec<String> {
        let holdings = self.holdings();
        let due = holdings.store.due(BootInstant::now());
        due.into_iter().filter(|id| !holdings.refused.contains_key(id)).collect()
    }

    /// When the next SVID is due.
    pub fn next_due(&self) -> Option<BootInstant> {
        self.holdings().store.next_due()
    }

    /// The sequence number and the end of the lease the gate is open under.
    pub fn sequence(&self) -> Option<(u64, BootInstant)> {
        self.holdings().gate.lease().map(|lease| (lease.claims().sequence, lease.ends_at()))
    }

    /// Returns when the node drifted.
    pub async fn drifted(&self) {
        self.drifted.notified().await;
    }

    /// Returns when IMA's list grew by what is allowed.
    pub async fn grown(&self) {
        self.grown.notified().await;
    }

    /// The metrics in the Prometheus text format.
    pub fn metrics(&self) -> String {
        let affirming = self.holdings().gate.standing() == Standing::Affirming;
        self.metrics.affirming.set(u64::from(affirming));
        self.metrics.render()
    }

    /// Runs `look` on the gate, for status.
    pub(super) fn with_gate<T>(&self, look: impl FnOnce(&Gate, Option<&TpmError>, &Store) -> T) -> T {
        let holdings = self.holdings();
        look(&holdings.gate, holdings.tpm_trouble.as_ref(), &holdings.store)
    }

    /// What was last said of the logs, and the allowed entries since.
    pub(super) fn log_standing(&self) -> (Said, u64) {
        let holdings = self.holdings();
        (holdings.said.clone(), holdings.new_entries)
    }

    /// Judges every observation of the watcher and ends the lease when its term is over.
    pub async fn judge_observations(&self, token: CancellationToken) {
        // The watcher publishes at least every interval while the TPM answers; the tick is for the
        // lease's end while it doesn't.
        let mut observations = self.watcher.observations();
        let mut tick = tokio::time::interval(Duration::from_millis(100));
        loop {
            tokio::select! {
                () = token.cancelled() => return,
                _ = tick.tick() => self.expire(),
                observed = observations.recv() => match observed {
                    Ok(observation) => self.judge(&observation).await,
                    // Missed ones are older than the next, which shows whatever they showed.
                    Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => return,
                },
            }
        }
    }

    fn expire(&self) {
        let ((), ended) = self.holdings().step(|_, _| ());
        self.ended(ended);
    }

    /// Whoever found that the lease ended: it is said once, and everybody concerned hears of it.
    fn ended(&self, ended: Option<Reason>) {
        if let Some(reason) = ended {
            tracing::warn!(code = %reason.refusal.code, standing = %reason.standing, "the lease ended: {}", reason.refusal);
            self.changed();
            self.drifted.notify_one();
        }
    }

    /// A permit for a request of `arrived`, from a reading that starts now.
    pub(super) async fn permit(&self, arrived: BootInstant) -> Result<Permit, Denied> {
        if let Some(reason) = self.holdings().gate.reason() {
            return Err(denied(reason));
        }
        let mut again = true;
        loop {
            let reading = match self.watcher.fresh().await {
                Ok(reading) => reading,
                Err(TpmError::Reset) => {
                    let reason = tpm_reset();
                    self.close(reason.clone());
                    return Err(denied(&reason));
                }
                Err(error) if error.is_unavailable() => return Err(Denied::Unavailable(error.into())),
                // The TPM refused to be read, or is another one: nothing can be vouched for.
                Err(error) => {
                    tracing::warn!(%error, "nothing is released: the PCRs can't be read");
                    return Err(Denied::Ended(error.into()));
                }
            };
            match self.judged(&reading, arrived).await {
                // A lease came between the reading and its judgement.
                Err(reason) if reason.refusal.code == codes::GATE_READING_OLD && again => again = false,
                judged => return judged.map_err(|reason| denied(&reason)),
            }
        }
    }

    fn holdings(&self) -> MutexGuard<'_, Holdings> {
        // Nothing panics while holding it; were it so, the state is still the gate's own and whole.
        self.holdings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn observers(&self) -> MutexGuard<'_, Vec<Observer>> {
        self.observers.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self) {
        self.changes.changed();
    }
}

/// What a closed gate means for a caller: trust withdrawn is a denial, everything else a wait.
fn denied(reason: &Reason) -> Denied {
    match reason.standing {
        Standing::Contraindicated => Denied::NoIdentity(reason.refusal.clone()),
        _ if reason.refusal.code == codes::GATE_READING_OLD => Denied::Unavailable(reason.refusal.clone()),
        _ => Denied::Ended(reason.refusal.clone()),
    }
}

fn starting() -> Denied {
    Denied::Unavailable(Refusal::new(codes::GATE_STARTING, "the credential is on its way"))
}

fn tpm_reset() -> Reason {
    let refusal = Refusal::new(codes::TPM_RESET, "the session that vouched for its readings is gone")
        .expected("the TPM of the lease, not reset since");
    Reason::new(Standing::Contraindicated, refusal)
}
