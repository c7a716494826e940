//! The log against changed bytes, cuts, chains computed anew, older stores and hostile words.

use std::path::PathBuf;

use rusqlite::Connection;

use super::heads::Heads;
use super::listing::{Filter, Of};
use super::verify::Report;
use super::*;
use crate::control_plane::keys::WrappingKey;
use crate::control_plane::store::{Store, open_reader};

struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    /// In memory, where there is such a place: thousands of changes are written here.
    fn new() -> Self {
        Self { dir: tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap() }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("store.db")
    }

    fn witness(&self) -> PathBuf {
        self.dir.path().join("wrapping.key.audit")
    }

    /// Opens the store as the server does; says whether its end was missing.
    fn open(&self, restored: bool) -> (Store, Heads, bool) {
        let store = Store::open(&self.path()).unwrap();
        let wrapping = WrappingKey::open(&self.dir.path().join("wrapping.key"), true).unwrap();
        let opened =
            store.transaction_blocking(|tx| Heads::open(tx, &wrapping, self.witness(), restored, WallTime(5))).unwrap();
        (store, opened.0, opened.1)
    }

    /// Six records, signed.
    fn sample(&self) {
        let (store, heads, _) = self.open(false);
        store
            .transaction_blocking(|tx| {
                for n in 0..6u64 {
                    let (workload, task) = (format!("spiffe://example.org/{n}"), format!("task {n}"));
                    let subject = Subject {
                        node: Some(NodeId::from_bytes([7; 32])),
                        workload: Some(&workload),
                        lease: Some(n),
                        decision: Some("00112233"),
                        credential: Some("aa"),
                        task: Some(&task),
                    };
                    about(
                        tx,
                        WallTime(n + 1000),
                        "credential.issued",
                        &subject,
                        serde_json::json!({"n": n, "é": "é"}),
                    )?;
                }
                Ok(())
            })
            .unwrap();
        let signed = store.transaction_blocking(|tx| heads.sign(tx, WallTime(2000))).unwrap().unwrap();
        heads.write_witness(&signed).unwrap();
    }

    /// Computes the chain of the records that are there anew.
    fn make_to_fit(&self) {
        let connection = Connection::open(self.path()).unwrap();
        let mut chain = crate::protocol::Chain::begin(&chain::head(&connection).unwrap().unwrap().writer);
        let last: i64 = connection.query_row("SELECT max(id) FROM log", [], |row| row.get(0)).unwrap();
        let query = format!("SELECT {} FROM log WHERE id = ?1", chain::COLUMNS);
        for id in 1..=last {
            let row = connection.query_row(&query, [id], chain::Row::read).unwrap();
            chain = chain.then(&row.record.unwrap().line());
            let changed = rusqlite::params![id, chain.as_bytes()];
            connection.execute("UPDATE log SET chain = ?2 WHERE id = ?1", changed).unwrap();
        }
        connection.execute("UPDATE log_chain SET chain = ?1", [chain.as_bytes()]).unwrap();
    }

    fn verify(&self) -> Report {
        verify::verify(&open_reader(&self.path()).unwrap(), Some(&self.witness()), None).unwrap()
    }

    fn first(&self) -> (u64, Code) {
        let report = self.verify();
        let first = report.findings.first().unwrap_or_else(|| panic!("nothing was found: {report:?}"));
        assert!(!report.holds);
        (first.number, first.code)
    }

    fn change(&self, statement: &str) {
        Connection::open(self.path()).unwrap().execute_batch(statement).unwrap();
    }
}

use crate::codes::Code;

