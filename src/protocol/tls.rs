//! The client's end of TLS 1.3: the control plane is known by pinned CA certificates and its
//! SPIFFE ID; a node by a key that never leaves the TPM, an operator by its SVID.

use std::sync::Arc;

use der::Decode;
#[cfg(feature = "agent")]
use rustls::SignatureAlgorithm;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
#[cfg(feature = "agent")]
use rustls::sign::{Signer, SigningKey};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, OtherError, SignatureScheme};
use sha2::{Digest, Sha256};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};

use crate::codes::{self, Refusal};
use crate::identity::{SpiffeId, certified_id};
#[cfg(feature = "agent")]
use crate::tpm::Tpm;

/// What the agent trusts the control plane by: certificates it has, or the hash of one that the
/// server will send. Nothing is trusted on first use.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TrustAnchors {
    /// CA certificates, DER: from configuration, and from the bundle of earlier answers.
    pub certificates: Vec<Vec<u8>>,
    /// SHA-256 of a CA certificate's DER.
    pub hash: Option<[u8; 32]>,
}

/// TLS for a connection to the server named `server`; with `identity`, that key proves the client.
///
/// # Errors
/// [`codes::PROTOCOL_UNTRUSTED`] when rustls can't be set up: never with its own provider.
pub fn client_config(
    anchors: TrustAnchors,
    server: SpiffeId,
    identity: Option<CertifiedKey>,
) -> Result<ClientConfig, Refusal> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| Refusal::new(codes::PROTOCOL_UNTRUSTED, e.to_string()))?
        .dangerous() // "dangerous" is rustls' word for any verifier of one's own.
        .with_custom_certificate_verifier(Arc::new(PinnedServer::new(anchors, server, &provider)));
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some(key) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(key))),
    };
    config.resumption = rustls::client::Resumption::disabled();
    config.enable_early_data = false;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

/// A node's certificate chain (DER, leaf first) with its key in the TPM.
#[cfg(feature = "agent")]
pub(super) fn node_identity(chain: Vec<Vec<u8>>, tpm: Tpm) -> CertifiedKey {
    CertifiedKey::new(chain.into_iter().map(CertificateDer::from).collect(), Arc::new(NodeKey(tpm)))
}

#[derive(Debug)]
struct PinnedServer {
    anchors: TrustAnchors,
    server: SpiffeId,
    algorithms: WebPkiSupportedAlgorithms,
}

impl PinnedServer {
    fn new(anchors: TrustAnchors, server: SpiffeId, provider: &CryptoProvider) -> Self {
        Self { anchors, server, algorithms: provider.signature_verification_algorithms }
    }

    /// The certificates that anchor this chain: those we have, and the one sent whose hash we have.
    fn trusted(&self, sent: &[CertificateDer<'_>]) -> Vec<CertificateDer<'static>> {
        let known = self.anchors.certificates.iter().cloned().map(CertificateDer::from);
        let hashed = sent
            .iter()
            .filter(|sent| self.anchors.hash.is_some_and(|hash| Sha256::digest(sent).as_slice() == hash))
            .map(|sent| sent.clone().into_owned());
        known.chain(hashed).collect()
    }
}

impl ServerCertVerifier for PinnedServer {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let trusted = self.trusted(intermediates);
        let anchors: Vec<_> = trusted.iter().filter_map(|der| anchor_from_trusted_cert(der).ok()).collect();
        if anchors.is_empty() {
            return Err(CertificateError::UnknownIssuer.into());
        }
        let leaf = EndEntityCert::try_from(end_entity).map_err(|_| CertificateError::BadEncoding)?;
        leaf.verify_for_usage(self.algorithms.all, &anchors, intermediates, now, KeyUsage::server_auth(), None, None)
            .map_err(|error| match error {
            webpki::Error::UnknownIssuer => CertificateError::UnknownIssuer,
            other => CertificateError::Other(OtherError(Arc::new(other))),
        })?;
        let parsed = x509_cert::Certificate::from_der(end_entity).map_err(|_| CertificateError::BadEncoding)?;
        // The name that counts is the SPIFFE ID, not the host's: addresses change, pins don't.
        match certified_id(&parsed) {
            Ok(id) if id == self.server => Ok(ServerCertVerified::assertion()),
            Ok(id) => {
                let refusal = Refusal::new(codes::PROTOCOL_UNTRUSTED, format!("the server is {id}"))
                    .expected(self.server.to_string());
                Err(CertificateError::Other(OtherError(Arc::new(refusal))).into())
            }
            Err(refusal) => Err(CertificateError::Other(OtherError(Arc::new(refusal))).into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken here".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// The node key, as rustls sees it.
#[cfg(feature = "agent")]
#[derive(Debug)]
struct NodeKey(Tpm);

#[cfg(feature = "agent")]
impl SigningKey for NodeKey {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        offered
            .contains(&SignatureScheme::ECDSA_NISTP256_SHA256)
            .then(|| Box::new(NodeSigner(self.0.clone())) as Box<dyn Signer>)
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::ECDSA
    }
}

#[cfg(feature = "agent")]
#[derive(Debug)]
struct NodeSigner(Tpm);

#[cfg(feature = "agent")]
impl Signer for NodeSigner {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rustls::Error> {
        let digest = Sha256::digest(message).into();
        // rustls signs synchronously, and a TPM takes its time: the worker thread's other tasks
        // (releases among them) move to another one meanwhile.
        let signature = tokio::task::block_in_place(|| self.0.sign_blocking(digest))
            .map_err(|e| rustls::Error::Other(OtherError(Arc::new(e))))?;
        Ok(signature.to_der().as_bytes().to_vec())
    }

    fn scheme(&self) -> SignatureScheme {
        SignatureScheme::ECDSA_NISTP256_SHA256
    }
}
