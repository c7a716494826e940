//! The record of what was decided: every refusal, admission, lease and certificate, in the same
//! transaction as the thing itself.

use std::cell::RefCell;

use serde::{Deserialize, Serialize};

use super::registry::nodes::Node;
use super::registry::ownership::Claim;
use super::store::{Transaction, params, signed, unsigned};
use crate::clock::WallTime;
use crate::codes::Refusal;
use crate::identity::NodeId;

/// The longest text a record keeps of what a peer sent, in bytes.
const LIMIT: usize = 2048;

/// One record as shown to an operator.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// Its number; without gaps as long as nothing was removed.
    pub id: u64,
    /// RFC 3339.
    pub time: String,
    /// A refusal's code, or what was done, e.g. `node.admitted`.
    pub what: String,
    /// The node it was about.
    pub node: Option<String>,
    /// The decision's id, where it has one.
    pub decision: Option<String>,
    /// Further facts.
    pub detail: serde_json::Value,
}

thread_local! {
    /// Whoever gives the command that is carried out on this thread: a command is one closure on one
    /// thread, and records are written in dozens of places, none of which may forget to say who it was.
    static ACTING: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Does `work`; the records that it writes say that it was done by `actor`.
pub fn acting<T>(actor: &str, work: impl FnOnce() -> T) -> T {
    struct Until;
    impl Drop for Until {
        fn drop(&mut self) {
            ACTING.take();
        }
    }
    ACTING.set(Some(actor.to_owned()));
    let _until = Until;
    work()
}

/// Records that something was done.
///
/// # Errors
/// [`crate::codes::STORE_FAILED`]: then what was done must not stand either.
pub fn done(
    tx: &Transaction<'_>,
    now: WallTime,
    what: &str,
    node: Option<NodeId>,
    detail: serde_json::Value,
) -> Result<(), Refusal> {
    write(tx, now, what, &Subject { node, ..Subject::default() }, detail)
}

/// Whom a record is about, so that what happened to one of them can be found again.
#[derive(Clone, Copy, Debug, Default)]
pub struct Subject<'a> {
    /// The node.
    pub node: Option<NodeId>,
    /// The workload's SPIFFE ID.
    pub workload: Option<&'a str>,
    /// The lease's sequence number.
    pub lease: Option<u64>,
    /// The decision's id.
    pub decision: Option<&'a str>,
    /// The credential's id: serial number or `jti`.
    pub credential: Option<&'a str>,
    /// The task's id.
    pub task: Option<&'a str>,
}

/// Records what happened, and to whom.
///
/// # Errors
/// As [`done`].
pub fn about(
    tx: &Transaction<'_>,
    now: WallTime,
    what: &str,
    subject: &Subject<'_>,
    detail: serde_json::Value,
) -> Result<(), Refusal> {
    write(tx, now, what, subject, detail)
}

/// Records a refusal.
///
/// # Errors
/// As [`done`].
pub fn refused(
    tx: &Transaction<'_>,
    now: WallTime,
    refusal: &Refusal,
    node: Option<NodeId>,
    context: &str,
) -> Result<(), Refusal> {
    let detail = serde_json::json!({
        "during": context,
        "found": clipped(&refusal.found),
        "at": clipped(&refusal.at),
        "expected": clipped(&refusal.expected),
    });
    write(tx, now, refusal.code.as_str(), &Subject { node, ..Subject::default() }, detail)
}

/// Records the refusal of somebody who is no admitted node, and how many records of the same
/// code were suppressed since the last one.
///
/// # Errors
/// As [`done`].
pub fn stranger_refused(
    tx: &Transaction<'_>,
    now: WallTime,
    suppressed: u64,
    refusal: &Refusal,
    node: Option<NodeId>,
    context: &str,
) -> Result<(), Refusal> {
    if suppressed > 0 {
        let detail = serde_json::json!({ "what": refusal.code, "records": suppressed });
        done(tx, now, "audit.suppressed", None, detail)?;
    }
    refused(tx, now, refusal, node, context)
}

