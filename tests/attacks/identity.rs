//! Whose TPM is it? Claiming another's id, keys that are in no TPM, keys of the wrong kind.

use leasehold::codes;
use leasehold::control_plane::dev::wire;
use leasehold::protocol::{EnrolRequest, PresentedEk};
use leasehold::tpm::TpmError;
use leasehold::tpm::structures::Public;
use leasehold::verify::credential;
use p256::ecdsa::SigningKey;

use crate::bench::TestTpm;
use crate::bench::world::Server;
use crate::node;
use crate::rogue::{About, Client, Docket, Member, Station, answer_with, random};

/// A second TPM claims to be the first, by every part of the protocol that names a node.
#[tokio::test(flavor = "multi_thread")]
async fn a_second_tpm_does_not_become_the_first() {
    let server = Server::start("");
    let mut first = Member::leased(&server).await;
    let mut second = Member::leased(&server).await;
    let stranger = Client::stranger(&server);
    let mut docket = Docket::of(&server);

    // In evidence, over its own nonce and connection.
    let about = About { node: Some(first.node), ..second.about(second.next) };
    let refused = second.client.attest(second.station.evidence(&about).await).await;
    let refused =
        docket.refused("evidence with the first one's id under its own certificate", refused, codes::VERIFY_NODE);
    second.next = refused.next.unwrap().nonce;

    // In enrolment, with the first one's EK beside its own keys: it can't open the challenge.
    let third = Station::blank().await;
    let mut request = third.request();
    request.ek = first.station.request().ek;
    let challenge = stranger.begin(&request).await.unwrap();
    let failed = third.activate(&challenge).await.unwrap_err();
    assert!(matches!(failed, TpmError::Refused { .. }), "{failed}");
    println!("the second TPM, asked to open the first one's challenge: {failed}");
    let (answer, _) = third.answer(&challenge, &random::<32>()).await;
    let refused = stranger.answer(&answer).await;
    docket.refused("the first one's EK beside its own keys, proof by a guess", refused, codes::ENROL_ACTIVATION);
    // Nor does the first TPM open it for the second: the key it names isn't in it.
    let challenge = stranger.begin(&request).await.unwrap();
    let failed = first.station.activate(&challenge).await.unwrap_err();
    println!("the first TPM, asked to open it: {failed}");
    let refused = stranger.answer(&third.answer(&challenge, &[]).await.0).await;
    docket.refused("the same with an empty secret", refused, codes::ENROL_ACTIVATION);

    // In enrolment, with the first one's EK as one more of its own.
    let mut request = third.request();
    request.aliases.push(first.station.request().ek);
    let challenge = stranger.begin(&request).await.unwrap();
    let secret = third.activate(&challenge).await.unwrap();
    let refused = stranger.answer(&third.answer(&challenge, &secret).await.0).await;
    docket.refused("the first one's EK as an alias", refused, codes::ENROL_ID_TAKEN);

    // In enrolment, with the first one's node key: its AK can't certify a key that isn't beside it.
    let mut request = third.request();
    request.node_key_public = first.station.request().node_key_public;
    let challenge = stranger.begin(&request).await.unwrap();
    let secret = third.activate(&challenge).await.unwrap();
    let refused = stranger.answer(&third.answer(&challenge, &secret).await.0).await;
    docket.refused("the first one's node key", refused, codes::VERIFY_EVIDENCE_SIGNATURE);
    // The first one, or somebody on it, signs: then the certification is missing.
    let challenge = stranger.begin(&request).await.unwrap();
    let secret = third.activate(&challenge).await.unwrap();
    let certification = third.certify(challenge.nonce).await;
    let about = About { nonce: challenge.nonce, node: None, selection: challenge.selection, certification };
    let refused = stranger.answer(&answer_with(&challenge, &secret, first.station.evidence(&about).await)).await;
    docket.refused("the first one's node key, which signs the evidence", refused, codes::VERIFY_NODE_KEY);

    // On the wire, with the first one's certificate and its own key: there is no connection.
    let thief = Client::certified(&server, &first.certificate, second.station.tls_key());
    let broken = thief.try_send(reqwest::Method::GET, "/v1/nonce", Vec::new()).await.unwrap_err();
    println!("the first one's certificate with another key: {broken}");

    assert!(!server.json(&["node", "list"]).to_string().contains(&third.id().to_string()), "nothing is left of it");
    // Neither suffered from it.
    assert!(first.attest().await.unwrap().lease.is_some());
    assert!(second.attest().await.unwrap().lease.is_some());
}

