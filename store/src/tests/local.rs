//! A store whose log is a queue in memory: what is proposed is applied at once, as entry after entry of one term.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use pintle_base::task;
use pintle_proto::store_v1::command::Operation;
use pintle_proto::store_v1::reply::Outcome;
use pintle_proto::store_v1::{Command, Reply};
use pintle_raft::offline::Founding;
use pintle_raft::{Lane, LogId, Peer};
use prost::Message;
use ring::digest::{SHA256, digest};
use tempfile::TempDir;

use crate::consensus::{ChangeFailure, Consensus, Member, MemberChange, ProposeFailure, ReadFailure, Standing};
use crate::machine::{Place, StoreMachine};
use crate::snapshot::save::Saving;
use crate::snapshot::{RestoreOptions, STATE_DIR, restore};
use crate::store::{Leadership, Store, StoreOptions};

pub(super) struct Local {
    pub store: Store,
    pub log: Arc<LocalLog>,
    pub group: task::Group,
    pub dir: TempDir,
}

pub(super) struct LocalLog {
    pub machine: Mutex<StoreMachine>,
    pub index: AtomicU64,
    pub term: AtomicU64,
    /// While it is set nothing is proposed: there is no leader.
    pub leaderless: AtomicBool,
}

impl Local {
    pub fn open() -> Self {
        Self::with(StoreOptions::default())
    }

    pub fn with(options: StoreOptions) -> Self {
        let dir = temporary();
        let (store, machine) = Store::open(&dir.path().join("state"), options).expect("open store");
        let log = Arc::new(LocalLog::new(machine));
        Self { store, log, group: task::Group::new("local"), dir }
    }

    /// Starts what needs a runtime.
    pub fn attached(self) -> Self {
        self.store.attach_consensus(Arc::clone(&self.log) as Arc<dyn Consensus>, &self.group);
        self.store.shared().set_leadership(Leadership { leading: true, term: 1, leader: Some(1) });
        self
    }

    pub fn apply(&self, operations: &[Operation]) -> Vec<(i64, Outcome)> {
        let commands: Vec<Bytes> = operations.iter().map(|operation| command(operation.clone(), None)).collect();
        self.log.entry(&commands).into_iter().map(read).collect()
    }

    pub fn one(&self, operation: Operation) -> (i64, Outcome) {
        self.apply(&[operation]).remove(0)
    }

    /// Closes the store after a flush and opens it again.
    pub fn reopened(self) -> Self {
        let index = self.log.index.load(Ordering::SeqCst);
        self.log.machine.lock().flush_state().expect("flush");
        let dir = self.dir.path().join("state");
        let mut local = self;
        let closed = temporary();
        let (store, machine) = Store::open(closed.path(), StoreOptions::default()).expect("open store");
        drop(std::mem::replace(&mut local.store, store));
        drop(std::mem::replace(&mut local.log, Arc::new(LocalLog::new(machine))));
        let (store, machine) = Store::open(&dir, StoreOptions::default()).expect("open store again");
        local.store = store;
        local.log = Arc::new(LocalLog::new(machine));
        local.log.index.store(index, Ordering::SeqCst);
        local
    }

    /// Writes the state into a file and goes on with what a new cluster makes of it.
    pub fn restored(self) -> Self {
        let file = self.path().join("snapshot.db");
        self.save(&file);
        let founding = founding();
        let (target, options) = (temporary(), RestoreOptions::default());
        let restored = restore(&file, target.path(), &founding, &options, &mut |_| ()).expect("restore");
        let (store, machine) =
            Store::open(&target.path().join(STATE_DIR), StoreOptions::default()).expect("open store");
        assert_eq!(store.revision(), restored.revision);
        let log = LocalLog::new(machine);
        log.index.store(founding.at.index, Ordering::SeqCst);
        Self { store, log: Arc::new(log), group: task::Group::new("local"), dir: target }
    }

