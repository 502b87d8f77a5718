//! The thread that applies: it owns the state machine and does one thing after the other, in log order. openraft's side of
//! it ([`Machine`]) only passes entries on, and waits.
//!
//! Always holds: an entry is applied only after it is on this member's stable storage, so what is applied never reaches
//! beyond the log (I14); entries are applied without gaps; each entry's proposer is answered right after it, not after the
//! chunk; the first error is final (I4).
//!
//! [`Worker`] does one task at a time; [`ApplyThread`] is the thread around it.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

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
use crate::machine::{Committed, Flusher, Payload, StateMachine};
use crate::recent::{Kept, Recent};
use crate::snapshot::{SnapshotDir, Snapshots, Temporary};
use crate::thread::Running;
use crate::wire;

type Item = (Entry, Option<ApplyResponder<TypeConfig>>);

/// When the next snapshot is due, counted in applied entries since the last one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SnapshotPolicy {
    pub entries: u64,
    pub bytes: u64,
    /// Bytes of entries kept in the log although a snapshot holds them.
    pub bytes_kept: u64,
    /// Such entries, however small.
    pub entries_kept: u64,
}

/// What others see of applying.
pub(crate) struct Applying {
    state: Mutex<(Option<RaftLogId>, StoredMembership)>,
    /// Index after the last entry applied.
    next: watch::Sender<u64>,
    /// Index of the last entry whose applying has begun: of what can be seen of the state, nothing is after it.
    begun: AtomicU64,
    entries: AtomicU64,
    bytes: AtomicU64,
    policy: SnapshotPolicy,
    /// What is kept of entries by size, and what for those who lack it.
    recent: Mutex<[Recent; 2]>,
    /// Told when a snapshot is due.
    pub snapshot_due: Notify,
    flusher: Option<Flusher>,
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

    /// Index of the last entry applied, 0 if there is none.
    pub fn last(&self) -> u64 {
        self.next().saturating_sub(1)
    }

    /// Index of the last entry of which anything can be seen here, 0 if there is none.
    pub fn begun(&self) -> u64 {
        self.begun.load(Ordering::SeqCst)
    }

    /// Told of every entry applied.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.next.subscribe()
    }

    pub fn applied(&self) -> Option<RaftLogId> {
        self.state.lock().0
    }

    /// What is kept behind a snapshot that ends with `snapshot`.
    pub fn kept(&self, snapshot: u64) -> Kept {
        let [recent, held] = self.recent.lock().each_ref().map(Recent::first);
        Kept { snapshot, recent, held, entries: self.policy.entries_kept }
    }

    /// Whether so much was applied since the last snapshot that the next one is due.
    pub fn is_due(&self) -> bool {
        let (entries, bytes) = (self.entries.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed));
        entries >= self.policy.entries || bytes >= self.policy.bytes
    }

    /// Flushes what is applied, beside applying.
    pub async fn flush_ahead(&self) {
        if let Some(flusher) = self.flusher.clone()
            && tokio::task::spawn_blocking(move || flusher()).await.is_err()
        {
            tracing::debug!("flushing ahead of a checkpoint was broken off");
        }
    }

    fn count(&self, index: u64, bytes: usize) {
        self.recent.lock().iter_mut().for_each(|recent| recent.count(index, bytes as u64));
        let was_due = self.is_due();
        self.entries.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        if !was_due && self.is_due() {
            self.snapshot_due.notify_one();
        }
    }

    fn snapshot_made(&self) {
        self.entries.store(0, Ordering::Relaxed);
        self.bytes.store(0, Ordering::Relaxed);
    }
}

pub(crate) enum Task {
    Apply(Vec<Item>),
    /// Answered when everything before it is applied.
    Barrier(oneshot::Sender<io::Result<()>>),
    Checkpoint(Temporary, oneshot::Sender<io::Result<(Temporary, SnapshotMeta)>>),
    Install(Temporary, SnapshotMeta, oneshot::Sender<io::Result<()>>),
    Flush(oneshot::Sender<io::Result<()>>),
    /// The last one, whoever may still hold a sender.
    Stop,
}