/// Every byte of every column of every row, changed in several ways: found, and the record named.
#[test]
fn a_changed_byte_in_any_column_is_found_and_named() {
    let bench = Bench::new();
    bench.sample();
    assert_eq!(bench.verify().findings, []);
    assert!(bench.verify().holds);
    let connection = Connection::open(bench.path()).unwrap();
    // As somebody would who wants to be quick about it: what is tested is the verification.
    connection.execute_batch("PRAGMA synchronous = OFF; PRAGMA ignore_check_constraints = ON;").unwrap();
    let columns = ["what", "node", "workload", "decision", "credential", "task", "detail", "chain"];
    let mut tried = 0;
    for number in 1..=6_i64 {
        for column in columns {
            let text = !matches!(column, "node" | "chain");
            let read = format!("SELECT CAST({column} AS BLOB) FROM log WHERE id = ?1");
            let bytes: Vec<u8> = connection.query_row(&read, [number], |row| row.get(0)).unwrap();
            let cast = if text { "CAST(?2 AS TEXT)" } else { "?2" };
            let write = format!("UPDATE log SET {column} = {cast} WHERE id = ?1");
            for position in 0..bytes.len() {
                for mask in [0x01, 0x20, 0xff] {
                    let mut changed = bytes.clone();
                    changed[position] ^= mask;
                    connection.execute(&write, rusqlite::params![number, changed]).unwrap();
                    assert_eq!(bench.first().0, number.cast_unsigned(), "{column}, byte {position} ^ {mask:#04x}");
                    tried += 1;
                }
            }
            connection.execute(&write, rusqlite::params![number, bytes]).unwrap();
        }
        for column in ["time", "lease"] {
            let value: i64 = connection
                .query_row(&format!("SELECT {column} FROM log WHERE id = ?1"), [number], |r| r.get(0))
                .unwrap();
            let write = format!("UPDATE log SET {column} = ?2 WHERE id = ?1");
            for bit in 0..63 {
                connection.execute(&write, rusqlite::params![number, value ^ (1 << bit)]).unwrap();
                assert_eq!(bench.first().0, number.cast_unsigned(), "{column}, bit {bit}");
                tried += 1;
            }
            connection.execute(&write, rusqlite::params![number, value]).unwrap();
        }
        // A value that is taken away.
        for column in ["node", "workload", "lease", "decision", "credential", "task"] {
            let keep: rusqlite::types::Value = connection
                .query_row(&format!("SELECT {column} FROM log WHERE id = ?1"), [number], |r| r.get(0))
                .unwrap();
            connection.execute(&format!("UPDATE log SET {column} = NULL WHERE id = ?1"), [number]).unwrap();
            assert_eq!(bench.first().0, number.cast_unsigned());
            connection
                .execute(&format!("UPDATE log SET {column} = ?2 WHERE id = ?1"), rusqlite::params![number, keep])
                .unwrap();
        }
    }
    assert!(bench.verify().holds, "everything is as it was");
    println!("{tried} changes, all found and named");
}

#[test]
fn cuts_gaps_and_chains_computed_anew_are_found() {
    let cases: [(&str, u64, Code); 7] = [
        ("DELETE FROM log WHERE id = 6", 6, codes::AUDIT_GAP),
        ("DELETE FROM log WHERE id > 2", 3, codes::AUDIT_GAP),
        ("DELETE FROM log", 1, codes::AUDIT_GAP),
        ("DELETE FROM log WHERE id = 1", 1, codes::AUDIT_GAP),
        ("DELETE FROM log WHERE id = 4", 4, codes::AUDIT_GAP),
        // The store's own word of its head changed with it: the heads that were signed remain.
        (
            "DELETE FROM log WHERE id > 4; UPDATE log_chain SET number = 4, chain = (SELECT chain FROM log WHERE id = 4)",
            5,
            codes::AUDIT_GAP,
        ),
        // And those removed, too: the one outside remains.
        (
            "DELETE FROM log WHERE id > 4; UPDATE log_chain SET number = 4, chain = (SELECT chain FROM log WHERE id = 4); DELETE FROM log_heads",
            5,
            codes::AUDIT_GAP,
        ),
    ];
    for (statement, number, code) in cases {
        let bench = Bench::new();
        bench.sample();
        bench.change(statement);
        assert_eq!(bench.first(), (number, code), "{statement}");
    }
    // Everything in the store made to fit: the head outside, and whoever else was given one, doesn't.
    let bench = Bench::new();
    bench.sample();
    bench.change("UPDATE log SET what = 'credential.expired' WHERE id = 3");
    bench.make_to_fit();
    bench.change("DELETE FROM log_heads");
    assert_eq!(bench.first(), (6, codes::AUDIT_TAMPERED));
    // Without the file outside nothing in the store tells, and that is said.
    std::fs::remove_file(bench.witness()).unwrap();
    let report = bench.verify();
    assert!(report.holds && report.unprotected.iter().any(|words| words.contains("isn't at hand")), "{report:?}");
}

