//! The proposal batcher (D3) of a member: everything that waits becomes one batch, a few batches are in flight at once. A lone command leaves
//! at once, and while it is on its way others gather: at a leader until the next entry is made, for another leader for a moment.
//!
//! What waits and is too much for one batch is taken in a fair order ([`crate::waiting`]).
//!
//! Batches go to the leader, here or elsewhere, which makes entries of them ([`crate::entries`]). Nothing is ever sent twice unless it is certain that it was not proposed.

use std::sync::Arc;

use bytes::Bytes;
use openraft::errors::ForwardToLeader;
use pintle_base::clock::{self, Instant};
use pintle_proto::raft_v1 as pb;
use pintle_proto::raft_v1::answer::Outcome;
use pintle_proto::raft_v1::refusal::Reason;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::core::TypeConfig;
use crate::entries::{Answer, Asker, Batch};
use crate::node::Node;
use crate::transport::client::was_not_sent;
use crate::waiting::{Load, Proposal, Waiting, Weight};
use crate::{arrivals, limits};

pub use crate::waiting::Lane;

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

/// Where proposals are handed in. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Proposals {
    /// Bounded by `load`.
    queue: arrivals::Sender<Proposal>,
    load: Arc<Load>,
}

/// The other end, for [`Batcher::run`].
pub(crate) struct Batcher {
    queue: arrivals::Receiver<Proposal>,
    waiting: Waiting,
}

pub(crate) fn channel() -> (Proposals, Batcher) {
    let (queue, receiver) = arrivals::channel();
    (Proposals { queue, load: Arc::default() }, Batcher { queue: receiver, waiting: Waiting::default() })
}

impl Proposals {
    pub async fn propose(&self, command: Bytes, lane: Lane) -> Result<Bytes, ProposeError> {
        let bytes = command.len();
        if bytes > limits::COMMAND_BYTES {
            return Err(ProposeError::TooLarge { bytes });
        }
        let weight = Weight::new(&self.load, bytes, lane)?;
        let (reply, answer) = oneshot::channel();
        let proposal = Proposal { command, lane, reply, _weight: weight };
        self.queue.send(proposal).map_err(|arrivals::Closed| ProposeError::Stopped)?;
        let lost = |_| ProposeError::Unknown { reason: "raft stopped before it answered".to_owned() };
        answer.await.map_err(lost)?
    }
}

impl Batcher {
    /// Makes batches of what waits until the node stops; then refuses what still waits.
    pub async fn run(mut self, node: Arc<Node>) {
        let [own, others] = [(); 2].map(|()| Arc::new(Semaphore::new(limits::BATCHES_IN_FLIGHT)));
        let mut before = 0;
        loop {
            if self.waiting.is_empty() {
                tokio::select! {
                    biased;
                    () = node.stop.cancelled() => break,
                    () = self.queue.until(1) => (),
                }
            }
            // What comes meanwhile stays where it is: to be woken for each costs more than all of it is worth.
            if node.leads() {
                tokio::select! {
                    biased;
                    () = node.stop.cancelled() => break,
                    () = self.fill_place(&node, &own) => (),
                }
                continue;
            }
            let permit = tokio::select! {
                biased;
                permit = Arc::clone(&others).acquire_owned() => permit,
                () = node.leads_or_not(true) => continue,
            };
            let Ok(permit) = permit else { return };
            if others.available_permits() + 1 < limits::BATCHES_IN_FLIGHT && self.waiting.is_empty() {
                // Others are under way: this one need not leave with the first that comes.
                let _ = clock::timeout(limits::PROPOSAL_LINGER, self.queue.until(before * 3 / 4)).await;
            }
            node.wait_until_applied_enough().await;
            let proposals = self.batch();
            before = proposals.len();
            if !proposals.is_empty() {
                let batch = InFlight { proposals, deadline: clock::now() + limits::LEADER_WAIT, permit };
                tokio::spawn(dispatch(Arc::clone(&node), batch));
            }
        }
        refuse_all(self.queue.close(), &ProposeError::Stopped);
        while !self.waiting.is_empty() {
            refuse_all(self.waiting.batch(), &ProposeError::Stopped);
        }
    }

    /// All that has come, within the bounds of a batch.
    fn batch(&mut self) -> Vec<Proposal> {
        for next in self.queue.take() {
            self.waiting.add(next);
        }
        self.waiting.batch()
    }

