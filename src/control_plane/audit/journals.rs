//! Journals of nodes, as they arrive: each record once, in the order it was written there, under a head that
//! the node's TPM signed.

use sha2::{Digest, Sha256};

use super::super::effects::Effects;
use super::super::registry::nodes::Node;
use super::super::server::Shared;
use super::super::store::{OptionalExtension, Transaction, damaged, fixed, params, signed, unsigned};
use super::super::tokens::uses;
use super::{Subject, chain, heads};
use crate::clock::WallTime;
use crate::codes::{self, Refusal};
use crate::identity::NodeId;
use crate::protocol::records::{LINE_LIMIT, LINES_LIMIT, RECORDS_LIMIT};
use crate::protocol::{Chain, Head, Record, RecordsAnswer, RecordsRequest, SignedHead, Writer};

/// Takes in what is new of a journal.
///
/// # Errors
/// [`codes::PROTOCOL_MALFORMED`], [`codes::PROTOCOL_TOO_LARGE`]; [`codes::VERIFY_EVIDENCE_SIGNATURE`] for a head that
/// the node key didn't sign; [`codes::AUDIT_TAMPERED`] for records that differ from those of before.
pub fn receive(
    tx: &Transaction<'_>,
    shared: &Shared,
    node: &Node,
    request: &RecordsRequest,
    now: WallTime,
    effects: &mut Effects,
) -> Result<RecordsAnswer, Refusal> {
    let bytes: usize = request.records.iter().map(String::len).sum();
    if request.records.len() > RECORDS_LIMIT || bytes > LINES_LIMIT + LINE_LIMIT {
        return Err(Refusal::new(
            codes::PROTOCOL_TOO_LARGE,
            format!("{} records, {bytes} bytes", request.records.len()),
        )
        .at("records"));
    }
    if let Some(witnessed) = &request.witnessed {
        hold_against(tx, shared, node, witnessed, now)?;
    }
    let known = journal(tx, &request.writer)?;
    if let Some(other) = known.as_ref().filter(|known| known.node != node.id) {
        return Err(differs(request, "the journal is another node's").expected(format!("node {}", other.node)));
    }
    let held = known.as_ref().map_or_else(|| Head::begin(request.writer), |known| known.head);
    let ahead = request.first > held.number.saturating_add(1);
    if request.records.is_empty() || (ahead && !request.missing) {
        return answer(tx, held);
    }
    let reached = follow(tx, request, &held)?;
    let head =
        request.head.as_ref().filter(|signed| signed.head == reached).ok_or_else(|| {
            Refusal::new(codes::PROTOCOL_MALFORMED, "the head isn't that of the last record").at("head")
        })?;
    if !head.signed_by(&node.node_key_spki) {
        return Err(Refusal::new(codes::VERIFY_EVIDENCE_SIGNATURE, "the head isn't signed by the node key").at("head"));
    }
    if reached.number <= held.number {
        // All of it was here: its answer was lost.
        return answer(tx, held);
    }
    match &known {
        None => began(tx, node, &request.writer, now)?,
        // Whose key its heads are under stands in the log's own chain.
        Some(known) if known.key != node.node_key_spki => {
            let detail = serde_json::json!({ "writer": request.writer.to_string(), "key": key_of(node) });
            super::about(tx, now, "audit.journal_key", &about(node), detail)?;
        }
        Some(_) => {}
    }
    keep_head(tx, node, head, now)?;
    keep_records(tx, request, &held)?;
    let fresh = (request.first..).zip(&request.records).filter(|(number, _)| *number > held.number);
    effects.join(uses::of_records(tx, node.id, fresh.map(|(_, line)| line), now)?);
    if ahead {
        let from = held.number.saturating_add(1);
        // With the chain that goes on after it: otherwise the first record there would follow from nothing.
        let detail = serde_json::json!({
            "writer": request.writer.to_string(), "from": from, "to": request.first - 1,
            "before": request.before.to_string(),
        });
        super::about(tx, now, codes::AUDIT_GAP.as_str(), &about(node), detail)?;
    }
    // In the chain of this log too: whoever cuts a journal here would have to change that.
    let detail = serde_json::json!({
        "writer": request.writer.to_string(),
        "from": held.number.saturating_add(1).max(request.first),
        "to": reached.number,
        "chain": reached.chain.to_string(),
    });
    super::about(tx, now, "audit.delivered", &about(node), detail)?;
    answer(tx, reached)
}

