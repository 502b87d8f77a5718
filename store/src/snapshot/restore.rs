//! Makes the data directory of a member of a new cluster from a file that [`super::save`], or an etcd, wrote.
//!
//! Always holds: the directory appears whole, by a rename, or not at all; all members restored from one file with the same members
//! named hold the same state. Nothing in the file is believed: a row that cannot be, or does not fit those before it, is an error.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, TryLockError};
use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use pintle_proto::etcdserverpb::AlarmType;
use pintle_proto::mvccpb::KeyValue;
use pintle_proto::store_v1::{Alarm, AuthRecord, LeaseRecord, QuotaChange, StateRecord, UserRecord, quota_change};
use pintle_raft::offline::{Founding, OfflineError, found};
use prost::Message;
use rocksdb::WriteBatch;

use super::schema::{self, Place, damaged};
use crate::auth::{HEAD_KEY, ROLE_PREFIX, USER_PREFIX};
use crate::bolt::{Bolt, BoltError};
use crate::engine::{Engine, EngineOptions, Generation, KV, LEASE, MEMBERSHIP_KEY, META, REV, STATE_KEY};
use crate::error::OpenError;
use crate::limits;
use crate::mvcc::hash;
use crate::mvcc::key::{self, Interval};
use crate::mvcc::record::{Live, Version, encode_change, encode_checked};
use crate::mvcc::view::{Source, attachment_key, lease_key};
use crate::quota::{self, Planned, Size};

/// Where a member's parts lie in its data directory.
pub const STATE_DIR: &str = "state";
pub const RAFT_DIR: &str = "raft";

/// How a file is restored.
#[derive(Clone, Debug, Default)]
pub struct RestoreOptions {
    /// Take a file without a checksum, or with a wrong one: a copy of an etcd's database has none.
    pub skip_hash_check: bool,
    /// Added to the revision, so that clients that remember later ones than the file has never see them come again.
    pub bump_revision: i64,
    /// Have everything before the new revision count as compacted: watches from before are told so.
    pub mark_compacted: bool,
    pub engine: EngineOptions,
}

