use proptest::prelude::*;

use super::super::sample::{NOW, Sample, samples, store};
use super::*;
use crate::control_plane::store::params;

/// Credentials of the sample: for each number a pair of node and workload, also of some that don't belong together.
fn issue(tx: &Transaction<'_>, sample: &Sample, picks: &[(usize, usize, bool)]) {
    let nodes = nodes::all(tx).unwrap();
    for (number, (node, workload, live)) in picks.iter().enumerate().filter(|_| !nodes.is_empty()) {
        let id = format!("spiffe://example.org/prod/w{}", workload % (sample.workloads.len() + 1));
        tx.execute(
            "INSERT INTO credentials(id, kind, decision, node, workload, signer, lease_sequence, issued_at, not_after, ended_at)
             VALUES (?1, 'x509', 'd', ?2, ?3, 1, 1, 0, 9, ?4)",
            params![number.to_string(), nodes[node % nodes.len()].id.as_bytes(), id, (!live).then_some(1)],
        )
        .unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn its_rows_and_sums_are_the_stores_facts(
        sample in samples(),
        picks in prop::collection::vec((any::<usize>(), any::<usize>(), any::<bool>()), 0..12),
    ) {
        let (_dir, store) = store();
        store.transaction_blocking(|tx| {
            sample.write(tx);
            issue(tx, &sample, &picks);
            let found = of(tx, NOW)?;
            let count = |sql: &str| unsigned(tx.query_row(sql, [], |row| row.get(0)).unwrap());
            let pairs = "SELECT w.id AS workload, n.id AS node FROM workloads w JOIN nodes n
                         ON w.node = n.id OR w.node_group = n.node_group";
            let held = "SELECT DISTINCT workload, node FROM credentials WHERE ended_at IS NULL";
            // Pairs, further pairs that still hold something, workloads without and nodes without either.
            let expected = count(&format!("SELECT count(*) FROM (SELECT workload, node FROM ({pairs}) UNION {held})"))
                + count(&format!("SELECT count(*) FROM workloads WHERE id NOT IN (SELECT workload FROM ({pairs}))"))
                + count(&format!(
                    "SELECT count(*) FROM nodes WHERE id NOT IN (SELECT node FROM ({pairs}) UNION SELECT node FROM ({held}))"
                ));
            assert_eq!(found.rows.len() as u64, expected);
            let sum = |of: fn(&Row) -> u64| found.rows.iter().map(of).sum::<u64>();
            assert_eq!(sum(|row| row.live_credentials), found.totals.live_credentials);
            let distinct = |of: fn(&Row) -> Option<&String>| found.rows.iter().filter_map(of).collect::<BTreeSet<_>>().len() as u64;
            assert_eq!(distinct(|row| row.node.as_ref()), found.totals.nodes);
            let registered: BTreeSet<_> = found.rows.iter().filter(|row| row.registered && row.owner.is_some()).map(|row| &row.workload).collect();
            let registered_or_held: BTreeSet<_> = found.rows.iter().filter(|row| row.owner.is_some()).map(|row| &row.workload).collect();
            assert_eq!((registered.len() as u64, registered_or_held.len()), (found.totals.workloads, registered.len()));
            let suspended: BTreeSet<_> = found.rows.iter().filter(|row| row.suspended.is_some()).map(|row| &row.workload).collect();
            assert_eq!(suspended.len() as u64, found.totals.suspended);
            // Nobody who left answers for something that isn't suspended.
            assert!(found.rows.iter().all(|row| row.owner_retired.is_none() || row.suspended.is_some()));
            Ok(())
        }).unwrap();
    }
}
