//! Gathers evidence from the TPM, and appraises it as the control plane will before it is sent.

use std::time::Duration;

use aws_lc_rs::hmac;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::quoted;
use super::sources::Sources;
use crate::clock::{BootId, BootInstant};
use crate::codes::{self, Refusal};
use crate::evidence::{NodeClaims, Unsigned, UnverifiedEvidence, certification_binding, quote_binding};
use crate::identity::NodeId;
use crate::protocol::{EnrolAnswer, EnrolChallenge, EnrolRequest, PresentedEk};
use crate::tpm::structures::{Attest, AttestBody, Public};
use crate::tpm::{PcrReading, PcrSelection, ResetCounts, Signed, Tpm, TpmIdentity};
use crate::verify::runtime::Checkpoint;
use crate::verify::{AkPublic, EnrolledKeys, NodeKey, authenticate};

/// How often a quote is taken again because a PCR was extended between the reading and it.
const ATTEMPTS: usize = 8;

/// The AK's certification of the node key and the nonce it is over.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Certification {
    /// The enrolment nonce.
    #[serde(with = "serde_bytes")]
    pub nonce: [u8; 32],
    /// TPMS_ATTEST.
    #[serde(with = "serde_bytes")]
    pub attest: Vec<u8>,
    /// TPMT_SIGNATURE.
    #[serde(with = "serde_bytes")]
    pub signature: Vec<u8>,
}

/// Evidence ready to be sent, with what the agent must hold the answer against.
#[derive(Debug)]
pub struct Gathered {
    /// COSE_Sign1.
    pub evidence: Vec<u8>,
    /// When the request began: a lease counts from here.
    pub requested_at: BootInstant,
    /// The reading in the evidence.
    pub reading: PcrReading,
    /// The counts in the quote.
    pub counts: ResetCounts,
}

/// What evidence says beside the quote.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Stated {
    /// The digest of each log sent so far, which the quote is bound to.
    pub log_digests: Vec<[u8; 32]>,
    /// Withdrawals that were applied and not proven yet.
    pub withdrawn: Vec<u64>,
}

/// IMA's list, and a place in it that PCR 10 has passed.
#[derive(Debug)]
pub struct List<'a> {
    /// The list.
    pub sources: &'a Sources,
    /// The place; `None` is its start.
    pub from: Option<Checkpoint>,
}

/// One TPM's keys, read once, and what goes into evidence with them.
#[derive(Debug)]
pub struct Attester {
    tpm: Tpm,
    identity: TpmIdentity,
    /// The attestation key.
    pub ak: AkPublic,
    /// The node key.
    pub node_key: NodeKey,
    /// This boot.
    pub boot_id: BootId,
    agent_digest: [u8; 32],
}

impl Attester {
    /// Reads the TPM's identity.
    ///
    /// # Errors
    /// The TPM's, or those of keys that the control plane would refuse too.
    pub async fn new(tpm: Tpm) -> Result<Self, Refusal> {
        let identity = tpm.identity().await?;
        let ak = AkPublic::parse(&identity.ak_public)?;
        let node_key = NodeKey::parse(&identity.node_key_public)?;
        let boot_id =
            BootId::read().map_err(|e| Refusal::new(codes::EVIDENCE_MALFORMED, e.to_string()).at("the boot id"))?;
        let agent_digest = own_digest();
        Ok(Self { tpm, identity, ak, node_key, boot_id, agent_digest })
    }

    /// What this TPM is.
    pub const fn identity(&self) -> &TpmIdentity {
        &self.identity
    }

    /// The TPM name of the EK in use: what the sessions of every reading are salted to.
    ///
    /// # Errors
    /// When its public area can't be read.
    pub fn ek_name(&self) -> Result<Vec<u8>, Refusal> {
        Ok(Public::parse(&self.identity.ek.public)?.name())
    }

    /// The public keys, for the first step of enrolment.
    pub fn presentation(&self) -> EnrolRequest {
        let presented =
            |ek: &crate::tpm::EkPublic| PresentedEk { public: ek.public.clone(), certificate: ek.certificate.clone() };
        EnrolRequest {
            ek: presented(&self.identity.ek),
            aliases: self.identity.aliases.iter().map(presented).collect(),
            chain: self.identity.chain.iter().cloned().map(Into::into).collect(),
            ak_public: self.identity.ak_public.clone(),
            node_key_public: self.identity.node_key_public.clone(),
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    /// Answers an enrolment's challenge: activates the credential, has the node key certified and
    /// quotes, all over the challenge's nonce.
    ///
    /// # Errors
    /// The TPM's, or those of our own appraisal.
    pub async fn answer(&self, challenge: &EnrolChallenge) -> Result<(EnrolAnswer, Certification), Refusal> {
        let secret = self.tpm.activate(challenge.credential.clone(), challenge.encrypted_secret.clone()).await?;
        let binding = certification_binding(&challenge.nonce, &self.node_key.name());
        let Signed { attest, signature } = self.tpm.certify_node_key(binding).await?;
        let certification = Certification { nonce: challenge.nonce, attest, signature };
        let gathered =
            self.gather(challenge.nonce, None, challenge.selection, &certification, Stated::default(), None).await?;
        let mut message = b"leasehold-enrol-v1\0".to_vec();
        message.extend_from_slice(&gathered.evidence);
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &secret), &message);
        let proof = <[u8; 32]>::try_from(tag.as_ref())
            .map_err(|_| Refusal::new(codes::ENROL_ACTIVATION, "BUG: HMAC-SHA-256 is not 32 bytes"))?;
        Ok((EnrolAnswer { enrolment: challenge.enrolment, proof, evidence: gathered.evidence }, certification))
    }

