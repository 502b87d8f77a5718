//! Removes history that was compacted: versions no reader may ask for any more. Local, in the background, in bounded batches.
//!
//! Compaction itself is a log entry that raises the compact revision at once on every member (I5); this only frees space, so
//! members may differ in how far they are. Of each key the newest version not after the compact revision stays, unless it is a
//! tombstone; a tombstone exactly at it stays, because a watch may begin there.
//!
//! There are two ways to find what goes, and the cheaper one is taken: change after change since the last time, with a seek for each; or,
//! where these are many beside all there is, version after version.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use pintle_base::clock;
use pintle_base::priority::set_niceness;
use rocksdb::WriteBatch;
use tokio::sync::watch;

use super::key;
use super::record::{Row, corrupt, decode_change};
use super::view::{RawIterator, Source, View};
use crate::engine::{Engine, Generation, KV, META, REV, SCRUBBED_KEY};
use crate::limits;

/// Wakes the scrub thread and says how far it is.
pub(crate) struct Scrub {
    wanted: Mutex<Wanted>,
    changed: Condvar,
    done: watch::Sender<i64>,
    /// Versions removed since the start.
    removed: AtomicU64,
    /// When history was removed last, as Unix time; 0 for not since the start.
    last: AtomicI64,
}

#[derive(Default)]
struct Wanted {
    pending: bool,
    stopped: bool,
}

impl Scrub {
    pub fn new() -> Self {
        Self {
            wanted: Mutex::default(),
            changed: Condvar::new(),
            done: watch::Sender::new(0),
            removed: AtomicU64::new(0),
            last: AtomicI64::new(0),
        }
    }

    /// Something was compacted, or the state was replaced.
    pub fn wake(&self) {
        self.wanted.lock().pending = true;
        self.changed.notify_all();
    }

    pub fn stop(&self) {
        self.wanted.lock().stopped = true;
        self.changed.notify_all();
    }

    /// The compact revision up to which history is gone.
    pub fn progress(&self) -> watch::Receiver<i64> {
        self.done.subscribe()
    }

    /// Versions removed since the start.
    pub fn removed(&self) -> u64 {
        self.removed.load(Ordering::Relaxed)
    }

    /// When history was removed last, as Unix time; 0 for not since the start.
    pub fn last(&self) -> i64 {
        self.last.load(Ordering::Relaxed)
    }

    /// Starts the thread. It ends after [`Scrub::stop`].
    pub fn start(self: &Arc<Self>, engine: Arc<Engine>) -> io::Result<std::thread::JoinHandle<()>> {
        let scrub = Arc::clone(self);
        std::thread::Builder::new().name("store-scrub".to_owned()).spawn(move || scrub.run(&engine))
    }

    fn run(&self, engine: &Engine) {
        set_niceness(limits::SCRUB_NICENESS);
        while self.next() {
            let generation = engine.current();
            match self.scrub(&generation) {
                Ok(through) => {
                    self.last.store(clock::unix_seconds(), Ordering::Relaxed);
                    self.done.send_replace(through);
                }
                // History stays a little longer. That the data cannot be read is another matter.
                Err(error) => {
                    tracing::warn!(%error, "history was not removed, the next compaction tries again");
                    engine.report(&error);
                }
            }
        }
    }

    /// Waits for work; false once stopped.
    fn next(&self) -> bool {
        let mut wanted = self.wanted.lock();
        while !wanted.pending && !wanted.stopped {
            self.changed.wait(&mut wanted);
        }
        wanted.pending = false;
        !wanted.stopped
    }

    /// Rests after a batch that took so long; false once stopped. What is asked for meanwhile does not shorten it.
    fn rest(&self, worked: Duration) -> bool {
        let rest = (worked * limits::SCRUB_REST).clamp(limits::SCRUB_PAUSE, limits::SCRUB_PAUSE_MOST);
        let until = clock::now() + rest;
        let mut wanted = self.wanted.lock();
        while !wanted.stopped {
            let left = until.saturating_duration_since(clock::now());
            if left.is_zero() {
                break;
            }
            self.changed.wait_for(&mut wanted, left);
        }
        !wanted.stopped
    }

    fn scrub(&self, generation: &Generation) -> io::Result<i64> {
        let (from, target) = {
            let view = generation.view()?;
            (scrubbed(&view)?, view.compacted())
        };
        let mut way = Way::cheaper(from, target, generation.rows());
        self.scrub_by(generation, &mut way, from, target)
    }

