//! Tells the control plane which tasks ended, until it has heard.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};

use crate::codes::{self, Code};
use crate::protocol::{Enrolled, Failure, TaskEnd, TasksEnded};
use crate::secret::random;
use crate::shutdown::CancellationToken;

/// Ends in one message.
const BATCH: usize = 256;

/// Ends that wait to be told. More than these run out by themselves, as their credentials do.
const WAITING: usize = 16 << 10;

/// The pauses between tries: the control plane hears of an end within 10 s of its return (promise 8).
const PAUSES_MS: [u64; 6] = [50, 100, 250, 1_000, 2_000, 4_000];

/// Bytes of each text of a reason: 256 of them, with paths that processes chose, are within a message.
const TEXT: usize = 512;

/// A workload and its task's id.
pub(super) type Key = (String, String);

/// What is still to be told.
#[derive(Debug)]
pub(super) struct Teller {
    run: [u8; 16],
    waiting: Mutex<VecDeque<Waiting>>,
    /// Rung when there is something to tell.
    more: Notify,
    /// Rung when something was heard.
    heard: Notify,
}

#[derive(Debug)]
struct Waiting {
    key: Key,
    end: TaskEnd,
    /// Nobody was given anything for it.
    nothing: bool,
}

impl Teller {
    pub(super) fn new(run: [u8; 16]) -> Self {
        Self { run, waiting: Mutex::default(), more: Notify::new(), heard: Notify::new() }
    }

    /// Will tell that a task ended.
    pub(super) fn tell(&self, key: Key, end: TaskEnd) {
        self.add(key, end, false);
    }

    /// Will tell that a task ended before it was given anything. Where too many wait, these go first.
    pub(super) fn tell_nothing(&self, key: Key, end: TaskEnd) {
        self.add(key, end, true);
    }

    fn add(&self, key: Key, end: TaskEnd, nothing: bool) {
        let end = TaskEnd { refusal: end.refusal.clipped(TEXT), ..end };
        let mut waiting = self.waiting();
        waiting.push_back(Waiting { key, end, nothing });
        if waiting.len() > WAITING {
            tracing::warn!(waiting = WAITING, "too many ends of tasks wait to be told; one is left to run out");
            let least = waiting.iter().position(|one| one.nothing).unwrap_or(0);
            waiting.remove(least);
        }
        drop(waiting);
        self.more.notify_one();
    }

    /// Waits until the control plane has heard of the ends of all tasks of this name: it can be taken again.
    pub(super) async fn heard_of(&self, key: &Key) {
        loop {
            let heard = self.heard.notified();
            if !self.waiting().iter().any(|waiting| waiting.key == *key) {
                return;
            }
            heard.await;
        }
    }

    /// Tells, until `token` is cancelled: first that nothing of an earlier run is left.
    pub(super) async fn run(&self, client: watch::Receiver<Option<Enrolled>>, token: CancellationToken) {
        tokio::select! {
            () = token.cancelled() => {}
            () = self.go_on(client) => {}
        }
    }

    async fn go_on(&self, mut client: watch::Receiver<Option<Enrolled>>) {
        let (mut introduced, mut failures, mut most) = (false, 0, BATCH);
        loop {
            let Ok(present) = client.wait_for(Option::is_some).await.map(|client| client.clone()) else { return };
            let Some(present) = present else { continue };
            let told = self.next(introduced, most).await;
            let failure = match present.tasks_ended(&told).await {
                Ok(_) => {
                    (introduced, failures, most) = (true, 0, BATCH.min(most * 2));
                    self.forget(&told.tasks);
                    continue;
                }
                Err(failure) => failure,
            };
            tracing::debug!(%failure, waiting = self.waiting().len(), "ends of tasks can't be told now");
            if let Failure::Refused(refused) = &failure {
                most = self.refused(&told.tasks, refused.refusal.code);
            }
            let pause = PAUSES_MS.get(failures).or(PAUSES_MS.last()).copied().unwrap_or(1_000);
            failures += 1;
            let [byte] = random::<1>().unwrap_or([128]);
            tokio::time::sleep(Duration::from_millis(pause + pause * u64::from(byte) / 1024)).await;
        }
    }

    /// What is to be told next, at most so many; waits for it, unless this is the first word.
    async fn next(&self, introduced: bool, most: usize) -> TasksEnded {
        loop {
            let tasks: Vec<_> = self.waiting().iter().take(most).map(|waiting| waiting.end.clone()).collect();
            if !introduced || !tasks.is_empty() {
                return TasksEnded { run: self.run, tasks };
            }
            self.more.notified().await;
        }
    }