/// What was restored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    pub revision: i64,
    pub compact_revision: i64,
    /// Changes kept, and keys that live now.
    pub changes: u64,
    pub keys: u64,
    pub leases: u64,
    pub users: u64,
    pub roles: u64,
    pub quotas: u64,
    pub auth_enabled: bool,
    /// As `HashKV` would answer.
    pub hash: u32,
    /// Keys whose lease is not in the file: they stay for ever.
    pub without_lease: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    #[error("data-dir {:?} not empty or could not be read", .dir.display())]
    Occupied { dir: PathBuf },
    #[error("read the snapshot {}", .file.display())]
    File {
        file: PathBuf,
        #[source]
        source: BoltError,
    },
    #[error("make the data directory {}", .dir.display())]
    Directory {
        dir: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Row(#[from] io::Error),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Log(#[from] OfflineError),
}

/// Makes `data_dir`. `tell` hears how many changes have been taken over. Blocks.
pub fn restore(
    file: &Path,
    data_dir: &Path,
    founding: &Founding,
    options: &RestoreOptions,
    tell: &mut dyn FnMut(u64),
) -> Result<Restored, RestoreError> {
    if fs::read_dir(data_dir).is_ok_and(|mut entries| entries.next().is_some()) || data_dir.is_file() {
        return Err(RestoreError::Occupied { dir: data_dir.to_owned() });
    }
    let failed = |source| RestoreError::File { file: file.to_owned(), source };
    let bolt = Bolt::open_snapshot(file, !options.skip_hash_check).map_err(failed)?;
    let draft = Draft::make(data_dir)?;
    let engine = Engine::open(&draft.path.join(STATE_DIR), options.engine.clone())?;
    let generation = engine.current();
    let restored = Restoring::new(&bolt, &generation, founding).run(options, tell)?;
    found(&draft.path.join(RAFT_DIR), founding, |dir| generation.checkpoint(dir))?;
    drop((generation, engine));
    draft.finish(data_dir)?;
    Ok(restored)
}

/// The directory while it is made; removed unless finished.
struct Draft {
    path: PathBuf,
    /// Locked for as long as it is written to: two at once would mix.
    _held: File,
    parent: PathBuf,
    finished: bool,
}

impl Draft {
    fn make(target: &Path) -> Result<Self, RestoreError> {
        let failed = |source| RestoreError::Directory { dir: target.to_owned(), source };
        let absolute = std::path::absolute(target).map_err(failed)?;
        let (Some(parent), Some(name)) = (absolute.parent(), absolute.file_name()) else {
            return Err(failed(io::ErrorKind::InvalidInput.into()));
        };
        fs::create_dir_all(parent).map_err(failed)?;
        let path = parent.join(format!(".{}.restoring", name.to_string_lossy()));
        let busy = || io::Error::new(io::ErrorKind::ResourceBusy, "another restore writes into it now");
        let hold = |path: &Path| {
            let dir = File::open(path)?;
            match dir.try_lock() {
                // What was locked may have been removed and made anew by another in between.
                Ok(()) if fs::metadata(path)?.ino() != dir.metadata()?.ino() => Err(busy()),
                Ok(()) => Ok(dir),
                Err(TryLockError::WouldBlock) => Err(busy()),
                Err(TryLockError::Error(error)) => Err(error),
            }
        };
        if path.exists() {
            let _of_a_run_that_was_cut_off = hold(&path).map_err(failed)?;
            fs::remove_dir_all(&path).map_err(failed)?;
        }
        fs::DirBuilder::new().mode(0o700).create(&path).map_err(failed)?;
        let held = hold(&path).map_err(failed)?;
        Ok(Self { path, _held: held, parent: parent.to_owned(), finished: false })
    }

    fn finish(mut self, target: &Path) -> Result<(), RestoreError> {
        let failed = |source| RestoreError::Directory { dir: target.to_owned(), source };
        let sync = |dir: &Path| File::open(dir).and_then(|dir| dir.sync_all());
        sync(&self.path).map_err(failed)?;
        if target.exists() {
            fs::remove_dir(target).map_err(failed)?; // refuses one that is not empty
        }
        fs::rename(&self.path, target).map_err(failed)?;
        self.finished = true;
        sync(&self.parent).map_err(failed)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.finished
            && let Err(error) = fs::remove_dir_all(&self.path)
        {
            tracing::warn!(%error, path = %self.path.display(), "an unfinished directory is left behind");
        }
    }
}

struct Restoring<'a> {
    bolt: &'a Bolt,
    generation: &'a Generation,
    founding: &'a Founding,
    leases: BTreeMap<i64, LeaseRecord>,
    quotas: Planned,
    batch: WriteBatch,
    found: Restored,
}

impl<'a> Restoring<'a> {
    fn new(bolt: &'a Bolt, generation: &'a Generation, founding: &'a Founding) -> Self {
        let (leases, quotas, batch) = (BTreeMap::new(), Planned::new(Arc::default()), WriteBatch::default());
        Self { bolt, generation, founding, leases, quotas, batch, found: Restored::default() }
    }

    fn run(mut self, options: &RestoreOptions, tell: &mut dyn FnMut(u64)) -> io::Result<Restored> {
        self.read_compaction()?;
        self.read_leases()?;
        self.read_changes(tell)?;
        self.read_auth()?;
        self.found.revision = self.found.revision.max(self.found.compact_revision).max(1);
        self.found.revision = self.found.revision.checked_add(options.bump_revision).ok_or_else(too_large)?;
        if self.found.revision > limits::RESTORE_REVISION {
            return Err(too_large());
        }
        if options.mark_compacted {
            self.found.compact_revision = self.found.revision;
        }
        self.read_quotas()?;
        self.write_state()?;
        self.attach_leases()?;
        self.write_quotas()?;
        self.generation.flush()?;
        let view = self.generation.view()?;
        self.found.hash = hash::hash_kv(&view, self.found.revision, |_| ControlFlow::Continue(()))?;
        drop(view);
        Ok(self.found)
    }

    fn rows(&self, bucket: &[u8], visit: &mut dyn FnMut(&[u8], &[u8]) -> io::Result<()>) -> io::Result<()> {
        let Some(rows) = self.bolt.bucket(bucket).map_err(unreadable)? else { return Ok(()) };
        for row in rows {
            let (key, value) = row.map_err(unreadable)?;
            visit(&key, &value)?;
        }
        Ok(())
    }