    /// Evidence over `nonce`: one reading, one quote bound to the logs of these digests, one signature.
    ///
    /// # Errors
    /// The TPM's, or those of our own appraisal.
    pub async fn gather(
        &self,
        nonce: [u8; 32],
        node: Option<NodeId>,
        selection: PcrSelection,
        certification: &Certification,
        stated: Stated,
        list: Option<List<'_>>,
    ) -> Result<Gathered, Refusal> {
        // First of all: whatever takes time below shortens the lease instead of stretching it.
        let requested_at = BootInstant::now();
        let node_key_name = self.node_key.name();
        let binding = quote_binding(&nonce, &node_key_name, &self.boot_id, &stated.log_digests);
        let (reading, quote, counts) = self.snapshot(selection, binding, list).await?;
        let unsigned = Unsigned::new(
            &NodeClaims {
                nonce,
                node,
                boot_id: self.boot_id,
                requested_at,
                quote,
                pcrs: reading.values.clone(),
                node_key_certification: Signed {
                    attest: certification.attest.clone(),
                    signature: certification.signature.clone(),
                },
                certification_nonce: certification.nonce,
                agent_version: env!("CARGO_PKG_VERSION").to_owned(),
                agent_digest: self.agent_digest,
                log_digests: stated.log_digests,
                withdrawn: stated.withdrawn,
            },
            &node_key_name,
        )?;
        let signature = self.tpm.sign(unsigned.digest()).await?;
        let evidence = unsigned.finish(signature);
        self.appraise(&evidence, node, &nonce, selection, certification)?;
        Ok(Gathered { evidence, requested_at, reading, counts })
    }

    /// A reading and a quote of the same moment: taken again while an extend comes between. Where only PCR
    /// 10 went on, IMA's list says which of its values was quoted.
    async fn snapshot(
        &self,
        selection: PcrSelection,
        binding: [u8; 32],
        list: Option<List<'_>>,
    ) -> Result<(PcrReading, Signed, ResetCounts), Refusal> {
        let mut moved = 0;
        while moved < ATTEMPTS {
            let reading = self.tpm.read_pcrs(selection).await?;
            let quote = self.tpm.quote(selection, binding).await?;
            let attest = Attest::parse(&quote.attest)?;
            let AttestBody::Quote { pcr_digest, .. } = &attest.body else {
                return Err(Refusal::new(codes::VERIFY_QUOTE_TYPE, "the TPM answered TPM2_Quote with something else"));
            };
            if *pcr_digest == reading.values.digest() {
                return Ok((reading, quote, attest.clock_info.counts));
            }
            moved += 1;
            // From its start, a long list takes a second: that is left for the last.
            let start = Checkpoint::start(selection.bank());
            let from = list.as_ref().and_then(|list| match &list.from {
                Some(from) => Some((list.sources, from)),
                None => (moved == ATTEMPTS).then_some((list.sources, &start)),
            });
            if let Some((sources, from)) = from {
                let find = || quoted::values(sources, from, &reading.values, pcr_digest);
                if let Some(values) = tokio::task::block_in_place(find)? {
                    // Its values are those of the quote, so it lasted until then.
                    let reading = PcrReading { values, finished_at: BootInstant::now(), ..reading };
                    return Ok((reading, quote, attest.clock_info.counts));
                }
            }
        }
        Err(Refusal::new(codes::VERIFY_PCR_DIGEST, format!("the PCRs changed between reading and quote {moved} times"))
            .expected("a moment of rest"))
    }

    /// The control plane's own checks, so that a fault of this node is found and named here.
    fn appraise(
        &self,
        evidence: &[u8],
        node: Option<NodeId>,
        nonce: &[u8; 32],
        selection: PcrSelection,
        certification: &Certification,
    ) -> Result<(), Refusal> {
        // Evidence of a node travels under the certificate of its node key; only enrolment has none.
        let channel = node.map(|_| self.node_key.spki_der());
        let keys = EnrolledKeys {
            node,
            ak: self.ak.clone(),
            node_key: self.node_key.clone(),
            certification_nonce: certification.nonce,
        };
        authenticate(UnverifiedEvidence::decode(evidence)?, &keys, channel)?.fresh(
            nonce,
            selection,
            Duration::ZERO,
            None,
        )?;
        Ok(())
    }
}

/// SHA-256 of the running executable; zeros if it can't be read, which policy may refuse.
fn own_digest() -> [u8; 32] {
    let mut hash = Sha256::new();
    match std::fs::File::open("/proc/self/exe").and_then(|mut exe| std::io::copy(&mut exe, &mut HashWriter(&mut hash)))
    {
        Ok(_) => hash.finalize().into(),
        Err(error) => {
            tracing::warn!(%error, "the agent's own executable can't be read; its digest is reported as zeros");
            [0; 32]
        }
    }
}

struct HashWriter<'a>(&'a mut Sha256);

impl std::io::Write for HashWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
