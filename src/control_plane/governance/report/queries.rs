//! The questions that reports are made of, each one also a command.

use serde_json::{Value, json};

use super::super::super::server::Shared;
use super::super::super::store::{Transaction, signed};
use super::super::{debt, reviews};
use crate::clock::WallTime;
use crate::codes::Refusal;

/// A question to this server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Query {
    /// Workloads whose owner left or is missing, and that are not suspended.
    Ownerless,
    /// Workloads without a purpose.
    Purposeless,
    /// Everything that is registered, counted.
    Inventory,
    /// The longest live credential.
    Longest,
    /// Credentials whose decision isn't there.
    Undecided,
    /// Identical selector sets for two workloads in one place.
    Shared,
    /// Workloads on nodes of another environment.
    Environments,
    /// Third-party workloads without a pinned program.
    ThirdParty,
    /// Login sessions that were refused, and workloads that take them.
    People,
    /// Exceptions.
    Debt,
    /// What is to be reviewed.
    Reviews,
    /// Nodes by grade, and those that hold credentials without a good verdict.
    Nodes,
    /// Revocations, and what came back.
    Revocations,
    /// Records by kind, in the last thirty days.
    Records,
    /// Who administers.
    Operators,
    /// Tasks, and how they ended.
    Tasks,
}

/// What came of it.
pub struct Answer {
    /// As facts.
    pub result: Value,
    /// Whether nothing needs attention.
    pub holds: bool,
}

