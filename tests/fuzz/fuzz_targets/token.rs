//! JWT-SVIDs: as they come, and with a signature that holds over whatever header and claims they have.
#![no_main]

use std::sync::LazyLock;

use base64ct::{Base64UrlUnpadded, Encoding};
use leasehold::clock::WallTime;
use leasehold::credentials::token::{TokenKeys, Verified, thumbprint};
use leasehold::identity::TrustDomain;
use leasehold::protocol::JwtKey;
use p256::ecdsa::signature::Signer;
use p256::ecdsa::{Signature, SigningKey};

/// Of nobody: it signs what the fuzzer makes.
static KEY: LazyLock<SigningKey> = LazyLock::new(|| SigningKey::from_slice(&[7; 32]).expect("a scalar"));
const NOW: WallTime = WallTime(1_800_000_000);

fn encoded(bytes: &[u8]) -> String {
    Base64UrlUnpadded::encode_string(bytes)
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let public = KEY.verifying_key().to_sec1_point(false).as_bytes().to_vec();
    let kid = thumbprint(&public).expect("a point");
    let keys = TokenKeys::new(&[JwtKey { kid: kid.clone(), public }]).expect("a key");
    let domain = TrustDomain::new("example.org").expect("a name");
    let read = |token: &str| Verified::read(token, "api", &keys, &domain, NOW);
    let _ = TokenKeys::from_jwks(bytes);
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    assert!(read(text).is_err(), "nobody signed it");
    // The first line may be a header of its own; without one it is the right one.
    let (header, claims) = text.split_once('\n').unwrap_or(("", text));
    let header = if header.is_empty() { format!(r#"{{"alg":"ES256","kid":"{kid}","typ":"JWT"}}"#) } else { header.into() };
    let signed = format!("{}.{}", encoded(header.as_bytes()), encoded(claims.as_bytes()));
    let signature: Signature = KEY.sign(signed.as_bytes());
    let token = format!("{signed}.{}", encoded(&signature.normalize_s().to_bytes()));
    if let Ok(verified) = read(&token) {
        assert!(verified.id().is_member_of(&domain) && !verified.jti().is_empty());
        let claims: serde_json::Value = serde_json::from_str(claims).expect("claims that were read");
        assert_eq!(claims["sub"], verified.id().to_string());
        assert!(claims["exp"].as_f64().expect("a time") > 1_800_000_000.0);
        assert!(claims["aud"] == "api" || claims["aud"].as_array().expect("audiences").iter().any(|aud| aud == "api"));
    }
});
