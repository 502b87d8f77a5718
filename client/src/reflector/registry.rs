//! The reflectors of a process: one per kind and selection, started when it is first asked for.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::sync::Arc;

use futures::future::{BoxFuture, join_all};
use parking_lot::Mutex;
use pintle_base::task;

use super::{Reflected, Selection, SharedReflector, feed};

/// Cheap to clone; clones share the reflectors.
#[derive(Clone)]
pub struct Reflectors {
    client: kube::Client,
    group: task::Group,
    kinds: Arc<Mutex<HashMap<(TypeId, Selection), Arc<dyn Entry>>>>,
}

impl Reflectors {
    /// Reflectors that read through `client` and end with `group`.
    pub fn new(client: kube::Client, group: &task::Group) -> Self {
        Self { client, group: group.child("reflectors"), kinds: Arc::default() }
    }

    /// The reflector of all objects of kind `K`.
    pub fn of<K: Reflected>(&self) -> SharedReflector<K> {
        self.selected(Selection::all())
    }

    /// The reflector of those objects of kind `K` that `selection` names: for kinds of which most objects are no concern of
    /// the reader.
    pub fn selected<K: Reflected>(&self, selection: Selection) -> SharedReflector<K> {
        let mut kinds = self.kinds.lock();
        let entry = kinds.entry((TypeId::of::<K>(), selection.clone())).or_insert_with(|| {
            let reflector = SharedReflector::<K>::start(self.client.clone(), selection.clone(), &self.group);
            Arc::new(Selected { reflector, selection })
        });
        let selected = entry.as_any().downcast_ref::<Selected<K>>();
        selected.expect("invariant: an entry is stored under the type it was made for").reflector.clone()
    }

    /// Resolves once every reflector asked for so far has its first complete list.
    pub async fn ready(&self) {
        join_all(self.entries().iter().map(|entry| entry.ready())).await;
    }

    /// Resolves once every reflector asked for so far knows what a consistent list, begun now, shows.
    ///
    /// A new leader waits for this, so that it never acts on a state older than its predecessor's last write.
    pub async fn catch_up(&self) {
        join_all(self.entries().iter().map(|entry| entry.catch_up(self.client.clone()))).await;
    }

    fn entries(&self) -> Vec<Arc<dyn Entry>> {
        self.kinds.lock().values().cloned().collect()
    }
}

/// A reflector of any kind.
trait Entry: Send + Sync {
    fn as_any(&self) -> &dyn Any;
    fn ready(&self) -> BoxFuture<'_, ()>;
    fn catch_up(&self, client: kube::Client) -> BoxFuture<'_, ()>;
}

struct Selected<K> {
    reflector: SharedReflector<K>,
    selection: Selection,
}

impl<K: Reflected> Entry for Selected<K> {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn ready(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.reflector.ready())
    }

    fn catch_up(&self, client: kube::Client) -> BoxFuture<'_, ()> {
        Box::pin(feed::catch_up(client, &self.selection, &self.reflector))
    }
}
