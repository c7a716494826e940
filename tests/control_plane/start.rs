//! Starting: on what the server refuses to start, and what it finds again.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use leasehold::codes;

use crate::bench::{Server, random};

#[tokio::test]
async fn an_open_missing_or_wrong_wrapping_key_is_refused() {
    let mut server = Server::start().await;
    server.stop().await;
    let key = server.dir.path().join("state/wrapping.key");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    let refusal = server.try_start().await.err().unwrap();
    assert_eq!(refusal.code, codes::CONFIG_MODE);
    assert!(refusal.at.ends_with("wrapping.key") && refusal.expected.contains("0600"));
    let kept = std::fs::read(&key).unwrap();
    std::fs::remove_file(&key).unwrap();
    assert_eq!(server.try_start().await.err().unwrap().code, codes::CONFIG_INVALID);
    assert!(!key.exists(), "a new key would open nothing of what is there");
    leasehold::secret::write_atomically(&key, &random::<32>()).unwrap();
    assert_eq!(server.try_start().await.err().unwrap().code, codes::STORE_FAILED);
    leasehold::secret::write_atomically(&key, &kept).unwrap();
    server.restart().await;
}

#[tokio::test]
async fn a_second_server_on_the_same_state_is_refused() {
    let server = Server::start().await;
    let refusal = server.try_start().await.err().unwrap();
    assert!(refusal.found.contains("another server"), "{refusal}");
}

#[tokio::test]
async fn a_store_stays_in_its_trust_domain() {
    let mut server = Server::start().await;
    server.stop().await;
    server.config.trust_domain = leasehold::identity::TrustDomain::new("other.org").unwrap();
    let refusal = server.try_start().await.err().unwrap();
    assert_eq!((refusal.code, refusal.at.as_str()), (codes::CONFIG_INVALID, "trust_domain"));
}

#[tokio::test]
async fn a_stolen_store_holds_no_key() {
    let server = Server::start().await;
    server.leased().await;
    server.admin(&["ca", "prepare"]).await;
    // PKCS#8 of a P-256 key starts like this, after its length.
    let head = hex::decode("020100301306072a8648ce3d020106082a8648ce3d030107").unwrap();
    let wrapping = std::fs::read(server.dir.path().join("state/wrapping.key")).unwrap();
    for entry in std::fs::read_dir(server.dir.path().join("state")).unwrap() {
        let path = entry.unwrap().path();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o077, 0, "{}", path.display());
        if path.file_name().is_some_and(|name| name != "wrapping.key") {
            let bytes = std::fs::read(&path).unwrap();
            let holds = |needle: &[u8]| bytes.windows(needle.len()).any(|window| window == needle);
            assert!(!holds(&head) && !holds(&wrapping), "{}", path.display());
        }
    }
}

#[tokio::test]
async fn everything_is_found_again_after_a_restart() {
    let mut server = Server::start().await;
    let mut member = server.leased().await;
    let id = server.register("web", &member.id()).await;
    let hash = server.bound().ca_hash.clone();
    server.restart().await;
    assert_eq!(server.bound().ca_hash, hash);
    member.reconnect(&server);
    // The lease from before holds, and so does the nonce.
    assert!(member.credential(&id).await.unwrap().0.answers[0].refusal.is_none());
    assert_eq!(member.attest().await.unwrap().entries.len(), 1);
}

#[tokio::test]
async fn a_restored_store_announces_a_new_epoch_and_every_node_attests_afresh() {
    let mut server = Server::start().await;
    let mut member = server.leased().await;
    let id = server.register("web", &member.id()).await;
    server.stop().await;
    let state = server.dir.path().join("state");
    let backup = server.dir.path().join("backup.db");
    std::fs::copy(state.join("store.db"), &backup).unwrap();
    server.restart().await;
    member.reconnect(&server);
    member.attest().await.unwrap();
    let (epoch, sequence) = (member.epoch, member.sequence);
    server.stop().await;
    restore(&backup, &state);
    server.restart().await;
    member.reconnect(&server);
    assert_eq!(member.credential(&id).await.unwrap_err().code(), codes::PROTOCOL_EPOCH);
    let refused = member.attest().await.unwrap_err();
    assert_eq!(refused.code(), codes::VERIFY_NONCE);
    member.next = refused.next().nonce;
    member.attest().await.unwrap();
    assert_ne!(member.epoch, epoch);
    // The store had forgotten this lease; the next one is later all the same.
    assert!(member.sequence > sequence);
    assert!(server.recorded().await.contains(&"protocol.epoch".to_owned()));
}

#[tokio::test]
async fn a_clock_that_goes_back_gives_an_ended_lease_no_time_again() {
    let mut server = Server::start().await;
    let member = server.leased().await;
    let id = server.register("web", &member.id()).await;
    assert!(member.credential(&id).await.unwrap().0.answers[0].refusal.is_none());
    server.pass(700);
    let over = |answer: Result<_, crate::bench::Failure>| match answer {
        Err(failure) => failure.code() != codes::PROTOCOL_BUSY,
        Ok((answer, _)) => {
            let answer: leasehold::protocol::CredentialAnswer = answer;
            answer.answers[0].refusal.is_some()
        }
    };
    assert!(over(member.credential(&id).await));
    server.back(690);
    assert!(over(member.credential(&id).await));
    // Nor across a restart.
    server.pass(690);
    server.restart().await;
    server.back(690);
    server.restart().await;
    let mut member = member;
    member.reconnect(&server);
    assert!(over(member.credential(&id).await));
    assert!(server.recorded().await.contains(&"clock.went_back".to_owned()));
    // An operator who knows that the clock had been wrong may say so.
    server.config.accept_clock = true;
    server.restart().await;
    member.reconnect(&server);
    assert!(!over(member.credential(&id).await));
    assert!(server.recorded().await.contains(&"clock.accepted".to_owned()));
}

fn restore(backup: &Path, state: &Path) {
    for name in ["store.db-wal", "store.db-shm"] {
        let _ = std::fs::remove_file(state.join(name));
    }
    std::fs::copy(backup, state.join("store.db")).unwrap();
}
