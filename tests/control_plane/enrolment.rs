//! Enrolment: which TPM becomes a node, and which doesn't.

use leasehold::codes;
use leasehold::protocol::{EnrolChallenge, EnrolResult};
use p256::pkcs8::EncodePrivateKey;

use crate::bench::{Server, SoftTpm, ek_public, random_key};
use crate::node;

#[tokio::test]
async fn a_stranger_waits_until_an_operator_approves() {
    let server = Server::start().await;
    let mut tpm = SoftTpm::new();
    for _ in 0..2 {
        let result = tpm.enrol(&server.stranger()).await.unwrap();
        assert_eq!(result.node, *tpm.id().as_bytes());
        assert_eq!((result.grade.as_str(), result.admitted.is_some()), ("unknown", false));
        let waiting = result.waiting.unwrap();
        assert_eq!(waiting.code, codes::ENROL_WAITING);
        assert!(waiting.expected.contains(&format!("leasehold-server node approve {}", tpm.id())));
    }
    let id = tpm.id().to_string();
    let explained = server.run(&["node", "explain", &id]).await;
    assert_eq!(explained.status.code(), Some(3), "{}", String::from_utf8_lossy(&explained.stdout));
    // The start of an id will do; twice is the same.
    assert_eq!(server.admin(&["node", "approve", &id[..8], "--group", "edge"]).await["changed"], true);
    assert_eq!(server.admin(&["node", "approve", &id]).await["changed"], false);
    let result = tpm.enrol(&server.stranger()).await.unwrap();
    assert!(result.admitted.is_some() && result.waiting.is_none());
    let shown = server.admin(&["node", "show", &id]).await;
    assert_eq!((shown["state"].as_str(), shown["group"].as_str()), (Some("admitted"), Some("edge")));
    let recorded = server.recorded().await;
    assert_eq!(recorded, ["enrol.waiting", "node.approved", "node.admitted"]);
}

#[tokio::test]
async fn a_named_ek_joins_at_once_in_its_group() {
    let server = Server::start().await;
    let mut by_name = SoftTpm::new();
    let name = hex::encode(node::name(&ek_public(&by_name.ek)));
    server.admin(&["ek", "add", "--name", &name, "--label", "rack 7", "--group", "edge"]).await;
    let result = by_name.enrol(&server.stranger()).await.unwrap();
    assert_eq!(result.grade, "listed");
    assert!(result.admitted.is_some());
    let shown = server.admin(&["node", "show", &by_name.id().to_string()]).await;
    assert_eq!((shown["group"].as_str(), shown["admitted_by"].as_str()), (Some("edge"), Some("named EK `rack 7`")));

    let mut by_public = SoftTpm::new();
    let file = server.dir.path().join("ek.pub");
    std::fs::write(&file, node::sized(&ek_public(&by_public.ek))).unwrap();
    let file = file.to_str().unwrap();
    assert_eq!(server.admin(&["ek", "add", "--public", file, "--label", "rack 8"]).await["changed"], true);
    assert_eq!(server.admin(&["ek", "add", "--public", file, "--label", "rack 8"]).await["changed"], false);
    assert_eq!(server.run(&["ek", "add", "--public", file, "--label", "other"]).await.status.code(), Some(1));
    assert!(by_public.enrol(&server.stranger()).await.unwrap().admitted.is_some());

    // Removing it keeps the node, and admits no further one.
    let value = hex::encode(node::name(&ek_public(&by_public.ek)));
    server.admin(&["ek", "remove", &value]).await;
    assert!(by_public.enrol(&server.stranger()).await.unwrap().admitted.is_some());
    assert_eq!(server.admin(&["ek", "list"]).await["eks"].as_array().unwrap().len(), 1);
}

/// A TPM manufacturer.
struct Maker {
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
    root: String,
}

impl Maker {
    fn new() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let root = params.self_signed(&key).unwrap().pem();
        Self { issuer: rcgen::Issuer::new(params, key), root }
    }

    /// Configuration that lets its TPMs join, with further lines of the rule.
    fn admission(&self, rule: &str) -> (tempfile::TempDir, String) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("maker.pem"), &self.root).unwrap();
        let roots = format!("[admission]\nek_roots = [\"{}\"]\n", dir.path().display());
        (dir, format!("{roots}[[admission.join]]\nname = \"fleet\"\ngrade = \"certified\"\n{rule}"))
    }

    /// A TPM with an EK certificate.
    fn tpm(&self) -> SoftTpm {
        let mut tpm = SoftTpm::new();
        let key = tpm.ek.to_pkcs8_der().unwrap();
        let key = rcgen::KeyPair::try_from(key.as_bytes()).unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, "an EK");
        // tcg-kp-EKCertificate.
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::Other(vec![2, 23, 133, 8, 1])];
        tpm.certificate = Some(params.signed_by(&key, &self.issuer).unwrap().der().to_vec());
        tpm
    }
}

