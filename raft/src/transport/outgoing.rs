//! What a leader sends to one follower over one stream: openraft's requests in their order, except that one without entries, which only says
//! that more is committed, waits for a moment for the next and is left out if that comes.
//!
//! Always holds: what is left out is followed by a request of the same leader that says at least as much, whose answer openraft takes for
//! both; nothing is left out at the end. The stream ends after some messages, or after some seconds when there is nothing to be said, and
//! openraft opens the next: while one is open, everything after its first entry counts as in use and the log is not purged.

use std::sync::Arc;

use futures::{Stream, StreamExt, stream};
use openraft::raft::AppendEntriesRequest;
use pintle_base::clock::{self, Instant};
use tokio::sync::Notify;

use crate::core::TypeConfig;
use crate::limits;

type Request = AppendEntriesRequest<TypeConfig>;

/// The requests of `input` for one stream. `hurry` sends what waits.
pub(super) fn outgoing<S>(input: S, hurry: Arc<Notify>) -> impl Stream<Item = Request> + Send + 'static
where
    S: Stream<Item = Request> + Send + Unpin + 'static,
{
    let end = clock::now() + limits::STREAM_AGE;
    // openraft's stream must not be asked again once it has ended, which may be while a request is held.
    let outgoing = Outgoing { input: input.fuse(), hurry, end, left: limits::STREAM_REQUESTS, next: None };
    stream::unfold(outgoing, |mut outgoing| async move {
        let request = outgoing.request().await?;
        Some((request, outgoing))
    })
}

struct Outgoing<S> {
    input: S,
    hurry: Arc<Notify>,
    end: Instant,
    left: usize,
    /// Taken from the input, and goes next.
    next: Option<Request>,
}

impl<S: Stream<Item = Request> + Unpin> Outgoing<S> {
    async fn request(&mut self) -> Option<Request> {
        let first = match self.next.take() {
            Some(request) => request,
            None => {
                self.left = self.left.checked_sub(1)?;
                clock::timeout_at(self.end, self.input.next()).await.ok()??
            }
        };
        if !first.entries.is_empty() {
            return Some(first);
        }
        let deadline = clock::now() + limits::COMMIT_LINGER;
        let mut held = first;
        loop {
            let next = tokio::select! {
                biased;
                next = self.input.next() => next,
                () = self.hurry.notified() => None,
                () = clock::sleep_until(deadline) => None,
            };
            match next {
                None => return Some(held),
                Some(next) if !covers(&next, &held) => {
                    self.next = Some(next);
                    return Some(held);
                }
                Some(next) if next.entries.is_empty() => held = next,
                Some(next) => return Some(next),
            }
        }
    }
}

/// Whether who gets `next` need not get `held`, which has no entries.
fn covers(next: &Request, held: &Request) -> bool {
    next.vote == held.vote && next.prev_log_id == held.prev_log_id && next.leader_commit >= held.leader_commit
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::{Entry, Vote, raft_log_id};
    use crate::machine::LogId;
    use openraft::EntryPayload;
    use std::time::Duration;
    use tokio::sync::mpsc;
    use tokio_stream::wrappers::UnboundedReceiverStream;

    fn request(previous: u64, entries: u64, commit: u64) -> Request {
        let id = |index| raft_log_id(LogId { term: 1, index });
        let entry = |index| Entry { log_id: id(index), payload: EntryPayload::Blank };
        Request {
            vote: Vote::new_committed(1, 1),
            prev_log_id: Some(id(previous)),
            entries: (previous + 1..=previous + entries).map(entry).collect(),
            leader_commit: Some(id(commit)),
        }
    }

    /// Number of entries and commit index of what is sent, and after how many milliseconds.
    async fn sent(stream: &mut (impl Stream<Item = Request> + Unpin)) -> Option<(usize, u64, u128)> {
        let began = clock::now();
        let request = stream.next().await?;
        Some((request.entries.len(), request.leader_commit.map_or(0, |id| id.index), began.elapsed().as_millis()))
    }

    fn stream(hurry: &Arc<Notify>) -> (mpsc::UnboundedSender<Request>, impl Stream<Item = Request> + Unpin + use<>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (sender, Box::pin(outgoing(UnboundedReceiverStream::new(receiver), Arc::clone(hurry))))
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_committed_goes_with_the_next_entry_or_soon() {
        let hurry = Arc::default();
        let (input, mut stream) = stream(&hurry);
        let put = |request| input.send(request).expect("it listens");
        put(request(1, 1, 1));
        assert_eq!(sent(&mut stream).await, Some((1, 1, 0)), "entries do not wait");
        put(request(2, 0, 2));
        put(request(2, 0, 2));
        put(request(2, 2, 2));
        assert_eq!(sent(&mut stream).await, Some((2, 2, 0)));
        put(request(4, 0, 3));
        put(request(4, 0, 4));
        let (entries, commit, after) = sent(&mut stream).await.expect("a request");
        assert_eq!((entries, commit), (0, 4));
        assert!((1..=3).contains(&after), "{after}");
        put(request(4, 0, 5));
        let (found, ()) = tokio::join!(sent(&mut stream), async { hurry.notify_waiters() });
        assert_eq!(found, Some((0, 5, 0)));
    }

    /// As openraft's: it panics if it is asked once more.
    #[tokio::test(start_paused = true)]
    async fn an_input_that_has_ended_is_not_asked_again() {
        let one = stream::unfold(Some(request(2, 0, 2)), |next| async move { Some((next?, None)) });
        let mut stream = Box::pin(outgoing(Box::pin(one), Arc::default()));
        assert_eq!(sent(&mut stream).await, Some((0, 2, 0)));
        assert_eq!(sent(&mut stream).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_left_out_that_the_next_does_not_say() {
        let (input, mut stream) = stream(&Arc::default());
        let put = |request| input.send(request).expect("it listens");
        put(request(2, 0, 2));
        put(request(1, 3, 2)); // it goes back
        assert_eq!(sent(&mut stream).await, Some((0, 2, 0)));
        assert_eq!(sent(&mut stream).await, Some((3, 2, 0)));
        put(request(4, 0, 3));
        drop(input);
        assert_eq!(sent(&mut stream).await, Some((0, 3, 0)));
        assert_eq!(sent(&mut stream).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_ends_by_age_and_by_number_and_with_nothing_held() {
        let (input, mut stream) = stream(&Arc::default());
        clock::sleep(limits::STREAM_AGE - Duration::from_micros(500)).await;
        input.send(request(1, 0, 1)).expect("it listens");
        assert!(sent(&mut stream).await.is_some(), "the last is sent although its time is over meanwhile");
        assert_eq!(sent(&mut stream).await, None);
        let (input, mut stream) = self::stream(&Arc::default());
        for index in 0..=limits::STREAM_REQUESTS as u64 {
            input.send(request(index, 1, index)).expect("it listens");
        }
        let mut count = 0;
        while sent(&mut stream).await.is_some() {
            count += 1;
        }
        assert_eq!(count, limits::STREAM_REQUESTS);
    }
}