    /// These were refused: says how many to tell next. One that can't be told must not keep all others from
    /// being told, so it is found by halves. Refused alone it goes behind the others; if it is the message that
    /// is wrong, it is left to run out.
    fn refused(&self, told: &[TaskEnd], code: Code) -> usize {
        let [alone] = told else { return (told.len() / 2).max(1) };
        if matches!(code, codes::PROTOCOL_TOO_LARGE | codes::PROTOCOL_MALFORMED) {
            tracing::warn!(%code, number = alone.number, "the end of a task can't be told; it is left to run out");
            self.forget(told);
            return BATCH;
        }
        let mut waiting = self.waiting();
        if let Some(at) = waiting.iter().position(|one| one.end == *alone)
            && let Some(one) = waiting.remove(at)
        {
            waiting.push_back(one);
        }
        1
    }

    fn forget(&self, told: &[TaskEnd]) {
        self.waiting().retain(|waiting| !told.contains(&waiting.end));
        self.heard.notify_waiters();
    }

    fn waiting(&self) -> MutexGuard<'_, VecDeque<Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codes::Refusal;

    fn end(number: u64) -> TaskEnd {
        TaskEnd { number, refusal: Refusal::new(codes::TASK_ENDED, "code 0") }
    }

    fn key(id: &str) -> Key {
        ("spiffe://example.org/web".to_owned(), id.to_owned())
    }

    #[tokio::test]
    async fn an_id_is_free_once_its_end_was_heard() {
        let teller = Teller::new([1; 16]);
        assert_eq!(teller.next(false, BATCH).await.tasks, [], "the first word may have nothing else to say");
        teller.heard_of(&key("a")).await;
        for number in 0..300 {
            teller.tell(key(if number == 299 { "a" } else { "b" }), end(number));
        }
        let first = teller.next(true, BATCH).await;
        assert_eq!(first.tasks.len(), BATCH);
        let a = key("a");
        assert!(tokio::time::timeout(Duration::from_millis(20), teller.heard_of(&a)).await.is_err());
        // Of another workload it was free all along.
        teller.heard_of(&("spiffe://example.org/db".to_owned(), "a".to_owned())).await;
        teller.forget(&first.tasks);
        let rest = teller.next(true, BATCH).await;
        assert_eq!(rest.tasks.len(), 300 - BATCH);
        let (_, ()) = tokio::join!(teller.heard_of(&a), async { teller.forget(&rest.tasks) });
        assert!(teller.waiting().is_empty());
    }

    #[tokio::test]
    async fn what_nobody_was_given_anything_for_makes_room_for_real_ends() {
        let teller = Teller::new([1; 16]);
        teller.tell(key("real"), end(1));
        (2..WAITING as u64 + 10).for_each(|number| teller.tell_nothing(key("given up"), end(number)));
        teller.tell(key("also real"), end(0));
        assert_eq!(teller.waiting().len(), WAITING);
        let real: Vec<_> = teller.waiting().iter().filter(|one| !one.nothing).map(|one| one.end.number).collect();
        assert_eq!(real, [1, 0]);
    }

    #[tokio::test]
    async fn an_end_that_can_not_be_told_keeps_no_other_from_being_told() {
        let teller = Teller::new([1; 16]);
        let long = Refusal::new(codes::TASK_SCOPE, "ä".repeat(9_000)).at("p".repeat(9_000)).expected("q".repeat(9_000));
        (0..600).for_each(|number| teller.tell(key("x"), TaskEnd { number, refusal: long.clone() }));
        let whole = teller.next(true, BATCH).await;
        assert!(crate::protocol::encode(&whole).unwrap().len() < 1 << 20, "within the control plane's limit");

        // A control plane that takes no message with number 300 in it.
        let (mut most, mut rounds) = (BATCH, 0);
        let mut heard = std::collections::BTreeSet::new();
        while !teller.waiting().is_empty() {
            let told = teller.next(true, most).await.tasks;
            if told.iter().any(|end| end.number == 300) {
                most = teller.refused(&told, codes::PROTOCOL_MALFORMED);
            } else {
                heard.extend(told.iter().map(|end| end.number));
                teller.forget(&told);
                most = BATCH.min(most * 2);
            }
            rounds += 1;
            assert!(rounds < 100);
        }
        assert_eq!(heard.len(), 599);
        // Refused for what isn't its own fault, it stays.
        teller.tell(key("x"), end(1));
        teller.tell(key("x"), end(2));
        let one = teller.next(true, 1).await.tasks;
        assert_eq!(teller.refused(&one, codes::PROTOCOL_BUSY), 1);
        let left: Vec<_> = teller.waiting().iter().map(|one| one.end.number).collect();
        assert_eq!(left, [2, 1]);
    }
}
