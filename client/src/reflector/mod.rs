//! Shared reflectors: one list and watch per kind and process, each object decoded once and handed out as `Arc`.
//!
//! Flow: API server → kube's watcher (`feed`) → [`SharedReflector`] → event handlers → work queues.
//! Always holds: handlers see each object's changes in the order the server sent them, and an object's `Added` before
//! anything else about it; what a handler is told is already in the cache. A broken watch resumes at its last resource
//! version; only a compacted one is listed anew. What a cache was seeded with is shown, but does not make it ready: the
//! first complete list replaces it.

mod feed;
mod index;
mod registry;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::ops::Bound;
use std::sync::Arc;

use kube::Resource;
use parking_lot::{Mutex, RwLock};
use pintle_base::task;
use serde::de::DeserializeOwned;
use tokio::sync::watch;

pub use feed::Selection;
pub use index::Index;
pub use registry::Reflectors;

use crate::Key;
use crate::object::resource_version;

/// A kind that can be reflected.
pub trait Reflected: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static {}
impl<K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static> Reflected for K {}

/// A change of one object.
#[derive(Clone, Debug)]
pub enum ObjectEvent<K> {
    Added(Arc<K>),
    Updated { old: Arc<K>, new: Arc<K> },
    Deleted(Arc<K>),
}

impl<K> ObjectEvent<K> {
    /// The object after the change, or as it was last seen if it is gone.
    pub fn object(&self) -> &Arc<K> {
        match self {
            Self::Added(object) | Self::Deleted(object) | Self::Updated { new: object, .. } => object,
        }
    }

    pub fn is_deleted(&self) -> bool {
        matches!(self, Self::Deleted(_))
    }
}

type Handler<K> = Box<dyn Fn(&ObjectEvent<K>) + Send + Sync>;

/// The objects of one kind, kept up to date. Cheap to clone; clones are the same cache.
pub struct SharedReflector<K> {
    inner: Arc<Inner<K>>,
}

impl<K> Clone for SharedReflector<K> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

struct Inner<K> {
    objects: RwLock<BTreeMap<Key, Arc<K>>>,
    /// Held while handlers run, so that a new handler's replay and the feed do not interleave.
    handlers: Mutex<Vec<Handler<K>>>,
    progress: watch::Sender<Progress>,
}

/// How far the cache is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Progress {
    synced: bool,
    /// It was filled from what an earlier process knew.
    seeded: bool,
    /// The highest resource version seen on an object.
    version: u64,
    /// Counts changes of the cache.
    changes: u64,
}

impl<K: Reflected> SharedReflector<K> {
    /// Starts reflecting what `selection` names; the feed ends with `group`.
    pub fn start(client: kube::Client, selection: Selection, group: &task::Group) -> Self {
        let reflector = Self::detached();
        reflector.follow(client, selection, group);
        reflector
    }

    /// Starts a feed for a cache made by [`detached`](Self::detached); it ends with `group`.
    pub fn follow(&self, client: kube::Client, selection: Selection, group: &task::Group) {
        group.spawn_until_stopped("reflector", feed::run(client, selection, self.clone()));
    }

    /// A cache that nothing feeds but [`replace`](Self::replace), [`apply`](Self::apply) and [`remove`](Self::remove).
    pub fn detached() -> Self {
        let inner = Inner {
            objects: RwLock::default(),
            handlers: Mutex::default(),
            progress: watch::channel(Progress::default()).0,
        };
        Self { inner: Arc::new(inner) }
    }

    pub fn get(&self, key: &Key) -> Option<Arc<K>> {
        self.inner.objects.read().get(key).cloned()
    }

    /// All objects, ordered by namespace and name.
    pub fn list(&self) -> Vec<Arc<K>> {
        self.inner.objects.read().values().cloned().collect()
    }

    /// The keys of all objects, in order.
    pub fn keys(&self) -> Vec<Key> {
        self.inner.objects.read().keys().cloned().collect()
    }

    /// The objects of `namespace`, ordered by name.
    pub fn in_namespace(&self, namespace: &str) -> Vec<Arc<K>> {
        let from = Key::new(namespace, "");
        let objects = self.inner.objects.read();
        let rest = objects.range((Bound::Included(&from), Bound::Unbounded));
        rest.take_while(|(key, _)| key.namespace == namespace).map(|(_, object)| Arc::clone(object)).collect()
    }

