//! One running member: what its tasks share ([`Node`]) and what the rest of the process holds ([`Handle`]).

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use openraft::Instant;
use openraft::async_runtime::WatchReceiver;
use parking_lot::Mutex;
use pintle_base::clock;
use pintle_proto::raft_v1 as pb;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::apply::Applying;
use crate::core::{Raft, Record, StoredMembership, Vote, next_index};
use crate::describe::Description;
use crate::entries::Entries;
use crate::fatal::{Fatal, FatalCell};
use crate::identity::Identity;
use crate::limits;
use crate::log::Shared;
use crate::machine::Peer;
use crate::members::{Change, ChangeError, change};
use crate::propose::{Lane, Proposals, ProposeError};
use crate::read::{Confirmations, ReadError, Reads};
use crate::snapshot::Snapshots;
use crate::status::{Status, status};
use crate::transport::client::Link;
use crate::transport::{Links, Me, PeerName};

/// Who a member is, where it lies on disk, and whom it was told of at start.
pub(crate) struct Place {
    pub data_dir: PathBuf,
    pub identity: Identity,
    /// Those who found the cluster together, if this member is one of them; otherwise nobody.
    pub founders: BTreeMap<u64, Record>,
    /// Everybody given at start.
    pub given: BTreeMap<u64, Record>,
    /// How long a leader may go without hearing from a quorum: the longest election timeout.
    pub lease: Duration,
    pub callers: tokio::runtime::Handle,
}

/// Where a member is asked for what only a leader does.
pub(crate) struct Leading {
    /// Reads that wait for the leadership to be confirmed.
    pub confirmations: Confirmations,
    /// Batches that are to become entries.
    pub entries: Entries,
}

/// What the tasks of a member share.
pub(crate) struct Node {
    pub raft: Raft,
    pub links: Arc<Links>,
    /// Whoever holds the node may do so longer than the log is open.
    log: Weak<Shared>,
    pub applying: Arc<Applying>,
    pub snapshots: Arc<Snapshots>,
    /// Held while a snapshot is received: one at a time.
    pub receiving: tokio::sync::Mutex<()>,
    /// Held while members are changed: one change at a time.
    pub changing: Arc<tokio::sync::Mutex<()>>,
    /// The members given at start, for as long as the log names none.
    pub founders: BTreeMap<u64, Record>,
    pub given: BTreeMap<u64, Record>,
    pub data_dir: PathBuf,
    pub identity: Mutex<Identity>,
    /// Must not vote yet, see [`crate::identity`].
    pub joining: AtomicBool,
    /// May take entries, see [`crate::fence`].
    fenced: AtomicBool,
    /// Ends the tasks.
    pub stop: CancellationToken,
    pub fatal: FatalCell,
    /// How long a leader may go without hearing from a quorum.
    pub lease: Duration,
    pub leading: Leading,
    /// Where those run who ask. What they are told is handed out there: a wake across runtimes for each of them kept Raft's thread busy.
    pub callers: tokio::runtime::Handle,
    status: watch::Sender<Status>,
}

impl Node {
    pub fn new(
        raft: Raft,
        links: Arc<Links>,
        log: &Arc<Shared>,
        applying: Arc<Applying>,
        snapshots: Arc<Snapshots>,
        place: Place,
        leading: Leading,
        fatal: FatalCell,
    ) -> Self {
        let Place { data_dir, identity, founders, given, lease, callers } = place;
        let unknown = Status { joining: identity.joining, ..Status::default() };
        let first = status(&raft.metrics().borrow_watched(), applying.last(), &unknown, lease);
        Self {
            raft,
            links,
            log: Arc::downgrade(log),
            applying,
            snapshots,
            receiving: tokio::sync::Mutex::new(()),
            changing: Arc::default(),
            founders,
            given,
            data_dir,
            identity: Mutex::new(identity),
            joining: AtomicBool::new(identity.joining),
            fenced: AtomicBool::new(!identity.joining),
            stop: CancellationToken::new(),
            fatal,
            lease,
            leading,
            callers,
            status: watch::Sender::new(first),
        }
    }

    pub fn me(&self) -> &Me {
        &self.links.me
    }

    pub fn is_stopping(&self) -> bool {
        self.stop.is_cancelled()
    }

