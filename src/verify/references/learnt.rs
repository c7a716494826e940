//! Whole PCR values, learnt from the node itself: all there is where no log explains them.

use crate::tpm::{PcrDifference, PcrValues};

/// The values accepted for one node, as an operator approved them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LearntSet {
    /// The name the set goes by, 1 to 64 printable ASCII characters; it stands in leases.
    pub profile: String,
    /// Grows with every change.
    pub version: u64,
    /// The values. A quote over other PCRs than these can't be appraised.
    pub values: PcrValues,
}

impl LearntSet {
    /// The PCRs that differ from their reference value.
    pub fn differences(&self, found: &PcrValues) -> Vec<PcrDifference> {
        found.differences(&self.values)
    }

    /// A PCR that was quoted without a reference value to hold it against.
    pub fn unreferenced(&self, found: &PcrValues) -> Option<u8> {
        let (found, known) = (found.selection(), self.values.selection());
        found.pcrs().find(|pcr| found.bank() != known.bank() || !known.contains(*pcr))
    }
}
