//! The state database: one RocksDB without a WAL, its place on disk, and how a received checkpoint takes that place.
//!
//! Always holds: `CURRENT` names the directory in use, and changes only by an atomic rename after the new directory is
//! complete and synced. What was not flushed when the process died is replayed from the Raft log (D4). All column families
//! are flushed together, so what is found after a crash is the state after some entry, never between two.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;
use pintle_base::dbfiles;
use pintle_proto::store_v1::StateRecord;
use rocksdb::checkpoint::Checkpoint;
use rocksdb::{
    BlockBasedOptions, BottommostLevelCompaction, Cache, ColumnFamily, ColumnFamilyDescriptor, CompactOptions, DB,
    DBCompressionType, FlushOptions, IteratorMode, Options, SliceTransform, WriteBatch, WriteOptions,
};
use tokio::sync::watch;

use crate::background::start_compaction_threads;
use crate::error::OpenError;
use crate::limits;
use crate::mvcc::record::{corrupt, decode_checked};
use crate::mvcc::view::View;

/// Versions of keys.
pub(crate) const KV: &str = "kv";
/// Changes in revision order.
pub(crate) const REV: &str = "rev";
/// Leases and the keys attached to them.
pub(crate) const LEASE: &str = "lease";
/// The state record, the membership, the scrub's progress.
pub(crate) const META: &str = "meta";
pub(crate) const FAMILIES: [&str; 4] = [KV, REV, LEASE, META];

pub(crate) const STATE_KEY: &[u8] = b"state";
pub(crate) const MEMBERSHIP_KEY: &[u8] = b"membership";
/// Followed by a member's id, big-endian.
pub(crate) const MEMBER_PREFIX: &[u8] = b"member/";
/// Followed by the id, big-endian, of a member that is to vote once it has caught up.
pub(crate) const EXPECTED_PREFIX: &[u8] = b"voter/";
pub(crate) const SCRUBBED_KEY: &[u8] = b"scrubbed";

/// What a stored key has behind the user's: the revision.
const REVISION_BYTES: usize = 8;

const CURRENT: &str = "CURRENT";
const DIRECTORY_PREFIX: &str = "state-";
/// The state that a new member begins with: the only one that may be made from nothing.
const FIRST: u64 = 1;

/// Ten minutes: what a view protects that is held for long while room is given back comes back after that.
const SETTLED_SECONDS: &str = "600";
/// Tables of recent writes that are merged into the older ones at once: a checkpoint leaves two of them, mostly small ones.
const RECENT_TABLES: i32 = 8;

/// Sizes of the state database.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Bytes of decompressed blocks kept in memory.
    pub block_cache_bytes: usize,
    /// Bytes of recent writes kept in memory per column family, half as much again in all; bounds what a restart replays.
    pub write_buffer_bytes: usize,
    pub max_open_files: i32,
    pub background_jobs: i32,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self { block_cache_bytes: 32 << 20, write_buffer_bytes: 32 << 20, max_open_files: 512, background_jobs: 2 }
    }
}

/// The database that is in use now. Readers hold the generation they began with.
pub(crate) struct Engine {
    root: PathBuf,
    options: EngineOptions,
    current: ArcSwap<Generation>,
    /// Why nothing may be read any more.
    failed: watch::Sender<Option<String>>,
}

/// One opened database directory; deleted with its last reader once another one took its place.
pub(crate) struct Generation {
    db: Option<DB>,
    dir: PathBuf,
    pub number: u64,
    retired: AtomicBool,
}

