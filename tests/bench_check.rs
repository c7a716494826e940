//! The checker must find what it is for: logs with one broken promise each, and good logs.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod bench;

use std::time::Duration;

use bench::{Cause, Event, Oracle, Rules, Status, Violation, What, check, stream_end_delays};
use leasehold::clock::BootInstant;

fn at(ms: u64) -> BootInstant {
    BootInstant::from_nanos(ms * 1_000_000)
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

const FAR: u64 = 1_000_000;

fn lease(granted: u64, measured: u64, expires: u64) -> Event {
    Event { at: at(granted), what: What::LeaseGranted { measured_at: at(measured), expires_at: at(expires) } }
}

fn sent(when: u64, request: u64) -> Event {
    Event { at: at(when), what: What::RequestSent { client: 1, request } }
}

fn released(when: u64, request: u64) -> Event {
    Event { at: at(when), what: What::Released { client: 1, request } }
}

fn ended(when: u64, request: u64, status: Status) -> Event {
    Event { at: at(when), what: What::StreamEnded { client: 1, request, status } }
}

fn refused(when: u64, request: u64, status: Status) -> Event {
    Event { at: at(when), what: What::Refused { client: 1, request, status } }
}

fn truth(when: u64, what: What) -> Event {
    Event { at: at(when), what }
}

fn found(events: &[Event]) -> Vec<Violation> {
    check(events, &Rules::default())
}

/// A day without fault: fetch, rotation, drift, the stream ends, refusals, a new lease, fetch.
fn good() -> Vec<Event> {
    vec![
        lease(10, 5, FAR),
        sent(20, 1),
        released(25, 1),
        released(400, 1),
        truth(1_000, What::Extended { pcr: 7 }),
        ended(1_300, 1, Status::Denied),
        sent(1_400, 2),
        refused(1_410, 2, Status::Denied),
        lease(5_000, 4_990, FAR),
        sent(5_100, 3),
        released(5_110, 3),
        ended(5_200, 3, Status::Cancelled),
        truth(20_000, What::Closed),
    ]
}

#[test]
fn a_good_log_has_no_violation() {
    assert_eq!(found(&good()), []);
    assert_eq!(stream_end_delays(&good()), [ms(300)]);
}

#[test]
fn a_release_before_any_lease_is_found() {
    let events = [sent(1, 1), released(2, 1), lease(10, 5, FAR), ended(11, 1, Status::Cancelled)];
    assert_eq!(found(&events), [Violation::WithoutLease { client: 1, request: 1 }]);
}

#[test]
fn a_release_to_a_request_sent_after_each_kind_of_invalidation_is_found() {
    for (what, cause, after) in [
        (What::Extended { pcr: 7 }, Cause::Extended(7), 1),
        (What::Reset, Cause::Reset, 1),
        (What::Ended, Cause::Ended, 1),
        (What::Revoked, Cause::Revoked, 2_001),
    ] {
        let events = [
            lease(10, 5, FAR),
            truth(100, what),
            sent(100 + after, 1),
            released(102 + after, 1),
            ended(103 + after, 1, Status::Cancelled),
        ];
        let violation = Violation::AfterInvalidation { client: 1, request: 1, cause, sent_later_by: ms(after) };
        assert_eq!(found(&events), [violation]);
    }
}

#[test]
fn a_request_sent_before_the_extend_may_be_answered_until_the_bound() {
    let events = |received: u64| {
        vec![
            lease(10, 5, FAR),
            sent(99, 1),
            truth(100, What::Extended { pcr: 7 }),
            released(received, 1),
            ended(received + 1, 1, Status::Denied),
            truth(3_000, What::Closed),
        ]
    };
    assert_eq!(found(&events(1_100)), []);
    let late = Violation::TooLate { client: 1, request: 1, cause: Cause::Extended(7), later_by: ms(1_001) };
    assert_eq!(found(&events(1_101)), [late]);
}

#[test]
fn a_lease_on_older_measurements_heals_no_extend() {
    // Quoted at 90, extended at 100, granted at 110: the lease doesn't know of the extend.
    let events = [
        lease(10, 5, FAR),
        truth(100, What::Extended { pcr: 7 }),
        lease(110, 90, FAR),
        sent(120, 1),
        released(121, 1),
        ended(122, 1, Status::Cancelled),
    ];
    assert!(matches!(found(&events)[..], [Violation::AfterInvalidation { cause: Cause::Extended(7), .. }]));
    // A revocation is healed by being admitted again, whatever was measured when.
    let mut events = events;
    events[1].what = What::Revoked;
    assert_eq!(found(&events), []);
}

#[test]
fn a_release_after_expiry_is_found_and_a_renewed_lease_does_not_expire() {
    let events = |second: Option<Event>| -> Vec<Event> {
        let mut events = vec![lease(10, 5, 1_000), sent(1_001, 1), released(1_002, 1), ended(1_003, 1, Status::Denied)];
        events.extend(second);
        events
    };
    let violation = Violation::AfterInvalidation { client: 1, request: 1, cause: Cause::Expired, sent_later_by: ms(1) };
    assert_eq!(found(&events(None)), std::slice::from_ref(&violation));
    assert_eq!(found(&events(Some(lease(900, 890, FAR)))), []);
    // A renewal that is no longer than the first changes nothing.
    assert_eq!(found(&events(Some(lease(900, 890, 1_000)))), [violation]);
}

#[test]
fn a_stream_that_stays_open_or_ends_late_is_found() {
    let mut events = good();
    events[5] = ended(2_001, 1, Status::Denied);
    let late = |ended_after| Violation::StreamStayed { client: 1, request: 1, cause: Cause::Extended(7), ended_after };
    assert_eq!(found(&events), [late(Some(ms(1_001)))]);
    events.remove(5);
    assert_eq!(found(&events), [late(None)]);
}

#[test]
fn a_push_on_an_open_stream_after_the_bound_is_found() {
    let mut events = good();
    events.push(released(2_100, 1));
    events[5] = ended(2_200, 1, Status::Denied);
    let violations = found(&events);
    assert!(violations.iter().any(|v| matches!(v, Violation::TooLate { request: 1, .. })), "{violations:?}");
    assert!(violations.iter().any(|v| matches!(v, Violation::StreamStayed { request: 1, .. })), "{violations:?}");
}

#[test]
fn a_log_that_ends_too_early_proves_nothing() {
    let events = [lease(10, 5, FAR), sent(20, 1), released(21, 1), truth(100, What::Reset), truth(1_099, What::Closed)];
    assert_eq!(found(&events), [Violation::WatchedTooShort { cause: Cause::Reset }]);
}

#[test]
fn a_denial_without_cause_is_found_and_unavailable_is_none() {
    let events = |status| [lease(10, 5, FAR), sent(20_000, 1), refused(20_001, 1, status)];
    assert_eq!(found(&events(Status::Denied)), [Violation::DeniedWithoutCause { client: 1, request: 1 }]);
    assert_eq!(found(&events(Status::Unavailable)), []);
    // Long after the new lease a denial has no cause any more.
    let mut events = good();
    events.insert(12, refused(19_000, 4, Status::Denied));
    events.insert(12, sent(18_999, 4));
    assert_eq!(found(&events), [Violation::DeniedWithoutCause { client: 1, request: 4 }]);
}

#[test]
fn a_release_without_its_request_is_found() {
    assert_eq!(found(&[lease(10, 5, FAR), released(20, 9)]), [Violation::UnknownRequest { client: 1, request: 9 }]);
}

#[test]
fn the_oracle_sorts_by_time_and_dumps_json_lines() {
    let oracle = Oracle::default();
    let now = oracle.record(What::RequestSent { client: 3, request: 4 });
    oracle.record_at(BootInstant::from_nanos(5), What::Extended { pcr: 7 });
    std::thread::scope(|scope| {
        for client in 0..4 {
            let oracle = oracle.clone();
            scope.spawn(move || {
                (0..100).for_each(|request| {
                    oracle.record(What::Released { client, request });
                })
            });
        }
    });
    let events = oracle.events();
    assert_eq!(events.len(), 402);
    assert!(events.is_sorted_by_key(|event| event.at));
    assert_eq!(events[1].at, now);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log.jsonl");
    oracle.dump(&path).unwrap();
    let text = std::fs::read_to_string(path).unwrap();
    assert_eq!(text.lines().next(), Some(r#"{"at":5,"event":"extended","pcr":7}"#));
    assert!(text.lines().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()));
}
