//! The handle everybody uses: checks at the door, proposes writes, reads the local replica, opens watches.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use parking_lot::Mutex;
use pintle_base::backoff::Backoff;
use pintle_base::{clock, task};
use pintle_proto::etcdserverpb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse,
    ResponseHeader, TxnRequest, TxnResponse,
};
use pintle_proto::store_v1::command::Operation;
use pintle_proto::store_v1::failure::Reason;
use pintle_proto::store_v1::reply::Outcome;
use pintle_proto::store_v1::{AuthFailure, Caller, Command, Failure, Reply};
use pintle_raft::Lane;
use prost::Message;
use tokio::sync::{Semaphore, watch};

use crate::about::About;
use crate::apply::{self, Known, Plan};
use crate::audit::{self, AuditLog, AuditOptions, Description, Entry};
use crate::auth::{self, Actor, AuthError, AuthState, Grant, Passwords, Peer, TokenOptions, Tokens};
use crate::census::Census;
use crate::compaction::AutoCompaction;
use crate::consensus::{Consensus, ProposeFailure, ReadFailure, Standing};
use crate::engine::{Engine, EngineOptions};
use crate::error::{OpenError, StoreError, WatchError};
use crate::lease::LeaseTimes;
use crate::machine::StoreMachine;
use crate::metrics::{Held, Metrics};
use crate::mvcc::scrub::Scrub;
use crate::mvcc::view::Source;
use crate::quota::Quotas;
use crate::quota::rates::Rates;
use crate::readers::Readers;
use crate::top::Top;
use crate::watch::{Revision, WatchOptions, Watcher, Watches};
use crate::{check, etcd, limits, tasks};

/// Settings of a store.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    pub cluster_id: u64,
    pub member_id: u64,
    /// How long a request may wait for a leader and its quorum: 5 s and two elections, as etcd does.
    pub request_timeout: Duration,
    /// Shorter leases are raised to it: above the longest time without a leader, so that no lease ends before it can be renewed.
    pub lease_ttl_min: i64,
    /// What history the leader keeps; `None` leaves it to clients.
    pub auto_compaction: Option<AutoCompaction>,
    /// Operations in one branch of a transaction.
    pub txn_operations: usize,
    /// Largest request, in encoded bytes.
    pub request_bytes: usize,
    /// Between two progress notifications of an idle watcher.
    pub progress_interval: Duration,
    /// Three election timeouts: streams that ask for a leader end after so long without one.
    pub leader_patience: Duration,
    pub engine: EngineOptions,
    /// Bytes of data beyond which nothing is taken in any more; `None` sets no limit.
    pub quota_bytes: Option<u64>,
    /// What this member is called; empty if the others know already.
    pub name: String,
    /// URLs clients reach this member by, made known to the others; empty if they know its address already.
    pub client_urls: Vec<String>,
    /// Members are added by their peer URLs. Elsewhere they join with certificates that name them.
    pub members_by_url: bool,
    /// Members that only learn, beside those that are to vote once they have caught up.
    pub max_learners: usize,
    /// Origins whose web pages may read answers, `*` for all; none unless named.
    pub origins: Vec<String>,
    /// Hosts that are answered for in plain text, `*` or none for all.
    pub hosts: Vec<String>,
    /// Scheme of the members' addresses.
    pub scheme: &'static str,
    /// How logins are kept.
    pub tokens: TokenOptions,
    /// Where writes of known clients are told; nowhere unless set.
    pub audit: Option<AuditOptions>,
    /// bcrypt's cost of password hashes, 4 to 31: the work doubles with each step.
    pub bcrypt_cost: u32,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            cluster_id: 1,
            member_id: 1,
            request_timeout: Duration::from_secs(7),
            lease_ttl_min: 2,
            auto_compaction: None,
            txn_operations: limits::TXN_OPERATIONS,
            request_bytes: limits::REQUEST_BYTES,
            progress_interval: limits::PROGRESS_INTERVAL,
            leader_patience: Duration::from_secs(3),
            engine: EngineOptions::default(),
            quota_bytes: None,
            name: String::new(),
            client_urls: Vec::new(),
            members_by_url: false,
            max_learners: 1,
            origins: Vec::new(),
            hosts: Vec::new(),
            scheme: "https",
            tokens: TokenOptions::default(),
            audit: None,
            bcrypt_cost: 10,
        }
    }
}

