//! One watcher: a bounded queue that the cache fills and a stream that a connection empties.
//!
//! Always holds: every event of the watcher's interest after its start is in the queue or was taken, in order, once (I8);
//! or the queue has ended and says so. A watcher that falls [`limits::WATCHER_EVENTS`] or [`limits::WATCHER_BYTES`] behind
//! is ended, not waited for.

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
    /// Events at the front that the queue started with; the bounds do not count them.
    initial: usize,
    /// Object text kept by the other events.
    bytes: usize,
    ended: bool,
}

impl Inner {
    fn has_room_for(&self, event: &Event) -> bool {
        let waiting = self.events.len() - self.initial;
        // One event is always taken: the client would come back for it.
        waiting == 0 || (waiting < limits::WATCHER_EVENTS && self.bytes + event.size() <= limits::WATCHER_BYTES)
    }

    fn pop(&mut self) -> Option<Arc<Event>> {
        let event = self.events.pop_front()?;
        if self.initial > 0 {
            self.initial -= 1;
        } else {
            self.bytes -= event.size();
        }
        Some(event)
    }
}

impl Queue {
    /// Starts with the events between the watcher's start and now, which are bounded by the history they come from.
    pub fn starting_with(events: Vec<Arc<Event>>) -> Arc<Self> {
        let inner = Inner { initial: events.len(), events: events.into(), ..Inner::default() };
        Arc::new(Self { inner: Mutex::new(inner), wake: Notify::new() })
    }

    /// False once the queue has ended, so that the cache forgets it.
    pub fn push(&self, event: &Arc<Event>) -> bool {
        let mut inner = self.inner.lock();
        if inner.ended {
            return false;
        }
        if inner.has_room_for(event) {
            inner.bytes += event.size();
            inner.events.push_back(Arc::clone(event));
        } else {
            inner.ended = true;
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
        match inner.pop() {
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

#[cfg(test)]
mod tests {
    use pintle_api::kinds;
    use serde_json::json;

    use super::super::state::Change;
    use super::super::{Object, layout};
    use super::*;

    fn event(revision: i64, bytes: usize) -> Arc<Event> {
        let slot = layout::slot(kinds::by_gvk("", "v1", "ConfigMap").expect("served")).expect("stored");
        let tree = json!({"metadata": {"namespace": "a", "name": "m"}, "data": {"text": "x".repeat(bytes)}});
        let object = Arc::new(Object::from_tree(slot, "a/m", revision, tree).expect("an object"));
        Arc::new(Event { change: Change::Added, revision, object, previous: None })
    }

    /// How many events of this size a queue takes before it ends.
    fn room(queue: &Queue, bytes: usize) -> usize {
        let event = event(1, bytes);
        (0..=limits::WATCHER_EVENTS * 2).take_while(|_| queue.push(&event)).count()
    }

    #[test]
    fn a_watcher_that_does_not_read_is_ended_by_events_or_by_bytes() {
        assert_eq!(room(&Queue::default(), 10), limits::WATCHER_EVENTS);
        let large = 1024 * 1024;
        let count = room(&Queue::default(), large);
        assert!(count > 1 && count * large <= limits::WATCHER_BYTES, "{count}");
        assert_eq!(room(&Queue::default(), limits::WATCHER_BYTES), 1, "one is always taken");
    }

    #[test]
    fn what_is_read_makes_room_and_the_beginning_does_not_count() {
        let queue = Queue::starting_with(vec![event(1, 10); limits::RING_EVENTS]);
        assert_eq!(room(&queue, 10), limits::WATCHER_EVENTS);

        let queue = Queue::starting_with(vec![event(1, 1024)]);
        let large = event(2, limits::WATCHER_BYTES / 2);
        for _ in 0..10 {
            assert!(queue.push(&large));
            let mut inner = queue.inner.lock();
            while inner.pop().is_some() {}
            assert_eq!(inner.bytes, 0);
        }
    }
}
