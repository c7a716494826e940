//! Single values of the store as a whole: the epoch, the generation, the bundle's sequence.

use rusqlite::Connection;

use super::{OptionalExtension, Transaction, fixed};
use crate::codes::Refusal;

/// The value called `name`.
///
/// # Errors
/// [`crate::codes::STORE_FAILED`].
pub fn get(connection: &Connection, name: &str) -> Result<Option<Vec<u8>>, Refusal> {
    Ok(connection.query_row("SELECT value FROM meta WHERE name = ?1", [name], |row| row.get(0)).optional()?)
}

/// Sets the value called `name`.
///
/// # Errors
/// [`crate::codes::STORE_FAILED`].
pub fn set(tx: &Transaction<'_>, name: &str, value: &[u8]) -> Result<(), Refusal> {
    tx.execute(
        "INSERT INTO meta(name, value) VALUES (?1, ?2) ON CONFLICT(name) DO UPDATE SET value = ?2",
        (name, value),
    )?;
    Ok(())
}

/// The number called `name`; zero if it was never set.
///
/// # Errors
/// [`crate::codes::STORE_FAILED`].
pub fn number(connection: &Connection, name: &str) -> Result<u64, Refusal> {
    match get(connection, name)? {
        Some(bytes) => Ok(u64::from_be_bytes(fixed(&bytes, name)?)),
        None => Ok(0),
    }
}

/// Sets the number called `name`.
///
/// # Errors
/// [`crate::codes::STORE_FAILED`].
pub fn set_number(tx: &Transaction<'_>, name: &str, value: u64) -> Result<(), Refusal> {
    set(tx, name, &value.to_be_bytes())
}
