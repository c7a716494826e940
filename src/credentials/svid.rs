//! X.509-SVIDs: a fresh P-256 key for each, made in the agent's memory.

use std::fmt;

use der::Encode;
use der::asn1::BitString;
use p256::ecdsa::signature::Signer;
use p256::ecdsa::{DerSignature, SigningKey};
use p256::pkcs8::{EncodePrivateKey, EncodePublicKey};
use rustls::pki_types::{CertificateDer, UnixTime};
use webpki::{ALL_VERIFICATION_ALGS, EndEntityCert, KeyUsage, anchor_from_trusted_cert};
use x509_cert::attr::Attributes;
use x509_cert::request::{CertReq, CertReqInfo, Version};
use x509_cert::spki::{AlgorithmIdentifierOwned, SubjectPublicKeyInfoOwned};

use crate::codes::{self, Refusal};
use crate::identity::{SpiffeId, certified_id};
use crate::secret::{Zeroizing, random};

/// ecdsa-with-SHA256 (RFC 5758, 3.2).
const ECDSA_WITH_SHA256: der::oid::ObjectIdentifier = der::oid::ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.2");

/// A key that waits for its certificate.
pub struct PendingSvid {
    id: SpiffeId,
    key: SigningKey,
}

impl PendingSvid {
    /// Makes a fresh key for `id`.
    ///
    /// # Errors
    /// When the kernel gives no randomness.
    pub fn new(id: SpiffeId) -> std::io::Result<Self> {
        loop {
            let bytes = Zeroizing::new(random::<32>()?);
            // All but one in 2^32 strings are a scalar below the group's order; then try again.
            if let Ok(key) = SigningKey::from_slice(bytes.as_slice()) {
                return Ok(Self { id, key });
            }
        }
    }

    /// The identity asked for.
    pub const fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// A PKCS#10 request (RFC 2986), DER, with an empty subject: it carries the public key and
    /// proves the possession of the private one; the issuer decides everything else.
    ///
    /// # Errors
    /// Never on valid keys; encoders have an error type.
    pub fn request(&self) -> Result<Vec<u8>, Refusal> {
        let malformed = |e: der::Error| Refusal::new(codes::ISSUER_REQUEST, e.to_string());
        let spki = self
            .key
            .verifying_key()
            .to_public_key_der()
            .map_err(|e| Refusal::new(codes::ISSUER_REQUEST, e.to_string()))?;
        let info = CertReqInfo {
            version: Version::V1,
            subject: x509_cert::name::Name::default(),
            public_key: der::Decode::from_der(spki.as_bytes()).map_err(malformed)?,
            attributes: Attributes::new(),
        };
        let signature: DerSignature = self.key.sign(&info.to_der().map_err(malformed)?);
        CertReq {
            info,
            algorithm: AlgorithmIdentifierOwned { oid: ECDSA_WITH_SHA256, parameters: None },
            signature: BitString::from_bytes(signature.as_bytes()).map_err(malformed)?,
        }
        .to_der()
        .map_err(malformed)
    }

    /// The SVID, once its chain has come; refuses a leaf for another key or name.
    ///
    /// # Errors
    /// [`codes::ISSUER_REQUEST`] when the leaf isn't the one asked for.
    pub fn complete(self, chain: Vec<Vec<u8>>) -> Result<X509Svid, Refusal> {
        let refuse = |found: String| Refusal::new(codes::ISSUER_REQUEST, found).at(self.id.to_string());
        let leaf = chain.first().ok_or_else(|| refuse("the issuer's answer has no certificate".to_owned()))?;
        let leaf: x509_cert::Certificate =
            der::Decode::from_der(leaf).map_err(|e| refuse(format!("the issued certificate can't be read: {e}")))?;
        let ours: SubjectPublicKeyInfoOwned = self
            .key
            .verifying_key()
            .to_public_key_der()
            .ok()
            .and_then(|der| der::Decode::from_der(der.as_bytes()).ok())
            .ok_or_else(|| refuse("our own key can't be encoded".to_owned()))?;
        if *leaf.tbs_certificate().subject_public_key_info() != ours {
            return Err(refuse("the issued certificate is for another key".to_owned()));
        }
        if certified_id(&leaf)? != self.id {
            return Err(refuse("the issued certificate is for another name".to_owned()));
        }
        let key = self.key.to_pkcs8_der().map_err(|e| refuse(format!("the key can't be encoded: {e}")))?;
        let serial = hex::encode(leaf.tbs_certificate().serial_number().as_bytes());
        Ok(X509Svid { id: self.id, serial, decision: String::new(), chain, key: key.to_bytes() })
    }
}