/// An attestation key in software beside a real EK, also with a real TPM's help.
#[tokio::test(flavor = "multi_thread")]
async fn a_software_key_beside_a_real_ek_attests_nothing() {
    let server = Server::start("");
    let station = Station::blank().await;
    let client = Client::stranger(&server);
    let mut docket = Docket::of(&server);
    let key = || SigningKey::from_slice(&random::<32>()).unwrap();
    let software = node::Node { ak: key(), node_key: key(), id: None, ..node::Node::honest() };
    let request = EnrolRequest {
        ak_public: software.ak_public(),
        node_key_public: software.node_key_public(),
        ..station.request()
    };
    // Its attributes are perfect, so the challenge is made; nobody can open it.
    let challenge = client.begin(&request).await.unwrap();
    println!("the TPM of the EK, asked to open it: {}", station.activate(&challenge).await.unwrap_err());
    let forged = node::Node {
        nonce: challenge.nonce,
        certification_nonce: challenge.nonce,
        values: challenge.selection.pcrs().map(|pcr| (pcr, vec![pcr; 32])).collect(),
        ..software.clone()
    };
    let answer = answer_with(&challenge, &random::<32>(), forged.evidence());
    docket.refused(
        "a software AK beside a real EK, proof by a guess",
        client.answer(&answer).await,
        codes::ENROL_ACTIVATION,
    );
    docket.refused("a second guess at the same challenge", client.answer(&answer).await, codes::ENROL_SESSION);

    // Activated for a real key, answered for the software one.
    let challenge = client.begin(&station.request()).await.unwrap();
    let secret = station.activate(&challenge).await.unwrap();
    let forged = node::Node { nonce: challenge.nonce, certification_nonce: challenge.nonce, ..forged };
    let refused = client.answer(&answer_with(&challenge, &secret, forged.evidence())).await;
    docket.refused("activated for the TPM's AK, evidence by a software AK", refused, codes::VERIFY_EVIDENCE_SIGNATURE);

    // The EK of one TPM, the keys of another.
    let other = Station::blank().await;
    let request = EnrolRequest { ek: station.request().ek, ..other.request() };
    let challenge = client.begin(&request).await.unwrap();
    for (which, tpm) in [("the EK's", &station), ("the AK's", &other)] {
        println!("{which} TPM, asked to open it: {}", tpm.activate(&challenge).await.unwrap_err());
    }
    let refused = client.answer(&other.answer(&challenge, &random::<32>()).await.0).await;
    docket.refused("the EK of one TPM, the AK of another", refused, codes::ENROL_ACTIVATION);
    assert_eq!(server.json(&["node", "list"])["nodes"].as_array().unwrap().len(), 0);
}

