//! Reading what is sent: so much of it, in so much time, and so much at once of everybody's.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::Request;
use axum::http::header;
use futures_util::StreamExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::codes::{self, Refusal};

/// KiB of bodies in memory at once: who sends much waits, not the server.
#[derive(Clone, Debug)]
pub struct Room {
    kib: Arc<Semaphore>,
    time: Duration,
}

impl Room {
    /// Room for `kib` KiB, of bodies that each arrive within `time`.
    pub fn new(kib: usize, time: Duration) -> Self {
        Self { kib: Arc::new(Semaphore::new(kib)), time }
    }

    /// Reads a body of at most `limit` bytes; one that says that it is larger isn't read at all.
    /// What has arrived takes room, not what was announced: that costs the sender nothing. The room
    /// is held until the work on the body is done.
    ///
    /// # Errors
    /// [`codes::PROTOCOL_TOO_LARGE`], [`codes::PROTOCOL_BUSY`].
    pub async fn read(&self, request: Request, limit: usize) -> Result<(Vec<u8>, OwnedSemaphorePermit), Refusal> {
        let stated = request.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        if let Some(stated) = stated.filter(|stated: &usize| *stated > limit) {
            return Err(too_large(format!("{stated} bytes"), limit));
        }
        tokio::time::timeout(self.time, self.arriving(request, limit))
            .await
            .unwrap_or_else(|_| Err(Refusal::new(codes::PROTOCOL_BUSY, "the body didn't arrive in time")))
    }

    async fn arriving(&self, request: Request, limit: usize) -> Result<(Vec<u8>, OwnedSemaphorePermit), Refusal> {
        let mut parts = request.into_body().into_data_stream();
        let (mut bytes, mut held) = (Vec::new(), self.more(0).await?);
        while let Some(part) = parts.next().await {
            // The connection broke, and then nobody reads the answer.
            let part = part.map_err(|_| too_large("a part of it".to_owned(), limit))?;
            let arrived = bytes.len().saturating_add(part.len());
            if arrived > limit {
                return Err(too_large("more".to_owned(), limit));
            }
            held.merge(self.more(arrived.div_ceil(1024).saturating_sub(held.num_permits())).await?);
            bytes.extend_from_slice(&part);
        }
        Ok((bytes, held))
    }

    async fn more(&self, kib: usize) -> Result<OwnedSemaphorePermit, Refusal> {
        let kib = u32::try_from(kib).unwrap_or(u32::MAX);
        let held = self.kib.clone().acquire_many_owned(kib).await;
        held.map_err(|_| Refusal::new(codes::PROTOCOL_BUSY, "the server is stopping"))
    }
}

fn too_large(found: String, limit: usize) -> Refusal {
    Refusal::new(codes::PROTOCOL_TOO_LARGE, found).expected(format!("at most {limit} bytes"))
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use axum::body::{Body, Bytes};
    use futures_util::stream;

    use super::*;

    fn request(length: usize, body: Body) -> Request {
        Request::builder().header(header::CONTENT_LENGTH, length).body(body).unwrap()
    }

    #[tokio::test]
    async fn announcing_much_and_sending_little_takes_no_room() {
        let room = Room::new(4, Duration::from_secs(20));
        let mut slow = Vec::new();
        for _ in 0..3 {
            let first = stream::iter([Ok::<_, Infallible>(Bytes::from_static(b"a"))]);
            let body = Body::from_stream(first.chain(stream::pending()));
            let room = room.clone();
            slow.push(tokio::spawn(async move { room.read(request(4000, body), 4096).await.map(drop) }));
        }
        while room.kib.available_permits() > 1 {
            tokio::task::yield_now().await;
        }
        let honest = room.read(request(1000, Body::from(vec![0; 1000])), 4096);
        let (bytes, held) = tokio::time::timeout(Duration::from_secs(10), honest).await.unwrap().unwrap();
        assert_eq!((bytes.len(), held.num_permits()), (1000, 1));
        slow.iter().for_each(tokio::task::JoinHandle::abort);
    }

    #[tokio::test]
    async fn too_much_and_too_slow_are_refused() {
        let room = Room::new(4, Duration::from_millis(10));
        let code = async |length, body| room.read(request(length, body), 10).await.unwrap_err().code;
        assert_eq!(code(11, Body::empty()).await, codes::PROTOCOL_TOO_LARGE);
        assert_eq!(code(10, Body::from(vec![0; 11])).await, codes::PROTOCOL_TOO_LARGE);
        let pending = Body::from_stream(stream::pending::<Result<Bytes, Infallible>>());
        assert_eq!(code(10, pending).await, codes::PROTOCOL_BUSY);
        assert_eq!(room.kib.available_permits(), 4);
    }
}
