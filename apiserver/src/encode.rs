//! Objects, lists, tables and watch frames in the form a client accepts.
//!
//! Pure. The common case, a stored object as JSON, is a copy of shared bytes; protobuf forms are made once per version
//! and shared (D8).

use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use pintle_api::kinds::Kind;
use pintle_api::table::Include;
use pintle_api::{codec, table};
use serde_json::{Map, Value, json};

use crate::cache::Object;
use crate::negotiate::{Accepted, Format, View};
use crate::registry::{Page, is_stored_form};

/// Everything that decides the form of one answer.
#[derive(Clone, Copy, Debug)]
pub struct Form {
    pub kind: &'static Kind,
    pub accepted: Accepted,
    pub include: Include,
    pub now: Timestamp,
}

impl Form {
    /// The tree of an object in the served version.
    fn tree(&self, object: &Object) -> Value {
        let tree = (*object.tree()).clone();
        codec::from_storage(self.kind, tree)
    }

    /// An element of a list: its kind is the list's to say.
    fn item(&self, object: &Object) -> Value {
        let mut tree = self.tree(object);
        if let Some(members) = tree.as_object_mut() {
            members.shift_remove("kind");
            members.shift_remove("apiVersion");
        }
        tree
    }

    /// The tree of an object, shared with other readers where it needs no conversion.
    fn shared(&self, object: &Object) -> Arc<Value> {
        if is_stored_form(self.kind) { object.tree() } else { Arc::new(self.tree(object)) }
    }

    /// One object as a whole answer.
    pub fn object(&self, object: &Object) -> Bytes {
        match (self.accepted.view, self.accepted.format) {
            (View::Full, Format::Json) if !self.accepted.pretty && is_stored_form(self.kind) => object.json().clone(),
            (View::Full, Format::Protobuf) => codec::encode_protobuf(self.kind, &self.tree(object)),
            (View::Full, _) => self.text(&self.tree(object)),
            (View::Partial, _) => self.partial(&self.shared(object)),
            (View::Table, _) => {
                let tree = self.tree(object);
                let metadata = json!({ "resourceVersion": object.revision.to_string() });
                self.text(&self.table(metadata, [&tree], true))
            }
        }
    }

    /// A tree of any kind (subresource bodies, virtual kinds) as a whole answer.
    pub fn value(&self, value: &Value) -> Bytes {
        match self.accepted.format {
            Format::Protobuf => protobuf_of(value),
            _ => self.text(value),
        }
    }

    fn text(&self, value: &Value) -> Bytes {
        match (self.accepted.format, self.accepted.pretty) {
            (Format::Yaml, _) => codec::encode_yaml(value),
            (_, true) => line(serde_json::to_vec_pretty(value).unwrap_or_default()),
            (_, false) => line(serde_json::to_vec(value).unwrap_or_default()),
        }
    }

    fn partial_tree(&self, tree: &Value) -> Value {
        json!({
            "kind": "PartialObjectMetadata",
            "apiVersion": format!("meta.k8s.io/{}", self.accepted.meta_version),
            "metadata": tree.get("metadata").cloned().unwrap_or_else(|| json!({})),
        })
    }

    fn partial(&self, tree: &Value) -> Bytes {
        let partial = self.partial_tree(tree);
        match self.accepted.format {
            Format::Protobuf => protobuf_of(&partial),
            _ => self.text(&partial),
        }
    }

    /// The protobuf message of an object, without envelope.
    fn message(&self, object: &Object) -> Bytes {
        let bare = |tree: &Value| codec::encode_bare(self.kind, tree).into();
        if is_stored_form(self.kind) { object.protobuf(bare) } else { bare(&self.tree(object)) }
    }

    /// A page of a list as a whole answer.
    pub fn list(&self, page: &Page) -> Bytes {
        match (self.accepted.view, self.accepted.format) {
            (View::Full, Format::Json) if !self.accepted.pretty => self.list_json(page),
            (View::Full, Format::Protobuf) => {
                let items: Vec<Bytes> = page.objects.iter().map(|object| self.message(object)).collect();
                codec::list_protobuf(self.kind, &list_meta(page), items.iter().map(|item| &**item))
            }
            (View::Full, _) => {
                let items = page.objects.iter().map(|object| self.item(object)).collect();
                self.text(&self.list_tree(&self.kind.api_version(), &self.kind.list_kind(), page, items))
            }
            (View::Partial, Format::Protobuf) => {
                let items = page.objects.iter().map(|object| self.partial_tree(&self.shared(object))).collect();
                protobuf_of(&self.list_tree("meta.k8s.io/v1", "PartialObjectMetadataList", page, items))
            }
            (View::Partial, _) => {
                let items = page.objects.iter().map(|object| self.partial_tree(&self.shared(object))).collect();
                let version = format!("meta.k8s.io/{}", self.accepted.meta_version);
                self.text(&self.list_tree(&version, "PartialObjectMetadataList", page, items))
            }
            (View::Table, _) => {
                let trees: Vec<Arc<Value>> = page.objects.iter().map(|object| self.shared(object)).collect();
                self.text(&self.table(list_meta(page), trees.iter().map(|tree| &**tree), true))
            }
        }
    }

    fn list_tree(&self, api_version: &str, kind: &str, page: &Page, items: Vec<Value>) -> Value {
        json!({ "kind": kind, "apiVersion": api_version, "metadata": list_meta(page), "items": items })
    }

