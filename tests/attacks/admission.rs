//! Who gets in: a genuine TPM alone admits nobody, and a revoked one stays out.

use leasehold::codes;
use leasehold::control_plane::dev::{EkCa, EkCert, wire};
use leasehold::protocol::{EnrolRequest, PresentedEk};
use reqwest::Method;
use serde_bytes::ByteBuf;

use crate::bench::TestTpm;
use crate::bench::world::{Node, Server, holds_svid};
use crate::rogue::{Client, Docket, Station};

/// `[admission]` with this manufacturer's roots.
fn trusting(ca: &EkCa) -> String {
    format!("[admission]\nek_roots = [\"{}\", \"{}\"]\n", ca.root().display(), ca.intermediate().display())
}

/// Each of the three ways in, and nothing before one of them was gone.
#[tokio::test(flavor = "multi_thread")]
async fn a_genuine_tpm_waits_until_somebody_admits_it() {
    let (tpm, ca) = TestTpm::certified(EkCert::P256);
    let station = Station::boot(tpm).await;
    let id = station.id().to_string();

    let server = Server::start(&trusting(&ca));
    gets_nothing(&server, &station).await;
    server.admin(&["node", "approve", &id]);
    admitted(&server, &station, "operator").await;

    let server = Server::start(&trusting(&ca));
    gets_nothing(&server, &station).await;
    let certificate = station.tpm.path().join("ek.der");
    std::fs::write(&certificate, station.identity.ek.certificate.as_ref().unwrap()).unwrap();
    server.admin(&["ek", "add", "--cert", certificate.to_str().unwrap(), "--label", "rack 7"]);
    admitted(&server, &station, "named EK `rack 7`").await;

    let mut server = Server::start(&trusting(&ca));
    gets_nothing(&server, &station).await;
    let rule = "[[admission.join]]\nname = \"fleet\"\ngrade = \"certified\"\n";
    let config = std::fs::read_to_string(server.path("server.toml")).unwrap();
    std::fs::write(server.path("server.toml"), config + rule).unwrap();
    server.restart();
    admitted(&server, &station, "join rule `fleet`").await;
}

/// It is known, graded, recorded as waiting, and that is all.
async fn gets_nothing(server: &Server, station: &Station) {
    let mut docket = Docket::of(server);
    let stranger = Client::stranger(server);
    let (result, ..) = station.enrol(&stranger).await.unwrap();
    assert_eq!(result.grade, "certified");
    assert!(result.admitted.is_none());
    println!("a genuine TPM that nobody admitted: {}", result.waiting.unwrap());
    docket.recorded("a genuine TPM that nobody admitted", codes::ENROL_WAITING);
    let shown = server.json(&["node", "show", &station.id().to_string()]);
    assert_eq!((shown["state"].as_str(), shown["lease"].is_null()), (Some("waiting"), true));
    // Its keys are known now, but it has no certificate; one it makes itself is worth nothing.
    for (method, path) in [
        (Method::GET, "/v1/nonce"),
        (Method::POST, "/v1/attest"),
        (Method::POST, "/v1/credentials"),
        (Method::GET, "/v1/events"),
    ] {
        let refused = stranger.try_send(method, path, Vec::new()).await.unwrap();
        docket.refused(&format!("{path} without a certificate"), refused, codes::PROTOCOL_CLIENT_CERTIFICATE);
    }
    // Asking again changes nothing.
    let (result, ..) = station.enrol(&stranger).await.unwrap();
    assert!(result.admitted.is_none());
}

async fn admitted(server: &Server, station: &Station, by: &str) {
    let (result, ..) = station.enrol(&Client::stranger(server)).await.unwrap();
    let admitted = result.admitted.expect(by);
    let client = Client::certified(server, &admitted.certificate, station.tls_key());
    client.nonce().await.unwrap();
    let shown = server.json(&["node", "show", &station.id().to_string()]);
    assert_eq!((shown["admitted_by"].as_str(), shown["grade"].as_str()), (Some(by), Some("certified")));
    println!("admitted by {by}");
}

