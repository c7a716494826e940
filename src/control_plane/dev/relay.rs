//! A TPM for several users: whole commands of many connections, one after another, over the one
//! connection that swtpm accepts.
//!
//! ```text
//!  libtss2 ──▶ port     ─┐  read a whole ─▶ tap ─▶ away? ─▶ upstream lock ─▶ swtpm
//!  libtss2 ──▶ port     ─┤  command                        (one command at a time)
//!  libtss2 ──▶ port + 1 ─┘  (control: answered here)              │
//!       ◀──────────────────────────────────── tap ◀───────────────┘
//! ```
//!
//! There is no resource manager in it: handles are the TPM's own, and one user can flush another's.
//! It runs on a thread of its own, so a blocked test or a busy runtime never delays the TPM.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;

use super::journal::{Direction, Entry, Journal, Recording};
use super::swtpm::{self, Sockets};
use super::tap::{Frame, OnResponse, Tap, Verdict};
use super::wire;
use crate::clock::BootInstant;
use crate::shutdown::CancellationToken;

/// The user number of commands that [`RelayHandle::exchange`] sends.
const OWN: u64 = 0;

/// Whether the TPM is there for its users. [`RelayHandle::exchange`] always reaches it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Presence {
    /// It is.
    Here,
    /// It accepts connections and commands and answers nothing until it is here again.
    Silent,
    /// Connections are closed, open ones and new ones.
    Gone,
}

/// An answer of the TPM.
#[derive(Clone, Debug)]
pub struct Answered {
    /// Its bytes.
    pub response: Vec<u8>,
    /// Before the command was sent.
    pub sent_at: BootInstant,
    /// After the answer had been received whole.
    pub answered_at: BootInstant,
}

/// A running relay; stops when dropped.
#[derive(Debug)]
pub struct Relay {
    handle: RelayHandle,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

/// What can be done with a relay; cloneable.
#[derive(Clone)]
pub struct RelayHandle {
    shared: Arc<Shared>,
}

struct Shared {
    sockets: Sockets,
    port: u16,
    runtime: tokio::runtime::Handle,
    upstream: tokio::sync::Mutex<Option<UnixStream>>,
    tap: Mutex<Option<Arc<dyn Tap>>>,
    journal: Mutex<Journal>,
    presence: watch::Sender<Presence>,
}

impl Relay {
    /// Listens on two consecutive free ports of 127.0.0.1 for users of the swtpm at `sockets`.
    ///
    /// # Errors
    /// When no two ports are free or the thread can't be started.
    pub fn start(sockets: &Sockets) -> io::Result<Self> {
        let (data, control) = listen()?;
        let port = data.local_addr()?.port();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let shared = Arc::new(Shared {
            sockets: sockets.clone(),
            port,
            runtime: runtime.handle().clone(),
            upstream: tokio::sync::Mutex::new(None),
            tap: Mutex::new(None),
            journal: Mutex::new(Journal::new()),
            presence: watch::Sender::new(Presence::Here),
        });
        let stop = CancellationToken::new();
        let (handle, stopped) = (RelayHandle { shared: shared.clone() }, stop.clone());
        let thread = std::thread::Builder::new().name("tpm-relay".to_owned()).spawn(move || {
            runtime.block_on(async {
                let (Ok(data), Ok(control)) = (TcpListener::from_std(data), TcpListener::from_std(control)) else {
                    return;
                };
                tokio::select! {
                    () = serve(data, shared) => {}
                    () = serve_control(control) => {}
                    () = stopped.cancelled() => {}
                }
            });
            // Dropping the runtime closes every connection.
        })?;
        Ok(Self { handle, stop, thread: Some(thread) })
    }

    /// A handle for others; it can outlive the relay and then gets errors.
    pub fn handle(&self) -> RelayHandle {
        self.handle.clone()
    }
}

impl Deref for Relay {
    type Target = RelayHandle;

