//! The appraisal of logs: what they prove by replay, held against reference values.
//!
//! Pure, and apart from evidence, so that raw artefacts of other tools are appraised by the same
//! code: it takes PCR values that a verified quote covers.

use serde::{Deserialize, Serialize};

use super::profile::{Layer, Profile};
use super::references::ReferenceSet;
use super::runtime::Checkpoint;
use super::trust::TrustVector;
use crate::clock::WallTime;
use crate::codes::Refusal;
use crate::tpm::PcrValues;

/// The logs of a node, as they came.
#[derive(Clone, Copy, Debug, Default)]
pub struct Logs<'a> {
    /// The boot event log.
    pub boot: Option<&'a [u8]>,
    /// The userspace log.
    pub userspace: Option<&'a [u8]>,
    /// IMA's list.
    pub ima: Option<ImaLog<'a>>,
}

/// IMA's list, from where it was last taken in on.
#[derive(Clone, Copy, Debug)]
pub struct ImaLog<'a> {
    /// Where, and what was found till then; `None` is the start.
    pub from: Option<&'a Checkpoint>,
    /// The bytes from there on.
    pub rest: &'a [u8],
}

/// What the logs prove: made by [`measured`] alone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Measured {
    pcrs: PcrValues,
    profile: String,
    /// How far IMA's list was taken in: what the next increment goes on from.
    ima: Option<Checkpoint>,
}

/// The result.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Appraisal {
    /// One for each layer.
    pub layers: Vec<LayerResult>,
    /// What was found, the worst first.
    pub findings: Vec<Finding>,
    /// The name of the state that was met.
    pub state: Option<String>,
    /// The AR4SI claims.
    pub vector: TrustVector,
}

/// What is said of one layer. Schema version 1.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LayerResult {
    /// `firmware`, `boot`, `userspace` or `runtime`.
    pub layer: String,
    /// What is said.
    pub standing: LayerStanding,
    /// Why, in words.
    pub why: String,
}

/// What can be said of a layer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LayerStanding {
    /// Every measurement is as it should be.
    Affirmed,
    /// Nothing is proven: this platform, these logs or these references don't tell.
    NotProven,
    /// Something an operator should look at.
    Warned,
    /// Something is not as it should be.
    Contraindicated,
}

/// Something that was found. Schema version 1.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Finding {
    /// The layer it tells of.
    pub layer: String,
    /// How bad it is.
    pub standing: LayerStanding,
    /// The code; where: log, event number, PCR, type; what was found; the nearest accepted value.
    pub refusal: Refusal,
    /// The one command that would accept it, if that is right; empty if none would.
    pub accept: String,
}

/// Replays `logs` to `pcrs`, strictly, and reads from them what the digests vouch for. IMA's
/// entries are judged by the set's rules on the way.
///
/// # Errors
/// Why the logs prove nothing: see the `verify.*` and `measurements.*` codes, each naming the event.
pub fn measured(
    _pcrs: &PcrValues,
    _profile: &Profile,
    _logs: &Logs<'_>,
    _references: Option<&ReferenceSet>,
) -> Result<Measured, Refusal> {
    todo!("C")
}

impl Measured {
    /// Holds what was measured against `references`; never fails: a bad node has a verdict.
    pub fn appraise(&self, _profile: &Profile, _references: Option<&ReferenceSet>, _now: WallTime) -> Appraisal {
        todo!("C")
    }

    /// How far IMA's list was taken in.
    pub const fn ima(&self) -> Option<&Checkpoint> {
        self.ima.as_ref()
    }
}

impl Appraisal {
    /// What is said of `layer`.
    pub fn layer(&self, layer: Layer) -> Option<&LayerResult> {
        self.layers.iter().find(|result| result.layer == layer.as_str())
    }

    /// The worst finding, if any layer is contraindicated: why there is no lease.
    pub fn contraindication(&self) -> Option<&Finding> {
        self.findings.iter().find(|finding| finding.standing == LayerStanding::Contraindicated)
    }
}
