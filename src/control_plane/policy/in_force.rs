//! Which bundle is in force, and how one comes into force.

use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::bundle::Bundle;
use super::floor::Floor;
use crate::clock::WallTime;
use crate::codes::{self, Refusal};
use crate::control_plane::settings::Settings;
use crate::control_plane::store::{OptionalExtension, Transaction, damaged, fixed, meta, params, signed, unsigned};
use crate::verify::references::Policy;

/// How many read bundles are kept: validating one takes longer than many decisions.
const KEPT: usize = 8;
/// Where the store keeps the highest version that ever came into force.
const HIGHEST: &str = "policy_version";

/// What the server holds of bundles beside the store.
#[derive(Debug)]
pub struct Bundles {
    /// The least version that may be in force.
    pub floor: Floor,
    built_in: Arc<Bundle>,
    read: Mutex<Vec<Read>>,
}

/// A bundle that was read.
#[derive(Debug)]
struct Read {
    bundle: Arc<Bundle>,
    /// Whether the present keys approved it: one that was read for a decision of the past is no more than that.
    approved: bool,
}

/// A bundle as shown to an operator.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Facts {
    /// Its version; 0 is the built-in one.
    pub version: u64,
    /// SHA-256 of it: what decisions name.
    pub digest: String,
    /// The author and those who approved: SHA-256 of their keys.
    pub signers: Vec<String>,
    /// How many policies.
    pub policies: usize,
    /// How many tests and properties came with it.
    pub tests: usize,
    /// RFC 3339; absent before it came into force.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub activated: String,
    /// RFC 3339; absent while it is in force.
    #[serde(default)]
    pub retired: Option<String>,
}

impl Bundles {
    /// With the built-in bundle that the configuration asks for.
    ///
    /// # Errors
    /// Those of [`Bundle::built_in`].
    pub fn new(floor: Floor, settings: &Settings) -> Result<Self, Refusal> {
        let built_in = Arc::new(Bundle::built_in(settings.permit_registered)?);
        Ok(Self { floor, built_in, read: Mutex::default() })
    }

    /// Raises the floor to what the store says came into force: a kill between that and the floor's file leaves
    /// it behind.
    ///
    /// # Errors
    /// [`codes::STORE_FAILED`].
    pub fn raise(&self, tx: &Transaction<'_>) -> Result<(), Refusal> {
        self.floor.raise(meta::number(tx, HIGHEST)?)
    }

    /// The bundle in force.
    ///
    /// # Errors
    /// [`codes::POLICY_FAILED`] when there should be one and it is gone, damaged, older than one that was
    /// in force before, or not signed as the present configuration asks: then nothing is permitted.
    /// [`codes::STORE_FAILED`].
    pub fn in_force(&self, tx: &Transaction<'_>, policy: &Policy) -> Result<Arc<Bundle>, Refusal> {
        let highest = meta::number(tx, HIGHEST)?.max(self.floor.version());
        let Some((version, digest, document)) = active(tx)? else {
            return match highest {
                0 => Ok(self.built_in.clone()),
                highest => Err(failed("the bundle in force is gone").expected(format!("version {highest}"))),
            };
        };
        if version < highest {
            return Err(failed(&format!("version {version} is in force")).expected(format!("at least {highest}")));
        }
        // What was read is only as good as what is stored now.
        if Sha256::digest(&document).as_slice() != digest {
            return Err(failed("its document was altered").at(format!("policy bundle {version}")));
        }
        let digest = fixed(&digest, "a bundle's digest")?;
        let bundle = match self.kept(&digest, true) {
            Some(known) => known,
            None => self.keep(
                Bundle::read(&document, policy).map_err(|refusal| Refusal { code: codes::POLICY_FAILED, ..refusal })?,
                true,
            ),
        };
        match bundle.content.version == version {
            true => Ok(bundle),
            false => Err(failed("its row names another version").at(format!("policy bundle {version}"))),
        }
    }

    /// The bundle of this digest, in force or before: for decisions of the past.
    ///
    /// # Errors
    /// [`codes::ADMIN_UNKNOWN`]; [`codes::STORE_FAILED`].
    pub fn of_digest(&self, tx: &Transaction<'_>, digest: &[u8; 32]) -> Result<Arc<Bundle>, Refusal> {
        if let Some(known) = self.kept(digest, false) {
            return Ok(known);
        }
        let document: Option<Vec<u8>> = tx
            .query_row("SELECT document FROM policy_bundles WHERE digest = ?1", [digest], |row| row.get(0))
            .optional()?;
        for permits in [true, false] {
            let built_in = Bundle::built_in(permits)?;
            if built_in.digest == *digest {
                return Ok(self.keep(built_in, false));
            }
        }
        let document = document.ok_or_else(|| {
            Refusal::new(codes::ADMIN_UNKNOWN, "no such policy bundle is stored").at(hex::encode(digest))
        })?;
        // It was approved when it came into force; keys come and go.
        let bundle = Bundle::read(&document, &Policy::default())?;
        match bundle.digest == *digest {
            true => Ok(self.keep(bundle, false)),
            false => Err(damaged("a policy bundle")),
        }
    }

