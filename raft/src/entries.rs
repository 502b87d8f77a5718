//! Where the leader makes log entries (D3). Batches arrive from its own batcher and from those of the followers; all that wait become
//! one entry, so that an entry, and with it a synced write on every member, serves as many commands as possible whichever member they
//! came by. A few entries are under way at once, and while they are, others gather.
//!
//! A batch keeps its order and is never divided: it is in one entry or in none, and has one answer.

use std::sync::Arc;

use bytes::Bytes;
use openraft::errors::ClientWriteError;
use openraft::impls::ProgressResponder;
use pintle_base::clock;
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::core::TypeConfig;
use crate::limits;
use crate::node::Node;
use crate::propose::{Refused, not_leader};
use crate::wire;

type Answer = Result<Vec<Bytes>, Refused>;

struct Batch {
    commands: Vec<Bytes>,
    bytes: usize,
    answer: oneshot::Sender<Answer>,
}

/// Where batches are handed in.
pub(crate) struct Entries(mpsc::Sender<Batch>);

/// The other end, for [`Maker::run`].
pub(crate) struct Maker(mpsc::Receiver<Batch>);

pub(crate) fn channel() -> (Entries, Maker) {
    let (sender, receiver) = mpsc::channel(limits::BATCHES_WAITING);
    (Entries(sender), Maker(receiver))
}

impl Maker {
    /// Makes entries of what waits until the node stops; then refuses what still waits.
    pub async fn run(mut self, node: Arc<Node>) {
        let under_way = Arc::new(Semaphore::new(limits::ENTRIES_UNDER_WAY));
        let mut carried = None;
        loop {
            let first = match carried.take() {
                Some(batch) => batch,
                None => tokio::select! {
                    biased;
                    () = node.stop.cancelled() => break,
                    next = self.0.recv() => match next {
                        Some(batch) => batch,
                        None => return,
                    },
                },
            };
            let Ok(permit) = Arc::clone(&under_way).acquire_owned().await else { return };
            node.wait_until_applied_enough().await;
            let (batches, next) = gather(&mut self.0, first);
            carried = next;
            let node = Arc::clone(&node);
            tokio::spawn(async move {
                make(&node, batches).await;
                drop(permit);
            });
        }
        self.0.close();
        while let Some(batch) = carried.take().or_else(|| self.0.try_recv().ok()) {
            let _ = batch.answer.send(Err(Refused::Stopped));
        }
    }
}

/// Takes what waits, within the bounds of one entry. What is too much for it is returned for the next.
fn gather(queue: &mut mpsc::Receiver<Batch>, first: Batch) -> (Vec<Batch>, Option<Batch>) {
    let (mut commands, mut bytes) = (first.commands.len(), first.bytes);
    let mut batches = vec![first];
    while let Ok(next) = queue.try_recv() {
        if next.answer.is_closed() {
            continue; // whoever asked has gone, and nothing was done yet
        }
        commands += next.commands.len();
        bytes += next.bytes;
        if commands > limits::BATCH_COMMANDS || bytes > limits::BATCH_BYTES {
            return (batches, Some(next));
        }
        batches.push(next);
    }
    (batches, None)
}

/// Has one entry made and answers its batches.
async fn make(node: &Node, batches: Vec<Batch>) {
    let mut waiting = Vec::with_capacity(batches.len());
    let mut commands = Vec::with_capacity(batches.iter().map(|batch| batch.commands.len()).sum());
    for batch in batches {
        waiting.push((batch.commands.len(), batch.answer));
        commands.extend(batch.commands);
    }
    let answers = divide(write(node, commands).await, waiting.iter().map(|(count, _)| *count));
    for ((_, answer), replies) in waiting.into_iter().zip(answers) {
        // Whoever does not listen any more has cancelled; the commands stand.
        let _ = answer.send(replies);
    }
}

/// The answer of each batch, from that of their entry. Entries have one reply for each command; were it otherwise, nobody could tell
/// whose they are.
fn divide(answer: Answer, counts: impl Iterator<Item = usize> + Clone) -> Vec<Answer> {
    let expected: usize = counts.clone().sum();
    let refused = match answer {
        Ok(replies) if replies.len() == expected => {
            let mut replies = replies.into_iter();
            return counts.map(|count| Ok(replies.by_ref().take(count).collect())).collect();
        }
        Ok(replies) => Refused::Unknown(format!("{} replies to {expected} commands", replies.len())),
        Err(refused) => refused,
    };
    counts.map(|_| Err(refused.clone())).collect()
}

