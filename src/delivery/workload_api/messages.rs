//! From what was released to what goes over the wire.

use std::collections::{BTreeMap, BTreeSet};

use prost::Message;
use sha2::{Digest, Sha256};

use super::generated::{
    JwtBundlesResponse, Jwtsvid, JwtsvidResponse, ValidateJwtsvidResponse, X509BundlesResponse, X509svid,
    X509svidResponse,
};
use super::{Bundles, Denied, JwtBundles, JwtContext, X509Context};
use crate::codes::{self, Refusal};
use crate::credentials::token::Verified;
use crate::gate::Released;
use crate::secret::{Zeroize, Zeroizing};

/// SPIFFE Workload API, section 8: longer hints should not be supported.
const LONGEST_HINT: usize = 1024;

/// The answer to `FetchX509SVID`.
///
/// # Errors
/// Clients throw away a whole response in which one mandatory field is empty (Workload API, 4.5),
/// so a release that lacks one is [`Denied`] instead.
pub(super) fn x509(released: Released<X509Context>) -> Result<X509svidResponse, Denied> {
    let context = released.into_inner();
    if context.svids.is_empty() {
        return Err(Denied::NoIdentity(Refusal::new(codes::WORKLOAD_NO_MATCH, "no identity was released")));
    }
    let mut hints = BTreeSet::new();
    let mut svids = Vec::with_capacity(context.svids.len());
    for mut item in context.svids {
        let parts = [item.spiffe_id.len(), joined(&item.chain).len(), item.key_pkcs8.len(), joined(&item.bundle).len()];
        if parts.contains(&0) {
            return Err(incomplete(item.spiffe_id));
        }
        // A hint must be unique in a response (5.2.1); the first one with it keeps it.
        let usable = item.hint.len() <= LONGEST_HINT && hints.insert(item.hint.clone());
        svids.push(X509svid {
            x509_svid: joined(&item.chain),
            x509_svid_key: std::mem::take(&mut *item.key_pkcs8),
            bundle: joined(&item.bundle),
            hint: if usable { item.hint } else { String::new() },
            spiffe_id: item.spiffe_id,
        });
    }
    Ok(X509svidResponse { svids, ..Default::default() })
}

/// The answer to `FetchX509Bundles`.
///
/// # Errors
/// As [`x509`].
pub(super) fn bundles(released: Released<Bundles>) -> Result<X509BundlesResponse, Denied> {
    let Bundles(bundles) = released.into_inner();
    if bundles.is_empty() {
        return Err(incomplete("bundles".to_owned()));
    }
    let bundles = bundles.into_iter().map(|(trust_domain, certificates)| (trust_domain, joined(&certificates)));
    Ok(X509BundlesResponse { bundles: bundles.collect(), ..Default::default() })
}

/// The answer to `FetchJWTSVID`.
///
/// # Errors
/// As [`x509`].
pub(super) fn jwt(released: Released<JwtContext>) -> Result<JwtsvidResponse, Denied> {
    let context = released.into_inner();
    if context.svids.is_empty() {
        return Err(Denied::NoIdentity(Refusal::new(codes::WORKLOAD_NO_MATCH, "no identity was released")));
    }
    let mut hints = BTreeSet::new();
    let mut svids = Vec::with_capacity(context.svids.len());
    for mut item in context.svids {
        if item.spiffe_id.is_empty() || item.token.is_empty() {
            return Err(incomplete(item.spiffe_id));
        }
        let usable = item.hint.len() <= LONGEST_HINT && hints.insert(item.hint.clone());
        svids.push(Jwtsvid {
            svid: std::mem::take(&mut *item.token),
            hint: if usable { item.hint } else { String::new() },
            spiffe_id: item.spiffe_id,
        });
    }
    Ok(JwtsvidResponse { svids })
}

/// The answer to `FetchJWTBundles`.
///
/// # Errors
/// As [`x509`].
pub(super) fn jwt_bundles(released: Released<JwtBundles>) -> Result<JwtBundlesResponse, Denied> {
    let JwtBundles(bundles) = released.into_inner();
    if bundles.values().any(Vec::is_empty) || bundles.is_empty() {
        return Err(incomplete("bundles".to_owned()));
    }
    Ok(JwtBundlesResponse { bundles: bundles.into_iter().collect() })
}

