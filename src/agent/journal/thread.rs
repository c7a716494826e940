//! The thread `journal`: owns the spool. Whatever waits is written in one go, with one fsync.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::oneshot;

use super::{Batch, Note, Shared, Spool, Standing, WINDOW, stopped};
use crate::clock::BootInstant;
use crate::codes::{self, Refusal};
use crate::protocol::{Chain, Head, Record, SignedHead};

/// So many notes are written in one go; more wait for the next.
const GROUP: usize = 1024;
/// How often the thread looks for counts that are to be written.
const GLANCE: Duration = Duration::from_millis(500);

/// A note, and who waits for it to be on the disk.
type Waiting = (Note, Option<oneshot::Sender<Result<(), Refusal>>>);

/// What the thread is asked.
#[derive(Debug)]
pub enum Ask {
    /// To write a note, and to say so where somebody waits.
    Write(Note, Option<oneshot::Sender<Result<(), Refusal>>>),
    /// Where the chain ends.
    Head(oneshot::Sender<Result<Head, Refusal>>),
    /// For records from a number on, to a number.
    Batch(u64, u64, oneshot::Sender<Result<Batch, Refusal>>),
    /// For the chain at a number.
    ChainAt(u64, oneshot::Sender<Option<Chain>>),
    /// For the marks' witness of the control plane's log.
    Witnessed(oneshot::Sender<Option<SignedHead>>),
    /// To keep a signed head.
    Signed(SignedHead, oneshot::Sender<Result<(), Refusal>>),
    /// To note how far the control plane has the records.
    Acknowledged(Head, Option<SignedHead>, oneshot::Sender<Result<(), Refusal>>),
    /// To put the spool aside and begin a new one.
    BeginAnew(Refusal, oneshot::Sender<Result<(), Refusal>>),
    /// To write what is counted, and end.
    Stop,
}

/// The right to end the thread. Dropping it ends it too, without waiting.
#[derive(Debug)]
pub struct JournalThread {
    asks: Sender<Ask>,
    thread: Option<JoinHandle<()>>,
}

impl JournalThread {
    pub(super) fn start(
        spool: Spool,
        shared: Arc<Shared>,
        asked: Receiver<Ask>,
        asks: Sender<Ask>,
    ) -> Result<Self, Refusal> {
        let thread = std::thread::Builder::new()
            .name("journal".to_owned())
            .spawn(move || Thread { spool, shared, trouble: None }.run(&asked))
            .map_err(|e| Refusal::new(codes::AUDIT_UNWRITABLE, format!("its thread can't be started: {e}")))?;
        Ok(Self { asks, thread: Some(thread) })
    }

    /// Writes what is counted and waits for the thread's end, at most `within`. Returns whether it ended.
    pub async fn stop(mut self, within: Duration) -> bool {
        let _ = self.asks.send(Ask::Stop);
        let Some(thread) = self.thread.take() else { return true };
        let ended = tokio::task::spawn_blocking(move || drop(thread.join()));
        tokio::time::timeout(within, ended).await.is_ok()
    }
}

impl Drop for JournalThread {
    fn drop(&mut self) {
        let _ = self.asks.send(Ask::Stop);
    }
}

struct Thread {
    spool: Spool,
    shared: Arc<Shared>,
    trouble: Option<Refusal>,
}

impl Thread {
    fn run(mut self, asked: &Receiver<Ask>) {
        // What was found at the start is said at once.
        self.write(Vec::new(), false);
        loop {
            let first = match asked.recv_timeout(GLANCE) {
                Ok(ask) => Some(ask),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => break,
            };
            let (mut group, mut others) = (Vec::new(), Vec::new());
            for ask in first.into_iter().chain(asked.try_iter().take(GROUP)) {
                match ask {
                    Ask::Write(note, reply) => group.push((note, reply)),
                    other => others.push(other),
                }
            }
            self.write(group, false);
            // Each is answered, also those after one that stops.
            let mut stops = false;
            for ask in others {
                stops |= self.answer(ask);
            }
            if stops {
                break;
            }
        }
        self.write(Vec::new(), true);
    }