    fn deref(&self) -> &RelayHandle {
        &self.handle
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl RelayHandle {
    /// The port for commands; control is the next one, as libtss2's swtpm TCTI expects.
    pub fn port(&self) -> u16 {
        self.shared.port
    }

    /// `swtpm:host=127.0.0.1,port=N`, for configuration files and tools.
    pub fn address(&self) -> String {
        format!("swtpm:host=127.0.0.1,port={}", self.port())
    }

    /// Runs one command past taps and [`Presence`], and waits for its turn like everybody.
    ///
    /// # Errors
    /// When swtpm is gone.
    pub async fn exchange(&self, command: &[u8]) -> io::Result<Answered> {
        let (shared, command) = (self.shared.clone(), command.to_vec());
        self.run(async move { shared.forward(OWN, &command).await }).await
    }

    /// As [`exchange`](Self::exchange), and the answer must be a success.
    ///
    /// # Errors
    /// When swtpm is gone or the TPM refuses.
    pub async fn execute(&self, command: &[u8]) -> io::Result<Answered> {
        let answered = self.exchange(command).await?;
        wire::check(&answered.response, &wire::name(wire::header_code(command))).map_err(io::Error::other)?;
        Ok(answered)
    }

    /// Resets the TPM under its users: `_TPM_Init`, TPM2_Startup(CLEAR), then `replay`, with no
    /// command of anybody else in between. The open connections stay. Returns when the reset was
    /// done, before the replay.
    ///
    /// # Errors
    /// When swtpm doesn't answer, or the TPM refuses one of the commands.
    pub async fn reset(&self, replay: Vec<Vec<u8>>) -> io::Result<BootInstant> {
        let mut commands = vec![wire::startup(wire::StartupType::Clear)];
        commands.extend(replay);
        self.power_cycle(Vec::new(), commands).await
    }

    /// Suspends and resumes: TPM2_Shutdown(STATE), `_TPM_Init`, TPM2_Startup(STATE).
    ///
    /// # Errors
    /// As [`reset`](Self::reset).
    pub async fn suspend(&self) -> io::Result<BootInstant> {
        let state = wire::StartupType::State;
        self.power_cycle(vec![wire::shutdown(state)], vec![wire::startup(state)]).await
    }

    /// Sets, or with `None` takes away, the tap.
    pub fn set_tap(&self, tap: Option<Arc<dyn Tap>>) {
        *lock(&self.shared.tap) = tap;
    }

    /// Sends the TPM away, or brings it back.
    pub fn set_presence(&self, presence: Presence) {
        self.shared.presence.send_replace(presence);
    }

    /// Sends the TPM away for this long.
    pub async fn away(&self, how: Presence, duration: Duration) {
        self.set_presence(how);
        tokio::time::sleep(duration).await;
        self.set_presence(Presence::Here);
    }

    /// How many commands users sent, by the command's name. The relay's own don't count.
    pub fn counts(&self) -> BTreeMap<String, u64> {
        lock(&self.shared.journal).counts.iter().map(|(code, count)| (wire::name(*code), *count)).collect()
    }

    /// Sets all counts to zero.
    pub fn reset_counts(&self) {
        lock(&self.shared.journal).counts.clear();
    }

    /// What is kept from now on.
    pub fn record(&self, recording: Recording) {
        lock(&self.shared.journal).recording = recording;
    }

    /// What was kept so far.
    pub fn journal(&self) -> Vec<Entry> {
        lock(&self.shared.journal).entries.clone()
    }

    /// What was kept so far; the journal is empty then.
    pub fn take_journal(&self) -> Vec<Entry> {
        std::mem::take(&mut lock(&self.shared.journal).entries)
    }

    async fn power_cycle(&self, before: Vec<Vec<u8>>, after: Vec<Vec<u8>>) -> io::Result<BootInstant> {
        let shared = self.shared.clone();
        self.run(async move {
            let mut upstream = shared.upstream.lock().await;
            let run = async |upstream: &mut Option<UnixStream>, command: &[u8]| {
                let answered = shared.forward_on(upstream, OWN, command).await?;
                wire::check(&answered.response, &wire::name(wire::header_code(command))).map_err(io::Error::other)
            };
            for command in &before {
                run(&mut upstream, command).await?;
            }
            let control = shared.sockets.control.clone();
            tokio::task::spawn_blocking(move || swtpm::init(&control)).await.map_err(io::Error::other)??;
            let done = BootInstant::now();
            for command in &after {
                run(&mut upstream, command).await?;
            }
            Ok(done)
        })
        .await
    }

    /// On the relay's own runtime: a caller that gives up leaves no half-finished command behind.
    async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = io::Result<T>> + Send + 'static,
    ) -> io::Result<T> {
        self.shared.runtime.spawn(work).await.unwrap_or_else(|_| Err(io::Error::other("the relay was stopped")))
    }
}

impl fmt::Debug for RelayHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RelayHandle").field("port", &self.port()).finish_non_exhaustive()
    }
}