/// Reads the records and follows their chain; what is here already must be the same.
fn follow(tx: &Transaction<'_>, request: &RecordsRequest, held: &Head) -> Result<Head, Refusal> {
    let number = request
        .first
        .checked_sub(1)
        .ok_or_else(|| Refusal::new(codes::PROTOCOL_MALFORMED, "record 0").at("first").expected("numbers from 1 on"))?;
    let mut head = Head { writer: request.writer, number, chain: request.before };
    same(tx, request, held, &head)?;
    for line in &request.records {
        let record = Record::parse(line)?;
        let number = head.number.saturating_add(1);
        if record.number != number {
            return Err(Refusal::new(codes::PROTOCOL_MALFORMED, format!("record {}", record.number))
                .at("records")
                .expected(format!("record {number}")));
        }
        head = Head { number, chain: head.chain.then(line), ..head };
        same(tx, request, held, &head)?;
    }
    Ok(head)
}

/// Whether the chain at this place is what it was, as far as it is known.
fn same(tx: &Transaction<'_>, request: &RecordsRequest, held: &Head, at: &Head) -> Result<(), Refusal> {
    if at.number > held.number {
        return Ok(());
    }
    let known = match at.number {
        number if number == held.number => Some(held.chain),
        0 => Some(Chain::begin(&at.writer)),
        number => chain_at(tx, &at.writer, number)?,
    };
    match known {
        Some(known) if known != at.chain => {
            Err(differs(request, &format!("record {} or one before it differs from what was delivered", at.number)))
        }
        _ => Ok(()),
    }
}

fn differs(request: &RecordsRequest, what: &str) -> Refusal {
    Refusal::new(codes::AUDIT_TAMPERED, what).at(format!("journal {}", request.writer))
}

/// A journal begins; that of before ended, as far as it is here.
fn began(tx: &Transaction<'_>, node: &Node, writer: &Writer, now: WallTime) -> Result<(), Refusal> {
    let before: Option<(Vec<u8>, i64)> = tx
        .query_row(
            "SELECT writer, number FROM journals WHERE node = ?1 ORDER BY began_at DESC, rowid DESC LIMIT 1",
            [node.id.as_bytes()],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )
        .optional()?;
    let before = before.map(|(writer, number)| serde_json::json!({ "writer": hex::encode(writer), "to": number }));
    let detail = serde_json::json!({ "writer": writer.to_string(), "before": before, "key": key_of(node) });
    super::about(tx, now, "audit.journal_began", &about(node), detail)
}

fn keep_head(tx: &Transaction<'_>, node: &Node, signed_head: &SignedHead, now: WallTime) -> Result<(), Refusal> {
    let Head { writer, number, chain } = signed_head.head;
    tx.execute(
        "INSERT INTO journals(writer, node, number, chain, signature, key_spki, began_at, delivered_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?7)
         ON CONFLICT(writer) DO UPDATE SET number = ?3, chain = ?4, signature = ?5, key_spki = ?6, delivered_at = ?7",
        params![
            writer.as_bytes(),
            node.id.as_bytes(),
            signed(number),
            chain.as_bytes(),
            signed_head.signature,
            node.node_key_spki,
            signed(now.0)
        ],
    )?;
    Ok(())
}

fn keep_records(tx: &Transaction<'_>, request: &RecordsRequest, held: &Head) -> Result<(), Refusal> {
    let mut insert =
        tx.prepare_cached("INSERT INTO node_records(writer, number, record, chain) VALUES (?1, ?2, ?3, ?4)")?;
    let mut chain = request.before;
    for (number, line) in (request.first..).zip(&request.records) {
        chain = chain.then(line);
        if number > held.number {
            insert.execute(params![request.writer.as_bytes(), signed(number), line, chain.as_bytes()])?;
        }
    }
    Ok(())
}

