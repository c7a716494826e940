//! The thread and its queue; the TPM itself is in `tests/tpm.rs`.

use std::sync::atomic::AtomicUsize;

use super::*;

/// A device whose signatures wait for permission: what counts here is the thread, not the TPM.
struct Slow {
    pulse: Arc<Pulse>,
    gate: Arc<Gate>,
    number: usize,
}

#[derive(Default)]
struct Gate {
    /// Devices with a lower number wait.
    open_from: AtomicUsize,
    devices: AtomicUsize,
    calls: AtomicUsize,
    closed: AtomicUsize,
}

impl Device for Slow {
    fn identity(&mut self) -> Result<TpmIdentity, TpmError> {
        Err(TpmError::Reset)
    }
    fn read_pcrs(&mut self, _: PcrSelection) -> Result<PcrReading, TpmError> {
        Err(TpmError::Reset)
    }
    fn quote(&mut self, _: PcrSelection, _: [u8; 32]) -> Result<Signed, TpmError> {
        Err(TpmError::Reset)
    }
    fn certify_node_key(&mut self, _: [u8; 32]) -> Result<Signed, TpmError> {
        Err(TpmError::Reset)
    }
    fn activate(&mut self, _: &[u8], _: &[u8]) -> Result<Zeroizing<Vec<u8>>, TpmError> {
        Err(TpmError::Reset)
    }
    fn sign(&mut self, _: [u8; 32]) -> Result<p256::ecdsa::Signature, TpmError> {
        self.gate.calls.fetch_add(1, Ordering::SeqCst);
        self.pulse.during("TPM2_Sign", || {
            while self.gate.open_from.load(Ordering::SeqCst) > self.number {
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        p256::ecdsa::Signature::from_slice(&[1; 64]).map_err(|e| TpmError::Unavailable(e.to_string()))
    }
    fn tend(&mut self) -> Option<Duration> {
        None
    }
    fn close(&mut self) {
        self.gate.closed.fetch_add(1, Ordering::SeqCst);
    }
}

fn spawn(open_from: usize, deadline: u64, patience: u64) -> (Tpm, TpmThread, Arc<Gate>) {
    let gate = Arc::new(Gate { open_from: open_from.into(), ..Gate::default() });
    let make: Make = Box::new({
        let gate = Arc::clone(&gate);
        move |pulse| {
            let number = gate.devices.fetch_add(1, Ordering::SeqCst);
            Box::new(Slow { pulse: Arc::clone(pulse), gate: Arc::clone(&gate), number })
        }
    });
    let millis = Duration::from_millis;
    let (tpm, thread) = Tpm::spawn_with(make, millis(deadline), millis(patience)).unwrap();
    (tpm, thread, gate)
}

fn eventually(what: impl Fn() -> bool) {
    let until = Instant::now() + Duration::from_secs(10);
    while !what() {
        assert!(Instant::now() < until);
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[tokio::test]
async fn a_stuck_thread_is_replaced_and_ends_when_its_call_returns() {
    let (tpm, thread, gate) = spawn(1, 50, 200);
    let error = tpm.sign([1; 32]).await.unwrap_err();
    assert!(error.to_string().contains("TPM2_Sign has taken"), "{error}");
    std::thread::sleep(Duration::from_millis(200));
    // The next device is not held up; a loaded machine may need more than one try.
    let mut answer = tpm.sign([1; 32]).await;
    for _ in 0..100 {
        if answer.is_ok() {
            break;
        }
        answer = tpm.sign_blocking([1; 32]);
    }
    answer.unwrap();
    assert_eq!(gate.closed.load(Ordering::SeqCst), 0);
    gate.open_from.store(0, Ordering::SeqCst);
    eventually(|| gate.closed.load(Ordering::SeqCst) == 1);
    thread.stop(Duration::from_secs(10)).unwrap();
    assert_eq!(gate.closed.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn threads_are_not_given_up_without_end() {
    let (tpm, _thread, gate) = spawn(usize::MAX, 1, 5);
    let error = loop {
        let error = tpm.sign([1; 32]).await.unwrap_err();
        if error.to_string().contains("as others before") {
            break error;
        }
    };
    assert!(error.is_unavailable());
    assert_eq!(gate.devices.load(Ordering::SeqCst), 1 + MOST_STUCK);
    gate.open_from.store(0, Ordering::SeqCst);
    eventually(|| tpm.sign_blocking([1; 32]).is_ok());
}

#[tokio::test]
async fn a_request_whose_deadline_has_passed_is_not_sent() {
    let (tpm, thread, gate) = spawn(1, 100, 60_000);
    for _ in 0..3 {
        assert!(tpm.sign([1; 32]).await.is_err());
        assert!(tpm.sign_blocking([1; 32]).is_err());
    }
    gate.open_from.store(0, Ordering::SeqCst);
    eventually(|| tpm.sign_blocking([1; 32]).is_ok());
    // The first call and what came after the gate opened; none of the five in between.
    let sent = gate.calls.load(Ordering::SeqCst);
    assert!(sent < 6, "{sent}");
    thread.stop(Duration::from_secs(10)).unwrap();
}

#[tokio::test]
async fn a_full_queue_answers_within_the_deadline() {
    let (tpm, _thread, gate) = spawn(1, 200, 60_000);
    let asked = Instant::now();
    let waiting: Vec<_> = (0..2 * QUEUE)
        .map(|_| {
            let tpm = tpm.clone();
            tokio::spawn(async move { tpm.sign([1; 32]).await })
        })
        .collect();
    for answer in waiting {
        assert!(matches!(answer.await.unwrap(), Err(TpmError::Unavailable(_))));
    }
    assert!(tpm.sign_blocking([1; 32]).is_err());
    assert!(asked.elapsed() < Duration::from_secs(10));
    gate.open_from.store(0, Ordering::SeqCst);
}

#[tokio::test]
async fn stopping_waits_no_longer_than_told_and_refuses_what_comes_after() {
    let (tpm, thread, gate) = spawn(1, 20, 60_000);
    assert!(tpm.sign([1; 32]).await.is_err());
    assert!(thread.stop(Duration::from_millis(50)).is_err());
    let error = tpm.sign([1; 32]).await.unwrap_err();
    assert!(error.to_string().contains("stopping"), "{error}");
    assert!(tpm.sign_blocking([1; 32]).is_err());
    gate.open_from.store(0, Ordering::SeqCst);
    eventually(|| gate.closed.load(Ordering::SeqCst) == 1);
}

#[tokio::test]
async fn a_dropped_thread_ends_and_flushes() {
    let (tpm, thread, gate) = spawn(0, 1000, 60_000);
    tpm.sign([1; 32]).await.unwrap();
    drop(thread);
    eventually(|| gate.closed.load(Ordering::SeqCst) == 1);
}
