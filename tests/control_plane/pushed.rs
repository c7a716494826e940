//! Events: what is pushed to a node, and how its stream ends.

use std::time::Duration;

use leasehold::codes;
use leasehold::protocol::{Event, Withdrawn, decode};

use crate::bench::{Client, Server};

/// A node's stream of events.
pub struct Stream {
    response: reqwest::Response,
    buffer: Vec<u8>,
}

impl Stream {
    pub async fn open(client: &Client) -> Self {
        let response = client.http.get(format!("{}/v1/events", client.base)).send().await.unwrap();
        assert_eq!(response.status(), 200);
        let mut stream = Self { response, buffer: Vec::new() };
        assert_eq!(stream.next().await, Some(Event::Alive));
        stream
    }

    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some((length, rest)) = self.buffer.split_first_chunk::<4>() {
                let length = usize::try_from(u32::from_be_bytes(*length)).unwrap();
                if rest.len() >= length {
                    let event = decode(&rest[..length]).unwrap();
                    self.buffer.drain(..4 + length);
                    return Some(event);
                }
            }
            let chunk = tokio::time::timeout(Duration::from_secs(20), self.response.chunk()).await.unwrap();
            self.buffer.extend(chunk.ok()??);
        }
    }

    /// The next event that says something.
    pub async fn said(&mut self) -> Option<Event> {
        loop {
            match self.next().await {
                Some(Event::Alive) => {}
                other => return other,
            }
        }
    }
}

#[tokio::test]
async fn a_node_hears_of_what_concerns_it() {
    let server = Server::start().await;
    let member = server.leased().await;
    let other = server.leased().await;
    let mut stream = Stream::open(&member.client).await;
    let mut others = Stream::open(&other.client).await;
    let id = server.register("web", &member.id()).await;
    assert_eq!(stream.said().await, Some(Event::Attest));
    // What it holds is withdrawn; that there is nothing to hold any more, it learns by attesting.
    assert!(member.credential(&id).await.unwrap().0.answers[0].refusal.is_none());
    server.admin(&["workload", "remove", &id]).await;
    let Some(Event::Withdraw(withdrawal)) = stream.said().await else { panic!("no word of it") };
    assert_eq!(withdrawal.of, Withdrawn::Workloads(vec![id]));
    assert_eq!(stream.said().await, Some(Event::Attest));
    server.admin(&["reference", "retire", "--node", &member.id()]).await;
    assert_eq!(stream.said().await, Some(Event::Attest));
    server.admin(&["ca", "prepare"]).await;
    assert_eq!(stream.said().await, Some(Event::Attest));
    // Of all that, the other heard of the CA only.
    assert_eq!(others.said().await, Some(Event::Attest));
    server.admin(&["revoke", "node", &other.id(), "--reason", "lost"]).await;
    assert!(matches!(others.said().await, Some(Event::Withdraw(_))));
    assert!(matches!(others.said().await, Some(Event::Revoked(_))));
}

#[tokio::test]
async fn a_revoked_node_is_told_its_stream_ends_and_nothing_is_served_to_it() {
    let server = Server::start().await;
    let mut member = server.leased().await;
    let id = server.register("web", &member.id()).await;
    let mut stream = Stream::open(&member.client).await;
    let revoked = server.admin(&["node", "revoke", &member.id(), "--reason", "stolen"]).await;
    assert_eq!(revoked["state"], "revoked");
    let Some(Event::Withdraw(withdrawal)) = stream.said().await else { panic!("no word of it") };
    assert_eq!(withdrawal.of, Withdrawn::Node);
    let Some(Event::Revoked(refusal)) = stream.said().await else { panic!("no word of it") };
    assert_eq!(refusal.code, codes::GATE_REVOKED);
    assert!(refusal.found.contains("stolen"));
    assert_eq!(stream.next().await, None);
    // Over the connection that is still open.
    assert_eq!(member.client.nonce().await.unwrap_err().code(), codes::ENROL_REVOKED);
    assert_eq!(member.attest().await.unwrap_err().code(), codes::ENROL_REVOKED);
    assert_eq!(member.credential(&id).await.unwrap_err().code(), codes::ENROL_REVOKED);
    // And over a new one.
    member.reconnect(&server);
    assert_eq!(member.client.nonce().await.unwrap_err().code(), codes::ENROL_REVOKED);
}

#[tokio::test]
async fn a_stopping_server_ends_its_streams() {
    let mut server = Server::start().await;
    let member = server.leased().await;
    let mut stream = Stream::open(&member.client).await;
    let started = std::time::Instant::now();
    server.stop().await;
    assert!(started.elapsed() < Duration::from_secs(6));
    assert_eq!(stream.said().await, None);
}
