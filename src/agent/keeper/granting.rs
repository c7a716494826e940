//! Credentials for a process that waits for them: the one way of asking the control plane, of believing
//! its answer, and of holding what came.
//!
//! ```text
//! turn ─▶ ask, under the present lease ─▶ accepted: chain and token are what was asked for, and verify
//!                                             └─▶ held, unless it was taken back meanwhile: one look, one lock
//! ```

use std::collections::BTreeSet;
use std::sync::OnceLock;
use std::time::Duration;

use tokio::sync::watch;

use super::{Holdings, Keeper};
use crate::clock::{BootInstant, WallTime};
use crate::codes::{self, Refusal};
use crate::credentials::token::Verified;
use crate::credentials::{Held, JwtSvid, PendingSvid, X509Svid};
use crate::delivery::workload_api::Denied;
use crate::identity::exact_id;
use crate::protocol::{
    AuthorizationDetail, CallerClaims, Enrolled, Failure, GrantAnswer, GrantRequest, TaskStatement, Ungranted,
};
use crate::secret::{Zeroizing, random};
use crate::workload::{Turn, Turns};

/// How long a process waits for its turn, and for the answer to a request that nothing depends on but its
/// token, before it is told to try again.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a process waits for an attestation: it brings the present lease, or the bundle with the CA or
/// the key that signed.
const RENEWAL: Duration = Duration::from_secs(2);
/// Requests under way at one time: local processes can't make the node flood its control plane.
const UNDER_WAY: usize = 8;
/// Of one user: whoever asks and asks stands in the way of others with so many requests, and no more.
const OF_A_USER: usize = 4;
/// A token is remembered so long beyond its end: the time that is known here may be behind.
const BEYOND: Duration = Duration::from_secs(60);

/// What is asked for.
#[derive(Clone, Debug)]
pub(in crate::agent) struct Wanted {
    /// The workload's SPIFFE ID.
    pub(in crate::agent) workload: String,
    /// The process it is for.
    pub(in crate::agent) caller: CallerClaims,
    /// The task, in the caller's own words.
    pub(in crate::agent) task: Option<TaskStatement>,
    /// Whether an X.509-SVID is wanted.
    pub(in crate::agent) x509: bool,
    /// Whom a token is for; none wants no token.
    pub(in crate::agent) audience: Vec<String>,
    /// Towards what.
    pub(in crate::agent) destination: Option<String>,
    /// What the caller may need to do.
    pub(in crate::agent) details: Vec<AuthorizationDetail>,
}

/// What was granted. Its secrets are wiped when it is dropped.
#[derive(Clone)]
pub(in crate::agent) struct Granted {
    /// The decision's id.
    pub(in crate::agent) decision: String,
    /// Of what was asked for, what it may do.
    pub(in crate::agent) details: Vec<AuthorizationDetail>,
    /// The X.509-SVID, if one was asked for.
    pub(in crate::agent) svid: Option<X509Svid>,
    /// The JWT-SVID, if one was asked for.
    pub(in crate::agent) token: Option<JwtSvid>,
    /// From when on nobody accepts the token.
    shown_until: BootInstant,
}

impl Granted {
    /// What was issued: the ids that the ledger knows them by, each with its decision.
    pub(in crate::agent) fn credentials(&self) -> impl Iterator<Item = (&str, &str)> {
        let svid = self.svid.iter().map(|svid| (svid.serial.as_str(), svid.decision.as_str()));
        svid.chain(self.token.iter().map(|token| (token.jti.as_str(), token.decision.as_str())))
    }
}

/// Why nothing was granted.
#[derive(Debug)]
pub(in crate::agent) struct Ungiven {
    /// What the caller hears.
    pub(in crate::agent) why: Denied,
    /// What became of the request at the control plane.
    pub(in crate::agent) there: There,
}

/// What became of a request at the control plane.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::agent) enum There {
    /// Nothing was issued.
    Nothing,
    /// It isn't known whether anything was issued, or will be.
    Unknown,
    /// Something was issued that isn't used.
    Issued,
}

