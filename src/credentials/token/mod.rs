//! JWT-SVIDs: what one of ours says, and the one way in which one is believed.
//!
//! ```text
//! text ─▶ three canonical segments ─▶ header: ES256, a known kid ─▶ signature ─▶ claims ─▶ Verified
//! ```
//!
//! JWT-SVID.md, and of RFC 7515, 7519 and 8725 what it leaves open, each time the strict reading: one
//! algorithm, one key for each `kid`, no header that isn't understood, no JSON member twice, one text
//! for one token. Reading is pure: keys, audience and time are handed in.

mod json;
mod keys;
mod reuse;

use std::collections::BTreeSet;

use base64ct::{Base64UrlUnpadded, Encoding};
use p256::ecdsa::signature::{Signer, Verifier};
use p256::ecdsa::{Signature, SigningKey};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::clock::WallTime;
use crate::codes::{self, Code, Refusal};
use crate::identity::{SpiffeId, TrustDomain};
use crate::protocol::AuthorizationDetail;

pub use keys::{TokenKeys, jwk, jwks, thumbprint};
pub use reuse::{Presenter, ReuseWatch};

/// The largest token in bytes: servers take no more than this in one HTTP header.
pub const LARGEST: usize = 8192;

/// How far a token's beginning may lie ahead of the verifier's clock, in seconds. Its end may not.
const AHEAD: u64 = 60;

/// The one algorithm (RFC 7518, 3.4).
const ALGORITHM: &str = "ES256";

/// What a JWT-SVID of ours says (JWT-SVID 3, RFC 7519 4.1, RFC 9396 9.1). Nothing else is in one.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claims {
    /// The workload's SPIFFE ID.
    pub sub: String,
    /// Whom it is for; at least one, always as a list.
    pub aud: Vec<String>,
    /// Its end, in seconds since 1970.
    pub exp: u64,
    /// When it was issued, likewise.
    pub iat: u64,
    /// Its id: once in the trust domain.
    pub jti: String,
    /// The decision that it was issued by.
    pub decision: String,
    /// What the workload, or its task, is for.
    pub purpose: String,
    /// The one task it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task_id: Option<String>,
    /// What that task means to do, in its own words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub intent: Option<String>,
    /// What was granted of what was asked for: nothing else. A token without it grants no more than
    /// its subject's name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub authorization_details: Vec<AuthorizationDetail>,
}

/// Signs `claims`: the compact form of a JWS (RFC 7515, 3.1).
///
/// # Errors
/// [`codes::TOKEN_MALFORMED`] when it would be larger than [`LARGEST`].
pub fn sign(claims: &Claims, key: &SigningKey, kid: &str) -> Result<String, Refusal> {
    let bug = |e: serde_json::Error| Refusal::new(codes::TOKEN_MALFORMED, format!("BUG: {e}"));
    let header = serde_json::json!({ "alg": ALGORITHM, "kid": kid, "typ": "JWT" }).to_string();
    let claims = serde_json::to_string(claims).map_err(bug)?;
    let signed = format!("{}.{}", encoded(header.as_bytes()), encoded(claims.as_bytes()));
    let signature: Signature = key.sign(signed.as_bytes());
    // Of the two signatures that verify, the one with the lower s: one token has one text.
    let token = format!("{signed}.{}", encoded(&signature.normalize_s().to_bytes()));
    if token.len() > LARGEST {
        return Err(refuse(codes::TOKEN_MALFORMED, format!("{} bytes", token.len()))
            .expected(format!("at most {LARGEST}: fewer or shorter audiences and details")));
    }
    Ok(token)
}

/// A JWT-SVID that a key of the trust domain signed, for this audience, and not over yet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Verified {
    id: SpiffeId,
    audience: BTreeSet<String>,
    expires: WallTime,
    jti: String,
    task: Option<String>,
    details: Vec<AuthorizationDetail>,
    claims: Map<String, Value>,
}