/// An X.509-SVID with its private key. `Debug` shows the name only.
#[derive(Clone)]
pub struct X509Svid {
    /// Whose it is.
    pub id: SpiffeId,
    /// The leaf's serial number in hexadecimal: the credential's id in records.
    pub serial: String,
    /// The decision it was issued by.
    pub decision: String,
    /// DER, leaf first.
    pub chain: Vec<Vec<u8>>,
    /// PKCS#8, DER, unencrypted as the Workload API asks; wiped on drop.
    pub key: Zeroizing<Vec<u8>>,
}

impl X509Svid {
    /// Whether its chain leads to one of these CA certificates (DER). When it is valid is another
    /// question, which needs a clock: here it is judged at its own beginning.
    pub fn leads_to(&self, bundle: &[Vec<u8>]) -> bool {
        let chain: Vec<_> = self.chain.iter().map(|der| CertificateDer::from(der.as_slice())).collect();
        let Some((leaf, intermediates)) = chain.split_first() else { return false };
        let begins = <x509_cert::Certificate as der::Decode>::from_der(leaf)
            .map(|leaf| UnixTime::since_unix_epoch(leaf.tbs_certificate().validity().not_before.to_unix_duration()));
        let bundle: Vec<_> = bundle.iter().map(|der| CertificateDer::from(der.as_slice())).collect();
        let anchors: Vec<_> = bundle.iter().filter_map(|der| anchor_from_trusted_cert(der).ok()).collect();
        let (Ok(begins), Ok(leaf)) = (begins, EndEntityCert::try_from(leaf)) else { return false };
        let usage = KeyUsage::client_auth();
        leaf.verify_for_usage(ALL_VERIFICATION_ALGS, &anchors, intermediates, begins, usage, None, None).is_ok()
    }
}

impl fmt::Debug for X509Svid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("X509Svid").field("id", &self.id.to_string()).finish_non_exhaustive()
    }
}

impl fmt::Debug for PendingSvid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PendingSvid").field("id", &self.id.to_string()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};

    use super::*;

    fn ca(name: &str) -> CertifiedIssuer<'static, KeyPair> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    }

    #[test]
    fn an_svid_leads_to_its_own_ca_only() {
        let (one, other) = (ca("one"), ca("other"));
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI("spiffe://example.org/web".try_into().unwrap())];
        // Long over, or not yet begun by a clock that is wrong: that is not asked here.
        params.not_before = rcgen::date_time_ymd(2001, 1, 1);
        params.not_after = rcgen::date_time_ymd(2001, 1, 2);
        let leaf = params.signed_by(&KeyPair::generate().unwrap(), &one).unwrap();
        let id = SpiffeId::new("spiffe://example.org/web").unwrap();
        let (serial, decision) = (String::new(), String::new());
        let svid = X509Svid { id, serial, decision, chain: vec![leaf.der().to_vec()], key: Zeroizing::new(Vec::new()) };
        let (one, other) = (one.der().to_vec(), other.der().to_vec());
        assert!(svid.leads_to(&[other.clone(), one.clone()]));
        assert!(!svid.leads_to(&[other]));
        assert!(!svid.leads_to(&[]));
        let empty = X509Svid { chain: Vec::new(), ..svid };
        assert!(!empty.leads_to(&[one]));
    }
}
