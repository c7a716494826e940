//! The keys that JWT-SVIDs are verified with, and their form as a JWK Set (RFC 7517, RFC 7518 6.2).

use std::collections::BTreeMap;

use p256::ecdsa::VerifyingKey;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{decoded, encoded, json, malformed};
use crate::codes::Refusal;
use crate::protocol::JwtKey;

/// The keys of one trust domain, by `kid`. Each `kid` names one key.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TokenKeys(BTreeMap<String, VerifyingKey>);

impl TokenKeys {
    /// The keys of a bundle.
    ///
    /// # Errors
    /// [`crate::codes::TOKEN_MALFORMED`] when one isn't on the curve or hasn't its own name.
    pub fn new(keys: &[JwtKey]) -> Result<Self, Refusal> {
        let mut known = BTreeMap::new();
        for key in keys {
            let wrong = |found: &str| malformed(found).at("a key of the bundle");
            let point = VerifyingKey::from_sec1_bytes(&key.public).map_err(|_| wrong("no point of P-256"))?;
            if thumbprint(&key.public).as_deref() != Some(key.kid.as_str()) {
                return Err(wrong("its kid isn't its thumbprint"));
            }
            known.insert(key.kid.clone(), point);
        }
        Ok(Self(known))
    }

    /// The keys for JWT-SVIDs in a SPIFFE bundle or a Workload API's JWK Set: other uses, types and
    /// curves are left out, as SPIFFE asks (JWT-SVID 6.2, Trust Domain and Bundle 4.2).
    ///
    /// # Errors
    /// [`crate::codes::TOKEN_MALFORMED`] when it is no JWK Set, or two keys have one `kid`.
    pub fn from_jwks(document: &[u8]) -> Result<Self, Refusal> {
        let document = json::object(document, "JWK Set")?;
        let keys = document.get("keys").and_then(Value::as_array).ok_or_else(|| malformed("no keys").at("JWK Set"))?;
        let mut known = BTreeMap::new();
        for key in keys {
            let text = |name: &str| key.get(name).and_then(Value::as_str);
            let ours = text("kty") == Some("EC") && text("crv") == Some("P-256");
            if !ours || !matches!(text("use"), None | Some("jwt-svid")) {
                continue;
            }
            let (Some(kid), Some(x), Some(y)) = (text("kid"), text("x"), text("y")) else { continue };
            let point = [vec![4], decoded(x, "x")?, decoded(y, "y")?].concat();
            let point = VerifyingKey::from_sec1_bytes(&point).map_err(|_| malformed("no point of P-256").at("JWK"))?;
            if known.insert(kid.to_owned(), point).is_some() {
                return Err(malformed("one kid for two keys").at("JWK Set"));
            }
        }
        Ok(Self(known))
    }

    pub(super) fn get(&self, kid: &str) -> Option<&VerifyingKey> {
        self.0.get(kid)
    }
}

/// One key as a JWK of a SPIFFE bundle (JWT-SVID 6.1).
pub fn jwk(key: &JwtKey) -> Value {
    let (x, y) = coordinates(&key.public).unwrap_or_default();
    json!({ "kty": "EC", "crv": "P-256", "use": "jwt-svid", "kid": key.kid, "x": x, "y": y })
}

/// The keys as the Workload API hands them out: a JWK Set with nothing else in it (Workload API, 6.2.2).
pub fn jwks(keys: &[JwtKey]) -> Vec<u8> {
    json!({ "keys": keys.iter().map(jwk).collect::<Vec<_>>() }).to_string().into_bytes()
}

/// The `kid` of a P-256 key: SHA-256 over its required JWK members in their order (RFC 7638, 3).
pub fn thumbprint(public: &[u8]) -> Option<String> {
    let (x, y) = coordinates(public)?;
    Some(encoded(&Sha256::digest(format!(r#"{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}"#))))
}

/// Both coordinates of an uncompressed point, base64url.
fn coordinates(public: &[u8]) -> Option<(String, String)> {
    let [4, rest @ ..] = public else { return None };
    let (x, y) = rest.split_at_checked(32).filter(|(_, y)| y.len() == 32)?;
    Some((encoded(x), encoded(y)))
}
