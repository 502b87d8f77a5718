//! A cluster in one process: real logs, real TLS over loopback, and members that can be stopped, started and wiped.
#![allow(dead_code)]

pub mod authority;
pub mod ledger;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

pub use authority::Authority;
use bytes::Bytes;
use ledger::Ledger;
use pintle_base::clock;
use pintle_base::task::Group;
use pintle_raft::{Handle, Options, Peer, StartError, start};
use tempfile::TempDir;

/// Everything must have happened by then, also on a machine that does other things.
pub const DEADLINE: Duration = Duration::from_secs(30);
pub const CLUSTER: u64 = 0xc1;

/// A member's options and, while it runs, its handle.
pub struct Member {
    pub options: Options,
    pub ledger: Ledger,
    pub running: Option<Handle>,
    counting: bool,
}

impl Member {
    pub fn state_dir(&self) -> PathBuf {
        self.options.data_dir.join("state")
    }

    pub async fn try_start(&mut self) -> Result<(), StartError> {
        let dir = self.state_dir();
        self.ledger = if self.counting { Ledger::counting(&dir) } else { Ledger::open(&dir) };
        let group = Group::new("test");
        self.running = Some(start(self.options.clone(), self.ledger.clone(), &group).await?);
        Ok(())
    }

    pub async fn start(&mut self) {
        self.try_start().await.expect("start");
    }

    /// As if the process had been killed, except that what was synced stays.
    pub async fn kill(&mut self) {
        if let Some(handle) = self.running.take() {
            handle.stop_at_once().await;
        }
    }

    pub fn handle(&self) -> &Handle {
        self.running.as_ref().expect("the member runs")
    }

    pub async fn propose(&self, command: &str) -> String {
        let reply = self.handle().propose(Bytes::from(command.to_owned()));
        let reply = clock::timeout(DEADLINE, reply).await.expect("an answer in time").expect("a reply");
        String::from_utf8_lossy(&reply).into_owned()
    }

    /// The commands a linearizable read sees here.
    pub async fn read(&self) -> Vec<String> {
        let barrier = clock::timeout(DEADLINE, self.handle().read_index());
        barrier.await.expect("an answer in time").expect("a read index");
        self.ledger.commands()
    }
}

pub struct Cluster {
    pub members: Vec<Member>,
    pub authority: Authority,
    dir: TempDir,
}

/// A member's record, with a port nobody listens on.
pub fn peer(id: u64) -> Peer {
    let port = pintle_base::ports::free().expect("a free port");
    Peer {
        id,
        name: format!("server-{id}"),
        peer_addr: format!("127.0.0.1:{port}"),
        client_addr: String::new(),
        api_addr: String::new(),
    }
}

impl Cluster {
    /// Members 1 to `size`, not started.
    pub fn new(size: u64, adjust: impl Fn(&mut Options)) -> Self {
        Self::with(size, false, adjust)
    }

    pub fn with(size: u64, counting: bool, adjust: impl Fn(&mut Options)) -> Self {
        if let Ok(filter) = std::env::var("RAFT_TEST_LOG") {
            pintle_base::telemetry::init(&filter, pintle_base::telemetry::Format::Text).expect("filter");
        }
        let authority = Authority::new();
        let dir = tempfile::tempdir().expect("temporary directory");
        let peers: Vec<Peer> = (1..=size).map(peer).collect();
        let mut cluster = Self { members: Vec::new(), authority, dir };
        for peer in &peers {
            cluster.push(peer, peers.clone(), counting, &adjust);
        }
        cluster
    }

    fn push(&mut self, peer: &Peer, peers: Vec<Peer>, counting: bool, adjust: impl Fn(&mut Options)) {
        let data_dir = self.dir.path().join(&peer.name);
        let listen: SocketAddr = peer.peer_addr.parse().expect("address");
        let tls = self.authority.tls(&peer.name);
        let mut options = Options::new(peer.id, CLUSTER, data_dir, listen, peers, tls);
        adjust(&mut options);
        let ledger = Ledger::open(&options.data_dir.join("state"));
        self.members.push(Member { options, ledger, running: None, counting });
    }

    /// Another member, not started, that waits to be added.
    pub fn push_joining(&mut self, peer: &Peer, adjust: impl Fn(&mut Options)) -> usize {
        let founders = self.members.iter().flat_map(|member| &member.options.peers).filter(|known| known.id <= 3);
        let mut peers: Vec<Peer> = vec![peer.clone()];
        for known in founders {
            if !peers.contains(known) {
                peers.push(known.clone());
            }
        }
        self.push(peer, peers, false, |options| {
            options.join = true;
            adjust(options);
        });
        self.members.len() - 1
    }

    pub async fn start(size: u64) -> Self {
        let mut cluster = Self::new(size, |_| ());
        cluster.start_all().await;
        cluster
    }

    pub async fn start_all(&mut self) {
        for member in &mut self.members {
            member.start().await;
        }
    }

    pub async fn stop(mut self) {
        for member in &mut self.members {
            member.kill().await;
        }
    }

    /// Waits until all running members vote and agree on a leader that runs, and returns its position.
    pub async fn leader(&self) -> usize {
        let mut found = 0;
        eventually("all members agree on a leader", || {
            let running: Vec<&Member> = self.members.iter().filter(|member| member.running.is_some()).collect();
            let leaders: Vec<Option<u64>> = running.iter().map(|member| member.handle().status().leader).collect();
            let Some(Some(leader)) = leaders.first() else { return false };
            let known =
                running.iter().any(|member| member.options.id == *leader && member.handle().status().is_leader());
            found = self.members.iter().position(|member| member.options.id == *leader).unwrap_or(0);
            let admitted = running.iter().all(|member| !member.handle().status().joining);
            known && admitted && leaders.iter().all(|other| *other == Some(*leader))
        })
        .await;
        found
    }
}

/// Waits for `condition`, polling; fails after [`DEADLINE`].
#[track_caller]
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) -> impl Future<Output = ()> {
    let what = what.to_owned();
    let place = std::panic::Location::caller();
    async move {
        let deadline = clock::now() + DEADLINE;
        while !condition() {
            assert!(clock::now() < deadline, "not in time at {place}: {what}");
            clock::sleep(Duration::from_millis(5)).await;
        }
    }
}
