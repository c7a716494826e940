//! Endorsement: whose TPM is it? The EK's template, its certificate, and the grade they give.

use der::Decode;
use rustls::pki_types::{CertificateDer, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, KeyUsage};
use x509_cert::certificate::{CertificateInner, Raw};
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::ext::pkix::{ExtendedKeyUsage, SubjectAltName};
use x509_cert::spki::ObjectIdentifier;

use crate::clock::WallTime;
use crate::codes::{self, Refusal};
use crate::tpm::structures::{HashAlgorithm, Kind, Public, SymmetricKey};

/// tcg-kp-EKCertificate (TCG EK Credential Profile, 3.2).
const EK_USAGE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.23.133.8.1");
/// tcg-at-tpmManufacturer (ibid., 3.2.9).
const MANUFACTURER: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.23.133.2.1");
/// [`EK_USAGE`] as the contents of its DER.
const EK_USAGE_DER: &[u8] = &[0x67, 0x81, 0x05, 0x08, 0x01];
/// rsaEncryption, and the id-RSAES-OAEP that some EK certificates have in its place.
const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const RSA_OAEP: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.7");

/// What is known of a TPM's origin; a later one is worth more. A grade alone admits nobody.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Grade {
    /// Nothing.
    Unknown,
    /// An operator imported the EK's hash.
    Listed,
    /// A configured manufacturer vouches for the EK.
    Certified,
}

impl Grade {
    /// `unknown`, `listed` or `certified`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Listed => "listed",
            Self::Certified => "certified",
        }
    }
}

impl std::fmt::Display for Grade {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for Grade {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Unknown, Self::Listed, Self::Certified]
            .into_iter()
            .find(|grade| grade.as_str() == text)
            .ok_or_else(|| format!("`{text}` is no grade: expected certified, listed or unknown"))
    }
}

/// The TPM manufacturers' certificates an operator configured.
///
/// Self-issued ones are roots. The others only help to find a path and are not trusted by themselves.
#[derive(Clone, Debug, Default)]
pub struct EkRoots {
    anchors: Vec<TrustAnchor<'static>>,
    intermediates: Vec<CertificateDer<'static>>,
}

impl EkRoots {
    /// The roots and intermediates among these certificates, DER.
    ///
    /// # Errors
    /// [`codes::CONFIG_INVALID`] for one that can't be read, by its number from 1.
    pub fn from_der(certificates: Vec<Vec<u8>>) -> Result<Self, Refusal> {
        let mut roots = Self::default();
        for (number, der) in (1..).zip(certificates) {
            let der = CertificateDer::from(der);
            let refuse = |what: String| {
                Refusal::new(codes::CONFIG_INVALID, what).at(format!("EK root {number}")).expected("a CA certificate")
            };
            let parsed = parse(&der).map_err(|e| refuse(e.to_string()))?;
            let certificate = parsed.tbs_certificate();
            if certificate.issuer() == certificate.subject() {
                let anchor = webpki::anchor_from_trusted_cert(&der).map_err(|e| refuse(e.to_string()))?;
                roots.anchors.push(anchor.to_owned());
            } else {
                roots.intermediates.push(der);
            }
        }
        Ok(roots)
    }

    /// Whether no root is configured.
    pub fn is_empty(&self) -> bool {
        self.anchors.is_empty()
    }
}

/// The parameters of a TCG EK template that differ between templates.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EkTemplate {
    /// Its name in the EK Credential Profile: `L-1`, `H-2` and so on.
    pub name: &'static str,
    hash: HashAlgorithm,
    /// The size of the AES key that protects credentials.
    pub aes_bits: u32,
    attributes: u32,
    policy: &'static [u8],
}

/// fixedTPM, fixedParent, sensitiveDataOrigin, adminWithPolicy, restricted, decrypt.
const LOW: u32 = 0x0003_00B2;
/// The same and userWithAuth.
const HIGH: u32 = 0x0003_00F2;
/// PolicySecret(TPM_RH_ENDORSEMENT) (TCG EK Credential Profile, B.6.2).
const POLICY_A: [u8; 32] = [
    0x83, 0x71, 0x97, 0x67, 0x44, 0x84, 0xB3, 0xF8, 0x1A, 0x90, 0xCC, 0x8D, 0x46, 0xA5, 0xD7, 0x24, 0xFD, 0x52, 0xD7,
    0x6E, 0x06, 0x52, 0x0B, 0x64, 0xF2, 0xA1, 0xDA, 0x1B, 0x33, 0x14, 0x69, 0xAA,
];
/// PolicyOR(A, PolicyAuthorizeNV) with SHA-256 and with SHA-384.
const POLICY_B: [u8; 32] = [
    0xCA, 0x3D, 0x0A, 0x99, 0xA2, 0xB9, 0x39, 0x06, 0xF7, 0xA3, 0x34, 0x24, 0x14, 0xEF, 0xCF, 0xB3, 0xA3, 0x85, 0xD4,
    0x4C, 0xD1, 0xFD, 0x45, 0x90, 0x89, 0xD1, 0x9B, 0x50, 0x71, 0xC0, 0xB7, 0xA0,
];
const POLICY_B_384: [u8; 48] = [
    0xB2, 0x6E, 0x7D, 0x28, 0xD1, 0x1A, 0x50, 0xBC, 0x53, 0xD8, 0x82, 0xBC, 0xF5, 0xFD, 0x3A, 0x1A, 0x07, 0x41, 0x48,
    0xBB, 0x35, 0xD3, 0xB4, 0xE4, 0xCB, 0x1C, 0x0A, 0xD9, 0xBD, 0xE4, 0x19, 0xCA, 0xCB, 0x47, 0xBA, 0x09, 0x69, 0x96,
    0x46, 0x15, 0x0F, 0x9F, 0xC0, 0x00, 0xF3, 0xF8, 0x0E, 0x12,
];