    fn read_compaction(&mut self) -> io::Result<()> {
        let mut compacted = 0;
        self.rows(schema::META, &mut |key, value| {
            if [schema::COMPACT_SCHEDULED, schema::COMPACT_FINISHED].contains(&key) {
                compacted = Place::parse(value).ok_or_else(|| damaged(schema::META))?.main.max(compacted);
            }
            Ok(())
        })?;
        self.found.compact_revision = compacted;
        Ok(())
    }

    fn read_leases(&mut self) -> io::Result<()> {
        let mut leases = BTreeMap::new();
        self.rows(schema::LEASE, &mut |_, value| {
            let (id, ttl) = schema::parse_lease(value)?;
            let stamp = leases.len() as u64 + 1;
            leases.insert(id, LeaseRecord { ttl_seconds: ttl.min(limits::LEASE_TTL_MAX), stamp });
            Ok(())
        })?;
        let family = self.generation.family(LEASE)?;
        for (id, record) in &leases {
            self.batch.put_cf(family, lease_key(*id), encode_checked(record));
        }
        self.found.leases = leases.len() as u64;
        self.leases = leases;
        Ok(())
    }

    fn read_changes(&mut self, tell: &mut dyn FnMut(u64)) -> io::Result<()> {
        let (kv, rev) = (self.generation.family(KV)?, self.generation.family(REV)?);
        let mut batch = std::mem::take(&mut self.batch);
        let (mut changes, mut last) = (0, None::<Place>);
        // Of the revision that is being read: a key changes once in it.
        let mut changed = BTreeSet::new();
        self.rows(schema::KEY, &mut |raw, value| {
            let place = Place::parse(raw).ok_or_else(|| damaged(schema::KEY))?;
            let (key, version) = parse_change(place, value)?;
            if last.is_none_or(|last| last.main != place.main) {
                changed.clear();
            }
            let follows = last.is_none_or(|last| (last.main, last.sub) < (place.main, place.sub));
            if !follows || !changed.insert(key.clone()) {
                return Err(damaged(schema::KEY));
            }
            batch.put_cf(rev, key::revision(place.main, place.sub), encode_change(&key, &version));
            batch.put_cf(kv, key::version(&key, place.main), version.encode());
            (changes, last) = (changes + 1, Some(place));
            if batch.size_in_bytes() >= limits::RESTORE_BATCH {
                self.generation.write(std::mem::take(&mut batch))?;
                tell(changes);
            }
            Ok(())
        })?;
        tell(changes);
        self.batch = batch;
        (self.found.changes, self.found.revision) = (changes, last.map_or(0, |last| last.main));
        Ok(())
    }

    fn read_auth(&mut self) -> io::Result<()> {
        let (mut enabled, mut revision) = (false, 1);
        self.rows(schema::AUTH, &mut |key, value| {
            match key {
                schema::AUTH_ENABLED => enabled = value == [1],
                schema::AUTH_REVISION => revision = schema::parse_number(schema::AUTH, value)?.max(1),
                _ => (),
            }
            Ok(())
        })?;
        let mut users: BTreeMap<String, UserRecord> = BTreeMap::new();
        self.rows(schema::AUTH_USERS, &mut |_, value| {
            let (name, record) = schema::parse_user(value, revision)?;
            users.insert(name, record);
            Ok(())
        })?;
        let mut roles = BTreeMap::new();
        self.rows(schema::AUTH_ROLES, &mut |_, value| {
            let (name, role) = schema::parse_role(value)?;
            roles.insert(name, role);
            Ok(())
        })?;
        let meta = self.generation.family(META)?;
        // The key that signs logins is not in the file: the first leader makes one, and who was logged in does so again.
        let head = AuthRecord { enabled, revision, token_key: Bytes::new() };
        self.batch.put_cf(meta, HEAD_KEY, encode_checked(&head));
        for (name, record) in &users {
            self.batch.put_cf(meta, [USER_PREFIX, name.as_bytes()].concat(), encode_checked(record));
        }
        for (name, role) in &roles {
            self.batch.put_cf(meta, [ROLE_PREFIX, name.as_bytes()].concat(), encode_checked(role));
        }
        (self.found.users, self.found.roles) = (users.len() as u64, roles.len() as u64);
        self.found.auth_enabled = enabled;
        Ok(())
    }