/// A server that runs knows what it signed, whatever the store says by now: it doesn't sign a forged log.
#[test]
fn a_running_server_notices_a_log_that_was_made_to_fit() {
    let forge = "UPDATE log SET what = 'credential.expired' WHERE id = 3";
    let cut =
        "DELETE FROM log WHERE id > 4; UPDATE log_chain SET number = 4, chain = (SELECT chain FROM log WHERE id = 4)";
    let never = "INSERT INTO log_heads(number, chain, signature, at)
                 VALUES (9223372036854775807, zeroblob(32), zeroblob(64), 3000)";
    for (change, fit, found) in
        [(forge, true, Some(codes::AUDIT_TAMPERED)), (cut, false, Some(codes::AUDIT_GAP)), (never, false, None)]
    {
        let bench = Bench::new();
        bench.sample();
        let (store, heads, _) = bench.open(false);
        let sign = |now| {
            let signed = store.transaction_blocking(|tx| heads.sign(tx, WallTime(now))).unwrap();
            signed.inspect(|signed| heads.write_witness(signed).unwrap())
        };
        assert_eq!(sign(2003), None, "nothing is new");
        bench.change(change);
        if fit {
            bench.make_to_fit();
        }
        if found.is_some() {
            bench.change("DELETE FROM log_heads");
        }
        store.transaction_blocking(|tx| done(tx, WallTime(2004), "later", None, serde_json::json!({}))).unwrap();
        assert!(sign(2005).is_some(), "{change}");
        let said = |code: Code| {
            let log = listing::list(&open_reader(&bench.path()).unwrap(), Of::Log, 0, 100, false, &Filter::default());
            log.unwrap().iter().filter(|record| record.what == code.as_str()).count()
        };
        match found {
            Some(code) => {
                assert_eq!(said(code), 1, "{change}");
                let report = bench.verify();
                assert!(!report.holds || !report.noted.is_empty(), "{change}: {report:?}");
            }
            None => assert!(bench.verify().holds, "{:?}", bench.verify()),
        }
        // Once; then it goes on.
        assert_eq!(sign(2006), None);
    }
}

/// Who has the store alone can write that a backup was restored; the heads that were signed say otherwise.
#[test]
fn a_restore_that_never_was_explains_nothing() {
    // Records 4 and 5 are cut, and number 6 says that a backup lost them.
    let bench = Bench::new();
    bench.sample();
    bench.change("DELETE FROM log WHERE id > 3");
    bench.change("UPDATE log_chain SET number = 5, chain = (SELECT chain FROM log WHERE id = 3)");
    let store = Store::open(&bench.path()).unwrap();
    let forge = |from: u64, to: u64, chain: &str| {
        let detail = serde_json::json!({ "from": from, "to": to, "chain": chain });
        store.transaction_blocking(|tx| done(tx, WallTime(9), "audit.restored", None, detail)).unwrap();
    };
    forge(4, 5, "");
    bench.change("DELETE FROM log_heads");
    assert_eq!(bench.first(), (6, codes::AUDIT_TAMPERED), "the head outside is another");
    // All six, and what the head outside says with it: it was never found missing.
    let bench = Bench::new();
    bench.sample();
    let lost: String = Connection::open(bench.path())
        .unwrap()
        .query_row("SELECT lower(hex(chain)) FROM log WHERE id = 6", [], |row| row.get(0))
        .unwrap();
    bench.change("DELETE FROM log WHERE id > 3");
    bench.change("UPDATE log_chain SET chain = (SELECT chain FROM log WHERE id = 3)");
    let store = Store::open(&bench.path()).unwrap();
    let detail = serde_json::json!({ "from": 4, "to": 6, "chain": lost });
    store.transaction_blocking(|tx| done(tx, WallTime(9), "audit.restored", None, detail)).unwrap();
    assert_eq!(bench.first(), (6, codes::AUDIT_TAMPERED));
    bench.change("DELETE FROM log_heads");
    assert_eq!(bench.first(), (6, codes::AUDIT_TAMPERED));
    drop(store);
    let (store, ..) = bench.open(false);
    let said = store.transaction_blocking(|tx| listing::list(tx, Of::Log, 7, 9, false, &Filter::default())).unwrap();
    assert_eq!(said[0].what, codes::AUDIT_TAMPERED.as_str(), "the next start says so");
}

