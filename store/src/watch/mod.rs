//! Watches: every event of a range once, in revision order, a revision never split (I8).
//!
//! Flow: apply → [`hub::Hub::publish`] → the queue of each matching subscription → [`feed::Feed`] → [`Watcher`] or an etcd
//! stream. A subscription is *synced* (the hub fills its queue) or *behind* (its queue overflowed, it began in the past, or the
//! state was replaced): then the feed reads the hub's ring or the history on disk and joins again, without gap and without
//! repeating anything, because both ends agree on one number, the first revision not yet queued.

mod event;
mod feed;
mod history;
mod hub;
mod index;
mod queue;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pintle_proto::mvccpb::Event;

pub(crate) use self::event::{Revision, Selector};
pub(crate) use self::feed::{Feed, Watches};
pub use crate::error::WatchError;
use crate::limits;
use crate::mvcc::key::Interval;

/// What to watch, and from when.
#[derive(Clone, Debug, Default)]
pub struct WatchOptions {
    pub key: Bytes,
    /// As in a range request: empty for one key, one zero byte for everything from `key` on.
    pub range_end: Bytes,
    /// The first revision to deliver; 0 for whatever comes after now.
    pub start_revision: i64,
    /// Events carry what the key held before.
    pub prev_kv: bool,
    pub filters: Filters,
    /// Idle watchers get empty batches that say how far they are.
    pub progress_notify: bool,
}

impl WatchOptions {
    /// The keys that are watched. An empty key means everything from the smallest key on, in a watch only.
    pub fn interval(&self) -> Interval {
        let key = if self.key.is_empty() { Bytes::from_static(&[0]) } else { self.key.clone() };
        Interval::new(&key, &self.range_end)
    }
}

/// Kinds of events left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Filters {
    pub no_put: bool,
    pub no_delete: bool,
}

/// Whole revisions in order. After it, everything up to `revision` was delivered. Without events it only says that.
#[derive(Clone, Debug, Default)]
pub struct WatchBatch {
    pub revision: i64,
    pub events: Vec<Arc<Event>>,
}

/// One watch. Ends when dropped.
pub struct Watcher {
    feed: Feed,
    id: u64,
    created: i64,
    progress: Option<Duration>,
}

impl Watcher {
    pub(crate) fn new(watches: &Arc<Watches>, options: &WatchOptions) -> Result<Self, WatchError> {
        let mut feed = Feed::new(Arc::clone(watches));
        let (id, created) = feed.add(options)?;
        Ok(Self { feed, id, created, progress: options.progress_notify.then_some(limits::PROGRESS_INTERVAL) })
    }

    /// The store's revision when the watch was created: without a start revision, events after it are delivered.
    pub fn created_revision(&self) -> i64 {
        self.created
    }

    /// Waits for the next batch. Dropping the future loses nothing.
    ///
    /// # Errors
    /// The watch is over: its position was compacted, or the store stopped.
    pub async fn next(&mut self) -> Result<WatchBatch, WatchError> {
        loop {
            let Some(interval) = self.progress else {
                return self.feed.next().await.1;
            };
            match pintle_base::clock::timeout(interval, self.feed.next()).await {
                Ok((_, batch)) => return batch,
                Err(_) => {
                    if let Some(batch) = self.report() {
                        return batch;
                    }
                }
            }
        }
    }

    /// Says how far the watch is. Events may have come since it was found idle: they go first, since the report speaks of
    /// them as delivered (I8).
    pub(crate) fn report(&mut self) -> Option<Result<WatchBatch, WatchError>> {
        let revision = self.feed.progress(&[self.id])?;
        match self.feed.next_within(revision) {
            Some((_, batch)) => Some(batch),
            None => Some(Ok(WatchBatch { revision, events: Vec::new() })),
        }
    }
}