/// Whether this member leads, and in which term: the fence of what leaders write (I9).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leadership {
    pub leading: bool,
    pub term: u64,
    pub leader: Option<u64>,
}

/// The member as it is now.
#[derive(Clone, Debug)]
pub struct StoreStatus {
    pub cluster_id: u64,
    pub member_id: u64,
    pub revision: i64,
    pub compact_revision: i64,
    pub standing: Standing,
    /// Bytes on disk and in memory tables; of these, what live data needs.
    pub db_size: u64,
    pub db_size_in_use: u64,
    pub watchers: usize,
}

/// Cheap to clone. Acts for the member itself, unless it was made to act for a client.
#[derive(Clone)]
pub struct Store {
    shared: Arc<Shared>,
    actor: Actor,
    /// Where the actor is, if it came by a connection.
    peer: Option<Peer>,
}

/// What handle, machine and tasks share.
pub(crate) struct Shared {
    pub engine: Arc<Engine>,
    pub watches: Arc<Watches>,
    pub leases: LeaseTimes,
    pub about: About,
    pub metrics: Metrics,
    pub auth: ArcSwap<AuthState>,
    pub quotas: ArcSwap<Quotas>,
    pub rates: Rates,
    pub top: Top,
    pub census: Census,
    pub passwords: Passwords,
    pub tokens: Tokens,
    pub leadership: watch::Sender<Leadership>,
    pub options: StoreOptions,
    pub scrub: Arc<Scrub>,
    scrub_thread: Mutex<Option<JoinHandle<()>>>,
    revision: AtomicI64,
    compacted: AtomicI64,
    consensus: OnceLock<Arc<dyn Consensus>>,
    /// Tasks that outlive the request they belong to.
    group: OnceLock<task::Group>,
    pub readers: Arc<Readers>,
    audit: Option<AuditLog>,
    /// Room for answers that wait to be sent.
    pub answers: etcd::answers::Room,
    /// Room for snapshots that are being sent.
    pub snapshots: Arc<Semaphore>,
}

impl Shared {
    /// An entry was written: makes it known. Called on the apply thread.
    pub fn applied(&self, plan: &Plan, revisions: Vec<Arc<Revision>>) {
        for (id, record) in &plan.leases {
            self.leases.changed(*id, *record);
        }
        self.about.applied(&plan.alarms, &plan.published, &plan.expected);
        if !plan.auth_rows.is_empty() {
            self.auth.store(Arc::clone(&plan.auth));
        }
        if !plan.quotas.is_empty()
            && let Some(now) = self.quotas.load().applied(&plan.quotas)
        {
            self.quotas.store(Arc::new(now));
        }
        self.revision.store(plan.revision, Ordering::Release);
        let before = self.compacted.swap(plan.compacted, Ordering::AcqRel);
        self.watches.applied(revisions, plan.compacted);
        if plan.compacted > before {
            self.scrub.wake();
        }
    }

    /// The state was replaced as a whole.
    pub fn reload(&self) -> io::Result<()> {
        let generation = self.engine.current();
        let view = generation.view()?;
        self.auth.store(Arc::new(view.auth()?)); // first: who may see it comes before what can be seen
        self.quotas.store(Arc::new(view.quotas()?));
        self.top.reset();
        self.census.reset(view.revision());
        self.leases.load(view.leases()?);
        self.about.load(view.alarms(), view.members()?, view.expected_voters()?);
        self.revision.store(view.revision(), Ordering::Release);
        self.compacted.store(view.compacted(), Ordering::Release);
        self.watches.replaced(view.revision(), view.compacted());
        self.scrub.wake();
        Ok(())
    }

    /// What applying goes by beside what is stored.
    pub fn known(&self) -> Known {
        Known { auth: self.auth.load_full(), quotas: self.quotas.load_full() }
    }

    /// Up to which revision history was removed here.
    pub fn scrubbed(&self) -> i64 {
        *self.scrub.progress().borrow()
    }

