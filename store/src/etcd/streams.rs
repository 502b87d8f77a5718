//! The requests of one connection, run by the task of the connection.
//!
//! A task for each request would cost a spawn and a wake more, and a client that sends thousands at once would have thousands of turns
//! for each one of somebody else. What takes long, reads above all, does not run here (`crate::readers`).

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::StreamExt;
use futures::future::{BoxFuture, FutureExt};
use futures::stream::FuturesUnordered;
use hyper::rt::Executor;
use parking_lot::Mutex;

use super::opening::Turn;

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
        self.came.lock().push(request.boxed());
    }
}

/// A connection with its requests, which end with it.
pub(super) struct Served<C> {
    pub connection: C,
    streams: Streams,
    running: FuturesUnordered<BoxFuture<'static, ()>>,
    turn: Turn,
}

impl<C> Served<C> {
    /// `connection` puts its requests into `streams`, and reads in turns.
    pub fn new(connection: C, streams: Streams, turn: Turn) -> Self {
        Self { connection, streams, running: FuturesUnordered::new(), turn }
    }
}

impl<C: Future + Unpin> Future for Served<C> {
    type Output = C::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<C::Output> {
        let this = self.get_mut();
        this.turn.begin();
        if let Poll::Ready(ended) = this.connection.poll_unpin(context) {
            return Poll::Ready(ended);
        }
        this.running.extend(this.streams.came.lock().drain(..));
        // What they answer wakes the connection, which is looked at again once others had their turn.
        while let Poll::Ready(Some(())) = this.running.poll_next_unpin(context) {}
        Poll::Pending
    }
}
