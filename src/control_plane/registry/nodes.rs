//! Nodes: waiting, admitted or revoked.

use serde::{Deserialize, Serialize};

use crate::clock::WallTime;
use crate::codes::{self, Refusal};
use crate::control_plane::store::{OptionalExtension, Transaction, damaged, fixed, params, signed, unsigned};
use crate::identity::NodeId;
use crate::verify::Grade;

/// Where a node stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Its TPM proved itself; nobody has admitted it.
    Waiting,
    /// It may attest.
    Admitted,
    /// It may not come back.
    Revoked,
}

impl State {
    /// As in the store.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Admitted => "admitted",
            Self::Revoked => "revoked",
        }
    }

    fn from_text(text: &str) -> Result<Self, Refusal> {
        match text {
            "waiting" => Ok(Self::Waiting),
            "admitted" => Ok(Self::Admitted),
            "revoked" => Ok(Self::Revoked),
            _ => Err(damaged("a node's state")),
        }
    }
}

/// A node's row.
#[derive(Clone, Debug)]
pub struct Node {
    /// Its id.
    pub id: NodeId,
    /// Where it stands.
    pub state: State,
    /// What is known of its TPM's origin: `certified`, `listed` or `unknown`.
    pub grade: String,
    /// TPM name of the EK it enrolled with.
    pub ek_name: Vec<u8>,
    /// TPMT_PUBLIC of that EK.
    pub ek_public: Vec<u8>,
    /// DER of the EK's certificate.
    pub ek_certificate: Option<Vec<u8>>,
    /// TPM names of its other EKs, as it stated them.
    pub aliases: Vec<Vec<u8>>,
    /// TPMT_PUBLIC of the AK.
    pub ak_public: Vec<u8>,
    /// TPMT_PUBLIC of the node key.
    pub node_key_public: Vec<u8>,
    /// SubjectPublicKeyInfo of the node key, DER.
    pub node_key_spki: Vec<u8>,
    /// The nonce over which the AK certified the node key, in the latest enrolment.
    pub certification_nonce: [u8; 32],
    /// The same of an earlier enrolment, which a running agent may still attest with.
    pub certification_in_use: Option<[u8; 32]>,
    /// As it said when it enrolled.
    pub agent_version: String,
    /// Its group.
    pub group: Option<String>,
    /// Where it belongs, e.g. `prod`; empty if nobody said.
    pub environment: String,
    /// Who or what admitted it, e.g. `rule fleet` or `operator`.
    pub admitted_by: Option<String>,
    /// When it first enrolled.
    pub enrolled_at: WallTime,
    /// When it was admitted.
    pub admitted_at: Option<WallTime>,
    /// When it was revoked.
    pub revoked_at: Option<WallTime>,
    /// Why.
    pub revoked_reason: Option<String>,
    /// When it last attested or enrolled.
    pub last_seen_at: WallTime,
    /// The code and text of the last refusal, if the last word was one.
    pub last_refusal: Option<String>,
}

pub(super) const COLUMNS: &str = "id, state, grade, ek_name, ek_public, ek_certificate, alias_names, ak_public, node_key_public, \
    node_key_spki, certification_nonce, agent_version, node_group, admitted_by, enrolled_at, admitted_at, revoked_at, \
    revoked_reason, last_seen_at, last_refusal, certification_in_use, environment";

/// The node with this id.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn find(tx: &Transaction<'_>, id: NodeId) -> Result<Option<Node>, Refusal> {
    one(tx, &format!("SELECT {COLUMNS} FROM nodes WHERE id = ?1"), id.as_bytes())
}

/// The admitted or revoked node with this node key. A waiting node's key opens nothing.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn find_by_key(tx: &Transaction<'_>, spki: &[u8]) -> Result<Option<Node>, Refusal> {
    one(tx, &format!("SELECT {COLUMNS} FROM nodes WHERE node_key_spki = ?1 AND state <> 'waiting'"), spki)
}

/// All nodes, by id.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn all(tx: &Transaction<'_>) -> Result<Vec<Node>, Refusal> {
    let mut statement = tx.prepare(&format!("SELECT {COLUMNS} FROM nodes ORDER BY id"))?;
    let mut rows = statement.query([])?;
    let mut nodes = Vec::new();
    while let Some(row) = rows.next()? {
        nodes.push(read(row)?);
    }
    Ok(nodes)
}

