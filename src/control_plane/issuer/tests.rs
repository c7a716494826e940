use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::ext::pkix::{
    AuthorityKeyIdentifier, BasicConstraints, ExtendedKeyUsage, KeyUsage, SubjectAltName, SubjectKeyIdentifier,
};

use super::*;
use crate::control_plane::keys;

const NOW: WallTime = WallTime(1_800_000_000);

fn ca() -> Ca {
    let domain = TrustDomain::new("example.org").unwrap();
    Ca::new(keys::generate().unwrap(), &domain, NOW, Duration::from_secs(86_400)).unwrap()
}

fn leaf(ca: &Ca, id: &str, term: u64) -> (Leaf, Vec<u8>) {
    let spki = spki_of_key(&keys::generate().unwrap()).unwrap();
    (ca.issue(&SpiffeId::new(id).unwrap(), &spki, NOW, Duration::from_secs(term), None).unwrap(), spki)
}

fn csr(key: &impl rcgen::SigningKey) -> Vec<u8> {
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI("spiffe://evil.example/x".try_into().unwrap())];
    params.serialize_request(key).unwrap().der().to_vec()
}

#[test]
fn a_leaf_follows_the_svid_profile() {
    let ca = ca();
    let (leaf, spki) = leaf(&ca, "spiffe://example.org/web", 600);
    let parsed = x509_cert::Certificate::from_der(&leaf.certificate).unwrap();
    let tbs = parsed.tbs_certificate();
    assert_eq!(tbs.subject_public_key_info().to_der().unwrap(), spki);
    assert_ne!(tbs.subject(), tbs.issuer());
    let names = tbs.get_extension::<SubjectAltName>().unwrap().unwrap().1.0;
    assert!(matches!(names.as_slice(), [GeneralName::UniformResourceIdentifier(uri)]
        if uri.as_str() == "spiffe://example.org/web"));
    let (critical, constraints) = tbs.get_extension::<BasicConstraints>().unwrap().unwrap();
    assert!(critical && !constraints.ca);
    let (critical, usage) = tbs.get_extension::<KeyUsage>().unwrap().unwrap();
    assert!(critical && usage.digital_signature() && !usage.key_cert_sign() && !usage.crl_sign());
    let usages = tbs.get_extension::<ExtendedKeyUsage>().unwrap().unwrap().1.0;
    let usages: Vec<_> = usages.iter().map(ToString::to_string).collect();
    assert_eq!(usages, ["1.3.6.1.5.5.7.3.1", "1.3.6.1.5.5.7.3.2"]);
    let issuer = x509_cert::Certificate::from_der(ca.certificate()).unwrap();
    let subject_key = issuer.tbs_certificate().get_extension::<SubjectKeyIdentifier>().unwrap().unwrap().1;
    let authority = tbs.get_extension::<AuthorityKeyIdentifier>().unwrap().unwrap().1;
    assert_eq!(authority.key_identifier.unwrap(), subject_key.0);
    assert_eq!(tbs.validity().not_before.to_unix_duration().as_secs(), NOW.0 - 60);
    assert_eq!(tbs.validity().not_after.to_unix_duration().as_secs(), NOW.0 + 600);
    assert_eq!(tbs.serial_number().as_bytes(), leaf.serial);
}

#[test]
fn a_stock_client_reads_leaf_and_bundle() {
    let ca = ca();
    let key = keys::generate().unwrap();
    let id = SpiffeId::new("spiffe://example.org/web").unwrap();
    let leaf = ca.issue(&id, &spki_of_key(&key).unwrap(), NOW, Duration::from_secs(600), None).unwrap();
    let svid = spiffe::X509Svid::parse_from_der(&leaf.certificate, &keys::to_pkcs8(&key).unwrap()).unwrap();
    assert_eq!(svid.spiffe_id(), &id);
    let domain = TrustDomain::new("example.org").unwrap();
    assert_eq!(spiffe::X509Bundle::parse_from_der(domain, ca.certificate()).unwrap().authorities().len(), 1);
}

#[test]
fn a_ca_names_its_trust_domain_and_signs_only() {
    let ca = ca();
    let parsed = x509_cert::Certificate::from_der(ca.certificate()).unwrap();
    let tbs = parsed.tbs_certificate();
    let (critical, constraints) = tbs.get_extension::<BasicConstraints>().unwrap().unwrap();
    assert!(critical && constraints.ca);
    let (critical, usage) = tbs.get_extension::<KeyUsage>().unwrap().unwrap();
    assert!(critical && usage.key_cert_sign() && !usage.digital_signature());
    let names = tbs.get_extension::<SubjectAltName>().unwrap().unwrap().1.0;
    assert!(matches!(names.as_slice(), [GeneralName::UniformResourceIdentifier(uri)]
        if uri.as_str() == "spiffe://example.org"));
}

#[test]
fn webpki_accepts_the_chain_and_only_under_its_own_ca() {
    let (ca, other) = (ca(), ca());
    let (leaf, _) = leaf(&ca, "spiffe://example.org/web", 600);
    let check = |ca: &Ca| {
        let anchor = rustls::pki_types::CertificateDer::from(ca.certificate().to_vec());
        let anchor = webpki::anchor_from_trusted_cert(&anchor).unwrap().to_owned();
        let der = rustls::pki_types::CertificateDer::from(leaf.certificate.clone());
        let end_entity = webpki::EndEntityCert::try_from(&der).unwrap();
        end_entity
            .verify_for_usage(
                webpki::ALL_VERIFICATION_ALGS,
                &[anchor],
                &[],
                rustls::pki_types::UnixTime::since_unix_epoch(Duration::from_secs(NOW.0)),
                webpki::KeyUsage::client_auth(),
                None,
                None,
            )
            .map(|_| ())
    };
    check(&ca).unwrap();
    check(&other).unwrap_err();
}

#[test]
fn a_leaf_never_outlives_its_ca() {
    let ca = ca();
    let (leaf, _) = leaf(&ca, "spiffe://example.org/web", 10 * 86_400);
    assert_eq!(leaf.not_after, ca.not_after());
}

#[test]
fn a_root_id_and_other_curves_get_no_leaf() {
    let ca = ca();
    let spki = spki_of_key(&keys::generate().unwrap()).unwrap();
    let root = SpiffeId::new("spiffe://example.org").unwrap();
    assert_eq!(ca.issue(&root, &spki, NOW, Duration::from_secs(1), None).unwrap_err().code, codes::ISSUER_REQUEST);
    let other = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    let id = SpiffeId::new("spiffe://example.org/web").unwrap();
    let refused = ca.issue(&id, &other.subject_public_key_info(), NOW, Duration::from_secs(1), None).unwrap_err();
    assert_eq!(refused.code, codes::ISSUER_REQUEST);
}

#[test]
fn requests_prove_possession() {
    let key = rcgen::KeyPair::generate().unwrap();
    let good = csr(&key);
    assert_eq!(read_request(&good).unwrap(), key.subject_public_key_info());
    let refused = |bytes: &[u8]| assert_eq!(read_request(bytes).unwrap_err().code, codes::ISSUER_REQUEST);
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1;
        refused(&bad);
    }
    refused(&good[..good.len() - 1]);
    refused(&[good.as_slice(), &[0]].concat());
    refused(&csr(&rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap()));
    refused(&csr(&rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap()));
    refused(&[0; 5000]);
}