    pub fn watch(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    /// The status with the indexes of this moment.
    pub fn current(&self) -> Status {
        let mut status = self.status.borrow().clone();
        {
            let metrics = self.raft.data_metrics();
            let metrics = metrics.borrow_watched();
            status.last_log = metrics.last_log.map_or(0, |id| id.index);
            status.committed = metrics.local_committed.map_or(0, |id| id.index);
        }
        status.applied = self.applying.last();
        status
    }

    /// The status by openraft's newest word, not by what was published last.
    pub fn fresh(&self) -> Status {
        status(&self.raft.metrics().borrow_watched(), self.applying.last(), &self.status.borrow(), self.lease)
    }

    /// The newest vote on stable storage; `None` also if the log is closed.
    pub fn persisted_vote(&self) -> Option<Vote> {
        self.log.upgrade()?.vote()
    }

    /// The newest membership in the log, committed or not.
    pub fn membership(&self) -> StoredMembership {
        StoredMembership::clone(&self.raft.metrics().borrow_watched().membership_config)
    }

    pub fn leader(&self) -> Option<u64> {
        self.status.borrow().leader
    }

    /// Whether this member leads, as far as it knows.
    pub fn leads(&self) -> bool {
        self.leader() == Some(self.me().id)
    }

    /// Returns once this member leads, or does not.
    pub async fn leads_or_not(&self, leads: bool) {
        let me = self.me().id;
        // The sender lives in `self`, so this cannot fail.
        let _ = self.watch().wait_for(|status| (status.leader == Some(me)) == leads).await;
    }

    /// Connections to a member, if it is known.
    pub fn link(&self, id: u64) -> Option<Arc<Link>> {
        Some(self.links.link(id, &self.peer(id)?))
    }

    fn peer(&self, id: u64) -> Option<Record> {
        let recorded = self.status.borrow().peer(id).cloned();
        recorded.map(Record::from).or_else(|| self.given.get(&id).cloned())
    }

    /// Waits until another leader is known, or for `pause`.
    pub async fn leader_changed_or(&self, pause: Duration) {
        let before = self.leader();
        let mut status = self.watch();
        let changed = status.wait_for(|status| status.leader.is_some() && status.leader != before);
        tokio::select! {
            biased;
            () = self.stop.cancelled() => (),
            _ = changed => (),
            () = clock::sleep(pause) => (),
        }
    }

    /// Waits while too much is committed and not applied.
    pub async fn wait_until_applied_enough(&self) {
        let committed = next_index(self.raft.data_metrics().borrow_watched().local_committed);
        if let Some(index) = committed.checked_sub(limits::APPLY_LAG) {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => (),
                () = self.applying.reached(index) => (),
            }
        }
    }

    /// Refuses messages of other clusters or groups, for other members, or from somebody else than they say. Without a name
    /// from the connection the sender is believed.
    pub fn check_header(&self, header: Option<&pb::Header>, sender: &PeerName) -> Result<(), tonic::Status> {
        let header = header.ok_or_else(|| tonic::Status::invalid_argument("message has no header"))?;
        let me = self.me();
        let certificate = sender.0.as_deref().unwrap_or(&header.from_name);
        let named = sender.0.is_some();
        if (header.cluster_id, header.group_id) != (me.cluster_id, me.group_id) {
            tracing::warn!(from = certificate, cluster = header.cluster_id, "refused a message of another cluster");
            return Err(tonic::Status::permission_denied("this is another cluster"));
        }
        if header.to != me.id {
            return Err(tonic::Status::failed_precondition(format!("this is member {}", me.id)));
        }
        // Without names in certificates a member is who it says: it may have been added before it had a name.
        let recorded = self.peer(header.from).filter(|_| named).map(|peer| peer.name);
        if header.from_name != certificate || recorded.is_some_and(|name| name != certificate) {
            tracing::warn!(from = certificate, claimed = header.from, "refused a message: the sender is somebody else");
            return Err(tonic::Status::permission_denied("the certificate is another member's"));
        }
        Ok(())
    }

    /// Refuses to vote while joining.
    pub fn check_may_vote(&self) -> Result<(), tonic::Status> {
        if self.joining.load(Ordering::Acquire) {
            return Err(tonic::Status::failed_precondition("this member is joining and does not vote yet"));
        }
        Ok(())
    }

    /// Refuses entries and snapshots as long as it is not known which leaders are too old, see [`crate::fence`].
    pub fn check_may_receive(&self) -> Result<(), tonic::Status> {
        if self.fenced.load(Ordering::Acquire) {
            return Ok(());
        }
        Err(tonic::Status::unavailable("this member is joining and does not know yet which leaders are too old"))
    }

    /// From now on this member may receive.
    pub fn set_fenced(&self) {
        self.fenced.store(true, Ordering::Release);
    }

    /// Whether this member knows of a cluster that had a leader: its first entry follows the founding one.
    pub fn is_established(&self) -> bool {
        self.raft.metrics().borrow_watched().last_log_index.is_some_and(|last| last > 0)
    }

