//! Finds reflected objects by a value computed from them: pods by node, replica sets by owner.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use parking_lot::RwLock;

use super::{ObjectEvent, Reflected, SharedReflector};
use crate::Key;
use crate::object::controller_of;

/// Which keys have a value, and which values a key was put under.
#[derive(Default)]
struct Places {
    keys: HashMap<String, BTreeSet<Key>>,
    values: HashMap<Key, Vec<String>>,
}

/// Cheap to clone. Register an index before the handlers that read it: handlers run in that order.
pub struct Index<K> {
    reflector: SharedReflector<K>,
    places: Arc<RwLock<Places>>,
}

impl<K> Clone for Index<K> {
    fn clone(&self) -> Self {
        Self { reflector: self.reflector.clone(), places: Arc::clone(&self.places) }
    }
}

impl<K: Reflected> Index<K> {
    /// An index of `reflector` by the values of `values_of`: none, one or several per object.
    pub fn new<I: IntoIterator<Item = String>>(
        reflector: &SharedReflector<K>,
        values_of: impl Fn(&K) -> I + Send + Sync + 'static,
    ) -> Self {
        let places: Arc<RwLock<Places>> = Arc::default();
        let kept = Arc::clone(&places);
        reflector.on_event(move |event| match event {
            ObjectEvent::Added(new) | ObjectEvent::Updated { new, .. } => {
                kept.write().put(Key::of(new.meta()), values_of(new).into_iter().collect())
            }
            ObjectEvent::Deleted(old) => kept.write().put(Key::of(old.meta()), Vec::new()),
        });
        Self { reflector: reflector.clone(), places }
    }

    /// Objects by the uid of the owner that controls them; those without one under `orphan/<namespace>`.
    pub fn by_controller(reflector: &SharedReflector<K>) -> Self {
        Self::new(reflector, |object| {
            let meta = object.meta();
            Some(match controller_of(meta) {
                Some(owner) => owner.uid.clone(),
                None => orphans(meta.namespace.as_deref().unwrap_or_default()),
            })
        })
    }

    /// The objects with `value`, ordered by key.
    pub fn get(&self, value: &str) -> Vec<Arc<K>> {
        let keys: Vec<Key> = self.places.read().keys.get(value).into_iter().flatten().cloned().collect();
        keys.iter().filter_map(|key| self.reflector.get(key)).collect()
    }

    /// How many objects have `value`.
    pub fn count(&self, value: &str) -> usize {
        self.places.read().keys.get(value).map_or(0, BTreeSet::len)
    }

    /// Of an index made by [`by_controller`](Self::by_controller): what `uid` controls, and what nobody controls.
    pub fn owned_and_orphaned(&self, uid: &str, namespace: &str) -> Vec<Arc<K>> {
        let mut objects = self.get(uid);
        objects.extend(self.get(&orphans(namespace)));
        objects
    }

    /// Of an index made by [`by_controller`](Self::by_controller): what nobody controls in `namespace`.
    pub fn orphaned(&self, namespace: &str) -> Vec<Arc<K>> {
        self.get(&orphans(namespace))
    }
}

/// A slash cannot be part of a uid the server made, so this never meets one.
fn orphans(namespace: &str) -> String {
    format!("orphan/{namespace}")
}

impl Places {
    /// Moves `key` from where it was to `values`.
    fn put(&mut self, key: Key, values: Vec<String>) {
        if self.values.get(&key).is_some_and(|before| *before == values) {
            return;
        }
        for before in self.values.remove(&key).into_iter().flatten() {
            if let Some(keys) = self.keys.get_mut(&before) {
                keys.remove(&key);
                if keys.is_empty() {
                    self.keys.remove(&before);
                }
            }
        }
        for value in &values {
            self.keys.entry(value.clone()).or_default().insert(key.clone());
        }
        if !values.is_empty() {
            self.values.insert(key, values);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::json;

    fn pod(name: &str, node: &str, owner: Option<&str>) -> Pod {
        let owners: Vec<_> = owner
            .map(|uid| json!({"apiVersion": "v1", "kind": "X", "name": "x", "uid": uid, "controller": true}))
            .into_iter()
            .collect();
        let metadata = json!({"namespace": "ns", "name": name, "uid": name, "ownerReferences": owners});
        let value = json!({"metadata": metadata, "spec": {"nodeName": node, "containers": []}});
        serde_json::from_value(value).expect("pod")
    }

    #[test]
    fn objects_move_between_values_and_leave_with_their_last_state() {
        let reflector = SharedReflector::detached();
        let by_node = Index::new(&reflector, |pod: &Pod| pod.spec.as_ref()?.node_name.clone());
        let names =
            |node: &str| by_node.get(node).iter().filter_map(|pod| pod.metadata.name.clone()).collect::<Vec<_>>();
        reflector.replace(vec![pod("a", "n1", None), pod("b", "n1", None)]);
        assert_eq!(names("n1"), ["a", "b"]);
        reflector.apply(pod("a", "n2", None));
        assert_eq!((names("n1"), names("n2")), (vec!["b".to_owned()], vec!["a".to_owned()]));
        reflector.remove(pod("b", "n9", None));
        assert!(names("n1").is_empty());
    }

    #[test]
    fn an_object_is_found_by_each_of_its_values() {
        let reflector = SharedReflector::detached();
        let index = Index::new(&reflector, |pod: &Pod| {
            let labels = pod.metadata.labels.clone().unwrap_or_default();
            labels.into_iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>()
        });
        let labelled = |labels: serde_json::Value| -> Pod {
            serde_json::from_value(json!({"metadata": {"namespace": "ns", "name": "a", "labels": labels}}))
                .expect("pod")
        };
        let counts = || ["x=1", "y=2", "y=3"].map(|value| index.count(value));
        reflector.apply(labelled(json!({"x": "1", "y": "2"})));
        assert_eq!(counts(), [1, 1, 0]);
        reflector.apply(labelled(json!({"x": "1", "y": "3"})));
        assert_eq!(counts(), [1, 0, 1]);
        reflector.remove(labelled(json!({})));
        assert_eq!(counts(), [0, 0, 0]);
    }

    #[test]
    fn adoption_moves_an_orphan_to_its_owner() {
        let reflector = SharedReflector::detached();
        let owners = Index::by_controller(&reflector);
        reflector.replace(vec![pod("a", "", None), pod("b", "", Some("u1"))]);
        assert_eq!(owners.orphaned("ns").len(), 1);
        assert_eq!(owners.owned_and_orphaned("u1", "ns").len(), 2);
        reflector.apply(pod("a", "", Some("u1")));
        assert!(owners.orphaned("ns").is_empty());
        assert_eq!(owners.get("u1").len(), 2);
    }
}
