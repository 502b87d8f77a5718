//! Removes history that was compacted: versions no reader may ask for any more. Local, in the background, in bounded batches.
//!
//! Compaction itself is a log entry that raises the compact revision at once on every member (I5); this only frees space, so
//! members may differ in how far they are. Of each key the newest version not after the compact revision stays, unless it is a
//! tombstone; a tombstone exactly at it stays, because a watch may begin there.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

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

    /// Waits between two batches; false once stopped.
    fn pause(&self) -> bool {
        let mut wanted = self.wanted.lock();
        if !wanted.stopped {
            self.changed.wait_for(&mut wanted, limits::SCRUB_PAUSE);
        }
        !wanted.stopped
    }

    fn scrub(&self, generation: &Generation) -> io::Result<i64> {
        let (from, target) = {
            let view = generation.view()?;
            (scrubbed(&view)?, view.compacted())
        };
        let mut cursor = Some(key::revision(from, 0));
        while let Some(at) = cursor {
            cursor = batch(generation, at, target, &self.removed)?;
            if !self.pause() {
                return Ok(from);
            }
        }
        let mut batch = WriteBatch::default();
        batch.put_cf(generation.family(META)?, SCRUBBED_KEY, target.to_be_bytes());
        generation.write(batch)?;
        Ok(target)
    }
}

fn scrubbed(view: &View<'_>) -> io::Result<i64> {
    match view.meta(SCRUBBED_KEY)? {
        None => Ok(0),
        Some(raw) => raw.try_into().map(i64::from_be_bytes).map_err(|_| corrupt("scrub progress")),
    }
}

/// Looks at a bounded number of changes from `at` on; returns where the next batch begins.
fn batch(generation: &Generation, at: [u8; 16], target: i64, removed: &AtomicU64) -> io::Result<Option<[u8; 16]>> {
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

/// Removes history now, on the caller's thread. For tests, which must not wait.
#[cfg(test)]
pub(crate) fn run_now(engine: &Engine) -> io::Result<()> {
    Scrub::new().scrub(&engine.current()).map(drop)
}
