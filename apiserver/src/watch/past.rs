//! The beginning of a watch that asks for events the cache no longer keeps, but the store does.
//!
//! Read from the store's history batch by batch, as the client takes them, until the cache can go on: after a start-up or
//! under heavy writing the cache's history is short, and a watch that began with another server need not list anew.
//! Always holds: every event between the asked revision and the cache's watcher is given once, in order (I8); one whose
//! previous version was compacted ends the watch, for selectors could not tell what the client knew.

use std::sync::Arc;

use bytes::Bytes;
use pintle_api::kinds::Kind;
use pintle_proto::mvccpb::{self, event::EventType};
use pintle_store::{Store, WatchOptions};
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::cache::{Cache, Change, Event, Interest, Object, Slot, TooOld, Watcher, feed, layout};
use crate::limits;

pub(super) struct Past {
    batches: pintle_store::Watcher,
    store: Store,
    cache: Arc<Cache>,
    slot: Slot,
    interest: Interest,
    /// Everything up to this revision was given.
    given: i64,
    _place: SemaphorePermit<'static>,
}

/// Why a watch of the past cannot go on.
#[derive(Debug)]
pub(super) enum Lost {
    /// The history is compacted.
    TooOld,
    /// The store or the cache cannot go on now; the client may from where it is.
    Later,
}

impl Past {
    /// Events after `revision`; `None` if the store does not have them, or if too many watches read there.
    pub fn after(
        revision: i64,
        kind: &'static Kind,
        interest: Interest,
        store: &Store,
        cache: &Arc<Cache>,
    ) -> Option<Self> {
        static PLACES: Semaphore = Semaphore::const_new(limits::PAST_WATCHES);
        let slot = layout::slot(kind)?;
        let reach = cache.revision().saturating_sub(revision);
        if revision < store.compact_revision() || reach > limits::PAST_REVISIONS {
            return None;
        }
        let place = PLACES.try_acquire().ok()?;
        let (key, range_end) = range(kind, &interest);
        let options = WatchOptions {
            key,
            range_end,
            start_revision: revision + 1,
            prev_kv: true,
            progress_notify: true,
            ..WatchOptions::default()
        };
        let batches = store.watch(options).ok()?;
        let (store, cache) = (store.clone(), Arc::clone(cache));
        Some(Self { batches, store, cache, slot, interest, given: revision, _place: place })
    }

    /// The next events. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Result<Vec<Event>, Lost> {
        let batch = self.batches.next().await.map_err(|error| match error {
            pintle_store::WatchError::Compacted { .. } => Lost::TooOld,
            _ => Lost::Later,
        })?;
        if self.store.compact_revision() > self.given {
            return Err(Lost::TooOld);
        }
        self.given = batch.revision;
        Ok(batch.events.iter().filter_map(|event| self.event(event)).collect())
    }

    fn event(&self, event: &mvccpb::Event) -> Option<Event> {
        let kv = event.kv.as_ref()?;
        let slot = |kv: &mvccpb::KeyValue| layout::split(&kv.key).map(|(slot, _)| slot);
        if slot(kv) != Some(self.slot) {
            return None;
        }
        let previous = event.prev_kv.as_ref().and_then(feed::object);
        let written = if event.r#type == EventType::Delete as i32 { None } else { feed::object(kv) };
        let revision = kv.mod_revision;
        let (change, object) = match (written, &previous) {
            (Some(object), None) => (Change::Added, object),
            (Some(object), Some(_)) => (Change::Modified, object),
            (None, Some(previous)) => (Change::Deleted, Arc::new(Object::deleted_at(previous, revision))),
            (None, None) => return None,
        };
        Some(Event { change, revision, object, previous })
    }

    /// The cache's watcher from here on, once the cache has kept everything since.
    pub async fn go_on(&mut self) -> Result<Option<Watcher>, Lost> {
        // The store may be ahead of the cache: what was given must not come again.
        self.cache.wait(self.given, limits::CACHE_WAIT).await.map_err(|_| Lost::Later)?;
        match self.cache.watch_after(self.slot, self.interest.clone(), self.given) {
            Ok(watcher) => Ok(Some(watcher)),
            Err(TooOld { .. }) => Ok(None),
        }
    }
}

/// The keys in which all of `interest` lies.
fn range(kind: &Kind, interest: &Interest) -> (Bytes, Bytes) {
    let prefix = kind.storage_prefix;
    match interest {
        Interest::Object(key) => (format!("{prefix}/{key}").into(), Bytes::new()),
        Interest::Namespace(namespace) => {
            (format!("{prefix}/{namespace}/").into(), format!("{prefix}/{namespace}0").into())
        }
        Interest::All | Interest::Node(_) => (format!("{prefix}/").into(), format!("{prefix}0").into()),
    }
}
