//! The whole way of a submission with a TPM that isn't ours: attestations, names, signatures.

use std::collections::BTreeMap;
use std::time::Duration;

use leasehold::clock::{BootId, BootInstant};
use leasehold::codes;
use leasehold::evidence::{NodeClaims, Unsigned, UnverifiedEvidence, certification_binding, quote_binding};
use leasehold::identity::NodeId;
use leasehold::tpm::structures::{Attest, AttestBody, Public, Signature};
use leasehold::tpm::{Bank, PcrSelection, PcrValues, Signed};
use leasehold::verify::{AkPublic, EnrolledKeys, NodeKey, authenticate};

use crate::node::sized;
use crate::swtpm::Swtpm;

const AK: &str = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|sign";
const NODE_KEY: &str = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|sign";

/// Makes a signing primary and gives its TPMT_PUBLIC, name and qualified name.
fn primary(tpm: &Swtpm, hierarchy: &str, handle: &str, attributes: &str) -> [Vec<u8>; 3] {
    tpm.run(&format!(
        "tpm2_createprimary -Q -C {hierarchy} -G ecc256:ecdsa-sha256:null -g sha256 -c key.ctx -a {attributes}"
    ));
    tpm.run(&format!("tpm2_evictcontrol -Q -C o -c key.ctx {handle}"));
    tpm.run(&format!("tpm2_readpublic -Q -c {handle} -f tpmt -o key.pub -n key.name -q key.qn"));
    // A bare TPM has three slots, and here no resource manager hides that.
    tpm.run("tpm2_flushcontext -t");
    ["key.pub", "key.name", "key.qn"].map(|name| tpm.read(name))
}

fn quote(tpm: &Swtpm, handle: &str, pcrs: &str, qualification: &[u8; 32]) -> Signed {
    let qualification = hex::encode(qualification);
    tpm.run(&format!("tpm2_quote -Q -c {handle} -l {pcrs} -q {qualification} -g sha256 -m attest -s signature"));
    Signed { attest: tpm.read("attest"), signature: tpm.read("signature") }
}

/// TPM2_Certify as a raw command: the tool has no option for qualifying data.
fn certify(tpm: &Swtpm, object: u32, signer: u32, qualification: &[u8; 32]) -> Signed {
    let password = [&0x4000_0009u32.to_be_bytes()[..], &[0; 5]].concat();
    let mut parameters = [object.to_be_bytes(), signer.to_be_bytes(), 18u32.to_be_bytes()].concat();
    parameters.extend([&password[..], &password, &sized(qualification), &[0x00, 0x10]].concat());
    let size = u32::try_from(10 + parameters.len()).unwrap();
    let command = [&[0x80, 0x02][..], &size.to_be_bytes(), &0x148u32.to_be_bytes(), &parameters].concat();
    tpm.write("command", &command);
    tpm.run("tpm2_send -o response command");
    let response = tpm.read("response");
    assert_eq!(response[6..10], [0; 4], "TPM2_Certify was refused");
    let size = usize::from(u16::from_be_bytes([response[14], response[15]]));
    let attest = response[16..16 + size].to_vec();
    let signature = response[16 + size..response.len() - 10].to_vec();
    Signed { attest, signature }
}