fn answer(tx: &Transaction<'_>, held: Head) -> Result<RecordsAnswer, Refusal> {
    Ok(RecordsAnswer { next: held.number.saturating_add(1), before: held.chain, head: heads::last(tx)? })
}

/// Holds the log against a head of it that a node was given: one that the log doesn't go through any more
/// is recorded, once.
fn hold_against(
    tx: &Transaction<'_>,
    shared: &Shared,
    node: &Node,
    witnessed: &SignedHead,
    now: WallTime,
) -> Result<(), Refusal> {
    let Head { writer, number, chain } = witnessed.head;
    let Some(present) = chain::head(tx)? else { return Ok(()) };
    // Whoever shows what we never signed shows nothing.
    if writer != present.writer || !witnessed.signed_by(&shared.heads.spki) {
        return Ok(());
    }
    let found = chain::chain_at(tx, number)?;
    if found == Some(chain) {
        return Ok(());
    }
    let (code, number) = match found {
        Some(_) => (codes::AUDIT_TAMPERED, number),
        None => (codes::AUDIT_GAP, number),
    };
    // Said before, or covered by what a restore left out.
    let known: bool = tx.query_row(
        "SELECT EXISTS (SELECT 1 FROM log WHERE what IN ('audit.tampered', 'audit.gap', 'audit.restored')
         AND (json_extract(detail, '$.record') = ?1
              OR ?1 BETWEEN json_extract(detail, '$.from') AND json_extract(detail, '$.to')
              AND json_extract(detail, '$.writer') IS NULL))",
        [signed(number)],
        |row| row.get(0),
    )?;
    if known {
        return Ok(());
    }
    tracing::error!(%code, number, node = %node.id, "a node was given a head that this log doesn't go through");
    if number > present.number {
        chain::skip_to(tx, number)?;
    }
    let detail = serde_json::json!({ "record": number, "chain": chain.to_string(), "shown_by": node.id.to_string() });
    super::about(tx, now, code.as_str(), &about(node), detail)
}

/// A journal as it is here.
struct Known {
    node: NodeId,
    head: Head,
    key: Vec<u8>,
}

fn journal(tx: &Transaction<'_>, writer: &Writer) -> Result<Option<Known>, Refusal> {
    let mut statement = tx.prepare_cached("SELECT node, number, chain, key_spki FROM journals WHERE writer = ?1")?;
    let mut rows = statement.query([writer.as_bytes()])?;
    let Some(row) = rows.next()? else { return Ok(None) };
    let chain = Chain::from_bytes(fixed(&row.get::<_, Vec<u8>>(2)?, "a journal's chain")?);
    let head = Head { writer: *writer, number: unsigned(row.get(1)?), chain };
    let node = NodeId::from_bytes(fixed(&row.get::<_, Vec<u8>>(0)?, "a node id")?);
    Ok(Some(Known { node, head, key: row.get(3)? }))
}

fn chain_at(tx: &Transaction<'_>, writer: &Writer, number: u64) -> Result<Option<Chain>, Refusal> {
    let found: Option<Vec<u8>> = tx
        .prepare_cached("SELECT chain FROM node_records WHERE writer = ?1 AND number = ?2")?
        .query_row(params![writer.as_bytes(), signed(number)], |row| row.get(0))
        .optional()?;
    found.map(|bytes| fixed(&bytes, "a chain").map(Chain::from_bytes).map_err(|_| damaged("a chain"))).transpose()
}

/// SHA-256 of the node key, hexadecimal.
fn key_of(node: &Node) -> String {
    hex::encode(Sha256::digest(&node.node_key_spki))
}

fn about(node: &Node) -> Subject<'_> {
    Subject { node: Some(node.id), ..Subject::default() }
}