impl Engine {
    pub fn open(root: &Path, options: EngineOptions) -> Result<Self, OpenError> {
        let directory = |source| OpenError::Directory { dir: root.display().to_string(), source };
        fs::create_dir_all(root).map_err(directory)?;
        let number = match current_dir(root) {
            Ok(Some((number, _))) => number,
            Ok(None) => first_generation(root)?,
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                let reason = error.to_string();
                return Err(OpenError::Contradiction { dir: root.display().to_string(), reason });
            }
            Err(error) => return Err(directory(error)),
        };
        let failed = |source| OpenError::Engine { dir: root.display().to_string(), source };
        let generation = Generation::open(root, number, &options, number == FIRST).map_err(failed)?;
        if generation.lacks_state().map_err(failed)? {
            let reason = "there are rows but no state record".to_owned();
            return Err(OpenError::Contradiction { dir: root.display().to_string(), reason });
        }
        // Only now: until then somebody may want to look at what was there.
        remove_others(root, number).map_err(directory)?;
        let current = ArcSwap::from_pointee(generation);
        Ok(Self { root: root.to_owned(), options, current, failed: watch::Sender::new(None) })
    }

    /// A read found damage, or the disk failed: the member must end (I4), a block that was read before may hide more.
    pub fn report(&self, error: &io::Error) {
        if !matches!(error.kind(), io::ErrorKind::Other | io::ErrorKind::InvalidData) {
            return;
        }
        self.failed.send_if_modified(|failed| {
            let first = failed.is_none();
            if first {
                tracing::error!(%error, "the state cannot be read, the process must end");
                *failed = Some(error.to_string());
            }
            first
        });
    }

    /// Why nothing may be read any more, once that is so.
    pub fn failed(&self) -> watch::Receiver<Option<String>> {
        self.failed.subscribe()
    }

    pub fn current(&self) -> Arc<Generation> {
        self.current.load_full()
    }

    /// Makes the checkpoint in `dir` the state. The checkpoint stays as it is; its data files are shared by hard links.
    pub fn install(&self, dir: &Path) -> io::Result<()> {
        let number = self.current.load().number + 1;
        let target = generation_dir(&self.root, number);
        if target.exists() {
            fs::remove_dir_all(&target)?;
        }
        copy_checkpoint(dir, &target)?;
        // Not made anew: a checkpoint without its files is damaged, not empty.
        let next = Generation::open(&self.root, number, &self.options, false)?;
        next.view()?; // a checkpoint without a readable state never becomes current
        write_current(&self.root, number)?;
        let before = self.current.swap(Arc::new(next));
        before.retired.store(true, Ordering::Release);
        Ok(())
    }
}

impl Generation {
    /// `make` begins an empty database where there is none.
    fn open(root: &Path, number: u64, options: &EngineOptions, make: bool) -> io::Result<Self> {
        let dir = generation_dir(root, number);
        start_compaction_threads();
        let (mut db_options, family_options) = rocksdb_options(options);
        // A state that was there is never made anew in its own ruins.
        let fresh = dbfiles::check(&dir).map_err(damaged)?.is_none();
        if fresh && !make {
            return Err(no_database(&dir));
        }
        db_options.create_if_missing(fresh);
        // A first start that was cut short may have left some of them; rows without a state are refused below.
        db_options.create_missing_column_families(make);
        let families = families(&family_options);
        let db = DB::open_cf_descriptors(&db_options, &dir, families).map_err(io::Error::other)?;
        let generation = Self { db: Some(db), dir, number, retired: AtomicBool::new(false) };
        generation.leave_settled_files()?;
        Ok(generation)
    }

    /// RocksDB writes a file of the last level anew as soon as nobody has a view that is older than it, to make its numbers smaller. Somebody
    /// reads all the time: each file was written once more for nothing.
    fn leave_settled_files(&self) -> io::Result<()> {
        for name in [KV, REV] {
            let delay = [("bottommost_file_compaction_delay", SETTLED_SECONDS)];
            self.db().set_options_cf(self.family(name)?, &delay).map_err(io::Error::other)?;
        }
        Ok(())
    }

