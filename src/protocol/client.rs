//! The agent's side of the protocol. The types follow its order: an [`Unenrolled`] node can only
//! enrol, an [`Enrolled`] one can attest, and credentials are asked for through a [`Leased`].

use std::time::Duration;

use reqwest::{Client, Method, StatusCode};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::grants::{GrantAnswer, GrantRequest, Noted, TasksEnded, WithdrawalsApplied};
use super::messages::*;
use super::records::{RecordsAnswer, RecordsRequest};
use super::tls::{TrustAnchors, client_config, node_identity};
use crate::codes::{self, Refusal};
use crate::identity::{NodeId, TrustDomain, server_id};
use crate::tpm::Tpm;
use crate::verify::references::LIMIT as DOCUMENT_LIMIT;

/// How long one request may take, connection and TPM signature included.
const REQUEST_DEADLINE: Duration = Duration::from_secs(30);

/// How long a connection may take to come about.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);

/// Why a request has no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Failure {
    /// The control plane can't be reached, or is shedding load. Nothing is concluded from that.
    #[error("{0}")]
    Unreachable(Refusal),
    /// It answered and refused.
    #[error("{}", .0.refusal)]
    Refused(Refused),
}

impl Failure {
    /// The refusal, whichever it is.
    pub const fn refusal(&self) -> &Refusal {
        match self {
            Self::Unreachable(refusal) => refusal,
            Self::Refused(refused) => &refused.refusal,
        }
    }
}

/// Why no answer came to a request for credentials.
#[derive(Clone, Debug)]
pub struct Ungranted {
    /// Why.
    pub failure: Failure,
    /// The control plane may have received the request all the same, and granted it.
    pub arrived: bool,
}

/// What an admitted node keeps between starts. No secret is in it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Membership {
    /// The node id.
    #[serde(with = "serde_bytes")]
    pub node: [u8; 32],
    /// The node certificate's chain, DER, leaf first.
    pub certificate: Vec<serde_bytes::ByteBuf>,
    /// The trust domain's CA certificates.
    pub bundle: Bundle,
}

/// Whether an enrolment admitted the node.
#[derive(Debug)]
pub enum Enrolment {
    /// Admitted.
    Admitted(Membership, FreshNonce),
    /// Known, and waiting for an operator.
    Waiting {
        /// The id the control plane computed.
        node: NodeId,
        /// Why, and who can change that.
        refusal: Refusal,
        /// When it is worth asking again.
        retry_after: Duration,
    },
}

/// Where the control plane is.
#[derive(Clone, Debug)]
struct Place {
    base: String,
    trust_domain: TrustDomain,
    anchors: TrustAnchors,
}

/// A node without a certificate: it can enrol, and nothing else.
#[derive(Clone, Debug)]
pub struct Unenrolled {
    place: Place,
}

impl Unenrolled {
    /// A client of the control plane at `address` (`host:port`), known by `anchors`.
    pub fn new(address: &str, trust_domain: TrustDomain, anchors: TrustAnchors) -> Self {
        Self { place: Place { base: format!("https://{address}/v{VERSION}"), trust_domain, anchors } }
    }

