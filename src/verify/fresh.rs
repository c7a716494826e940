//! Second question: was it made now, for this question?

use std::fmt;
use std::time::Duration;

use super::authentic::Authentic;
use crate::clock::BootId;
use crate::codes::{self, Refusal};
use crate::evidence::quote_binding;
use crate::tpm::{PcrSelection, ResetCounts};

/// The age of a nonce, in seconds, from which the TPM's own clock must confirm that time passed.
const QUICK: Duration = Duration::from_secs(60);
/// What a TPM's clock may lose: a quarter (it may run 15 % slow, Part 1, 36.4) and ten seconds.
const CLOCK_SLACK: Duration = Duration::from_secs(10);

/// The last quote accepted from a node: what the next one is held against.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PriorQuote {
    /// Its reset counts.
    pub counts: ResetCounts,
    /// Its TPM clock, in milliseconds.
    pub clock_ms: u64,
    /// The boot it was made in.
    pub boot_id: BootId,
    /// The time since the server received it.
    pub elapsed: Duration,
}

/// Something that doesn't refuse evidence but that an operator should see.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Note {
    /// The TPM was reset or restarted while the operating system ran on: the lease on the earlier
    /// counts is over, the new lease names the new ones.
    ResetWithinBoot {
        /// The counts of the prior quote.
        before: ResetCounts,
        /// The counts of this one.
        after: ResetCounts,
    },
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ResetWithinBoot { before, after } => write!(
                f,
                "the TPM was reset under a running system: counts {}/{} before, {}/{} now",
                before.reset, before.restart, after.reset, after.restart
            ),
        }
    }
}

/// Authentic evidence over the right nonce and PCRs, not older than what was seen before.
#[derive(Clone, Debug)]
pub struct Fresh {
    pub(super) authentic: Authentic,
    pub(super) notes: Vec<Note>,
}

impl Fresh {
    /// The digest of each log the quote is bound to: held against those of the logs that were sent.
    pub fn log_digests(&self) -> &[[u8; 32]] {
        &self.authentic.claims.log_digests
    }

    /// The boot it speaks for.
    pub const fn boot_id(&self) -> BootId {
        self.authentic.claims.boot_id
    }
}

impl Authentic {
    /// Checks that the evidence answers this question. `nonce_age` is the time since the nonce was
    /// given out, `prior` the last quote accepted from this node, if any.
    ///
    /// # Errors
    /// [`codes::VERIFY_NONCE`], [`codes::VERIFY_QUOTE_BINDING`], [`codes::VERIFY_SELECTION`],
    /// [`codes::VERIFY_RESET_COUNT`] when the reset or restart count went back,
    /// [`codes::VERIFY_CLOCK`], [`codes::VERIFY_QUOTE_STALE`].
    pub fn fresh(
        self,
        expected_nonce: &[u8; 32],
        selection: PcrSelection,
        nonce_age: Duration,
        prior: Option<&PriorQuote>,
    ) -> Result<Fresh, Refusal> {
        let claims = &self.claims;
        if claims.nonce != *expected_nonce {
            return Err(
                Refusal::new(codes::VERIFY_NONCE, hex::encode(claims.nonce)).expected(hex::encode(expected_nonce))
            );
        }
        let bound = quote_binding(&claims.nonce, &self.keys.node_key.name(), &claims.boot_id, &claims.log_digests);
        if self.quote.extra_data != bound {
            return Err(Refusal::new(codes::VERIFY_QUOTE_BINDING, hex::encode(&self.quote.extra_data))
                .at("extraData")
                .expected(hex::encode(bound)));
        }
        if claims.pcrs.selection() != selection {
            return Err(Refusal::new(codes::VERIFY_SELECTION, claims.pcrs.selection().to_string())
                .at("quote")
                .expected(selection.to_string()));
        }
        let notes = match prior {
            Some(prior) => self.after(prior, nonce_age)?.into_iter().collect(),
            None => Vec::new(),
        };
        Ok(Fresh { authentic: self, notes })
    }

    /// Holds the TPM's counters against those of the prior quote. They are the only witness
    /// against a copy of the TPM's state, an older snapshot of it, and a quote kept back.
    fn after(&self, prior: &PriorQuote, nonce_age: Duration) -> Result<Option<Note>, Refusal> {
        let clock = self.quote.clock_info;
        let counts = |counts: ResetCounts| format!("reset {} restart {}", counts.reset, counts.restart);
        // Ordered by reset count, then by restart count, which starts anew with each reset.
        if clock.counts < prior.counts {
            return Err(Refusal::new(codes::VERIFY_RESET_COUNT, counts(clock.counts))
                .expected(format!("at least {}", counts(prior.counts))));
        }
        // After a reset the clock may rightly have fallen back: it is saved only now and then.
        if clock.counts.reset == prior.counts.reset && clock.clock_ms < prior.clock_ms {
            return Err(Refusal::new(codes::VERIFY_CLOCK, format!("{} ms", clock.clock_ms))
                .expected(format!("at least {} ms", prior.clock_ms)));
        }
        // A nonce is handed out with the answer before, so a quote over it may have been made at
        // once and kept until the node was no longer as quoted. While neither count changed the
        // TPM was powered all the time, so its clock must have gone on with ours. Should a TPM
        // sleep without counting that as a restart, a fresh nonce still gets its node through.
        if clock.counts == prior.counts && nonce_age > QUICK {
            let least = (prior.elapsed / 4 * 3).saturating_sub(CLOCK_SLACK);
            let passed = Duration::from_millis(clock.clock_ms.saturating_sub(prior.clock_ms));
            if passed < least {
                return Err(Refusal::new(
                    codes::VERIFY_QUOTE_STALE,
                    format!("the TPM counted {} s since the quote before", passed.as_secs()),
                )
                .expected(format!(
                    "at least {} s of {}, or a nonce younger than {} s",
                    least.as_secs(),
                    prior.elapsed.as_secs(),
                    QUICK.as_secs()
                )));
            }
        }
        let within_boot = self.claims.boot_id == prior.boot_id && clock.counts != prior.counts;
        Ok(within_boot.then_some(Note::ResetWithinBoot { before: prior.counts, after: clock.counts }))
    }
}
