//! What a node's logs are held against: the reference document that is assigned to it, and the
//! firmware profile that this names.

use std::sync::{Arc, Mutex, PoisonError};

use super::registry::nodes::Node;
use super::server::Shared;
use super::store::Transaction;
use crate::codes::{self, Refusal};
use crate::tpm::PcrSelection;
use crate::verify::profile::Profile;
use crate::verify::references::Document;
use crate::verify::runtime::{CompiledRules, RuntimeRules};

/// How many documents are kept read: one has up to a million digests, and reading it takes longer than
/// the rest of an attestation.
const KEPT: usize = 8;

/// A document with its profile.
#[derive(Debug)]
pub struct Basis {
    /// The reference document.
    pub document: Document,
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
/// [`codes::VERIFY_PROFILE`] when the document names a profile that isn't known, [`codes::STORE_FAILED`].
pub fn of_node(tx: &Transaction<'_>, shared: &Shared, node: &Node) -> Result<Option<Arc<Basis>>, Refusal> {
    let Some(digest) = assigned(tx, node)? else { return Ok(None) };
    if let Some(basis) = shared.documents.get(&digest) {
        return Ok(Some(basis));
    }
    let Some(document) = read(tx, node)? else { return Ok(None) };
    let basis = Arc::new(Basis::new(document)?);
    shared.documents.keep(basis.clone());
    Ok(Some(basis))
}

/// The PCRs that `node` is to quote.
///
/// # Errors
/// As [`of_node`].
pub fn selection_of(tx: &Transaction<'_>, shared: &Shared, node: &Node) -> Result<PcrSelection, Refusal> {
    Ok(of_node(tx, shared, node)?.map_or(shared.settings.selection, |basis| basis.selection))
}

impl Basis {
    fn new(document: Document) -> Result<Self, Refusal> {
        let set = &document.set;
        let refuse =
            |found: String| Refusal::new(codes::VERIFY_PROFILE, found).at(format!("references `{}`", set.name));
        let profile = Profile::shipped(&set.profile)
            .ok_or_else(|| refuse(format!("profile `{}`", set.profile)).expected("a shipped firmware profile"))?;
        let selection = PcrSelection::new(set.bank, profile.pcrs()).map_err(refuse)?;
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

fn assigned(_tx: &Transaction<'_>, _node: &Node) -> Result<Option<[u8; 32]>, Refusal> {
    Ok(None)
}

fn read(_tx: &Transaction<'_>, _node: &Node) -> Result<Option<Document>, Refusal> {
    Ok(None)
}
