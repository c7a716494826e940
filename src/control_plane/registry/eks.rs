//! EKs an operator named beforehand: a node with one of them is `listed` and admitted.

use serde::{Deserialize, Serialize};

use crate::clock::WallTime;
use crate::codes::{self, Refusal};
use crate::control_plane::store::{OptionalExtension, Transaction, params, signed, unsigned};

/// How an EK is named.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// By its TPM name: `nameAlg ‖ H(TPMT_PUBLIC)`.
    Name,
    /// By the SHA-256 of its SubjectPublicKeyInfo: all that a certificate tells.
    Key,
}

impl Kind {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::Key => "key",
        }
    }
}

/// A named EK.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct KnownEk {
    /// How it is named.
    pub kind: Kind,
    /// The name or hash, hexadecimal.
    pub value: String,
    /// An operator's words for it.
    pub label: String,
    /// The group a node with it is put in.
    pub group: Option<String>,
    /// RFC 3339.
    pub added: String,
}

/// Adds an EK. Adding it again with the same label and group changes nothing. Returns whether it is new.
///
/// # Errors
/// [`codes::ADMIN_CONFLICT`] when it is known with another label or group.
pub fn add(
    tx: &Transaction<'_>,
    kind: Kind,
    value: &[u8],
    label: &str,
    group: Option<&str>,
    now: WallTime,
) -> Result<bool, Refusal> {
    if let Some(known) = find(tx, kind, value)? {
        return match known.label == label && known.group.as_deref() == group {
            true => Ok(false),
            false => Err(Refusal::new(
                codes::ADMIN_CONFLICT,
                format!("it is listed as `{}`, group {}", known.label, known.group.as_deref().unwrap_or("none")),
            )
            .at(known.value)
            .expected("the same label and group, or `ek remove` first")),
        };
    }
    tx.execute(
        "INSERT INTO known_eks(kind, value, label, node_group, added_at) VALUES (?1, ?2, ?3, ?4, ?5)",
        params![kind.as_str(), value, label, group, signed(now.0)],
    )?;
    Ok(true)
}

/// Removes an EK. Nodes that were admitted by it stay admitted.
///
/// # Errors
/// [`codes::ADMIN_UNKNOWN`].
pub fn remove(tx: &Transaction<'_>, value: &[u8]) -> Result<(), Refusal> {
    match tx.execute("DELETE FROM known_eks WHERE value = ?1", [value])? {
        0 => Err(Refusal::new(codes::ADMIN_UNKNOWN, "no such EK is listed").at(hex::encode(value))),
        _ => Ok(()),
    }
}

/// All named EKs.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn all(tx: &Transaction<'_>) -> Result<Vec<KnownEk>, Refusal> {
    let mut statement =
        tx.prepare("SELECT kind, value, label, node_group, added_at FROM known_eks ORDER BY added_at, value")?;
    let rows = statement.query_map([], read)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// The entry for an EK with this TPM name and this SHA-256 of its SubjectPublicKeyInfo.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn lookup(tx: &Transaction<'_>, name: &[u8], key: &[u8]) -> Result<Option<KnownEk>, Refusal> {
    match find(tx, Kind::Name, name)? {
        Some(known) => Ok(Some(known)),
        None => find(tx, Kind::Key, key),
    }
}

fn find(tx: &Transaction<'_>, kind: Kind, value: &[u8]) -> Result<Option<KnownEk>, Refusal> {
    Ok(tx
        .query_row(
            "SELECT kind, value, label, node_group, added_at FROM known_eks WHERE kind = ?1 AND value = ?2",
            params![kind.as_str(), value],
            read,
        )
        .optional()?)
}

fn read(row: &rusqlite::Row<'_>) -> rusqlite::Result<KnownEk> {
    let kind: String = row.get(0)?;
    Ok(KnownEk {
        kind: if kind == "name" { Kind::Name } else { Kind::Key },
        value: hex::encode(row.get::<_, Vec<u8>>(1)?),
        label: row.get(2)?,
        group: row.get(3)?,
        added: WallTime(unsigned(row.get(4)?)).to_string(),
    })
}