impl Query {
    /// The command that shows the same.
    pub const fn command(self) -> &'static str {
        match self {
            Self::Ownerless | Self::Purposeless | Self::Shared | Self::Environments | Self::ThirdParty => {
                "leasehold-server workload list"
            }
            Self::Inventory => "leasehold-server inventory",
            Self::Longest | Self::Undecided => "leasehold-server decision list",
            Self::People | Self::Records => "leasehold-server audit tail",
            Self::Debt => "leasehold-server debt",
            Self::Reviews => "leasehold-server review due",
            Self::Nodes => "leasehold-server node list",
            Self::Revocations => "leasehold-server revocation list",
            Self::Operators => "leasehold-server operator list",
            Self::Tasks => "leasehold-server task list",
        }
    }

    /// Asks it.
    ///
    /// # Errors
    /// [`crate::codes::STORE_FAILED`].
    pub fn ask(self, tx: &Transaction<'_>, shared: &Shared, now: WallTime) -> Result<Answer, Refusal> {
        let none = |found: Value| {
            let holds = found.as_array().is_some_and(Vec::is_empty);
            Answer { result: found, holds }
        };
        let shown = |result: Value| Answer { result, holds: true };
        Ok(match self {
            Self::Ownerless => none(ids(
                tx,
                "SELECT w.id FROM workloads w LEFT JOIN owners o ON o.name = w.owner
                 WHERE (o.name IS NULL OR o.retired_at IS NOT NULL) AND w.suspended_at IS NULL ORDER BY w.id",
            )?),
            Self::Purposeless => none(ids(tx, "SELECT id FROM workloads WHERE trim(purpose) = '' ORDER BY id")?),
            Self::Inventory => shown(json!({
                "nodes": count(tx, "SELECT count(*) FROM nodes WHERE state = 'admitted'")?,
                "workloads": count(tx, "SELECT count(*) FROM workloads")?,
                "owners": count(tx, "SELECT count(*) FROM owners WHERE retired_at IS NULL")?,
                "live_credentials": count(tx, "SELECT count(*) FROM credentials WHERE ended_at IS NULL")?,
            })),
            Self::Longest => {
                let seconds = count(
                    tx,
                    "SELECT coalesce(max(not_after - issued_at), 0) FROM credentials WHERE ended_at IS NULL",
                )?;
                let allowed = signed(shared.settings.svid.as_secs());
                Answer {
                    result: json!({ "longest_seconds": seconds, "allowed_seconds": allowed }),
                    holds: seconds <= allowed,
                }
            }
            Self::Undecided => none(ids(
                tx,
                "SELECT c.id FROM credentials c LEFT JOIN decisions d ON d.id = c.decision WHERE d.id IS NULL
                 AND c.ended_at IS NULL ORDER BY c.id LIMIT 100",
            )?),
            Self::Shared => none(ids(
                tx,
                "SELECT group_concat(id, ' = ') FROM workloads GROUP BY selectors, node, node_group HAVING count(*) > 1",
            )?),
            Self::Environments => none(ids(
                tx,
                "SELECT w.id FROM workloads w JOIN nodes n ON n.id = w.node OR n.node_group = w.node_group
                 WHERE w.environment <> n.environment GROUP BY w.id ORDER BY w.id",
            )?),
            Self::ThirdParty => none(ids(
                tx,
                "SELECT id FROM workloads WHERE third_party = 1 AND selectors NOT LIKE '%unix:sha256:%'
                 AND selectors NOT LIKE '%unix:fsverity:%' ORDER BY id",
            )?),
            Self::People => shown(json!({
                "workloads_for_people": ids(tx, "SELECT id FROM workloads WHERE interactive = 1 ORDER BY id")?,
                "refused": count(tx, "SELECT count(*) FROM log WHERE what = 'workload.login_session'")?,
            })),
            Self::Debt => {
                let facts = debt::facts(tx, now)?;
                let forgotten = facts.get("ended_not_closed").and_then(Value::as_u64).unwrap_or(0);
                Answer { result: facts, holds: forgotten == 0 }
            }
            Self::Reviews => {
                let settings = &shared.settings;
                let due = reviews::due(tx, &settings.governance, settings.svid.as_secs(), now)?;
                let rows: Vec<Value> =
                    due.iter().map(|due| json!({ "workload": due.workload, "why": due.why })).collect();
                none(Value::Array(rows))
            }
            Self::Nodes => {
                let unfit = ids(
                    tx,
                    "SELECT DISTINCT lower(hex(c.node)) FROM credentials c JOIN quotes q ON q.node = c.node
                     WHERE c.ended_at IS NULL AND q.verdict <> 'affirming' ORDER BY 1",
                )?;
                let holds = unfit.as_array().is_some_and(Vec::is_empty);
                let grades = pairs(tx, "SELECT grade, count(*) FROM nodes WHERE state = 'admitted' GROUP BY grade")?;
                Answer { result: json!({ "by_grade": grades, "hold_credentials_unfit": unfit }), holds }
            }
            Self::Revocations => shown(json!({
                "revocations": count(tx, "SELECT count(*) FROM revocations")?,
                "withdrawals": count(tx, "SELECT count(*) FROM withdrawals")?,
                "acknowledged": count(tx, "SELECT count(*) FROM withdrawals WHERE acknowledged_at IS NOT NULL")?,
                "proven": count(tx, "SELECT count(*) FROM withdrawals WHERE proven_at IS NOT NULL")?,
            })),
            Self::Records => {
                let since = now.0.saturating_sub(30 * 86_400);
                shown(pairs(
                    tx,
                    &format!("SELECT what, count(*) FROM log WHERE time >= {since} GROUP BY what ORDER BY what"),
                )?)
            }
            Self::Operators => shown(pairs(tx, "SELECT role, count(*) FROM operators GROUP BY role ORDER BY role")?),
            Self::Tasks => {
                shown(pairs(tx, "SELECT coalesce(ended_code, 'live'), count(*) FROM tasks GROUP BY 1 ORDER BY 1")?)
            }
        })
    }
}

fn count(tx: &Transaction<'_>, sql: &str) -> Result<i64, Refusal> {
    Ok(tx.query_row(sql, [], |row| row.get(0))?)
}

fn ids(tx: &Transaction<'_>, sql: &str) -> Result<Value, Refusal> {
    let mut statement = tx.prepare(sql)?;
    let rows = statement.query_map([], |row| row.get::<_, String>(0))?;
    Ok(Value::Array(rows.map(|row| row.map(Value::String)).collect::<Result<_, _>>()?))
}

fn pairs(tx: &Transaction<'_>, sql: &str) -> Result<Value, Refusal> {
    let mut statement = tx.prepare(sql)?;
    let rows = statement.query_map([], |row| Ok((row.get::<_, String>(0)?, Value::from(row.get::<_, i64>(1)?))))?;
    Ok(Value::Object(rows.collect::<Result<_, _>>()?))
}