/// A TPM takes the public area of any key, attributes and all; it doesn't activate for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_tpm_does_not_activate_for_a_key_it_only_knows_the_public_part_of() {
    /// TPM_RC_AUTH_UNAVAILABLE (Part 2, 6.6.3).
    const AUTH_UNAVAILABLE: u32 = 0x12F;
    let station = Station::blank().await;
    let ek_public = station.identity.ek.public.clone();
    // A bare TPM has room for three keys.
    station.thread.stop(std::time::Duration::from_secs(10)).unwrap();
    let relay = station.tpm.relay.handle();
    let software = node::Node { ak: SigningKey::from_slice(&random::<32>()).unwrap(), ..node::Node::honest() };
    let public = software.ak_public();
    let name = node::name(&public);

    let template = [&ek_public[..ek_public.len() - 68], &[0, 32], &[0; 32], &[0, 32], &[0; 32]].concat();
    let created = relay.execute(&wire::create_primary(wire::ENDORSEMENT, &template)).await.unwrap();
    let (ek, public_made) = wire::parse_create_primary(&created.response).unwrap();
    assert_eq!(public_made, ek_public);
    let loaded = relay.execute(&raw::load_external(&public)).await.unwrap();
    let ak = raw::handle(&loaded.response);
    let session = raw::handle(&relay.execute(&raw::start_policy_session()).await.unwrap().response);
    relay.execute(&raw::policy_secret(session)).await.unwrap();
    let ek_parsed = Public::parse(&ek_public).unwrap();
    let (credential, encrypted) = credential::make(&ek_parsed, &name, &[7; 32]).unwrap();
    let answer = relay.exchange(&raw::activate_credential(ak, ek, session, &credential, &encrypted)).await.unwrap();
    let code = wire::header_code(&answer.response);
    println!("ActivateCredential for a key loaded without its private part: {code:#05x}");
    assert_eq!(code, AUTH_UNAVAILABLE);
}

/// Real TPM keys that aren't attestation keys, each for a reason of its own.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_of_the_wrong_kind_is_no_attestation_key() {
    let server = Server::start("");
    let station = Station::blank().await;
    let client = Client::stranger(&server);
    let mut docket = Docket::of(&server);
    let tpm = TestTpm::blank();
    let real = async |attributes: u32, decrypts: bool| {
        let command = wire::create_primary(wire::ENDORSEMENT, &template(attributes, decrypts));
        let answer = tpm.relay.execute(&command).await.unwrap();
        let (handle, public) = wire::parse_create_primary(&answer.response).unwrap();
        tpm.relay.execute(&wire::flush_context(handle)).await.unwrap();
        public
    };
    // fixedTPM, fixedParent, sensitiveDataOrigin, userWithAuth, noDA; sign, decrypt, restricted.
    const FIXED: u32 = 0x0000_0472;
    const SIGN: u32 = 0x0004_0000;
    const DECRYPT: u32 = 0x0002_0000;
    const RESTRICTED: u32 = 0x0001_0000;
    let mut imported = station.identity.ak_public.clone();
    imported[7] &= !0x20;
    let cases = [
        ("an unrestricted signing key", real(FIXED | SIGN, false).await, codes::VERIFY_AK_UNRESTRICTED),
        ("the node key", station.identity.node_key_public.clone(), codes::VERIFY_AK_UNRESTRICTED),
        ("a storage key", real(FIXED | RESTRICTED | DECRYPT, true).await, codes::VERIFY_AK_DECRYPT),
        ("the EK itself", station.identity.ek.public.clone(), codes::VERIFY_AK_DECRYPT),
        (
            "a key that can be duplicated",
            real(FIXED & !0x12 | SIGN | RESTRICTED, false).await,
            codes::VERIFY_AK_NOT_FIXED,
        ),
        (
            "a key with dictionary-attack protection",
            real(FIXED & !0x400 | SIGN | RESTRICTED, false).await,
            codes::VERIFY_AK_TEMPLATE,
        ),
        // No TPM holds such a key, which is the point of asking for the attribute.
        ("a key that says it was made elsewhere", imported, codes::VERIFY_AK_IMPORTED),
        ("no key", Vec::new(), codes::TPM_STRUCTURE),
    ];
    for (what, ak_public, code) in cases {
        let refused = client.begin(&EnrolRequest { ak_public, ..station.request() }).await;
        docket.refused(&format!("as AK: {what}"), refused, code);
    }
    let node_key_public = station.identity.ak_public.clone();
    let refused = client.begin(&EnrolRequest { node_key_public, ..station.request() }).await;
    docket.refused("as node key: the AK", refused, codes::VERIFY_NODE_KEY);
    let ek = PresentedEk { public: real(FIXED | RESTRICTED | DECRYPT, true).await, certificate: None };
    let refused = client.begin(&EnrolRequest { ek, ..station.request() }).await;
    docket.refused("as EK: a storage key", refused, codes::VERIFY_EK_TEMPLATE);
}

