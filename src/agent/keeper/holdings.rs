//! What the keeper holds: the gate, the credentials, the registrations, and what was taken back.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::issued::Issued;
use super::withdrawal::Taken;
use super::{denied, starting};
use crate::clock::BootInstant;
use crate::codes::Refusal;
use crate::credentials::Store;
use crate::credentials::token::TokenKeys;
use crate::delivery::workload_api::Denied;
use crate::gate::{Gate, Reason, Standing};
use crate::identity::exact_id;
use crate::protocol::Entry;
use crate::tpm::{PcrReading, TpmError};
use crate::verify::appraisal::{Finding, LayerResult};
use crate::workload::Selector;

/// Everything that is decided or held on this node, behind one lock that is never kept across
/// an await: each answer sees one consistent state.
#[derive(Debug)]
pub(in crate::agent) struct Holdings {
    pub(super) gate: Gate,
    pub(super) store: Store,
    /// What JWT-SVIDs are verified with.
    pub(super) token_keys: TokenKeys,
    /// The registered workloads with their selectors, parsed.
    pub(super) registered: Vec<Registered>,
    /// Workloads the issuer refused, and why.
    pub(super) refused: BTreeMap<String, Refusal>,
    /// What was read last: a change of it is worth an attestation, with or without a lease.
    pub(super) last_reading: Option<Arc<PcrReading>>,
    /// The reading of the latest start that was to be judged. Whoever has an older one is judged by this:
    /// PCR 10 may have been followed beyond the older, which would look as if it had gone back.
    pub(super) newest: Option<Arc<PcrReading>>,
    /// When the values of the present lease had been read: a reading that began before may be older.
    pub(super) leased_at: BootInstant,
    /// Allowed entries of IMA's list since the lease was granted.
    pub(super) new_entries: u64,
    /// What the control plane last said of the node's logs.
    pub(super) said: Said,
    /// What the watcher last failed with; `None` after a reading.
    pub(super) tpm_trouble: Option<TpmError>,
    pub(super) control_plane_reachable: bool,
    /// How often something spoke against the node: a lease asked for before the last time is not
    /// opened under, however it crossed the revocation on the way.
    pub(super) withdrawals: u64,
    /// What was taken back by name.
    pub(super) taken: Taken,
    /// The tokens that were given to this node, while they may still be shown.
    pub(super) issued: Issued,
}

/// What an attestation's answer says of the logs.
#[derive(Clone, Debug, Default)]
pub struct Said {
    /// Of each layer.
    pub layers: Vec<LayerResult>,
    /// What was found, the worst first.
    pub findings: Vec<Finding>,
}

/// When something was asked for, in the order of withdrawals.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Asked {
    pub(super) withdrawals: u64,
    pub(super) mark: u64,
}

impl Default for Holdings {
    /// Nothing, and a closed gate.
    fn default() -> Self {
        Self {
            gate: Gate::default(),
            store: Store::default(),
            token_keys: TokenKeys::default(),
            registered: Vec::new(),
            refused: BTreeMap::new(),
            last_reading: None,
            newest: None,
            leased_at: BootInstant::from_nanos(0),
            new_entries: 0,
            said: Said::default(),
            tpm_trouble: None,
            control_plane_reachable: false,
            withdrawals: 0,
            taken: Taken::default(),
            issued: Issued::default(),
        }
    }
}

impl Holdings {
    /// The newest of this reading and those before.
    pub(super) fn newest(&mut self, reading: &Arc<PcrReading>) -> Arc<PcrReading> {
        match &self.newest {
            Some(newest) if newest.started_at > reading.started_at => Arc::clone(newest),
            _ => Arc::clone(self.newest.insert(Arc::clone(reading))),
        }
    }

    /// Runs `step` on the gate, the term's end noticed first, with what is known of the control
    /// plane: whoever comes upon it, stale and unreachable are told apart. Gives back why the gate
    /// closed, if it did; what speaks against the node then also drops (and wipes) what is held.
    pub(super) fn step<T>(&mut self, step: impl FnOnce(&mut Gate, BootInstant) -> T) -> (T, Option<Reason>) {
        let was_open = self.gate.lease().is_some();
        let now = BootInstant::now();
        self.gate.expire(now, self.control_plane_reachable);
        let done = step(&mut self.gate, now);
        let ended = self.gate.reason().filter(|_| was_open).cloned();
        if ended.as_ref().is_some_and(|reason| reason.standing == Standing::Contraindicated) {
            self.withdraw();
        }
        (done, ended)
    }

