//! Facts as text for people. Scripts use `--json`.

use serde_json::{Map, Value};

use crate::output::say;
use crate::protocol::records::printable;

/// Prints the facts of a command.
pub fn facts(facts: &Value, json: bool) {
    if json {
        say!("{facts:#}");
        return;
    }
    let mut tables = TABLES.iter().filter_map(|(key, columns)| Some((facts[*key].as_array()?, columns))).peekable();
    if tables.peek().is_some() {
        for (number, (rows, columns)) in tables.enumerate() {
            if number > 0 {
                say!("");
            }
            table(rows, columns);
        }
        return;
    }
    match facts["steps"].is_array() {
        true => explanation(facts),
        false => lines(facts, 0),
    }
}

/// Lists, by the member they stand in, and the columns that are shown of them.
const TABLES: &[(&str, &[(&str, &str)])] = &[
    (
        "nodes",
        &[
            ("NODE", "id"),
            ("STATE", "state"),
            ("GRADE", "grade"),
            ("GROUP", "group"),
            ("ENVIRONMENT", "environment"),
            ("LEASE", "lease.live"),
            ("VERDICT", "quote.verdict"),
            ("LAST SEEN", "last_seen"),
        ],
    ),
    ("eks", &[("KIND", "kind"), ("VALUE", "value"), ("GROUP", "group"), ("LABEL", "label")]),
    ("owners", &[("NAME", "name"), ("KIND", "kind"), ("CONTACT", "contact"), ("ADDED", "added"), ("LEFT", "retired")]),
    (
        "destinations",
        &[("NAME", "name"), ("ENVIRONMENT", "environment"), ("DESCRIPTION", "description"), ("ADDED", "added")],
    ),
    (
        "inventory",
        &[
            ("NODE", "node"),
            ("STATE", "node_state"),
            ("VERDICT", "verdict"),
            ("LAST ATTEST", "last_attest"),
            ("WORKLOAD", "workload"),
            ("OWNER", "owner"),
            ("LEFT", "owner_retired"),
            ("PURPOSE", "purpose"),
            ("TIER", "tier"),
            ("THIRD PARTY", "third_party"),
            ("CREDENTIALS", "live_credentials"),
            ("EXCEPTIONS", "exceptions"),
            ("SUSPENDED", "suspended"),
        ],
    ),
    (
        "workloads",
        &[
            ("ID", "id"),
            ("OWNER", "owner"),
            ("PURPOSE", "purpose"),
            ("TIER", "counts_as_tier"),
            ("SUSPENDED", "suspended_reason"),
            ("NODE", "node"),
            ("GROUP", "node_group"),
            ("SELECTORS", "selectors"),
        ],
    ),
    (
        "revocations",
        &[
            ("NUMBER", "number"),
            ("AT", "at"),
            ("KIND", "kind"),
            ("TARGET", "target"),
            ("NODES", "nodes"),
            ("TOLD", "told"),
            ("ACKNOWLEDGED", "acknowledged"),
            ("PROVEN", "proven"),
            ("OPEN UNTIL", "until"),
            ("REASON", "reason"),
        ],
    ),
    (
        "approvals",
        &[
            ("ID", "id"),
            ("STATE", "state"),
            ("WORKLOAD", "workload"),
            ("DESTINATION", "destination"),
            ("REQUESTED BY", "requested_by"),
            ("DECIDED BY", "decided_by"),
            ("EXPIRES", "expires"),
        ],
    ),
    (
        "exceptions",
        &[
            ("ID", "id"),
            ("STATE", "state"),
            ("WORKLOAD", "workload"),
            ("OWNER", "owner"),
            ("TICKET", "ticket"),
            ("EXPIRES", "expires"),
        ],
    ),
    ("due", &[("WORKLOAD", "workload"), ("OWNER", "owner"), ("SINCE", "since"), ("WHY", "why")]),
    ("trend", &[("AT", "at"), ("OPEN", "open")]),
    ("controls", &[("CONTROL", "id"), ("ABOUT", "control"), ("STANDING", "standing"), ("CITATION", "citation")]),
    (
        "debt",
        &[
            ("ID", "id"),
            ("WORKLOAD", "workload"),
            ("OWNER", "owner"),
            ("TICKET", "ticket"),
            ("AGE (DAYS)", "age_days"),
            ("EXPIRES", "expires"),
            ("LIVE", "live"),
        ],
    ),
    ("operators", &[("ID", "id"), ("ROLE", "role"), ("OWNER", "owner"), ("ADDED", "added"), ("BY", "added_by")]),
    (
        "tasks",
        &[
            ("TASK", "id"),
            ("NODE", "node"),
            ("WORKLOAD", "workload"),
            ("BEGAN", "began"),
            ("ENDED", "ended"),
            ("CODE", "code"),
            ("INTENT", "intent"),
        ],
    ),
    (
        "references",
        &[
            ("NODE", "node"),
            ("VERSION", "version"),
            ("SELECTION", "selection"),
            ("LEARNT", "learnt"),
            ("RETIRED", "retired"),
        ],
    ),
    (
        "bundles",
        &[
            ("VERSION", "version"),
            ("POLICIES", "policies"),
            ("TESTS", "tests"),
            ("ACTIVATED", "activated"),
            ("RETIRED", "retired"),
            ("DIGEST", "digest"),
        ],
    ),
    (
        "decisions",
        &[
            ("DECISION", "id"),
            ("TIME", "time"),
            ("ACTION", "action"),
            ("WORKLOAD", "workload"),
            ("PERMITTED", "permitted"),
            ("CODE", "code"),
            ("POLICIES", "policies"),
        ],
    ),
    (
        "sets",
        &[
            ("SET", "name"),
            ("VERSION", "version"),
            ("PROFILE", "profile"),
            ("STATES", "states"),
            ("ASSIGNED", "assigned"),
            ("IMPORTED", "imported"),
            ("RETIRED", "retired"),
        ],
    ),
];

