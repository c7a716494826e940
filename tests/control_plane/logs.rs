//! Logs on their way to the control plane: parts, resumption, and what a quote is bound to.

use leasehold::codes;
use leasehold::evidence::logs::{SEGMENT_LIMIT, log_digests};
use leasehold::evidence::{LogChain, LogKind};
use leasehold::protocol::{AttestAnswer, AttestRequest, LogPart, LogsHeld, LogsRequest};

use crate::bench::{Failure, Member, Server};

fn part(kind: LogKind, offset: u64, bytes: &[u8]) -> LogPart {
    LogPart { kind, offset, bytes: bytes.to_vec() }
}

/// Sends a part ahead, or asks.
async fn send(member: &Member, part: Option<LogPart>) -> Result<LogsHeld, Failure> {
    let boot_id = *member.tpm.node.boot().as_bytes();
    member.client.post("/v1/logs", &LogsRequest { boot_id, part }).await
}

/// Attests with these parts; the quote is bound to `chains` in the order of kinds.
async fn attest(
    member: &mut Member,
    chains: &[(LogKind, LogChain)],
    logs: Vec<LogPart>,
    tail: Vec<LogPart>,
) -> Result<AttestAnswer, Failure> {
    let chain = |kind| chains.iter().find(|(of, _)| *of == kind).map_or_else(LogChain::default, |(_, chain)| *chain);
    member.tpm.node.logs = log_digests(chain);
    let request = AttestRequest { logs, tail, ..member.request() };
    let answered = member.client.post::<AttestAnswer>("/v1/attest", &request).await;
    match &answered {
        Ok(answer) => member.next = answer.next.nonce,
        Err(failure) => member.next = failure.next().nonce,
    }
    answered
}

#[tokio::test]
async fn logs_go_ahead_in_parts_and_on_after_an_interruption_and_a_restart() {
    let mut server = Server::start().await;
    let mut member = server.leased().await;
    assert_eq!(send(&member, None).await.unwrap().held, []);
    let boot = LogChain::default().append(b"boot log");
    let first = LogChain::default().append(&[1; 1000]);
    assert_eq!(send(&member, Some(part(LogKind::Boot, 0, b"boot log"))).await.unwrap().of(LogKind::Boot), boot);
    assert_eq!(send(&member, Some(part(LogKind::Ima, 0, &[1; 1000]))).await.unwrap().of(LogKind::Ima), first);
    server.restart().await;
    member.reconnect(&server);
    // Sent again, since its answer was lost; out of step; and a gap: nothing changes but what is said.
    let second = first.append(&[2; 500]);
    assert_eq!(send(&member, Some(part(LogKind::Ima, 1000, &[2; 500]))).await.unwrap().of(LogKind::Ima), second);
    for offset in [1000, 1499, 1501, 9000] {
        let held = send(&member, Some(part(LogKind::Ima, offset, &[2; 500]))).await.unwrap();
        assert_eq!((held.of(LogKind::Ima), held.of(LogKind::Boot)), (second, boot));
    }
    // The attestation brings the rest, and what was read after the quote.
    let bound = [(LogKind::Boot, boot), (LogKind::Ima, second.append(b"three"))];
    let (logs, tail) = (vec![part(LogKind::Ima, 1500, b"three")], vec![part(LogKind::Ima, 1505, b"four")]);
    assert!(attest(&mut member, &bound, logs, tail).await.unwrap().lease.is_some());
    let held = send(&member, None).await.unwrap();
    assert_eq!(held.of(LogKind::Ima), second.append(b"three").append(b"four"));
    // The next quote is bound to that too, and needs no part.
    let bound = [(LogKind::Boot, boot), (LogKind::Ima, held.of(LogKind::Ima))];
    assert!(attest(&mut member, &bound, Vec::new(), Vec::new()).await.unwrap().lease.is_some());
    // From 0 a log begins anew.
    let held = send(&member, Some(part(LogKind::Ima, 0, b"anew"))).await.unwrap();
    assert_eq!((held.of(LogKind::Ima), held.of(LogKind::Boot)), (LogChain::default().append(b"anew"), boot));
}