/// The answer to `ValidateJWTSVID`: all that the token says, its audience always as a list.
pub(super) fn validated(token: &Verified) -> ValidateJwtsvidResponse {
    let mut fields: BTreeMap<String, prost_types::Value> =
        token.claims().iter().map(|(name, value)| (name.clone(), structured(value))).collect();
    let audience = token.audience().iter().map(|one| serde_json::Value::from(one.as_str())).collect();
    fields.insert("aud".to_owned(), structured(&serde_json::Value::Array(audience)));
    let claims = Some(prost_types::Struct { fields: fields.into_iter().collect() });
    ValidateJwtsvidResponse { spiffe_id: token.id().to_string(), claims }
}

/// JSON as protobuf has it: each number a double.
fn structured(value: &serde_json::Value) -> prost_types::Value {
    use prost_types::value::Kind;
    use serde_json::Value;
    let kind = match value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(value) => Kind::BoolValue(*value),
        Value::Number(value) => Kind::NumberValue(value.as_f64().unwrap_or(f64::NAN)),
        Value::String(value) => Kind::StringValue(value.clone()),
        Value::Array(values) => {
            Kind::ListValue(prost_types::ListValue { values: values.iter().map(structured).collect() })
        }
        Value::Object(members) => {
            let fields = members.iter().map(|(name, value)| (name.clone(), structured(value))).collect();
            Kind::StructValue(prost_types::Struct { fields })
        }
    };
    prost_types::Value { kind: Some(kind) }
}

/// A message's digest: two messages are the same if these are. A stream remembers it instead of
/// the message, which holds a key.
pub(super) fn fingerprint(message: &impl Message) -> [u8; 32] {
    Sha256::digest(Zeroizing::new(message.encode_to_vec()).as_slice()).into()
}

/// tonic drops a message once it is encoded. The copies in its and the kernel's send buffers are
/// not ours to wipe.
impl Drop for X509svid {
    fn drop(&mut self) {
        self.x509_svid_key.zeroize();
    }
}

impl Drop for Jwtsvid {
    fn drop(&mut self) {
        self.svid.zeroize();
    }
}

fn incomplete(what: String) -> Denied {
    Denied::Unavailable(Refusal::new(codes::DELIVERY_INCOMPLETE, "a mandatory field is empty").at(what))
}

fn joined(certificates: &[Vec<u8>]) -> Vec<u8> {
    certificates.concat()
}

#[cfg(test)]
mod tests {
    use super::super::X509Item;
    use super::*;

    fn item(hint: &str) -> X509Item {
        X509Item {
            spiffe_id: "spiffe://example.org/app".to_owned(),
            chain: vec![b"leaf".to_vec(), b"intermediate".to_vec()],
            key_pkcs8: Zeroizing::new(b"key".to_vec()),
            bundle: vec![b"ca".to_vec()],
            hint: hint.to_owned(),
        }
    }

    #[test]
    fn chains_are_joined_and_hints_unique() {
        let svids = vec![item("a"), item("a"), item(""), item(""), item(&"x".repeat(1025))];
        let response = x509(Released::for_test(X509Context { svids })).unwrap();
        assert_eq!(response.svids[0].x509_svid, b"leafintermediate");
        let hints: Vec<_> = response.svids.iter().map(|svid| svid.hint.as_str()).collect();
        assert_eq!(hints, ["a", "", "", "", ""]);
    }

    #[test]
    fn nothing_incomplete_is_sent() {
        let without = |change: fn(&mut X509Item)| {
            let mut item = item("");
            change(&mut item);
            x509(Released::for_test(X509Context { svids: vec![item] })).map(|_| ()).unwrap_err()
        };
        for denied in [
            without(|i| i.spiffe_id.clear()),
            without(|i| i.chain.clear()),
            without(|i| i.key_pkcs8.clear()),
            without(|i| i.bundle = vec![Vec::new()]),
        ] {
            assert!(matches!(denied, Denied::Unavailable(r) if r.code == codes::DELIVERY_INCOMPLETE));
        }
        let none = x509(Released::for_test(X509Context::default())).map(|_| ()).unwrap_err();
        assert!(matches!(none, Denied::NoIdentity(_)));
        assert!(bundles(Released::for_test(Bundles::default())).is_err());
    }

    #[test]
    fn equal_content_has_an_equal_fingerprint() {
        let of = |hint: &str| {
            let svids = vec![item(hint)];
            fingerprint(&x509(Released::for_test(X509Context { svids })).unwrap())
        };
        assert_eq!(of("a"), of("a"));
        assert_ne!(of("a"), of("b"));
    }

    #[test]
    fn debug_output_has_no_key() {
        assert!(!format!("{:?}", X509Context { svids: vec![item("")] }).contains("107, 101, 121"));
    }
}
