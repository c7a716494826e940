//! A bound on what one node can make the control plane keep: records, decisions, journals.
//!
//! What is recorded isn't thrown away, and there is one disk and one writer for all. A node that is no longer
//! its owner's may say whatever it likes; it must not be able to say so much that nobody can be revoked any more.
//! So what each call of a node added is counted after it, and a node that is beyond its hourly measure is told to
//! come later. Each kind of call has a measure of its own: a process that asks without end spends what its node has
//! for grants, and neither the lease nor the identities of its neighbours.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::store::{Transaction, params, unsigned};
use crate::clock::BootInstant;
use crate::codes::{self, Refusal};
use crate::identity::NodeId;

/// An hour: what a measure is for, and how often a node that is beyond it is recorded.
const HOUR: Duration = Duration::from_secs(3600);

/// What a call is counted under.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Account {
    /// Nonces, logs and attestations.
    Membership,
    /// SVIDs of registered workloads, which the agent asks for by itself.
    Identities,
    /// What processes ask for just in time.
    Grants,
    /// What it tells: its journal, and the ends of its tasks.
    Records,
}

/// What each node spent. Only admitted nodes are in it; a restart forgets it.
#[derive(Debug)]
pub struct Quota {
    hourly: u64,
    spent: Mutex<BTreeMap<(NodeId, Account), Spent>>,
}

#[derive(Debug)]
struct Spent {
    /// Bytes that weren't made up for yet …
    bytes: u64,
    /// … at this moment.
    at: BootInstant,
    recorded_at: Option<BootInstant>,
}

/// A node is beyond its measure.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Full {
    /// What it is told.
    pub refusal: Refusal,
    /// Whether that is to be recorded: once an hour.
    pub record: bool,
}

impl Quota {
    /// So many bytes an hour for each node, which it may also spend at once.
    pub fn new(hourly: u64) -> Self {
        Self { hourly, spent: Mutex::default() }
    }

    /// Whether a call may be worked on at `now`. It may take the node beyond its measure: how much it adds is
    /// known only afterwards, and bounded by the size of its body.
    ///
    /// # Errors
    /// [`Full`] with [`codes::PROTOCOL_BUSY`].
    pub fn admit(&self, node: NodeId, account: Account, now: BootInstant) -> Result<(), Full> {
        let mut all = self.spent.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(spent) = all.get_mut(&(node, account)) else { return Ok(()) };
        let hourly = self.measure(account);
        spent.pass(now, hourly);
        if spent.bytes < hourly {
            return Ok(());
        }
        let record = spent.recorded_at.is_none_or(|at| now.since(at) >= HOUR);
        if record {
            spent.recorded_at = Some(now);
        }
        let found = format!("{} KiB were recorded for this node within the hour", spent.bytes >> 10);
        let expected = format!("at most {} KiB (by `audit.node_mib_an_hour`); later", hourly >> 10);
        Err(Full { refusal: Refusal::new(codes::PROTOCOL_BUSY, found).expected(expected), record })
    }

    /// What an account may spend within an hour. A grant is worth some 4 KiB: a node's 1024 tasks, renewed at half of
    /// terms of two minutes, are 240 MiB an hour.
    const fn measure(&self, account: Account) -> u64 {
        match account {
            Account::Grants => self.hourly.saturating_mul(4),
            Account::Membership | Account::Identities | Account::Records => self.hourly,
        }
    }

    /// Counts what a call added.
    pub fn charge(&self, node: NodeId, account: Account, bytes: u64, now: BootInstant) {
        if bytes == 0 {
            return;
        }
        let mut all = self.spent.lock().unwrap_or_else(PoisonError::into_inner);
        let spent = all.entry((node, account)).or_insert(Spent { bytes: 0, at: now, recorded_at: None });
        spent.pass(now, self.measure(account));
        spent.bytes = spent.bytes.saturating_add(bytes);
    }
}

impl Spent {
    /// Makes up for the time since, to the millisecond: the rest counts on.
    fn pass(&mut self, now: BootInstant, hourly: u64) {
        let passed = now.since(self.at).min(HOUR.saturating_mul(24));
        let millis = u64::try_from(passed.as_millis()).unwrap_or(u64::MAX);
        let made_up = u128::from(millis) * u128::from(hourly) / HOUR.as_millis();
        if made_up > 0 {
            self.bytes = self.bytes.saturating_sub(u64::try_from(made_up).unwrap_or(u64::MAX));
            self.at = now;
        }
    }
}

