//! Endorsement: certificates made here, by swtpm's CA, and by manufacturers.

use std::process::{Command, Stdio};

use leasehold::clock::WallTime;
use leasehold::codes::{self, Code};
use leasehold::tpm::structures::Public;
use leasehold::verify::{EkRoots, Grade, credential, endorsement};
use p256::ecdsa::signature::Signer;
use p256::ecdsa::{DerSignature, SigningKey};
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SerialNumber, SignatureAlgorithm, date_time_ymd,
};

use crate::node::{point, signing_key};
use crate::swtpm::Swtpm;

/// 2026-01-01.
pub const NOW: WallTime = WallTime(1_767_225_600);

/// A key of p256 for rcgen: its signatures are deterministic, so certificates are too.
pub struct Key(pub SigningKey);

impl PublicKeyData for Key {
    fn der_bytes(&self) -> &[u8] {
        // The trait wants a reference; the few keys of a test may live as long as it does.
        Box::leak(self.0.verifying_key().to_sec1_point(false).as_bytes().to_vec().into_boxed_slice())
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

impl rcgen::SigningKey for Key {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        let signature: DerSignature = self.0.sign(message);
        Ok(signature.as_bytes().to_vec())
    }
}

/// A self-signed CA certificate and its parameters.
pub fn ca(key: &Key, name: &str) -> (Vec<u8>, CertificateParams) {
    let params = ca_params(name);
    (params.self_signed(key).unwrap().der().to_vec(), params)
}

fn ca_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.serial_number = Some(SerialNumber::from(1u64));
    params
}

/// What an EK certificate is made of; the default is a right one.
pub struct EkCertificate {
    pub key: SigningKey,
    pub usage: [u64; 5],
    pub until: i32,
}

impl Default for EkCertificate {
    fn default() -> Self {
        Self { key: signing_key(3), usage: [2, 23, 133, 8, 1], until: 2100 }
    }
}

impl EkCertificate {
    /// Signed by the CA with this key, as the EK Credential Profile wants it: no subject, and a
    /// critical alternative name with manufacturer, model and version.
    pub fn signed(&self, ca_key: u8) -> Vec<u8> {
        let key = Key(signing_key(ca_key));
        let (_, ca) = ca(&key, "TPM manufacturer");
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(self.until, 1, 1);
        params.serial_number = Some(SerialNumber::from(2u64));
        params.key_usages = vec![KeyUsagePurpose::KeyAgreement];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Other(self.usage.to_vec())];
        let mut name = CustomExtension::from_oid_content(&[2, 5, 29, 17], directory_name());
        name.set_criticality(true);
        params.custom_extensions = vec![name];
        params.signed_by(&Key(self.key.clone()), &Issuer::new(ca, key)).unwrap().der().to_vec()
    }
}

/// GeneralNames of one directoryName: 2.23.133.2.1 = id:00001014, .2 = test, .3 = id:1.
fn directory_name() -> Vec<u8> {
    let wrap = |tag: u8, content: &[u8]| [&[tag, u8::try_from(content.len()).unwrap()], content].concat();
    let attribute = |last: u8, value: &str| {
        let oid = wrap(0x06, &[0x67, 0x81, 0x05, 0x02, last]);
        wrap(0x31, &wrap(0x30, &[oid, wrap(0x0C, value.as_bytes())].concat()))
    };
    let names = [attribute(1, "id:00001014"), attribute(2, "test"), attribute(3, "id:1")].concat();
    wrap(0x30, &wrap(0xA4, &wrap(0x30, &names)))
}

/// TPMT_PUBLIC of an EK of template L-2.
pub fn ek_public(key: &SigningKey, attributes: u32) -> Vec<u8> {
    let mut public = vec![0x00, 0x23, 0x00, 0x0B];
    public.extend(attributes.to_be_bytes());
    let policy = hex::decode("837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa").unwrap();
    public.extend([0, 32]);
    public.extend(policy);
    // AES-128-CFB, no scheme, P-256, no key derivation.
    public.extend([0x00, 0x06, 0x00, 0x80, 0x00, 0x43, 0x00, 0x10, 0x00, 0x03, 0x00, 0x10]);
    public.extend(point(key));
    public
}

