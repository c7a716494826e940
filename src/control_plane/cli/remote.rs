//! The client of a server far away: one command on one connection, as the operator of an SVID.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::Request;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::sign::CertifiedKey;
use serde_json::Value;
use tokio::net::TcpStream;

use crate::codes::{self, Refusal};
use crate::control_plane::admin::{Command, PATH};
use crate::identity::{certified_id, server_id};
use crate::protocol::{TrustAnchors, client_config};
use crate::secret::{self, ExposeSecret};

/// As at the admin socket, and the way there.
const DEADLINE: Duration = Duration::from_secs(60);
/// The largest answer, in bytes.
const LIMIT: usize = 256 << 20;

/// Where the server is, and who the operator is.
#[derive(Debug)]
pub struct Remote {
    address: String,
    svid: PathBuf,
}

impl Remote {
    /// The server at `address` (`host:port`), for the operator whose `svid.pem`, `svid_key.pem` and
    /// `bundle.pem` are in the directory `svid`.
    pub const fn new(address: String, svid: PathBuf) -> Self {
        Self { address, svid }
    }

    /// Carries out a command and returns its facts.
    ///
    /// # Errors
    /// The server's refusal, [`codes::PROTOCOL_UNREACHABLE`], or [`codes::CONFIG_INVALID`] for files that
    /// can't be used.
    pub fn call(&self, command: &Command) -> Result<Value, Refusal> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|e| self.unreachable(&e.to_string()))?;
        let body = serde_json::to_vec(command).map_err(|e| self.unreachable(&e.to_string()))?;
        let exchanged = async {
            tokio::time::timeout(DEADLINE, self.exchange(body))
                .await
                .unwrap_or_else(|_| Err(self.unreachable(&format!("no answer within {DEADLINE:?}"))))
        };
        let (status, answer) = runtime.block_on(exchanged)?;
        if status == 200 {
            return serde_json::from_slice(&answer).map_err(|e| self.unreachable(&e.to_string()));
        }
        Err(serde_json::from_slice(&answer).unwrap_or_else(|_| self.unreachable(&format!("it answers {status}"))))
    }

    async fn exchange(&self, body: Vec<u8>) -> Result<(u16, Bytes), Refusal> {
        let failed = |e: &dyn std::fmt::Display| self.unreachable(&e.to_string());
        let tls = Arc::new(self.tls()?);
        let host = self.address.rsplit_once(':').map_or(self.address.as_str(), |(host, _)| host);
        // The name that counts is the SPIFFE ID; this one is only sent.
        let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned()).map_err(|e| failed(&e))?;
        let stream = TcpStream::connect(&self.address).await.map_err(|e| failed(&e))?;
        let stream = tokio_rustls::TlsConnector::from(tls).connect(name, stream).await.map_err(|e| failed(&e))?;
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
                .await
                .map_err(|e| failed(&e))?;
        let connection = tokio::spawn(connection);
        let request = Request::post(format!("https://{}{PATH}", self.address))
            .header(hyper::header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|e| failed(&e))?;
        let answer = sender.send_request(request).await.map_err(|e| failed(&e))?;
        let status = answer.status().as_u16();
        let body = Limited::new(answer.into_body(), LIMIT).collect().await.map_err(|e| failed(&e))?.to_bytes();
        drop(sender);
        connection.abort();
        Ok((status, body))
    }

    fn tls(&self) -> Result<rustls::ClientConfig, Refusal> {
        let chain = certificates(&self.svid.join("svid.pem"))?;
        let anchors = certificates(&self.svid.join("bundle.pem"))?;
        let path = self.svid.join("svid_key.pem");
        let unusable = |e: &dyn std::fmt::Display| invalid(&path, e);
        let key = secret::read_private(&path)?;
        let key = PrivateKeyDer::from_pem_slice(key.expose_secret()).map_err(|e| unusable(&e))?;
        let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key).map_err(|e| unusable(&e))?;
        let leaf = chain.first().map(|leaf| <x509_cert::Certificate as der::Decode>::from_der(leaf));
        let id = match leaf {
            Some(Ok(leaf)) => certified_id(&leaf)?,
            _ => return Err(invalid(&self.svid.join("svid.pem"), &"no certificate is in it")),
        };
        let anchors = TrustAnchors { certificates: anchors.iter().map(|der| der.to_vec()).collect(), hash: None };
        client_config(anchors, server_id(id.trust_domain()), Some(CertifiedKey::new(chain, key)))
    }

    fn unreachable(&self, why: &str) -> Refusal {
        Refusal::new(codes::PROTOCOL_UNREACHABLE, why)
            .at(self.address.clone())
            .expected("a running server's TLS listener, known by the bundle beside the SVID; see --server and --svid")
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Refusal> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).map_err(|e| invalid(path, &e))?.collect();
    match certificates {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) => Err(invalid(path, &"no certificate is in it")),
        Err(error) => Err(invalid(path, &error)),
    }
}

fn invalid(path: &Path, error: &dyn std::fmt::Display) -> Refusal {
    Refusal::new(codes::CONFIG_INVALID, error.to_string())
        .at(path.display().to_string())
        .expected("what `leasehold-agent svid x509 --out DIR` writes")
}
