//! Tells the control plane which tasks ended, until it has heard.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};

use crate::protocol::{Enrolled, TaskEnd, TasksEnded};
use crate::secret::random;
use crate::shutdown::CancellationToken;

/// Ends in one message.
const BATCH: usize = 256;

/// Ends that wait to be told. More than these run out by themselves, as their credentials do.
const WAITING: usize = 16 << 10;

/// The pauses between tries: the control plane hears of an end within 10 s of its return (promise 8).
const PAUSES_MS: [u64; 6] = [50, 100, 250, 1_000, 2_000, 4_000];

/// What is still to be told.
#[derive(Debug)]
pub(super) struct Teller {
    run: [u8; 16],
    waiting: Mutex<VecDeque<(String, TaskEnd)>>,
    /// Rung when there is something to tell.
    more: Notify,
    /// Rung when something was heard.
    heard: Notify,
}

impl Teller {
    pub(super) fn new(run: [u8; 16]) -> Self {
        Self { run, waiting: Mutex::default(), more: Notify::new(), heard: Notify::new() }
    }

    /// Will tell that the task of this id ended.
    pub(super) fn tell(&self, id: String, end: TaskEnd) {
        let mut waiting = self.waiting();
        if waiting.len() >= WAITING {
            tracing::warn!(waiting = WAITING, "too many ends of tasks wait to be told; the oldest is left to run out");
            waiting.pop_front();
        }
        waiting.push_back((id, end));
        drop(waiting);
        self.more.notify_one();
    }

    /// Waits until the control plane has heard of the ends of all tasks of this id: it can be taken again.
    pub(super) async fn heard_of(&self, id: &str) {
        loop {
            let heard = self.heard.notified();
            if !self.waiting().iter().any(|(waiting, _)| waiting == id) {
                return;
            }
            heard.await;
        }
    }

    /// Tells, until `token` is cancelled: first that nothing of an earlier run is left.
    pub(super) async fn run(&self, mut client: watch::Receiver<Option<Enrolled>>, token: CancellationToken) {
        tokio::select! {
            () = token.cancelled() => {}
            () = async {
                let mut introduced = false;
                let mut failures = 0;
                loop {
                    let Ok(present) = client.wait_for(Option::is_some).await.map(|client| client.clone()) else { return };
                    let Some(present) = present else { continue };
                    let told = self.next(introduced).await;
                    match present.tasks_ended(&told).await {
                        Ok(_) => {
                            (introduced, failures) = (true, 0);
                            self.forget(&told.tasks);
                        }
                        Err(failure) => {
                            tracing::debug!(%failure, waiting = self.waiting().len(), "ends of tasks can't be told now");
                            let pause = PAUSES_MS.get(failures).or(PAUSES_MS.last()).copied().unwrap_or(1_000);
                            failures += 1;
                            let [byte] = random::<1>().unwrap_or([128]);
                            let pause = Duration::from_millis(pause + pause * u64::from(byte) / 1024);
                            tokio::time::sleep(pause).await;
                        }
                    }
                }
            } => {}
        }
    }

    /// What is to be told next; waits for it, unless this is the first word.
    async fn next(&self, introduced: bool) -> TasksEnded {
        loop {
            let tasks: Vec<_> = self.waiting().iter().take(BATCH).map(|(_, end)| end.clone()).collect();
            if !introduced || !tasks.is_empty() {
                return TasksEnded { run: self.run, tasks };
            }
            self.more.notified().await;
        }
    }

    fn forget(&self, told: &[TaskEnd]) {
        self.waiting().retain(|(_, end)| !told.contains(end));
        self.heard.notify_waiters();
    }

    fn waiting(&self) -> MutexGuard<'_, VecDeque<(String, TaskEnd)>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codes::{self, Refusal};

    #[tokio::test]
    async fn an_id_is_free_once_its_end_was_heard() {
        let teller = Teller::new([1; 16]);
        let end = |number| TaskEnd { number, refusal: Refusal::new(codes::TASK_ENDED, "code 0") };
        assert_eq!(teller.next(false).await.tasks, [], "the first word may have nothing else to say");
        teller.heard_of("a").await;
        for number in 0..300 {
            teller.tell(if number == 299 { "a" } else { "b" }.to_owned(), end(number));
        }
        let first = teller.next(true).await;
        assert_eq!(first.tasks.len(), BATCH);
        let waiting = tokio::time::timeout(Duration::from_millis(20), teller.heard_of("a"));
        assert!(waiting.await.is_err());
        teller.forget(&first.tasks);
        let rest = teller.next(true).await;
        assert_eq!(rest.tasks.len(), 300 - BATCH);
        let (_, ()) = tokio::join!(teller.heard_of("a"), async { teller.forget(&rest.tasks) });
        assert!(teller.waiting().is_empty());
        (0..WAITING as u64 + 1).for_each(|number| teller.tell("c".to_owned(), end(number)));
        assert_eq!(teller.waiting().len(), WAITING);
    }
}
