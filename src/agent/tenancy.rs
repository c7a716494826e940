//! The tenancy: one task that enrols, attests, renews and fetches, for as long as the agent runs.
//!
//! It never gives up and needs no command: whatever fails is tried again after a pause that
//! grows, with jitter, to a few seconds, so that all is well soon after a cause has ended.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};

use super::attester::{Attester, List, Stated};
use super::keeper::{Keeper, Said};
use super::reporter::{Increment, Reporter, Sent, Trouble};
use super::rules;
use super::sources::Sources;
use super::state::{Memory, Remembered};
use super::withdrawals::Withdrawals;
use crate::clock::BootInstant;
use crate::codes::{self, Code, Refusal};
use crate::credentials::{Held, PendingSvid, X509Svid};
use crate::gate::{Reason, Standing};
use crate::identity::{NodeId, SpiffeId, TrustDomain};
use crate::measurements::Watcher;
use crate::protocol::{
    AttestAnswer, AttestRequest, Enrolled, Enrolment, Failure, FreshNonce, Membership, Unenrolled, Wanted,
};
use crate::secret::random;
use crate::shutdown::CancellationToken;
use crate::tpm::Tpm;
use crate::verify::references::Policy;
use crate::verify::{Lease, LeaseClaims, LeaseExpectation};

/// The pauses between tries: the last one plus a request stays well within 10 s (promise 8).
const PAUSES_MS: [u64; 6] = [100, 250, 500, 1_000, 2_000, 4_000];

/// Between two attestations that only tell of allowed entries.
const COALESCED: Duration = Duration::from_secs(1);

/// Within this time after a withdrawal evidence says that it was applied: spread, since many nodes may have been
/// told at once.
const PROVEN: Duration = Duration::from_secs(5);

/// SVIDs asked for in one request.
const BATCH: usize = 256;

/// What the tenancy is made of.
#[derive(Debug)]
pub struct Tenancy {
    /// The TPM.
    pub tpm: Tpm,
    /// Reads the PCRs.
    pub watcher: Watcher,
    /// Holds the gate.
    pub keeper: Arc<Keeper>,
    /// What was taken back, and what evidence says of it.
    pub withdrawals: Arc<Withdrawals>,
    /// The control plane, before admission.
    pub unenrolled: Unenrolled,
    /// What is kept between starts.
    pub memory: Memory,
    /// The node's logs.
    pub sources: Arc<Sources>,
    /// Who must have signed rules for what may run.
    pub policy: Policy,
    /// The trust domain.
    pub trust_domain: TrustDomain,
    /// Rung when the control plane says "attest now".
    pub attest_now: Arc<Notify>,
    /// The present client, for the event stream.
    pub client: watch::Sender<Option<Enrolled>>,
    /// The last failure or wait, for status; `None` while all is well.
    pub trouble: watch::Sender<Option<Refusal>>,
    /// The node's id once known, for status.
    pub node: watch::Sender<Option<NodeId>>,
}

/// An admitted node's working state.
struct Tenant {
    attester: Attester,
    remembered: Remembered,
    enrolled: Enrolled,
    reporter: Reporter,
    next: Option<(FreshNonce, BootInstant)>,
    /// When the last attestation began.
    attested_at: BootInstant,
    /// When the present lease should be renewed.
    renew_at: BootInstant,
}

/// Why a round failed and what follows.
enum Setback {
    /// Try again after a pause.
    Pause(Refusal),
    /// Try again after this pause at least.
    Wait(Refusal, Duration),
    /// The membership is no longer good: enrol again.
    Reenrol(Refusal),
}

impl From<Refusal> for Setback {
    fn from(refusal: Refusal) -> Self {
        Self::Pause(refusal)
    }
}

impl Tenancy {
    /// Runs until `token` is cancelled.
    pub async fn run(self, token: CancellationToken) {
        tokio::select! {
            () = token.cancelled() => {}
            () = self.hold() => {}
        }
    }