    fn scrub_by(&self, generation: &Generation, way: &mut Way, from: i64, target: i64) -> io::Result<i64> {
        loop {
            let began = clock::now();
            if !way.batch(generation, target, &self.removed)? {
                break;
            }
            if !self.rest(began.elapsed()) {
                return Ok(from);
            }
        }
        let mut batch = WriteBatch::default();
        batch.put_cf(generation.family(META)?, SCRUBBED_KEY, target.to_be_bytes());
        generation.write(batch)?;
        Ok(target)
    }
}

/// How what goes is found, and where it goes on.
enum Way {
    /// By the changes of `rev`.
    Changes([u8; 16]),
    /// By all of `kv`; by the changes after all, from the first on, if there is so much of it that this would have been cheaper.
    Versions { walk: Box<Walk>, most: u64, from: i64 },
}

impl Way {
    /// There are as many changes as revisions, at least, and `rows` versions.
    fn cheaper(from: i64, target: i64, rows: u64) -> Self {
        let changes = u64::try_from(target.saturating_sub(from)).unwrap_or(0);
        let most = changes.saturating_mul(limits::SCRUB_SEEK_ROWS);
        match most > rows {
            true => Self::Versions { walk: Box::default(), most, from },
            false => Self::Changes(key::revision(from, 0)),
        }
    }

    /// Looks at a bounded number; false after the last.
    fn batch(&mut self, generation: &Generation, target: i64, removed: &AtomicU64) -> io::Result<bool> {
        match self {
            Self::Changes(at) => {
                let next = changes(generation, *at, target, removed)?;
                *at = next.unwrap_or(*at);
                Ok(next.is_some())
            }
            Self::Versions { walk, most, from } => {
                let more = walk.batch(generation, target, removed)?;
                // The number of rows is an estimate.
                if more && walk.looked_at > *most {
                    *self = Self::Changes(key::revision(*from, 0));
                }
                Ok(more)
            }
        }
    }
}

/// Through all versions, from one batch to the next: those of a key stand together, the newest first.
#[derive(Default)]
struct Walk {
    /// The row that is next.
    at: Vec<u8>,
    /// What the rows of the key that it was at begin with, and whether the one that stays was among them.
    prefix: Vec<u8>,
    found: bool,
    /// That one if it is to go when the older ones are gone: row, revision, position.
    last: Option<(Vec<u8>, i64, i64)>,
    /// Rows so far.
    looked_at: u64,
}

impl Walk {
    fn batch(&mut self, generation: &Generation, target: i64, removed: &AtomicU64) -> io::Result<bool> {
        let view = generation.view()?;
        // Not from the first row: all that was removed before this one would be passed over again.
        let mut versions = view.every_version(&self.at)?;
        let mut removal = Removal { generation, batch: WriteBatch::default(), removed };
        let (end, mut bytes, before) = (self.looked_at + limits::SCRUB_ROWS, 0, removed.load(Ordering::Relaxed));
        let mut scratch = Vec::new();
        while let Some((raw, value)) = versions.item() {
            let gone = removed.load(Ordering::Relaxed) - before;
            if self.looked_at >= end || bytes >= limits::SCRUB_BYTES || gone >= limits::SCRUB_REMOVED {
                self.at = raw.to_vec();
                removal.write()?;
                return Ok(true);
            }
            self.looked_at += 1;
            bytes += raw.len() + value.len();
            if key::prefix_of(raw) != self.prefix {
                self.end_key(&mut removal)?;
                self.prefix.clear();
                self.prefix.extend_from_slice(key::prefix_of(raw));
            }
            let modified = key::parse_version(raw, &mut scratch).ok_or_else(|| corrupt("version key"))?;
            if modified <= target {
                let row = Row::parse(&[], modified, value)?;
                if self.found {
                    removal.remove(raw, modified, row.sub)?;
                } else if !row.live && modified < target {
                    self.last = Some((raw.to_vec(), modified, row.sub));
                }
                self.found = true;
            }
            versions.next();
        }
        versions.status().map_err(io::Error::other)?;
        self.end_key(&mut removal)?;
        removal.write()?;
        Ok(false)
    }

    fn end_key(&mut self, removal: &mut Removal<'_>) -> io::Result<()> {
        self.found = false;
        match self.last.take() {
            Some((raw, modified, sub)) => removal.remove(&raw, modified, sub),
            None => Ok(()),
        }
    }
}

fn scrubbed(view: &View<'_>) -> io::Result<i64> {
    match view.meta(SCRUBBED_KEY)? {
        None => Ok(0),
        Some(raw) => raw.try_into().map(i64::from_be_bytes).map_err(|_| corrupt("scrub progress")),
    }
}

