//! `POST /v1/grants`: credentials for one process that waits for them, each the answer to a question.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_bytes::ByteBuf;

use super::{LONGEST, Wanted};
use crate::clock::WallTime;
use crate::codes::{self, Refusal};
use crate::control_plane::audit::{self, Subject};
use crate::control_plane::ca::Issuing;
use crate::control_plane::credentials::{self, denied, ledger, registered};
use crate::control_plane::issuer;
use crate::control_plane::leases::{self, LeaseRow};
use crate::control_plane::policy::{self, Action, Decision, Grant, Question};
use crate::control_plane::registry::nodes::Node;
use crate::control_plane::registry::workloads::Workload;
use crate::control_plane::server::Shared;
use crate::control_plane::store::{Transaction, attempt};
use crate::control_plane::tasks;
use crate::protocol::{AuthorizationDetail, GrantAnswer, GrantRequest, TaskStatement};

/// The most audiences of a token.
const AUDIENCES: usize = 16;
/// The most details of a request, and the most actions or locations of one.
const DETAILS: usize = 32;
/// The most selectors that a caller's claims may name.
const SELECTORS: usize = 128;
/// The longest of any text in a request, in bytes: a SPIFFE ID may be an audience (SPIFFE ID, 2.3).
const TEXT: usize = 2048;

/// Answers a node's request: everything that was asked for, or nothing.
///
/// # Errors
/// [`codes::ISSUER_NO_LEASE`], [`codes::PROTOCOL_BUSY`] and [`codes::PROTOCOL_MALFORMED`] for the request as a whole;
/// what is decided, or wrong with what is asked for, stands in the answer.
pub fn grant(
    tx: &Transaction<'_>,
    shared: &Shared,
    node: &Node,
    request: &GrantRequest,
    now: WallTime,
) -> Result<GrantAnswer, Refusal> {
    check(request)?;
    let left = leases::live(tx, node.id, request.lease_sequence, now)?;
    ledger::room(tx, node.id, true, now)?;
    let lease = leases::find(tx, node.id)?
        .ok_or_else(|| Refusal::new(codes::ISSUER_NO_LEASE, "the node has attested to nothing yet"))?;
    match asked(tx, shared, node, &lease, left, request, now) {
        Ok(answer) => Ok(answer),
        Err(refusal) if refusal.code == codes::STORE_FAILED => Err(refusal),
        Err(refusal) => {
            // Refused before there was anything to decide.
            let detail = serde_json::json!({
                "during": "grants", "workload": audit::clipped(&request.workload),
                "found": audit::clipped(&refusal.found), "at": audit::clipped(&refusal.at),
            });
            let decision = policy::fresh_id()?;
            let subject = Subject { node: Some(node.id), decision: Some(&decision), ..Subject::default() };
            audit::about(tx, now, refusal.code.as_str(), &subject, detail)?;
            Ok(refused(decision, refusal))
        }
    }
}

/// What was asked for, once it is known for whom.
#[derive(Clone, Copy)]
struct Asking<'a> {
    node: &'a Node,
    lease: &'a LeaseRow,
    workload: &'a Workload,
    request: &'a GrantRequest,
}

impl<'a> Asking<'a> {
    fn question(&self, action: Action) -> Question<'a> {
        Question {
            action,
            node: self.node,
            lease: self.lease,
            workload: self.workload,
            caller: Some(&self.request.caller),
            task: self.request.task.as_ref(),
            audience: if action == Action::Jwt { &self.request.audience } else { &[] },
            destination: self.request.destination.as_deref(),
            details: &self.request.details,
        }
    }
}

