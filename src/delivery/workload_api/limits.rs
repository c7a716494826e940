//! How much one user, and all together, may take: no user can lock out another.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::clock::BootInstant;

/// Descriptors a connection takes: its socket, the peer's pidfd and its directory in `/proc`.
const DESCRIPTORS: u64 = 3;

/// Descriptors left to the rest of the agent.
const RESERVED: u64 = 128;

/// Bounds of a [`super::Server`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Connections of all users.
    pub connections: usize,
    /// Connections of one user.
    pub connections_per_user: usize,
    /// Open calls of one user, over all its connections.
    pub streams_per_user: usize,
    /// Open calls on one connection.
    pub streams_per_connection: u32,
    /// The time a client has to begin speaking HTTP/2.
    pub greeting: Duration,
    /// The time between two pings. A client that doesn't answer one within a third of it is cut off.
    pub ping: Duration,
    /// The time between two looks at a connected process: does it still run the same program?
    pub look: Duration,
    /// The time an answer may wait for its client to take it, after which the connection is cut: so
    /// long after a withdrawal can something reach a client that was made before.
    pub delivery: Duration,
    /// The longest time an open stream waits before it asks again for what was unavailable.
    pub retry: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 4096,
            connections_per_user: 256,
            streams_per_user: 1024,
            streams_per_connection: 64,
            greeting: Duration::from_secs(10),
            ping: Duration::from_secs(30),
            look: Duration::from_millis(500),
            delivery: Duration::from_secs(1),
            retry: Duration::from_secs(1),
        }
    }
}

impl Limits {
    /// These limits within what this process may open. Raises its soft limit of open files to the
    /// hard one.
    pub fn within_this_process(mut self) -> Self {
        let had = getrlimit(Resource::Nofile);
        // Best effort: with the old limit fewer connections fit.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: had.maximum, maximum: had.maximum });
        // No limit at all is reported as none.
        if let Some(files) = getrlimit(Resource::Nofile).current {
            let fit = usize::try_from(files.saturating_sub(RESERVED) / DESCRIPTORS).unwrap_or(usize::MAX);
            self.connections = self.connections.min(fit.max(4));
            self.connections_per_user = self.connections_per_user.min((self.connections / 4).max(1));
        }
        self
    }
}

/// Counts what each user has.
#[derive(Clone, Debug)]
pub(super) struct Counts {
    limits: Limits,
    users: Arc<Mutex<HashMap<u32, User>>>,
}

#[derive(Debug, Default)]
struct User {
    connections: usize,
    streams: usize,
    refused: u64,
    reported: Option<BootInstant>,
}

/// One connection or one stream of a user, given back when dropped.
#[derive(Debug)]
pub(super) struct Slot {
    uid: u32,
    field: fn(&mut User) -> &mut usize,
    users: Arc<Mutex<HashMap<u32, User>>>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(user) = users.get_mut(&self.uid) {
            let count = (self.field)(user);
            *count = count.saturating_sub(1);
            if user.connections == 0 && user.streams == 0 {
                users.remove(&self.uid);
            }
        }
    }
}

impl Counts {
    pub(super) fn new(limits: Limits) -> Self {
        Self { limits, users: Arc::default() }
    }

    /// A place for one more connection of `uid`. Otherwise how many were refused since the last
    /// report, which is asked for at most once a second.
    pub(super) fn connection(&self, uid: u32) -> Result<Slot, Option<u64>> {
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = users.values().map(|user| user.connections).sum();
        let user = users.entry(uid).or_default();
        if all < self.limits.connections && user.connections < self.limits.connections_per_user {
            user.connections += 1;
            return Ok(self.slot(uid, |user| &mut user.connections));
        }
        user.refused += 1;
        let now = BootInstant::now();
        let due = user.reported.is_none_or(|last| now.since(last) >= Duration::from_secs(1));
        Err(due.then(|| {
            user.reported = Some(now);
            std::mem::take(&mut user.refused)
        }))
    }

    /// A place for one more call of `uid`.
    pub(super) fn stream(&self, uid: u32) -> Option<Slot> {
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        let user = users.entry(uid).or_default();
        (user.streams < self.limits.streams_per_user).then(|| {
            user.streams += 1;
            self.slot(uid, |user| &mut user.streams)
        })
    }

    fn slot(&self, uid: u32, field: fn(&mut User) -> &mut usize) -> Slot {
        Slot { uid, field, users: Arc::clone(&self.users) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_user_can_not_take_the_place_of_another() {
        let limits = Limits { connections: 5, connections_per_user: 3, streams_per_user: 2, ..Limits::default() };
        let counts = Counts::new(limits);
        let mut held: Vec<_> = (0..3).map(|_| counts.connection(1).unwrap()).collect();
        assert_eq!(counts.connection(1).unwrap_err(), Some(1));
        assert_eq!(counts.connection(1).unwrap_err(), None, "the second refusal within a second isn't reported");
        held.push(counts.connection(2).unwrap());
        held.push(counts.connection(2).unwrap());
        assert!(counts.connection(2).is_err(), "all together have five");
        held.remove(0);
        held.push(counts.connection(2).unwrap());
        let streams = [counts.stream(1).unwrap(), counts.stream(1).unwrap()];
        assert!(counts.stream(1).is_none());
        assert!(counts.stream(2).is_some());
        drop((held, streams));
        assert!(counts.users.lock().unwrap().is_empty());
    }

    #[test]
    fn limits_fit_the_process() {
        let limits = Limits { connections: usize::MAX, connections_per_user: usize::MAX, ..Limits::default() };
        let limits = limits.within_this_process();
        assert!(limits.connections_per_user <= limits.connections);
    }
}
