//! Linearizable reads by read index (D6): one round at a time, and everything that arrived before a round began is released
//! by it. The leader asks openraft, which confirms its leadership with a quorum; others ask the leader. Then the caller waits
//! until its own member has applied that much.

use std::sync::Arc;

use openraft::ReadPolicy;
use openraft::errors::{LinearizableReadError, RaftError};
use pintle_base::clock;
use pintle_proto::raft_v1 as pb;
use tokio::sync::{mpsc, oneshot};

use crate::limits;
use crate::node::Node;
use crate::propose::{Refused, not_leader, refused};

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
pub(crate) struct Reads(mpsc::Sender<Waiter>);

/// The other end, for [`Rounds::run`].
pub(crate) struct Rounds(mpsc::Receiver<Waiter>);

pub(crate) fn channel() -> (Reads, Rounds) {
    let (sender, receiver) = mpsc::channel(limits::READS_WAITING);
    (Reads(sender), Rounds(receiver))
}

impl Reads {
    pub async fn read_index(&self) -> Result<u64, ReadError> {
        let (waiter, index) = oneshot::channel();
        self.0.try_send(waiter).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => ReadError::Overloaded,
            mpsc::error::TrySendError::Closed(_) => ReadError::Stopped,
        })?;
        index.await.map_err(|_| ReadError::Stopped)?
    }
}

impl Rounds {
    /// One round after the other until the node stops.
    pub async fn run(mut self, node: Arc<Node>) {
        loop {
            let first = tokio::select! {
                biased;
                () = node.stop.cancelled() => return,
                first = self.0.recv() => first,
            };
            let Some(first) = first else { return };
            let mut waiters = vec![first];
            while let Ok(waiter) = self.0.try_recv() {
                waiters.push(waiter);
            }
            let result = round(&node).await;
            // The next round need not wait until this one's index is applied.
            tokio::spawn(release(Arc::clone(&node), waiters, result));
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
    use pb::read_index_response::Outcome;
    let link = node.link(leader).ok_or(Refused::NotLeader(None))?;
    let response = link.read_index().await.map_err(|status| Refused::Unknown(status.message().to_owned()))?;
    match response.outcome {
        Some(Outcome::Index(index)) => Ok(index),
        Some(Outcome::Refusal(refusal)) => Err(refused(refusal)),
        None => Err(Refused::Unknown("the leader's answer is empty".to_owned())),
    }
}

impl Node {
    /// The index a read must wait for, if this member leads.
    pub async fn read_index_as_leader(&self) -> Result<u64, Refused> {
        match self.raft.get_read_linearizer(ReadPolicy::ReadIndex).await {
            Ok(linearizer) => Ok(linearizer.read_log_id().index()),
            Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(forward))) => Err(not_leader(&forward)),
            Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_))) => Err(Refused::NotLeader(None)),
            Err(RaftError::Fatal(_)) => Err(Refused::Stopped),
        }
    }
}