/// The nodes of a group.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn of_group(tx: &Transaction<'_>, group: &str) -> Result<Vec<NodeId>, Refusal> {
    let mut statement = tx.prepare_cached("SELECT id FROM nodes WHERE node_group = ?1")?;
    let rows = statement.query_map([group], |row| row.get::<_, Vec<u8>>(0))?;
    rows.map(|id| Ok(NodeId::from_bytes(fixed(&id?, "a node id")?))).collect()
}

/// Makes room for a waiting node: anybody can invent TPMs, so only so many wait at once. Of those
/// that may be inventions, grade `unknown`, the one not heard of for longest goes; others go only
/// for one that is no invention either. A machine that is really there asks again in seconds.
///
/// # Errors
/// [`codes::PROTOCOL_BUSY`] when none can go, e.g. since an operator has registered something for it.
pub fn make_room(tx: &Transaction<'_>, waiting: u32, grade: Grade) -> Result<(), Refusal> {
    let count: u32 = tx.query_row("SELECT count(*) FROM nodes WHERE state = 'waiting'", [], |row| row.get(0))?;
    if count < waiting {
        return Ok(());
    }
    let oldest: Option<Vec<u8>> = tx
        .query_row(
            "SELECT id FROM nodes WHERE state = 'waiting'
             AND NOT EXISTS (SELECT 1 FROM workloads WHERE node = nodes.id)
             AND NOT EXISTS (SELECT 1 FROM reference_sets WHERE node = nodes.id)
             AND NOT EXISTS (SELECT 1 FROM reference_assignments WHERE node = nodes.id)
             AND (grade = ?1 OR ?2)
             ORDER BY grade <> ?1, last_seen_at, enrolled_at LIMIT 1",
            params![Grade::Unknown.as_str(), grade > Grade::Unknown],
            |row| row.get(0),
        )
        .optional()?;
    let oldest = oldest.ok_or_else(|| Refusal::new(codes::PROTOCOL_BUSY, "too many nodes wait for approval"))?;
    for table in ["quotes", "high_water", "nonces", "requests", "leases", "credentials", "tasks", "withdrawals"] {
        tx.execute(&format!("DELETE FROM {table} WHERE node = ?1"), [&oldest])?;
    }
    tx.execute("DELETE FROM nodes WHERE id = ?1", [&oldest])?;
    Ok(())
}

/// The node whose id starts with `text`.
///
/// # Errors
/// [`codes::ADMIN_UNKNOWN`] when there is none, [`codes::ADMIN_INVALID`] when there are several or
/// `text` is no (start of an) id.
pub fn resolve(tx: &Transaction<'_>, text: &str) -> Result<Node, Refusal> {
    /// Shorter ones are typing errors more often than not.
    const SHORTEST: usize = 6;
    let invalid = |found: String| Refusal::new(codes::ADMIN_INVALID, found).at(text.to_owned());
    if !(SHORTEST..=64).contains(&text.len()) || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(invalid("this is no node id".to_owned())
            .expected("64 hexadecimal digits, or at least the first 6; `leasehold-server node list` shows them"));
    }
    let wanted = text.to_ascii_lowercase();
    let mut found = all(tx)?.into_iter().filter(|node| node.id.to_string().starts_with(&wanted));
    match (found.next(), found.next()) {
        (Some(node), None) => Ok(node),
        (Some(_), Some(_)) => Err(invalid("several nodes' ids start like that".to_owned()).expected("more digits")),
        (None, _) => Err(Refusal::new(codes::ADMIN_UNKNOWN, "no such node")
            .at(text.to_owned())
            .expected("one that `leasehold-server node list` shows")),
    }
}

