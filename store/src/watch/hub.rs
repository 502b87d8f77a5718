//! The hub: hands each applied revision to the subscriptions it concerns, and remembers the last ones.
//!
//! Always holds: `published` is the last revision handed out; a synced subscription has everything up to it queued or
//! delivered. Locks are taken hub first, then queue.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use pintle_proto::mvccpb::Event;

use super::index::Index;
use super::queue::{Position, Ready, Subscription};
use super::{Revision, Selector, WatchBatch, WatchError};
use crate::limits;

pub(crate) struct Hub {
    inner: Mutex<Inner>,
}

struct Inner {
    published: i64,
    /// The last revisions, without gaps; may be empty.
    ring: VecDeque<Arc<Revision>>,
    ring_bytes: usize,
    index: Index,
    next_id: u64,
    stopped: bool,
}

/// What a subscription that is behind has to do.
pub(crate) enum Rejoin {
    /// Nothing: its queue is filled again by the hub, or from the ring and it will ask again.
    Done,
    /// Read the history from here on.
    History { next: i64 },
}

impl Hub {
    pub fn new(published: i64) -> Self {
        let inner = Inner {
            published,
            ring: VecDeque::new(),
            ring_bytes: 0,
            index: Index::default(),
            next_id: 1,
            stopped: false,
        };
        Self { inner: Mutex::new(inner) }
    }

    /// Adds a subscription and returns it with the revision it was created at.
    pub fn subscribe(
        &self,
        selector: Selector,
        start: i64,
        compacted: i64,
        ready: Arc<Ready>,
    ) -> Result<(Arc<Subscription>, i64), WatchError> {
        if start < 0 {
            return Err(WatchError::Compacted { compact_revision: 0 });
        }
        let mut inner = self.inner.lock();
        if inner.stopped {
            return Err(WatchError::Stopped);
        }
        if inner.index.len() >= limits::WATCHERS {
            return Err(WatchError::TooMany);
        }
        let position = match start {
            0 => Position::Synced { from: inner.published + 1 },
            start if start < compacted => Position::Ended(WatchError::Compacted { compact_revision: compacted }),
            start if start > inner.published => Position::Synced { from: start },
            next => Position::Behind { next },
        };
        let id = inner.next_id;
        inner.next_id += 1;
        let synced = matches!(position, Position::Synced { .. });
        let subscription = Subscription::new(id, selector, start, position, ready);
        inner.index.insert(Arc::clone(&subscription));
        if !synced {
            let mut queue = subscription.lock();
            subscription.list(&mut queue);
        }
        Ok((subscription, inner.published))
    }

    pub fn unsubscribe(&self, subscription: &Subscription) {
        self.inner.lock().index.remove(subscription);
    }

    /// Hands out what an entry changed. Called by the apply thread, after the entry was written.
    pub fn publish(&self, revisions: Vec<Arc<Revision>>) {
        let mut inner = self.inner.lock();
        for revision in revisions {
            assert!(revision.revision > inner.published, "revisions are published in order");
            inner.published = revision.revision;
            inner.hand_out(&revision);
            inner.remember(revision);
        }
    }

    /// The state was replaced by one at `published`: nobody knows what happened in between, all read history.
    pub fn reset(&self, published: i64) {
        let mut inner = self.inner.lock();
        let before = inner.published;
        inner.ring.clear();
        inner.ring_bytes = 0;
        inner.published = published;
        for subscription in inner.index.all() {
            let mut queue = subscription.lock();
            if let Position::Synced { from } = queue.position {
                let next = from.max(before + 1);
                if next <= published {
                    queue.position = Position::Behind { next };
                    subscription.list(&mut queue);
                }
            }
        }
    }

    /// Ends every watch.
    pub fn stop(&self) {
        let mut inner = self.inner.lock();
        inner.stopped = true;
        for subscription in inner.index.all() {
            subscription.end(WatchError::Stopped);
        }
    }

    /// Brings a subscription that is behind up to date from the ring, if the ring reaches back far enough.
    pub fn rejoin(&self, subscription: &Arc<Subscription>) -> Rejoin {
        let inner = self.inner.lock();
        let mut queue = subscription.lock();
        let Position::Behind { mut next } = queue.position else { return Rejoin::Done };
        if next <= inner.published && inner.ring.front().is_none_or(|first| first.revision > next) {
            return Rejoin::History { next };
        }
        let skipped = inner.ring.partition_point(|revision| revision.revision < next);
        for revision in inner.ring.range(skipped..) {
            if queue.is_full() {
                break;
            }
            let events = subscription.selector.select(revision);
            if !events.is_empty() {
                queue.push(WatchBatch { revision: revision.revision, events });
            }
            next = revision.revision + 1;
        }
        let synced = next > inner.published;
        queue.position = if synced { Position::Synced { from: next } } else { Position::Behind { next } };
        if !synced || queue.first().is_some() {
            subscription.list(&mut queue);
        }
        Rejoin::Done
    }

    /// The revision up to which all of `subscriptions` have everything queued; `None` if one is behind or has not begun.
    pub fn progress<'a>(&self, mut subscriptions: impl Iterator<Item = &'a Arc<Subscription>>) -> Option<i64> {
        let inner = self.inner.lock();
        let synced = |subscription: &Arc<Subscription>| {
            subscription.start <= inner.published && matches!(subscription.lock().position, Position::Synced { .. })
        };
        subscriptions.all(synced).then_some(inner.published)
    }

    /// Watches that are open.
    pub fn len(&self) -> usize {
        self.inner.lock().index.len()
    }
}

impl Inner {
    fn hand_out(&self, revision: &Revision) {
        if let [only] = revision.events.as_slice() {
            self.index.matching(only.key(), |subscription| {
                if let Some(event) = subscription.selector.pick(only) {
                    subscription.offer(revision.revision, vec![event]);
                }
            });
            return;
        }
        let mut picked: BTreeMap<u64, (Arc<Subscription>, Vec<Arc<Event>>)> = BTreeMap::new();
        for event in &revision.events {
            self.index.matching(event.key(), |subscription| {
                if let Some(event) = subscription.selector.pick(event) {
                    let entry = picked.entry(subscription.id);
                    entry.or_insert_with(|| (Arc::clone(subscription), Vec::new())).1.push(event);
                }
            });
        }
        for (subscription, events) in picked.into_values() {
            subscription.offer(revision.revision, events);
        }
    }

    fn remember(&mut self, revision: Arc<Revision>) {
        self.ring_bytes += revision.bytes;
        self.ring.push_back(revision);
        while self.ring.len() > limits::RING_REVISIONS || self.ring_bytes > limits::RING_BYTES {
            let Some(oldest) = self.ring.pop_front() else { break };
            self.ring_bytes = self.ring_bytes.saturating_sub(oldest.bytes);
        }
    }
}
