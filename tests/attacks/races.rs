//! Things done at once, or in another order than the honest one.

use leasehold::codes;
use leasehold::protocol::{AttestAnswer, AttestRequest, EnrolAnswer, decode, encode};

use crate::bench::TestTpm;
use crate::bench::world::Server;
use crate::rogue::{Client, Docket, Member, Station, random};

/// How much is in flight at once.
const AT_ONCE: usize = 8;

async fn all_at_once(
    client: &Client,
    path: &'static str,
    bodies: Vec<Vec<u8>>,
) -> Vec<Result<Vec<u8>, leasehold::protocol::Refused>> {
    let mut sent = Vec::new();
    for body in bodies {
        let client = client.clone();
        sent.push(tokio::spawn(async move { client.send(path, body).await }));
    }
    let mut answers = Vec::new();
    for task in sent {
        answers.push(task.await.unwrap());
    }
    answers
}

fn grants(server: &Server) -> usize {
    server.decided().iter().filter(|what| *what == "lease.granted").count()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_nonce_is_good_for_one_of_many_at_once() {
    let server = Server::start("");
    let mut member = Member::leased(&server).await;
    let before = grants(&server);
    let evidence = member.evidence(member.next).await;
    let bodies = (0..AT_ONCE).map(|_| encode(&AttestRequest::new(random(), evidence.clone())).unwrap()).collect();
    let answers = all_at_once(&member.client, "/v1/attest", bodies).await;
    let accepted: Vec<_> = answers.iter().filter_map(|answer| answer.as_ref().ok()).collect();
    let spent =
        answers.iter().filter(|answer| answer.as_ref().is_err_and(|e| e.refusal.code == codes::VERIFY_NONCE_SPENT));
    println!(
        "one evidence under {AT_ONCE} request ids at once: {} accepted, {} spent",
        accepted.len(),
        spent.clone().count()
    );
    assert_eq!((accepted.len(), spent.count()), (1, AT_ONCE - 1));
    assert_eq!(grants(&server), before + 1);
    member.next = decode::<AttestAnswer>(accepted[0]).unwrap().next.nonce;

    // A request whose answer was lost, asked for again by many: one answer for all of them.
    let request = AttestRequest::new(random(), member.evidence(member.next).await);
    let answers = all_at_once(&member.client, "/v1/attest", vec![encode(&request).unwrap(); AT_ONCE]).await;
    let first = answers[0].as_ref().unwrap();
    assert!(answers.iter().all(|answer| answer.as_ref().unwrap() == first));
    assert_eq!(grants(&server), before + 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_enrolments_of_one_tpm_make_one_node() {
    let server = Server::start("");
    let station = Station::blank().await;
    let client = Client::stranger(&server);
    let name = leasehold::tpm::structures::Public::parse(&station.identity.ek.public).unwrap().name();
    server.admin(&["ek", "add", "--name", &hex::encode(name), "--label", "rack 7"]);
    let mut answers = Vec::new();
    for _ in 0..AT_ONCE {
        let challenge = client.begin(&station.request()).await.unwrap();
        let secret = station.activate(&challenge).await.unwrap();
        answers.push(station.answer(&challenge, &secret).await.0);
    }
    // Answers exchanged between two enrolments of the same keys: the secret is the row's.
    let mut docket = Docket::of(&server);
    let (one, two) = (answers.remove(0), answers.remove(0));
    let crossed = EnrolAnswer { enrolment: one.enrolment, ..two.clone() };
    docket.refused("the answer to another enrolment", client.answer(&crossed).await, codes::ENROL_ACTIVATION);
    docket.refused("its own answer after that", client.answer(&one).await, codes::ENROL_SESSION);
    answers.push(two);

    let bodies = answers.iter().map(|answer| encode(answer).unwrap()).collect();
    let results = all_at_once(&client, "/v1/enrol/answer", bodies).await;
    // Each TPM clock that comes after a later one was seen is one that went back.
    let admitted = results.iter().filter(|result| result.is_ok()).count();
    for refused in results.iter().filter_map(|result| result.as_ref().err()) {
        assert_eq!(refused.refusal.code, codes::VERIFY_CLOCK, "{}", refused.refusal);
    }
    println!("{} enrolments of one TPM at once: {admitted} admitted", answers.len());
    assert!(admitted >= 1);
    let again = all_at_once(&client, "/v1/enrol/answer", vec![encode(&answers[0]).unwrap(); 2]).await;
    assert!(again.iter().all(|result| result.as_ref().is_err_and(|e| e.refusal.code == codes::ENROL_SESSION)));
    let nodes = server.json(&["node", "list"]);
    assert_eq!(nodes["nodes"].as_array().unwrap().len(), 1);

    // One answer twice at once counts once.
    let challenge = client.begin(&station.request()).await.unwrap();
    let secret = station.activate(&challenge).await.unwrap();
    let answer = encode(&station.answer(&challenge, &secret).await.0).unwrap();
    let results = all_at_once(&client, "/v1/enrol/answer", vec![answer; AT_ONCE]).await;
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);
}

/// From the record of a revocation on there is no grant, however much was on its way.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_granted_after_a_revocation() {
    let server = Server::start("");
    let member = Member::leased(&server).await;
    let id = "spiffe://example.org/app";
    let add = ["workload", "add", "--id", id, "--owner", "team-a", "--purpose", "tests", "--selector", "unix:uid:7"];
    server.admin(&[&add[..], &["--node", &member.id()]].concat());
    let mut asking = Vec::new();
    for _ in 0..AT_ONCE {
        let (client, sequence) = (member.client.clone(), member.sequence);
        let key = rcgen::KeyPair::generate().unwrap();
        let template = member.wanted(id, sequence, &key);
        asking.push(tokio::spawn(async move {
            let mut issued = 0;
            loop {
                let request = leasehold::protocol::CredentialRequest { request_id: random(), ..template.clone() };
                match client.post::<leasehold::protocol::CredentialAnswer>("/v1/credentials", &request).await {
                    Ok(answer) => issued += answer.answers.iter().filter(|one| one.refusal.is_none()).count(),
                    Err(refused) => return (issued, refused.refusal.code),
                }
            }
        }));
    }
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    server.admin(&["node", "revoke", &member.id(), "--reason", "stolen"]);
    let mut issued = 0;
    for task in asking {
        let (count, code) = task.await.unwrap();
        assert_eq!(code, codes::ENROL_REVOKED);
        issued += count;
    }
    let decided = server.decided();
    let revoked = decided.iter().position(|what| what == "node.revoked").unwrap();
    println!("{issued} SVIDs before the revocation, by {AT_ONCE} at once; then: {:?}", &decided[revoked..]);
    assert!(issued > 0);
    assert_eq!(decided[..revoked].iter().filter(|what| *what == "credential.issued").count(), issued);
    assert_eq!(decided[revoked + 1..], vec![codes::ENROL_REVOKED.as_str(); AT_ONCE]);
}

/// Steps of the protocol left out, or in another order.
#[tokio::test(flavor = "multi_thread")]
async fn no_step_can_be_left_out() {
    let server = Server::start("");
    let mut member = Member::leased(&server).await;
    let station = Station::boot(TestTpm::blank()).await;
    let client = Client::stranger(&server);
    let mut docket = Docket::of(&server);
    let challenge = client.begin(&station.request()).await.unwrap();
    let secret = station.activate(&challenge).await.unwrap();
    let (answer, _) = station.answer(&challenge, &secret).await;
    let unknown = EnrolAnswer { enrolment: random(), ..answer.clone() };
    docket.refused("an answer without a challenge", client.answer(&unknown).await, codes::ENROL_SESSION);
    // The challenge's nonce is no nonce of a node, and a node's is no challenge's.
    let evidence = member.evidence(challenge.nonce).await;
    let refused = member.client.attest(evidence).await;
    let refused = docket.refused("an attestation over an enrolment's nonce", refused, codes::VERIFY_NONCE);
    member.next = refused.next.unwrap().nonce;
    let (mut over_other, _) =
        station.answer(&leasehold::protocol::EnrolChallenge { nonce: member.next, ..challenge.clone() }, &secret).await;
    over_other.enrolment = challenge.enrolment;
    let refused = client.answer(&over_other).await;
    docket.refused("an enrolment over a node's nonce", refused, codes::VERIFY_NODE_KEY);
    docket.refused("the honest answer after that", client.answer(&answer).await, codes::ENROL_SESSION);
    // Evidence of an enrolment is no attestation, and the other way round.
    let about = crate::rogue::About { node: None, ..member.about(member.next) };
    let refused = member.client.attest(member.station.evidence(&about).await).await;
    let refused = docket.refused("an attestation that names no node", refused, codes::VERIFY_NODE);
    member.next = refused.next.unwrap().nonce;
    let challenge = client.begin(&station.request()).await.unwrap();
    let secret = station.activate(&challenge).await.unwrap();
    let certification = station.certify(challenge.nonce).await;
    let about = crate::rogue::About {
        nonce: challenge.nonce,
        node: Some(station.id()),
        selection: challenge.selection,
        certification,
    };
    let answer = crate::rogue::answer_with(&challenge, &secret, station.evidence(&about).await);
    docket.refused("an enrolment that chooses its node id", client.answer(&answer).await, codes::VERIFY_NODE);
    // A quote over PCRs of the node's choice.
    let about = crate::rogue::About { selection: "sha256:16,23".parse().unwrap(), ..member.about(member.next) };
    let refused = member.client.attest(member.station.evidence(&about).await).await;
    docket.refused("a quote over resettable PCRs", refused, codes::VERIFY_SELECTION);
}
