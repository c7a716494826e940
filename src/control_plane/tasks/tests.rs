use super::super::audit::listing;
use super::super::credentials::ledger::{Credential, Kind};
use super::super::registry::nodes;
use super::super::store::Store;
use super::*;

const NODE: NodeId = NodeId::from_bytes([1; 32]);
const RUN: [u8; 16] = [7; 16];
const WEB: &str = "spiffe://example.org/web";

fn stated(number: u64, id: &str) -> TaskStatement {
    let (id, intent, purpose) = (id.to_owned(), "close the books".to_owned(), String::new());
    TaskStatement { id, run: RUN, number, intent, purpose, heartbeat_seconds: 0, term_seconds: 0 }
}

/// A store with two nodes.
fn store() -> (tempfile::TempDir, Store) {
    let (dir, store) = nodes::tests::store();
    store
        .transaction_blocking(|tx| [1, 2].into_iter().try_for_each(|n| nodes::put(tx, &nodes::tests::waiting(n))))
        .unwrap();
    (dir, store)
}

fn issue(tx: &Transaction<'_>, id: &str, task: &str) -> Result<(), Refusal> {
    let credential = Credential {
        id: id.to_owned(),
        kind: Kind::Jwt,
        decision: "d".to_owned(),
        node: NODE,
        workload: WEB.to_owned(),
        task: Some(task.to_owned()),
        audience: Vec::new(),
        signer: 1,
        lease_sequence: 1,
        issued_at: WallTime(1),
        not_after: WallTime(100),
    };
    ledger::issued(tx, &credential, serde_json::json!({}))
}

fn end_of(number: u64) -> TasksEnded {
    let refusal = Refusal::new(codes::TASK_OUT_OF_MEMORY, "signal 9").at("process 7");
    TasksEnded { run: RUN, tasks: vec![crate::protocol::TaskEnd { number, refusal }] }
}