    pub fn consensus(&self) -> Result<&Arc<dyn Consensus>, StoreError> {
        self.consensus.get().ok_or(StoreError::NoLeader)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.scrub.stop();
        if let Some(thread) = self.scrub_thread.lock().take() {
            let _ = thread.join(); // its database must be closed before the directory is opened again
        }
    }
}

impl Store {
    /// Opens the state in `dir`, or begins an empty one, which is at revision 1. The machine is for `pintle_raft::start`.
    pub fn open(dir: &Path, options: StoreOptions) -> Result<(Self, StoreMachine), OpenError> {
        let failed = |source| OpenError::Engine { dir: dir.display().to_string(), source };
        let engine = Arc::new(Engine::open(dir, options.engine.clone())?);
        let state = engine.current().state().map_err(failed)?;
        let scrub = Arc::new(Scrub::new());
        let thread = scrub.start(Arc::clone(&engine)).map_err(failed)?;
        let metrics = Metrics::new(etcd::VERSION, etcd::CLUSTER_VERSION, options.member_id)
            .map_err(|error| failed(io::Error::other(error)))?;
        let audit = options.audit.as_ref().map(|to| {
            let opened = AuditLog::open(to, metrics.counters.audit_dropped.clone());
            opened.map_err(|source| OpenError::Audit { file: to.file.display().to_string(), source })
        });
        let shared = Arc::new(Shared {
            watches: Arc::new(Watches::new(Arc::clone(&engine), state.revision, state.compact_revision)),
            engine,
            leases: LeaseTimes::default(),
            about: About::default(),
            metrics,
            audit: audit.transpose()?,
            auth: ArcSwap::default(),
            quotas: ArcSwap::default(),
            rates: Rates::default(),
            top: Top::default(),
            census: Census::new(),
            passwords: Passwords::new(options.bcrypt_cost),
            tokens: Tokens::new(&options.tokens),
            leadership: watch::Sender::new(Leadership::default()),
            options,
            scrub,
            scrub_thread: Mutex::new(Some(thread)),
            revision: AtomicI64::new(state.revision),
            compacted: AtomicI64::new(state.compact_revision),
            consensus: OnceLock::new(),
            group: OnceLock::new(),
            readers: Readers::start().map_err(failed)?,
            answers: etcd::answers::Room::new(limits::ANSWERS_BYTES),
            snapshots: Arc::new(Semaphore::new(limits::SNAPSHOTS)),
        });
        shared.reload().map_err(failed)?;
        Ok((Self::own(Arc::clone(&shared)), StoreMachine::new(shared)))
    }

    /// Connects the store to its Raft member and starts what leaders do: lease expiry and compaction. Once.
    pub fn attach(&self, raft: pintle_raft::Handle, group: &task::Group) {
        tasks::follow_leadership(&self.shared, &raft, group);
        self.attach_consensus(Arc::new(raft), group);
    }

    pub(crate) fn attach_consensus(&self, consensus: Arc<dyn Consensus>, group: &task::Group) {
        if self.shared.consensus.set(consensus).is_err() {
            tracing::warn!("store is attached already");
            return;
        }
        self.shared.group.get_or_init(|| group.child("store-requests"));
        tasks::expire_leases(self, group);
        tasks::compact_automatically(self, group);
        tasks::watch_space(self, group);
        tasks::give_back(self, group);
        tasks::publish(self, group);
        tasks::promote_members(self, group);
        tasks::make_token_key(self, group);
        tasks::count_quotas(self, group);
        let watches = Arc::clone(&self.shared.watches);
        let stopping = group.token();
        group.spawn("store-stop", async move {
            stopping.cancelled().await;
            watches.hub.stop();
        });
    }

    /// A handle that acts for the member itself.
    pub(crate) fn own(shared: Arc<Shared>) -> Self {
        Self { shared, actor: Actor::Member, peer: None }
    }

    /// A handle that acts for a client.
    pub(crate) fn acting_for(&self, actor: Actor, peer: Option<Peer>) -> Self {
        Self { shared: Arc::clone(&self.shared), actor, peer }
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.shared.metrics
    }

    /// Where what is measured of this member is registered, for those below and above the store to add to.
    pub fn registry(&self) -> &prometheus::Registry {
        self.shared.metrics.registry()
    }