/// openraft's state machine: hands everything to the apply thread.
pub(crate) struct Machine {
    tasks: mpsc::Sender<Task>,
    applying: Arc<Applying>,
    snapshots: Arc<Snapshots>,
    flushed: watch::Receiver<u64>,
}

/// The thread, and the way to flush and to stop it.
pub(crate) struct ApplyThread {
    tasks: mpsc::Sender<Task>,
    thread: Running,
}

impl ApplyThread {
    pub fn start(worker: Worker, tasks: mpsc::Sender<Task>) -> io::Result<Self> {
        let thread = Running::start("raft-apply", move || {
            let fatal = worker.fatal.clone();
            if catch_unwind(AssertUnwindSafe(|| worker.run())).is_err() {
                fatal.report(Fatal::Machine("the state machine panicked".to_owned()));
            }
        })?;
        Ok(Self { tasks, thread })
    }

    /// Makes everything applied durable and lets the thread end after that, although openraft's [`Machine`] may be held
    /// by a task that has not ended.
    pub async fn flush_and_stop(&self) -> io::Result<()> {
        let (done, flushed) = oneshot::channel();
        self.tasks.send(Task::Flush(done)).await.map_err(|_| stopped())?;
        self.tasks.send(Task::Stop).await.map_err(|_| stopped())?;
        flushed.await.map_err(|_| stopped())?
    }

    /// Waits for the thread, at most for `limit`: a state machine that hangs must not keep the process from ending. Blocks.
    pub fn join(self, limit: Duration) -> bool {
        // If there was no time to flush. A full queue is drained first, by a thread that ends with its last sender.
        let _ = self.tasks.try_send(Task::Stop);
        drop(self.tasks);
        self.thread.wait(limit)
    }
}

/// openraft's side, the worker, and the way to its tasks. `flushed` is the index after the last log entry on stable storage.
pub(crate) fn prepare(
    machine: Box<dyn StateMachine>,
    snapshots: Arc<Snapshots>,
    flushed: watch::Receiver<u64>,
    policy: SnapshotPolicy,
    fatal: FatalCell,
) -> io::Result<(Machine, Worker, mpsc::Sender<Task>)> {
    let state = recorded(&*machine)?;
    let applying = Arc::new(Applying {
        next: watch::Sender::new(next_index(state.0)),
        begun: AtomicU64::new(next_index(state.0).saturating_sub(1)),
        state: Mutex::new(state),
        entries: AtomicU64::new(0),
        bytes: AtomicU64::new(0),
        recent: Mutex::new([policy.bytes_kept, limits::BYTES_HELD].map(Recent::new)),
        policy,
        snapshot_due: Notify::new(),
        flusher: machine.flusher(),
    });
    let (tasks, waiting) = mpsc::channel(limits::APPLY_QUEUE);
    let worker = Worker {
        machine,
        waiting,
        applying: Arc::clone(&applying),
        failed: None,
        fatal,
        #[cfg(test)]
        gaps_allowed: false,
    };
    let machine = Machine { tasks: tasks.clone(), applying, snapshots, flushed };
    Ok((machine, worker, tasks))
}

fn recorded(machine: &dyn StateMachine) -> io::Result<(Option<RaftLogId>, StoredMembership)> {
    let applied = machine.applied()?;
    let membership = wire::decode_membership(&applied.membership).map_err(io::Error::other)?;
    Ok((applied.log_id.map(raft_log_id), membership))
}

fn stopped() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "the apply thread has stopped")
}

/// What the thread does: one task after the other.
pub(crate) struct Worker {
    machine: Box<dyn StateMachine>,
    waiting: mpsc::Receiver<Task>,
    applying: Arc<Applying>,
    failed: Option<String>,
    fatal: FatalCell,
    /// openraft's suite applies entries that no log could hold.
    #[cfg(test)]
    pub gaps_allowed: bool,
}

