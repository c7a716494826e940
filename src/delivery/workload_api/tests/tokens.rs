//! JWT-SVIDs over the socket.

use super::*;

fn asked(audience: &[&str], id: &str) -> JwtsvidRequest {
    JwtsvidRequest { audience: audience.iter().map(|one| (*one).to_owned()).collect(), spiffe_id: id.to_owned() }
}

#[tokio::test]
async fn tokens_are_fetched_and_judged() {
    let bench = Bench::new(Answer::Give(Ca::new().context("/app")));
    let mut client = bench.client().await;
    let id = "spiffe://example.org/app";
    for wanted in [asked(&["api", "reports"], ""), asked(&["api", "reports"], id)] {
        let response = client.jwt(wanted).await.unwrap();
        assert_eq!((response.svids.len(), response.svids[0].spiffe_id.as_str()), (1, id));
        let judged = client.validate("reports", &response.svids[0].svid).await.unwrap();
        assert_eq!(judged.spiffe_id, id);
        let claims = judged.claims.clone().unwrap().fields;
        use prost_types::value::Kind;
        assert_eq!(claims["sub"].kind, Some(Kind::StringValue(id.to_owned())));
        assert!(matches!(&claims["exp"].kind, Some(Kind::NumberValue(seconds)) if *seconds > 1.7e9));
        let Some(Kind::ListValue(audience)) = &claims["aud"].kind else { panic!("{claims:?}") };
        assert_eq!(audience.values.len(), 2);
        for (audience, code_of) in [("other", "token.audience"), ("", "token.malformed")] {
            let refused = client.validate(audience, &response.svids[0].svid).await.unwrap_err();
            assert_eq!((refused.code(), code(&refused)), (Code::InvalidArgument, code_of));
            assert!(!refused.message().contains(&response.svids[0].svid));
        }
    }
    let none = client.jwt(asked(&["api"], "spiffe://example.org/other")).await.unwrap_err();
    assert_eq!((none.code(), none.message()), (Code::PermissionDenied, NO_IDENTITY));
}

#[tokio::test]
async fn what_is_asked_wrongly_is_an_invalid_argument() {
    let bench = Bench::new(Answer::Give(Ca::new().context("/app")));
    let mut client = bench.client().await;
    let many: Vec<String> = (0..17).map(|n| n.to_string()).collect();
    let long = "x".repeat(2049);
    for wanted in [
        asked(&[], ""),
        asked(&[""], ""),
        asked(&["api", "api"], ""),
        asked(&[&long], ""),
        asked(&["a\nb"], ""),
        asked(&many.iter().map(String::as_str).collect::<Vec<_>>(), ""),
        asked(&["api"], "no id"),
        asked(&["api"], "spiffe://example.org//"),
    ] {
        let refused = client.jwt(wanted.clone()).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{wanted:?}");
    }
    assert_eq!(bench.stub.times_asked(), 0);
}

#[tokio::test]
async fn what_is_denied_or_away_says_so() {
    let bench = Bench::new(Answer::Deny(Denied::Unavailable(refusal(codes::PROTOCOL_UNREACHABLE))));
    let mut client = bench.client().await;
    let status = client.jwt(asked(&["api"], "")).await.unwrap_err();
    assert_eq!((status.code(), code(&status)), (Code::Unavailable, "protocol.unreachable"));
    bench.stub.set(Answer::Deny(Denied::NoIdentity(refusal(codes::GATE_DRIFT))));
    for status in
        [client.jwt(asked(&["api"], "")).await.unwrap_err(), client.validate("api", "a.b.c").await.unwrap_err()]
    {
        assert_eq!(
            (status.code(), status.message(), code(&status)),
            (Code::PermissionDenied, NO_IDENTITY, "gate.drift")
        );
    }
    let bundles = with_header(JwtBundlesRequest::default());
    let status = client.call::<_, JwtBundlesResponse>("/SpiffeWorkloadAPI/FetchJWTBundles", bundles).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
}