    pub(crate) fn actor(&self) -> &Actor {
        &self.actor
    }

    /// Users and roles as this member knows them.
    pub(crate) fn auth(&self) -> Arc<AuthState> {
        self.shared.auth.load_full()
    }

    pub(crate) fn passwords(&self) -> &Passwords {
        &self.shared.passwords
    }

    pub(crate) fn tokens(&self) -> &Tokens {
        &self.shared.tokens
    }

    /// Refuses what the actor of this handle may not do, by what this member knows now.
    pub(crate) fn permitted(&self, may: impl FnOnce(&Grant) -> Result<(), AuthError>) -> Result<(), StoreError> {
        let state = self.shared.auth.load();
        let caller = match &self.actor {
            Actor::Member => return Ok(()),
            _ if !state.enabled => return Ok(()),
            Actor::Anonymous => &Caller::default(),
            Actor::BadToken => return Err(AuthError(AuthFailure::InvalidToken).into()),
            Actor::User(caller) => caller,
        };
        Ok(may(&state.grant(caller)?)?)
    }

    pub async fn put(&self, request: PutRequest) -> Result<PutResponse, StoreError> {
        check::put(&request)?;
        self.check_space(check::PUT_COST + request.key.len() + request.value.len())?;
        let (mut answer, revision): (PutResponse, _) =
            self.write(Operation::Put(Bytes::from(request.encode_to_vec())), None).await?;
        answer.header = self.header(revision);
        Ok(answer)
    }

    pub async fn delete_range(&self, request: DeleteRangeRequest) -> Result<DeleteRangeResponse, StoreError> {
        check::delete_range(&request)?;
        let (mut answer, revision): (DeleteRangeResponse, _) =
            self.write(Operation::DeleteRange(Bytes::from(request.encode_to_vec())), None).await?;
        answer.header = self.header(revision);
        Ok(answer)
    }

    /// Compares and writes atomically. With a fence it is refused in any other term than that (I9).
    pub async fn txn(&self, request: TxnRequest, fence: Option<u64>) -> Result<TxnResponse, StoreError> {
        check::txn(&request, self.shared.options.txn_operations)?;
        self.metrics().counters.txns.inc();
        if apply::is_read_only(&request) {
            return self.read_txn(request).await;
        }
        self.check_space(check::cost(&request))?;
        let (mut answer, revision): (TxnResponse, _) =
            self.write(Operation::Txn(Bytes::from(request.encode_to_vec())), fence).await?;
        answer.header = self.header(revision);
        Ok(answer)
    }

    /// Refuses what would go beyond the quota, by the size that was last looked at.
    pub(crate) fn check_space(&self, cost: usize) -> Result<(), StoreError> {
        let Some(quota) = self.shared.options.quota_bytes.filter(|_| cost > 0) else { return Ok(()) };
        match self.shared.about.size().saturating_add(cost as u64) > quota {
            true => Err(StoreError::NoSpace),
            false => Ok(()),
        }
    }

    /// Forgets history before `revision`. With `physical` it returns once this member has removed it from disk.
    pub async fn compact(&self, request: CompactionRequest) -> Result<CompactionResponse, StoreError> {
        let (mut answer, revision): (CompactionResponse, _) =
            self.write(Operation::Compact(request.revision), None).await?;
        if request.physical {
            let mut progress = self.shared.scrub.progress();
            let done = progress.wait_for(|&through| through >= request.revision);
            // The compaction itself is done; a slow scrub goes on alone.
            let _ = clock::timeout(self.shared.options.request_timeout, done).await;
        }
        answer.header = self.header(revision);
        Ok(answer)
    }

    /// Opens a watch.
    pub fn watch(&self, options: WatchOptions) -> Result<Watcher, WatchError> {
        Watcher::new(&self.shared.watches, &options)
    }

    /// The revision applied on this member.
    pub fn revision(&self) -> i64 {
        self.shared.revision.load(Ordering::Acquire)
    }

    /// Everything before it is unreadable; 0 if nothing was ever compacted.
    pub fn compact_revision(&self) -> i64 {
        self.shared.compacted.load(Ordering::Acquire)
    }

