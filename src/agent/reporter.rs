//! What the control plane was told of this node's logs, and what it is told next: only what is new.
//!
//! Both sides keep a chain over the parts that were sent ([`LogChain`]). As long as they agree, the next
//! part begins where the last one ended; where they don't, a log is sent from its start.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::sources::Sources;
use crate::clock::BootId;
use crate::codes::{self, Refusal};
use crate::evidence::logs::{SEGMENT_LIMIT, log_digests};
use crate::evidence::{LogChain, LogKind};
use crate::protocol::{Enrolled, Failure, LogPart, LogsHeld, LogsRequest};

/// What of the logs may travel with an attestation; more than that goes ahead of it, in parts.
const INLINE: usize = 1 << 20;
/// How often the two sides are brought into step again before an attestation is put off.
const TRIES: usize = 3;

type Chains = BTreeMap<LogKind, LogChain>;

/// What was sent, as it is kept between starts.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sent {
    /// The boot it was sent in; the logs of another one begin anew.
    #[serde(with = "serde_bytes")]
    boot_id: [u8; 16],
    chains: Chains,
}

/// What goes with an attestation.
#[derive(Debug, Default)]
pub struct Increment {
    /// The parts.
    pub parts: Vec<LogPart>,
    chains: Chains,
}

impl Increment {
    /// The digests that the quote is bound to once these parts are sent.
    pub fn digests(&self) -> Vec<[u8; 32]> {
        log_digests(|kind| self.chains.get(&kind).copied().unwrap_or_default())
    }
}

/// Why nothing was reported.
#[derive(Debug)]
pub enum Trouble {
    /// The logs can't be read.
    Here(Refusal),
    /// The control plane can't be reached, or refused.
    There(Failure),
}

impl From<Refusal> for Trouble {
    fn from(refusal: Refusal) -> Self {
        Self::Here(refusal)
    }
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Self {
        Self::There(failure)
    }
}

/// Sends logs.
#[derive(Debug)]
pub struct Reporter {
    sources: Arc<Sources>,
    sent: Sent,
    /// What may have arrived beside `sent`: the answer was lost.
    perhaps: Chains,
    /// Whether the control plane was asked since it last was in doubt.
    in_step: bool,
    /// Whether it was said that the control plane, of the version before, takes no logs.
    said_none: bool,
    /// Whether everything was sent from its start since a lease was last granted.
    started_over: bool,
}

impl Reporter {
    /// A reporter of these sources that goes on from what was sent before.
    pub fn new(sources: Arc<Sources>, boot_id: BootId, before: Sent) -> Self {
        let this = Sent { boot_id: *boot_id.as_bytes(), chains: Chains::new() };
        let mut sent = if before.boot_id == this.boot_id { before } else { this };
        // The short ones are sent anew with each start: whether they still are what was sent needs no asking.
        sent.chains.retain(|kind, _| *kind == LogKind::Ima);
        Self { sources, sent, perhaps: Chains::new(), in_step: false, said_none: false, started_over: false }
    }

    /// What was sent so far, to be kept.
    pub const fn sent(&self) -> &Sent {
        &self.sent
    }

    /// Sends ahead what is too much for one request, and reads the rest, which goes with it. `keep` is
    /// called after each part, so that an agent that is started again goes on from there.
    ///
    /// # Errors
    /// [`Trouble`].
    pub async fn increment(&mut self, enrolled: &Enrolled, mut keep: impl FnMut(&Sent)) -> Result<Increment, Trouble> {
        if self.sources.are_none() {
            return Ok(Increment::default());
        }
        if !self.in_step {
            match enrolled.logs(&self.request(None)).await {
                Ok(held) => self.agree(&held),
                Err(Failure::Refused(refused)) if refused.refusal.code == codes::PROTOCOL_MALFORMED => {
                    if !std::mem::replace(&mut self.said_none, true) {
                        tracing::warn!("the control plane takes no logs: {}", refused.refusal);
                    }
                    // Asked again with the next attestation: it may have been brought up to date by then.
                    return Ok(Increment::default());
                }
                Err(failure) => return Err(failure.into()),
            }
        }
        let mut missed = 0;
        loop {
            let parts = self.new_parts(SEGMENT_LIMIT, &self.sent.chains)?;
            if parts.iter().map(|part| part.bytes.len()).sum::<usize>() <= INLINE {
                return Ok(self.with(parts, &self.sent.chains));
            }
            for part in parts {
                let expected = appended(&self.sent.chains, &part);
                let kind = part.kind;
                let held = match enrolled.logs(&self.request(Some(part))).await {
                    Ok(held) => held,
                    Err(failure) => {
                        self.perhaps.insert(kind, expected);
                        self.in_step = false;
                        return Err(failure.into());
                    }
                };
                if held.of(kind) == expected {
                    self.sent.chains.insert(kind, expected);
                    keep(&self.sent);
                    continue;
                }
                missed += 1;
                if missed > TRIES {
                    let refusal =
                        Refusal::new(codes::PROTOCOL_LOGS, format!("the {kind} log is held otherwise than sent"))
                            .expected("one agent on this node");
                    return Err(refusal.into());
                }
                self.agree(&held);
                break;
            }
        }
    }