/// A start that says what a backup lost, and dies before it signed a head.
#[test]
fn what_was_said_missing_is_not_taken_for_a_change() {
    let bench = Bench::new();
    let older = {
        let (store, ..) = bench.open(false);
        store.transaction_blocking(|tx| done(tx, WallTime(3), "first", None, serde_json::json!({}))).unwrap();
        drop(store);
        std::fs::read(bench.path()).unwrap()
    };
    bench.sample();
    for name in ["store.db-wal", "store.db-shm"] {
        let _ = std::fs::remove_file(bench.dir.path().join(name));
    }
    std::fs::write(bench.path(), older).unwrap();
    assert!(bench.open(true).2);
    assert!(bench.verify().holds, "{:?}", bench.verify());
    assert!(!bench.open(false).2);
    let report = bench.verify();
    assert!(report.holds && report.noted.len() == 1, "{report:?}");
}

/// What nodes can have recorded as often as they like doesn't hide what else was found.
#[test]
fn many_refusals_are_one_line() {
    let bench = Bench::new();
    let (store, ..) = bench.open(false);
    let node = Some(NodeId::from_bytes([1; 32]));
    store
        .transaction_blocking(|tx| {
            for n in 0..150 {
                let refusal = Refusal::new(codes::AUDIT_TAMPERED, format!("{n}"));
                refused(tx, WallTime(10), &refusal, node, "/v1/records")?;
                done(tx, WallTime(10), "audit.torn", None, serde_json::json!({ "n": n }))?;
            }
            let shown = serde_json::json!({ "record": 7, "chain": "", "shown_by": "" });
            done(tx, WallTime(11), codes::AUDIT_GAP.as_str(), node, shown)
        })
        .unwrap();
    let noted = bench.verify().noted;
    let of = |code: Code| noted.iter().filter(|finding| finding.code == code).collect::<Vec<_>>();
    assert_eq!((of(codes::AUDIT_TORN).len(), of(codes::AUDIT_GAP).len()), (99, 1), "the newest hundred");
    let refused = of(codes::AUDIT_TAMPERED);
    assert!(refused.len() == 1 && refused[0].found.starts_with("150 times"), "{refused:?}");
}

/// Decisions are forgotten after a time, the ledger never is; and a store of before the ledger has neither its records
/// nor its decisions.
#[test]
fn old_credentials_are_no_orphans() {
    use crate::control_plane::credentials::ledger::{self, Credential, Kind};
    use crate::control_plane::policy;
    use crate::control_plane::registry::nodes;
    let bench = Bench::new();
    let (store, ..) = bench.open(false);
    let joined = |now| joins::join(&open_reader(&bench.path()).unwrap(), WallTime(now)).unwrap();
    let issue = |tx: &Transaction<'_>, id: &str, at: u64| {
        let credential = Credential {
            id: id.to_owned(),
            kind: Kind::X509,
            decision: format!("decision {id}"),
            node: NodeId::from_bytes([1; 32]),
            workload: "spiffe://example.org/web".to_owned(),
            task: None,
            audience: Vec::new(),
            signer: 1,
            lease_sequence: 1,
            issued_at: WallTime(at),
            not_after: WallTime(at + 10),
        };
        let kept = "INSERT INTO decisions(id, at, workload, action, permitted, policy, inputs, answer)
                    VALUES (?1, ?2, '', '', 1, x'', '', '')";
        tx.execute(kept, rusqlite::params![credential.decision, at.cast_signed()])?;
        ledger::issued(tx, &credential, serde_json::json!({}))
    };
    let old = |tx: &Transaction<'_>| {
        // As the step that made the ledger took it over.
        tx.execute_batch(
            "INSERT INTO credentials(id, kind, decision, node, workload, signer, lease_sequence, issued_at, not_after)
             SELECT 'ab', 'x509', 'formerly', id, '', 1, 1, 50, 60 FROM nodes",
        )?;
        let subject = Subject { decision: Some("formerly"), ..Subject::default() };
        about(tx, WallTime(50), "svid.issued", &subject, serde_json::json!({ "serial": "ab" }))?;
        about(tx, WallTime(1), "svid.issued", &subject, serde_json::json!({ "serial": "cd" }))
    };
    store
        .transaction_blocking(|tx| {
            nodes::put(tx, &nodes::tests::waiting(1))?;
            old(tx)?;
            issue(tx, "a", 100)?;
            issue(tx, "b", 200)?;
            ledger::expire(tx, WallTime(300)).map(drop)
        })
        .unwrap();
    assert_eq!(joined(300).orphans, Vec::<String>::new());
    // A piece at a time, until there is no more.
    let many = "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 1500)
                INSERT INTO decisions(id, at, workload, action, permitted, policy, inputs, answer)
                SELECT 'n' || n, 40, '', '', 0, x'', '', '' FROM n";
    store.transaction_blocking(|tx| Ok(tx.execute(many, [])?)).unwrap();
    let forget = || store.transaction_blocking(|tx| policy::forget(tx, WallTime(150))).unwrap();
    assert_eq!((forget(), forget()), (true, false));
    let after = joined(300);
    assert_eq!((after.orphans, after.decisions_since), (Vec::new(), Some(WallTime(150).to_string())));
    store.transaction_blocking(|tx| Ok(tx.execute("DELETE FROM decisions", [])?)).unwrap();
    assert_eq!(joined(300).orphan_count, 1, "the newer one's must be there");
}

