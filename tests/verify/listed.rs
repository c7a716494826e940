//! The vectors' contents: what differs from the accepted submission, one by one.

use std::collections::BTreeMap;

use leasehold::codes::{self, Code};
use leasehold::evidence::LIMIT;
use p256::ecdsa::Signature as Ecdsa;
use p256::ecdsa::signature::Signer;
use p256::ecdsa::signature::hazmat::PrehashSigner;
use serde_cbor::Value;

use crate::boot_log::{IPL, agile, events, sha1_only, values, with_log};
use crate::endorsement::{EkCertificate, ek_public};
use crate::made::{changed, claimed, ek, encoded, node, quoted, signed, spki, submit};
use crate::node::{Node, SHA256, name, qualified_name, quote_info, signing_key, sized};
use crate::vector::{Hex, Listed, Vector};

/// All of them, by name.
pub fn make() -> Vec<(Listed, Vector)> {
    let mut made = quotes();
    made.extend(keys());
    made.extend(submissions());
    made.extend(endorsements());
    made.extend(logs());
    made.sort_by(|a, b| a.0.name.cmp(&b.0.name));
    made
}

fn listed(name: &str, code: Option<Code>, description: &str, vector: Vector) -> (Listed, Vector) {
    let listed = Listed {
        name: name.to_owned(),
        description: description.to_owned(),
        expected: code.map(|code| code.as_str().to_owned()).unwrap_or_default(),
        server: String::new(),
    };
    assert!(!listed.description.contains('"'));
    (listed, vector)
}

fn quotes() -> Vec<(Listed, Vector)> {
    let refused = |name, code, description, vector| listed(name, Some(code), description, vector);
    let bitmap = Node::honest().bitmap();
    let values = Node::honest().values;
    vec![
        listed("V00-accepted", None, "Nothing is wrong: every check passes.", node(|_| ())),
        refused(
            "V01-quote-signature",
            codes::VERIFY_QUOTE_SIGNATURE,
            "The quote is signed by another key than the attestation key.",
            signed(|_| {
                let signature: Ecdsa = signing_key(7).sign(&Node::honest().quote().bytes());
                leasehold::tpm::structures::Signature::ecdsa_sha256_bytes(&signature)
            }),
        ),
        refused(
            "V02-nonce",
            codes::VERIFY_NONCE,
            "Evidence over another nonce than was asked for.",
            changed(|vector| vector.question.as_mut().unwrap().nonce = Hex(vec![0xA1; 32])),
        ),
        refused(
            "V03-magic",
            codes::VERIFY_QUOTE_MAGIC,
            "The attestation doesn't begin with TPM_GENERATED (CVE-2024-29038).",
            quoted(|quote| quote.magic = 0xDEAD_BEEF),
        ),
        refused(
            "V04a-selection-swapped",
            codes::VERIFY_SELECTION,
            "A genuine quote over the resettable PCR 16 and 23 for values given as PCR 0 and 7 (CVE-2024-29039).",
            {
                let honest = Node { values: [0, 7].map(|pcr| (pcr, vec![0; 32])).into(), ..Node::honest() };
                let mut attestation = honest.quote();
                attestation.body = quote_info(&[(SHA256, [0, 0, 0x81])], &honest.values);
                submit(&honest, honest.evidence_with(&honest.attest(&attestation)))
            },
        ),
        refused(
            "V04b-selection-of-the-nodes-choice",
            codes::VERIFY_SELECTION,
            "Quote and values agree, but leave out a PCR that policy asks for.",
            {
                let mut vector = node(|node| drop(node.values.remove(&7)));
                vector.question.as_mut().unwrap().selection = "sha256:0-7".to_owned();
                vector
            },
        ),
        refused(
            "V05a-selection-empty",
            codes::VERIFY_SELECTION_EMPTY,
            "The quote selects a bank and no PCR of it.",
            quoted(|quote| quote.body = quote_info(&[(SHA256, [0; 3])], &BTreeMap::new())),
        ),
        refused(
            "V05b-selection-none",
            codes::VERIFY_SELECTION_EMPTY,
            "The quote's selection has no bank.",
            quoted(|quote| quote.body = quote_info(&[], &BTreeMap::new())),
        ),
        refused(
            "V06-selection-duplicate",
            codes::VERIFY_SELECTION_DUPLICATE,
            "The quote's selection names its bank twice.",
            quoted(|quote| quote.body = quote_info(&[(SHA256, bitmap), (SHA256, bitmap)], &values)),
        ),
        refused(
            "V07-signature-hash",
            codes::VERIFY_QUOTE_HASH,
            "The quote's signature says that it hashes with SHA-1.",
            signed(|mut signature| {
                signature[3] = 0x04;
                signature
            }),
        ),
        refused(
            "V08-pcr-digest",
            codes::VERIFY_PCR_DIGEST,
            "One PCR value differs from the one that was quoted.",
            claimed(|claims| {
                let Some(Value::Array(pcrs)) = claims.get_mut(&Value::Integer(-65_538)) else { unreachable!() };
                let Value::Map(values) = &mut pcrs[1] else { unreachable!() };
                values.insert(Value::Integer(7), Value::Bytes(vec![0xEE; 32]));
            }),
        ),
        refused(
            "V09-type",
            codes::VERIFY_QUOTE_TYPE,
            "An attestation of another type, otherwise as a quote.",
            quoted(|quote| quote.kind = 0x8014),
        ),
        refused(
            "V10-trailing",
            codes::VERIFY_QUOTE_TRAILING,
            "A byte follows the attestation.",
            quoted(|quote| quote.trailing = vec![0]),
        ),
        refused(
            "V18-reset-count",
            codes::VERIFY_RESET_COUNT,
            "The reset count is lower than seen before: a copy or an older state of the TPM.",
            changed(|vector| vector.prior.as_mut().unwrap().reset += 1),
        ),
        refused(
            "V19-clock",
            codes::VERIFY_CLOCK,
            "The TPM's clock is behind one seen under the same reset count.",
            changed(|vector| vector.prior.as_mut().unwrap().clock_ms = 1_000_001),
        ),
        refused(
            "V31-quote-binding",
            codes::VERIFY_QUOTE_BINDING,
            "The right nonce in the claims, but the quote is bound to another boot.",
            claimed(|claims| {
                claims.insert(Value::Integer(268), Value::Bytes(vec![0xBB; 16]));
            }),
        ),
        refused(
            "V32-quote-signer",
            codes::VERIFY_QUOTE_SIGNER,
            "The quote's signer is a key of the owner hierarchy.",
            quoted(|quote| quote.signer = qualified_name(0x4000_0001, &name(&Node::honest().ak_public()))),
        ),
        refused(
            "V33-quote-stale",
            codes::VERIFY_QUOTE_STALE,
            "The quote was made when its nonce was handed out, and kept for five minutes.",
            changed(|vector| vector.prior.as_mut().unwrap().clock_ms = 999_000),
        ),
        refused(
            "V34-quote-malformed",
            codes::VERIFY_QUOTE_MALFORMED,
            "The attestation ends in the middle of its digest.",
            quoted(|quote| quote.body.truncate(quote.body.len() - 1)),
        ),
    ]
}