fn asked(
    tx: &Transaction<'_>,
    shared: &Shared,
    node: &Node,
    lease: &LeaseRow,
    left: Duration,
    request: &GrantRequest,
    now: WallTime,
) -> Result<GrantAnswer, Refusal> {
    let workload = registered(tx, &request.workload)?;
    let spki = request.csr.as_deref().map(|csr| issuer::read_request(csr)).transpose()?;
    if spki.as_ref() == Some(&node.node_key_spki) {
        return Err(Refusal::new(codes::ISSUER_REQUEST, "its key is the node's own").at(request.workload.clone()));
    }
    if let Some(task) = &request.task {
        tasks::check(tx, node.id, &workload.id.to_string(), task)?;
    }
    let asking = Asking { node, lease, workload: &workload, request };
    let mut actions = Vec::new();
    actions.extend(spki.is_some().then_some(Action::X509));
    actions.extend((!request.audience.is_empty()).then_some(Action::Jwt));
    // All are decided before anything is issued: half of what a caller needs is nothing.
    let mut decided: Vec<(Action, String, Grant)> = Vec::new();
    for action in actions {
        let question = asking.question(action);
        let Decision { id, outcome } = policy::decide(tx, shared, &question, now)?;
        match outcome {
            Ok(grant) => decided.push((action, id, grant)),
            Err(refusal) => {
                denied(tx, &question, &id, &refusal, now)?;
                return Ok(refused(id, refusal));
            }
        }
    }
    let Some((_, first, _)) = decided.first() else { return Err(nothing_wanted()) };
    let decision = first.clone();
    let term = term(decided.iter().map(|(_, _, grant)| grant.ttl), shared.settings.svid, left, request.task.as_ref())?;
    let details = granted(&request.details, decided.iter().map(|(_, _, grant)| grant.details.as_slice()));
    let granted = Granted { decision, decided, term, details };
    let issued = attempt(tx, || issue(tx, &asking, &shared.authority.current(), spki.as_deref(), &granted, now));
    match issued {
        Err(refusal) if refusal.code != codes::STORE_FAILED => {
            // Permitted, and yet it can't be made: nothing of it stands.
            let action = granted.decided.first().map_or(Action::Jwt, |(action, ..)| *action);
            denied(tx, &asking.question(action), &granted.decision, &refusal, now)?;
            Ok(refused(granted.decision, refusal))
        }
        issued => issued,
    }
}

/// What was decided, and what follows from all of it.
struct Granted {
    /// The first decision's id.
    decision: String,
    decided: Vec<(Action, String, Grant)>,
    term: Duration,
    details: Vec<AuthorizationDetail>,
}

/// Begins the task and issues everything that was granted.
fn issue(
    tx: &Transaction<'_>,
    asking: &Asking<'_>,
    issuing: &Issuing,
    spki: Option<&[u8]>,
    granted: &Granted,
    now: WallTime,
) -> Result<GrantAnswer, Refusal> {
    let Asking { node, lease, workload, request } = *asking;
    let Granted { decision, decided, term, details } = granted;
    if let Some(task) = &request.task {
        tasks::begin(tx, node.id, &workload.id.to_string(), decision, task, now.after(*term), now)?;
    }
    let mut answer = GrantAnswer {
        decision: decision.clone(),
        chain: Vec::new(),
        token: String::new(),
        jti: String::new(),
        term_seconds: term.as_secs(),
        details: details.clone(),
        refusal: None,
    };
    for (action, decision, _) in decided {
        match (action, spki) {
            (Action::X509, Some(spki)) => {
                let question = asking.question(Action::X509);
                let leaf = credentials::issue_leaf(tx, issuing, &question, decision, spki, *term, now)?;
                // The CA may have less time left than all the others.
                answer.term_seconds = answer.term_seconds.min(leaf.not_after.0.saturating_sub(now.0));
                answer.chain = vec![ByteBuf::from(leaf.certificate)];
            }
            _ => {
                let task = request.task.as_ref();
                let wanted =
                    Wanted { node, lease, workload, task, audience: &request.audience, details, decision, term: *term };
                let issued = super::issue(tx, issuing, &wanted, now)?;
                (answer.token, answer.jti) = (issued.token, issued.jti);
            }
        }
    }
    Ok(answer)
}

