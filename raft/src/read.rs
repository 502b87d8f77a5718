//! Linearizable reads by read index (D6): one round at a time, and everything that arrived before a round began is released
//! by it. A member asks the leader, and the leader makes sure that nobody has followed it, once for all members that asked
//! before it began ([`crate::confirm`]). Then the caller waits until its own member has applied that much.
//!
//! A round costs messages to every member, however many reads it serves: under load a round waits for three quarters as many
//! reads as the last one had, for a moment at most.

use std::sync::Arc;

use pintle_base::clock;
use pintle_proto::raft_v1::answer::Outcome;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::node::Node;
use crate::propose::{Refused, refused};
use crate::{arrivals, limits};

/// Why no read index was found.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    #[error("no leader")]
    NoLeader,
    #[error("too many reads are waiting")]
    Overloaded,
    #[error("raft has stopped")]
    Stopped,
}

type Waiter = oneshot::Sender<Result<u64, ReadError>>;

/// Where reads are announced. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Reads(arrivals::Sender<Waiter>);

/// The other end, for [`Rounds::run`].
pub(crate) struct Rounds(arrivals::Receiver<Waiter>);

pub(crate) fn channel() -> (Reads, Rounds) {
    let (sender, receiver) = arrivals::channel();
    (Reads(sender), Rounds(receiver))
}

impl Reads {
    pub async fn read_index(&self) -> Result<u64, ReadError> {
        if self.0.len() >= limits::READS_WAITING {
            return Err(ReadError::Overloaded);
        }
        let (waiter, index) = oneshot::channel();
        self.0.send(waiter).map_err(|arrivals::Closed| ReadError::Stopped)?;
        index.await.map_err(|_| ReadError::Stopped)?
    }
}

impl Rounds {
    /// One round after the other until the node stops.
    pub async fn run(self, node: Arc<Node>) {
        let mut before = 0;
        while let Some(waiters) = self.gather(&node.stop, before * 3 / 4).await {
            before = waiters.len();
            let result = round(&node).await;
            // The next round need not wait until this one's index is applied.
            node.callers.spawn(release(Arc::clone(&node), waiters, result));
        }
    }

    /// Whoever waits, once there is somebody: `wanted` of them, or fewer after a moment. `None` once the node stops.
    async fn gather(&self, stop: &CancellationToken, wanted: usize) -> Option<Vec<Waiter>> {
        tokio::select! {
            biased;
            () = stop.cancelled() => return None,
            () = self.0.until(1) => (),
        }
        // Whether they come in time or not.
        let _ = clock::timeout(limits::READ_LINGER, self.0.until(wanted)).await;
        Some(self.0.take())
    }
}

type Asker = oneshot::Sender<Result<u64, Refused>>;

/// Where members ask the leader, if this one is it.
pub(crate) struct Confirmations(mpsc::Sender<Asker>);

/// The other end, for [`Confirmer::run`].
pub(crate) struct Confirmer(mpsc::Receiver<Asker>);

pub(crate) fn confirmations() -> (Confirmations, Confirmer) {
    let (sender, receiver) = mpsc::channel(limits::READS_WAITING);
    (Confirmations(sender), Confirmer(receiver))
}

impl Confirmer {
    /// One confirmation after the other until the node stops. Who asks while one is under way is served by the next: only what
    /// began after a read arrived says anything about that read.
    pub async fn run(mut self, node: Arc<Node>) {
        loop {
            let first = tokio::select! {
                biased;
                () = node.stop.cancelled() => None,
                first = self.0.recv() => first,
            };
            let Some(first) = first else { return };
            let mut askers = vec![first];
            while let Ok(next) = self.0.try_recv() {
                askers.push(next);
            }
            let result = node.confirm().await;
            for asker in askers {
                // Whoever does not listen any more has cancelled.
                let _ = asker.send(result.clone());
            }
        }
    }
}

