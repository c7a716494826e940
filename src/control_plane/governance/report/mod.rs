//! Reports: what a framework asks, the question to this server that answers it, and the answer now.
//!
//! A report proves what this server knows, no more: each control says what is shown for it, and those that
//! Leasehold has nothing to say about say that. Whether the words of a control were compared with their
//! publisher's stands beside them.

mod controls;
mod queries;

use serde_json::{Value, json};

use super::super::server::Shared;
use super::super::store::Transaction;
use crate::clock::WallTime;
use crate::codes::{self, Refusal};
use controls::{Control, FRAMEWORKS};

/// The frameworks there are reports for.
pub fn frameworks() -> Vec<&'static str> {
    FRAMEWORKS.iter().map(|framework| framework.name).collect()
}

/// The report for a framework.
///
/// # Errors
/// [`codes::ADMIN_INVALID`] for an unknown framework.
pub fn of(tx: &Transaction<'_>, shared: &Shared, framework: &str, now: WallTime) -> Result<Value, Refusal> {
    let found = FRAMEWORKS.iter().find(|known| known.name == framework).ok_or_else(|| {
        Refusal::new(codes::ADMIN_INVALID, format!("framework `{}`", framework.escape_debug()))
            .at("--framework")
            .expected(frameworks().join(", "))
    })?;
    let mut rows = Vec::new();
    for control in found.controls {
        rows.push(row(tx, shared, control, now)?);
    }
    let attention = rows.iter().filter(|row| row.get("standing") == Some(&json!("attention"))).count();
    Ok(json!({
        "schema": 1,
        "framework": found.name,
        "title": found.title,
        "source": found.source,
        "at": now.to_string(),
        "attention": attention,
        "controls": rows,
    }))
}

fn row(tx: &Transaction<'_>, shared: &Shared, control: &Control, now: WallTime) -> Result<Value, Refusal> {
    let mut answers = Vec::new();
    let mut holds = true;
    for query in control.queries {
        let answer = query.ask(tx, shared, now)?;
        holds &= answer.holds;
        answers.push(json!({ "command": query.command(), "result": answer.result, "holds": answer.holds }));
    }
    let standing = match (control.queries.is_empty(), holds) {
        (true, _) => "out of scope",
        (false, true) => "shown",
        (false, false) => "attention",
    };
    Ok(json!({
        "id": control.id, "control": control.asks, "citation": control.citation.as_str(),
        "here": control.here, "evidence": answers, "standing": standing,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_control_is_told_apart_and_says_what_is_shown() {
        for framework in FRAMEWORKS {
            let mut seen = std::collections::BTreeSet::new();
            for control in framework.controls {
                assert!(seen.insert(control.id), "{} stands twice in {}", control.id, framework.name);
                assert!(!control.asks.is_empty() && control.here.ends_with('.'), "{}", control.id);
            }
        }
    }
}