/// An EK certificate is worth what it says about this EK, to those who trust who says it.
#[tokio::test(flavor = "multi_thread")]
async fn an_endorsement_that_is_not_this_tpms_admits_nobody() {
    let (tpm, ca) = TestTpm::certified(EkCert::P256);
    let genuine = Station::boot(tpm).await;
    let rule = "[[admission.join]]\nname = \"fleet\"\ngrade = \"certified\"\n";
    let server = Server::start(&format!("{}{rule}", trusting(&ca)));
    let client = Client::stranger(&server);
    let mut docket = Docket::of(&server);

    let (tpm, other_ca) = TestTpm::certified(EkCert::P256);
    let foreign = Station::boot(tpm).await;
    let refused = client.begin(&foreign.request()).await;
    docket.refused("an EK certificate of a CA that nobody configured", refused, codes::VERIFY_EK_UNKNOWN_CA);
    let pem = std::fs::read(other_ca.intermediate()).unwrap();
    let mut chain: Vec<ByteBuf> = Vec::new();
    for certificate in x509_cert::Certificate::load_pem_chain(&pem).unwrap() {
        chain.push(ByteBuf::from(der::Encode::to_der(&certificate).unwrap()));
    }
    let refused = client.begin(&EnrolRequest { chain, ..foreign.request() }).await;
    docket.refused("the same with its CA's certificate in the chain", refused, codes::VERIFY_EK_UNKNOWN_CA);

    let software = Station::blank().await;
    let borrowed = PresentedEk { certificate: genuine.request().ek.certificate, ..software.request().ek };
    let refused = client.begin(&EnrolRequest { ek: borrowed, ..software.request() }).await;
    docket.refused("a genuine TPM's certificate beside another EK", refused, codes::VERIFY_EK_KEY);
    // As an alias it is nobody's proof: the grade is that of the EK that was challenged.
    let aliases = vec![genuine.request().ek];
    let challenge = client.begin(&EnrolRequest { aliases, ..software.request() }).await.unwrap();
    let secret = software.activate(&challenge).await.unwrap();
    let result = client.answer(&software.answer(&challenge, &secret).await.0).await.unwrap();
    assert_eq!((result.grade.as_str(), result.admitted.is_none()), ("unknown", true));
    docket.recorded("a genuine TPM's EK and certificate as an alias", codes::ENROL_WAITING);
    // And the genuine one isn't hindered by it.
    assert!(genuine.enrol(&client).await.unwrap().0.admitted.is_some());
}

/// Revoked under one EK, a TPM doesn't return under it, under another, or by what it still has.
#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_tpm_does_not_come_back() {
    let (tpm, ca) = TestTpm::certified(EkCert::Both);
    let rule = "[[admission.join]]\nname = \"fleet\"\ngrade = \"certified\"\n";
    let server = Server::start(&format!("{}{rule}", trusting(&ca)));
    let mut member = Station::boot(tpm).await.join(&server).await;
    assert_eq!(member.station.identity.aliases.len(), 1, "two EKs with a certificate");
    member.attest().await.unwrap();
    member.learn(&server);
    member.attest().await.unwrap();
    let workload = "spiffe://example.org/app";
    let add =
        ["workload", "add", "--id", workload, "--owner", "team-a", "--purpose", "tests", "--selector", "unix:uid:7"];
    server.admin(&[&add[..], &["--node", &member.id()]].concat());
    let key = rcgen::KeyPair::generate().unwrap();
    let wanted = leasehold::protocol::encode(&member.wanted(workload, member.sequence, &key)).unwrap();
    member.client.send("/v1/credentials", wanted.clone()).await.unwrap();
    let submitted = leasehold::protocol::AttestRequest::new(crate::rogue::random(), member.evidence(member.next).await);
    let submitted = leasehold::protocol::encode(&submitted).unwrap();
    member.client.send("/v1/attest", submitted.clone()).await.unwrap();

    server.admin(&["node", "revoke", &member.id(), "--reason", "stolen"]);
    let mut docket = Docket::of(&server);
    // Over the connection it has, and over a new one; also for answers that were kept for a retry.
    for how in ["the open connection", "a new connection"] {
        for (what, path, body) in [
            ("the last attestation, asked for again", "/v1/attest", submitted.clone()),
            ("the last SVID, asked for again", "/v1/credentials", wanted.clone()),
        ] {
            let refused = member.client.send(path, body).await;
            docket.refused(&format!("{what} over {how}"), refused, codes::ENROL_REVOKED);
        }
        docket.refused(&format!("a nonce over {how}"), member.client.nonce().await, codes::ENROL_REVOKED);
        member.reconnect(&server);
    }
    let stranger = Client::stranger(&server);
    docket.refused("enrolment again", member.station.enrol(&stranger).await, codes::ENROL_REVOKED);
    let id = member.id();
    let approved = server.try_admin(&["node", "approve", &id]);
    assert_eq!(approved.status.code(), Some(1), "an operator can't undo it by mistake");

    // The same TPM without its first EK certificate: its agent takes the other EK.
    let station = member.station;
    station.thread.stop(std::time::Duration::from_secs(10)).unwrap();
    station.tpm.relay.execute(&wire::nv_undefine(0x01C0_0016)).await.unwrap();
    station.tpm.relay.execute(&wire::evict(0x8101_0016)).await.unwrap();
    let again = Station::boot(station.tpm).await;
    assert_ne!(again.id().to_string(), id, "another EK");
    assert!(again.identity.aliases.is_empty(), "and it says nothing of the first one");
    docket.refused("enrolment under its other EK", again.enrol(&stranger).await, codes::ENROL_REVOKED);
}

