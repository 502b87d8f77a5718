//! One version of one stored object, shared by every reader.
//!
//! Kept as the JSON text that is served (with its resourceVersion in place) plus the few fields that selectors look
//! at; the tree is decoded when somebody needs it and shared while anybody holds it. A tree costs about eight times
//! its text, and most versions are only ever copied to a socket.

use std::sync::{Arc, OnceLock, Weak};

use bytes::Bytes;
use parking_lot::Mutex;
use pintle_api::kinds::Kind;
use serde_json::{Map, Value};

use super::layout::{self, Slot};

/// The stored text is not an object.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    #[error("stored text is not JSON")]
    Json(#[source] serde_json::Error),
    #[error("stored value is not an object with metadata")]
    Shape,
}

#[derive(Debug)]
pub struct Object {
    pub slot: Slot,
    /// `namespace/name`, or `name`.
    pub key: Box<str>,
    /// Revision of the store that made this version; for a deleted object the revision of the deletion.
    pub revision: i64,
    json: Bytes,
    /// Where `json` goes on after kind and version; 0 if it does not begin with them.
    typed: usize,
    view: Value,
    tree: Mutex<Weak<Value>>,
    protobuf: OnceLock<Bytes>,
}

impl Object {
    /// Reads a stored value.
    ///
    /// # Errors
    /// [`DecodeError`] if the bytes are not a JSON object with metadata.
    pub fn decode(slot: Slot, key: &str, revision: i64, stored: &[u8]) -> Result<Self, DecodeError> {
        let tree: Value = serde_json::from_slice(stored).map_err(DecodeError::Json)?;
        Self::from_tree(slot, key, revision, tree)
    }

    /// # Errors
    /// [`DecodeError::Shape`] if `tree` has no metadata.
    pub fn from_tree(slot: Slot, key: &str, revision: i64, mut tree: Value) -> Result<Self, DecodeError> {
        set_revision(&mut tree, revision).ok_or(DecodeError::Shape)?;
        let json = serde_json::to_vec(&tree).map_err(DecodeError::Json)?;
        let view = view(layout::stored_kind(slot), &tree);
        Ok(Self {
            slot,
            key: key.into(),
            revision,
            json: json.into(),
            typed: typed(&tree),
            view,
            tree: Mutex::default(),
            protobuf: OnceLock::new(),
        })
    }

    /// This version as the last one of a deleted object: same content at the revision of the deletion.
    pub fn deleted_at(&self, revision: i64) -> Self {
        let mut tree = (*self.tree()).clone();
        let _ = set_revision(&mut tree, revision);
        Self {
            slot: self.slot,
            key: self.key.clone(),
            revision,
            json: serde_json::to_vec(&tree).map(Bytes::from).unwrap_or_else(|_| self.json.clone()),
            typed: self.typed,
            view: self.view.clone(),
            tree: Mutex::default(),
            protobuf: OnceLock::new(),
        }
    }

    /// The object in its stored version, with resourceVersion.
    pub fn json(&self) -> &Bytes {
        &self.json
    }

    /// The text of the object without kind and version, as an element of a list, but for its opening brace. `None` if that is not how the text is laid out.
    pub fn untyped_json(&self) -> Option<&[u8]> {
        if self.typed == 0 { None } else { self.json.get(self.typed..) }
    }

    /// Metadata and selectable fields only; for selectors.
    pub fn view(&self) -> &Value {
        &self.view
    }

    /// The whole object. Decoded once while anybody holds it.
    pub fn tree(&self) -> Arc<Value> {
        let mut weak = self.tree.lock();
        if let Some(tree) = weak.upgrade() {
            return tree;
        }
        // The text was written by `from_tree` from a tree, so it parses; `Null` is never reached.
        let tree = Arc::new(serde_json::from_slice(&self.json).unwrap_or(Value::Null));
        *weak = Arc::downgrade(&tree);
        tree
    }

    /// The protobuf form of the stored kind, made at most once per version.
    pub fn protobuf(&self, make: impl FnOnce(&Value) -> Bytes) -> Bytes {
        self.protobuf.get_or_init(|| make(&self.tree())).clone()
    }

    pub fn namespace(&self) -> &str {
        self.key.split_once('/').map_or("", |(namespace, _)| namespace)
    }

    pub fn name(&self) -> &str {
        self.key.rsplit_once('/').map_or(&self.key, |(_, name)| name)
    }

    /// `spec.nodeName`, for kinds that are indexed by it.
    pub(super) fn node(&self) -> Option<&str> {
        self.view.get("spec")?.get("nodeName")?.as_str().filter(|name| !name.is_empty())
    }

    pub fn size(&self) -> usize {
        self.json.len()
    }
}

