//! The proposal batcher (D3) of a member: everything that waits becomes one batch, a few batches are in flight at once. There is no
//! timer: a lone command leaves at once, and while it is on its way others gather.
//!
//! Batches go to the leader, here or elsewhere, which makes entries of them ([`crate::entries`]). Nothing is ever sent twice unless it is certain that it was not proposed.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use openraft::errors::ForwardToLeader;
use pintle_base::clock::{self, Instant};
use pintle_proto::raft_v1 as pb;
use pintle_proto::raft_v1::answer::Outcome;
use pintle_proto::raft_v1::refusal::Reason;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use crate::core::TypeConfig;
use crate::limits;
use crate::node::Node;
use crate::transport::client::was_not_sent;

/// Why a command has no reply.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// Nothing was proposed.
    #[error("command of {bytes} bytes, at most {limit} are allowed", limit = limits::COMMAND_BYTES)]
    TooLarge { bytes: usize },
    /// Nothing was proposed; too much is waiting.
    #[error("too many proposals are waiting")]
    Overloaded,
    /// Nothing was proposed; no leader was found in time.
    #[error("no leader")]
    NoLeader,
    /// Nothing was proposed; this member is stopping.
    #[error("raft has stopped")]
    Stopped,
    /// The command was applied; the leader could not pass its reply on.
    #[error("applied, but its reply exceeds {limit} bytes", limit = limits::REPLY_BYTES)]
    ReplyTooLarge,
    /// The command may have been committed, or may yet be.
    #[error("outcome unknown: {reason}")]
    Unknown { reason: String },
}

impl ProposeError {
    /// True only if nothing can have been written, so sending it again is safe.
    pub fn is_safe_to_retry(&self) -> bool {
        !matches!(self, Self::Unknown { .. } | Self::ReplyTooLarge)
    }
}

/// Why a member did not do what leaders do. The forms a leader's refusal has on the wire too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// Nothing was done; another leads, if it is known which.
    NotLeader(Option<u64>),
    Overloaded,
    /// Nothing was done and nothing will be for the same request.
    Invalid(String),
    /// Nothing was done: the quorum would have been lost.
    Unhealthy(String),
    /// Nothing was done; the member is stopping.
    Stopped,
    Unknown(String),
}

/// A refusal as a message.
pub(crate) fn refusal(refused: &Refused) -> pb::Refusal {
    let (reason, leader, message) = match refused {
        Refused::NotLeader(leader) => (Reason::NotLeader, leader.unwrap_or(0), String::new()),
        Refused::Overloaded => (Reason::Overloaded, 0, String::new()),
        Refused::Invalid(message) => (Reason::Invalid, 0, message.clone()),
        Refused::Unhealthy(message) => (Reason::Unhealthy, 0, message.clone()),
        Refused::Stopped => (Reason::NotLeader, 0, String::new()),
        Refused::Unknown(message) => (Reason::OutcomeUnknown, 0, message.clone()),
    };
    pb::Refusal { reason: reason.into(), leader, message }
}

/// What a peer's refusal means. One that is not understood leaves the outcome open.
pub(crate) fn refused(refusal: pb::Refusal) -> Refused {
    match refusal.reason() {
        Reason::NotLeader => Refused::NotLeader((refusal.leader != 0).then_some(refusal.leader)),
        Reason::Overloaded => Refused::Overloaded,
        Reason::Invalid => Refused::Invalid(refusal.message),
        Reason::Unhealthy => Refused::Unhealthy(refusal.message),
        Reason::OutcomeUnknown | Reason::Unspecified => Refused::Unknown(refusal.message),
    }
}

/// A call to a peer that failed.
pub(crate) fn failed(status: &tonic::Status) -> Refused {
    if was_not_sent(status) { Refused::NotLeader(None) } else { Refused::Unknown(status.message().to_owned()) }
}

/// openraft's "somebody else leads"; a leader that names itself has only lost touch.
pub(crate) fn not_leader(forward: &ForwardToLeader<TypeConfig>) -> Refused {
    Refused::NotLeader(forward.leader_id)
}

/// One for each command of a batch, in order.
type Replies = Vec<Result<Bytes, ProposeError>>;

/// Replies as messages of bounded size. One that fits into none is left out and said to be.
pub(crate) fn to_messages(replies: Vec<Bytes>) -> Vec<pb::Replies> {
    let mut messages = vec![pb::Replies::default()];
    let mut bytes = 0;
    for reply in replies {
        let (reply, omitted) = if reply.len() > limits::REPLY_BYTES { (Bytes::new(), true) } else { (reply, false) };
        bytes += reply.len();
        if bytes > limits::REPLY_BYTES {
            bytes = reply.len();
            messages.push(pb::Replies::default());
        }
        if let Some(message) = messages.last_mut() {
            if omitted {
                message.omitted.push(u32::try_from(message.replies.len()).unwrap_or(u32::MAX));
            }
            message.replies.push(reply);
        }
    }
    messages
}

