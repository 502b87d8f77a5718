//! One simulated member: the real log on real files, the real apply worker, the real node; but their threads are tasks on the
//! simulated clock, and a sync takes simulated time.
//!
//! A crash keeps what was synced. What waits for the writer is lost; what the writer is syncing is there afterwards or is
//! not; records that are written without a sync are there only if a later sync came. The state machine goes back to what
//! it had flushed.

use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use pintle_base::clock;
use rustls::RootCertStore;
use rustls::server::ResolvesServerCertUsingSni;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::dice::Dice;
use super::net::{Attached, Net};
use super::world::World;
use crate::fatal::FatalCell;
use crate::ledger::Ledger;
use crate::log::{Operation, Shared, Worker};
use crate::machine::{Peer, StateMachine};
use crate::node::Node;
use crate::propose::Proposals;
use crate::read::Reads;
use crate::start::{Options, Tls, compose, me};
use crate::status::Role;
use crate::storage::{self, Storage};
use crate::transport::{Links, server};
use crate::{Applied, Committed};

pub(super) struct Member {
    pub options: Options,
    world: Arc<World>,
    net: Arc<Net>,
    running: Mutex<Option<Running>>,
    seed: u64,
}

#[derive(Clone)]
pub(super) struct Running {
    pub node: Arc<Node>,
    pub proposals: Proposals,
    pub reads: Reads,
    pub ledger: Ledger,
    pub log: Weak<Shared>,
    alive: CancellationToken,
}

/// Nobody uses it: the simulated network has no TLS.
fn no_tls() -> Tls {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let server = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(ResolvesServerCertUsingSni::new()));
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    Tls { server: Arc::new(server).into(), client: Arc::new(client).into() }
}

impl Member {
    pub fn new(peer: &Peer, peers: &[Peer], dir: PathBuf, world: &Arc<World>, net: &Arc<Net>, seed: u64) -> Self {
        let listen = peer.peer_addr.parse().expect("address");
        let mut options = Options::new(peer.id, 0x51, dir, listen, peers.to_vec(), no_tls());
        options.snapshot_entries = 60;
        options.entries_kept = 20;
        let seed = seed ^ peer.id.wrapping_mul(0x5851_f42d_4c95_7f2d);
        Self { options, world: Arc::clone(world), net: Arc::clone(net), running: Mutex::new(None), seed }
    }

    pub fn id(&self) -> u64 {
        self.options.id
    }

    pub fn running(&self) -> Option<Running> {
        self.running.lock().clone()
    }

    pub async fn start(&self) {
        let alive = CancellationToken::new();
        let fatal = FatalCell::new();
        let ledger = Ledger::open(&self.options.data_dir.join("state"));
        let machine = Witnessed { ledger: ledger.clone(), id: self.id(), world: Arc::clone(&self.world) };
        let opened = storage::open(&self.options, Box::new(machine), &fatal);
        let Storage { writer, applier, tasks: _, opened } = match opened {
            Ok(storage) => storage,
            Err(error) => return self.world.violated(format!("member {} does not start: {error}", self.id())),
        };
        let log = Arc::downgrade(&opened.log);
        let dice = Dice::new(self.seed, self.world.next_number());
        tokio::spawn(disk(Arc::clone(&opened.log), writer, alive.clone(), dice));
        tokio::spawn(applier.run_in_runtime());
        let identity = me(&self.options).expect("options");
        let dial = self.net.dial(self.id(), &identity.name, &alive);
        let composed =
            compose(&self.options, opened, Links::new(identity, dial), Handle::current(), fatal.clone()).await;
        let (node, proposals, reads) = match composed {
            Ok(composed) => composed,
            Err(error) => return self.world.violated(format!("member {} does not start: {error}", self.id())),
        };
        let attached = Attached { id: self.id(), service: server::service(Arc::clone(&node)), alive: alive.clone() };
        self.net.attach(&self.options.listen.to_string(), attached);
        tokio::spawn(watch(self.id(), Arc::clone(&self.world), Arc::clone(&node), fatal, alive.clone()));
        *self.running.lock() = Some(Running { node, proposals, reads, ledger, log, alive });
    }

    /// Ends it at this moment. Returns when its files are closed.
    pub async fn crash(&self) {
        let Some(Running { node, log, alive, .. }) = self.running.lock().take() else { return };
        alive.cancel();
        self.net.detach(&self.options.listen.to_string());
        node.stop.cancel();
        let _ = clock::timeout(Duration::from_secs(60), node.raft.shutdown()).await;
        drop(node);
        let deadline = clock::now() + Duration::from_secs(120);
        while log.upgrade().is_some() {
            if clock::now() >= deadline {
                return self.world.violated(format!("member {} crashed and something still holds its log", self.id()));
            }
            clock::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Its disk is gone. Only while it does not run.
    pub fn wipe(&self) {
        std::fs::remove_dir_all(&self.options.data_dir).expect("wipe");
    }
}

/// The log's writer as a task.
async fn disk(log: Arc<Shared>, mut worker: Worker, alive: CancellationToken, mut dice: Dice) {
    // Written, not synced: durable with the next sync.
    let mut unsynced: Vec<Operation> = Vec::new();
    'work: loop {
        tokio::select! {
            biased;
            () = alive.cancelled() => break 'work,
            () = log.queue.told.notified() => (),
        }
        loop {
            let taken = log.queue.take_now();
            if taken.is_empty() {
                break;
            }
            let sync = taken.iter().any(|operation| !matches!(operation, Operation::Committed(_)));
            unsynced.extend(taken);
            if !sync {
                continue;
            }
            tokio::select! {
                biased;
                () = alive.cancelled() => {
                    if dice.chance(500) {
                        worker.perform(std::mem::take(&mut unsynced));
                    }
                    break 'work;
                }
                () = clock::sleep(dice.micros(100, 3000)) => (),
            }
            worker.perform(std::mem::take(&mut unsynced));
        }
    }
    drop(unsynced);
    log.abandon();
}

/// Records what a member says of itself while it runs.
async fn watch(id: u64, world: Arc<World>, node: Arc<Node>, fatal: FatalCell, alive: CancellationToken) {
    let mut status = node.watch();
    drop(node);
    loop {
        {
            let status = status.borrow_and_update();
            if status.role == Role::Leader {
                world.leads(id, status.term);
            }
        }
        tokio::select! {
            biased;
            () = alive.cancelled() => return,
            reason = fatal.wait() => return world.violated(format!("member {id} has stopped: {reason}")),
            changed = status.changed() => if changed.is_err() { return },
        }
    }
}

/// A ledger that shows the world what it applies.
struct Witnessed {
    ledger: Ledger,
    id: u64,
    world: Arc<World>,
}

impl StateMachine for Witnessed {
    fn applied(&self) -> std::io::Result<Applied> {
        self.ledger.applied()
    }

    fn apply(&mut self, entry: Committed) -> std::io::Result<Vec<bytes::Bytes>> {
        self.world.applied(self.id, &entry);
        self.ledger.apply(entry)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.ledger.flush()
    }

    fn checkpoint(&mut self, dir: &std::path::Path) -> std::io::Result<()> {
        self.ledger.checkpoint(dir)
    }

    fn install(&mut self, dir: &std::path::Path) -> std::io::Result<()> {
        self.ledger.install(dir)
    }
}