    async fn hold(&self) {
        let mut tenant: Option<Tenant> = None;
        let mut failures = 0_usize;
        loop {
            let round = match &mut tenant {
                None => self.admitted().await.map(|admitted| tenant = Some(admitted)),
                Some(tenant) => self.round(tenant).await,
            };
            match round {
                Ok(()) => {
                    failures = 0;
                    self.note(None);
                    if let Some(tenant) = &mut tenant {
                        self.rest(tenant).await;
                    }
                }
                Err(setback) => {
                    let (refusal, at_least) = match setback {
                        Setback::Pause(refusal) => (refusal, Duration::ZERO),
                        Setback::Wait(refusal, pause) => (refusal, pause),
                        Setback::Reenrol(refusal) => {
                            if let Some(tenant) = tenant.take() {
                                self.lose_certificate(tenant.remembered);
                            }
                            self.client.send_replace(None);
                            (refusal, Duration::ZERO)
                        }
                    };
                    let pause = PAUSES_MS.get(failures).or(PAUSES_MS.last()).copied().unwrap_or(1_000);
                    failures = failures.saturating_add(1);
                    self.note(Some(refusal));
                    tokio::select! {
                        () = tokio::time::sleep(jittered(Duration::from_millis(pause).max(at_least))) => {}
                        () = self.attest_now.notified() => {
                            // Not swallowed: under a live lease only this makes the next round attest.
                            if let Some(tenant) = &mut tenant {
                                tenant.renew_at = BootInstant::now();
                            }
                        }
                        () = self.keeper.drifted() => {}
                    }
                }
            }
        }
    }

    /// A membership: the remembered one, or a new one by enrolment.
    async fn admitted(&self) -> Result<Tenant, Setback> {
        let attester = Attester::new(self.tpm.clone()).await?;
        let (remembered, next) = match self.memory.recall(&self.trust_domain, &attester) {
            Some(remembered) if remembered.is_member() => (remembered, None),
            before => {
                let (remembered, nonce, asked_at) = self.enrol(&attester, before).await?;
                (remembered, Some((nonce, asked_at)))
            }
        };
        let enrolled = self.unenrolled.enrolled(&remembered.membership, &self.tpm).map_err(failed)?;
        self.node.send_replace(Some(NodeId::from_bytes(remembered.membership.node)));
        self.client.send_replace(Some(enrolled.clone()));
        let reporter = Reporter::new(self.sources.clone(), attester.boot_id, remembered.sent.clone());
        let now = BootInstant::now();
        Ok(Tenant { attester, remembered, enrolled, reporter, next, attested_at: now, renew_at: now })
    }

    /// Enrols; `before` is what is left of an earlier enrolment.
    async fn enrol(
        &self,
        attester: &Attester,
        before: Option<Remembered>,
    ) -> Result<(Remembered, FreshNonce, BootInstant), Setback> {
        // The CA that the configuration names may have been replaced since.
        let unenrolled = match &before {
            Some(before) => self.unenrolled.trusting(&before.membership.bundle),
            None => self.unenrolled.clone(),
        };
        let challenge = unenrolled.begin(&attester.presentation()).await.map_err(|f| self.failure(f))?;
        self.watcher.select(challenge.selection);
        let asked_at = BootInstant::now();
        let (answer, certification) = attester.answer(&challenge).await?;
        match unenrolled.answer(&answer).await.map_err(|f| self.failure(f))? {
            Enrolment::Admitted(membership, nonce) => {
                self.keeper.reachable(true);
                tracing::info!(node = %NodeId::from_bytes(membership.node), "admitted");
                let mut remembered = Remembered::new(&self.trust_domain, attester, membership, certification)?;
                if let Some(before) = before {
                    (remembered.epoch, remembered.last_sequence) = (before.epoch, before.last_sequence);
                    remembered.versions = before.versions;
                }
                self.remember(&remembered)?;
                Ok((remembered, nonce, asked_at))
            }
            Enrolment::Waiting { node, refusal, retry_after } => {
                self.keeper.reachable(true);
                self.node.send_replace(Some(node));
                tracing::info!(%node, "waiting: {refusal}");
                Err(Setback::Wait(refusal, retry_after))
            }
        }
    }