    pub(super) fn withdraw(&mut self) {
        self.store.clear();
        self.withdrawals += 1;
    }

    pub(super) fn asks(&self) -> Asked {
        Asked { withdrawals: self.withdrawals, mark: self.taken.mark() }
    }

    /// The sequence number of the lease that the gate is open under.
    pub(super) fn sequence(&self) -> Option<u64> {
        self.gate.lease().map(|lease| lease.claims().sequence)
    }

    /// Why nothing is to be had now; for when the gate stands open, that it is on its way.
    pub(super) fn closed(&self) -> Denied {
        self.gate.reason().map_or_else(starting, denied)
    }

    /// Why what was asked for at `asked` must not be held, if something of it was taken back since then.
    pub(super) fn taken_since(&self, asked: Asked, workload: &str, credentials: &[&str]) -> Option<Denied> {
        if let Some(reason) = self.gate.reason() {
            return Some(denied(reason));
        }
        match self.taken.crossed(asked.mark, workload, credentials) {
            Some(refusal) => Some(Denied::NoIdentity(refusal)),
            None => (self.withdrawals != asked.withdrawals).then(starting),
        }
    }

    /// Why a token isn't accepted here although it verifies, if it isn't.
    pub(super) fn denied_token(&self, workload: &str, jti: &str) -> Option<Refusal> {
        self.issued.taken(workload, jti).cloned().or_else(|| self.taken.ended(jti))
    }

    /// The CA certificates of the last answer, DER.
    pub(in crate::agent) fn bundle(&self) -> Vec<Vec<u8>> {
        self.store.bundle().to_vec()
    }

    /// The hint of a registration.
    pub(super) fn hint(&self, workload: &str) -> String {
        let entry = self.registered.iter().find(|entry| entry.id == workload);
        entry.map(|entry| entry.hint.clone()).unwrap_or_default()
    }

    /// Why none of these is to be had, if so: the first one's reason.
    pub(super) fn all_refused(&self, matching: &[Registered]) -> Option<Refusal> {
        let refused = |entry: &Registered| self.refused.contains_key(&entry.id) && self.store.svid(&entry.id).is_none();
        let first = matching.first().filter(|_| matching.iter().all(refused))?;
        self.refused.get(&first.id).cloned()
    }

    /// Takes over registrations. Returns whether anything changed.
    pub(super) fn register(&mut self, mut entries: Vec<Entry>) -> bool {
        entries.retain(|entry| match exact_id(&entry.id) {
            Ok(_) => true,
            Err(why) => {
                tracing::warn!(
                    id = entry.id.escape_debug().to_string(),
                    why,
                    "a registration of no SPIFFE ID is ignored"
                );
                false
            }
        });
        if !self.store.register(entries) {
            return false;
        }
        self.registered = self.store.entries().iter().filter_map(parsed).collect();
        self.refused.clear();
        self.withhold();
        let ids: BTreeSet<String> = self.store.entries().iter().map(|entry| entry.id.clone()).collect();
        self.taken.retain(|id| ids.contains(id));
        true
    }

    /// What nothing is issued for is not asked for, and its callers are told why.
    pub(super) fn withhold(&mut self) {
        let withheld: Vec<_> =
            self.store.entries().iter().filter_map(|entry| Some((entry.id.clone(), entry.withheld.clone()?))).collect();
        for (id, why) in withheld {
            self.store.drop_svid(&id);
            self.store.drop_tokens(&id);
            self.refused.insert(id, why);
        }
    }
}

/// A registered workload.
#[derive(Clone, Debug)]
pub(super) struct Registered {
    pub(super) id: String,
    pub(super) hint: String,
    pub(super) selectors: Vec<Selector>,
    pub(super) interactive: bool,
}

impl AsRef<[Selector]> for Registered {
    fn as_ref(&self) -> &[Selector] {
        &self.selectors
    }
}

fn parsed(entry: &Entry) -> Option<Registered> {
    let selectors: Result<Vec<_>, _> = entry.selectors.iter().map(|text| Selector::parse(text)).collect();
    match selectors {
        // No selector would match everybody.
        Ok(selectors) if !selectors.is_empty() => {
            let (id, hint) = (entry.id.clone(), entry.hint.clone());
            Some(Registered { id, hint, selectors, interactive: entry.interactive })
        }
        Ok(_) => {
            tracing::warn!(id = entry.id, "a registration without selectors is ignored");
            None
        }
        Err(refusal) => {
            tracing::warn!(id = entry.id, %refusal, "a registration with a selector this version doesn't know is ignored");
            None
        }
    }
}
