//! The scale subresource: `autoscaling/v1 Scale` as a view of any kind that has replicas.

use std::sync::Arc;

use http::StatusCode;
use pintle_api::codec::{self, FieldValidation};
use pintle_api::kinds::{self, Kind};
use pintle_api::meta::Meta;
use pintle_api::selector::Labels;
use pintle_api::status::{FieldError, Path, Status};
use pintle_api::tree;
use serde_json::{Map, Value, json};

use super::resource::{Place, options, patch_body, value_response};
use super::{Call, Handler, body};
use crate::registry::Target;
use crate::types::Response;

pub(super) async fn serve(handler: &Arc<Handler>, call: Call, place: Place) -> Result<Response, Status> {
    let scale_kind = kinds::by_gvk("autoscaling", "v1", "Scale").ok_or_else(Status::no_such_path)?;
    let registry = &handler.ctx.registry;
    let target = Target { kind: place.kind, namespace: &place.namespace, name: &place.name, subresource: "scale" };
    let object = match call.info.verb.as_str() {
        "get" => {
            let version = call.query.text("resourceVersion");
            registry.get_at(place.kind, &place.namespace, &place.name, version).await?
        }
        "update" => {
            let options = options(&call)?;
            let (scale, _) = body::object(&call, scale_kind).await?;
            let mut change = |old: &Value| set_replicas(place.kind, old, &scale);
            registry.modify(target, &mut change, &options, crate::limits::UPDATE_RETRIES).await?.object
        }
        _ => {
            let options = options(&call)?;
            let (patch_kind, patch) = patch_body(&call).await?;
            let mut change = |old: &Value| {
                let patched = patch_kind.apply(scale_kind, &scale_of(old), &patch)?;
                let decoded = codec::conform(scale_kind, patched, FieldValidation::Ignore)?;
                set_replicas(place.kind, old, &decoded.object)
            };
            registry.modify(target, &mut change, &options, crate::limits::PATCH_RETRIES).await?.object
        }
    };
    value_response(&call, scale_kind, StatusCode::OK, &scale_of(&object.tree()))
}

/// The object as its Scale.
fn scale_of(object: &Value) -> Value {
    let mut metadata = Map::new();
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = object.get("metadata").and_then(|metadata| metadata.get(field)) {
            metadata.insert(field.to_owned(), value.clone());
        }
    }
    let replicas = |pointer| tree::int(object, pointer).unwrap_or(0);
    json!({
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": metadata,
        "spec": { "replicas": replicas("/spec/replicas") },
        "status": { "replicas": replicas("/status/replicas"), "selector": selector(object) },
    })
}

/// The selector as text. Replication controllers have a plain map, the others a LabelSelector.
fn selector(object: &Value) -> String {
    let selector = object.pointer("/spec/selector");
    let plain = selector.and_then(Value::as_object).is_some_and(|map| map.values().all(Value::is_string));
    if plain {
        return Labels::from_map(selector.and_then(Value::as_object)).to_string();
    }
    Labels::from_selector(selector).map(|labels| labels.to_string()).unwrap_or_default()
}

fn set_replicas(kind: &'static Kind, old: &Value, scale: &Value) -> Result<Value, Status> {
    let replicas = tree::int(scale, "/spec/replicas").unwrap_or(0);
    if replicas < 0 {
        let path = Path::new("spec").child("replicas");
        let error = FieldError::invalid(&path, replicas, "must be greater than or equal to 0");
        return Err(Status::invalid("autoscaling", "Scale", Meta::of(old).name(), &[error]));
    }
    let mut object = old.clone();
    let spec = object.get_mut("spec").and_then(Value::as_object_mut);
    let spec = spec.ok_or_else(|| Status::method_not_supported(kind.group, kind.resource, "scale"))?;
    spec.insert("replicas".to_owned(), json!(replicas));
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        // The version and identity the client replaces are those of the Scale it sends.
        for field in ["resourceVersion", "uid"] {
            match tree::some_text(scale, &format!("/metadata/{field}")) {
                Some(text) => metadata.insert(field.to_owned(), json!(text)),
                None => metadata.shift_remove(field),
            };
        }
    }
    Ok(object)
}