#[tokio::test]
async fn a_join_rule_needs_its_grade() {
    let maker = Maker::new();
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("maker.pem"), &maker.root).unwrap();
    let roots = format!("[admission]\nek_roots = [\"{}\"]\n", dir.path().display());
    let rule = "[[admission.join]]\nname = \"fleet\"\ngrade = \"certified\"\ngroup = \"fleet\"\n";
    let server = Server::start_with(&format!("{roots}{rule}")).await;
    assert!(SoftTpm::new().enrol(&server.stranger()).await.unwrap().admitted.is_none());
    let mut genuine = maker.tpm();
    let result = genuine.enrol(&server.stranger()).await.unwrap();
    assert_eq!((result.grade.as_str(), result.admitted.is_some()), ("certified", true));
    let shown = server.admin(&["node", "show", &genuine.id().to_string()]).await;
    assert_eq!((shown["group"].as_str(), shown["admitted_by"].as_str()), (Some("fleet"), Some("join rule `fleet`")));
    let refused = Maker::new().tpm().enrol(&server.stranger()).await.unwrap_err();
    assert_eq!(refused.code(), codes::VERIFY_EK_UNKNOWN_CA);
    // A certificate, and no rule: genuine, and nobody's.
    let server = Server::start_with(&roots).await;
    let result = maker.tpm().enrol(&server.stranger()).await.unwrap();
    assert_eq!((result.grade.as_str(), result.admitted.is_some()), ("certified", false));
}

#[tokio::test]
async fn an_ek_can_be_named_by_its_certificate() {
    let server = Server::start().await;
    let mut tpm = Maker::new().tpm();
    let file = server.dir.path().join("ek.der");
    std::fs::write(&file, tpm.certificate.clone().unwrap()).unwrap();
    server.admin(&["ek", "add", "--cert", file.to_str().unwrap(), "--label", "rack 9"]).await;
    assert_eq!(server.admin(&["ek", "list"]).await["eks"][0]["kind"], "key");
    // Also when the TPM doesn't show its certificate.
    tpm.certificate = None;
    let result = tpm.enrol(&server.stranger()).await.unwrap();
    assert_eq!((result.grade.as_str(), result.admitted.is_some()), ("listed", true));
}

#[tokio::test]
async fn keys_that_are_not_in_the_tpm_are_refused() {
    let server = Server::start().await;
    let real = SoftTpm::new();
    // Another's EK beside keys of its own: the challenge opens only in the TPM of that EK.
    let mut thief = SoftTpm::new();
    let mut request = thief.request();
    request.ek = real.request().ek;
    let challenge: EnrolChallenge = server.stranger().post("/v1/enrol", &request).await.unwrap();
    assert!(thief.activate(&challenge).is_none());
    let answer = thief.answer_with(&challenge, b"a guess");
    let refused = server.stranger().post::<EnrolResult>("/v1/enrol/answer", &answer).await.unwrap_err();
    assert_eq!(refused.code(), codes::ENROL_ACTIVATION);
    // There was one try.
    let again = server.stranger().post::<EnrolResult>("/v1/enrol/answer", &answer).await.unwrap_err();
    assert_eq!(again.code(), codes::ENROL_SESSION);
    // The TPM itself doesn't open it either: the AK that was named isn't in it.
    assert!(real.activate(&challenge).is_none());
}

#[tokio::test]
async fn keys_exchanged_between_the_steps_are_refused() {
    let server = Server::start().await;
    let mut tpm = SoftTpm::new();
    let challenge: EnrolChallenge = server.stranger().post("/v1/enrol", &tpm.request()).await.unwrap();
    let secret = tpm.activate(&challenge).unwrap();
    tpm.node.ak = random_key();
    let answer = tpm.answer_with(&challenge, &secret);
    let refused = server.stranger().post::<EnrolResult>("/v1/enrol/answer", &answer).await.unwrap_err();
    // The evidence is held against the keys of the challenge's own row.
    assert_eq!(refused.code(), codes::VERIFY_NODE_KEY);
    let shown = server.run(&["node", "show", &tpm.id().to_string()]).await;
    assert_eq!(shown.status.code(), Some(1), "nothing is left of it");
}