    /// What was added to the logs since `increment`: to be read after the quote, which may cover it.
    ///
    /// # Errors
    /// Those of the sources.
    pub fn tail(&self, increment: &Increment) -> Result<Increment, Refusal> {
        if increment.chains.is_empty() {
            return Ok(Increment::default());
        }
        let mut parts = self.new_parts(INLINE, &increment.chains)?;
        // A log that shrank meanwhile begins anew with the next evidence, not between two.
        parts.retain(|part| part.offset > 0);
        Ok(self.with(parts, &increment.chains))
    }

    /// The attestation with `increment` and `tail` was answered.
    pub fn arrived(&mut self, tail: Increment) {
        if !tail.chains.is_empty() {
            self.sent.chains = tail.chains;
        }
    }

    /// The attestation with `tail` was refused, or its answer was lost: what is held is to be asked for.
    pub fn doubt(&mut self, tail: Increment) {
        self.perhaps = tail.chains;
        self.in_step = false;
    }

    /// The logs as they are held led to the quote.
    pub const fn believed(&mut self) {
        self.started_over = false;
    }

    /// The logs as they are held lead nowhere: a file may have been replaced under its name. Everything is sent
    /// from its start, once: if that leads nowhere either, it is the node.
    pub fn start_over(&mut self) {
        if !std::mem::replace(&mut self.started_over, true) {
            self.sent.chains.clear();
            self.perhaps.clear();
        }
    }

    /// Takes over what is held where it is what was sent; the rest is sent from its start.
    fn agree(&mut self, held: &LogsHeld) {
        for kind in LogKind::ALL {
            let held = held.of(kind);
            let known =
                [self.sent.chains.get(&kind), self.perhaps.get(&kind)].into_iter().flatten().any(|it| *it == held);
            if known && held.length > 0 {
                self.sent.chains.insert(kind, held);
            } else {
                self.sent.chains.remove(&kind);
            }
        }
        self.perhaps.clear();
        self.in_step = true;
    }

    fn request(&self, part: Option<LogPart>) -> LogsRequest {
        LogsRequest { boot_id: self.sent.boot_id, part }
    }

    /// The next part of each log in which there is anything new.
    fn new_parts(&self, limit: usize, chains: &Chains) -> Result<Vec<LogPart>, Refusal> {
        // Files may take their time; the other tasks go on meanwhile.
        tokio::task::block_in_place(|| {
            let mut parts = Vec::new();
            for kind in LogKind::ALL {
                parts.extend(self.next(kind, limit, chains)?);
            }
            Ok(parts)
        })
    }

    /// The next part of a log, if there is anything new.
    fn next(&self, kind: LogKind, limit: usize, chains: &Chains) -> Result<Option<LogPart>, Refusal> {
        let mut offset = chains.get(&kind).map_or(0, |chain| chain.length);
        let Some(mut bytes) = self.sources.read(kind, offset, limit)? else { return Ok(None) };
        if bytes.is_empty() && offset > 0 && self.sources.ends_before(kind, offset)? {
            // Shorter than it was: another list under the same name.
            offset = 0;
            bytes = self.sources.read(kind, 0, limit)?.unwrap_or_default();
        }
        Ok((!bytes.is_empty()).then_some(LogPart { kind, offset, bytes }))
    }

    fn with(&self, parts: Vec<LogPart>, chains: &Chains) -> Increment {
        let mut chains = chains.clone();
        for part in &parts {
            let chain = appended(&chains, part);
            chains.insert(part.kind, chain);
        }
        Increment { parts, chains }
    }
}

fn appended(chains: &Chains, part: &LogPart) -> LogChain {
    let before = if part.offset == 0 { None } else { chains.get(&part.kind).copied() };
    before.unwrap_or_default().append(&part.bytes)
}
