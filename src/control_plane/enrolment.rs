//! Enrolment: a TPM proves which keys are in it; grade and admission then decide whether it joins.
//!
//! What the answer is checked against is the one row that the challenge was made from, so that no
//! key can be exchanged between the two steps.

use std::time::Duration;

use aws_lc_rs::hmac;
use serde_bytes::ByteBuf;
use sha2::{Digest, Sha256};

use super::attestation;
use super::audit;
use super::authn;
use super::basis;
use super::nonces::{self, Purpose};
use super::references;
use super::registry::eks::{self, KnownEk};
use super::registry::nodes::{self, Node, State};
use super::registry::ownership::{self, Claim};
use super::registry::workloads;
use super::server::Shared;
use super::store::{OptionalExtension, Transaction, damaged, fixed, params, signed, unsigned};
use crate::clock::WallTime;
use crate::codes::{self, Refusal};
use crate::evidence::UnverifiedEvidence;
use crate::identity::NodeId;
use crate::protocol::{Admitted, EnrolAnswer, EnrolChallenge, EnrolRequest, EnrolResult, PresentedEk};
use crate::secret;
use crate::tpm::structures::Public;
use crate::verify::{AkPublic, EnrolledKeys, Grade, NodeKey, authenticate, credential, endorsement};

/// How long an answer may take, in seconds: slow TPMs need some for an activation and a quote.
const TERM: u64 = 60;
/// Enrolments under way at once; further ones push out the oldest.
const UNDER_WAY: i64 = 10_000;
/// Nodes that may wait for approval at once.
const WAITING: u32 = 1_000;
/// Other EKs, and intermediate certificates, that a TPM may present.
const PRESENTED: usize = 8;
/// Bounds of the pause between two questions of a waiting node, in seconds: somebody who sets up a
/// node is not kept waiting, and a node that nobody looks at for days does not keep asking.
const RETRY: std::ops::RangeInclusive<u64> = 2..=60;
/// What the activation secrets are wrapped for.
const PURPOSE: &str = "activation secret";
/// Bound into the proof, so that the secret serves no other end.
const PROOF_LABEL: &[u8] = b"leasehold-enrol-v1\0";

/// First step: checks the presented keys and makes the challenge that only their TPM can answer.
///
/// # Errors
/// Those of the EK, its certificate, the AK and the node key; [`codes::PROTOCOL_MALFORMED`].
pub fn begin(
    tx: &Transaction<'_>,
    shared: &Shared,
    request: EnrolRequest,
    now: WallTime,
) -> Result<EnrolChallenge, Refusal> {
    within("aliases", request.aliases.len())?;
    within("chain", request.chain.len())?;
    let version = attestation::printable(&request.agent_version)?;
    let ek = Public::parse(&request.ek.public)?;
    let ak = AkPublic::parse(&request.ak_public)?;
    let node_key = NodeKey::parse(&request.node_key_public)?;
    let listed = known(tx, &ek)?.is_some();
    let chain: Vec<Vec<u8>> = request.chain.into_iter().map(ByteBuf::into_vec).collect();
    let certificate = request.ek.certificate.as_deref();
    let grade = endorsement::grade(&ek, certificate, &chain, &shared.settings.roots, listed, now)?;
    let aliases = alias_names(&ek, &request.aliases)?;

    let secret = secret::Zeroizing::new(random::<32>()?);
    // The AK's name is computed here from what will be trusted, never taken from the caller.
    let (credential, encrypted_secret) = credential::make(&ek, &ak.name(), secret.as_slice())?;
    let (enrolment, nonce) = (random::<16>()?, random::<32>()?);
    let row = Row {
        ek_name: ek.name(),
        ek_public: ek.as_bytes().to_vec(),
        ek_certificate: request.ek.certificate,
        aliases,
        ak_public: ak.as_bytes().to_vec(),
        node_key_public: node_key.as_bytes().to_vec(),
        grade: grade.as_str().to_owned(),
        secret: shared.wrapping.wrap(PURPOSE, secret.as_slice())?,
        nonce,
        agent_version: version,
        created_at: now,
        expires_at: now.after(Duration::from_secs(TERM.max(shared.settings.nonce_seconds))),
    };
    row.insert(tx, &enrolment)?;
    Ok(EnrolChallenge { enrolment, nonce, credential, encrypted_secret, selection: shared.settings.selection })
}