    /// From now on this member may vote.
    pub fn set_admitted(&self) {
        self.set_fenced();
        self.joining.store(false, Ordering::Release);
        self.raft.runtime_config().elect(true);
        self.status.send_modify(|status| status.joining = false);
    }

    /// Keeps the status current, and reports when openraft's core has ended.
    pub async fn run_status(self: Arc<Self>) {
        // These change with role, term, leader and members, not with every entry.
        let mut metrics = self.raft.server_metrics();
        let mut ticker = clock::ticker(self.lease / 4);
        loop {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                changed = metrics.changed() => {
                    if changed.is_err() {
                        self.publish_status(); // it may say why
                        self.fatal.report(Fatal::Core("raft's core has ended".to_owned()));
                        self.stop.cancel();
                        return;
                    }
                }
                _ = ticker.tick() => (),
            };
            if !self.publish_status() {
                return;
            }
        }
    }

    fn publish_status(&self) -> bool {
        let metrics = self.raft.metrics().borrow_watched().clone();
        if let Err(error) = &metrics.running_state {
            self.fatal.report(Fatal::Core(error.to_string()));
            self.stop.cancel();
            return false;
        }
        self.status.send_if_modified(|current| {
            let new = status(&metrics, self.applying.last(), current, self.lease);
            if (current.role, current.term, current.leader) != (new.role, new.term, new.leader) {
                tracing::info!(role = ?new.role, term = new.term, leader = new.leader, "raft role");
            }
            if !Arc::ptr_eq(&current.peers, &new.peers) {
                for known in new.peers.iter() {
                    self.links.refresh(known.peer.id, &Record::from(known.peer.clone()));
                }
            }
            let modified = new != *current;
            *current = new;
            modified
        });
        true
    }

    /// Asks openraft for a snapshot whenever one is due, and cuts the log behind it.
    pub async fn run_snapshots(self: Arc<Self>) {
        let mut ticker = clock::ticker(limits::CUT_TICK);
        let mut cut = None;
        loop {
            let made = tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                () = self.applying.snapshot_due.notified() => self.make_snapshot().await,
                _ = ticker.tick() => Ok(()),
            };
            let upto = self.upto();
            let purged = match upto {
                Some(index) if made.is_ok() && upto > cut => self.raft.trigger().purge_log(index).await,
                _ => Ok(()),
            };
            if made.is_err() || purged.is_err() {
                return; // the core has ended
            }
            cut = cut.max(upto);
        }
    }

    async fn make_snapshot(&self) -> Result<(), Fatal> {
        self.applying.flush_ahead().await;
        let due = self.applying.applied();
        self.raft.trigger().snapshot().await.map_err(|error| Fatal::Core(error.to_string()))?;
        let mut progress = self.raft.watch_snapshot_progress();
        let made = progress.wait_until_ge(&due);
        tokio::select! {
            biased;
            () = self.stop.cancelled() => (),
            _ = clock::timeout(limits::SNAPSHOT_MADE, made) => (),
        }
        if self.applying.is_due() {
            self.applying.snapshot_due.notify_one(); // it was not made, or much came meanwhile
        }
        Ok(())
    }

    /// The last entry that the log need not hold any more.
    fn upto(&self) -> Option<u64> {
        let metrics = self.raft.data_metrics();
        let metrics = metrics.borrow_watched();
        let snapshot = metrics.snapshot?.index;
        let answers = metrics.heartbeat.iter().flatten();
        let there = answers.filter(|(_, at)| at.as_ref().is_some_and(|at| at.elapsed() < limits::ANSWERED));
        let matched = metrics.replication.as_ref();
        let missing = there.map(|(id, _)| {
            let has = next_index(matched.and_then(|matched| *matched.get(id)?));
            has.max(self.links.snapshot_of(*id).map_or(0, |last| last + 1))
        });
        self.applying.kept(snapshot).cut(missing)
    }
}

/// This process's member of the cluster. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    pub(crate) node: Arc<Node>,
    pub(crate) proposals: Proposals,
    pub(crate) reads: Reads,
    pub(crate) runtime: tokio::runtime::Handle,
    /// Tells the main task to tear down.
    pub(crate) halt: CancellationToken,
    /// True once every thread has ended.
    pub(crate) closed: watch::Receiver<bool>,
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("raft::Handle").field("id", &self.node.me().id).finish_non_exhaustive()
    }
}

