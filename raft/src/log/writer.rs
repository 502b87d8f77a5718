//! The one thread that writes the log. It takes everything waiting, makes one RocksDB write batch of it, writes it with one
//! sync, then runs the callbacks. So votes, appends, truncations and purges are one queue, first in, first out.
//!
//! Always holds: after the first error nothing is written any more (I6); every later operation fails with the same error. Every
//! write is synced before the next one: so whatever is followed by another in the file was acknowledged, and the next start
//! can tell a write that a crash cut off from damage.
//!
//! [`Worker`] does one step at a time and knows nothing of threads: [`Writer`] is the thread, a simulation takes the steps
//! itself, when it pleases.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use openraft::storage::IOFlushed;
use parking_lot::{Condvar, Mutex, MutexGuard};
use pintle_base::clock;
use pintle_base::priority::set_niceness;
use rocksdb::{WriteBatch, WriteOptions};
#[cfg(test)]
use tokio::sync::Notify;
use tokio::sync::{Semaphore, oneshot};

use super::{COMMITTED, LOG, META, PURGED, Shared, VOTE, key, tail};
use crate::codec;
use crate::core::{Entry, RaftLogId, TypeConfig, Vote, next_index};
use crate::fatal::{Fatal, FatalCell};
use crate::limits;
use crate::mark::{Mark, MarkFile};
use crate::meters::Meters;
use crate::thread::Running;

/// One thing to write.
pub(crate) enum Operation {
    Vote(Vote, oneshot::Sender<io::Result<()>>),
    Append(Vec<Entry>, IOFlushed<TypeConfig>),
    /// Keeps what is before this index; the id is the last entry kept.
    Truncate(u64, Option<RaftLogId>),
    Purge(RaftLogId),
    Committed(Option<RaftLogId>),
}

/// Operations waiting, bounded by permits that the writer gives back.
pub(crate) struct Queue {
    waiting: Mutex<Waiting>,
    arrived: Condvar,
    room: Semaphore,
    /// For a writer that is no thread.
    #[cfg(test)]
    pub told: Notify,
}

#[derive(Default)]
struct Waiting {
    operations: VecDeque<Operation>,
    closed: bool,
}

impl Queue {
    pub fn new() -> Self {
        Self {
            waiting: Mutex::default(),
            arrived: Condvar::new(),
            room: Semaphore::new(limits::WRITER_QUEUE),
            #[cfg(test)]
            told: Notify::new(),
        }
    }

    /// Adds an operation, waiting for room if there is none. openraft pushes from one task, so the order is its order.
    pub async fn push(&self, operation: Operation) -> io::Result<()> {
        let permit = self.room.acquire().await.map_err(|_| closed())?;
        permit.forget();
        let mut waiting = self.waiting.lock();
        if waiting.closed {
            return Err(closed());
        }
        // How far is committed is written with whatever comes next: nobody is woken for it.
        let wakes = !matches!(operation, Operation::Committed(_));
        waiting.operations.push_back(operation);
        drop(waiting);
        if wakes {
            self.arrived.notify_one();
        }
        #[cfg(test)]
        self.told.notify_one();
        Ok(())
    }

    pub fn close(&self) {
        self.waiting.lock().closed = true;
        self.room.close();
        self.arrived.notify_one();
    }

    /// Waits for operations and takes them up to [`limits::WRITE_BYTES`]. `Some(empty)` when none came in time, `None` at
    /// the end.
    fn take(&self) -> Option<Vec<Operation>> {
        let mut waiting = self.waiting.lock();
        if waiting.operations.is_empty() && !waiting.closed {
            self.arrived.wait_for(&mut waiting, limits::MARK_AGE);
        }
        if waiting.operations.is_empty() {
            return if waiting.closed { None } else { Some(Vec::new()) };
        }
        Some(self.take_from(waiting))
    }

