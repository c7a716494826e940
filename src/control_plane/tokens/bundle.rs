//! The trust domain's SPIFFE bundle (Trust Domain and Bundle, 4), for whoever verifies its SVIDs.

use base64ct::{Base64, Encoding};
use p256::ecdsa::VerifyingKey;
use p256::pkcs8::DecodePublicKey;
use serde_json::{Value, json};

use crate::codes::Refusal;
use crate::control_plane::issuer;
use crate::credentials::token;
use crate::protocol::{Bundle, JwtKey};

/// How often it is worth asking for it, in seconds: SPIFFE's default (4.1.2, 6.1).
const REFRESH: u64 = 300;

/// The bundle as a JWK Set: one key for each CA (X509-SVID 6.1) and for each signer of tokens (JWT-SVID 6.1).
///
/// # Errors
/// [`crate::codes::STORE_FAILED`] when a certificate of ours can't be read.
pub fn document(bundle: &Bundle) -> Result<Vec<u8>, Refusal> {
    let mut keys: Vec<Value> = Vec::new();
    for certificate in &bundle.certificates {
        let spki = issuer::spki_of(certificate)?;
        let key = VerifyingKey::from_public_key_der(&spki)
            .map_err(|e| Refusal::new(crate::codes::STORE_FAILED, format!("a CA's key: {e}")))?;
        // The same members as a token's key, but for the use and the name, which a CA's must not have.
        let public = key.to_sec1_point(false).as_bytes().to_vec();
        let mut jwk = token::jwk(&JwtKey { kid: String::new(), public });
        if let Some(members) = jwk.as_object_mut() {
            members.remove("kid");
            members.insert("use".to_owned(), json!("x509-svid"));
            members.insert("x5c".to_owned(), json!([Base64::encode_string(certificate)]));
        }
        keys.push(jwk);
    }
    keys.extend(bundle.jwt_keys.iter().map(token::jwk));
    let document = json!({ "keys": keys, "spiffe_sequence": bundle.sequence, "spiffe_refresh_hint": REFRESH });
    Ok(document.to_string().into_bytes())
}
