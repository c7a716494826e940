//! What a revocation means here and now: worked out before anything changes, shown by `--explain`, then done.

use serde::{Deserialize, Serialize};

use super::bounds::{self, Concerned};
use super::{Cause, Taken, What, counts, take_back};
use crate::clock::WallTime;
use crate::codes::{self, Refusal};
use crate::control_plane::audit::{self, Subject};
use crate::control_plane::credentials::ledger::{self, Of};
use crate::control_plane::registry::nodes::{self, Node, State};
use crate::control_plane::registry::{owners, workloads};
use crate::control_plane::store::{Transaction, fixed};
use crate::identity::{NodeId, SpiffeId};

/// What an operator names.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A node, for good.
    Node,
    /// A workload: suspended, and withdrawn wherever it is.
    Workload,
    /// All workloads of an owner.
    Owner,
    /// One credential, by serial number or `jti`.
    Svid,
    /// A task.
    Task,
}

impl Kind {
    /// As in the store.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Workload => "workload",
            Self::Owner => "owner",
            Self::Svid => "credential",
            Self::Task => "task",
        }
    }
}

/// A revocation that could be made.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What was named.
    pub kind: Kind,
    /// Its full name.
    pub target: String,
    /// The workloads that would be suspended.
    pub suspends: Vec<SpiffeId>,
    /// The nodes that it concerns.
    pub concerned: Vec<Concerned>,
    /// The credentials that it would end.
    pub credentials: usize,
    /// Nothing is left of it to be taken back.
    pub spent: bool,
    what: What,
    node: Option<Node>,
}

impl Plan {
    /// Works out what revoking `target` would do. `node` says where a task is, if its id stands on several.
    ///
    /// # Errors
    /// [`codes::ADMIN_UNKNOWN`], [`codes::ADMIN_INVALID`].
    pub fn of(
        tx: &Transaction<'_>,
        kind: Kind,
        target: &str,
        node: Option<&str>,
        now: WallTime,
    ) -> Result<Self, Refusal> {
        let mut plan = match kind {
            Kind::Node => Self::of_node(nodes::resolve(tx, target)?),
            Kind::Workload => Self::of_workload(tx, target)?,
            Kind::Owner => Self::of_owner(tx, target)?,
            Kind::Svid => Self::of_credential(tx, target)?,
            Kind::Task => Self::of_task(tx, target, node)?,
        };
        plan.concerned = bounds::concerned(tx, &plan.what, now)?;
        plan.credentials = match &plan.what {
            What::Node(node) => ledger::live(tx, Of::Node(*node))?.len(),
            What::Workloads(ids) => {
                ids.iter().try_fold(0, |sum, id| Ok::<_, Refusal>(sum + ledger::live(tx, Of::Workload(id))?.len()))?
            }
            What::Credential(credential) => ledger::live(tx, Of::Credential(&credential.id))?.len(),
            What::Task(node, task) => ledger::live(tx, Of::Task(*node, task))?.len(),
        };
        plan.spent = plan.spent && plan.credentials == 0;
        Ok(plan)
    }

    fn new(kind: Kind, target: String, what: What, spent: bool) -> Self {
        let (suspends, concerned) = (Vec::new(), Vec::new());
        Self { kind, target, suspends, concerned, credentials: 0, spent, what, node: None }
    }

    fn of_node(node: Node) -> Self {
        let spent = node.state == State::Revoked;
        Self { node: Some(node.clone()), ..Self::new(Kind::Node, node.id.to_string(), What::Node(node.id), spent) }
    }

    fn of_workload(tx: &Transaction<'_>, id: &str) -> Result<Self, Refusal> {
        let workload = workloads::existing(tx, id)?;
        let id = workload.id;
        let spent = workload.suspended.is_some();
        let what = What::Workloads(vec![id.to_string()]);
        let suspends = if spent { Vec::new() } else { vec![id.clone()] };
        Ok(Self { suspends, ..Self::new(Kind::Workload, id.to_string(), what, spent) })
    }

    fn of_owner(tx: &Transaction<'_>, name: &str) -> Result<Self, Refusal> {
        if owners::find(tx, name)?.is_none() {
            return Err(Refusal::new(codes::ADMIN_UNKNOWN, format!("no owner `{name}`"))
                .expected("one that `leasehold-server owner list` shows"));
        }
        let mut statement =
            tx.prepare_cached("SELECT id, suspended_at IS NULL FROM workloads WHERE owner = ?1 ORDER BY id")?;
        let rows = statement.query_map([name], |row| Ok((row.get::<_, String>(0)?, row.get::<_, bool>(1)?)))?;
        let (mut ids, mut suspends) = (Vec::new(), Vec::new());
        for row in rows {
            let (id, issued_to) = row?;
            if issued_to && let Ok(id) = SpiffeId::new(&id) {
                suspends.push(id);
            }
            ids.push(id);
        }
        let spent = suspends.is_empty();
        Ok(Self { suspends, ..Self::new(Kind::Owner, name.to_owned(), What::Workloads(ids), spent) })
    }

