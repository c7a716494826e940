//! The gate: the one place that turns a held credential into a released one.
//!
//! It does no I/O and knows no format: it is handed a lease, PCR readings and moments, and says
//! whether what is held may leave. It starts closed. An auditor who has read this file knows
//! every way in which a credential can get out of the agent:
//!
//! 1. [`Gate::judge`] gives a [`Permit`] only while the gate is open, before the lease's end, and
//!    for an authentic reading that began after the request arrived and equals the lease. PCR 10
//!    alone, which grows with all that the kernel measures, may have gone on from the lease's value:
//!    by entries that the rules named in the lease allow, which [`Advanced`] proves;
//! 2. [`Permit::release`] is the only constructor of [`Released`], and refuses what has expired;
//! 3. `delivery` accepts nothing but [`Released`].

mod standing;

pub use standing::{Reason, Standing};

use std::time::Duration;

use crate::clock::BootInstant;
use crate::codes::{self, Refusal};
use crate::credentials::Held;
use crate::tpm::{IMA_PCR, PcrReading, PcrValues};
use crate::verify::Lease;
use crate::verify::runtime::Advanced;

/// Closed for a reason, or open under one lease.
#[derive(Debug)]
enum State {
    Closed(Reason),
    /// With the values that a reading must have: the lease's, but for PCR 10 once it went on.
    Open(Lease, PcrValues),
}

/// Where PCR 10 stood when it was last judged, and where a reading finds it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Moved {
    /// The lease it is judged under.
    pub lease_sequence: u64,
    /// The rules named in that lease.
    pub rules: [u8; 32],
    /// The value last judged.
    pub from: Vec<u8>,
    /// The value read.
    pub to: Vec<u8>,
}

/// Decides whether credentials may be released. Starts closed.
#[derive(Debug)]
pub struct Gate {
    state: State,
    /// Epoch and sequence last opened under, so an older lease can't come back.
    last: Option<([u8; 16], u64)>,
}

impl Default for Gate {
    fn default() -> Self {
        let refusal = Refusal::new(codes::GATE_STARTING, "no lease has been granted since the agent started");
        Self { state: State::Closed(Reason::new(Standing::Stale, refusal)), last: None }
    }
}

impl Gate {
    /// Opens under `lease`, which replaces the present one.
    ///
    /// `reading` must be one that began after the lease was asked for: it shows that the node is
    /// still what the lease was granted on, so the gate never opens on a state already gone.
    ///
    /// # Errors
    /// [`codes::GATE_LEASE_ORDER`] for a sequence not above the last one; the state stays.
    /// Otherwise the refusals of [`Gate::judge`]; the gate is then closed.
    pub fn open(&mut self, lease: Lease, reading: &PcrReading, now: BootInstant) -> Result<(), Reason> {
        let claims = lease.claims();
        // A control plane whose store was restored announces a new epoch and counts anew.
        if let Some((epoch, last)) = self.last
            && epoch == claims.epoch
            && claims.sequence <= last
        {
            let refusal = Refusal::new(codes::GATE_LEASE_ORDER, format!("sequence {}", claims.sequence))
                .expected(format!("above {last}"));
            return Err(Reason::new(Standing::Stale, refusal));
        }
        self.last = Some((claims.epoch, claims.sequence));
        let asked_at = claims.requested_at;
        let values = claims.pcrs.clone();
        self.state = State::Open(lease, values);
        // Closed on any refusal, also on those for which an open gate would stay as it is.
        self.judge(reading, None, asked_at, now).map(|_| ()).map_err(|reason| self.closed(reason))
    }

    /// Closes the gate. A reason that says more replaces one that says less: what is
    /// contraindicated doesn't become merely stale because the control plane can't be reached.
    pub fn close(&mut self, reason: Reason) {
        match &self.state {
            State::Closed(present) if present.standing > reason.standing => {}
            _ => self.state = State::Closed(reason),
        }
    }