/// The least of what the decisions, the server, the lease and the caller allow, and never more than
/// [`LONGEST`].
///
/// # Errors
/// [`codes::POLICY_DENIED`] when less than a second is left.
fn term(
    granted: impl Iterator<Item = Duration>,
    server: Duration,
    lease: Duration,
    task: Option<&TaskStatement>,
) -> Result<Duration, Refusal> {
    let asked = task.map(|task| task.term_seconds).filter(|seconds| *seconds > 0).map(Duration::from_secs);
    let least = granted.chain(asked).fold(LONGEST.min(server).min(lease), Duration::min);
    match least.as_secs() {
        0 => Err(Refusal::new(codes::POLICY_DENIED, "less than a second").at("lifetime").expected("at least one")),
        seconds => Ok(Duration::from_secs(seconds)),
    }
}

/// Of what was asked for, what every decision grants: never anything that wasn't asked for.
fn granted<'a>(
    asked: &[AuthorizationDetail],
    granted: impl Iterator<Item = &'a [AuthorizationDetail]>,
) -> Vec<AuthorizationDetail> {
    granted.fold(asked.to_vec(), |left, granted| left.iter().flat_map(|one| narrowed(one, granted)).collect())
}

/// The parts of one detail that lie within those granted.
fn narrowed(asked: &AuthorizationDetail, granted: &[AuthorizationDetail]) -> Vec<AuthorizationDetail> {
    let both = |of: &[String], other: &[String]| of.iter().filter(|one| other.contains(one)).cloned().collect();
    let mut parts: Vec<AuthorizationDetail> = Vec::new();
    for grant in granted.iter().filter(|grant| grant.kind == asked.kind) {
        let part = AuthorizationDetail {
            kind: asked.kind.clone(),
            actions: both(&asked.actions, &grant.actions),
            locations: both(&asked.locations, &grant.locations),
        };
        // A list that was asked for and of which nothing is left grants nothing.
        let empty = (part.actions.is_empty() && !asked.actions.is_empty())
            || (part.locations.is_empty() && !asked.locations.is_empty());
        if !empty && !parts.contains(&part) {
            parts.push(part);
        }
    }
    parts
}

/// Sizes and shapes, before anything is looked up or written.
fn check(request: &GrantRequest) -> Result<(), Refusal> {
    if request.csr.is_none() && request.audience.is_empty() {
        return Err(nothing_wanted());
    }
    let audiences: BTreeSet<&String> = request.audience.iter().collect();
    if audiences.len() != request.audience.len() {
        return Err(malformed("audience", "one of them twice"));
    }
    count("audience", request.audience.len(), AUDIENCES)?;
    count("details", request.details.len(), DETAILS)?;
    count("caller.selectors", request.caller.selectors.len(), SELECTORS)?;
    for audience in &request.audience {
        text("audience", audience, 1)?;
    }
    for selector in &request.caller.selectors {
        // A path may be longer than other texts.
        if selector.len() > 2 * TEXT {
            return Err(malformed("caller.selectors", &format!("{} bytes", selector.len())));
        }
    }
    for detail in &request.details {
        text("details.type", &detail.kind, 1)?;
        count("details.actions", detail.actions.len(), DETAILS)?;
        count("details.locations", detail.locations.len(), DETAILS)?;
        for value in detail.actions.iter().chain(&detail.locations) {
            text("details", value, 1)?;
        }
    }
    if let Some(destination) = &request.destination {
        text("destination", destination, 1)?;
    }
    Ok(())
}

fn count(at: &str, found: usize, most: usize) -> Result<(), Refusal> {
    if found <= most {
        return Ok(());
    }
    Err(malformed(at, &found.to_string()).expected(format!("at most {most}")))
}