    fn kept(&self, digest: &[u8; 32], approved: bool) -> Option<Arc<Bundle>> {
        if self.built_in.digest == *digest && !approved {
            return Some(self.built_in.clone());
        }
        let kept = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let known = kept.iter().find(|read| read.bundle.digest == *digest && (read.approved || !approved))?;
        Some(known.bundle.clone())
    }

    fn keep(&self, bundle: Bundle, approved: bool) -> Arc<Bundle> {
        let bundle = Arc::new(bundle);
        let mut kept = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= KEPT {
            kept.remove(0);
        }
        kept.push(Read { bundle: bundle.clone(), approved });
        bundle
    }
}

/// Puts a tested bundle in force; says whether that changes anything. The same policies and tests under
/// the version in force change nothing, whoever else has signed them since.
///
/// # Errors
/// [`codes::POLICY_BUNDLE_ORDER`] for an older version, or other contents under the same.
pub fn apply(
    tx: &Transaction<'_>,
    bundles: &Bundles,
    policy: &Policy,
    bundle: &Bundle,
    now: WallTime,
) -> Result<bool, Refusal> {
    match bundles.in_force(tx, policy) {
        Ok(known) if known.content == bundle.content => return Ok(false),
        Err(refusal) if refusal.code == codes::STORE_FAILED => return Err(refusal),
        _ => {}
    }
    let version = bundle.content.version;
    let highest = meta::number(tx, HIGHEST)?.max(bundles.floor.version());
    let stored = tx.prepare("SELECT 1 FROM policy_bundles WHERE version = ?1")?.exists([signed(version)])?;
    // The floor's own version is taken again where the store that had it was lost.
    if version < highest || stored {
        let more = if stored { highest.saturating_add(1) } else { highest };
        return Err(Refusal::new(codes::POLICY_BUNDLE_ORDER, format!("version {version}"))
            .at("the bundle")
            .expected(format!("at least {more}")));
    }
    let facts = serde_json::to_string(&Facts::of(bundle)).map_err(|_| damaged("a bundle's facts"))?;
    tx.execute("UPDATE policy_bundles SET retired_at = ?1 WHERE retired_at IS NULL", [signed(now.0)])?;
    tx.execute(
        "INSERT INTO policy_bundles(version, digest, document, facts, activated_at) VALUES (?1, ?2, ?3, ?4, ?5)",
        params![signed(version), bundle.digest, bundle.bytes, facts, signed(now.0)],
    )?;
    meta::set_number(tx, HIGHEST, version)?;
    Ok(true)
}

/// The version that the next bundle of a directory gets.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn highest(tx: &Transaction<'_>, bundles: &Bundles) -> Result<u64, Refusal> {
    Ok(meta::number(tx, HIGHEST)?.max(bundles.floor.version()))
}

/// All stored bundles, by version.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn all(tx: &Transaction<'_>) -> Result<Vec<Facts>, Refusal> {
    let mut statement = tx.prepare("SELECT facts, activated_at, retired_at FROM policy_bundles ORDER BY version")?;
    let mut rows = statement.query([])?;
    let mut all = Vec::new();
    while let Some(row) = rows.next()? {
        let facts: Facts = serde_json::from_str(&row.get::<_, String>(0)?).map_err(|_| damaged("a bundle's facts"))?;
        let time = |at: i64| WallTime(unsigned(at)).to_string();
        all.push(Facts { activated: time(row.get(1)?), retired: row.get::<_, Option<i64>>(2)?.map(time), ..facts });
    }
    Ok(all)
}

/// The document of a version.
///
/// # Errors
/// [`codes::ADMIN_UNKNOWN`].
pub fn document(tx: &Transaction<'_>, version: u64) -> Result<Vec<u8>, Refusal> {
    tx.query_row("SELECT document FROM policy_bundles WHERE version = ?1", [signed(version)], |row| row.get(0))
        .optional()?
        .ok_or_else(|| {
            Refusal::new(codes::ADMIN_UNKNOWN, format!("no policy bundle {version}")).expected("one of `policy list`")
        })
}

impl Facts {
    /// What the bundle itself says.
    pub fn of(bundle: &Bundle) -> Self {
        Self {
            version: bundle.content.version,
            digest: hex::encode(bundle.digest),
            signers: bundle.claimed.iter().map(hex::encode).collect(),
            policies: bundle.rules.policies().len(),
            tests: bundle.tests(),
            activated: String::new(),
            retired: None,
        }
    }
}

type Row = (u64, Vec<u8>, Vec<u8>);

fn active(tx: &Transaction<'_>) -> Result<Option<Row>, Refusal> {
    Ok(tx
        .prepare_cached("SELECT version, digest, document FROM policy_bundles WHERE retired_at IS NULL")?
        .query_row([], |row| Ok((unsigned(row.get(0)?), row.get(1)?, row.get(2)?)))
        .optional()?)
}

fn failed(what: &str) -> Refusal {
    Refusal::new(codes::POLICY_FAILED, what).at("the policy bundle")
}