impl Verified {
    /// Verifies `token` for `audience` at `now`.
    ///
    /// # Errors
    /// [`codes::TOKEN_MALFORMED`], [`codes::TOKEN_SIGNATURE`], [`codes::TOKEN_EXPIRED`],
    /// [`codes::TOKEN_AUDIENCE`], naming the part that is wrong. The token itself is in none of them.
    pub fn read(
        token: &str,
        audience: &str,
        keys: &TokenKeys,
        trust_domain: &TrustDomain,
        now: WallTime,
    ) -> Result<Self, Refusal> {
        let claims = authentic(token, keys)?;
        let id = subject(&claims, trust_domain)?;
        let mut audiences = audiences(&claims)?;
        if audience.is_empty() || !audiences.contains(audience) {
            let found = audiences.pop_first().unwrap_or_default();
            return Err(refuse(codes::TOKEN_AUDIENCE, shown(&found)).at("aud").expected(shown(audience)));
        }
        let expires = valid(&claims, now)?;
        let jti = text(&claims, "jti")?.ok_or_else(|| malformed("there is none").at("jti"))?;
        let task = text(&claims, "task_id")?;
        let details = match claims.get("authorization_details") {
            None => Vec::new(),
            Some(details) => serde_json::from_value(details.clone())
                .map_err(|e| malformed(e.to_string()).at("authorization_details"))?,
        };
        Ok(Self { id, audience: audiences, expires, jti, task, details, claims })
    }

    /// Whose it is.
    pub const fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// Everyone it is for.
    pub const fn audience(&self) -> &BTreeSet<String> {
        &self.audience
    }

    /// Its end.
    pub const fn expires(&self) -> WallTime {
        self.expires
    }

    /// Its id.
    pub fn jti(&self) -> &str {
        &self.jti
    }

    /// The one task it is for, if it is bound to one.
    pub fn task(&self) -> Option<&str> {
        self.task.as_deref()
    }

    /// All that it says.
    pub const fn claims(&self) -> &Map<String, Value> {
        &self.claims
    }

    /// Whether the holder was granted `action` on things of `kind` at `location` (RFC 9396, 2.2): within
    /// one detail, for a detail is granted as a whole. A detail without actions, or without locations,
    /// grants none of them; names are compared byte by byte.
    pub fn permits(&self, kind: &str, action: &str, location: &str) -> bool {
        self.details.iter().any(|detail| {
            detail.kind == kind
                && detail.actions.iter().any(|granted| granted == action)
                && detail.locations.iter().any(|granted| granted == location)
        })
    }
}

/// The claims, if a key of `keys` signed them.
fn authentic(token: &str, keys: &TokenKeys) -> Result<Map<String, Value>, Refusal> {
    if token.len() > LARGEST {
        return Err(malformed(format!("{} bytes", token.len())).expected(format!("at most {LARGEST}")));
    }
    let mut segments = token.split('.');
    let (Some(header), Some(claims), Some(signature), None) =
        (segments.next(), segments.next(), segments.next(), segments.next())
    else {
        return Err(malformed("another number of segments").expected("three"));
    };
    let kid = header_of(&json::object(&decoded(header, "header")?, "header")?)?;
    let key = keys.get(&kid).ok_or_else(|| {
        refuse(codes::TOKEN_SIGNATURE, shown(&kid)).at("kid").expected("a key of the trust domain's bundle")
    })?;
    let raw = decoded(signature, "signature")?;
    let wrong = |found: &str| refuse(codes::TOKEN_SIGNATURE, found).at("signature");
    // RFC 7518, 3.4: r and s, 32 bytes each; not DER.
    let signature = Signature::from_slice(&raw).map_err(|_| wrong("not two numbers of the curve P-256"))?;
    if signature.normalize_s() != signature {
        return Err(wrong("not the form in which our keys sign"));
    }
    // What was signed is the text as it came.
    let signed = token.rsplit_once('.').map_or("", |(signed, _)| signed);
    key.verify(signed.as_bytes(), &signature).map_err(|_| wrong("not by this key over this text"))?;
    json::object(&decoded(claims, "claims")?, "claims")
}

/// The `kid`. Only what JWT-SVID section 2 knows may stand in a header, so nothing can name another
/// key, another algorithm or an extension that must be understood.
fn header_of(header: &Map<String, Value>) -> Result<String, Refusal> {
    if let Some(name) = header.keys().find(|name| !["alg", "kid", "typ"].contains(&name.as_str())) {
        return Err(malformed(shown(name)).at("header").expected("alg, kid and typ only"));
    }
    let algorithm = text(header, "alg")?.unwrap_or_default();
    if algorithm != ALGORITHM {
        return Err(refuse(codes::TOKEN_SIGNATURE, shown(&algorithm)).at("alg").expected(ALGORITHM));
    }
    match text(header, "typ")?.as_deref() {
        None | Some("JWT" | "JOSE") => {}
        Some(other) => return Err(malformed(shown(other)).at("typ").expected("JWT or JOSE")),
    }
    text(header, "kid")?.filter(|kid| !kid.is_empty()).ok_or_else(|| malformed("there is none").at("kid"))
}

