//! Lease times. Which leases exist is replicated; when they end is decided by the leader's clock alone, and takes effect only
//! through the log, as a proposal that is void if the lease was renewed meanwhile.
//!
//! Every member keeps the table, counting from when it applied the last renewal, at most a moment before the leader did. So a new
//! leader goes on with the time that is left, and only adds what a client needs to come through that could not renew while nobody
//! led, which is far more than that moment: no lease ends early, and none lives on for its full time with every change of the leader. A member that starts gives every
//! lease its full time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use parking_lot::Mutex;
use pintle_base::clock::{self, Instant};
use pintle_proto::store_v1::{LeaseExpire, LeaseRecord};

use crate::limits;

#[derive(Default)]
pub(crate) struct LeaseTimes {
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    leases: BTreeMap<i64, Entry>,
    /// What is due next, first.
    due: BTreeSet<(Instant, i64)>,
}

struct Entry {
    record: LeaseRecord,
    ends: Instant,
    /// When the leader looks at it: its end, or the next try to expire it.
    due: Instant,
}

impl LeaseTimes {
    /// Takes over all leases of a state, each with its full time.
    pub fn load(&self, leases: Vec<(i64, LeaseRecord)>) {
        let mut table = self.table.lock();
        *table = Table::default();
        leases.into_iter().for_each(|(id, record)| table.set(id, record));
    }

    /// A lease was granted or renewed (`Some`), or ended.
    pub fn changed(&self, id: i64, record: Option<LeaseRecord>) {
        let mut table = self.table.lock();
        match record {
            Some(record) => table.set(id, record),
            None => table.remove(id),
        }
    }

    /// The leader changed: no lease ends within `grace`, or its own time if that is shorter.
    pub fn prolong(&self, grace: Duration) {
        let now = clock::now();
        let mut table = self.table.lock();
        let Table { leases, due } = &mut *table;
        for (id, entry) in leases {
            let least = now + grace.min(time_of(entry.record));
            if entry.ends < least || entry.due != entry.ends {
                due.remove(&(entry.due, *id));
                entry.ends = entry.ends.max(least);
                entry.due = entry.ends;
                due.insert((entry.due, *id));
            }
        }
    }

    /// Leases whose time is over, a bounded number; each is handed out again only after a while.
    pub fn take_due(&self) -> Vec<LeaseExpire> {
        let now = clock::now();
        let mut table = self.table.lock();
        let due: Vec<(Instant, i64)> =
            table.due.iter().take_while(|(at, _)| *at <= now).take(limits::LEASE_EXPIRIES_PER_TICK).copied().collect();
        let mut expired = Vec::with_capacity(due.len());
        for (at, id) in due {
            table.due.remove(&(at, id));
            if let Some(entry) = table.leases.get_mut(&id) {
                entry.due = now + limits::LEASE_EXPIRY_RETRY;
                expired.push(LeaseExpire { id, stamp: entry.record.stamp });
                let again = (entry.due, id);
                table.due.insert(again);
            }
        }
        expired
    }

    /// Whole seconds granted and left, as this member sees it; `None` if there is no such lease.
    pub fn time_to_live(&self, id: i64) -> Option<(i64, i64)> {
        let table = self.table.lock();
        let entry = table.leases.get(&id)?;
        let left = entry.ends.saturating_duration_since(clock::now()).as_secs();
        Some((entry.record.ttl_seconds, i64::try_from(left).unwrap_or(i64::MAX)))
    }

    /// All ids, in order.
    pub fn ids(&self) -> Vec<i64> {
        self.table.lock().leases.keys().copied().collect()
    }
}

impl Table {
    fn set(&mut self, id: i64, record: LeaseRecord) {
        self.remove(id);
        let ends = clock::now() + time_of(record);
        self.due.insert((ends, id));
        self.leases.insert(id, Entry { record, ends, due: ends });
    }

    fn remove(&mut self, id: i64) {
        if let Some(entry) = self.leases.remove(&id) {
            self.due.remove(&(entry.due, id));
        }
    }
}

fn time_of(record: LeaseRecord) -> Duration {
    Duration::from_secs(u64::try_from(record.ttl_seconds).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(ttl_seconds: i64, stamp: u64) -> LeaseRecord {
        LeaseRecord { ttl_seconds, stamp }
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_is_due_after_its_time_and_again_after_the_retry_time() {
        let times = LeaseTimes::default();
        times.load(vec![(1, record(10, 1)), (2, record(20, 2))]);
        assert_eq!(times.take_due(), vec![]);
        clock::sleep(Duration::from_secs(10)).await;
        assert_eq!(times.take_due(), vec![LeaseExpire { id: 1, stamp: 1 }]);
        assert_eq!(times.take_due(), vec![]);
        clock::sleep(limits::LEASE_EXPIRY_RETRY).await;
        assert_eq!(times.take_due(), vec![LeaseExpire { id: 1, stamp: 1 }]);
        times.changed(1, None);
        times.changed(2, Some(record(20, 3)));
        clock::sleep(Duration::from_secs(19)).await;
        assert_eq!(times.take_due(), vec![]);
        assert_eq!(times.time_to_live(2), Some((20, 1)));
        assert_eq!(times.time_to_live(1), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_of_the_leader_costs_no_lease_and_prolongs_none_beyond_the_grace() {
        let times = LeaseTimes::default();
        times.load(vec![(1, record(600, 1)), (2, record(20, 2)), (3, record(2, 3))]);
        clock::sleep(Duration::from_secs(19)).await;
        assert_eq!(times.take_due(), vec![LeaseExpire { id: 3, stamp: 3 }], "the one before has proposed its end");
        times.prolong(Duration::from_secs(7));
        let left: Vec<_> = [1, 2, 3].iter().map(|id| times.time_to_live(*id)).collect();
        assert_eq!(left, [Some((600, 581)), Some((20, 7)), Some((2, 2))]);
        assert_eq!(times.take_due(), vec![]);
        clock::sleep(Duration::from_secs(2)).await;
        assert_eq!(times.take_due(), vec![LeaseExpire { id: 3, stamp: 3 }]);
        times.prolong(Duration::ZERO);
        assert_eq!(times.take_due(), vec![LeaseExpire { id: 3, stamp: 3 }], "a new leader does not wait for a retry");
    }
}
