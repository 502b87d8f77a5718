//! Opens the log and proves that it is whole: RocksDB's own files, every record's checksum, no gaps, terms that only grow, a
//! vote, and nothing missing of what the low-water mark says was synced (I14).

use std::io;
use std::path::Path;
use std::sync::Arc;

use openraft::EntryPayload;
use parking_lot::Mutex;
use pintle_base::dbfiles;
use rocksdb::{ColumnFamilyDescriptor, DB, DBRecoveryMode, IteratorMode, LogLevel, Options, ReadOptions};
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use super::{COMMITTED, DIR, LOG, META, OpenError, PURGED, Queue, Shared, State, VOTE, Worker, key};
use crate::codec;
use crate::compaction::start_compaction_threads;
use crate::core::{Membership, RaftLogId, Vote, log_id, next_index};
use crate::fatal::FatalCell;
use crate::limits;
use crate::machine::LogId;
use crate::mark::{Mark, MarkFile};

/// Opens or creates the log in `data_dir`. Nothing reaches the disk until somebody lets the worker work.
pub(crate) fn open_stepwise(data_dir: &Path, fatal: FatalCell) -> Result<(Arc<Shared>, Worker), OpenError> {
    let dir = data_dir.join(DIR);
    let fresh = !dir.exists();
    let (mark, mark_created) = MarkFile::open(data_dir).map_err(|source| OpenError::Mark { source })?;
    let begun = look(&dir)?;
    // A log that has promised something is never made anew in the place of one that is gone.
    if !begun && mark.mark() != Mark::default() {
        return Err(OpenError::Gone { dir });
    }
    let db = open_db(&dir).map_err(|source| OpenError::RocksDb { dir: dir.clone(), source })?;
    if fresh {
        crate::identity::sync_dir(data_dir).map_err(|source| OpenError::Mark { source })?;
    }
    let state = load(&db).map_err(|error| error.named(&dir))?;
    if mark_created && (state.vote.is_some() || state.last.is_some()) {
        return Err(OpenError::MarkMissing);
    }
    check(&db, &state, mark.mark()).map_err(|error| error.named(&dir))?;
    let flushed = watch::Sender::new(next_index(state.last));
    let mut mark = mark;
    // Everything read back is on stable storage: RocksDB has synced what it recovered.
    mark.set(Mark { vote: state.vote, last: state.last }).map_err(|source| OpenError::Mark { source })?;
    let shared = Arc::new(Shared { db, state: Mutex::new(state), queue: Queue::new(), flushed });
    let worker = Worker::new(Arc::clone(&shared), mark, fatal);
    Ok((shared, worker))
}

/// Whether there is a log; refuses one that has lost a write that was synced.
fn look(dir: &Path) -> Result<bool, OpenError> {
    let found = dbfiles::check(dir)?;
    for rest in found.iter().flat_map(|files| &files.unfinished) {
        tracing::warn!(file = %rest.file.display(), at = rest.at, bytes = rest.bytes, "dropping a write that a crash cut off");
    }
    Ok(found.is_some())
}

/// The log of a member that does not run, to be read only.
pub(crate) struct Inspected {
    db: DB,
    state: State,
    first: u64,
}

/// Reads the whole log in `data_dir` and compares it with `mark`. Changes nothing.
pub(crate) fn inspect(data_dir: &Path, mark: Mark) -> Result<Inspected, OpenError> {
    let dir = data_dir.join(DIR);
    if dbfiles::check(&dir)?.is_none() {
        return Err(OpenError::Gone { dir });
    }
    let db = DB::open_cf_descriptors_read_only(&options(), &dir, families(), false)
        .map_err(|source| OpenError::RocksDb { dir: dir.clone(), source })?;
    let state = load(&db).map_err(|error| error.named(&dir))?;
    check(&db, &state, mark).map_err(|error| error.named(&dir))?;
    let first = next_index(state.purged);
    Ok(Inspected { db, state, first })
}