    /// What waits, up to the same bound, without waiting for it.
    #[cfg(test)]
    pub fn take_now(&self) -> Vec<Operation> {
        self.take_from(self.waiting.lock())
    }

    fn take_from(&self, mut waiting: MutexGuard<'_, Waiting>) -> Vec<Operation> {
        let mut taken = Vec::new();
        let mut bytes = 0;
        while bytes < limits::WRITE_BYTES {
            let Some(operation) = waiting.operations.pop_front() else { break };
            if let Operation::Append(entries, _) = &operation {
                bytes += entries.iter().map(tail::size).sum::<usize>();
            }
            taken.push(operation);
        }
        drop(waiting);
        self.room.add_permits(taken.len());
        taken
    }
}

fn synced() -> WriteOptions {
    let mut options = WriteOptions::default();
    options.set_sync(true);
    options
}

fn closed() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "the raft log is closed")
}

/// The thread. Dropping it stops it, too.
pub(crate) struct Writer {
    shared: Arc<Shared>,
    thread: Option<Running>,
}

impl Writer {
    pub fn start(worker: Worker) -> io::Result<Self> {
        let shared = Arc::clone(&worker.shared);
        let thread = Running::start("raft-log", move || worker.run())?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Writes what is waiting, then ends the thread. Blocks, but no longer than `limit`: a disk that does not answer must
    /// not keep the process from ending.
    pub fn stop(mut self, limit: Duration) {
        self.end(limit);
    }

    fn end(&mut self, limit: Duration) {
        self.shared.queue.close();
        if let Some(thread) = self.thread.take() {
            thread.wait(limit);
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // Whoever gives it up may open the directory again, or end the process: nobody must be writing then.
        self.end(limits::THREAD_STOP);
    }
}

/// What the thread does: one write after the other.
pub(crate) struct Worker {
    shared: Arc<Shared>,
    options: WriteOptions,
    mark: MarkFile,
    /// How far is committed, if that is not written yet: it goes with the next write, nobody waits for it.
    committed: Option<Option<RaftLogId>>,
    /// What the log holds on stable storage: what the mark may be raised to.
    synced: Mark,
    marked: clock::Instant,
    /// Truncations written so far.
    truncations: u64,
    failed: Option<String>,
    fatal: FatalCell,
    meters: Option<Meters>,
    /// Where those are told who asked: one wake of Raft's thread for all of them.
    runtime: Option<tokio::runtime::Handle>,
}

/// What a batch of operations amounts to.
#[derive(Default)]
struct Plan {
    batch: WriteBatch,
    sync: bool,
    vote: Option<Vote>,
    /// The smallest index truncated from, and the entry before it.
    truncated: Option<(u64, Option<RaftLogId>)>,
    truncations: u64,
    last: Option<Option<RaftLogId>>,
    purged: Option<RaftLogId>,
    committed: Option<Option<RaftLogId>>,
}

impl Worker {
    pub(super) fn new(shared: Arc<Shared>, mark: MarkFile, fatal: FatalCell) -> Self {
        Self {
            options: synced(),
            committed: None,
            marked: clock::now(),
            truncations: 0,
            synced: mark.mark(),
            mark,
            failed: None,
            fatal,
            shared,
            meters: None,
            runtime: None,
        }
    }

    /// Has every write measured.
    pub fn measured_by(mut self, meters: Meters) -> Self {
        self.meters = Some(meters);
        self
    }

    /// Has those who asked told in `runtime`, not by the thread that writes.
    pub fn answering_in(mut self, runtime: tokio::runtime::Handle) -> Self {
        self.runtime = Some(runtime);
        self
    }

    fn run(mut self) {
        set_niceness(limits::NICENESS);
        while let Some(operations) = self.shared.queue.take() {
            self.perform(operations);
        }
        self.finish();
    }

    /// The last step: the log says how far is committed, and the mark all that was synced.
    pub fn finish(&mut self) {
        if self.failed.is_none()
            && let Err(error) = self.write_committed().and_then(|()| self.raise_mark())
        {
            self.fail(&error);
        }
    }

    fn write_committed(&mut self) -> io::Result<()> {
        let Some(committed) = self.committed.take() else { return Ok(()) };
        let mut batch = WriteBatch::default();
        self.put_committed(&mut batch, committed)?;
        self.shared.db.write_opt(batch, &self.options).map_err(io::Error::other)
    }

    fn put_committed(&self, batch: &mut WriteBatch, committed: Option<RaftLogId>) -> io::Result<()> {
        let meta = self.shared.db.cf_handle(META).ok_or_else(|| io::Error::other("column family meta is missing"))?;
        batch.put_cf(meta, COMMITTED, codec::encode(COMMITTED, &committed).map_err(io::Error::other)?);
        Ok(())
    }

    /// Writes what was asked for, tells those who asked, and raises the mark if that is due.
    pub fn perform(&mut self, operations: Vec<Operation>) {
        if !operations.is_empty() {
            let result = self.write(&operations);
            match &self.runtime {
                Some(runtime) => drop(runtime.spawn(async move { answer(operations, result) })),
                None => answer(operations, result),
            }
        }
        if self.failed.is_none()
            && self.marked.elapsed() >= limits::MARK_AGE
            && let Err(error) = self.raise_mark()
        {
            self.fail(&error);
        }
    }

    fn write(&mut self, operations: &[Operation]) -> Result<(), String> {
        if let Some(failed) = &self.failed {
            return Err(failed.clone());
        }
        self.try_write(operations).map_err(|error| self.fail(&error))
    }

    fn fail(&mut self, error: &io::Error) -> String {
        let text = error.to_string();
        self.fatal.report(Fatal::Log(text.clone()));
        self.failed = Some(text.clone());
        text
    }

    fn try_write(&mut self, operations: &[Operation]) -> io::Result<()> {
        let mut plan = self.plan(operations)?;
        self.committed = plan.committed.or(self.committed);
        if !plan.sync {
            return Ok(());
        }
        if let Some((_, kept)) = plan.truncated {
            self.lower_mark(kept)?;
        }
        if let Some(committed) = self.committed.take() {
            self.put_committed(&mut plan.batch, committed)?;
        }
        let (began, bytes) = (clock::now(), plan.batch.size_in_bytes());
        self.shared.db.write_opt(plan.batch, &self.options).map_err(io::Error::other)?;
        if let Some(meters) = &self.meters {
            meters.wrote(bytes, began.elapsed(), plan.sync);
        }
        if let Some(last) = plan.last {
            self.synced.last = last;
        }
        if let Some(vote) = plan.vote {
            self.synced.vote = Some(vote);
            self.raise_mark()?;
        }
        self.truncations += plan.truncations;
        if let Some(last) = plan.last {
            self.publish(next_index(last));
        }
        if let Some(purged) = plan.purged {
            self.drop_files(purged);
        }
        Ok(())
    }

    /// Tells how far the log is on stable storage; not while a truncation is waiting that takes some of it back.
    fn publish(&self, flushed: u64) {
        let mut state = self.shared.state.lock();
        if state.truncations == self.truncations {
            state.tail.shrink(flushed);
            self.shared.flushed.send_replace(flushed);
        }
    }

    fn plan(&self, operations: &[Operation]) -> io::Result<Plan> {
        let log = self.shared.db.cf_handle(LOG).ok_or_else(|| io::Error::other("column family log is missing"))?;
        let meta = self.shared.db.cf_handle(META).ok_or_else(|| io::Error::other("column family meta is missing"))?;
        let mut plan = Plan::default();
        for operation in operations {
            match operation {
                Operation::Vote(vote, _) => {
                    plan.batch.put_cf(meta, VOTE, codec::encode(VOTE, vote).map_err(io::Error::other)?);
                    plan.vote = Some(*vote);
                    plan.sync = true;
                }
                Operation::Append(entries, _) => {
                    for entry in entries {
                        let key = key(entry.log_id.index);
                        plan.batch.put_cf(log, key, codec::encode_entry(&key, entry).map_err(io::Error::other)?);
                    }
                    if let Some(entry) = entries.last() {
                        plan.last = Some(Some(entry.log_id));
                    }
                    plan.sync = true;
                }
                Operation::Truncate(from, kept) => {
                    // Indexes never reach the largest number, so the exclusive end covers them all.
                    plan.batch.delete_range_cf(log, key(*from), key(u64::MAX));
                    if plan.truncated.is_none_or(|(smallest, _)| *from < smallest) {
                        plan.truncated = Some((*from, *kept));
                    }
                    plan.truncations += 1;
                    plan.last = Some(*kept);
                    plan.sync = true;
                }
                Operation::Purge(upto) => {
                    plan.batch.put_cf(meta, PURGED, codec::encode(PURGED, &Some(*upto)).map_err(io::Error::other)?);
                    plan.batch.delete_range_cf(log, key(0), key(upto.index.saturating_add(1)));
                    plan.purged = Some(*upto);
                    let last = plan.last.unwrap_or(self.synced.last);
                    if next_index(last) <= upto.index {
                        // The snapshot reaches beyond the log, which now begins after it.
                        plan.last = Some(Some(*upto));
                    }
                    // Files are dropped next, and that is durable at once. The mark must be durable before, or a power cut
                    // leaves a log that seems to lack its beginning.
                    plan.sync = true;
                }
                Operation::Committed(committed) => plan.committed = Some(*committed),
            }
        }
        Ok(plan)
    }

    /// Before entries after `kept` go, the file must not promise them any more.
    fn lower_mark(&mut self, kept: Option<RaftLogId>) -> io::Result<()> {
        let mark = self.mark.mark();
        if next_index(mark.last) > next_index(kept) {
            self.mark.set(Mark { last: kept, ..mark })?;
        }
        Ok(())
    }

    fn raise_mark(&mut self) -> io::Result<()> {
        self.marked = clock::now();
        self.mark.set(self.synced)
    }

    /// Gives whole files of purged entries back; the range deletion does the rest.
    fn drop_files(&self, purged: RaftLogId) {
        if let Some(log) = self.shared.db.cf_handle(LOG)
            && let Err(error) = self.shared.db.delete_file_in_range_cf(log, key(0), key(purged.index))
        {
            tracing::warn!(%error, "cannot drop files of purged log entries, compaction will");
        }
    }
}

fn answer(operations: Vec<Operation>, result: Result<(), String>) {
    let outcome = || result.clone().map_err(io::Error::other);
    for operation in operations {
        match operation {
            Operation::Vote(_, done) => {
                // The asker may be gone; the write stands.
                let _ = done.send(outcome());
            }
            Operation::Append(_, callback) => callback.io_completed(outcome()),
            Operation::Truncate(..) | Operation::Purge(_) | Operation::Committed(_) => (),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::raft_log_id;
    use crate::machine::LogId;

    fn worker(dir: &std::path::Path) -> Worker {
        crate::log::open_stepwise(dir, FatalCell::new()).expect("open").1
    }

    #[test]
    fn whatever_drops_files_is_synced_first() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let mut worker = worker(dir.path());
        worker.synced.last = Some(raft_log_id(LogId { term: 1, index: 9 }));
        let plan = worker.plan(&[Operation::Purge(raft_log_id(LogId { term: 1, index: 4 }))]).expect("plan");
        assert!(plan.purged.is_some() && plan.sync);
        let plan = worker.plan(&[Operation::Committed(None)]).expect("plan");
        assert!(plan.purged.is_none() && !plan.sync, "nothing depends on it");
        assert!(plan.batch.is_empty(), "a write that is not synced would look like one that was");
    }
}
