//! Journals of nodes on their way to the control plane: once each, in order, from whom they are, whatever is killed.

use leasehold::codes;
use leasehold::protocol::{Chain, Head, Record, RecordsAnswer, RecordsRequest, SignedHead, Writer};
use p256::ecdsa::SigningKey;
use p256::ecdsa::signature::hazmat::PrehashSigner;
use p256::pkcs8::EncodePublicKey;
use serde_json::Value;

use crate::bench::{Failure, Member, Server, random, random_key};

/// A journal as an agent keeps it.
#[derive(Clone)]
struct Journal {
    writer: Writer,
    lines: Vec<String>,
    /// The chain before each line, and after the last.
    chains: Vec<Chain>,
    witnessed: Option<SignedHead>,
}

impl Journal {
    fn new() -> Self {
        let writer = Writer::from_bytes(random());
        Self { writer, lines: Vec::new(), chains: vec![Chain::begin(&writer)], witnessed: None }
    }

    fn write(&mut self, what: &str, credential: Option<&str>, decision: Option<&str>) {
        let record = Record {
            number: self.lines.len() as u64 + 1,
            time: 1_700_000_000 + self.lines.len() as u64,
            what: what.to_owned(),
            credential: credential.map(str::to_owned),
            decision: decision.map(str::to_owned),
            process: Some("process 1".to_owned()),
            count: 1,
            ..Record::default()
        };
        self.push(record.line());
    }

    fn push(&mut self, line: String) {
        self.chains.push(self.chains.last().unwrap().then(&line));
        self.lines.push(line);
    }

    fn head(&self, number: usize) -> Head {
        Head { writer: self.writer, number: number as u64, chain: self.chains[number] }
    }

    /// Records `first` to `last`, signed by `key`.
    fn request(&self, first: usize, last: usize, key: &SigningKey) -> RecordsRequest {
        let head = self.head(last);
        RecordsRequest {
            writer: self.writer,
            first: first as u64,
            before: self.chains[first - 1],
            records: self.lines[first - 1..last].to_vec(),
            head: Some(SignedHead::new(head, &key.sign_prehash(&head.digest()).unwrap())),
            missing: false,
            witnessed: self.witnessed.clone(),
        }
    }

    async fn deliver(&mut self, member: &Member, first: usize, last: usize) -> Result<u64, Failure> {
        let request = self.request(first, last, &member.tpm.node.node_key);
        let answer: RecordsAnswer = member.client.post("/v1/records", &request).await?;
        assert_eq!(answer.before, self.chains[usize::try_from(answer.next).unwrap() - 1]);
        self.witnessed = answer.head.or(self.witnessed.take());
        Ok(answer.next)
    }
}

/// What was delivered, oldest first.
async fn delivered(server: &Server, journal: &Journal) -> Vec<u64> {
    let output = server.run(&["--json", "audit", "export", "--what", "test."]).await;
    let text = String::from_utf8(output.stdout).unwrap();
    let records = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let own = records.filter(|record| record["writer"] == journal.writer.to_string());
    own.map(|record| record["number"].as_u64().unwrap()).collect()
}