impl Inspected {
    pub fn vote(&self) -> Option<Vote> {
        self.state.vote
    }

    pub fn purged(&self) -> Option<LogId> {
        self.state.purged.map(log_id)
    }

    pub fn last(&self) -> Option<LogId> {
        self.state.last.map(log_id)
    }

    pub fn entries(&self) -> u64 {
        next_index(self.state.last).saturating_sub(self.first)
    }

    pub fn newest_membership(&self) -> io::Result<Option<Membership>> {
        newest_membership(&self.db).map_err(io::Error::other)
    }

    /// The id of the entry at `index`, or of the purge that ends there.
    pub fn log_id_at(&self, index: u64) -> io::Result<Option<LogId>> {
        if let Some(purged) = self.state.purged.filter(|purged| purged.index == index) {
            return Ok(Some(log_id(purged)));
        }
        let held = (self.first..next_index(self.state.last)).contains(&index);
        let found = if held { entry_at(&self.db, &self.state, index).map_err(io::Error::other)? } else { None };
        Ok(found.map(log_id))
    }
}

fn open_db(dir: &Path) -> Result<DB, rocksdb::Error> {
    start_compaction_threads();
    let mut options = options();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    DB::open_cf_descriptors(&options, dir, families())
}

fn options() -> Options {
    let mut options = Options::default();
    options.set_paranoid_checks(true);
    // Up to the write that a crash cut off, which was never acknowledged. That it is one is known by then: see `look`.
    options.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
    options.set_track_and_verify_wals_in_manifest(true);
    // The small family would otherwise keep every write-ahead file alive.
    options.set_max_total_wal_size(limits::LOG_WAL_BYTES);
    options.set_max_background_jobs(2);
    options.set_keep_log_file_num(3);
    options.set_log_level(LogLevel::Warn);
    options
}

fn families() -> [ColumnFamilyDescriptor; 3] {
    [
        ColumnFamilyDescriptor::new("default", Options::default()),
        ColumnFamilyDescriptor::new(LOG, log_options()),
        ColumnFamilyDescriptor::new(META, Options::default()),
    ]
}

/// Most entries are purged before they leave memory; those that do not must never stall the writer.
fn log_options() -> Options {
    let mut options = Options::default();
    options.set_write_buffer_size(24 << 20);
    options.set_max_write_buffer_number(6);
    options.set_compression_type(rocksdb::DBCompressionType::None);
    options.set_level_zero_file_num_compaction_trigger(8);
    options.set_level_zero_slowdown_writes_trigger(1000);
    options.set_level_zero_stop_writes_trigger(2000);
    options
}

/// An error before the directory's name is known.
#[derive(Debug, thiserror::Error)]
pub(super) enum LoadError {
    #[error("{0}")]
    RocksDb(rocksdb::Error),
    #[error("{0}")]
    Found(OpenError),
}

impl LoadError {
    fn named(self, dir: &Path) -> OpenError {
        match self {
            Self::RocksDb(source) => OpenError::RocksDb { dir: dir.to_owned(), source },
            Self::Found(error) => error,
        }
    }
}

impl From<rocksdb::Error> for LoadError {
    fn from(error: rocksdb::Error) -> Self {
        Self::RocksDb(error)
    }
}

impl From<OpenError> for LoadError {
    fn from(error: OpenError) -> Self {
        Self::Found(error)
    }
}

