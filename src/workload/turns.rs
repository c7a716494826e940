//! Turns: what is dear is done a few times at once, and fewer times for each user, so that whoever asks and asks
//! stands in nobody else's way.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Turns, a few of all users and fewer of each.
#[derive(Debug)]
pub struct Turns {
    all: Arc<Semaphore>,
    of_a_user: usize,
    users: Mutex<HashMap<u32, Weak<Semaphore>>>,
}

/// One turn; given back when dropped.
#[derive(Debug)]
pub struct Turn {
    _all: OwnedSemaphorePermit,
    _users: OwnedSemaphorePermit,
}

impl Turns {
    /// So many at one time, and so many `of_a_user`.
    pub fn new(all: usize, of_a_user: usize) -> Self {
        Self { all: Arc::new(Semaphore::new(all)), of_a_user, users: Mutex::default() }
    }

    /// Waits for a turn of this user. In the queue for all there are never more than a user's few.
    pub async fn next(&self, uid: u32) -> Option<Turn> {
        let of_the_user = {
            let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
            users.retain(|_, user| user.strong_count() > 0);
            let present = users.get(&uid).and_then(Weak::upgrade);
            let user = present.unwrap_or_else(|| Arc::new(Semaphore::new(self.of_a_user)));
            users.insert(uid, Arc::downgrade(&user));
            user
        };
        let _users = of_the_user.acquire_owned().await.ok()?;
        let _all = Arc::clone(&self.all).acquire_owned().await.ok()?;
        Some(Turn { _all, _users })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_user_who_asks_and_asks_leaves_turns_to_others() {
        let turns = Arc::new(Turns::new(8, 4));
        let mut greedy = Vec::new();
        for _ in 0..100 {
            let turns = Arc::clone(&turns);
            greedy.push(tokio::spawn(async move {
                let turn = turns.next(1).await;
                std::future::pending::<()>().await;
                drop(turn);
            }));
        }
        while turns.all.available_permits() > 4 {
            tokio::task::yield_now().await;
        }
        // Everybody has asked by now; in the queue for all there is nobody.
        for _ in 0..1_000 {
            tokio::task::yield_now().await;
        }
        assert_eq!(turns.all.available_permits(), 4);
        let others: Vec<_> = [2, 3, 4, 5].map(|uid| turns.next(uid)).into_iter().collect();
        let others = futures_util::future::join_all(others).await;
        assert!(others.iter().all(Option::is_some));
        drop(others);
        greedy.iter().for_each(|task| task.abort());
        for task in greedy {
            let _ = task.await;
        }
        // Nobody is remembered who has no turn.
        drop(turns.next(7).await);
        assert_eq!(turns.users.lock().unwrap().len(), 1);
        assert_eq!(turns.all.available_permits(), 8);
    }
}