    /// Waits until this member has applied everything committed before the call; returns its revision.
    pub async fn read_barrier(&self) -> Result<i64, StoreError> {
        self.barrier().await?;
        Ok(self.revision())
    }

    pub fn status(&self) -> StoreStatus {
        let (db_size, db_size_in_use) = self.shared.engine.current().size();
        StoreStatus {
            cluster_id: self.shared.options.cluster_id,
            member_id: self.shared.options.member_id,
            revision: self.revision(),
            compact_revision: self.compact_revision(),
            standing: self.standing(),
            db_size,
            db_size_in_use,
            watchers: self.shared.watches.hub.len(),
        }
    }

    /// Returns once the state could not be read, with the reason: the process must end then, without ending anything in good
    /// order.
    pub async fn failed(&self) -> String {
        let mut failed = self.shared.engine.failed();
        match failed.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or_default(),
            // The engine is gone, and nobody reads any more.
            Err(_) => std::future::pending().await,
        }
    }

    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.shared.leadership.subscribe()
    }

    pub fn options(&self) -> &StoreOptions {
        &self.shared.options
    }

    pub(crate) fn watches(&self) -> &Arc<Watches> {
        &self.shared.watches
    }

    /// For work that goes on, or is undone, after its request has gone away.
    pub(crate) fn group(&self) -> &task::Group {
        self.shared.group.get_or_init(|| task::Group::new("store-requests"))
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Role, term and leader; the indexes may be a moment old.
    pub(crate) fn published(&self) -> Standing {
        self.shared.consensus().map(|consensus| consensus.published()).unwrap_or_default()
    }

    pub(crate) fn standing(&self) -> Standing {
        self.shared.consensus().map(|consensus| consensus.standing()).unwrap_or_default()
    }

    /// The header of an answer read at `revision` (I7).
    pub(crate) fn header(&self, revision: i64) -> Option<ResponseHeader> {
        let StoreOptions { cluster_id, member_id, .. } = self.shared.options;
        Some(ResponseHeader { cluster_id, member_id, revision, raft_term: self.published().term })
    }

    /// With whom the actor shares what the member can do.
    pub(crate) fn flow(&self) -> u64 {
        auth::flow(&self.actor, self.peer)
    }

    /// Waits for a read index, through elections, until the time is over.
    pub(crate) async fn barrier(&self) -> Result<(), StoreError> {
        let consensus = self.shared.consensus()?;
        let began = clock::now();
        let deadline = began + self.shared.options.request_timeout;
        let mut backoff = Backoff::new(Duration::from_millis(5), Duration::from_millis(100));
        loop {
            let left = deadline.saturating_duration_since(clock::now());
            match clock::timeout(left, consensus.read_index()).await {
                Ok(Ok(())) => {
                    if began.elapsed() > limits::SLOW_READ {
                        self.metrics().counters.slow_reads.inc();
                    }
                    return Ok(());
                }
                Ok(Err(ReadFailure::Stopped)) => return Err(StoreError::Stopped),
                Ok(Err(ReadFailure::Unconfirmed)) => {
                    let delay = backoff.next_delay();
                    if clock::now() + delay >= deadline {
                        return Err(StoreError::ReadTimeout);
                    }
                    clock::sleep(delay).await;
                }
                Err(_) => {
                    self.metrics().counters.failed_reads.inc();
                    return Err(StoreError::ReadTimeout);
                }
            }
        }
    }

    pub(crate) async fn write<A: Message + Default>(
        &self,
        operation: Operation,
        fence: Option<u64>,
    ) -> Result<(A, i64), StoreError> {
        match self.propose(operation, fence).await? {
            (Outcome::Answer(answer), revision) => {
                A::decode(answer).map(|answer| (answer, revision)).map_err(|_| StoreError::Malformed)
            }
            _ => Err(StoreError::Malformed),
        }
    }

    /// Begins a line of the audit log, if there is one and whoever acts is a client that is asked who it is.
    pub(crate) fn audit(&self, describe: impl FnOnce() -> Option<Description>) -> Option<Entry<'_>> {
        let log = self.shared.audit.as_ref()?;
        let asked = match &self.actor {
            Actor::Member => false,
            Actor::User(_) => true,
            Actor::Anonymous | Actor::BadToken => self.shared.auth.load().enabled,
        };
        if asked { Some(log.begin(&self.actor, self.peer, describe()?)) } else { None }
    }

    /// Proposes, and again while it is certain that nothing was logged; a lost answer is never asked for twice.
    pub(crate) async fn propose(&self, operation: Operation, fence: Option<u64>) -> Result<(Outcome, i64), StoreError> {
        let entry = self.audit(|| audit::describe(&operation));
        let answer = self.propose_for_actor(operation, fence).await;
        if let Some(mut entry) = entry {
            match &answer {
                Ok((outcome, revision)) => entry.done(*revision, Some(outcome)),
                Err(error) => entry.failed(error),
            }
        }
        answer
    }

    async fn propose_for_actor(&self, operation: Operation, fence: Option<u64>) -> Result<(Outcome, i64), StoreError> {
        let caller = match &self.actor {
            Actor::Member => None,
            Actor::Anonymous => Some(Caller::default()),
            Actor::User(caller) => Some(Caller::clone(caller)),
            Actor::BadToken => {
                self.permitted(|_| Ok(()))?; // it does not matter while nobody is asked
                Some(Caller::default())
            }
        };
        let lane = self.lane(&operation);
        let command = Bytes::from(Command { fence, caller, operation: Some(operation) }.encode_to_vec());
        if command.len() > self.shared.options.request_bytes {
            return Err(StoreError::TooLarge);
        }
        let _pending = Held::new(&self.metrics().pending);
        let answer = self.propose_until_answered(lane, command).await;
        if answer.as_ref().is_err_and(|error| error.code() == tonic::Code::Unavailable) {
            self.metrics().counters.proposals_failed.inc();
        }
        answer
    }

    /// What keeps leases and members going never waits behind data.
    fn lane(&self, operation: &Operation) -> Lane {
        match operation {
            Operation::LeaseRenew(_)
            | Operation::LeaseExpire(_)
            | Operation::SetAlarm(_)
            | Operation::Publish(_)
            | Operation::ExpectVoter(_)
            | Operation::Auth(_)
            | Operation::Quota(_)
            | Operation::QuotaCount(_) => Lane::Urgent,
            Operation::Put(_)
            | Operation::DeleteRange(_)
            | Operation::Txn(_)
            | Operation::Compact(_)
            | Operation::LeaseGrant(_)
            | Operation::LeaseRevoke(_) => Lane::Flow(self.flow()),
        }
    }

    async fn propose_until_answered(&self, lane: Lane, command: Bytes) -> Result<(Outcome, i64), StoreError> {
        let consensus = self.shared.consensus()?;
        let deadline = clock::now() + self.shared.options.request_timeout;
        let mut backoff = Backoff::new(Duration::from_millis(5), Duration::from_millis(100));
        loop {
            let left = deadline.saturating_duration_since(clock::now());
            match clock::timeout(left, consensus.propose(lane, command.clone())).await {
                Ok(Ok(reply)) => return read_reply(reply),
                Ok(Err(ProposeFailure::NotSent)) => {
                    let delay = backoff.next_delay();
                    if clock::now() + delay >= deadline {
                        return Err(StoreError::NoLeader);
                    }
                    clock::sleep(delay).await;
                }
                Ok(Err(ProposeFailure::Overloaded)) => return Err(StoreError::Overloaded),
                Ok(Err(ProposeFailure::TooLarge)) => return Err(StoreError::TooLarge),
                Ok(Err(ProposeFailure::Stopped)) => return Err(StoreError::Stopped),
                Ok(Err(ProposeFailure::Unknown)) | Err(_) => return Err(StoreError::Unknown),
            }
        }
    }
}

fn read_reply(reply: Bytes) -> Result<(Outcome, i64), StoreError> {
    let reply = Reply::decode(reply).map_err(|_| StoreError::Malformed)?;
    match reply.outcome {
        Some(Outcome::Failure(failure)) => Err(StoreError::from(&failure)),
        Some(outcome) => Ok((outcome, reply.revision)),
        None => Err(StoreError::from(&Failure { reason: Reason::Unknown.into(), ..Failure::default() })),
    }
}