impl Worker {
    fn run(mut self) {
        while let Some(task) = self.waiting.blocking_recv() {
            if !self.perform(task) {
                return;
            }
        }
    }

    /// The same as a task of a runtime.
    #[cfg(test)]
    pub async fn run_in_runtime(mut self) {
        while let Some(task) = self.waiting.recv().await {
            if !self.perform(task) {
                return;
            }
        }
    }

    /// Does one task. False after the last one.
    fn perform(&mut self, task: Task) -> bool {
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
            Task::Stop => return false,
        }
        true
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

    /// An entry that does not follow the last one would leave the members with different states, for ever.
    fn check_follows(&self, id: RaftLogId) -> io::Result<()> {
        #[cfg(test)]
        if self.gaps_allowed {
            return Ok(());
        }
        let applied = self.applying.applied();
        if id.index == next_index(applied) && applied.is_none_or(|applied| applied.leader_id.term <= id.leader_id.term)
        {
            return Ok(());
        }
        let after = applied.map_or_else(|| "nothing".to_owned(), |applied| log_id(applied).to_string());
        Err(io::Error::other(format!("entry {} cannot be applied after {after}", log_id(id))))
    }

    fn apply(&mut self, entry: Entry) -> io::Result<Vec<bytes::Bytes>> {
        let id = entry.log_id;
        self.check_follows(id)?;
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
        self.applying.begun.fetch_max(id.index, Ordering::SeqCst);
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
        self.applying.count(id.index, bytes);
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
        self.applying.begun.fetch_max(meta.last_log_id.map_or(0, |id| id.index), Ordering::SeqCst);
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
    pub fn applying(&self) -> Arc<Applying> {
        Arc::clone(&self.applying)
    }

    async fn ask<T>(&self, task: impl FnOnce(oneshot::Sender<io::Result<T>>) -> Task) -> io::Result<T> {
        let (done, answer) = oneshot::channel();
        self.tasks.send(task(done)).await.map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())?
    }