fn subject(claims: &Map<String, Value>, trust_domain: &TrustDomain) -> Result<SpiffeId, Refusal> {
    let sub = text(claims, "sub")?.ok_or_else(|| malformed("there is none").at("sub"))?;
    let id = SpiffeId::new(&sub).map_err(|e| malformed(format!("{}: {e}", shown(&sub))).at("sub"))?;
    // One name, one text: a scheme in capitals would be read as the same.
    if id.trust_domain() != trust_domain || id.path().is_empty() || id.to_string() != sub {
        return Err(malformed(shown(&sub)).at("sub").expected(format!("a workload of {trust_domain}")));
    }
    Ok(id)
}

/// RFC 7519, 4.1.3: one text, or a list of them.
fn audiences(claims: &Map<String, Value>) -> Result<BTreeSet<String>, Refusal> {
    let wrong = || refuse(codes::TOKEN_AUDIENCE, "none, or no text").at("aud").expected("at least one text");
    let list = match claims.get("aud") {
        Some(Value::String(one)) => BTreeSet::from([one.clone()]),
        Some(Value::Array(many)) => {
            many.iter().map(|one| one.as_str().map(str::to_owned).ok_or_else(wrong)).collect::<Result<_, _>>()?
        }
        _ => return Err(wrong()),
    };
    if list.is_empty() || list.contains("") { Err(wrong()) } else { Ok(list) }
}

/// JWT-SVID 3.3 and RFC 7519, 4.1.4 to 4.1.6. Gives back the end.
fn valid(claims: &Map<String, Value>, now: WallTime) -> Result<WallTime, Refusal> {
    let exp = moment(claims, "exp")?
        .ok_or_else(|| refuse(codes::TOKEN_EXPIRED, "there is none").at("exp").expected("the token's end"))?;
    if now >= exp {
        return Err(refuse(codes::TOKEN_EXPIRED, exp.to_string()).at("exp").expected(format!("later than {now}")));
    }
    for name in ["nbf", "iat"] {
        if let Some(from) = moment(claims, name)?
            && from.0 > now.0.saturating_add(AHEAD)
        {
            return Err(refuse(codes::TOKEN_EXPIRED, from.to_string()).at(name).expected(format!("by {now}")));
        }
    }
    Ok(exp)
}

/// Whole seconds since 1970 that a clock can show; a year of five digits is no time.
fn moment(claims: &Map<String, Value>, name: &str) -> Result<Option<WallTime>, Refusal> {
    const LAST: u64 = 253_402_300_799;
    match claims.get(name) {
        None => Ok(None),
        Some(value) => match value.as_u64().filter(|seconds| *seconds <= LAST) {
            Some(seconds) => Ok(Some(WallTime(seconds))),
            None => Err(refuse(codes::TOKEN_EXPIRED, "no time").at(name).expected("whole seconds since 1970")),
        },
    }
}

fn text(object: &Map<String, Value>, name: &str) -> Result<Option<String>, Refusal> {
    match object.get(name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(_) => Err(malformed("no text").at(name)),
    }
}

fn encoded(bytes: &[u8]) -> String {
    Base64UrlUnpadded::encode_string(bytes)
}

/// Base64url without padding, and no other text for the same bytes (RFC 7515, 2; RFC 4648, 3.5).
fn decoded(segment: &str, at: &str) -> Result<Vec<u8>, Refusal> {
    Base64UrlUnpadded::decode_vec(segment).map_err(|_| malformed("not base64url").at(at))
}

/// What a stranger sent, as it may stand in a message.
fn shown(text: &str) -> String {
    const LONGEST: usize = 64;
    text.chars().take(LONGEST).flat_map(char::escape_debug).collect()
}

fn malformed(found: impl Into<String>) -> Refusal {
    refuse(codes::TOKEN_MALFORMED, found)
}

fn refuse(code: Code, found: impl Into<String>) -> Refusal {
    Refusal::new(code, found)
}
