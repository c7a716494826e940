//! Bounds how long an answer may wait in the send buffers of a connection.
//!
//! A client decides when HTTP/2 may send: with a window of no bytes an answer waits inside the HTTP
//! library, and with a socket that isn't read it waits behind it, for as long as the client likes
//! and whatever happens meanwhile. What waits there can't be taken back. So each piece of an answer
//! is followed until it has been written, and a connection with one that takes longer is cut.

use std::collections::BTreeMap;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::body::{Bytes, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tonic::Status;
use tonic::body::Body;

use crate::clock::BootInstant;

/// What one connection has to send.
#[derive(Debug)]
pub(super) struct Flight {
    longest: Duration,
    waiting: Mutex<Waiting>,
    begun: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    last: u64,
    /// Pieces that the HTTP library holds, in the order of their making.
    pieces: BTreeMap<u64, BootInstant>,
    /// Since when the socket hasn't taken all it was given: the library copies short pieces.
    unflushed: Option<BootInstant>,
}

impl Flight {
    /// Nothing yet; each piece is to be written within `longest`.
    pub(super) fn new(longest: Duration) -> Arc<Self> {
        Arc::new(Self { longest, waiting: Mutex::default(), begun: Notify::new() })
    }

    /// Waits until something has waited for too long.
    pub(super) async fn stuck(&self) {
        loop {
            match self.left() {
                None => self.begun.notified().await,
                Some(Duration::ZERO) => return,
                Some(left) => tokio::time::sleep(left).await,
            }
        }
    }

    /// `body`, each piece of which is followed.
    pub(super) fn follow(self: &Arc<Self>, body: Body) -> Body {
        Body::new(Followed { body, flight: Arc::clone(self) })
    }

    /// The time that the oldest has, if anything waits.
    fn left(&self) -> Option<Duration> {
        let waiting = self.waiting();
        let piece = waiting.pieces.first_key_value().map(|(_, since)| *since);
        let oldest = piece.into_iter().chain(waiting.unflushed).min()?;
        Some(self.longest.saturating_sub(BootInstant::now().since(oldest)))
    }

    fn piece(self: &Arc<Self>, bytes: Bytes) -> Bytes {
        let number = {
            let mut waiting = self.waiting();
            waiting.last += 1;
            let number = waiting.last;
            waiting.pieces.insert(number, BootInstant::now());
            number
        };
        self.begun.notify_one();
        Bytes::from_owner(Piece { bytes, number, flight: Arc::clone(self) })
    }

    /// Asked before each write, so that not even a late timer lets old bytes out.
    fn write(&self) -> io::Result<()> {
        if self.left() == Some(Duration::ZERO) {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "an answer waited for too long"));
        }
        let mut waiting = self.waiting();
        if waiting.unflushed.is_none() {
            waiting.unflushed = Some(BootInstant::now());
            self.begun.notify_one();
        }
        Ok(())
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Dropped by the HTTP library once it has passed the bytes to the socket, or will never do so.
struct Piece {
    bytes: Bytes,
    number: u64,
    flight: Arc<Flight>,
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.flight.waiting().pieces.remove(&self.number);
    }
}

struct Followed {
    body: Body,
    flight: Arc<Flight>,
}

impl hyper::body::Body for Followed {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        Poll::Ready(frame.map(|frame| frame.map(|frame| frame.map_data(|bytes| self.flight.piece(bytes)))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A socket of which is known whether it took all that it was given.
#[derive(Debug)]
pub(super) struct Flushed<S> {
    inner: S,
    flight: Arc<Flight>,
}

impl<S> Flushed<S> {
    pub(super) const fn new(inner: S, flight: Arc<Flight>) -> Self {
        Self { inner, flight }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Flushed<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Flushed<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.flight.write()?;
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.flight.write()?;
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    /// The HTTP library flushes when it has written all that it holds.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.inner).poll_flush(cx))?;
        self.flight.waiting().unflushed = None;
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