    /// First step: presents the public keys.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn begin(&self, request: &EnrolRequest) -> Result<EnrolChallenge, Failure> {
        post(&self.connect()?, &self.place, "enrol", request).await
    }

    /// Second step: proves the activation.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn answer(&self, answer: &EnrolAnswer) -> Result<Enrolment, Failure> {
        let result: EnrolResult = post(&self.connect()?, &self.place, "enrol/answer", answer).await?;
        if let Some(admitted) = result.admitted {
            let membership =
                Membership { node: result.node, certificate: admitted.certificate, bundle: admitted.bundle };
            return Ok(Enrolment::Admitted(membership, admitted.nonce));
        }
        let refusal =
            result.waiting.unwrap_or_else(|| Refusal::new(codes::PROTOCOL_MALFORMED, "neither admitted nor waiting"));
        // At least a second, so that a wrong answer can't make the node hammer the server.
        let retry_after = Duration::from_secs(result.retry_after_seconds.clamp(1, 60));
        Ok(Enrolment::Waiting { node: NodeId::from_bytes(result.node), refusal, retry_after })
    }

    /// The same, knowing the control plane by the CA certificates of an earlier answer as well.
    pub fn trusting(&self, bundle: &Bundle) -> Self {
        let mut place = self.place.clone();
        // The configured anchors stay: an operator who pins a new CA must be heard.
        for certificate in &bundle.certificates {
            if !place.anchors.certificates.iter().any(|known| *known == **certificate) {
                place.anchors.certificates.push(certificate.to_vec());
            }
        }
        Self { place }
    }

    /// The client of an admitted node, whose TLS key is in `tpm`.
    ///
    /// # Errors
    /// When the certificates can't be used.
    pub fn enrolled(&self, membership: &Membership, tpm: &Tpm) -> Result<Enrolled, Failure> {
        let place = self.trusting(&membership.bundle).place;
        let chain = membership.certificate.iter().map(|der| der.to_vec()).collect();
        let client = connect(&place, Some((chain, tpm.clone())))?;
        Ok(Enrolled { place, client })
    }

    fn connect(&self) -> Result<Client, Failure> {
        connect(&self.place, None)
    }
}

/// A node with a certificate.
#[derive(Clone, Debug)]
pub struct Enrolled {
    place: Place,
    client: Client,
}

/// An attestation's answer.
#[derive(Clone, Debug)]
pub struct Answer(pub AttestAnswer);

impl Enrolled {
    /// A nonce, when none is left from the last answer.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn nonce(&self) -> Result<FreshNonce, Failure> {
        exchange(&self.client, &self.place, Method::GET, "nonce", Vec::new()).await
    }

    /// Sends a part of a log ahead, or asks what is held.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn logs(&self, request: &LogsRequest) -> Result<LogsHeld, Failure> {
        post(&self.client, &self.place, "logs", request).await
    }

    /// The reference document that is assigned to this node, as it was signed.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn references(&self) -> Result<Vec<u8>, Failure> {
        asked(&self.client, &self.place, Method::GET, "references", Vec::new(), DOCUMENT_LIMIT).await
    }

    /// Attests: one round trip. A lost answer is asked for again with the same request.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn attest(&self, request: &AttestRequest) -> Result<AttestAnswer, Failure> {
        match post(&self.client, &self.place, "attest", request).await {
            // Whether the request arrived is unknown, and the nonce is single-use: the same
            // request gets the stored answer if it did.
            Err(Failure::Unreachable(_)) => post(&self.client, &self.place, "attest", request).await,
            other => other,
        }
    }

    /// Delivers records of the node's journal.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn records(&self, request: &RecordsRequest) -> Result<RecordsAnswer, Failure> {
        post(&self.client, &self.place, "records", request).await
    }

    /// Says which withdrawals were applied here.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn withdrawn(&self, applied: &WithdrawalsApplied) -> Result<Noted, Failure> {
        post(&self.client, &self.place, "withdrawals", applied).await
    }

    /// Says which tasks ended, and that none of an earlier run of this agent is left.
    ///
    /// # Errors
    /// [`Failure`]; then it is to be said again, which is harmless.
    pub async fn tasks_ended(&self, told: &TasksEnded) -> Result<Noted, Failure> {
        post(&self.client, &self.place, "tasks/end", told).await
    }

    /// The right to ask for credentials under the lease of this sequence number.
    pub const fn leased(&self, lease_sequence: u64) -> Leased<'_> {
        Leased { enrolled: self, lease_sequence }
    }

    /// Opens the event stream.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn events(&self) -> Result<Events, Failure> {
        let response =
            self.client.get(format!("{}/events", self.place.base)).send().await.map_err(|e| unreachable_because(&e))?;
        if response.status() != StatusCode::OK {
            return Err(refused(response).await);
        }
        Ok(Events { response, buffer: Vec::new() })
    }
}

/// An enrolled node with a live lease.
#[derive(Clone, Copy, Debug)]
pub struct Leased<'a> {
    enrolled: &'a Enrolled,
    lease_sequence: u64,
}