/// Proposes `commands` as one entry, here.
async fn write(node: &Node, commands: Vec<Bytes>) -> Answer {
    let (responder, answer) = ProgressResponder::<TypeConfig, _>::complete_only();
    let batch = wire::encode_batch(commands);
    node.raft.client_write_ff(batch, Some(responder)).await.map_err(|_| Refused::Stopped)?;
    match clock::timeout(limits::COMMIT_TIMEOUT, answer).await {
        Ok(Ok(Ok(response))) => Ok(response.data.0),
        Ok(Ok(Err(ClientWriteError::ForwardToLeader(forward)))) => Err(not_leader(&forward)),
        Ok(Ok(Err(error))) => Err(Refused::Unknown(error.to_string())),
        Ok(Err(_)) => Err(Refused::Unknown("raft stopped before it answered".to_owned())),
        Err(_) => Err(Refused::Unknown(format!("not committed within {:?}", limits::COMMIT_TIMEOUT))),
    }
}

impl Node {
    /// Has a batch of commands proposed, if this member leads. One reply for each, in order.
    pub async fn propose_as_leader(&self, commands: Vec<Bytes>) -> Answer {
        if self.is_stopping() {
            return Err(Refused::NotLeader(None));
        }
        let bytes = commands.iter().map(Bytes::len).sum();
        let (answer, replies) = oneshot::channel();
        self.leading.entries.0.send(Batch { commands, bytes, answer }).await.map_err(|_| Refused::Stopped)?;
        replies.await.unwrap_or_else(|_| Err(Refused::Unknown("raft stopped before it answered".to_owned())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(text: &'static str) -> Bytes {
        Bytes::from_static(text.as_bytes())
    }

    #[test]
    fn every_batch_gets_the_replies_of_its_own_commands() {
        let replies = Ok(vec![reply("a"), reply("b"), reply("c")]);
        let divided = divide(replies, [1, 0, 2].into_iter());
        assert_eq!(divided, [Ok(vec![reply("a")]), Ok(vec![]), Ok(vec![reply("b"), reply("c")])]);
    }

    #[test]
    fn a_refusal_and_an_answer_that_makes_no_sense_are_told_to_all() {
        let overloaded = divide(Err(Refused::NotLeader(Some(2))), [1, 1].into_iter());
        assert_eq!(overloaded, [Err(Refused::NotLeader(Some(2))), Err(Refused::NotLeader(Some(2)))]);
        let unknown = Err(Refused::Unknown("1 replies to 2 commands".to_owned()));
        assert_eq!(divide(Ok(vec![reply("a")]), [1, 1].into_iter()), [unknown.clone(), unknown]);
    }

    #[test]
    fn an_entry_takes_whole_batches_up_to_its_bounds_and_none_that_nobody_waits_for() {
        let (Entries(sender), Maker(mut queue)) = channel();
        let mut listening = Vec::new();
        let mut batch = |commands: usize| {
            let (answer, listener) = oneshot::channel();
            listening.push(listener);
            Batch { commands: vec![reply("x"); commands], bytes: commands, answer }
        };
        let first = batch(1);
        for commands in [limits::BATCH_COMMANDS - 2, 2, 3] {
            sender.try_send(batch(commands)).expect("room");
        }
        let (gone, _) = oneshot::channel();
        sender.try_send(Batch { commands: vec![reply("gone")], bytes: 4, answer: gone }).expect("room");
        let counts = |batches: &[Batch]| batches.iter().map(|batch| batch.commands.len()).collect::<Vec<_>>();
        let (batches, carried) = gather(&mut queue, first);
        assert_eq!(counts(&batches), [1, limits::BATCH_COMMANDS - 2]);
        let (batches, carried) = gather(&mut queue, carried.expect("too much for the first"));
        assert_eq!((counts(&batches), carried.is_some()), (vec![2, 3], false));
    }
}
