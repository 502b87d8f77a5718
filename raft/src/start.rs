//! Starts a member: has the data directory proven ([`crate::storage`]), starts the threads, and wires them together.
//! Stopping it takes bounded time, whatever hangs.
//!
//! Raft has a runtime and threads of its own (D2), so that neither requests nor RocksDB's background work delay it: the
//! runtime (core, transport), the log writer and the apply thread.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use pintle_base::clock;
use pintle_base::current::Current;
use pintle_base::error::Chain;
use pintle_base::priority::set_niceness;
use pintle_base::task::Group;
use tokio::net::TcpListener;
use tokio::runtime;
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::core::{Raft, Record};
use crate::fatal::{Fatal, FatalCell};
use crate::identity::IdentityError;
use crate::log::LogStore;
use crate::machine::{LogId, Peer, StateMachine};
use crate::meters::Meters;
use crate::node::{Handle, Leading, Node, Place};
use crate::propose::Proposals;
use crate::read::Reads;
use crate::storage::{self, Opened, Storage};
use crate::transport::client::{NetworkFactory, over_tcp};
use crate::transport::{Links, Me, server};
use crate::{apply, bootstrap, entries, limits, log, propose, read};

/// Certificates for the peer transport. Both sides show one and check the other's; its host is the one in
/// [`Peer::peer_addr`]. Asked for with each connection, so that they can be renewed.
#[derive(Clone)]
pub struct Tls {
    pub server: Current<rustls::ServerConfig>,
    pub client: Current<rustls::ClientConfig>,
}

/// How members know each other.
#[derive(Clone)]
pub enum Peering {
    /// The common name of each certificate is [`crate::CERTIFICATE_NAME_PREFIX`] and the member's name.
    Named(Tls),
    /// Whoever has a certificate that the other accepts is believed to be the member it says it is. As etcd's peers do.
    Trusting(Tls),
    /// In plain text: whoever reaches the port is believed. As etcd's peers do where their URLs say `http`.
    Plain,
}

impl From<Tls> for Peering {
    fn from(tls: Tls) -> Self {
        Self::Named(tls)
    }
}

/// How a member runs.
#[derive(Clone)]
pub struct Options {
    /// This member. Never reused.
    pub id: u64,
    pub cluster_id: u64,
    /// Which of the cluster's logs; 0 as long as there is one.
    pub group_id: u64,
    /// Holds log, snapshots and identity; created if missing.
    pub data_dir: PathBuf,
    /// Where peers connect.
    pub listen: SocketAddr,
    /// The founders, all of them and the same everywhere, this member included. A member that is to be added to a running
    /// cluster, with [`Options::join`] set, has itself here and at least one of the cluster's voters: it asks them for all
    /// others.
    pub peers: Vec<Peer>,
    /// Never found a cluster: wait to be added to one.
    pub join: bool,
    pub peering: Peering,
    pub heartbeat: Duration,
    pub election_min: Duration,
    pub election_max: Duration,
    /// Entries applied since the last snapshot that ask for the next one.
    pub snapshot_entries: u64,
    /// Bytes applied since the last snapshot that ask for the next one.
    pub snapshot_bytes: u64,
    /// Entries kept in the log although a snapshot holds them.
    pub entries_kept: u64,
    /// Bytes of such entries, about; large entries are kept in smaller number.
    pub bytes_kept: u64,
    /// Where this member's measurements are registered.
    pub registry: prometheus::Registry,
}

impl Options {
    /// Options with the default timing and limits.
    pub fn new(
        id: u64,
        cluster_id: u64,
        data_dir: PathBuf,
        listen: SocketAddr,
        peers: Vec<Peer>,
        peering: impl Into<Peering>,
    ) -> Self {
        Self {
            id,
            cluster_id,
            group_id: 0,
            data_dir,
            listen,
            peers,
            join: false,
            peering: peering.into(),
            heartbeat: Duration::from_millis(100),
            election_min: Duration::from_millis(500),
            election_max: Duration::from_millis(1000),
            snapshot_entries: limits::SNAPSHOT_LOG_ENTRIES,
            snapshot_bytes: limits::SNAPSHOT_LOG_BYTES,
            entries_kept: limits::ENTRIES_KEPT,
            bytes_kept: limits::BYTES_KEPT,
            registry: prometheus::Registry::new(),
        }
    }
}

