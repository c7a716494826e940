//! What moves when an answer may have become another one, and who has taken notice.
//!
//! Whoever takes something back wants to know when the open streams have heard of it. Each stream notes the
//! number of the last change that it has dealt with; [`Signal::noticed`] waits for all of them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::{Notify, watch};

/// The side that changes.
#[derive(Debug)]
pub struct Signal {
    number: watch::Sender<u64>,
    /// For each open stream the last change it has dealt with.
    places: Mutex<Vec<Weak<AtomicU64>>>,
    moved: Arc<Notify>,
}

impl Default for Signal {
    fn default() -> Self {
        Self { number: watch::Sender::new(0), places: Mutex::default(), moved: Arc::default() }
    }
}

impl Signal {
    /// Something changed; gives back the change's number.
    pub fn changed(&self) -> u64 {
        let mut number = 0;
        self.number.send_modify(|last| {
            *last = last.saturating_add(1);
            number = *last;
        });
        number
    }

    /// For a stream that opens.
    pub fn follow(&self) -> Changes {
        let number = self.number.subscribe();
        let seen = *number.borrow();
        let place = Arc::new(AtomicU64::new(seen));
        let mut places = self.places();
        places.retain(|place| place.strong_count() > 0);
        places.push(Arc::downgrade(&place));
        Changes { number, seen, place: Some(place), moved: Arc::clone(&self.moved) }
    }

    /// Returns once every stream that was open has dealt with the change of this number, or has ended.
    pub async fn noticed(&self, number: u64) {
        loop {
            // Before the look: a stream that moves in between is not missed.
            let moved = self.moved.notified();
            let behind =
                |place: &Weak<AtomicU64>| place.upgrade().is_some_and(|place| place.load(Ordering::Acquire) < number);
            if !self.places().iter().any(behind) {
                return;
            }
            moved.await;
        }
    }

    fn places(&self) -> MutexGuard<'_, Vec<Weak<AtomicU64>>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The side of one stream.
#[derive(Debug)]
pub struct Changes {
    number: watch::Receiver<u64>,
    seen: u64,
    place: Option<Arc<AtomicU64>>,
    moved: Arc<Notify>,
}

impl Changes {
    /// Returns when something has changed since the last time; `false` when nothing ever will.
    pub async fn changed(&mut self) -> bool {
        let changed = self.number.changed().await.is_ok();
        self.seen = *self.number.borrow_and_update();
        changed
    }

    /// Whether nothing has changed since then.
    pub fn unchanged(&self) -> bool {
        self.number.has_changed().is_ok_and(|changed| !changed)
    }

    /// What was seen has been dealt with: the stream's client got what there is to be got, or nothing.
    pub fn dealt_with(&self) {
        if let Some(place) = &self.place
            && place.swap(self.seen, Ordering::AcqRel) != self.seen
        {
            self.moved.notify_waiters();
        }
    }
}

impl Drop for Changes {
    fn drop(&mut self) {
        // A stream that ended is behind in nothing.
        self.place = None;
        self.moved.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_change_is_noticed_when_every_stream_has_dealt_with_it_or_ended() {
        let signal = Arc::new(Signal::default());
        let (mut one, two) = (signal.follow(), signal.follow());
        assert!(one.unchanged());
        let number = signal.changed();
        let waiting = tokio::spawn({
            let signal = signal.clone();
            async move { signal.noticed(number).await }
        });
        assert!(!one.unchanged());
        assert!(one.changed().await);
        tokio::time::sleep(Duration::from_millis(20)).await;
        one.dealt_with();
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(!waiting.is_finished(), "the second has not");
        drop(two);
        tokio::time::timeout(Duration::from_secs(10), waiting).await.unwrap().unwrap();
        // One that opens later has nothing to catch up with.
        let _three = signal.follow();
        tokio::time::timeout(Duration::from_secs(10), signal.noticed(number)).await.unwrap();
    }
}
