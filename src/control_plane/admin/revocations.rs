//! Commands that take something back, and those that say what came of it.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::commands::{Outcome, only};
use super::facts::NodeFacts;
use crate::clock::{BootInstant, WallTime};
use crate::codes::{self, Refusal};
use crate::control_plane::authn;
use crate::control_plane::effects::Effects;
use crate::control_plane::events::Audience;
use crate::control_plane::registry::{names, nodes};
use crate::control_plane::revocation::bounds::{self, Concerned};
use crate::control_plane::revocation::counts;
use crate::control_plane::revocation::plan::{self, Kind, Plan};
use crate::control_plane::server::Shared;
use crate::control_plane::store::Transaction;
use crate::protocol::Event;

/// A revocation as an operator states it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stated {
    /// What is named.
    pub kind: Kind,
    /// Which.
    pub target: String,
    /// Where a task is.
    #[serde(default)]
    pub node: Option<String>,
    /// Why; not needed to explain.
    #[serde(default)]
    pub reason: String,
    /// Changes nothing and says what would follow.
    #[serde(default)]
    pub explain: bool,
}

/// Revokes, or says what that would do. `came` is when the command arrived.
///
/// # Errors
/// As [`Plan::of`] and [`Plan::carry_out`].
pub fn revoke(
    tx: &Transaction<'_>,
    shared: &Shared,
    stated: &Stated,
    came: BootInstant,
    now: WallTime,
) -> Result<Outcome, Refusal> {
    if !stated.explain {
        names::text("--reason", &stated.reason)?;
    }
    let plan = Plan::of(tx, stated.kind, &stated.target, stated.node.as_deref(), now)?;
    let mut facts = described(shared, &plan);
    if stated.explain {
        let concerned: Result<Vec<_>, Refusal> =
            plan.concerned.iter().map(|concerned| explained(tx, shared, concerned, now)).collect();
        add(&mut facts, json!({ "explain": true, "spent": plan.spent, "concerned": concerned? }));
        return Ok(only(facts));
    }
    let (changed, number, effects, node) = match plan.carry_out(tx, &stated.reason, now)? {
        plan::Outcome::Before(number) => (false, number, Effects::default(), None),
        plan::Outcome::Now(taken, node) => {
            shared.words.began(taken.number, came);
            let mut effects = taken.effects();
            // What agents of the version before understand, and the last thing on a stream.
            effects.push.extend(node.as_ref().map(|node| {
                let refusal = Refusal { code: codes::GATE_REVOKED, ..authn::revoked(node) };
                (Audience::Node(node.id), Event::Revoked(refusal))
            }));
            (true, Some(taken.number), effects, node)
        }
    };
    let node = match (stated.kind, node) {
        (Kind::Node, None) => Some(nodes::resolve(tx, &stated.target)?),
        (_, node) => node.map(|node| *node),
    };
    if let Some(node) = node {
        add(&mut facts, json!(NodeFacts::of(tx, &node, now)?));
    }
    add(&mut facts, json!({ "changed": changed, "revocation": number, "reason": stated.reason }));
    Ok((facts, effects))
}

/// The newest revocations.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn list(tx: &Transaction<'_>) -> Result<Outcome, Refusal> {
    Ok(only(json!({ "schema": 1, "revocations": counts::list(tx)? })))
}

/// One revocation, with each node's part in it.
///
/// # Errors
/// [`codes::ADMIN_UNKNOWN`].
pub fn show(tx: &Transaction<'_>, shared: &Shared, number: u64) -> Result<Outcome, Refusal> {
    let mut facts = json!({ "schema": 1 });
    add(&mut facts, json!(counts::find(tx, number)?));
    add(&mut facts, json!({ "parts": counts::parts(tx, &shared.hub, number)? }));
    Ok(only(facts))
}

fn described(shared: &Shared, plan: &Plan) -> Value {
    let listening = plan.concerned.iter().filter(|concerned| shared.hub.is_open(concerned.node)).count();
    let suspends: Vec<String> = plan.suspends.iter().map(ToString::to_string).collect();
    json!({
        "schema": 1,
        "kind": plan.kind.as_str(),
        "target": plan.target,
        "suspends": suspends,
        "credentials": plan.credentials,
        "nodes": plan.concerned.len(),
        "listening": listening,
        "pushed_within_seconds": bounds::PUSHED,
        "until": plan.concerned.iter().map(|concerned| concerned.bound).max().map(|bound| bound.to_string()),
    })
}

fn explained(tx: &Transaction<'_>, shared: &Shared, concerned: &Concerned, now: WallTime) -> Result<Value, Refusal> {
    let node = nodes::find(tx, concerned.node)?;
    Ok(json!({
        "node": concerned.node.to_string(),
        "group": node.as_ref().and_then(|node| node.group.clone()),
        "stream": shared.hub.is_open(concerned.node),
        "last_seen": node.as_ref().map(|node| node.last_seen_at.to_string()),
        "credentials": concerned.holds,
        "until": concerned.bound.to_string(),
        "until_seconds": concerned.bound.0.saturating_sub(now.0),
    }))
}

fn add(facts: &mut Value, more: Value) {
    if let (Some(facts), Value::Object(more)) = (facts.as_object_mut(), more) {
        facts.extend(more);
    }
}