/// Why a member does not start. A contradiction in the data directory is one sentence; nothing has been changed then.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("raft option: {0}")]
    Options(String),
    #[error("{0}")]
    Identity(String),
    #[error("{0}")]
    Log(String),
    /// Of identity or log.
    #[error("{0}")]
    Damaged(String),
    #[error("raft log was purged up to {purged}, but the newest snapshot holds only {snapshot}", snapshot = shown(*.snapshot))]
    PurgedBeyondSnapshot { purged: LogId, snapshot: Option<LogId> },
    #[error("{why}; without it, {error}")]
    Snapshot { why: String, error: Box<StartError> },
    #[error("the state ends with {applied}, but the newest snapshot with {snapshot}")]
    SnapshotAndState { applied: LogId, snapshot: LogId },
    #[error("the state ends with {applied}, but the raft log was purged up to {purged}")]
    PurgedAndState { applied: LogId, purged: LogId },
    #[error("the state holds entry {applied}, but the raft log holds {found} there", found = shown(*.found))]
    StateReplaced { applied: LogId, found: Option<LogId> },
    #[error("the newest snapshot ends with {snapshot}, but the raft log holds {found} there")]
    SnapshotReplaced { snapshot: LogId, found: LogId },
    #[error("raft log begins after {purged}, but the state ends with {applied}", applied = shown(*.applied))]
    StateBehindLog { purged: LogId, applied: Option<LogId> },
    #[error("the state holds entry {applied}, but the raft log ends with {last}", last = shown(*.last))]
    StateBeyondLog { applied: LogId, last: Option<LogId> },
    #[error("read the state machine's position")]
    Machine(#[source] io::Error),
    #[error("prepare {what}")]
    Io {
        what: String,
        #[source]
        source: io::Error,
    },
    #[error("listen for peers on {addr}")]
    Listen {
        addr: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("start raft: {0}")]
    Core(String),
}

impl StartError {
    /// Whether what is in the data directory is damaged, or pieces of it are missing or do not belong together. No start will go
    /// better then.
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Options(_) | Self::Identity(_) | Self::Log(_) | Self::Listen { .. } | Self::Core(_) => false,
            Self::Damaged(_)
            | Self::PurgedBeyondSnapshot { .. }
            | Self::Snapshot { .. }
            | Self::SnapshotAndState { .. }
            | Self::PurgedAndState { .. }
            | Self::StateReplaced { .. }
            | Self::SnapshotReplaced { .. }
            | Self::StateBehindLog { .. }
            | Self::StateBeyondLog { .. } => true,
            Self::Machine(source) | Self::Io { source, .. } => source.kind() == io::ErrorKind::InvalidData,
        }
    }
}

impl From<IdentityError> for StartError {
    fn from(error: IdentityError) -> Self {
        let text = Chain(&error).to_string();
        match error {
            IdentityError::Damaged { .. } | IdentityError::Missing { .. } => Self::Damaged(text),
            _ => Self::Identity(text),
        }
    }
}

impl From<log::OpenError> for StartError {
    fn from(error: log::OpenError) -> Self {
        let text = Chain(&error).to_string();
        if error.is_damage() { Self::Damaged(text) } else { Self::Log(text) }
    }
}

fn shown(id: Option<LogId>) -> String {
    id.map_or_else(|| "nothing".to_owned(), |id| id.to_string())
}

/// Starts a member. It runs until [`Handle::shutdown`], or until `group` stops, which shuts it down.
///
/// Returns before there is a leader: watch [`Handle::status_watch`].
pub async fn start(options: Options, machine: impl StateMachine, group: &Group) -> Result<Handle, StartError> {
    let (ready, started) = oneshot::channel();
    let closed = watch::Sender::new(false);
    let when_closed = closed.subscribe();
    let callers = runtime::Handle::current();
    let spawned = thread::Builder::new().name("raft-main".to_owned()).spawn(move || {
        main(options, Box::new(machine), callers, ready, when_closed);
        closed.send_replace(true);
    });
    spawned.map_err(|source| StartError::Io { what: "raft's thread".to_owned(), source })?;
    let handle = started.await.map_err(|_| StartError::Core("raft's thread has ended".to_owned()))??;
    let (token, stopping) = (group.token(), handle.clone());
    group.spawn("raft", async move {
        tokio::select! {
            () = token.cancelled() => stopping.shutdown().await,
            () = stopping.closed() => (),
        }
    });
    Ok(handle)
}

