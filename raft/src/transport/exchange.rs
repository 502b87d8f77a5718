//! The asking side of `Exchange`: short questions to one peer over one stream, many under way at once. [`super::client`] says what is asked,
//! [`super::server`] answers.
//!
//! Always holds: a question is answered at most once, and fails once the stream that carried it has ended. What was never handed to a
//! stream fails with the error of its connection, which says whether nothing was sent.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use pintle_proto::raft_v1 as pb;
use pintle_proto::raft_v1::answer::Outcome;
use pintle_proto::raft_v1::ask::Question;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::client::Client;
use crate::limits;

/// All messages with one question's id.
type Answer = Vec<Outcome>;

/// Questions to one peer over one connection.
pub(super) struct Exchange {
    client: Client,
    /// The stream in use; a new one is opened by whoever finds that it has ended.
    open: tokio::sync::Mutex<Option<Arc<Open>>>,
}

impl Exchange {
    pub fn new(client: Client) -> Self {
        Self { client, open: tokio::sync::Mutex::new(None) }
    }

    /// Asks; the caller limits the time. `hello` is sent where a stream has to be opened.
    pub async fn ask(&self, hello: impl FnOnce() -> pb::Header, question: Question) -> Result<Answer, Status> {
        let open = self.open(hello).await?;
        let (id, answer) = open.expect();
        let _expected = Expected { open: &open, id };
        if open.asks.send(pb::Ask { id, question: Some(question) }).await.is_err() {
            return Err(open.ended());
        }
        answer.await.map_err(|_| open.ended())
    }

    async fn open(&self, hello: impl FnOnce() -> pb::Header) -> Result<Arc<Open>, Status> {
        let mut current = self.open.lock().await;
        if let Some(open) = current.as_ref().filter(|open| !open.is_over()) {
            return Ok(Arc::clone(open));
        }
        let (asks, receiver) = mpsc::channel(limits::ASKS_UNDER_WAY);
        let first = pb::Ask { id: 0, question: Some(Question::Hello(hello())) };
        asks.try_send(first).map_err(|_| Status::internal("a new stream has no room"))?;
        let answers = self.client.clone().exchange(ReceiverStream::new(receiver)).await?.into_inner();
        let expected = Arc::new(Mutex::new(Waiting::default()));
        // It must not hold the sending half: the stream ends once nobody asks any more.
        tokio::spawn(listen(answers, Arc::clone(&expected)));
        let open = Arc::new(Open { asks, next: AtomicU64::new(1), expected });
        *current = Some(Arc::clone(&open));
        Ok(open)
    }
}

/// A stream.
struct Open {
    asks: mpsc::Sender<pb::Ask>,
    next: AtomicU64,
    expected: Arc<Mutex<Waiting>>,
}

/// Who waits for which answer, with the messages that have come.
#[derive(Default)]
struct Waiting {
    answers: HashMap<u64, (oneshot::Sender<Answer>, Answer)>,
    /// Why the stream has ended.
    ended: Option<Status>,
}

impl Open {
    fn is_over(&self) -> bool {
        self.asks.is_closed() || self.expected.lock().ended.is_some()
    }

    fn expect(&self) -> (u64, oneshot::Receiver<Answer>) {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = oneshot::channel();
        let mut expected = self.expected.lock();
        if expected.ended.is_none() {
            expected.answers.insert(id, (sender, Vec::with_capacity(1)));
        }
        (id, answer)
    }

    fn ended(&self) -> Status {
        let lost = || Status::unavailable("the stream to the peer has ended");
        self.expected.lock().ended.clone().unwrap_or_else(lost)
    }
}

/// Hands answers out until the stream ends.
async fn listen(mut answers: Streaming<pb::Answer>, expected: Arc<Mutex<Waiting>>) {
    let why = loop {
        match answers.message().await {
            Ok(Some(answer)) => expected.lock().hand_out(answer),
            Ok(None) => break Status::unavailable("the peer ended the stream"),
            Err(status) => break status,
        }
    };
    let mut expected = expected.lock();
    expected.ended = Some(why);
    expected.answers.clear();
}

impl Waiting {
    fn hand_out(&mut self, answer: pb::Answer) {
        let Some((_, outcomes)) = self.answers.get_mut(&answer.id) else { return };
        outcomes.extend(answer.outcome);
        if !answer.more
            && let Some((asker, outcomes)) = self.answers.remove(&answer.id)
        {
            // It stopped waiting this moment.
            let _ = asker.send(outcomes);
        }
    }
}

/// Whoever does not wait any more is not kept in mind.
struct Expected<'a> {
    open: &'a Open,
    id: u64,
}

impl Drop for Expected<'_> {
    fn drop(&mut self) {
        self.open.expected.lock().answers.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open() -> (Open, mpsc::Receiver<pb::Ask>) {
        let (asks, receiver) = mpsc::channel(1);
        (Open { asks, next: AtomicU64::new(1), expected: Arc::default() }, receiver)
    }

    fn index(id: u64, index: u64, more: bool) -> pb::Answer {
        pb::Answer { id, more, outcome: Some(Outcome::Index(index)) }
    }

    #[test]
    fn answers_find_who_asked_in_any_order_and_whole() {
        let (open, _asks) = open();
        let ((first, mut one), (second, mut two)) = (open.expect(), open.expect());
        let hand_out = |answer| open.expected.lock().hand_out(answer);
        hand_out(index(second, 7, true));
        assert!(two.try_recv().is_err(), "more is to come");
        hand_out(index(first, 1, false));
        hand_out(index(99, 9, false)); // nobody asked
        hand_out(index(second, 8, false));
        assert_eq!(one.try_recv(), Ok(vec![Outcome::Index(1)]));
        assert_eq!(two.try_recv(), Ok(vec![Outcome::Index(7), Outcome::Index(8)]));
        assert!(open.expected.lock().answers.is_empty());
    }

    #[test]
    fn nobody_is_kept_in_mind_who_does_not_wait_or_whose_stream_has_ended() {
        let (open, asks) = open();
        let (id, _) = open.expect();
        drop(Expected { open: &open, id });
        assert!(open.expected.lock().answers.is_empty() && !open.is_over());
        open.expected.lock().ended = Some(Status::unavailable("gone"));
        let (_, mut answer) = open.expect();
        assert!(matches!(answer.try_recv(), Err(oneshot::error::TryRecvError::Closed)));
        assert!(open.is_over());
        assert_eq!(open.ended().message(), "gone");
        drop(asks);
    }
}