impl From<Denied> for Ungiven {
    fn from(why: Denied) -> Self {
        Self { why, there: There::Nothing }
    }
}

/// The way to the control plane.
#[derive(Debug)]
pub(super) struct Grants {
    client: OnceLock<watch::Receiver<Option<Enrolled>>>,
    turns: Turns,
}

impl Default for Grants {
    fn default() -> Self {
        Self { client: OnceLock::new(), turns: Turns::new(UNDER_WAY, OF_A_USER) }
    }
}

impl Keeper {
    /// Says where credentials are asked for.
    pub fn connect(&self, client: watch::Receiver<Option<Enrolled>>) {
        // Once, at the start; there is no other control plane.
        let _ = self.grants.client.set(client);
    }

    /// A turn to ask for a process of this user.
    pub(in crate::agent) async fn turn(&self, uid: u32) -> Result<Turn, Denied> {
        let turn = tokio::time::timeout(PATIENCE, self.grants.turns.next(uid)).await.ok().flatten();
        turn.ok_or_else(|| away("too many requests wait for the control plane"))
    }

    /// A turn for what a task goes on with: it waits until it comes, for those before it don't wait long.
    pub(in crate::agent) async fn turn_in_line(&self, uid: u32) -> Result<Turn, Denied> {
        self.grants.turns.next(uid).await.ok_or_else(|| away("the agent is stopping"))
    }

    /// Asks for what is wanted, and has `hold` take up what was granted: in the same moment in which it is
    /// seen that nothing of it was taken back on its way. `hold` must not block.
    pub(in crate::agent) async fn grant<T>(
        &self,
        wanted: &Wanted,
        turn: Turn,
        hold: impl FnOnce(&mut Holdings, Held<Granted>) -> T + Send,
    ) -> Result<T, Ungiven> {
        let unusable =
            |e: &dyn std::fmt::Display| Denied::Unavailable(Refusal::new(codes::ISSUER_REQUEST, e.to_string()));
        let id = exact_id(&wanted.workload).map_err(|e| unusable(&e))?;
        let key = wanted.x509.then(|| PendingSvid::new(id)).transpose().map_err(|e| unusable(&e))?;
        let csr = key.as_ref().map(PendingSvid::request).transpose().map_err(Denied::Unavailable)?;
        let asked = self.asks();
        let (answer, asked_at, lease_end) = self.ask(wanted, csr).await?;
        drop(turn);
        self.reachable(true);
        match answer.refusal {
            None => {}
            // It may have room later.
            Some(refusal) if refusal.code == codes::PROTOCOL_BUSY => return Err(Denied::Unavailable(refusal).into()),
            Some(refusal) => return Err(Denied::NoIdentity(refusal).into()),
        }
        let issued = |why| Ungiven { why, there: There::Issued };
        let until = asked_at.after(Duration::from_secs(answer.term_seconds)).min(lease_end);
        let granted = self.accepted(answer, wanted, key).await.map_err(issued)?;
        let mut holdings = self.holdings();
        let ids: Vec<&str> = granted.credentials().map(|(id, _)| id).collect();
        if let Some(why) = holdings.taken_since(asked, &wanted.workload, &ids) {
            return Err(issued(why));
        }
        if let Some(token) = &granted.token {
            let task = wanted.task.as_ref().map(|task| task.id.as_str());
            let now = BootInstant::now();
            holdings.issued.note(&wanted.workload, &token.jti, task, granted.shown_until, now);
        }
        Ok(hold(&mut holdings, Held::new(granted, asked_at, until)))
    }

