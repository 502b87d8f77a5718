//! A state in memory: what plans are applied to here instead of a database.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use pintle_proto::mvccpb::KeyValue;
use pintle_proto::store_v1::{Alarm, LeaseRecord};

use crate::apply::{self, Known, Plan};
use crate::auth::AuthState;
use crate::mvcc::key::Interval;
use crate::mvcc::record::{Row, Version};
use crate::mvcc::view::{Source, Visit};
use crate::quota::Quotas;

pub(super) struct Memory {
    pub revision: i64,
    pub compacted: i64,
    lease_stamp: u64,
    alarms: Vec<Alarm>,
    /// All versions of each key, oldest first.
    keys: BTreeMap<Bytes, Vec<Version>>,
    leases: BTreeMap<i64, LeaseRecord>,
    attached: BTreeSet<(i64, Bytes)>,
    auth: Arc<AuthState>,
    quotas: Arc<Quotas>,
    /// Rows of users and roles.
    auth_rows: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Memory {
    pub fn new() -> Self {
        Self {
            revision: 1,
            compacted: 0,
            lease_stamp: 0,
            alarms: Vec::new(),
            keys: BTreeMap::new(),
            leases: BTreeMap::new(),
            attached: BTreeSet::new(),
            auth: Arc::default(),
            quotas: Arc::default(),
            auth_rows: BTreeMap::new(),
        }
    }

    /// Applies an entry; one reply per command.
    pub fn entry(&mut self, term: u64, commands: &[Bytes]) -> Vec<Bytes> {
        let known = Known { auth: Arc::clone(&self.auth), quotas: Arc::clone(&self.quotas) };
        let plan = apply::apply(self, known, term, commands).expect("memory does not fail");
        assert_eq!(plan.replies.len(), commands.len());
        self.check(&plan);
        self.take(plan)
    }

    /// What must hold of any plan: revisions go on without a gap, and each counts its changes from 0.
    fn check(&self, plan: &Plan) {
        let mut next = (self.revision, 0);
        for change in &plan.changes {
            let place = (change.version.modified, change.version.sub);
            let begins = (next.0 + 1, 0);
            assert!(place == next && place.1 > 0 || place == begins, "{place:?} after {next:?}");
            next = (place.0, place.1 + 1);
        }
        assert_eq!(plan.revision, next.0, "the last change is of the last revision");
        assert!(plan.compacted >= self.compacted && plan.compacted <= plan.revision);
    }

    fn take(&mut self, plan: Plan) -> Vec<Bytes> {
        if let Some(quotas) = self.quotas.applied(&plan.quotas) {
            self.quotas = Arc::new(quotas);
        }
        for change in plan.changes {
            self.keys.entry(change.key).or_default().push(change.version);
        }
        for (id, record) in plan.leases {
            match record {
                Some(record) => drop(self.leases.insert(id, record)),
                None => drop(self.leases.remove(&id)),
            }
        }
        for (place, attached) in plan.attached {
            if attached {
                self.attached.insert(place)
            } else {
                self.attached.remove(&place)
            };
        }
        for (key, row) in plan.auth_rows {
            match row {
                Some(row) => drop(self.auth_rows.insert(key, row)),
                None => drop(self.auth_rows.remove(&key)),
            }
        }
        let loaded = AuthState::load(self.auth_rows.iter().map(|(key, row)| (key.as_slice(), row.as_slice())));
        let loaded = loaded.expect("rows of our own");
        assert_eq!((loaded.users(), loaded.roles()), (plan.auth.users(), plan.auth.roles()), "rows are what is known");
        assert_eq!((loaded.enabled, loaded.revision), (plan.auth.enabled, plan.auth.revision));
        self.auth = plan.auth;
        (self.revision, self.compacted) = (plan.revision, plan.compacted);
        (self.lease_stamp, self.alarms) = (plan.lease_stamp, plan.alarms);
        plan.replies
    }

    /// What lives at a revision.
    pub fn state(&self, at: i64) -> Vec<KeyValue> {
        let mut found = Vec::new();
        let everything = Interval::From(Bytes::new());
        let scanned = self.scan(&everything, at, &mut |row| {
            found.push(row.to_kv());
            std::ops::ControlFlow::Continue(())
        });
        scanned.expect("memory does not fail");
        found
    }

    pub fn leases(&self) -> &BTreeMap<i64, LeaseRecord> {
        &self.leases
    }

    pub fn same_as(&self, other: &Self) -> bool {
        (self.revision, self.compacted, self.lease_stamp) == (other.revision, other.compacted, other.lease_stamp)
            && (&self.alarms, &self.keys, &self.leases) == (&other.alarms, &other.keys, &other.leases)
            && (&self.attached, &self.auth_rows) == (&other.attached, &other.auth_rows)
    }

    /// Keys are attached to the leases that they say, and to no others.
    pub fn check_leases(&self) {
        let living = self.state(i64::MAX).into_iter();
        let said: BTreeSet<(i64, Bytes)> = living.filter(|kv| kv.lease != 0).map(|kv| (kv.lease, kv.key)).collect();
        assert_eq!(said, self.attached);
        assert!(said.iter().all(|(id, _)| self.leases.contains_key(id)), "no key has a lease that is gone");
    }
}

impl Source for Memory {
    fn revision(&self) -> i64 {
        self.revision
    }

    fn compacted(&self) -> i64 {
        self.compacted
    }

    fn lease_stamp(&self) -> u64 {
        self.lease_stamp
    }

    fn alarms(&self) -> &[Alarm] {
        &self.alarms
    }

    fn newest(&self, key: &[u8]) -> io::Result<Option<Version>> {
        Ok(self.keys.get(key).and_then(|versions| versions.last()).cloned())
    }

    fn scan(&self, interval: &Interval, at: i64, visit: &mut Visit<'_>) -> io::Result<()> {
        for (key, versions) in self.keys.iter().filter(|(key, _)| interval.contains(key)) {
            let version = versions.iter().rev().find(|version| version.modified <= at);
            if let Some(version) = version.filter(|version| version.live.is_some())
                && visit(Row::of(key, version)).is_break()
            {
                break;
            }
        }
        Ok(())
    }

    fn lease(&self, id: i64) -> io::Result<Option<LeaseRecord>> {
        Ok(self.leases.get(&id).copied())
    }

    fn lease_keys(&self, id: i64) -> io::Result<Vec<Bytes>> {
        Ok(self.attached.iter().filter(|(lease, _)| *lease == id).map(|(_, key)| key.clone()).collect())
    }
}