    /// A JSON list, where possible without a tree in between.
    fn list_json(&self, page: &Page) -> Bytes {
        let mut out = Vec::with_capacity(256 + page.objects.iter().map(|object| object.size() + 1).sum::<usize>());
        out.extend_from_slice(b"{\"kind\":\"");
        out.extend_from_slice(self.kind.list_kind().as_bytes());
        out.extend_from_slice(b"\",\"apiVersion\":\"");
        out.extend_from_slice(self.kind.api_version().as_bytes());
        out.extend_from_slice(b"\",\"metadata\":");
        out.extend_from_slice(&serde_json::to_vec(&list_meta(page)).unwrap_or_default());
        out.extend_from_slice(b",\"items\":[");
        for (index, object) in page.objects.iter().enumerate() {
            if index > 0 {
                out.push(b',');
            }
            match object.untyped_json().filter(|_| is_stored_form(self.kind)) {
                Some(text) => {
                    out.push(b'{');
                    out.extend_from_slice(text);
                }
                None => out.extend_from_slice(&serde_json::to_vec(&self.item(object)).unwrap_or_default()),
            }
        }
        out.extend_from_slice(b"]}\n");
        out.into()
    }

    fn table<'a>(&self, metadata: Value, trees: impl IntoIterator<Item = &'a Value>, with_columns: bool) -> Value {
        let mut table = table::table(self.kind, trees, self.include, metadata, with_columns, self.now);
        if self.accepted.meta_version != "v1" {
            table["apiVersion"] = json!(format!("meta.k8s.io/{}", self.accepted.meta_version));
        }
        table
    }

    /// One event of a watch, framed.
    pub fn event(&self, change: &str, object: &Object, first: bool, out: &mut Vec<u8>) {
        match (self.accepted.view, self.accepted.format) {
            (View::Table, _) => {
                let tree = self.tree(object);
                let metadata = json!({ "resourceVersion": object.revision.to_string() });
                let table = self.table(metadata, [&tree], first);
                frame_json(change, &serde_json::to_vec(&table).unwrap_or_default(), out);
            }
            (View::Full, Format::Protobuf) | (View::Partial, Format::Protobuf) => {
                frame_protobuf(change, &self.object(object), out);
            }
            (View::Full, _) if is_stored_form(self.kind) => frame_json(change, object.json(), out),
            (View::Full, _) => {
                frame_json(change, &serde_json::to_vec(&self.tree(object)).unwrap_or_default(), out);
            }
            (View::Partial, _) => {
                let partial = self.partial_tree(&self.shared(object));
                frame_json(change, &serde_json::to_vec(&partial).unwrap_or_default(), out);
            }
        }
    }

    /// A bookmark: an empty object of the kind at a revision.
    pub fn bookmark(&self, revision: i64, initial_end: bool, out: &mut Vec<u8>) {
        let mut metadata = json!({ "resourceVersion": revision.to_string(), "creationTimestamp": null });
        if initial_end {
            metadata["annotations"] = json!({ "k8s.io/initial-events-end": "true" });
        }
        let (kind, api_version) = match self.accepted.view {
            View::Partial => ("PartialObjectMetadata", format!("meta.k8s.io/{}", self.accepted.meta_version)),
            _ => (self.kind.kind, self.kind.api_version()),
        };
        let object = match self.accepted.view {
            View::Table => {
                let object =
                    json!({ "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata });
                let cells: Vec<Value> = table::columns(self.kind).iter().map(|_| Value::Null).collect();
                let mut table = self.table(json!({ "resourceVersion": revision.to_string() }), [], false);
                table["rows"] = json!([{ "cells": cells, "object": object }]);
                table
            }
            _ => json!({ "kind": kind, "apiVersion": api_version, "metadata": metadata }),
        };
        match (self.accepted.format, self.accepted.view) {
            (Format::Protobuf, View::Full) => {
                frame_protobuf("BOOKMARK", &codec::encode_protobuf(self.kind, &object), out)
            }
            (Format::Protobuf, _) => frame_protobuf("BOOKMARK", &protobuf_of(&object), out),
            _ => frame_json("BOOKMARK", &serde_json::to_vec(&object).unwrap_or_default(), out),
        }
    }

    /// The last event of a watch that failed.
    pub fn error(&self, status: &pintle_api::status::Status, out: &mut Vec<u8>) {
        let value = status.to_value();
        match self.accepted.format {
            Format::Protobuf => frame_protobuf("ERROR", &protobuf_of(&value), out),
            _ => frame_json("ERROR", &serde_json::to_vec(&value).unwrap_or_default(), out),
        }
    }

    /// Media type of a watch stream in this form.
    pub fn stream_media_type(&self) -> &'static str {
        match self.accepted.format {
            Format::Protobuf => "application/vnd.kubernetes.protobuf;stream=watch",
            _ => "application/json",
        }
    }
}

fn line(mut text: Vec<u8>) -> Bytes {
    text.push(b'\n');
    text.into()
}

fn list_meta(page: &Page) -> Value {
    let mut meta = Map::new();
    meta.insert("resourceVersion".to_owned(), json!(page.revision.to_string()));
    if !page.continue_token.is_empty() {
        meta.insert("continue".to_owned(), json!(page.continue_token));
        if let Some(remaining) = page.remaining {
            meta.insert("remainingItemCount".to_owned(), json!(remaining));
        }
    }
    Value::Object(meta)
}

/// Protobuf of a tree that says what it is; empty for what has no such form.
pub fn protobuf_of(value: &Value) -> Bytes {
    codec::encode_any_protobuf(value).unwrap_or_default()
}

fn frame_json(change: &str, object: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"type\":\"");
    out.extend_from_slice(change.as_bytes());
    out.extend_from_slice(b"\",\"object\":");
    out.extend_from_slice(object.trim_ascii_end());
    out.extend_from_slice(b"}\n");
}

fn frame_protobuf(change: &str, object: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&codec::watch_frame_protobuf(change, object));
}