/// The TCG templates (EK Credential Profile, B.3 and B.4), by kind of key.
const RSA_2048: &[EkTemplate] = &[low("L-1"), high("H-1")];
const P256: &[EkTemplate] = &[low("L-2"), high("H-2")];
const P384: &[EkTemplate] =
    &[EkTemplate { hash: HashAlgorithm::Sha384, aes_bits: 256, policy: &POLICY_B_384, ..high("H-3") }];

const fn low(name: &'static str) -> EkTemplate {
    EkTemplate { name, hash: HashAlgorithm::Sha256, aes_bits: 128, attributes: LOW, policy: &POLICY_A }
}

const fn high(name: &'static str) -> EkTemplate {
    EkTemplate { attributes: HIGH, policy: &POLICY_B, ..low(name) }
}

/// The template `ek` was made from.
///
/// # Errors
/// [`codes::VERIFY_EK_TEMPLATE`] when it is none of them.
pub fn check_template(ek: &Public) -> Result<EkTemplate, Refusal> {
    let templates = match ek.kind {
        Kind::Rsa { bits: 2048, exponent: 65_537, .. } => RSA_2048,
        Kind::P256 { .. } => P256,
        Kind::P384 { .. } => P384,
        Kind::Rsa { .. } => &[],
    };
    templates
        .iter()
        .find(|template| {
            ek.name_alg == template.hash
                && ek.attributes == template.attributes
                && ek.auth_policy == template.policy
                && ek.symmetric.is_some_and(|SymmetricKey { bits }| u32::from(bits) == template.aes_bits)
                && ek.scheme.is_none()
        })
        .copied()
        .ok_or_else(|| {
            Refusal::new(
                codes::VERIFY_EK_TEMPLATE,
                format!("attributes {:#010x}, policy {}", ek.attributes, hex::encode(&ek.auth_policy)),
            )
            .at("endorsement key")
            .expected("a TCG template: L-1, L-2, H-1, H-2 or H-3")
        })
}

/// Grades the TPM with this EK. `chain` are intermediates from the TPM's NV, `listed` says that an
/// operator imported the EK.
///
/// A certificate that is wrong in itself refuses the TPM, listed or not: a broken endorsement is
/// worse than none. One whose CA nobody configured says nothing, so a listed EK stays listed.
///
/// # Errors
/// [`codes::VERIFY_EK_TEMPLATE`]; about the certificate [`codes::VERIFY_EK_CERTIFICATE`],
/// [`codes::VERIFY_EK_USAGE`], [`codes::VERIFY_EK_KEY`], [`codes::VERIFY_EK_EXPIRED`] and, when
/// roots are configured, [`codes::VERIFY_EK_UNKNOWN_CA`].
pub fn grade(
    ek: &Public,
    certificate: Option<&[u8]>,
    chain: &[Vec<u8>],
    roots: &EkRoots,
    listed: bool,
    now: WallTime,
) -> Result<Grade, Refusal> {
    check_template(ek)?;
    let without = if listed { Grade::Listed } else { Grade::Unknown };
    let Some(der) = certificate else { return Ok(without) };
    check_leaf(Some(ek), der, now)?;
    if roots.is_empty() {
        return Ok(without);
    }
    match check_path(der, chain, roots, now) {
        Ok(()) => Ok(Grade::Certified),
        Err(refusal) if listed && refusal.code == codes::VERIFY_EK_UNKNOWN_CA => Ok(Grade::Listed),
        Err(refusal) => Err(refusal),
    }
}

/// Checks a certificate where no enrolment stands behind it: for an EK, for this one if there is one,
/// valid now, and, if there are roots, with a path to one.
///
/// # Errors
/// As [`grade`].
pub fn check_certificate(ek: Option<&Public>, der: &[u8], roots: &EkRoots, now: WallTime) -> Result<(), Refusal> {
    check_leaf(ek, der, now)?;
    if roots.is_empty() { Ok(()) } else { check_path(der, &[], roots, now) }
}

