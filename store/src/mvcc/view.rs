//! A consistent view of the state at one moment, and the trait by which apply and reads see any state, stored or planned.

use std::collections::BTreeSet;
use std::io;
use std::ops::ControlFlow;

use bytes::Bytes;
use pintle_proto::store_v1::{Alarm, LeaseRecord, MemberAttributes, StateRecord};
use rocksdb::{DB, DBRawIteratorWithThreadMode, ReadOptions, SnapshotWithThreadMode};

use super::key::{self, Interval};
use super::record::{Row, Version, corrupt, decode_checked};
use crate::auth::{self, AuthState};
use crate::engine::{EXPECTED_PREFIX, Generation, KV, LEASE, MEMBER_PREFIX, META, REV, STATE_KEY, read_state};
use crate::quota::{self, Quotas};

/// Steps tried before a seek: neighbours usually lie in the same block, where a step is ten times cheaper.
const STEPS_BEFORE_SEEK: usize = 8;

/// Says whether to go on.
pub(crate) type Visit<'a> = dyn FnMut(Row<'_>) -> ControlFlow<()> + 'a;

/// A state that can be read: the stored one, or the one a plan would make.
pub(crate) trait Source {
    fn revision(&self) -> i64;
    /// Everything before it may be gone; 0 if nothing was ever compacted.
    fn compacted(&self) -> i64;
    /// Counts lease grants and renewals.
    fn lease_stamp(&self) -> u64;
    /// In the order of kind and member.
    fn alarms(&self) -> &[Alarm];
    /// The newest version of `key`, also if it is a tombstone.
    fn newest(&self, key: &[u8]) -> io::Result<Option<Version>>;
    /// Visits, in key order, what lives in `interval` at revision `at`.
    fn scan(&self, interval: &Interval, at: i64, visit: &mut Visit<'_>) -> io::Result<()>;
    fn lease(&self, id: i64) -> io::Result<Option<LeaseRecord>>;
    /// The keys attached to a lease, in order.
    fn lease_keys(&self, id: i64) -> io::Result<Vec<Bytes>>;
}

/// The stored state at one moment.
pub(crate) struct View<'a> {
    generation: &'a Generation,
    snapshot: SnapshotWithThreadMode<'a, DB>,
    pub state: StateRecord,
}

pub(crate) type RawIterator<'a> = DBRawIteratorWithThreadMode<'a, DB>;

impl<'a> View<'a> {
    pub fn new(generation: &'a Generation) -> io::Result<Self> {
        let snapshot = generation.db().snapshot();
        let raw = snapshot.get_pinned_cf(generation.family(META)?, STATE_KEY).map_err(io::Error::other)?;
        let state = read_state(raw.as_deref())?;
        drop(raw);
        Ok(Self { generation, snapshot, state })
    }

    pub fn meta(&self, name: &[u8]) -> io::Result<Option<Vec<u8>>> {
        self.snapshot.get_cf(self.generation.family(META)?, name).map_err(io::Error::other)
    }

    /// The version of `key` that was the newest at `at`, also if it is a tombstone.
    pub fn version_at(&self, key: &[u8], at: i64) -> io::Result<Option<Version>> {
        let mut seek = key::prefix(key);
        let prefix_len = seek.len();
        key::push_revision(&mut seek, at);
        let mut iterator = self.versions_of_key(&seek, upper_of_prefix(&seek[..prefix_len]))?;
        iterator.seek(&seek);
        match iterator.item() {
            Some((raw, value)) if raw.len() == seek.len() && raw[..prefix_len] == seek[..prefix_len] => {
                let modified = key::parse_version(raw, &mut Vec::new()).ok_or_else(|| corrupt("version key"))?;
                Version::decode(modified, value).map(Some)
            }
            Some(_) => Ok(None),
            None => iterator.status().map(|()| None).map_err(io::Error::other),
        }
    }

    /// The version written exactly at `modified`.
    pub fn version(&self, key: &[u8], modified: i64) -> io::Result<Option<Version>> {
        let raw = self
            .snapshot
            .get_pinned_cf(self.generation.family(KV)?, key::version(key, modified))
            .map_err(io::Error::other)?;
        raw.map(|raw| Version::decode(modified, &raw)).transpose()
    }

    /// True if nothing after `main` and up to `at` was written to the key.
    pub fn is_newest(&self, key: &[u8], main: i64, at: i64) -> io::Result<bool> {
        Ok(self.version_at(key, at)?.is_some_and(|version| version.modified == main))
    }