    /// Asks under the present lease, and says when and until when that is. A lease that is renewed on its
    /// way is waited for.
    async fn ask(
        &self,
        wanted: &Wanted,
        csr: Option<Vec<u8>>,
    ) -> Result<(GrantAnswer, BootInstant, BootInstant), Ungiven> {
        let client = self.grants.client.get().and_then(|client| client.borrow().clone());
        let client = client.ok_or_else(|| away("not enrolled yet"))?;
        let csr = csr.map(serde_bytes::ByteBuf::from);
        let since = BootInstant::now();
        loop {
            let Some((sequence, lease_end)) = self.sequence() else { return Err(self.holdings().closed().into()) };
            let request = GrantRequest {
                request_id: random().map_err(|e| away(&e.to_string()))?,
                lease_sequence: sequence,
                workload: wanted.workload.clone(),
                caller: wanted.caller.clone(),
                task: wanted.task.clone(),
                csr: csr.clone(),
                audience: wanted.audience.clone(),
                destination: wanted.destination.clone(),
                details: wanted.details.clone(),
            };
            let asked_at = BootInstant::now();
            let asking = client.leased(sequence).grant(&request);
            let answer = match &wanted.task {
                // Waited for to its end, which is the client's own deadline: whether the task began is known then.
                Some(_) => asking.await,
                None => tokio::time::timeout(PATIENCE, asking).await.unwrap_or_else(|_| {
                    let refusal = Refusal::new(codes::PROTOCOL_UNREACHABLE, "it doesn't answer in time");
                    Err(Ungranted { failure: Failure::Unreachable(refusal), arrived: true })
                }),
            };
            let Ungranted { failure, arrived } = match answer {
                Ok(answer) => return Ok((answer, asked_at, lease_end)),
                Err(ungranted) => ungranted,
            };
            let there = if arrived { There::Unknown } else { There::Nothing };
            if !lease_is_over(&failure) {
                return Err(Ungiven { why: ungranted(&failure), there });
            }
            // Another lease was granted meanwhile, or only an attestation brings one.
            self.grown.notify_one();
            let other = || self.sequence().is_some_and(|(present, _)| present != sequence);
            if !self.comes(since, other).await {
                return Err(Ungiven { why: ungranted(&failure), there });
            }
        }
    }

    /// What an answer holds, if it is what was asked for and whoever has our bundle can verify it.
    async fn accepted(
        &self,
        answer: GrantAnswer,
        wanted: &Wanted,
        key: Option<PendingSvid>,
    ) -> Result<Granted, Denied> {
        let chain = answer.chain.into_iter().map(serde_bytes::ByteBuf::into_vec).collect();
        let svid = key.map(|key| key.complete(chain)).transpose().map_err(Denied::Unavailable)?;
        let svid = svid.map(|svid| X509Svid { decision: answer.decision.clone(), ..svid });
        let token = (!wanted.audience.is_empty()).then(|| Zeroizing::new(answer.token));
        let since = BootInstant::now();
        let read = loop {
            let rotated = match self.read(svid.as_ref(), token.as_deref().map(String::as_str), wanted)? {
                Ok(read) => break read,
                // Signed by what was rotated in since the last attestation: the next one brings it.
                Err(refusal) if matches!(refusal.code, codes::TOKEN_SIGNATURE | codes::ISSUER_BUNDLE) => refusal,
                Err(refusal) => return Err(Denied::Unavailable(refusal)),
            };
            self.grown.notify_one();
            let verifies = || {
                let read = self.read(svid.as_ref(), token.as_deref().map(String::as_str), wanted);
                !matches!(read, Ok(Err(_)))
            };
            if !self.comes(since, verifies).await {
                return Err(Denied::Unavailable(Refusal { code: codes::ISSUER_BUNDLE, ..rotated }));
            }
        };
        let now = BootInstant::now();
        let (token, left) = match token.zip(read) {
            None => (None, Duration::ZERO),
            Some((token, (read, left))) => {
                let decision = read.claims().get("decision").and_then(|value| value.as_str());
                let decision = decision.unwrap_or(&answer.decision).to_owned();
                (Some(JwtSvid { id: read.id().clone(), token, jti: read.jti().to_owned(), decision }), left)
            }
        };
        let shown_until = now.after(left + BEYOND);
        Ok(Granted { decision: answer.decision, details: answer.details, svid, token, shown_until })
    }