    /// Opens the database in `dir` to look at it: nothing is changed, and nothing can be written.
    pub fn inspect(dir: &Path, options: &EngineOptions) -> io::Result<Self> {
        if dbfiles::check(dir).map_err(damaged)?.is_none() {
            return Err(no_database(dir));
        }
        let (db_options, family_options) = rocksdb_options(options);
        let families = families(&family_options);
        let db = DB::open_cf_descriptors_read_only(&db_options, dir, families, false).map_err(io::Error::other)?;
        Ok(Self { db: Some(db), dir: dir.to_owned(), number: 0, retired: AtomicBool::new(false) })
    }

    /// Whether there is data but nothing that says of which revision: then part of the database is missing.
    fn lacks_state(&self) -> io::Result<bool> {
        if self.db().get_pinned_cf(self.family(META)?, STATE_KEY).map_err(io::Error::other)?.is_some() {
            return Ok(false);
        }
        // What a member notes for itself may be there before the first entry.
        for name in [KV, REV, LEASE] {
            if let Some(row) = self.db().iterator_cf(self.family(name)?, IteratorMode::Start).next() {
                return row.map(|_| true).map_err(io::Error::other);
            }
        }
        Ok(false)
    }

    pub fn db(&self) -> &DB {
        self.db.as_ref().expect("the database is open until the generation is dropped")
    }

    pub fn family(&self, name: &'static str) -> io::Result<&ColumnFamily> {
        self.db().cf_handle(name).ok_or_else(|| corrupt("database: a column family is missing"))
    }

    /// A consistent view of the state as it is now.
    pub fn view(&self) -> io::Result<View<'_>> {
        View::new(self)
    }

    pub fn write(&self, batch: WriteBatch) -> io::Result<()> {
        let mut options = WriteOptions::default();
        options.disable_wal(true);
        self.db().write_opt(batch, &options).map_err(io::Error::other)
    }

    pub fn flush(&self) -> io::Result<()> {
        let mut families = Vec::with_capacity(FAMILIES.len());
        for name in FAMILIES {
            families.push(self.family(name)?);
        }
        let mut options = FlushOptions::default();
        options.set_wait(true);
        self.db().flush_cfs_opt(&families, &options).map_err(io::Error::other)
    }

    /// Gives the room of what was deleted back now, instead of when RocksDB gets to it. Long, and beside everything else; in steps, so that
    /// it ends soon after `going` says no: RocksDB keeps a process from ending while it compacts.
    pub fn reclaim(&self, going: &dyn Fn() -> bool) -> io::Result<()> {
        self.flush()?;
        let mut options = CompactOptions::default();
        options.set_exclusive_manual_compaction(false);
        options.set_bottommost_level_compaction(BottommostLevelCompaction::ForceOptimized);
        for name in [KV, REV] {
            let (family, mut from) = (self.family(name)?, None);
            for until in self.steps(name)? {
                if !going() {
                    return Ok(());
                }
                self.db().compact_range_cf_opt(family, from.as_ref(), until.as_ref(), &options);
                // Both ends belong to a step: the next one would take what this one has just written.
                from = until.map(|key| [key.as_slice(), &[0]].concat());
            }
        }
        Ok(())
    }

    /// Where steps of about [`limits::RECLAIM_STEP_BYTES`] end in a family; the last one has no end.
    fn steps(&self, name: &str) -> io::Result<Vec<Option<Vec<u8>>>> {
        let mut files = self.db().live_files().map_err(io::Error::other)?;
        files.retain(|file| file.column_family_name == name);
        files.sort_by(|a, b| a.end_key.cmp(&b.end_key));
        let (mut ends, mut bytes) = (Vec::new(), 0);
        for file in files {
            bytes += file.size;
            if bytes >= limits::RECLAIM_STEP_BYTES && file.end_key.is_some() {
                bytes = 0;
                ends.push(file.end_key);
            }
        }
        ends.push(None);
        Ok(ends)
    }

    /// Versions of keys there are, about.
    pub fn rows(&self) -> u64 {
        let count = self
            .family(KV)
            .ok()
            .and_then(|family| self.db().property_int_value_cf(family, "rocksdb.estimate-num-keys").ok().flatten());
        count.unwrap_or(0)
    }

    /// Writes a consistent copy into `dir`, which must be absent or empty.
    pub fn checkpoint(&self, dir: &Path) -> io::Result<()> {
        self.flush()?;
        if dir.exists() {
            fs::remove_dir(dir)?; // refuses a directory that is not empty
        }
        let checkpoint = Checkpoint::new(self.db()).map_err(io::Error::other)?;
        checkpoint.create_checkpoint(dir).map_err(io::Error::other)?;
        sync_dir(dir)
    }

    pub fn state(&self) -> io::Result<StateRecord> {
        let raw = self.db().get_pinned_cf(self.family(META)?, STATE_KEY).map_err(io::Error::other)?;
        read_state(raw.as_deref())
    }

    /// Bytes on disk: everything, and what live data needs.
    pub fn size(&self) -> (u64, u64) {
        let sum = |property: &str| {
            FAMILIES
                .iter()
                .filter_map(|name| self.db().cf_handle(name))
                .filter_map(|family| self.db().property_int_value_cf(family, property).ok().flatten())
                .sum::<u64>()
        };
        let memory = sum("rocksdb.cur-size-all-mem-tables");
        (sum("rocksdb.total-sst-files-size") + memory, sum("rocksdb.estimate-live-data-size") + memory)
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        drop(self.db.take());
        if self.retired.load(Ordering::Acquire)
            && let Err(error) = fs::remove_dir_all(&self.dir)
        {
            tracing::warn!(%error, "replaced state stays on disk until the next start");
        }
    }
}

