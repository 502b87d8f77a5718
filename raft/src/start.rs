//! Starts a member: proves the data directory, opens log and snapshots, starts the threads, and wires them together.
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

use pintle_base::task::Group;
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::apply::{self, Applying, SnapshotPolicy};
use crate::core::{Raft, Record, log_id, next_index};
use crate::fatal::{Fatal, FatalCell};
use crate::identity::{self, Identity};
use crate::limits;
use crate::log::{self, Log, LogStore};
use crate::machine::{LogId, Peer, StateMachine};
use crate::node::{Handle, Node};
use crate::snapshot::Snapshots;
use crate::transport::client::NetworkFactory;
use crate::transport::{Links, Me, server};
use crate::{bootstrap, priority, propose, read};

/// Certificates for the peer transport. Both sides show one and check the other's; its common name is
/// [`crate::CERTIFICATE_NAME_PREFIX`] and the member's name, its host the one in [`Peer::peer_addr`].
#[derive(Clone)]
pub struct Tls {
    pub server: Arc<rustls::ServerConfig>,
    pub client: Arc<rustls::ClientConfig>,
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
    /// cluster has only itself here, with [`Options::join`] set.
    pub peers: Vec<Peer>,
    /// Never found a cluster: wait to be added to one.
    pub join: bool,
    pub tls: Tls,
    pub heartbeat: Duration,
    pub election_min: Duration,
    pub election_max: Duration,
    /// Entries applied since the last snapshot that ask for the next one.
    pub snapshot_entries: u64,
    /// Bytes applied since the last snapshot that ask for the next one.
    pub snapshot_bytes: u64,
    /// Entries kept in the log although a snapshot holds them.
    pub entries_kept: u64,
}