/// What makes no sense is refused before anything is made of it.
#[tokio::test(flavor = "multi_thread")]
async fn keys_and_words_that_make_no_sense_are_refused() {
    let server = Server::start("");
    let station = Station::blank().await;
    let client = Client::stranger(&server);
    let mut docket = Docket::of(&server);
    let changed = |change: &dyn Fn(&mut EnrolRequest)| {
        let mut request = station.request();
        change(&mut request);
        request
    };
    let off_curve = |public: &[u8]| [&public[..public.len() - 32], &[9; 32]].concat();
    let rsa = |modulus: &[u8]| {
        // Template L-1 (TCG EK Credential Profile, B.3.3): RSA-2048 instead of the P-256 parameters.
        let head = &station.identity.ek.public[2..42];
        let parameters = [0x00, 0x06, 0x00, 0x80, 0x00, 0x43, 0x00, 0x10, 0x08, 0x00, 0, 0, 0, 0];
        [&[0x00, 0x01], head, &parameters, &node::sized(modulus)[..]].concat()
    };
    type Case<'a> = (&'a str, &'a dyn Fn(&mut EnrolRequest), leasehold::codes::Code);
    let cases: [Case<'_>; 13] = [
        ("an EK on no curve", &|r| r.ek.public = off_curve(&r.ek.public), codes::TPM_STRUCTURE),
        ("an AK on no curve", &|r| r.ak_public = off_curve(&r.ak_public), codes::VERIFY_AK_TEMPLATE),
        ("a node key on no curve", &|r| r.node_key_public = off_curve(&r.node_key_public), codes::VERIFY_NODE_KEY),
        ("an RSA EK of zeros", &|r| r.ek.public = rsa(&[0; 256]), codes::TPM_STRUCTURE),
        ("an RSA EK of one", &|r| r.ek.public = rsa(&[&[0; 255][..], &[1]].concat()), codes::TPM_STRUCTURE),
        ("an even RSA EK", &|r| r.ek.public = rsa(&[0xFE; 256]), codes::TPM_STRUCTURE),
        ("a short RSA EK", &|r| r.ek.public = rsa(&[0xFF; 128]), codes::TPM_STRUCTURE),
        ("bytes after the EK", &|r| r.ek.public.push(0), codes::TPM_STRUCTURE),
        ("a certificate of nonsense", &|r| r.ek.certificate = Some(vec![0x30; 500]), codes::VERIFY_EK_CERTIFICATE),
        ("nine other EKs", &|r| r.aliases = vec![r.ek.clone(); 9], codes::PROTOCOL_MALFORMED),
        ("nine certificates", &|r| r.chain = vec![serde_bytes::ByteBuf::new(); 9], codes::PROTOCOL_MALFORMED),
        (
            "a version of two lines",
            &|r| r.agent_version = "1\n{\"what\":\"node.admitted\"}".into(),
            codes::PROTOCOL_MALFORMED,
        ),
        ("a version of 65 letters", &|r| r.agent_version = "1".repeat(65), codes::PROTOCOL_MALFORMED),
    ];
    for (what, change, code) in cases {
        docket.refused(what, client.begin(&changed(change)).await, code);
    }
}

