//! Attestation: leases, nonces, retries and replays.

use leasehold::codes;
use leasehold::protocol::{AttestAnswer, AttestRequest, encode};
use reqwest::Method;

use crate::bench::{Failure, Member, Server, SoftTpm, random};

#[tokio::test]
async fn a_node_gets_a_lease_on_its_reference_values_and_none_on_others() {
    let server = Server::start().await;
    let mut member = server.admitted().await;
    let answer = member.attest().await.unwrap();
    assert_eq!(answer.refusal.unwrap().code, codes::VERIFY_NO_REFERENCE);
    assert!(answer.lease.is_none() && answer.entries.is_empty());
    // Its quote was verified all the same, and can be learnt.
    let id = member.id();
    let learnt = server.admin(&["reference", "learn", "--node", &id, "--yes"]).await;
    assert_eq!((learnt["version"].as_u64(), learnt["changed"].as_bool()), (Some(1), Some(true)));
    let spiffe_id = server.register("web", &id).await;
    let answer = member.attest().await.unwrap();
    assert!(answer.lease.is_some());
    assert_eq!(answer.entries.iter().map(|entry| entry.id.as_str()).collect::<Vec<_>>(), [spiffe_id.as_str()]);
    assert_eq!(answer.entries[0].selectors, ["unix:path:/usr/bin/web", "unix:uid:1000"]);
    let first = member.sequence;
    assert!(member.attest().await.unwrap().lease.is_some());
    assert!(member.sequence > first);

    member.tpm.node.values.insert(7, vec![0xEE; 32]);
    let drifted = member.attest().await.unwrap();
    assert_eq!(drifted.refusal.as_ref().unwrap().code, codes::VERIFY_PCR_MISMATCH);
    assert!(drifted.lease.is_none() && drifted.entries.is_empty());
    assert_eq!(drifted.differences.len(), 1);
    assert_eq!(
        (drifted.differences[0].pcr, drifted.differences[0].found.as_str(), drifted.differences[0].expected.as_str()),
        (7, "ee".repeat(32).as_str(), "08".repeat(32).as_str())
    );
    // The issuer refuses from the same moment.
    assert_eq!(member.credential(&spiffe_id).await.unwrap_err().code(), codes::ISSUER_NO_LEASE);
    assert_eq!(server.run(&["node", "explain", &id]).await.status.code(), Some(4));
    server.admin(&["reference", "learn", "--node", &id, "--yes"]).await;
    assert!(member.attest().await.unwrap().lease.is_some());
    assert_eq!(server.run(&["node", "explain", &id]).await.status.code(), Some(0));
    let references = server.admin(&["reference", "list"]).await;
    assert_eq!(references["references"].as_array().unwrap().len(), 2);
    server.admin(&["reference", "retire", "--node", &id]).await;
    assert_eq!(member.credential(&spiffe_id).await.unwrap_err().code(), codes::ISSUER_NO_LEASE);
}

