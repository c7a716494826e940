//! The two keys a node attests with, each of the one template that is accepted.

use der::{Decode, Encode};
use p256::ecdsa::VerifyingKey;
use x509_cert::Certificate;

use crate::codes::{self, Code, Refusal};
use crate::identity::NodeId;
use crate::tpm::structures::{HashAlgorithm, Public, attributes};

/// The AK's attributes: restricted signing, made by this TPM, can't leave it, outside of lockout.
const AK_ATTRIBUTES: u32 = NODE_KEY_ATTRIBUTES | attributes::RESTRICTED;
/// The node key's: the same, unrestricted.
const NODE_KEY_ATTRIBUTES: u32 = attributes::FIXED_TPM
    | attributes::FIXED_PARENT
    | attributes::SENSITIVE_DATA_ORIGIN
    | attributes::USER_WITH_AUTH
    | attributes::NO_DA
    | attributes::SIGN;
/// TPM_ALG_ECDSA.
const ECDSA: u16 = 0x0018;

/// An attestation key of the accepted template: an ECC P-256 key that signs only what its TPM made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AkPublic {
    public: Public,
    key: VerifyingKey,
}

impl AkPublic {
    /// Parses a TPMT_PUBLIC and holds it against the template: ECC P-256, nameAlg SHA-256,
    /// ECDSA with SHA-256, no policy, attributes 0x00050472.
    ///
    /// That the key is in a TPM at all is what credential activation proves; a key loaded from
    /// outside would pass it, hence the attributes.
    ///
    /// # Errors
    /// [`codes::VERIFY_AK_UNRESTRICTED`], [`codes::VERIFY_AK_DECRYPT`], [`codes::VERIFY_AK_NOT_FIXED`],
    /// [`codes::VERIFY_AK_IMPORTED`], [`codes::VERIFY_AK_TEMPLATE`] for any other difference,
    /// [`codes::TPM_STRUCTURE`] for a malformed structure.
    pub fn parse(bytes: &[u8]) -> Result<Self, Refusal> {
        let public = Public::parse(bytes)?;
        let found = public.attributes;
        let code = attributes_fault(found).or((found != AK_ATTRIBUTES).then_some(codes::VERIFY_AK_TEMPLATE));
        if let Some(code) = code {
            return Err(Refusal::new(code, format!("attributes {found:#010x}"))
                .at("attestation key")
                .expected(format!("{AK_ATTRIBUTES:#010x}")));
        }
        let key = signing_template(&public)
            .map_err(|what| Refusal::new(codes::VERIFY_AK_TEMPLATE, what).at("attestation key"))?;
        Ok(Self { public, key })
    }

    /// Parses the AK of a row that also has the name a credential was activated for, and holds the
    /// two together: the key that is trusted must be the key that answered.
    ///
    /// # Errors
    /// As [`Self::parse`], and [`codes::VERIFY_AK_NAME`].
    pub fn parse_activated(bytes: &[u8], activated_name: &[u8]) -> Result<Self, Refusal> {
        let ak = Self::parse(bytes)?;
        if ak.name() != activated_name {
            return Err(Refusal::new(codes::VERIFY_AK_NAME, hex::encode(ak.name()))
                .at("attestation key")
                .expected(hex::encode(activated_name)));
        }
        Ok(ak)
    }

    /// The TPM name, computed from the public area.
    pub fn name(&self) -> Vec<u8> {
        self.public.name()
    }

    /// The qualified name as a primary of the endorsement hierarchy: what its attestations must
    /// name as signer. Under any other parent the TPM computes another one.
    pub fn qualified_name(&self) -> Vec<u8> {
        self.public.endorsement_qualified_name()
    }

    /// The key that verifies its signatures.
    pub const fn key(&self) -> &VerifyingKey {
        &self.key
    }

    /// The TPMT_PUBLIC.
    pub fn as_bytes(&self) -> &[u8] {
        self.public.as_bytes()
    }
}