    /// One round: a lease if it is time for one, then what is due under it.
    async fn round(&self, tenant: &mut Tenant) -> Result<(), Setback> {
        if tenant.renew_at <= BootInstant::now() || self.keeper.sequence().is_none() {
            self.attest(tenant).await?;
        }
        self.fetch(tenant).await
    }

    async fn attest(&self, tenant: &mut Tenant) -> Result<(), Setback> {
        let node = NodeId::from_bytes(tenant.remembered.membership.node);
        // Ahead of the nonce: the first list of a busy machine takes longer to send than a nonce holds.
        let increment = self.report(tenant).await?;
        let now = BootInstant::now();
        tenant.attested_at = now;
        let nonce = match tenant.next.take() {
            // A nonce at the end of its time would be refused: ask for another.
            Some((fresh, since)) if now < since.after(Duration::from_secs(fresh.term_seconds) * 9 / 10) => fresh,
            _ => tenant.enrolled.nonce().await.map_err(|f| self.failure(f))?,
        };
        let stated = Stated { log_digests: increment.digests(), withdrawn: self.withdrawals.applied() };
        // Before the quote: what is seen to speak against the node from here on, the quote may not show.
        let withdrawals = self.keeper.withdrawals();
        let certification = &tenant.remembered.certification;
        let list = List { sources: &self.sources, from: self.keeper.place(nonce.selection.bank()).await };
        let gathered = tenant
            .attester
            .gather(nonce.nonce, Some(node), nonce.selection, certification, stated.clone(), Some(list))
            .await?;
        let mut tail = tenant.reporter.tail(&increment)?;
        let request = AttestRequest {
            logs: increment.parts,
            tail: std::mem::take(&mut tail.parts),
            ..AttestRequest::new(fresh_id()?, gathered.evidence.clone())
        };
        let asked_at = BootInstant::now();
        let answer = match tenant.enrolled.attest(&request).await {
            Ok(answer) => {
                tenant.reporter.arrived(tail);
                answer
            }
            Err(failure) => {
                tenant.reporter.doubt(tail);
                if let Failure::Refused(refused) = &failure {
                    tenant.next = refused.next.clone().map(|next| (next, asked_at));
                    if about_logs(refused.refusal.code) {
                        tenant.reporter.start_over();
                    }
                }
                return Err(self.refused_evidence(failure));
            }
        };
        self.keeper.reachable(true);
        tenant.next = Some((answer.next.clone(), asked_at));
        // Before anything is taken up from the answer.
        answer.withdrawals.iter().for_each(|withdrawal| self.withdrawals.take(withdrawal));
        self.keeper.provision(answer.entries.clone(), &answer.bundle);
        self.renew_membership(tenant, &answer)?;
        self.keeper.said(Said { layers: answer.layers.clone(), findings: answer.findings.clone() });
        let Some(lease) = &answer.lease else {
            if answer.refusal.as_ref().is_some_and(|refusal| about_logs(refusal.code)) {
                tenant.reporter.start_over();
            }
            return Err(self.contraindicated(&answer));
        };
        tenant.reporter.believed();
        self.withdrawals.proven(&stated.withdrawn);
        let issuers: Vec<Vec<u8>> = answer.bundle.certificates.iter().map(|der| der.to_vec()).collect();
        let expected = LeaseExpectation {
            node,
            ak_name: tenant.attester.ak.name(),
            node_key_name: tenant.attester.node_key.name(),
            boot_id: tenant.attester.boot_id,
            counts: gathered.counts,
            requested_at: gathered.requested_at,
            after_sequence: tenant.remembered.last_sequence,
            after_epoch: tenant.remembered.epoch,
        };
        let lease = Lease::verify(lease, &issuers, &expected)?;
        let (sequence, term, epoch) = (lease.claims().sequence, lease.claims().term, lease.claims().epoch);
        // What is watched is what the lease stands on, whatever is to be quoted next.
        self.watcher.select(lease.claims().pcrs.selection());
        (tenant.remembered.epoch, tenant.remembered.last_sequence) = (epoch, sequence);
        tenant.remembered.sent = tenant.reporter.sent().clone();
        // Before the gate opens: from then on an entry that no rule allows is drift.
        let without_rules = self.take_rules(tenant, lease.claims()).await.err();
        self.remember(&tenant.remembered)?;
        // Before half of the lease, spread so that a fleet started together doesn't stay together.
        tenant.renew_at = gathered.requested_at.after(jittered(term * 2 / 5));
        self.keeper
            .open(lease, &gathered.reading, answer.position, withdrawals)
            .await
            .map_err(|reason| Setback::Pause(reason.refusal))?;
        tracing::info!(sequence, term_seconds = term.as_secs(), "leased");
        // The lease holds as it is, on exact values; the next round asks for the rules again.
        without_rules.map_or(Ok(()), |refusal| Err(Setback::Pause(refusal)))
    }

