//! The handle to the TPM's thread.
//!
//! One thread named `tpm` owns the ESAPI context, since its calls block. Requests wait in a bounded
//! queue, each with a deadline: one whose deadline has passed is not sent to the TPM any more. A
//! thread stuck in a call is given up and replaced; it ends by itself when the call returns.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::error::{TryRecvError, TrySendError};
use tokio::sync::{mpsc, oneshot};

use super::connection::Pulse;
pub use super::connection::TpmAddress;
use super::device::{Device, EsysDevice, Pin};
use super::{PcrReading, PcrSelection, Signed, TpmError, TpmIdentity};
use crate::identity::TrustDomain;
use crate::secret::Zeroizing;

/// How many requests may wait.
const QUEUE: usize = 64;

/// How many stuck threads may exist at a time before no more are started.
const MOST_STUCK: usize = 4;

/// How often the thread looks for requests while the TPM is away.
const GLANCE: Duration = Duration::from_millis(20);

/// A handle to the TPM; clones share one thread, one queue and one deadline per request.
///
/// Every method fails with [`TpmError::Unavailable`] when there is no answer within the deadline.
#[derive(Clone)]
pub struct Tpm {
    shared: Arc<Shared>,
}

/// The right to end the TPM's thread. Dropping it tells the thread to end without waiting for it.
#[derive(Debug)]
pub struct TpmThread {
    shared: Arc<Shared>,
}

impl Tpm {
    /// Starts the thread. It opens the TPM at the first request, so a missing device is no error
    /// here, and opens it again by itself whenever it is lost.
    ///
    /// `deadline` is for a single request. The EK, AK and node key that the first opening finds
    /// are pinned: later ones must find the same.
    ///
    /// # Errors
    /// [`TpmError::Unavailable`] if the thread can't be started.
    pub fn spawn(
        address: TpmAddress,
        deadline: Duration,
        trust_domain: &TrustDomain,
    ) -> Result<(Self, TpmThread), TpmError> {
        let trust_domain = trust_domain.as_str().to_owned();
        let patience = address.patience();
        let pin = Pin::default();
        let make = move |pulse: &Arc<Pulse>| -> Box<dyn Device> {
            Box::new(EsysDevice::new(address.clone(), trust_domain.clone(), Arc::clone(pulse), Arc::clone(&pin)))
        };
        Self::spawn_with(Box::new(make), deadline, patience)
    }

    fn spawn_with(make: Make, deadline: Duration, patience: Duration) -> Result<(Self, TpmThread), TpmError> {
        let make: Arc<Make> = Arc::new(make);
        let worker = Worker::start(&make)?;
        let shared = Arc::new(Shared {
            make,
            deadline,
            patience,
            state: Mutex::new(Workers { worker, stuck: Vec::new(), stopped: false }),
        });
        Ok((Self { shared: Arc::clone(&shared) }, TpmThread { shared }))
    }

    /// The keys in use and where they come from.
    ///
    /// The first call makes the TPM's other certified EKs too, to name them: on a discrete part
    /// that can take longer than the deadline, and then a later call has the answer.
    ///
    /// # Errors
    /// See [`TpmError`].
    pub async fn identity(&self) -> Result<TpmIdentity, TpmError> {
        self.ask(|device| device.identity()).await
    }

    /// An authentic reading of PCRs, begun after this call: one command if nothing was extended
    /// since the last one.
    ///
    /// # Errors
    /// [`TpmError::Reset`] for the request that finds the TPM reset; the next one reads in a new
    /// session, with new counts. See [`TpmError`] for the rest.
    pub async fn read_pcrs(&self, selection: PcrSelection) -> Result<PcrReading, TpmError> {
        self.ask(move |device| device.read_pcrs(selection)).await
    }

    /// TPM2_Quote by the attestation key (Part 3, 18.4); `qualifying_data` becomes extraData.
    ///
    /// # Errors
    /// See [`TpmError`].
    pub async fn quote(&self, selection: PcrSelection, qualifying_data: [u8; 32]) -> Result<Signed, TpmError> {
        self.ask(move |device| device.quote(selection, qualifying_data)).await
    }

