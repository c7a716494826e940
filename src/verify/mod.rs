//! The verifier: pure functions from values to an attestation result, `now` passed in.
//!
//! The order of the checks is in the types; none of them can be made but by the step before it:
//!
//! ```text
//! UnverifiedEvidence ─authenticate─▶ Authentic ─fresh─▶ Fresh ─replay─▶ Replayed ─appraise─▶ Appraised ─lease─▶ LeaseClaims
//!                     who made it?              for us,         by these         as it                  for how
//!                                               now?            logs?            should be?             long?
//! ```
//!
//! Beside that line stand [`endorsement`] (whose TPM is it?), [`credential`] (are the keys in it?)
//! and [`Lease::verify`], the agent's check of what comes back.

pub mod appraisal;
mod appraised;
mod authentic;
pub mod credential;
pub mod endorsement;
pub mod firmware;
mod fresh;
mod keys;
mod lease;
pub mod profile;
pub mod quoted;
pub mod references;
pub mod runtime;
mod trust;

pub use appraised::{Appraised, LeaseTerms, Replayed, Unreplayed, Verdict};
pub use authentic::{Authentic, authenticate};
pub use endorsement::{EkRoots, Grade};
pub use fresh::{Fresh, Note, PriorQuote};
pub use keys::{AkPublic, EnrolledKeys, NodeKey, certificate_spki};
pub use lease::{LEASE_CDDL, LEASE_PROFILE, Lease, LeaseClaims, LeaseExpectation};
pub use references::{LearntSet, ReferenceSet};
pub use trust::TrustVector;
