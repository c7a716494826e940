//! The logs of nodes: received in parts, kept as they came, read on from where they were taken in.
//!
//! Nothing here costs what a list has grown to: a part is added to a chain whose head is kept, and an
//! increment is read from the segment it begins in. Only a new reference document, whose rules nobody
//! has applied to the list yet, reads it from the start.

use serde::{Deserialize, Serialize};

use super::store::{OptionalExtension, Transaction, damaged, fixed, params, signed, unsigned};
use crate::clock::{BootId, WallTime};
use crate::codes::{self, Refusal};
use crate::evidence::logs::{SEGMENT_LIMIT, log_digests};
use crate::evidence::{LogChain, LogKind};
use crate::identity::NodeId;
use crate::measurements;
use crate::protocol::{HeldLog, LogPart, LogsHeld};
use crate::verify::appraisal::{Appraisal, Finding, LayerResult};
use crate::verify::runtime::Checkpoint;

/// What is stored of a node's logs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoredLogs {
    /// The boot they are of.
    pub boot_id: BootId,
    /// The boot event log.
    pub boot: Option<Vec<u8>>,
    /// The userspace log.
    pub userspace: Option<Vec<u8>>,
    /// IMA's list, whole; empty if there is none.
    pub ima: Vec<u8>,
}

/// How far IMA's list was taken in, under one reference document.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Progress {
    /// To the PCR 10 of the last quote that was reached: no later quote is before it.
    pub matched: Option<Checkpoint>,
    /// On from there, by parts that came ahead of a quote.
    pub folded: Option<Checkpoint>,
}

/// The last appraisal of a node's logs, as it is kept for people. Schema version 1.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// When, RFC 3339; empty if there was none.
    pub at: String,
    /// The name of the state that was met.
    pub state: Option<String>,
    /// What is said of each layer.
    pub layers: Vec<LayerResult>,
    /// What was found, the worst first.
    pub findings: Vec<Finding>,
    /// What a reader should know besides.
    pub notes: Vec<String>,
}

/// Keeps the last appraisal; `None` when the node's logs weren't appraised.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn keep_report(
    tx: &Transaction<'_>,
    node: NodeId,
    appraisal: Option<&Appraisal>,
    now: WallTime,
) -> Result<(), Refusal> {
    let Some(Appraisal { layers, findings, state, notes, .. }) = appraisal else {
        tx.prepare_cached("DELETE FROM appraisals WHERE node = ?1")?.execute([node.as_bytes()])?;
        return Ok(());
    };
    let report = Report {
        at: now.to_string(),
        state: state.clone(),
        layers: layers.clone(),
        findings: findings.clone(),
        notes: notes.clone(),
    };
    let report = serde_json::to_string(&report).map_err(|_| damaged("an appraisal"))?;
    tx.prepare_cached(
        "INSERT INTO appraisals(node, at, report) VALUES (?1, ?2, ?3)
         ON CONFLICT(node) DO UPDATE SET at = ?2, report = ?3",
    )?
    .execute(params![node.as_bytes(), signed(now.0), report])?;
    Ok(())
}

/// The last appraisal; an empty one if there was none.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn report(tx: &Transaction<'_>, node: NodeId) -> Result<Report, Refusal> {
    let found: Option<String> = tx
        .prepare_cached("SELECT report FROM appraisals WHERE node = ?1")?
        .query_row([node.as_bytes()], |row| row.get(0))
        .optional()?;
    found.map_or(Ok(Report::default()), |text| serde_json::from_str(&text).map_err(|_| damaged("an appraisal")))
}

/// What is held of the node's logs of this boot.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn held(tx: &Transaction<'_>, node: NodeId, boot: BootId) -> Result<LogsHeld, Refusal> {
    let mut statement =
        tx.prepare_cached("SELECT kind, length, head FROM node_logs WHERE node = ?1 AND boot_id = ?2")?;
    let mut rows = statement.query(params![node.as_bytes(), boot.as_bytes()])?;
    let mut held = Vec::new();
    while let Some(row) = rows.next()? {
        let kind = LogKind::from_name(&row.get::<_, String>(0)?).ok_or_else(|| damaged("a log's kind"))?;
        let head = fixed(&row.get::<_, Vec<u8>>(2)?, "a log's head")?;
        held.push(HeldLog { kind, chain: LogChain { length: unsigned(row.get(1)?), head } });
    }
    held.sort_by_key(|log| log.kind);
    Ok(LogsHeld { held })
}

