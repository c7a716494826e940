//! The kernel's process connector: a netlink socket on which it tells every exit on the machine.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;

/// Bytes of exits that may wait to be read: some thousands of them.
const BUFFER: usize = 2 << 20;

/// The largest message that is read; the kernel's are 76 bytes.
const MESSAGE: usize = 512;

/// Of `linux/cn_proc.h` and `linux/connector.h`.
const CN_IDX_PROC: u32 = 1;
const CN_VAL_PROC: u32 = 1;
const PROC_CN_MCAST_LISTEN: u32 = 1;
const PROC_EVENT_NONE: u32 = 0;
const PROC_EVENT_EXIT: u32 = 0x8000_0000;

/// The socket, opened when it is first needed, and the processes that somebody asks about.
#[derive(Debug, Default)]
pub(super) struct Connector {
    opened: OnceLock<Option<Arc<Listening>>>,
}

#[derive(Debug)]
struct Listening {
    socket: AsyncFd<OwnedFd>,
    /// By process number; as often as it is watched, and the status last told.
    seen: Mutex<HashMap<i32, Seen>>,
    told: Notify,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    watchers: usize,
    status: Option<i32>,
}

/// A number that is watched, until this is dropped.
#[derive(Debug)]
pub(super) struct Watched {
    pid: i32,
    listening: Option<Arc<Listening>>,
}

impl Connector {
    /// Watches for the exit of `pid`, which must live.
    pub(super) fn watch(&self, pid: i32) -> Watched {
        let listening = self.opened.get_or_init(|| {
            let opened = Listening::open();
            if opened.is_none() {
                tracing::info!(
                    "the kernel doesn't tell how processes end: not its first namespaces, or before Linux 6.6"
                );
            }
            opened
        });
        if let Some(listening) = listening {
            // What is waiting is older than the process that has the number now.
            listening.drain();
            listening.seen().entry(pid).or_insert(Seen { watchers: 0, status: None }).watchers += 1;
        }
        Watched { pid, listening: listening.clone() }
    }
}

impl Watched {
    /// Waits for the status that the process left; nothing if nobody will tell.
    pub(super) async fn status(&self) -> Option<i32> {
        let listening = self.listening.as_ref()?;
        loop {
            let told = listening.told.notified();
            listening.drain();
            if let Some(status) = listening.seen().get(&self.pid)?.status {
                return Some(status);
            }
            told.await;
        }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let Some(listening) = &self.listening else { return };
        let mut seen = listening.seen();
        if let Some(entry) = seen.get_mut(&self.pid) {
            entry.watchers -= 1;
            if entry.watchers == 0 {
                seen.remove(&self.pid);
            }
        }
    }
}