fn grade(certificate: Option<Vec<u8>>, roots: &EkRoots, listed: bool) -> Result<Grade, Code> {
    let ek = Public::parse(&ek_public(&signing_key(3), 0x0003_00B2)).unwrap();
    endorsement::grade(&ek, certificate.as_deref(), &[], roots, listed, NOW).map_err(|refusal| refusal.code)
}

#[test]
fn grades() {
    let roots = EkRoots::from_der(vec![ca(&Key(signing_key(4)), "TPM manufacturer").0]).unwrap();
    let none = EkRoots::default();
    let good = || Some(EkCertificate::default().signed(4));
    let unknown_ca = || Some(EkCertificate::default().signed(5));
    let expired = || Some(EkCertificate { until: 2025, ..EkCertificate::default() }.signed(4));
    let usage = || Some(EkCertificate { usage: [2, 23, 133, 8, 2], ..EkCertificate::default() }.signed(4));
    let key = || Some(EkCertificate { key: signing_key(6), ..EkCertificate::default() }.signed(4));
    for listed in [false, true] {
        let without = if listed { Grade::Listed } else { Grade::Unknown };
        assert_eq!(grade(good(), &roots, listed), Ok(Grade::Certified));
        assert_eq!(grade(None, &roots, listed), Ok(without));
        assert_eq!(grade(None, &none, listed), Ok(without));
        assert_eq!(grade(good(), &none, listed), Ok(without));
        assert_eq!(grade(expired(), &roots, listed), Err(codes::VERIFY_EK_EXPIRED));
        assert_eq!(grade(usage(), &roots, listed), Err(codes::VERIFY_EK_USAGE));
        assert_eq!(grade(key(), &roots, listed), Err(codes::VERIFY_EK_KEY));
        assert_eq!(grade(key(), &none, listed), Err(codes::VERIFY_EK_KEY));
        assert_eq!(grade(Some(vec![0x30, 0x00]), &roots, listed), Err(codes::VERIFY_EK_CERTIFICATE));
    }
    assert_eq!(grade(unknown_ca(), &roots, false), Err(codes::VERIFY_EK_UNKNOWN_CA));
    assert_eq!(grade(unknown_ca(), &roots, true), Ok(Grade::Listed));
    assert!(Grade::Unknown < Grade::Listed && Grade::Listed < Grade::Certified);
    assert_eq!("listed".parse(), Ok(Grade::Listed));
}

#[test]
fn an_intermediate_alone_is_no_root() {
    let root = Key(signing_key(4));
    let (root_der, root_params) = ca(&root, "root");
    let middle = Key(signing_key(5));
    let middle_der =
        ca_params("TPM manufacturer").signed_by(&middle, &Issuer::new(root_params, root)).unwrap().der().to_vec();
    let leaf = EkCertificate::default().signed(5);
    let ek = Public::parse(&ek_public(&signing_key(3), 0x0003_00B2)).unwrap();
    let grade = |roots: Vec<Vec<u8>>, chain: &[Vec<u8>]| {
        let roots = EkRoots::from_der(roots).unwrap();
        endorsement::grade(&ek, Some(&leaf), chain, &roots, false, NOW).map_err(|refusal| refusal.code)
    };
    assert_eq!(grade(vec![middle_der.clone()], &[]), Ok(Grade::Unknown));
    assert_eq!(grade(vec![root_der.clone()], &[]), Err(codes::VERIFY_EK_UNKNOWN_CA));
    assert_eq!(grade(vec![root_der.clone(), middle_der.clone()], &[]), Ok(Grade::Certified));
    assert_eq!(grade(vec![root_der], &[middle_der]), Ok(Grade::Certified));
}