fn text(at: &str, value: &str, least: usize) -> Result<(), Refusal> {
    if (least..=TEXT).contains(&value.len()) && !value.chars().any(char::is_control) {
        return Ok(());
    }
    Err(malformed(at, &format!("{} bytes", value.len()))
        .expected(format!("{least} to {TEXT} bytes without control characters")))
}

fn malformed(at: &str, found: &str) -> Refusal {
    Refusal::new(codes::PROTOCOL_MALFORMED, found).at(at)
}

fn nothing_wanted() -> Refusal {
    malformed("csr, audience", "neither").expected("a certificate request, an audience, or both")
}

fn refused(decision: String, refusal: Refusal) -> GrantAnswer {
    GrantAnswer {
        decision,
        chain: Vec::new(),
        token: String::new(),
        jti: String::new(),
        term_seconds: 0,
        details: Vec::new(),
        refusal: Some(refusal),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn task(term_seconds: u64) -> TaskStatement {
        let text = String::new;
        let (run, number, heartbeat_seconds) = ([0; 16], 1, 0);
        TaskStatement { id: text(), run, number, intent: text(), purpose: text(), heartbeat_seconds, term_seconds }
    }

    fn details() -> impl Strategy<Value = Vec<AuthorizationDetail>> {
        let texts = |letters| prop::collection::vec(letters, 0..4);
        let detail = ("[ab]", texts("[xyz]"), texts("[mno]"));
        prop::collection::vec(
            detail.prop_map(|(kind, actions, locations)| AuthorizationDetail { kind, actions, locations }),
            0..4,
        )
    }

    /// Each (kind, action, location) that is permitted, with no action or no location as an empty text.
    fn permitted(details: &[AuthorizationDetail]) -> BTreeSet<(String, String, String)> {
        let each = |texts: &[String]| if texts.is_empty() { vec![String::new()] } else { texts.to_vec() };
        let of = |detail: &AuthorizationDetail| {
            let (kind, actions, locations) = (detail.kind.clone(), each(&detail.actions), each(&detail.locations));
            actions.into_iter().flat_map(move |action| {
                let kind = kind.clone();
                locations.clone().into_iter().map(move |location| (kind.clone(), action.clone(), location))
            })
        };
        details.iter().flat_map(of).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100_000))]

        /// Of whatever is said, the least holds.
        #[test]
        fn no_lifetime_is_longer_than_the_shortest_that_anybody_allows(
            granted in prop::collection::vec(0_u64..100_000_000, 1..3),
            server in 0_u64..100_000_000,
            lease in 0_u64..100_000_000,
            asked in prop::option::of(0_u64..10_000),
        ) {
            let millis = Duration::from_millis;
            let stated = asked.map(task);
            let term = term(granted.iter().copied().map(millis), millis(server), millis(lease), stated.as_ref());
            let least = granted.iter().copied().chain([server, lease]).min().unwrap_or(0) / 1000;
            let least = least.min(LONGEST.as_secs()).min(asked.filter(|asked| *asked > 0).unwrap_or(u64::MAX));
            match term {
                Ok(term) => prop_assert_eq!(term.as_secs(), least),
                Err(refusal) => prop_assert!(least == 0 && refusal.code == codes::POLICY_DENIED),
            }
        }
    }

    proptest! {
        /// What is granted was asked for, and every decision grants it.
        #[test]
        fn nothing_is_granted_that_was_not_asked_for_or_that_one_decision_denies(
            asked in details(), one in details(), two in details(),
        ) {
            let both = permitted(&granted(&asked, [one.as_slice(), two.as_slice()].into_iter()));
            let alone = permitted(&granted(&asked, std::iter::once(one.as_slice())));
            prop_assert!(both.is_subset(&alone));
            prop_assert!(alone.is_subset(&permitted(&asked)));
            prop_assert_eq!(&permitted(&granted(&asked, std::iter::once(asked.as_slice()))), &permitted(&asked));
            prop_assert_eq!(granted(&asked, std::iter::once([].as_slice())), Vec::new());
        }
    }
}
