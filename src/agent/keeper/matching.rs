//! Who is calling: the registered workloads that a process is, or why it is none.

use super::{Keeper, Registered};
use crate::codes::{self, Refusal};
use crate::delivery::workload_api::Denied;
use crate::workload::{Observed, Peer};

/// A process and the workloads it is.
#[derive(Debug)]
pub(super) struct Matched {
    /// At least one.
    pub(super) workloads: Vec<Registered>,
    /// What the kernel says of the process.
    pub(super) observed: Observed,
}

impl Keeper {
    /// The workloads whose selectors all match the peer and that it may be.
    pub(super) async fn matching(&self, peer: &Peer) -> Result<Matched, Denied> {
        let registered = self.holdings().registered.clone();
        let observed = peer.observe(&registered).await.map_err(|refusal| match refusal.code {
            // Nothing was found out about the caller.
            codes::WORKLOAD_NO_DESCRIPTORS => Denied::Unavailable(refusal),
            _ => Denied::NoIdentity(refusal),
        })?;
        let workloads = matching(registered, &observed).map_err(|refusal| {
            if refusal.code == codes::WORKLOAD_LOGIN_SESSION {
                tracing::warn!(code = %refusal.code, %peer, "a person's process asks for a workload's identity: {refusal}");
            }
            Denied::NoIdentity(refusal)
        })?;
        Ok(Matched { workloads, observed })
    }
}

fn matching(registered: Vec<Registered>, observed: &Observed) -> Result<Vec<Registered>, Refusal> {
    let (matching, others): (Vec<_>, Vec<_>) =
        registered.into_iter().partition(|entry| observed.matches(&entry.selectors));
    let Some(first) = matching.first() else { return Err(no_match(&others, observed)) };
    let Some(session) = observed.login_session() else { return Ok(matching) };
    let refusal = Refusal::new(codes::WORKLOAD_LOGIN_SESSION, format!("{observed}, {session}"))
        .at(first.id.clone())
        .expected("a process that the system started, or a workload registered with --interactive");
    let open: Vec<_> = matching.into_iter().filter(|entry| entry.interactive).collect();
    if open.is_empty() { Err(refusal) } else { Ok(open) }
}

/// The refusal of a process that matches nothing: of the registration that it comes nearest to, the
/// selector that failed and what was found instead.
fn no_match(registered: &[Registered], observed: &Observed) -> Refusal {
    let refusal = Refusal::new(codes::WORKLOAD_NO_MATCH, observed.to_string());
    // Nearest is where most holds, and of those where fewest fail.
    let nearest = registered.iter().max_by_key(|entry| {
        let failures = observed.failures(&entry.selectors);
        (entry.selectors.len().saturating_sub(failures), std::cmp::Reverse(failures))
    });
    match nearest.and_then(|entry| Some((entry, observed.failing(&entry.selectors)?))) {
        Some((entry, (selector, found))) => Refusal::new(codes::WORKLOAD_NO_MATCH, format!("{observed}: {found}"))
            .at(entry.id.clone())
            .expected(selector.to_string()),
        None => refusal.expected("a registration for this node (`leasehold-server workload list`)"),
    }
}
