//! The courier: has the TPM sign the journal's head, and brings the records to the control plane.
//!
//! What was delivered is dropped only when the control plane has said how far it has them, so each record
//! arrives once, whoever is killed in between: the same records again are recognised by their chain.

use std::time::Duration;

use tokio::sync::watch;

use super::{Ask, Batch, Journal};
use crate::clock::BootInstant;
use crate::codes::{self, Refusal};
use crate::protocol::{Enrolled, Failure, Head, RecordsAnswer, RecordsRequest, SignedHead};
use crate::shutdown::CancellationToken;
use crate::tpm::Tpm;

/// Between two signatures: that is what the TPM is asked for at most while there is something new.
pub const BETWEEN: Duration = Duration::from_secs(5);
/// What happens together is signed together.
const COALESCED: Duration = Duration::from_secs(1);
/// Pauses while the TPM or the control plane is away.
const PAUSES_MS: [u64; 4] = [500, 1_000, 2_000, 4_000];

/// See the module.
#[derive(Debug)]
pub struct Courier {
    /// The journal.
    pub journal: Journal,
    /// Signs.
    pub tpm: Tpm,
    /// The control plane, whenever this node is a member.
    pub client: watch::Receiver<Option<Enrolled>>,
}

impl Courier {
    /// Runs until `token` is cancelled. What isn't delivered by then is on the disk, and the next start goes on with it.
    pub async fn run(mut self, token: CancellationToken) {
        tokio::select! {
            () = token.cancelled() => {}
            () = self.carry() => {}
        }
    }

    async fn carry(&mut self) {
        let mut standing = self.journal.standing();
        let mut signed: Option<SignedHead> = None;
        let mut signed_at: Option<BootInstant> = None;
        let mut failures = 0_usize;
        loop {
            let news = {
                let now = standing.borrow_and_update();
                now.number > now.signed || (now.number > now.acknowledged && self.client.borrow().is_some())
            };
            if !news {
                tokio::select! {
                    changed = standing.changed() => if changed.is_err() { return },
                    changed = self.client.changed() => if changed.is_err() { return },
                }
                continue;
            }
            let since = signed_at.map_or(Duration::ZERO, |at| BETWEEN.saturating_sub(BootInstant::now().since(at)));
            tokio::time::sleep(since.max(if failures == 0 { COALESCED } else { Duration::ZERO })).await;
            match self.round(&mut signed, &mut signed_at).await {
                Ok(()) => failures = 0,
                Err(refusal) => {
                    if failures == 0 {
                        tracing::warn!(code = %refusal.code, "the journal waits: {refusal}");
                    }
                    let pause = PAUSES_MS.get(failures).or(PAUSES_MS.last()).copied().unwrap_or(4_000);
                    failures = failures.saturating_add(1);
                    tokio::time::sleep(Duration::from_millis(pause)).await;
                }
            }
        }
    }

    /// Signs what is new and delivers up to there.
    async fn round(
        &mut self,
        signed: &mut Option<SignedHead>,
        signed_at: &mut Option<BootInstant>,
    ) -> Result<(), Refusal> {
        let head = self.journal.head().await?;
        if head.number == 0 {
            return Ok(());
        }
        if signed.as_ref().is_none_or(|signed| signed.head != head) {
            let fresh = self.sign(head).await?;
            self.journal.ask(|reply| Ask::Signed(fresh.clone(), reply)).await??;
            *signed = Some(fresh);
            *signed_at = Some(BootInstant::now());
        }
        let client = self.client.borrow_and_update().clone();
        match (client, signed) {
            (Some(client), Some(signed)) => self.deliver(&client, signed).await,
            _ => Ok(()),
        }
    }

    async fn sign(&self, head: Head) -> Result<SignedHead, Refusal> {
        let signature = self.tpm.sign(head.digest()).await?;
        Ok(SignedHead::new(head, &signature))
    }

    /// Delivers everything up to the signed head.
    async fn deliver(&self, client: &Enrolled, signed: &SignedHead) -> Result<(), Refusal> {
        let (writer, last) = (signed.head.writer, signed.head.number);
        let mut next = self.journal.standing().borrow().acknowledged.saturating_add(1);
        // Whether the control plane asked for records that are no longer here.
        let mut missing = false;
        let mut back = 0_u32;
        while next <= last {
            let batch = self.journal.ask(|reply| Ask::Batch(next, last, reply)).await??;
            let head = match batch.head == signed.head {
                true => signed.clone(),
                false => self.sign(batch.head).await?,
            };
            let witnessed = self.journal.ask(Ask::Witnessed).await?;
            let Batch { first, before, lines, head: at } = batch;
            let request =
                RecordsRequest { writer, first, before, records: lines, head: Some(head), missing, witnessed };
            let answer = match client.records(&request).await {
                Ok(answer) => answer,
                Err(Failure::Refused(refused)) if refused.refusal.code == codes::AUDIT_TAMPERED => {
                    return self.begin_anew(refused.refusal).await;
                }
                Err(failure) => return Err(failure.refusal().clone()),
            };
            (next, missing) = match self.answered(&answer, first, at).await? {
                Some(onwards) => onwards,
                None => return Ok(()),
            };
            back += u32::from(next <= first);
            if back > 2 {
                let found = format!("the control plane goes on asking for record {next}");
                return Err(Refusal::new(codes::PROTOCOL_MALFORMED, found).expected("records it was sent to be taken"));
            }
        }
        Ok(())
    }

    /// Where to go on after an answer; nowhere if the journal was begun anew.
    async fn answered(&self, answer: &RecordsAnswer, first: u64, sent: Head) -> Result<Option<(u64, bool)>, Refusal> {
        let has = Head { number: answer.next.saturating_sub(1), chain: answer.before, ..sent };
        let known = match has == sent {
            true => Some(sent.chain),
            false => self.journal.ask(|reply| Ask::ChainAt(has.number, reply)).await?,
        };
        let present = self.journal.head().await?;
        if has.number > present.number {
            let found = format!("the journal ends with record {}", present.number);
            let refusal = Refusal::new(codes::AUDIT_GAP, found)
                .expected(format!("{} records, which the control plane has", has.number));
            return self.begin_anew(refusal).await.map(|()| None);
        }
        match known {
            Some(chain) if chain == has.chain => {
                let control_plane = answer.head.clone();
                self.journal.ask(|reply| Ask::Acknowledged(has, control_plane, reply)).await??;
                Ok(Some((answer.next, false)))
            }
            // Not known here any more: the control plane was restored from a backup older than what is retained.
            None if answer.next < first => Ok(Some((first, true))),
            _ => {
                let found = format!("record {} differs from what the control plane has", has.number);
                self.begin_anew(Refusal::new(codes::AUDIT_TAMPERED, found)).await.map(|()| None)
            }
        }
    }

    async fn begin_anew(&self, refusal: Refusal) -> Result<(), Refusal> {
        self.journal.ask(|reply| Ask::BeginAnew(refusal, reply)).await?
    }
}
