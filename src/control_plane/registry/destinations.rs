//! Destinations: what credentials are for, by a name that registrations, callers and policies use.

use serde::{Deserialize, Serialize};

use super::names;
use super::rules::Rules;
use crate::clock::WallTime;
use crate::codes::{self, Refusal};
use crate::control_plane::store::{OptionalExtension, Transaction, params, signed, unsigned};

/// A destination.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Destination {
    /// Its name, unique.
    pub name: String,
    /// The environment it belongs to; empty where none are used.
    pub environment: String,
    /// Words on it; may be empty.
    pub description: String,
}

/// A destination as shown to an operator.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Facts {
    /// What was registered.
    #[serde(flatten)]
    pub destination: Destination,
    /// RFC 3339.
    pub added: String,
}

impl Destination {
    /// Checks what an operator stated.
    ///
    /// # Errors
    /// [`codes::ADMIN_INVALID`].
    pub fn checked(self, rules: &Rules) -> Result<Self, Refusal> {
        names::plain("the destination's name", &self.name)?;
        names::optional_text("--description", &self.description)?;
        rules.environment("--environment", &self.environment)?;
        if self.environment.is_empty() && !rules.environments.is_empty() {
            return Err(Refusal::new(codes::ADMIN_INVALID, "a destination belongs to an environment")
                .at("--environment")
                .expected("one of `registry.environments`"));
        }
        Ok(self)
    }
}

/// The destination of this name.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn find(tx: &Transaction<'_>, name: &str) -> Result<Option<Destination>, Refusal> {
    Ok(tx
        .prepare_cached("SELECT name, environment, description FROM destinations WHERE name = ?1")?
        .query_row([name], read)
        .optional()?)
}

/// All destinations, by name.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn all(tx: &Transaction<'_>) -> Result<Vec<Facts>, Refusal> {
    let mut statement =
        tx.prepare("SELECT name, environment, description, created_at FROM destinations ORDER BY name")?;
    let rows = statement.query_map([], |row| {
        Ok(Facts { destination: read(row)?, added: WallTime(unsigned(row.get(3)?)).to_string() })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Adds a destination, or changes the words on one. Returns what there was before.
///
/// # Errors
/// [`codes::ADMIN_CONFLICT`] when workloads that name it are of another environment than it would be.
pub fn put(tx: &Transaction<'_>, destination: &Destination, now: WallTime) -> Result<Option<Destination>, Refusal> {
    let before = find(tx, &destination.name)?;
    if before.as_ref().is_some_and(|before| before.environment != destination.environment) {
        unused(tx, &destination.name)?;
    }
    tx.execute(
        "INSERT INTO destinations(name, environment, description, created_at) VALUES (?1, ?2, ?3, ?4)
         ON CONFLICT(name) DO UPDATE SET environment = ?2, description = ?3",
        params![destination.name, destination.environment, destination.description, signed(now.0)],
    )?;
    Ok(before)
}

/// Removes a destination that no workload names.
///
/// # Errors
/// [`codes::ADMIN_UNKNOWN`], [`codes::ADMIN_CONFLICT`].
pub fn remove(tx: &Transaction<'_>, name: &str) -> Result<(), Refusal> {
    unused(tx, name)?;
    match tx.execute("DELETE FROM destinations WHERE name = ?1", [name])? {
        0 => Err(unknown(name)),
        _ => Ok(()),
    }
}

/// The refusal of a name that isn't registered.
pub fn unknown(name: &str) -> Refusal {
    Refusal::new(codes::ADMIN_UNKNOWN, format!("no destination `{}`", name.escape_debug()))
        .at("--destination")
        .expected("one that `leasehold-server destination list` shows; `destination add` first")
}

fn unused(tx: &Transaction<'_>, name: &str) -> Result<(), Refusal> {
    let user: Option<String> = tx
        .query_row(
            "SELECT id FROM workloads WHERE EXISTS (SELECT 1 FROM json_each(destinations) WHERE value = ?1)
             ORDER BY id LIMIT 1",
            [name],
            |row| row.get(0),
        )
        .optional()?;
    match user {
        None => Ok(()),
        Some(user) => Err(Refusal::new(codes::ADMIN_CONFLICT, format!("{user} is registered for it"))
            .at(format!("destination {name}"))
            .expected("no workload that names it")),
    }
}

fn read(row: &rusqlite::Row<'_>) -> rusqlite::Result<Destination> {
    Ok(Destination { name: row.get(0)?, environment: row.get(1)?, description: row.get(2)? })
}
