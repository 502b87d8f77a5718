//! Where the leader makes log entries (D3). Batches arrive from its own batcher and from those of the followers; all that wait become
//! one entry, so that an entry, and with it a synced write on every member, serves as many commands as possible whichever member they
//! came by. A few entries are under way at once, and while they are, others gather.
//!
//! A batch keeps its order and is never divided: it is in one entry or in none, and has one answer. The thread that applied the entry gives
//! it: for a batch of this member that is the way to its callers, and Raft's thread is not woken.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use openraft::errors::ClientWriteError;
use openraft::raft::ClientWriteResult;
use parking_lot::Mutex;
use pintle_base::clock::{self, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use crate::core::{Responder, TypeConfig};
use crate::limits;
use crate::node::Node;
use crate::propose::{Refused, not_leader};
use crate::wire;

/// One reply for each command, in order.
pub(crate) type Answer = Result<Vec<Bytes>, Refused>;

/// Who is told the answer to a batch.
pub(crate) enum Asker {
    /// A task.
    Waiting(oneshot::Sender<Answer>),
    /// Called by whatever thread has the answer; it must not wait for anything.
    Told(Box<dyn FnOnce(Answer) + Send>),
}

impl Asker {
    fn has_gone(&self) -> bool {
        matches!(self, Self::Waiting(sender) if sender.is_closed())
    }

    fn tell(self, answer: Answer) {
        match self {
            // Whoever does not listen any more has cancelled; the commands stand.
            Self::Waiting(sender) => drop(sender.send(answer)),
            Self::Told(tell) => tell(answer),
        }
    }
}

pub(crate) struct Batch {
    commands: Vec<Bytes>,
    bytes: usize,
    asker: Asker,
}

impl Batch {
    pub fn new(commands: Vec<Bytes>, asker: Asker) -> Self {
        Self { bytes: commands.iter().map(Bytes::len).sum(), commands, asker }
    }

    /// Nobody took it: nothing is proposed, and another try is worth while.
    pub fn give_back(self) {
        self.asker.tell(Err(Refused::NotLeader(None)));
    }
}

/// Where the batch of somebody is put who fills it when its entry is made, with all that has come by then.
pub(crate) type Place = oneshot::Sender<Batch>;

enum Coming {
    Batch(Batch),
    /// Who is told where to put it. May have changed its mind.
    Later(oneshot::Sender<Place>),
}

/// Where batches are handed in.
pub(crate) struct Entries(mpsc::Sender<Coming>);

impl Entries {
    /// Asks for a place in the next entry; nothing comes if the node stops.
    pub async fn place(&self) -> Option<oneshot::Receiver<Place>> {
        let (told, place) = oneshot::channel();
        self.0.send(Coming::Later(told)).await.ok()?;
        Some(place)
    }
}

/// The other end, for [`Maker::run`].
pub(crate) struct Maker(mpsc::Receiver<Coming>);

pub(crate) fn channel() -> (Entries, Maker) {
    let (sender, receiver) = mpsc::channel(limits::BATCHES_WAITING);
    (Entries(sender), Maker(receiver))
}

impl Maker {
    /// Makes entries of what waits until the node stops; then refuses what still waits.
    pub async fn run(mut self, node: Arc<Node>) {
        let room = Arc::new(Semaphore::new(limits::ENTRIES_UNDER_WAY));
        let mut under_way = VecDeque::new();
        let mut waiting = VecDeque::new();
        let mut own_first = true;
        loop {
            if waiting.is_empty() {
                tokio::select! {
                    biased;
                    () = node.stop.cancelled() => break,
                    next = expiring(&mut under_way, self.0.recv()) => match next {
                        Some(coming) => waiting.push_back(coming),
                        None => return,
                    },
                }
            }
            let room = expiring(&mut under_way, Arc::clone(&room).acquire_owned());
            let Ok(permit) = room.await else { return };
            expiring(&mut under_way, node.wait_until_applied_enough()).await;
            waiting.extend(std::iter::from_fn(|| self.0.try_recv().ok()));
            let batches = gather(&mut waiting, &mut own_first).await;
            if batches.is_empty() {
                continue;
            }
            let entry = propose(&node, batches, permit).await;
            under_way.push_back((clock::now() + limits::COMMIT_TIMEOUT, entry));
        }
        self.0.close();
        waiting.extend(std::iter::from_fn(|| self.0.try_recv().ok()));
        for coming in waiting {
            if let Coming::Batch(batch) = coming {
                batch.asker.tell(Err(Refused::Stopped));
            }
        }
    }
}

/// Waits for `done`, and meanwhile gives up entries whose time is over.
async fn expiring<T>(under_way: &mut VecDeque<(Instant, Arc<Entry>)>, done: impl Future<Output = T>) -> T {
    let mut done = std::pin::pin!(done);
    loop {
        while under_way.front().is_some_and(|(_, entry)| entry.is_settled()) {
            under_way.pop_front();
        }
        let Some((until, entry)) = under_way.front() else { return done.await };
        tokio::select! {
            biased;
            result = &mut done => return result,
            () = clock::sleep_until(*until) => {
                entry.settle(Err(Refused::Unknown(format!("not committed within {:?}", limits::COMMIT_TIMEOUT))));
            }
        }
    }
}

/// Takes what waits, in its order and within the bounds of one entry; what is too much for it stays. Where not all fits, the one who fills
/// its place later has every second turn before all others, who have several batches each.
async fn gather(waiting: &mut VecDeque<Coming>, own_first: &mut bool) -> Vec<Batch> {
    let own = waiting.iter().position(|coming| matches!(coming, Coming::Later(_)));
    if let Some(own) = own {
        if *own_first && let Some(own) = waiting.remove(own) {
            waiting.push_front(own);
        }
        *own_first = !*own_first;
    }
    let (mut commands, mut bytes) = (0, 0);
    let mut batches = Vec::new();
    while let Some(next) = waiting.pop_front() {
        let batch = match next {
            Coming::Batch(batch) => Some(batch),
            Coming::Later(asked) => {
                let (place, filled) = oneshot::channel();
                match asked.send(place) {
                    Ok(()) => filled.await.ok(),
                    Err(_) => None,
                }
            }
        };
        // If whoever asked has gone, nothing was done yet.
        let Some(batch) = batch.filter(|batch| !batch.asker.has_gone()) else { continue };
        commands += batch.commands.len();
        bytes += batch.bytes;
        if !batches.is_empty() && (commands > limits::BATCH_COMMANDS || bytes > limits::BATCH_BYTES) {
            waiting.push_front(Coming::Batch(batch));
            break;
        }
        batches.push(batch);
    }
    batches
}

/// What is proposed as one entry and has no answer yet.
struct Entry(Mutex<State>);

enum State {
    /// Being handed to openraft's core, which may already have dropped what was to give the answer (`lost`).
    HandedOver { asked: Asked, lost: bool },
    /// The core has taken it.
    Taken(Asked),
    /// Answered.
    Settled,
}

/// Who asked for an entry, with the number of their commands.
struct Asked {
    batches: Vec<(usize, Asker)>,
    permit: OwnedSemaphorePermit,
}

impl Entry {
    fn new(asked: Asked) -> Self {
        Self(Mutex::new(State::HandedOver { asked, lost: false }))
    }

    /// The responder's word. That there will be no answer means that nobody knows the outcome, but only if the core had taken the entry.
    fn answered(&self, result: Option<ClientWriteResult<TypeConfig>>) {
        let answer = match result {
            Some(result) => answer(result),
            None => {
                if let State::HandedOver { lost, .. } = &mut *self.0.lock() {
                    *lost = true;
                    return;
                }
                no_answer()
            }
        };
        self.settle(answer);
    }

    /// Whether the core took it.
    fn handed_over(&self, taken: bool) {
        if !taken {
            return self.settle(Err(Refused::Stopped));
        }
        let mut state = self.0.lock();
        match std::mem::replace(&mut *state, State::Settled) {
            State::HandedOver { asked, lost: true } => {
                drop(state);
                asked.tell(no_answer());
            }
            State::HandedOver { asked, lost: false } | State::Taken(asked) => *state = State::Taken(asked),
            State::Settled => (),
        }
    }

    fn is_settled(&self) -> bool {
        matches!(*self.0.lock(), State::Settled)
    }

    /// Answers the batches. The first answer counts.
    fn settle(&self, answer: Answer) {
        let before = std::mem::replace(&mut *self.0.lock(), State::Settled);
        if let State::HandedOver { asked, .. } | State::Taken(asked) = before {
            asked.tell(answer);
        }
    }
}

fn no_answer() -> Answer {
    Err(Refused::Unknown("raft stopped before it answered".to_owned()))
}

impl Asked {
    fn tell(self, answer: Answer) {
        let Self { batches, permit } = self;
        drop(permit); // the next entry need not wait until all are told
        let answers = divide(answer, batches.iter().map(|(count, _)| *count));
        for ((_, asker), answer) in batches.into_iter().zip(answers) {
            asker.tell(answer);
        }
    }
}

/// Proposes batches as one entry. Whoever applies it tells the askers.
async fn propose(node: &Node, batches: Vec<Batch>, permit: OwnedSemaphorePermit) -> Arc<Entry> {
    let mut commands = Vec::with_capacity(batches.iter().map(|batch| batch.commands.len()).sum());
    let mut asked = Asked { batches: Vec::with_capacity(batches.len()), permit };
    for batch in batches {
        asked.batches.push((batch.commands.len(), batch.asker));
        commands.extend(batch.commands);
    }
    let entry = Arc::new(Entry::new(asked));
    let settling = Arc::clone(&entry);
    let responder = Responder::new(move |result| settling.answered(result));
    let handed = node.raft.client_write_ff(wire::encode_batch(commands), Some(responder)).await;
    entry.handed_over(handed.is_ok());
    entry
}

/// What a result of openraft says.
fn answer(result: ClientWriteResult<TypeConfig>) -> Answer {
    match result {
        Ok(response) => Ok(response.data.0),
        Err(ClientWriteError::ForwardToLeader(forward)) => Err(not_leader(&forward)),
        Err(error) => Err(Refused::Unknown(error.to_string())),
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

impl Node {
    /// Has a batch of commands proposed, if this member leads.
    pub async fn hand_in(&self, batch: Batch) {
        if self.is_stopping() {
            return batch.asker.tell(Err(Refused::NotLeader(None)));
        }
        if let Err(mpsc::error::SendError(Coming::Batch(batch))) =
            self.leading.entries.0.send(Coming::Batch(batch)).await
        {
            batch.asker.tell(Err(Refused::Stopped));
        }
    }

    /// [`Node::hand_in`] for a task that waits for the answer.
    pub async fn propose_as_leader(&self, commands: Vec<Bytes>) -> Answer {
        let (asker, answer) = oneshot::channel();
        self.hand_in(Batch::new(commands, Asker::Waiting(asker))).await;
        answer.await.unwrap_or_else(|_| Err(Refused::Unknown("raft stopped before it answered".to_owned())))
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

    fn asked(batches: Vec<(usize, Asker)>) -> Arc<Entry> {
        let permit = Arc::new(Semaphore::new(1)).try_acquire_owned().expect("a permit");
        Arc::new(Entry::new(Asked { batches, permit }))
    }

    #[test]
    fn the_first_answer_counts_and_a_responder_that_is_dropped_is_one() {
        let (sender, mut first) = oneshot::channel();
        let told = Arc::new(Mutex::new(None));
        let tell = Arc::clone(&told);
        let second = Asker::Told(Box::new(move |answer| *tell.lock() = Some(answer)));
        let entry = asked(vec![(1, Asker::Waiting(sender)), (1, second)]);
        entry.settle(Ok(vec![reply("a"), reply("b")]));
        entry.settle(Err(Refused::Stopped));
        assert_eq!(first.try_recv(), Ok(Ok(vec![reply("a")])));
        assert_eq!(told.lock().take(), Some(Ok(vec![reply("b")])));

        // The core drops a responder that it never took, one that it had taken, and one that it takes this moment.
        for (taken, dropped_first) in [(false, true), (true, false), (true, true)] {
            let (sender, mut lost) = oneshot::channel();
            let entry = asked(vec![(1, Asker::Waiting(sender))]);
            let settling = Arc::clone(&entry);
            let responder = Responder::new(move |result| settling.answered(result));
            if dropped_first {
                drop(responder);
                assert!(!entry.is_settled());
                entry.handed_over(taken);
            } else {
                entry.handed_over(taken);
                assert!(!entry.is_settled());
                drop(responder);
            }
            match lost.try_recv() {
                Ok(Err(Refused::Unknown(_))) => assert!(taken),
                Ok(Err(Refused::Stopped)) => assert!(!taken),
                other => panic!("{other:?}"),
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_entry_that_is_not_applied_in_time_is_given_up_while_others_are_waited_for() {
        let (sender, late) = oneshot::channel();
        let (gone, _) = oneshot::channel();
        let (settled, entry) = (asked(vec![(1, Asker::Waiting(gone))]), asked(vec![(1, Asker::Waiting(sender))]));
        settled.settle(Ok(vec![reply("a")]));
        let began = clock::now();
        let mut under_way: VecDeque<_> =
            [settled, entry].map(|entry| (clock::now() + limits::COMMIT_TIMEOUT, entry)).into();
        expiring(&mut under_way, clock::sleep(limits::COMMIT_TIMEOUT * 2)).await;
        assert_eq!((under_way.len(), began.elapsed()), (0, limits::COMMIT_TIMEOUT * 2));
        assert!(matches!(late.await, Ok(Err(Refused::Unknown(reason))) if reason.starts_with("not committed within")));
    }

    fn batch(commands: usize) -> (Coming, oneshot::Receiver<Answer>) {
        let (answer, listener) = oneshot::channel();
        (Coming::Batch(Batch::new(vec![reply("x"); commands], Asker::Waiting(answer))), listener)
    }

    fn counts(batches: &[Batch]) -> Vec<usize> {
        batches.iter().map(|batch| batch.commands.len()).collect()
    }

    #[tokio::test]
    async fn an_entry_takes_whole_batches_up_to_its_bounds_and_none_that_nobody_waits_for() {
        let (coming, _listening): (Vec<_>, Vec<_>) =
            [1, limits::BATCH_COMMANDS - 2, 2, 3].map(batch).into_iter().unzip();
        let mut waiting: VecDeque<_> = coming.into();
        waiting.push_back(batch(4).0);
        assert_eq!(counts(&gather(&mut waiting, &mut true).await), [1, limits::BATCH_COMMANDS - 2]);
        assert_eq!(counts(&gather(&mut waiting, &mut true).await), [2, 3]);
        assert!(waiting.is_empty());
    }

    #[tokio::test]
    async fn who_fills_its_place_later_brings_all_it_has_and_has_every_second_turn() {
        let (entries, Maker(mut queue)) = channel();
        let mut own_first = true;
        let mut waiting = VecDeque::new();
        let mut listening = Vec::new();
        drop(entries.place().await); // it has gone
        for want in [[limits::BATCH_COMMANDS - 1], [limits::BATCH_COMMANDS]] {
            let (other, listener) = batch(limits::BATCH_COMMANDS);
            listening.push(listener);
            waiting.push_back(other);
            let place = entries.place().await.expect("it runs");
            waiting.extend(std::iter::from_fn(|| queue.try_recv().ok()));
            waiting.retain(|coming| !matches!(coming, Coming::Later(asked) if asked.is_closed()));
            let (own, listener) = batch(limits::BATCH_COMMANDS - 1);
            listening.push(listener);
            let Coming::Batch(own) = own else { unreachable!() };
            let fill = async {
                let _ = place.await.expect("told where").send(own);
            };
            let mut gathering = Box::pin(gather(&mut waiting, &mut own_first));
            let batches = tokio::select! {
                batches = &mut gathering => batches,
                () = fill => gathering.await,
            };
            assert_eq!(counts(&batches), want);
        }
    }
}
