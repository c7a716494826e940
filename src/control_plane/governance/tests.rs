use super::*;
use crate::control_plane::admin::roles::Actor;
use crate::control_plane::credentials::ledger::{self, Credential, Kind, Of};
use crate::control_plane::events::Audience;
use crate::control_plane::registry::nodes::{self, Node, State};
use crate::control_plane::registry::operators::Operator;
use crate::control_plane::registry::owners;
use crate::control_plane::registry::sample::{NOW, rules, store};
use crate::control_plane::registry::workloads::{Changes, Stated, Workload};
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
        let stated = of(name);
        workloads::put(tx, &Workload::check(tx, stated, &rules())?, NOW)?;
        issued(tx, name)?;
    }
    Ok(())
}

fn of(name: &str) -> Stated {
    Stated {
        id: id(name),
        owner: "shop".to_owned(),
        purpose: "sells".to_owned(),
        node_group: Some("prod-edge".to_owned()),
        selectors: vec![format!("unix:path:/bin/{name}")],
        ..Stated::default()
    }
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

#[test]
fn an_approval_is_for_what_was_looked_at_and_for_its_time() {
    let (_dir, store) = store();
    let boss = Operator {
        id: id("boss"),
        role: "approver".to_owned(),
        owner: Some("security".to_owned()),
        added: String::new(),
        added_by: String::new(),
    };
    let actor = Actor { name: id("asker"), role: "operator".to_owned(), local: false };
    let ask = |tx: &Transaction<'_>, at: WallTime| {
        let workload = workloads::existing(tx, &id("pay"))?;
        let asked =
            approvals::Asked { workload: &workload, destination: "", reason: "month's end", seconds: 3600, by: &actor };
        Ok::<_, Refusal>(approvals::request(tx, &asked, &BOUNDS, at)?.id)
    };
    let grant = |tx: &Transaction<'_>, asked: &str, at: WallTime| {
        approvals::grant(tx, asked, approvals::Approver::Operator(&boss), "shop", "", at)
    };
    let until = |tx: &Transaction<'_>, at: WallTime| approvals::until(tx, &id("pay"), "", at);
    let later = |seconds: u64| WallTime(NOW.0 + seconds);
    store
        .transaction_blocking(|tx| {
            registered(tx, &["pay"])?;
            let asked = ask(tx, NOW)?;
            grant(tx, &asked, NOW)?;
            assert_eq!(until(tx, later(3599))?, Some(later(3600)));
            // Over is over, whether or not a round came by.
            assert_eq!(until(tx, later(3600))?, None);
            // Other processes, another purpose or owner: nobody looked at that. What is asked for ends as well.
            let waiting = ask(tx, later(10))?;
            let changes: [fn(&mut Changes); 3] = [
                |changes| changes.selectors = vec!["unix:uid:7".to_owned()],
                |changes| changes.purpose = Some("buys".to_owned()),
                |changes| changes.node = Some(NODE.to_string()),
            ];
            for (number, change) in changes.into_iter().enumerate() {
                let mut changes = Changes { id: id("pay"), ..Changes::default() };
                change(&mut changes);
                let _ = registrations::workloads::set(tx, changes, &rules(), later(20))?;
                assert_eq!(until(tx, later(20))?, None, "{number}");
                let again = ask(tx, later(20))?;
                grant(tx, &again, later(20))?;
                assert!(until(tx, later(20))?.is_some());
            }
            let refusal = grant(tx, &waiting, later(30)).expect_err("its workload was changed");
            assert!(refusal.to_string().contains("a new request"), "{refusal}");
            // Removed and registered anew: another workload of the same name.
            exceptions::add(
                tx,
                &exceptions::Stated {
                    workload: &id("pay"),
                    owner: "shop",
                    reason: "an old library",
                    ticket: "T-1",
                    seconds: DAY,
                    by: "somebody",
                },
                &BOUNDS,
                later(30),
            )?;
            reviews::sign(tx, &id("pay"), "somebody", "", later(30))?;
            let _ = registrations::workloads::remove(tx, &id("pay"), None, later(40))?;
            let anew = later(100 * DAY);
            workloads::put(tx, &Workload::check(tx, of("pay"), &rules())?, anew)?;
            assert_eq!(standing(tx, &id("pay"), "", later(50))?, Standing::default());
            assert!(round(tx, &BOUNDS, anew)?.push.is_empty(), "an old signature isn't this one's");
            // A request that nobody decides ends, too.
            let asked = ask(tx, anew)?;
            round(tx, &BOUNDS, WallTime(anew.0 + BOUNDS.approval - 1)).map(drop)?;
            assert!(approvals::find(tx, &asked)?.ended_at.is_none());
            round(tx, &BOUNDS, WallTime(anew.0 + BOUNDS.approval)).map(drop)?;
            assert!(grant(tx, &asked, WallTime(anew.0 + BOUNDS.approval)).is_err());
            Ok(())
        })
        .unwrap();
}