    /// What must be proven before `reading` can be judged: that PCR 10 went on as the lease's rules
    /// allow. `None` if it hasn't moved, or the lease names no rules, and then judging says what follows.
    pub fn moved(&self, reading: &PcrReading) -> Option<Moved> {
        let State::Open(lease, values) = &self.state else { return None };
        let claims = lease.claims();
        let (from, to) = (values.get(IMA_PCR)?, reading.values.get(IMA_PCR)?);
        if from == to || reading.values.selection().bank() != claims.pcrs.selection().bank() {
            return None;
        }
        let (from, to) = (from.to_vec(), to.to_vec());
        Some(Moved { lease_sequence: claims.sequence, rules: claims.rules?, from, to })
    }

    /// Judges `reading` for a request that arrived at `arrived`. A drift closes the gate; `advanced`
    /// is the proof that a PCR 10 that moved is none.
    ///
    /// # Errors
    /// Why nothing may be released: the gate is closed, the lease is over, the reading began
    /// before the request arrived, the TPM was reset, or a PCR differs.
    pub fn judge(
        &mut self,
        reading: &PcrReading,
        advanced: Option<&Advanced>,
        arrived: BootInstant,
        now: BootInstant,
    ) -> Result<Permit, Reason> {
        let (lease, expected) = match &self.state {
            State::Closed(reason) => return Err(reason.clone()),
            State::Open(lease, expected) => (lease, expected),
        };
        if now >= lease.ends_at() {
            return Err(self.closed(Reason::new(Standing::Stale, term_over(lease, now))));
        }
        if reading.started_at < arrived {
            // Not the node's fault, so the gate stays as it is.
            let refusal = Refusal::new(codes::GATE_READING_OLD, format!("it began at {:?}", reading.started_at))
                .expected(format!("not before {arrived:?}"));
            return Err(Reason::new(Standing::Stale, refusal));
        }
        let claims = lease.claims();
        if !reading.values.selection().covers(claims.pcrs.selection()) {
            // A reading from before the control plane asked for other PCRs: not the node's fault either.
            let refusal = Refusal::new(codes::GATE_READING_OLD, format!("it covers {}", reading.values.selection()))
                .expected(claims.pcrs.selection().to_string());
            return Err(Reason::new(Standing::Stale, refusal));
        }
        if reading.counts != claims.counts {
            let refusal = Refusal::new(
                codes::GATE_TPM_RESET,
                format!("reset count {}, restart count {}", reading.counts.reset, reading.counts.restart),
            )
            .expected(format!("reset count {}, restart count {}", claims.counts.reset, claims.counts.restart));
            return Err(self.closed(Reason::new(Standing::Contraindicated, refusal)));
        }
        let gone_on = advanced.and_then(|advanced| gone_on(claims.rules, expected, advanced));
        let differences = reading.values.differences(gone_on.as_ref().unwrap_or(expected));
        if let Some(first) = differences.first() {
            let refusal = Refusal::new(codes::GATE_DRIFT, first.found.clone())
                .at(format!("PCR {} ({})", first.pcr, first.bank))
                .expected(first.expected.clone());
            return Err(self.closed(Reason { differences, ..Reason::new(Standing::Contraindicated, refusal) }));
        }
        let permit = Permit { lease_sequence: claims.sequence, ends_at: lease.ends_at(), given_at: now };
        if let (Some(gone_on), State::Open(_, expected)) = (gone_on, &mut self.state) {
            *expected = gone_on;
        }
        Ok(permit)
    }

    /// Closes the gate if the lease's term is over at `now`; says whether it did.
    pub fn expire(&mut self, now: BootInstant, control_plane_reachable: bool) -> bool {
        let State::Open(lease, _) = &self.state else { return false };
        if now < lease.ends_at() {
            return false;
        }
        let refusal = term_over(lease, now);
        let reason = if control_plane_reachable {
            Reason::new(Standing::Stale, refusal)
        } else {
            Reason::new(Standing::Unreachable, Refusal { code: codes::GATE_UNREACHABLE, ..refusal })
        };
        self.state = State::Closed(reason);
        true
    }

