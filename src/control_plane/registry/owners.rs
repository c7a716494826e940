//! Owners: the people and teams who answer for workloads, and what happens when one leaves.

use serde::{Deserialize, Serialize};

use super::names;
use super::workloads::{self, Change, Workload};
use crate::clock::WallTime;
use crate::codes::{self, Refusal};
use crate::control_plane::store::{OptionalExtension, Transaction, params, signed, unsigned};

/// What an owner is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Somebody, who may leave.
    Person,
    /// People who come and go, while the team stays.
    #[default]
    Team,
}

impl Kind {
    /// As in the store and in files.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Person => "person",
            Self::Team => "team",
        }
    }
}

/// An owner.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Owner {
    /// Its name, unique.
    pub name: String,
    /// How to reach it; may be empty.
    pub contact: String,
    /// A person or a team.
    pub kind: Kind,
    /// RFC 3339, once it left: it answers for nothing any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retired: Option<String>,
    /// RFC 3339.
    pub added: String,
}

/// An owner as stated by an operator.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stated {
    /// Its name.
    pub name: String,
    /// How to reach it.
    #[serde(default)]
    pub contact: String,
    /// A person or a team.
    #[serde(default)]
    pub kind: Kind,
    /// It left once and is back.
    #[serde(default)]
    pub again: bool,
}

impl Stated {
    /// Checks what an operator stated.
    ///
    /// # Errors
    /// [`codes::ADMIN_INVALID`].
    pub fn checked(self) -> Result<Self, Refusal> {
        names::text("the owner's name", &self.name)?;
        names::optional_text("--contact", &self.contact)?;
        Ok(self)
    }
}

/// Adds an owner. Adding it again in the same words changes nothing. Returns whether it did.
///
/// # Errors
/// [`codes::ADMIN_CONFLICT`] when it exists in other words, or left and nobody says that it is back.
pub fn add(tx: &Transaction<'_>, stated: &Stated, now: WallTime) -> Result<bool, Refusal> {
    let conflict = |found: String| Refusal::new(codes::ADMIN_CONFLICT, found).at(format!("owner {}", stated.name));
    match find(tx, &stated.name)? {
        Some(known) if known.retired.is_some() && !stated.again => {
            Err(conflict(format!("it left at {}", known.retired.unwrap_or_default()))
                .expected("--again, if it is back; what it answered for doesn't come back by that"))
        }
        Some(known) if known.retired.is_some() => {
            put(tx, stated, now)?;
            Ok(true)
        }
        Some(known) if known.contact != stated.contact => {
            Err(conflict(format!("it exists with the contact `{}`", known.contact))
                .expected("`owner set` to change it"))
        }
        Some(known) if known.kind != stated.kind => {
            Err(conflict(format!("it exists as a {}", known.kind.as_str())).expected("`owner set` to change it"))
        }
        Some(_) => Ok(false),
        None => {
            put(tx, stated, now)?;
            Ok(true)
        }
    }
}

/// Writes an owner as stated, who is not retired then.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn put(tx: &Transaction<'_>, stated: &Stated, now: WallTime) -> Result<(), Refusal> {
    tx.execute(
        "INSERT INTO owners(name, contact, kind, created_at) VALUES (?1, ?2, ?3, ?4)
         ON CONFLICT(name) DO UPDATE SET contact = ?2, kind = ?3, retired_at = NULL",
        params![stated.name, stated.contact, stated.kind.as_str(), signed(now.0)],
    )?;
    Ok(())
}

/// Writes how an owner is reached and what it is; whether it left stays as it is.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn describe(tx: &Transaction<'_>, stated: &Stated) -> Result<(), Refusal> {
    tx.execute(
        "UPDATE owners SET contact = ?2, kind = ?3 WHERE name = ?1",
        params![stated.name, stated.contact, stated.kind.as_str()],
    )?;
    Ok(())
}