/// Second step: the proof that the credential was activated, the evidence of the same keys, then
/// whether this TPM is a node, may become one, or waits.
///
/// # Errors
/// [`codes::ENROL_SESSION`], [`codes::ENROL_ACTIVATION`], the verifier's,
/// [`codes::ENROL_REVOKED`], [`codes::ENROL_ID_TAKEN`], [`codes::ENROL_KEYS_CHANGED`].
pub fn finish(
    tx: &Transaction<'_>,
    shared: &Shared,
    answer: &EnrolAnswer,
    now: WallTime,
) -> Result<EnrolResult, Refusal> {
    // Whatever comes of it, this enrolment is over: there is one try for each challenge.
    let row = Row::take(tx, &answer.enrolment, now)?;
    let secret = shared.wrapping.unwrap(PURPOSE, &row.secret)?;
    let key = hmac::Key::new(hmac::HMAC_SHA256, &secret);
    // Compares in constant time.
    hmac::verify(&key, &[PROOF_LABEL, &answer.evidence].concat(), &answer.proof).map_err(|_| {
        Refusal::new(codes::ENROL_ACTIVATION, "the proof is not by the activated secret")
            .at(format!("EK {}", hex::encode(&row.ek_name)))
    })?;

    let ek = Public::parse(&row.ek_public)?;
    let id = NodeId::derive(&shared.settings.trust_domain, &row.ek_name);
    let keys = EnrolledKeys {
        node: None,
        ak: AkPublic::parse(&row.ak_public)?,
        node_key: NodeKey::parse(&row.node_key_public)?,
        certification_nonce: row.nonce,
    };
    let before = nodes::find(tx, id)?;
    let prior = references::high_water(tx, id, now)?;
    let age = Duration::from_secs(now.0.saturating_sub(row.created_at.0));
    let appraised = authenticate(UnverifiedEvidence::decode(&answer.evidence)?, &keys, None)?
        .fresh(&row.nonce, shared.settings.selection, age, prior.as_ref())?
        .unlogged()
        .appraise(attestation::references_of(tx, &shared.settings.policy, id)?.as_ref());

    let claims = ownership::check_eks(tx, id, &row.ek_name, &row.aliases)?;
    ownership::check_keys(tx, id, &row.ak_public, keys.node_key.spki_der())?;
    if let Some(before) = &before {
        if before.state == State::Revoked {
            return Err(authn::revoked(before));
        }
        let same = before.ak_public == row.ak_public && before.node_key_public == row.node_key_public;
        if before.state == State::Admitted && !same {
            // Both keys are primaries of fixed templates: the TPM of this EK has no others.
            return Err(Refusal::new(codes::ENROL_KEYS_CHANGED, "another attestation or node key")
                .at(format!("node {id}"))
                .expected("the keys it was admitted with"));
        }
    }
    let is_known = before.is_some();
    let known = known(tx, &ek)?;
    let grade = row.grade_now(known.is_some());
    let node = match before {
        // An admitted node is let in again at once, so an expired certificate strands nobody.
        Some(before) if before.state == State::Admitted => {
            Node { grade: grade.to_string(), last_seen_at: now, ..before.enrolled_again(row.nonce) }
        }
        before => {
            let waiting = row.node(id, &keys, grade, before, now);
            let joined = waiting.clone().join(admission(shared, grade, known, &ek, &claims), now);
            // Registrations that can't be told apart on it are for an operator to sort out.
            match workloads::of_moved_node(tx, &joined) {
                Ok(()) => joined,
                Err(refusal) if refusal.code == codes::STORE_FAILED => return Err(refusal),
                Err(_) => waiting,
            }
        }
    };
    if node.state == State::Waiting && !is_known {
        nodes::make_room(tx, WAITING, grade)?;
    }
    nodes::put(tx, &node)?;
    if node.state == State::Admitted {
        ownership::claim_eks(tx, &node)?;
    }
    if node.state == State::Admitted || !is_known {
        audit::claimed_eks(tx, now, &node, &claims)?;
    }
    references::keep_quote(tx, id, &attestation::quote_of(&appraised, grade, "", &answer.evidence, now))?;
    result(tx, shared, &node, now)
}

