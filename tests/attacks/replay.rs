//! Replays: V28 to V30 played against a running control plane, also one that was killed meanwhile.

use std::time::Instant;

use leasehold::codes::{self, Code};
use leasehold::protocol::{AttestRequest, Refused, encode};

use crate::bench::world::Server;
use crate::rogue::{About, Client, Docket, Member, Station, random};

/// Submissions that were accepted once.
const CAPTURED: usize = 1_000;

/// The same request again is answered alike; in every other shape it is a replay.
#[tokio::test(flavor = "multi_thread")]
async fn a_submission_counts_once_also_after_a_power_cut() {
    let mut server = Server::start("");
    let mut member = Member::leased(&server).await;
    let evidence = member.evidence(member.next).await;
    let body = encode(&AttestRequest::new(random(), evidence.clone())).unwrap();
    let first = member.client.send("/v1/attest", body.clone()).await.unwrap();
    let granted = server.decided().iter().filter(|what| *what == "lease.granted").count();
    assert_eq!(member.client.send("/v1/attest", body.clone()).await.unwrap(), first, "a retry, byte for byte");
    let again = server.decided().iter().filter(|what| *what == "lease.granted").count();
    assert_eq!(again, granted, "it is the same lease");

    let mut docket = Docket::of(&server);
    let refused = member.client.attest(evidence.clone()).await;
    docket.refused("V30: the same evidence under a new request id", refused, codes::VERIFY_NONCE_SPENT);
    let other = encode(&AttestRequest::new(request_id(&body), vec![0; 64])).unwrap();
    let refused = member.client.send("/v1/attest", other).await;
    docket.refused("the same request id with another body", refused, codes::PROTOCOL_REPLAYED);

    // A later answer ends the retry of this one; a power cut changes nothing.
    member.next = leasehold::protocol::decode::<leasehold::protocol::AttestAnswer>(&first).unwrap().next.nonce;
    member.attest().await.unwrap();
    for when in ["later", "after kill -9 and a restart"] {
        let mut docket = Docket::of(&server);
        let refused = member.client.send("/v1/attest", body.clone()).await;
        docket.refused(&format!("the same request {when}"), refused, codes::PROTOCOL_REPLAYED);
        let refused = member.client.attest(evidence.clone()).await;
        docket.refused(&format!("its evidence under a new request id {when}"), refused, codes::VERIFY_NONCE_SPENT);
        server.kill();
        server.restart();
        member.reconnect(&server);
    }
    // The retry of the last answer goes on across the restart, and so does the node.
    assert!(member.attest().await.unwrap().lease.is_some());
}

/// Evidence that is another node's in one part or in all.
#[tokio::test(flavor = "multi_thread")]
async fn evidence_of_one_node_is_none_of_another() {
    let server = Server::start("");
    let mut one = Member::leased(&server).await;
    let mut two = Member::leased(&server).await;
    let mut docket = Docket::of(&server);

    let evidence = two.evidence(one.next).await;
    let refused = two.client.attest(evidence).await;
    let refused = docket.refused(
        "V28: evidence over a nonce that was given to another node",
        refused,
        codes::VERIFY_NONCE_OTHER_NODE,
    );
    two.next = refused.next.unwrap().nonce;
    let evidence = two.evidence(random()).await;
    let refused = docket.refused(
        "evidence over a nonce that nobody was given",
        two.client.attest(evidence).await,
        codes::VERIFY_NONCE,
    );
    two.next = refused.next.unwrap().nonce;

    // V29, evidence under another client certificate. A control plane looks its row up by the
    // certificate, so the disagreement shows in whichever part of the evidence is not the row's.
    let whole = one.evidence(one.next).await;
    let refused = two.client.attest(whole).await;
    docket.refused(
        "V29: the first one's evidence over the second one's connection",
        refused,
        codes::VERIFY_NONCE_OTHER_NODE,
    );
    let relayed = one.evidence(two.next).await;
    let refused = two.client.attest(relayed).await;
    let refused = docket.refused("V29: … made for the second one's nonce", refused, codes::VERIFY_NODE);
    two.next = refused.next.unwrap().nonce;
    let about = About { node: Some(two.node), ..one.about(two.next) };
    let refused = two.client.attest(one.station.evidence(&about).await).await;
    let refused = docket.refused("V29: … in the second one's name", refused, codes::VERIFY_EVIDENCE_SIGNATURE);
    two.next = refused.next.unwrap().nonce;
    // The relay at its best: a good node's quote and PCRs, sealed by the bad node's own key.
    let quoted = one.station.claims(&About { node: Some(two.node), ..two.about(two.next) }).await;
    let sealed = seal_unchecked(&two.station, &quoted).await;
    let refused = docket.refused(
        "V29: the first one's quote, sealed by the second one",
        two.client.attest(sealed).await,
        codes::VERIFY_QUOTE_SIGNATURE,
    );
    two.next = refused.next.unwrap().nonce;
    // Two nodes' roots together, the good one's AK quoting for the bad one's node key: its AK isn't
    // the row's either.
    let binding = leasehold::evidence::quote_binding(&two.next, &two.station.node_key.name(), &quoted.boot_id, &[]);
    let mut bound = two.station.claims(&two.about(two.next)).await;
    bound.quote = one.station.handle.quote(two.selection, binding).await.unwrap();
    let sealed = two.station.seal(&bound).await;
    let refused = docket.refused(
        "… and the quote bound to the second one's key",
        two.client.attest(sealed).await,
        codes::VERIFY_QUOTE_SIGNATURE,
    );
    two.next = refused.next.unwrap().nonce;

    assert!(one.attest().await.unwrap().lease.is_some());
    assert!(two.attest().await.unwrap().lease.is_some());
}