#[tokio::test]
async fn a_lost_answer_is_fetched_again_and_a_replay_is_refused() {
    let mut server = Server::start().await;
    let mut member = server.leased().await;
    let body = encode(&member.request()).unwrap();
    let send = |body: Vec<u8>, client: &crate::bench::Client| {
        let client = client.clone();
        async move { client.send(Method::POST, "/v1/attest", body).await }
    };
    let first = send(body.clone(), &member.client).await.unwrap();
    assert_eq!(send(body.clone(), &member.client).await.unwrap(), first);
    // Also after a restart.
    server.restart().await;
    member.reconnect(&server);
    assert_eq!(send(body.clone(), &member.client).await.unwrap(), first);
    // Not for another body under the same id, not after a minute, not once there is a later one.
    let mut other = leasehold::protocol::decode::<AttestRequest>(&body).unwrap();
    other.evidence.push(0);
    let refused = send(encode(&other).unwrap(), &member.client).await.unwrap_err();
    assert_eq!(refused.code(), codes::PROTOCOL_REPLAYED);
    server.pass(61);
    assert_eq!(send(body.clone(), &member.client).await.unwrap_err().code(), codes::PROTOCOL_REPLAYED);
    // The same evidence under a new id: its nonce is spent.
    other.evidence.pop();
    other.request_id = random();
    let refused = send(encode(&other).unwrap(), &member.client).await.unwrap_err();
    assert_eq!(refused.code(), codes::VERIFY_NONCE_SPENT);
    server.restart().await;
    member.reconnect(&server);
    assert_eq!(send(body, &member.client).await.unwrap_err().code(), codes::PROTOCOL_REPLAYED);
    assert_eq!(send(encode(&other).unwrap(), &member.client).await.unwrap_err().code(), codes::VERIFY_NONCE_SPENT);
    // The refusal brought a nonce to go on with; none of this cost the node its lease.
    member.next = refused.next().nonce;
    assert!(member.attest().await.unwrap().lease.is_some());
    let recorded = server.recorded().await;
    assert_eq!(recorded.iter().filter(|what| *what == "protocol.replayed").count(), 3);
    assert_eq!(recorded.iter().filter(|what| *what == "verify.nonce_spent").count(), 2);
}

#[tokio::test]
async fn a_later_answer_ends_the_retry_of_an_earlier_one() {
    let server = Server::start().await;
    let mut member = server.leased().await;
    let body = encode(&member.request()).unwrap();
    let answer = member.client.send(Method::POST, "/v1/attest", body.clone()).await.unwrap();
    member.next = leasehold::protocol::decode::<AttestAnswer>(&answer).unwrap().next.nonce;
    member.attest().await.unwrap();
    let refused = member.client.send(Method::POST, "/v1/attest", body).await.unwrap_err();
    assert_eq!(refused.code(), codes::PROTOCOL_REPLAYED);
}

#[tokio::test]
async fn an_answer_that_no_longer_holds_is_not_repeated() {
    let server = Server::start().await;
    let mut member = server.leased().await;
    let body = encode(&member.request()).unwrap();
    member.client.send(Method::POST, "/v1/attest", body.clone()).await.unwrap();
    server.admin(&["reference", "retire", "--node", &member.id()]).await;
    let refused = member.client.send(Method::POST, "/v1/attest", body).await.unwrap_err();
    assert_eq!(refused.code(), codes::PROTOCOL_REPLAYED);
}

#[tokio::test]
async fn nonces_are_for_one_node_one_use_and_a_time() {
    let server = Server::start().await;
    let mut one = server.leased().await;
    let mut two = server.leased().await;
    let given = one.next;
    // Another node's, which stays good for its own node.
    one.next = two.next;
    let refused = one.attest().await.unwrap_err();
    assert_eq!(refused.code(), codes::VERIFY_NONCE_OTHER_NODE);
    assert!(two.attest().await.unwrap().lease.is_some());
    // Never given out.
    one.next = random();
    assert_eq!(one.attest().await.unwrap_err().code(), codes::VERIFY_NONCE);
    // A fetched one, in time and too late.
    one.next = one.client.nonce().await.unwrap().nonce;
    server.pass(60);
    one.tpm.node.clock_ms += 60_000;
    assert!(one.attest().await.unwrap().lease.is_some());
    let fetched = one.client.nonce().await.unwrap();
    assert_eq!(fetched.term_seconds, 60);
    server.pass(61);
    one.next = fetched.nonce;
    let expired = one.attest().await.unwrap_err();
    assert_eq!(expired.code(), codes::VERIFY_NONCE_EXPIRED);
    one.next = expired.next().nonce;
    one.tpm.node.clock_ms += 61_000;
    assert!(one.attest().await.unwrap().lease.is_some());
    // The enrolment's own was spent by the first attestation.
    assert_ne!(given, one.next);
    // More nonces than a node can use push out the oldest.
    let first = one.client.nonce().await.unwrap().nonce;
    for _ in 0..20 {
        one.client.nonce().await.unwrap();
    }
    one.next = first;
    assert_eq!(one.attest().await.unwrap_err().code(), codes::VERIFY_NONCE);
}