    /// Sends of the logs what is too much for one request, and gives back the rest.
    async fn report(&self, tenant: &mut Tenant) -> Result<Increment, Setback> {
        let Tenant { reporter, remembered, enrolled, .. } = tenant;
        let keep = |sent: &Sent| {
            remembered.sent = sent.clone();
            if let Err(error) = self.memory.keep(remembered) {
                tracing::warn!(%error, "how far the logs were sent can't be kept; a restart sends them anew");
            }
        };
        let increment = match reporter.increment(enrolled, keep).await {
            Ok(increment) => increment,
            // Nothing is concluded from a log that can't be read; the lease runs to its end.
            Err(Trouble::Here(refusal)) => return Err(Setback::Pause(refusal)),
            Err(Trouble::There(failure)) => return Err(self.failure(failure)),
        };
        self.keeper.reachable(true);
        Ok(increment)
    }

    /// Sees to it that the rules a lease names are at hand: kept ones, or fetched.
    async fn take_rules(&self, tenant: &mut Tenant, claims: &LeaseClaims) -> Result<(), Refusal> {
        let Some(digest) = &claims.rules else { return Ok(()) };
        if self.keeper.has_rules(digest).await {
            return Ok(());
        }
        let kept = self
            .memory
            .document()
            .and_then(|kept| rules::rules(&self.policy, &kept, digest, &mut tenant.remembered).ok());
        let rules = match kept {
            Some(rules) => rules,
            None => {
                let bytes = tenant.enrolled.references().await.map_err(|failure| failure.refusal().clone())?;
                let rules = rules::rules(&self.policy, &bytes, digest, &mut tenant.remembered)?;
                if let Err(error) = self.memory.keep_document(&bytes) {
                    tracing::warn!(%error, "the reference document can't be kept; it is fetched again after a restart");
                }
                rules
            }
        };
        tracing::info!(document = hex::encode(digest), "new entries of IMA's list are judged by its rules");
        self.keeper.rule(*digest, rules).await;
        Ok(())
    }

