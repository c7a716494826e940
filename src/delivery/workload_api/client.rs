//! A client of the Workload API, as any workload has one: for the command line.

use std::path::Path;

use hyper::body::Incoming;
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::UnixStream;
use tonic::body::Body;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::codegen::http::{Request, Response, Uri};
use tonic::codegen::{BoxFuture, Context, Poll, Service};
use tonic::{Code, Status};
use tonic_prost::ProstCodec;

use super::generated::{
    JwtsvidRequest, ValidateJwtsvidRequest, ValidateJwtsvidResponse, X509svidRequest, X509svidResponse,
};
use super::{CODE_METADATA, generated};
use crate::codes::{self, Refusal, exit};
use crate::secret::Zeroizing;

/// A connection to a Workload API.
#[derive(Debug)]
pub struct Client(Grpc<Connection>);

/// Why there is no answer.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{refusal}")]
pub struct Failure {
    /// The code that the agent gave, and what it means.
    pub refusal: Refusal,
    /// Refused, unavailable, or failed otherwise: one of [`exit`]'s codes.
    pub exit: u8,
}

/// An X.509-SVID as it was fetched.
#[derive(Debug)]
pub struct FetchedX509 {
    /// The SPIFFE ID.
    pub id: String,
    /// DER certificates, one after the other, the leaf first.
    pub chain: Vec<u8>,
    /// PKCS#8, DER.
    pub key: Zeroizing<Vec<u8>>,
    /// DER CA certificates, one after the other.
    pub bundle: Vec<u8>,
    /// What it is meant for; may be empty.
    pub hint: String,
}

/// A JWT-SVID as it was fetched.
#[derive(Debug)]
pub struct FetchedJwt {
    /// The SPIFFE ID.
    pub id: String,
    /// The compact form.
    pub token: Zeroizing<String>,
    /// What it is meant for; may be empty.
    pub hint: String,
}

impl Client {
    /// Connects to the socket at `path`.
    ///
    /// # Errors
    /// [`Failure`], unavailable.
    pub async fn connect(path: &Path) -> Result<Self, Failure> {
        let away = |found: String| {
            let refusal = Refusal::new(codes::PROTOCOL_UNREACHABLE, found).at(path.display().to_string());
            let refusal = refusal.expected("the socket of a running agent: --socket, or SPIFFE_ENDPOINT_SOCKET");
            Failure { refusal, exit: exit::UNAVAILABLE }
        };
        let stream = UnixStream::connect(path).await.map_err(|e| away(e.to_string()))?;
        let (sender, connection) =
            handshake(TokioExecutor::new(), TokioIo::new(stream)).await.map_err(|e| away(e.to_string()))?;
        // It ends when the sender is dropped; how, is what the calls say.
        tokio::spawn(async move { drop(connection.await) });
        Ok(Self(Grpc::with_origin(Connection(sender), Uri::from_static("http://workload"))))
    }

