//! The scale subresource: `autoscaling/v1 Scale` as a view of any kind that has replicas.

use std::sync::Arc;

use futures::future::BoxFuture;
use http::StatusCode;
use pintle_api::codec::{self, FieldValidation};
use pintle_api::kinds::{self, Kind};
use pintle_api::meta::{Meta, MetaMut};
use pintle_api::status::{FieldError, Path, Status};
use pintle_api::strategy::{scale_of, set_scale};
use pintle_api::tree;
use serde_json::Value;

use super::resource::{Place, options, patch_body, value_response};
use super::{Call, Handler, body};
use crate::registry::{Old, Target, at_once, worked_out};
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
            let mut change = at_once(|old| set_replicas(place.kind, old, &scale));
            registry.modify(target, &mut change, &options, crate::limits::UPDATE_RETRIES).await?.object
        }
        _ => {
            let options = options(&call)?;
            let patch = patch_body(&call).await?;
            let kind = place.kind;
            let mut change = |old: Old| -> BoxFuture<'static, Result<Value, Status>> {
                let patch = patch.clone();
                Box::pin(worked_out(old.bytes + patch.bytes, move || {
                    let patched = patch.kind.apply(scale_kind, &scale_of(kind, &old.tree), &patch.body)?;
                    let decoded = codec::conform(scale_kind, patched, FieldValidation::Ignore)?;
                    set_replicas(kind, &old.tree, &decoded.object)
                }))
            };
            registry.modify(target, &mut change, &options, crate::limits::PATCH_RETRIES).await?.object
        }
    };
    value_response(&call, scale_kind, StatusCode::OK, &scale_of(place.kind, &object.tree()))
}

fn set_replicas(kind: &'static Kind, old: &Value, scale: &Value) -> Result<Value, Status> {
    let replicas = tree::int(scale, "/spec/replicas").unwrap_or(0);
    if replicas < 0 {
        let path = Path::new("spec").child("replicas");
        let error = FieldError::invalid(&path, replicas, "must be greater than or equal to 0");
        return Err(Status::invalid("autoscaling", "Scale", Meta::of(old).name(), &[error]));
    }
    let uid = Meta::of(scale).uid();
    if !uid.is_empty() && uid != Meta::of(old).uid() {
        let (group, resource, name) = (kind.group, kind.resource, Meta::of(old).name());
        return Err(Status::precondition_failed(group, resource, name, "UID", uid, Meta::of(old).uid()));
    }
    let mut object = old.clone();
    MetaMut::of(&mut object).clear("resourceVersion");
    set_scale(&mut object, scale);
    Ok(object)
}