fn keys() -> Vec<(Listed, Vector)> {
    use leasehold::tpm::structures::attributes::{DECRYPT, FIXED_TPM, NO_DA, RESTRICTED, SENSITIVE_DATA_ORIGIN};
    let refused = |name, code, description, vector| listed(name, Some(code), description, vector);
    vec![
        refused(
            "V11-ak-unrestricted",
            codes::VERIFY_AK_UNRESTRICTED,
            "The attestation key is unrestricted: it signs any bytes.",
            node(|node| node.ak_attributes &= !RESTRICTED),
        ),
        refused(
            "V12-ak-decrypt",
            codes::VERIFY_AK_DECRYPT,
            "The attestation key may also decrypt.",
            node(|node| node.ak_attributes |= DECRYPT),
        ),
        refused(
            "V13-ak-not-fixed",
            codes::VERIFY_AK_NOT_FIXED,
            "The attestation key may be duplicated to another TPM.",
            node(|node| node.ak_attributes &= !FIXED_TPM),
        ),
        refused(
            "V14-ak-imported",
            codes::VERIFY_AK_IMPORTED,
            "The attestation key's secret part came from outside.",
            node(|node| node.ak_attributes &= !SENSITIVE_DATA_ORIGIN),
        ),
        refused(
            "V15-ak-name",
            codes::VERIFY_AK_NAME,
            "The attestation key is not the one that a credential was activated for.",
            changed(|vector| {
                let other = Node { ak: signing_key(7), ..Node::honest() };
                vector.keys.as_mut().unwrap().activated_name = Hex(name(&other.ak_public()));
            }),
        ),
        refused(
            "V35-ak-template",
            codes::VERIFY_AK_TEMPLATE,
            "The attestation key counts towards dictionary-attack lockout.",
            node(|node| node.ak_attributes &= !NO_DA),
        ),
        refused("V36a-node-key-other", codes::VERIFY_NODE_KEY, "The attestation key certified another node key.", {
            let node = Node::honest();
            let other = Node { node_key: signing_key(7), ..node.clone() };
            let claims = node.claims(&node.attest(&node.quote()), &node.attest(&other.certification()));
            submit(&node, node.envelope(&Value::Map(claims)))
        }),
        refused(
            "V36b-node-key-uncertified",
            codes::VERIFY_NODE_KEY,
            "Another key than the attestation key certified the node key.",
            {
                let node = Node::honest();
                let other = Node { ak: signing_key(7), ..node.clone() };
                let claims = node.claims(&node.attest(&node.quote()), &other.attest(&node.certification()));
                submit(&node, node.envelope(&Value::Map(claims)))
            },
        ),
        refused(
            "V36c-node-key-old-certification",
            codes::VERIFY_NODE_KEY,
            "The node key's certification is over the nonce of another enrolment.",
            changed(|vector| vector.keys.as_mut().unwrap().certification_nonce = Hex(vec![0xCC; 32])),
        ),
        refused(
            "V36d-node-key-child",
            codes::VERIFY_NODE_KEY,
            "The certified key is not a primary of the endorsement hierarchy.",
            {
                let node = Node::honest();
                let mut certification = node.certification();
                let name = name(&node.node_key_public());
                certification.body = [sized(&name), sized(&qualified_name(0x4000_0001, &name))].concat();
                let claims = node.claims(&node.attest(&node.quote()), &node.attest(&certification));
                submit(&node, node.envelope(&Value::Map(claims)))
            },
        ),
    ]
}