    /// The X.509-SVIDs of this process: the first message of the stream.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn x509(&mut self) -> Result<Vec<FetchedX509>, Failure> {
        self.ready().await?;
        let codec = ProstCodec::<X509svidRequest, X509svidResponse>::default();
        let path = PathAndQuery::from_static("/SpiffeWorkloadAPI/FetchX509SVID");
        let answers = self.0.server_streaming(asked(X509svidRequest {}), path, codec).await.map_err(failure)?;
        let first = answers.into_inner().message().await.map_err(failure)?;
        let mut first = first.ok_or_else(|| failure(Status::unavailable("the stream ended")))?;
        let fetched = |mut svid: generated::X509svid| FetchedX509 {
            id: std::mem::take(&mut svid.spiffe_id),
            chain: std::mem::take(&mut svid.x509_svid),
            key: Zeroizing::new(std::mem::take(&mut svid.x509_svid_key)),
            bundle: std::mem::take(&mut svid.bundle),
            hint: std::mem::take(&mut svid.hint),
        };
        Ok(std::mem::take(&mut first.svids).into_iter().map(fetched).collect())
    }

    /// JWT-SVIDs of this process for these audiences: of one identity, or of all.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn jwt(&mut self, audience: Vec<String>, id: Option<String>) -> Result<Vec<FetchedJwt>, Failure> {
        self.ready().await?;
        let codec = ProstCodec::<JwtsvidRequest, generated::JwtsvidResponse>::default();
        let path = PathAndQuery::from_static("/SpiffeWorkloadAPI/FetchJWTSVID");
        let request = JwtsvidRequest { audience, spiffe_id: id.unwrap_or_default() };
        let mut answer = self.0.unary(asked(request), path, codec).await.map_err(failure)?.into_inner();
        let fetched = |mut svid: generated::Jwtsvid| FetchedJwt {
            id: std::mem::take(&mut svid.spiffe_id),
            token: Zeroizing::new(std::mem::take(&mut svid.svid)),
            hint: std::mem::take(&mut svid.hint),
        };
        Ok(std::mem::take(&mut answer.svids).into_iter().map(fetched).collect())
    }

    /// Has a token judged: whose it is, and what it says.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn validate(
        &mut self,
        audience: &str,
        token: &str,
    ) -> Result<(String, serde_json::Map<String, serde_json::Value>), Failure> {
        self.ready().await?;
        let codec = ProstCodec::<ValidateJwtsvidRequest, ValidateJwtsvidResponse>::default();
        let path = PathAndQuery::from_static("/SpiffeWorkloadAPI/ValidateJWTSVID");
        let request = ValidateJwtsvidRequest { audience: audience.to_owned(), svid: token.to_owned() };
        let answer = self.0.unary(asked(request), path, codec).await.map_err(failure)?.into_inner();
        let claims = answer.claims.unwrap_or_default().fields;
        Ok((answer.spiffe_id, claims.into_iter().map(|(name, value)| (name, plain(value))).collect()))
    }

    async fn ready(&mut self) -> Result<(), Failure> {
        self.0.ready().await.map_err(|e| failure(Status::unavailable(e.to_string())))
    }
}

/// The security header that every call carries (Workload Endpoint, 3).
fn asked<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.metadata_mut().insert("workload.spiffe.io", tonic::metadata::MetadataValue::from_static("true"));
    request
}

fn failure(status: Status) -> Failure {
    let code = status.metadata().get(CODE_METADATA).and_then(|code| code.to_str().ok());
    let refusal = match code.map(codes::Code::from_text) {
        Some(code) => Refusal::new(code, code.meaning()),
        None => Refusal::new(codes::PROTOCOL_UNREACHABLE, format!("{:?}: {}", status.code(), status.message())),
    };
    let exit = match status.code() {
        Code::PermissionDenied => exit::CONTRAINDICATED,
        Code::Unavailable => exit::UNAVAILABLE,
        _ => exit::FAILED,
    };
    Failure { refusal, exit }
}

/// Protobuf's JSON as JSON; whole numbers as such.
fn plain(value: prost_types::Value) -> serde_json::Value {
    use prost_types::value::Kind;
    use serde_json::Value;
    /// Doubles are exact up to here.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    match value.kind {
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::BoolValue(value)) => Value::Bool(value),
        #[allow(clippy::cast_possible_truncation, reason = "whole, and within what an i64 holds")]
        Some(Kind::NumberValue(value)) if value.fract() == 0.0 && value.abs() < EXACT => Value::from(value as i64),
        Some(Kind::NumberValue(value)) => Value::from(value),
        Some(Kind::StringValue(value)) => Value::String(value),
        Some(Kind::ListValue(list)) => list.values.into_iter().map(plain).collect(),
        Some(Kind::StructValue(members)) => {
            Value::Object(members.fields.into_iter().map(|(name, value)| (name, plain(value))).collect())
        }
    }
}

/// HTTP/2 over one Unix socket, as tonic's client wants it.
#[derive(Debug)]
struct Connection(SendRequest<Body>);

impl Service<Request<Body>> for Connection {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}
