//! The quotas there are, as they are now and as an entry would change them, and their rows in the database.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use bytes::Bytes;
use pintle_proto::store_v1::failure::Reason;
use pintle_proto::store_v1::{
    PrefixQuota, PrefixQuotaRecord, PrefixUsage, Quota, QuotaChange, QuotaCount, QuotaName, UserQuota, quota,
    quota_change, quota_name,
};

use crate::limits;
use crate::mvcc::record::{corrupt, decode_checked, encode_checked};

/// Rows of the meta family begin with it.
pub(crate) const PREFIX: &[u8] = b"quota/";
const OF_PREFIX: &[u8] = b"quota/prefix/";
const OF_USER: &[u8] = b"quota/user/";

/// What keys take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Size {
    pub keys: i64,
    pub bytes: i64,
}

impl Size {
    pub fn of(key: &[u8], value: &[u8]) -> Self {
        Self { keys: 1, bytes: i64::try_from(key.len() + value.len()).unwrap_or(i64::MAX) }
    }
}

impl std::ops::AddAssign for Size {
    fn add_assign(&mut self, other: Self) {
        *self = Self { keys: self.keys + other.keys, bytes: self.bytes + other.bytes };
    }
}

impl std::ops::Sub for Size {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self { keys: self.keys - other.keys, bytes: self.bytes - other.bytes }
    }
}

/// The quotas there are. What is used changes in place; who reads it from elsewhere may see an entry half counted.
#[derive(Debug, Default)]
pub(crate) struct Quotas {
    prefixes: BTreeMap<Bytes, Used>,
    users: BTreeMap<String, UserQuota>,
    /// Lengths of the prefixes, shortest first.
    lengths: BTreeSet<usize>,
}

#[derive(Debug)]
struct Used {
    /// `keys` and `bytes` of it are as they were when it was made.
    record: PrefixQuotaRecord,
    keys: AtomicI64,
    bytes: AtomicI64,
}

impl Used {
    fn new(record: PrefixQuotaRecord) -> Self {
        let (keys, bytes) = (AtomicI64::new(record.keys), AtomicI64::new(record.bytes));
        Self { record, keys, bytes }
    }

    fn record(&self) -> PrefixQuotaRecord {
        let (keys, bytes) = (self.keys.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed));
        PrefixQuotaRecord { keys, bytes, ..self.record.clone() }
    }

    /// Takes over what is used, if nothing else changed.
    fn update(&self, record: &PrefixQuotaRecord) -> bool {
        let same = PrefixQuotaRecord { keys: self.record.keys, bytes: self.record.bytes, ..record.clone() };
        if same == self.record {
            self.keys.store(record.keys, Ordering::Relaxed);
            self.bytes.store(record.bytes, Ordering::Relaxed);
        }
        same == self.record
    }
}

impl Quotas {
    fn new(prefixes: BTreeMap<Bytes, Used>, users: BTreeMap<String, UserQuota>) -> Self {
        let lengths = prefixes.keys().map(Bytes::len).collect();
        Self { prefixes, users, lengths }
    }