/// Inserts a node, or overwrites a waiting one, with all its fields.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn put(tx: &Transaction<'_>, node: &Node) -> Result<(), Refusal> {
    let time = |at: Option<WallTime>| at.map(|at| signed(at.0));
    let aliases = crate::protocol::encode(&node.aliases)?;
    tx.execute(
        &format!(
            "INSERT INTO nodes({COLUMNS}) VALUES
             (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21, ?22)
             ON CONFLICT(id) DO UPDATE SET
             state = ?2, grade = ?3, ek_name = ?4, ek_public = ?5, ek_certificate = ?6, alias_names = ?7,
             ak_public = ?8, node_key_public = ?9, node_key_spki = ?10, certification_nonce = ?11,
             agent_version = ?12, node_group = ?13, admitted_by = ?14, admitted_at = ?16, revoked_at = ?17,
             revoked_reason = ?18, last_seen_at = ?19, last_refusal = ?20, certification_in_use = ?21, environment = ?22"
        ),
        params![
            node.id.as_bytes(),
            node.state.as_str(),
            node.grade,
            node.ek_name,
            node.ek_public,
            node.ek_certificate,
            aliases,
            node.ak_public,
            node.node_key_public,
            node.node_key_spki,
            node.certification_nonce,
            node.agent_version,
            node.group,
            node.admitted_by,
            signed(node.enrolled_at.0),
            time(node.admitted_at),
            time(node.revoked_at),
            node.revoked_reason,
            signed(node.last_seen_at.0),
            node.last_refusal,
            node.certification_in_use,
            node.environment,
        ],
    )?;
    Ok(())
}

/// Notes when a node was last heard and what it was last refused for, if it was.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn seen(tx: &Transaction<'_>, id: NodeId, now: WallTime, refusal: Option<&Refusal>) -> Result<(), Refusal> {
    tx.prepare_cached("UPDATE nodes SET last_seen_at = ?1, last_refusal = ?2 WHERE id = ?3")?.execute(params![
        signed(now.0),
        refusal.map(ToString::to_string),
        id.as_bytes()
    ])?;
    Ok(())
}

impl Node {
    /// Of the certifications that this node may show, the one over `claimed`, or else the latest.
    pub fn certification(&self, claimed: &[u8; 32]) -> [u8; 32] {
        self.certification_in_use.filter(|in_use| in_use == claimed).unwrap_or(self.certification_nonce)
    }

    /// After a further enrolment over `nonce`: beside the new certification the one that a running
    /// agent holds stays good, however often somebody enrols beside it.
    pub fn enrolled_again(self, nonce: [u8; 32]) -> Self {
        let in_use = self.certification_in_use.unwrap_or(self.certification_nonce);
        Self { certification_nonce: nonce, certification_in_use: Some(in_use), ..self }
    }
}

/// Notes the certification that verified evidence of this node came with.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn attested_with(tx: &Transaction<'_>, node: &Node, nonce: [u8; 32]) -> Result<(), Refusal> {
    if node.certification_in_use == Some(nonce) {
        return Ok(());
    }
    tx.prepare_cached("UPDATE nodes SET certification_in_use = ?1 WHERE id = ?2")?
        .execute(params![nonce, node.id.as_bytes()])?;
    Ok(())
}

fn one(tx: &Transaction<'_>, sql: &str, key: &[u8]) -> Result<Option<Node>, Refusal> {
    let mut statement = tx.prepare_cached(sql)?;
    let mut rows = statement.query([key])?;
    rows.next()?.map(read).transpose()
}

pub(super) fn read(row: &rusqlite::Row<'_>) -> Result<Node, Refusal> {
    let time = |column: usize| -> Result<Option<WallTime>, Refusal> {
        Ok(row.get::<_, Option<i64>>(column)?.map(|at| WallTime(unsigned(at))))
    };
    let bytes = |column: usize| row.get::<_, Vec<u8>>(column);
    Ok(Node {
        id: NodeId::from_bytes(fixed(&bytes(0)?, "a node id")?),
        state: State::from_text(&row.get::<_, String>(1)?)?,
        grade: row.get(2)?,
        ek_name: bytes(3)?,
        ek_public: bytes(4)?,
        ek_certificate: row.get(5)?,
        aliases: crate::protocol::decode(&bytes(6)?).map_err(|_| damaged("a node's aliases"))?,
        ak_public: bytes(7)?,
        node_key_public: bytes(8)?,
        node_key_spki: bytes(9)?,
        certification_nonce: fixed(&bytes(10)?, "a certification nonce")?,
        agent_version: row.get(11)?,
        group: row.get(12)?,
        admitted_by: row.get(13)?,
        enrolled_at: time(14)?.unwrap_or(WallTime(0)),
        admitted_at: time(15)?,
        revoked_at: time(16)?,
        revoked_reason: row.get(17)?,
        last_seen_at: time(18)?.unwrap_or(WallTime(0)),
        last_refusal: row.get(19)?,
        certification_in_use: row
            .get::<_, Option<Vec<u8>>>(20)?
            .map(|nonce| fixed(&nonce, "a certification nonce"))
            .transpose()?,
        environment: row.get(21)?,
    })
}