impl Leased<'_> {
    /// Asks for X.509-SVIDs.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn credentials(self, request_id: [u8; 16], wanted: Vec<Wanted>) -> Result<CredentialAnswer, Failure> {
        let request = CredentialRequest { request_id, lease_sequence: self.lease_sequence, wanted };
        post(&self.enrolled.client, &self.enrolled.place, "credentials", &request).await
    }

    /// Asks for credentials for a process that waits for them, under this lease. A lost answer is asked
    /// for again with the same request: a task begins once.
    ///
    /// # Errors
    /// [`Ungranted`].
    pub async fn grant(self, request: &GrantRequest) -> Result<GrantAnswer, Ungranted> {
        let request = GrantRequest { lease_sequence: self.lease_sequence, ..request.clone() };
        let body = encode(&request).map_err(|refusal| Ungranted { failure: malformed(refusal), arrived: false })?;
        let Enrolled { client, place } = self.enrolled;
        let mut arrived = false;
        let mut again = true;
        loop {
            let failure = match send(client, place, Method::POST, "grants", body.clone()).await {
                Ok(response) => {
                    // A refusal is word about what was sent now; what was sent before it may have been granted.
                    let before = std::mem::replace(&mut arrived, true);
                    match answered(response, BODY_LIMIT).await.and_then(|body| decode(&body).map_err(malformed)) {
                        Ok(answer) => return Ok(answer),
                        // It says itself that nothing came of the request.
                        Err(failure @ Failure::Refused(_)) => return Err(Ungranted { failure, arrived: before }),
                        Err(failure) => failure,
                    }
                }
                Err(error) => {
                    arrived |= !error.is_connect();
                    unreachable_because(&error)
                }
            };
            if !std::mem::take(&mut again) {
                return Err(Ungranted { failure, arrived });
            }
        }
    }
}

/// The control plane's pushes.
#[derive(Debug)]
pub struct Events {
    response: reqwest::Response,
    buffer: Vec<u8>,
}

impl Events {
    /// The largest event in bytes: a withdrawal of some ten thousand workloads.
    const LIMIT: usize = 1 << 20;

    /// The next event.
    ///
    /// # Errors
    /// [`Failure`], also when the server ends the stream.
    pub async fn next(&mut self) -> Result<Event, Failure> {
        loop {
            if let Some((length, rest)) = self.buffer.split_first_chunk::<4>() {
                let length = u32::from_be_bytes(*length) as usize;
                if length > Self::LIMIT {
                    return Err(malformed(Refusal::new(
                        codes::PROTOCOL_TOO_LARGE,
                        format!("an event of {length} bytes"),
                    )));
                }
                if let Some(body) = rest.get(..length) {
                    let event = decode(body).map_err(malformed)?;
                    self.buffer.drain(..4 + length);
                    return Ok(event);
                }
            }
            match self.response.chunk().await.map_err(|e| unreachable_because(&e))? {
                Some(chunk) => self.buffer.extend_from_slice(&chunk),
                None => {
                    let refusal = Refusal::new(codes::PROTOCOL_UNREACHABLE, "the event stream ended");
                    return Err(Failure::Unreachable(refusal));
                }
            }
        }
    }
}

fn connect(place: &Place, node: Option<(Vec<Vec<u8>>, Tpm)>) -> Result<Client, Failure> {
    let identity = node.map(|(chain, tpm)| node_identity(chain, tpm));
    let tls =
        client_config(place.anchors.clone(), server_id(&place.trust_domain), identity).map_err(Failure::Unreachable)?;
    Client::builder()
        .tls_backend_preconfigured(tls)
        .https_only(true)
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(CONNECT_DEADLINE)
        .http2_keep_alive_interval(Duration::from_secs(5))
        .http2_keep_alive_timeout(Duration::from_secs(5))
        .http2_keep_alive_while_idle(true)
        .build()
        .map_err(|e| unreachable_because(&e))
}

async fn post<Q: Serialize, A: DeserializeOwned>(
    client: &Client,
    place: &Place,
    route: &str,
    request: &Q,
) -> Result<A, Failure> {
    let body = encode(request).map_err(malformed)?;
    exchange(client, place, Method::POST, route, body).await
}

async fn exchange<A: DeserializeOwned>(
    client: &Client,
    place: &Place,
    method: Method,
    route: &str,
    body: Vec<u8>,
) -> Result<A, Failure> {
    decode(&asked(client, place, method, route, body, BODY_LIMIT).await?).map_err(malformed)
}

