//! The ledger: every credential that was issued, and how it ended. Each has one issue and one end.

use super::super::audit::{self, Subject};
use super::super::store::{Transaction, damaged, fixed, params, signed, unsigned};
use crate::clock::WallTime;
use crate::codes::{self, Code, Refusal};
use crate::identity::NodeId;

/// What a credential is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// An X.509-SVID; its id is the serial number in hexadecimal.
    X509,
    /// A JWT-SVID; its id is its `jti`.
    Jwt,
}

impl Kind {
    /// As in the store.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::X509 => "x509",
            Self::Jwt => "jwt",
        }
    }

    fn from_text(text: &str) -> Result<Self, Refusal> {
        match text {
            "x509" => Ok(Self::X509),
            "jwt" => Ok(Self::Jwt),
            _ => Err(damaged("a credential's kind")),
        }
    }
}

/// A credential.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Credential {
    /// Serial number or `jti`.
    pub id: String,
    /// What it is.
    pub kind: Kind,
    /// The decision that it was issued by.
    pub decision: String,
    /// The node it was issued to.
    pub node: NodeId,
    /// The workload it names.
    pub workload: String,
    /// The task it is for.
    pub task: Option<String>,
    /// Whom a token is for.
    pub audience: Vec<String>,
    /// The CA, or the JWT key, that signed it.
    pub signer: i64,
    /// The lease it was issued under.
    pub lease_sequence: u64,
    /// When it was issued.
    pub issued_at: WallTime,
    /// Its end, if nothing ends it before.
    pub not_after: WallTime,
}

/// Which credentials.
#[derive(Clone, Copy, Debug)]
pub enum Of<'a> {
    /// All of a node.
    Node(NodeId),
    /// All of a workload, wherever.
    Workload(&'a str),
    /// One.
    Credential(&'a str),
    /// Those of all tasks of an id on a node.
    Task(NodeId, &'a str),
    /// Those of the task of a workload on a node.
    OneTask(NodeId, &'a str, &'a str),
    /// Those of one signer: a CA, or a key for tokens.
    Signer(Kind, i64),
    /// Those whose time is over.
    Expired(WallTime),
}

/// The most credentials of a node whose time isn't over, ended or not: whatever ends them, relying parties' lists,
/// which end at 100 000, have room for those of twelve nodes.
const HELD: i64 = 8192;
/// Of these, so many are for the identities that its agent asks for by itself.
const RESERVED: i64 = 1024;

const COLUMNS: &str =
    "id, kind, decision, node, workload, task, audience, signer, lease_sequence, issued_at, not_after";

/// Whether a node may have more credentials; `just_in_time` ones leave some room for the others.
///
/// # Errors
/// [`codes::PROTOCOL_BUSY`]: until some of those it has run out.
pub fn room(tx: &Transaction<'_>, node: NodeId, just_in_time: bool, now: WallTime) -> Result<(), Refusal> {
    let most = if just_in_time { HELD - RESERVED } else { HELD };
    let held: i64 = tx
        .prepare_cached("SELECT count(*) FROM (SELECT 1 FROM credentials WHERE node = ?1 AND not_after > ?2 LIMIT ?3)")?
        .query_row(params![node.as_bytes(), signed(now.0), most], |row| row.get(0))?;
    match held < most {
        true => Ok(()),
        false => Err(Refusal::new(codes::PROTOCOL_BUSY, format!("{held} credentials of the node aren't over yet"))
            .expected(format!("fewer than {most}; later"))),
    }
}

/// Notes what was issued, with its record.
///
/// # Errors
/// [`codes::STORE_FAILED`]: then it must not leave.
pub fn issued(tx: &Transaction<'_>, credential: &Credential, detail: serde_json::Value) -> Result<(), Refusal> {
    let audience = serde_json::to_string(&credential.audience).map_err(|_| damaged("an audience"))?;
    tx.prepare_cached(&format!(
        "INSERT INTO credentials({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)"
    ))?
    .execute(params![
        credential.id,
        credential.kind.as_str(),
        credential.decision,
        credential.node.as_bytes(),
        credential.workload,
        credential.task,
        audience,
        credential.signer,
        signed(credential.lease_sequence),
        signed(credential.issued_at.0),
        signed(credential.not_after.0),
    ])?;
    audit::about(tx, credential.issued_at, "credential.issued", &subject(credential), detail)
}

/// The live ones, in the order of their issue.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn live(tx: &Transaction<'_>, of: Of<'_>) -> Result<Vec<Credential>, Refusal> {
    let (query, value) = query(of);
    let mut statement = tx.prepare_cached(&query)?;
    let mut rows = statement.query([value])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        let credential = read(row)?;
        let meant = match of {
            Of::Task(node, _) => node == credential.node,
            Of::OneTask(node, workload, _) => (node, workload) == (credential.node, credential.workload.as_str()),
            _ => true,
        };
        if meant {
            found.push(credential);
        }
    }
    Ok(found)
}