    /// The lease the gate is open under.
    pub fn lease(&self) -> Option<&Lease> {
        match &self.state {
            State::Open(lease, _) => Some(lease),
            State::Closed(_) => None,
        }
    }

    /// Why the gate is closed.
    pub fn reason(&self) -> Option<&Reason> {
        match &self.state {
            State::Open(..) => None,
            State::Closed(reason) => Some(reason),
        }
    }

    /// How the node stands.
    pub fn standing(&self) -> Standing {
        self.reason().map_or(Standing::Affirming, |reason| reason.standing)
    }

    fn closed(&mut self, reason: Reason) -> Reason {
        self.state = State::Closed(reason.clone());
        reason
    }
}

/// How long a permit can be used: what takes longer between a judgement and its release asks again.
const PERMIT_AGE: Duration = Duration::from_secs(1);

/// The right to release, once, what is held. It can't be stored for later: it is neither cloned
/// nor shared, and grows old within a second.
#[derive(Debug)]
pub struct Permit {
    lease_sequence: u64,
    ends_at: BootInstant,
    given_at: BootInstant,
}

impl Permit {
    /// The sequence number of the lease it was given under.
    pub const fn lease_sequence(&self) -> u64 {
        self.lease_sequence
    }

    /// Releases everything in `held` that hasn't expired at `now`, in order.
    ///
    /// # Errors
    /// The lease's term is over at `now`, or the permit is older than a second: judge again.
    pub fn release<T: Clone>(self, held: &[&Held<T>], now: BootInstant) -> Result<Released<Vec<T>>, Reason> {
        let end = self.ends_at;
        let age = now.since(self.given_at);
        if now >= end || age > PERMIT_AGE {
            let refusal = Refusal::new(codes::GATE_READING_OLD, format!("it was judged {age:?} ago"))
                .expected(format!("at most {PERMIT_AGE:?}, and before the lease's end"));
            return Err(Reason::new(Standing::Stale, refusal));
        }
        Ok(Released {
            value: held.iter().filter(|held| now < held.until()).map(|held| held.value().clone()).collect(),
            until: held.iter().map(|held| held.until()).min().unwrap_or(end).min(end),
        })
    }
}

/// A credential that may leave the agent. Made by [`Permit::release`] and nowhere else.
pub struct Released<T> {
    value: T,
    until: BootInstant,
}

impl<T> Released<T> {
    /// The value, to be delivered now.
    pub const fn get(&self) -> &T {
        &self.value
    }

    /// The value, taken out to be delivered now.
    pub fn into_inner(self) -> T {
        self.value
    }

    /// The same release in another shape.
    pub fn map<U>(self, shape: impl FnOnce(T) -> U) -> Released<U> {
        Released { value: shape(self.value), until: self.until }
    }

    /// When it ends at the latest.
    pub const fn until(&self) -> BootInstant {
        self.until
    }
}

#[cfg(test)]
impl<T> Released<T> {
    /// For unit tests of what takes a release apart.
    pub(crate) const fn for_test(value: T) -> Self {
        Self { value, until: BootInstant::from_nanos(u64::MAX) }
    }
}

impl<T> std::fmt::Debug for Released<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // What is released is secret too.
        f.debug_struct("Released").field("until", &self.until).finish_non_exhaustive()
    }
}

/// The values to be met once PCR 10 went on; `None` unless the lease names rules and the proof begins
/// where PCR 10 stands.
fn gone_on(rules: Option<[u8; 32]>, expected: &PcrValues, advanced: &Advanced) -> Option<PcrValues> {
    let begins = advanced.bank() == expected.selection().bank() && expected.get(IMA_PCR) == Some(advanced.from());
    (rules.is_some() && begins).then(|| expected.with(IMA_PCR, advanced.to()))?
}

fn term_over(lease: &Lease, now: BootInstant) -> Refusal {
    Refusal::new(codes::GATE_STALE, format!("the lease's term ended at {:?}, it is {now:?}", lease.ends_at()))
        .expected("a renewal before half of its term")
}