/// The state record; an absent one is the empty store, which is at revision 1.
pub(crate) fn read_state(raw: Option<&[u8]>) -> io::Result<StateRecord> {
    match raw {
        Some(raw) => decode_checked(raw, "state record"),
        None => Ok(StateRecord { revision: 1, ..StateRecord::default() }),
    }
}

fn rocksdb_options(options: &EngineOptions) -> (Options, Options) {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(&Cache::new_lru_cache(options.block_cache_bytes));
    table.set_block_size(16 << 10);
    table.set_cache_index_and_filter_blocks(true);
    table.set_pin_l0_filter_and_index_blocks_in_cache(true);
    table.set_format_version(5);
    table.set_bloom_filter(10.0, false);
    table.set_whole_key_filtering(false);

    let mut family = Options::default();
    family.set_block_based_table_factory(&table);
    family.set_write_buffer_size(options.write_buffer_bytes);
    family.set_max_write_buffer_number(3);
    family.set_compression_type(DBCompressionType::Lz4);
    // The oldest data is what lists and comparisons mostly read: Zstd made a fifth of all work here.
    family.set_bottommost_compression_type(DBCompressionType::Lz4);
    family.set_level_compaction_dynamic_level_bytes(true);
    family.set_level_zero_file_num_compaction_trigger(RECENT_TABLES);
    family.set_level_zero_slowdown_writes_trigger(3 * RECENT_TABLES);
    family.set_level_zero_stop_writes_trigger(5 * RECENT_TABLES);

    let mut db = family.clone();
    db.set_atomic_flush(true);
    db.set_db_write_buffer_size(options.write_buffer_bytes / 2 * 3);
    db.set_allow_concurrent_memtable_write(false);
    db.set_enable_pipelined_write(false);
    db.set_max_open_files(options.max_open_files);
    db.set_max_background_jobs(options.background_jobs);
    db.set_keep_log_file_num(4);
    db.set_max_log_file_size(4 << 20);
    db.set_bytes_per_sync(1 << 20);
    family.set_allow_concurrent_memtable_write(false);
    (db, family)
}

fn families(options: &Options) -> [ColumnFamilyDescriptor; 4] {
    FAMILIES.map(|name| {
        let mut family = options.clone();
        if name == KV {
            find_keys_by_filter(&mut family);
        }
        ColumnFamilyDescriptor::new(name, family)
    })
}