#[tokio::test]
async fn an_unrestricted_ak_and_a_foreign_ek_template_are_refused() {
    let server = Server::start().await;
    let mut tpm = SoftTpm::new();
    tpm.node.ak_attributes &= !0x0001_0000;
    let refused = server.stranger().post::<EnrolChallenge>("/v1/enrol", &tpm.request()).await.unwrap_err();
    assert_eq!(refused.code(), codes::VERIFY_AK_UNRESTRICTED);
    let mut request = SoftTpm::new().request();
    request.ek.public[5] ^= 1;
    let refused = server.stranger().post::<EnrolChallenge>("/v1/enrol", &request).await.unwrap_err();
    assert_eq!(refused.code(), codes::VERIFY_EK_TEMPLATE);
    assert_eq!(server.recorded().await, ["verify.ak_unrestricted", "verify.ek_template"]);
}

#[tokio::test]
async fn an_answer_comes_in_time_and_once() {
    let server = Server::start().await;
    let mut tpm = SoftTpm::new();
    let challenge: EnrolChallenge = server.stranger().post("/v1/enrol", &tpm.request()).await.unwrap();
    let answer = tpm.answer(&challenge);
    server.stranger().post::<EnrolResult>("/v1/enrol/answer", &answer).await.unwrap();
    let again = server.stranger().post::<EnrolResult>("/v1/enrol/answer", &answer).await.unwrap_err();
    assert_eq!(again.code(), codes::ENROL_SESSION);
    let challenge: EnrolChallenge = server.stranger().post("/v1/enrol", &tpm.request()).await.unwrap();
    server.pass(61);
    let answer = tpm.answer(&challenge);
    let late = server.stranger().post::<EnrolResult>("/v1/enrol/answer", &answer).await.unwrap_err();
    assert_eq!(late.code(), codes::ENROL_SESSION);
}

#[tokio::test]
async fn an_admitted_node_comes_back_with_its_keys_only() {
    let server = Server::start().await;
    let member = server.admitted().await;
    // Long after its certificate has expired.
    server.pass(30 * 86_400);
    let mut tpm = member.tpm.clone();
    assert!(tpm.enrol(&server.stranger()).await.unwrap().admitted.is_some());
    let mut changed = member.tpm.clone();
    changed.node.clock_ms = tpm.node.clock_ms;
    changed.node.ak = random_key();
    let refused = changed.enrol(&server.stranger()).await.unwrap_err();
    assert_eq!(refused.code(), codes::ENROL_KEYS_CHANGED);
}

#[tokio::test]
async fn one_tpm_is_one_node_and_a_revoked_one_does_not_return_under_another_ek() {
    let server = Server::start().await;
    let mut tpm = SoftTpm::new();
    tpm.aliases = vec![random_key()];
    tpm.enrol(&server.stranger()).await.unwrap();
    let id = tpm.id().to_string();
    server.admin(&["node", "approve", &id]).await;
    let mut other = tpm.clone();
    std::mem::swap(&mut other.ek, &mut other.aliases[0]);
    let refused = other.enrol(&server.stranger()).await.unwrap_err();
    assert_eq!(refused.code(), codes::ENROL_ID_TAKEN);
    server.admin(&["revoke", "node", &id, "--reason", "stolen"]).await;
    assert_eq!(other.enrol(&server.stranger()).await.unwrap_err().code(), codes::ENROL_REVOKED);
    assert_eq!(tpm.enrol(&server.stranger()).await.unwrap_err().code(), codes::ENROL_REVOKED);
    // New keys in the same TPM don't help.
    tpm.node.ak = random_key();
    tpm.node.node_key = random_key();
    assert_eq!(tpm.enrol(&server.stranger()).await.unwrap_err().code(), codes::ENROL_REVOKED);
    assert_eq!(server.run(&["node", "approve", &id]).await.status.code(), Some(1));
}

