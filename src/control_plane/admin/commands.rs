//! The commands of the admin socket: each is one transaction, then its effects on running nodes.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::registrations::{destinations, eks, inventory, owners, workloads};
use super::roles::{Action, Actor};
use super::{declared, governance, nodes, operators, policy, references, revocations, tasks, trust};
use crate::clock::{BootInstant, WallTime};
use crate::codes::{self, Refusal};
use crate::control_plane::audit::listing::{Filter, Of};
use crate::control_plane::audit::{self, Reading};
use crate::control_plane::effects::Effects;
use crate::control_plane::events::Audience;
use crate::control_plane::policy::{Asked, standing};
use crate::control_plane::registry::declared::SourceFile;
use crate::control_plane::registry::destinations::Destination;
use crate::control_plane::registry::operators as registered;
use crate::control_plane::registry::owners::{Kind, Stated as StatedOwner};
use crate::control_plane::registry::placement::Place;
use crate::control_plane::registry::workloads::{Changes, Stated};
use crate::control_plane::server::Shared;
use crate::control_plane::store::Transaction;

/// The most records of one answer.
const RECORDS: u64 = 10_000;

/// A command. Nodes are named by their id or the start of one.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case", deny_unknown_fields)]
pub enum Command {
    NodeList,
    NodeShow { node: String },
    NodeExplain { node: String },
    NodeApprove { node: String, group: Option<String>, environment: Option<String>, accept_counts: bool },
    NodeSet { node: String, group: Option<String>, environment: Option<String> },
    EkAdd(eks::StatedEk),
    EkList,
    EkRemove { value: String },
    OwnerAdd(StatedOwner),
    OwnerSet { name: String, contact: Option<String>, kind: Option<Kind> },
    OwnerRetire { name: String, to: Option<String>, reason: String },
    OwnerShow { name: String },
    OwnerList,
    DestinationAdd(Destination),
    DestinationList,
    DestinationRemove { name: String },
    Inventory,
    DeclarationPlan { files: Vec<SourceFile>, prune: bool },
    DeclarationApply { files: Vec<SourceFile>, prune: bool, fingerprint: String },
    DeclarationExport,
    WorkloadAdd(Stated),
    WorkloadSet(Changes),
    WorkloadSuspend { id: String, reason: String },
    WorkloadResume { id: String },
    WorkloadShow { id: String },
    WorkloadList,
    WorkloadRemove { id: String, reason: Option<String> },
    Revoke(revocations::Stated),
    RevocationList,
    RevocationShow { number: u64 },
    ReferencePreview { node: String },
    ReferenceLearn { node: String, fingerprint: String },
    ReferenceList,
    ReferenceRetire { node: String },
    ReferenceDraft { node: String, profile: String, name: Option<String>, state: Option<String> },
    ReferenceImport { document: String },
    ReferenceShow { name: String, version: Option<u64> },
    ReferenceAssign { name: String, node: Option<String>, node_group: Option<String> },
    ReferenceUnassign { node: Option<String>, node_group: Option<String> },
    ReferenceRetireSet { name: String },
    CaShow,
    CaPrepare,
    CaRotate { early: bool },
    CaRemove { ca: String, reason: String },
    CaCrl { ca: Option<String> },
    AuditList { of: Of, after: u64, limit: u64, newest: bool, filter: Filter },
    AuditVerify { node: Option<String> },
    AuditJoin,
    TaskList { all: bool },
    TaskShow { id: String },
    OperatorAdd { id: String, role: String, owner: Option<String> },
    OperatorList,
    OperatorRemove { id: String },
    PolicyApply { document: String },
    PolicyApplyFiles { policies: policy::Files, tests: policy::Files },
    PolicyList,
    PolicyShow { version: Option<u64> },
    PolicyWhyNot(Asked),
    DecisionShow { id: String },
    DecisionList { workload: Option<String>, node: Option<String>, denied: bool, since: Option<String>, limit: u64 },
    DecisionReplay { after: i64 },
    ApprovalRequest(governance::StatedRequest),
    ApprovalGrant { id: String, break_glass: bool, reason: String },
    ApprovalDeny { id: String, reason: String },
    ApprovalList,
    ExceptionAdd(governance::StatedException),
    ExceptionList,
    ExceptionClose { id: String, reason: String },
    ReviewDue,
    ReviewSign { workload: String, note: String },
    Debt,
    Report { framework: String },
}