#[test]
fn only_the_templates() {
    let key = signing_key(3);
    let template = |attributes| endorsement::check_template(&Public::parse(&ek_public(&key, attributes)).unwrap());
    assert_eq!(template(0x0003_00B2).unwrap().name, "L-2");
    // H's attributes with L's policy, a key that may be duplicated, a key that may sign.
    for attributes in [0x0003_00F2, 0x0003_00B0, 0x0007_00B2, 0] {
        assert_eq!(template(attributes).unwrap_err().code, codes::VERIFY_EK_TEMPLATE);
    }
    let signing = crate::node::signing_public(&key, crate::node::AK_ATTRIBUTES);
    let signing = Public::parse(&signing).unwrap();
    assert_eq!(credential::make(&signing, b"name", b"secret").unwrap_err().code, codes::VERIFY_EK_TEMPLATE);
}

/// A TPM set up by swtpm's own tool, with certificates from a CA in the same directory.
fn manufactured() -> Swtpm {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().display().to_string();
    let write = |name: &str, text: String| std::fs::write(directory.path().join(name), text).unwrap();
    write(
        "localca.conf",
        format!(
            "statedir = {path}\nsigningkey = {path}/sign.pem\nissuercert = {path}/issuer.pem\ncertserial = {path}/serial\n"
        ),
    );
    write("options", "--platform-manufacturer Test\n--platform-version 1\n--platform-model Test\n".to_owned());
    write(
        "setup.conf",
        format!(
            "create_certs_tool = swtpm_localca\ncreate_certs_tool_config = {path}/localca.conf\n\
             create_certs_tool_options = {path}/options\nactive_pcr_banks = sha256\n"
        ),
    );
    let output = Command::new("swtpm_setup")
        .args(["--tpm2", "--createek", "--create-ek-cert", "--tpmstate", &path, "--write-ek-cert-files", &path])
        .args(["--config", &format!("{path}/setup.conf")])
        .stdin(Stdio::null())
        .output()
        .expect("swtpm_setup is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    Swtpm::start_in(directory)
}

fn pem(tpm: &Swtpm, name: &str) -> Vec<u8> {
    let text = String::from_utf8(tpm.read(name)).unwrap();
    let certificate = &text[text.find("-----BEGIN").unwrap()..];
    der::pem::decode_vec(certificate.as_bytes()).unwrap().1
}

#[test]
fn certificates_of_swtpm_lead_to_its_ca() {
    let tpm = manufactured();
    let root = pem(&tpm, "swtpm-localca-rootca-cert.pem");
    let issuer = pem(&tpm, "issuer.pem");
    let now = WallTime::now();
    for (handle, certificate, template) in
        [("0x81010001", "ek-rsa2048.crt", "L-1"), ("0x81010016", "ek-secp384r1.crt", "H-3")]
    {
        tpm.run(&format!("tpm2_readpublic -c {handle} -f tpmt -o ek.pub -n ek.name"));
        let ek = Public::parse(&tpm.read("ek.pub")).unwrap();
        assert_eq!(ek.name(), tpm.read("ek.name"));
        assert_eq!(endorsement::check_template(&ek).unwrap().name, template);
        let certificate = tpm.read(certificate);
        let grade = |roots: Vec<Vec<u8>>, chain: &[Vec<u8>], now| {
            let roots = EkRoots::from_der(roots).unwrap();
            endorsement::grade(&ek, Some(&certificate), chain, &roots, false, now).map_err(|refusal| refusal.code)
        };
        assert_eq!(grade(vec![root.clone(), issuer.clone()], &[], now), Ok(Grade::Certified));
        assert_eq!(grade(vec![root.clone()], std::slice::from_ref(&issuer), now), Ok(Grade::Certified));
        assert_eq!(grade(vec![root.clone()], &[], now), Err(codes::VERIFY_EK_UNKNOWN_CA));
        assert_eq!(grade(vec![ca(&Key(signing_key(4)), "other").0], &[], now), Err(codes::VERIFY_EK_UNKNOWN_CA));
        assert_eq!(grade(vec![root.clone()], &[], WallTime(0)), Err(codes::VERIFY_EK_EXPIRED));
    }
}

#[test]
fn a_tpm_activates_what_was_made_for_its_keys() {
    let tpm = manufactured();
    tpm.run(
        "tpm2_createprimary -Q -C e -G ecc256:ecdsa-sha256:null -g sha256 -c ak.ctx \
         -a fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|sign",
    );
    tpm.run("tpm2_readpublic -Q -c ak.ctx -n ak.name");
    // The P-256 EK isn't made by swtpm_setup; the tool's default template is L-2.
    tpm.run("tpm2_createek -Q -G ecc -c 0x8101000A -u unused.pub");
    // A bare TPM has three slots, and here no resource manager hides that.
    tpm.run("tpm2_flushcontext -t");
    let name = tpm.read("ak.name");
    for (handle, template) in [("0x81010001", "L-1"), ("0x8101000A", "L-2"), ("0x81010016", "H-3")] {
        tpm.run(&format!("tpm2_readpublic -Q -c {handle} -f tpmt -o ek.pub"));
        let ek = Public::parse(&tpm.read("ek.pub")).unwrap();
        assert_eq!(endorsement::check_template(&ek).unwrap().name, template);
        let secret: Vec<u8> = (0..32).collect();
        let (id_object, encrypted) = credential::make(&ek, &name, &secret).unwrap();
        let sized = crate::node::sized;
        let file = [&[0xBA, 0xDC, 0xC0, 0xDE, 0, 0, 0, 1][..], &sized(&id_object), &sized(&encrypted)].concat();
        tpm.write("credential", &file);
        tpm.run("tpm2_startauthsession -Q --policy-session -S session");
        tpm.run("tpm2_policysecret -Q -S session -c e");
        // H-3 lets its empty authorization be used; L templates want the policy.
        let auth = if template == "H-3" { "" } else { "-P session:session" };
        tpm.run(&format!("tpm2_activatecredential -Q -c ak.ctx -C {handle} -i credential -o secret {auth}"));
        tpm.run("tpm2_flushcontext session");
        tpm.run("tpm2_flushcontext -t");
        assert_eq!(tpm.read("secret"), secret, "{template}");

        assert!(credential::make(&ek, &name, &[]).is_err());
        assert!(credential::make(&ek, &name, &[0; 65]).is_err());
    }
}

/// Certificates of real manufacturers, where the public samples are at hand.
#[test]
fn manufacturers_certificates_can_be_read() {
    let Some(samples) = samples() else { return };
    let mut certificates = Vec::new();
    for entry in std::fs::read_dir(samples.join("keylime/tpm_cert_store")).unwrap() {
        let text = std::fs::read(entry.unwrap().path()).unwrap();
        certificates.push(der::pem::decode_vec(&text).map_or_else(|_| text.clone(), |(_, der)| der));
    }
    assert!(certificates.len() >= 51);
    let roots = EkRoots::from_der(certificates).unwrap();
    assert!(!roots.is_empty());

    for (bundle, count) in
        [("MIRROR.tpm-ca-certificates.pem", 26), ("MIRROR.tpm-intermediate-ca-certificates.pem", 143)]
    {
        let text = std::fs::read_to_string(samples.join("tpm-ca-certificates").join(bundle)).unwrap();
        let certificates: Vec<_> = text
            .split_inclusive("-----END CERTIFICATE-----")
            .filter_map(|part| part.find("-----BEGIN").and_then(|start| part.get(start..)))
            .map(|pem| der::pem::decode_vec(pem.as_bytes()).unwrap().1)
            .collect();
        assert!(certificates.len() >= count, "{bundle}: {}", certificates.len());
        for (number, certificate) in (1..).zip(certificates) {
            EkRoots::from_der(vec![certificate]).unwrap_or_else(|e| panic!("{bundle}, certificate {number}: {e}"));
        }
    }
}

/// The public samples beside the checkout, or where `LEASEHOLD_TESTDATA` points; says so if absent.
fn samples() -> Option<std::path::PathBuf> {
    let path = std::env::var_os("LEASEHOLD_TESTDATA")
        .map_or_else(|| std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/testdata"), Into::into);
    if path.is_dir() {
        return Some(path);
    }
    eprintln!("SKIPPED: no samples at {}; set LEASEHOLD_TESTDATA", path.display());
    None
}