    /// A checkpoint of what is applied now. Cheap: the files are synced by the builder.
    async fn checkpoint(&self) -> io::Result<Made> {
        self.ask(Task::Barrier).await?;
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
        self.ask(Task::Barrier).await?;
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
        // Not waited for: what openraft does with its own idea of how far is applied comes by the same queue, or asks below. An error
        // ends the process (I4) without its help.
        Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::Ledger;
    use crate::machine::{Applied, LogId};
    use std::path::Path;

    struct Prepared {
        machine: Machine,
        worker: Worker,
        tasks: mpsc::Sender<Task>,
        fatal: FatalCell,
        _dir: tempfile::TempDir,
    }

    fn prepared(machine: impl FnOnce(&Path) -> Box<dyn StateMachine>) -> Prepared {
        let dir = tempfile::tempdir().expect("temporary directory");
        let snapshots = Arc::new(Snapshots::open(dir.path()).expect("snapshots"));
        let (_, flushed) = watch::channel(u64::MAX);
        let policy =
            SnapshotPolicy { entries: u64::MAX, bytes: u64::MAX, bytes_kept: u64::MAX, entries_kept: u64::MAX };
        let fatal = FatalCell::new();
        let (machine, worker, tasks) =
            prepare(machine(dir.path()), snapshots, flushed, policy, fatal.clone()).expect("prepare");
        Prepared { machine, worker, tasks, fatal, _dir: dir }
    }

    fn blank(term: u64, index: u64) -> Task {
        let log_id = raft_log_id(LogId { term, index });
        Task::Apply(vec![(Entry { log_id, payload: EntryPayload::Blank }, None)])
    }

    #[tokio::test]
    async fn an_entry_after_a_gap_is_fatal_and_not_applied() {
        for (term, index, text) in [
            (1, 2, "entry 1.2 cannot be applied after 1.0"),
            (1, 0, "entry 1.0 cannot be applied after 1.0"),
            (0, 1, "entry 0.1 cannot be applied after 1.0"),
        ] {
            let mut prepared = prepared(|dir| Box::new(Ledger::open(&dir.join("state"))));
            assert!(prepared.worker.perform(blank(1, 0)));
            assert!(prepared.worker.perform(blank(term, index)));
            let reason = pintle_base::clock::timeout(Duration::from_secs(30), prepared.fatal.wait()).await;
            assert_eq!(reason.expect("in time"), Fatal::Machine(text.to_owned()));
            assert_eq!(prepared.worker.applying.next(), 1);
        }
    }

    /// Blocks in `flush` until its gate is dropped.
    struct Stuck(std::sync::mpsc::Receiver<()>);

    impl StateMachine for Stuck {
        fn applied(&self) -> io::Result<Applied> {
            Ok(Applied::default())
        }

        fn apply(&mut self, _: Committed) -> io::Result<Vec<bytes::Bytes>> {
            Ok(Vec::new())
        }

        fn flush(&mut self) -> io::Result<()> {
            let _ = self.0.recv();
            Ok(())
        }

        fn checkpoint(&mut self, _: &Path) -> io::Result<()> {
            Ok(())
        }

        fn install(&mut self, _: &Path) -> io::Result<()> {
            Ok(())
        }
    }

    /// Notes, while it applies an entry, up to where applying has begun by then: what it changes may be seen from that moment on.
    #[derive(Clone, Default)]
    struct Watched {
        applying: Arc<std::sync::OnceLock<Arc<Applying>>>,
        seen: Arc<parking_lot::Mutex<Vec<(u64, u64)>>>,
    }

    impl StateMachine for Watched {
        fn applied(&self) -> io::Result<Applied> {
            Ok(Applied::default())
        }

        fn apply(&mut self, entry: Committed) -> io::Result<Vec<bytes::Bytes>> {
            let begun = self.applying.get().expect("set").begun();
            self.seen.lock().push((entry.log_id.index, begun));
            Ok(Vec::new())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }

        fn checkpoint(&mut self, _: &Path) -> io::Result<()> {
            Ok(())
        }

        fn install(&mut self, _: &Path) -> io::Result<()> {
            Ok(())
        }
    }

    /// A read index is taken from it: were it behind, a read could miss what somebody has seen.
    #[test]
    fn who_sees_what_an_entry_changed_finds_that_its_applying_has_begun() {
        let watched = Watched::default();
        let mut prepared = prepared(|_| Box::new(watched.clone()));
        assert!(watched.applying.set(Arc::clone(&prepared.worker.applying)).is_ok());
        for index in 0..3 {
            assert!(prepared.worker.perform(blank(1, index)));
        }
        assert_eq!(*watched.seen.lock(), [(0, 0), (1, 1), (2, 2)]);
    }

    #[tokio::test]
    async fn the_thread_ends_although_somebody_still_holds_the_machine() {
        let Prepared { machine, worker, tasks, _dir, .. } = prepared(|dir| Box::new(Ledger::open(&dir.join("state"))));
        let thread = ApplyThread::start(worker, tasks).expect("start");
        thread.flush_and_stop().await.expect("flush");
        assert!(thread.join(Duration::from_secs(30)));
        drop(machine);
    }

    #[tokio::test]
    async fn a_machine_that_hangs_is_abandoned() {
        let (gate, closed) = std::sync::mpsc::channel();
        let Prepared { worker, tasks, .. } = prepared(|_| Box::new(Stuck(closed)));
        let thread = ApplyThread::start(worker, tasks).expect("start");
        let flush = pintle_base::clock::timeout(Duration::from_millis(10), thread.flush_and_stop());
        assert!(flush.await.is_err());
        assert!(!thread.join(Duration::from_millis(10)));
        drop(gate);
    }
}
