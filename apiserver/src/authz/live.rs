//! What authentication, authorization and admission read of the cluster.
//!
//! A narrow view of the watch cache ([`Cached`]), so that their rules can be tested without a store. Objects read here
//! may be a few milliseconds old; where a stale "absent" would be wrong, [`Live::fresh`] asks the store.

use std::sync::Arc;

use futures::future::BoxFuture;
use pintle_api::kinds::{self, Kind};
use pintle_store::Store;
use serde_json::Value;

use crate::cache::{Cache, Interest, Object};
use crate::limits;

/// A kind as the cache knows it: group and plural name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Res(pub &'static str, pub &'static str);

pub(crate) const PODS: Res = Res("", "pods");
pub(crate) const NODES: Res = Res("", "nodes");
pub(crate) const SECRETS: Res = Res("", "secrets");
pub(crate) const SERVICES: Res = Res("", "services");
pub(crate) const NAMESPACES: Res = Res("", "namespaces");
pub(crate) const SERVICE_ACCOUNTS: Res = Res("", "serviceaccounts");
pub(crate) const CLAIMS: Res = Res("", "persistentvolumeclaims");
pub(crate) const VOLUMES: Res = Res("", "persistentvolumes");
pub(crate) const PRIORITY_CLASSES: Res = Res("scheduling.k8s.io", "priorityclasses");
pub(crate) const DISRUPTION_BUDGETS: Res = Res("policy", "poddisruptionbudgets");
pub(crate) const ROLES: Res = Res("rbac.authorization.k8s.io", "roles");
pub(crate) const ROLE_BINDINGS: Res = Res("rbac.authorization.k8s.io", "rolebindings");
pub(crate) const CLUSTER_ROLES: Res = Res("rbac.authorization.k8s.io", "clusterroles");
pub(crate) const CLUSTER_ROLE_BINDINGS: Res = Res("rbac.authorization.k8s.io", "clusterrolebindings");

pub(crate) trait Live: Send + Sync {
    /// The object as the cache has it. `namespace` is empty for cluster-scoped kinds.
    fn get(&self, res: Res, namespace: &str, name: &str) -> Option<Arc<Value>>;

    /// The first object, in any order, that passes `test`. `None` for `namespace` means all.
    fn find(&self, res: Res, namespace: Option<&str>, test: &mut dyn FnMut(&Value) -> bool) -> Option<Arc<Value>>;

    /// All objects of the kind, in any order.
    fn list(&self, res: Res, namespace: Option<&str>) -> Vec<Arc<Value>>;

    /// True if a pod of `namespace` bound to `node` passes `test`. Pods whose text does not hold `mention` are left out.
    fn pod_on(&self, node: &str, namespace: &str, mention: &str, test: &dyn Fn(&Value) -> bool) -> bool;

    /// A number that differs whenever an object of the kind has changed.
    fn version(&self, res: Res) -> u64;

    /// The object as the store has it now, at the price of a read index round.
    fn fresh<'a>(&'a self, res: Res, namespace: &'a str, name: &'a str) -> BoxFuture<'a, Option<Arc<Value>>>;
}

/// The watch cache of this server, with the store behind it.
pub(crate) struct Cached {
    pub cache: Arc<Cache>,
    pub store: Store,
}

impl Res {
    pub(crate) fn kind(self) -> Option<&'static Kind> {
        kinds::by_resource(self.0, "v1", self.1)
    }
}

impl Cached {
    fn objects(&self, res: Res, namespace: Option<&str>) -> Vec<Arc<Object>> {
        res.kind().map(|kind| self.cache.list(kind, namespace.unwrap_or(""))).unwrap_or_default()
    }
}

impl Live for Cached {
    fn get(&self, res: Res, namespace: &str, name: &str) -> Option<Arc<Value>> {
        Some(self.cache.get(res.kind()?, namespace, name)?.tree())
    }

    fn find(&self, res: Res, namespace: Option<&str>, test: &mut dyn FnMut(&Value) -> bool) -> Option<Arc<Value>> {
        self.objects(res, namespace).iter().map(|object| object.tree()).find(|object| test(object))
    }

    fn list(&self, res: Res, namespace: Option<&str>) -> Vec<Arc<Value>> {
        self.objects(res, namespace).iter().map(|object| object.tree()).collect()
    }

    fn pod_on(&self, node: &str, namespace: &str, mention: &str, test: &dyn Fn(&Value) -> bool) -> bool {
        let Some(kind) = PODS.kind() else { return false };
        let pods = self.cache.snapshot(kind, &Interest::Node(node.into()), None).map(|found| found.objects);
        pods.unwrap_or_default()
            .iter()
            .any(|pod| pod.namespace() == namespace && holds(pod.json(), mention.as_bytes()) && test(&pod.tree()))
    }