#[cfg(test)]
pub(in crate::control_plane) mod tests {
    use super::*;
    use crate::control_plane::store::Store;

    pub fn waiting(number: u8) -> Node {
        Node {
            id: NodeId::from_bytes([number; 32]),
            state: State::Waiting,
            grade: "unknown".to_owned(),
            ek_name: vec![number],
            ek_public: Vec::new(),
            ek_certificate: None,
            aliases: vec![vec![number, 1]],
            ak_public: Vec::new(),
            node_key_public: Vec::new(),
            node_key_spki: vec![number],
            certification_nonce: [0; 32],
            certification_in_use: None,
            environment: String::new(),
            agent_version: String::new(),
            group: None,
            admitted_by: None,
            enrolled_at: WallTime(1),
            admitted_at: None,
            revoked_at: None,
            revoked_reason: None,
            last_seen_at: WallTime(u64::from(number)),
            last_refusal: None,
        }
    }

    pub fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store.db")).unwrap();
        (dir, store)
    }

    #[test]
    fn so_many_wait_and_the_one_silent_for_longest_goes() {
        let (_dir, store) = store();
        let left = store.transaction_blocking(|tx| {
            put(tx, &Node { state: State::Admitted, ..waiting(1) })?;
            for number in 2..=9 {
                make_room(tx, 4, Grade::Unknown)?;
                put(tx, &waiting(number))?;
            }
            all(tx)
        });
        let left: Vec<u8> = left.unwrap().iter().map(|node| node.id.as_bytes()[0]).collect();
        assert_eq!(left, [1, 6, 7, 8, 9]);
    }

    #[test]
    fn one_that_an_operator_has_assigned_a_reference_set_stays() {
        let (_dir, store) = store();
        let left = store.transaction_blocking(|tx| {
            put(tx, &waiting(1))?;
            tx.execute(
                "INSERT INTO reference_assignments(node, name, assigned_at) VALUES (?1, 'edge', 0)",
                [[1_u8; 32]],
            )?;
            for number in 2..=9 {
                make_room(tx, 4, Grade::Unknown)?;
                put(tx, &waiting(number))?;
            }
            all(tx)
        });
        let left: Vec<u8> = left.unwrap().iter().map(|node| node.id.as_bytes()[0]).collect();
        assert_eq!(left, [1, 7, 8, 9]);
    }

    #[test]
    fn inventions_go_before_certified_tpms() {
        let (_dir, store) = store();
        let left = store.transaction_blocking(|tx| {
            // The certified ones were silent for longest.
            for number in [1, 2] {
                put(tx, &Node { grade: "certified".to_owned(), ..waiting(number) })?;
            }
            for number in 3..=9 {
                make_room(tx, 4, Grade::Unknown)?;
                put(tx, &waiting(number))?;
            }
            for number in 10..=12 {
                make_room(tx, 4, Grade::Certified)?;
                put(tx, &Node { grade: "certified".to_owned(), ..waiting(number) })?;
            }
            assert_eq!(make_room(tx, 4, Grade::Unknown).unwrap_err().code, codes::PROTOCOL_BUSY);
            all(tx)
        });
        let left: Vec<u8> = left.unwrap().iter().map(|node| node.id.as_bytes()[0]).collect();
        assert_eq!(left, [2, 10, 11, 12]);
    }

    #[test]
    fn the_start_of_an_id_names_one_node_or_none() {
        let (_dir, store) = store();
        store
            .transaction_blocking(|tx| {
                let mut id = [7; 32];
                put(tx, &Node { id: NodeId::from_bytes(id), ..waiting(7) })?;
                id[31] = 8;
                put(tx, &Node { id: NodeId::from_bytes(id), ..waiting(8) })?;
                let seven = NodeId::from_bytes([7; 32]).to_string();
                assert_eq!(resolve(tx, &seven.to_uppercase())?.id.to_string(), seven);
                for (text, code) in [
                    (&seven[..10], codes::ADMIN_INVALID),
                    ("07", codes::ADMIN_INVALID),
                    ("070707%", codes::ADMIN_INVALID),
                    ("080808", codes::ADMIN_UNKNOWN),
                ] {
                    assert_eq!(resolve(tx, text).unwrap_err().code, code, "{text}");
                }
                Ok(())
            })
            .unwrap();
    }
}