    /// TPM2_Certify of the node key by the attestation key (Part 3, 18.2).
    ///
    /// # Errors
    /// See [`TpmError`].
    pub async fn certify_node_key(&self, qualifying_data: [u8; 32]) -> Result<Signed, TpmError> {
        self.ask(move |device| device.certify_node_key(qualifying_data)).await
    }

    /// TPM2_ActivateCredential with EK and attestation key (Part 3, 12.5): takes the contents of
    /// TPM2B_ID_OBJECT and TPM2B_ENCRYPTED_SECRET, gives the secret, at most 48 bytes.
    ///
    /// # Errors
    /// [`TpmError::Refused`] if the credential was made for other keys. See [`TpmError`].
    pub async fn activate(
        &self,
        credential: Vec<u8>,
        encrypted_secret: Vec<u8>,
    ) -> Result<Zeroizing<Vec<u8>>, TpmError> {
        self.ask(move |device| device.activate(&credential, &encrypted_secret)).await
    }

    /// The node key's ECDSA signature over a SHA-256 digest.
    ///
    /// # Errors
    /// See [`TpmError`].
    pub async fn sign(&self, digest: [u8; 32]) -> Result<p256::ecdsa::Signature, TpmError> {
        self.ask(move |device| device.sign(digest)).await
    }

    /// [`Self::sign`] for callers that can't wait asynchronously, as rustls' signer. It blocks the
    /// calling thread for up to the deadline.
    ///
    /// # Errors
    /// See [`TpmError`].
    pub fn sign_blocking(&self, digest: [u8; 32]) -> Result<p256::ecdsa::Signature, TpmError> {
        let until = Instant::now() + self.shared.deadline;
        let (reply, answer) = std::sync::mpsc::sync_channel(1);
        let work: Work = Box::new(move |device| {
            // The caller may be gone: then nobody is interested.
            let _ = reply.send(device.sign(digest));
        });
        let mut job = Job { until, work };
        loop {
            // tokio's own blocking calls panic inside a runtime, which is where rustls calls from.
            match self.shared.jobs()?.try_send(job) {
                Ok(()) => break,
                Err(TrySendError::Full(back)) if Instant::now() < until => job = back,
                Err(_) => return Err(self.shared.silent()),
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        answer
            .recv_timeout(until.saturating_duration_since(Instant::now()))
            .unwrap_or_else(|_| Err(self.shared.silent()))
    }

    async fn ask<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut dyn Device) -> Result<T, TpmError> + Send + 'static,
    ) -> Result<T, TpmError> {
        let until = Instant::now() + self.shared.deadline;
        let (reply, answer) = oneshot::channel();
        let work: Work = Box::new(move |device| {
            if !reply.is_closed() {
                let _ = reply.send(work(device));
            }
        });
        let jobs = self.shared.jobs()?;
        let answered = tokio::time::timeout_at(until.into(), async move {
            jobs.send(Job { until, work }).await.ok()?;
            // The thread may end while this waits; it must not be kept alive by its own clients.
            drop(jobs);
            answer.await.ok()
        });
        answered.await.ok().flatten().unwrap_or_else(|| Err(self.shared.silent()))
    }
}

impl fmt::Debug for Tpm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tpm").field("deadline", &self.shared.deadline).finish_non_exhaustive()
    }
}

