//! The watch cache: every kind's objects at one revision of the store, and their recent events.
//!
//! One watch over the whole key space feeds all kinds ([`feed`]), so "the cache's revision has reached the store's"
//! makes any list consistent. Reads are local and never block on the store; [`Cache::wait`] is the bridge.
//! Always holds: a snapshot and the watcher registered with it meet without gap or overlap (I8).

pub mod feed;
pub mod layout;
mod object;
mod state;
mod watcher;

use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use pintle_api::kinds::Kind;

pub use layout::Slot;
pub use object::{DecodeError, Object, view};
use state::State;
pub use state::{Change, Event, Input, Interest, TooOld};
use watcher::Queue;
pub use watcher::{Next, Watcher};

pub struct Cache {
    state: RwLock<State>,
    /// The revision of `state`; 0 while it is being filled.
    revision: tokio::sync::watch::Sender<i64>,
}

/// Objects of one revision.
pub struct Snapshot {
    pub revision: i64,
    pub objects: Vec<Arc<Object>>,
}

/// The cache did not reach the asked revision in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("revision {asked} not reached, cache is at {current}")]
pub struct Behind {
    pub asked: i64,
    pub current: i64,
}

impl Default for Cache {
    fn default() -> Self {
        Self { state: RwLock::default(), revision: tokio::sync::watch::Sender::new(0) }
    }
}

impl Cache {
    pub fn revision(&self) -> i64 {
        *self.revision.borrow()
    }

    /// False until the first fill is complete.
    pub fn is_ready(&self) -> bool {
        self.revision() > 0
    }

    /// Waits until the cache holds everything up to `revision`.
    ///
    /// # Errors
    /// [`Behind`] after `limit`.
    pub async fn wait(&self, revision: i64, limit: Duration) -> Result<i64, Behind> {
        let wanted = revision.max(1);
        let mut watch = self.revision.subscribe();
        let reached = pintle_base::clock::timeout(limit, watch.wait_for(|at| *at >= wanted)).await;
        match reached {
            Ok(Ok(at)) => Ok(*at),
            _ => Err(Behind { asked: revision, current: self.revision() }),
        }
    }

    /// The object as this server last heard of it.
    pub fn get(&self, kind: &Kind, namespace: &str, name: &str) -> Option<Arc<Object>> {
        let slot = layout::slot(kind)?;
        self.state.read().kind(slot)?.objects.get(layout::local_key(namespace, name).as_str()).cloned()
    }

    /// Objects of `namespace` (all, if empty) as this server last heard of them, in key order.
    pub fn list(&self, kind: &Kind, namespace: &str) -> Vec<Arc<Object>> {
        let interest = if namespace.is_empty() { Interest::All } else { Interest::Namespace(namespace.into()) };
        self.snapshot(kind, &interest, None).map(|snapshot| snapshot.objects).unwrap_or_default()
    }

    /// Changes with every event of the kind; for indexes derived from it.
    pub fn version(&self, kind: &Kind) -> u64 {
        let Some(slot) = layout::slot(kind) else { return 0 };
        self.state.read().kind(slot).map_or(0, |kind| kind.version)
    }

    /// Objects of `interest` after local key `after`. `None` for a kind that is not stored.
    pub fn snapshot(&self, kind: &Kind, interest: &Interest, after: Option<&str>) -> Option<Snapshot> {
        let slot = layout::slot(kind)?;
        let state = self.state.read();
        let objects = state.kind(slot).map(|kind| kind.objects(interest, after)).unwrap_or_default();
        Some(Snapshot { revision: state.revision, objects })
    }

    /// Like [`Cache::snapshot`], but only if the kind has not changed since `revision`.
    pub fn snapshot_at(
        &self,
        kind: &Kind,
        interest: &Interest,
        after: Option<&str>,
        revision: i64,
    ) -> Option<Snapshot> {
        let slot = layout::slot(kind)?;
        let state = self.state.read();
        let kind = state.kind(slot)?;
        (revision <= state.revision && kind.changed_at() <= revision)
            .then(|| Snapshot { revision, objects: kind.objects(interest, after) })
    }

    /// Number of cached objects of a kind.
    pub fn count(&self, kind: &Kind) -> usize {
        layout::slot(kind).and_then(|slot| self.state.read().kind(slot).map(|kind| kind.objects.len())).unwrap_or(0)
    }

    /// A watcher of everything after `revision`.
    ///
    /// # Errors
    /// [`TooOld`] if the events since then are no longer kept.
    pub fn watch_after(self: &Arc<Self>, slot: Slot, interest: Interest, revision: i64) -> Result<Watcher, TooOld> {
        let mut state = self.state.write();
        let current = state.revision;
        let Some(kind) = state.kind_mut(slot) else { return Err(TooOld { oldest: current }) };
        let queue = Queue::starting_with(kind.since(revision, &interest)?);
        kind.register(interest.clone(), Arc::clone(&queue));
        Ok(Watcher { queue, cache: Arc::downgrade(self), slot, interest })
    }

    /// The objects of now, and a watcher of everything after.
    pub fn watch_from_now(self: &Arc<Self>, slot: Slot, interest: Interest) -> (Snapshot, Watcher) {
        let mut state = self.state.write();
        let revision = state.revision;
        let queue = Queue::starting_with(Vec::new());
        let mut objects = Vec::new();
        match state.kind_mut(slot) {
            Some(kind) => {
                objects = kind.objects(&interest, None);
                kind.register(interest.clone(), Arc::clone(&queue));
            }
            None => queue.end(),
        }
        (Snapshot { revision, objects }, Watcher { queue, cache: Arc::downgrade(self), slot, interest })
    }

    /// A cache that holds `objects` and hears of nothing more.
    #[cfg(test)]
    pub(crate) fn stuck(revision: i64, objects: Vec<Arc<Object>>) -> Arc<Self> {
        let cache = Self::default();
        cache.replace(State::filled(revision, objects));
        cache.publish(revision);
        Arc::new(cache)
    }

    /// Applies a write to such a cache.
    #[cfg(test)]
    pub(crate) fn hear(&self, kind: &Kind, key: &str, revision: i64, tree: serde_json::Value) {
        let Some(slot) = layout::slot(kind) else { return };
        let object = Object::from_tree(slot, key, revision, tree).ok().map(Arc::new);
        self.apply(revision, vec![Input { slot, key: key.into(), revision, object }]);
        self.publish(revision);
    }

    fn unregister(&self, slot: Slot, interest: &Interest, queue: &Arc<Queue>) {
        if let Some(kind) = self.state.write().kind_mut(slot) {
            kind.unregister(interest, queue);
        }
    }

    fn replace(&self, mut state: State) {
        let mut current = self.state.write();
        current.end_watchers();
        std::mem::swap(&mut *current, &mut state);
    }

    fn apply(&self, revision: i64, inputs: Vec<Input>) {
        self.state.write().apply(revision, inputs);
    }

    fn publish(&self, revision: i64) {
        self.revision.send_if_modified(|at| {
            let moved = *at != revision;
            *at = revision;
            moved
        });
    }

    fn invalidate(&self) {
        self.publish(0);
        self.state.write().end_watchers();
    }
}