/// What one such message says.
fn from_message(message: pb::Replies) -> Replies {
    let mut replies: Replies = message.replies.into_iter().map(Ok).collect();
    for position in message.omitted {
        let position = usize::try_from(position).unwrap_or(usize::MAX);
        if let Some(reply) = replies.get_mut(position) {
            *reply = Err(ProposeError::ReplyTooLarge);
        }
    }
    replies
}

struct Proposal {
    command: Bytes,
    reply: oneshot::Sender<Result<Bytes, ProposeError>>,
    _weight: Weight,
}

/// Counts the bytes of a proposal as long as it lives.
struct Weight {
    total: Arc<AtomicUsize>,
    bytes: usize,
}

impl Drop for Weight {
    fn drop(&mut self) {
        self.total.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Where proposals are handed in. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Proposals {
    queue: mpsc::Sender<Proposal>,
    bytes: Arc<AtomicUsize>,
}

/// The other end, for [`Batcher::run`].
pub(crate) struct Batcher {
    queue: mpsc::Receiver<Proposal>,
}

pub(crate) fn channel() -> (Proposals, Batcher) {
    let (sender, receiver) = mpsc::channel(limits::PROPOSALS_WAITING);
    (Proposals { queue: sender, bytes: Arc::default() }, Batcher { queue: receiver })
}

impl Proposals {
    pub async fn propose(&self, command: Bytes) -> Result<Bytes, ProposeError> {
        let bytes = command.len();
        if bytes > limits::COMMAND_BYTES {
            return Err(ProposeError::TooLarge { bytes });
        }
        let before = self.bytes.fetch_add(bytes, Ordering::Relaxed);
        let weight = Weight { total: Arc::clone(&self.bytes), bytes };
        if before > limits::PROPOSAL_BYTES {
            return Err(ProposeError::Overloaded);
        }
        let (reply, answer) = oneshot::channel();
        self.queue.try_send(Proposal { command, reply, _weight: weight }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => ProposeError::Overloaded,
            mpsc::error::TrySendError::Closed(_) => ProposeError::Stopped,
        })?;
        let lost = |_| ProposeError::Unknown { reason: "raft stopped before it answered".to_owned() };
        answer.await.map_err(lost)?
    }
}

impl Batcher {
    /// Makes batches of what waits until the node stops; then refuses what still waits.
    pub async fn run(mut self, node: Arc<Node>) {
        let in_flight = Arc::new(Semaphore::new(limits::BATCHES_IN_FLIGHT));
        let mut carried = None;
        loop {
            let first = match carried.take() {
                Some(proposal) => proposal,
                None => tokio::select! {
                    biased;
                    () = node.stop.cancelled() => break,
                    next = self.queue.recv() => match next {
                        Some(proposal) => proposal,
                        None => return,
                    },
                },
            };
            let Ok(permit) = Arc::clone(&in_flight).acquire_owned().await else { return };
            node.wait_until_applied_enough().await;
            let (batch, next) = self.gather(first);
            carried = next;
            tokio::spawn(dispatch(Arc::clone(&node), batch, permit));
        }
        self.queue.close();
        while let Some(proposal) = carried.take().or_else(|| self.queue.try_recv().ok()) {
            let _ = proposal.reply.send(Err(ProposeError::Stopped));
        }
    }