impl TpmThread {
    /// Flushes the TPM's keys and sessions and waits for the thread's end, at most `within`.
    ///
    /// # Errors
    /// [`TpmError::Unavailable`] if the thread is still inside a call by then.
    pub fn stop(self, within: Duration) -> Result<(), TpmError> {
        let until = Instant::now() + within;
        let Some(thread) = self.shared.stop() else { return Ok(()) };
        while !thread.is_finished() {
            if Instant::now() >= until {
                return Err(self.shared.silent());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        thread.join().map_err(|_| TpmError::Unavailable("its thread panicked".to_owned()))
    }
}

impl Drop for TpmThread {
    fn drop(&mut self) {
        drop(self.shared.stop());
    }
}

type Make = Box<dyn Fn(&Arc<Pulse>) -> Box<dyn Device> + Send + Sync>;
type Work = Box<dyn FnOnce(&mut dyn Device) + Send>;

/// A request: dropped unrun once its time is over.
struct Job {
    until: Instant,
    work: Work,
}

/// What handles share.
struct Shared {
    make: Arc<Make>,
    deadline: Duration,
    /// How long a call may be inside libtss2 before its thread is given up.
    patience: Duration,
    state: Mutex<Workers>,
}

struct Workers {
    worker: Worker,
    /// Threads given up that have not ended yet.
    stuck: Vec<JoinHandle<()>>,
    stopped: bool,
}

struct Worker {
    /// None once the thread was told to end.
    jobs: Option<mpsc::Sender<Job>>,
    pulse: Arc<Pulse>,
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Workers> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The queue of a thread that isn't stuck.
    fn jobs(&self) -> Result<mpsc::Sender<Job>, TpmError> {
        let mut state = self.lock();
        if state.stopped {
            return Err(TpmError::Unavailable("the agent is stopping".to_owned()));
        }
        state.stuck.retain(|thread| !thread.is_finished());
        let inside = state.worker.pulse.inside().filter(|(_, time)| *time > self.patience);
        let ended = state.worker.thread.as_ref().is_none_or(JoinHandle::is_finished);
        if let Some((command, time)) = inside
            && !ended
        {
            if state.stuck.len() >= MOST_STUCK {
                return Err(TpmError::Unavailable(format!(
                    "{command} has hung for {} s, as others before",
                    time.as_secs()
                )));
            }
            tracing::error!(command, seconds = time.as_secs(), "a TPM command hangs: its thread is given up");
        }
        if ended || inside.is_some() {
            let fresh = Worker::start(&self.make)?;
            let mut old = std::mem::replace(&mut state.worker, fresh);
            old.pulse.give_up();
            state.stuck.extend(old.end());
        }
        state.worker.jobs.clone().ok_or_else(|| TpmError::Unavailable("its thread has ended".to_owned()))
    }

    /// Why there was no answer.
    fn silent(&self) -> TpmError {
        let state = self.lock();
        let words = match state.worker.pulse.inside() {
            _ if state.stopped => "the agent is stopping".to_owned(),
            Some((command, time)) => format!(
                "no answer within {:.1} s, {command} has taken {:.1} s so far",
                self.deadline.as_secs_f32(),
                time.as_secs_f32()
            ),
            None => format!("no answer within {:.1} s", self.deadline.as_secs_f32()),
        };
        TpmError::Unavailable(words)
    }

    fn stop(&self) -> Option<JoinHandle<()>> {
        let mut state = self.lock();
        state.stopped = true;
        state.worker.end()
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("deadline", &self.deadline).finish_non_exhaustive()
    }
}

impl Worker {
    fn start(make: &Arc<Make>) -> Result<Self, TpmError> {
        let (jobs, queue) = mpsc::channel(QUEUE);
        let pulse = Arc::new(Pulse::default());
        let end = Arc::new(AtomicBool::new(false));
        let thread = std::thread::Builder::new()
            .name("tpm".to_owned())
            .spawn({
                let (make, pulse, end) = (Arc::clone(make), Arc::clone(&pulse), Arc::clone(&end));
                move || serve(make(&pulse).as_mut(), queue, &end)
            })
            .map_err(|e| TpmError::Unavailable(format!("its thread can't be started: {e}")))?;
        Ok(Self { jobs: Some(jobs), pulse, end, thread: Some(thread) })
    }

    /// Tells the thread to end after the call it is in.
    fn end(&mut self) -> Option<JoinHandle<()>> {
        self.end.store(true, Ordering::Release);
        // Without senders the thread wakes from an empty queue.
        self.jobs = None;
        self.thread.take()
    }
}

/// The thread: runs requests in order, and between them opens a lost TPM again.
fn serve(device: &mut dyn Device, mut queue: mpsc::Receiver<Job>, end: &AtomicBool) {
    while !end.load(Ordering::Acquire) {
        let job = match queue.try_recv() {
            Ok(job) => Some(job),
            Err(TryRecvError::Disconnected) => break,
            Err(TryRecvError::Empty) => match device.tend() {
                None => match queue.blocking_recv() {
                    Some(job) => Some(job),
                    None => break,
                },
                Some(pause) => {
                    std::thread::sleep(pause.min(GLANCE));
                    None
                }
            },
        };
        if let Some(job) = job
            && Instant::now() < job.until
            && !end.load(Ordering::Acquire)
        {
            (job.work)(device);
        }
    }
    device.close();
}

#[cfg(test)]
mod tests;
