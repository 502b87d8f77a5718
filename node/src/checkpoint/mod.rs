//! What the agent last knew, on disk: an agent that starts while no server can be reached goes on from it (I10,
//! docs/adr/0006).
//!
//! Flow: reflectors, references and tokens → [`Checkpoint::keep`] and [`Checkpoint::keep_references`] (debounced) →
//! files of a [`Shelf`] → [`Checkpoint::restore`] at the next start → reflectors, seeded and unconfirmed.
//! Always holds: only what a server has confirmed is written; nothing is ended or removed because a checkpoint says so or
//! lacks it; secrets and tokens are written to memory only, never to a disk.

mod shelf;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use pintle_base::backoff::Backoff;
use pintle_base::clock;
use pintle_base::error::Chain;
use pintle_base::task::Group;
use pintle_client::SharedReflector;
use pintle_client::reflector::Reflected;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use crate::limits;
use crate::options::AgentOptions;
use crate::pods::Context;
use crate::pods::references::Saved;
use crate::pods::tokens::SavedToken;
use shelf::Shelf;

/// Names of the files.
pub mod kind {
    pub const PODS: &str = "pods";
    pub const SERVICES: &str = "services";
    pub const SLICES: &str = "endpointslices";
    pub const NODES: &str = "nodes";
    pub const CONFIG_MAPS: &str = "configmaps";
    pub const SECRETS: &str = "secrets";
}

/// Resolves once `reflector` may be acted on: a server has confirmed it, or had its time to.
pub async fn settled<K: Reflected>(reflector: &SharedReflector<K>) {
    reflector.known().await;
    // Nobody answered: what is known is the best there is.
    let _ = clock::timeout(limits::CONFIRM_WAIT, reflector.ready()).await;
}

/// Where the secrets of an agent with this data directory are kept: in memory, out of others' reach.
pub fn default_run_dir(data_dir: &Path) -> PathBuf {
    let path = std::path::absolute(data_dir).unwrap_or_else(|_| data_dir.to_path_buf());
    let name = hex::encode(&Sha256::digest(path.as_os_str().as_encoded_bytes())[..8]);
    let base = [Path::new("/run"), Path::new("/dev/shm")].into_iter().find(|base| is_memory(base));
    base.unwrap_or(Path::new("/run")).join(format!("pintle-agent-{name}"))
}

/// Removes the secrets that an agent with this data directory left in memory: for a worker that leaves for good.
///
/// # Errors
/// Whatever the file system says.
pub fn forget_secrets(data_dir: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(default_run_dir(data_dir)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn is_memory(path: &Path) -> bool {
    statfs(path).is_ok_and(|found| found.filesystem_type() == TMPFS_MAGIC)
}

/// What secrets and tokens are kept as.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Secrets {
    pub secrets: Vec<Saved>,
    pub tokens: Vec<SavedToken>,
}

impl Secrets {
    fn is_empty(&self) -> bool {
        self.secrets.is_empty() && self.tokens.is_empty()
    }
}

/// What an earlier agent left; nothing of it is confirmed.
#[derive(Debug, Default)]
pub struct Restored {
    pub pods: Option<Vec<Pod>>,
    pub services: Option<Vec<Service>>,
    pub slices: Option<Vec<EndpointSlice>>,
    pub nodes: Option<Vec<Node>>,
    pub config_maps: Vec<Saved>,
    pub secrets: Secrets,
}

/// The files of one agent. A part that cannot be used is left out with a warning: an agent without a checkpoint works.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    files: Option<Shelf>,
    /// In memory, gone with the machine.
    secrets: Option<Shelf>,
}

impl Checkpoint {
    pub fn open(options: &AgentOptions) -> Self {
        if !options.checkpoint {
            return Self { files: None, secrets: None };
        }
        let files = usable(Shelf::open(&options.data_dir.join("checkpoint")), "the agent's state");
        let in_memory = |dir: &PathBuf| {
            let shelf = Shelf::open(dir)?;
            let refused = || io::Error::other(format!("{} is not on a file system in memory", dir.display()));
            if is_memory(dir) { Ok(shelf) } else { Err(refused()) }
        };
        let secrets = options.run_dir.as_ref().and_then(|dir| usable(in_memory(dir), "secrets of running pods"));
        Self { files, secrets }
    }

    /// Reads all files. Blocking: for the start only.
    pub fn restore(&self) -> Restored {
        let Some(files) = &self.files else { return Restored::default() };
        let mut restored = Restored {
            pods: files.read(kind::PODS),
            services: files.read(kind::SERVICES),
            slices: files.read(kind::SLICES),
            nodes: files.read(kind::NODES),
            config_maps: files.read(kind::CONFIG_MAPS).unwrap_or_default(),
            secrets: Secrets::default(),
        };
        // Without the pods they are for they may be another cluster's, whose node had its data in the same place.
        if let Some(secrets) = self.secrets.as_ref().filter(|_| restored.pods.is_some()) {
            restored.secrets = secrets.read(kind::SECRETS).unwrap_or_default();
        }
        restored
    }