/// A head of another key, a changed witness.
#[test]
fn a_changed_head_is_found() {
    let bench = Bench::new();
    bench.sample();
    let text = std::fs::read_to_string(bench.witness()).unwrap();
    for position in 0..text.len() - 1 {
        let mut changed = text.clone().into_bytes();
        changed[position] ^= 0x01;
        std::fs::write(bench.witness(), changed).unwrap();
        assert!(!bench.verify().holds, "byte {position}");
    }
    std::fs::write(bench.witness(), text).unwrap();
    assert!(bench.verify().holds);
    bench.change("UPDATE log_heads SET signature = zeroblob(64)");
    assert_eq!(bench.first(), (6, codes::AUDIT_TAMPERED));
}

/// A store from a backup goes on with other numbers, and says what is missing; one that was cut says so as well.
#[test]
fn an_older_store_says_what_it_lacks() {
    for restored in [true, false] {
        let bench = Bench::new();
        bench.sample();
        let (older, witness) = (std::fs::read(bench.path()).unwrap(), std::fs::read(bench.witness()).unwrap());
        let (store, heads, cut) = bench.open(false);
        assert!(!cut);
        store.transaction_blocking(|tx| done(tx, WallTime(3), "later", None, serde_json::json!({}))).unwrap();
        let signed = store.transaction_blocking(|tx| heads.sign(tx, WallTime(2001))).unwrap().unwrap();
        heads.write_witness(&signed).unwrap();
        assert_ne!(std::fs::read(bench.witness()).unwrap(), witness);
        drop(store);
        assert!(bench.verify().holds);
        for name in ["store.db-wal", "store.db-shm"] {
            let _ = std::fs::remove_file(bench.dir.path().join(name));
        }
        std::fs::write(bench.path(), older).unwrap();
        assert_eq!(bench.first(), (7, codes::AUDIT_GAP));
        let (store, heads, cut) = bench.open(restored);
        assert!(cut);
        let records =
            listing::list(&open_reader(&bench.path()).unwrap(), Of::Log, 6, 10, false, &Filter::default()).unwrap();
        assert_eq!(
            (records[0].number, records[0].what.as_str()),
            (8, if restored { "audit.restored" } else { "audit.gap" })
        );
        assert_eq!((records[0].detail["from"].as_u64(), records[0].detail["to"].as_u64()), (Some(7), Some(7)));
        let signed = store.transaction_blocking(|tx| heads.sign(tx, WallTime(2002))).unwrap().unwrap();
        heads.write_witness(&signed).unwrap();
        let report = bench.verify();
        // A restore explains the gap, and stays to be seen; a cut remains one.
        assert_eq!(report.holds, restored, "{report:?}");
        assert_eq!(report.noted.len(), 1);
        assert!(!bench.open(false).2, "said once");
    }
}

#[test]
fn records_of_a_store_without_a_chain_are_taken_into_it() {
    let bench = Bench::new();
    {
        let store = Store::open(&bench.path()).unwrap();
        store
            .transaction_blocking(|tx| {
                tx.execute_batch(
                    "INSERT INTO log(time, what, detail) VALUES (1, 'a', '{\"é\": 1}'), (2, 'b', '{}'), (3, 'c', 'x')",
                )?;
                Ok(())
            })
            .unwrap();
    }
    bench.open(false);
    let records =
        listing::list(&open_reader(&bench.path()).unwrap(), Of::Log, 0, 10, false, &Filter::default()).unwrap();
    let what: Vec<&str> = records.iter().map(|record| record.what.as_str()).collect();
    assert_eq!(what, ["a", "b", "c", "audit.began"]);
    assert!(bench.verify().holds);
    bench.change("UPDATE log SET time = 9 WHERE id = 2");
    assert_eq!(bench.first(), (2, codes::AUDIT_TAMPERED));
}