    pub fn len(&self) -> usize {
        self.inner.objects.read().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// True once the first complete list is in the cache.
    pub fn is_ready(&self) -> bool {
        self.inner.progress.borrow().synced
    }

    /// Resolves once the first complete list is in the cache.
    pub async fn ready(&self) {
        // The sender lives in `self`: this cannot fail.
        let _ = self.inner.progress.subscribe().wait_for(|progress| progress.synced).await;
    }

    /// Resolves once the cache knows what a consistent list through `client`, begun now, shows.
    ///
    /// For a reflector of all objects of its kind.
    pub async fn catch_up(&self, client: kube::Client) {
        feed::catch_up(client, &Selection::all(), self).await;
    }

    /// True once there is something to go by: a complete list, or what the cache was seeded with.
    pub fn is_known(&self) -> bool {
        let progress = self.inner.progress.borrow();
        progress.synced || progress.seeded
    }

    /// Resolves once the cache [is known](Self::is_known).
    pub async fn known(&self) {
        // The sender lives in `self`: this cannot fail.
        let _ = self.inner.progress.subscribe().wait_for(|progress| progress.synced || progress.seeded).await;
    }

    /// A receiver that changes with every change of the cache.
    pub fn changes(&self) -> Changes {
        Changes(self.inner.progress.subscribe())
    }

    /// Calls `handler` for every object there is now, as added, and then for every change.
    ///
    /// It runs inside the feed: it must be quick, must not block, and must not register handlers on the same reflector.
    pub fn on_event(&self, handler: impl Fn(&ObjectEvent<K>) + Send + Sync + 'static) {
        let mut handlers = self.inner.handlers.lock();
        for object in self.list() {
            handler(&ObjectEvent::Added(object));
        }
        handlers.push(Box::new(handler));
    }

    /// Makes `objects` the whole content, and tells handlers what changed by that.
    pub fn replace(&self, objects: Vec<K>) {
        let handlers = self.inner.handlers.lock();
        let fresh: BTreeMap<Key, Arc<K>> =
            objects.into_iter().map(|object| (Key::of(object.meta()), Arc::new(object))).collect();
        let version = fresh.values().map(|object| resource_version(object.meta())).max().unwrap_or(0);
        let before = std::mem::replace(&mut *self.inner.objects.write(), fresh.clone());
        let gone = before.iter().filter(|(key, _)| !fresh.contains_key(*key));
        let mut events: Vec<_> = gone.map(|(_, object)| ObjectEvent::Deleted(Arc::clone(object))).collect();
        for (key, object) in &fresh {
            events.extend(match before.get(key) {
                None => vec![ObjectEvent::Added(Arc::clone(object))],
                Some(old) if old.meta().uid != object.meta().uid => {
                    vec![ObjectEvent::Deleted(Arc::clone(old)), ObjectEvent::Added(Arc::clone(object))]
                }
                Some(old) if old.meta().resource_version == object.meta().resource_version => Vec::new(),
                Some(old) => vec![ObjectEvent::Updated { old: Arc::clone(old), new: Arc::clone(object) }],
            });
        }
        dispatch(&handlers, &events);
        self.inner.advance(version, true);
    }

    /// Fills the cache with what was known earlier, unconfirmed; does nothing once a complete list is there.
    pub fn seed(&self, objects: Vec<K>) {
        let handlers = self.inner.handlers.lock();
        if self.is_ready() {
            return;
        }
        let mut events = Vec::new();
        for object in objects {
            let (key, object) = (Key::of(object.meta()), Arc::new(object));
            if self.inner.objects.write().insert(key, Arc::clone(&object)).is_none() {
                events.push(ObjectEvent::Added(object));
            }
        }
        dispatch(&handlers, &events);
        self.inner.progress.send_modify(|progress| {
            progress.seeded = true;
            progress.changes += 1;
        });
    }

    /// Puts `object` into the cache in place of its older state.
    pub fn apply(&self, object: K) {
        let handlers = self.inner.handlers.lock();
        let (key, version) = (Key::of(object.meta()), resource_version(object.meta()));
        let new = Arc::new(object);
        let old = self.inner.objects.write().insert(key, Arc::clone(&new));
        let events = match old {
            None => vec![ObjectEvent::Added(new)],
            Some(old) if old.meta().uid != new.meta().uid => vec![ObjectEvent::Deleted(old), ObjectEvent::Added(new)],
            Some(old) => vec![ObjectEvent::Updated { old, new }],
        };
        dispatch(&handlers, &events);
        self.inner.advance(version, false);
    }

    /// Takes `object`, in its last state, out of the cache.
    pub fn remove(&self, object: K) {
        let handlers = self.inner.handlers.lock();
        let version = resource_version(object.meta());
        if self.inner.objects.write().remove(&Key::of(object.meta())).is_some() {
            dispatch(&handlers, &[ObjectEvent::Deleted(Arc::new(object))]);
        }
        self.inner.advance(version, false);
    }

    /// True once the cache holds everything of `listed` (keys and versions of a consistent list at `version`) and nothing
    /// older that the list did not have any more.
    fn covers(&self, listed: &BTreeMap<Key, u64>, version: u64) -> bool {
        let newest = listed.values().copied().max().unwrap_or(0);
        let objects = self.inner.objects.read();
        (self.inner.progress.borrow().version >= newest || listed.iter().all(|(key, at)| holds(&objects, key, *at)))
            && objects.iter().all(|(key, object)| listed.contains_key(key) || resource_version(object.meta()) > version)
    }
}

fn holds<K: Reflected>(objects: &BTreeMap<Key, Arc<K>>, key: &Key, version: u64) -> bool {
    objects.get(key).is_some_and(|object| resource_version(object.meta()) >= version)
}

fn dispatch<K>(handlers: &[Handler<K>], events: &[ObjectEvent<K>]) {
    for event in events {
        for handler in handlers {
            handler(event);
        }
    }
}

impl<K> Inner<K> {
    fn advance(&self, version: u64, synced: bool) {
        self.progress.send_modify(|progress| {
            progress.synced |= synced;
            progress.version = progress.version.max(version);
            progress.changes += 1;
        });
    }
}

/// Tells that a cache has changed; several changes may be told as one.
pub struct Changes(watch::Receiver<Progress>);

impl Changes {
    /// Resolves after the next change; never, once the reflector is gone.
    pub async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::ConfigMap;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