/// The digests that evidence bound to what is held must name.
pub fn digests(held: &LogsHeld) -> Vec<[u8; 32]> {
    log_digests(|kind| held.of(kind))
}

/// Adds a part to what is held. One that begins elsewhere than where the log ends changes nothing, but
/// one that begins at 0 begins the log anew; the first of another boot forgets all of the one before.
///
/// # Errors
/// [`codes::PROTOCOL_LOGS`] for a part that isn't the next one, [`codes::PROTOCOL_MALFORMED`] for an empty
/// one, [`codes::MEASUREMENTS_TOO_LARGE`] for one too many, with `most` bytes for all logs of a node.
pub fn append(tx: &Transaction<'_>, node: NodeId, boot: BootId, part: &LogPart, most: u64) -> Result<(), Refusal> {
    let at = || format!("the {} log, byte {}", part.kind, part.offset);
    let size = u64::try_from(part.bytes.len()).unwrap_or(u64::MAX);
    if size == 0 || part.bytes.len() > SEGMENT_LIMIT {
        return Err(Refusal::new(codes::PROTOCOL_MALFORMED, format!("a part of {size} bytes"))
            .at(at())
            .expected(format!("1 to {SEGMENT_LIMIT} bytes")));
    }
    let held = held(tx, node, boot)?;
    let chain = if part.offset == 0 { LogChain::default() } else { held.of(part.kind) };
    if part.offset != chain.length {
        return Err(Refusal::new(codes::PROTOCOL_LOGS, "a part that isn't the next one")
            .at(at())
            .expected(format!("byte {}, where the part before it ended", chain.length)));
    }
    let others: u64 = held.held.iter().filter(|log| log.kind != part.kind).map(|log| log.chain.length).sum();
    let own = match part.kind {
        LogKind::Boot => u64::try_from(measurements::boot::LIMIT).unwrap_or(most),
        LogKind::Userspace => u64::try_from(measurements::userspace::LIMIT).unwrap_or(most),
        LogKind::Ima => most,
    };
    let length = chain.length.saturating_add(size);
    if length > own || length.saturating_add(others) > most {
        return Err(Refusal::new(codes::MEASUREMENTS_TOO_LARGE, format!("{length} bytes, {others} of the other logs"))
            .at(at())
            .expected(format!("at most {own}, and {most} for all logs of a node (`logs.node_mib`)")));
    }
    if held.held.is_empty() {
        // Nothing is held of this boot; what there is is of another one.
        forget(tx, node)?;
    }
    if part.offset == 0 {
        forget_kind(tx, node, part.kind)?;
    }
    tx.prepare_cached("INSERT INTO log_segments(node, kind, start, bytes) VALUES (?1, ?2, ?3, ?4)")?
        .execute(params![node.as_bytes(), part.kind.as_str(), signed(part.offset), part.bytes])?;
    let chain = chain.append(&part.bytes);
    tx.prepare_cached(
        "INSERT INTO node_logs(node, kind, boot_id, length, head) VALUES (?1, ?2, ?3, ?4, ?5)
         ON CONFLICT(node, kind) DO UPDATE SET boot_id = ?3, length = ?4, head = ?5",
    )?
    .execute(params![node.as_bytes(), part.kind.as_str(), boot.as_bytes(), signed(chain.length), chain.head])?;
    Ok(())
}

/// A log's bytes from `offset` on, as far as they are held.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn rest(tx: &Transaction<'_>, node: NodeId, kind: LogKind, offset: u64) -> Result<Vec<u8>, Refusal> {
    piece(tx, node, kind, offset, usize::MAX)
}

/// The first of them, at most `limit`.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn piece(tx: &Transaction<'_>, node: NodeId, kind: LogKind, offset: u64, limit: usize) -> Result<Vec<u8>, Refusal> {
    let mut statement = tx.prepare_cached(
        "SELECT start, bytes FROM log_segments WHERE node = ?1 AND kind = ?2 AND start >= coalesce(
            (SELECT max(start) FROM log_segments WHERE node = ?1 AND kind = ?2 AND start <= ?3), 0)
         ORDER BY start",
    )?;
    let mut rows = statement.query(params![node.as_bytes(), kind.as_str(), signed(offset)])?;
    let mut rest = Vec::new();
    while let Some(row) = rows.next()? {
        let start = unsigned(row.get(0)?);
        let bytes = row.get_ref(1)?.as_blob().map_err(|_| damaged("a log's segment"))?;
        let skipped = usize::try_from(offset.saturating_sub(start)).unwrap_or(usize::MAX);
        rest.extend_from_slice(bytes.get(skipped..).unwrap_or_default());
        if rest.len() >= limit {
            rest.truncate(limit);
            break;
        }
    }
    Ok(rest)
}