fn no_database(dir: &Path) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("there is no database in {}", dir.display()))
}

fn damaged(error: dbfiles::FilesError) -> io::Error {
    match error {
        dbfiles::FilesError::Io { file, source } => {
            io::Error::new(source.kind(), format!("read {}: {source}", file.display()))
        }
        error => io::Error::new(io::ErrorKind::InvalidData, error),
    }
}

/// Filters over user keys: whether a key exists at all is asked with every create, and mostly answered without a read.
fn find_keys_by_filter(family: &mut Options) {
    let transform = SliceTransform::create(
        "pintle.user-key",
        |stored: &[u8]| &stored[..stored.len().saturating_sub(REVISION_BYTES)],
        Some(|stored: &[u8]| stored.len() > REVISION_BYTES),
    );
    family.set_prefix_extractor(transform);
    family.set_memtable_prefix_bloom_ratio(0.02);
}

/// Number and directory of the state in `root`, which may not have been made yet; `None` if there is none.
///
/// # Errors
/// There is a state, but not the one that `CURRENT` names.
pub(crate) fn current_dir(root: &Path) -> io::Result<Option<(u64, PathBuf)>> {
    let number = read_current(root)?;
    let others = if root.exists() { generations(root)? } else { Vec::new() };
    let dir = number.map(|number| (number, generation_dir(root, number)));
    let found = match &dir {
        None if !others.is_empty() => Err("there is a state but no file CURRENT".to_owned()),
        Some((number, dir)) if (*number != FIRST || !others.is_empty()) && !others.contains(dir) => {
            Err(format!("file CURRENT names {}, but that is not there", dir.display()))
        }
        _ => Ok(dir),
    };
    found.map_err(|what: String| io::Error::new(io::ErrorKind::InvalidData, what))
}

fn generation_dir(root: &Path, number: u64) -> PathBuf {
    root.join(format!("{DIRECTORY_PREFIX}{number:06}"))
}

fn read_current(root: &Path) -> io::Result<Option<u64>> {
    let text = match fs::read(root.join(CURRENT)) {
        Ok(text) => String::from_utf8(text).unwrap_or_default(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let number =
        text.strip_prefix(DIRECTORY_PREFIX).and_then(|rest| rest.strip_suffix('\n')).and_then(|n| n.parse().ok());
    number.map(Some).ok_or_else(|| corrupt("file CURRENT"))
}

/// Begins an empty state.
fn first_generation(root: &Path) -> Result<u64, OpenError> {
    let directory = |source| OpenError::Directory { dir: root.display().to_string(), source };
    write_current(root, FIRST).map_err(directory)?;
    Ok(FIRST)
}

fn write_current(root: &Path, number: u64) -> io::Result<()> {
    let draft = root.join("CURRENT.new");
    let mut file = File::create(&draft)?;
    file.write_all(format!("{DIRECTORY_PREFIX}{number:06}\n").as_bytes())?;
    file.sync_all()?;
    fs::rename(&draft, root.join(CURRENT))?;
    sync_dir(root)
}

/// Removes what an interrupted install or a replaced state left behind.
fn remove_others(root: &Path, number: u64) -> io::Result<()> {
    let current = generation_dir(root, number);
    for dir in generations(root)?.into_iter().filter(|dir| *dir != current) {
        fs::remove_dir_all(dir)?;
    }
    Ok(())
}

fn generations(root: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(DIRECTORY_PREFIX) {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// Copies a checkpoint: immutable data files by hard link where the file system allows it, everything else by bytes.
fn copy_checkpoint(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        if !entry.file_type()?.is_file() {
            continue;
        }
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let immutable = source.extension().is_some_and(|extension| extension == "sst" || extension == "blob");
        if !(immutable && fs::hard_link(&source, &target).is_ok()) {
            fs::copy(&source, &target)?;
        }
        File::open(&target)?.sync_all()?;
    }
    sync_dir(to)
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}
