//! Key templates: the TCG's for endorsement keys, our own for the attestation key and the node key.
//!
//! A primary key is a function of the hierarchy's seed and the template, so these bytes are what
//! makes a key the same after every boot. None of them may change within a version.

use sha2::{Digest as _, Sha256};
use tss_esapi::attributes::ObjectAttributesBuilder;
use tss_esapi::interface_types::algorithm::{HashingAlgorithm, PublicAlgorithm};
use tss_esapi::interface_types::ecc::EccCurve;
use tss_esapi::interface_types::key_bits::RsaKeyBits;
use tss_esapi::structures::{
    Digest, EccParameter, EccPoint, EccScheme, HashScheme, KeyDerivationFunctionScheme, KeyedHashScheme, Public,
    PublicBuilder, PublicEccParametersBuilder, PublicKeyRsa, PublicKeyedHashParameters, PublicRsaParametersBuilder,
    RsaExponent, RsaScheme, SymmetricDefinitionObject,
};

/// PolicySecret(TPM_RH_ENDORSEMENT) with SHA-256: "PolicyA" (TCG EK Credential Profile 2.5, B.6.2).
const POLICY_A_SHA256: [u8; 32] = [
    0x83, 0x71, 0x97, 0x67, 0x44, 0x84, 0xb3, 0xf8, 0x1a, 0x90, 0xcc, 0x8d, 0x46, 0xa5, 0xd7, 0x24, 0xfd, 0x52, 0xd7,
    0x6e, 0x06, 0x52, 0x0b, 0x64, 0xf2, 0xa1, 0xda, 0x1b, 0x33, 0x14, 0x69, 0xaa,
];

/// The same with SHA-384.
const POLICY_A_SHA384: [u8; 48] = [
    0x8b, 0xbf, 0x22, 0x66, 0x53, 0x7c, 0x17, 0x1c, 0xb5, 0x6e, 0x40, 0x3c, 0x4d, 0xc1, 0xd4, 0xb6, 0x4f, 0x43, 0x26,
    0x11, 0xdc, 0x38, 0x6e, 0x6f, 0x53, 0x20, 0x50, 0xc3, 0x27, 0x8c, 0x93, 0x0e, 0x14, 0x3e, 0x8b, 0xb1, 0x13, 0x38,
    0x24, 0xcc, 0xb4, 0x31, 0x05, 0x38, 0x71, 0xc6, 0xdb, 0x53,
];

/// PolicyAuthorizeNV of the profile's policy index with SHA-384: "PolicyC" (B.6.4).
const POLICY_C_SHA384: [u8; 48] = [
    0xd6, 0x03, 0x2c, 0xe6, 0x1f, 0x2f, 0xb3, 0xc2, 0x40, 0xeb, 0x3c, 0xf6, 0xa3, 0x32, 0x37, 0xef, 0x2b, 0x6a, 0x16,
    0xf4, 0x29, 0x3c, 0x22, 0xb4, 0x55, 0xe2, 0x61, 0xcf, 0xfd, 0x21, 0x7a, 0xd5, 0xb4, 0x94, 0x7c, 0x2d, 0x73, 0xe6,
    0x30, 0x05, 0xee, 0xd2, 0xdc, 0x2b, 0x35, 0x93, 0xd1, 0x65,
];

/// PolicyOR(PolicyA, PolicyC) with SHA-384: "PolicyB" (B.6.3).
const POLICY_B_SHA384: [u8; 48] = [
    0xb2, 0x6e, 0x7d, 0x28, 0xd1, 0x1a, 0x50, 0xbc, 0x53, 0xd8, 0x82, 0xbc, 0xf5, 0xfd, 0x3a, 0x1a, 0x07, 0x41, 0x48,
    0xbb, 0x35, 0xd3, 0xb4, 0xe4, 0xcb, 0x1c, 0x0a, 0xd9, 0xbd, 0xe4, 0x19, 0xca, 0xcb, 0x47, 0xba, 0x09, 0x69, 0x96,
    0x46, 0x15, 0x0f, 0x9f, 0xc0, 0x00, 0xf3, 0xf8, 0x0e, 0x12,
];

/// The endorsement keys this agent knows (TCG EK Credential Profile 2.5, 2.2.1.4 and 2.2.1.5).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum EkKind {
    /// Template L-2, certificate in NV 0x01C0000A.
    P256Low,
    /// Template H-3, certificate in NV 0x01C00016.
    P384High,
    /// Template L-1, certificate in NV 0x01C00002.
    Rsa2048Low,
}