fn submissions() -> Vec<(Listed, Vector)> {
    let refused = |name, code, description, vector| listed(name, Some(code), description, vector);
    let mut other_nodes_nonce = refused(
        "V28-other-nodes-nonce",
        codes::VERIFY_NONCE_OTHER_NODE,
        "Evidence, right in itself, over a nonce that was given to another node.",
        changed(|vector| vector.question.as_mut().unwrap().nonce_of = Some(Hex(vec![0x2D; 32]))),
    );
    other_nodes_nonce.0.server = "Give the nonce to the node nonce_of, then submit.".to_owned();
    let mut replay = refused(
        "V30-replay",
        codes::VERIFY_NONCE_SPENT,
        "Evidence, right in itself, that was accepted before.",
        node(|_| ()),
    );
    replay.0.server = "Submit twice, with different request ids; the second time must be refused.".to_owned();
    vec![
        refused("V26-too-large", codes::EVIDENCE_TOO_LARGE, "Evidence of 4 MiB and one byte.", {
            let mut vector = node(|_| ());
            vector.submission.as_mut().unwrap().padded_to = LIMIT + 1;
            vector
        }),
        refused(
            "V27-duplicate-key",
            codes::EVIDENCE_DUPLICATE_KEY,
            "The nonce claim stands twice, with different values.",
            encoded(|payload| {
                // The map's head, then the first claim: key 10 and 34 bytes of nonce.
                let mut again = payload[1..36].to_vec();
                again[34] ^= 1;
                payload[0] += 1;
                payload.splice(36..36, again);
            }),
        ),
        refused(
            "V29-channel",
            codes::VERIFY_CHANNEL,
            "Evidence that came over a connection of another client certificate.",
            changed(|vector| vector.submission.as_mut().unwrap().channel = Hex(spki(&signing_key(7)))),
        ),
        other_nodes_nonce,
        replay,
        refused(
            "V37-evidence-signature",
            codes::VERIFY_EVIDENCE_SIGNATURE,
            "The evidence is signed by another key than the node key.",
            {
                let node = Node::honest();
                let claims = node.claims(&node.attest(&node.quote()), &node.attest(&node.certification()));
                let payload = serde_cbor::to_vec(&Value::Map(claims)).unwrap();
                let unsigned = leasehold::evidence::sign1::Unsigned::new(payload, None);
                let signature = signing_key(7).sign_prehash(&unsigned.digest()).unwrap();
                submit(&node, unsigned.finish(signature))
            },
        ),
        refused(
            "V38-node",
            codes::VERIFY_NODE,
            "The evidence names another node than the one whose keys made it.",
            changed(|vector| vector.keys.as_mut().unwrap().node = Hex(vec![0x2D; 32])),
        ),
        refused(
            "V39-not-deterministic",
            codes::EVIDENCE_NOT_DETERMINISTIC,
            "The first key is encoded in two bytes where one is enough.",
            encoded(|payload| drop(payload.splice(1..2, [0x18, 0x0A]))),
        ),
        refused(
            "V40-unknown-claim",
            codes::EVIDENCE_MALFORMED,
            "A claim that the format doesn't have.",
            claimed(|claims| drop(claims.insert(Value::Integer(-70_000), Value::Integer(1)))),
        ),
        refused(
            "V41-profile",
            codes::EVIDENCE_PROFILE,
            "Evidence of another EAT profile.",
            claimed(|claims| {
                let other = Value::Text("urn:uuid:00000000-0000-0000-0000-000000000000".to_owned());
                drop(claims.insert(Value::Integer(265), other));
            }),
        ),
    ]
}

