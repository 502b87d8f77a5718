//! Typed view of `metadata` inside an object tree.
//!
//! [`Meta`] reads, [`MetaMut`] writes; both borrow the tree, nothing is copied. Absent and empty are the same.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::tree::{self, Object};

/// `metadata.ownerReferences[]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct OwnerReference {
    pub api_version: String,
    pub kind: String,
    pub name: String,
    pub uid: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub controller: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub block_owner_deletion: Option<bool>,
}

/// Finalizer of an object whose dependents are deleted before it.
pub const FINALIZER_FOREGROUND: &str = "foregroundDeletion";
/// Finalizer of an object whose dependents are set free before it goes.
pub const FINALIZER_ORPHAN: &str = "orphan";

/// Reads `metadata` of an object.
#[derive(Clone, Copy)]
pub struct Meta<'a>(&'a Value);

impl<'a> Meta<'a> {
    pub fn of(object: &'a Value) -> Self {
        Self(object)
    }

    pub fn name(self) -> &'a str {
        tree::text(self.0, "/metadata/name")
    }

    pub fn generate_name(self) -> &'a str {
        tree::text(self.0, "/metadata/generateName")
    }

    pub fn namespace(self) -> &'a str {
        tree::text(self.0, "/metadata/namespace")
    }

    pub fn uid(self) -> &'a str {
        tree::text(self.0, "/metadata/uid")
    }

    pub fn resource_version(self) -> &'a str {
        tree::text(self.0, "/metadata/resourceVersion")
    }

    pub fn generation(self) -> i64 {
        tree::int(self.0, "/metadata/generation").unwrap_or_default()
    }

    pub fn labels(self) -> Option<&'a Object> {
        tree::map(self.0, "/metadata/labels")
    }

    pub fn label(self, key: &str) -> Option<&'a str> {
        self.labels().and_then(|labels| labels.get(key)).and_then(Value::as_str)
    }

    pub fn annotations(self) -> Option<&'a Object> {
        tree::map(self.0, "/metadata/annotations")
    }

    pub fn annotation(self, key: &str) -> Option<&'a str> {
        self.annotations().and_then(|annotations| annotations.get(key)).and_then(Value::as_str)
    }

    pub fn finalizers(self) -> impl Iterator<Item = &'a str> {
        tree::list(self.0, "/metadata/finalizers").iter().filter_map(Value::as_str)
    }

    pub fn has_finalizer(self, name: &str) -> bool {
        self.finalizers().any(|finalizer| finalizer == name)
    }

    pub fn owners(self) -> Vec<OwnerReference> {
        tree::list(self.0, "/metadata/ownerReferences")
            .iter()
            .filter_map(|owner| OwnerReference::deserialize(owner).ok())
            .collect()
    }

    /// The owner that manages this object.
    pub fn controller(self) -> Option<OwnerReference> {
        self.owners().into_iter().find(|owner| owner.controller == Some(true))
    }

    pub fn creation_timestamp(self) -> Option<Timestamp> {
        timestamp(self.0, "/metadata/creationTimestamp")
    }

    pub fn deletion_timestamp(self) -> Option<Timestamp> {
        timestamp(self.0, "/metadata/deletionTimestamp")
    }

    /// Whether deletion was asked for; the object stays until its finalizers and grace are done.
    pub fn is_deleting(self) -> bool {
        tree::at(self.0, "/metadata/deletionTimestamp").is_some()
    }

    pub fn deletion_grace_seconds(self) -> Option<i64> {
        tree::int(self.0, "/metadata/deletionGracePeriodSeconds")
    }
}

/// The time at `pointer`, in either of the forms objects use.
pub fn timestamp(value: &Value, pointer: &str) -> Option<Timestamp> {
    tree::some_text(value, pointer)?.parse().ok()
}

/// `2006-01-02T15:04:05Z`, as `Time` fields are written.
pub fn format_time(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// `2006-01-02T15:04:05.000000Z`, as `MicroTime` fields are written.
pub fn format_micro_time(time: Timestamp) -> String {
    format!("{}.{:06}Z", time.strftime("%Y-%m-%dT%H:%M:%S"), time.subsec_nanosecond().unsigned_abs() / 1000)
}

/// Writes `metadata` of an object. Does nothing where the object is not a map.
pub struct MetaMut<'a>(&'a mut Value);

impl<'a> MetaMut<'a> {
    pub fn of(object: &'a mut Value) -> Self {
        Self(object)
    }

    fn set(&mut self, key: &str, value: impl Into<Value>) -> &mut Self {
        if let Some(metadata) = tree::object(self.0, "metadata") {
            tree::set(metadata, key, value);
        }
        self
    }

