//! The requests of one connection, run by the task of the connection.
//!
//! A task for each request would cost a spawn and a wake more, and a client that sends thousands at once would have thousands of turns
//! for each one of somebody else. Ranges are read and encoded elsewhere (`crate::readers`); JSON and large answers of transactions are made
//! here, and keep the other requests of the same connection waiting.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::StreamExt;
use futures::future::{BoxFuture, FutureExt};
use futures::stream::FuturesUnordered;
use hyper::rt::Executor;
use parking_lot::Mutex;

use super::opening::Pace;

/// Where the protocol puts the requests that came.
#[derive(Clone, Default)]
pub(super) struct Streams {
    came: Arc<Mutex<Vec<BoxFuture<'static, ()>>>>,
}

impl<F> Executor<F> for Streams
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, request: F) {
        let request = AssertUnwindSafe(Paced(request.boxed())).catch_unwind().map(|ended| {
            if ended.is_err() {
                tracing::error!("a request panicked"); // the others of the connection go on
            }
        });
        self.came.lock().push(request.boxed());
    }
}

/// A request that is not looked at once the connection has done its part of the runtime's work: it would only look in vain, and so would
/// all after it.
struct Paced(BoxFuture<'static, ()>);

impl Future for Paced {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if !tokio::task::coop::has_budget_remaining() {
            context.waker().wake_by_ref(); // after two such the connection lets others run
            return Poll::Pending;
        }
        self.0.poll_unpin(context)
    }
}

/// A connection with its requests, which end with it.
pub(super) struct Served<C> {
    pub connection: C,
    streams: Streams,
    running: FuturesUnordered<BoxFuture<'static, ()>>,
    pace: Pace,
}

impl<C> Served<C> {
    /// `connection` puts its requests into `streams`, and reads in turns.
    pub fn new(connection: C, streams: Streams, pace: Pace) -> Self {
        Self { connection, streams, running: FuturesUnordered::new(), pace }
    }
}

impl<C: Future + Unpin> Future for Served<C> {
    type Output = C::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<C::Output> {
        let this = self.get_mut();
        this.pace.begin();
        if let Poll::Ready(ended) = this.connection.poll_unpin(context) {
            this.pace.end();
            return Poll::Ready(ended);
        }
        this.running.extend(this.streams.came.lock().drain(..));
        // What they answer wakes the connection, which is looked at again once others had their turn.
        while let Poll::Ready(Some(())) = this.running.poll_next_unpin(context) {}
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::future::pending;
    use pintle_base::clock;
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn requests_of_a_connection_go_on_beside_each_other_and_end_with_it() {
        let (streams, (end, ended)) = (Streams::default(), oneshot::channel::<()>());
        let (answer, answered) = oneshot::channel();
        let (gone, held) = oneshot::channel::<()>();
        streams.execute(async { panic!("a request that panics") });
        streams.execute(async move {
            clock::sleep(Duration::from_secs(1)).await;
            answer.send(7).unwrap();
        });
        streams.execute(async move {
            pending::<()>().await;
            drop(gone);
        });
        let connection = tokio::spawn(Served::new(ended, streams.clone(), Pace::default()));
        assert_eq!(answered.await, Ok(7));
        end.send(()).unwrap();
        connection.await.unwrap().unwrap();
        assert!(held.await.is_err(), "who waited for nothing ended with the connection");
    }

    #[tokio::test]
    async fn many_that_are_ready_at_once_let_others_run_in_between() {
        let streams = Streams::default();
        let (answered, all) = (Arc::new(Mutex::new(0)), 10_000);
        let requests = Arc::new(tokio::sync::Semaphore::new(all));
        for _ in 0..all {
            let (answered, requests) = (Arc::clone(&answered), Arc::clone(&requests));
            streams.execute(async move {
                requests.acquire().await.unwrap().forget(); // takes of the budget
                *answered.lock() += 1;
            });
        }
        let mut served = Box::pin(Served::new(Box::pin(pending::<()>()), streams, Pace::default()));
        let mut turns = 0;
        while *answered.lock() < all {
            turns += 1;
            assert!(served.as_mut().now_or_never().is_none());
            tokio::task::yield_now().await; // a new budget
        }
        assert!(turns > 20, "{turns} turns");
    }
}