    /// An unpositioned iterator over `kv` from `lower` to before `upper`.
    fn versions(&self, lower: &[u8], upper: Option<Vec<u8>>) -> io::Result<RawIterator<'_>> {
        let mut options = ReadOptions::default();
        options.set_total_order_seek(true);
        self.iterator(options, lower, upper)
    }

    /// An iterator over `kv` from a row on, or from the first one after it; the cache is left to others.
    pub fn every_version(&self, from: &[u8]) -> io::Result<RawIterator<'_>> {
        let mut options = ReadOptions::default();
        options.set_total_order_seek(true);
        options.fill_cache(false);
        let mut iterator = self.snapshot.raw_iterator_cf_opt(self.generation.family(KV)?, options);
        iterator.seek(from);
        Ok(iterator)
    }

    /// The same within the versions of one key, that of the seek: files that have none of it are passed over without a read.
    pub fn versions_of_key(&self, lower: &[u8], upper: Option<Vec<u8>>) -> io::Result<RawIterator<'_>> {
        let mut options = ReadOptions::default();
        options.set_prefix_same_as_start(true);
        self.iterator(options, lower, upper)
    }

    fn iterator(&self, mut options: ReadOptions, lower: &[u8], upper: Option<Vec<u8>>) -> io::Result<RawIterator<'_>> {
        options.set_iterate_lower_bound(lower);
        if let Some(upper) = upper {
            options.set_iterate_upper_bound(upper);
        }
        Ok(self.snapshot.raw_iterator_cf_opt(self.generation.family(KV)?, options))
    }

    /// An iterator over `rev`, positioned at the first change of `main` or later.
    pub fn changes(&self, main: i64) -> io::Result<RawIterator<'_>> {
        let mut iterator = self.snapshot.raw_iterator_cf(self.generation.family(REV)?);
        iterator.seek(key::revision(main, 0));
        Ok(iterator)
    }

    /// What members said of themselves.
    pub fn members(&self) -> io::Result<Vec<MemberAttributes>> {
        self.meta_rows(MEMBER_PREFIX)?.iter().map(|(_, value)| decode_checked(value, "member record")).collect()
    }

    /// Users and roles.
    pub fn auth(&self) -> io::Result<AuthState> {
        let rows = self.meta_rows(auth::PREFIX)?;
        AuthState::load(rows.iter().map(|(key, value)| (key.as_slice(), value.as_slice())))
    }

    /// Quotas, and what is used of them.
    pub fn quotas(&self) -> io::Result<Quotas> {
        let rows = self.meta_rows(quota::PREFIX)?;
        Quotas::load(rows.iter().map(|(key, value)| (key.as_slice(), value.as_slice())))
    }

    /// Members that are to vote once they have caught up.
    pub fn expected_voters(&self) -> io::Result<BTreeSet<u64>> {
        let id = |key: &[u8]| key.strip_prefix(EXPECTED_PREFIX)?.try_into().ok().map(u64::from_be_bytes);
        let rows = self.meta_rows(EXPECTED_PREFIX)?;
        rows.iter().map(|(key, _)| id(key).ok_or_else(|| corrupt("voter record"))).collect()
    }

    /// The rows of the meta family whose keys begin with `prefix`.
    fn meta_rows(&self, prefix: &[u8]) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let mut iterator = self.snapshot.raw_iterator_cf(self.generation.family(META)?);
        iterator.seek(prefix);
        let mut rows = Vec::new();
        while let Some((raw, value)) = iterator.item().filter(|(raw, _)| raw.starts_with(prefix)) {
            rows.push((raw.to_vec(), value.to_vec()));
            iterator.next();
        }
        iterator.status().map_err(io::Error::other)?;
        Ok(rows)
    }

    /// All leases, in the order of their ids' bytes.
    pub fn leases(&self) -> io::Result<Vec<(i64, LeaseRecord)>> {
        let mut iterator = self.snapshot.raw_iterator_cf(self.generation.family(LEASE)?);
        iterator.seek([LEASE_RECORD]);
        let mut found = Vec::new();
        while let Some((raw, value)) = iterator.item() {
            let Some(id) = parse_lease(raw) else { break };
            found.push((id, decode_checked(value, "lease record")?));
            iterator.next();
        }
        iterator.status().map_err(io::Error::other)?;
        Ok(found)
    }
}

