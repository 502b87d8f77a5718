//! The thread that applies: it owns the state machine and does one thing after the other, in log order. openraft's side of
//! it ([`Machine`]) only passes entries on, and waits.
//!
//! Always holds: an entry is applied only after it is on this member's stable storage, so what is applied never reaches
//! beyond the log (I14); each entry's proposer is answered right after it, not after the chunk; the first error is final (I4).

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use futures::{Stream, StreamExt};
use openraft::storage::{ApplyResponder, EntryResponder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder};
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, oneshot, watch};

use crate::core::{
    Entry, RaftLogId, Replies, Snapshot, SnapshotMeta, StoredMembership, TypeConfig, log_id, next_index, raft_log_id,
};
use crate::fatal::{Fatal, FatalCell};
use crate::limits;
use crate::machine::{Committed, Payload, StateMachine};
use crate::snapshot::{SnapshotDir, Snapshots, Temporary, is_ahead};
use crate::wire;

type Item = (Entry, Option<ApplyResponder<TypeConfig>>);

/// When the next snapshot is due, counted in applied entries since the last one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SnapshotPolicy {
    pub entries: u64,
    pub bytes: u64,
}

/// What others see of applying.
pub(crate) struct Applying {
    state: Mutex<(Option<RaftLogId>, StoredMembership)>,
    /// Index after the last entry applied.
    next: watch::Sender<u64>,
    entries: AtomicU64,
    bytes: AtomicU64,
    policy: SnapshotPolicy,
    /// Told when a snapshot is due.
    pub snapshot_due: Notify,
}

impl Applying {
    /// Waits until the entry at `index` is applied.
    pub async fn reached(&self, index: u64) {
        let mut next = self.next.subscribe();
        // The sender lives in `self`, so this cannot fail.
        let _ = next.wait_for(|next| *next > index).await;
    }

    /// Index after the last entry applied.
    pub fn next(&self) -> u64 {
        *self.next.borrow()
    }

    pub fn applied(&self) -> Option<RaftLogId> {
        self.state.lock().0
    }

    fn count(&self, bytes: usize) {
        let entries = self.entries.fetch_add(1, Ordering::Relaxed) + 1;
        let bytes = self.bytes.fetch_add(bytes as u64, Ordering::Relaxed) + bytes as u64;
        if entries >= self.policy.entries || bytes >= self.policy.bytes {
            self.snapshot_due.notify_one();
        }
    }

    fn snapshot_made(&self) {
        self.entries.store(0, Ordering::Relaxed);
        self.bytes.store(0, Ordering::Relaxed);
    }
}

enum Task {
    Apply(Vec<Item>),
    /// Answered when everything before it is applied.
    Barrier(oneshot::Sender<io::Result<()>>),
    Checkpoint(Temporary, oneshot::Sender<io::Result<(Temporary, SnapshotMeta)>>),
    Install(Temporary, SnapshotMeta, oneshot::Sender<io::Result<()>>),
    Flush(oneshot::Sender<io::Result<()>>),
}

/// openraft's state machine: hands everything to the apply thread.
pub(crate) struct Machine {
    tasks: mpsc::Sender<Task>,
    applying: Arc<Applying>,
    snapshots: Arc<Snapshots>,
    flushed: watch::Receiver<u64>,
}

/// The thread, and the way to flush it.
pub(crate) struct ApplyThread {
    tasks: mpsc::Sender<Task>,
    thread: thread::JoinHandle<()>,
}

impl ApplyThread {
    /// Makes everything applied durable.
    pub async fn flush(&self) -> io::Result<()> {
        let (done, flushed) = oneshot::channel();
        self.tasks.send(Task::Flush(done)).await.map_err(|_| stopped())?;
        flushed.await.map_err(|_| stopped())?
    }

    /// Waits for the thread, which ends when openraft's [`Machine`] is gone. Blocks.
    pub fn join(self) {
        drop(self.tasks);
        if self.thread.join().is_err() {
            tracing::error!("the apply thread had panicked");
        }
    }
}

