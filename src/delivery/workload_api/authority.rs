//! Makes connections of gRPC C-core clients (Python, Ruby, PHP, C++) acceptable.
//!
//! On a Unix socket such a client sends the percent-encoded path of the socket as `:authority`,
//! e.g. `%2Frun%2Fleasehold%2Fworkload.sock`. That is no authority (RFC 3986, 3.2.2 allows it only
//! as `reg-name`, which the HTTP library doesn't), so the HTTP/2 library refuses the request as
//! malformed before any code of ours sees it. Nothing here depends on the authority: the socket
//! is the endpoint. So the bytes that can't stand in a host name are overwritten with `-` as they
//! are read, in place: every length, and so HPACK's tables on both sides, stay as they were.
//!
//! [`Authority`] follows the client's HTTP/2 frames (RFC 9113, 4.1 and 6.2) and the structure of
//! its header blocks (RFC 7541, 6), holds no more than a frame's header, and lets everything pass
//! unchanged from the first byte on that it doesn't understand: that is the HTTP library's to judge.
//! Huffman-coded authorities are left alone; C-core doesn't make any.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use hpack::Walker;

mod hpack;

const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const HEADERS: u8 = 0x1;
const CONTINUATION: u8 = 0x9;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;

/// The rewriting state of one connection, from its first byte on.
#[derive(Debug, Default)]
pub struct Authority {
    place: Place,
    walker: Walker,
    /// A header block has begun and not ended: only CONTINUATION may follow (RFC 9113, 6.10).
    open_block: bool,
}

#[derive(Debug)]
enum Place {
    Preface {
        seen: usize,
    },
    FrameHeader {
        bytes: [u8; 9],
        have: usize,
    },
    /// The pad length of HEADERS comes first, then its priority fields, then the block.
    PadLength {
        left: usize,
        priority: bool,
        end: bool,
    },
    Priority {
        count: u8,
        left: usize,
        pad: usize,
        end: bool,
    },
    Block {
        left: usize,
        pad: usize,
        end: bool,
    },
    Skip {
        left: usize,
    },
    /// Something that isn't understood: hands off.
    Lost,
}

impl Default for Place {
    fn default() -> Self {
        Self::Preface { seen: 0 }
    }
}

impl Authority {
    /// Passes over the next bytes of the client, however they are cut, and overwrites what must be.
    pub fn pass(&mut self, bytes: &mut [u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            // Skipping whole payloads at once; all else goes byte by byte and is short.
            if let Place::Skip { left } = &mut self.place {
                let skipped = (*left).min(rest.len());
                *left -= skipped;
                let done = *left == 0;
                rest = rest.get_mut(skipped..).unwrap_or_default();
                if done {
                    self.place = frame_header();
                }
                continue;
            }
            let Some((byte, after)) = rest.split_first_mut() else { return };
            if matches!(self.place, Place::Lost) {
                return;
            }
            self.step(byte);
            rest = after;
        }
    }

    /// Whether the preface and the first frame's header have come, or something else altogether.
    pub const fn greeted(&self) -> bool {
        !matches!(self.place, Place::Preface { .. })
    }

    fn step(&mut self, byte: &mut u8) {
        let place = std::mem::replace(&mut self.place, Place::Lost);
        self.place = match place {
            Place::Preface { seen } if PREFACE.get(seen) == Some(byte) => match seen + 1 {
                24 => frame_header(),
                seen => Place::Preface { seen },
            },
            Place::FrameHeader { mut bytes, have } => {
                if let Some(slot) = bytes.get_mut(have) {
                    *slot = *byte;
                }
                match have + 1 {
                    9 => self.frame(bytes),
                    have => Place::FrameHeader { bytes, have },
                }
            }
            Place::PadLength { left, priority, end } => {
                fragment(left.saturating_sub(1), usize::from(*byte), priority, end)
            }
            Place::Priority { count, left, pad, end } => match count + 1 {
                5 => block(left, pad, end),
                count => Place::Priority { count, left, pad, end },
            },
            Place::Block { left, pad, end } => {
                if self.walker.step(byte) {
                    self.after_block_byte(left - 1, pad, end)
                } else {
                    Place::Lost
                }
            }
            Place::Preface { .. } | Place::Skip { .. } | Place::Lost => Place::Lost,
        };
        // A fragment may be empty.
        if let Place::Block { left: 0, pad, end } = self.place {
            self.place = self.after_block_byte(0, pad, end);
        }
    }

    fn after_block_byte(&mut self, left: usize, pad: usize, end: bool) -> Place {
        if left > 0 {
            return Place::Block { left, pad, end };
        }
        self.open_block = !end;
        if end && !self.walker.between_fields() {
            return Place::Lost;
        }
        skip(pad)
    }

    /// What follows a frame's header: length (24 bits), type, flags, stream (RFC 9113, 4.1).
    fn frame(&self, header: [u8; 9]) -> Place {
        let [l2, l1, l0, kind, flags, ..] = header;
        let length = usize::from(l2) << 16 | usize::from(l1) << 8 | usize::from(l0);
        let end = flags & END_HEADERS != 0;
        match kind {
            CONTINUATION if self.open_block => Place::Block { left: length, pad: 0, end },
            HEADERS if !self.open_block => {
                let priority = flags & PRIORITY != 0;
                match (flags & PADDED != 0, length) {
                    (true, 0) => Place::Lost,
                    (true, left) => Place::PadLength { left, priority, end },
                    (false, left) => fragment(left, 0, priority, end),
                }
            }
            _ if self.open_block || kind == CONTINUATION => Place::Lost,
            _ => skip(length),
        }
    }
}

const fn frame_header() -> Place {
    Place::FrameHeader { bytes: [0; 9], have: 0 }
}

const fn skip(left: usize) -> Place {
    if left == 0 { frame_header() } else { Place::Skip { left } }
}

/// HEADERS after its pad length: `left` bytes, of which the last `pad` are padding.
const fn fragment(left: usize, pad: usize, priority: bool, end: bool) -> Place {
    match (priority, left) {
        (true, 0..5) => Place::Lost,
        (true, _) => Place::Priority { count: 0, left: left - 5, pad, end },
        (false, _) => block(left, pad, end),
    }
}

const fn block(left: usize, pad: usize, end: bool) -> Place {
    match left.checked_sub(pad) {
        Some(left) => Place::Block { left, pad, end },
        None => Place::Lost,
    }
}

/// A client's stream with its authorities made acceptable, and with a deadline for its greeting.
#[derive(Debug)]
pub struct Readable<S> {
    inner: S,
    authority: Authority,
    greeting: Option<Pin<Box<Sleep>>>,
}

impl<S> Readable<S> {
    /// Wraps `inner`, whose first byte hasn't been read; the HTTP/2 preface must come within `greeting`.
    pub fn new(inner: S, greeting: Duration) -> Self {
        let deadline = tokio::time::sleep_until(Instant::now() + greeting);
        Self { inner, authority: Authority::default(), greeting: Some(Box::pin(deadline)) }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Readable<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buf.filled().len();
        if let Some(deadline) = &mut this.greeting
            && deadline.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        ready!(Pin::new(&mut this.inner).poll_read(cx, buf))?;
        this.authority.pass(buf.filled_mut().get_mut(before..).unwrap_or_default());
        if this.authority.greeted() {
            this.greeting = None;
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Readable<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests;