/// In one transaction that is kept.
fn with<T>(
    store: &Store,
    work: impl FnOnce(&Transaction<'_>) -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Refusal>
where
    T: Send + 'static,
{
    store.transaction_blocking(work)
}

#[test]
fn one_of_an_id_lives_on_a_node_and_its_end_is_final() {
    let (_dir, store) = store();
    with(&store, |tx| {
        let first = stated(1, "job");
        check(tx, NODE, WEB, &first)?;
        begin(tx, NODE, WEB, "d1", &first, WallTime(50), WallTime(10))?;
        issue(tx, "a", "job")?;
        issue(tx, "b", "job")?;
        issue(tx, "c", "other")?;
        // The same again is a renewal, and keeps to what it was.
        check(tx, NODE, WEB, &first)?;
        begin(tx, NODE, WEB, "d2", &first, WallTime(80), WallTime(20))?;
        let task = live(tx, Of::Task(NODE, "job"))?.remove(0);
        assert_eq!((task.not_after, task.decision.as_str(), task.began_at), (WallTime(80), "d1", WallTime(10)));
        for (workload, stated) in
            [(WEB, stated(2, "job")), ("spiffe://example.org/db", first.clone()), (WEB, stated(1, "job2"))]
        {
            assert_eq!(check(tx, NODE, workload, &stated).unwrap_err().code, codes::TASK_INVALID);
        }
        // Elsewhere it is another one's, and so it is for another workload: its end is none of this one's.
        check(tx, NodeId::from_bytes([2; 32]), WEB, &stated(2, "job"))?;
        let (db, other) = ("spiffe://example.org/db", stated(9, "job"));
        check(tx, NODE, db, &other)?;
        begin(tx, NODE, db, "d9", &other, WallTime(50), WallTime(5))?;
        ended(tx, NODE, &end_of(9), WallTime(21))?;
        assert_eq!(ledger::live(tx, ledger::Of::Task(NODE, "job"))?.len(), 2);

        for _ in 0..2 {
            ended(tx, NODE, &end_of(1), WallTime(30))?;
        }
        assert_eq!(check(tx, NODE, WEB, &first).unwrap_err().code, codes::TASK_UNKNOWN, "no renewal after the end");
        check(tx, NODE, WEB, &stated(2, "job"))?;
        let left: Vec<String> =
            ledger::live(tx, ledger::Of::Node(NODE))?.into_iter().map(|credential| credential.id).collect();
        assert_eq!(left, ["c"]);
        let task = latest(tx, Some("job"), false, 10)?.remove(0);
        let (at, code, reason) = task.ended.unwrap();
        assert_eq!((at, code, reason.as_str()), (WallTime(30), codes::TASK_OUT_OF_MEMORY, "process 7: signal 9"));
        let records = listing::list(tx, listing::Of::Log, 0, 100, false, &listing::Filter::default())?;
        let count = |what: &str| records.iter().filter(|record| record.what == what).count();
        assert_eq!((count("task.began"), count("task.ended"), count("credential.revoked")), (2, 2, 2));
        Ok(())
    })
    .unwrap();
}

#[test]
fn what_another_run_held_ends_with_the_first_word_of_the_next() {
    let (_dir, store) = store();
    with(&store, |tx| {
        for number in 1..=3 {
            begin(tx, NODE, WEB, "d", &stated(number, &format!("job{number}")), WallTime(50), WallTime(10))?;
        }
        begin(tx, NodeId::from_bytes([2; 32]), WEB, "d", &stated(1, "job"), WallTime(50), WallTime(10))?;
        ended(tx, NODE, &TasksEnded { run: RUN, tasks: Vec::new() }, WallTime(20))?;
        assert_eq!(live(tx, Of::Node(NODE))?.len(), 3);
        // An id that is free once the agent is another: also when its beginning is the first word.
        let again = TaskStatement { run: [8; 16], ..stated(1, "job1") };
        check(tx, NODE, WEB, &again)?;
        begin(tx, NODE, WEB, "d", &again, WallTime(50), WallTime(20))?;
        let left = live(tx, Of::Workload(WEB))?;
        assert_eq!(left.len(), 2, "the other node's is none of its business");
        assert_eq!(left[1].run, [8; 16]);
        // What the run before still has to say is about what is over.
        ended(tx, NODE, &TasksEnded { run: [8; 16], tasks: end_of(2).tasks }, WallTime(21))?;
        assert_eq!(live(tx, Of::Node(NODE))?.len(), 1);
        let all = latest(tx, None, false, 10)?;
        assert_eq!(all.iter().filter(|task| matches!(task.ended, Some((_, codes::TASK_ABANDONED, _)))).count(), 3);
        Ok(())
    })
    .unwrap();
}

#[test]
fn what_is_not_renewed_runs_out() {
    let (_dir, store) = store();
    with(&store, |tx| {
        begin(tx, NODE, WEB, "d", &stated(1, "job"), WallTime(50), WallTime(10))?;
        assert_eq!(expire(tx, WallTime(49))?, 0);
        assert_eq!(expire(tx, WallTime(50))?, 1);
        assert_eq!(latest(tx, None, true, 10)?, []);
        begin(tx, NODE, WEB, "d", &stated(2, "job"), WallTime(500), WallTime(60))?;
        assert!(!forget(tx, WallTime(50))?);
        assert_eq!(latest(tx, None, false, 10)?.len(), 2);
        forget(tx, WallTime(51))?;
        assert_eq!(latest(tx, None, false, 10)?.iter().map(|task| task.number).collect::<Vec<_>>(), [2]);
        let many = TasksEnded { run: RUN, tasks: (0..257).flat_map(|n| end_of(n).tasks).collect() };
        assert_eq!(ended(tx, NODE, &many, WallTime(60)).unwrap_err().code, codes::PROTOCOL_MALFORMED);
        Ok(())
    })
    .unwrap();
}

/// A node says how its tasks ended; whether a credential is over, its time says.
#[test]
fn no_word_of_a_node_keeps_a_credential_off_the_lists() {
    let (_dir, store) = store();
    with(&store, |tx| {
        begin(tx, NODE, WEB, "d", &stated(1, "job"), WallTime(100), WallTime(1))?;
        issue(tx, "a", "job")?;
        let refusal = Refusal::new(codes::ISSUER_EXPIRED, "it couldn't be renewed in time");
        let told = TasksEnded { run: RUN, tasks: vec![crate::protocol::TaskEnd { number: 1, refusal }] };
        ended(tx, NODE, &told, WallTime(30))?;
        let listed = |now| ledger::withdrawn(tx, Kind::Jwt, None, WallTime(now));
        let one = ledger::Ended { id: "a".to_owned(), ended_at: WallTime(30), not_after: WallTime(100) };
        assert_eq!((listed(99)?, listed(100)?), (vec![one], Vec::new()));
        assert_eq!(ledger::withdrawn(tx, Kind::X509, None, WallTime(30))?, []);
        let records = listing::list(tx, listing::Of::Log, 0, 100, false, &listing::Filter::default())?;
        assert!(records.iter().any(|record| record.what == "credential.revoked"));
        // What ran out is on none.
        issue(tx, "b", "later")?;
        assert_eq!(ledger::expire(tx, WallTime(100))?, 1);
        assert_eq!(listed(99)?.len(), 1);
        Ok(())
    })
    .unwrap();
}

#[test]
fn statements_keep_to_their_bounds() {
    let good = stated(1, "a.B:c_d-0");
    good.check().unwrap();
    for bad in [
        TaskStatement { id: String::new(), ..good.clone() },
        TaskStatement { id: "x".repeat(129), ..good.clone() },
        TaskStatement { id: "a/b".to_owned(), ..good.clone() },
        TaskStatement { id: "ä".to_owned(), ..good.clone() },
        TaskStatement { intent: "x".repeat(257), ..good.clone() },
        TaskStatement { purpose: "a\nb".to_owned(), ..good.clone() },
        TaskStatement { heartbeat_seconds: 3601, ..good.clone() },
    ] {
        assert_eq!(bad.check().unwrap_err().code, codes::TASK_INVALID, "{bad:?}");
    }
}
