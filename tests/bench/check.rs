//! The promises, checked over an oracle's log afterwards.
//!
//! The checker knows nothing of the agent: only what was done to the TPM and the registrations,
//! and what clients sent and received.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use leasehold::clock::BootInstant;

use super::oracle::{Event, Status, What};

/// The bounds to hold.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Within this an open stream ends after a local invalidation (promise 3: 1 s).
    pub local: Duration,
    /// The same after a pushed revocation (promise 3: 2 s).
    pub pushed: Duration,
    /// How long after a new lease a denial may still come (promise 8: 10 s); a denial without any
    /// cause is a violation.
    pub settle: Duration,
}

impl Default for Rules {
    fn default() -> Self {
        Self { local: Duration::from_secs(1), pushed: Duration::from_secs(2), settle: Duration::from_secs(10) }
    }
}

/// A broken promise, or a log that can't show that it was kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Violation {
    /// A credential was received before any lease was granted.
    WithoutLease { client: u32, request: u64 },
    /// The request was sent after an invalidation, and a credential came.
    AfterInvalidation { client: u32, request: u64, cause: Cause, sent_later_by: Duration },
    /// A credential came later after an invalidation than the bound allows, though asked for earlier.
    TooLate { client: u32, request: u64, cause: Cause, later_by: Duration },
    /// An open stream did not end within the bound.
    StreamStayed { client: u32, request: u64, cause: Cause, ended_after: Option<Duration> },
    /// A denial while nothing was invalid.
    DeniedWithoutCause { client: u32, request: u64 },
    /// A release or an end without its request: the log is not whole.
    UnknownRequest { client: u32, request: u64 },
    /// The log ends before the bound after an invalidation was over: nothing is shown.
    WatchedTooShort { cause: Cause },
}

/// What ended a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    Extended(u8),
    Reset,
    Revoked,
    Ended,
    Expired,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

#[derive(Clone, Copy)]
struct Lease {
    granted_at: BootInstant,
    measured_at: BootInstant,
    expires_at: BootInstant,
}

#[derive(Clone, Copy)]
struct Invalidation {
    at: BootInstant,
    cause: Cause,
}

impl Invalidation {
    /// Whether `lease` makes releases legitimate again. Measurements taken before an extend or a
    /// reset say nothing about what came after them.
    fn healed_by(self, lease: &Lease) -> bool {
        match self.cause {
            Cause::Extended(_) | Cause::Reset => lease.measured_at > self.at,
            Cause::Revoked | Cause::Ended | Cause::Expired => lease.granted_at > self.at,
        }
    }

    fn bound(self, rules: &Rules) -> Duration {
        if self.cause == Cause::Revoked { rules.pushed } else { rules.local }
    }
}

/// Every violation of `rules` in `events`; empty if all promises were kept.
pub fn check(events: &[Event], rules: &Rules) -> Vec<Violation> {
    let mut events = events.to_vec();
    events.sort_by_key(|event| event.at);
    let log = Log::read(&events);
    let mut found = log.unknown.clone();
    for (&(client, request), stream) in &log.streams {
        for &received_at in &stream.released {
            found.extend(log.judge_release(client, request, stream.sent_at, received_at, rules));
        }
        found.extend(log.judge_end(client, request, stream, rules));
        found.extend(log.judge_denial(client, request, stream, rules));
    }
    found
}

/// How long after an invalidation each stream that was open then ended; ascending.
pub fn stream_end_delays(events: &[Event]) -> Vec<Duration> {
    let log = Log::read(events);
    let mut delays: Vec<_> = log
        .streams
        .values()
        .filter_map(|stream| {
            let (ended_at, _) = stream.ended.as_ref()?;
            let opened_at = stream.released.first()?;
            let cause = log.invalidations.iter().find(|i| i.at > *opened_at && i.at <= *ended_at)?;
            Some(ended_at.since(cause.at))
        })
        .collect();
    delays.sort();
    delays
}

struct Stream {
    sent_at: BootInstant,
    released: Vec<BootInstant>,
    ended: Option<(BootInstant, Status)>,
}

struct Log {
    leases: Vec<Lease>,
    invalidations: Vec<Invalidation>,
    streams: BTreeMap<(u32, u64), Stream>,
    unknown: Vec<Violation>,
    last: BootInstant,
}

