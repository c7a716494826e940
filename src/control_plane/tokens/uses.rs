//! What the use of a token tells: one that is bound to a task and shown by two is outside its job.

use serde_json::Value;

use crate::clock::WallTime;
use crate::codes::{self, Refusal};
use crate::control_plane::audit;
use crate::control_plane::credentials::ledger::{self, Of};
use crate::control_plane::effects::Effects;
use crate::control_plane::revocation::{self, Cause, Taken, What};
use crate::control_plane::store::{Transaction, fixed, params, signed, unsigned};
use crate::identity::NodeId;
use crate::protocol::Record;

/// Notes that a process of `uid` showed the token with this `jti` to the agent of `node`, and takes the
/// token back if it is bound to a task and somebody else had shown it: another user, or the same on
/// another node. A task is one process on one node, so one of the two has the token from elsewhere.
///
/// Tokens without a task are for all processes of their workload; of those nothing is noted.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn used(tx: &Transaction<'_>, jti: &str, node: NodeId, uid: u32, now: WallTime) -> Result<Option<Taken>, Refusal> {
    let Some(credential) = ledger::live(tx, Of::Credential(jti))?.pop().filter(|credential| credential.task.is_some())
    else {
        return Ok(None);
    };
    tx.prepare_cached(
        "INSERT INTO token_uses(jti, node, uid, first_at) VALUES (?1, ?2, ?3, ?4) ON CONFLICT DO NOTHING",
    )?
    .execute(params![jti, node.as_bytes(), i64::from(uid), signed(now.0)])?;
    let (first, first_uid): (Vec<u8>, i64) = tx
        .prepare_cached("SELECT node, uid FROM token_uses WHERE jti = ?1")?
        .query_row([jti], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let first = NodeId::from_bytes(fixed(&first, "a node id")?);
    if first == node && unsigned(first_uid) == u64::from(uid) {
        return Ok(None);
    }
    let reason = format!("shown by uid {uid} on node {node}, and before by uid {first_uid} on node {first}");
    let detail = serde_json::json!({
        "reason": reason, "uid": uid, "shown_on": node.to_string(), "first_uid": first_uid,
        "first_shown_on": first.to_string(),
    });
    audit::about(tx, now, codes::TOKEN_REUSED.as_str(), &ledger::subject(&credential), detail)?;
    let cause = Cause { kind: "credential", target: jti, reason: &reason, code: codes::TOKEN_REUSED };
    revocation::take_back(tx, &What::Credential(credential.clone()), &cause, now).map(Some)
}

/// Takes in what a node's records, which are new, tell of tokens that were shown there.
///
/// # Errors
/// As [`used`].
pub fn of_records<'a>(
    tx: &Transaction<'_>,
    node: NodeId,
    lines: impl Iterator<Item = &'a String>,
    now: WallTime,
) -> Result<Effects, Refusal> {
    let mut effects = Effects::default();
    for record in lines.filter(|line| line.contains("\"credential.used\"")).filter_map(|line| Record::parse(line).ok())
    {
        let uid = record.detail.get("uid").and_then(Value::as_u64).and_then(|uid| u32::try_from(uid).ok());
        let (Some(jti), Some(uid)) = (record.credential.filter(|_| record.what == "credential.used"), uid) else {
            continue;
        };
        if let Some(taken) = used(tx, &jti, node, uid, now)? {
            effects.join(taken.effects());
        }
    }
    Ok(effects)
}

/// Forgets who showed tokens that are over.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn tidy(tx: &Transaction<'_>) -> Result<(), Refusal> {
    tx.prepare_cached(
        "DELETE FROM token_uses WHERE EXISTS (SELECT 1 FROM credentials WHERE id = jti AND ended_at IS NOT NULL)",
    )?
    .execute([])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control_plane::credentials::ledger::{Credential, Kind};
    use crate::control_plane::registry::nodes;

    const ONE: NodeId = NodeId::from_bytes([1; 32]);
    const TWO: NodeId = NodeId::from_bytes([2; 32]);
    const NOW: WallTime = WallTime(10);

    fn issued(tx: &Transaction<'_>, jti: &str, task: Option<&str>) -> Result<(), Refusal> {
        let credential = Credential {
            id: jti.to_owned(),
            kind: Kind::Jwt,
            decision: "d".to_owned(),
            node: ONE,
            workload: "spiffe://example.org/web".to_owned(),
            task: task.map(str::to_owned),
            audience: vec!["api".to_owned()],
            signer: 1,
            lease_sequence: 1,
            issued_at: WallTime(1),
            not_after: WallTime(100),
        };
        ledger::issued(tx, &credential, serde_json::json!({}))
    }

    #[test]
    fn a_task_s_token_that_two_show_is_taken_back() {
        let (_dir, store) = nodes::tests::store();
        store
            .transaction_blocking(|tx| {
                [1, 2].into_iter().try_for_each(|n| nodes::put(tx, &nodes::tests::waiting(n)))?;
                let ended = |jti: &str| Ok::<_, Refusal>(ledger::live(tx, Of::Credential(jti))?.is_empty());
                // The same user on the same node, as often as it likes.
                issued(tx, "same", Some("job"))?;
                for _ in 0..3 {
                    assert_eq!(used(tx, "same", ONE, 1000, NOW)?, None);
                }
                assert!(!ended("same")?);
                // Another user, or another node.
                for (jti, node, uid) in [("user", ONE, 0), ("node", TWO, 1000), ("both", TWO, 0)] {
                    issued(tx, jti, Some("job"))?;
                    assert_eq!(used(tx, jti, ONE, 1000, NOW)?, None);
                    let taken = used(tx, jti, node, uid, NOW)?.expect("taken back");
                    assert_eq!((taken.credentials, taken.withdrawals.len()), (1, 1));
                    assert_eq!(taken.withdrawals[0].1.refusal.code, codes::TOKEN_REUSED);
                    assert!(ended(jti)?);
                    // Over is over.
                    assert_eq!(used(tx, jti, node, uid, NOW)?, None);
                }
                let mut statement = tx.prepare("SELECT count(*) FROM log WHERE what = 'token.reused'")?;
                assert_eq!(statement.query_row([], |row| row.get::<_, i64>(0))?, 3);
                // All processes of a workload may show a token that is bound to none of them.
                issued(tx, "free", None)?;
                for (node, uid) in [(ONE, 1), (TWO, 2)] {
                    assert_eq!(used(tx, "free", node, uid, NOW)?, None);
                }
                assert_eq!(used(tx, "unknown", ONE, 1, NOW)?, None);
                tidy(tx)?;
                let left: i64 = tx.query_row("SELECT count(*) FROM token_uses", [], |row| row.get(0))?;
                assert_eq!(left, 1, "only what is still good is remembered");
                Ok(())
            })
            .unwrap();
    }
}
