//! The reading end of one or many subscriptions: waits for any of them, and brings back those that are behind.
//!
//! One history read runs at a time per feed; subscriptions that are synced are served meanwhile.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::Semaphore;

use super::history::{self, Read};
use super::hub::{Hub, Rejoin};
use super::queue::{Ready, Subscription, Taken};
use super::{Revision, Selector, WatchBatch, WatchError, WatchOptions};
use crate::engine::Engine;
use crate::limits;

/// Everything feeds share: the hub, and the way to history.
pub(crate) struct Watches {
    pub hub: Hub,
    engine: Arc<Engine>,
    compacted: AtomicI64,
    readers: Semaphore,
}

impl Watches {
    pub fn new(engine: Arc<Engine>, revision: i64, compacted: i64) -> Self {
        let readers = Semaphore::new(limits::HISTORY_READERS);
        Self { hub: Hub::new(revision), engine, compacted: AtomicI64::new(compacted), readers }
    }

    /// An entry was applied.
    pub fn applied(&self, revisions: Vec<Arc<Revision>>, compacted: i64) {
        self.compacted.store(compacted, Ordering::Release);
        if !revisions.is_empty() {
            self.hub.publish(revisions);
        }
    }

    /// The state was replaced.
    pub fn replaced(&self, revision: i64, compacted: i64) {
        self.compacted.store(compacted, Ordering::Release);
        self.hub.reset(revision);
    }
}

pub(crate) struct Feed {
    watches: Arc<Watches>,
    subscriptions: BTreeMap<u64, Arc<Subscription>>,
    ready: Arc<Ready>,
    reading: Option<(Arc<Subscription>, BoxFuture<'static, Result<Read, WatchError>>)>,
    /// Behind, and waiting for the read before theirs.
    waiting: VecDeque<Arc<Subscription>>,
}

impl Feed {
    pub fn new(watches: Arc<Watches>) -> Self {
        Self { watches, subscriptions: BTreeMap::new(), ready: Arc::default(), reading: None, waiting: VecDeque::new() }
    }

    /// Adds a watch; returns its id in this feed and the revision it was created at.
    pub fn add(&mut self, options: &WatchOptions) -> Result<(u64, i64), WatchError> {
        let selector = Selector::new(options)?;
        let compacted = self.watches.compacted.load(Ordering::Acquire);
        let ready = Arc::clone(&self.ready);
        let (subscription, created) = self.watches.hub.subscribe(selector, options.start_revision, compacted, ready)?;
        let id = subscription.id;
        self.subscriptions.insert(id, subscription);
        Ok((id, created))
    }

    pub fn remove(&mut self, id: u64) {
        if let Some(subscription) = self.subscriptions.remove(&id) {
            self.watches.hub.unsubscribe(&subscription);
        }
    }

    /// Waits for the next batch of any watch. Dropping the future loses nothing. An ended watch stays until removed.
    pub async fn next(&mut self) -> (u64, Result<WatchBatch, WatchError>) {
        loop {
            let subscription = match &mut self.reading {
                Some((_, read)) => {
                    tokio::select! {
                        biased;
                        read = read => {
                            self.finish_read(read);
                            continue;
                        }
                        subscription = self.ready.pop() => subscription,
                    }
                }
                None => self.ready.pop().await,
            };
            if let Some(delivery) = self.look_at(&subscription, i64::MAX) {
                return delivery;
            }
        }
    }

    /// The next batch that already waits.
    pub fn next_now(&mut self) -> Option<(u64, Result<WatchBatch, WatchError>)> {
        while let Some(subscription) = self.ready.pop_now() {
            if let Some(delivery) = self.look_at(&subscription, i64::MAX) {
                return Some(delivery);
            }
        }
        None
    }

    /// The next batch that already waits and lies within `revision`. For what must come before a progress report.
    pub fn next_within(&mut self, revision: i64) -> Option<(u64, Result<WatchBatch, WatchError>)> {
        let mut later = Vec::new();
        let mut found = None;
        while found.is_none()
            && let Some(subscription) = self.ready.pop_now()
        {
            if subscription.lock().first().is_none_or(|first| first > revision) {
                later.push(subscription);
                continue;
            }
            found = self.look_at(&subscription, revision);
        }
        for subscription in later {
            subscription.relist();
        }
        found
    }

    /// The revision up to which all of `ids` have everything queued; `None` if one is behind.
    pub fn progress(&self, ids: &[u64]) -> Option<i64> {
        self.watches.hub.progress(ids.iter().filter_map(|id| self.subscriptions.get(id)))
    }

    /// The same for every watch of the feed; `None` also if there is none.
    pub fn progress_of_all(&self) -> Option<i64> {
        if self.subscriptions.is_empty() { None } else { self.watches.hub.progress(self.subscriptions.values()) }
    }

    fn look_at(
        &mut self,
        subscription: &Arc<Subscription>,
        within: i64,
    ) -> Option<(u64, Result<WatchBatch, WatchError>)> {
        if !self.subscriptions.contains_key(&subscription.id) {
            return None; // removed meanwhile
        }
        match subscription.take(within) {
            Taken::Batch(batch) => Some((subscription.id, Ok(batch))),
            Taken::Ended(error) => Some((subscription.id, Err(error))),
            Taken::Nothing => None,
            Taken::Behind => {
                self.waiting.push_back(Arc::clone(subscription));
                self.start_read();
                None
            }
        }
    }

    /// Starts the next history read, unless one runs; those the ring can serve need none.
    fn start_read(&mut self) {
        while self.reading.is_none()
            && let Some(subscription) = self.waiting.pop_front()
        {
            if let Rejoin::History { next } = self.watches.hub.rejoin(&subscription) {
                let read = read_history(Arc::clone(&self.watches), subscription.selector.clone(), next);
                self.reading = Some((subscription, read.boxed()));
            }
        }
    }

    fn finish_read(&mut self, read: Result<Read, WatchError>) {
        if let Some((subscription, _)) = self.reading.take() {
            match read {
                Ok(Read { batch, next }) => subscription.deliver(batch, next),
                Err(error) => subscription.end(error),
            }
        }
        self.start_read();
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        for subscription in self.subscriptions.values() {
            self.watches.hub.unsubscribe(subscription);
        }
        while self.ready.pop_now().is_some() {} // lists hold their subscriptions, which hold the list
    }
}

/// Reads on a blocking thread, a bounded number at a time over all feeds.
async fn read_history(watches: Arc<Watches>, selector: Selector, next: i64) -> Result<Read, WatchError> {
    let _permit = watches.readers.acquire().await.map_err(|_| WatchError::Stopped)?;
    let engine = Arc::clone(&watches.engine);
    let read = tokio::task::spawn_blocking(move || history::read(&engine, &selector, next));
    read.await.unwrap_or(Err(WatchError::Stopped))
}