    /// Keeps the file of one kind equal to the objects of `reflector` that are `wanted`, from its first confirmed list on.
    pub fn keep<K: Reflected + Serialize>(
        &self,
        kind: &'static str,
        reflector: &SharedReflector<K>,
        wanted: impl Fn(&K) -> bool + Send + Sync + 'static,
        group: &Group,
    ) {
        let Some(shelf) = self.files.clone() else { return };
        let (reflector, stop) = (reflector.clone(), group.token());
        group.spawn("checkpoint", async move {
            let mut changes = reflector.changes();
            let confirmed = stop.run_until_cancelled(reflector.ready()).await;
            let mut pace = Pace::new(kind);
            while confirmed.is_some() {
                // What changed before the stop, also during a write, is in the last one.
                let last = stop.is_cancelled();
                let objects: Vec<Arc<K>> = reflector.list().into_iter().filter(|object| wanted(object)).collect();
                let shelf = shelf.clone();
                let written = write(move || shelf.write(kind, &objects)).await;
                if last {
                    return;
                }
                pace.keep(written, changes.changed(), &stop).await;
            }
        });
    }

    /// Keeps what the running pods refer to: ConfigMaps on disk, secrets and tokens in memory.
    pub fn keep_references(&self, context: Arc<Context>, pods: SharedReflector<Pod>, group: &Group) {
        let (files, secrets, stop) = (self.files.clone(), self.secrets.clone(), group.token());
        group.spawn("checkpoint", async move {
            let mut changes = pods.changes();
            let confirmed = stop.run_until_cancelled(pods.ready()).await;
            let mut pace = Pace::new(kind::SECRETS);
            while confirmed.is_some() {
                let last = stop.is_cancelled();
                let (config_maps, held) = gather(&context, &pods.list());
                let (files, secrets) = (files.clone(), secrets.clone());
                let written = write(move || {
                    let public = files.map_or(Ok(0), |shelf| shelf.write(kind::CONFIG_MAPS, &config_maps));
                    let private = secrets.map_or(Ok(0), |shelf| match held.is_empty() {
                        true => shelf.remove(kind::SECRETS).map(|()| 0),
                        false => shelf.write(kind::SECRETS, &held),
                    });
                    Ok(public? + private?)
                });
                let written = written.await;
                if last {
                    return;
                }
                let changed = async {
                    tokio::select! {
                        () = changes.changed() => (),
                        () = context.references.changed() => (),
                        () = context.tokens.changed() => (),
                    }
                };
                pace.keep(written, changed, &stop).await;
            }
        });
    }
}

fn gather(context: &Context, pods: &[Arc<Pod>]) -> (Vec<Saved>, Secrets) {
    let (config_maps, secrets) = context.references.saved(pods);
    (config_maps, Secrets { secrets, tokens: context.tokens.saved(pods) })
}

fn usable(opened: io::Result<Shelf>, what: &str) -> Option<Shelf> {
    opened.inspect_err(|error| tracing::warn!(%error, what, "not kept for an agent that starts without a server")).ok()
}

async fn write(work: impl FnOnce() -> io::Result<u64> + Send + 'static) -> io::Result<u64> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(io::Error::other(error)))
}

/// How long a file is left alone after it was written.
struct Pace {
    kind: &'static str,
    backoff: Backoff,
}

impl Pace {
    fn new(kind: &'static str) -> Self {
        Self { kind, backoff: Backoff::new(limits::CHECKPOINT_PAUSE, limits::CHECKPOINT_RETRY_MAX) }
    }

    /// Waits until the file is to be written again, or the agent stops.
    async fn keep(&mut self, written: io::Result<u64>, changed: impl Future<Output = ()>, stop: &CancellationToken) {
        let pause = match written {
            Ok(bytes) => {
                self.backoff.reset();
                stop.run_until_cancelled(changed).await;
                limits::CHECKPOINT_PAUSE.max(Duration::from_secs(bytes / limits::CHECKPOINT_RATE))
            }
            Err(error) => {
                tracing::warn!(kind = self.kind, error = %Chain(&error), "checkpoint not written, will retry");
                self.backoff.next_delay()
            }
        };
        stop.run_until_cancelled(clock::sleep(pause)).await;
    }
}

#[cfg(test)]
impl Checkpoint {
    pub fn keeps_secrets(&self) -> bool {
        self.secrets.is_some()
    }

    /// Writes what an earlier agent would have left.
    pub fn leave(&self, left: &Restored) {
        let Some(files) = &self.files else { return };
        let write = || {
            files.write(kind::PODS, &left.pods)?;
            files.write(kind::SERVICES, &left.services)?;
            files.write(kind::SLICES, &left.slices)?;
            files.write(kind::NODES, &left.nodes)?;
            files.write(kind::CONFIG_MAPS, &left.config_maps)?;
            self.secrets.as_ref().map_or(Ok(0), |secrets| secrets.write(kind::SECRETS, &left.secrets))
        };
        write().expect("written");
    }
}

#[cfg(test)]
mod tests;