/// Reads the small records and every entry.
fn load(db: &DB) -> Result<State, LoadError> {
    let purged: Option<RaftLogId> = read_meta(db, PURGED)?.flatten();
    let committed: Option<RaftLogId> = read_meta(db, COMMITTED)?.flatten();
    let mut state = State { vote: read_meta(db, VOTE)?, purged, committed, last: purged, ..State::default() };
    let Some(log) = db.cf_handle(LOG) else { return Ok(state) };
    let mut want = next_index(purged);
    let mut options = ReadOptions::default();
    options.set_iterate_lower_bound(key(want));
    options.set_verify_checksums(true);
    for item in db.iterator_cf_opt(log, options, IteratorMode::Start) {
        let (found, record) = item?;
        let index = <[u8; 8]>::try_from(&*found).map(u64::from_be_bytes).unwrap_or(u64::MAX);
        if index != want {
            return Err(OpenError::Gap { want, found: index }.into());
        }
        let entry = codec::decode_entry(&found, &record)
            .map_err(|source| OpenError::Record { what: format!("{index}"), source })?;
        if entry.log_id.index != index {
            return Err(OpenError::Misplaced { index, found: log_id(entry.log_id) }.into());
        }
        let term = state.last.map_or(0, |id| id.leader_id.term);
        if entry.log_id.leader_id.term < term {
            return Err(OpenError::TermBackwards { entry: log_id(entry.log_id), term }.into());
        }
        state.last = Some(entry.log_id);
        state.tail.push(entry);
        want += 1;
        state.tail.shrink(want);
    }
    Ok(state)
}

fn read_meta<T: DeserializeOwned>(db: &DB, name: &[u8]) -> Result<Option<T>, LoadError> {
    let Some(meta) = db.cf_handle(META) else { return Ok(None) };
    let Some(record) = db.get_cf(meta, name)? else { return Ok(None) };
    let what = String::from_utf8_lossy(name).into_owned();
    Ok(Some(codec::decode(name, &record).map_err(|source| OpenError::Record { what, source })?))
}

/// Compares the log with itself and with the mark.
fn check(db: &DB, state: &State, mark: Mark) -> Result<(), LoadError> {
    let term = state.vote.map(|vote| vote.leader_id.term);
    if let Some(last) = state.last {
        match term {
            None => return Err(OpenError::NoVote.into()),
            Some(term) if term < last.leader_id.term => {
                return Err(OpenError::VoteBehind { last: log_id(last), term }.into());
            }
            Some(_) => (),
        }
    }
    if let Some(promised) = mark.vote
        && !state.vote.is_some_and(|vote| vote >= promised)
    {
        let found = term.unwrap_or(0);
        return Err(OpenError::VoteLost { mark: promised.leader_id.term, found }.into());
    }
    let Some(synced) = mark.last else { return Ok(()) };
    if next_index(state.last) <= synced.index {
        return Err(OpenError::EntriesLost { mark: log_id(synced), found: state.last.map(log_id) }.into());
    }
    if synced.index < next_index(state.purged) {
        return Ok(());
    }
    let found = entry_at(db, state, synced.index)?;
    if found != Some(synced) {
        let found = found.map(log_id).unwrap_or_default();
        return Err(OpenError::EntryReplaced { mark: log_id(synced), found }.into());
    }
    Ok(())
}

pub(super) fn newest_membership(db: &DB) -> Result<Option<Membership>, LoadError> {
    let Some(log) = db.cf_handle(LOG) else { return Ok(None) };
    for item in db.iterator_cf(log, IteratorMode::End) {
        let (found, record) = item?;
        let entry = codec::decode_entry(&found, &record)
            .map_err(|source| OpenError::Record { what: "at the end of the log".to_owned(), source })?;
        if let EntryPayload::Membership(membership) = entry.payload {
            return Ok(Some(membership));
        }
    }
    Ok(None)
}

pub(super) fn entry_at(db: &DB, state: &State, index: u64) -> Result<Option<RaftLogId>, LoadError> {
    if let Some(entry) = state.tail.read(index, index + 1, usize::MAX).first()
        && entry.log_id.index == index
    {
        return Ok(Some(entry.log_id));
    }
    let Some(log) = db.cf_handle(LOG) else { return Ok(None) };
    let Some(record) = db.get_cf(log, key(index))? else { return Ok(None) };
    let entry = codec::decode_entry(&key(index), &record)
        .map_err(|source| OpenError::Record { what: format!("{index}"), source })?;
    Ok(Some(entry.log_id))
}
