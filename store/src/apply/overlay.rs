//! The state as it will be: a base and the changes planned on top of it. Reads see both, so each command of an entry sees those
//! before it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use pintle_proto::mvccpb::KeyValue;
use pintle_proto::store_v1::{Alarm, LeaseRecord, MemberAttributes};

use crate::auth::{AuthState, Rows};
use crate::mvcc::key::Interval;
use crate::mvcc::record::{Live, Row, Version};
use crate::mvcc::view::{Source, Visit};
use crate::quota::{self, Quotas, Size};

/// One change of one key.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    pub key: Bytes,
    pub version: Version,
    /// What the key held before.
    pub previous: Option<KeyValue>,
}

/// Everything an entry does, ready to be written at once.
pub(crate) struct Plan {
    pub revision: i64,
    pub compacted: i64,
    pub lease_stamp: u64,
    /// In the order of revision and sub revision.
    pub changes: Vec<Change>,
    /// `None` removes the lease.
    pub leases: BTreeMap<i64, Option<LeaseRecord>>,
    /// Whether a key is attached to a lease now; only what changed.
    pub attached: BTreeMap<(i64, Bytes), bool>,
    /// All that are raised.
    pub alarms: Vec<Alarm>,
    /// What members said of themselves.
    pub published: Vec<MemberAttributes>,
    /// Members that are to vote once they have caught up; only new ones.
    pub expected: BTreeSet<u64>,
    /// Users and roles, and their rows, if they changed.
    pub auth: Arc<AuthState>,
    pub auth_rows: Rows,
    /// Quotas, and what is used of them, where that changed.
    pub quotas: quota::Changes,
    /// One per command.
    pub replies: Vec<Bytes>,
}

pub(crate) struct Overlay<'a> {
    base: &'a dyn Source,
    revision: i64,
    compacted: i64,
    lease_stamp: u64,
    /// Position of the next change in its revision; `None` until the command writes.
    sub: Option<i64>,
    /// Planned versions per key, oldest first.
    keys: BTreeMap<Bytes, Vec<Version>>,
    changes: Vec<Change>,
    leases: BTreeMap<i64, Option<LeaseRecord>>,
    attached: BTreeMap<(i64, Bytes), bool>,
    alarms: Vec<Alarm>,
    published: Vec<MemberAttributes>,
    expected: BTreeSet<u64>,
    auth: Arc<AuthState>,
    auth_rows: Rows,
    quotas: quota::Planned,
}

impl<'a> Overlay<'a> {
    pub fn new(base: &'a dyn Source, auth: Arc<AuthState>, quotas: Arc<Quotas>) -> Self {
        Self {
            base,
            revision: base.revision(),
            compacted: base.compacted(),
            lease_stamp: base.lease_stamp(),
            sub: None,
            keys: BTreeMap::new(),
            changes: Vec::new(),
            leases: BTreeMap::new(),
            attached: BTreeMap::new(),
            alarms: base.alarms().to_vec(),
            published: Vec::new(),
            expected: BTreeSet::new(),
            auth,
            auth_rows: Rows::new(),
            quotas: quota::Planned::new(quotas),
        }
    }

    /// Begins the next command: its first write opens a new revision.
    pub fn begin(&mut self) {
        self.sub = None;
    }

    pub fn put(&mut self, key: Bytes, value: Bytes, lease: i64, previous: Option<KeyValue>) {
        let (modified, sub) = self.next_change();
        let created = previous.as_ref().map_or(modified, |kv| kv.create_revision);
        let version = previous.as_ref().map_or(0, |kv| kv.version) + 1;
        let before = previous.as_ref().map_or(0, |kv| kv.lease);
        self.attach(&key, before, lease);
        let gone = previous.as_ref().map_or(Size::default(), |kv| Size::of(&kv.key, &kv.value));
        self.quotas.count(&key, Size::of(&key, &value) - gone);
        let live = Some(Live { created, version, lease, value });
        self.record(Change { key, version: Version { modified, sub, live }, previous });
    }

    pub fn delete(&mut self, previous: KeyValue) {
        let (modified, sub) = self.next_change();
        let key = previous.key.clone();
        self.quotas.count(&key, Size::default() - Size::of(&key, &previous.value));
        self.attach(&key, previous.lease, 0);
        self.record(Change { key, version: Version { modified, sub, live: None }, previous: Some(previous) });
    }

    pub fn compact(&mut self, revision: i64) {
        self.compacted = revision;
    }

    /// Grants or renews a lease.
    pub fn set_lease(&mut self, id: i64, ttl_seconds: i64) {
        self.lease_stamp += 1;
        self.leases.insert(id, Some(LeaseRecord { ttl_seconds, stamp: self.lease_stamp }));
    }

    pub fn remove_lease(&mut self, id: i64) {
        self.leases.insert(id, None);
    }

    pub fn change_alarms(&mut self, change: impl FnOnce(&mut Vec<Alarm>)) {
        change(&mut self.alarms);
    }

    pub fn publish(&mut self, attributes: MemberAttributes) {
        self.published.push(attributes);
    }

    pub fn expect_voter(&mut self, id: u64) {
        self.expected.insert(id);
    }

    pub fn auth(&self) -> &Arc<AuthState> {
        &self.auth
    }

