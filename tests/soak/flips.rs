//! One byte changed anywhere in the log or in what nodes delivered: `audit verify` finds it and names that record first.

use std::path::Path;

use rusqlite::Connection;
use rusqlite::types::Value as Cell;
use serde_json::Value;

use super::Chance;
use super::bench::world::Server;

/// So many changes are tried, one at a time.
const FLIPS: usize = 16;

/// Of a stopped control plane's store.
pub fn each_is_named(server: &Server, chance: &mut Chance) {
    let copy = server.path("copy.db");
    for kind in ["", "-wal", "-shm"] {
        let from = server.path(&format!("state/store.db{kind}"));
        if from.exists() {
            std::fs::copy(from, server.path(&format!("copy.db{kind}"))).unwrap();
        }
    }
    let store = Connection::open(&copy).unwrap();
    // What was found and recorded before stands beside it: a torn end after a kill, say.
    let (_, facts) = verified(server, &copy);
    assert_eq!((&facts["holds"], &facts["findings"]), (&Value::Bool(true), &serde_json::json!([])), "{facts}");
    let own = facts["writers"][0]["writer"].as_str().unwrap().to_owned();
    for _ in 0..FLIPS {
        let spot = match chance.below(2) {
            0 => Spot::in_log(&store, chance, &own),
            _ => Spot::in_journals(&store, chance),
        };
        let was = spot.cell(&store);
        spot.set(&store, &flipped(&was, chance));
        let (code, facts) = verified(server, &copy);
        assert_eq!(code, Some(4), "{spot:?} was {was:?}: {facts}");
        let first = facts["findings"].as_array().unwrap().iter().find(|finding| finding["writer"] == spot.writer);
        assert_eq!(first.and_then(|finding| finding["number"].as_i64()), Some(spot.number), "{spot:?}: {facts}");
        spot.set(&store, &was);
    }
    println!("{FLIPS} changes of one byte in the log and the journals, each found, its record named");
}

/// A field of a record.
#[derive(Debug)]
struct Spot {
    table: &'static str,
    column: String,
    row: i64,
    writer: String,
    number: i64,
}

impl Spot {
    /// Any column but the number, which is the row's key.
    fn in_log(store: &Connection, chance: &mut Chance, writer: &str) -> Self {
        let number = any(store, "SELECT id FROM log", chance);
        let mut columns = store.prepare("SELECT name FROM pragma_table_info('log') WHERE name <> 'id'").unwrap();
        let columns: Vec<String> = columns.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
        loop {
            let column = columns[usize::try_from(chance.below(columns.len() as u64)).unwrap()].clone();
            let spot = Self { table: "log", column, row: number, writer: writer.to_owned(), number };
            if !matches!(spot.cell(store), Cell::Null) && spot.cell(store) != Cell::Text(String::new()) {
                return spot;
            }
        }
    }

    fn in_journals(store: &Connection, chance: &mut Chance) -> Self {
        let row = any(store, "SELECT arrival FROM node_records", chance);
        let column = ["record", "chain"][usize::try_from(chance.below(2)).unwrap()].to_owned();
        let of = "SELECT lower(hex(writer)), number FROM node_records WHERE arrival = ?1";
        let (writer, number) = store.query_row(of, [row], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
        Self { table: "node_records", column, row, writer, number }
    }

    fn cell(&self, store: &Connection) -> Cell {
        let query = format!("SELECT {} FROM {} WHERE rowid = ?1", self.column, self.table);
        store.query_row(&query, [self.row], |row| row.get(0)).unwrap()
    }

    fn set(&self, store: &Connection, cell: &Cell) {
        let change = format!("UPDATE {} SET {} = ?1 WHERE rowid = ?2", self.table, self.column);
        assert_eq!(store.execute(&change, rusqlite::params![cell, self.row]).unwrap(), 1);
    }
}

fn any(store: &Connection, query: &str, chance: &mut Chance) -> i64 {
    let all: Vec<i64> =
        store.prepare(query).unwrap().query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
    all[usize::try_from(chance.below(all.len() as u64)).unwrap()]
}

/// The same with the lowest bit of one byte turned.
fn flipped(cell: &Cell, chance: &mut Chance) -> Cell {
    let mut turn = |mut bytes: Vec<u8>| {
        let at = usize::try_from(chance.below(bytes.len() as u64)).unwrap();
        bytes[at] ^= 1;
        bytes
    };
    match cell {
        Cell::Integer(number) => Cell::Integer(number ^ 1),
        Cell::Blob(bytes) => Cell::Blob(turn(bytes.clone())),
        // What is recorded is printable ASCII, and stays text.
        Cell::Text(text) => Cell::Text(String::from_utf8(turn(text.clone().into_bytes())).unwrap()),
        other => panic!("{other:?}"),
    }
}

fn verified(server: &Server, store: &Path) -> (Option<i32>, Value) {
    let output = server.try_admin(&["audit", "verify", "--store", &store.display().to_string(), "--json"]);
    (output.status.code(), serde_json::from_slice(&output.stdout).unwrap())
}
