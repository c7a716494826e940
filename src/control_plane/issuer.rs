//! Certificates: what an X.509-SVID and a CA certificate of ours look like, and reading requests.
//!
//! The profile is X509-SVID.md's, with what real clients demand besides (basicConstraints and key
//! usage always present, the subject never equal to the issuer).

use std::time::Duration;

use der::{Decode, Encode};
use p256::ecdsa::signature::{Signer, Verifier};
use p256::ecdsa::{DerSignature, SigningKey, VerifyingKey};
use p256::pkcs8::{DecodePublicKey, EncodePublicKey};
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CrlDistributionPoint, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyUsagePurpose, PublicKeyData, RevokedCertParams,
    SanType, SerialNumber, SignatureAlgorithm,
};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use x509_cert::request::CertReq;

use crate::clock::WallTime;
use crate::codes::{self, Refusal};
use crate::identity::{SpiffeId, TrustDomain};
use crate::secret;

/// How far `notBefore` lies in the past, for peers whose clocks lag.
pub const BACKDATED: Duration = Duration::from_secs(60);

/// A CA: its key and its certificate.
pub struct Ca {
    key: CaKey,
    certificate: Vec<u8>,
    not_after: WallTime,
}

/// A leaf certificate just issued.
#[derive(Clone, Debug)]
pub struct Leaf {
    /// DER.
    pub certificate: Vec<u8>,
    /// Its serial number, big-endian.
    pub serial: Vec<u8>,
    /// The last moment of its validity.
    pub not_after: WallTime,
}

/// A certificate on a CRL.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RevokedLeaf {
    /// Its serial number, big-endian.
    pub serial: Vec<u8>,
    /// When it was revoked.
    pub at: WallTime,
}

impl Ca {
    /// A new self-signed CA for `trust_domain`, valid for `term` from `now`.
    ///
    /// # Errors
    /// When there is no randomness; otherwise never.
    pub fn new(key: SigningKey, trust_domain: &TrustDomain, now: WallTime, term: Duration) -> Result<Self, Refusal> {
        let key = CaKey::new(key)?;
        let not_after = now.after(term);
        let mut params = params(uri(&format!("spiffe://{trust_domain}"))?, now, not_after)?;
        // Each CA has a name of its own, so that path building never takes one for another.
        params.distinguished_name = key.name();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).map_err(bug)?.der().to_vec();
        Ok(Self { key, certificate, not_after })
    }

    /// A CA that was made before.
    ///
    /// # Errors
    /// [`codes::STORE_FAILED`] when key and certificate don't belong together.
    pub fn from_parts(key: SigningKey, certificate: Vec<u8>, not_after: WallTime) -> Result<Self, Refusal> {
        let key = CaKey::new(key)?;
        if spki_of(&certificate)? != key.spki {
            return Err(Refusal::new(codes::STORE_FAILED, "a CA's key and certificate don't belong together"));
        }
        Ok(Self { key, certificate, not_after })
    }

    /// This CA's certificate for the key of its successor: with it, a chain of the successor also
    /// leads to this CA, for peers that know nothing newer. DER; none if the two share no time.
    ///
    /// # Errors
    /// When there is no randomness; otherwise never.
    pub fn link(
        &self,
        successor: &Self,
        trust_domain: &TrustDomain,
        from: WallTime,
    ) -> Result<Option<Vec<u8>>, Refusal> {
        let until = self.not_after.min(successor.not_after);
        if until <= from {
            return Ok(None);
        }
        let mut params = params(uri(&format!("spiffe://{trust_domain}"))?, from, until)?;
        params.serial_number = Some(SerialNumber::from_slice(&serial()?));
        params.distinguished_name = successor.key.name();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let mut issuer_params = CertificateParams::default();
        issuer_params.distinguished_name = self.key.name();
        let issuer = Issuer::from_params(&issuer_params, &self.key);
        Ok(Some(params.signed_by(&successor.key, &issuer).map_err(bug)?.der().to_vec()))
    }

    /// The certificate, DER.
    pub fn certificate(&self) -> &[u8] {
        &self.certificate
    }

    /// The last moment of its validity.
    pub const fn not_after(&self) -> WallTime {
        self.not_after
    }

    /// The signing key, for leases.
    pub const fn signing_key(&self) -> &SigningKey {
        &self.key.key
    }

    /// SHA-256 of the CA's SubjectPublicKeyInfo: the `kid` of leases.
    pub fn key_id(&self) -> [u8; 32] {
        Sha256::digest(&self.key.spki).into()
    }

    /// Issues an X.509-SVID for `id` over the P-256 key `spki`, valid for `term` from `now` but
    /// not longer than this CA. With `crl` it says where the CRL is that it would stand on.
    ///
    /// # Errors
    /// [`codes::ISSUER_REQUEST`] for an id without a path or a key that is not P-256.
    pub fn issue(
        &self,
        id: &SpiffeId,
        spki: &[u8],
        now: WallTime,
        term: Duration,
        crl: Option<&str>,
    ) -> Result<Leaf, Refusal> {
        // X509-SVID.md 3.1: a leaf's SPIFFE ID has a path.
        if id.path().is_empty() {
            return Err(request("the SPIFFE ID has no path").at(id.to_string()));
        }
        let subject = LeafKey::from_spki(spki)?;
        let serial = serial()?;
        let not_after = now.after(term).min(self.not_after);
        let mut params = params(uri(&id.to_string())?, now, not_after)?;
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        params.distinguished_name.push(DnType::OrganizationName, "Leasehold");
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        params.crl_distribution_points =
            crl.map(|url| CrlDistributionPoint { uris: vec![url.to_owned()] }).into_iter().collect();
        let mut issuer_params = CertificateParams::default();
        issuer_params.distinguished_name = self.key.name();
        let certificate =
            params.signed_by(&subject, &Issuer::from_params(&issuer_params, &self.key)).map_err(bug)?.der().to_vec();
        Ok(Leaf { certificate, serial: serial.to_vec(), not_after })
    }
}