/// The thread that owns everything.
fn main(
    options: Options,
    machine: Box<dyn StateMachine>,
    callers: runtime::Handle,
    ready: oneshot::Sender<Result<Handle, StartError>>,
    closed: watch::Receiver<bool>,
) {
    let runtime = runtime::Builder::new_multi_thread()
        .worker_threads(limits::RUNTIME_THREADS)
        .max_blocking_threads(limits::BLOCKING_THREADS)
        .thread_name("raft")
        .on_thread_start(|| set_niceness(limits::NICENESS))
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(source) => {
            let _ = ready.send(Err(StartError::Io { what: "raft's runtime".to_owned(), source }));
            return;
        }
    };
    let assembled = runtime.block_on(async {
        // On a worker, so that what openraft spawns starts on the workers, too.
        tokio::spawn(assemble(options, machine, callers, closed)).await
    });
    let threads = match assembled {
        Ok(Ok(member)) => {
            let Member { handle, threads } = member;
            let (node, halt) = (Arc::clone(&handle.node), handle.halt.clone());
            if ready.send(Ok(handle)).is_err() {
                halt.cancel();
            }
            runtime.block_on(async {
                halt.cancelled().await;
                tear_down(&node, &threads).await;
            });
            Some(threads)
        }
        Ok(Err((error, threads))) => {
            let _ = ready.send(Err(error));
            threads
        }
        Err(error) => {
            let _ = ready.send(Err(StartError::Core(error.to_string())));
            None
        }
    };
    runtime.shutdown_timeout(limits::RUNTIME_STOP);
    if let Some(threads) = threads {
        threads.stop();
    }
}

/// Threads beside the runtime.
struct Threads {
    writer: log::Writer,
    apply: Option<apply::ApplyThread>,
}

impl Threads {
    /// Ends them, or abandons them: whoever stops a member is not kept waiting by a disk or a state machine that hangs.
    fn stop(self) {
        if let Some(apply) = self.apply {
            apply.join(limits::THREAD_STOP);
        }
        self.writer.stop(limits::THREAD_STOP);
    }
}

struct Member {
    handle: Handle,
    threads: Threads,
}

async fn tear_down(node: &Node, threads: &Threads) {
    node.fatal.report(Fatal::Shutdown);
    node.stop.cancel();
    match clock::timeout(limits::CORE_STOP, node.raft.shutdown()).await {
        Ok(Ok(())) => (),
        Ok(Err(_)) => tracing::warn!("raft's core had ended before"),
        Err(_) => tracing::error!(limit = ?limits::CORE_STOP, "raft's core does not stop, it is abandoned"),
    }
    let Some(apply) = &threads.apply else { return };
    match clock::timeout(limits::FLUSH_STOP, apply.flush_and_stop()).await {
        Ok(Ok(())) => (),
        Ok(Err(error)) => tracing::warn!(%error, "the state machine was not flushed, the log will be replayed"),
        Err(_) => tracing::warn!(limit = ?limits::FLUSH_STOP, "the state machine was not flushed in time"),
    }
}

async fn assemble(
    options: Options,
    machine: Box<dyn StateMachine>,
    callers: runtime::Handle,
    closed: watch::Receiver<bool>,
) -> Result<Member, (StartError, Option<Threads>)> {
    let fatal = FatalCell::new();
    let prepared = async {
        let me = me(&options)?;
        let storage = storage::open(&options, machine, &fatal)?;
        let listener = TcpListener::bind(options.listen)
            .await
            .map_err(|source| StartError::Listen { addr: options.listen, source })?;
        Ok((storage, listener, Links::new(me, over_tcp(&options.peering))))
    };
    let (Storage { writer, applier, tasks, opened }, listener, links) =
        prepared.await.map_err(|error| (error, None))?;
    let thread = |source| StartError::Io { what: "raft's threads".to_owned(), source };
    let meters = Meters::new(&options.registry).map_err(|error| (StartError::Options(error.to_string()), None))?;
    let writer = writer.measured_by(meters).answering_in(tokio::runtime::Handle::current());
    let writer = log::Writer::start(writer).map_err(|source| (thread(source), None))?;
    let apply = match apply::ApplyThread::start(applier, tasks) {
        Ok(apply) => apply,
        Err(source) => return Err((thread(source), Some(Threads { writer, apply: None }))),
    };
    let threads = Threads { writer, apply: Some(apply) };
    let (node, proposals, reads) = match compose(&options, opened, links, callers, fatal).await {
        Ok(composed) => composed,
        Err(error) => return Err((error, Some(threads))),
    };
    spawn_server(&node, listener, &options.peering);
    let halt = CancellationToken::new();
    let runtime = runtime::Handle::current();
    Ok(Member { handle: Handle { node, proposals, reads, runtime, halt, closed }, threads })
}