impl Shared {
    /// Takes the TPM for one command.
    async fn forward(&self, user: u64, command: &[u8]) -> io::Result<Answered> {
        self.forward_on(&mut *self.upstream.lock().await, user, command).await
    }

    async fn forward_on(&self, upstream: &mut Option<UnixStream>, user: u64, command: &[u8]) -> io::Result<Answered> {
        // A restarted swtpm left a dead connection: seen before the command is sent, because
        // afterwards nobody could tell whether it was executed.
        let mut stream = match upstream.take().filter(is_open) {
            Some(stream) => stream,
            None => UnixStream::connect(&self.sockets.data).await?,
        };
        let code = wire::header_code(command);
        let sent_at = self.note(user, Direction::ToTpm, code, command);
        stream.write_all(command).await?;
        let response = read_frame(&mut stream).await?.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
        let answered_at = self.note(user, Direction::FromTpm, code, &response);
        // Only a connection in step is kept.
        *upstream = Some(stream);
        Ok(Answered { response, sent_at, answered_at })
    }

    fn note(&self, user: u64, direction: Direction, command: u32, bytes: &[u8]) -> BootInstant {
        lock(&self.journal).note(user, direction, command, bytes)
    }

    /// One user's connection, until it ends.
    async fn serve_user(&self, user: u64, mut stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let mut presence = self.presence.subscribe();
        loop {
            let command = tokio::select! {
                command = read_frame(&mut stream) => command?,
                _ = presence.wait_for(|now| *now == Presence::Gone) => return Ok(()),
            };
            let Some(bytes) = command else { return Ok(()) };
            let code = wire::header_code(&bytes);
            let frame = Frame { user, at: BootInstant::now(), code, bytes };
            *lock(&self.journal).counts.entry(code).or_default() += 1;
            let tap = lock(&self.tap).clone();
            let verdict = tap.as_ref().map_or(Verdict::Forward, |tap| tap.on_command(&frame));
            let mut command = frame.bytes.clone();
            match verdict {
                Verdict::Forward => {}
                Verdict::Delay(duration) => tokio::time::sleep(duration).await,
                Verdict::Wait(done) => done.await,
                Verdict::Answer(bytes) => {
                    self.note(user, Direction::FromUser, code, &frame.bytes);
                    self.note(user, Direction::ToUser, code, &bytes);
                    stream.write_all(&bytes).await?;
                    continue;
                }
                Verdict::Drop => {
                    self.note(user, Direction::FromUser, code, &frame.bytes);
                    continue;
                }
                Verdict::Replace(bytes) => {
                    self.note(user, Direction::FromUser, code, &frame.bytes);
                    command = bytes;
                }
                Verdict::CloseConnection => {
                    self.note(user, Direction::FromUser, code, &frame.bytes);
                    return Ok(());
                }
            }
            if *presence.wait_for(|now| *now != Presence::Silent).await.map_err(io::Error::other)? == Presence::Gone {
                return Ok(());
            }
            let response = self.forward(user, &command).await?.response;
            match tap.as_ref().map_or(OnResponse::Deliver, |tap| tap.on_response(&frame, &response)) {
                OnResponse::Deliver => stream.write_all(&response).await?,
                OnResponse::Delay(duration) => {
                    tokio::time::sleep(duration).await;
                    stream.write_all(&response).await?;
                }
                OnResponse::Wait(done) => {
                    done.await;
                    stream.write_all(&response).await?;
                }
                OnResponse::Drop => {}
                OnResponse::Replace(bytes) => {
                    self.note(user, Direction::ToUser, code, &bytes);
                    stream.write_all(&bytes).await?;
                }
                OnResponse::ReplaceAndClose(bytes) => {
                    self.note(user, Direction::ToUser, code, &bytes);
                    stream.write_all(&bytes).await?;
                    return Ok(());
                }
                OnResponse::CloseConnection => return Ok(()),
            }
        }
    }
}