impl EkKind {
    /// The order of preference: a TPM makes elliptic-curve keys in a fraction of a second, an RSA
    /// key can take a discrete part tens of seconds.
    pub const PREFERENCE: [Self; 3] = [Self::P256Low, Self::P384High, Self::Rsa2048Low];

    /// The NV index of its certificate.
    pub const fn certificate_index(self) -> u32 {
        match self {
            Self::P256Low => 0x01C0_000A,
            Self::P384High => 0x01C0_0016,
            Self::Rsa2048Low => 0x01C0_0002,
        }
    }

    /// The hash of its name and policy.
    pub const fn hash(self) -> HashingAlgorithm {
        match self {
            Self::P256Low | Self::Rsa2048Low => HashingAlgorithm::Sha256,
            Self::P384High => HashingAlgorithm::Sha384,
        }
    }

    /// The branches of PolicyOR that follow PolicySecret, where its policy is PolicyB.
    pub const fn branches(self) -> Option<[&'static [u8]; 2]> {
        match self {
            Self::P256Low | Self::Rsa2048Low => None,
            Self::P384High => Some([&POLICY_A_SHA384, &POLICY_C_SHA384]),
        }
    }

    /// The exact template.
    pub fn template(self) -> tss_esapi::Result<Public> {
        let attributes = ObjectAttributesBuilder::new()
            .with_fixed_tpm(true)
            .with_fixed_parent(true)
            .with_sensitive_data_origin(true)
            .with_admin_with_policy(true)
            .with_restricted(true)
            .with_decrypt(true)
            // The high templates may also be used with the (empty) authorisation value.
            .with_user_with_auth(self == Self::P384High)
            .build()?;
        let builder = PublicBuilder::new().with_name_hashing_algorithm(self.hash()).with_object_attributes(attributes);
        match self {
            Self::P256Low => builder
                .with_public_algorithm(PublicAlgorithm::Ecc)
                .with_auth_policy(Digest::try_from(POLICY_A_SHA256.as_slice())?)
                .with_ecc_parameters(
                    PublicEccParametersBuilder::new_restricted_decryption_key(
                        SymmetricDefinitionObject::AES_128_CFB,
                        EccCurve::NistP256,
                    )
                    .build()?,
                )
                .with_ecc_unique_identifier(point(vec![0; 32], vec![0; 32])?)
                .build(),
            Self::P384High => builder
                .with_public_algorithm(PublicAlgorithm::Ecc)
                .with_auth_policy(Digest::try_from(POLICY_B_SHA384.as_slice())?)
                .with_ecc_parameters(
                    PublicEccParametersBuilder::new_restricted_decryption_key(
                        SymmetricDefinitionObject::AES_256_CFB,
                        EccCurve::NistP384,
                    )
                    .build()?,
                )
                .with_ecc_unique_identifier(EccPoint::default())
                .build(),
            Self::Rsa2048Low => builder
                .with_public_algorithm(PublicAlgorithm::Rsa)
                .with_auth_policy(Digest::try_from(POLICY_A_SHA256.as_slice())?)
                .with_rsa_parameters(
                    PublicRsaParametersBuilder::new()
                        .with_symmetric(SymmetricDefinitionObject::AES_128_CFB)
                        .with_scheme(RsaScheme::Null)
                        .with_key_bits(RsaKeyBits::Rsa2048)
                        .with_exponent(RsaExponent::ZERO_EXPONENT)
                        .with_is_decryption_key(true)
                        .with_restricted(true)
                        .build()?,
                )
                .with_rsa_unique_identifier(PublicKeyRsa::try_from(vec![0; 256])?)
                .build(),
        }
    }

    /// Whether `public` is this template with a key filled in.
    pub fn matches(self, public: &Public) -> bool {
        self.template().is_ok_and(|template| same_template(&template, public))
    }
}

