//! The calls about JWT-SVIDs that have one answer: fetching and validating.

use std::collections::BTreeSet;

use tonic::{Request, Response, Status};

use super::generated::{JwtsvidRequest, JwtsvidResponse, ValidateJwtsvidRequest, ValidateJwtsvidResponse};
use super::service::{Caller, Service, invalid, no_identity, refused, unavailable};
use super::{Denied, JwtAsked, MOST_AUDIENCES, Source, Unaccepted, messages};
use crate::codes::{self, Refusal};
use crate::identity::exact_id;

/// The longest audience in bytes: a SPIFFE ID may be one (SPIFFE ID, 2.3).
const LONGEST_AUDIENCE: usize = 2048;

impl<S: Source> Service<S> {
    /// `FetchJWTSVID` (Workload API, 6.2.1).
    pub(super) async fn jwt(&self, request: Request<JwtsvidRequest>) -> Result<Response<JwtsvidResponse>, Status> {
        let mut caller = Caller::of(&request)?;
        let (peer, arrived) = (caller.peer.clone(), caller.arrived);
        let asked = asked(request.into_inner()).map_err(|refusal| refused(&self.repeats, &peer, &refusal, invalid))?;
        let answer = tokio::select! {
            biased;
            status = caller.over() => return Err(status),
            answer = self.source.jwt(&peer, arrived, &asked) => answer.and_then(messages::jwt),
        };
        // Nothing waits between the release and here: what was found true at the release is true now.
        answer.map(Response::new).map_err(|denied| self.denied(&caller, &denied))
    }

    /// `ValidateJWTSVID` (Workload API, 6.2.3).
    pub(super) async fn validate(
        &self,
        request: Request<ValidateJwtsvidRequest>,
    ) -> Result<Response<ValidateJwtsvidResponse>, Status> {
        let mut caller = Caller::of(&request)?;
        let peer = caller.peer.clone();
        let ValidateJwtsvidRequest { audience, svid } = request.into_inner();
        if audience.is_empty() || svid.is_empty() {
            let refusal = Refusal::new(codes::TOKEN_MALFORMED, "the audience or the token is missing");
            return Err(refused(&self.repeats, &peer, &refusal, invalid));
        }
        let judged = tokio::select! {
            biased;
            status = caller.over() => return Err(status),
            judged = self.source.validate(&peer, &audience, &svid) => judged,
        };
        match judged {
            Ok(token) => Ok(Response::new(messages::validated(&token))),
            Err(Unaccepted::Invalid(refusal)) => Err(refused(&self.repeats, &peer, &refusal, invalid)),
            Err(Unaccepted::Denied(denied)) => Err(self.denied(&caller, &denied)),
        }
    }

    fn denied(&self, caller: &Caller, denied: &Denied) -> Status {
        match denied {
            Denied::NoIdentity(refusal) => refused(&self.repeats, &caller.peer, refusal, no_identity),
            Denied::Unavailable(refusal) | Denied::Ended(refusal) => {
                refused(&self.repeats, &caller.peer, refusal, unavailable)
            }
        }
    }
}

/// What is asked for, if it can be (6.2.1: the audience is mandatory).
fn asked(request: JwtsvidRequest) -> Result<JwtAsked, Refusal> {
    let JwtsvidRequest { audience, spiffe_id } = request;
    let wrong = |found: String| {
        Refusal::new(codes::TOKEN_AUDIENCE, found)
            .at("audience")
            .expected(format!("1 to {MOST_AUDIENCES} different texts of at most {LONGEST_AUDIENCE} bytes"))
    };
    if audience.is_empty() || audience.len() > MOST_AUDIENCES {
        return Err(wrong(format!("{} audiences", audience.len())));
    }
    let usable = |one: &String| (1..=LONGEST_AUDIENCE).contains(&one.len()) && !one.chars().any(char::is_control);
    if !audience.iter().all(usable) || audience.iter().collect::<BTreeSet<_>>().len() != audience.len() {
        return Err(wrong("one that is empty, too long, unprintable, or there twice".to_owned()));
    }
    let id = match spiffe_id.as_str() {
        "" => None,
        text => Some(exact_id(text).map_err(|_| {
            Refusal::new(codes::TOKEN_MALFORMED, "no SPIFFE ID").at("spiffe_id").expected("spiffe://TRUST-DOMAIN/PATH")
        })?),
    };
    Ok(JwtAsked { audience, id })
}
