//! What lies between the hub and the reader of one watch: a bounded queue and a position.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use pintle_proto::mvccpb::Event;
use prost::Message;
use tokio::sync::Notify;

use super::{Selector, WatchBatch, WatchError};
use crate::limits;

/// Where a subscription stands. Everything before its revision was queued or delivered.
#[derive(Clone, Debug)]
pub(crate) enum Position {
    /// The hub queues what matches, from this revision on.
    Synced {
        from: i64,
    },
    /// The feed must read from this revision on.
    Behind {
        next: i64,
    },
    Ended(WatchError),
}

pub(crate) struct Subscription {
    pub id: u64,
    pub selector: Selector,
    /// The start revision asked for; 0 for none.
    pub start: i64,
    ready: Arc<Ready>,
    queue: Mutex<Queue>,
}

pub(crate) struct Queue {
    batches: VecDeque<WatchBatch>,
    bytes: usize,
    pub position: Position,
    /// True while the subscription stands in its feed's ready list.
    listed: bool,
}

/// What a feed finds when it looks at a ready subscription.
pub(crate) enum Taken {
    Batch(WatchBatch),
    Behind,
    Ended(WatchError),
    Nothing,
}

impl Subscription {
    pub fn new(id: u64, selector: Selector, start: i64, position: Position, ready: Arc<Ready>) -> Arc<Self> {
        let queue = Queue { batches: VecDeque::new(), bytes: 0, position, listed: false };
        Arc::new(Self { id, selector, start, ready, queue: Mutex::new(queue) })
    }

    pub fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock()
    }

    /// Puts it into the ready list unless it is there.
    pub fn list(self: &Arc<Self>, queue: &mut Queue) {
        if !queue.listed {
            queue.listed = true;
            self.ready.push(Arc::clone(self));
        }
    }

    /// Puts back what was taken off the ready list without being looked at.
    pub fn relist(self: &Arc<Self>) {
        let mut queue = self.lock();
        queue.listed = false;
        self.list(&mut queue);
    }

    /// Queues one revision's events from the hub; a full queue makes the subscription fall behind.
    pub fn offer(self: &Arc<Self>, revision: i64, events: Vec<Arc<Event>>) {
        let mut queue = self.lock();
        let Position::Synced { from } = queue.position else { return };
        if revision < from || events.is_empty() {
            return;
        }
        if queue.is_full() {
            queue.position = Position::Behind { next: revision };
        } else {
            queue.push(WatchBatch { revision, events });
        }
        self.list(&mut queue);
    }

    /// Takes what is queued, several revisions together up to a bound and to `within`, and stays listed if something is left.
    pub fn take(self: &Arc<Self>, within: i64) -> Taken {
        let mut queue = self.lock();
        queue.listed = false;
        let taken = queue.take(within);
        let pending = !queue.batches.is_empty() || !matches!(queue.position, Position::Synced { .. });
        if pending && matches!(taken, Taken::Batch(_)) {
            self.list(&mut queue);
        }
        taken
    }

    /// Hands over what a history read found: everything before `next`.
    pub fn deliver(self: &Arc<Self>, batch: WatchBatch, next: i64) {
        let mut queue = self.lock();
        if let Position::Ended(_) = queue.position {
            return;
        }
        if !batch.events.is_empty() {
            queue.push(batch);
        }
        queue.position = Position::Behind { next };
        self.list(&mut queue);
    }

    pub fn end(self: &Arc<Self>, error: WatchError) {
        let mut queue = self.lock();
        queue.position = Position::Ended(error);
        self.list(&mut queue);
    }
}

impl Queue {
    pub fn is_full(&self) -> bool {
        self.batches.len() >= limits::WATCHER_QUEUE_REVISIONS || self.bytes >= limits::WATCHER_QUEUE_BYTES
    }

    pub fn push(&mut self, batch: WatchBatch) {
        self.bytes += size(&batch);
        self.batches.push_back(batch);
    }

    /// The first revision that waits to be taken.
    pub fn first(&self) -> Option<i64> {
        self.batches.front().map(|batch| batch.revision)
    }

    fn take(&mut self, within: i64) -> Taken {
        let Some(mut batch) = self.batches.pop_front() else {
            return match &self.position {
                Position::Synced { .. } => Taken::Nothing,
                Position::Behind { .. } => Taken::Behind,
                Position::Ended(error) => Taken::Ended(error.clone()),
            };
        };
        let mut bytes = size(&batch);
        self.bytes = self.bytes.saturating_sub(bytes);
        for _ in 1..limits::WATCH_BATCH_REVISIONS {
            let fits =
                |next: &mut WatchBatch| next.revision <= within && bytes + size(next) <= limits::WATCH_BATCH_BYTES;
            let Some(more) = self.batches.pop_front_if(fits) else { break };
            let added = size(&more);
            bytes += added;
            self.bytes = self.bytes.saturating_sub(added);
            batch.revision = more.revision;
            batch.events.extend(more.events);
        }
        Taken::Batch(batch)
    }
}

fn size(batch: &WatchBatch) -> usize {
    batch.events.iter().map(|event| event.encoded_len()).sum()
}

/// The subscriptions of one feed that have something to do.
#[derive(Default)]
pub(crate) struct Ready {
    list: Mutex<VecDeque<Arc<Subscription>>>,
    notify: Notify,
}

impl Ready {
    fn push(&self, subscription: Arc<Subscription>) {
        self.list.lock().push_back(subscription);
        self.notify.notify_one();
    }

    /// Waits for one. Dropping the future loses nothing. For one caller at a time.
    pub async fn pop(&self) -> Arc<Subscription> {
        loop {
            let next = self.list.lock().pop_front();
            match next {
                Some(subscription) => return subscription,
                None => self.notify.notified().await,
            }
        }
    }

    pub fn pop_now(&self) -> Option<Arc<Subscription>> {
        self.list.lock().pop_front()
    }
}