/// The manufacturer that a certificate's alternative name states, e.g. `id:49465800` (TCG EK Credential Profile,
/// 3.2.9). It is as true as the certificate.
pub fn manufacturer(der: &[u8]) -> Option<String> {
    let certificate = parse(der).ok()?;
    let (_, names) = certificate.tbs_certificate().get_extension::<SubjectAltName>().ok()??;
    let directory = names.0.iter().find_map(|name| match name {
        GeneralName::DirectoryName(name) => Some(name),
        _ => None,
    })?;
    let attribute = directory.iter().find(|attribute| attribute.oid == MANUFACTURER)?;
    let text = std::str::from_utf8(attribute.value.value()).ok()?;
    Some(text.to_owned())
}

/// The certificate by itself: for an EK, for this EK, valid now.
fn check_leaf(ek: Option<&Public>, der: &[u8], now: WallTime) -> Result<(), Refusal> {
    let refuse = |code, what: String| Refusal::new(code, what).at("EK certificate");
    let certificate = parse(der).map_err(|e| refuse(codes::VERIFY_EK_CERTIFICATE, e.to_string()))?;
    let certificate = certificate.tbs_certificate();
    let usage = certificate
        .get_extension::<ExtendedKeyUsage>()
        .map_err(|e| refuse(codes::VERIFY_EK_CERTIFICATE, format!("extended key usage: {e}")))?;
    if !usage.is_some_and(|(_, usage)| usage.0.contains(&EK_USAGE)) {
        return Err(refuse(codes::VERIFY_EK_USAGE, "another extended key usage".to_owned())
            .expected(format!("{EK_USAGE} (tcg-kp-EKCertificate)")));
    }
    let found = certificate.subject_public_key_info();
    let expected = ek.map(Public::spki_der).transpose()?;
    let same = expected.is_none_or(|expected| {
        x509_cert::spki::SubjectPublicKeyInfoOwned::from_der(&expected).is_ok_and(|expected| {
            // The key itself must be the same; how its algorithm is called may differ for RSA.
            found.subject_public_key == expected.subject_public_key
                && (found.algorithm == expected.algorithm
                    || expected.algorithm.oid == RSA && [RSA, RSA_OAEP].contains(&found.algorithm.oid))
        })
    });
    if !same {
        return Err(refuse(codes::VERIFY_EK_KEY, "a certificate for another key".to_owned()));
    }
    let validity = certificate.validity();
    let (from, until) =
        (validity.not_before.to_unix_duration().as_secs(), validity.not_after.to_unix_duration().as_secs());
    if now.0 < from || now.0 > until {
        return Err(refuse(codes::VERIFY_EK_EXPIRED, format!("it is {now}")).expected(format!(
            "{} to {}",
            WallTime(from),
            WallTime(until)
        )));
    }
    Ok(())
}

/// The path to a root: signatures, validity, basic and name constraints (RFC 5280, 6).
///
/// An EK certificate has an empty subject and a critical alternative name of a directory name; the
/// path builder knows both. Its revocation isn't checked: most manufacturers publish nothing.
fn check_path(der: &[u8], chain: &[Vec<u8>], roots: &EkRoots, now: WallTime) -> Result<(), Refusal> {
    let der = CertificateDer::from(der);
    let leaf = EndEntityCert::try_from(&der).map_err(|e| refuse_path(&e))?;
    let from_nv = chain.iter().map(|der| CertificateDer::from(der.as_slice()));
    let intermediates: Vec<_> = from_nv.chain(roots.intermediates.iter().cloned()).collect();
    leaf.verify_for_usage(
        webpki::ALL_VERIFICATION_ALGS,
        &roots.anchors,
        &intermediates,
        UnixTime::since_unix_epoch(std::time::Duration::from_secs(now.0)),
        // CAs mostly have no extended key usage; the leaf's was found to be the right one.
        KeyUsage::required_if_present(EK_USAGE_DER),
        None,
        None,
    )
    .map(drop)
    .map_err(|e| refuse_path(&e))
}

fn refuse_path(error: &webpki::Error) -> Refusal {
    let code = match error {
        webpki::Error::CertExpired { .. } | webpki::Error::CertNotValidYet { .. } => codes::VERIFY_EK_EXPIRED,
        webpki::Error::CaUsedAsEndEntity => codes::VERIFY_EK_USAGE,
        webpki::Error::BadDer | webpki::Error::TrailingData(_) => codes::VERIFY_EK_CERTIFICATE,
        // Whatever else keeps a path from being found: it leads to no configured root.
        _ => codes::VERIFY_EK_UNKNOWN_CA,
    };
    Refusal::new(code, error.to_string()).at("EK certificate")
}

/// With the lenient profile: manufacturers' serial numbers are longer or more negative than RFC 5280 allows.
fn parse(der: &[u8]) -> Result<CertificateInner<Raw>, der::Error> {
    CertificateInner::<Raw>::from_der(der)
}