/// Whether two public areas differ in nothing but their unique fields.
pub(super) fn same_template(one: &Public, other: &Public) -> bool {
    match (one, other) {
        (
            Public::Ecc { object_attributes, name_hashing_algorithm, auth_policy, parameters, .. },
            Public::Ecc {
                object_attributes: other_attributes,
                name_hashing_algorithm: other_hash,
                auth_policy: other_policy,
                parameters: other_parameters,
                ..
            },
        ) => {
            object_attributes == other_attributes
                && name_hashing_algorithm == other_hash
                && auth_policy == other_policy
                && parameters == other_parameters
        }
        (
            Public::Rsa { object_attributes, name_hashing_algorithm, auth_policy, parameters, .. },
            Public::Rsa {
                object_attributes: other_attributes,
                name_hashing_algorithm: other_hash,
                auth_policy: other_policy,
                parameters: other_parameters,
                ..
            },
        ) => {
            object_attributes == other_attributes
                && name_hashing_algorithm == other_hash
                && auth_policy == other_policy
                && parameters == other_parameters
        }
        (
            Public::KeyedHash { object_attributes, name_hashing_algorithm, auth_policy, parameters, .. },
            Public::KeyedHash {
                object_attributes: other_attributes,
                name_hashing_algorithm: other_hash,
                auth_policy: other_policy,
                parameters: other_parameters,
                ..
            },
        ) => {
            object_attributes == other_attributes
                && name_hashing_algorithm == other_hash
                && auth_policy == other_policy
                && parameters == other_parameters
        }
        _ => false,
    }
}

/// The storage root key: ECC P-256, attributes 0x00030472 (TCG TPM v2.0 Provisioning Guidance 1.0,
/// 7.5.1: the EK's template L-2 without its policy, usable with the empty authorisation, `noDA`).
pub(super) fn storage_root_key() -> tss_esapi::Result<Public> {
    let attributes = ObjectAttributesBuilder::new()
        .with_fixed_tpm(true)
        .with_fixed_parent(true)
        .with_sensitive_data_origin(true)
        .with_user_with_auth(true)
        .with_no_da(true)
        .with_restricted(true)
        .with_decrypt(true)
        .build()?;
    PublicBuilder::new()
        .with_public_algorithm(PublicAlgorithm::Ecc)
        .with_name_hashing_algorithm(HashingAlgorithm::Sha256)
        .with_object_attributes(attributes)
        .with_ecc_parameters(
            PublicEccParametersBuilder::new_restricted_decryption_key(
                SymmetricDefinitionObject::AES_128_CFB,
                EccCurve::NistP256,
            )
            .build()?,
        )
        .with_ecc_unique_identifier(point(vec![0; 32], vec![0; 32])?)
        .build()
}

/// A sealed secret: a keyed hash object that neither signs nor decrypts, attributes 0x00000452
/// (Part 3, 12.1: such an object holds data for TPM2_Unseal).
pub(super) fn sealed_data() -> tss_esapi::Result<Public> {
    let attributes = ObjectAttributesBuilder::new()
        .with_fixed_tpm(true)
        .with_fixed_parent(true)
        .with_user_with_auth(true)
        .with_no_da(true)
        .build()?;
    PublicBuilder::new()
        .with_public_algorithm(PublicAlgorithm::KeyedHash)
        .with_name_hashing_algorithm(HashingAlgorithm::Sha256)
        .with_object_attributes(attributes)
        .with_keyed_hash_parameters(PublicKeyedHashParameters::new(KeyedHashScheme::Null))
        .with_keyed_hash_unique_identifier(Digest::default())
        .build()
}

/// The attestation key: restricted ECDSA P-256 with SHA-256, attributes 0x00050472.
///
/// `noDA`: a power cut while a key without it is in use counts as a failed authorisation, and a
/// few of them lock the TPM.
pub(super) fn attestation_key() -> tss_esapi::Result<Public> {
    signing_key(true, EccPoint::default())
}

/// The node key: unrestricted ECDSA P-256 with SHA-256, attributes 0x00040472; another one for
/// each trust domain.
pub(super) fn node_key(trust_domain: &str) -> tss_esapi::Result<Public> {
    let mut hash = Sha256::new();
    hash.update(b"leasehold-node-key-v1\0");
    hash.update(trust_domain.as_bytes());
    signing_key(false, point(hash.finalize().to_vec(), Vec::new())?)
}

