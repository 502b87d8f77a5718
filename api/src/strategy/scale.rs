//! The `scale` view of kinds with replicas.

use serde_json::{Value, json};

use crate::kinds::Kind;
use crate::meta::{Meta, MetaMut};
use crate::selector::Labels;
use crate::tree;

/// `spec.replicas`, which defaulting has set.
pub fn replicas(object: &Value) -> i64 {
    tree::int(object, "/spec/replicas").unwrap_or_default()
}

/// The `autoscaling/v1` Scale of an object.
pub fn scale_of(kind: &Kind, object: &Value) -> Value {
    let meta = Meta::of(object);
    let selector = match kind.kind {
        "ReplicationController" => Labels::from_map(tree::map(object, "/spec/selector")).to_string(),
        _ => Labels::from_selector(tree::at(object, "/spec/selector"))
            .map(|labels| labels.to_string())
            .unwrap_or_default(),
    };
    let mut metadata = json!({"name": meta.name(), "namespace": meta.namespace()});
    for key in ["uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = tree::at(object, &format!("/metadata/{key}")) {
            tree::set(&mut metadata, key, value.clone());
        }
    }
    let mut status = json!({"replicas": tree::int(object, "/status/replicas").unwrap_or_default()});
    if !selector.is_empty() {
        tree::set(&mut status, "selector", selector);
    }
    json!({
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": metadata,
        "spec": {"replicas": replicas(object)},
        "status": status,
    })
}

/// Puts the replicas of `scale` into `object`, and the resourceVersion if the scale names one.
pub fn set_scale(object: &mut Value, scale: &Value) {
    if let Some(spec) = tree::object(object, "spec") {
        tree::set(spec, "replicas", replicas(scale));
    }
    if let Ok(version) = Meta::of(scale).resource_version().parse() {
        MetaMut::of(object).set_resource_version(version);
    }
}