/// What keeps a key with these attributes from being an attestation key at all, of whatever template.
pub(super) fn attributes_fault(found: u32) -> Option<Code> {
    let has = |attribute: u32| found & attribute != 0;
    if !has(attributes::RESTRICTED) {
        Some(codes::VERIFY_AK_UNRESTRICTED)
    } else if has(attributes::DECRYPT) {
        Some(codes::VERIFY_AK_DECRYPT)
    } else if !has(attributes::FIXED_TPM) || !has(attributes::FIXED_PARENT) {
        Some(codes::VERIFY_AK_NOT_FIXED)
    } else if !has(attributes::SENSITIVE_DATA_ORIGIN) {
        Some(codes::VERIFY_AK_IMPORTED)
    } else if !has(attributes::SIGN) {
        Some(codes::VERIFY_AK_TEMPLATE)
    } else {
        None
    }
}

/// A node key of the accepted template: signs evidence and TLS handshakes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeKey {
    public: Public,
    key: VerifyingKey,
    spki: Vec<u8>,
}

impl NodeKey {
    /// Parses a TPMT_PUBLIC and holds it against the template: ECC P-256, nameAlg SHA-256,
    /// ECDSA with SHA-256, no policy, attributes 0x00040472.
    ///
    /// # Errors
    /// [`codes::VERIFY_NODE_KEY`] for another template, [`codes::TPM_STRUCTURE`] for a malformed structure.
    pub fn parse(bytes: &[u8]) -> Result<Self, Refusal> {
        let public = Public::parse(bytes)?;
        if public.attributes != NODE_KEY_ATTRIBUTES {
            return Err(Refusal::new(codes::VERIFY_NODE_KEY, format!("attributes {:#010x}", public.attributes))
                .at("node key")
                .expected(format!("{NODE_KEY_ATTRIBUTES:#010x}")));
        }
        let key =
            signing_template(&public).map_err(|what| Refusal::new(codes::VERIFY_NODE_KEY, what).at("node key"))?;
        let spki = public.spki_der()?;
        Ok(Self { public, key, spki })
    }

    /// The TPM name, computed from the public area.
    pub fn name(&self) -> Vec<u8> {
        self.public.name()
    }

    /// The qualified name as a primary of the endorsement hierarchy.
    pub fn qualified_name(&self) -> Vec<u8> {
        self.public.endorsement_qualified_name()
    }

    /// The key that verifies its signatures.
    pub const fn key(&self) -> &VerifyingKey {
        &self.key
    }

    /// DER of its SubjectPublicKeyInfo, as in its certificates.
    pub fn spki_der(&self) -> &[u8] {
        &self.spki
    }

    /// The TPMT_PUBLIC.
    pub fn as_bytes(&self) -> &[u8] {
        self.public.as_bytes()
    }
}

/// What one row of the control plane says of a node: the keys it was enrolled with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EnrolledKeys {
    /// The node; `None` while it enrols.
    pub node: Option<NodeId>,
    /// Its attestation key.
    pub ak: AkPublic,
    /// Its node key.
    pub node_key: NodeKey,
    /// The nonce the node key's certification must be over.
    pub certification_nonce: [u8; 32],
}

/// DER of the SubjectPublicKeyInfo of a certificate (DER): what [`super::authenticate`] compares
/// with the node key, and what names an issuer.
///
/// # Errors
/// [`codes::VERIFY_CHANNEL`] when it is no certificate.
pub fn certificate_spki(der: &[u8]) -> Result<Vec<u8>, Refusal> {
    Certificate::from_der(der)
        .and_then(|certificate| certificate.tbs_certificate().subject_public_key_info().to_der())
        .map_err(|e| Refusal::new(codes::VERIFY_CHANNEL, format!("no certificate: {e}")))
}

/// What both templates share besides attributes.
fn signing_template(public: &Public) -> Result<VerifyingKey, String> {
    if public.name_alg != HashAlgorithm::Sha256 {
        return Err(format!("nameAlg {:#06x}, expected SHA-256", public.name_alg.id()));
    }
    if public.scheme != Some((ECDSA, HashAlgorithm::Sha256.id())) {
        return Err(format!("scheme {:x?}, expected ECDSA with SHA-256", public.scheme));
    }
    if public.symmetric.is_some() {
        return Err("a symmetric cipher, expected none".to_owned());
    }
    if !public.auth_policy.is_empty() {
        return Err(format!("policy {}, expected none", hex::encode(&public.auth_policy)));
    }
    public.p256_key().map_err(|refusal| refusal.to_string())
}