    fn map(name: &str, uid: &str, version: u64) -> ConfigMap {
        let metadata = ObjectMeta {
            name: Some(name.into()),
            namespace: Some("ns".into()),
            uid: Some(uid.into()),
            resource_version: Some(version.to_string()),
            ..ObjectMeta::default()
        };
        ConfigMap { metadata, ..ConfigMap::default() }
    }

    fn logged(reflector: &SharedReflector<ConfigMap>) -> Arc<Mutex<Vec<String>>> {
        let log = Arc::new(Mutex::new(Vec::new()));
        let lines = Arc::clone(&log);
        reflector.on_event(move |event| {
            let meta = &event.object().metadata;
            let what = match event {
                ObjectEvent::Added(_) => "+",
                ObjectEvent::Updated { .. } => "~",
                ObjectEvent::Deleted(_) => "-",
            };
            lines.lock().push(format!("{what}{}@{}", Key::of(meta), resource_version(meta)));
        });
        log
    }

    #[test]
    fn a_late_handler_sees_what_is_there_and_then_changes() {
        let reflector = SharedReflector::detached();
        reflector.replace(vec![map("a", "1", 1), map("b", "2", 2)]);
        let log = logged(&reflector);
        reflector.apply(map("a", "1", 3));
        reflector.apply(map("c", "3", 4));
        reflector.remove(map("b", "2", 5));
        assert_eq!(*log.lock(), ["+ns/a@1", "+ns/b@2", "~ns/a@3", "+ns/c@4", "-ns/b@5"]);
        assert_eq!(reflector.keys(), [Key::new("ns", "a"), Key::new("ns", "c")]);
    }

    #[test]
    fn a_relist_tells_only_differences_and_a_new_uid_is_another_object() {
        let reflector = SharedReflector::detached();
        reflector.replace(vec![map("a", "1", 1), map("b", "2", 2), map("c", "3", 3)]);
        let log = logged(&reflector);
        log.lock().clear();
        reflector.replace(vec![map("a", "1", 1), map("b", "9", 7), map("d", "4", 8)]);
        assert_eq!(*log.lock(), ["-ns/c@3", "-ns/b@2", "+ns/b@7", "+ns/d@8"]);
    }

    #[test]
    fn a_cache_covers_a_list_when_nothing_of_it_is_missing_or_too_much() {
        let reflector = SharedReflector::detached();
        reflector.replace(vec![map("a", "1", 3), map("b", "2", 5)]);
        let listed = |keys: &[(&str, u64)]| keys.iter().map(|(name, at)| (Key::new("ns", *name), *at)).collect();
        assert!(reflector.covers(&listed(&[("a", 3), ("b", 5)]), 9));
        assert!(!reflector.covers(&listed(&[("a", 3), ("b", 5), ("c", 7)]), 9), "c is not seen yet");
        assert!(!reflector.covers(&listed(&[("a", 3)]), 9), "b was deleted before 9");
        assert!(reflector.covers(&listed(&[("a", 3)]), 4), "b is newer than the list");
    }

    #[tokio::test]
    async fn a_seed_is_shown_unconfirmed_and_corrected_by_the_first_list() {
        let reflector = SharedReflector::detached();
        let log = logged(&reflector);
        assert!(!reflector.is_known());
        reflector.seed(vec![map("a", "1", 1), map("b", "2", 2)]);
        reflector.known().await;
        assert!(!reflector.is_ready(), "nobody has confirmed it");
        reflector.replace(vec![map("a", "1", 1), map("c", "3", 3)]);
        assert!(reflector.is_ready());
        reflector.seed(vec![map("z", "9", 9)]);
        assert_eq!(*log.lock(), ["+ns/a@1", "+ns/b@2", "-ns/b@2", "+ns/c@3"], "a late seed is ignored");
    }

    #[tokio::test]
    async fn ready_waits_for_the_first_complete_list() {
        let reflector = SharedReflector::detached();
        reflector.apply(map("a", "1", 1));
        assert!(!reflector.is_ready());
        reflector.replace(vec![map("a", "1", 1)]);
        reflector.ready().await;
    }
}