/// A TPM that never said that it has another EK is recognised by its keys.
#[tokio::test(flavor = "multi_thread")]
async fn an_ek_that_was_kept_quiet_makes_no_second_node() {
    let (tpm, ca) = TestTpm::certified(EkCert::Both);
    let rule = "[[admission.join]]\nname = \"fleet\"\ngrade = \"certified\"\n";
    let server = Server::start(&format!("{}{rule}", trusting(&ca)));
    let stranger = Client::stranger(&server);
    let station = Station::boot(tpm).await;
    let challenge = stranger.begin(&EnrolRequest { aliases: Vec::new(), ..station.request() }).await.unwrap();
    let secret = station.activate(&challenge).await.unwrap();
    let answer = station.answer(&challenge, &secret).await.0;
    assert!(stranger.answer(&answer).await.unwrap().admitted.is_some());
    let id = station.id().to_string();
    station.thread.stop(std::time::Duration::from_secs(10)).unwrap();
    station.tpm.relay.execute(&wire::nv_undefine(0x01C0_0016)).await.unwrap();
    station.tpm.relay.execute(&wire::evict(0x8101_0016)).await.unwrap();
    let again = Station::boot(station.tpm).await;
    let mut docket = Docket::of(&server);
    docket.refused(
        "its other EK while the first one's node stands",
        again.enrol(&stranger).await,
        codes::ENROL_ID_TAKEN,
    );
    server.admin(&["node", "revoke", &id, "--reason", "stolen"]);
    docket.skip();
    docket.refused("and when it is revoked", again.enrol(&stranger).await, codes::ENROL_REVOKED);
}

/// Anybody can name anybody's EK as one more of their own. That must cost the named one nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_takes_nobody_along_when_it_is_revoked() {
    let server = Server::start("");
    let stranger = Client::stranger(&server);
    let victim = Station::blank().await;
    let nuisance = Station::blank().await;
    let request = EnrolRequest { aliases: vec![victim.request().ek], ..nuisance.request() };
    let challenge = stranger.begin(&request).await.unwrap();
    let secret = nuisance.activate(&challenge).await.unwrap();
    let result = stranger.answer(&nuisance.answer(&challenge, &secret).await.0).await.unwrap();
    assert!(result.admitted.is_none());
    // The operator sees a node nobody knows, and does what one does.
    server.admin(&["node", "revoke", &nuisance.id().to_string(), "--reason", "nobody knows it"]);
    let mut docket = Docket::of(&server);
    docket.refused("the revoked stranger", nuisance.enrol(&stranger).await, codes::ENROL_REVOKED);
    let mut victim = victim.approved(&server).await;
    victim.attest().await.unwrap();
}

/// A TPM whose firmware is below its manufacturer's floor gets no lease, whatever its PCRs are; and does again
/// when the floor is lifted.
#[tokio::test(flavor = "multi_thread")]
async fn a_tpm_below_its_firmware_floor_gets_no_lease() {
    let (tpm, ca) = TestTpm::certified(EkCert::Rsa2048);
    let floor = "\"id:00001014\" = \"0xffffffffffffffff\"";
    let mut server = Server::start(&format!("{}[admission.tpm_firmware]\n{floor}\n", trusting(&ca)));
    let mut node = Node::boot_with(&server, tpm, "").await;
    node.start();
    let id = node.admit(&server).await;
    server.admin(&["reference", "learn", "--node", &id, "--yes"]);
    node.register(&server, &id, "app");
    let status = node.until(|status| status["reason"]["code"] == "verify.tpm_firmware").await;
    println!("below the floor: {}", status["reason"]);
    assert!(status["lease"].is_null());
    assert!(server.decided().contains(&"verify.tpm_firmware".to_owned()));
    let config = std::fs::read_to_string(server.path("server.toml")).unwrap();
    std::fs::write(server.path("server.toml"), config.replace(floor, "\"id:00001014\" = \"0.0\"")).unwrap();
    server.restart();
    node.until(holds_svid).await;
}
