//! Who is calling: the registered workloads that a process is, or why it is none.

use super::{Keeper, Registered};
use crate::agent::measured::Standing;
use crate::clock::BootInstant;
use crate::codes::{self, Refusal};
use crate::delivery::workload_api::Denied;
use crate::measurements::LogHash;
use crate::protocol::CallerClaims;
use crate::verify::runtime::Checkpoint;
use crate::workload::{Observed, Peer};

/// A process and the workloads it is.
#[derive(Debug)]
pub(in crate::agent) struct Matched {
    /// At least one.
    pub(super) workloads: Vec<Registered>,
    /// What the kernel says of the process.
    pub(super) observed: Observed,
}

impl Matched {
    /// Whether it is this workload, too.
    pub(in crate::agent) fn is(&self, workload: &str) -> bool {
        self.workloads.iter().any(|entry| entry.id == workload)
    }
}

impl Keeper {
    /// The workloads whose selectors all match the peer and that it may be. Where the lease names rules for
    /// what runs, its program must be one that this kernel measured.
    pub(super) async fn matching(&self, peer: &Peer) -> Result<Matched, Denied> {
        let registered = self.holdings().registered.clone();
        let observed = peer.observe(&registered).await.map_err(unlooked)?;
        let workloads = matching(registered, &observed).map_err(|refusal| {
            if refusal.code == codes::WORKLOAD_LOGIN_SESSION {
                tracing::warn!(code = %refusal.code, %peer, "a person's process asks for a workload's identity: {refusal}");
            }
            Denied::NoIdentity(refusal)
        })?;
        self.measured(peer, &observed).await?;
        Ok(Matched { workloads, observed })
    }

    /// The ids of the workloads that the peer is, and what the control plane is told of it.
    pub(in crate::agent) async fn callers(&self, peer: &Peer) -> Result<(Vec<String>, CallerClaims), Denied> {
        let matched = self.matching(peer).await?;
        Ok((matched.workloads.into_iter().map(|entry| entry.id).collect(), matched.observed.claims()))
    }

    /// Whether the peer's program stands in the attested part of IMA's list, if the lease asks for that.
    async fn measured(&self, peer: &Peer, observed: &Observed) -> Result<(), Denied> {
        if self.holdings().gate.lease().is_none_or(|lease| lease.claims().rules.is_none()) {
            return Ok(());
        }
        let refusal = match self.unmeasured(peer, observed).await? {
            None => return Ok(()),
            // A program that began just now is in the list, but nobody has followed it so far.
            Some(_) => {
                self.permit(BootInstant::now()).await?;
                self.unmeasured(peer, observed).await?
            }
        };
        let Some(refusal) = refusal else { return Ok(()) };
        if self.follower.lock().await.only_warns() {
            self.measured.warn(&refusal);
            return Ok(());
        }
        Err(Denied::NoIdentity(refusal))
    }

    /// Why the peer's program doesn't stand in the list as far as it was followed.
    async fn unmeasured(&self, peer: &Peer, observed: &Observed) -> Result<Option<Refusal>, Denied> {
        let path =
            observed.path().map_or("a program without a path here".to_owned(), |path| path.display().to_string());
        let refusal = |found: String| Refusal::new(codes::WORKLOAD_UNMEASURED, found);
        let Some(at) = self.follower.lock().await.at().cloned() else {
            return Ok(Some(refusal(path).expected("a lease that says where in IMA's list it stands")));
        };
        let (mut hash, mut tried) = (LogHash::Sha256, Vec::new());
        loop {
            let digest = match peer.digest(hash).await.map_err(unlooked)? {
                Ok(digest) => digest,
                Err(why) => return Ok(Some(refusal(format!("{path}: {why}")))),
            };
            let algorithms = match self.measured.look(hash, &digest, at.clone()).await {
                Ok(Standing::Entry(_)) => return Ok(None),
                Ok(Standing::Absent(algorithms)) => algorithms,
                Err(refusal) if refusal.code == codes::WORKLOAD_UNMEASURED => return Ok(Some(refusal)),
                // Nothing was found out about the program.
                Err(refusal) => return Err(Denied::Unavailable(refusal)),
            };
            tried.push(hash);
            // The kernel may hash by another algorithm (`ima_hash=`).
            let other = algorithms.into_iter().find(|other| *other > LogHash::Sha1 && !tried.contains(other));
            let Some(other) = other else { return Ok(Some(absent(&path, hash, &digest, &at))) };
            hash = other;
        }
    }
}

fn absent(path: &str, hash: LogHash, digest: &[u8], at: &Checkpoint) -> Refusal {
    Refusal::new(codes::WORKLOAD_UNMEASURED, format!("{path} with {}:{}", hash.as_str(), hex::encode(digest)))
        .at(format!("IMA's list, {} entries", at.entries))
        .expected("an entry with this digest: a policy that measures what is executed (`func=BPRM_CHECK`)")
}

/// What it means that a process couldn't be looked at.
pub(in crate::agent) fn unlooked(refusal: Refusal) -> Denied {
    match refusal.code {
        // Nothing was found out about the caller.
        codes::WORKLOAD_UNSEEN => Denied::Unavailable(refusal),
        _ => Denied::NoIdentity(refusal),
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