/// Facts, and what is still to be done.
pub type Outcome = (Value, Effects);

impl Command {
    /// Reads a command.
    ///
    /// # Errors
    /// [`codes::ADMIN_INVALID`].
    pub fn parse(body: &[u8]) -> Result<Self, Refusal> {
        serde_json::from_slice(body).map_err(|error| {
            Refusal::new(codes::ADMIN_INVALID, error.to_string()).expected("a command of this server's version")
        })
    }

    /// What it does, as far as roles are concerned. A new command needs its place here.
    pub const fn action(&self) -> Action {
        match self {
            Self::NodeList
            | Self::NodeShow { .. }
            | Self::NodeExplain { .. }
            | Self::EkList
            | Self::Inventory
            | Self::DeclarationPlan { .. }
            | Self::DeclarationExport
            | Self::OwnerShow { .. }
            | Self::OwnerList
            | Self::DestinationList
            | Self::WorkloadShow { .. }
            | Self::WorkloadList
            | Self::ReferencePreview { .. }
            | Self::ReferenceList
            | Self::ReferenceShow { .. }
            | Self::ReferenceDraft { .. }
            | Self::CaShow
            | Self::CaCrl { .. }
            | Self::OperatorList
            | Self::PolicyList
            | Self::PolicyShow { .. }
            | Self::PolicyWhyNot(_)
            | Self::DecisionShow { .. }
            | Self::DecisionList { .. }
            | Self::DecisionReplay { .. }
            | Self::ApprovalList
            | Self::ExceptionList
            | Self::ReviewDue
            | Self::Debt
            | Self::TaskList { .. }
            | Self::TaskShow { .. }
            | Self::Report { .. }
            | Self::RevocationList
            | Self::RevocationShow { .. }
            | Self::Revoke(revocations::Stated { explain: true, .. })
            | Self::AuditList { .. }
            | Self::AuditVerify { .. }
            | Self::AuditJoin => Action::Read,
            Self::NodeApprove { .. }
            | Self::EkAdd(_)
            | Self::EkRemove { .. }
            | Self::NodeSet { .. }
            | Self::DeclarationApply { .. }
            | Self::OwnerAdd(_)
            | Self::OwnerSet { .. }
            | Self::OwnerRetire { .. }
            | Self::DestinationAdd(_)
            | Self::DestinationRemove { .. }
            | Self::WorkloadAdd(_)
            | Self::WorkloadSet(_)
            | Self::WorkloadSuspend { .. }
            | Self::WorkloadResume { .. }
            | Self::WorkloadRemove { .. }
            | Self::Revoke(_)
            | Self::ReferenceLearn { .. }
            | Self::ReferenceRetire { .. }
            | Self::ReferenceImport { .. }
            | Self::ReferenceAssign { .. }
            | Self::ReferenceUnassign { .. }
            | Self::ReferenceRetireSet { .. }
            | Self::ApprovalRequest(_)
            | Self::ExceptionAdd(_)
            | Self::ExceptionClose { .. } => Action::Operate,
            Self::ApprovalGrant { .. } | Self::ApprovalDeny { .. } | Self::ReviewSign { .. } => Action::Approve,
            Self::CaPrepare
            | Self::CaRotate { .. }
            | Self::CaRemove { .. }
            | Self::OperatorAdd { .. }
            | Self::OperatorRemove { .. }
            | Self::PolicyApply { .. }
            | Self::PolicyApplyFiles { .. } => Action::Administer,
        }
    }