impl Ca {
    /// A CRL (RFC 5280, 5) of this CA.
    ///
    /// # Errors
    /// For a time that a certificate can't hold.
    pub fn crl(
        &self,
        revoked: &[RevokedLeaf],
        number: u64,
        this_update: WallTime,
        next_update: WallTime,
    ) -> Result<Vec<u8>, Refusal> {
        let revoked_certs = revoked
            .iter()
            .map(|leaf| {
                Ok(RevokedCertParams {
                    serial_number: SerialNumber::from_slice(&leaf.serial),
                    revocation_time: moment(leaf.at)?,
                    reason_code: None,
                    invalidity_date: None,
                })
            })
            .collect::<Result<_, Refusal>>()?;
        let params = CertificateRevocationListParams {
            this_update: moment(this_update)?,
            next_update: moment(next_update)?,
            crl_number: SerialNumber::from(number),
            issuing_distribution_point: None,
            revoked_certs,
            // As in the certificates' own authority key identifiers.
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let mut issuer_params = CertificateParams::default();
        issuer_params.distinguished_name = self.key.name();
        Ok(params.signed_by(&Issuer::from_params(&issuer_params, &self.key)).map_err(bug)?.der().to_vec())
    }
}

impl std::fmt::Debug for Ca {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ca").field("key_id", &hex::encode(self.key_id())).finish_non_exhaustive()
    }
}

/// The SubjectPublicKeyInfo (DER) of a PKCS#10 request over a P-256 key, after checking the
/// request's own signature. Nothing else in the request is used.
///
/// # Errors
/// [`codes::ISSUER_REQUEST`], saying what is wrong.
pub fn read_request(csr: &[u8]) -> Result<Vec<u8>, Refusal> {
    /// A request with a P-256 key and no attributes has about 200 bytes.
    const LIMIT: usize = 4096;
    /// ecdsa-with-SHA256 (RFC 5758, 3.2).
    const ECDSA_SHA256: der::asn1::ObjectIdentifier = der::asn1::ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.2");
    if csr.len() > LIMIT {
        return Err(request("it is too large").expected(format!("at most {LIMIT} bytes")));
    }
    let parsed = CertReq::from_der(csr).map_err(|e| request("it is no PKCS#10 request").at(e.to_string()))?;
    let spki = parsed.info.public_key.to_der().map_err(|e| request(&e.to_string()))?;
    let key = VerifyingKey::from_public_key_der(&spki)
        .map_err(|_| request("its key is not on the curve P-256").expected("an ECDSA P-256 key"))?;
    if parsed.algorithm.oid != ECDSA_SHA256 {
        return Err(request("it is signed with another algorithm").expected("ecdsa-with-SHA256"));
    }
    let signature = parsed
        .signature
        .as_bytes()
        .and_then(|bytes| DerSignature::try_from(bytes).ok())
        .ok_or_else(|| request("its signature can't be read"))?;
    // DER has one encoding, so these are the bytes that were received.
    let signed = parsed.info.to_der().map_err(|e| request(&e.to_string()))?;
    key.verify(&signed, &signature).map_err(|_| request("its signature is not by the key in it"))?;
    Ok(spki)
}

