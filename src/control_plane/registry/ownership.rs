//! Whose TPM it is: the EKs that nodes own, and the keys that none shares with another.

use super::nodes::{COLUMNS, Node, State, find, read};
use crate::codes::{self, Refusal};
use crate::control_plane::store::{OptionalExtension, Transaction, fixed, params};
use crate::identity::NodeId;

/// The node that holds the EK with this TPM name, as its own or as an alias.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn owner_of_ek(tx: &Transaction<'_>, ek_name: &[u8]) -> Result<Option<NodeId>, Refusal> {
    tx.query_row("SELECT node FROM ek_owners WHERE ek_name = ?1", [ek_name], |row| row.get::<_, Vec<u8>>(0))
        .optional()?
        .map(|id| Ok(NodeId::from_bytes(fixed(&id, "a node id")?)))
        .transpose()
}

/// Another node's unproven word about an EK of this one: it named the EK as one of its own TPM's.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Claim {
    /// The EK's TPM name.
    pub ek_name: Vec<u8>,
    /// Who claims it.
    pub by: NodeId,
    /// Whether that node was revoked.
    pub revoked: bool,
}

/// Records that the node holds its EK, which it proved, and the aliases that nobody else named
/// first. Returns what others claimed of them.
///
/// # Errors
/// As [`check_eks`].
pub fn claim_eks(tx: &Transaction<'_>, node: &Node) -> Result<Vec<Claim>, Refusal> {
    let claims = check_eks(tx, node.id, &node.ek_name, &node.aliases)?;
    // What was proven takes the place of what was only said.
    tx.execute(
        "INSERT INTO ek_owners(ek_name, node) VALUES (?1, ?2) ON CONFLICT(ek_name) DO UPDATE SET node = ?2",
        params![node.ek_name, node.id.as_bytes()],
    )?;
    for name in &node.aliases {
        tx.execute(
            "INSERT INTO ek_owners(ek_name, node) VALUES (?1, ?2) ON CONFLICT(ek_name) DO NOTHING",
            params![name, node.id.as_bytes()],
        )?;
    }
    Ok(claims)
}

/// Refuses a node that names another's EK as its own: one TPM is one node, under whichever of its
/// EKs it comes. A node owns an EK that it proved by activating a credential; that another node
/// merely named it keeps nobody out, and is returned.
///
/// # Errors
/// [`codes::ENROL_REVOKED`] or [`codes::ENROL_ID_TAKEN`], naming the other node.
pub fn check_eks(tx: &Transaction<'_>, id: NodeId, own: &Vec<u8>, aliases: &[Vec<u8>]) -> Result<Vec<Claim>, Refusal> {
    let mut claims = Vec::new();
    for name in std::iter::once(own).chain(aliases) {
        let Some(owner) = owner_of_ek(tx, name)?.filter(|owner| *owner != id) else { continue };
        let Some(other) = find(tx, owner)? else { continue };
        if other.ek_name == *name {
            return Err(belongs(&format!("EK {}", hex::encode(name)), &other));
        }
        claims.push(Claim { ek_name: name.clone(), by: owner, revoked: other.state == State::Revoked });
    }
    Ok(claims)
}

/// Refuses if another admitted or revoked node has this AK or this node key. Both are made from one
/// template, so a TPM has the same ones under each of its EKs: who comes with another's is in the
/// same TPM, whether or not the node ever named both EKs.
///
/// # Errors
/// [`codes::ENROL_REVOKED`] or [`codes::ENROL_ID_TAKEN`], naming the other node.
pub fn check_keys(tx: &Transaction<'_>, id: NodeId, ak_public: &[u8], spki: &[u8]) -> Result<(), Refusal> {
    let mut statement = tx.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM nodes WHERE (ak_public = ?1 OR node_key_spki = ?2) AND state <> 'waiting' AND id <> ?3
         ORDER BY state = 'revoked' DESC LIMIT 1"
    ))?;
    let mut rows = statement.query(params![ak_public, spki, id.as_bytes()])?;
    match rows.next()?.map(read).transpose()? {
        Some(other) => Err(belongs("attestation or node key", &other)),
        None => Ok(()),
    }
}

fn belongs(what: &str, other: &Node) -> Refusal {
    let (code, whose) = match other.state {
        State::Revoked => (codes::ENROL_REVOKED, "the revoked node"),
        State::Waiting | State::Admitted => (codes::ENROL_ID_TAKEN, "the node"),
    };
    Refusal::new(code, format!("this TPM's {what} belongs to {whose} {}", other.id))
}

#[cfg(test)]
mod tests {
    use super::super::nodes::put;
    use super::super::nodes::tests::{store as test_store, waiting};
    use super::*;

    #[test]
    fn a_proven_ek_belongs_to_one_node_and_a_claim_keeps_nobody_out() {
        let (_dir, store) = test_store();
        store
            .transaction_blocking(|tx| {
                let one = Node { state: State::Admitted, ..waiting(1) };
                let two = Node { aliases: vec![vec![1]], ..waiting(2) };
                put(tx, &one)?;
                put(tx, &two)?;
                assert_eq!(claim_eks(tx, &one)?, []);
                assert_eq!(claim_eks(tx, &one)?, []);
                assert_eq!(claim_eks(tx, &two).unwrap_err().code, codes::ENROL_ID_TAKEN);
                put(tx, &Node { state: State::Revoked, ..one })?;
                assert_eq!(claim_eks(tx, &two).unwrap_err().code, codes::ENROL_REVOKED);
                assert_eq!(owner_of_ek(tx, &[2])?, None);
                // The EK that node 1 only named is its owner's once that one proves it.
                let three = Node { ek_name: vec![1, 1], aliases: Vec::new(), ..waiting(3) };
                put(tx, &three)?;
                let by = NodeId::from_bytes([1; 32]);
                assert_eq!(claim_eks(tx, &three)?, [Claim { ek_name: vec![1, 1], by, revoked: true }]);
                assert_eq!(owner_of_ek(tx, &[1, 1])?, Some(three.id));
                Ok(())
            })
            .unwrap();
    }
}