    /// Carries the command out for `actor`, if its role allows it; `still` says in the same transaction
    /// who it is by then.
    ///
    /// # Errors
    /// The refusal for the operator; then nothing was changed.
    pub async fn run_as(
        self,
        shared: &Arc<Shared>,
        actor: Actor,
        still: impl FnOnce(&Transaction<'_>, &Shared) -> Result<Actor, Refusal> + Send + 'static,
    ) -> Result<Value, Refusal> {
        let (of_work, now, came) = (shared.clone(), shared.now(), BootInstant::now());
        let name = self.name();
        let roles = &shared.settings.roles;
        // Who may not say who administers may not become one of them, either.
        let bound = self.action() != Action::Read && roles.allow(&actor, Action::Administer, &name).is_err();
        if let Err(refusal) = roles.allow(&actor, self.action(), &name) {
            let recorded = refusal.clone();
            shared.store.transaction(move |tx| audit::refused(tx, now, &recorded, None, &name)).await?;
            return Err(refusal);
        }
        self.tested(shared).await?;
        let (reads, long) = (self.reads(), self.is_long());
        let work = move |tx: &Transaction<'_>| {
            if still(tx, &of_work)? != actor {
                return Err(Refusal::new(codes::ADMIN_ROLE, "its role was changed meanwhile").at(actor.name));
            }
            if reads {
                return self.apply(tx, &of_work, &actor, came, now);
            }
            let ways = bound.then(|| registered::ways(tx)).transpose()?;
            let (facts, effects) = audit::acting(&actor.name, || {
                let (facts, mut effects) = self.apply(tx, &of_work, &actor, came, now)?;
                ways.map_or(Ok(()), |ways| registered::no_new_way(tx, &ways))?;
                reconsider(tx, &of_work, &mut effects, now)?;
                Ok::<_, Refusal>((facts, effects))
            })?;
            Ok((facts, effects.seal(tx, &of_work)?))
        };
        let (facts, effects) = match reads {
            true => shared.store.reading(long, work).await?,
            false => shared.store.transaction(work).await?,
        };
        effects.carry_out(shared).await?;
        Ok(facts)
    }

    /// Whether it only reads, and so needn't keep the one writer waiting.
    fn reads(&self) -> bool {
        // A plan is made by doing it and undoing that; a list of revoked certificates is numbered.
        self.action() == Action::Read && !matches!(self, Self::DeclarationPlan { .. } | Self::CaCrl { .. })
    }

    /// Whether what it reads grows with the record, or it tries a lot: seconds, where others take milliseconds.
    const fn is_long(&self) -> bool {
        matches!(
            self,
            Self::AuditList { .. }
                | Self::AuditVerify { .. }
                | Self::AuditJoin
                | Self::DecisionList { .. }
                | Self::DecisionReplay { .. }
                | Self::PolicyWhyNot(_)
                | Self::ReviewDue
                | Self::Report { .. }
        )
    }

    /// Runs a bundle's tests, which take longer than a transaction may.
    async fn tested(&self, shared: &Arc<Shared>) -> Result<(), Refusal> {
        match self {
            Self::PolicyApply { document } => policy::tested(shared, document.clone()).await,
            Self::PolicyApplyFiles { policies, tests } => {
                policy::tested_files(shared, policies.clone(), tests.clone()).await
            }
            _ => Ok(()),
        }
    }

    /// Its name on the wire, e.g. `node_approve`.
    fn name(&self) -> String {
        let value = serde_json::to_value(self).unwrap_or_default();
        value.get("command").and_then(Value::as_str).unwrap_or("?").to_owned()
    }