/// Where a transaction found the tables that are only added to.
#[derive(Clone, Copy, Debug)]
pub struct Mark {
    log: i64,
    decisions: i64,
    records: i64,
}

impl Mark {
    /// Here.
    ///
    /// # Errors
    /// [`codes::STORE_FAILED`].
    pub fn of(tx: &Transaction<'_>) -> Result<Self, Refusal> {
        let mut statement = tx.prepare_cached(
            "SELECT coalesce((SELECT max(id) FROM log), 0), coalesce((SELECT max(rowid) FROM decisions), 0),
             coalesce((SELECT max(arrival) FROM node_records), 0)",
        )?;
        Ok(statement
            .query_row([], |row| Ok(Self { log: row.get(0)?, decisions: row.get(1)?, records: row.get(2)? }))?)
    }

    /// The bytes that were added since, with about what each row takes beside its text: its place in the
    /// indexes, and the credential or task that a record is about.
    ///
    /// # Errors
    /// [`codes::STORE_FAILED`].
    pub fn added(&self, tx: &Transaction<'_>) -> Result<u64, Refusal> {
        let mut statement = tx.prepare_cached(
            "SELECT (SELECT coalesce(sum(512 + length(detail)), 0) FROM log WHERE id > ?1)
                  + (SELECT coalesce(sum(256 + length(inputs) + length(answer)), 0) FROM decisions WHERE rowid > ?2)
                  + (SELECT coalesce(sum(128 + length(record)), 0) FROM node_records WHERE arrival > ?3)",
        )?;
        Ok(unsigned(statement.query_row(params![self.log, self.decisions, self.records], |row| row.get(0))?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NodeId = NodeId::from_bytes([1; 32]);

    #[test]
    fn a_node_waits_until_the_hour_made_up_for_what_it_spent() {
        let quota = Quota::new(3600);
        let at = |seconds| BootInstant::from_nanos(0).after(Duration::from_secs(seconds));
        let admitted = |account, seconds| quota.admit(NODE, account, at(seconds));
        assert_eq!(admitted(Account::Records, 0), Ok(()));
        quota.charge(NODE, Account::Records, 3599, at(0));
        // The call that takes it beyond is still answered.
        assert_eq!(admitted(Account::Records, 0), Ok(()));
        quota.charge(NODE, Account::Records, 101, at(0));
        let full = admitted(Account::Records, 0).unwrap_err();
        assert_eq!((full.refusal.code, full.record), (codes::PROTOCOL_BUSY, true));
        assert!(!admitted(Account::Records, 100).unwrap_err().record, "recorded once");
        // Neither another's nor its own membership.
        assert_eq!(admitted(Account::Membership, 0), Ok(()));
        assert_eq!(quota.admit(NodeId::from_bytes([2; 32]), Account::Records, at(0)), Ok(()));
        assert_eq!(admitted(Account::Records, 101), Ok(()));
        quota.charge(NODE, Account::Records, 100_000, at(101));
        assert!(!admitted(Account::Records, 3599).unwrap_err().record);
        assert!(admitted(Account::Records, 3600).unwrap_err().record, "again in the next hour");
        // However small the steps in which it is asked, the time counts whole.
        let quota = Quota::new(3600);
        quota.charge(NODE, Account::Records, 3601, at(0));
        let often = (1..=1_100).filter(|n| {
            let now = at(0).after(Duration::from_millis(*n));
            quota.admit(NODE, Account::Records, now).is_ok()
        });
        assert_eq!(often.count(), 0, "1 byte a second, and one more to come below");
        assert_eq!(quota.admit(NODE, Account::Records, at(2)), Ok(()));
    }

    #[test]
    fn what_a_transaction_adds_is_counted() {
        use crate::clock::WallTime;
        use crate::control_plane::{audit, registry::nodes};
        let (_dir, store) = nodes::tests::store();
        store
            .transaction_blocking(|tx| {
                let mark = Mark::of(tx)?;
                assert_eq!(mark.added(tx)?, 0);
                audit::done(tx, WallTime(1), "a", None, serde_json::json!({ "x": "y".repeat(1000) }))?;
                let one = mark.added(tx)?;
                assert!((1500..1600).contains(&one), "{one}");
                audit::done(tx, WallTime(1), "b", None, serde_json::json!({}))?;
                assert!(mark.added(tx)? > one);
                assert_eq!(Mark::of(tx)?.added(tx)?, 0);
                Ok(())
            })
            .unwrap();
    }
}