impl Handle {
    /// Has `command` committed and applied, and returns the state machine's reply.
    ///
    /// Works at every member; others than the leader pass it on. Commands of many callers share log entries. Waits up to
    /// [`limits::LEADER_WAIT`] for a leader. If the returned future is dropped the command may still be committed.
    /// # Errors
    /// All but [`ProposeError::Unknown`] mean that nothing was proposed.
    pub async fn propose(&self, command: Bytes) -> Result<Bytes, ProposeError> {
        self.propose_in(Lane::Flow(0), command).await
    }

    /// [`Handle::propose`], with a say in what waits for what when there is more than goes at once.
    pub async fn propose_in(&self, lane: Lane, command: Bytes) -> Result<Bytes, ProposeError> {
        self.proposals.propose(command, lane).await
    }

    /// Returns once this member has applied everything that was committed anywhere before the call; with its index.
    ///
    /// A read of the state machine after that is linearizable.
    pub async fn read_index(&self) -> Result<u64, ReadError> {
        self.reads.read_index().await
    }

    /// What was published last, looked at in its place: role, term and leader are of this moment, indexes may be older.
    pub fn with_status<T>(&self, look: impl FnOnce(&Status) -> T) -> T {
        look(&self.node.status.borrow())
    }

    /// This moment's view.
    pub fn status(&self) -> Status {
        self.node.current()
    }

    /// Changes of role, term, leader and members at once; of the indexes every now and then.
    pub fn status_watch(&self) -> watch::Receiver<Status> {
        self.node.watch()
    }

    /// The cluster as this member sees it now.
    pub fn description(&self) -> Description {
        Description::of(&self.node)
    }

    /// The members and their addresses, by id; the founders before the log names any.
    pub fn members(&self) -> Vec<crate::PeerStatus> {
        let known = Arc::clone(&self.node.status.borrow().peers);
        if !known.is_empty() {
            return known.to_vec();
        }
        self.node
            .founders
            .iter()
            .map(|(id, record)| crate::PeerStatus { peer: record.peer(*id), voter: true })
            .collect()
    }

    /// Hands leadership to a voter, or to the one whose log is longest. Returns when it is known that it has changed.
    pub async fn transfer_leader(&self, to: Option<u64>) -> Result<(), ChangeError> {
        self.change(Change::TransferLeader(to)).await
    }

    /// Adds a member that receives the log and does not vote. Does nothing if it is one already.
    pub async fn add_learner(&self, peer: Peer) -> Result<(), ChangeError> {
        self.change(Change::AddLearner(peer)).await
    }

    /// Lets a learner vote. Refused while it lacks more than [`limits::PROMOTE_LAG`] entries.
    pub async fn promote(&self, id: u64) -> Result<(), ChangeError> {
        self.change(Change::Promote(id)).await
    }

    /// Records another name or other addresses of a member.
    pub async fn update(&self, peer: Peer) -> Result<(), ChangeError> {
        self.change(Change::Update(peer)).await
    }

    /// Removes a member. Its id must never be used again.
    pub async fn remove(&self, id: u64) -> Result<(), ChangeError> {
        self.change(Change::Remove(id)).await
    }

    async fn change(&self, asked: Change) -> Result<(), ChangeError> {
        let node = Arc::clone(&self.node);
        // In Raft's runtime, which drives the connections.
        self.runtime.spawn(async move { change(&node, asked).await }).await.map_err(|_| ChangeError::Stopped)?
    }

    /// Makes a snapshot soon, as if one were due.
    pub fn snapshot(&self) {
        self.node.applying.snapshot_due.notify_one();
    }

    /// Waits until this member's Raft has stopped, and says why. Except after a shutdown the process must end (I4, I6).
    pub async fn stopped(&self) -> Fatal {
        self.node.fatal.wait().await
    }

    /// Hands leadership over if it has it, makes everything durable and stops. Returns when all threads have ended.
    pub async fn shutdown(&self) {
        let others = self.node.current().voters().any(|peer| peer.id != self.node.me().id);
        if !self.halt.is_cancelled() && others && self.node.leader() == Some(self.node.me().id) {
            match self.node.transfer(None).await {
                Ok(()) => (),
                Err(refused) => tracing::warn!(?refused, "stopping without handing leadership over"),
            }
        }
        self.stop_at_once().await;
    }

    /// Stops without handing over: to the others it looks like a crash.
    pub async fn stop_at_once(&self) {
        self.halt.cancel();
        self.closed().await;
    }

    /// Waits until all threads have ended.
    pub(crate) async fn closed(&self) {
        let mut closed = self.closed.clone();
        // An error means that the threads are gone, too.
        let _ = closed.wait_for(|closed| *closed).await;
    }
}