    /// Asks for the SVIDs that are missing or past half their life.
    async fn fetch(&self, tenant: &mut Tenant) -> Result<(), Setback> {
        let Some((sequence, lease_end)) = self.keeper.sequence() else { return Ok(()) };
        let due = self.keeper.due();
        let bundle = self.keeper.bundle();
        for batch in due.chunks(BATCH) {
            let mut pending = Vec::new();
            let mut wanted = Vec::new();
            for id in batch {
                let id =
                    SpiffeId::new(id).map_err(|e| Refusal::new(codes::PROTOCOL_MALFORMED, e.to_string()).at(id))?;
                let key = PendingSvid::new(id).map_err(|e| Refusal::new(codes::ISSUER_REQUEST, e.to_string()))?;
                wanted.push(Wanted { id: key.id().to_string(), csr: key.request()? });
                pending.push(key);
            }
            let (asked_at, asked) = (BootInstant::now(), self.keeper.asks());
            let answer = match tenant.enrolled.leased(sequence).credentials(fresh_id()?, wanted).await {
                Ok(answer) => answer,
                Err(failure) => {
                    // The server's side of the lease is over: only another attestation can help.
                    if matches!(failure.refusal().code, codes::ISSUER_NO_LEASE | codes::PROTOCOL_EPOCH) {
                        tenant.renew_at = BootInstant::now();
                    }
                    return Err(self.failure(failure));
                }
            };
            self.keeper.reachable(true);
            let mut issued = Vec::new();
            let mut refused = Vec::new();
            for (key, answer) in pending.into_iter().zip(answer.answers) {
                let id = key.id().to_string();
                match answer.refusal {
                    Some(refusal) => refused.push((id, refusal)),
                    None => {
                        let chain = answer.chain.into_iter().map(|der| der.into_vec()).collect();
                        let svid = X509Svid { decision: answer.decision, ..key.complete(chain)? };
                        if !svid.leads_to(&bundle) {
                            // The CA was rotated since the last attestation: the next one brings it.
                            tenant.renew_at = BootInstant::now();
                            let refusal = Refusal::new(codes::ISSUER_BUNDLE, "its CA isn't in the bundle").at(id);
                            return Err(refusal.into());
                        }
                        let until = asked_at.after(Duration::from_secs(answer.term_seconds)).min(lease_end);
                        issued.push(Held::new(svid, asked_at, until));
                    }
                }
            }
            for (id, refusal) in &refused {
                tracing::warn!(id, "not issued: {refusal}");
            }
            self.keeper.hold(issued, refused, asked);
        }
        Ok(())
    }

    /// Waits until something is to be done.
    async fn rest(&self, tenant: &mut Tenant) {
        let until = self.keeper.next_due().map_or(tenant.renew_at, |due| due.min(tenant.renew_at));
        tokio::select! {
            () = sleep_until(until) => {}
            () = self.attest_now.notified() => tenant.renew_at = BootInstant::now(),
            () = self.keeper.drifted() => {}
            () = self.withdrawals.to_prove() => {
                tenant.renew_at = tenant.renew_at.min(BootInstant::now().after(part_of(PROVEN)));
            }
            // The control plane hears of allowed entries too, many of them at a time.
            () = self.keeper.grown() => tenant.renew_at = tenant.renew_at.min(tenant.attested_at.after(COALESCED)),
        }
    }

    /// Keeps a renewed certificate and a changed bundle.
    fn renew_membership(&self, tenant: &mut Tenant, answer: &AttestAnswer) -> Result<(), Setback> {
        let mut membership = Membership { bundle: answer.bundle.clone(), ..tenant.remembered.membership.clone() };
        if let Some(certificate) = &answer.certificate {
            membership.certificate.clone_from(certificate);
        }
        if membership == tenant.remembered.membership {
            return Ok(());
        }
        // The client first: a membership that can't be used isn't kept.
        tenant.enrolled = self.unenrolled.enrolled(&membership, &self.tpm).map_err(failed)?;
        tenant.remembered.membership = membership;
        self.remember(&tenant.remembered)?;
        self.client.send_replace(Some(tenant.enrolled.clone()));
        Ok(())
    }

    fn contraindicated(&self, answer: &AttestAnswer) -> Setback {
        let refusal = answer
            .refusal
            .clone()
            .unwrap_or_else(|| Refusal::new(codes::GATE_CONTRAINDICATED, "no lease and no reason was given"));
        // A node that nobody has set up yet isn't one that something speaks against; one whose
        // reference values were taken away under its lease is.
        let unset = refusal.code == codes::VERIFY_NO_REFERENCE && self.keeper.sequence().is_none();
        let standing = if unset { Standing::Stale } else { Standing::Contraindicated };
        self.keeper.close(Reason { standing, refusal: refusal.clone(), differences: answer.differences.clone() });
        Setback::Wait(refusal, Duration::from_secs(4))
    }

    /// Forgets the certificate that the control plane doesn't take any more, and only that: its CA
    /// certificates are still what it is known by.
    fn lose_certificate(&self, mut remembered: Remembered) {
        remembered.membership.certificate.clear();
        if let Err(error) = self.memory.keep(&remembered) {
            tracing::warn!(%error, "the enrolment can't be changed on disk; it will be refused again");
        }
    }

