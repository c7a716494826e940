//! Asks the control plane for a task's credentials.

use std::time::Duration;

use super::Shared;
use crate::clock::BootInstant;
use crate::codes::{self, Refusal};
use crate::credentials::{Held, PendingSvid, X509Svid};
use crate::delivery::workload_api::Denied;
use crate::identity::SpiffeId;
use crate::protocol::{AuthorizationDetail, CallerClaims, Failure, GrantAnswer, GrantRequest, TaskStatement};
use crate::secret::{Zeroizing, random};

/// What a task asks for, at its beginning and at each renewal.
#[derive(Clone, Debug)]
pub(super) struct Asking {
    /// The workload's SPIFFE ID.
    pub(super) workload: String,
    /// In the caller's own words.
    pub(super) statement: TaskStatement,
    /// Whom a token is for.
    pub(super) audience: Vec<String>,
    /// Towards what.
    pub(super) destination: Option<String>,
    /// What it may need to do.
    pub(super) details: Vec<AuthorizationDetail>,
    /// Whether an X.509-SVID is wanted.
    pub(super) x509: bool,
}

/// What was granted. Its secrets are wiped when it is dropped.
#[derive(Clone)]
pub(super) struct Granted {
    /// The decision's id.
    pub(super) decision: String,
    /// Of what was asked for, what it may do.
    pub(super) details: Vec<AuthorizationDetail>,
    /// The X.509-SVID, if one was asked for.
    pub(super) svid: Option<X509Svid>,
    /// The JWT-SVID, if one was asked for.
    pub(super) token: Option<Zeroizing<String>>,
    /// The ids of the two, as the ledger knows them.
    pub(super) credentials: Vec<String>,
}

impl Shared {
    /// Asks for what `asking` says, for a process that is as `caller` says.
    pub(super) async fn grant(&self, asking: &Asking, caller: CallerClaims) -> Result<Held<Granted>, Denied> {
        let starting = || Denied::Unavailable(Refusal::new(codes::GATE_STARTING, "not enrolled or not leased yet"));
        let client = self.client.borrow().clone().ok_or_else(starting)?;
        let (sequence, lease_end) = self.keeper.sequence().ok_or_else(starting)?;
        let unusable =
            |e: &dyn std::fmt::Display| Denied::Unavailable(Refusal::new(codes::ISSUER_REQUEST, e.to_string()));
        let id = SpiffeId::new(&asking.workload).map_err(|e| unusable(&e))?;
        let key = asking.x509.then(|| PendingSvid::new(id)).transpose().map_err(|e| unusable(&e))?;
        let csr = key.as_ref().map(PendingSvid::request).transpose().map_err(Denied::Unavailable)?;
        let request = GrantRequest {
            request_id: random().map_err(|e| unusable(&e))?,
            lease_sequence: sequence,
            workload: asking.workload.clone(),
            caller,
            task: Some(asking.statement.clone()),
            csr: csr.map(serde_bytes::ByteBuf::from),
            audience: asking.audience.clone(),
            destination: asking.destination.clone(),
            details: asking.details.clone(),
        };
        let (mark, asked_at) = (self.keeper.mark(), BootInstant::now());
        let answer = client.leased(sequence).grant(&request).await.map_err(denied)?;
        self.keeper.reachable(true);
        let until = asked_at.after(Duration::from_secs(answer.term_seconds)).min(lease_end);
        let granted = self.taken(asking, answer, key)?;
        // Taken back while it was on its way. A task's own withdrawal is noted with the task.
        let crossed = |id: &String| self.keeper.crossed(mark, &asking.workload, Some(id), None);
        match granted.credentials.iter().find_map(crossed) {
            Some(refusal) => Err(Denied::NoIdentity(refusal)),
            None => Ok(Held::new(granted, asked_at, until)),
        }
    }

    /// What an answer holds, if it holds all that was asked for.
    fn taken(&self, asking: &Asking, answer: GrantAnswer, key: Option<PendingSvid>) -> Result<Granted, Denied> {
        if let Some(refusal) = answer.refusal {
            return Err(Denied::NoIdentity(refusal));
        }
        let chain = answer.chain.into_iter().map(serde_bytes::ByteBuf::into_vec).collect();
        let svid = key.map(|key| key.complete(chain)).transpose().map_err(Denied::Unavailable)?;
        if svid.as_ref().is_some_and(|svid| !svid.leads_to(&self.keeper.bundle())) {
            // The CA was rotated since the last attestation: the next one brings it.
            let refusal = Refusal::new(codes::ISSUER_BUNDLE, "its CA isn't in the bundle").at(asking.workload.clone());
            return Err(Denied::Unavailable(refusal));
        }
        let token = (!asking.audience.is_empty()).then(|| Zeroizing::new(answer.token));
        if token.as_ref().is_some_and(|token| token.is_empty()) {
            return Err(Denied::Unavailable(Refusal::new(codes::DELIVERY_INCOMPLETE, "no token was issued")));
        }
        let serial = svid.as_ref().and_then(serial);
        let jti = token.is_some().then_some(answer.jti);
        let credentials = serial.into_iter().chain(jti).collect();
        Ok(Granted { decision: answer.decision, details: answer.details, svid, token, credentials })
    }
}

/// A refusal that an attestation or another try changes isn't one of the task.
fn denied(failure: Failure) -> Denied {
    match failure {
        Failure::Unreachable(refusal) => Denied::Unavailable(refusal),
        Failure::Refused(refused) => match refused.refusal.code {
            codes::ISSUER_NO_LEASE
            | codes::PROTOCOL_EPOCH
            | codes::PROTOCOL_BUSY
            | codes::PROTOCOL_REPLAYED
            | codes::PROTOCOL_CLIENT_CERTIFICATE => Denied::Unavailable(refused.refusal),
            _ => Denied::NoIdentity(refused.refusal),
        },
    }
}

/// The leaf's serial number as the ledger has it.
fn serial(svid: &X509Svid) -> Option<String> {
    let leaf = <x509_cert::Certificate as der::Decode>::from_der(svid.chain.first()?).ok()?;
    Some(hex::encode(leaf.tbs_certificate().serial_number().as_bytes()))
}
