//! The kernel's process connector: a netlink socket on which it tells every exit on the machine. It is open
//! only while somebody is watched.
//!
//! From Linux 6.6 on it can be narrowed to exits, by a message of 8 bytes; before, which needs root, it tells
//! forks and executions as well, and reads a message of 4 bytes only.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

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
const PROC_CN_MCAST_IGNORE: u32 = 2;
const PROC_EVENT_NONE: u32 = 0;
const PROC_EVENT_EXIT: u32 = 0x8000_0000;

/// The socket, while it is needed.
#[derive(Debug, Default)]
pub(super) struct Connector {
    open: Mutex<Weak<Listening>>,
}

/// The open socket, and the processes that somebody asks about.
#[derive(Debug)]
struct Listening {
    socket: AsyncFd<OwnedFd>,
    /// Whether it tells exits only.
    narrowed: bool,
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
        let listening = {
            let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
            let listening = open.upgrade().or_else(Listening::open);
            *open = listening.as_ref().map(Arc::downgrade).unwrap_or_default();
            listening
        };
        match &listening {
            Some(listening) => {
                // What is waiting is older than the process that has the number now.
                listening.drain();
                listening.seen().entry(pid).or_insert(Seen { watchers: 0, status: None }).watchers += 1;
            }
            None => tracing::debug!(
                "the kernel doesn't tell how processes end: other namespaces than its first, or not root before Linux 6.6"
            ),
        }
        Watched { pid, listening }
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
        // A kernel that doesn't know the first form says nothing to it.
        Self::subscribed(true).or_else(|| Self::subscribed(false))
    }

    /// The same in one form: narrowed to exits, or not.
    fn subscribed(narrowed: bool) -> Option<Arc<Self>> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let protocol = Some(netlink::CONNECTOR);
        let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, protocol).ok()?;
        // Fewer fit without, and then a status may be missed.
        let _ = rustix::net::sockopt::set_socket_recv_buffer_size(&socket, BUFFER);
        rustix::net::bind(&socket, &SocketAddrNetlink::new(0, CN_IDX_PROC)).ok()?;
        if narrowed {
            // To all first: only that is confirmed.
            let all = subscription(&[PROC_CN_MCAST_LISTEN, PROC_EVENT_NONE]);
            let exits = subscription(&[PROC_CN_MCAST_LISTEN, PROC_EVENT_EXIT]);
            confirmed(&socket, &all).then_some(())?;
            rustix::net::send(&socket, &exits, SendFlags::empty()).ok()?;
        } else {
            confirmed(&socket, &subscription(&[PROC_CN_MCAST_LISTEN])).then_some(())?;
        }
        #[expect(deprecated, reason = "unsound only for types whose descriptor may change; an OwnedFd's can't")]
        let socket = AsyncFd::with_interest(socket, Interest::READABLE).ok()?;
        let listening = Arc::new(Self { socket, narrowed, seen: Mutex::default(), told: Notify::new() });
        tokio::spawn(Self::listen(Arc::downgrade(&listening)));
        Some(listening)
    }

    /// Reads on for as long as anybody holds the socket.
    async fn listen(weak: Weak<Self>) {
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

impl Drop for Listening {
    fn drop(&mut self) {
        // Where it tells everything, it counts its listeners by their words, not by their sockets.
        if !self.narrowed {
            let ignore = subscription(&[PROC_CN_MCAST_IGNORE]);
            let _ = rustix::net::send(&self.socket, &ignore, SendFlags::empty());
        }
    }
}

/// Whether the kernel confirms a subscription. It does so within the call; what else happened may stand before.
fn confirmed(socket: &OwnedFd, message: &[u8]) -> bool {
    if rustix::net::send(socket, message, SendFlags::empty()).is_err() {
        return false;
    }
    let mut buffer = [0; MESSAGE];
    loop {
        match rustix::net::recv(socket, &mut buffer, RecvFlags::empty()) {
            Ok((_, length)) => {
                if let Some(Event::Subscribed) = buffer.get(..length).and_then(event) {
                    return true;
                }
            }
            Err(rustix::io::Errno::NOBUFS | rustix::io::Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}

/// What the kernel tells.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Event {
    Subscribed,
    Exit { process: i32, status: i32 },
    Other,
}

/// `struct nlmsghdr` (16 bytes), `struct cn_msg` (20) and what to do: an operation, and from Linux 6.6 on the
/// events that it is about.
fn subscription(operation: &[u32]) -> Vec<u8> {
    let words = |words: &[u32]| words.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<_>>();
    let halves = |halves: [u16; 2]| halves.into_iter().flat_map(u16::to_ne_bytes).collect::<Vec<_>>();
    let operation = words(operation);
    let length = u16::try_from(operation.len()).unwrap_or(u16::MAX);
    let message = [words(&[CN_IDX_PROC, CN_VAL_PROC, 0, 0]), halves([length, 0]), operation].concat();
    let whole = u32::try_from(16 + message.len()).unwrap_or(u32::MAX);
    // NLMSG_DONE, without flags.
    [words(&[whole]), halves([3, 0]), words(&[0, 0]), message].concat()
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

    /// As kernels before 6.6 are spoken to, which this one understands as well.
    #[tokio::test(flavor = "multi_thread")]
    async fn both_forms_of_a_subscription_are_told_of_exits() {
        for narrowed in [true, false] {
            let Some(listening) = Listening::subscribed(narrowed) else {
                println!("SKIPPED: the kernel doesn't tell this process of exits (narrowed: {narrowed})");
                continue;
            };
            let open = Mutex::new(Arc::downgrade(&listening));
            for code in [0, 7] {
                let script = format!("read line; exit {code}");
                let mut child = std::process::Command::new("sh");
                let mut child = child.args(["-c", &script]).stdin(std::process::Stdio::piped()).spawn().unwrap();
                let connector = Connector { open: Mutex::new(open.lock().unwrap().clone()) };
                let watched = connector.watch(i32::try_from(child.id()).unwrap());
                drop(child.stdin.take());
                child.wait().unwrap();
                let status = tokio::time::timeout(std::time::Duration::from_secs(60), watched.status()).await;
                assert_eq!(status.unwrap(), Some(code << 8), "narrowed: {narrowed}");
            }
        }
    }

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
        assert_eq!(subscription(&[PROC_CN_MCAST_LISTEN, PROC_EVENT_EXIT]).len(), 44);
        assert_eq!(subscription(&[PROC_CN_MCAST_IGNORE]).len(), 40);
    }
}