/// What the node is told, and the record of it.
fn result(tx: &Transaction<'_>, shared: &Shared, node: &Node, now: WallTime) -> Result<EnrolResult, Refusal> {
    let mut result = EnrolResult {
        node: *node.id.as_bytes(),
        grade: node.grade.clone(),
        admitted: None,
        waiting: None,
        retry_after_seconds: 0,
    };
    if node.state == State::Admitted {
        let issuing = shared.authority.current();
        let id = node.id.spiffe_id(&shared.settings.trust_domain);
        let leaf = issuing.issue(tx, &id, &node.node_key_spki, now, shared.settings.own_certificates)?;
        result.admitted = Some(Admitted {
            certificate: issuing.chain(&leaf),
            bundle: issuing.bundle.clone(),
            nonce: nonces::issue(
                tx,
                node.id,
                Purpose::Attest,
                now,
                shared.settings.nonce_seconds,
                basis::selection_of(tx, shared, node).unwrap_or(shared.settings.selection),
            )?,
        });
        let detail = serde_json::json!({
            "grade": node.grade, "by": node.admitted_by, "group": node.group,
            "serial": hex::encode(&leaf.serial), "until": leaf.not_after.to_string(),
        });
        audit::done(tx, now, "node.admitted", Some(node.id), detail)?;
    } else {
        let waiting = Refusal::new(codes::ENROL_WAITING, format!("grade `{}`, and nobody has admitted it", node.grade))
            .at(format!("node {}", node.id))
            .expected(format!("`leasehold-server node approve {}` on the control plane", node.id));
        // Once, not at each of its questions, and not for everything that calls itself a TPM.
        if node.last_refusal.is_none()
            && let Some(suppressed) = shared.strangers.pass(now, waiting.code)
        {
            audit::stranger_refused(tx, now, suppressed, &waiting, Some(node.id), "enrolment")?;
            nodes::seen(tx, node.id, now, Some(&waiting))?;
        }
        result.waiting = Some(waiting);
        let waited = now.0.saturating_sub(node.enrolled_at.0);
        result.retry_after_seconds = (waited / 8).clamp(*RETRY.start(), *RETRY.end());
    }
    Ok(result)
}

/// How a node joins.
struct Admission {
    /// Who or what admits it.
    by: String,
    /// The group it is put in.
    group: Option<String>,
    /// The environment it belongs to.
    environment: String,
}

/// Who or what admits a TPM of this grade, and where to.
fn admission(
    shared: &Shared,
    grade: Grade,
    known: Option<KnownEk>,
    ek: &Public,
    claims: &[Claim],
) -> Option<Admission> {
    if let Some(known) = known {
        return Some(Admission {
            by: format!("named EK `{}`", known.label),
            group: known.group,
            environment: known.environment,
        });
    }
    // A revoked node said that this EK is of its TPM. That is its word alone, so it keeps nobody
    // out; but whether it was true, an operator decides and no rule.
    if claims.iter().any(|claim| claim.revoked) {
        return None;
    }
    let rule = shared.settings.rules.iter().find(|rule| rule.admits(grade, ek))?;
    Some(Admission {
        by: format!("join rule `{}`", rule.name),
        group: rule.group.clone(),
        environment: rule.environment.clone(),
    })
}

fn known(tx: &Transaction<'_>, ek: &Public) -> Result<Option<KnownEk>, Refusal> {
    eks::lookup(tx, &ek.name(), Sha256::digest(ek.spki_der()?).as_slice())
}

/// The TPM names of the other EKs. That they are in the same TPM is the node's word alone: it counts
/// from the moment that somebody admits the node.
fn alias_names(ek: &Public, aliases: &[PresentedEk]) -> Result<Vec<Vec<u8>>, Refusal> {
    let mut names = Vec::new();
    for alias in aliases {
        let alias = Public::parse(&alias.public)?;
        endorsement::check_template(&alias)?;
        if alias.name() != ek.name() {
            names.push(alias.name());
        }
    }
    names.sort();
    names.dedup();
    Ok(names)
}

fn within(what: &str, count: usize) -> Result<(), Refusal> {
    match count <= PRESENTED {
        true => Ok(()),
        false => Err(Refusal::new(codes::PROTOCOL_MALFORMED, format!("{count} entries"))
            .at(what)
            .expected(format!("at most {PRESENTED}"))),
    }
}

fn random<const N: usize>() -> Result<[u8; N], Refusal> {
    secret::random().map_err(|e| Refusal::new(codes::STORE_FAILED, e.to_string()))
}

/// An enrolment under way.
struct Row {
    ek_name: Vec<u8>,
    ek_public: Vec<u8>,
    ek_certificate: Option<Vec<u8>>,
    aliases: Vec<Vec<u8>>,
    ak_public: Vec<u8>,
    node_key_public: Vec<u8>,
    grade: String,
    /// Wrapped.
    secret: Vec<u8>,
    nonce: [u8; 32],
    agent_version: String,
    created_at: WallTime,
    expires_at: WallTime,
}

