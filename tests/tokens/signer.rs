//! A signer of tokens that says whatever a test wants.

use base64ct::{Base64UrlUnpadded, Encoding};
use leasehold::clock::WallTime;
use leasehold::codes::Refusal;
use leasehold::credentials::token::{TokenKeys, Verified, thumbprint};
use leasehold::identity::TrustDomain;
use leasehold::protocol::JwtKey;
use p256::ecdsa::signature::Signer as _;
use p256::ecdsa::{Signature, SigningKey};
use serde_json::{Value, json};

pub const NOW: WallTime = WallTime(1_800_000_000);
pub const ID: &str = "spiffe://example.org/app";
pub const AUDIENCE: &str = "api";

/// A key that the verifier knows.
pub struct Signer {
    pub key: SigningKey,
    pub kid: String,
    pub public: Vec<u8>,
}

impl Signer {
    pub fn new(seed: u8) -> Self {
        let key = SigningKey::from_slice(&[seed; 32]).unwrap();
        let public = key.verifying_key().to_sec1_point(false).as_bytes().to_vec();
        Self { key, kid: thumbprint(&public).unwrap(), public }
    }

    pub fn jwt_key(&self) -> JwtKey {
        JwtKey { kid: self.kid.clone(), public: self.public.clone() }
    }

    pub fn keys(&self) -> TokenKeys {
        TokenKeys::new(&[self.jwt_key()]).unwrap()
    }

    pub fn header(&self) -> Value {
        json!({ "alg": "ES256", "kid": self.kid, "typ": "JWT" })
    }

    pub fn sign(&self, header: &str, claims: &str) -> String {
        let signed = format!("{}.{}", encoded(header.as_bytes()), encoded(claims.as_bytes()));
        let signature = self.raw(signed.as_bytes());
        format!("{signed}.{}", encoded(&signature))
    }

    /// r and s over these bytes, with the lower s.
    pub fn raw(&self, bytes: &[u8]) -> Vec<u8> {
        let signature: Signature = self.key.sign(bytes);
        signature.normalize_s().to_bytes().to_vec()
    }

    /// A good token with these claims.
    pub fn token(&self, claims: &Value) -> String {
        self.sign(&self.header().to_string(), &claims.to_string())
    }
}

/// Claims that are good until NOW + 60 s.
pub fn claims() -> Value {
    json!({ "sub": ID, "aud": [AUDIENCE], "exp": NOW.0 + 60, "iat": NOW.0, "jti": "1", "decision": "2", "purpose": "tests" })
}

/// The good claims with one that is another, or none at all for `None`.
pub fn with(name: &str, value: Option<Value>) -> Value {
    let mut claims = claims();
    let members = claims.as_object_mut().unwrap();
    match value {
        Some(value) => drop(members.insert(name.to_owned(), value)),
        None => drop(members.remove(name)),
    }
    claims
}

pub fn encoded(bytes: &[u8]) -> String {
    Base64UrlUnpadded::encode_string(bytes)
}

pub fn read(token: &str, keys: &TokenKeys) -> Result<Verified, Refusal> {
    Verified::read(token, AUDIENCE, keys, &TrustDomain::new("example.org").unwrap(), NOW)
}