fn endorsements() -> Vec<(Listed, Vector)> {
    let refused = |name, code, description, vector| listed(name, Some(code), description, vector);
    let certificate = |certificate: EkCertificate| ek(|it| it.certificate = Hex(certificate.signed(4)));
    vec![
        refused(
            "V16.1-ek-expired",
            codes::VERIFY_EK_EXPIRED,
            "The EK certificate expired a year ago.",
            certificate(EkCertificate { until: 2025, ..EkCertificate::default() }),
        ),
        refused(
            "V16.2-ek-unknown-ca",
            codes::VERIFY_EK_UNKNOWN_CA,
            "The EK certificate is signed by a CA of the same name with another key.",
            ek(|it| it.certificate = Hex(EkCertificate::default().signed(5))),
        ),
        refused(
            "V16.3-ek-usage",
            codes::VERIFY_EK_USAGE,
            "A certificate of the manufacturer over the EK, for another use than an EK's.",
            certificate(EkCertificate { usage: [2, 23, 133, 8, 3], ..EkCertificate::default() }),
        ),
        refused(
            "V17-ek-key",
            codes::VERIFY_EK_KEY,
            "A right EK certificate, for another EK.",
            certificate(EkCertificate { key: signing_key(6), ..EkCertificate::default() }),
        ),
        refused(
            "V42-ek-template",
            codes::VERIFY_EK_TEMPLATE,
            "An endorsement key that may also sign.",
            ek(|it| it.ek_public = Hex(ek_public(&signing_key(3), 0x0007_00B2))),
        ),
        refused(
            "V43-ek-certificate",
            codes::VERIFY_EK_CERTIFICATE,
            "An EK certificate that ends early.",
            ek(|it| it.certificate.0.truncate(100)),
        ),
    ]
}

fn logs() -> Vec<(Listed, Vector)> {
    let refused = |name, code, description, vector| listed(name, Some(code), description, vector);
    let good = events();
    let quoted = values(&good);
    let mut longer = good.clone();
    longer.push(good.last().unwrap().clone());
    let mut relabelled = good.clone();
    relabelled.last_mut().unwrap().1 = IPL;
    vec![
        listed(
            "V00b-logs-accepted",
            None,
            "A boot log that leads to the quoted PCRs.",
            with_log(quoted.clone(), agile(&good)),
        ),
        refused(
            "V21-log-truncated",
            codes::VERIFY_LOG_REPLAY,
            "The boot log lacks its last event.",
            with_log(quoted.clone(), agile(&good[..good.len() - 1])),
        ),
        refused(
            "V22-log-extended",
            codes::VERIFY_LOG_EXTENDED,
            "The boot log has an event that was never extended.",
            with_log(quoted.clone(), agile(&longer)),
        ),
        refused(
            "V23-event-type",
            codes::VERIFY_EVENT_TYPE,
            "An event's type is changed to one that may not stand in its PCR; no digest covers the type.",
            with_log(quoted.clone(), agile(&relabelled)),
        ),
        refused(
            "V24-unextended-bank",
            codes::VERIFY_PCR_UNEXTENDED,
            "A genuine quote over a bank that the firmware left alone (CVE-2021-42299).",
            with_log((0..8).map(|pcr| (pcr, vec![0; 32])).collect(), agile(&good)),
        ),
        refused(
            "V25-sha1-only",
            codes::VERIFY_SHA1_ONLY,
            "A boot log in the format of TPM 1.2: SHA-1 digests only.",
            with_log(quoted, sha1_only(&good)),
        ),
    ]
}