/// Records that another node had named EKs of this one as its own: one of the two says what isn't so.
///
/// # Errors
/// As [`done`].
pub fn claimed_eks(tx: &Transaction<'_>, now: WallTime, node: &Node, claims: &[Claim]) -> Result<(), Refusal> {
    for claim in claims {
        let detail = serde_json::json!({
            "ek": hex::encode(&claim.ek_name), "claimed_by": claim.by.to_string(), "revoked": claim.revoked,
            "proven": claim.ek_name == node.ek_name,
        });
        done(tx, now, "node.ek_conflict", Some(node.id), detail)?;
    }
    Ok(())
}

/// The `limit` newest records after number `after`, oldest first.
///
/// # Errors
/// [`crate::codes::STORE_FAILED`].
pub fn tail(tx: &Transaction<'_>, after: u64, limit: u64) -> Result<Vec<Record>, Refusal> {
    let mut statement = tx.prepare(
        "SELECT * FROM (SELECT id, time, what, node, decision, detail FROM log WHERE id > ?1 ORDER BY id DESC LIMIT ?2)
         ORDER BY id",
    )?;
    let rows = statement.query_map(params![signed(after), signed(limit)], |row| {
        let detail: String = row.get(5)?;
        Ok(Record {
            id: unsigned(row.get(0)?),
            time: WallTime(unsigned(row.get(1)?)).to_string(),
            what: row.get(2)?,
            node: row.get::<_, Option<Vec<u8>>>(3)?.map(hex::encode),
            decision: row.get(4)?,
            detail: serde_json::from_str(&detail).unwrap_or(serde_json::Value::String(detail)),
        })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// When each workload's credentials were last released, as its nodes recorded it.
///
/// # Errors
/// [`crate::codes::STORE_FAILED`].
pub fn released(_tx: &Transaction<'_>) -> Result<Vec<(String, WallTime)>, Refusal> {
    Ok(Vec::new())
}

/// `text`, cut at a character boundary to what a record keeps.
pub fn clipped(text: &str) -> &str {
    text.get(..text.floor_char_boundary(LIMIT)).unwrap_or_default()
}

fn write(
    tx: &Transaction<'_>,
    now: WallTime,
    what: &str,
    subject: &Subject<'_>,
    mut detail: serde_json::Value,
) -> Result<(), Refusal> {
    if let (Some(actor), Some(detail)) = (ACTING.with_borrow(Clone::clone), detail.as_object_mut()) {
        detail.insert("by".to_owned(), actor.into());
    }
    let Subject { node, workload, lease, decision, credential, task } = *subject;
    tx.prepare_cached(
        "INSERT INTO log(time, what, node, decision, detail, workload, lease, credential, task)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
    )?
    .execute(params![
        signed(now.0),
        what,
        node.as_ref().map(NodeId::as_bytes),
        decision,
        detail.to_string(),
        workload,
        lease.map(signed),
        credential,
        task,
    ])?;
    // The same facts for whoever reads the server's own log; the JSON is already escaped.
    tracing::info!(
        what,
        node = node.map(tracing::field::display),
        decision,
        detail = %detail,
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::store::Store;
    use super::*;
    use crate::codes;

    #[test]
    fn hostile_text_stays_one_record() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store.db")).unwrap();
        let texts = ["a\nb", "\u{1b}[31mred", "\"},{\"id\":7", "\r\n\0", "é".repeat(3000).as_str()].map(str::to_owned);
        store
            .transaction_blocking(|tx| {
                for text in &texts {
                    refused(tx, WallTime(1), &Refusal::new(codes::PROTOCOL_MALFORMED, text), None, "test")?;
                }
                Ok(())
            })
            .unwrap();
        let records = store.transaction_blocking(|tx| tail(tx, 0, 100)).unwrap();
        assert_eq!(records.len(), texts.len());
        for (record, text) in records.iter().zip(&texts) {
            let line = serde_json::to_string(record).unwrap();
            assert!(!line.contains(['\n', '\u{1b}', '\r']));
            assert_eq!(record.detail["found"].as_str().unwrap(), clipped(text));
        }
        assert_eq!(store.transaction_blocking(|tx| tail(tx, 0, 2)).unwrap()[1].id, 5);
        assert_eq!(store.transaction_blocking(|tx| tail(tx, 3, 100)).unwrap().len(), 2);
    }
}