/// SubjectPublicKeyInfo, DER, of a certificate.
///
/// # Errors
/// [`codes::STORE_FAILED`] when it is no certificate.
pub fn spki_of(certificate: &[u8]) -> Result<Vec<u8>, Refusal> {
    x509_cert::Certificate::from_der(certificate)
        .and_then(|parsed| parsed.tbs_certificate().subject_public_key_info().to_der())
        .map_err(|e| Refusal::new(codes::STORE_FAILED, format!("a certificate can't be read: {e}")))
}

/// The SubjectPublicKeyInfo of one of our own keys.
///
/// # Errors
/// Never for a valid key; the encoder's signature has one.
pub fn spki_of_key(key: &SigningKey) -> Result<Vec<u8>, Refusal> {
    let document =
        key.verifying_key().to_public_key_der().map_err(|e| Refusal::new(codes::STORE_FAILED, e.to_string()))?;
    Ok(document.as_bytes().to_vec())
}

fn params(name: Ia5String, now: WallTime, not_after: WallTime) -> Result<CertificateParams, Refusal> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.not_before = moment(WallTime(now.0.saturating_sub(BACKDATED.as_secs())))?;
    params.not_after = moment(not_after)?;
    params.subject_alt_names = vec![SanType::URI(name)];
    Ok(params)
}

fn moment(time: WallTime) -> Result<OffsetDateTime, Refusal> {
    i64::try_from(time.0)
        .ok()
        .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
        .ok_or_else(|| Refusal::new(codes::STORE_FAILED, format!("{time} is beyond what a certificate can hold")))
}

fn uri(text: &str) -> Result<Ia5String, Refusal> {
    Ia5String::try_from(text).map_err(|e| request(&e.to_string()).at(text))
}

/// 159 random bits: positive and within the 20 octets of RFC 5280, 4.1.2.2.
fn serial() -> Result<[u8; 20], Refusal> {
    let mut serial: [u8; 20] = secret::random().map_err(|e| Refusal::new(codes::STORE_FAILED, e.to_string()))?;
    if let Some(first) = serial.first_mut() {
        // Never zero in front either, so that the stored bytes are the encoded ones.
        *first = (*first & 0x7F) | 0x40;
    }
    Ok(serial)
}

fn request(found: &str) -> Refusal {
    Refusal::new(codes::ISSUER_REQUEST, found)
}

fn bug(error: rcgen::Error) -> Refusal {
    Refusal::new(codes::STORE_FAILED, format!("BUG: a certificate can't be built: {error}"))
}

/// Our own P-256 key as rcgen wants to sign with it.
struct CaKey {
    key: SigningKey,
    point: Box<[u8]>,
    spki: Vec<u8>,
}

impl CaKey {
    fn new(key: SigningKey) -> Result<Self, Refusal> {
        let spki = spki_of_key(&key)?;
        Ok(Self { point: key.verifying_key().to_sec1_bytes(), spki, key })
    }

    fn name(&self) -> DistinguishedName {
        let mut name = DistinguishedName::new();
        let digest = hex::encode(Sha256::digest(&self.spki));
        name.push(DnType::CommonName, format!("Leasehold CA {}", digest.get(..16).unwrap_or_default()));
        name
    }
}

impl PublicKeyData for CaKey {
    fn der_bytes(&self) -> &[u8] {
        &self.point
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

impl rcgen::SigningKey for CaKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        let signature: DerSignature = self.key.try_sign(message).map_err(|_| rcgen::Error::RemoteKeyError)?;
        Ok(signature.as_bytes().to_vec())
    }
}

/// The public key a leaf is for: P-256 and nothing else.
struct LeafKey(Box<[u8]>);

impl LeafKey {
    fn from_spki(spki: &[u8]) -> Result<Self, Refusal> {
        let key = VerifyingKey::from_public_key_der(spki)
            .map_err(|_| request("the key is not on the curve P-256").expected("an ECDSA P-256 key"))?;
        Ok(Self(key.to_sec1_bytes()))
    }
}

impl PublicKeyData for LeafKey {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

#[cfg(test)]
mod tests;