    /// Reads what was issued for `wanted`: the token with its time left, if there is one.
    fn read(
        &self,
        svid: Option<&X509Svid>,
        token: Option<&str>,
        wanted: &Wanted,
    ) -> Result<Result<Option<(Verified, Duration)>, Refusal>, Denied> {
        if svid.is_some_and(|svid| !svid.leads_to(&self.bundle())) {
            let refusal = Refusal::new(codes::ISSUER_BUNDLE, "its CA isn't in the bundle");
            return Ok(Err(refusal.at(wanted.workload.clone())));
        }
        let Some(token) = token else { return Ok(Ok(None)) };
        let audience = wanted.audience.first().map_or("", String::as_str);
        let (read, now) = match self.verified(token, audience)? {
            Ok(read) => read,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let audiences: BTreeSet<&String> = wanted.audience.iter().collect();
        let ours = read.id().to_string() == wanted.workload
            && read.audience().iter().collect::<BTreeSet<_>>() == audiences
            && read.task() == wanted.task.as_ref().map(|task| task.id.as_str());
        if !ours {
            let refusal = Refusal::new(codes::TOKEN_MALFORMED, "the token isn't the one asked for");
            return Ok(Err(refusal.at(wanted.workload.clone())));
        }
        let left = Duration::from_secs(read.expires().0.saturating_sub(now.0));
        Ok(Ok(Some((read, left))))
    }

    /// Reads a token by the bundle and the time of the present lease, and says what time that is. It is the
    /// control plane's, counted on from the lease: a node's own wall clock may say anything.
    pub(super) fn verified(
        &self,
        token: &str,
        audience: &str,
    ) -> Result<Result<(Verified, WallTime), Refusal>, Denied> {
        let holdings = self.holdings();
        let Some(lease) = holdings.gate.lease() else { return Err(holdings.closed()) };
        let claims = lease.claims();
        // Rounded up: rather a second early than a second late.
        let passed = BootInstant::now().since(claims.requested_at) + Duration::from_millis(999);
        let now: WallTime = claims.issued_at.after(passed);
        let read = Verified::read(token, audience, &holdings.token_keys, &self.trust_domain, now);
        Ok(read.map(|read| (read, now)))
    }

    /// Waits until something is so that an attestation brings, at most [`RENEWAL`] from `since`.
    async fn comes(&self, since: BootInstant, so: impl Fn() -> bool) -> bool {
        // Followed for no longer than this: whoever takes something back waits for those that follow.
        let mut changes = self.changes.follow();
        loop {
            changes.dealt_with();
            if so() {
                return true;
            }
            let left = RENEWAL.saturating_sub(BootInstant::now().since(since));
            if left.is_zero() || tokio::time::timeout(left, changes.changed()).await.is_err() {
                return so();
            }
        }
    }
}

/// Whether the control plane says that the lease isn't the present one any more.
fn lease_is_over(failure: &Failure) -> bool {
    let over = matches!(failure.refusal().code, codes::ISSUER_NO_LEASE | codes::PROTOCOL_EPOCH);
    over && matches!(failure, Failure::Refused(_))
}

/// What it means for a process that the control plane gave no answer to its request. What is decided stands
/// in an answer; a request that is refused as a whole is refused for the node, or for its form.
fn ungranted(failure: &Failure) -> Denied {
    let refusal = failure.refusal().clone();
    let final_ = matches!(
        refusal.code,
        codes::ENROL_REVOKED | codes::GATE_REVOKED | codes::PROTOCOL_MALFORMED | codes::PROTOCOL_TOO_LARGE
    );
    match failure {
        Failure::Refused(_) if final_ => Denied::NoIdentity(refusal),
        _ => Denied::Unavailable(refusal),
    }
}

fn away(found: &str) -> Denied {
    Denied::Unavailable(Refusal::new(codes::PROTOCOL_UNREACHABLE, found))
}

#[cfg(test)]
impl Granted {
    /// A token by this `jti` and nothing else, for tests of who holds it.
    pub(in crate::agent) fn for_test(jti: &str) -> Self {
        let id = exact_id("spiffe://example.org/web").unwrap();
        let (jti, decision) = (jti.to_owned(), "d".to_owned());
        let token = JwtSvid { id, token: Zeroizing::new(String::new()), jti, decision: decision.clone() };
        let shown_until = BootInstant::from_nanos(0);
        Self { decision, details: Vec::new(), svid: None, token: Some(token), shown_until }
    }
}

#[cfg(test)]
mod tests {
    use p256::ecdsa::SigningKey;

