//! The verifier: pure functions from values to an attestation result, `now` passed in.
//!
//! The order of the checks is in the types; none of them can be made but by the step before it:
//!
//! ```text
//! UnverifiedEvidence ─authenticate─▶ Authentic ─fresh─▶ Fresh ─replay─▶ Replayed ─appraise─▶ Appraised
//!                     who made it?              for us,         by these         as it
//!                                               now?            logs?            should be?
//! ```

mod authentic;
mod fresh;
mod keys;

pub use authentic::{Authentic, authenticate};
pub use fresh::{Fresh, Note, PriorQuote};
pub use keys::{AkPublic, EnrolledKeys, NodeKey};