    fn remember(&self, remembered: &Remembered) -> Result<(), Setback> {
        self.memory.keep(remembered).map_err(|e| {
            Setback::Pause(Refusal::new(codes::STORE_FAILED, e.to_string()).at("the agent's state directory"))
        })
    }

    /// What a failed attestation means. The control plane ends the node's lease when evidence doesn't
    /// verify, and so does the gate here: what it refuses is not released on until the term's end.
    fn refused_evidence(&self, failure: Failure) -> Setback {
        if let Failure::Refused(refused) = &failure {
            let code = refused.refusal.code;
            match code {
                // About the nonce or the PCRs asked for, not about the node: the next try has the right ones.
                codes::VERIFY_NONCE
                | codes::VERIFY_NONCE_SPENT
                | codes::VERIFY_NONCE_EXPIRED
                | codes::VERIFY_NONCE_OTHER_NODE
                | codes::VERIFY_QUOTE_STALE
                | codes::VERIFY_SELECTION => {}
                _ if ["verify.", "evidence."].iter().any(|room| code.as_str().starts_with(room)) => {
                    self.keeper.close(Reason::new(Standing::Contraindicated, refused.refusal.clone()));
                }
                _ => {}
            }
        }
        self.failure(failure)
    }

    /// What a failed exchange means for the standing and for the next try.
    fn failure(&self, failure: Failure) -> Setback {
        match failure {
            Failure::Unreachable(refusal) => {
                self.keeper.reachable(false);
                Setback::Pause(refusal)
            }
            Failure::Refused(refused) => {
                self.keeper.reachable(true);
                let refusal = refused.refusal;
                match refusal.code {
                    codes::ENROL_REVOKED | codes::GATE_REVOKED => {
                        self.keeper.close(Reason::new(Standing::Contraindicated, refusal.clone()));
                        Setback::Wait(refusal, Duration::from_secs(4))
                    }
                    // The certificate, the certification or the id it remembers is no longer the control
                    // plane's: another enrolment brings both together again.
                    codes::PROTOCOL_CLIENT_CERTIFICATE | codes::VERIFY_NODE_KEY | codes::VERIFY_NODE => {
                        Setback::Reenrol(refusal)
                    }
                    _ => Setback::Pause(refusal),
                }
            }
        }
    }

    fn note(&self, refusal: Option<Refusal>) {
        self.trouble.send_if_modified(|present| {
            let changed = *present != refusal;
            if changed {
                if let Some(refusal) = &refusal {
                    tracing::warn!(code = %refusal.code, "{refusal}");
                }
                *present = refusal;
            }
            changed
        });
    }
}

fn failed(failure: Failure) -> Setback {
    Setback::Pause(failure.refusal().clone())
}

fn fresh_id() -> Result<[u8; 16], Refusal> {
    random().map_err(|e| Refusal::new(codes::PROTOCOL_MALFORMED, e.to_string()))
}

/// Whether logs that were sent otherwise than they are now would explain it.
fn about_logs(code: Code) -> bool {
    matches!(
        code,
        codes::VERIFY_LOGS
            | codes::VERIFY_LOG_REPLAY
            | codes::VERIFY_LOG_EXTENDED
            | codes::VERIFY_BOOT_AGGREGATE
            | codes::MEASUREMENTS_BOOT_LOG
            | codes::MEASUREMENTS_USERSPACE_LOG
            | codes::MEASUREMENTS_IMA_LIST
    )
}

/// `pause` or up to a quarter more.
fn jittered(pause: Duration) -> Duration {
    let [byte] = random::<1>().unwrap_or([128]);
    pause + pause * u32::from(byte) / 1024
}

/// A random part of `time`.
fn part_of(time: Duration) -> Duration {
    let [byte] = random::<1>().unwrap_or([128]);
    time * u32::from(byte) / 256
}

/// Sleeps until a moment on CLOCK_BOOTTIME. Timers run on CLOCK_MONOTONIC, which stops in
/// suspend, so the moment is looked at again every second.
async fn sleep_until(until: BootInstant) {
    loop {
        let left = until.since(BootInstant::now());
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left.min(Duration::from_secs(1))).await;
    }
}
