//! Who is who: SPIFFE IDs, trust domains and node ids.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest, Sha256};
pub use spiffe::{SpiffeId, TrustDomain};
use x509_cert::Certificate;
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;

use crate::codes::{self, Refusal};

/// Paths under this prefix name Leasehold's own parts; no workload may be registered there.
pub const RESERVED_PATH: &str = "/leasehold/";

/// A node's id: SHA-256 over a label, the trust domain and the admitted EK's TPM name.
///
/// It is computed, never chosen by a client, so no TPM can claim another's id.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId([u8; 32]);

impl NodeId {
    /// The id of the node whose admitted EK has this TPM name (`nameAlg ‖ H(TPMT_PUBLIC)`).
    pub fn derive(trust_domain: &TrustDomain, ek_name: &[u8]) -> Self {
        let mut hash = Sha256::new();
        hash.update(b"leasehold-node-id-v1\0");
        hash.update(trust_domain.as_str().as_bytes());
        // A trust domain has no NUL, so the two fields can't run into each other.
        hash.update(b"\0");
        hash.update(ek_name);
        Self(hash.finalize().into())
    }

    /// An id from its 32 bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Its 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// `spiffe://TRUST-DOMAIN/leasehold/node/HEX`: the name in the node certificate.
    pub fn spiffe_id(&self, trust_domain: &TrustDomain) -> SpiffeId {
        own_part(trust_domain, &["leasehold", "node", &self.to_string()])
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for NodeId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut id = [0; 32];
        hex::decode_to_slice(text, &mut id)
            .map_err(|_| format!("`{text}` is no node id: expected 64 hexadecimal digits"))?;
        Ok(Self(id))
    }
}

/// `spiffe://TRUST-DOMAIN/leasehold/server`: the name in the control plane's certificate.
pub fn server_id(trust_domain: &TrustDomain) -> SpiffeId {
    own_part(trust_domain, &["leasehold", "server"])
}

/// The one SPIFFE ID in a certificate (X509-SVID section 2: exactly one URI SAN).
///
/// # Errors
/// [`codes::PROTOCOL_UNTRUSTED`] when there is no URI SAN, more than one, or one that is no SPIFFE ID.
pub fn certified_id(certificate: &Certificate) -> Result<SpiffeId, Refusal> {
    let refuse = |found: String| Refusal::new(codes::PROTOCOL_UNTRUSTED, found).at("subjectAltName");
    let san = certificate
        .tbs_certificate()
        .get_extension::<SubjectAltName>()
        .map_err(|e| refuse(format!("it can't be read: {e}")))?
        .map(|(_, san)| san.0)
        .unwrap_or_default();
    let mut uris = san.iter().filter_map(|name| match name {
        GeneralName::UniformResourceIdentifier(uri) => Some(uri.as_str()),
        _ => None,
    });
    let uri = uris.next().ok_or_else(|| refuse("no URI".to_owned()))?;
    if uris.next().is_some() {
        return Err(refuse("more than one URI".to_owned()));
    }
    exact_id(uri).map_err(|why| refuse(format!("`{uri}` is no SPIFFE ID: {why}")))
}

/// The SPIFFE ID of this text, which must be its one form: a parser also reads `SPIFFE://Example.org/a`, as
/// another text for the same id (SPIFFE-ID 2.1, RFC 3986 6.2.2.1). Where ids are compared or kept as texts,
/// two texts for one would be two.
///
/// # Errors
/// Why it is none.
pub fn exact_id(text: &str) -> Result<SpiffeId, String> {
    let id = SpiffeId::new(text).map_err(|error| error.to_string())?;
    if id.to_string() == text { Ok(id) } else { Err(format!("its one form is {id}")) }
}

fn own_part(trust_domain: &TrustDomain, segments: &[&str]) -> SpiffeId {
    match SpiffeId::from_segments(trust_domain.clone(), segments) {
        Ok(id) => id,
        // The segments are ours: lower-case words and hexadecimal digits, always valid.
        Err(error) => unreachable!("BUG: our own SPIFFE ID is invalid: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_ids_depend_on_trust_domain_and_ek() {
        let one = TrustDomain::new("one.example").unwrap();
        let two = TrustDomain::new("two.example").unwrap();
        assert_ne!(NodeId::derive(&one, b"ek"), NodeId::derive(&two, b"ek"));
        assert_ne!(NodeId::derive(&one, b"ek"), NodeId::derive(&one, b"kE"));
        let id = NodeId::derive(&one, b"ek");
        assert_eq!(id.to_string().parse::<NodeId>().unwrap(), id);
        assert_eq!(id.spiffe_id(&one).to_string(), format!("spiffe://one.example/leasehold/node/{id}"));
        assert!("zz".parse::<NodeId>().is_err());
    }

    #[test]
    fn an_id_has_one_text() {
        assert_eq!(exact_id("spiffe://example.org/web").unwrap().path(), "/web");
        for other in ["SPIFFE://example.org/web", "spiffe://Example.org/web", "spiffe://example.org/web/", "web", ""] {
            exact_id(other).unwrap_err();
        }
    }
}