impl Options {
    /// Options with the default timing and limits.
    pub fn new(id: u64, cluster_id: u64, data_dir: PathBuf, listen: SocketAddr, peers: Vec<Peer>, tls: Tls) -> Self {
        Self {
            id,
            cluster_id,
            group_id: 0,
            data_dir,
            listen,
            peers,
            join: false,
            tls,
            heartbeat: Duration::from_millis(100),
            election_min: Duration::from_millis(500),
            election_max: Duration::from_millis(1000),
            snapshot_entries: limits::SNAPSHOT_LOG_ENTRIES,
            snapshot_bytes: limits::SNAPSHOT_LOG_BYTES,
            entries_kept: limits::ENTRIES_KEPT,
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
    #[error("raft log was purged up to {purged}, but the newest snapshot holds only {snapshot}", snapshot = shown(*.snapshot))]
    PurgedBeyondSnapshot { purged: LogId, snapshot: Option<LogId> },
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
    let spawned = thread::Builder::new().name("raft-main".to_owned()).spawn(move || {
        main(options, Box::new(machine), ready, when_closed);
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
    ready: oneshot::Sender<Result<Handle, StartError>>,
    closed: watch::Receiver<bool>,
) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(limits::RUNTIME_THREADS)
        .max_blocking_threads(limits::BLOCKING_THREADS)
        .thread_name("raft")
        .on_thread_start(priority::raise)
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
        tokio::spawn(assemble(options, machine, closed)).await
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
        if let Some(apply) = threads.apply {
            apply.join();
        }
        threads.writer.stop();
    }
}

/// Threads beside the runtime.
struct Threads {
    writer: log::Writer,
    apply: Option<apply::ApplyThread>,
}

struct Member {
    handle: Handle,
    threads: Threads,
}

async fn tear_down(node: &Node, threads: &Threads) {
    node.fatal.report(Fatal::Shutdown);
    node.stop.cancel();
    if node.raft.shutdown().await.is_err() {
        tracing::warn!("raft's core had ended before");
    }
    if let Some(apply) = &threads.apply
        && let Err(error) = apply.flush().await
    {
        tracing::warn!(%error, "the state machine was not flushed, the log will be replayed");
    }
}

async fn assemble(
    options: Options,
    machine: Box<dyn StateMachine>,
    closed: watch::Receiver<bool>,
) -> Result<Member, (StartError, Option<Threads>)> {
    let fatal = FatalCell::new();
    let storage = open_storage(&options, machine, &fatal).map_err(|error| (error, None))?;
    let Storage { identity, log, snapshots, machine, apply, applying, has_log } = storage;
    let Log { shared, writer } = log;
    let threads = Threads { writer, apply: Some(apply) };
    let prepared = async {
        let listener = TcpListener::bind(options.listen)
            .await
            .map_err(|source| StartError::Listen { addr: options.listen, source })?;
        let me = me(&options)?;
        let links = Arc::new(Links::new(me, &options.tls.client));
        let config = Arc::new(config(&options, identity.joining)?);
        let store = LogStore(Arc::clone(&shared));
        let raft = Raft::new(options.id, config, NetworkFactory(Arc::clone(&links)), store, machine)
            .await
            .map_err(|error| StartError::Core(error.to_string()))?;
        Ok((listener, links, raft))
    };
    let (listener, links, raft) = match prepared.await {
        Ok(prepared) => prepared,
        Err(error) => return Err((error, Some(threads))),
    };
    let founders = if options.join { BTreeMap::new() } else { by_id(&options.peers) };
    let place = (options.data_dir.clone(), identity);
    let node = Arc::new(Node::new(raft, links, applying, snapshots, founders, place, options.election_max, fatal));
    let (proposals, batcher) = propose::channel();
    let (reads, rounds) = read::channel();
    tokio::spawn(Arc::clone(&node).run_status());
    tokio::spawn(Arc::clone(&node).run_snapshots());
    tokio::spawn(batcher.run(Arc::clone(&node)));
    tokio::spawn(rounds.run(Arc::clone(&node)));
    tokio::spawn(bootstrap::run(Arc::clone(&node), has_log, options.election_max));
    spawn_server(&node, listener, &options.tls.server);
    let halt = CancellationToken::new();
    let runtime = tokio::runtime::Handle::current();
    Ok(Member { handle: Handle { node, proposals, reads, runtime, halt, closed }, threads })
}

fn spawn_server(node: &Arc<Node>, listener: TcpListener, tls: &Arc<rustls::ServerConfig>) {
    let (node, tls) = (Arc::clone(node), Arc::clone(tls));
    tokio::spawn(async move {
        let stop = node.stop.clone();
        let served = server::serve(listener, &tls, Arc::clone(&node), stop.clone()).await;
        if !stop.is_cancelled() {
            let reason = served.err().map_or_else(|| "it ended".to_owned(), |error| error.to_string());
            node.fatal.report(Fatal::Core(format!("peer server: {reason}")));
        }
    });
}

fn by_id(peers: &[Peer]) -> BTreeMap<u64, Record> {
    peers.iter().map(|peer| (peer.id, peer.clone().into())).collect()
}

fn me(options: &Options) -> Result<Me, StartError> {
    let peers = by_id(&options.peers);
    let names: std::collections::BTreeSet<&str> = peers.values().map(|peer| peer.name.as_str()).collect();
    if peers.len() != options.peers.len() || names.len() != peers.len() || peers.contains_key(&0) || names.contains("")
    {
        return Err(StartError::Options("every member needs an id above 0 and a name of its own".to_owned()));
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
        max_in_snapshot_log_to_keep: options.entries_kept,
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

/// What is on disk, opened and proven.
struct Storage {
    identity: Identity,
    log: Log,
    snapshots: Arc<Snapshots>,
    machine: apply::Machine,
    apply: apply::ApplyThread,
    applying: Arc<Applying>,
    has_log: bool,
}

fn open_storage(options: &Options, machine: Box<dyn StateMachine>, fatal: &FatalCell) -> Result<Storage, StartError> {
    let io = |what: &str| {
        let what = what.to_owned();
        move |source| StartError::Io { what, source }
    };
    std::fs::create_dir_all(&options.data_dir).map_err(io("the data directory"))?;
    let fresh =
        Identity { cluster_id: options.cluster_id, group_id: options.group_id, node_id: options.id, joining: true };
    let one_line = |error: &dyn std::error::Error| pintle_base::error::Chain(error).to_string();
    let identity = identity::claim(&options.data_dir, fresh).map_err(|e| StartError::Identity(one_line(&e)))?;
    let snapshots = Arc::new(Snapshots::open(&options.data_dir).map_err(io("the snapshots"))?);
    let log = log::open(&options.data_dir, fatal.clone()).map_err(|e| StartError::Log(one_line(&e)))?;
    let policy = SnapshotPolicy { entries: options.snapshot_entries.max(1), bytes: options.snapshot_bytes.max(1) };
    let flushed = log.shared.flushed();
    let (machine, apply, applying) =
        apply::start(machine, Arc::clone(&snapshots), flushed, policy, fatal.clone()).map_err(StartError::Machine)?;
    check(&log, &snapshots, &applying)?;
    let has_log = !log.shared.is_empty();
    Ok(Storage { identity, log, snapshots, machine, apply, applying, has_log })
}

/// I14: purged <= snapshot, what the log lacks is in the state or the snapshot, and the state is not ahead of the log.
fn check(log: &Log, snapshots: &Snapshots, applying: &Applying) -> Result<(), StartError> {
    let snapshot = snapshots.current().and_then(|snapshot| snapshot.last_log_id());
    let applied = applying.applied();
    let last = log.shared.last();
    if let Some(purged) = log.shared.purged() {
        if next_index(snapshot) <= purged.index {
            return Err(StartError::PurgedBeyondSnapshot { purged, snapshot: snapshot.map(log_id) });
        }
        if next_index(applied) <= purged.index && !apply::is_behind(applying, snapshots) {
            return Err(StartError::StateBehindLog { purged, applied: applied.map(log_id) });
        }
    }
    if let Some(applied) = applied {
        let end = last.map_or(0, |id| id.index + 1).max(next_index(snapshot));
        if applied.index >= end {
            return Err(StartError::StateBeyondLog { applied: log_id(applied), last });
        }
    }
    Ok(())
}
