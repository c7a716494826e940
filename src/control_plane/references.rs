//! Reference values: the sets that operators imported ([`documents`]), and where a node has none of
//! them, its own whole values, learnt from its latest verified quote.

pub mod documents;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::store::{OptionalExtension, Transaction, damaged, fixed, params, signed, unsigned};
use crate::clock::{BootId, BootInstant, WallTime};
use crate::codes::{self, Refusal};
use crate::identity::NodeId;
use crate::tpm::{PcrDifference, PcrSelection, PcrValues, ResetCounts};
use crate::verify::TrustVector;

/// A quote that was verified: whose it is, when it was made and what it covers are beyond doubt.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Quote {
    /// When it was received.
    pub received_at: WallTime,
    /// The quoted PCRs.
    pub pcrs: PcrValues,
    /// Its reset counts.
    pub counts: ResetCounts,
    /// The TPM's clock, milliseconds.
    pub clock_ms: u64,
    /// The boot it was made in.
    pub boot_id: BootId,
    /// The node's boot time of the request.
    pub requested_at: BootInstant,
    /// `affirming`, or the refusal's code.
    pub verdict: String,
    /// How it differed from the reference values then.
    pub differences: Vec<PcrDifference>,
    /// SHA-256 of the evidence it came in; `None` for one kept by an earlier version.
    pub evidence: Option<[u8; 32]>,
    /// The AR4SI claims.
    pub vector: TrustVector,
    /// The firmware profile it was appraised under; empty if none.
    pub profile: String,
    /// The reference set it was held against; empty if none.
    pub references: String,
    /// The TPM's firmware version: 16 hexadecimal digits; empty for one kept by an earlier version.
    pub firmware: String,
}

impl Quote {
    /// Whether policy may see the node otherwise by this one than by another.
    pub fn says_as(&self, other: &Self) -> bool {
        (&self.verdict, &self.vector, &self.profile, &self.references, &self.firmware)
            == (&other.verdict, &other.vector, &other.profile, &other.references, &other.firmware)
    }
}

/// A node's reference values in force.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reference {
    /// Grows with each set a node gets.
    pub version: u64,
    /// The PCRs it must show.
    pub pcrs: PcrValues,
}

/// A reference set as shown to an operator.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Facts {
    /// The node it is for.
    pub node: String,
    /// Its version.
    pub version: u64,
    /// The PCRs it covers.
    pub selection: String,
    /// The values, hexadecimal, by PCR.
    pub pcrs: BTreeMap<u8, String>,
    /// RFC 3339.
    pub learnt: String,
    /// RFC 3339; absent while it is in force.
    pub retired: Option<String>,
}

/// Keeps `quote` as the node's latest verified one.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn keep_quote(tx: &Transaction<'_>, node: NodeId, quote: &Quote) -> Result<(), Refusal> {
    let differences = serde_json::to_string(&quote.differences).map_err(|_| damaged("differences"))?;
    tx.prepare_cached(
        "INSERT INTO quotes(node, received_at, selection, pcrs, reset_count, restart_count, clock_ms, boot_id,
                            requested_at, verdict, differences, evidence, vector, profile, reference_name, firmware)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16)
         ON CONFLICT(node) DO UPDATE SET received_at = ?2, selection = ?3, pcrs = ?4, reset_count = ?5,
         restart_count = ?6, clock_ms = ?7, boot_id = ?8, requested_at = ?9, verdict = ?10, differences = ?11,
         evidence = ?12, vector = ?13, profile = ?14, reference_name = ?15, firmware = ?16",
    )?
    .execute(params![
        node.as_bytes(),
        signed(quote.received_at.0),
        quote.pcrs.selection().to_string(),
        to_text(&quote.pcrs)?,
        quote.counts.reset,
        quote.counts.restart,
        signed(quote.clock_ms),
        quote.boot_id.as_bytes(),
        signed(quote.requested_at.as_nanos()),
        quote.verdict,
        differences,
        quote.evidence,
        serde_json::to_string(&quote.vector).map_err(|_| damaged("a trust vector"))?,
        quote.profile,
        quote.references,
        quote.firmware,
    ])?;
    tx.prepare_cached(
        "INSERT INTO high_water(node, reset_count, restart_count, clock_ms, boot_id, requested_at, received_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
         ON CONFLICT(node) DO UPDATE SET reset_count = ?2, restart_count = ?3, clock_ms = ?4, boot_id = ?5,
         requested_at = ?6, received_at = ?7",
    )?
    .execute(params![
        node.as_bytes(),
        quote.counts.reset,
        quote.counts.restart,
        signed(quote.clock_ms),
        quote.boot_id.as_bytes(),
        signed(quote.requested_at.as_nanos()),
        signed(quote.received_at.0),
    ])?;
    Ok(())
}

