//! TPM2_MakeCredential without a TPM (TPM 2.0 Part 1, 24 "Credential Protection").
//!
//! A secret is wrapped so that only the TPM with the endorsement key's private part gives it back,
//! and only if a key of the given *name* is loaded in it. Whoever returns the secret has both.

use aws_lc_rs::agreement::{self, ECDH_P256, ECDH_P384, UnparsedPublicKey};
use aws_lc_rs::cipher::{AES_128, AES_256, EncryptingKey, EncryptionContext, UnboundCipherKey};
use aws_lc_rs::hmac;
use aws_lc_rs::iv::FixedLength;
use aws_lc_rs::rsa::{OAEP_SHA256_MGF1SHA256, OaepPublicEncryptingKey, PublicEncryptingKey};

use super::endorsement;
use crate::codes::{self, Refusal};
use crate::secret::{Zeroizing, random};
use crate::tpm::structures::{HashAlgorithm, Kind, Public};

/// Labels of the key derivations, with the NUL that is part of them.
const IDENTITY: &[u8] = b"IDENTITY\0";
const STORAGE: &[u8] = b"STORAGE\0";
const INTEGRITY: &[u8] = b"INTEGRITY\0";

/// Wraps `secret` for the TPM of `ek` and the key of this `name`. Gives the contents of
/// TPM2B_ID_OBJECT and TPM2B_ENCRYPTED_SECRET (Part 2, 12.4.3 and 11.4.33).
///
/// `name` must have been computed from the public area that will be trusted, never received.
///
/// # Errors
/// [`codes::VERIFY_EK_TEMPLATE`] when `ek` is not of a TCG template; [`codes::TPM_STRUCTURE`] when
/// its key is none, or `secret` is empty or longer than a digest of the EK's nameAlg.
pub fn make(ek: &Public, name: &[u8], secret: &[u8]) -> Result<(Vec<u8>, Vec<u8>), Refusal> {
    let bits = endorsement::check_template(ek)?.aes_bits;
    let size = digest_size(ek.name_alg);
    if secret.is_empty() || secret.len() > size {
        return Err(Refusal::new(codes::TPM_STRUCTURE, format!("a secret of {} bytes", secret.len()))
            .expected(format!("1 to {size}")));
    }
    let (seed, encrypted_secret) = seed(ek)?;
    let key = kdfa(ek.name_alg, &seed, STORAGE, name, bits);
    let mut identity = Zeroizing::new(sized(secret));
    encrypt(&key, &mut identity)?;
    let integrity = kdfa(ek.name_alg, &seed, INTEGRITY, &[], u32::try_from(size * 8).unwrap_or(u32::MAX));
    let mac = mac(ek.name_alg, &integrity, &[&identity, name]);
    let id_object = [&sized(mac.as_ref())[..], &identity].concat();
    Ok((id_object, encrypted_secret))
}

/// A fresh seed and its wrapping under the EK (Part 1, B.10.4 for RSA, C.6.4 for ECC).
fn seed(ek: &Public) -> Result<(Zeroizing<Vec<u8>>, Vec<u8>), Refusal> {
    let broken = |what: &str| Refusal::new(codes::TPM_STRUCTURE, what).at("endorsement key");
    match &ek.kind {
        Kind::Rsa { .. } => {
            let key = PublicEncryptingKey::from_der(&ek.spki_der()?).map_err(|_| broken("no RSA key"))?;
            let key = OaepPublicEncryptingKey::new(key).map_err(|_| broken("no RSA key"))?;
            let seed = Zeroizing::new(random::<32>().map_err(|e| broken(&e.to_string()))?.to_vec());
            let mut wrapped = vec![0; key.ciphertext_size()];
            let length = key
                .encrypt(&OAEP_SHA256_MGF1SHA256, &seed, &mut wrapped, Some(IDENTITY))
                .map_err(|_| broken("no RSA-OAEP with this key"))?
                .len();
            wrapped.truncate(length);
            Ok((seed, wrapped))
        }
        Kind::P256 { x, y } => agree(ek.name_alg, &ECDH_P256, x, y).ok_or_else(|| broken("a point not on P-256")),
        Kind::P384 { x, y } => agree(ek.name_alg, &ECDH_P384, x, y).ok_or_else(|| broken("a point not on P-384")),
    }
}