/// Starts the thread. `flushed` is the index after the last log entry on stable storage.
pub(crate) fn start(
    machine: Box<dyn StateMachine>,
    snapshots: Arc<Snapshots>,
    flushed: watch::Receiver<u64>,
    policy: SnapshotPolicy,
    fatal: FatalCell,
) -> io::Result<(Machine, ApplyThread, Arc<Applying>)> {
    let state = recorded(&*machine)?;
    let applying = Arc::new(Applying {
        next: watch::Sender::new(next_index(state.0)),
        state: Mutex::new(state),
        entries: AtomicU64::new(0),
        bytes: AtomicU64::new(0),
        policy,
        snapshot_due: Notify::new(),
    });
    let (tasks, waiting) = mpsc::channel(limits::APPLY_QUEUE);
    let worker = Worker { machine, waiting, applying: Arc::clone(&applying), failed: None, fatal: fatal.clone() };
    let thread = thread::Builder::new().name("raft-apply".to_owned()).spawn(move || {
        if catch_unwind(AssertUnwindSafe(|| worker.run())).is_err() {
            fatal.report(Fatal::Machine("the state machine panicked".to_owned()));
        }
    })?;
    let machine = Machine { tasks: tasks.clone(), applying: Arc::clone(&applying), snapshots, flushed };
    Ok((machine, ApplyThread { tasks, thread }, applying))
}

fn recorded(machine: &dyn StateMachine) -> io::Result<(Option<RaftLogId>, StoredMembership)> {
    let applied = machine.applied()?;
    let membership = wire::decode_membership(&applied.membership).map_err(io::Error::other)?;
    Ok((applied.log_id.map(raft_log_id), membership))
}

fn stopped() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "the apply thread has stopped")
}

struct Worker {
    machine: Box<dyn StateMachine>,
    waiting: mpsc::Receiver<Task>,
    applying: Arc<Applying>,
    failed: Option<String>,
    fatal: FatalCell,
}

impl Worker {
    fn run(mut self) {
        while let Some(task) = self.waiting.blocking_recv() {
            match task {
                Task::Apply(items) => self.apply_all(items),
                Task::Barrier(done) => answer(done, self.outcome()),
                Task::Checkpoint(dir, done) => {
                    let result = self.outcome().and_then(|()| self.checkpoint(dir));
                    answer(done, result);
                }
                Task::Install(dir, meta, done) => {
                    let result = self.outcome().and_then(|()| self.install(&dir, &meta));
                    answer(done, self.finally(result));
                }
                Task::Flush(done) => {
                    let result = self.outcome().and_then(|()| self.machine.flush());
                    answer(done, self.finally(result));
                }
            }
        }
    }

    fn outcome(&self) -> io::Result<()> {
        self.failed.as_ref().map_or(Ok(()), |error| Err(io::Error::other(error.clone())))
    }

    /// The first error is the last: nothing is applied after it.
    fn finally<T>(&mut self, result: io::Result<T>) -> io::Result<T> {
        if let Err(error) = &result
            && self.failed.is_none()
        {
            self.failed = Some(error.to_string());
            self.fatal.report(Fatal::Machine(error.to_string()));
        }
        result
    }

    fn apply_all(&mut self, items: Vec<Item>) {
        for (entry, responder) in items {
            if self.failed.is_some() {
                return;
            }
            let result = self.apply(entry);
            if let Ok(replies) = self.finally(result)
                && let Some(responder) = responder
            {
                responder.send(Replies(replies));
            }
        }
    }

    fn apply(&mut self, entry: Entry) -> io::Result<Vec<bytes::Bytes>> {
        let id = entry.log_id;
        let mut bytes = 0;
        let mut membership = None;
        let payload = match entry.payload {
            EntryPayload::Blank => Payload::Blank,
            EntryPayload::Normal(batch) => {
                bytes = batch.0.len();
                Payload::Commands(wire::decode_batch(&batch).map_err(io::Error::other)?)
            }
            EntryPayload::Membership(members) => {
                let stored = StoredMembership::new(Some(id), members);
                let bytes = wire::encode_membership(&stored);
                membership = Some(stored);
                Payload::Membership(bytes)
            }
        };
        let want = if let Payload::Commands(commands) = &payload { commands.len() } else { 0 };
        let replies = self.machine.apply(Committed { log_id: log_id(id), payload })?;
        if want != 0 && replies.len() != want {
            return Err(io::Error::other(format!("{} replies to {want} commands of entry {id}", replies.len())));
        }
        {
            let mut state = self.applying.state.lock();
            state.0 = Some(id);
            if let Some(membership) = membership {
                state.1 = membership;
            }
        }
        self.applying.next.send_replace(id.index + 1);
        self.applying.count(bytes);
        Ok(replies)
    }

    fn checkpoint(&mut self, dir: Temporary) -> io::Result<(Temporary, SnapshotMeta)> {
        self.machine.flush()?;
        self.machine.checkpoint(dir.data())?;
        let (last_log_id, last_membership) = recorded(&*self.machine)?;
        self.applying.snapshot_made();
        Ok((dir, SnapshotMeta { last_log_id, last_membership }))
    }