#[tokio::test]
async fn evidence_of_another_node_or_an_older_tpm_is_refused_and_ends_the_lease() {
    let server = Server::start().await;
    let mut one = server.leased().await;
    let two = server.leased().await;
    // One answers for two, over its own nonce and connection.
    let own = one.tpm.clone();
    one.tpm.node = leasehold_node_of(&two, one.next);
    let refused = one.attest().await.unwrap_err();
    assert_eq!(refused.code(), codes::VERIFY_NODE);
    one.tpm = own;
    let id = server.register("web", &one.id()).await;
    assert_eq!(one.credential(&id).await.unwrap_err().code(), codes::ISSUER_NO_LEASE);
    one.next = refused.next().nonce;
    assert!(one.attest().await.unwrap().lease.is_some());
    // A copy of the TPM's state, or an older snapshot of it.
    one.tpm.node.reset -= 1;
    assert_eq!(one.attest().await.unwrap_err().code(), codes::VERIFY_RESET_COUNT);
    one.tpm.node.reset += 1;
    one.next = one.client.nonce().await.unwrap().nonce;
    one.tpm.node.clock_ms -= 60_000;
    let refused = one.attest().await.unwrap_err();
    assert_eq!(refused.code(), codes::VERIFY_CLOCK);
    assert!(matches!(refused, Failure::Refused(403, _)));
    // An operator knows that the TPM was cleared.
    server.admin(&["node", "approve", &one.id(), "--accept-counts"]).await;
    one.next = refused.next().nonce;
    assert!(one.attest().await.unwrap().lease.is_some());
}

fn leasehold_node_of(member: &crate::bench::Member, nonce: [u8; 32]) -> crate::node::Node {
    crate::node::Node { nonce, ..member.tpm.node.clone() }
}

#[tokio::test]
async fn a_node_certificate_is_renewed_past_half_its_life() {
    let server = Server::start().await;
    let mut member = server.leased().await;
    assert!(member.attest().await.unwrap().certificate.is_none());
    server.pass(4 * 86_400);
    member.tpm.node.clock_ms += 4 * 86_400_000;
    member.next = member.client.nonce().await.unwrap().nonce;
    let renewed = member.attest().await.unwrap().certificate.unwrap();
    member.certificate = renewed;
    member.reconnect(&server);
    assert!(member.attest().await.unwrap().lease.is_some());
}

#[tokio::test]
async fn an_enrolment_beside_a_running_agent_takes_nothing_from_it() {
    let server = Server::start().await;
    let mut running = server.leased().await;
    let mut beside = running.tpm.clone();
    // They share one TPM and one machine, hence their clocks.
    let clocks = |to: &mut SoftTpm, from: &SoftTpm| {
        (to.node.clock_ms, to.node.requested_at) = (from.node.clock_ms, from.node.requested_at);
    };
    // However often: what the running agent holds stays good …
    for _ in 0..3 {
        clocks(&mut beside, &running.tpm);
        beside.enrol(&server.stranger()).await.unwrap();
        clocks(&mut running.tpm, &beside);
        assert!(running.attest().await.unwrap().lease.is_some());
    }
    // … and so does the newest, for the agent that starts with it.
    clocks(&mut beside, &running.tpm);
    let result = beside.enrol(&server.stranger()).await.unwrap();
    let mut restarted = Member::new(&server, beside, result);
    restarted.sequence = running.sequence;
    assert!(restarted.attest().await.unwrap().lease.is_some());
    // Then the one before is over: two are kept.
    clocks(&mut running.tpm, &restarted.tpm);
    running.next = restarted.next;
    assert_eq!(running.attest().await.unwrap_err().code(), codes::VERIFY_NODE_KEY);
}