/// All that is stored of a node's logs; `None` if it sent none.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn stored(tx: &Transaction<'_>, node: NodeId) -> Result<Option<StoredLogs>, Refusal> {
    let Some(boot_id) = boot(tx, node)? else { return Ok(None) };
    let whole = |kind| rest(tx, node, kind, 0);
    let some = |bytes: Vec<u8>| (!bytes.is_empty()).then_some(bytes);
    Ok(Some(StoredLogs {
        boot_id,
        boot: some(whole(LogKind::Boot)?),
        userspace: some(whole(LogKind::Userspace)?),
        ima: whole(LogKind::Ima)?,
    }))
}

/// The boot whose logs are held; `None` if there are none.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn boot(tx: &Transaction<'_>, node: NodeId) -> Result<Option<BootId>, Refusal> {
    let boot_id = tx
        .prepare_cached("SELECT boot_id FROM node_logs WHERE node = ?1 LIMIT 1")?
        .query_row([node.as_bytes()], |row| row.get::<_, Vec<u8>>(0))
        .optional()?;
    boot_id.map(|bytes| Ok(BootId::from_bytes(fixed(&bytes, "a boot id")?))).transpose()
}

/// How far the list of this boot was taken in under `document`; nowhere under another one.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn progress(tx: &Transaction<'_>, node: NodeId, boot: BootId, document: &[u8; 32]) -> Result<Progress, Refusal> {
    let found = tx
        .prepare_cached("SELECT matched, folded FROM checkpoints WHERE node = ?1 AND boot_id = ?2 AND document = ?3")?
        .query_row(params![node.as_bytes(), boot.as_bytes(), document], |row| {
            Ok((row.get::<_, Option<Vec<u8>>>(0)?, row.get::<_, Option<Vec<u8>>>(1)?))
        })
        .optional()?;
    let Some((matched, folded)) = found else { return Ok(Progress::default()) };
    let read = |bytes: Option<Vec<u8>>| {
        bytes.map(|bytes| serde_cbor::from_slice(&bytes).map_err(|_| damaged("a checkpoint"))).transpose()
    };
    Ok(Progress { matched: read(matched)?, folded: read(folded)? })
}

/// Keeps how far the list was taken in.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn keep_progress(
    tx: &Transaction<'_>,
    node: NodeId,
    boot: BootId,
    document: &[u8; 32],
    progress: &Progress,
) -> Result<(), Refusal> {
    let written = |checkpoint: &Option<Checkpoint>| {
        checkpoint.as_ref().map(serde_cbor::to_vec).transpose().map_err(|_| damaged("a checkpoint"))
    };
    tx.prepare_cached(
        "INSERT INTO checkpoints(node, boot_id, document, matched, folded) VALUES (?1, ?2, ?3, ?4, ?5)
         ON CONFLICT(node) DO UPDATE SET boot_id = ?2, document = ?3, matched = ?4, folded = ?5",
    )?
    .execute(params![
        node.as_bytes(),
        boot.as_bytes(),
        document,
        written(&progress.matched)?,
        written(&progress.folded)?
    ])?;
    Ok(())
}

fn forget(tx: &Transaction<'_>, node: NodeId) -> Result<(), Refusal> {
    for statement in [
        "DELETE FROM log_segments WHERE node = ?1",
        "DELETE FROM node_logs WHERE node = ?1",
        "DELETE FROM checkpoints WHERE node = ?1",
    ] {
        tx.prepare_cached(statement)?.execute([node.as_bytes()])?;
    }
    Ok(())
}

fn forget_kind(tx: &Transaction<'_>, node: NodeId, kind: LogKind) -> Result<(), Refusal> {
    for statement in [
        "DELETE FROM log_segments WHERE node = ?1 AND kind = ?2",
        "DELETE FROM node_logs WHERE node = ?1 AND kind = ?2",
    ] {
        tx.prepare_cached(statement)?.execute(params![node.as_bytes(), kind.as_str()])?;
    }
    if kind == LogKind::Ima {
        tx.prepare_cached("DELETE FROM checkpoints WHERE node = ?1")?.execute([node.as_bytes()])?;
    }
    Ok(())
}