async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let mut user = OWN;
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        user += 1;
        let shared = shared.clone();
        tokio::spawn(async move {
            // A user that goes away, or a TPM that does: either way the connection is over.
            let _ = shared.serve_user(user, stream).await;
        });
    }
}

/// swtpm's control protocol as far as libtss2 speaks it. The rest is refused: a user of the TPM
/// doesn't get to reset it or to read its state.
async fn serve_control(listener: TcpListener) {
    loop {
        let Ok((mut stream, _)) = listener.accept().await else { continue };
        tokio::spawn(async move {
            const SUCCESS: u32 = 0;
            const BAD_ORDINAL: u32 = 0x0A;
            const BAD_LOCALITY: u32 = 0x3D;
            while let Ok(command) = stream.read_u32().await {
                let answer = match command {
                    // CMD_GET_CAPABILITY: SET_LOCALITY and CANCEL, in 64 bits.
                    1 => stream.write_u64(0b10_1000).await,
                    // CMD_SET_LOCALITY
                    5 => match stream.read_u8().await {
                        Ok(0) => stream.write_u32(SUCCESS).await,
                        Ok(_) => stream.write_u32(BAD_LOCALITY).await,
                        Err(e) => Err(e),
                    },
                    // CMD_CANCEL_TPM_CMD: commands are short; there is nothing to cancel.
                    9 => stream.write_u32(SUCCESS).await,
                    _ => stream.write_u32(BAD_ORDINAL).await,
                };
                // What follows an unknown command has an unknown length.
                if answer.is_err() || !matches!(command, 1 | 5 | 9) {
                    return;
                }
            }
        });
    }
}

/// A whole command or answer; `None` if the connection ends before one begins.
async fn read_frame(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Vec<u8>>> {
    let mut header = [0; wire::HEADER];
    let (first, rest) = header.split_at_mut(1);
    if stream.read(first).await? == 0 {
        return Ok(None);
    }
    stream.read_exact(rest).await?;
    let size = wire::header_size(&header).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
    let mut frame = header.to_vec();
    frame.resize(size, 0);
    stream.read_exact(frame.get_mut(wire::HEADER..).unwrap_or_default()).await?;
    Ok(Some(frame))
}

/// Whether the peer is still there and nothing unasked has come.
fn is_open(stream: &UnixStream) -> bool {
    matches!(stream.try_read(&mut [0]), Err(e) if e.kind() == io::ErrorKind::WouldBlock)
}

/// Two listeners on consecutive ports.
fn listen() -> io::Result<(std::net::TcpListener, std::net::TcpListener)> {
    let mut problem = io::Error::other("no two consecutive ports are free");
    for _ in 0..256 {
        let data = std::net::TcpListener::bind(("127.0.0.1", 0))?;
        let Some(next) = data.local_addr()?.port().checked_add(1) else { continue };
        match std::net::TcpListener::bind(("127.0.0.1", next)) {
            Ok(control) => {
                data.set_nonblocking(true)?;
                control.set_nonblocking(true)?;
                return Ok((data, control));
            }
            Err(e) => problem = e,
        }
    }
    Err(problem)
}

/// A poisoned lock means that a tap panicked in a test; the data under it is whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