    /// A snapshot as a client saves it.
    pub fn save(&self, file: &Path) {
        let generation = self.engine().current();
        let view = generation.view().expect("view");
        let saving = Saving::begin(&view, &|| Ok(())).expect("lay out");
        let bytes = saving.bytes();
        let mut written = saving.write(Vec::new()).expect("write");
        assert_eq!(written.len() as u64, bytes, "the length was known before");
        written.extend_from_slice(digest(&SHA256, &written).as_ref());
        std::fs::write(file, written).expect("write the file");
    }

    /// Replaces the state by a checkpoint of itself.
    pub fn reinstall(&self) {
        let checkpoint = tempfile::tempdir_in(self.path()).expect("temporary directory");
        let mut machine = self.log.machine.lock();
        machine.checkpoint_state(checkpoint.path()).expect("checkpoint");
        machine.install_state(checkpoint.path()).expect("install");
    }

    pub fn engine(&self) -> &crate::engine::Engine {
        &self.store.shared().engine
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        self.group.token().cancel();
    }
}

impl LocalLog {
    pub fn new(machine: StoreMachine) -> Self {
        Self {
            machine: Mutex::new(machine),
            index: AtomicU64::new(0),
            term: AtomicU64::new(1),
            leaderless: AtomicBool::new(false),
        }
    }

    pub fn entry(&self, commands: &[Bytes]) -> Vec<Bytes> {
        let mut machine = self.machine.lock();
        let place =
            Place { term: self.term.load(Ordering::SeqCst), index: self.index.fetch_add(1, Ordering::SeqCst) + 1 };
        machine.apply_commands(place, commands).expect("apply")
    }
}

/// A cluster of one.
pub(super) fn founding() -> Founding {
    let peer = Peer { id: 1, name: "one".to_owned(), peer_addr: "127.0.0.1:2380".to_owned(), ..Peer::default() };
    Founding { cluster_id: 1, group_id: 0, node_id: 1, peers: vec![peer], at: LogId { term: 1, index: 1 } }
}

/// In memory where that is possible: these tests are about behaviour, and syncs of a busy disk take minutes.
fn temporary() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("temporary directory")
}

pub(super) fn command(operation: Operation, fence: Option<u64>) -> Bytes {
    Bytes::from(Command { fence, caller: None, operation: Some(operation) }.encode_to_vec())
}

pub(super) fn read(reply: Bytes) -> (i64, Outcome) {
    let reply = Reply::decode(reply).expect("reply");
    (reply.revision, reply.outcome.expect("outcome"))
}

impl Consensus for LocalLog {
    fn snapshot(&self) {}

    fn propose(&self, _: Lane, command: Bytes) -> BoxFuture<'_, Result<Bytes, ProposeFailure>> {
        async move {
            if self.leaderless.load(Ordering::SeqCst) {
                return Err(ProposeFailure::NotSent);
            }
            Ok(self.entry(&[command]).remove(0))
        }
        .boxed()
    }

    fn read_index(&self) -> BoxFuture<'_, Result<(), ReadFailure>> {
        async move { if self.leaderless.load(Ordering::SeqCst) { Err(ReadFailure::Unconfirmed) } else { Ok(()) } }
            .boxed()
    }

    fn standing(&self) -> Standing {
        let led = !self.leaderless.load(Ordering::SeqCst);
        let index = self.index.load(Ordering::SeqCst);
        Standing {
            term: self.term.load(Ordering::SeqCst),
            leader: led.then_some(1),
            leading: led,
            learner: false,
            last_log: index,
            committed: index,
            applied: index,
        }
    }

    fn members(&self) -> Vec<Member> {
        vec![Member {
            id: 1,
            name: "one".to_owned(),
            peer_addr: "127.0.0.1:2380".to_owned(),
            client_addr: "127.0.0.1:2379".to_owned(),
            api_addr: "127.0.0.1:6443".to_owned(),
            learner: false,
            client_urls: Vec::new(),
        }]
    }

    fn change(&self, change: MemberChange) -> BoxFuture<'_, Result<(), ChangeFailure>> {
        async move { Err(ChangeFailure::Refused(format!("{change:?}: this log has one member"))) }.boxed()
    }
}