/// Looks at a bounded number of changes from `at` on; returns where the next batch begins.
fn changes(generation: &Generation, at: [u8; 16], target: i64, removed: &AtomicU64) -> io::Result<Option<[u8; 16]>> {
    let view = generation.view()?;
    let mut changes = view.changes(0)?;
    changes.seek(at);
    // Of one key after each seek: it must not run over what was removed of others.
    let mut versions = view.versions_of_key(&[], None)?;
    let mut removal = Removal { generation, batch: WriteBatch::default(), removed };
    let mut looked_at = 0;
    let mut next = None;
    while let Some((raw, change)) = changes.item() {
        let (main, sub) = key::parse_revision(raw).ok_or_else(|| corrupt("revision key"))?;
        if main > target {
            break;
        }
        if looked_at == limits::SCRUB_ENTRIES {
            next = Some(key::revision(main, sub));
            break;
        }
        looked_at += 1;
        let changed = decode_change(change)?.key;
        remove_superseded(&mut versions, &mut removal, changed, main, target)?;
        changes.next();
    }
    changes.status().map_err(io::Error::other)?;
    removal.write()?;
    Ok(next)
}

/// If `main` is the newest version of `key` not after `target`: removes the older ones, and itself if it is a tombstone before
/// `target`, in this order, so that nothing removed shines through again.
fn remove_superseded(
    versions: &mut RawIterator<'_>,
    removal: &mut Removal<'_>,
    changed: &[u8],
    main: i64,
    target: i64,
) -> io::Result<()> {
    let mut seek = key::prefix(changed);
    let prefix_len = seek.len();
    key::push_revision(&mut seek, target);
    versions.seek(&seek);
    let mut scratch = Vec::new();
    let mut newest = None;
    while let Some((raw, value)) = versions.item() {
        if raw.len() != seek.len() || raw[..prefix_len] != seek[..prefix_len] {
            break;
        }
        let modified = key::parse_version(raw, &mut scratch).ok_or_else(|| corrupt("version key"))?;
        let row = Row::parse(&[], modified, value)?;
        match newest {
            None if modified != main => return Ok(()), // its turn comes when the walk reaches the newest one
            None => newest = Some((raw.to_vec(), row.sub, row.live)),
            Some(_) => removal.remove(raw, modified, row.sub)?,
        }
        versions.next();
    }
    versions.status().map_err(io::Error::other)?;
    match newest {
        Some((raw, sub, false)) if main < target => removal.remove(&raw, main, sub),
        _ => Ok(()),
    }
}

struct Removal<'a> {
    generation: &'a Generation,
    batch: WriteBatch,
    removed: &'a AtomicU64,
}

impl Removal<'_> {
    fn remove(&mut self, raw: &[u8], modified: i64, sub: i64) -> io::Result<()> {
        self.removed.fetch_add(1, Ordering::Relaxed);
        self.batch.delete_cf(self.generation.family(KV)?, raw);
        self.batch.delete_cf(self.generation.family(REV)?, key::revision(modified, sub));
        if self.batch.len() >= limits::SCRUB_DELETES { self.write() } else { Ok(()) }
    }

    fn write(&mut self) -> io::Result<()> {
        let batch = std::mem::take(&mut self.batch);
        if batch.is_empty() { Ok(()) } else { self.generation.write(batch) }
    }
}

/// Removes history now, on the caller's thread, one way or the other. For tests, which must not wait, and are too small for a choice.
#[cfg(test)]
pub(crate) fn run_now(engine: &Engine, by_versions: bool) -> io::Result<()> {
    let generation = engine.current();
    let view = generation.view()?;
    let (from, target) = (scrubbed(&view)?, view.compacted());
    drop(view);
    let mut way = match by_versions {
        true => Way::Versions { walk: Box::default(), most: u64::MAX, from },
        false => Way::Changes(key::revision(from, 0)),
    };
    Scrub::new().scrub_by(&generation, &mut way, from, target).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_changes_are_found_by_walking_through_everything_and_few_are_not() {
        let by_versions = |from, target, rows| matches!(Way::cheaper(from, target, rows), Way::Versions { .. });
        assert!(by_versions(0, 10_000_000, 10_100_000));
        assert!(by_versions(9_000_000, 10_000_000, 1_100_000));
        assert!(!by_versions(9_999_000, 10_000_000, 1_100_000));
        assert!(!by_versions(5, 5, 0));
    }
}
