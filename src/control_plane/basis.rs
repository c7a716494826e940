//! What a node's logs are held against: the reference document that is assigned to it, and the
//! firmware profile that this names.

use std::sync::{Arc, Mutex, PoisonError};

use super::references::documents;
use super::registry::nodes::Node;
use super::server::Shared;
use super::settings::Settings;
use super::store::Transaction;
use crate::codes::{self, Refusal};
use crate::tpm::PcrSelection;
use crate::verify::profile::Profile;
use crate::verify::references::Document;
use crate::verify::runtime::{CompiledRules, RuntimeRules};

/// How many are kept: the rules of one have up to a million digests, and compiling them takes longer
/// than the rest of an attestation.
const KEPT: usize = 8;

/// A document with its profile.
#[derive(Debug)]
pub struct Basis {
    /// The reference document.
    pub document: Arc<Document>,
    /// The profile it names.
    pub profile: Profile,
    /// Its rules for what may run.
    pub rules: Option<CompiledRules>,
    /// The PCRs that a node under it quotes.
    pub selection: PcrSelection,
}

/// Documents that were read lately, the latest last.
#[derive(Debug, Default)]
pub struct Cache(Mutex<Vec<Arc<Basis>>>);

/// The basis of `node`; `None` if no document is assigned to it, and then its learnt values count.
///
/// # Errors
/// Those of [`Basis::new`] and [`documents::of_node`].
pub fn of_node(tx: &Transaction<'_>, shared: &Shared, node: &Node) -> Result<Option<Arc<Basis>>, Refusal> {
    let Some(document) = documents::of_node(tx, node)? else { return Ok(None) };
    if let Some(basis) = shared.documents.get(&document.digest) {
        return Ok(Some(basis));
    }
    let basis = Arc::new(Basis::new(document, &shared.settings)?);
    shared.documents.keep(basis.clone());
    Ok(Some(basis))
}

/// The PCRs that `node` is to quote. What is wrong with its document is for the attestation to say.
///
/// # Errors
/// [`codes::STORE_FAILED`].
pub fn selection_of(tx: &Transaction<'_>, shared: &Shared, node: &Node) -> Result<PcrSelection, Refusal> {
    match of_node(tx, shared, node) {
        Ok(basis) => Ok(basis.map_or(shared.settings.selection, |basis| basis.selection)),
        Err(refusal) if refusal.code == codes::STORE_FAILED => Err(refusal),
        Err(_) => Ok(shared.settings.selection),
    }
}

impl Basis {
    /// What nodes under this document are held against. The policy keys of the present configuration must have
    /// signed it: it may have been imported when there were others, or none.
    ///
    /// # Errors
    /// [`codes::VERIFY_REFERENCE_SIGNATURE`]; [`codes::VERIFY_PROFILE`] when it names a profile that isn't known.
    pub fn new(document: Arc<Document>, settings: &Settings) -> Result<Self, Refusal> {
        let set = &document.set;
        settings.policy.approves(&document)?;
        let at = || format!("references `{}`", set.name);
        let profile = settings.profile(&set.profile).map_err(|refusal| refusal.at(at()))?;
        let selection = PcrSelection::new(set.bank, profile.pcrs())
            .map_err(|what| Refusal::new(codes::VERIFY_PROFILE, what).at(at()))?;
        let rules = set.runtime.as_ref().map(RuntimeRules::compile).transpose()?;
        Ok(Self { document, profile, rules, selection })
    }
}

impl Cache {
    fn get(&self, digest: &[u8; 32]) -> Option<Arc<Basis>> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found = kept.iter().position(|basis| basis.document.digest == *digest)?;
        let basis = kept.remove(found);
        kept.push(basis.clone());
        Some(basis)
    }

    fn keep(&self, basis: Arc<Basis>) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= KEPT {
            kept.remove(0);
        }
        kept.push(basis);
    }
}
