use super::*;
use crate::control_plane::credentials::ledger::{self, Credential, Kind, Of};
use crate::control_plane::events::Audience;
use crate::control_plane::registry::nodes::{self, Node, State};
use crate::control_plane::registry::owners;
use crate::control_plane::registry::sample::{NOW, rules, store};
use crate::control_plane::registry::workloads::{Stated, Workload};
use crate::identity::NodeId;
use crate::protocol::Event;

const NODE: NodeId = NodeId::from_bytes([1; 32]);
const DAY: u64 = 86_400;
const BOUNDS: Governance = Governance {
    exception: 30 * DAY,
    approval: DAY,
    review: 90 * DAY,
    unused: 400 * DAY,
    suspend_overdue: Some(7 * DAY),
};

fn id(name: &str) -> String {
    format!("spiffe://example.org/prod/{name}")
}

/// A node, and these workloads of its, each with a credential that lasts.
fn registered(tx: &Transaction<'_>, names: &[&str]) -> Result<(), Refusal> {
    let node = Node {
        id: NODE,
        state: State::Admitted,
        group: Some("prod-edge".to_owned()),
        environment: "prod".to_owned(),
        ..nodes::tests::waiting(1)
    };
    nodes::put(tx, &node)?;
    let owner =
        owners::Stated { name: "shop".to_owned(), contact: String::new(), kind: owners::Kind::Team, again: false };
    owners::put(tx, &owner, NOW)?;
    for name in names {
        let stated = Stated {
            id: id(name),
            owner: "shop".to_owned(),
            purpose: "sells".to_owned(),
            node_group: Some("prod-edge".to_owned()),
            selectors: vec![format!("unix:path:/bin/{name}")],
            ..Stated::default()
        };
        workloads::put(tx, &Workload::check(tx, stated, &rules())?, NOW)?;
        issued(tx, name)?;
    }
    Ok(())
}

fn issued(tx: &Transaction<'_>, name: &str) -> Result<(), Refusal> {
    let credential = Credential {
        id: format!("credential of {name}"),
        kind: Kind::X509,
        decision: "d".to_owned(),
        node: NODE,
        workload: id(name),
        task: None,
        audience: Vec::new(),
        signer: 1,
        lease_sequence: 1,
        issued_at: NOW,
        not_after: WallTime(NOW.0 + 1000 * DAY),
    };
    ledger::issued(tx, &credential, serde_json::json!({}))
}

fn live(tx: &Transaction<'_>, name: &str) -> Result<usize, Refusal> {
    Ok(ledger::live(tx, Of::Workload(&id(name)))?.len())
}

/// Whether the node is told to withdraw, and after that to ask again.
fn tells(effects: &Effects) -> bool {
    assert!(effects.taken, "a restored store would give it back");
    let first = matches!(effects.push.first(), Some((Audience::Node(NODE), Event::Withdraw(_))));
    first && effects.push.last() == Some(&(Audience::Node(NODE), Event::Attest))
}

#[test]
fn a_workload_that_nobody_reviews_is_suspended() {
    let (_dir, store) = store();
    let suspended = |tx: &Transaction<'_>, name: &str| workloads::existing(tx, &id(name)).map(|it| it.suspended);
    let at = |days: u64| WallTime(NOW.0 + days * DAY);
    store
        .transaction_blocking(|tx| {
            registered(tx, &["looked-at", "forgotten"])?;
            reviews::sign(tx, &id("looked-at"), "somebody", "fine", at(80))?;
            // Not before both have passed, the time for the review and the time of grace.
            for early in [at(89), at(90), WallTime(at(97).0 - 1)] {
                let effects = round(tx, &BOUNDS, early)?;
                assert!(effects.push.is_empty() && !effects.taken, "{early}");
            }
            assert!(round(tx, &Governance { suspend_overdue: None, ..BOUNDS }, at(900))?.push.is_empty());
            assert_eq!((live(tx, "looked-at")?, live(tx, "forgotten")?), (1, 1));
            let effects = round(tx, &BOUNDS, at(97))?;
            assert!(tells(&effects), "{effects:?}");
            assert_eq!((live(tx, "looked-at")?, live(tx, "forgotten")?), (1, 0));
            let reason = suspended(tx, "forgotten")?.expect("it is suspended").reason;
            assert!(reason.contains("nobody looked at it since"), "{reason}");
            assert_eq!(suspended(tx, "looked-at")?, None);
            // It is said once; and the other one's day comes too.
            assert!(round(tx, &BOUNDS, at(98))?.push.is_empty());
            assert!(tells(&round(tx, &BOUNDS, at(177))?));
            let said: i64 =
                tx.query_row("SELECT count(*) FROM log WHERE what = 'workload.suspended'", [], |row| row.get(0))?;
            assert_eq!(said, 2);
            Ok(())
        })
        .unwrap();
}

#[test]
fn what_stands_on_exceptions_ends_with_the_last_of_them() {
    let (_dir, store) = store();
    store
        .transaction_blocking(|tx| {
            registered(tx, &["let-off"])?;
            for days in [1, 3] {
                let stated = exceptions::Stated {
                    workload: &id("let-off"),
                    owner: "shop",
                    reason: "an old library",
                    ticket: "T-1",
                    seconds: days * DAY,
                    by: "somebody",
                };
                exceptions::add(tx, &stated, &BOUNDS, NOW)?;
            }
            // One of them ended: that is recorded, and nothing is taken away.
            let effects = round(tx, &BOUNDS, WallTime(NOW.0 + DAY))?;
            assert!(effects.push.is_empty() && !effects.taken, "{effects:?}");
            assert_eq!(live(tx, "let-off")?, 1);
            assert!(tells(&round(tx, &BOUNDS, WallTime(NOW.0 + 3 * DAY))?));
            assert_eq!(live(tx, "let-off")?, 0);
            let said: i64 =
                tx.query_row("SELECT count(*) FROM log WHERE what = 'exception.ended'", [], |row| row.get(0))?;
            assert_eq!(said, 2);
            Ok(())
        })
        .unwrap();
}