    /// Writes what waits and what is due, in one go; says to each that waits how it went.
    fn write(&mut self, group: Vec<Waiting>, all: bool) {
        let now = BootInstant::now();
        let due = self.shared.repeats().due(now, all);
        let mut once: Vec<(Note, u64)> = Vec::new();
        let (mut waiting, mut said) = (Vec::new(), Vec::new());
        for (note, reply) in group {
            if reply.is_none() {
                // The first of them was written while this one was on its way.
                if self.shared.repeats().again(&note) {
                    continue;
                }
                said.push((note.clone(), 1));
            }
            match once.iter_mut().find(|(written, _)| *written == note) {
                Some((_, count)) => *count += 1,
                None => once.push((note, 1)),
            }
            waiting.extend(reply);
        }
        let records: Vec<Record> = due.iter().chain(&once).map(|(note, count)| note.record(*count)).collect();
        let nothing = records.is_empty() && !self.spool.was_torn() && self.spool.head().is_some();
        let written = match nothing {
            true => Ok(()),
            false => self.spool.append(&records),
        };
        match &written {
            Ok(()) => {
                let mut repeats = self.shared.repeats();
                once.iter().for_each(|(note, _)| repeats.written(note, now));
                drop(repeats);
                self.share(due.iter().chain(&once).map(|(note, _)| note).zip(&records));
            }
            Err(_) => {
                // Whoever waits is refused; what was only said is said later.
                self.shared.repeats().undo(due.into_iter().chain(said).collect(), now);
            }
        }
        if !nothing {
            self.report(written.as_ref().err());
        }
        for reply in waiting {
            // The caller may be gone: then nobody is interested.
            let _ = reply.send(written.clone());
        }
    }

    /// Counts whose records were written, while more than half of what may wait does.
    fn share<'a>(&self, written: impl Iterator<Item = (&'a Note, &'a Record)>) {
        let (waiting, limit) = self.spool.waiting();
        let mut shares = self.shared.shares();
        if waiting <= limit / 2 {
            return shares.clear();
        }
        for (note, record) in written {
            if let Some(uid) = note.what.uid() {
                shares.take(limit, uid, record.line().len());
            }
        }
    }

    /// Says how the journal stands; a trouble and its end are said once.
    fn report(&mut self, trouble: Option<&Refusal>) {
        self.shared.failing.store(trouble.is_some(), Ordering::Release);
        match (&self.trouble, trouble) {
            (None, Some(refusal)) => tracing::error!(code = %refusal.code, "nothing is released: {refusal}"),
            (Some(_), None) => tracing::info!("the journal can be written again"),
            _ => {}
        }
        self.trouble = trouble.cloned();
        self.publish();
    }

    fn publish(&self) {
        let (waiting, limit) = self.spool.waiting();
        self.shared.nearly_full.store(waiting > limit / 2, Ordering::Relaxed);
        let head = self.spool.head();
        let marks = self.spool.marks();
        let standing = Standing {
            writer: head.map(|head| head.writer.to_string()),
            number: head.map_or(0, |head| head.number),
            signed: marks.and_then(|marks| marks.signed.as_ref()).map_or(0, |signed| signed.head.number),
            acknowledged: marks.map_or(0, |marks| marks.acknowledged.number),
            waiting_bytes: waiting,
            limit_bytes: limit,
            writes: self.spool.writes(),
            window_seconds: WINDOW.as_secs(),
            trouble: self.trouble.clone(),
        };
        self.shared.standing.send_if_modified(|present| {
            let changed = *present != standing;
            if changed {
                *present = standing;
            }
            changed
        });
    }

    /// Answers; says whether that was the last.
    fn answer(&mut self, ask: Ask) -> bool {
        match ask {
            Ask::Write(_, reply) => drop(reply.map(|reply| reply.send(Err(stopped())))),
            Ask::Head(reply) => {
                let opened = self.spool.open();
                let head = opened.and_then(|()| self.spool.head().ok_or_else(stopped));
                drop(reply.send(head));
            }
            Ask::Batch(from, to, reply) => drop(reply.send(self.spool.batch(from, to))),
            Ask::ChainAt(number, reply) => drop(reply.send(self.spool.chain_at(number))),
            Ask::Witnessed(reply) => {
                drop(reply.send(self.spool.marks().and_then(|marks| marks.control_plane.clone())));
            }
            Ask::Signed(signed, reply) => {
                let kept = self.spool.signed(signed);
                self.publish();
                drop(reply.send(kept));
            }
            Ask::Acknowledged(head, control_plane, reply) => {
                let kept = self.spool.acknowledged(head, control_plane);
                self.share(std::iter::empty());
                self.publish();
                drop(reply.send(kept));
            }
            Ask::BeginAnew(refusal, reply) => {
                let begun = self.spool.begin_anew(&refusal);
                self.write(Vec::new(), false);
                drop(reply.send(begun));
            }
            Ask::Stop => return true,
        }
        false
    }
}
