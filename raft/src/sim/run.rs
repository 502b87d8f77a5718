//! One run: members, four clients, faults; then everything is mended and what happened is checked.

use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use openraft::RaftLogReader;
use openraft::storage::RaftLogStorage;
use parking_lot::Mutex;
use pintle_base::{clock, rng};
use tempfile::TempDir;

use super::dice::Dice;
use super::history::{self, Call, NEVER, Seen};
use super::member::{Member, Running};
use super::net::{Net, Weather};
use super::world::World;
use crate::core::Entry;
use crate::log::LogStore;
use crate::machine::Peer;
use crate::propose::Lane;

const CLIENTS: u64 = 4;

/// Once everything is mended, the members must work together again by then; simulated.
const RECOVERY: Duration = Duration::from_secs(60);

/// Longest time a client waits for an answer; simulated.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a run was like.
#[derive(Clone, Debug)]
pub(super) struct Report {
    pub messages: u64,
    pub calls: usize,
    pub acknowledged: usize,
    pub terms: usize,
    pub violations: Vec<String>,
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { messages, calls, acknowledged, terms, .. } = self;
        write!(f, "{messages} messages, {calls} calls, {acknowledged} writes acknowledged, {terms} terms with a leader")
    }
}

/// Runs `scenario` with three members, on a clock and with randomness of its own.
pub(super) fn simulate<F: Future<Output = Report>>(seed: u64, scenario: impl FnOnce(Cluster) -> F) -> Report {
    simulate_members(3, seed, scenario)
}

/// The same with any number of members.
pub(super) fn simulate_members<F: Future<Output = Report>>(
    members: u64,
    seed: u64,
    scenario: impl FnOnce(Cluster) -> F,
) -> Report {
    rng::seed(seed);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("runtime").block_on(async { scenario(Cluster::start(members, seed).await).await })
}

pub(super) struct Cluster {
    pub members: Vec<Member>,
    pub net: Arc<Net>,
    pub world: Arc<World>,
    pub dice: Dice,
    clock: AtomicU64,
    calls: Mutex<Vec<Call>>,
    _dir: TempDir,
}

/// In memory where that is possible: syncs take simulated time, real ones would only make the run slow.
fn directory() -> TempDir {
    let memory = Path::new("/dev/shm");
    let made = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    made.or_else(|_| tempfile::tempdir()).expect("temporary directory")
}

impl Cluster {
    async fn start(members: u64, seed: u64) -> Self {
        let dir = directory();
        let (world, net) = (Arc::new(World::default()), Net::new(seed));
        let peer = |id: u64| Peer {
            id,
            name: format!("server-{id}"),
            peer_addr: format!("127.0.0.1:{id}"),
            ..Peer::default()
        };
        let peers: Vec<Peer> = (1..=members).map(peer).collect();
        let member = |peer: &Peer| Member::new(peer, &peers, dir.path().join(&peer.name), &world, &net, seed);
        let members: Vec<Member> = peers.iter().map(member).collect();
        for member in &members {
            member.start().await;
        }
        let dice = Dice::new(seed, 2);
        Self { members, net, world, dice, clock: AtomicU64::new(0), calls: Mutex::default(), _dir: dir }
    }