    fn of_credential(tx: &Transaction<'_>, id: &str) -> Result<Self, Refusal> {
        // As other tools print serial numbers: in capitals, with colons.
        let plain = id.replace(':', "").to_ascii_lowercase();
        let credential = match ledger::find(tx, id)? {
            Some(found) => Some(found),
            None => ledger::find(tx, &plain)?,
        };
        let credential = credential.ok_or_else(|| {
            Refusal::new(codes::ADMIN_UNKNOWN, "no credential with this serial number or `jti` was issued here")
                .at(audit::clipped(id))
        })?;
        let spent = ledger::live(tx, Of::Credential(&credential.id))?.is_empty();
        Ok(Self::new(Kind::Svid, credential.id.clone(), What::Credential(credential), spent))
    }

    fn of_task(tx: &Transaction<'_>, task: &str, node: Option<&str>) -> Result<Self, Refusal> {
        let node = node.map(|node| nodes::resolve(tx, node)).transpose()?.map(|node| node.id);
        // An id is one of its workload's: on one node several may run at once, and all of them are meant.
        let mut statement = tx.prepare_cached(
            "SELECT node, min(ended_at IS NOT NULL) AS ended FROM tasks WHERE id = ?1 GROUP BY node ORDER BY ended",
        )?;
        let rows = statement.query_map([task], |row| Ok((row.get::<_, Vec<u8>>(0)?, row.get::<_, bool>(1)?)))?;
        let mut found = Vec::new();
        for row in rows {
            let (id, ended) = row?;
            let id = NodeId::from_bytes(fixed(&id, "a node id")?);
            if node.is_none_or(|node| node == id) {
                found.push((id, ended));
            }
        }
        let running = found.iter().filter(|(_, ended)| !ended).count();
        let (at, ended) = match found.as_slice() {
            [] => {
                return Err(Refusal::new(codes::ADMIN_UNKNOWN, "no task of this id was begun").at(audit::clipped(task)));
            }
            [first, ..] if running <= 1 => *first,
            _ => {
                return Err(Refusal::new(codes::ADMIN_INVALID, format!("{running} nodes run a task of this id"))
                    .at(audit::clipped(task))
                    .expected("--node, saying which"));
            }
        };
        Ok(Self::new(Kind::Task, task.to_owned(), What::Task(at, task.to_owned()), ended))
    }

    /// Does it. Where nothing is left to be taken back nothing changes, and the revocation that took it is
    /// given back, if there was one.
    ///
    /// # Errors
    /// [`codes::ADMIN_CONFLICT`] for a waiting node that claims another's keys; [`codes::STORE_FAILED`].
    pub fn carry_out(&self, tx: &Transaction<'_>, reason: &str, now: WallTime) -> Result<Outcome, Refusal> {
        if self.spent {
            return Ok(Outcome::Before(counts::latest(tx, self.kind.as_str(), &self.target)?));
        }
        for id in &self.suspends {
            let workload = workloads::existing(tx, &id.to_string())?;
            workloads::write(tx, &workload.suspended(reason, now), now)?;
        }
        let node = self.node.as_ref().map(|node| super::node::put_out(tx, node, reason, now)).transpose()?;
        let cause = Cause { kind: self.kind.as_str(), target: &self.target, reason, code: codes::GATE_REVOKED };
        let taken = take_back(tx, &self.what, &cause, now)?;
        self.record(tx, reason, taken.number, now)?;
        Ok(Outcome::Now(taken, node.map(Box::new)))
    }

    fn record(&self, tx: &Transaction<'_>, reason: &str, number: u64, now: WallTime) -> Result<(), Refusal> {
        let detail = serde_json::json!({ "reason": reason, "revocation": number });
        let write = |what: &str, subject: Subject<'_>| audit::about(tx, now, what, &subject, detail.clone());
        match &self.what {
            What::Node(node) => write("node.revoked", Subject { node: Some(*node), ..Subject::default() }),
            What::Workloads(ids) => ids
                .iter()
                .try_for_each(|id| write("workload.revoked", Subject { workload: Some(id), ..Subject::default() })),
            // The ledger wrote that it ended.
            What::Credential(_) => Ok(()),
            What::Task(node, task) => {
                write("task.revoked", Subject { node: Some(*node), task: Some(task), ..Subject::default() })
            }
        }
    }
}

/// What came of it.
#[derive(Debug)]
pub enum Outcome {
    /// It was taken back before, by this revocation; or it ended by itself.
    Before(Option<u64>),
    /// It was taken back; of a node its new row.
    Now(Taken, Option<Box<Node>>),
}
