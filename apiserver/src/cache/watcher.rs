//! One watcher: a bounded queue that the cache fills and a stream that a connection empties.
//!
//! Always holds: every event of the watcher's interest after its start is in the queue or was taken, in order, once (I8);
//! or the queue has ended and says so. A watcher that falls [`limits::WATCHER_EVENTS`] behind is ended, not waited for.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::Cache;
use super::layout::Slot;
use super::state::{Event, Interest};
use crate::limits;

#[derive(Debug, Default)]
pub(super) struct Queue {
    inner: Mutex<Inner>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    events: VecDeque<Arc<Event>>,
    ended: bool,
}

impl Queue {
    /// Starts with the events between the watcher's start and now; these do not count against the bound.
    pub fn starting_with(events: Vec<Arc<Event>>) -> Arc<Self> {
        Arc::new(Self { inner: Mutex::new(Inner { events: events.into(), ended: false }), wake: Notify::new() })
    }

    /// False once the queue has ended, so that the cache forgets it.
    pub fn push(&self, event: &Arc<Event>) -> bool {
        let mut inner = self.inner.lock();
        if inner.ended {
            return false;
        }
        if inner.events.len() >= limits::WATCHER_EVENTS {
            inner.ended = true;
        } else {
            inner.events.push_back(Arc::clone(event));
        }
        let open = !inner.ended;
        drop(inner);
        self.wake.notify_one();
        open
    }

    pub fn end(&self) {
        self.inner.lock().ended = true;
        self.wake.notify_one();
    }
}

/// Unregisters itself when dropped.
#[derive(Debug)]
pub struct Watcher {
    pub(super) queue: Arc<Queue>,
    pub(super) cache: Weak<Cache>,
    pub(super) slot: Slot,
    pub(super) interest: Interest,
}

/// What a poll of a watcher gives.
#[derive(Debug)]
pub enum Next {
    Event(Arc<Event>),
    /// Nothing waits; everything up to this revision has been delivered.
    Idle {
        revision: i64,
    },
    /// The watcher was too slow, or the cache starts anew. The client resumes from its last revision.
    Ended,
}

impl Watcher {
    /// Takes what is there, without waiting.
    pub fn take(&self) -> Next {
        // The revision is read first: whatever it covers is already in the queue.
        let revision = self.cache.upgrade().map_or(0, |cache| cache.revision());
        let mut inner = self.queue.inner.lock();
        match inner.events.pop_front() {
            Some(event) => Next::Event(event),
            None if inner.ended => Next::Ended,
            None => Next::Idle { revision },
        }
    }

    /// Waits until [`Watcher::take`] has something new. Cancel-safe.
    pub async fn ready(&self) {
        loop {
            let wake = self.queue.wake.notified();
            {
                let inner = self.queue.inner.lock();
                if !inner.events.is_empty() || inner.ended {
                    return;
                }
            }
            wake.await;
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.queue.end();
        if let Some(cache) = self.cache.upgrade() {
            cache.unregister(self.slot, &self.interest, &self.queue);
        }
    }
}