    /// Removes a field of `metadata`.
    pub fn clear(&mut self, key: &str) -> &mut Self {
        if let Some(metadata) = self.0.get_mut("metadata") {
            tree::remove(metadata, key);
        }
        self
    }

    pub fn set_name(&mut self, name: &str) -> &mut Self {
        self.set("name", name)
    }

    pub fn set_namespace(&mut self, namespace: &str) -> &mut Self {
        self.set("namespace", namespace)
    }

    pub fn set_uid(&mut self, uid: &str) -> &mut Self {
        self.set("uid", uid)
    }

    pub fn set_resource_version(&mut self, version: u64) -> &mut Self {
        self.set("resourceVersion", version.to_string())
    }

    pub fn set_generation(&mut self, generation: i64) -> &mut Self {
        self.set("generation", generation)
    }

    pub fn set_creation_timestamp(&mut self, time: Timestamp) -> &mut Self {
        self.set("creationTimestamp", format_time(time))
    }

    /// Marks the object as being deleted, to be gone `grace` seconds after `now`.
    pub fn set_deletion(&mut self, now: Timestamp, grace: i64) -> &mut Self {
        let due = now.checked_add(jiff::SignedDuration::from_secs(grace)).unwrap_or(now);
        self.set("deletionTimestamp", format_time(due)).set("deletionGracePeriodSeconds", grace)
    }

    pub fn set_label(&mut self, key: &str, value: &str) -> &mut Self {
        self.set_in("labels", key, value)
    }

    pub fn set_annotation(&mut self, key: &str, value: &str) -> &mut Self {
        self.set_in("annotations", key, value)
    }

    fn set_in(&mut self, map: &str, key: &str, value: &str) -> &mut Self {
        if let Some(map) = tree::object(self.0, "metadata").and_then(|metadata| tree::object(metadata, map)) {
            tree::set(map, key, value);
        }
        self
    }

    pub fn set_finalizers(&mut self, finalizers: &[&str]) -> &mut Self {
        if finalizers.is_empty() { self.clear("finalizers") } else { self.set("finalizers", finalizers.to_vec()) }
    }

    pub fn add_finalizer(&mut self, name: &str) -> &mut Self {
        if Meta::of(self.0).has_finalizer(name) {
            return self;
        }
        let mut finalizers: Vec<String> = Meta::of(self.0).finalizers().map(str::to_owned).collect();
        finalizers.push(name.to_owned());
        self.set("finalizers", finalizers)
    }

    pub fn remove_finalizer(&mut self, name: &str) -> &mut Self {
        let finalizers: Vec<String> =
            Meta::of(self.0).finalizers().filter(|finalizer| *finalizer != name).map(str::to_owned).collect();
        if finalizers.is_empty() { self.clear("finalizers") } else { self.set("finalizers", finalizers) }
    }

    pub fn set_owners(&mut self, owners: &[OwnerReference]) -> &mut Self {
        if owners.is_empty() {
            return self.clear("ownerReferences");
        }
        self.set("ownerReferences", serde_json::to_value(owners).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_set_can_be_read() {
        let now: Timestamp = "2026-11-20T10:00:00.123456789Z".parse().expect("literal");
        let mut object = json!({});
        MetaMut::of(&mut object)
            .set_name("web")
            .set_namespace("default")
            .set_resource_version(7)
            .set_label("app", "web")
            .set_creation_timestamp(now)
            .set_deletion(now, 30)
            .add_finalizer("a")
            .add_finalizer("a")
            .add_finalizer("b")
            .remove_finalizer("a");
        let meta = Meta::of(&object);
        assert_eq!((meta.name(), meta.namespace(), meta.resource_version()), ("web", "default", "7"));
        assert_eq!(meta.label("app"), Some("web"));
        assert_eq!(object["metadata"]["creationTimestamp"], "2026-11-20T10:00:00Z");
        assert_eq!(object["metadata"]["deletionTimestamp"], "2026-11-20T10:00:30Z");
        assert_eq!(meta.finalizers().collect::<Vec<_>>(), ["b"]);
        assert!(meta.is_deleting());
        assert_eq!(format_micro_time(now), "2026-11-20T10:00:00.123456Z");
    }

    #[test]
    fn the_controller_is_found_among_owners() {
        let object = json!({"metadata": {"ownerReferences": [
            {"apiVersion": "v1", "kind": "ConfigMap", "name": "c", "uid": "1"},
            {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "2", "controller": true},
            "not an owner"]}});
        assert_eq!(Meta::of(&object).owners().len(), 2);
        assert_eq!(Meta::of(&object).controller().map(|owner| owner.name), Some("r".to_owned()));
    }
}