async fn asked(
    client: &Client,
    place: &Place,
    method: Method,
    route: &str,
    body: Vec<u8>,
    limit: usize,
) -> Result<Vec<u8>, Failure> {
    answered(send(client, place, method, route, body).await.map_err(|e| unreachable_because(&e))?, limit).await
}

async fn send(
    client: &Client,
    place: &Place,
    method: Method,
    route: &str,
    body: Vec<u8>,
) -> reqwest::Result<reqwest::Response> {
    let request = client.request(method, format!("{}/{route}", place.base)).timeout(REQUEST_DEADLINE);
    request.header(reqwest::header::CONTENT_TYPE, MEDIA_TYPE).body(body).send().await
}

async fn answered(response: reqwest::Response, limit: usize) -> Result<Vec<u8>, Failure> {
    if response.status() != StatusCode::OK {
        return Err(refused(response).await);
    }
    limited(response, limit).await
}

/// The refusal of an answer that isn't 200. Without a readable body it counts as unreachable:
/// something between us and the control plane spoke, or it is going down.
async fn refused(response: reqwest::Response) -> Failure {
    let status = response.status();
    match limited(response, BODY_LIMIT).await.map(|body| decode::<Refused>(&body)) {
        Ok(Ok(refused)) if refused.refusal.code == codes::STORE_FAILED => Failure::Unreachable(refused.refusal),
        Ok(Ok(refused)) => Failure::Refused(refused),
        Ok(Err(_)) => Failure::Unreachable(Refusal::new(
            codes::PROTOCOL_UNREACHABLE,
            format!("HTTP status {status} without a reason"),
        )),
        Err(failure) => failure,
    }
}

/// The body, refused as soon as it exceeds `limit` bytes.
async fn limited(mut response: reqwest::Response, limit: usize) -> Result<Vec<u8>, Failure> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|e| unreachable_because(&e))? {
        body.extend_from_slice(&chunk);
        if body.len() > limit {
            return Err(malformed(
                Refusal::new(codes::PROTOCOL_TOO_LARGE, "the answer").expected(format!("at most {limit} bytes")),
            ));
        }
    }
    Ok(body)
}

/// An answer we can't read is no verdict on the node: it counts as unreachable.
fn malformed(refusal: Refusal) -> Failure {
    Failure::Unreachable(refusal)
}

fn unreachable_because(error: &reqwest::Error) -> Failure {
    // The causes say more than reqwest's own line, down to the refusal of our TLS verifier.
    let mut words = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        let cause_words = cause.to_string();
        if !words.contains(&cause_words) {
            words.push_str(": ");
            words.push_str(&cause_words);
        }
        source = cause.source();
    }
    if refuses_certificate(&words) {
        let refusal = Refusal::new(codes::PROTOCOL_CLIENT_CERTIFICATE, words)
            .expected("a certificate that is valid and of a CA in use: the node enrols again for one");
        return Failure::Refused(Refused { refusal, next: None });
    }
    let untrusted = words.contains("UnknownIssuer") || words.contains(codes::PROTOCOL_UNTRUSTED.as_str());
    Failure::Unreachable(match untrusted {
        true => Refusal::new(codes::PROTOCOL_UNTRUSTED, words).expected(
            "a control plane under a CA that is pinned or was in the last bundle; if its CA changed while this node \
             was away, set `control_plane.ca_hash` to what `leasehold-server ca show` prints there",
        ),
        false => Refusal::new(codes::PROTOCOL_UNREACHABLE, words),
    })
}

/// Whether the server answered our certificate with an alert (RFC 8446, 6.2): it has expired, or
/// its CA was dropped from the bundle. Between rustls and us HTTP/2 keeps the words only.
fn refuses_certificate(words: &str) -> bool {
    use rustls::AlertDescription::{BadCertificate, CertificateExpired, CertificateUnknown, UnknownCA};
    let alerts = [BadCertificate, CertificateExpired, CertificateUnknown, UnknownCA];
    alerts.into_iter().any(|alert| words.contains(&rustls::Error::AlertReceived(alert).to_string()))
}