    fn read_quotas(&mut self) -> io::Result<()> {
        let (mut quotas, mut found, since) = (Planned::new(Arc::default()), 0, self.found.revision);
        self.rows(schema::QUOTAS, &mut |_, value| {
            let change = QuotaChange { change: Some(quota_change::Change::Set(schema::parse_quota(value)?)) };
            found += 1;
            quotas.change(&change, since).map_err(|_| damaged(schema::QUOTAS))
        })?;
        (self.quotas, self.found.quotas) = (quotas, found);
        Ok(())
    }

    /// All keys have been visited: what is used is known.
    fn write_quotas(&mut self) -> io::Result<()> {
        let meta = self.generation.family(META)?;
        let quotas = std::mem::replace(&mut self.quotas, Planned::new(Arc::default()));
        let mut batch = WriteBatch::default();
        for (key, row) in quota::rows(&quotas.into_counted()) {
            row.into_iter().for_each(|row| batch.put_cf(meta, &key, row));
        }
        self.generation.write(batch)
    }

    fn write_state(&mut self) -> io::Result<()> {
        let mut alarms = Vec::new();
        self.rows(schema::ALARM, &mut |key, _| {
            alarms.push(schema::parse_alarm(key)?);
            Ok(())
        })?;
        // Space is looked at anew, by members that have other ids.
        alarms.retain(|alarm: &Alarm| alarm.kind == AlarmType::Corrupt as i32);
        alarms.sort_by_key(|alarm| (alarm.kind, alarm.member));
        let state = StateRecord {
            revision: self.found.revision,
            compact_revision: self.found.compact_revision,
            applied_term: self.founding.at.term,
            applied_index: self.founding.at.index,
            has_applied: true,
            lease_stamp: self.leases.len() as u64,
            alarms,
        };
        let meta = self.generation.family(META)?;
        self.batch.put_cf(meta, STATE_KEY, encode_checked(&state));
        self.batch.put_cf(meta, MEMBERSHIP_KEY, self.founding.membership().map_err(io::Error::other)?);
        self.generation.write(std::mem::take(&mut self.batch))
    }

    /// Which keys go with a lease is not in the file: it follows from what lives.
    fn attach_leases(&mut self) -> io::Result<()> {
        let family = self.generation.family(LEASE)?;
        let view = self.generation.view()?;
        let mut batch = WriteBatch::default();
        let mut failed = None;
        view.scan(&Interval::From(Bytes::new()), self.found.revision, &mut |row| {
            self.found.keys += 1;
            self.quotas.count(row.key, Size::of(row.key, row.value));
            if row.lease != 0 && self.leases.contains_key(&row.lease) {
                batch.put_cf(family, attachment_key(row.lease, row.key), []);
            } else if row.lease != 0 {
                self.found.without_lease += 1;
            }
            if batch.size_in_bytes() < limits::RESTORE_BATCH {
                return ControlFlow::Continue(());
            }
            failed = self.generation.write(std::mem::take(&mut batch)).err();
            if failed.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        drop(view);
        failed.map_or(Ok(()), Err)?;
        self.generation.write(batch)
    }
}

/// A row of the bucket `key`, if it is what its place says.
fn parse_change(place: Place, value: &[u8]) -> io::Result<(Bytes, Version)> {
    let KeyValue { key, create_revision, mod_revision, version, value, lease } =
        KeyValue::decode(value).map_err(|_| damaged(schema::KEY))?;
    let live = (!place.deleted).then_some(Live { created: create_revision, version, lease, value });
    let fits = place.deleted || (mod_revision == place.main && create_revision > 0 && version > 0);
    if key.is_empty() || !fits || create_revision > place.main {
        return Err(damaged(schema::KEY));
    }
    Ok((key, Version { modified: place.main, sub: place.sub, live }))
}

fn unreadable(error: BoltError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

fn too_large() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "the revision would be too large")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_restores_into_one_directory_the_second_is_told_and_what_a_crash_left_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("data");
        let first = Draft::make(&target).unwrap();
        fs::write(first.path.join("row"), "of the first").unwrap();
        let second = Draft::make(&target).err().map(|error| pintle_base::error::Chain(&error).to_string()).unwrap();
        assert!(second.contains("another restore writes into it now"), "{second}");
        first.finish(&target).unwrap();
        assert!(target.join("row").exists());
        fs::remove_dir_all(&target).unwrap();
        fs::create_dir_all(dir.path().join(".data.restoring/left")).unwrap();
        let third = Draft::make(&target).unwrap();
        assert!(!third.path.join("left").exists());
    }
}
