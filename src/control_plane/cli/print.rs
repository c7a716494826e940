//! Facts as text for people. Scripts use `--json`.

use serde_json::{Map, Value};

/// Prints the facts of a command.
pub fn facts(facts: &Value, json: bool) {
    if json {
        println!("{facts:#}");
        return;
    }
    let list = |key: &str, columns: &[(&str, &str)]| table(facts[key].as_array(), columns);
    match facts["schema"].as_str().unwrap_or_default() {
        "leasehold/nodes/1" => list(
            "nodes",
            &[
                ("NODE", "id"),
                ("STATE", "state"),
                ("GRADE", "grade"),
                ("GROUP", "group"),
                ("LEASE", "lease.live"),
                ("VERDICT", "quote.verdict"),
                ("LAST SEEN", "last_seen"),
            ],
        ),
        "leasehold/eks/1" => {
            list("eks", &[("KIND", "kind"), ("VALUE", "value"), ("GROUP", "group"), ("LABEL", "label")]);
        }
        "leasehold/owners/1" => list("owners", &[("NAME", "name"), ("CONTACT", "contact"), ("ADDED", "added")]),
        "leasehold/workloads/1" => list(
            "workloads",
            &[
                ("ID", "id"),
                ("OWNER", "owner"),
                ("PURPOSE", "purpose"),
                ("NODE", "node"),
                ("GROUP", "node_group"),
                ("SELECTORS", "selectors"),
            ],
        ),
        "leasehold/references/1" => list(
            "references",
            &[
                ("NODE", "node"),
                ("VERSION", "version"),
                ("SELECTION", "selection"),
                ("LEARNT", "learnt"),
                ("RETIRED", "retired"),
            ],
        ),
        "leasehold/explanation/1" => explanation(facts),
        _ => lines(facts, 0),
    }
}

/// Prints one record on one line.
pub fn record(record: &Value, json: bool) {
    if json {
        println!("{record}");
        return;
    }
    let text = |key: &str| plain(record[key].as_str().unwrap_or("-"));
    println!(
        "{} {} {} node {} {}",
        record["id"],
        text("time"),
        text("what"),
        record["node"].as_str().map_or("-".to_owned(), |node| plain(node.get(..12).unwrap_or(node))),
        plain(&record["detail"].to_string())
    );
}

/// Text without control characters: what a node sent can't move the cursor of whoever reads it.
pub fn plain(text: &str) -> String {
    text.chars()
        .flat_map(|character| {
            let keep = !character.is_control();
            let escaped = (!keep).then(|| character.escape_default());
            keep.then_some(character).into_iter().chain(escaped.into_iter().flatten())
        })
        .collect()
}

fn explanation(facts: &Value) {
    let node = &facts["node"];
    println!("node {}", cell(&node["id"]));
    for step in facts["steps"].as_array().into_iter().flatten() {
        let mark = if step["holds"] == Value::Bool(true) { "yes" } else { "NO " };
        println!("  {mark}  {}: {}", cell(&step["step"]), cell(&step["found"]));
        if let Some(next) = step["next"].as_str() {
            println!("       next: {}", plain(next));
        }
    }
    if let Some(refusal) = node["last_refusal"].as_str() {
        println!("  last refused for {}", plain(refusal));
    }
    println!("  {} workloads are registered for it", facts["workloads"]);
}

/// Columns as wide as their widest cell; a dot in a key steps into an object.
fn table(rows: Option<&Vec<Value>>, columns: &[(&str, &str)]) {
    let titles: Vec<String> = columns.iter().map(|(title, _)| (*title).to_owned()).collect();
    let cells = rows.into_iter().flatten().map(|row| {
        let value = |key: &str| key.split('.').fold(row, |value, key| &value[key]);
        columns.iter().map(|(_, key)| cell(value(key))).collect::<Vec<_>>()
    });
    let all: Vec<Vec<String>> = std::iter::once(titles).chain(cells).collect();
    let widths: Vec<usize> = (0..columns.len())
        .map(|column| all.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0))
        .collect();
    for row in all {
        let line: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        println!("{}", line.join("  ").trim_end());
    }
}

/// An object as indented lines, without what is null.
fn lines(value: &Value, depth: usize) {
    let Some(object) = value.as_object() else { return };
    let shown = |object: &Map<String, Value>| {
        object
            .iter()
            .filter(|(key, value)| *key != "schema" && !value.is_null())
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect::<Vec<_>>()
    };
    let indent = "  ".repeat(depth);
    for (key, value) in shown(object) {
        match &value {
            Value::Object(_) => {
                println!("{indent}{}:", plain(&key));
                lines(&value, depth + 1);
            }
            Value::Array(items) if items.iter().any(Value::is_object) => {
                for item in items {
                    println!("{indent}{}:", plain(&key));
                    lines(item, depth + 1);
                }
            }
            Value::String(text) if text.contains('\n') => {
                println!("{indent}{}:", plain(&key));
                text.lines().for_each(|line| println!("{indent}  {}", plain(line)));
            }
            _ => println!("{indent}{}: {}", plain(&key), cell(&value)),
        }
    }
}

/// A value in one cell.
fn cell(value: &Value) -> String {
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
    fn control_characters_are_spelt_out() {
        assert_eq!(plain("a\u{1b}[31mb\nc"), "a\\u{1b}[31mb\\nc");
        assert_eq!(plain("größe"), "größe");
    }
}
