//! DELETE of one object and of a collection.

use std::sync::Arc;

use http::StatusCode;
use pintle_api::codec::{self, FieldValidation};
use pintle_api::kinds;
use pintle_api::meta::Meta;
use pintle_api::status::Status;
use serde_json::Value;

use super::resource::{Place, form, options, value_response};
use super::{Call, Handler, body};
use crate::negotiate;
use crate::registry::{DeleteOptions, Deleted, ListOptions, Page};
use crate::types::Response;

/// Kinds whose deletion is answered with the object even when it is gone at once.
const RETURNS_OBJECT: &[(&str, &str)] = &[
    ("", "Pod"),
    ("", "PodTemplate"),
    ("", "PersistentVolume"),
    ("", "PersistentVolumeClaim"),
    ("", "ResourceQuota"),
    ("", "Service"),
    ("", "ServiceAccount"),
    ("policy", "PodSecurityPolicy"),
    ("storage.k8s.io", "CSIDriver"),
    ("storage.k8s.io", "CSINode"),
    ("storage.k8s.io", "StorageClass"),
    ("storage.k8s.io", "VolumeAttachment"),
];

pub(super) async fn one(handler: &Arc<Handler>, call: &Call, place: &Place) -> Result<Response, Status> {
    let (form, options) = (form(call, place.kind)?, options(call)?);
    let how = delete_options(call, place).await?;
    let registry = &handler.ctx.registry;
    let deleted = registry.delete(place.kind, &place.namespace, &place.name, &how, &options).await?;
    let returns = RETURNS_OBJECT.contains(&(place.kind.group, place.kind.kind));
    match &deleted {
        Deleted::Gone(object) if !returns => {
            let tree = object.tree();
            let status = Status::success(place.kind.group, place.kind.resource, &place.name, Meta::of(&tree).uid());
            value_response(call, place.kind, StatusCode::OK, &status.to_value())
        }
        _ => {
            let body = form.object(deleted.object());
            Ok(negotiate::bytes_response(StatusCode::OK, form.accepted.format.media_type(), body))
        }
    }
}

pub(super) async fn collection(handler: &Arc<Handler>, call: &Call, place: &Place) -> Result<Response, Status> {
    let (form, options) = (form(call, place.kind)?, options(call)?);
    let list = ListOptions::of_query(place.kind, &place.namespace, &call.query, false)?;
    let how = delete_options(call, place).await?;
    let (revision, objects) = handler.ctx.registry.delete_collection(place.kind, &list, &how, &options).await?;
    let body = form.list(&Page { revision, objects, ..Page::default() });
    Ok(negotiate::bytes_response(StatusCode::OK, form.accepted.format.media_type(), body))
}

/// The options of a delete: a body of kind DeleteOptions, else the query.
async fn delete_options(call: &Call, place: &Place) -> Result<DeleteOptions, Status> {
    let bytes = body::read(call).await?;
    if bytes.is_empty() {
        return DeleteOptions::parse(&call.query, None);
    }
    let kind = kinds::by_gvk(place.kind.group, place.kind.version, "DeleteOptions").ok_or_else(Status::no_such_path)?;
    let content_type = negotiate::content_type(call.headers());
    let decoded = codec::decode(kind, Some(&content_type), &bytes, FieldValidation::Ignore)?;
    let object: Value = decoded.object;
    DeleteOptions::parse(&call.query, Some(&object))
}
