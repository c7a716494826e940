//! Inputs as Cedar sees them: entities and a request of our schema.

use std::collections::{BTreeSet, HashMap, HashSet};

use cedar_policy::{Context, Entities, Entity, EntityId, EntityTypeName, EntityUid, Request, RestrictedExpression};

use super::Action;
use super::inputs::Inputs;
use super::schema;
use crate::codes::{self, Refusal};
use crate::verify::TrustVector;

/// A day in seconds.
const DAY: u64 = 86_400;

type Members = HashMap<String, RestrictedExpression>;

/// One thing of a caller's `authorization_details` (RFC 9396).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Triple<'a> {
    /// Its type.
    pub kind: &'a str,
    /// One of its actions; empty if it has none.
    pub action: &'a str,
    /// One of its locations; empty if it has none.
    pub location: &'a str,
}

/// The entities that a decision's policies can reach.
///
/// # Errors
/// [`codes::POLICY_FAILED`].
pub fn entities(inputs: &Inputs) -> Result<Entities, Refusal> {
    let workload = &inputs.workload;
    let roles: Vec<EntityUid> = workload.roles.iter().map(|role| uid("Role", role)).collect();
    let principal: Members = members([
        ("owner", entity(uid("Owner", &inputs.owner.name))),
        ("purpose", text(&workload.purpose)),
        ("tier", long(u64::from(workload.tier))),
        ("environment", text(&workload.environment)),
        ("third_party", flag(workload.third_party)),
        ("interactive", flag(workload.interactive)),
        ("pinned", flag(workload.pinned)),
        ("suspended", flag(workload.suspended.is_some())),
        ("audiences", texts(&workload.audiences)),
        ("destinations", texts(&workload.destinations)),
    ]);
    let destination = inputs.destination.as_ref();
    let resource = members([
        ("environment", text(destination.and_then(|it| it.environment.as_deref()).unwrap_or_default())),
        ("named", flag(destination.is_some())),
    ]);
    let owner = members([("kind", text(&inputs.owner.kind)), ("active", flag(inputs.owner.active))]);
    let node = members([
        ("environment", text(&inputs.node.environment)),
        ("group", text(&inputs.node.group)),
        ("grade", text(&inputs.node.grade)),
        ("firmware", text(&inputs.node.firmware)),
    ]);
    let mut all = vec![
        one(uid("Workload", &workload.id), principal, roles.iter().cloned())?,
        one(uid("Owner", &inputs.owner.name), owner, [])?,
        one(uid("Node", &inputs.node.id), node, [])?,
        one(uid("Destination", inputs.destination_name()), resource, [])?,
    ];
    if let Some(task) = &inputs.task {
        let task_members = members([("intent", text(&task.intent)), ("purpose", text(&task.purpose))]);
        all.push(one(uid("Task", &task.id), task_members, [])?);
    }
    all.extend(roles.into_iter().map(|role| Entity::new_no_attrs(role, HashSet::new())));
    Entities::from_entities(all, None).map_err(failed)
}

/// What is asked: for the credential itself, or for one thing its holder means to do.
///
/// # Errors
/// [`codes::POLICY_FAILED`].
pub fn request(inputs: &Inputs, detail: Option<&Triple<'_>>) -> Result<Request, Refusal> {
    let mut context = context(inputs);
    let action = match detail {
        None => inputs.action.as_str(),
        Some(triple) => {
            let detail = record(members([
                ("type", text(triple.kind)),
                ("action", text(triple.action)),
                ("location", text(triple.location)),
            ]));
            context.insert("detail".to_owned(), detail?);
            "authorize"
        }
    };
    let context = context.into_iter().collect::<Vec<_>>();
    let context = Context::from_pairs(context).map_err(failed)?;
    Request::new(
        uid("Workload", &inputs.workload.id),
        uid("Action", action),
        uid("Destination", inputs.destination_name()),
        context,
        Some(schema::schema()),
    )
    .map_err(failed)
}