    /// Takes what waits, within bounds. What is too much for this batch is returned for the next.
    fn gather(&mut self, first: Proposal) -> (Vec<Proposal>, Option<Proposal>) {
        let mut bytes = first.command.len();
        let mut batch = vec![first];
        while batch.len() < limits::BATCH_COMMANDS
            && let Ok(next) = self.queue.try_recv()
        {
            if next.reply.is_closed() {
                continue;
            }
            bytes += next.command.len();
            if bytes > limits::BATCH_BYTES {
                return (batch, Some(next));
            }
            batch.push(next);
        }
        (batch, None)
    }
}

/// Gets one batch proposed and answers its commands. Holds its place in flight until then.
async fn dispatch(node: Arc<Node>, batch: Vec<Proposal>, _permit: OwnedSemaphorePermit) {
    let commands: Vec<Bytes> = batch.iter().map(|proposal| proposal.command.clone()).collect();
    let result = propose(&node, commands).await;
    match result {
        Ok(replies) if replies.len() == batch.len() => {
            for (proposal, reply) in batch.into_iter().zip(replies) {
                // Whoever does not listen any more has cancelled; the command stands.
                let _ = proposal.reply.send(reply);
            }
        }
        Ok(replies) => {
            let reason = format!("{} replies to {} commands", replies.len(), batch.len());
            refuse_all(batch, &ProposeError::Unknown { reason });
        }
        Err(error) => refuse_all(batch, &error),
    }
}

fn refuse_all(batch: Vec<Proposal>, error: &ProposeError) {
    for proposal in batch {
        let _ = proposal.reply.send(Err(error.clone()));
    }
}

/// Tries until there is an answer, or it cannot be known what happened, or no leader appears in time.
async fn propose(node: &Node, commands: Vec<Bytes>) -> Result<Replies, ProposeError> {
    let deadline = clock::now() + limits::LEADER_WAIT;
    loop {
        let refused = match node.leader() {
            Some(leader) if leader == node.me().id => match node.propose_as_leader(commands.clone()).await {
                Ok(replies) => return Ok(replies.into_iter().map(Ok).collect()),
                Err(refused) => refused,
            },
            Some(leader) => match forward(node, leader, commands.clone()).await {
                Ok(replies) => return Ok(replies),
                Err(refused) => refused,
            },
            None => Refused::NotLeader(None),
        };
        match refused {
            Refused::NotLeader(_) => wait_for_leader(node, deadline).await?,
            Refused::Overloaded => return Err(ProposeError::Overloaded),
            Refused::Stopped => return Err(ProposeError::Stopped),
            Refused::Invalid(reason) | Refused::Unhealthy(reason) | Refused::Unknown(reason) => {
                return Err(ProposeError::Unknown { reason });
            }
        }
    }
}

async fn wait_for_leader(node: &Node, deadline: Instant) -> Result<(), ProposeError> {
    if node.stop.is_cancelled() {
        return Err(ProposeError::Stopped);
    }
    if clock::now() >= deadline {
        return Err(ProposeError::NoLeader);
    }
    node.leader_changed_or(limits::LEADER_RETRY).await;
    Ok(())
}

async fn forward(node: &Node, leader: u64, commands: Vec<Bytes>) -> Result<Replies, Refused> {
    let link = node.link(leader).ok_or(Refused::NotLeader(None))?;
    let count = commands.len();
    match clock::timeout(limits::FORWARD_TIMEOUT, link.propose(commands)).await {
        Ok(Ok(outcomes)) => collect(outcomes, count),
        Ok(Err(status)) => Err(failed(&status)),
        Err(_) => Err(Refused::Unknown(format!("no answer within {:?}", limits::FORWARD_TIMEOUT))),
    }
}

/// The leader's answer to `count` commands.
fn collect(outcomes: Vec<Outcome>, count: usize) -> Result<Replies, Refused> {
    let mut all = Vec::with_capacity(count);
    for outcome in outcomes {
        match outcome {
            Outcome::Replies(replies) if all.len() + replies.replies.len() <= count => {
                all.extend(from_message(replies))
            }
            Outcome::Refusal(refusal) if all.is_empty() => return Err(refused(refusal)),
            _ => return Err(Refused::Unknown("the leader's answer makes no sense".to_owned())),
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(len: usize) -> Bytes {
        Bytes::from(vec![b'x'; len])
    }

    /// Lengths of what arrives, per message; `None` for what does not.
    #[track_caller]
    fn check(lengths: &[usize], want: &[&[Option<usize>]]) {
        let messages = to_messages(lengths.iter().map(|len| bytes(*len)).collect());
        let found: Vec<Vec<Option<usize>>> = messages
            .into_iter()
            .inspect(|message| assert!(prost::Message::encoded_len(message) < limits::MESSAGE_BYTES))
            .map(|message| from_message(message).into_iter().map(|reply| reply.ok().map(|r| r.len())).collect())
            .collect();
        assert_eq!(found, want);
    }

    #[test]
    fn replies_are_split_into_messages_and_only_what_fits_none_is_left_out() {
        let most = limits::REPLY_BYTES;
        check(&[1, 2, 0], &[&[Some(1), Some(2), Some(0)]]);
        check(&[most, 1, most - 1, 1], &[&[Some(most)], &[Some(1), Some(most - 1)], &[Some(1)]]);
        check(&[1, most + 1, 2], &[&[Some(1), None, Some(2)]]);
    }

    #[test]
    fn positions_that_are_not_there_are_ignored() {
        let message = pb::Replies { replies: vec![bytes(1)], omitted: vec![7, u32::MAX] };
        assert_eq!(from_message(message), [Ok(bytes(1))]);
    }
}