impl Row {
    fn insert(&self, tx: &Transaction<'_>, id: &[u8; 16]) -> Result<(), Refusal> {
        tx.execute(
            "DELETE FROM enrolments WHERE rowid IN
             (SELECT rowid FROM enrolments ORDER BY rowid DESC LIMIT -1 OFFSET ?1)",
            [UNDER_WAY - 1],
        )?;
        tx.execute(
            "INSERT INTO enrolments(id, ek_name, ek_public, ek_certificate, alias_names, ak_public, node_key_public,
                                    grade, secret, nonce, agent_version, created_at, expires_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)",
            params![
                id,
                self.ek_name,
                self.ek_public,
                self.ek_certificate,
                crate::protocol::encode(&self.aliases)?,
                self.ak_public,
                self.node_key_public,
                self.grade,
                self.secret,
                self.nonce,
                self.agent_version,
                signed(self.created_at.0),
                signed(self.expires_at.0),
            ],
        )?;
        Ok(())
    }

    /// Takes the row out: no second answer finds it.
    fn take(tx: &Transaction<'_>, id: &[u8; 16], now: WallTime) -> Result<Self, Refusal> {
        let refuse = |what: &str| Refusal::new(codes::ENROL_SESSION, what).expected("a new enrolment");
        let row = tx
            .query_row(
                "DELETE FROM enrolments WHERE id = ?1 RETURNING ek_name, ek_public, ek_certificate, alias_names,
                 ak_public, node_key_public, grade, secret, nonce, agent_version, created_at, expires_at",
                [id],
                |row| {
                    Ok((
                        Self {
                            ek_name: row.get(0)?,
                            ek_public: row.get(1)?,
                            ek_certificate: row.get(2)?,
                            aliases: Vec::new(),
                            ak_public: row.get(4)?,
                            node_key_public: row.get(5)?,
                            grade: row.get(6)?,
                            secret: row.get(7)?,
                            nonce: [0; 32],
                            agent_version: row.get(9)?,
                            created_at: WallTime(unsigned(row.get(10)?)),
                            expires_at: WallTime(unsigned(row.get(11)?)),
                        },
                        row.get::<_, Vec<u8>>(3)?,
                        row.get::<_, Vec<u8>>(8)?,
                    ))
                },
            )
            .optional()?;
        let (row, aliases, nonce) = row.ok_or_else(|| refuse("no such enrolment is under way"))?;
        if row.expires_at < now {
            return Err(refuse("the answer came too late"));
        }
        let aliases = crate::protocol::decode(&aliases).map_err(|_| damaged("an enrolment's aliases"))?;
        Ok(Self { aliases, nonce: fixed(&nonce, "an enrolment's nonce")?, ..row })
    }

    /// A certificate's word stands; a listing may have come or gone since the challenge.
    fn grade_now(&self, listed: bool) -> Grade {
        match (self.grade == Grade::Certified.as_str(), listed) {
            (true, _) => Grade::Certified,
            (false, true) => Grade::Listed,
            (false, false) => Grade::Unknown,
        }
    }

    /// The waiting node of this enrolment.
    fn node(self, id: NodeId, keys: &EnrolledKeys, grade: Grade, before: Option<Node>, now: WallTime) -> Node {
        Node {
            id,
            state: State::Waiting,
            grade: grade.to_string(),
            ek_name: self.ek_name,
            ek_public: self.ek_public,
            ek_certificate: self.ek_certificate,
            aliases: self.aliases,
            ak_public: self.ak_public,
            node_key_public: self.node_key_public,
            node_key_spki: keys.node_key.spki_der().to_vec(),
            certification_nonce: self.nonce,
            certification_in_use: None,
            agent_version: self.agent_version,
            group: None,
            environment: before.as_ref().map(|before| before.environment.clone()).unwrap_or_default(),
            admitted_by: None,
            enrolled_at: before.as_ref().map_or(now, |before| before.enrolled_at),
            admitted_at: None,
            revoked_at: None,
            revoked_reason: None,
            last_seen_at: now,
            last_refusal: before.and_then(|before| before.last_refusal),
        }
    }
}

impl Node {
    fn join(self, admission: Option<Admission>, now: WallTime) -> Self {
        match admission {
            Some(Admission { by, group, environment }) => Self {
                state: State::Admitted,
                admitted_by: Some(by),
                group,
                environment: if environment.is_empty() { self.environment } else { environment },
                admitted_at: Some(now),
                last_refusal: None,
                ..self
            },
            None => self,
        }
    }
}