impl Listening {
    /// Subscribes to exits; nothing if the kernel won't.
    fn open() -> Option<Arc<Self>> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let protocol = Some(netlink::CONNECTOR);
        let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, protocol).ok()?;
        // Fewer fit without, and then a status may be missed.
        let _ = rustix::net::sockopt::set_socket_recv_buffer_size(&socket, BUFFER);
        rustix::net::bind(&socket, &SocketAddrNetlink::new(0, CN_IDX_PROC)).ok()?;
        // To all first: only that is confirmed, by a kernel that reads this form of the message. It does so
        // within the call, and what else happens meanwhile may stand before.
        rustix::net::send(&socket, &subscription(PROC_EVENT_NONE), SendFlags::empty()).ok()?;
        let mut buffer = [0; MESSAGE];
        loop {
            let (_, length) = rustix::net::recv(&socket, &mut buffer, RecvFlags::empty()).ok()?;
            if matches!(event(buffer.get(..length)?)?, Event::Subscribed) {
                break;
            }
        }
        rustix::net::send(&socket, &subscription(PROC_EVENT_EXIT), SendFlags::empty()).ok()?;
        #[expect(deprecated, reason = "unsound only for types whose descriptor may change; an OwnedFd's can't")]
        let socket = AsyncFd::with_interest(socket, Interest::READABLE).ok()?;
        let listening = Arc::new(Self { socket, seen: Mutex::default(), told: Notify::new() });
        tokio::spawn(Self::listen(Arc::downgrade(&listening)));
        Some(listening)
    }

    /// Reads on for as long as anybody holds the socket.
    async fn listen(weak: std::sync::Weak<Self>) {
        while let Some(listening) = weak.upgrade() {
            let readable = tokio::time::timeout(std::time::Duration::from_secs(1), listening.socket.readable());
            let Ok(Ok(mut ready)) = readable.await else { continue };
            listening.drain();
            ready.clear_ready();
            // What came between the last read and here wakes the next one.
            listening.drain();
        }
    }

    /// Takes in whatever is waiting.
    fn drain(&self) {
        let mut seen = self.seen();
        let mut buffer = [0; MESSAGE];
        let mut told = false;
        loop {
            match rustix::net::recvfrom(&self.socket, &mut buffer, RecvFlags::empty()) {
                Ok((_, length, from)) => {
                    let kernels = from.and_then(|from| SocketAddrNetlink::try_from(from).ok());
                    // Others may send to the group; the kernel's port is 0.
                    if kernels.is_none_or(|from| from.pid() != 0) {
                        continue;
                    }
                    if let Some(Event::Exit { process, status }) = buffer.get(..length).and_then(event)
                        && let Some(entry) = seen.get_mut(&process)
                    {
                        // Of several threads the last one counts: its status is the process's.
                        entry.status = Some(status);
                        told = true;
                    }
                }
                // Some were lost for want of room; the next ones follow.
                Err(rustix::io::Errno::NOBUFS | rustix::io::Errno::INTR) => {}
                Err(_) => break,
            }
        }
        if told {
            self.told.notify_waiters();
        }
    }

    fn seen(&self) -> MutexGuard<'_, HashMap<i32, Seen>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the kernel tells.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Event {
    Subscribed,
    Exit { process: i32, status: i32 },
    Other,
}

/// `struct nlmsghdr` (16 bytes), `struct cn_msg` (20) and `struct proc_input` (8): listen, to these events.
fn subscription(to: u32) -> Vec<u8> {
    let words = |words: &[u32]| words.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<_>>();
    let halves = |halves: [u16; 2]| halves.into_iter().flat_map(u16::to_ne_bytes).collect::<Vec<_>>();
    // NLMSG_DONE, without flags.
    let header = [words(&[44]), halves([3, 0]), words(&[0, 0])].concat();
    let message = [words(&[CN_IDX_PROC, CN_VAL_PROC, 0, 0]), halves([8, 0])].concat();
    [header, message, words(&[PROC_CN_MCAST_LISTEN, to])].concat()
}

/// The event in a message: after both headers stand what happened, a processor, 8 bytes of time, and for an
/// exit the thread, its process and its status.
fn event(message: &[u8]) -> Option<Event> {
    let word = |at: usize| message.get(at..)?.first_chunk::<4>().map(|bytes| u32::from_ne_bytes(*bytes));
    let signed = |at: usize| word(at).map(u32::cast_signed);
    if (word(16)?, word(20)?) != (CN_IDX_PROC, CN_VAL_PROC) {
        return None;
    }
    Some(match word(36)? {
        // The error of the subscription follows.
        PROC_EVENT_NONE if word(52)? == 0 => Event::Subscribed,
        PROC_EVENT_EXIT => Event::Exit { process: signed(56)?, status: signed(60)? },
        _ => Event::Other,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_read_whole_or_not_at_all() {
        let mut message = vec![0_u8; 76];
        for (at, value) in [(16, 1_u32), (20, 1), (36, PROC_EVENT_EXIT), (52, 7), (56, 6), (60, 0x0300)] {
            message[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        }
        assert_eq!(event(&message), Some(Event::Exit { process: 6, status: 0x0300 }));
        for length in 0..64 {
            assert_eq!(event(&message[..length]), None);
        }
        message[16] = 2;
        assert_eq!(event(&message), None, "another connector's");
        assert_eq!(subscription(PROC_EVENT_EXIT).len(), 44);
    }
}
