//! What every process that keeps the store shares, with Kubernetes on top or alone: its directory, its ports, and its end.
//!
//! Always holds: after a failure of Raft nothing is ended in good order; what is on disk is the truth of the next start.

use std::fs::File;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use pintle_base::task::Group;
use pintle_raft as raft;
use pintle_store::{Store, StoreMachine, StoreOptions, etcd};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::pki;

/// Requests in flight get this long to end when the process stops; the whole stop takes at most about twice that.
const DRAIN: Duration = Duration::from_secs(4);
const HAND_OVER: Duration = Duration::from_secs(2);

/// The file in a data directory that whoever uses it holds a lock on.
pub const LOCK: &str = "lock";

/// Holds the data directory until the process ends, so that no second server writes to it.
pub fn claim(directory: &Path) -> Result<Flock<File>> {
    pki::private_directory(directory)?;
    let path = directory.join(LOCK);
    let file = File::create(&path).with_context(|| format!("open {}", path.display()))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| match error {
        Errno::EWOULDBLOCK => anyhow::anyhow!(
            "data directory {} is in use by another server; `fuser {}` shows which",
            directory.display(),
            path.display()
        ),
        error => anyhow::Error::new(error).context(format!("lock {}", path.display())),
    })
}

/// Opens of the databases, the peers, and everything else that is not a client's connection.
const OWN_FILES: u64 = 2048;

/// Allows the process as many files as it may have. Service managers start processes with few: then clients that do nothing but connect would
/// keep the databases from opening theirs.
pub fn allow_files() -> Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("ask how many files may be open")?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("allow more open files")?;
    }
    let wanted = pintle_store::limits::CONNECTIONS as u64 + OWN_FILES;
    if hard < wanted {
        tracing::warn!(
            limit = hard,
            wanted,
            "few files may be open: with many clients there may be none left (ulimit -Hn)"
        );
    }
    Ok(())
}

pub async fn listen(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| taken(address))
}

/// What to do about an address that cannot be listened on.
fn taken(address: SocketAddr) -> String {
    format!("listen on {address}: is another server running? `ss -ltnp` shows who has the port")
}

/// Opens the state in `dir`.
pub fn open(dir: &Path, options: StoreOptions) -> Result<(Store, StoreMachine)> {
    Store::open(dir, options).map_err(|error| match error.is_damage() {
        true => damaged(error.into(), "open the store"),
        false => anyhow::Error::new(error).context("open the store"),
    })
}

/// Why Raft does not start.
pub fn refused(error: raft::StartError) -> anyhow::Error {
    match error.is_damage() {
        true => damaged(error.into(), "start raft"),
        false => anyhow::Error::new(error).context("start raft"),
    }
}

/// What was tried, why it is refused, and what to do.
fn damaged(error: anyhow::Error, tried: &str) -> anyhow::Error {
    anyhow::anyhow!(
        "{tried}: {error:#}; nothing is served from damaged data: have the other members remove this one, empty its data directory and \
         add it again, or restore a snapshot; `pintle store verify --data-dir DIR` says what else is damaged"
    )
}

/// Starts Raft under `store`.
pub async fn start(
    store: &Store,
    machine: StoreMachine,
    mut options: raft::Options,
    group: &Group,
) -> Result<raft::Handle> {
    options.registry = store.registry().clone();
    let handle = match raft::start(options, machine, group).await {
        Ok(handle) => handle,
        Err(raft::StartError::Listen { addr, source }) => return Err(source).with_context(|| taken(addr)),
        Err(error) => return Err(refused(error)),
    };
    store.attach(handle.clone(), group);
    Ok(handle)
}

/// Serves etcd's clients on `listener` until the group stops.
pub fn serve_clients(store: &Store, listener: TcpListener, tls: Option<etcd::Tls>, group: &Group) -> JoinHandle<()> {
    serve(etcd::router(store), listener, tls, group)
}

/// Serves `front` on `listener` until the group stops.
pub fn serve(front: etcd::Front, listener: TcpListener, tls: Option<etcd::Tls>, group: &Group) -> JoinHandle<()> {
    let stop = group.token();
    tokio::spawn(async move {
        if let Err(error) = etcd::serve(front, listener, tls, stop).await {
            tracing::error!(error = %pintle_base::error::Chain(&error), "the etcd port is lost");
        }
    })
}

/// Waits until the process is to stop, and stops: hands over, drains, makes everything durable.
///
/// # Errors
/// Raft failed, the state could not be read, or a task panicked: what is in memory cannot be trusted, and nothing was ended in
/// good order.
pub async fn run_to_end(
    store: &Store,
    handle: &raft::Handle,
    server: &Group,
    consensus: &Group,
    fronts: Vec<JoinHandle<()>>,
) -> Result<()> {
    let failure = tokio::select! {
        () = server.stopping() => server.panicked(),
        reason = handle.stopped() => Some(reason.to_string()),
        reason = store.failed() => Some(format!("read the state: {reason}")),
    };
    if let Some(reason) = failure {
        bail!("server ends: {reason}");
    }
    hand_over(handle).await;
    if let Err(error) = server.stop(DRAIN).await {
        tracing::warn!(%error, "some requests were cut off");
    }
    for front in fronts {
        if tokio::time::timeout(DRAIN, front).await.is_err() {
            tracing::warn!("some etcd clients were cut off");
        }
    }
    handle.shutdown().await;
    consensus.stop(DRAIN).await.context("stop consensus")?;
    tracing::info!("server stopped");
    Ok(())
}

async fn hand_over(handle: &raft::Handle) {
    let status = handle.status();
    let alone = status.peers.iter().filter(|peer| peer.voter).count() < 2;
    if status.role == raft::Role::Leader
        && !alone
        && tokio::time::timeout(HAND_OVER, handle.transfer_leader(None)).await.is_err()
    {
        tracing::warn!("leadership was not handed over in time");
    }
}