/// 100,000 hostile strings through every field: as many records as were written, each as it was given, each one line.
#[test]
fn hostile_words_are_words() {
    let bench = Bench::new();
    let (store, ..) = bench.open(false);
    let pieces =
        ["\n", "\r\n", "\0", "\u{1b}[2J", "\u{202e}", "\u{2028}", "\"}", "\\u0041", "{\"id\":1}", "é", "😀", "';--"];
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut hostile = move || -> String {
        (0..next() % 10)
            .map(|_| match next() % 2 {
                0 => pieces[(next() % pieces.len() as u64) as usize].to_owned(),
                _ => char::from_u32((next() % 0x11_0000) as u32).unwrap_or('\u{fffd}').to_string(),
            })
            .collect()
    };
    const RECORDS: usize = 100_000 / 6 + 1;
    let mut given = Vec::new();
    store
        .transaction_blocking(|tx| {
            for _ in 0..RECORDS {
                let texts: [String; 6] = std::array::from_fn(|_| hostile());
                let [workload, decision, credential, task, what, detail] = &texts;
                let subject = Subject {
                    node: None,
                    workload: Some(workload),
                    lease: None,
                    decision: Some(decision),
                    credential: Some(credential),
                    task: Some(task),
                };
                chain::append(tx, WallTime(1), what, &subject, serde_json::json!({ detail.as_str(): detail }))?;
                given.push(texts);
            }
            Ok(())
        })
        .unwrap();
    assert!(bench.verify().holds);
    let records =
        listing::list(&open_reader(&bench.path()).unwrap(), Of::Log, 0, u64::MAX, false, &Filter::default()).unwrap();
    assert_eq!(records.len(), given.len());
    for (record, texts) in records.iter().zip(&given) {
        let [workload, decision, credential, task, what, detail] = texts;
        let found =
            [&record.workload, &record.decision, &record.credential, &record.task].map(|text| text.clone().unwrap());
        assert_eq!(found, [workload, decision, credential, task].map(String::clone));
        assert_eq!((&record.what, &record.detail[detail]), (what, &serde_json::Value::String(detail.clone())));
        let line = printable(record);
        assert!(line.bytes().all(|byte| (0x20..0x7f).contains(&byte)), "{line}");
    }
    println!("{} texts in {} records, all as given", given.len() * 6, records.len());
}

#[test]
fn refusals_are_clipped_and_filters_find() {
    let bench = Bench::new();
    let (store, ..) = bench.open(false);
    let text = "é".repeat(3000);
    store
        .transaction_blocking(|tx| {
            refused(
                tx,
                WallTime(10),
                &Refusal::new(codes::PROTOCOL_MALFORMED, &text),
                Some(NodeId::from_bytes([1; 32])),
                "t",
            )?;
            let subject = Subject { credential: Some("c1"), workload: Some("w"), ..Subject::default() };
            about(tx, WallTime(20), "credential.issued", &subject, serde_json::json!({}))?;
            about(tx, WallTime(30), "credential.expired", &subject, serde_json::json!({}))
        })
        .unwrap();
    let connection = open_reader(&bench.path()).unwrap();
    let list = |newest, limit, filter| {
        let records = listing::list(&connection, Of::Log, 0, limit, newest, &filter).unwrap();
        records.into_iter().map(|record| record.number).collect::<Vec<_>>()
    };
    assert_eq!(list(false, 10, Filter::default()), [1, 2, 3]);
    assert_eq!(list(true, 2, Filter::default()), [2, 3]);
    assert_eq!(list(false, 10, Filter { credential: Some("c1".into()), ..Filter::default() }), [2, 3]);
    assert_eq!(list(false, 10, Filter { what: Some("credential.".into()), since: Some(21), ..Filter::default() }), [3]);
    assert_eq!(list(false, 10, Filter { node: Some("0101".into()), until: Some(11), ..Filter::default() }), [1]);
    let record = listing::list(&connection, Of::Log, 0, 1, false, &Filter::default()).unwrap().remove(0);
    assert_eq!(record.detail["found"].as_str().unwrap(), clipped(&text));
}