/// What a retirement did.
#[derive(Debug)]
pub struct Retired {
    /// Whether the owner was there until now.
    pub newly: bool,
    /// Its workloads: with another owner, or suspended.
    pub changes: Vec<Change>,
}

/// Retires an owner: each of its workloads goes to `to`, or is suspended. The same again does nothing;
/// with another `to`, what was suspended goes there, and stays suspended until somebody resumes it.
///
/// # Errors
/// [`codes::ADMIN_UNKNOWN`], [`codes::ADMIN_INVALID`] for a successor that can't be one.
pub fn retire(
    tx: &Transaction<'_>,
    name: &str,
    to: Option<&str>,
    reason: &str,
    now: WallTime,
) -> Result<Retired, Refusal> {
    let owner = existing(tx, name)?;
    if let Some(to) = to {
        if to == name {
            return Err(Refusal::new(codes::ADMIN_INVALID, "it can't take over from itself").at("--to"));
        }
        serving(tx, to).map_err(|refusal| refusal.at("--to"))?;
    }
    let mut changes = Vec::new();
    for before in workloads::of_owner(tx, name)? {
        let after = match to {
            Some(to) => Workload { owner: to.to_owned(), ..before.clone() },
            None if before.suspended.is_some() => continue,
            None => before.suspended(&names::clipped(format!("its owner `{name}` left: {reason}")), now),
        };
        workloads::put(tx, &after, now)?;
        changes.push(Change::between(before, after));
    }
    tx.execute(
        "UPDATE owners SET retired_at = ?2 WHERE name = ?1 AND retired_at IS NULL",
        params![name, signed(now.0)],
    )?;
    Ok(Retired { newly: owner.retired.is_none(), changes })
}

/// The owner of this name.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn find(tx: &Transaction<'_>, name: &str) -> Result<Option<Owner>, Refusal> {
    Ok(tx
        .prepare_cached(&format!("SELECT {COLUMNS} FROM owners WHERE name = ?1"))?
        .query_row([name], read)
        .optional()?)
}

/// The owner of this name, who must be known.
///
/// # Errors
/// [`codes::ADMIN_UNKNOWN`].
pub fn existing(tx: &Transaction<'_>, name: &str) -> Result<Owner, Refusal> {
    find(tx, name)?.ok_or_else(|| {
        Refusal::new(codes::ADMIN_UNKNOWN, format!("no owner `{name}`"))
            .at("--owner")
            .expected(format!("`leasehold-server owner add {name}` first"))
    })
}

/// The owner of this name, who can answer for something.
///
/// # Errors
/// [`codes::ADMIN_UNKNOWN`], [`codes::ADMIN_INVALID`] for one that left.
pub fn serving(tx: &Transaction<'_>, name: &str) -> Result<Owner, Refusal> {
    let owner = existing(tx, name)?;
    match &owner.retired {
        None => Ok(owner),
        Some(at) => Err(Refusal::new(codes::ADMIN_INVALID, format!("`{name}` left at {at}"))
            .at("--owner")
            .expected("an owner that is there")),
    }
}

/// All owners, by name.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn all(tx: &Transaction<'_>) -> Result<Vec<Owner>, Refusal> {
    let mut statement = tx.prepare(&format!("SELECT {COLUMNS} FROM owners ORDER BY name"))?;
    let rows = statement.query_map([], read)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

const COLUMNS: &str = "name, contact, created_at, kind, retired_at";

fn read(row: &rusqlite::Row<'_>) -> rusqlite::Result<Owner> {
    let time = |at: i64| WallTime(unsigned(at)).to_string();
    Ok(Owner {
        name: row.get(0)?,
        contact: row.get(1)?,
        added: time(row.get(2)?),
        kind: if row.get::<_, String>(3)? == "person" { Kind::Person } else { Kind::Team },
        retired: row.get::<_, Option<i64>>(4)?.map(time),
    })
}