/// Starts Raft on what was opened, and the tasks around it. The log's writer and the state machine's worker must be at work.
pub(crate) async fn compose(
    options: &Options,
    opened: Opened,
    links: Links,
    callers: runtime::Handle,
    fatal: FatalCell,
) -> Result<(Arc<Node>, Proposals, Reads), StartError> {
    let Opened { identity, log, snapshots, machine, has_log } = opened;
    let applying = machine.applying();
    let links = Arc::new(links);
    let config = Arc::new(config(options, identity.joining)?);
    let mut store = LogStore(Arc::clone(&log));
    storage::drop_overruled(&mut store, &snapshots).await?;
    let raft = Raft::new(options.id, config, NetworkFactory(Arc::clone(&links)), store, machine)
        .await
        .map_err(|error| StartError::Core(error.to_string()))?;
    let given = by_id(&options.peers);
    let founders = if options.join { BTreeMap::new() } else { given.clone() };
    let (data_dir, lease) = (options.data_dir.clone(), options.election_max);
    let place = Place { data_dir, identity, founders, given, lease, callers };
    let (confirmations, confirmer) = read::confirmations();
    let (entries, maker) = entries::channel();
    let leading = Leading { confirmations, entries };
    let node = Arc::new(Node::new(raft, links, &log, applying, snapshots, place, leading, fatal));
    let (proposals, batcher) = propose::channel();
    let (reads, rounds) = read::channel();
    tokio::spawn(Arc::clone(&node).run_status());
    tokio::spawn(Arc::clone(&node).run_snapshots());
    tokio::spawn(batcher.run(Arc::clone(&node)));
    tokio::spawn(rounds.run(Arc::clone(&node)));
    tokio::spawn(confirmer.run(Arc::clone(&node)));
    tokio::spawn(maker.run(Arc::clone(&node)));
    tokio::spawn(bootstrap::run(Arc::clone(&node), has_log, options.election_max));
    Ok((node, proposals, reads))
}

fn spawn_server(node: &Arc<Node>, listener: TcpListener, peering: &Peering) {
    let (node, peering) = (Arc::clone(node), peering.clone());
    tokio::spawn(async move {
        let stop = node.stop.clone();
        let served = server::serve(listener, &peering, Arc::clone(&node), stop.clone()).await;
        if !stop.is_cancelled() {
            let reason = served.err().map_or_else(|| "it ended".to_owned(), |error| error.to_string());
            node.fatal.report(Fatal::Core(format!("peer server: {reason}")));
        }
    });
}

fn by_id(peers: &[Peer]) -> BTreeMap<u64, Record> {
    peers.iter().map(|peer| (peer.id, peer.clone().into())).collect()
}

pub(crate) fn me(options: &Options) -> Result<Me, StartError> {
    let peers = by_id(&options.peers);
    // Others may have been added before they had a name.
    let named: Vec<&str> = peers.values().map(|peer| peer.name.as_str()).filter(|name| !name.is_empty()).collect();
    let names: std::collections::BTreeSet<&str> = named.iter().copied().collect();
    let nameless = peers.get(&options.id).is_some_and(|own| own.name.is_empty());
    if peers.len() != options.peers.len() || names.len() != named.len() || peers.contains_key(&0) || nameless {
        return Err(StartError::Options("every member needs an id above 0 and a name of its own".to_owned()));
    }
    if options.join && peers.len() < 2 {
        return Err(StartError::Options("a joining member needs the address of at least one voter".to_owned()));
    }
    let own = peers
        .get(&options.id)
        .ok_or_else(|| StartError::Options(format!("member {} is not among the peers", options.id)))?;
    let (cluster_id, group_id) = (options.cluster_id, options.group_id);
    Ok(Me { cluster_id, group_id, id: options.id, name: own.name.clone() })
}

fn config(options: &Options, joining: bool) -> Result<openraft::Config, StartError> {
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let config = openraft::Config {
        cluster_name: format!("{:x}", options.cluster_id),
        heartbeat_interval: millis(options.heartbeat),
        election_timeout_min: millis(options.election_min),
        election_timeout_max: millis(options.election_max),
        install_snapshot_timeout: millis(limits::SNAPSHOT_INSTALL),
        max_payload_entries: limits::APPEND_ENTRIES,
        // We trigger snapshots ourselves, by size and number of what was applied.
        snapshot_policy: openraft::SnapshotPolicy::Never,
        // Nor does it cut the log by itself: we know of sizes and of who catches up.
        max_in_snapshot_log_to_keep: u64::MAX,
        state_machine_channel_size: Some(limits::APPLY_COMMANDS),
        enable_pre_vote: Some(true),
        quorum_loss_probe_interval: Some(millis(options.election_max).saturating_mul(2)),
        // A lost peer is tried again at once, and soon again.
        backoff: "10ms 20ms 40ms ..200ms".to_owned(),
        enable_elect: !joining,
        // After a restart a member is a follower, as the protocol has it: a term's leader is one process.
        enable_leader_restore: Some(false),
        // Followers get an entry while the leader syncs it, not after the next message to the core.
        broadcast_submitted_on_append: Some(true),
        // A member whose disk was wiped starts over. That it does not vote meanwhile is our business (`identity`); one that
        // lost only a part of its log does not start at all.
        allow_log_reversion: Some(true),
        ..openraft::Config::default()
    };
    config.validate().map_err(|error| StartError::Options(error.to_string()))
}