/// The bytes a certificate of this key contains: the RSA modulus, or the uncompressed point.
pub(super) fn key_bytes(public: &Public) -> Option<Vec<u8>> {
    match public {
        Public::Rsa { unique, .. } => Some(unique.value().to_vec()),
        Public::Ecc { unique, parameters, .. } => {
            let size: usize = match parameters.ecc_curve() {
                EccCurve::NistP256 => 32,
                EccCurve::NistP384 => 48,
                _ => return None,
            };
            let mut bytes = vec![4];
            for coordinate in [unique.x().value(), unique.y().value()] {
                // Some TPMs drop leading zeros; a certificate never does.
                bytes.resize(bytes.len() + size.checked_sub(coordinate.len())?, 0);
                bytes.extend_from_slice(coordinate);
            }
            Some(bytes)
        }
        _ => None,
    }
}

fn signing_key(restricted: bool, unique: EccPoint) -> tss_esapi::Result<Public> {
    let attributes = ObjectAttributesBuilder::new()
        .with_fixed_tpm(true)
        .with_fixed_parent(true)
        .with_sensitive_data_origin(true)
        .with_user_with_auth(true)
        .with_no_da(true)
        .with_restricted(restricted)
        .with_sign_encrypt(true)
        .build()?;
    PublicBuilder::new()
        .with_public_algorithm(PublicAlgorithm::Ecc)
        .with_name_hashing_algorithm(HashingAlgorithm::Sha256)
        .with_object_attributes(attributes)
        .with_ecc_parameters(
            PublicEccParametersBuilder::new()
                .with_ecc_scheme(EccScheme::EcDsa(HashScheme::new(HashingAlgorithm::Sha256)))
                .with_curve(EccCurve::NistP256)
                .with_key_derivation_function_scheme(KeyDerivationFunctionScheme::Null)
                .with_is_signing_key(true)
                .with_restricted(restricted)
                .build()?,
        )
        .with_ecc_unique_identifier(unique)
        .build()
}

fn point(x: Vec<u8>, y: Vec<u8>) -> tss_esapi::Result<EccPoint> {
    Ok(EccPoint::new(EccParameter::try_from(x)?, EccParameter::try_from(y)?))
}

#[cfg(test)]
mod tests {
    use sha2::Sha384;
    use tss_esapi::traits::Marshall;

    use super::*;

    #[test]
    fn policies_are_what_the_profile_computes() {
        // TPM_CC_PolicySecret and TPM_RH_ENDORSEMENT, then an empty policyRef (Part 3, 23.4).
        let secret = [0x00, 0x00, 0x01, 0x51, 0x40, 0x00, 0x00, 0x0B];
        let a256 = Sha256::digest(Sha256::digest([&[0; 32][..], &secret].concat()));
        assert_eq!(a256.as_slice(), POLICY_A_SHA256);
        let a384 = Sha384::digest(Sha384::digest([&[0; 48][..], &secret].concat()));
        assert_eq!(a384.as_slice(), POLICY_A_SHA384);
        // TPM_CC_PolicyOR over both branches (Part 3, 23.6).
        let b384 = Sha384::digest([&[0; 48][..], &[0, 0, 1, 0x71], &POLICY_A_SHA384, &POLICY_C_SHA384].concat());
        assert_eq!(b384.as_slice(), POLICY_B_SHA384);
    }

    #[test]
    fn templates_have_the_exact_attributes() {
        let attributes = |public: Public| hex::encode(&public.marshall().unwrap()[4..8]);
        assert_eq!(attributes(EkKind::P256Low.template().unwrap()), "000300b2");
        assert_eq!(attributes(EkKind::Rsa2048Low.template().unwrap()), "000300b2");
        assert_eq!(attributes(EkKind::P384High.template().unwrap()), "000300f2");
        assert_eq!(attributes(attestation_key().unwrap()), "00050472");
        assert_eq!(attributes(node_key("example.org").unwrap()), "00040472");
        assert_eq!(attributes(storage_root_key().unwrap()), "00030472");
        assert_eq!(attributes(sealed_data().unwrap()), "00000452");
    }

    #[test]
    fn each_trust_domain_has_its_own_node_key() {
        assert_ne!(
            node_key("one.example").unwrap().marshall().unwrap(),
            node_key("two.example").unwrap().marshall().unwrap()
        );
    }

    #[test]
    fn only_its_own_template_matches() {
        for kind in EkKind::PREFERENCE {
            for other in EkKind::PREFERENCE {
                assert_eq!(kind.matches(&other.template().unwrap()), kind == other);
            }
            assert!(!kind.matches(&attestation_key().unwrap()));
        }
    }
}
