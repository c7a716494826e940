//! The TPM room against a private software TPM for each test.

mod tpm {
    pub mod swtpm;
}

use std::time::Duration;

use leasehold::identity::TrustDomain;
use leasehold::tpm::{PcrSelection, Tpm, TpmAddress, TpmThread};
use p256::ecdsa::VerifyingKey;
use p256::ecdsa::signature::Verifier;
use p256::ecdsa::signature::hazmat::PrehashVerifier;
use tpm::swtpm::Swtpm;

fn spawn(swtpm: &Swtpm) -> (Tpm, TpmThread) {
    let address = TpmAddress::parse(&swtpm.address()).unwrap();
    Tpm::spawn(address, Duration::from_secs(15), &TrustDomain::new("example.org").unwrap()).unwrap()
}

fn stop(thread: TpmThread) {
    thread.stop(Duration::from_secs(10)).unwrap();
}

/// The P-256 key at the end of a TPMT_PUBLIC: two sized coordinates.
fn ecc_key(public: &[u8]) -> VerifyingKey {
    let point = &public[public.len() - 68..];
    assert_eq!((&point[..2], &point[34..36]), (&[0, 32][..], &[0, 32][..]));
    VerifyingKey::from_sec1_bytes(&[&[4], &point[2..34], &point[36..]].concat()).unwrap()
}

/// ECDSA with SHA-256 from a TPMT_SIGNATURE.
fn ecdsa(signature: &[u8]) -> p256::ecdsa::Signature {
    assert_eq!(signature[..4], [0x00, 0x18, 0x00, 0x0B]);
    assert_eq!((&signature[4..6], &signature[38..40], signature.len()), (&[0, 32][..], &[0, 32][..], 72));
    p256::ecdsa::Signature::from_slice(&[&signature[6..38], &signature[40..]].concat()).unwrap()
}

fn selection(text: &str) -> PcrSelection {
    text.parse().unwrap()
}

#[tokio::test]
async fn quotes_readings_certifications_and_signatures_are_the_tpms() {
    let swtpm = Swtpm::start();
    let (tpm, thread) = spawn(&swtpm);
    let identity = tpm.identity().await.unwrap();
    let ak = ecc_key(&identity.ak_public);
    let node_key = ecc_key(&identity.node_key_public);
    assert_eq!(identity.manufacturer, "IBM");
    assert_eq!(identity.ak_public[4..8], [0x00, 0x05, 0x04, 0x72]);
    assert_eq!(identity.node_key_public[4..8], [0x00, 0x04, 0x04, 0x72]);
    assert_eq!(identity.ek.certificate, None);

    let pcrs = selection("sha256:0-7,9,11-15");
    let reading = tpm.read_pcrs(pcrs).await.unwrap();
    assert!(reading.started_at <= reading.finished_at);
    let quote = tpm.quote(pcrs, [7; 32]).await.unwrap();
    ak.verify(&quote.attest, &ecdsa(&quote.signature)).unwrap();
    // Magic, type, a name of 34 bytes, then the qualifying data; the digest ends the structure.
    assert_eq!(quote.attest[..6], [0xFF, b'T', b'C', b'G', 0x80, 0x18]);
    assert_eq!(quote.attest[42..44 + 32], [&[0, 32][..], &[7; 32]].concat());
    assert!(quote.attest.ends_with(&reading.values.digest()));
    assert_eq!(quote.attest[84..88], reading.counts.reset.to_be_bytes());

    let certification = tpm.certify_node_key([8; 32]).await.unwrap();
    ak.verify(&certification.attest, &ecdsa(&certification.signature)).unwrap();
    assert_eq!(certification.attest[..6], [0xFF, b'T', b'C', b'G', 0x80, 0x17]);

    node_key.verify_prehash(&[9; 32], &tpm.sign([9; 32]).await.unwrap()).unwrap();
    // As rustls does it: on a thread of the runtime.
    node_key.verify_prehash(&[9; 32], &tpm.sign_blocking([9; 32]).unwrap()).unwrap();
    stop(thread);
}