fn query(of: Of<'_>) -> (String, rusqlite::types::Value) {
    let (condition, value): (&str, rusqlite::types::Value) = match of {
        Of::Node(node) => ("node = ?1", node.as_bytes().to_vec().into()),
        Of::Workload(workload) => ("workload = ?1", workload.to_owned().into()),
        Of::Credential(id) => ("id = ?1", id.to_owned().into()),
        Of::Task(_, task) | Of::OneTask(_, _, task) => ("task = ?1", task.to_owned().into()),
        Of::Signer(Kind::X509, signer) => ("kind = 'x509' AND signer = ?1", signer.into()),
        Of::Signer(Kind::Jwt, signer) => ("kind = 'jwt' AND signer = ?1", signer.into()),
        Of::Expired(now) => ("not_after <= ?1", signed(now.0).into()),
    };
    let live =
        format!("SELECT {COLUMNS} FROM credentials WHERE ended_at IS NULL AND {condition} ORDER BY issued_at, id");
    (live, value)
}

/// The credential with this id, live or not.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn find(tx: &Transaction<'_>, id: &str) -> Result<Option<Credential>, Refusal> {
    let mut statement = tx.prepare_cached(&format!("SELECT {COLUMNS} FROM credentials WHERE id = ?1"))?;
    let mut rows = statement.query([id])?;
    rows.next()?.map(read).transpose()
}

/// Ends the live ones, each with its record; gives back which.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn end(
    tx: &Transaction<'_>,
    of: Of<'_>,
    code: Code,
    reason: &str,
    now: WallTime,
) -> Result<Vec<Credential>, Refusal> {
    let ended = live(tx, of)?;
    for credential in &ended {
        // By its time: the code may be a node's word.
        let expired = code == codes::ISSUER_EXPIRED && credential.not_after <= now;
        let what = if expired { "credential.expired" } else { "credential.revoked" };
        tx.prepare_cached("UPDATE credentials SET ended_at = ?2, ended_code = ?3, ended_reason = ?4 WHERE id = ?1")?
            .execute(params![credential.id, signed(now.0), code.as_str(), reason])?;
        let detail = serde_json::json!({ "code": code, "reason": audit::clipped(reason) });
        audit::about(tx, now, what, &subject(credential), detail)?;
    }
    Ok(ended)
}

/// A credential that ended before its time.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ended {
    /// Serial number or `jti`.
    pub id: String,
    /// When it ended.
    pub ended_at: WallTime,
    /// When its time would have been over.
    pub not_after: WallTime,
}

/// What nobody may take although its time isn't over at `now`, by id; of one signer or of all. Time alone says
/// what is on it: why a credential ended is in part the word of the node that has it.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn withdrawn(tx: &Transaction<'_>, kind: Kind, signer: Option<i64>, now: WallTime) -> Result<Vec<Ended>, Refusal> {
    let mut statement = tx.prepare_cached(
        "SELECT id, ended_at, not_after FROM credentials
         WHERE kind = ?1 AND not_after > ?2 AND ended_at < not_after AND (?3 IS NULL OR signer = ?3) ORDER BY id",
    )?;
    let time = |row: &rusqlite::Row<'_>, at| Ok::<_, rusqlite::Error>(WallTime(unsigned(row.get(at)?)));
    let rows = statement.query_map(params![kind.as_str(), signed(now.0), signer], |row| {
        Ok(Ended { id: row.get(0)?, ended_at: time(row, 1)?, not_after: time(row, 2)? })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Ends what has run out; to be called now and then.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn expire(tx: &Transaction<'_>, now: WallTime) -> Result<usize, Refusal> {
    Ok(end(tx, Of::Expired(now), codes::ISSUER_EXPIRED, "its time is over", now)?.len())
}

/// Whom a record about a credential is about.
pub fn subject(credential: &Credential) -> Subject<'_> {
    Subject {
        node: Some(credential.node),
        workload: Some(&credential.workload),
        lease: Some(credential.lease_sequence),
        decision: Some(&credential.decision),
        credential: Some(&credential.id),
        task: credential.task.as_deref(),
    }
}

fn read(row: &rusqlite::Row<'_>) -> Result<Credential, Refusal> {
    Ok(Credential {
        id: row.get(0)?,
        kind: Kind::from_text(&row.get::<_, String>(1)?)?,
        decision: row.get(2)?,
        node: NodeId::from_bytes(fixed(&row.get::<_, Vec<u8>>(3)?, "a node id")?),
        workload: row.get(4)?,
        task: row.get(5)?,
        audience: serde_json::from_str(&row.get::<_, String>(6)?).map_err(|_| damaged("an audience"))?,
        signer: row.get(7)?,
        lease_sequence: unsigned(row.get(8)?),
        issued_at: WallTime(unsigned(row.get(9)?)),
        not_after: WallTime(unsigned(row.get(10)?)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control_plane::registry::nodes;

    /// The ledger only grows: what is live is found without looking at what is over.
    #[test]
    fn what_is_live_is_found_by_an_index_of_what_is_live() {
        let (_dir, store) = nodes::tests::store();
        let node = NodeId::from_bytes([1; 32]);
        store
            .transaction_blocking(|tx| {
                for of in [Of::Node(node), Of::Workload("w"), Of::Task(node, "t"), Of::Expired(WallTime(1))] {
                    let mut statement = tx.prepare(&format!("EXPLAIN QUERY PLAN {}", query(of).0))?;
                    let steps = statement.query_map([rusqlite::types::Null], |row| row.get::<_, String>(3))?;
                    let steps: Vec<String> = steps.collect::<Result<_, _>>()?;
                    assert!(
                        steps.iter().any(|step| step.contains("USING INDEX live_credentials")),
                        "{of:?}: {steps:?}"
                    );
                }
                Ok(())
            })
            .unwrap();
    }
}
