//! JWT-SVIDs and grants just in time: keys, issue, and what a token's use tells.

pub mod bundle;
pub mod grants;
pub mod keys;
pub mod uses;

use std::time::Duration;

use super::ca::Issuing;
use super::credentials::ledger::{self, Credential, Kind};
use super::leases::LeaseRow;
use super::registry::nodes::Node;
use super::registry::workloads::Workload;
use super::store::Transaction;
use crate::clock::WallTime;
use crate::codes::{self, Refusal};
use crate::credentials::token::{self, Claims};
use crate::protocol::{AuthorizationDetail, TaskStatement};
use crate::secret;

/// The longest lifetime of a credential that is asked for just in time: 15 minutes, whatever policy says.
pub const LONGEST: Duration = Duration::from_secs(900);

/// What a token is to say.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// The node it goes to.
    pub node: &'a Node,
    /// The lease it is issued under.
    pub lease: &'a LeaseRow,
    /// Whose it is.
    pub workload: &'a Workload,
    /// The task it is for.
    pub task: Option<&'a TaskStatement>,
    /// Whom it is for.
    pub audience: &'a [String],
    /// What was granted.
    pub details: &'a [AuthorizationDetail],
    /// The decision that grants it.
    pub decision: &'a str,
    /// How long it holds.
    pub term: Duration,
}

/// A token, its `jti`, and its end.
#[derive(Clone, Debug)]
pub struct Issued {
    /// Compact form. A secret: who has it may use it.
    pub token: String,
    /// Its id.
    pub jti: String,
}

/// Issues a JWT-SVID and enters it in the ledger.
///
/// # Errors
/// [`codes::TOKEN_MALFORMED`] when it would be too large, [`codes::STORE_FAILED`].
pub fn issue(tx: &Transaction<'_>, issuing: &Issuing, wanted: &Wanted<'_>, now: WallTime) -> Result<Issued, Refusal> {
    let jti = hex::encode(secret::random::<16>().map_err(|e| Refusal::new(codes::STORE_FAILED, e.to_string()))?);
    let not_after = now.after(wanted.term);
    let stated = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
    let claims = Claims {
        sub: wanted.workload.id.to_string(),
        aud: wanted.audience.to_vec(),
        exp: not_after.0,
        iat: now.0,
        jti: jti.clone(),
        decision: wanted.decision.to_owned(),
        // A task's own purpose may be narrower; that it isn't wider is what the decision was about.
        purpose: wanted.task.and_then(|task| stated(&task.purpose)).unwrap_or_else(|| wanted.workload.purpose.clone()),
        task_id: wanted.task.map(|task| task.id.clone()),
        intent: wanted.task.and_then(|task| stated(&task.intent)),
        authorization_details: wanted.details.to_vec(),
    };
    let signer = &issuing.signer;
    let token = token::sign(&claims, &signer.key, &signer.kid)?;
    keys::used(tx, signer, not_after)?;
    let credential = Credential {
        id: jti.clone(),
        kind: Kind::Jwt,
        decision: wanted.decision.to_owned(),
        node: wanted.node.id,
        workload: claims.sub,
        task: claims.task_id,
        audience: claims.aud,
        signer: signer.id,
        lease_sequence: wanted.lease.sequence,
        issued_at: now,
        not_after,
    };
    let detail = serde_json::json!({
        "kind": "jwt", "owner": wanted.workload.owner, "purpose": claims.purpose, "audience": credential.audience,
        "details": claims.authorization_details, "until": not_after.to_string(),
    });
    ledger::issued(tx, &credential, detail)?;
    Ok(Issued { token, jti })
}