#[tokio::test]
async fn a_waiting_node_can_not_squat_on_anothers_ek() {
    let server = Server::start().await;
    let mut victim = SoftTpm::new();
    let mut squatter = SoftTpm::new();
    squatter.aliases = vec![victim.ek.clone()];
    squatter.enrol(&server.stranger()).await.unwrap();
    victim.enrol(&server.stranger()).await.unwrap();
    server.admin(&["node", "approve", &victim.id().to_string()]).await;
    assert!(victim.enrol(&server.stranger()).await.unwrap().admitted.is_some());
    let refused = server.run(&["node", "approve", &squatter.id().to_string()]).await;
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("enrol.id_taken"));
}

#[tokio::test]
async fn an_admitted_node_that_claims_anothers_ek_keeps_nobody_out() {
    let server = Server::start().await;
    let mut victim = SoftTpm::new();
    let mut liar = SoftTpm::new();
    liar.aliases = vec![victim.ek.clone(), random_key()];
    liar.enrol(&server.stranger()).await.unwrap();
    server.admin(&["node", "approve", &liar.id().to_string()]).await;
    assert!(victim.enrol(&server.stranger()).await.unwrap().waiting.is_some());
    server.admin(&["node", "approve", &victim.id().to_string()]).await;
    assert!(victim.enrol(&server.stranger()).await.unwrap().admitted.is_some());
    assert!(server.recorded().await.contains(&"node.ek_conflict".to_owned()));
    // Now it is proven whose it is.
    assert_eq!(liar.enrol(&server.stranger()).await.unwrap_err().code(), codes::ENROL_ID_TAKEN);
    // What somebody else only names as well is nobody's reason to refuse either.
    let mut third = SoftTpm::new();
    third.aliases = vec![liar.aliases[1].clone()];
    assert!(third.enrol(&server.stranger()).await.unwrap().waiting.is_some());
}

#[tokio::test]
async fn an_ek_that_a_revoked_node_named_waits_for_an_operator() {
    let maker = Maker::new();
    let (_dir, admission) = maker.admission("");
    let server = Server::start_with(&admission).await;
    let mut genuine = maker.tpm();
    let mut revoked = maker.tpm();
    revoked.aliases = vec![genuine.ek.clone()];
    assert!(revoked.enrol(&server.stranger()).await.unwrap().admitted.is_some());
    server.admin(&["revoke", "node", &revoked.id().to_string(), "--reason", "stolen"]).await;
    let result = genuine.enrol(&server.stranger()).await.unwrap();
    assert_eq!((result.grade.as_str(), result.admitted.is_some()), ("certified", false));
    server.admin(&["node", "approve", &genuine.id().to_string()]).await;
    assert!(genuine.enrol(&server.stranger()).await.unwrap().admitted.is_some());
}

#[tokio::test]
async fn a_tpm_is_known_by_its_ak_under_an_ek_it_never_named() {
    let maker = Maker::new();
    let (_dir, admission) = maker.admission("");
    let server = Server::start_with(&admission).await;
    let mut first = maker.tpm();
    assert!(first.enrol(&server.stranger()).await.unwrap().admitted.is_some());
    let hidden = maker.tpm();
    for (keep_ak, keep_node_key) in [(true, true), (true, false), (false, true)] {
        let mut again = hidden.clone();
        if keep_ak {
            again.node.ak = first.node.ak.clone();
        }
        if keep_node_key {
            again.node.node_key = first.node.node_key.clone();
        }
        assert_eq!(again.enrol(&server.stranger()).await.unwrap_err().code(), codes::ENROL_ID_TAKEN);
    }
    server.admin(&["revoke", "node", &first.id().to_string(), "--reason", "stolen"]).await;
    let mut again = SoftTpm { node: first.node.clone(), ..hidden };
    assert_eq!(again.enrol(&server.stranger()).await.unwrap_err().code(), codes::ENROL_REVOKED);
}

#[tokio::test]
async fn a_join_rule_may_name_the_one_kind_of_ek() {
    let maker = Maker::new();
    for (ek, admitted) in [("rsa-2048", false), ("p-384", false), ("p-256", true)] {
        let (_dir, admission) = maker.admission(&format!("ek = \"{ek}\"\n"));
        let server = Server::start_with(&admission).await;
        let result = maker.tpm().enrol(&server.stranger()).await.unwrap();
        assert_eq!((result.grade.as_str(), result.admitted.is_some()), ("certified", admitted), "{ek}");
    }
}