    /// Puts what has come into the next entry when that is made; nothing if another leads by then. As many such batches may be without an
    /// answer as there are permits: a leader that is refused its entries, as while it hands over, does not go on making small ones.
    async fn fill_place(&mut self, node: &Arc<Node>, in_flight: &Arc<Semaphore>) {
        let asked = async {
            let permit = Arc::clone(in_flight).acquire_owned().await.ok()?;
            let place = node.leading.entries.place().await?.await.ok()?;
            Some((permit, place))
        };
        let asked = tokio::select! {
            biased;
            asked = asked => asked,
            () = node.leads_or_not(false) => return,
        };
        // Whoever makes entries has stopped, as all will.
        let Some((permit, place)) = asked else { return node.stop.cancelled().await };
        let proposals = self.batch();
        if proposals.is_empty() {
            return;
        }
        let batch = InFlight { proposals, deadline: clock::now() + limits::LEADER_WAIT, permit };
        if let Err(batch) = place.send(batch.for_entry(node)) {
            batch.give_back();
        }
    }
}

/// A batch until it has an answer.
struct InFlight {
    proposals: Vec<Proposal>,
    /// Until when a leader is looked for.
    deadline: Instant,
    permit: OwnedSemaphorePermit,
}

impl InFlight {
    fn commands(&self) -> Vec<Bytes> {
        self.proposals.iter().map(|proposal| proposal.command.clone()).collect()
    }

    /// As this member's part of an entry. Whoever applies that tells the answer.
    fn for_entry(self, node: &Arc<Node>) -> Batch {
        let (commands, runtime) = (self.commands(), tokio::runtime::Handle::current());
        let node = Arc::clone(node);
        Batch::new(commands, Asker::Told(Box::new(move |answer| answered(node, &runtime, self, answer))))
    }

    /// Whoever does not listen any more has cancelled; the commands stand.
    fn answer(self, node: &Node, replies: Replies) {
        let Self { proposals, permit, .. } = self;
        drop(permit);
        if replies.len() != proposals.len() {
            let reason = format!("{} replies to {} commands", replies.len(), proposals.len());
            return refuse_all(proposals, &ProposeError::Unknown { reason });
        }
        node.callers.spawn(async move {
            for (proposal, reply) in proposals.into_iter().zip(replies) {
                let _ = proposal.reply.send(reply);
            }
        });
    }
}

fn refuse_all(proposals: Vec<Proposal>, error: &ProposeError) {
    for proposal in proposals {
        let _ = proposal.reply.send(Err(error.clone()));
    }
}

/// Gets one batch proposed and its commands answered. Tries until there is an answer, or it cannot be known what happened, or no leader
/// appears in time.
async fn dispatch(node: Arc<Node>, batch: InFlight) {
    loop {
        let refused = match node.leader() {
            Some(leader) if leader == node.me().id => {
                let batch = batch.for_entry(&node);
                return node.hand_in(batch).await;
            }
            Some(leader) => match forward(&node, leader, batch.commands()).await {
                Ok(replies) => return batch.answer(&node, replies),
                Err(refused) => refused,
            },
            None => Refused::NotLeader(None),
        };
        if let Err(error) = again(&node, refused, batch.deadline).await {
            return refuse_all(batch.proposals, &error);
        }
    }
}

/// This member's own answer to a batch: told by the thread that applied it.
fn answered(node: Arc<Node>, runtime: &tokio::runtime::Handle, batch: InFlight, answer: Answer) {
    match answer {
        Ok(replies) => batch.answer(&node, replies.into_iter().map(Ok).collect()),
        Err(refused) => drop(runtime.spawn(async move {
            match again(&node, refused, batch.deadline).await {
                Ok(()) => dispatch(node, batch).await,
                Err(error) => refuse_all(batch.proposals, &error),
            }
        })),
    }
}

/// Waits until it is worth while to try again what was refused; an error if it is not.
async fn again(node: &Node, refused: Refused, deadline: Instant) -> Result<(), ProposeError> {
    match refused {
        Refused::NotLeader(_) => wait_for_leader(node, deadline).await,
        Refused::Overloaded => Err(ProposeError::Overloaded),
        Refused::Stopped => Err(ProposeError::Stopped),
        Refused::Invalid(reason) | Refused::Unhealthy(reason) | Refused::Unknown(reason) => {
            Err(ProposeError::Unknown { reason })
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
