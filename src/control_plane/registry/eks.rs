//! EKs an operator named beforehand: a node with one of them is `listed` and admitted.

use serde::{Deserialize, Serialize};

use super::names;
use super::rules::Rules;
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
    /// As in the store and in files.
    pub const fn as_str(self) -> &'static str {
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
    /// The environment a node with it belongs to; empty for none.
    pub environment: String,
    /// RFC 3339.
    pub added: String,
}

/// What an operator says of an EK.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Words {
    /// Words for it.
    pub label: String,
    /// The group a node with it is put in.
    pub group: Option<String>,
    /// The environment a node with it belongs to; empty for none.
    pub environment: String,
}

impl Words {
    /// Checks what an operator stated.
    ///
    /// # Errors
    /// [`codes::ADMIN_INVALID`].
    pub fn checked(self, rules: &Rules) -> Result<Self, Refusal> {
        names::text("--label", &self.label)?;
        if let Some(group) = &self.group {
            names::plain("--group", group)?;
        }
        rules.environment("--environment", &self.environment)?;
        Ok(self)
    }
}

impl KnownEk {
    /// What an operator said of it.
    pub fn words(&self) -> Words {
        Words { label: self.label.clone(), group: self.group.clone(), environment: self.environment.clone() }
    }
}

/// Adds an EK. Adding it again in the same words changes nothing. Returns whether it is new.
///
/// # Errors
/// [`codes::ADMIN_CONFLICT`] when it is known in other words.
pub fn add(tx: &Transaction<'_>, kind: Kind, value: &[u8], words: &Words, now: WallTime) -> Result<bool, Refusal> {
    if let Some(known) = find(tx, kind, value)? {
        return match known.words() == *words {
            true => Ok(false),
            false => Err(Refusal::new(
                codes::ADMIN_CONFLICT,
                format!("it is listed as `{}`, group {}", known.label, known.group.as_deref().unwrap_or("none")),
            )
            .at(known.value)
            .expected("the same label, group and environment, or `ek remove` first")),
        };
    }
    put(tx, kind, value, words, now)?;
    Ok(true)
}

/// Writes an EK as it is to be. A node that has joined by it stays as it is.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn put(tx: &Transaction<'_>, kind: Kind, value: &[u8], words: &Words, now: WallTime) -> Result<(), Refusal> {
    tx.execute(
        "INSERT INTO known_eks(kind, value, label, node_group, environment, added_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
         ON CONFLICT(kind, value) DO UPDATE SET label = ?3, node_group = ?4, environment = ?5",
        params![kind.as_str(), value, words.label, words.group, words.environment, signed(now.0)],
    )?;
    Ok(())
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
    let mut statement = tx.prepare(&format!("SELECT {COLUMNS} FROM known_eks ORDER BY added_at, value"))?;
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

/// The TPM name of an EK, nameAlg and a hash of its size, from its hexadecimal form.
///
/// # Errors
/// [`codes::ADMIN_INVALID`] at `option`.
pub fn tpm_name(option: &str, text: &str) -> Result<Vec<u8>, Refusal> {
    let name = hex::decode(text).unwrap_or_default();
    match name.as_slice() {
        [0x00, 0x0B, hash @ ..] if hash.len() == 32 => Ok(name),
        [0x00, 0x0C, hash @ ..] if hash.len() == 48 => Ok(name),
        _ => Err(Refusal::new(codes::ADMIN_INVALID, "it is no TPM name of an EK")
            .at(option)
            .expected("000b and 64 hexadecimal digits (SHA-256), or 000c and 96 (SHA-384)")),
    }
}

const COLUMNS: &str = "kind, value, label, node_group, added_at, environment";

/// The EK that is named so.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn find(tx: &Transaction<'_>, kind: Kind, value: &[u8]) -> Result<Option<KnownEk>, Refusal> {
    Ok(tx
        .query_row(
            &format!("SELECT {COLUMNS} FROM known_eks WHERE kind = ?1 AND value = ?2"),
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
        environment: row.get(5)?,
        added: WallTime(unsigned(row.get(4)?)).to_string(),
    })
}