impl Source for View<'_> {
    fn revision(&self) -> i64 {
        self.state.revision
    }

    fn compacted(&self) -> i64 {
        self.state.compact_revision
    }

    fn lease_stamp(&self) -> u64 {
        self.state.lease_stamp
    }

    fn alarms(&self) -> &[Alarm] {
        &self.state.alarms
    }

    fn newest(&self, key: &[u8]) -> io::Result<Option<Version>> {
        self.version_at(key, i64::MAX)
    }

    fn scan(&self, interval: &Interval, at: i64, visit: &mut Visit<'_>) -> io::Result<()> {
        let (lower, upper) = match interval {
            Interval::Empty => return Ok(()),
            Interval::Key(key) => {
                if let Some(version) = self.version_at(key, at)?
                    && version.live.is_some()
                {
                    let _ = visit(Row::of(key, &version));
                }
                return Ok(());
            }
            Interval::Range(start, end) => (key::prefix(start), Some(key::prefix(end))),
            Interval::From(start) => (key::prefix(start), None),
        };
        let mut iterator = self.versions(&lower, upper)?;
        iterator.seek(&lower);
        walk_keys(&mut iterator, at, visit)?;
        iterator.status().map_err(io::Error::other)
    }

    fn lease(&self, id: i64) -> io::Result<Option<LeaseRecord>> {
        let raw =
            self.snapshot.get_pinned_cf(self.generation.family(LEASE)?, lease_key(id)).map_err(io::Error::other)?;
        raw.map(|raw| decode_checked(&raw, "lease record")).transpose()
    }

    fn lease_keys(&self, id: i64) -> io::Result<Vec<Bytes>> {
        let prefix = attachment_key(id, &[]);
        let mut iterator = self.snapshot.raw_iterator_cf(self.generation.family(LEASE)?);
        iterator.seek(&prefix);
        let mut keys = Vec::new();
        while let Some(key) = iterator.key().and_then(|raw| raw.strip_prefix(prefix.as_slice())) {
            keys.push(Bytes::copy_from_slice(key));
            iterator.next();
        }
        iterator.status().map_err(io::Error::other)?;
        Ok(keys)
    }
}

/// From the iterator's position on, visits the version each key had at `at`, if it was alive.
fn walk_keys(iterator: &mut RawIterator<'_>, at: i64, visit: &mut Visit<'_>) -> io::Result<()> {
    let mut key = Vec::new();
    let mut prefix = Vec::new();
    while let Some((raw, value)) = iterator.item() {
        let modified = key::parse_version(raw, &mut key).ok_or_else(|| corrupt("version key"))?;
        prefix.clear();
        prefix.extend_from_slice(key::prefix_of(raw));
        if modified > at {
            skip_to(iterator, &prefix, at);
            continue;
        }
        let row = Row::parse(&key, modified, value)?;
        if row.live && visit(row).is_break() {
            return Ok(());
        }
        skip_key(iterator, &prefix);
    }
    Ok(())
}

/// Moves on to the version of the same key that was the newest at `at`, or to the next key.
fn skip_to(iterator: &mut RawIterator<'_>, prefix: &[u8], at: i64) {
    let mut target = prefix.to_vec();
    key::push_revision(&mut target, at);
    if !step_until(iterator, |raw| raw >= target.as_slice()) {
        iterator.seek(target);
    }
}

/// Moves on to the next key.
fn skip_key(iterator: &mut RawIterator<'_>, prefix: &[u8]) {
    // No key is a prefix of another, and what comes after the last version is another key.
    if !step_until(iterator, |raw| !raw.starts_with(prefix))
        && let Some(target) = upper_of_prefix(prefix)
    {
        iterator.seek(target);
    }
}

/// Takes a few steps; says whether they came to what is `wanted`, or to the end.
fn step_until(iterator: &mut RawIterator<'_>, wanted: impl Fn(&[u8]) -> bool) -> bool {
    for _ in 0..STEPS_BEFORE_SEEK {
        iterator.next();
        if iterator.key().is_none_or(&wanted) {
            return true;
        }
    }
    false
}

/// The first key after all that begin with a version prefix: its terminator 00 01 raised to 00 02.
fn upper_of_prefix(prefix: &[u8]) -> Option<Vec<u8>> {
    let mut upper = prefix.to_vec();
    *upper.last_mut()? += 1;
    Some(upper)
}

const LEASE_RECORD: u8 = b'L';
const ATTACHMENT: u8 = b'K';

pub(crate) fn lease_key(id: i64) -> [u8; 9] {
    let mut out = [LEASE_RECORD; 9];
    out[1..].copy_from_slice(&id.to_be_bytes());
    out
}

fn parse_lease(raw: &[u8]) -> Option<i64> {
    let (&LEASE_RECORD, id) = raw.split_first()? else { return None };
    Some(i64::from_be_bytes(id.try_into().ok()?))
}

/// The lease and the key of an attachment.
pub(crate) fn parse_attachment(raw: &[u8]) -> Option<(i64, &[u8])> {
    let (&ATTACHMENT, rest) = raw.split_first()? else { return None };
    let (id, key) = rest.split_first_chunk::<8>()?;
    Some((i64::from_be_bytes(*id), key))
}

pub(crate) fn attachment_key(id: i64, key: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(9 + key.len());
    out.push(ATTACHMENT);
    out.extend_from_slice(&id.to_be_bytes());
    out.extend_from_slice(key);
    out
}