async fn release(node: Arc<Node>, waiters: Vec<Waiter>, result: Result<u64, ReadError>) {
    if let Ok(index) = result {
        tokio::select! {
            biased;
            () = node.stop.cancelled() => return,
            () = node.applying.reached(index) => (),
        }
    }
    for waiter in waiters {
        // Whoever does not listen any more has cancelled.
        let _ = waiter.send(result.clone());
    }
}

/// The leader's index, asked for until there is one or the time is over. Asking twice does no harm.
async fn round(node: &Node) -> Result<u64, ReadError> {
    let deadline = clock::now() + limits::LEADER_WAIT;
    loop {
        let asked = match node.leader() {
            Some(leader) if leader == node.me().id => node.read_index_as_leader().await,
            Some(leader) => ask(node, leader).await,
            None => Err(Refused::NotLeader(None)),
        };
        match asked {
            Ok(index) => return Ok(index),
            Err(Refused::Stopped) => return Err(ReadError::Stopped),
            Err(_) if node.stop.is_cancelled() => return Err(ReadError::Stopped),
            Err(_) if clock::now() >= deadline => return Err(ReadError::NoLeader),
            Err(_) => node.leader_changed_or(limits::LEADER_RETRY).await,
        }
    }
}

/// One round, and waiting until its index is applied here.
pub(crate) async fn round_applied(node: &Node) -> Result<u64, ReadError> {
    let index = round(node).await?;
    node.applying.reached(index).await;
    Ok(index)
}

async fn ask(node: &Node, leader: u64) -> Result<u64, Refused> {
    let link = node.link(leader).ok_or(Refused::NotLeader(None))?;
    match link.read_index().await.map_err(|status| Refused::Unknown(status.message().to_owned()))? {
        Some(Outcome::Index(index)) => Ok(index),
        Some(Outcome::Refusal(refusal)) => Err(refused(refusal)),
        _ => Err(Refused::Unknown("the leader's answer makes no sense".to_owned())),
    }
}

impl Node {
    /// The index a read must wait for, if this member leads.
    pub async fn read_index_as_leader(&self) -> Result<u64, Refused> {
        let (asker, answer) = oneshot::channel();
        self.leading.confirmations.0.send(asker).await.map_err(|_| Refused::Stopped)?;
        answer.await.unwrap_or(Err(Refused::Stopped))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;
    use futures::future::join_all;

    #[tokio::test(start_paused = true)]
    async fn a_round_takes_whoever_is_there_and_waits_a_moment_for_as_many_as_before() {
        let (reads, rounds) = channel();
        let stop = CancellationToken::new();
        let take = async |wanted: usize, arriving: usize| {
            let began = clock::now();
            let asking: Vec<_> = (0..arriving).map(|_| reads.read_index()).collect();
            let (taken, answers) = tokio::join!(
                async {
                    let taken = rounds.gather(&stop, wanted).await.expect("reads");
                    let count = taken.len();
                    taken.into_iter().for_each(|waiter| drop(waiter.send(Ok(7))));
                    count
                },
                join_all(asking)
            );
            assert!(answers.iter().all(|answer| *answer == Ok(7)));
            (taken, began.elapsed() >= limits::READ_LINGER)
        };
        assert_eq!(take(0, 1).await, (1, false));
        assert_eq!(take(3, 3).await, (3, false));
        assert_eq!(take(3, 2).await, (2, true));
        assert_eq!(take(2, 5).await, (5, false));
    }

    #[tokio::test]
    async fn without_rounds_reads_are_refused_and_there_is_room_for_so_many() {
        let (reads, rounds) = channel();
        let mut waiting: Vec<_> = (0..limits::READS_WAITING).map(|_| Box::pin(reads.read_index())).collect();
        assert!(waiting.iter_mut().all(|read| read.now_or_never().is_none()));
        assert_eq!(reads.read_index().await, Err(ReadError::Overloaded));
        drop(rounds);
        assert_eq!(waiting.swap_remove(0).await, Err(ReadError::Stopped));
        assert_eq!(reads.read_index().await, Err(ReadError::Stopped));
    }
}