/// Strangers can't fill the record, and can't hide in it either.
#[tokio::test(flavor = "multi_thread")]
async fn plenty_of_garbage_hides_no_attack() {
    let server = Server::start("");
    let station = Station::blank().await;
    let client = Client::stranger(&server);
    for _ in 0..200 {
        client.send("/v1/enrol", vec![0xA0]).await.unwrap_err();
    }
    let garbage = server.decided().iter().filter(|what| *what == codes::PROTOCOL_MALFORMED.as_str()).count();
    println!("200 pieces of garbage, {garbage} records");
    // At most two minutes were touched.
    assert!((60..=120).contains(&garbage));
    let mut docket = Docket::of(&server);
    let challenge = client.begin(&station.request()).await.unwrap();
    let answer = station.answer(&challenge, &random::<32>()).await.0;
    docket.refused("a forged proof amid garbage", client.answer(&answer).await, codes::ENROL_ACTIVATION);
}

/// TPMT_PUBLIC template of a P-256 key: a signing key, or one that decrypts structures.
fn template(attributes: u32, decrypts: bool) -> Vec<u8> {
    let mut template = vec![0x00, 0x23, 0x00, 0x0B];
    template.extend(attributes.to_be_bytes());
    template.extend([0, 0]);
    match decrypts {
        // AES-128 in CFB mode, no scheme; or no cipher, ECDSA with SHA-256.
        true => template.extend([0x00, 0x06, 0x00, 0x80, 0x00, 0x43, 0x00, 0x10]),
        false => template.extend([0x00, 0x10, 0x00, 0x18, 0x00, 0x0B]),
    }
    template.extend([0x00, 0x03, 0x00, 0x10, 0, 0, 0, 0]);
    template
}

/// The few commands that only an attacker needs (Part 3).
mod raw {
    use crate::node::sized;

    const NULL: u32 = 0x4000_0007;
    const ENDORSEMENT: u32 = 0x4000_000B;
    const PASSWORD: [u8; 9] = [0x40, 0, 0, 9, 0, 0, 0, 0, 0];

    /// The handle at the start of an answer.
    pub fn handle(response: &[u8]) -> u32 {
        u32::from_be_bytes(response[10..14].try_into().unwrap())
    }

    /// TPM2_LoadExternal (12.3) of a public area alone.
    pub fn load_external(public: &[u8]) -> Vec<u8> {
        frame(0x8001, 0x167, &[&[0, 0], &sized(public)[..], &ENDORSEMENT.to_be_bytes()])
    }

    /// TPM2_StartAuthSession (11.1): a policy session with SHA-256, no salt.
    pub fn start_policy_session() -> Vec<u8> {
        let nulls = [NULL.to_be_bytes(), NULL.to_be_bytes()].concat();
        frame(0x8001, 0x176, &[&nulls, &sized(&[5; 16])[..], &[0, 0], &[1], &[0x00, 0x10], &[0x00, 0x0B]])
    }

    /// TPM2_PolicySecret (23.4) with the endorsement hierarchy's empty password.
    pub fn policy_secret(session: u32) -> Vec<u8> {
        let handles = [ENDORSEMENT.to_be_bytes(), session.to_be_bytes()].concat();
        frame(0x8002, 0x151, &[&handles, &[0, 0, 0, 9], &PASSWORD, &[0; 6], &[0; 4]])
    }

    /// TPM2_ActivateCredential (12.5): the AK by an empty password, the EK by the policy session.
    pub fn activate_credential(ak: u32, ek: u32, session: u32, credential: &[u8], secret: &[u8]) -> Vec<u8> {
        let handles = [ak.to_be_bytes(), ek.to_be_bytes()].concat();
        let policy = [&session.to_be_bytes()[..], &[0, 0, 0, 0, 0]].concat();
        frame(
            0x8002,
            0x147,
            &[&handles, &[0, 0, 0, 18], &PASSWORD, &policy, &sized(credential)[..], &sized(secret)[..]],
        )
    }

    fn frame(tag: u16, code: u32, parts: &[&[u8]]) -> Vec<u8> {
        let body = parts.concat();
        let size = u32::try_from(10 + body.len()).unwrap();
        [&tag.to_be_bytes()[..], &size.to_be_bytes(), &code.to_be_bytes(), &body].concat()
    }
}
