//! The one thread that writes the log. It takes everything waiting, makes one write of it, syncs it, then runs the callbacks. So votes, appends, truncations and purges are one queue, first in, first out.
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
#[cfg(test)]
use tokio::sync::Notify;
use tokio::sync::{Semaphore, oneshot};

use super::segment::{Checkpoint, Draft, Kind};
use super::segments::{Appender, Span};
use super::{COMMITTED, ENTRY, PURGED, Shared, TRUNCATION, VOTE, tail};
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
    appender: Appender,
    mark: MarkFile,
    /// How far is committed, if that is not written yet: it goes with the next write, nobody waits for it.
    committed: Option<Option<RaftLogId>>,
    marked: clock::Instant,
    /// Truncations written so far.
    truncations: u64,
    failed: Option<String>,
    fatal: FatalCell,
    meters: Option<Meters>,
    /// Where those are told who asked: one wake of Raft's thread for all of them.
    runtime: Option<tokio::runtime::Handle>,
}

/// What operations amount to.
struct Plan {
    draft: Draft,
    span: Span,
    /// What the log says afterwards.
    after: Checkpoint,
    /// Of all truncations the shortest log: its last entry.
    kept: Option<Option<RaftLogId>>,
    truncations: u64,
}

impl Worker {
    pub(super) fn new(shared: Arc<Shared>, appender: Appender, mark: MarkFile, fatal: FatalCell) -> Self {
        Self {
            appender,
            committed: None,
            marked: clock::now(),
            truncations: 0,
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
        let mut plan = Plan::new(&mut self.appender);
        plan.committed(committed)?;
        self.append(plan)
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
        let told = |operation: &Operation| match operation {
            Operation::Committed(committed) => Some(*committed),
            _ => None,
        };
        self.committed = operations.iter().rev().find_map(told).or(self.committed);
        if operations.iter().all(|operation| told(operation).is_some()) {
            return Ok(());
        }
        let mut plan = Plan::of(operations, &mut self.appender)?;
        if let Some(committed) = self.committed.take() {
            plan.committed(committed)?;
        }
        self.append(plan)
    }

    fn append(&mut self, plan: Plan) -> io::Result<()> {
        let Plan { draft, span, after, kept, truncations } = plan;
        if let Some(kept) = kept {
            self.lower_mark(kept)?;
        }
        let before = self.appender.checkpoint;
        let (began, bytes) = (clock::now(), draft.size());
        if self.appender.make_room(bytes)? {
            // From the first write on the file is missed.
            let segment = self.appender.number();
            self.mark.set(Mark { segment, ..self.mark.mark() })?;
        }
        self.appender.write(draft, span, after)?;
        if let Some(meters) = &self.meters {
            meters.wrote(bytes, began.elapsed(), true);
        }
        if after.vote != before.vote {
            self.raise_mark()?;
        }
        self.truncations += truncations;
        if after.last != before.last || truncations > 0 {
            self.publish(next_index(after.last));
        }
        if after.purged != before.purged {
            self.appender.drop_files();
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

    /// Before entries after `kept` go, the file must not promise them any more.
    fn lower_mark(&mut self, kept: Option<RaftLogId>) -> io::Result<()> {
        let mark = self.mark.mark();
        if next_index(mark.last) > next_index(kept) {
            self.mark.set(Mark { last: kept, ..mark })?;
        }
        Ok(())
    }

    /// To all that is on stable storage.
    fn raise_mark(&mut self) -> io::Result<()> {
        self.marked = clock::now();
        let Checkpoint { vote, last, .. } = self.appender.checkpoint;
        self.mark.set(Mark { vote, last, segment: self.appender.number() })
    }
}

impl Plan {
    fn new(appender: &mut Appender) -> Self {
        let after = appender.checkpoint;
        Self { draft: appender.draft(), span: Span::default(), after, kept: None, truncations: 0 }
    }

    fn of(operations: &[Operation], appender: &mut Appender) -> io::Result<Self> {
        let mut plan = Self::new(appender);
        for operation in operations {
            match operation {
                Operation::Vote(vote, _) => {
                    plan.small(Kind::Vote, VOTE, vote)?;
                    plan.after.vote = Some(*vote);
                }
                Operation::Append(entries, _) => plan.append(entries)?,
                Operation::Truncate(from, kept) => {
                    plan.small(Kind::Truncate, TRUNCATION, &(*from, *kept))?;
                    plan.span.truncate(*from);
                    plan.kept = Some(plan.kept.map_or(*kept, |shortest| shortest.min(*kept)));
                    plan.truncations += 1;
                    plan.after.last = *kept;
                }
                Operation::Purge(upto) => {
                    plan.small(Kind::Purge, PURGED, upto)?;
                    plan.after.purged = Some(*upto);
                    if next_index(plan.after.last) <= upto.index {
                        // The snapshot reaches beyond the log, which now begins after it.
                        plan.after.last = Some(*upto);
                    }
                }
                // With the newest of them, at the end.
                Operation::Committed(_) => (),
            }
        }
        Ok(plan)
    }

    fn append(&mut self, entries: &[Entry]) -> io::Result<()> {
        for entry in entries {
            let write = |into: &mut Vec<u8>| codec::append_entry(ENTRY, entry, into);
            self.draft.record(Kind::Entry, write).map_err(io::Error::other)?;
            self.span.append(entry.log_id.index);
            self.after.last = Some(entry.log_id);
        }
        Ok(())
    }

    fn committed(&mut self, committed: Option<RaftLogId>) -> io::Result<()> {
        self.after.committed = committed;
        self.small(Kind::Committed, COMMITTED, &committed)
    }

    fn small<T: serde::Serialize>(&mut self, kind: Kind, name: &[u8], value: &T) -> io::Result<()> {
        let record = codec::encode(name, value).map_err(io::Error::other)?;
        self.draft.encoded(kind, &record);
        Ok(())
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