/// The node's latest verified quote.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn latest_quote(tx: &Transaction<'_>, node: NodeId) -> Result<Option<Quote>, Refusal> {
    let mut statement = tx.prepare_cached(
        "SELECT received_at, selection, pcrs, reset_count, restart_count, clock_ms, boot_id, requested_at, verdict,
                differences, evidence, vector, profile, reference_name, firmware FROM quotes WHERE node = ?1",
    )?;
    let mut rows = statement.query([node.as_bytes()])?;
    let Some(row) = rows.next()? else { return Ok(None) };
    Ok(Some(Quote {
        received_at: WallTime(unsigned(row.get(0)?)),
        pcrs: from_text(&row.get::<_, String>(1)?, &row.get::<_, String>(2)?)?,
        counts: ResetCounts { reset: row.get(3)?, restart: row.get(4)? },
        clock_ms: unsigned(row.get(5)?),
        boot_id: BootId::from_bytes(fixed(&row.get::<_, Vec<u8>>(6)?, "a boot id")?),
        requested_at: BootInstant::from_nanos(unsigned(row.get(7)?)),
        verdict: row.get(8)?,
        differences: serde_json::from_str(&row.get::<_, String>(9)?).map_err(|_| damaged("differences"))?,
        evidence: row.get::<_, Option<Vec<u8>>>(10)?.map(|digest| fixed(&digest, "evidence's digest")).transpose()?,
        vector: match row.get::<_, Option<String>>(11)? {
            Some(vector) => serde_json::from_str(&vector).map_err(|_| damaged("a trust vector"))?,
            None => TrustVector::default(),
        },
        profile: row.get::<_, Option<String>>(12)?.unwrap_or_default(),
        references: row.get::<_, Option<String>>(13)?.unwrap_or_default(),
        firmware: row.get::<_, Option<String>>(14)?.unwrap_or_default(),
    }))
}

/// The counters that the node's next quote is held against.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn high_water(
    tx: &Transaction<'_>,
    node: NodeId,
    now: WallTime,
) -> Result<Option<crate::verify::PriorQuote>, Refusal> {
    let found = tx
        .prepare_cached(
            "SELECT reset_count, restart_count, clock_ms, boot_id, received_at FROM high_water WHERE node = ?1",
        )?
        .query_row([node.as_bytes()], |row| {
            let counts = ResetCounts { reset: row.get(0)?, restart: row.get(1)? };
            Ok((counts, unsigned(row.get(2)?), row.get::<_, Vec<u8>>(3)?, unsigned(row.get(4)?)))
        })
        .optional()?;
    found
        .map(|(counts, clock_ms, boot_id, received_at)| {
            Ok(crate::verify::PriorQuote {
                counts,
                clock_ms,
                boot_id: BootId::from_bytes(fixed(&boot_id, "a boot id")?),
                elapsed: std::time::Duration::from_secs(now.0.saturating_sub(received_at)),
            })
        })
        .transpose()
}

/// Forgets those counters: for a TPM that was rightly cleared, by an operator's word.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn forget_high_water(tx: &Transaction<'_>, node: NodeId) -> Result<(), Refusal> {
    tx.execute("DELETE FROM high_water WHERE node = ?1", [node.as_bytes()])?;
    Ok(())
}

/// Names the values of a quote: an operator confirms this, so that what was shown is what is learnt.
pub fn fingerprint(pcrs: &PcrValues) -> String {
    let mut hash = Sha256::new();
    hash.update(pcrs.selection().to_string());
    hash.update(pcrs.digest());
    hex::encode(hash.finalize())
}

