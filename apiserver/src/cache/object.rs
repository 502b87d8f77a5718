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
            view: self.view.clone(),
            tree: Mutex::default(),
            protobuf: OnceLock::new(),
        }
    }

    /// The object in its stored version, with resourceVersion.
    pub fn json(&self) -> &Bytes {
        &self.json
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
