//! How a node stands: four states that are told apart everywhere.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::codes::Refusal;
use crate::tpm::PcrDifference;

/// A node's standing. The order is by how much is known against it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Standing {
    /// A live lease, and the measurements are the ones it was granted on.
    Affirming,
    /// No live lease, or no reading, and nothing is known against the node.
    Stale,
    /// As stale, because the control plane can't be reached.
    Unreachable,
    /// The measurements, the TPM or the control plane speak against it.
    Contraindicated,
}

impl Standing {
    /// Lower-case word, as in `--json`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Affirming => "affirming",
            Self::Stale => "stale",
            Self::Unreachable => "unreachable",
            Self::Contraindicated => "contraindicated",
        }
    }

    /// Whether waiting may help: unavailable is not untrusted.
    pub const fn is_unavailable(self) -> bool {
        matches!(self, Self::Stale | Self::Unreachable)
    }
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why the gate is closed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Reason {
    /// Which of the states.
    pub standing: Standing,
    /// What was found, where, and what was expected.
    pub refusal: Refusal,
    /// Every PCR that differs, if that is why.
    pub differences: Vec<PcrDifference>,
}

impl Reason {
    /// A reason without PCR differences.
    pub const fn new(standing: Standing, refusal: Refusal) -> Self {
        Self { standing, refusal, differences: Vec::new() }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.standing, self.refusal)
    }
}