fn context(inputs: &Inputs) -> Members {
    let evidence = &inputs.evidence;
    let days = inputs.now / DAY;
    let mut context = members([
        ("now", instant(inputs.now)),
        ("hour", long(inputs.now % DAY / 3600)),
        // The first of January 1970 was a Thursday.
        ("weekday", long((days + 3) % 7 + 1)),
        ("ttl_seconds", long(asked(inputs))),
        ("node", entity(uid("Node", &inputs.node.id))),
        ("registered", flag(inputs.workload.registered)),
        ("audience", texts(&inputs.audience)),
    ]);
    let members_of_evidence = members([
        ("verdict", text(&evidence.verdict)),
        ("age_seconds", long(evidence.age_seconds)),
        ("term_seconds", long(evidence.term_seconds)),
        ("profile", text(&evidence.profile)),
        ("references", text(&evidence.references)),
        ("vector", vector(&evidence.vector)),
    ]);
    context.extend(record(members_of_evidence).ok().map(|it| ("evidence".to_owned(), it)));
    if let Some(caller) = &inputs.caller {
        let caller = members([
            ("uid", long(u64::from(caller.uid))),
            ("login_session", flag(caller.login_session)),
            ("selectors", texts(&caller.selectors)),
        ]);
        context.extend(record(caller).ok().map(|it| ("caller".to_owned(), it)));
    }
    let optional = [
        ("task", inputs.task.as_ref().map(|task| entity(uid("Task", &task.id)))),
        ("approved_until", inputs.approved_until.map(instant)),
        ("exception_until", inputs.exception_until.map(instant)),
    ];
    context.extend(optional.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))));
    context
}

/// The lifetime that is asked for, in seconds: what the server, the registration and the task allow.
pub fn asked(inputs: &Inputs) -> u64 {
    let task = inputs.task.as_ref().map(|task| task.term_seconds).filter(|term| *term > 0);
    [inputs.workload.ttl_seconds, task].into_iter().flatten().fold(inputs.limit_seconds, u64::min)
}

fn vector(vector: &TrustVector) -> RestrictedExpression {
    let claim = |value: i8| RestrictedExpression::new_long(i64::from(value));
    let claims = members([
        ("instance_identity", claim(vector.instance_identity)),
        ("configuration", claim(vector.configuration)),
        ("executables", claim(vector.executables)),
        ("file_system", claim(vector.file_system)),
        ("hardware", claim(vector.hardware)),
        ("runtime_opaque", claim(vector.runtime_opaque)),
        ("storage_opaque", claim(vector.storage_opaque)),
        ("sourced_data", claim(vector.sourced_data)),
    ]);
    // Eight different names; without them the request wouldn't keep to the schema, which denies.
    record(claims).unwrap_or_else(|_| flag(false))
}

fn one(uid: EntityUid, attributes: Members, parents: impl IntoIterator<Item = EntityUid>) -> Result<Entity, Refusal> {
    Entity::new(uid, attributes, parents.into_iter().collect()).map_err(failed)
}

fn uid(kind: &'static str, id: &str) -> EntityUid {
    EntityUid::from_type_name_and_id(type_name(kind), EntityId::new(id))
}

/// The type of this name; there are seven of them.
fn type_name(kind: &'static str) -> EntityTypeName {
    use std::sync::LazyLock;
    static NAMES: LazyLock<HashMap<&'static str, EntityTypeName>> = LazyLock::new(|| {
        ["Workload", "Role", "Owner", "Node", "Destination", "Task", "Action"]
            .into_iter()
            .filter_map(|name| Some((name, name.parse().ok()?)))
            .collect()
    });
    match NAMES.get(kind) {
        Some(name) => name.clone(),
        None => unreachable!("BUG: no entity type {kind}"),
    }
}

fn members<const N: usize>(pairs: [(&str, RestrictedExpression); N]) -> Members {
    pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

fn record(members: Members) -> Result<RestrictedExpression, Refusal> {
    RestrictedExpression::new_record(members).map_err(failed)
}

fn text(value: &str) -> RestrictedExpression {
    RestrictedExpression::new_string(value.to_owned())
}

fn texts<'a>(values: impl IntoIterator<Item = &'a String>) -> RestrictedExpression {
    let unique: BTreeSet<&String> = values.into_iter().collect();
    RestrictedExpression::new_set(unique.into_iter().map(|value| text(value)))
}

fn flag(value: bool) -> RestrictedExpression {
    RestrictedExpression::new_bool(value)
}

fn entity(uid: EntityUid) -> RestrictedExpression {
    RestrictedExpression::new_entity_uid(uid)
}

/// Cedar's numbers are signed; saturates.
fn long(value: u64) -> RestrictedExpression {
    RestrictedExpression::new_long(i64::try_from(value).unwrap_or(i64::MAX))
}

/// A moment, from seconds since 1970.
fn instant(seconds: u64) -> RestrictedExpression {
    // Cedar reads years of four digits: later is the end of them.
    const LAST: u64 = 253_402_300_799;
    RestrictedExpression::new_datetime(crate::clock::WallTime(seconds.min(LAST)).to_string())
}

fn failed(error: impl std::fmt::Display) -> Refusal {
    Refusal::new(codes::POLICY_FAILED, error.to_string()).at("the decision's inputs")
}

impl Action {
    /// Its name in policies.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::X509 => "x509",
            Self::Jwt => "jwt",
        }
    }
}
