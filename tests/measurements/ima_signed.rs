//! Signatures of files in `ima-sig`: made here with keys of every kind that is supported.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeyPair as RsaKeyPair;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, ECDSA_P521_SHA512_ASN1_SIGNING, EcdsaKeyPair,
    EcdsaSigningAlgorithm, RSA_PKCS1_SHA256, RSA_PKCS1_SHA384, RSA_PKCS1_SHA512, RsaSignatureEncoding,
};
use der::Decode;
use leasehold::measurements::LogHash;
use leasehold::tpm::Bank;
use leasehold::verify::runtime::{Checkpoint, CompiledRules, Finding, Judge, RuntimeRules};
use rcgen::{
    CertificateParams, CustomExtension, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384,
    PKCS_ECDSA_P521_SHA512, PKCS_ED25519, PKCS_RSA_SHA256, RsaKeySize,
};
use x509_cert::Certificate;

use crate::ima_made::List;

const CONTENT: &[u8] = b"#!/bin/sh\n";

/// A signer's key.
enum Key {
    Ecdsa(&'static EcdsaSigningAlgorithm),
    Rsa(&'static RsaSignatureEncoding),
}

struct Signer {
    pair: KeyPair,
    key: Key,
    certificate: Vec<u8>,
}

impl Signer {
    fn new(pair: KeyPair, key: Key) -> Self {
        let certificate = CertificateParams::default().self_signed(&pair).unwrap().der().to_vec();
        Self { pair, key, certificate }
    }

    fn p256() -> Self {
        Self::new(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap(), Key::Ecdsa(&ECDSA_P256_SHA256_ASN1_SIGNING))
    }

    fn rsa(encoding: &'static RsaSignatureEncoding) -> Self {
        Self::new(KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap(), Key::Rsa(encoding))
    }

    /// The end of the SHA-1 of the public key: the key's identifier as evmctl computes it.
    fn id(&self) -> [u8; 4] {
        let certificate = Certificate::from_der(&self.certificate).unwrap();
        let key = certificate.tbs_certificate().subject_public_key_info().subject_public_key.raw_bytes().to_vec();
        *LogHash::Sha1.digest(&[&key]).last_chunk().unwrap()
    }

    fn sign(&self, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        let encoded = self.pair.serialize_der();
        match self.key {
            Key::Ecdsa(algorithm) => {
                EcdsaKeyPair::from_pkcs8(algorithm, &encoded).unwrap().sign(&random, message).unwrap().as_ref().to_vec()
            }
            Key::Rsa(encoding) => {
                let pair = RsaKeyPair::from_pkcs8(&encoded).unwrap();
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(encoding, &random, message, &mut signature).unwrap();
                signature
            }
        }
    }

    fn rules(&self) -> CompiledRules {
        RuntimeRules { signers: vec![self.certificate.clone()], ..RuntimeRules::default() }.compile().unwrap()
    }
}

/// The field as the kernel lists it: header and signature.
fn field(version: u8, algorithm: u8, id: [u8; 4], signature: &[u8]) -> Vec<u8> {
    let length = u16::try_from(signature.len()).unwrap().to_be_bytes();
    [&[3, version, algorithm][..], &id, &length, signature].concat()
}

/// What is said of a file with this digest and signature; `None`: allowed.
fn judged(rules: &CompiledRules, hash: LogHash, digest: &[u8], signature: &[u8]) -> Option<Finding> {
    let mut list = List::new();
    list.signed(b"/opt/tool", hash.as_str(), digest, signature);
    let mut judge = Judge::new(Some(rules), Checkpoint::start(Bank::Sha256));
    assert_eq!(judge.take(&list.bytes, Some(&list.quoted())), Ok(true));
    judge.at.unlisted.pop()
}

#[test]
fn a_file_signed_by_a_signer_is_allowed() {
    let ecdsa = |kind, algorithm| Signer::new(KeyPair::generate_for(kind).unwrap(), Key::Ecdsa(algorithm));
    for (signer, hash, algorithm) in [
        (Signer::p256(), LogHash::Sha256, 4),
        (ecdsa(&PKCS_ECDSA_P384_SHA384, &ECDSA_P384_SHA384_ASN1_SIGNING), LogHash::Sha384, 5),
        (ecdsa(&PKCS_ECDSA_P521_SHA512, &ECDSA_P521_SHA512_ASN1_SIGNING), LogHash::Sha512, 6),
        (Signer::rsa(&RSA_PKCS1_SHA256), LogHash::Sha256, 4),
        (Signer::rsa(&RSA_PKCS1_SHA384), LogHash::Sha384, 5),
        (Signer::rsa(&RSA_PKCS1_SHA512), LogHash::Sha512, 6),
    ] {
        let rules = signer.rules();
        let digest = hash.digest(&[CONTENT]);
        let signature = signer.sign(CONTENT);
        let good = field(2, algorithm, signer.id(), &signature);
        assert_eq!(judged(&rules, hash, &digest, &good), None);

        // Another file under the same signature, and the same file under another's.
        let other = judged(&rules, hash, &hash.digest(&[b"evil"]), &good).unwrap();
        assert!(other.why.contains("not valid"), "{}", other.why);
        for at in 0..signature.len() {
            let mut altered = signature.clone();
            altered[at] ^= 0x10;
            assert!(judged(&rules, hash, &digest, &field(2, algorithm, signer.id(), &altered)).is_some(), "byte {at}");
        }
        let stranger = Signer::p256();
        let forged = field(2, algorithm, signer.id(), &stranger.sign(CONTENT));
        assert!(judged(&rules, hash, &digest, &forged).unwrap().why.contains("not valid"));
        let foreign = field(2, algorithm, stranger.id(), &stranger.sign(CONTENT));
        let why = judged(&rules, hash, &digest, &foreign).unwrap().why;
        assert!(why.contains(&hex::encode(stranger.id())) && why.contains("no signer"), "{why}");
    }
}

#[test]
fn what_is_no_such_signature_allows_nothing_and_says_what_it_is() {
    let signer = Signer::p256();
    let rules = signer.rules();
    let digest = LogHash::Sha256.digest(&[CONTENT]);
    let signature = signer.sign(CONTENT);
    let good = field(2, 4, signer.id(), &signature);
    let with = |at: usize, byte: u8| {
        let mut field = good.clone();
        field[at] = byte;
        field
    };
    for (what, field, why) in [
        ("none", Vec::new(), "no rule allows it"),
        ("version 3", with(1, 3), "version 3"),
        ("version 1", with(1, 1), "version 1"),
        ("fs-verity", with(0, 6), "fs-verity"),
        ("EVM", with(0, 5), "EVM"),
        ("a hash in place of a signature", with(0, 4), "no known type"),
        ("another hash", with(2, 5), "hash algorithm 5"),
        ("SHA-1", with(2, 2), "hash algorithm 2"),
        ("cut within the header", good[..8].to_vec(), "cut short"),
        ("only a type", good[..1].to_vec(), "no known type"),
        ("cut", good[..good.len() - 1].to_vec(), "another length"),
        ("longer", [&good[..], &[0]].concat(), "another length"),
        ("empty", field(2, 4, signer.id(), &[]), "not valid"),
    ] {
        let found = judged(&rules, LogHash::Sha256, &digest, &field).expect(what);
        assert!(found.why.contains(why), "{what}: {}", found.why);
    }
    // No signer: a signature counts for nothing.
    let none = RuntimeRules::default().compile().unwrap();
    assert!(judged(&none, LogHash::Sha256, &digest, &good).unwrap().why.contains("no signer"));
    // A SHA-1 digest is not believed, whoever signed it.
    let weak = judged(&rules, LogHash::Sha1, &LogHash::Sha1.digest(&[CONTENT]), &field(2, 2, signer.id(), &signature));
    assert!(weak.unwrap().why.contains("sha1"));
}

/// evmctl takes the key's id from the certificate where that has one.
#[test]
fn the_certificates_own_key_identifier_finds_the_key_too() {
    let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let mut params = CertificateParams::default();
    let identifier = [&[0x04, 4][..], b"\x11\x22\x33\x44"].concat();
    params.custom_extensions.push(CustomExtension::from_oid_content(&[2, 5, 29, 14], identifier));
    let certificate = params.self_signed(&pair).unwrap().der().to_vec();
    let signer = Signer { pair, key: Key::Ecdsa(&ECDSA_P256_SHA256_ASN1_SIGNING), certificate };
    let digest = LogHash::Sha256.digest(&[CONTENT]);
    for id in [[0x11, 0x22, 0x33, 0x44], signer.id()] {
        assert_eq!(judged(&signer.rules(), LogHash::Sha256, &digest, &field(2, 4, id, &signer.sign(CONTENT))), None);
    }
    // Among many signers the right one is found, also where ids collide.
    let twin = Signer { certificate: colliding(), ..Signer::p256() };
    let signers = vec![twin.certificate, Signer::p256().certificate, signer.certificate.clone()];
    let rules = RuntimeRules { signers, ..RuntimeRules::default() }.compile().unwrap();
    let field = field(2, 4, [0x11, 0x22, 0x33, 0x44], &signer.sign(CONTENT));
    assert_eq!(judged(&rules, LogHash::Sha256, &digest, &field), None);
}

fn colliding() -> Vec<u8> {
    let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let mut params = CertificateParams::default();
    let identifier = [&[0x04, 5][..], b"\x00\x11\x22\x33\x44"].concat();
    params.custom_extensions.push(CustomExtension::from_oid_content(&[2, 5, 29, 14], identifier));
    params.self_signed(&pair).unwrap().der().to_vec()
}

#[test]
fn a_certificate_of_another_kind_of_key_is_no_signers() {
    let certificate = CertificateParams::default()
        .self_signed(&KeyPair::generate_for(&PKCS_ED25519).unwrap())
        .unwrap()
        .der()
        .to_vec();
    let refusal = RuntimeRules { signers: vec![certificate], ..RuntimeRules::default() }.check().unwrap_err();
    assert!(refusal.found.contains("no kind that is supported") && refusal.expected.contains("P-256"), "{refusal}");
}