#[tokio::test]
async fn evidence_bound_to_other_logs_is_refused_and_ends_the_lease() {
    let server = Server::start().await;
    let mut member = server.leased().await;
    let id = server.register("web", &member.id()).await;
    let honest = LogChain::default().append(b"what ran");
    // Altered, cut, another kind, in other parts, left out, and not said to be sent.
    let cases: [(&str, Vec<LogPart>); 6] = [
        ("altered", vec![part(LogKind::Ima, 0, b"what rem")]),
        ("cut", vec![part(LogKind::Ima, 0, b"what")]),
        ("another kind", vec![part(LogKind::Userspace, 0, b"what ran")]),
        ("other parts", vec![part(LogKind::Ima, 0, b"what "), part(LogKind::Ima, 5, b"ran")]),
        ("more", vec![part(LogKind::Ima, 0, b"what ran"), part(LogKind::Boot, 0, b"x")]),
        ("nothing", Vec::new()),
    ];
    for (case, logs) in cases {
        let mut member = server.leased().await;
        let id = server.register(&case.replace(' ', "-"), &member.id()).await;
        member.credential(&id).await.unwrap();
        let refused = attest(&mut member, &[(LogKind::Ima, honest)], logs, Vec::new()).await.unwrap_err();
        assert_eq!(refused.code(), codes::VERIFY_LOGS, "{case}");
        assert_eq!(member.credential(&id).await.unwrap_err().code(), codes::ISSUER_NO_LEASE, "{case}");
        // What is held is as it was said to be, and the honest log from its start heals it.
        let bound = [(LogKind::Ima, honest)];
        if case != "another kind" && case != "more" {
            let logs = vec![part(LogKind::Ima, 0, b"what ran")];
            assert!(attest(&mut member, &bound, logs, Vec::new()).await.unwrap().lease.is_some(), "{case}");
        }
    }
    let refused = attest(&mut member, &[], vec![part(LogKind::Ima, 0, b"what ran")], Vec::new()).await.unwrap_err();
    assert_eq!(refused.code(), codes::VERIFY_LOGS);
    assert_eq!(member.credential(&id).await.unwrap_err().code(), codes::ISSUER_NO_LEASE);
}

#[tokio::test]
async fn a_part_out_of_step_costs_no_lease() {
    let server = Server::start().await;
    let mut member = server.leased().await;
    let id = server.register("web", &member.id()).await;
    let chain = LogChain::default().append(b"what ran");
    let out_of_step = vec![part(LogKind::Ima, 8, b" since")];
    let refused = attest(&mut member, &[(LogKind::Ima, chain.append(b" since"))], out_of_step, Vec::new()).await;
    assert_eq!(refused.unwrap_err().code(), codes::PROTOCOL_LOGS);
    member.credential(&id).await.unwrap();
    let logs = vec![part(LogKind::Ima, 0, b"what ran")];
    assert!(attest(&mut member, &[(LogKind::Ima, chain)], logs, Vec::new()).await.unwrap().lease.is_some());
}

#[tokio::test]
async fn logs_are_of_one_boot_and_bounded() {
    let server = Server::start_with("[logs]\nnode_mib = 1\n").await;
    let member = server.leased().await;
    let full = send(&member, Some(part(LogKind::Ima, 0, &vec![0; 1 << 20]))).await.unwrap();
    assert_eq!(full.of(LogKind::Ima).length, 1 << 20);
    for more in [part(LogKind::Ima, 1 << 20, b"x"), part(LogKind::Boot, 0, b"x")] {
        let refused = send(&member, Some(more)).await.unwrap_err();
        assert_eq!(refused.code(), codes::MEASUREMENTS_TOO_LARGE);
    }
    for (malformed, code) in [
        (part(LogKind::Ima, 0, b""), codes::PROTOCOL_MALFORMED),
        (part(LogKind::Ima, 0, &vec![0; SEGMENT_LIMIT + 1]), codes::PROTOCOL_MALFORMED),
        (part(LogKind::Userspace, u64::MAX, b"x"), codes::PROTOCOL_LOGS),
    ] {
        match send(&member, Some(malformed)).await {
            Ok(held) => assert_eq!((held, code), (full.clone(), codes::PROTOCOL_LOGS)),
            Err(refused) => assert_eq!(refused.code(), code),
        }
    }
    // Another boot: nothing of the one before is held of it, and its first part forgets that.
    let other = |part| LogsRequest { boot_id: [0xC1; 16], part };
    let held: LogsHeld = member.client.post("/v1/logs", &other(None)).await.unwrap();
    assert_eq!(held.held, []);
    let late = other(Some(part(LogKind::Ima, 1 << 20, b"x")));
    let held: LogsHeld = member.client.post("/v1/logs", &late).await.unwrap();
    assert_eq!(held.held, []);
    assert_eq!(send(&member, None).await.unwrap(), full);
    let held: LogsHeld = member.client.post("/v1/logs", &other(Some(part(LogKind::Boot, 0, b"b")))).await.unwrap();
    assert_eq!(held.of(LogKind::Boot).length, 1);
    assert_eq!(send(&member, None).await.unwrap().held, []);
    // A stranger sends nothing.
    let refused = server.stranger().post::<LogsHeld>("/v1/logs", &other(None)).await.unwrap_err();
    assert_eq!(refused.code(), codes::PROTOCOL_CLIENT_CERTIFICATE);
}