    pub fn change_auth(&mut self, state: AuthState, rows: Rows) {
        self.auth = Arc::new(state);
        self.auth_rows.extend(rows);
    }

    pub fn quotas(&self) -> &quota::Planned {
        &self.quotas
    }

    pub fn change_quotas<T>(&mut self, change: impl FnOnce(&mut quota::Planned, i64) -> T) -> T {
        change(&mut self.quotas, self.revision)
    }

    /// What lives in `interval` now, in key order.
    pub fn living(&self, interval: &Interval) -> io::Result<Vec<KeyValue>> {
        let mut found = Vec::new();
        self.scan(interval, i64::MAX, &mut |row| {
            found.push(row.to_kv());
            ControlFlow::Continue(())
        })?;
        Ok(found)
    }

    pub fn into_plan(self, replies: Vec<Bytes>) -> Plan {
        Plan {
            revision: self.revision,
            compacted: self.compacted,
            lease_stamp: self.lease_stamp,
            changes: self.changes,
            leases: self.leases,
            attached: self.attached,
            alarms: self.alarms,
            published: self.published,
            expected: self.expected,
            auth: self.auth,
            auth_rows: self.auth_rows,
            quotas: self.quotas.into_changes(),
            replies,
        }
    }

    fn next_change(&mut self) -> (i64, i64) {
        let sub = match self.sub {
            Some(sub) => sub + 1,
            None => {
                self.revision += 1;
                0
            }
        };
        self.sub = Some(sub);
        (self.revision, sub)
    }

    fn attach(&mut self, key: &Bytes, before: i64, after: i64) {
        if before != 0 && before != after {
            self.attached.insert((before, key.clone()), false);
        }
        if after != 0 && before != after {
            self.attached.insert((after, key.clone()), true);
        }
    }

    /// Adds a change. A key changes once per revision (the door refuses anything else); should it not, the last change counts,
    /// at the place of the first.
    fn record(&mut self, mut change: Change) {
        let versions = self.keys.entry(change.key.clone()).or_default();
        if let Some(last) = versions.last_mut().filter(|last| last.modified == change.version.modified) {
            change.version.sub = last.sub;
            *last = change.version.clone();
            if let Some(first) = self
                .changes
                .iter_mut()
                .rev()
                .find(|c| c.key == change.key && c.version.modified == change.version.modified)
            {
                first.version = change.version;
            }
            return;
        }
        versions.push(change.version.clone());
        self.changes.push(change);
    }
}

impl Source for Overlay<'_> {
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
        match self.keys.get(key).and_then(|versions| versions.last()) {
            Some(version) => Ok(Some(version.clone())),
            None => self.base.newest(key),
        }
    }

    fn scan(&self, interval: &Interval, at: i64, visit: &mut Visit<'_>) -> io::Result<()> {
        if *interval == Interval::Empty {
            return Ok(());
        }
        if let Interval::Key(key) = interval {
            return self.scan_key(key, at, visit);
        }
        // Merge: planned versions replace stored ones of the same key, if they are old enough for `at`.
        let mut planned = self
            .keys
            .range::<[u8], _>(interval.bounds())
            .filter_map(|(key, versions)| Some((key, versions.iter().rev().find(|version| version.modified <= at)?)))
            .peekable();
        let mut stopped = false;
        self.base.scan(interval, at, &mut |row| {
            while let Some((key, version)) = planned.next_if(|(key, _)| key.as_ref() <= row.key) {
                if version.live.is_some() && visit(Row::of(key, version)).is_break() {
                    stopped = true;
                    return ControlFlow::Break(());
                }
                if key.as_ref() == row.key {
                    return ControlFlow::Continue(());
                }
            }
            let flow = visit(row);
            stopped = flow.is_break();
            flow
        })?;
        if !stopped {
            for (key, version) in planned {
                if version.live.is_some() && visit(Row::of(key, version)).is_break() {
                    break;
                }
            }
        }
        Ok(())
    }

    fn lease(&self, id: i64) -> io::Result<Option<LeaseRecord>> {
        match self.leases.get(&id) {
            Some(lease) => Ok(*lease),
            None => self.base.lease(id),
        }
    }

    fn lease_keys(&self, id: i64) -> io::Result<Vec<Bytes>> {
        let mut keys: BTreeMap<Bytes, bool> = self.base.lease_keys(id)?.into_iter().map(|key| (key, true)).collect();
        for ((_, key), attached) in self.attached.range((id, Bytes::new())..).take_while(|((lease, _), _)| *lease == id)
        {
            keys.insert(key.clone(), *attached);
        }
        Ok(keys.into_iter().filter(|(_, attached)| *attached).map(|(key, _)| key).collect())
    }
}

impl Overlay<'_> {
    fn scan_key(&self, key: &Bytes, at: i64, visit: &mut Visit<'_>) -> io::Result<()> {
        let planned = self.keys.get(key).and_then(|versions| versions.iter().rev().find(|v| v.modified <= at));
        match planned {
            Some(version) if version.live.is_some() => {
                let _ = visit(Row::of(key, version));
                Ok(())
            }
            Some(_) => Ok(()),
            None => self.base.scan(&Interval::Key(key.clone()), at, visit),
        }
    }
}