#[test]
fn evidence_of_a_real_tpm_is_accepted() {
    let tpm = Swtpm::start();
    tpm.run(&format!("tpm2_pcrextend 7:sha256={}", "11".repeat(32)));
    let [ak_public, ak_name, ak_qualified] = primary(&tpm, "e", "0x81000001", AK);
    let ak = AkPublic::parse_activated(&ak_public, &ak_name).unwrap();
    // The TPM computes names as we do, and its hierarchy's name is the handle.
    assert_eq!(ak.qualified_name(), ak_qualified);
    let [node_public, node_name, node_qualified] = primary(&tpm, "e", "0x81000002", NODE_KEY);
    let node_key = NodeKey::parse(&node_public).unwrap();
    assert_eq!((node_key.name(), node_key.qualified_name()), (node_name.clone(), node_qualified));
    tpm.run("tpm2_readpublic -Q -c 0x81000002 -f der -o node.der");
    assert_eq!(node_key.spki_der(), tpm.read("node.der"));

    let (nonce, certification_nonce) = ([0x11; 32], [0x22; 32]);
    let boot_id = BootId::from_bytes([0x33; 16]);
    let binding = quote_binding(&nonce, &node_name, &boot_id, &[]);
    let mut values: BTreeMap<u8, Vec<u8>> = (0..8).map(|pcr| (pcr, vec![0; 32])).collect();
    tpm.run("tpm2_pcrread -Q -o pcr7 sha256:7");
    values.insert(7, tpm.read("pcr7"));
    let selection = PcrSelection::new(Bank::Sha256, 0..8).unwrap();
    let certified = certification_binding(&certification_nonce, &node_name);
    let claims = NodeClaims {
        nonce,
        node: Some(NodeId::from_bytes([0x44; 32])),
        boot_id,
        requested_at: BootInstant::from_nanos(5),
        quote: quote(&tpm, "0x81000001", "sha256:0,1,2,3,4,5,6,7", &binding),
        pcrs: PcrValues::new(selection, values).unwrap(),
        node_key_certification: certify(&tpm, 0x8100_0002, 0x8100_0001, &certified),
        certification_nonce,
        agent_version: "0.1.0".to_owned(),
        agent_digest: [0x55; 32],
        log_digests: Vec::new(),
        withdrawn: Vec::new(),
    };
    let unsigned = Unsigned::new(&claims, &node_name).unwrap();
    tpm.write("digest", &unsigned.digest());
    tpm.run("tpm2_sign -Q -c 0x81000002 -g sha256 -d -f tss -o evidence.sig digest");
    let signature = Signature::parse(&tpm.read("evidence.sig")).unwrap().ecdsa_p256_sha256().unwrap();
    let evidence = unsigned.finish(signature);

    let keys = EnrolledKeys { node: claims.node, ak, node_key, certification_nonce };
    let appraised = authenticate(UnverifiedEvidence::decode(&evidence).unwrap(), &keys, Some(keys.node_key.spki_der()))
        .unwrap()
        .fresh(&nonce, selection, Duration::ZERO, None)
        .unwrap()
        .unlogged()
        .appraise(None);
    assert_eq!(appraised.ak_name(), ak_name);
    // In the endorsement hierarchy the counts come clear: this TPM was just made and started once.
    assert!(appraised.clock_info().counts.reset < 4);
    assert_eq!(appraised.clock_info().counts.restart, 0);
}

#[test]
fn a_quote_by_a_key_of_another_hierarchy_is_refused() {
    let tpm = Swtpm::start();
    let [ak_public, ..] = primary(&tpm, "o", "0x81000001", AK);
    let ak = AkPublic::parse(&ak_public).unwrap();
    let quote = quote(&tpm, "0x81000001", "sha256:0", &[0; 32]);
    let attest = Attest::parse(&quote.attest).unwrap();
    assert_ne!(attest.qualified_signer, ak.qualified_name());
    // There the reset counts are obfuscated for each key, which is why it matters.
    assert!(attest.clock_info.counts.reset > 1000 || attest.firmware_version >> 48 != 0x2019);
}

#[test]
fn structures_of_a_real_tpm_are_read() {
    let tpm = Swtpm::start();
    let [public, ..] = primary(&tpm, "e", "0x81000001", AK);
    let key = Public::parse(&public).unwrap().p256_key().unwrap();
    for (pcrs, bank) in [("sha256:0,23", Bank::Sha256), ("sha384:5", Bank::Sha384), ("sha512:5", Bank::Sha512)] {
        let signed = quote(&tpm, "0x81000001", pcrs, &[7; 32]);
        let attest = Attest::parse(&signed.attest).unwrap();
        let AttestBody::Quote { selection, pcr_digest } = &attest.body else { panic!("no quote") };
        assert_eq!((selection.to_string(), selection.bank(), pcr_digest.len()), (pcrs.to_owned(), bank, 32));
        assert_eq!(attest.extra_data, [7; 32]);
        let signature = Signature::parse(&signed.signature).unwrap().ecdsa_p256_sha256().unwrap();
        p256::ecdsa::signature::Verifier::verify(&key, &signed.attest, &signature).unwrap();
        assert_eq!(Signature::ecdsa_sha256_bytes(&signature), signed.signature);
    }
    // Two banks, and SHA-1, as the TPM itself quotes them.
    for pcrs in ["sha256:0+sha384:0", "sha1:0"] {
        let refusal = Attest::parse(&quote(&tpm, "0x81000001", pcrs, &[7; 32]).attest).unwrap_err();
        assert_eq!(refusal.code, codes::VERIFY_SELECTION);
    }
}
