//! Owners: who answers for a workload.

use serde::{Deserialize, Serialize};

use crate::clock::WallTime;
use crate::codes::{self, Refusal};
use crate::control_plane::store::{OptionalExtension, Transaction, params, signed, unsigned};

/// An owner.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Owner {
    /// Its name, unique.
    pub name: String,
    /// How to reach it; may be empty.
    pub contact: String,
    /// `person` or `team`.
    pub kind: String,
    /// RFC 3339, once it left: it answers for nothing any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retired: Option<String>,
    /// RFC 3339.
    pub added: String,
}

/// Adds an owner. Adding it again with the same contact changes nothing. Returns whether it is new.
///
/// # Errors
/// [`codes::ADMIN_CONFLICT`] when it exists with another contact.
pub fn add(tx: &Transaction<'_>, name: &str, contact: &str, now: WallTime) -> Result<bool, Refusal> {
    let known: Option<String> =
        tx.query_row("SELECT contact FROM owners WHERE name = ?1", [name], |row| row.get(0)).optional()?;
    match known {
        Some(known) if known == contact => Ok(false),
        Some(known) => Err(Refusal::new(codes::ADMIN_CONFLICT, format!("it exists with the contact `{known}`"))
            .at(format!("owner {name}"))),
        None => {
            tx.execute(
                "INSERT INTO owners(name, contact, created_at) VALUES (?1, ?2, ?3)",
                params![name, contact, signed(now.0)],
            )?;
            Ok(true)
        }
    }
}

/// Whether there is an owner of this name.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn exists(tx: &Transaction<'_>, name: &str) -> Result<bool, Refusal> {
    Ok(tx.query_row("SELECT 1 FROM owners WHERE name = ?1", [name], |_| Ok(())).optional()?.is_some())
}

/// All owners, by name.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn all(tx: &Transaction<'_>) -> Result<Vec<Owner>, Refusal> {
    let mut statement = tx.prepare("SELECT name, contact, created_at, kind, retired_at FROM owners ORDER BY name")?;
    let rows = statement.query_map([], |row| {
        let time = |at: i64| WallTime(unsigned(at)).to_string();
        Ok(Owner {
            name: row.get(0)?,
            contact: row.get(1)?,
            added: time(row.get(2)?),
            kind: row.get(3)?,
            retired: row.get::<_, Option<i64>>(4)?.map(time),
        })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}