/// Length of `{"kind":"...","apiVersion":"...",` in the text of `tree`, in either order; 0 if it begins with anything else.
fn typed(tree: &Value) -> usize {
    let Some(members) = tree.as_object().filter(|members| members.len() > 2) else { return 0 };
    let mut length = 1;
    for (name, value) in members.iter().take(2) {
        let Some(text) = value.as_str().filter(|_| matches!(name.as_str(), "kind" | "apiVersion")) else { return 0 };
        // Written as it will be in the text, with quotes and escapes.
        let written = serde_json::to_string(text).map_or(0, |written| written.len());
        length += name.len() + 3 + written + 1;
    }
    length
}

fn set_revision(tree: &mut Value, revision: i64) -> Option<()> {
    let metadata = tree.get_mut("metadata")?.as_object_mut()?;
    metadata.insert("resourceVersion".to_owned(), Value::String(revision.to_string()));
    Some(())
}

/// Fields beside metadata that selectors may name, per stored kind.
fn selectable(kind: &Kind) -> &'static [&'static [&'static str]] {
    match (kind.group, kind.kind) {
        ("", "Pod") => &[
            &["spec", "nodeName"],
            &["spec", "restartPolicy"],
            &["spec", "schedulerName"],
            &["spec", "serviceAccountName"],
            &["spec", "hostNetwork"],
            &["status", "phase"],
            &["status", "podIP"],
            &["status", "podIPs"],
            &["status", "nominatedNodeName"],
        ],
        ("", "Event") => &[&["involvedObject"], &["reason"], &["reportingComponent"], &["source"], &["type"]],
        ("", "Secret") => &[&["type"]],
        ("", "Node") => &[&["spec", "unschedulable"]],
        ("", "Namespace") => &[&["status", "phase"]],
        ("", "Service") => &[&["spec", "clusterIP"], &["spec", "type"]],
        ("", "ReplicationController") | ("apps", "ReplicaSet") => &[&["status", "replicas"]],
        ("batch", "Job") => &[&["status", "successful"], &["status", "succeeded"]],
        ("certificates.k8s.io", _) => &[&["spec", "signerName"], &["spec", "podName"], &["spec", "nodeName"]],
        ("resource.k8s.io", "ResourceSlice") => &[&["spec", "nodeName"], &["spec", "driver"]],
        ("scheduling.k8s.io", "PriorityClass") => &[&["value"]],
        _ => &[],
    }
}

/// The part of an object that selectors can see.
pub fn view(kind: &Kind, tree: &Value) -> Value {
    let mut out = Map::new();
    let mut metadata = Map::new();
    for field in ["name", "namespace", "labels"] {
        if let Some(value) = tree.get("metadata").and_then(|m| m.get(field)) {
            metadata.insert(field.to_owned(), value.clone());
        }
    }
    out.insert("metadata".to_owned(), Value::Object(metadata));
    for path in selectable(kind) {
        let Some(value) = path.iter().try_fold(tree, |at, field| at.get(*field)) else { continue };
        match path {
            [field] => {
                out.insert((*field).to_owned(), value.clone());
            }
            [parent, field, ..] => {
                let parent = out.entry((*parent).to_owned()).or_insert_with(|| Value::Object(Map::new()));
                if let Some(parent) = parent.as_object_mut() {
                    parent.insert((*field).to_owned(), value.clone());
                }
            }
            [] => (),
        }
    }
    if kind.kind == "Event" {
        // Selectors of events.k8s.io use its own names for what is stored under core's.
        for (stored, other) in [("involvedObject", "regarding"), ("reportingComponent", "reportingController")] {
            if let Some(value) = out.get(stored).cloned() {
                out.insert(other.to_owned(), value);
            }
        }
    }
    Value::Object(out)
}

#[cfg(test)]
mod tests {
    use pintle_api::kinds;
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(tree: Value, want: Option<&str>) {
        let slot = layout::slot(kinds::by_gvk("", "v1", "ConfigMap").expect("served")).expect("stored");
        let object = Object::from_tree(slot, "a/m", 7, tree).expect("an object");
        for object in [&object, &object.deleted_at(7)] {
            let text = object.untyped_json().map(|text| String::from_utf8(text.to_vec()).expect("text"));
            assert_eq!(text.as_deref(), want);
        }
    }

    #[test]
    fn kind_and_version_are_left_out_of_lists() {
        let rest = r#""metadata":{"name":"m","resourceVersion":"7"}}"#;
        let metadata = || json!({"name": "m"});
        check(json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": metadata()}), Some(rest));
        check(json!({"apiVersion": "v1", "kind": "\"\\é\n", "metadata": metadata()}), Some(rest));
        check(json!({"metadata": metadata(), "kind": "ConfigMap", "apiVersion": "v1"}), None);
        check(json!({"kind": "ConfigMap", "metadata": metadata(), "apiVersion": "v1"}), None);
        check(json!({"kind": 1, "apiVersion": "v1", "metadata": metadata()}), None);
        check(json!({"metadata": metadata()}), None);
    }
}