    fn version(&self, res: Res) -> u64 {
        res.kind().map_or(0, |kind| self.cache.version(kind))
    }

    fn fresh<'a>(&'a self, res: Res, namespace: &'a str, name: &'a str) -> BoxFuture<'a, Option<Arc<Value>>> {
        Box::pin(async move {
            let revision = self.store.read_barrier().await.ok()?;
            self.cache.wait(revision, limits::CACHE_WAIT).await.ok()?;
            self.get(res, namespace, name)
        })
    }
}

/// Spares decoding objects that cannot match.
fn holds(text: &[u8], part: &[u8]) -> bool {
    part.is_empty() || text.windows(part.len()).any(|window| window == part)
}

/// The cache's word, or the store's if the cache has none: for objects that may have been created a moment ago.
pub(crate) async fn get_or_fresh(live: &dyn Live, res: Res, namespace: &str, name: &str) -> Option<Arc<Value>> {
    match live.get(res, namespace, name) {
        Some(object) => Some(object),
        None => live.fresh(res, namespace, name).await,
    }
}

/// A string field by JSON pointer; empty if absent or of another type.
pub(crate) fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or("")
}

/// The entries of a list by JSON pointer.
pub(crate) fn items<'a>(object: &'a Value, pointer: &str) -> impl Iterator<Item = &'a Value> + use<'a> {
    object.pointer(pointer).and_then(Value::as_array).into_iter().flatten()
}

pub(crate) fn name_of(object: &Value) -> &str {
    text(object, "/metadata/name")
}

pub(crate) fn namespace_of(object: &Value) -> &str {
    text(object, "/metadata/namespace")
}

pub(crate) fn uid_of(object: &Value) -> &str {
    text(object, "/metadata/uid")
}

pub(crate) fn is_terminating(object: &Value) -> bool {
    object.pointer("/metadata/deletionTimestamp").is_some_and(|at| !at.is_null())
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use parking_lot::RwLock;

    use super::*;

    /// A handful of objects held in memory, for tests of the rules above it.
    #[derive(Default)]
    pub(crate) struct Fixed {
        objects: RwLock<Vec<(Res, Arc<Value>)>>,
        version: AtomicU64,
    }

    impl Fixed {
        pub(crate) fn with(self, res: Res, object: Value) -> Self {
            self.put(res, object);
            self
        }

        pub(crate) fn put(&self, res: Res, object: Value) {
            self.objects.write().push((res, Arc::new(object)));
            self.version.fetch_add(1, Ordering::Relaxed);
        }
    }

    impl Live for Fixed {
        fn get(&self, res: Res, namespace: &str, name: &str) -> Option<Arc<Value>> {
            self.find(res, None, &mut |object| name_of(object) == name && namespace_of(object) == namespace)
        }

        fn find(&self, res: Res, namespace: Option<&str>, test: &mut dyn FnMut(&Value) -> bool) -> Option<Arc<Value>> {
            let objects = self.objects.read();
            let here = |object: &Value| namespace.is_none_or(|wanted| namespace_of(object) == wanted);
            let mut found = objects.iter().filter(|(kind, object)| *kind == res && here(object));
            found.find(|(_, object)| test(object)).map(|(_, object)| Arc::clone(object))
        }

        fn list(&self, res: Res, namespace: Option<&str>) -> Vec<Arc<Value>> {
            let objects = self.objects.read();
            let here = |object: &Value| namespace.is_none_or(|wanted| namespace_of(object) == wanted);
            let found = objects.iter().filter(|(kind, object)| *kind == res && here(object));
            found.map(|(_, object)| Arc::clone(object)).collect()
        }

        fn pod_on(&self, node: &str, namespace: &str, mention: &str, test: &dyn Fn(&Value) -> bool) -> bool {
            let here = |pod: &Value| text(pod, "/spec/nodeName") == node && pod.to_string().contains(mention);
            self.list(PODS, Some(namespace)).iter().any(|pod| here(pod) && test(pod))
        }

        fn version(&self, _: Res) -> u64 {
            self.version.load(Ordering::Relaxed)
        }

        fn fresh<'a>(&'a self, res: Res, namespace: &'a str, name: &'a str) -> BoxFuture<'a, Option<Arc<Value>>> {
            Box::pin(async move { self.get(res, namespace, name) })
        }
    }
}