    /// Reads the rows whose keys begin with [`PREFIX`].
    pub fn load<'a>(rows: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> io::Result<Self> {
        let (mut prefixes, mut users) = (BTreeMap::new(), BTreeMap::new());
        for (key, value) in rows {
            if let Some(prefix) = key.strip_prefix(OF_PREFIX) {
                prefixes.insert(Bytes::copy_from_slice(prefix), Used::new(decode_checked(value, "quota record")?));
            } else if key.starts_with(OF_USER) {
                let quota: UserQuota = decode_checked(value, "quota record")?;
                users.insert(quota.user.clone(), quota);
            } else {
                return Err(corrupt("quota record"));
            }
        }
        Ok(Self::new(prefixes, users))
    }

    pub fn user(&self, name: &str) -> Option<&UserQuota> {
        self.users.get(name)
    }

    pub fn users(&self) -> Vec<UserQuota> {
        self.users.values().cloned().collect()
    }

    pub fn usage(&self) -> Vec<PrefixUsage> {
        let usage = |used: &Used| {
            let PrefixQuotaRecord { quota, keys, bytes, counted, .. } = used.record();
            PrefixUsage { quota, keys, bytes, counted }
        };
        self.prefixes.values().map(usage).collect()
    }

    /// Everything but what is used, in order.
    pub fn all(&self) -> Vec<Quota> {
        let prefixes = self.prefixes.values().filter_map(|used| used.record.quota.clone()).map(quota::Of::Prefix);
        let users = self.users.values().cloned().map(quota::Of::User);
        prefixes.chain(users).map(|of| Quota { of: Some(of) }).collect()
    }

    /// Prefixes that are not counted yet, and the revisions to count them at.
    pub fn uncounted(&self) -> Vec<(Bytes, i64)> {
        let uncounted = self.prefixes.iter().filter(|(_, used)| !used.record.counted);
        uncounted.map(|(prefix, used)| (prefix.clone(), used.record.since)).collect()
    }

    /// An entry was written. Says what there is now if it is more than what is used.
    pub fn applied(&self, changes: &Changes) -> Option<Self> {
        let mut others = !changes.users.is_empty();
        for (prefix, record) in &changes.prefixes {
            let updated = match (self.prefixes.get(prefix), record) {
                (Some(used), Some(record)) => used.update(record),
                (None, None) => true,
                _ => false,
            };
            others |= !updated;
        }
        if !others {
            return None;
        }
        let mut records: BTreeMap<Bytes, PrefixQuotaRecord> =
            self.prefixes.iter().map(|(prefix, used)| (prefix.clone(), used.record())).collect();
        let mut users = self.users.clone();
        for (prefix, record) in &changes.prefixes {
            match record {
                Some(record) => drop(records.insert(prefix.clone(), record.clone())),
                None => drop(records.remove(prefix)),
            }
        }
        for (name, quota) in &changes.users {
            match quota {
                Some(quota) => drop(users.insert(name.clone(), quota.clone())),
                None => drop(users.remove(name)),
            }
        }
        Some(Self::new(records.into_iter().map(|(prefix, record)| (prefix, Used::new(record))).collect(), users))
    }
}

/// What an entry changes; `None` removes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Changes {
    prefixes: BTreeMap<Bytes, Option<PrefixQuotaRecord>>,
    users: BTreeMap<String, Option<UserQuota>>,
}

impl Changes {
    pub fn is_empty(&self) -> bool {
        self.prefixes.is_empty() && self.users.is_empty()
    }
}

/// The rows of the meta family for what an entry changes.
pub(crate) fn rows(changes: &Changes) -> impl Iterator<Item = (Vec<u8>, Option<Vec<u8>>)> {
    let prefixes = changes
        .prefixes
        .iter()
        .map(|(prefix, record)| ([OF_PREFIX, prefix].concat(), record.as_ref().map(encode_checked)));
    let users = changes
        .users
        .iter()
        .map(|(name, quota)| ([OF_USER, name.as_bytes()].concat(), quota.as_ref().map(encode_checked)));
    prefixes.chain(users)
}

/// The quotas as the entry that is being planned leaves them.
pub(crate) struct Planned {
    base: Arc<Quotas>,
    changes: Changes,
    lengths: BTreeSet<usize>,
}

impl Planned {
    pub fn new(base: Arc<Quotas>) -> Self {
        let lengths = base.lengths.clone();
        Self { base, changes: Changes::default(), lengths }
    }

    pub fn into_changes(self) -> Changes {
        self.changes
    }

    /// The same where everything that is there has been counted.
    pub fn into_counted(mut self) -> Changes {
        self.changes.prefixes.values_mut().flatten().for_each(|record| record.counted = true);
        self.changes
    }

    /// Whether no prefix has a quota.
    pub fn is_empty(&self) -> bool {
        self.lengths.is_empty()
    }

    pub fn get(&self, prefix: &[u8]) -> Option<PrefixQuotaRecord> {
        match self.changes.prefixes.get(prefix) {
            Some(record) => record.clone(),
            None => self.base.prefixes.get(prefix).map(Used::record),
        }
    }

    /// The quotas that `key` falls under, shortest prefix first.
    pub fn over(&self, key: &[u8]) -> impl Iterator<Item = (Bytes, PrefixQuotaRecord)> {
        let prefixes = self.lengths.iter().map_while(|length| key.get(..*length));
        prefixes.filter_map(|prefix| Some((Bytes::copy_from_slice(prefix), self.get(prefix)?)))
    }