/// One-pass Diffie-Hellman with an ephemeral key; its public point is the wrapping.
fn agree(
    hash: HashAlgorithm,
    curve: &'static agreement::Algorithm,
    x: &[u8],
    y: &[u8],
) -> Option<(Zeroizing<Vec<u8>>, Vec<u8>)> {
    let ephemeral = agreement::PrivateKey::generate(curve).ok()?;
    let public = ephemeral.compute_public_key().ok()?;
    // Uncompressed: 0x04, x and y.
    let point = public.as_ref().get(1..)?;
    let (ephemeral_x, ephemeral_y) = point.split_at_checked(point.len() / 2)?;
    let peer = UnparsedPublicKey::new(curve, [&[4][..], x, y].concat());
    let seed = agreement::agree(&ephemeral, peer, (), |shared| Ok(kdfe(hash, shared, ephemeral_x, x))).ok()?;
    Some((seed, [sized(ephemeral_x), sized(ephemeral_y)].concat()))
}

/// KDFe (Part 1, 11.4.10.3) for as many bits as the hash has: one block.
fn kdfe(hash: HashAlgorithm, shared: &[u8], party_u: &[u8], party_v: &[u8]) -> Zeroizing<Vec<u8>> {
    Zeroizing::new(hash.digest(&[&1u32.to_be_bytes(), shared, IDENTITY, party_u, party_v]))
}

/// KDFa (Part 1, 11.4.10.2) for at most as many bits as the hash has: one block.
fn kdfa(hash: HashAlgorithm, key: &[u8], label: &[u8], context: &[u8], bits: u32) -> Zeroizing<Vec<u8>> {
    let block = mac(hash, key, &[&1u32.to_be_bytes(), label, context, &bits.to_be_bytes()]);
    let size = usize::try_from(bits / 8).unwrap_or(usize::MAX);
    Zeroizing::new(block.as_ref().iter().copied().take(size).collect())
}

/// AES-CFB with an IV of zeros (Part 1, 24.4): the key is used once.
fn encrypt(key: &[u8], data: &mut [u8]) -> Result<(), Refusal> {
    let fail = |_| Refusal::new(codes::TPM_STRUCTURE, "AES-CFB is not available");
    let algorithm = if key.len() == 16 { &AES_128 } else { &AES_256 };
    let key = EncryptingKey::cfb128(UnboundCipherKey::new(algorithm, key).map_err(fail)?).map_err(fail)?;
    key.less_safe_encrypt(data, EncryptionContext::Iv128(FixedLength::from([0; 16]))).map_err(fail)?;
    Ok(())
}

fn mac(hash: HashAlgorithm, key: &[u8], parts: &[&[u8]]) -> hmac::Tag {
    let algorithm = match hash {
        HashAlgorithm::Sha256 => hmac::HMAC_SHA256,
        HashAlgorithm::Sha384 => hmac::HMAC_SHA384,
        HashAlgorithm::Sha512 => hmac::HMAC_SHA512,
    };
    let mut context = hmac::Context::with_key(&hmac::Key::new(algorithm, key));
    for part in parts {
        context.update(part);
    }
    context.sign()
}

/// A TPM2B; everything put in one here is shorter than 100 bytes.
fn sized(bytes: &[u8]) -> Vec<u8> {
    let size = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
    [&size.to_be_bytes()[..], bytes].concat()
}

const fn digest_size(hash: HashAlgorithm) -> usize {
    match hash {
        HashAlgorithm::Sha256 => 32,
        HashAlgorithm::Sha384 => 48,
        HashAlgorithm::Sha512 => 64,
    }
}