    fn apply(
        self,
        tx: &Transaction<'_>,
        shared: &Shared,
        actor: &Actor,
        came: BootInstant,
        now: WallTime,
    ) -> Result<Outcome, Refusal> {
        let rules = &shared.settings.registry;
        match self {
            Self::NodeList => nodes::list(tx, now),
            Self::NodeShow { node } => nodes::show(tx, &node, now),
            Self::NodeExplain { node } => nodes::explain(tx, shared, &node, now),
            Self::NodeApprove { node, group, environment, accept_counts } => {
                nodes::approve(tx, &node, Place { group, environment }, accept_counts, rules, now)
            }
            Self::NodeSet { node, group, environment } => {
                nodes::set(tx, &node, Place { group, environment }, rules, now)
            }
            Self::EkAdd(stated) => eks::add(tx, stated, rules, now),
            Self::EkList => eks::list(tx),
            Self::EkRemove { value } => eks::remove(tx, &value, now),
            Self::OwnerAdd(stated) => owners::add(tx, stated, now),
            Self::OwnerSet { name, contact, kind } => owners::set(tx, &name, contact, kind, now),
            Self::OwnerRetire { name, to, reason } => owners::retire(tx, &name, to.as_deref(), &reason, now),
            Self::OwnerShow { name } => owners::show(tx, &name),
            Self::OwnerList => owners::list(tx),
            Self::DestinationAdd(stated) => destinations::add(tx, stated, rules, now),
            Self::DestinationList => destinations::list(tx),
            Self::DestinationRemove { name } => destinations::remove(tx, &name, now),
            Self::Inventory => inventory(tx, now),
            Self::DeclarationPlan { files, prune } => declared::plan(tx, &files, prune, rules, now),
            Self::DeclarationApply { files, prune, fingerprint } => {
                declared::apply(tx, &files, prune, &fingerprint, rules, now)
            }
            Self::DeclarationExport => declared::export(tx),
            Self::WorkloadAdd(stated) => workloads::add(tx, stated, rules, now),
            Self::WorkloadSet(changes) => workloads::set(tx, changes, rules, now),
            Self::WorkloadSuspend { id, reason } => workloads::suspend(tx, &id, &reason, now),
            Self::WorkloadResume { id } => workloads::resume(tx, &id, now),
            Self::WorkloadShow { id } => workloads::show(tx, &id),
            Self::WorkloadList => workloads::list(tx),
            Self::WorkloadRemove { id, reason } => workloads::remove(tx, &id, reason.as_deref(), now),
            Self::Revoke(stated) => revocations::revoke(tx, shared, &stated, came, now),
            Self::RevocationList => revocations::list(tx),
            Self::RevocationShow { number } => revocations::show(tx, shared, number),
            Self::ReferencePreview { node } => trust::reference_preview(tx, &shared.settings.policy, &node),
            Self::ReferenceLearn { node, fingerprint } => {
                trust::reference_learn(tx, &shared.settings.policy, &node, &fingerprint, now)
            }
            Self::ReferenceList => trust::reference_list(tx),
            Self::ReferenceRetire { node } => trust::reference_retire(tx, &node, now),
            Self::ReferenceDraft { node, profile, name, state } => {
                references::draft(tx, &shared.settings, &node, &profile, name.as_deref(), state.as_deref())
            }
            Self::ReferenceImport { document } => references::import(tx, &document, &shared.settings, now),
            Self::ReferenceShow { name, version } => references::show(tx, &name, version),
            Self::ReferenceAssign { name, node, node_group } => {
                references::assign(tx, &name, node.as_deref(), node_group.as_deref(), now)
            }
            Self::ReferenceUnassign { node, node_group } => {
                references::unassign(tx, node.as_deref(), node_group.as_deref(), now)
            }
            Self::ReferenceRetireSet { name } => references::retire(tx, &name, now),
            Self::CaShow => trust::ca_show(tx),
            Self::CaPrepare => trust::ca_prepare(tx, &shared.authority, now),
            Self::CaRotate { early } => trust::ca_rotate(tx, &shared.authority, early, now),
            Self::CaRemove { ca, reason } => trust::ca_remove(tx, &shared.authority, &ca, &reason, now),
            Self::CaCrl { ca } => trust::ca_crl(tx, shared, ca.as_deref(), now),
            Self::AuditList { of, after, limit, newest, filter } => {
                read(tx, shared, &Reading::List { of, after, limit: limit.min(RECORDS), newest, filter }, now)
            }
            Self::AuditVerify { node } => read(tx, shared, &Reading::Verify { node }, now),
            Self::AuditJoin => read(tx, shared, &Reading::Join, now),
            Self::OperatorAdd { id, role, owner } => {
                operators::add(tx, &id, &role, owner.as_deref(), actor, &rules.trust_domain, now)
            }
            Self::OperatorList => operators::list(tx),
            Self::OperatorRemove { id } => operators::remove(tx, &id, now),
            Self::PolicyApply { document } => policy::apply(tx, shared, &document, now),
            Self::PolicyApplyFiles { policies, tests } => policy::apply_files(tx, shared, policies, tests, now),
            Self::PolicyList => policy::list(tx),
            Self::PolicyShow { version } => policy::show(tx, shared, version),
            Self::PolicyWhyNot(asked) => policy::why_not(tx, shared, &asked, now),
            Self::DecisionShow { id } => policy::decision_show(tx, shared, &id),
            Self::DecisionList { workload, node, denied, since, limit } => policy::decision_list(
                tx,
                workload.as_deref(),
                node.as_deref(),
                denied,
                since.as_deref(),
                limit.min(RECORDS),
            ),
            Self::DecisionReplay { after } => policy::decision_replay(tx, shared, after),
            Self::ApprovalRequest(stated) => governance::approval_request(tx, shared, &stated, actor, now),
            Self::ApprovalGrant { id, break_glass, reason } => {
                governance::approval_grant(tx, &id, &reason, break_glass, actor, now)
            }
            Self::ApprovalDeny { id, reason } => governance::approval_deny(tx, &id, &reason, actor, now),
            Self::ApprovalList => governance::approval_list(tx, now),
            Self::ExceptionAdd(stated) => governance::exception_add(tx, shared, &stated, actor, now),
            Self::ExceptionList => governance::exception_list(tx, now),
            Self::ExceptionClose { id, reason } => governance::exception_close(tx, &id, &reason, now),
            Self::ReviewDue => governance::review_due(tx, shared, now),
            Self::ReviewSign { workload, note } => governance::review_sign(tx, &workload, &note, actor, now),
            Self::Debt => governance::debt(tx, now),
            Self::TaskList { all } => tasks::list(tx, all),
            Self::TaskShow { id } => tasks::show(tx, &id),
            Self::Report { framework } => governance::report(tx, shared, &framework, now),
        }
    }
}

fn read(tx: &Transaction<'_>, shared: &Shared, reading: &Reading, now: WallTime) -> Result<Outcome, Refusal> {
    reading.read(tx, Some(&shared.heads.witness), now).map(only)
}

/// Holds what is live to what the command changed, on the nodes it concerns. Where that is all of them it is done
/// afterwards, one node at a time.
fn reconsider(tx: &Transaction<'_>, shared: &Shared, effects: &mut Effects, now: WallTime) -> Result<(), Refusal> {
    if effects.push.iter().any(|(audience, _)| *audience == Audience::All) {
        effects.reconsider = true;
        return Ok(());
    }
    let mut nodes = standing::holders(tx)?;
    nodes.retain(|node| effects.push.iter().any(|(audience, _)| *audience == Audience::Node(*node)));
    for node in nodes {
        effects.join(standing::reconsider(tx, shared, node, now)?);
    }
    Ok(())
}

/// Facts that need nothing further.
pub fn only(facts: Value) -> Outcome {
    (facts, Effects::default())
}