    use super::super::judging::tests::{keeper, lease, reading};
    use super::*;
    use crate::credentials::token::{Claims, sign, thumbprint};
    use crate::protocol::{Bundle, JwtKey};

    const WEB: &str = "spiffe://example.org/web";

    fn task(id: &str) -> TaskStatement {
        let (id, intent, purpose) = (id.to_owned(), String::new(), String::new());
        TaskStatement { id, run: [1; 16], number: 1, intent, purpose, heartbeat_seconds: 0, term_seconds: 0 }
    }

    fn wanted(task_id: Option<&str>) -> Wanted {
        Wanted {
            workload: WEB.to_owned(),
            caller: CallerClaims::default(),
            task: task_id.map(task),
            x509: false,
            audience: vec!["ledger".to_owned()],
            destination: None,
            details: Vec::new(),
        }
    }

    fn claims(task_id: Option<&str>) -> Claims {
        Claims {
            sub: WEB.to_owned(),
            aud: vec!["ledger".to_owned()],
            exp: 600,
            iat: 0,
            jti: "signed".to_owned(),
            decision: "d".to_owned(),
            purpose: "tests".to_owned(),
            task_id: task_id.map(str::to_owned),
            intent: None,
            authorization_details: Vec::new(),
        }
    }

    #[tokio::test]
    async fn a_token_is_believed_for_what_it_says_also_one_of_a_task() {
        let keeper = keeper();
        let start = BootInstant::now();
        let at = |ms| start.after(Duration::from_millis(ms));
        keeper.open(lease(at(0), 7), &reading(at(0), at(1), 7), None, 0).await.unwrap();
        let key = SigningKey::from_slice(&[7; 32]).unwrap();
        let public = key.verifying_key().to_sec1_point(false).as_bytes().to_vec();
        let kid = thumbprint(&public).unwrap();
        let jwt_keys = vec![JwtKey { kid: kid.clone(), public }];
        let bundle = Bundle { certificates: Vec::new(), jwt_keys, sequence: 1 };
        keeper.provision(Vec::new(), &bundle);
        let answer = |claims: &Claims, key: &SigningKey| GrantAnswer {
            decision: "d".to_owned(),
            chain: Vec::new(),
            token: sign(claims, key, &kid).unwrap(),
            jti: "another one".to_owned(),
            term_seconds: 600,
            details: Vec::new(),
            refusal: None,
        };
        for task in [None, Some("job")] {
            let granted = keeper.accepted(answer(&claims(task), &key), &wanted(task), None).await.unwrap();
            // What is released, recorded and taken back goes by what was signed.
            assert_eq!(granted.credentials().collect::<Vec<_>>(), [("signed", "d")]);
        }
        let text = |text: &str| text.to_owned();
        let wrong = [
            (Some("job"), claims(None)),
            (Some("job"), claims(Some("other"))),
            (None, claims(Some("job"))),
            (Some("job"), Claims { sub: text("spiffe://example.org/db"), ..claims(Some("job")) }),
            (Some("job"), Claims { aud: vec![text("ledger"), text("mail")], ..claims(Some("job")) }),
            (Some("job"), Claims { aud: vec![text("mail")], ..claims(Some("job")) }),
            (Some("job"), Claims { exp: 1, ..claims(Some("job")) }),
        ];
        for (task, claims) in wrong {
            let refused = keeper.accepted(answer(&claims, &key), &wanted(task), None).await;
            assert!(matches!(refused, Err(Denied::Unavailable(_))), "{claims:?}");
        }
        // By a key that no bundle brings in time.
        let other = SigningKey::from_slice(&[8; 32]).unwrap();
        let refused = keeper.accepted(answer(&claims(Some("job")), &other), &wanted(Some("job")), None).await;
        let Err(Denied::Unavailable(refusal)) = refused else { panic!("it was believed") };
        assert_eq!(refusal.code, codes::ISSUER_BUNDLE);
    }
}