/// Prints one record on one line.
pub fn record(record: &Value, of_node: bool, json: bool) {
    if json {
        say!("{}", printable(record));
        return;
    }
    let text = |key: &str| record[key].as_str().map(plain);
    let short = |id: &str| id.get(..12).unwrap_or(id).to_owned();
    let node = text("node").map_or("-".to_owned(), |node| short(&node));
    let number = match of_node {
        // Its own count: the writer says whose.
        true => format!("{}/{}", short(&text("writer").unwrap_or_default()), record["number"]),
        false => record["id"].to_string(),
    };
    let mut line =
        format!("{number} {} {} node {node}", text("time").unwrap_or_default(), text("what").unwrap_or_default());
    for key in ["workload", "credential", "decision", "task", "process", "code", "reason"] {
        if let Some(value) = text(key) {
            line.push_str(&format!(" {key} {value}"));
        }
    }
    if record["count"].as_u64().is_some_and(|count| count > 1) {
        line.push_str(&format!(" count {}", record["count"]));
    }
    if !record["detail"].is_null() {
        line.push_str(&format!(" {}", printable(&record["detail"])));
    }
    say!("{line}");
}

/// Text without control characters and what works like them: what a node sent can't move the cursor of whoever
/// reads it, nor turn the direction in which it is read.
pub fn plain(text: &str) -> String {
    text.chars()
        .flat_map(|character| {
            let keep = !character.is_control() && !is_format(character);
            let escaped = (!keep).then(|| character.escape_default());
            keep.then_some(character).into_iter().chain(escaped.into_iter().flatten())
        })
        .collect()
}

/// Line and paragraph separators, and characters that only steer the display (Unicode's Zl, Zp and Cf).
const fn is_format(character: char) -> bool {
    matches!(
        character,
        '\u{ad}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}' | '\u{180e}' | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e007f}'
    )
}

fn explanation(facts: &Value) {
    say!("node {}", cell(&facts["id"]));
    for step in facts["steps"].as_array().into_iter().flatten() {
        let mark = match (step["standing"].as_str(), step["holds"] == Value::Bool(true)) {
            (Some("not-proven"), _) => "-  ",
            (Some("warned"), _) => "!  ",
            (_, true) => "yes",
            (_, false) => "NO ",
        };
        let unproven = if mark.starts_with('-') { "not proven: " } else { "" };
        say!("  {mark}  {}: {unproven}{}", cell(&step["step"]), cell(&step["found"]));
        for detail in step["details"].as_array().into_iter().flatten() {
            say!("       {}", cell(detail));
        }
        if let Some(next) = step["next"].as_str() {
            say!("       next: {}", plain(next));
        }
    }
    if let Some(refusal) = facts["last_refusal"].as_str() {
        say!("  last refused for {}", plain(refusal));
    }
    say!("  {} workloads are registered for it", facts["workloads"]);
}

/// Columns as wide as their widest cell; a dot in a key steps into an object.
fn table(rows: &[Value], columns: &[(&str, &str)]) {
    let titles: Vec<String> = columns.iter().map(|(title, _)| (*title).to_owned()).collect();
    let cells = rows.iter().map(|row| {
        let value = |key: &str| key.split('.').fold(row, |value, key| &value[key]);
        columns.iter().map(|(_, key)| cell(value(key))).collect::<Vec<_>>()
    });
    let all: Vec<Vec<String>> = std::iter::once(titles).chain(cells).collect();
    let widths: Vec<usize> = (0..columns.len())
        .map(|column| all.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0))
        .collect();
    for row in all {
        let line: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        say!("{}", line.join("  ").trim_end());
    }
}

/// An object as indented lines, without what is null.
fn lines(value: &Value, depth: usize) {
    let Some(object) = value.as_object() else { return };
    let indent = "  ".repeat(depth);
    for (key, value) in shown(object) {
        match value {
            Value::Object(_) => {
                say!("{indent}{}:", plain(key));
                lines(value, depth + 1);
            }
            Value::Array(items) if items.iter().any(Value::is_object) => {
                for item in items {
                    say!("{indent}{}:", plain(key));
                    lines(item, depth + 1);
                }
            }
            Value::String(text) if text.contains('\n') => {
                say!("{indent}{}:", plain(key));
                text.lines().for_each(|line| say!("{indent}  {}", plain(line)));
            }
            _ => say!("{indent}{}: {}", plain(key), cell(value)),
        }
    }
}

/// The members that are shown; PCR numbers in their own order, not in that of their digits.
fn shown(object: &Map<String, Value>) -> Vec<(&String, &Value)> {
    let mut shown: Vec<_> = object.iter().filter(|(key, value)| *key != "schema" && !value.is_null()).collect();
    shown.sort_by_key(|(key, _)| key.parse::<u8>().ok());
    shown
}

/// A value in one cell.
pub fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => "no".to_owned(),
        Value::String(text) => plain(text),
        Value::Array(items) => items.iter().map(cell).collect::<Vec<_>>().join(","),
        other => plain(&other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pcrs_are_listed_in_their_order() {
        let object = serde_json::json!({ "10": 1, "2": 1, "schema": 1, "9": null });
        let keys: Vec<_> = shown(object.as_object().unwrap()).into_iter().map(|(key, _)| key.as_str()).collect();
        assert_eq!(keys, ["2", "10"]);
    }

    #[test]
    fn control_characters_are_spelt_out() {
        assert_eq!(plain("a\u{1b}[31mb\nc"), "a\\u{1b}[31mb\\nc");
        assert_eq!(plain("größe"), "größe");
    }
}