    fn install(&mut self, dir: &Temporary, meta: &SnapshotMeta) -> io::Result<()> {
        self.machine.install(dir.data())?;
        let state = recorded(&*self.machine)?;
        if state.0 != meta.last_log_id {
            return Err(io::Error::other(format!("snapshot {meta} turned out to end with {:?}", state.0.map(log_id))));
        }
        let next = next_index(state.0);
        *self.applying.state.lock() = state;
        self.applying.next.send_replace(next);
        self.applying.snapshot_made();
        Ok(())
    }
}

fn answer<T>(done: oneshot::Sender<T>, result: T) {
    // The asker may have been cancelled; what was done stands.
    let _ = done.send(result);
}

impl Machine {
    async fn ask<T>(&self, task: impl FnOnce(oneshot::Sender<io::Result<T>>) -> Task) -> io::Result<T> {
        let (done, answer) = oneshot::channel();
        self.tasks.send(task(done)).await.map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())?
    }

    /// A checkpoint of what is applied now. Cheap: the files are synced by the builder.
    async fn checkpoint(&self) -> io::Result<Made> {
        if let Some(current) = self.snapshots.current()
            && !self.has_applied_since(&current)
        {
            self.applying.snapshot_made();
            return Ok(Made::Existing(current));
        }
        let dir = self.snapshots.temporary()?;
        let (dir, meta) = self.ask(|done| Task::Checkpoint(dir, done)).await?;
        Ok(Made::New(dir, meta))
    }

    fn has_applied_since(&self, snapshot: &SnapshotDir) -> bool {
        self.applying.applied() != snapshot.last_log_id()
    }
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotData = Arc<SnapshotDir>;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> io::Result<(Option<RaftLogId>, StoredMembership)> {
        Ok(self.applying.state.lock().clone())
    }

    async fn apply<Strm>(&mut self, entries: Strm) -> io::Result<()>
    where
        Strm: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + OptionalSend,
    {
        let mut chunks = entries.ready_chunks(limits::APPLY_CHUNK);
        while let Some(chunk) = chunks.next().await {
            let items = chunk.into_iter().collect::<io::Result<Vec<Item>>>()?;
            let last = items.last().map_or(0, |(entry, _)| entry.log_id.index);
            self.flushed.wait_for(|flushed| *flushed > last).await.map_err(io::Error::other)?;
            self.tasks.send(Task::Apply(items)).await.map_err(|_| stopped())?;
        }
        self.ask(Task::Barrier).await
    }

    async fn try_create_snapshot_builder(&mut self, force: bool) -> Option<Builder> {
        match self.checkpoint().await {
            Err(error) if !force => {
                tracing::warn!(%error, "cannot make a checkpoint now, will retry");
                None
            }
            made => Some(Builder { snapshots: Arc::clone(&self.snapshots), made: Some(made) }),
        }
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        let made = self.checkpoint().await;
        Builder { snapshots: Arc::clone(&self.snapshots), made: Some(made) }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: Arc<SnapshotDir>) -> io::Result<()> {
        let snapshots = Arc::clone(&self.snapshots);
        let copy = tokio::task::spawn_blocking(move || {
            let current = snapshots.promote(snapshot)?;
            snapshots.copy(&current)
        });
        let dir = copy.await.map_err(io::Error::other)??;
        self.ask(|done| Task::Install(dir, meta.clone(), done)).await
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        Ok(self.snapshots.current().map(described))
    }
}

fn described(snapshot: Arc<SnapshotDir>) -> Snapshot {
    Snapshot { meta: snapshot.meta.clone(), snapshot }
}

enum Made {
    New(Temporary, SnapshotMeta),
    Existing(Arc<SnapshotDir>),
}

/// Turns a checkpoint into the current snapshot, beside applying.
pub(crate) struct Builder {
    snapshots: Arc<Snapshots>,
    made: Option<io::Result<Made>>,
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    type SnapshotData = Arc<SnapshotDir>;

    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        let made = self.made.take().ok_or_else(|| io::Error::other("this snapshot was built already"))??;
        let snapshot = match made {
            Made::Existing(current) => current,
            Made::New(dir, meta) => {
                let snapshots = Arc::clone(&self.snapshots);
                tokio::task::spawn_blocking(move || snapshots.adopt(dir, &meta)).await.map_err(io::Error::other)??
            }
        };
        Ok(described(snapshot))
    }
}

/// Whether the state machine must be replaced by the snapshot before it can go on: a crash came between the two.
pub(crate) fn is_behind(applying: &Applying, snapshots: &Snapshots) -> bool {
    snapshots.current().is_some_and(|snapshot| is_ahead(&snapshot, applying.applied()))
}