    fn tick(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub fn member(&self, id: u64) -> &Member {
        self.members.iter().find(|member| member.id() == id).expect("a member")
    }

    pub fn others(&self, id: u64) -> impl Iterator<Item = u64> {
        self.members.iter().map(Member::id).filter(move |other| *other != id)
    }

    /// Who calls itself the leader now; of several the one of the newest term.
    pub fn leader(&self) -> Option<u64> {
        let statuses = self.members.iter().filter_map(Member::running).map(|running| running.node.fresh());
        statuses.filter(crate::Status::is_leader).max_by_key(|status| status.term).map(|status| status.id)
    }

    pub async fn leader_within(&self, limit: Duration, fits: impl Fn(u64) -> bool) -> Option<u64> {
        let deadline = clock::now() + limit;
        loop {
            match self.leader().filter(|leader| fits(*leader)) {
                None if clock::now() < deadline => clock::sleep(Duration::from_millis(20)).await,
                found => return found,
            }
        }
    }

    /// Appends through a member; true if that was acknowledged.
    pub async fn append(&self, at: &Running, value: String, patience: Duration) -> bool {
        let began = self.tick();
        let answer = clock::timeout(patience, at.proposals.propose(Bytes::from(value.clone()), Lane::Flow(0))).await;
        let now = self.tick();
        let acknowledged = matches!(answer, Ok(Ok(_)));
        let (ended, seen) = match answer {
            Ok(Ok(reply)) => {
                let length = std::str::from_utf8(&reply).ok().and_then(|text| text.parse().ok());
                (now, Seen::Appended(value, length.unwrap_or(0)))
            }
            Ok(Err(error)) if error.is_safe_to_retry() => (now, Seen::Refused(value)),
            Ok(Err(_)) | Err(_) => (NEVER, Seen::Appended(value, 0)),
        };
        self.calls.lock().push(Call { began, ended, seen });
        acknowledged
    }

    pub async fn read(&self, at: &Running) {
        let began = self.tick();
        if let Ok(Ok(_)) = clock::timeout(PATIENCE, at.reads.read_index()).await {
            let seen = Seen::Read(at.ledger.commands());
            self.calls.lock().push(Call { began, ended: self.tick(), seen });
        }
    }

    /// Clients at work until `deadline`.
    async fn work(&self, seed: u64, deadline: clock::Instant) {
        let clients = (0..CLIENTS).map(|client| async move {
            let mut dice = Dice::new(seed, 100 + client);
            let mut number = 0;
            while clock::now() < deadline {
                clock::sleep(dice.millis(1, 120)).await;
                let at = dice.below(self.members.len() as u64) as usize;
                let Some(running) = self.members[at].running() else { continue };
                if dice.chance(600) {
                    number += 1;
                    self.append(&running, format!("{client}/{number}"), PATIENCE).await;
                } else {
                    self.read(&running).await;
                }
            }
        });
        futures::future::join_all(clients).await;
    }

    /// One fault after the other until `deadline`. What is crashed is started again at once or a little later.
    async fn harm(&self, dice: &mut Dice, deadline: clock::Instant) {
        let mut wiped = false;
        while clock::now() < deadline {
            clock::sleep(dice.millis(200, 2500)).await;
            let someone = 1 + dice.below(3);
            match dice.below(12) {
                0..=2 => self.net.heal(),
                3 | 4 => {
                    let leader = self.leader().unwrap_or(someone);
                    self.net.isolate(leader, self.others(leader));
                }
                5 => self.net.isolate(someone, self.others(someone)),
                6 => self.net.block(someone, self.others(someone).next().unwrap_or(1)),
                7 | 8 => {
                    let weather =
                        Weather { lost: dice.below(60), doubled: dice.below(200), slowest: 2000 + dice.below(80_000) };
                    self.net.set_weather(weather);
                }
                9 => self.restart(someone, dice.millis(1, 3000), false).await,
                10 => {
                    let pause = dice.millis(1, 1500);
                    let all = self.members.iter().map(|member| self.restart(member.id(), pause, false));
                    futures::future::join_all(all).await;
                }
                // Once: a second member that loses its disk before the first has joined again is more than three can bear.
                _ if !wiped && self.established() => {
                    wiped = true;
                    self.restart(someone, dice.millis(1, 2000), true).await;
                }
                _ => (),
            }
        }
    }

    fn established(&self) -> bool {
        self.members.iter().all(|member| member.running().is_some_and(|running| !running.node.current().joining))
    }

    pub async fn restart(&self, id: u64, pause: Duration, wipe: bool) {
        let member = self.member(id);
        member.crash().await;
        if wipe {
            member.wipe();
        }
        clock::sleep(pause).await;
        member.start().await;
    }

    /// Mends everything, waits until all members have the same, and checks.
    pub async fn settle(self) -> Report {
        self.net.heal();
        for member in &self.members {
            if member.running().is_none() {
                member.start().await;
            }
        }
        let list = match clock::timeout(RECOVERY, self.agreed()).await {
            Ok(list) => list,
            Err(_) => {
                let states: Vec<_> = self.members.iter().filter_map(Member::running).map(|r| r.node.fresh()).collect();
                self.world.violated(format!("no progress {RECOVERY:?} after everything was mended: {states:?}"));
                self.members[0].running().map(|running| running.ledger.commands()).unwrap_or_default()
            }
        };
        let calls = self.calls.lock().clone();
        for wrong in history::check(&calls, &list).into_iter().chain(self.compare_logs().await) {
            self.world.violated(wrong);
        }
        let violations = self.world.violations();
        let acknowledged =
            calls.iter().filter(|call| call.ended != NEVER && matches!(call.seen, Seen::Appended(..))).count();
        let (messages, terms) = (self.net.messages(), self.world.terms());
        for member in &self.members {
            member.crash().await;
        }
        Report { messages, calls: calls.len(), acknowledged, terms, violations }
    }

    /// Every member takes a last value, and all have applied the same.
    async fn agreed(&self) -> Vec<String> {
        for member in &self.members {
            let mut attempt = 0;
            loop {
                attempt += 1;
                let Some(running) = member.running() else { return Vec::new() };
                if self.append(&running, format!("last/{}/{attempt}", member.id()), PATIENCE).await {
                    break;
                }
            }
        }
        loop {
            let lists: Vec<Vec<String>> =
                self.members.iter().filter_map(Member::running).map(|running| running.ledger.commands()).collect();
            if lists.len() == self.members.len() && lists.iter().all(|list| *list == lists[0]) {
                return lists[0].clone();
            }
            clock::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Where two logs have an entry of the same index, it is the same one: all are committed by now.
    async fn compare_logs(&self) -> Vec<String> {
        let mut logs: Vec<(u64, Vec<Entry>)> = Vec::new();
        for member in &self.members {
            let Some(log) = member.running().and_then(|running| running.log.upgrade()) else { continue };
            let mut reader = LogStore(log).get_log_reader().await;
            match reader.try_get_log_entries(0..u64::MAX).await {
                Ok(entries) => logs.push((member.id(), entries)),
                Err(error) => return vec![format!("the log of member {} cannot be read: {error}", member.id())],
            }
        }
        let mut wrong = Vec::new();
        for (at, (one, entries)) in logs.iter().enumerate() {
            for (other, others) in &logs[at + 1..] {
                for entry in entries {
                    let index = entry.log_id.index;
                    let same = others.iter().find(|other| other.log_id.index == index);
                    if same.is_some_and(|same| same != entry) {
                        wrong.push(format!("the logs of members {one} and {other} differ at {index}"));
                    }
                }
            }
        }
        wrong
    }
}

/// Clients and faults for `length`, then [`Cluster::settle`].
pub(super) async fn random(mut cluster: Cluster, seed: u64, length: Duration) -> Report {
    let deadline = clock::now() + length;
    let mut dice = std::mem::replace(&mut cluster.dice, Dice::new(seed, 3));
    tokio::join!(cluster.work(seed, deadline), cluster.harm(&mut dice, deadline));
    cluster.settle().await
}

/// Clients and crashes of every member for `length`, then [`Cluster::settle`].
pub(super) async fn crashes(mut cluster: Cluster, seed: u64, length: Duration) -> Report {
    let deadline = clock::now() + length;
    let mut dice = std::mem::replace(&mut cluster.dice, Dice::new(seed, 3));
    let crashes = async {
        while clock::now() < deadline {
            clock::sleep(dice.millis(100, 2000)).await;
            let pause = dice.millis(1, 300);
            let all = cluster.members.iter().map(|member| cluster.restart(member.id(), pause, false));
            futures::future::join_all(all).await;
        }
    };
    tokio::join!(cluster.work(seed, deadline), crashes);
    cluster.settle().await
}