/// Makes the PCRs of the node's latest verified quote its reference values; the set before is
/// retired. Learning the values in force again changes nothing. Returns the set and whether it is new.
///
/// # Errors
/// [`codes::ADMIN_UNKNOWN`] when no quote of it was verified yet, [`codes::ADMIN_CONFLICT`] when
/// the latest quote is not the one with `fingerprint`.
pub fn learn(tx: &Transaction<'_>, node: NodeId, expected: &str, now: WallTime) -> Result<(Reference, bool), Refusal> {
    let quote = latest_quote(tx, node)?.ok_or_else(|| no_quote(node))?;
    let found = fingerprint(&quote.pcrs);
    if found != expected {
        return Err(Refusal::new(codes::ADMIN_CONFLICT, "the node has sent another quote with other values since")
            .at(format!("node {node}"))
            .expected("the values that were shown; run `reference learn` again"));
    }
    if let Some(known) = active(tx, node)?.filter(|known| known.pcrs == quote.pcrs) {
        return Ok((known, false));
    }
    let last: i64 = tx.query_row(
        "SELECT coalesce(max(version), 0) FROM reference_sets WHERE node = ?1",
        [node.as_bytes()],
        |row| row.get(0),
    )?;
    tx.execute(
        "UPDATE reference_sets SET retired_at = ?1 WHERE node = ?2 AND retired_at IS NULL",
        params![signed(now.0), node.as_bytes()],
    )?;
    tx.execute(
        "INSERT INTO reference_sets(node, version, selection, pcrs, created_at) VALUES (?1, ?2, ?3, ?4, ?5)",
        params![node.as_bytes(), last + 1, quote.pcrs.selection().to_string(), to_text(&quote.pcrs)?, signed(now.0)],
    )?;
    Ok((Reference { version: unsigned(last + 1), pcrs: quote.pcrs }, true))
}

/// Retires the node's reference values: it gets no lease until it has others.
///
/// # Errors
/// [`codes::ADMIN_UNKNOWN`] when it has none.
pub fn retire(tx: &Transaction<'_>, node: NodeId, now: WallTime) -> Result<(), Refusal> {
    let retired = tx.execute(
        "UPDATE reference_sets SET retired_at = ?1 WHERE node = ?2 AND retired_at IS NULL",
        params![signed(now.0), node.as_bytes()],
    )?;
    match retired {
        0 => Err(Refusal::new(codes::ADMIN_UNKNOWN, "it has no reference values").at(format!("node {node}"))),
        _ => Ok(()),
    }
}

/// The node's reference values in force.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn active(tx: &Transaction<'_>, node: NodeId) -> Result<Option<Reference>, Refusal> {
    let found = tx
        .prepare_cached("SELECT version, selection, pcrs FROM reference_sets WHERE node = ?1 AND retired_at IS NULL")?
        .query_row([node.as_bytes()], |row| {
            Ok((unsigned(row.get(0)?), row.get::<_, String>(1)?, row.get::<_, String>(2)?))
        })
        .optional()?;
    found.map(|(version, selection, pcrs)| Ok(Reference { version, pcrs: from_text(&selection, &pcrs)? })).transpose()
}

/// All reference sets, by node and version.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn all(tx: &Transaction<'_>) -> Result<Vec<Facts>, Refusal> {
    let mut statement = tx.prepare(
        "SELECT node, version, selection, pcrs, created_at, retired_at FROM reference_sets ORDER BY node, version",
    )?;
    let mut rows = statement.query([])?;
    let mut sets = Vec::new();
    while let Some(row) = rows.next()? {
        let selection: String = row.get(2)?;
        let retired: Option<i64> = row.get(5)?;
        sets.push(Facts {
            node: hex::encode(row.get::<_, Vec<u8>>(0)?),
            version: unsigned(row.get(1)?),
            pcrs: from_text(&selection, &row.get::<_, String>(3)?)?.to_hex(),
            selection,
            learnt: WallTime(unsigned(row.get(4)?)).to_string(),
            retired: retired.map(|at| WallTime(unsigned(at)).to_string()),
        });
    }
    Ok(sets)
}

/// The refusal when nothing of a node was verified yet.
pub fn no_quote(node: NodeId) -> Refusal {
    Refusal::new(codes::ADMIN_UNKNOWN, "no quote of it was verified yet")
        .at(format!("node {node}"))
        .expected("an agent that runs on it and has enrolled")
}

fn to_text(pcrs: &PcrValues) -> Result<String, Refusal> {
    serde_json::to_string(&pcrs.to_hex()).map_err(|_| damaged("PCR values"))
}

fn from_text(selection: &str, pcrs: &str) -> Result<PcrValues, Refusal> {
    let selection: PcrSelection = selection.parse().map_err(|_| damaged("a PCR selection"))?;
    let values: BTreeMap<u8, String> = serde_json::from_str(pcrs).map_err(|_| damaged("PCR values"))?;
    let values = values
        .into_iter()
        .map(|(pcr, value)| Ok((pcr, hex::decode(value).map_err(|_| damaged("PCR values"))?)))
        .collect::<Result<_, Refusal>>()?;
    PcrValues::new(selection, values).map_err(|_| damaged("PCR values"))
}
