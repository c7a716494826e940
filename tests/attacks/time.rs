//! What was good once: quotes kept back, nonces and leases at their end, certificates that expired.

use leasehold::codes;

use crate::bench::world::{Node, holds_svid};
use crate::clocked::Clocked;
use crate::rogue::{Docket, Member};

const DAY: i64 = 86_400;

/// A quote made at once and submitted when the node is no longer as quoted: the TPM's clock tells.
#[tokio::test(flavor = "multi_thread")]
async fn a_quote_kept_back_is_stale() {
    let clocked = Clocked::start("").await;
    let mut member = Member::leased(&clocked.server).await;
    // Over the nonce that came with the last answer, made while all was well.
    let kept = member.evidence(member.next).await;
    member.station.tpm.extend(7, [0xD1; 32]).await;
    clocked.ahead(300);
    let mut docket = Docket::of(&clocked.server);
    let refused = member.client.attest(kept).await;
    let refused =
        docket.refused("a good quote, submitted 300 s later after a drift", refused, codes::VERIFY_QUOTE_STALE);
    member.next = refused.next.unwrap().nonce;
    // A quote made now says what is the case now.
    assert_eq!(member.attest().await.unwrap().refusal.unwrap().code, codes::VERIFY_PCR_MISMATCH);

    // Within a minute it counts: that is what the attacker gains at most.
    member.learn(&clocked.server);
    member.attest().await.unwrap();
    let kept = member.evidence(member.next).await;
    clocked.ahead(300 + 59);
    assert!(member.client.attest(kept).await.unwrap().lease.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn nonces_and_leases_end() {
    let clocked = Clocked::start("[terms]\nlease_seconds = 600\n").await;
    let mut member = Member::leased(&clocked.server).await;
    let id = "spiffe://example.org/app";
    let add = ["workload", "add", "--id", id, "--owner", "team-a", "--purpose", "tests", "--selector", "unix:uid:7"];
    clocked.server.admin(&[&add[..], &["--node", &member.id()]].concat());
    let mut docket = Docket::of(&clocked.server);
    let fetched = member.client.nonce().await.unwrap();
    clocked.ahead(61);
    let evidence = member.evidence(fetched.nonce).await;
    let refused = member.client.attest(evidence).await;
    docket.refused("a nonce of 60 s after 61 s", refused, codes::VERIFY_NONCE_EXPIRED);
    clocked.ahead(601);
    let evidence = member.evidence(member.next).await;
    let refused = member.client.attest(evidence).await;
    docket.refused("the nonce for the next attestation after the lease's term", refused, codes::VERIFY_NONCE_EXPIRED);
    let refused = member.ask(id, member.sequence).await;
    docket.refused("an SVID after the lease's term", refused, codes::ISSUER_NO_LEASE);
    member.next = member.client.nonce().await.unwrap().nonce;
    assert!(member.attest().await.unwrap().lease.is_some());
}

/// A node that was off while its certificate expired comes back by itself. (That its CA may have been
/// replaced meanwhile, too, is shown in `tests/rotation.rs`.)
#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_certificate_expired_comes_back_by_itself() {
    let clocked = Clocked::start("").await;
    let server = &clocked.server;
    let mut node = Node::boot(server).await;
    let id = node.settle(server).await;
    node.agent.take().unwrap().terminate();
    // The server's time never goes back, so eight days pass at once.
    clocked.ahead(8 * DAY);
    node.start();
    node.until(holds_svid).await;
    node.fetch().await.unwrap();
    let decided = server.decided();
    assert!(decided.iter().any(|what| what == codes::PROTOCOL_CLIENT_CERTIFICATE.as_str()), "{decided:?}");
    assert_eq!(decided.iter().filter(|what| *what == "node.admitted").count(), 2, "it enrolled again");
    assert_eq!(server.json(&["node", "show", &id])["state"], "admitted");
}

/// The same while it runs, cut off from its control plane all the time.
#[tokio::test(flavor = "multi_thread")]
async fn a_running_node_whose_certificate_expired_enrols_again() {
    let clocked = Clocked::start("").await;
    let server = &clocked.server;
    let mut node = Node::boot(server).await;
    let id = node.settle(server).await;
    clocked.ahead(8 * DAY);
    // Whatever it asks next is refused with the reason.
    node.register(server, &id, "more");
    node.until(|status| status["workloads"].as_array().is_some_and(|all| all.len() == 2) && holds_svid(status)).await;
    let decided = server.decided();
    assert!(decided.iter().any(|what| what == codes::PROTOCOL_CLIENT_CERTIFICATE.as_str()), "{decided:?}");
}