impl Log {
    fn read(events: &[Event]) -> Self {
        let last = events.last().map_or(BootInstant::from_nanos(0), |event| event.at);
        let mut log =
            Self { leases: Vec::new(), invalidations: Vec::new(), streams: BTreeMap::new(), unknown: Vec::new(), last };
        for Event { at, what } in events {
            let at = *at;
            let mut invalid = |cause| log.invalidations.push(Invalidation { at, cause });
            match what {
                What::LeaseGranted { measured_at, expires_at } => {
                    log.leases.push(Lease { granted_at: at, measured_at: *measured_at, expires_at: *expires_at })
                }
                What::Extended { pcr } => invalid(Cause::Extended(*pcr)),
                What::Reset => invalid(Cause::Reset),
                What::Revoked => invalid(Cause::Revoked),
                What::Ended => invalid(Cause::Ended),
                What::RequestSent { client, request } => {
                    log.streams.insert((*client, *request), Stream { sent_at: at, released: Vec::new(), ended: None });
                }
                What::Released { client, request } => {
                    log.known(*client, *request, |stream| stream.released.push(at));
                }
                What::Refused { client, request, status } | What::StreamEnded { client, request, status } => {
                    log.known(*client, *request, |stream| stream.ended = Some((at, status.clone())));
                }
                What::Closed => log.last = at,
            }
        }
        // A term that ran out with no lease behind it is an invalidation too.
        for lease in &log.leases {
            let renewed = log.leases.iter().any(|l| {
                l.granted_at > lease.granted_at && l.granted_at <= lease.expires_at && l.expires_at > lease.expires_at
            });
            if !renewed && lease.expires_at < log.last {
                log.invalidations.push(Invalidation { at: lease.expires_at, cause: Cause::Expired });
            }
        }
        log.invalidations.sort_by_key(|invalidation| invalidation.at);
        log
    }

    fn known(&mut self, client: u32, request: u64, apply: impl FnOnce(&mut Stream)) {
        match self.streams.get_mut(&(client, request)) {
            Some(stream) => apply(stream),
            None => self.unknown.push(Violation::UnknownRequest { client, request }),
        }
    }

    /// Invalidations before `at` that no lease granted by `at` has healed.
    fn unhealed(&self, at: BootInstant) -> impl Iterator<Item = Invalidation> {
        self.invalidations.iter().copied().filter(move |invalidation| {
            invalidation.at < at
                && !self.leases.iter().any(|lease| lease.granted_at <= at && invalidation.healed_by(lease))
        })
    }

    fn judge_release(
        &self,
        client: u32,
        request: u64,
        sent_at: BootInstant,
        received_at: BootInstant,
        rules: &Rules,
    ) -> Option<Violation> {
        if !self.leases.iter().any(|lease| lease.granted_at <= received_at) {
            return Some(Violation::WithoutLease { client, request });
        }
        self.unhealed(received_at).find_map(|invalidation| {
            let Invalidation { at, cause } = invalidation;
            let bound = invalidation.bound(rules);
            // A pushed revocation and its bound: the agent can't know before it hears.
            let grace = if cause == Cause::Revoked { bound } else { Duration::ZERO };
            if sent_at > at.after(grace) {
                Some(Violation::AfterInvalidation { client, request, cause, sent_later_by: sent_at.since(at) })
            } else if received_at > at.after(bound) {
                Some(Violation::TooLate { client, request, cause, later_by: received_at.since(at) })
            } else {
                None
            }
        })
    }

    /// A stream with a credential must end within the bound after each invalidation it lives to see.
    fn judge_end(&self, client: u32, request: u64, stream: &Stream, rules: &Rules) -> Option<Violation> {
        let first = *stream.released.first()?;
        self.invalidations.iter().filter(|invalidation| invalidation.at > stream.sent_at).find_map(|invalidation| {
            let Invalidation { at, cause } = *invalidation;
            // Released on measurements already newer than this invalidation: not touched by it.
            let touched = !self.leases.iter().any(|l| l.granted_at <= first && invalidation.healed_by(l));
            let deadline = at.max(first).after(invalidation.bound(rules));
            match &stream.ended {
                _ if !touched => None,
                Some((ended_at, _)) if *ended_at <= deadline => None,
                Some((ended_at, _)) => {
                    let ended_after = Some(ended_at.since(at));
                    Some(Violation::StreamStayed { client, request, cause, ended_after })
                }
                None if self.last < deadline => Some(Violation::WatchedTooShort { cause }),
                None => Some(Violation::StreamStayed { client, request, cause, ended_after: None }),
            }
        })
    }
    /// A denial needs an invalidation that no lease had healed when the request was sent.
    fn judge_denial(&self, client: u32, request: u64, stream: &Stream, rules: &Rules) -> Option<Violation> {
        let (ended_at, Status::Denied) = stream.ended.as_ref()? else { return None };
        let first_lease = self.leases.first()?;
        let caused = *ended_at < first_lease.granted_at.after(rules.settle)
            || self.invalidations.iter().any(|invalidation| {
                let settled = |lease: &Lease| lease.granted_at.after(rules.settle) <= stream.sent_at;
                invalidation.at < *ended_at
                    && !self.leases.iter().any(|lease| settled(lease) && invalidation.healed_by(lease))
            });
        (!caused).then_some(Violation::DeniedWithoutCause { client, request })
    }
}