    /// Something under a key changed.
    pub fn count(&mut self, key: &[u8], change: Size) {
        if self.is_empty() {
            return;
        }
        let found: Vec<(Bytes, PrefixQuotaRecord)> = self.over(key).collect();
        for (prefix, mut record) in found {
            record.keys += change.keys;
            record.bytes += change.bytes;
            self.changes.prefixes.insert(prefix, Some(record));
        }
    }

    /// Sets or removes a quota, from the entry's revision on.
    pub fn change(&mut self, change: &QuotaChange, revision: i64) -> Result<(), Reason> {
        match change.change.as_ref().ok_or(Reason::Malformed)? {
            quota_change::Change::Set(Quota { of }) => match of.as_ref().ok_or(Reason::Malformed)? {
                quota::Of::Prefix(quota) => self.set(quota, revision),
                quota::Of::User(quota) => self.set_user(quota),
            },
            quota_change::Change::Remove(QuotaName { of }) => match of.as_ref().ok_or(Reason::Malformed)? {
                quota_name::Of::Prefix(prefix) => {
                    self.get(prefix).ok_or(Reason::QuotaUnknown)?;
                    self.changes.prefixes.insert(prefix.clone(), None);
                    self.measure();
                    Ok(())
                }
                quota_name::Of::User(name) => {
                    self.user(name).ok_or(Reason::QuotaUnknown)?;
                    self.changes.users.insert(name.clone(), None);
                    Ok(())
                }
            },
        }
    }

    fn set(&mut self, quota: &PrefixQuota, since: i64) -> Result<(), Reason> {
        if quota.prefix.len() > limits::QUOTA_PREFIX_BYTES || (quota.keys, quota.bytes) == (None, None) {
            return Err(Reason::Malformed);
        }
        let before = self.get(&quota.prefix);
        if before.is_none() && self.len() >= limits::QUOTAS {
            return Err(Reason::TooManyQuotas);
        }
        // Another limit needs no other count.
        let mut record = before.unwrap_or(PrefixQuotaRecord { since, ..PrefixQuotaRecord::default() });
        record.quota = Some(quota.clone());
        self.changes.prefixes.insert(quota.prefix.clone(), Some(record));
        self.measure();
        Ok(())
    }

    fn set_user(&mut self, quota: &UserQuota) -> Result<(), Reason> {
        let named = !quota.user.is_empty() && quota.user.len() <= limits::QUOTA_PREFIX_BYTES;
        if !named || (quota.requests, quota.bytes) == (None, None) {
            return Err(Reason::Malformed);
        }
        if self.user(&quota.user).is_none() && self.len() >= limits::QUOTAS {
            return Err(Reason::TooManyQuotas);
        }
        self.changes.users.insert(quota.user.clone(), Some(quota.clone()));
        Ok(())
    }

    /// What the leader counted. Void unless it is what is waited for.
    pub fn counted(&mut self, count: &QuotaCount, revision: i64) {
        let Some(mut record) = self.get(&count.prefix) else { return };
        if record.counted || record.since != count.since {
            return;
        }
        if count.anew {
            (record.since, record.keys, record.bytes) = (revision, 0, 0);
        } else {
            record.keys += count.keys;
            record.bytes += count.bytes;
            record.counted = true;
        }
        self.changes.prefixes.insert(count.prefix.clone(), Some(record));
    }

    fn user(&self, name: &str) -> Option<UserQuota> {
        self.changes.users.get(name).cloned().unwrap_or_else(|| self.base.users.get(name).cloned())
    }

    fn len(&self) -> usize {
        let added = |changed: usize, known: usize| changed + known;
        let new_prefixes = self.changes.prefixes.keys().filter(|prefix| !self.base.prefixes.contains_key(*prefix));
        let new_users = self.changes.users.keys().filter(|name| !self.base.users.contains_key(*name));
        added(new_prefixes.count(), self.base.prefixes.len()) + added(new_users.count(), self.base.users.len())
    }

    fn measure(&mut self) {
        let Self { base, changes, lengths } = self;
        let kept = base.prefixes.keys().filter(|prefix| changes.prefixes.get(*prefix).is_none_or(Option::is_some));
        let set = changes.prefixes.iter().filter(|(_, record)| record.is_some()).map(|(prefix, _)| prefix);
        *lengths = kept.chain(set).map(Bytes::len).collect();
    }
}