async fn verify(server: &Server) -> (i32, Value) {
    let output = server.run(&["audit", "verify", "--json"]).await;
    (output.status.code().unwrap(), serde_json::from_slice(&output.stdout).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn each_record_arrives_once_whatever_is_repeated_or_killed() {
    let mut server = Server::start().await;
    let mut member = server.leased().await;
    let mut journal = Journal::new();
    (0..10).for_each(|n| journal.write(&format!("test.{n}"), None, None));
    assert_eq!(journal.deliver(&member, 1, 4).await.unwrap(), 5);
    // Its answer was lost: the same again, and more with it.
    assert_eq!(journal.deliver(&member, 1, 4).await.unwrap(), 5);
    assert_eq!(journal.deliver(&member, 3, 6).await.unwrap(), 7);
    // Ahead of what is here: asked for what lies between, and nothing is kept.
    assert_eq!(journal.deliver(&member, 9, 10).await.unwrap(), 7);
    server.restart().await;
    member.reconnect(&server);
    assert_eq!(journal.deliver(&member, 7, 10).await.unwrap(), 11);
    assert_eq!(delivered(&server, &journal).await, (1..=10).collect::<Vec<_>>());
    let (code, report) = verify(&server).await;
    assert_eq!((code, &report["holds"]), (0, &Value::Bool(true)), "{report:#}");
    let theirs = &report["writers"][1];
    assert_eq!(
        (theirs["node"].as_str(), &theirs["last"], &theirs["signed"]),
        (Some(&*member.id()), &10.into(), &10.into())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn forks_forged_heads_and_other_nodes_are_refused_and_recorded() {
    let server = Server::start().await;
    let (member, other) = (server.leased().await, server.leased().await);
    let mut journal = Journal::new();
    (0..6).for_each(|n| journal.write(&format!("test.{n}"), None, None));
    journal.deliver(&member, 1, 4).await.unwrap();
    let code = async |request: &RecordsRequest, member: &Member| {
        member.client.post::<RecordsAnswer>("/v1/records", request).await.unwrap_err().code()
    };
    let key = &member.tpm.node.node_key;
    // Another past: at an old record, and at the last.
    for changed in [2, 4] {
        let mut fork = Journal { lines: Vec::new(), chains: vec![Chain::begin(&journal.writer)], ..journal.clone() };
        (0..6).for_each(|n| fork.write(&format!("test.{}", if n + 1 == changed { 99 } else { n }), None, None));
        assert_eq!(code(&fork.request(1, 6, key), &member).await, codes::AUDIT_TAMPERED);
        assert_eq!(code(&fork.request(5, 6, key), &member).await, codes::AUDIT_TAMPERED);
    }
    // Not signed by this node's key, or for another head.
    let request = journal.request(5, 6, &other.tpm.node.node_key);
    assert_eq!(code(&request, &member).await, codes::VERIFY_EVIDENCE_SIGNATURE);
    let request = RecordsRequest { head: journal.request(1, 5, key).head, ..journal.request(5, 6, key) };
    assert_eq!(code(&request, &member).await, codes::PROTOCOL_MALFORMED);
    let request = RecordsRequest { head: None, ..journal.request(5, 6, key) };
    assert_eq!(code(&request, &member).await, codes::PROTOCOL_MALFORMED);
    // Another node's journal, even with a head of its own.
    assert_eq!(code(&journal.request(5, 6, &other.tpm.node.node_key), &other).await, codes::AUDIT_TAMPERED);
    // What is no record, out of order, or too much.
    for lines in [vec!["{}".to_owned()], vec![journal.lines[5].clone()], vec![format!("{}\n", journal.lines[4])]] {
        assert_eq!(
            code(&RecordsRequest { records: lines, ..journal.request(5, 5, key) }, &member).await,
            codes::PROTOCOL_MALFORMED
        );
    }
    let many = RecordsRequest { records: vec![String::new(); 3000], ..journal.request(5, 5, key) };
    assert_eq!(code(&many, &member).await, codes::PROTOCOL_TOO_LARGE);
    let request = RecordsRequest { first: 0, ..journal.request(1, 1, key) };
    assert_eq!(code(&request, &member).await, codes::PROTOCOL_MALFORMED);
    // Nothing of it was kept, all of it was noted.
    assert_eq!(delivered(&server, &journal).await, [1, 2, 3, 4]);
    let tampered = server.recorded().await.iter().filter(|what| *what == "audit.tampered").count();
    assert_eq!(tampered, 5);
    assert_eq!(journal.deliver(&member, 5, 6).await.unwrap(), 7);
    // A new journal is one more thing to be seen.
    let mut second = Journal::new();
    second.write("test.new", None, None);
    second.deliver(&member, 1, 1).await.unwrap();
    let began = server.run(&["--json", "audit", "tail", "--what", "audit.journal_began"]).await;
    let last: Value = serde_json::from_str(String::from_utf8(began.stdout).unwrap().lines().last().unwrap()).unwrap();
    assert_eq!(last["detail"]["before"]["writer"], journal.writer.to_string());
    assert_eq!(last["detail"]["before"]["to"], 6);
    // Recorded findings stay to be seen: a warning, since the records themselves hold.
    let (code, report) = verify(&server).await;
    assert_eq!((code, &report["holds"]), (3, &Value::Bool(true)), "{report:#}");
}

/// A control plane from a backup: nodes deliver again what it lost, or say that they no longer have it; and the head
/// that they were given shows what is missing from its own log.
#[tokio::test(flavor = "multi_thread")]
async fn a_restored_control_plane_gets_the_records_again() {
    let mut server = Server::start().await;
    let mut member = server.leased().await;
    let (mut kept, mut dropped) = (Journal::new(), Journal::new());
    for journal in [&mut kept, &mut dropped] {
        (0..8).for_each(|n| journal.write(&format!("test.{n}"), None, None));
        journal.deliver(&member, 1, 3).await.unwrap();
    }
    server.stop().await;
    let state = server.config.state_dir.clone();
    let backup = std::fs::read(state.join("store.db")).unwrap();
    server.restart().await;
    member.reconnect(&server);
    kept.deliver(&member, 4, 6).await.unwrap();
    dropped.deliver(&member, 4, 6).await.unwrap();
    server.stop().await;
    // Of its own log the server knows by the head outside; that is lost here, so that only the nodes know.
    std::fs::remove_file(state.join("wrapping.key.audit")).unwrap();
    server.restart().await;
    member.reconnect(&server);
    kept.deliver(&member, 7, 7).await.unwrap();
    server.stop().await;
    std::fs::write(state.join("store.db"), backup).unwrap();
    let witness = std::fs::read_to_string(state.join("wrapping.key.audit")).unwrap();
    std::fs::remove_file(state.join("wrapping.key.audit")).unwrap();
    for name in ["store.db-wal", "store.db-shm"] {
        let _ = std::fs::remove_file(state.join(name));
    }
    server.restart().await;
    member.reconnect(&server);
    assert_eq!(kept.deliver(&member, 8, 8).await.unwrap(), 4, "asked for what it lost");
    assert_eq!(kept.deliver(&member, 4, 8).await.unwrap(), 9);
    assert_eq!(delivered(&server, &kept).await, (1..=8).collect::<Vec<_>>());
    // The other node no longer has 4 to 6.
    assert_eq!(dropped.deliver(&member, 7, 8).await.unwrap(), 4);
    let request = RecordsRequest { missing: true, ..dropped.request(7, 8, &member.tpm.node.node_key) };
    let answer: RecordsAnswer = member.client.post("/v1/records", &request).await.unwrap();
    assert_eq!(answer.next, 9);
    assert_eq!(delivered(&server, &dropped).await, [1, 2, 3, 7, 8]);
    let (code, report) = verify(&server).await;
    assert_eq!(code, 4, "{report:#}");
    let of = |writer: &str| {
        let findings = report["findings"].as_array().unwrap().iter();
        findings.filter(|one| one["writer"] == writer).map(|one| one["number"].as_u64().unwrap()).collect::<Vec<_>>()
    };
    // Recorded when it was taken: to be seen for good, and nothing that is wrong now.
    let dropped = dropped.writer.to_string();
    assert_eq!(of(&dropped), [] as [u64; 0]);
    let noted = report["noted"].as_array().unwrap().iter();
    let said: Vec<&str> = noted.map(|one| one["found"].as_str().unwrap()).filter(|it| it.contains(&dropped)).collect();
    assert!(said.len() == 1 && said[0].contains("\"from\":4") && said[0].contains("\"to\":6"), "{said:?}");
    // The server's own log: the node's witness says that there was more. That is recorded, once.
    let recorded = server.recorded().await;
    let witnessed = recorded.iter().filter(|what| ["audit.gap", "audit.tampered"].contains(&what.as_str())).count();
    assert!(witnessed >= 2, "{recorded:?}\n{witness}");
}

/// The joins: what was released was issued here, to this node, by this decision.
#[tokio::test(flavor = "multi_thread")]
async fn records_that_join_nothing_are_orphans() {
    let server = Server::start().await;
    let (member, other) = (server.leased().await, server.leased().await);
    let workload = server.register("web", &member.id()).await;
    let (answer, _) = member.credential(&workload).await.unwrap();
    let issued = server.run(&["--json", "audit", "tail", "--what", "credential.issued"]).await;
    let issued: Value =
        serde_json::from_str(String::from_utf8(issued.stdout).unwrap().lines().last().unwrap()).unwrap();
    let (credential, decision) = (issued["credential"].as_str().unwrap(), answer.answers[0].decision.clone());
    let check = async || {
        let output = server.run(&["audit", "check", "--json"]).await;
        let facts: Value = serde_json::from_slice(&output.stdout).unwrap();
        (output.status.code().unwrap(), facts)
    };
    let mut journal = Journal::new();
    journal.write("credential.released", Some(credential), Some(&decision));
    journal.deliver(&member, 1, 1).await.unwrap();
    let (code, facts) = check().await;
    assert_eq!((code, &facts["orphan_count"], &facts["releases"]), (0, &0.into(), &1.into()), "{facts:#}");
    assert_eq!((&facts["credentials"], &facts["live"]), (&1.into(), &1.into()));
    // The life of one credential, the control plane's records and the node's.
    let life = server.run(&["audit", "tail", "--nodes", "--credential", credential]).await;
    let life = String::from_utf8(life.stdout).unwrap();
    assert!(life.contains("credential.issued") && life.contains("credential.released"), "{life}");
    assert_eq!(life.lines().count(), 2);

    journal.write("credential.released", Some("beef"), Some(&decision));
    journal.write("credential.released", Some(credential), Some("another"));
    journal.deliver(&member, 2, 3).await.unwrap();
    let mut elsewhere = Journal::new();
    elsewhere.write("credential.released", Some(credential), Some(&decision));
    elsewhere.deliver(&other, 1, 1).await.unwrap();
    let (code, facts) = check().await;
    assert_eq!((code, &facts["orphan_count"]), (4, &3.into()), "{facts:#}");
    let words = facts["orphans"].to_string();
    for wrong in ["isn't in the ledger", "another decision", "another node"] {
        assert!(words.contains(wrong), "{words}");
    }
    // The same without a server, on the file.
    let store = server.config.state_dir.join("store.db");
    let offline = server.run(&["audit", "check", "--store", store.to_str().unwrap()]).await;
    assert_eq!(offline.status.code(), Some(4));
    let offline = server.run(&["audit", "verify", "--store", store.to_str().unwrap()]).await;
    assert_eq!(offline.status.code(), Some(0), "{}", String::from_utf8_lossy(&offline.stdout));
}

/// One byte of a delivered record changed in the store: found and named, with its journal; and so is a cut.
#[tokio::test(flavor = "multi_thread")]
async fn a_journal_changed_in_the_store_is_found() {
    let server = Server::start().await;
    let member = server.leased().await;
    let mut journal = Journal::new();
    (0..4).for_each(|n| journal.write(&format!("test.{n}"), None, None));
    journal.deliver(&member, 1, 2).await.unwrap();
    journal.deliver(&member, 3, 4).await.unwrap();
    let store = server.config.state_dir.join("store.db");
    let connection = rusqlite::Connection::open(&store).unwrap();
    let line: String =
        connection.query_row("SELECT record FROM node_records WHERE number = 2", [], |row| row.get(0)).unwrap();
    let first = async || {
        let (code, report) = verify(&server).await;
        let finding = &report["findings"][0];
        (code, finding["writer"].as_str().map(str::to_owned), finding["number"].as_u64())
    };
    let writer = Some(journal.writer.to_string());
    for position in (0..line.len()).step_by(7) {
        let mut changed = line.clone().into_bytes();
        changed[position] ^= 1;
        let changed = String::from_utf8(changed).unwrap();
        connection.execute("UPDATE node_records SET record = ?1 WHERE number = 2", [changed]).unwrap();
        assert_eq!(first().await, (4, writer.clone(), Some(2)), "byte {position}");
    }
    connection.execute("UPDATE node_records SET record = ?1 WHERE number = 2", [&line]).unwrap();
    assert_eq!(verify(&server).await.0, 0);
    // Cut, with the journal's own row made to fit by an older head that its TPM signed: the log says otherwise.
    let older = journal.request(1, 2, &member.tpm.node.node_key).head.unwrap();
    connection.execute("DELETE FROM node_records WHERE number > 2", []).unwrap();
    connection
        .execute(
            "UPDATE journals SET number = 2, chain = ?1, signature = ?2",
            rusqlite::params![older.head.chain.as_bytes(), older.signature],
        )
        .unwrap();
    assert_eq!(first().await, (4, writer.clone(), Some(3)));
    connection.execute("DELETE FROM node_records", []).unwrap();
    connection.execute("DELETE FROM journals", []).unwrap();
    assert_eq!(first().await, (4, writer, Some(1)));
}

/// A task's token that a second node's process shows is outside its job: it ends, and its node is told (capability 30).
#[tokio::test(flavor = "multi_thread")]
async fn a_token_of_a_task_that_two_show_is_taken_back() {
    use leasehold::protocol::{GrantAnswer, GrantRequest, TaskStatement};
    let server = Server::start().await;
    let (one, two) = (server.leased().await, server.leased().await);
    let id = server.register("web", &one.id()).await;
    let (intent, purpose) = (String::new(), String::new());
    let task = TaskStatement {
        id: "job".to_owned(),
        run: [7; 16],
        number: 1,
        intent,
        purpose,
        heartbeat_seconds: 0,
        term_seconds: 0,
    };
    let asked = GrantRequest { task: Some(task), ..crate::grants::request(one.sequence, &id, &["ledger"]) };
    let granted: GrantAnswer = one.client.post("/v1/grants", &asked).await.unwrap();
    assert_eq!(granted.refusal, None);
    let used = async |member: &Member, uids: &[u32]| {
        let mut journal = Journal::new();
        for (at, uid) in uids.iter().enumerate() {
            let record = Record {
                number: at as u64 + 1,
                what: "credential.used".to_owned(),
                credential: Some(granted.jti.clone()),
                count: 1,
                detail: serde_json::json!({ "uid": uid }),
                ..Record::default()
            };
            journal.push(record.line());
        }
        journal.deliver(member, 1, uids.len()).await.unwrap();
        server.recorded().await.into_iter().filter(|what| what == "token.reused").count()
    };
    assert_eq!(used(&one, &[1000, 1000, 1000]).await, 0, "the same one, as often as it likes");
    assert_eq!(used(&two, &[1000]).await, 1);
    assert!(server.recorded().await.iter().any(|what| what == "revocation.made"));
    assert_eq!(used(&two, &[1000]).await, 1, "over is over");
}

/// Records that will not come any more are a finding that was recorded; what follows them is under the chain all the same,
/// and so is whose journal it is.
#[tokio::test(flavor = "multi_thread")]
async fn what_follows_a_gap_and_whose_journal_it_is_cannot_be_changed() {
    let mut server = Server::start().await;
    let (member, other) = (server.leased().await, server.leased().await);
    let mut journal = Journal::new();
    (0..6).for_each(|n| journal.write(&format!("test.{n}"), None, None));
    journal.deliver(&member, 1, 2).await.unwrap();
    let request = RecordsRequest { missing: true, ..journal.request(5, 6, &member.tpm.node.node_key) };
    member.client.post::<RecordsAnswer>("/v1/records", &request).await.unwrap();
    let (code, report) = verify(&server).await;
    assert_eq!((code, &report["holds"]), (3, &Value::Bool(true)), "{report:#}");
    server.stop().await;
    let path = server.config.state_dir.join("store.db");
    let clean = std::fs::read(&path).unwrap();
    let (writer, other) = (journal.writer.to_string(), other.id());
    let key = random_key();
    let spki = hex::encode(key.verifying_key().to_public_key_der().unwrap().as_bytes());
    let signature = hex::encode(journal.request(5, 6, &key).head.unwrap().signature);
    for (change, found) in [
        (
            "UPDATE node_records SET record = replace(record, 'test.4', 'test.9') WHERE number = 5".to_owned(),
            "the record was changed",
        ),
        (format!("UPDATE journals SET node = x'{other}' WHERE writer = x'{writer}'"), "another node's"),
        (
            format!("UPDATE journals SET key_spki = x'{spki}', signature = x'{signature}' WHERE writer = x'{writer}'"),
            "was replaced",
        ),
    ] {
        rusqlite::Connection::open(&path).unwrap().execute_batch(&change).unwrap();
        let output = server.run(&["audit", "verify", "--json", "--store", path.to_str().unwrap()]).await;
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(4), "{change}: {report:#}");
        let first = &report["findings"][0];
        assert_eq!(first["writer"], writer.as_str(), "{change}: {report:#}");
        assert!(first["found"].as_str().unwrap().contains(found), "{change}: {report:#}");
        for name in ["store.db-wal", "store.db-shm"] {
            let _ = std::fs::remove_file(server.config.state_dir.join(name));
        }
        std::fs::write(&path, &clean).unwrap();
    }
}

/// A node that has more to say than its measure waits; nobody else does, and it can still be put out.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_says_too_much_waits_alone() {
    let server = Server::start_with("[audit]\nnode_mib_an_hour = 1\n").await;
    let (mut loud, quiet) = (server.leased().await, server.leased().await);
    let id = server.register("web", &loud.id()).await;
    let mut refused = None;
    // A journal of its own each time: what begins journals is bounded as well.
    for _ in 0..64 {
        let mut journal = Journal::new();
        (0..4).for_each(|_| journal.write(&"test.loud".repeat(1_000), None, None));
        if let Err(failure) = journal.deliver(&loud, 1, 4).await {
            refused = Some(failure.code());
            break;
        }
    }
    assert_eq!(refused, Some(codes::PROTOCOL_BUSY));
    for _ in 0..3 {
        let mut journal = Journal::new();
        journal.write("test.more", None, None);
        assert_eq!(journal.deliver(&loud, 1, 1).await.unwrap_err().code(), codes::PROTOCOL_BUSY);
    }
    // It stays a member, its workloads keep their identities, and others are heard.
    assert!(loud.attest().await.unwrap().lease.is_some());
    let (answer, _) = loud.credential(&id).await.unwrap();
    assert_eq!(answer.answers[0].refusal, None);
    let mut journal = Journal::new();
    journal.write("test.quiet", None, None);
    assert_eq!(journal.deliver(&quiet, 1, 1).await.unwrap(), 2);
    let busy = server.recorded().await.into_iter().filter(|what| what == codes::PROTOCOL_BUSY.as_str());
    assert_eq!(busy.count(), 1, "recorded once");
    server.admin(&["revoke", "node", &loud.id(), "--reason", "loud"]).await;
}