/// Seals claims whose quote is not bound to this node key, which the crate's encoder refuses.
async fn seal_unchecked(station: &Station, claims: &leasehold::evidence::NodeClaims) -> Vec<u8> {
    use serde_cbor::Value;
    // The shape is that of the vectors' software node; only the parts are real.
    let shape = crate::node::Node {
        id: claims.node,
        nonce: claims.nonce,
        boot_id: *claims.boot_id.as_bytes(),
        requested_at: claims.requested_at.as_nanos(),
        values: claims.pcrs.iter().map(|(pcr, value)| (pcr, value.to_vec())).collect(),
        certification_nonce: claims.certification_nonce,
        ..crate::node::Node::honest()
    };
    let map = shape.claims(&claims.quote, &claims.node_key_certification);
    let unsigned = leasehold::evidence::sign1::Unsigned::new(serde_cbor::to_vec(&Value::Map(map)).unwrap(), None);
    let signature = station.handle.sign(unsigned.digest()).await.unwrap();
    unsigned.finish(signature)
}

/// 1,000 captured submissions, each replayed before and after a power cut.
#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_captured_submissions_are_worth_nothing() {
    let mut server = Server::start("");
    let mut member = Member::leased(&server).await;
    let began = Instant::now();
    let mut captured = Vec::new();
    while captured.len() < CAPTURED {
        let request = AttestRequest::new(random(), member.evidence(member.next).await);
        let body = encode(&request).unwrap();
        let answer = member.client.send("/v1/attest", body.clone()).await.unwrap();
        member.next = leasehold::protocol::decode::<leasehold::protocol::AttestAnswer>(&answer).unwrap().next.nonce;
        captured.push((request, body));
    }
    println!("{CAPTURED} submissions accepted in {:?}", began.elapsed());
    // The last of them could still be asked for as a retry, until there is a later one.
    member.attest().await.unwrap();
    let before = counted(&server);
    let began = Instant::now();
    let mut refused = replay(&member.client, &captured, 0).await;
    server.kill();
    server.restart();
    member.reconnect(&server);
    refused.extend(replay(&member.client, &captured, 1).await);
    let count = |code: Code| refused.iter().filter(|found| **found == code).count();
    println!(
        "{} replays in {:?}, half of them after kill -9: 0 accepted; {} as {}, {} as {}",
        refused.len(),
        began.elapsed(),
        count(codes::PROTOCOL_REPLAYED),
        codes::PROTOCOL_REPLAYED,
        count(codes::VERIFY_NONCE_SPENT),
        codes::VERIFY_NONCE_SPENT,
    );
    assert_eq!(refused.len(), 2 * CAPTURED);
    assert_eq!(count(codes::PROTOCOL_REPLAYED) + count(codes::VERIFY_NONCE_SPENT), 2 * CAPTURED);
    assert_eq!(counted(&server) - before, 2 * CAPTURED as u64, "each is recorded");
    // The nonces that came with the refusals have pushed out the one that was left.
    member.next = member.client.nonce().await.unwrap().nonce;
    assert!(member.attest().await.unwrap().lease.is_some());
}

/// Each submission once: as it was, and under a new request id, in turns.
async fn replay(client: &Client, captured: &[(AttestRequest, Vec<u8>)], offset: usize) -> Vec<Code> {
    let mut codes = Vec::new();
    for (number, (request, body)) in captured.iter().enumerate() {
        let result: Result<(), Refused> = match (number + offset) % 2 {
            0 => client.send("/v1/attest", body.clone()).await.map(drop),
            _ => client.attest(request.evidence.clone()).await.map(drop),
        };
        codes.push(result.unwrap_err().refusal.code);
    }
    codes
}

/// How many records say that a replay was refused.
fn counted(server: &Server) -> u64 {
    let replayed = [codes::PROTOCOL_REPLAYED.as_str(), codes::VERIFY_NONCE_SPENT.as_str()];
    server.decided().iter().filter(|what| replayed.contains(&what.as_str())).count() as u64
}

fn request_id(body: &[u8]) -> [u8; 16] {
    leasehold::protocol::decode::<AttestRequest>(body).unwrap().request_id
}
